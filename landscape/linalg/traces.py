"""The trace of a symmetric operator from products with random vectors, with an honest standard error."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..progress import finished, progress
from ..results import Result, with_error
from .operators import Operator, fold_products, fold_shares

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

        The probes' noise on the folds' differences is in it: rather too large than too small.
        """
        return fold_stderr(self.fold_values, self.fold_weights)

    @property
    def layers(self) -> dict[str, tuple[float, float]]:
        """Block → (trace of the block on the diagonal, its standard error over the probes)."""
        return {name: mean_and_stderr(samples) for name, samples in self.layer_samples.items()}

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Give the confidence interval over the probes, by Student's t with m − 1 degrees of freedom.

        Raises:
            ValueError: level outside (0, 1).
        """
        from scipy.special import stdtrit

        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}")
        reach = float(stdtrit(len(self.samples) - 1, (1 + level) / 2)) * self.stderr
        return self.value - reach, self.value + reach

    def _cells(self) -> dict[str, list[str]]:
        data = with_error(self.value, self.stderr_data) if self.stderr_data >= 0 else "–"
        columns = {"trace of": ["all"], "± over probes": [with_error(self.value, self.stderr)], "± over data": [data]}
        for name, (value, stderr) in self.layers.items():
            row = (name, with_error(value, stderr), "–")
            for column, cell in zip(columns.values(), row, strict=True):
                column.append(cell)
        return columns

    def __repr__(self) -> str:
        low, high = self.interval()
        data = "" if math.isnan(self.stderr_data) else f" ± {self.stderr_data:.2g} over data"
        more = "" if self.converged else ", stopped before the tolerance"
        sign = "" if low > 0 or high < 0 else ", sign unresolved"
        kind = f"; {self._kind()}" if self._kind() else ""
        probes = f"{len(self.samples)} probes, {self.method}"
        return f"Trace({self.value:.4g} ± {self.stderr:.2g}{data}, {probes}{more}{sign}{kind})"


def hutchinson(
    operator: Operator,
    *,
    basis: Tensor | None = None,
    basis_trace: float = 0.0,
    fold_traces: Tensor | None = None,
    images: Tensor | None = None,
    blocks: dict[str, int] | None = None,
    rtol: float = 0.05,
    atol: float = 0.0,
    max_samples: int = 100,
    seed: int = 0,
) -> Trace:
    """Estimate tr(A) as tr(QᵀAQ) + mean of zᵀPAPz, with P = 1 − QQᵀ and z of independent signs.

    Without a basis Q this is Hutchinson's estimator. A basis that holds the large eigenvalues takes their share of the
    trace out of the noise: on a trained ResNet-8 the scatter per probe fell from 47 % to 4.6 % with ten vectors.
    The trace of a block b on the diagonal is, from the same probes, tr_b(QQᵀA) + mean of (Pz)_b · (APz)_b.

    Args:
        operator: symmetric, shape (n, n); a dense tensor works. Where it has ``by_fold``, the error over data is given.
        basis: (n, m) orthonormal, for example from `lanczos`.
        basis_trace: tr(QᵀAQ), which Lanczos knows.
        fold_traces: (folds,) tr(QᵀA_fQ), which Lanczos knows; without it there is no error over data.
        images: (n, m) AQ, which Lanczos knows; needed for blocks with a basis.
        blocks: name → number of consecutive coordinates, n in all: their traces are estimated as well.
        rtol, atol: stop once stderr ≤ max(rtol·|value|, atol), asked from the tenth probe on.
        max_samples: stop there in any case; ``converged`` says so.
        seed: of the probes.

    Raises:
        ValueError: max_samples < 2, a tolerance < 0, blocks that do not add up to n, blocks and a basis without images.

    Cost: one product per probe.   Source: Hutchinson 1989; deflation as in Gambhir, Stathopoulos, Orginos 2017.
    """
    _check(operator, blocks, rtol, atol, max_samples)
    if blocks and basis is not None and images is None:
        raise ValueError("blocks with a basis need images=, the products of the operator with the basis")
    known = {"basis": basis, "basis_trace": basis_trace, "fold_traces": fold_traces, "images": images}
    stop: dict[str, Any] = {"rtol": rtol, "atol": atol, "max_samples": max_samples}
    found: Trace = finished(hutchinson_steps(operator, known, blocks, seed=seed, **stop), "trace", max_samples)
    return found


def hutchinson_steps(
    operator: Operator,
    known: Mapping[str, Any],
    blocks: dict[str, int] | None = None,
    *,
    rtol: float,
    atol: float = 0.0,
    max_samples: int = 100,
    seed: int = 0,
) -> Generator[None, None, Trace]:
    """Do what `hutchinson` does, pausing after each product; ``known`` is what it takes of a basis."""
    basis, basis_trace, fold_traces, images = (known.get(n) for n in ("basis", "basis_trace", "fold_traces", "images"))
    generator = torch.Generator().manual_seed(seed)
    folds = torch.zeros(len(fold_shares(operator))) if basis is None else fold_traces
    inside = torch.zeros(()) if basis is None or images is None else _cut(basis * images, blocks).sum(1)
    samples: list[Tensor] = []
    parts: list[Tensor] = []
    for _ in range(max_samples):
        probe = _signs(operator, generator)
        probe = probe if basis is None else probe - basis @ (basis.T @ probe)
        products, image = _by_fold(operator, probe)
        samples.append((products @ probe).cpu())
        parts.append(inside + _cut(probe * image, blocks))
        estimates = torch.stack(samples) @ fold_shares(operator) + (basis_trace or 0.0)
        yield
        if len(samples) >= _FIRST_LOOK and _reached(estimates, rtol, atol):
            break
    per_fold = None if folds is None else folds.cpu() + torch.stack(samples)
    method = "Hutchinson" if basis is None else "deflated Hutchinson"
    layers = dict(zip(blocks or {}, torch.stack(parts).T.contiguous(), strict=True))
    about = {"products": len(samples)}
    return _result(about, estimates, rtol, atol, method, layers, per_fold, fold_shares(operator))


def hutchpp(
    operator: Operator,
    *,
    sketch: int = 15,
    blocks: dict[str, int] | None = None,
    rtol: float = 0.05,
    atol: float = 0.0,
    max_samples: int = 100,
    seed: int = 0,
) -> Trace:
    """Estimate tr(A) by Hutch++: deflated Hutchinson whose basis Q spans AS, S of ``sketch`` random sign vectors.

    Choose it where no Lanczos basis is at hand. The probes are independent of S, so that the standard error is honest.

    Args:
        operator: as for `hutchinson`.
        sketch: columns of S. The paper spends as many products on each of S, Q and the probes; these here are as many
            as the tolerance asks for.
        blocks, rtol, atol, max_samples: as for `hutchinson`; the stop rule applies to the probes.
        seed: of sketch and probes.

    Raises:
        ValueError: sketch < 1, and as `hutchinson`.

    Cost: 2·sketch products and one per probe; memory 2·n·sketch float64.

    Source: Meyer, Musco, Musco, Woodruff 2021, algorithm 1.
    """
    _check(operator, blocks, rtol, atol, max_samples)
    if sketch < 1:
        raise ValueError(f"sketch must be >= 1, got {sketch}")
    generator = torch.Generator().manual_seed(seed)
    signs = [_signs(operator, generator) for _ in range(min(sketch, operator.shape[0]))]
    columns = [_by_fold(operator, column)[1] for column in progress(signs, "sketch")]
    basis = torch.linalg.qr(torch.stack(columns, dim=1)).Q
    folds, images = torch.zeros(len(fold_shares(operator)), dtype=torch.float64), torch.empty_like(basis)
    for number in progress(range(basis.shape[1]), "sketch"):
        products, images[:, number] = _by_fold(operator, basis[:, number])
        folds += (products @ basis[:, number]).cpu()
    taken = {"basis_trace": float(folds @ fold_shares(operator)), "fold_traces": folds, "images": images}
    settings = {"blocks": blocks, "rtol": rtol, "atol": atol, "max_samples": max_samples}
    fresh: Any = taken | settings | {"seed": int(torch.randint(2**62, (), generator=generator))}
    found = hutchinson(operator, basis=basis, **fresh)
    return replace(found, about={"products": 2 * len(signs) + len(found.samples)}, method="Hutch++")


def xtrace(
    operator: Operator,
    *,
    blocks: dict[str, int] | None = None,
    rtol: float = 0.05,
    atol: float = 0.0,
    max_samples: int = 50,
    seed: int = 0,
) -> Trace:
    """Estimate tr(A) by XTrace: every probe ωᵢ is used for Hutchinson, and for the basis Qᵢ that deflates the others.

    tᵢ = tr(QᵢᵀAQᵢ) + ωᵢᵀPᵢAPᵢωᵢ with Qᵢ spanning AΩ without its i-th column; the value is their mean. The most accurate
    for its products where eigenvalues decay fast. The tᵢ are not independent: within their "standard error" the truth
    lies 37–69 % of the time, not 68 %. ``method`` says so.

    Args:
        operator, blocks, rtol, atol: as for `hutchinson`; the stop rule is asked after every tenth probe.
        max_samples: probes at most, and n/2 in any case.
        seed: of the probes.

    Raises:
        ValueError: n ≤ 20, and as `hutchinson`.

    Cost: two products per probe; memory 4·n·probes float64.

    Source: Epperly, Tropp, Webber 2023, algorithm 1.2, with signs, without the normalisation of their section 2.3.
    """
    _check(operator, blocks, rtol, atol, max_samples)
    if operator.shape[0] <= 2 * _FIRST_LOOK:
        raise ValueError(f"xtrace needs more than {2 * _FIRST_LOOK} rows, got {operator.shape[0]}: add the diagonal up")
    generator = torch.Generator().manual_seed(seed)
    most = min(max_samples, operator.shape[0] // 2)  # with as many probes as rows its estimates are degenerate
    taken = _Products(operator)
    signs: list[int] = []  # where among the products the signs and the basis are
    basis: list[int] = []
    while True:
        fresh = [_signs(operator, generator) for _ in range(min(_FIRST_LOOK, most - len(signs)))]
        signs += taken.add(torch.stack(fresh, dim=1))
        rest, known = taken.images[:, signs[-len(fresh) :]], taken.columns[:, basis]
        for _ in range(2):  # what is left of a sketch of low rank is noise, orthogonal to nothing, the first time
            rest = torch.linalg.qr(rest - known @ (known.T @ rest)).Q
        basis += taken.add(rest)
        per_fold, parts = _leave_one_out(taken, signs, basis, blocks)
        estimates = per_fold @ fold_shares(operator)
        if _reached(estimates, rtol, atol) or len(signs) == most:
            break
    about = {"products": len(signs) + len(basis)}
    method = "XTrace, error estimate (optimistic)"
    layers = dict(zip(blocks or {}, parts, strict=True))
    return _result(about, estimates, rtol, atol, method, layers, per_fold, fold_shares(operator))


def trace_of_samples(samples: list[float], *, rtol: float, atol: float) -> Trace:
    """Average independent estimates of one trace."""
    return _result({}, torch.tensor(samples, dtype=torch.float64), rtol, atol, "Hutchinson")


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


class _Products:
    """Columns V with AV and, for every fold, VᵀA_fV: what is asked of signs and basis follows without more products."""

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self.columns = torch.empty(operator.shape[0], 0, dtype=torch.float64, device=operator.device)
        self.images = self.columns
        self.forms = torch.zeros(len(fold_shares(operator)), 0, 0, dtype=torch.float64)

    def add(self, new: Tensor) -> list[int]:
        """Take columns in; return where they are."""
        self.columns = torch.cat([self.columns, new], dim=1)
        self.forms = torch.nn.functional.pad(self.forms, (0, new.shape[1], 0, new.shape[1]))
        places = list(range(self.images.shape[1], self.columns.shape[1]))
        self.images = torch.cat([self.images, torch.empty_like(new)], dim=1)
        for place in progress(places, "trace"):
            products, self.images[:, place] = _by_fold(self.operator, self.columns[:, place])
            self.forms[:, place] = self.forms[:, :, place] = (products @ self.columns).cpu()
        return places


def _leave_one_out(
    taken: _Products, signs: list[int], basis: list[int], blocks: dict[str, int] | None
) -> tuple[Tensor, Tensor]:
    """Return XTrace's estimates, (k, folds), and those of the blocks, (blocks, k)."""
    k, q, images = len(signs), taken.columns[:, basis], taken.images[:, basis]
    r = q.T @ taken.images[:, signs]
    others = torch.stack([r[:, [j for j in range(k) if j != i]] for i in range(k)])
    # the direction of the basis that the i-th probe alone brought in, a column for each
    alone = torch.linalg.qr(others, mode="complete").Q[:, :, -1].T
    inside = q.T @ taken.columns[:, signs]
    probes = torch.zeros(taken.columns.shape[1], k, dtype=torch.float64)  # their coefficients in all the columns
    probes[signs], probes[basis] = torch.eye(k, dtype=torch.float64), (alone * (alone * inside).sum(0) - inside).cpu()
    form, lost = taken.forms[:, basis][:, :, basis], alone.cpu()
    per_fold = form.diagonal(dim1=1, dim2=2).sum(1, keepdim=True) - _squares(form, lost) + _squares(taken.forms, probes)
    parts = _cut(q * images, blocks).sum(1, keepdim=True) - _cut((q @ alone) * (images @ alone), blocks)
    probes = probes.to(q)
    return per_fold.T, parts + _cut((taken.columns @ probes) * (taken.images @ probes), blocks)


