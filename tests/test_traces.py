import math

import pytest
import torch
from networks import GROUPS, Folded, symmetric
from states import same

from landscape import Trace, load, trace
from landscape.linalg.lanczos import lanczos
from landscape.linalg.traces import hutchinson, mean_and_stderr, trace_of_samples

SPECTRA = {
    "decaying": [10 * 0.8**i for i in range(60)],
    "flat": torch.linspace(0.5, 1.5, 60),
    "indefinite": [(-1) ** i * 5 * 0.9**i + 0.3 for i in range(60)],
    "rank-deficient": torch.cat([torch.linspace(1, 5, 14), torch.zeros(46)]),
    "repeated": torch.tensor([9.0] * 4 + [1.0] * 56),
}
BLOCKS = {"a": 5, "b.weight": 30, "c": 25}


def krylov_of(operator, steps=8, seed=0):
    pairs = lanczos(operator, steps, tol=0.0, max_products=steps, seed=seed)
    names = ("basis", "basis_trace", "fold_traces", "images")
    return {name: getattr(pairs, name) for name in names}


def deflated(operator, seed=0, steps=8, **settings):
    return hutchinson(operator, **krylov_of(operator, steps, seed), seed=seed, **settings)


METHODS = {"plain": hutchinson, "deflated": deflated}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", SPECTRA)
def test_estimates_lie_within_four_standard_errors(name, seed):
    matrix = symmetric(SPECTRA[name])
    found = [hutchinson(matrix, seed=seed, rtol=0.02), trace(matrix, seed=seed, rtol=0.001)]
    for estimate in (*found, deflated(matrix, seed=seed)):
        assert abs(estimate.value - float(matrix.trace())) < 4 * estimate.stderr + 1e-9
        assert len(estimate.samples) >= 10 and estimate.value == float(estimate.samples.mean())


@pytest.mark.parametrize("method", METHODS)
def test_the_standard_error_is_honest_after_the_stop_rule(method):
    matrix = symmetric([3 * 0.9**i for i in range(40)])
    truth, scores, covered = float(matrix.trace()), [], []
    for seed in range(200):
        found = METHODS[method](matrix, seed=seed + 1000, rtol=0.03, num_probes=60)
        scores.append((found.value - truth) / found.stderr)
        low, high = found.interval(0.95)
        covered.append(low <= truth <= high)
        assert len(found.samples) >= 10
    scores = torch.tensor(scores)
    assert abs(float(scores.mean())) < 4 * float(scores.std()) / 200**0.5
    assert 0.50 <= float((scores.abs() <= 1).double().mean()) <= 0.78
    assert 0.88 <= float((scores.abs() <= 2).double().mean()) <= 0.99
    assert 0.90 <= sum(covered) / 200 <= 0.99


def test_the_interval_is_students():
    from scipy.stats import t

    found = trace_of_samples([1.0, 2.0, 6.0, 3.0], rtol=1.0, atol=0.0)
    assert found.interval(0.9) == pytest.approx(t.interval(0.9, 3, found.value, found.stderr))
    assert all(map(math.isnan, found.interval(over="data")))
    for settings, message in (({"level": 1}, "level must be between 0 and 1, got 1"), ({"over": "seeds"}, "over must")):
        with pytest.raises(ValueError, match=message):
            found.interval(**settings)


def test_deflation_is_unbiased_and_takes_the_large_eigenvalues_out_of_the_noise():
    matrix = symmetric([100.0, 50.0, -30.0] + [0.5 + 0.01 * i for i in range(47)])
    errors = {True: [], False: []}
    for seed in range(200):
        estimates = {
            True: deflated(matrix, num_probes=3, seed=seed),
            False: hutchinson(matrix, num_probes=3, seed=seed),
        }
        for kind, found in estimates.items():
            errors[kind].append(found.value - float(matrix.trace()))
    for values in map(torch.tensor, errors.values()):
        assert abs(float(values.mean())) < 4 * float(values.std()) / 200**0.5
    assert torch.tensor(errors[True]).std() < 0.1 * torch.tensor(errors[False]).std()


def test_curvlinops_hutchpp_and_xtrace_find_the_same_and_are_no_better_at_equal_products():
    from curvlinops import hutchpp_trace, xtrace

    matrix = symmetric([10 * 0.85**i for i in range(100)])
    torch.manual_seed(0)
    values = {
        "ours": [
            hutchinson(matrix, **krylov_of(matrix, 20, s), rtol=0, num_probes=19, seed=s).value for s in range(40)
        ],
        "Hutch++": [float(hutchpp_trace(matrix, 39, "rademacher")) for _ in range(40)],
        "XTrace": [float(xtrace(matrix, 40, "rademacher")) for _ in range(40)],
    }
    values = {name: torch.tensor(drawn) for name, drawn in values.items()}
    for name, drawn in values.items():
        assert abs(float(drawn.mean() - matrix.trace())) < 4 * float(drawn.std()) / 40**0.5, name
        assert float(values["ours"].std()) < 1.5 * float(drawn.std()), name


