import pytest
import torch
from networks import symmetric

from landscape import Trace, trace
from landscape.spectra import lanczos
from landscape.traces import hutchinson, mean_and_stderr, trace_of_samples

SPECTRA = {
    "decaying": [10 * 0.8**i for i in range(60)],
    "flat": torch.linspace(0.5, 1.5, 60),
    "indefinite": [(-1) ** i * 5 * 0.9**i + 0.3 for i in range(60)],
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", SPECTRA)
def test_estimates_lie_within_four_standard_errors(name, seed):
    matrix = symmetric(SPECTRA[name])
    for found in (hutchinson(matrix, seed=seed, rtol=0.02), trace(matrix, seed=seed, rtol=0.001)):
        assert abs(found.value - float(matrix.trace())) < 4 * found.stderr
        assert found.samples.shape == (len(found.samples),) and found.value == float(found.samples.mean())


@pytest.mark.parametrize("deflated", [False, True])
def test_the_standard_error_is_honest_after_the_stop_rule(deflated):
    matrix = symmetric([3 * 0.9**i for i in range(40)])
    krylov = lanczos(matrix, 5, tol=0.0, max_products=5) if deflated else None
    known = {"basis": krylov.basis, "basis_trace": krylov.basis_trace} if krylov else {}
    scores = []
    for seed in range(300):
        found = hutchinson(matrix, seed=seed + 1000, rtol=0.03, max_samples=60, **known)
        scores.append((found.value - float(matrix.trace())) / found.stderr)
    scores = torch.tensor(scores)
    assert 0.8 < float(scores.square().mean().sqrt()) < 1.35
    assert abs(float(scores.mean())) < 4 * float(scores.std()) / 300**0.5


def test_deflation_is_unbiased_and_takes_the_large_eigenvalues_out_of_the_noise():
    matrix = symmetric([100.0, 50.0, -30.0] + [0.5 + 0.01 * i for i in range(47)])
    errors = {True: [], False: []}
    for seed in range(200):
        krylov = lanczos(matrix, 8, tol=0.0, max_products=8, seed=seed)
        deflated = hutchinson(matrix, basis=krylov.basis, basis_trace=krylov.basis_trace, max_samples=3, seed=seed)
        errors[True].append(deflated.value - float(matrix.trace()))
        errors[False].append(hutchinson(matrix, max_samples=3, seed=seed).value - float(matrix.trace()))
    for values in map(torch.tensor, errors.values()):
        assert abs(float(values.mean())) < 4 * float(values.std()) / 200**0.5
    assert torch.tensor(errors[True]).std() < 0.1 * torch.tensor(errors[False]).std()


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (torch.zeros(30, 30), 0.0),
        (torch.eye(15) * 2, 30.0),
        (torch.eye(3, dtype=torch.int64) * 2, 6.0),
        (torch.tensor([[4.0]]), 4.0),
        (symmetric([1.0, -5.0, 2.0]), -2.0),
        (symmetric([1.0, -5.0, 2.0]).numpy(), -2.0),
    ],
)
def test_small_and_simple_matrices_are_exact(matrix, expected):
    found = trace(matrix)
    assert found.value == pytest.approx(expected, abs=1e-5) and found.stderr < 1e-5 and found.converged
    assert len(found.samples) == 10


def test_the_stop_rule_is_kept_and_said():
    matrix = symmetric(SPECTRA["flat"])
    loose, tight = hutchinson(matrix, rtol=0.5), hutchinson(matrix, rtol=1e-6, max_samples=30)
    assert loose.converged and len(loose.samples) == 10
    assert not tight.converged and len(tight.samples) == 30 and "stopped before the tolerance" in repr(tight)
    assert hutchinson(matrix, rtol=0.0, atol=1e3).converged
    assert 0.005 * abs(tight.value) < tight.stderr


def test_probes_are_new_every_time_and_the_same_for_the_same_seed():
    matrix = symmetric(SPECTRA["indefinite"])
    first, again, other = (hutchinson(matrix, max_samples=20, rtol=0.0, seed=s) for s in (0, 0, 1))
    assert len(set(first.samples.tolist())) == 20
    assert torch.equal(first.samples, again.samples) and not set(first.samples.tolist()) & set(other.samples.tolist())


def test_a_trace_near_zero_says_that_its_sign_is_unresolved():
    found = hutchinson(symmetric([1.0] * 10 + [-1.0] * 10), max_samples=30)
    assert "sign unresolved" in repr(found) and "sign" not in repr(hutchinson(torch.eye(3)))


def test_the_standard_error_is_the_sample_deviation_over_root_n():
    found = trace_of_samples([1.0, 2.0, 6.0], rtol=1.0, atol=0.0)
    assert isinstance(found, Trace) and found.value == 3.0
    assert found.stderr == pytest.approx((7 / 3) ** 0.5)
    assert mean_and_stderr(torch.ones(1))[1] != mean_and_stderr(torch.ones(1))[1]  # NaN


def test_one_probe_has_no_standard_error():
    with pytest.raises(ValueError, match="max_samples must be >= 2, for a standard error, got 1"):
        trace(torch.eye(3), max_samples=1)