def _squares(forms: Tensor, columns: Tensor) -> Tensor:
    """Return cᵀFc for every form and column, (forms, columns)."""
    return ((forms @ columns) * columns).sum(1)


def _cut(values: Tensor, blocks: dict[str, int] | None) -> Tensor:
    """Sum blocks of rows, (n,) → (blocks,) and (n, k) → (blocks, k)."""
    parts = [part.sum(0) for part in values.split(list(blocks.values()))] if blocks else []
    return torch.stack(parts).cpu() if parts else torch.zeros(0, *values.shape[1:], dtype=torch.float64)


def _result(
    about: dict[str, int],
    samples: Tensor,
    rtol: float,
    atol: float,
    method: str,
    layers: dict[str, Tensor] | None = None,
    per_fold: Tensor | None = None,
    shares: Tensor | None = None,
) -> Trace:
    value, error = mean_and_stderr(samples)
    folds = () if per_fold is None or shares is None else (per_fold.mean(0), shares)
    return Trace(about, value, error, samples, _reached(samples, rtol, atol), method, layers or {}, *folds)


def _reached(samples: Tensor, rtol: float, atol: float) -> bool:
    value, error = mean_and_stderr(samples)
    return error <= max(rtol * abs(value), atol)


def _check(operator: Operator, blocks: dict[str, int] | None, rtol: float, atol: float, max_samples: int) -> None:
    if max_samples < 2:
        raise ValueError(f"max_samples must be >= 2, for a standard error, got {max_samples}")
    if not (rtol >= 0 and atol >= 0):
        raise ValueError(f"rtol and atol must be >= 0, got {rtol} and {atol}")
    if blocks and sum(blocks.values()) != operator.shape[0]:
        raise ValueError(f"blocks must add up to {operator.shape[0]}, got {sum(blocks.values())}")


def _by_fold(operator: Operator, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Return the products of every fold of the data, (folds, n), and the whole product, (n,)."""
    images = fold_products(operator, vector)
    return images, fold_shares(operator).to(images) @ images


def _signs(operator: Operator, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, (operator.shape[0],), generator=generator, dtype=torch.float64)
    return signs.mul_(2).sub_(1).to(operator.device)