@pytest.mark.parametrize("method", METHODS)
def test_traces_of_blocks_add_up_and_are_those_of_the_blocks(method):
    for name, spectrum in SPECTRA.items():
        matrix = symmetric(spectrum)
        sums = {}
        for seed in range(6):
            found = METHODS[method](matrix, blocks=BLOCKS, rtol=0, num_probes=40, seed=seed)
            torch.testing.assert_close(sum(found.layer_samples.values()), found.samples, rtol=1e-12, atol=1e-11)
            assert sum(value for value, _ in found.layers.values()) == pytest.approx(found.value, rel=1e-12, abs=1e-11)
            for block, (value, error) in found.layers.items():
                sums.setdefault(block, []).append((value, error))
        for (block, values), part in zip(sums.items(), matrix.diagonal().split(list(BLOCKS.values())), strict=True):
            middle = sum(v for v, _ in values) / 6
            together = sum(e**2 for _, e in values) ** 0.5 / 6
            assert abs(middle - float(part.sum())) < 4 * together + 1e-9, (name, block)


def test_a_block_on_its_own_has_no_noise_from_the_others():
    matrix = torch.block_diag(torch.eye(20) * 3, symmetric(SPECTRA["indefinite"]).float())
    found = hutchinson(matrix, blocks={"quiet": 20, "loud": 60})
    assert found.layers["quiet"] == pytest.approx((60.0, 0.0), abs=1e-5) and found.layers["loud"][1] > 0.5


def test_bad_blocks_are_refused():
    with pytest.raises(ValueError, match="blocks must add up to 4, got 3"):
        hutchinson(torch.eye(4), blocks={"a": 3})
    with pytest.raises(ValueError, match="blocks with a basis need images="):
        hutchinson(torch.eye(4), basis=torch.eye(4)[:, :1], blocks={"a": 4})


@pytest.mark.parametrize("method", METHODS)
def test_the_error_over_data_is_calibrated(method):
    truth, weights = (
        torch.diag(6 * 0.8 ** torch.arange(40.0).double()),
        torch.tensor([0.4, 0.2, 0.2, 0.1, 0.1]).double(),
    )
    scores = []
    for seed in range(80):
        generator = torch.Generator().manual_seed(seed)
        loud = torch.randn(5, generator=generator, dtype=torch.float64) / weights.sqrt()
        folds = truth + loud[:, None, None] * symmetric([1.0, 0.5] + [0.0] * 38, seed=1)
        found = METHODS[method](Folded(folds, weights), seed=seed, rtol=1e-3)
        scores.append((found.value - float(truth.trace())) / found.stderr_data)
        assert "over data (5 folds)" in repr(found)
    scores = torch.tensor(scores)
    from scipy.stats import t

    for level in (0.68, 0.95):  # five folds: Student's t with four degrees of freedom
        reach = t.ppf((1 + level) / 2, 4)
        assert found.interval(level, over="data")[1] == pytest.approx(found.value + reach * found.stderr_data)
        inside = float((scores.abs() <= reach).double().mean())
        assert abs(inside - level) < 0.15, (level, inside)


@pytest.mark.parametrize("method", METHODS)
def test_the_error_over_data_is_the_weighted_spread_of_the_folds(method):
    folds = torch.stack([torch.diag(torch.tensor([3.0, 1.0, 2.0] + [0.0] * 37).double()) * s for s in (1.0, 2.0, 4.0)])
    found = METHODS[method](Folded(folds, GROUPS))
    traces = torch.tensor([6.0, 12.0, 24.0], dtype=torch.float64)
    middle = float(GROUPS @ traces)
    assert found.value == pytest.approx(middle) and found.stderr < 1e-10
    spread = math.sqrt(float((GROUPS * (traces - middle) ** 2).sum()) / 2)
    assert found.stderr_data == pytest.approx(spread)


def test_without_folds_nothing_is_said_about_data():
    matrix = symmetric(SPECTRA["flat"])
    folded = Folded(matrix.expand(3, -1, -1), GROUPS)
    without = hutchinson(folded, basis=torch.eye(60).double()[:, :2], basis_trace=float(matrix[:2, :2].trace()))
    for found in (hutchinson(matrix), without):
        assert math.isnan(found.stderr_data) and "data" not in repr(found)


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


def test_low_rank_is_exact():
    for rank in (0, 1, 5, 14):
        found = trace(symmetric(torch.cat([torch.linspace(1, 3, rank), torch.zeros(60 - rank)])), rtol=1e-9)
        assert found.value == pytest.approx(2.0 * rank if rank > 1 else rank, abs=1e-5)
        assert found.stderr < 1e-9 and found.converged


