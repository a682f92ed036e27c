"""What there is to choose: the layers with a decision, the bits each can take, and what a choice costs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from ..costs import cost, one_input
from ..layers import SWAPS, copy_model, find_layers, parse_bits

MILLION = 1e6
ADDITIONS = ("add", "add_", "__add__", "__iadd__", "__radd__")


@dataclass(frozen=True, repr=False)
class Policy:
    """Bits per layer, found by `search`: ``quantize(model, bits=policy.bits)``.

    All fields are numbers, texts, lists and dicts: ``json.dumps(dataclasses.asdict(policy))`` keeps it, and
    ``Policy(**json.loads(text))`` is it again.

    Args:
        bits: Layer name -> "W4A4"; the first and the last layer are not in it, `quantize` keeps them at 8.
        bops: Bit operations of one input, as `cost` counts them.
        seconds: That the search took.
        method: That found it.
        budget: It was to stay within.
        seed: Of the search.
        peak_bytes: The most device memory that was allocated while it ran; None on a CPU, where it is not counted.
        details: What the method noted, say its history.
    """

    bits: dict[str, str]
    bops: int
    seconds: float
    method: str
    budget: float
    seed: int = 0
    peak_bytes: int | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        pairs = [parse_bits(bits) for bits in self.bits.values()]
        weight, activation = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
        mean = f"W{weight:.3g}A{activation:.3g} on average over {len(pairs)} layers"
        spent = f"{self.bops / MILLION:,.1f} of {self.budget / MILLION:,.1f} M BOPs"
        return f"Policy({self.method}: {mean}, {spent}, {self.seconds:.3g} s)"


class Origin(NamedTuple):
    """Where a value of a forward pass came from: the last layer, all layers before, and whether nothing was added."""

    layer: str
    before: frozenset[str]
    alone: bool


class _Origins(TorchFunctionMode):
    """Follow the values of a forward pass back to the layers that made them."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, tuple[Tensor, Origin]] = {}  # the tensor too, for its id must not be used again
        self.follows: dict[str, str] = {}
        self.norms: dict[str, str] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        parts = [found for t in _tensors((args, kwargs or {})) if (found := self.of(t)) is not None]
        if parts:
            deepest = max(parts, key=lambda origin: len(origin.before))
            if getattr(func, "__name__", "") in ADDITIONS and len(parts) == 2:
                self._note_shortcut(min(parts, key=lambda origin: len(origin.before)), deepest)
            before, alone = frozenset().union(*(origin.before for origin in parts)), len(parts) == 1 and deepest.alone
            self._put(output, Origin(deepest.layer, before, alone))
        return output

    def of(self, tensor: Tensor) -> Origin | None:
        """Return the origin of a value, None for the input and for parameters."""
        return self.known[id(tensor)][1] if id(tensor) in self.known else None

    def _put(self, values: Any, origin: Origin) -> None:
        self.known.update({id(t): (t, origin) for t in _tensors(values)})

    def _note_shortcut(self, short: Origin, long: Origin) -> None:
        both = short.alone and long.alone and len(short.before) < len(long.before)
        circle = _leader(long.layer, self.follows, self.follows.values()) == short.layer  # of layers used twice
        if both and short.layer not in long.before and not circle:
            self.follows.setdefault(short.layer, long.layer)

    def layer(self, name: str, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Note a layer's output (a forward hook)."""
        origins = [found for t in _tensors(inputs) if (found := self.of(t)) is not None]
        before = max((origin.before for origin in origins), key=len, default=frozenset())
        self._put(output, Origin(name, before | {name}, True))

    def norm(self, name: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Note which layer feeds a BatchNorm (a hook before its forward pass)."""
        origin = self.of(inputs[0])
        if origin is not None:
            self.norms.setdefault(name, origin.layer)


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Iterable) and not isinstance(values, str):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _tensors(value)


def follow(model: nn.Module, x: Tensor) -> tuple[dict[str, str], dict[str, str]]:
    """Return (shortcut -> the layer beside it, BatchNorm -> the layer that feeds it), from one forward pass of a copy.

    A shortcut is a layer whose output is added to that of a longer branch which it is no part of. After an addition the
    longer branch counts as what feeds: the first BatchNorm of a pre-activation block belongs to the block before.
    """
    twin, origins = copy_model(model).eval().requires_grad_(), _Origins()
    layers = find_layers(twin)[0]
    for name, module in twin.named_modules():
        if name in layers:
            module.register_forward_hook(partial(origins.layer, name))
        elif isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(partial(origins.norm, name))
    with torch.enable_grad(), origins:
        twin(x)
    return origins.follows, origins.norms


@dataclass(frozen=True, eq=False)
class Space:
    """All policies of one network. A choice is a tensor (…, decisions) of positions in `candidates`.

    Args:
        candidates: Labels, say "W2A2".
        groups: Layer with a decision -> itself and the layers that follow it: a shortcut's convolution takes the bits
            of the branch beside it, the products of attention those of its projections.
        table: (decisions, candidates) bit operations of each group.
        fixed: Bit operations of everything else: first and last layer, what cannot be quantized.
        norms: BatchNorm -> layer with a decision whose output it normalises; the others serve no decision.
    """

    candidates: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]
    table: Tensor
    fixed: int
    norms: dict[str, str]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        input_shape: Sequence[int] | None = None,
        *,
        candidates: Sequence[int | str] = (2, 3, 4, 5),
        first_input_bits: int = 8,
    ) -> Space:
        """Trace a float network once; what any choice costs is arithmetic from then on."""
        if isinstance(candidates, str) or not isinstance(candidates, Iterable):
            raise ValueError(f"candidates must be a sequence of bits, say (2, 3, 4), got {candidates!r}")
        pairs = sorted(
            {parse_bits(bits, "candidates") for bits in candidates}, key=lambda pair: (pair[0] * pair[1], pair)
        )
        if len(pairs) < 2 or max(max(pair) for pair in pairs) > 31:
            raise ValueError(f"candidates must be two or more of 1 to 31 bits, got {list(candidates)}")
        names = [f"{n}{part}" for n, layer in find_layers(model)[0].items() for part in SWAPS[type(layer)].parts]
        free = names[1:-1]
        if not free:
            raise ValueError(f"model must have a layer between the first and the last, got {names}")
        follows, norms = follow(model, one_input(model, input_shape))
        follows |= {n: n.removesuffix(".products") for n in free if n.endswith(".products")}
        leaders = {name: _leader(name, follows, free) for name in free}
        found = cost(model, input_shape, bits=dict.fromkeys(free, "W1A1"), first_input_bits=first_input_bits)
        macs = {row.name: row.macs for row in found.layers}
        order = [row.name for row in found.layers if leaders.get(row.name) == row.name]
        groups = {leader: tuple(n for n in free if leaders[n] == leader) for leader in order}
        table = torch.tensor(
            [[sum(macs[n] * _width(n, *pair) for n in group) for pair in pairs] for group in groups.values()]
        )
        fixed = found.bops - sum(macs[name] for name in free)
        labels = tuple(f"W{w}A{a}" for w, a in pairs)
        return cls(labels, groups, table, fixed, {n: leaders[at] for n, at in norms.items() if at in leaders})

    def bops(self, choice: Tensor) -> Tensor:
        """Return the bit operations of choices, (…, decisions) -> (…)."""
        return self.table.expand(*choice.shape, -1).gather(-1, choice[..., None]).sum((-1, -2)) + self.fixed

    def bits(self, choice: Tensor) -> dict[str, str]:
        """Return layer -> label of one choice, as `quantize` takes it."""
        chosen = zip(self.groups.values(), choice.tolist(), strict=True)
        return {name: self.candidates[k] for group, k in chosen for name in group}

    def everywhere(self, candidate: int) -> Tensor:
        """Return the choice of one candidate in every layer."""
        return torch.full((len(self.groups),), candidate)

    def check(self, budget: float) -> None:
        """Raise unless some choice fits."""
        smallest = self.fixed + int(self.table.amin(1).sum())
        if not budget >= smallest:
            raise ValueError(
                f"budget must be >= {smallest}, got {budget}: the smallest possible is {smallest / MILLION:,.1f} M BOPs"
            )


def _width(name: str, weight_bits: int, activation_bits: int) -> int:
    """Return bit operations per multiplication: the products of attention multiply activations with each other."""
    return activation_bits * (activation_bits if name.endswith(".products") else weight_bits)


def _leader(name: str, follows: dict[str, str], free: Collection[str]) -> str:
    """Return the layer that decides for this one: itself, unless it follows one that can decide."""
    while follows.get(name) in free:
        name = follows[name]
    return name
