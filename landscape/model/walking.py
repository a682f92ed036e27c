"""Points beside the centre without a second copy of the weights: each tensor is made when it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

LARGE = 2**24  # weights: of fewer, copies are no matter


class Along(Mapping[str, Tensor]):
    """Σ coefficient·step, over all names that any step moves, summed up each time a name is read."""

    def __init__(self, steps: Sequence[Mapping[str, Tensor]], coefficients: Sequence[float]) -> None:
        self.terms: dict[str, list[tuple[float, Tensor]]] = {}
        for step, coefficient in zip(steps, coefficients, strict=True):
            for name, part in step.items():
                self.terms.setdefault(name, []).append((coefficient, part))

    def __getitem__(self, name: str) -> Tensor:
        (coefficient, part), *more = self.terms[name]
        total = coefficient * part
        for coefficient, part in more:
            total = total + coefficient * part
        return total

    def __iter__(self) -> Iterator[str]:
        return iter(self.terms)

    def __len__(self) -> int:
        return len(self.terms)


@dataclass(frozen=True)
class Late:
    """A tensor beside its base, to be made when a module reads it: in the processor's cache when it is used."""

    base: Tensor
    terms: Sequence[tuple[float, Tensor]]

    def __call__(self) -> Tensor:
        """Make it."""
        tensor = self.base
        for index, (coefficient, part) in enumerate(self.terms):
            tensor = tensor.add_(part, alpha=coefficient) if index else tensor.add(part, alpha=coefficient)
        return tensor


class MadeOnReading(dict[str, Any]):
    """The parameters (or buffers) of a module, some of which are `Late`."""

    def __getitem__(self, key: str) -> Any:
        entry = super().__getitem__(key)
        return entry() if isinstance(entry, Late) else entry

    def __iter__(self) -> Iterator[str]:
        """Yield the names; with an own one, ``dict(…)`` and ``**`` read by `__getitem__` as well."""
        return super().__iter__()

    def copy(self) -> dict[str, Any]:
        """Return names and tensors."""
        return dict(self)

    def items(self) -> Iterator[tuple[str, Any]]:  # type: ignore[override]
        """Yield names and tensors, one after the other."""
        return ((key, self[key]) for key in self)

    def values(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the tensors, one after the other."""
        return (self[key] for key in self)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the tensor of a name, if there is one."""
        entry = super().get(key, default)
        return entry() if isinstance(entry, Late) else entry
