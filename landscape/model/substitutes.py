"""Functions of PyTorch without a (right) second derivative, written out: exactly the same function of the weights.

What a network calls is seen in its first forward pass; one that calls none of these runs as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """Return relu6(x + 3) / 6: the backward of torch's own has no derivative."""
    return F.relu6(input + 3) / 6


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Return g·v/‖v‖, the norm over all dimensions but one: the second derivative of torch's own is wrong."""
    others = [d for d in range(v.ndim) if d != dim]
    return v * (g / v.square().sum(others, keepdim=True).sqrt())


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Return rows of the weight with the dense gradient, not scaled: the derivative."""
    return F.embedding(input, weight, padding_idx, max_norm, norm_type)


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Return sums, means or maxima of bags of rows: the backward of torch's own has no derivative."""
    if input.ndim == 2:
        bags, bag = len(input), torch.arange(len(input), device=input.device).repeat_interleave(input.shape[1])
    else:
        assert offsets is not None
        ends = offsets if include_last_offset else torch.cat([offsets, offsets.new_tensor([len(input)])])
        bags = len(ends) - 1
        bag = torch.arange(bags, device=input.device).repeat_interleave(ends.diff())
    index = input.reshape(-1)
    rows = F.embedding(index, weight, padding_idx, max_norm, norm_type)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.reshape(-1, 1)
    counts = torch.ones_like(index) if padding_idx is None else (index != padding_idx).long()
    size = counts.new_zeros(bags).index_add(0, bag, counts)
    if mode == "max":
        lowest = rows.new_full((bags, rows.shape[1]), -torch.inf)
        used = torch.where(counts[:, None] > 0, rows, -torch.inf)
        largest = lowest.scatter_reduce(0, bag[:, None].expand_as(rows), used, "amax")
        return torch.where(size[:, None] > 0, largest, 0)
    total = rows.new_zeros(bags, rows.shape[1]).index_add(0, bag, rows * counts[:, None])
    return total / size.clamp_min(1)[:, None] if mode == "mean" else total


_TABLE: dict[Any, Any] = {
    F.hardsigmoid: hardsigmoid,
    torch._C._nn.hardsigmoid: hardsigmoid,
    torch._weight_norm: weight_norm,
    F.embedding: embedding,
    F.embedding_bag: embedding_bag,
}


_ATTENTION = [F.scaled_dot_product_attention, F.multi_head_attention_forward]


class Substitution(TorchFunctionMode):
    """Calls the functions written out in the place of PyTorch's own, or only notes whether a network calls these.

    Args:
        is_on: whether to call them.

    Attributes:
        seen: whether one was called.
        attends: whether a kernel of attention was.
    """

    def __init__(self, is_on: bool) -> None:
        super().__init__()
        self.is_on, self.seen, self.attends = is_on, False, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Substitute, or pass on."""
        kwargs = kwargs or {}
        is_affected = _is_affected(func, args, kwargs)
        self.seen |= is_affected
        self.attends |= func in _ATTENTION  # compared by identity first: some functions cannot be hashed
        return (_TABLE[func] if self.is_on and is_affected else func)(*args, **kwargs)


def _is_affected(func: Any, args: Any, kwargs: Any) -> bool:
    try:
        known = func in _TABLE
    except TypeError:  # not to be hashed
        return False
    if func is not F.embedding:
        return known
    names = ("scale_grad_by_freq", "sparse")
    return any(kwargs.get(name) or (len(args) > at and args[at]) for at, name in enumerate(names, start=5))