def test_the_stop_rule_is_kept_and_said():
    matrix = symmetric(SPECTRA["flat"])
    loose, tight = hutchinson(matrix, rtol=0.5), hutchinson(matrix, rtol=1e-6, num_probes=30)
    assert loose.converged and len(loose.samples) == 10
    assert not tight.converged and len(tight.samples) == 30 and "stopped before the tolerance" in repr(tight)
    assert hutchinson(matrix, rtol=0.0, atol=1e3).converged
    assert 0.005 * abs(tight.value) < tight.stderr
    with pytest.raises(ValueError, match="rtol must be >= 0 and finite, got -1"):
        hutchinson(matrix, rtol=-1)


@pytest.mark.parametrize("method", METHODS)
def test_pyhessian_stops_by_chance_after_two_probes_here_never_before_ten(method):
    stopped = {len(METHODS[method](symmetric(SPECTRA["decaying"]), rtol=10.0, seed=seed).samples) for seed in range(20)}
    assert stopped == {10}


@pytest.mark.parametrize("method", METHODS)
def test_pyhessian_stops_on_a_negative_running_mean_here_the_sign_does_not_matter(method):
    matrix = symmetric(SPECTRA["indefinite"])
    plus, minus = (METHODS[method](sign * matrix, rtol=0.2, seed=5) for sign in (1, -1))
    assert minus.value == pytest.approx(-plus.value) and minus.stderr == pytest.approx(plus.stderr)
    assert len(minus.samples) == len(plus.samples) and minus.converged == plus.converged
    assert minus.stderr <= 0.2 * abs(minus.value) or not minus.converged


@pytest.mark.parametrize("method", METHODS)
def test_probes_are_new_every_time_and_the_same_for_the_same_seed(method):
    matrix = symmetric(SPECTRA["indefinite"])
    first, again, other = (METHODS[method](matrix, num_probes=20, rtol=0.0, seed=s) for s in (0, 0, 1))
    assert len(set(first.samples.tolist())) == 20
    assert torch.equal(first.samples, again.samples) and not set(first.samples.tolist()) & set(other.samples.tolist())


def test_a_trace_near_zero_says_that_its_sign_is_unresolved():
    found = hutchinson(symmetric([1.0] * 10 + [-1.0] * 10), num_probes=30)
    assert "sign unresolved" in repr(found) and "sign" not in repr(hutchinson(torch.eye(3)))
    # 2.1 standard errors from zero are enough for the normal distribution, not for Student's with four degrees
    few = trace_of_samples([1.0, 2.0, 3.0, 4.0, -1.0], rtol=1.0, atol=0.0)
    assert abs(few.value) > 1.96 * few.stderr and "sign unresolved" in repr(few)


def test_the_standard_error_is_the_sample_deviation_over_root_n():
    found = trace_of_samples([1.0, 2.0, 6.0], rtol=1.0, atol=0.0)
    assert isinstance(found, Trace) and found.value == 3.0
    assert found.stderr == pytest.approx((7 / 3) ** 0.5)
    assert mean_and_stderr(torch.ones(1))[1] != mean_and_stderr(torch.ones(1))[1]  # NaN


@pytest.mark.parametrize("method", METHODS)
def test_one_probe_has_no_standard_error(method):
    with pytest.raises(ValueError, match="num_probes must be a whole number >= 2, for a standard error, got 1"):
        METHODS[method](torch.eye(9), num_probes=1)


def test_the_repr_names_the_largest_layers():
    matrix = torch.diag(torch.tensor([1.0] * 5 + [-9.0] * 30 + [2.0] * 24 + [0.5]))
    found = hutchinson(matrix, blocks=BLOCKS | {"c": 24, "d": 1})
    assert "; b.weight -270 ± 0, c 48 ± 0, a 5 ± 0 and 1 more" in repr(found) and "\n" not in repr(found)
    assert "b.weight" not in repr(hutchinson(matrix))


def test_the_probes_can_be_drawn_one_by_one():
    matrix = symmetric(SPECTRA["decaying"])
    steps, pauses = hutchinson.steps(matrix, num_probes=12, rtol=0.0), 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            assert pauses == 12 and torch.equal(end.value.samples, hutchinson(matrix, num_probes=12, rtol=0.0).samples)
            break
        pauses += 1


@pytest.mark.parametrize("blocks", [None, BLOCKS])
def test_what_is_loaded_is_what_was_saved(blocks, tmp_path):
    folds = torch.stack([symmetric(SPECTRA["flat"], seed=seed) for seed in range(3)])
    for operator in (folds[0], Folded(folds, GROUPS)):
        found = deflated(operator, blocks=blocks)
        again = load(found.save(tmp_path / "trace.nc"))
        assert same(found, again) and repr(found) == repr(again) and found.layers == again.layers
