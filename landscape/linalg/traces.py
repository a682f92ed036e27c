"""The trace of a symmetric operator from products with random vectors, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..checking import numbers, one_of, seed_of
from ..progress import resumable
from ..results import Result, with_error
from .lanczos import basis_dtype
from .operators import Operator, block_sums, drawn, fold_products, fold_shares, inner, local_size, wide_inner

Over = Literal["probes", "data"]
_FIRST_LOOK = 10  # probes before the stop rule is asked: a standard error from fewer says little about itself


@dataclass(frozen=True, eq=False)
class Trace(Result):
    """An estimate of a trace.

    Attributes:
        value: the estimate.
        stderr: its standard error over the probes.
        samples: (m,) the estimate that each probe alone would give; ``value`` is their mean.
        converged: whether stderr ≤ max(rtol·|value|, atol) was reached.
        method: how it was estimated.
        fold_values: (folds,) the trace on each fold of the data, and fold_weights, their shares; one or none where
            there are too few batches to tell an error.
        layer_samples: block → (m,) what each probe alone would give for the block's own trace; over the blocks they
            add up to ``samples``.

    Example:
        >>> import landscape
        >>> found = landscape.trace(torch.diag(0.5 ** torch.arange(40.0)))
        >>> round(found.value, 3), found.converged, found.about["products"]
        (2.0, True, 30)
        >>> low, high = found.interval(0.95)
        >>> low <= found.value <= high
        True
    """

    value: float
    stderr: float
    samples: Tensor
    converged: bool
    method: str = "Hutchinson"
    layer_samples: dict[str, Tensor] = field(default_factory=dict)
    fold_values: Tensor = field(default_factory=lambda: torch.empty(0))
    fold_weights: Tensor = field(default_factory=lambda: torch.empty(0))
    columns: ClassVar[tuple[str, ...]] = ("samples", "layer_samples")
    picture: ClassVar[str] = "spectra.trace"

    @property
    def stderr_data(self) -> float:
        """The standard error over the data, from the spread of the folds; NaN where there is none to tell.

        The probes' noise on the folds' differences is in it: rather too large than too small. Four to ten folds tell
        it: judge by ``interval(over="data")``, not by two standard errors, which hold 83 to 92 %.
        """
        return fold_stderr(self.fold_values, self.fold_weights)

    @property
    def layers(self) -> dict[str, tuple[float, float]]:
        """Block → (trace of the block on the diagonal, its standard error over the probes)."""
        return {name: mean_and_stderr(samples) for name, samples in self.layer_samples.items()}

    def interval(self, level: float = 0.95, *, over: Over = "probes") -> tuple[float, float]:
        """Return the confidence interval over the probes, or over the data, by Student's t.

        It has m − 1 degrees of freedom over m probes, folds − 1 over the data (NaN where there is no error to tell).

        Raises:
            ValueError: level outside (0, 1), over neither of the two.
        """
        one_of("over", over, Over)
        stderr, parts = (self.stderr, self.samples) if over == "probes" else (self.stderr_data, self.fold_weights)
        return t_interval(self.value, stderr, len(parts) - 1, level)

    def _cells(self) -> dict[str, list[str]]:
        data = with_error(self.value, self.stderr_data) if self.stderr_data >= 0 else "–"
        layers = self.layers
        probes = [with_error(*estimate) for estimate in ((self.value, self.stderr), *layers.values())]
        return {"trace of": ["all", *layers], "± over probes": probes, "± over data": [data] + ["–"] * len(layers)}

    def __repr__(self) -> str:
        low, high = self.interval()
        error, folds = self.stderr_data, len(self.fold_weights)
        data = "" if math.isnan(error) else f" ± {error:.2g} over data ({folds} folds)"
        more = "" if self.converged else ", stopped before the tolerance"
        sign = "" if low > 0 or high < 0 else ", sign unresolved"
        kind = f"; {self._kind()}" if self._kind() else ""
        probes = f"{len(self.samples)} probes, {self.method}"
        return f"Trace({self.value:.4g} ± {self.stderr:.2g}{data}, {probes}{more}{sign}{self._largest()}{kind})"

    def _largest(self, count: int = 3) -> str:
        """Name the layers with the largest traces."""
        layers = sorted(self.layers.items(), key=lambda item: -abs(item[1][0]))
        shown = ", ".join(f"{name} {value:.3g} ± {error:.2g}" for name, (value, error) in layers[:count])
        rest = f" and {len(layers) - count} more" if len(layers) > count else ""
        return f"; {shown}{rest}" if layers else ""


@resumable("trace", total="num_probes")
def hutchinson(
    operator: Operator,
    *,
    basis: Tensor | None = None,
    basis_trace: float = 0.0,
    fold_traces: Tensor | None = None,
    images: Tensor | None = None,
    blocks: dict[str, int] | None = None,
    rtol: float = 0.02,
    atol: float = 0.0,
    num_probes: int = 100,
    seed: int = 0,
) -> Generator[None, None, Trace]:
    """Estimate tr(A) as tr(QᵀAQ) + mean of zᵀPAPz, with P = 1 − QQᵀ and z of independent signs.

    Without a basis Q this is Hutchinson's estimator. A basis that holds the large eigenvalues takes their share of the
    trace out of the noise: on a trained ResNet-8 the scatter per probe fell from 47 % to 4.6 % with ten vectors.
    The trace of a block b on the diagonal is, from the same probes, tr_b(QQᵀA) + mean of (Pz)_b · (APz)_b.
    ``hutchinson.steps`` takes the same arguments and pauses after every product.

    Args:
        operator: symmetric, shape (n, n); a dense tensor works. Where it has ``by_fold``, the error over data is given.
        basis: (n, m) orthonormal, for example from `lanczos`.
        basis_trace: tr(QᵀAQ), which Lanczos knows.
        fold_traces: (folds,) tr(QᵀA_fQ), which Lanczos knows; without it there is no error over data.
        images: (n, m) AQ, which Lanczos knows; needed for blocks with a basis.
        blocks: name → number of consecutive coordinates, n in all: their traces are estimated as well.
        rtol, atol: stop once stderr ≤ max(rtol·|value|, atol), asked from the tenth probe on.
        num_probes: probes at most; ``converged`` says whether the tolerance was reached.
        seed: of the probes.

    Raises:
        ValueError: num_probes < 2, a tolerance < 0, blocks that do not add up to n, blocks and a basis without images.

    Cost: one product per probe.
    Source: Hutchinson 1989; deflation as in Gambhir, Stathopoulos, Orginos 2017.

    Example:
        >>> matrix = torch.diag(torch.arange(1.0, 41.0))
        >>> hutchinson(matrix)  # no noise on a diagonal matrix
        Trace(820 ± 0, 10 probes, Hutchinson)
        >>> {name: value for name, (value, error) in hutchinson(matrix, blocks={"a": 10, "b": 30}).layers.items()}
        {'a': 55.0, 'b': 765.0}
    """
    numbers(whole=True, at_least=2, note="for a standard error", num_probes=num_probes)
    numbers(at_least=0, rtol=rtol, atol=atol)
    if blocks and sum(blocks.values()) != local_size(operator):
        raise ValueError(f"blocks must add up to {local_size(operator)}, got {sum(blocks.values())}")
    if blocks and basis is not None and images is None:
        raise ValueError("blocks with a basis need images=, the products of the operator with the basis")
    generator, shares = torch.Generator().manual_seed(seed_of(seed)), fold_shares(operator)

    def signs(count: int) -> Tensor:
        return torch.randint(0, 2, (count,), generator=generator, dtype=torch.float64).mul_(2).sub_(1)

    inside: Tensor | float = 0.0
    if blocks and basis is not None and images is not None:
        inside = block_sums(operator, basis * images, list(blocks.values())).sum(1)
    samples: list[Tensor] = []
    parts: list[Tensor] = []
    dtype = basis_dtype(operator)
    basis = None if basis is None else basis.to(dtype)
    for _ in range(num_probes):
        vector = drawn(operator, signs, dtype)
        vector = vector if basis is None else vector - basis @ inner(operator, basis.T, vector)
        products = fold_products(operator, vector)
        samples.append(wide_inner(operator, products, vector).cpu())
        if blocks:
            products, vector = products.double(), vector.double()
            image = shares.to(products) @ products
            parts.append(inside + block_sums(operator, vector * image, list(blocks.values())))
        del products, vector  # before the next are there
        estimates = torch.stack(samples) @ shares + basis_trace
        yield
        if len(samples) >= _FIRST_LOOK and _has_converged(estimates, rtol, atol):
            break
    folds = torch.zeros(len(shares)) if basis is None else fold_traces
    data = () if folds is None else ((folds.cpu() + torch.stack(samples)).mean(0), shares)
    method = "Hutchinson" if basis is None else "deflated Hutchinson"
    layers = dict(zip(blocks or {}, torch.stack(parts).T.contiguous() if parts else (), strict=True))
    converged = _has_converged(estimates, rtol, atol)
    about = {"products": len(samples)}
    return Trace(about, *mean_and_stderr(estimates), estimates, converged, method, layers, *data)


def trace_of_samples(samples: list[float], *, rtol: float, atol: float) -> Trace:
    """Average independent estimates of one trace."""
    estimates = torch.tensor(samples, dtype=torch.float64)
    return Trace({}, *mean_and_stderr(estimates), estimates, _has_converged(estimates, rtol, atol))


def mean_and_stderr(samples: Tensor) -> tuple[float, float]:
    """Return the mean of independent samples and its standard error (NaN for one sample)."""
    if len(samples) < 2:
        return float(samples.mean()), float("nan")
    return float(samples.mean()), float(samples.std() / len(samples) ** 0.5)


def fold_stderr(values: Tensor, weights: Tensor) -> float:
    """Return the standard error over data of Σ weights·values, (folds,) each: a fold's variance goes as 1/weight.

    NaN for a single fold.
    """
    if len(weights) < 2:
        return math.nan
    return float((weights * (values - weights @ values).square()).sum() / (len(weights) - 1)) ** 0.5


def t_interval(value: float, stderr: float, df: float, level: float = 0.95) -> tuple[float, float]:
    """Return the interval that holds the truth with probability ``level``, by Student's t with df degrees of freedom.

    Raises:
        ValueError: level outside (0, 1).
    """
    from scipy.special import stdtrit

    numbers(above=0, below=1, level=level)
    reach = float(stdtrit(df, (1 + level) / 2)) * stderr
    return value - reach, value + reach


def _has_converged(samples: Tensor, rtol: float, atol: float) -> bool:
    value, error = mean_and_stderr(samples)
    return error <= max(rtol * abs(value), atol)
