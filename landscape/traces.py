"""The trace of a symmetric operator from products with random vectors, with an honest standard error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .operators import Operator
from .results import Result
from .timing import progress

_FIRST_LOOK = 10  # probes before the stop rule is asked: a standard error from fewer says little about itself


@dataclass(frozen=True, eq=False)
class Trace(Result):
    """An estimate of a trace.

    Attributes:
        value: the estimate.
        stderr: its standard error (over the probes; the error over data is another matter).
        samples: (m,) the estimate that each probe alone would give; ``value`` is their mean.
        converged: whether stderr ≤ max(rtol·|value|, atol) was reached.
    """

    value: float
    stderr: float
    samples: Tensor
    converged: bool

    def __repr__(self) -> str:
        more = "" if self.converged else ", stopped before the tolerance"
        sign = "" if abs(self.value) > 2 * self.stderr else ", sign unresolved"
        kind = f"; {self._kind()}" if self._kind() else ""
        return f"Trace({self.value:.4g} ± {self.stderr:.2g}, {len(self.samples)} probes{more}{sign}{kind})"


def hutchinson(
    operator: Operator,
    *,
    basis: Tensor | None = None,
    basis_trace: float = 0.0,
    rtol: float = 0.05,
    atol: float = 0.0,
    max_samples: int = 100,
    seed: int = 0,
) -> Trace:
    """Estimate tr(A) as tr(QᵀAQ) + mean of zᵀPAPz, with P = 1 − QQᵀ and z of independent signs.

    Without a basis Q this is Hutchinson's estimator. A basis that holds the large eigenvalues takes their share of the
    trace out of the noise: on a trained ResNet-8 the scatter per probe fell from 47 % to 4.6 % with ten vectors.

    Args:
        operator: symmetric, shape (n, n); a dense tensor works.
        basis: (n, m) orthonormal, for example from `lanczos`.
        basis_trace: tr(QᵀAQ), which Lanczos knows.
        rtol, atol: stop once stderr ≤ max(rtol·|value|, atol), asked from the tenth probe on.
        max_samples: stop there in any case; ``converged`` says so.
        seed: of the probes.

    Raises:
        ValueError: max_samples < 2, a tolerance < 0.

    Cost: one product per probe.   Source: Hutchinson 1989; deflation as in Gambhir, Stathopoulos, Orginos 2017.
    """
    if max_samples < 2:
        raise ValueError(f"max_samples must be >= 2, for a standard error, got {max_samples}")
    if not (rtol >= 0 and atol >= 0):
        raise ValueError(f"rtol and atol must be >= 0, got {rtol} and {atol}")
    n = operator.shape[0]
    generator = torch.Generator().manual_seed(seed)
    samples: list[float] = []
    for _ in progress(range(max_samples), "trace"):
        signs = torch.randint(0, 2, (n,), generator=generator, dtype=torch.float64).mul_(2).sub_(1).to(operator.device)
        probe = signs if basis is None else signs - basis @ (basis.T @ signs)
        samples.append(basis_trace + float(probe @ (operator @ probe.to(operator.dtype)).double()))
        result = trace_of_samples(samples, rtol=rtol, atol=atol)
        if len(samples) >= _FIRST_LOOK and result.converged:
            break
    return result


def trace_of_samples(samples: list[float], *, rtol: float, atol: float) -> Trace:
    """Average independent estimates of one trace."""
    estimates = torch.tensor(samples, dtype=torch.float64)
    value, error = mean_and_stderr(estimates)
    return Trace({}, value, error, estimates, error <= max(rtol * abs(value), atol))


def mean_and_stderr(samples: Tensor) -> tuple[float, float]:
    """Return the mean of independent samples and its standard error (NaN for one sample)."""
    if len(samples) < 2:
        return float(samples.mean()), float("nan")
    return float(samples.mean()), float(samples.std() / len(samples) ** 0.5)
