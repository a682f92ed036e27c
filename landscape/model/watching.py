"""What a network rounds, seen while it runs: a mode that follows everything computed from some tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

_ROUNDING = {"round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "heaviside", "frac", "floor_divide"}
_ROUNDING |= {"int", "long", "short", "char", "byte"}
_COMPARING = {"gt", "ge", "lt", "le", "eq", "ne", "argmax", "argmin", "bucketize", "searchsorted", "greater", "less"}
_COMPARING |= {f"__{name}__" for name in ("gt", "ge", "lt", "le", "eq", "ne")}
_CHOOSING = {"where", "masked_fill"}  # branches that are followed themselves: a kink, no stair


class Watch(TorchFunctionMode):
    """Follows what is computed from some tensors; counts the functions that round it, or decide by it.

    Attributes:
        rounded: function → how often it rounded.
        steps: function → how often a comparison, or an index, became a number.
    """

    def __init__(self, leaves: Iterable[Tensor]) -> None:
        super().__init__()
        self.rounded: Counter[str] = Counter()
        self.steps: Counter[str] = Counter()
        self._followed, self._decided = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        for leaf in leaves:
            self._followed[leaf] = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(getattr(func, "__name__", func))
        if name in ("__get__", "__set__", "size", "dim", "numel", "stride", "is_floating_point", "backward"):
            return func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        is_followed = any(tensor in self._followed for tensor in tensors)
        is_decided = any(tensor in self._decided for tensor in tensors)
        output = func(*args, **kwargs)
        if not (is_followed or is_decided):
            return output
        results = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        base = name if name.startswith("__") else name.rstrip("_")
        if is_decided:
            for result in results:
                if not result.is_floating_point():
                    self._decided[result] = True
                elif not (base in _CHOOSING and is_followed):
                    self.steps[base] += 1
        if is_followed and (tensors[0].is_floating_point() and self._rounds(base, kwargs, tensors[0], results)):
            self.rounded[base] += 1
        if base in _COMPARING:
            for result in results:
                self._decided[result] = True
        elif is_followed:
            for tensor in (*results, *tensors[: name.endswith("_") and not name.startswith("__")]):
                self._followed[tensor] = True
        return output

    @staticmethod
    def _rounds(name: str, arguments: Mapping[str, Any], source: Tensor, results: Sequence[Tensor]) -> bool:
        if name in _ROUNDING or "quant" in name or (name in ("div", "divide") and arguments.get("rounding_mode")):
            return True
        casts = name in ("to", "type", "type_as") and bool(results) and not results[0].is_floating_point()
        return casts and results[0].dtype != torch.bool
