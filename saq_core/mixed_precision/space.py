"""The search space: layers with a decision, the bits each can take, and what a choice costs; and its result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..costs import cost
from ..data.feeding import first_inputs, on_one
from ..quantization import find_ends, find_layers, parse_bits, quantized_form
from ..results import Shown
from .tracing import leader_of, trace_shortcuts

MILLION = 1e6


@dataclass(frozen=True, repr=False)
class Policy(Shown):
    """Bits per layer, the result of `search`: ``quantize(model, bits=policy.bits)``.

    All fields are numbers, texts, lists and dicts: ``json.dumps(dataclasses.asdict(policy))`` keeps it, and
    ``Policy(**json.loads(text))`` is it again.

    Args:
        bits: Layer name -> "W4A4"; the first and the last layer are not in it, `quantize` keeps them at 8.
        bops: Bit operations of one input, as `cost` counts them.
        seconds: Wall-clock time of the search.
        method: Of the search.
        budget: Largest number of bit operations allowed.
        seed: Of the search.
        peak_bytes: The most device memory that was allocated while it ran; None on a CPU, where it is not counted.
        details: Of the method, say its history.

    Example:
        >>> import saq_core
        >>> policy = saq_core.Policy({"a": "W4A4", "b": "W2A2"}, 2_000_000, 0.5, "uniform", 2.5e6)
        >>> policy
        Policy(uniform: W3A3 on average over 2 layers, 2.0 of 2.5 M BOPs, 0.5 s)
        >>> policy.frame["bits"].tolist()
        ['W4A4', 'W2A2']
    """

    bits: dict[str, str]
    bops: int
    seconds: float
    method: str
    budget: float
    seed: int = 0
    peak_bytes: int | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def _rows(self) -> list[dict[str, Any]]:
        return [{"layer": name, "bits": bits} for name, bits in self.bits.items()]

    def __repr__(self) -> str:
        pairs = [parse_bits(bits) for bits in self.bits.values()]
        weight, activation = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
        mean = f"W{weight:.3g}A{activation:.3g} on average over {len(pairs)} layers"
        spent = f"{self.bops / MILLION:,.1f} of {self.budget / MILLION:,.1f} M BOPs"
        return f"Policy({self.method}: {mean}, {spent}, {self.seconds:.3g} s)"


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
        example: Any = None,
        *,
        candidates: Sequence[int | str] = (2, 3, 4, 5),
        first_input_bits: int = 8,
    ) -> Space:
        """Trace a float network once; what any choice costs is arithmetic from then on. `example`: see `describe`."""
        if isinstance(candidates, str) or not isinstance(candidates, Iterable):
            raise ValueError(f"candidates must be a sequence of bits, say (2, 3, 4), got {candidates!r}")
        parsed = {parse_bits(bits, "candidates") for bits in candidates}
        pairs = sorted(parsed, key=lambda pair: (pair[0] * pair[1], pair))
        if len(pairs) < 2 or max(max(pair) for pair in pairs) > 31:
            raise ValueError(f"candidates must be two or more of 1 to 31 bits, got {list(candidates)}")
        names = [f"{n}{part}" for n, m in find_layers(model)[0].items() for part in quantized_form(m).parts]
        first, last = find_ends(model, names) if names else (None, [])
        free = [name for name in names if name not in (first, *last)]
        if not free:
            raise ValueError(f"model must have a layer between the first and the last, got {names}")
        x = first_inputs(model, example)
        unit = cost(model, [(x,)], bits=dict.fromkeys(free, "W1A1"), first_input_bits=first_input_bits)
        (follows, norms), _ = on_one(partial(trace_shortcuts, model), model, x)
        follows |= {n: n.removesuffix(".products") for n in free if n.endswith(".products")}
        leaders = {name: leader_of(name, follows, free) for name in free}
        macs = {row.name: row.macs for row in unit.layers}
        order = [row.name for row in unit.layers if leaders.get(row.name) == row.name]
        groups = {leader: tuple(n for n in free if leaders[n] == leader) for leader in order}
        table = [[sum(macs[n] * _width(n, *pair) for n in group) for pair in pairs] for group in groups.values()]
        fixed = unit.bops - sum(macs[name] for name in free)
        norms = {name: leaders[at] for name, at in norms.items() if at in leaders}
        return cls(tuple(f"W{w}A{a}" for w, a in pairs), groups, torch.tensor(table), fixed, norms)

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
