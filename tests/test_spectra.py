import doctest
import importlib
import math

import numpy as np
import pytest
import torch
from networks import GROUPS, Folded, symmetric
from states import same

from landscape import load, top_eigenvalues
from landscape.linalg.lanczos import lanczos
from landscape.linalg.slq import slq

WANTED = {
    "magnitude": lambda v: v[v.abs().argsort(descending=True)],
    "largest": lambda v: v.sort(descending=True).values,
    "smallest": lambda v: v.sort().values,
    "both": lambda v: torch.cat([v.sort(descending=True).values[:2], v.sort(descending=True).values[-2:]]),
}
SPECTRA = {
    "spread out": torch.linspace(-3, 7, 50),
    "negative dominates": torch.cat([torch.tensor([-9.0]), torch.linspace(-1, 4, 49)]),
    "decaying": 10 * 0.7 ** torch.arange(50.0),
    "repeated top": torch.cat([torch.tensor([9.0, 9.0]), torch.linspace(-1, 5, 48)]),
    "identity": torch.ones(50),
    "identity block": torch.cat([torch.full((10,), 4.0), torch.full((40,), -1.0)]),
    "zero": torch.zeros(50),
    "low rank": torch.cat([torch.tensor([5.0, -2.0]), torch.zeros(48)]),
    "small": torch.tensor([2.0, -1.0, 0.5]),
    "one": torch.tensor([-4.0]),
}


def trained(n=400):
    """Outliers over a bulk around zero, as the Hessians of trained networks have them."""
    outliers = torch.tensor([60.0, 35.0, 22.0, 14.0, 9.0, 7.0, 5.5, 4.2, 3.3, 2.6])
    return torch.cat([outliers, 1.5 * 0.9 ** torch.arange(60.0), torch.linspace(-0.05, 0.05, n - 70)]).double()


@pytest.mark.parametrize("which", WANTED)
@pytest.mark.parametrize("name", SPECTRA)
def test_eigenpairs_are_those_of_the_matrix(name, which):
    matrix = symmetric(SPECTRA[name])
    k = min(4, len(matrix))
    found = lanczos(matrix, k, which=which, tol=1e-8)
    expected = WANTED[which](torch.linalg.eigvalsh(matrix))
    if which == "both" and k < 4:
        expected = torch.linalg.eigvalsh(matrix).flip(0)
    expected = expected[:k]
    if which == "magnitude":
        torch.testing.assert_close(found.values.abs(), expected.abs(), rtol=0, atol=1e-6)
    else:
        torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-6)
    assert found.converged.all()
    torch.testing.assert_close(found.vectors.T @ found.vectors, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(matrix @ found.vectors, found.vectors * found.values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_all_eigenvalues_of_a_small_matrix(n):
    matrix = symmetric(torch.linspace(-2, 5, n))
    found = lanczos(matrix, n, which="smallest", tol=1e-10)
    torch.testing.assert_close(found.values, torch.linalg.eigvalsh(matrix), rtol=0, atol=1e-9)
    assert found.converged.all() and found.products == n
    assert found.basis_trace == pytest.approx(float(matrix.trace()))


@pytest.mark.parametrize("products", [6, 10, 15])
def test_residuals_are_the_true_ones_and_say_what_has_not_converged(products):
    matrix = symmetric(torch.linspace(-3, 7, 80))
    found = lanczos(matrix, 4, max_products=products)
    true = (matrix @ found.vectors - found.vectors * found.values).norm(dim=0) / found.values.abs().max()
    torch.testing.assert_close(found.residuals, true, rtol=1e-6, atol=1e-12)
    assert found.products == products and not found.converged.all()
    assert torch.equal(found.converged, found.residuals <= 1e-3)
    assert "not converged" in repr(top_eigenvalues(matrix, k=4, max_products=products))


def test_no_ghosts_after_many_steps():
    matrix = symmetric(torch.cat([torch.tensor([100.0]), torch.linspace(0, 1, 149)]))
    found = lanczos(matrix, 60, tol=0.0, max_products=140, which="largest")
    assert int((found.values > 50).sum()) == 1
    gram = found.basis.T @ found.basis
    torch.testing.assert_close(gram, torch.eye(140, dtype=torch.float64), rtol=0, atol=1e-10)
    expected = torch.linalg.eigvalsh(matrix).flip(0)[:60]
    assert float((found.values - expected).abs()[:20].max()) < 0.02
    assert found.basis_trace == pytest.approx(float((found.basis.T @ matrix @ found.basis).trace()))


def test_it_stops_when_the_tolerance_is_reached():
    matrix = symmetric(10 * 0.5 ** torch.arange(60.0))
    loose, tight = lanczos(matrix, 2, tol=1e-2), lanczos(matrix, 2, tol=1e-10)
    assert loose.products < tight.products < 30
    assert float(loose.residuals.max()) <= 1e-2 and float(tight.residuals.max()) <= 1e-10


@pytest.mark.parametrize(("name", "products"), [("identity", 4), ("zero", 4), ("low rank", 4), ("identity block", 8)])
def test_a_basis_that_closes_is_continued_no_longer_than_needed(name, products):
    assert lanczos(symmetric(SPECTRA[name]), 4).products <= products


def test_a_float32_operator_gives_float32_accuracy():
    matrix = symmetric(torch.linspace(-3, 7, 50))
    found = lanczos(matrix.float(), 3, which="largest", tol=1e-5)
    torch.testing.assert_close(found.values, torch.linalg.eigvalsh(matrix).flip(0)[:3], rtol=0, atol=1e-4)


def test_the_seed_is_that_of_the_start_vector():
    matrix = symmetric(torch.linspace(-3, 7, 50))
    first, again, other = (lanczos(matrix, 2, max_products=5, seed=s).values for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k must be a whole number from 1 to 3, the size of the operator, got 0"),
        ({"k": 1, "max_basis": 2}, "max_basis must be a whole number >= 3 or None, for k pairs and two more, got 2"),
        ({"k": 4}, "k must be a whole number from 1 to 3, the size of the operator, got 4"),
        ({"k": 1, "which": "top"}, "which must be one of 'magnitude', 'largest', 'smallest', 'both', .*, got 'top'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        lanczos(torch.eye(3), **settings)


def test_a_product_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="a product with the operator is not finite"):
        lanczos(torch.tensor([[1.0, float("nan")], [float("nan"), 1.0]]), 1)


RESTARTED = {
    "spread out": torch.linspace(-3, 7, 300),
    "clustered": torch.cat([torch.tensor([5.0, 4.999, 4.99, -4.0, -3.99]), torch.linspace(-1, 1, 295)]),
    "indefinite": torch.cat([10 * 0.95 ** torch.arange(150.0), -9 * 0.95 ** torch.arange(150.0)]),
}


@pytest.mark.parametrize("which", WANTED)
@pytest.mark.parametrize("name", RESTARTED)
def test_restarts_keep_the_memory_bounded_and_change_nothing(name, which):
    matrix = symmetric(RESTARTED[name])
    settings = {"which": which, "tol": 1e-6, "max_products": 600}
    whole, bounded = (lanczos(matrix, 4, max_basis=size, **settings) for size in (300, 16))
    assert bounded.basis.shape[1] <= 16 < bounded.products and whole.basis.shape[1] == whole.products
    assert whole.converged.all() and bounded.converged.all()
    expected = WANTED[which](torch.linalg.eigvalsh(matrix))[:4]
    for found in (whole, bounded):
        size = torch.linalg.eigvalsh(matrix).abs().max()
        torch.testing.assert_close(found.values.abs(), expected.abs(), rtol=0, atol=float(size) * 1e-6)
        # nothing of this is known by the code: A and the basis alone
        true = (matrix @ found.vectors - found.vectors * found.values).norm(dim=0) / size
        torch.testing.assert_close(found.residuals, true, rtol=0.03, atol=1e-12)
        every = torch.linalg.eigvalsh(matrix)
        assert ((every - found.values[:, None]).abs().amin(1) <= true * size + 1e-12).all()
        gram = found.basis.T @ found.basis
        torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=1e-10)
        torch.testing.assert_close(found.images, matrix @ found.basis, rtol=0, atol=1e-9)
        assert found.basis_trace == pytest.approx(float((found.basis.T @ matrix @ found.basis).trace()), abs=1e-9)


def test_the_memory_is_bounded_at_every_step():
    sizes = []

    class Watched(Folded):
        def by_fold(self, vectors):
            sizes.append(vectors.shape)
            return super().by_fold(vectors)

    folds = torch.stack([symmetric(torch.linspace(-3, 7, 300), seed=seed) for seed in range(3)])
    found = lanczos(Watched(folds, GROUPS), 3, tol=1e-6, max_basis=12, max_products=400)
    assert found.basis.untyped_storage().nbytes() <= 12 * 300 * 8 and len(sizes) == found.products > 40
    default = lanczos(folds[0], 3, tol=0.0, max_products=200)
    assert default.products == 200 and default.basis.shape[1] <= 80


@pytest.mark.parametrize("room", [300, 14])
def test_traces_of_folds_are_those_of_the_folds(room):
    folds = torch.stack([symmetric(trained(300), seed=seed) for seed in range(3)])
    found = lanczos(Folded(folds, GROUPS), 4, tol=1e-8, max_basis=room, max_products=300)
    expected = torch.stack([(found.basis.T @ fold @ found.basis).trace() for fold in folds])
    torch.testing.assert_close(found.fold_traces, expected)
    assert found.basis_trace == pytest.approx(float(GROUPS @ expected))
    torch.testing.assert_close(
        lanczos(folds[0], 4).fold_traces, torch.tensor([lanczos(folds[0], 4).basis_trace]).double()
    )


def test_the_top_ten_of_a_trained_network_to_1e6_in_forty_products():
    matrix = symmetric(trained())
    for seed in range(5):
        found = lanczos(matrix, 10, tol=1e-6, seed=seed)
        expected = torch.linalg.eigvalsh(matrix).flip(0)[:10]
        assert found.products <= 40 and float(((found.values - expected) / expected).abs().max()) < 1e-6


def test_scipys_eigsh_finds_the_same():
    from scipy.sparse.linalg import eigsh

    matrix = symmetric(trained())
    for which, theirs in {"magnitude": "LM", "largest": "LA", "smallest": "SA", "both": "BE"}.items():
        found = lanczos(matrix, 6, which=which, tol=1e-9, max_products=400).values.sort().values
        values = torch.from_numpy(np.sort(eigsh(matrix.numpy(), 6, which=theirs, return_eigenvectors=False)))
        torch.testing.assert_close(found, values, rtol=0, atol=1e-6)
        assert torch.equal(lanczos(matrix, 6, which=theirs).values, lanczos(matrix, 6, which=which).values)


CLOSING = {
    "two levels": [5.0] * 2 + [1.0] * 30,
    "three levels": [9.0] * 3 + [4.0] * 7 + [-9.0] * 2 + [1.0] * 60,
    "low rank": [50.0] * 6 + [3.0, -8.0] + [0.0] * 90,
    "more levels than half a small basis": [float(i // 30) for i in range(30 * 7)],
}


@pytest.mark.parametrize("room", [None, 16])
@pytest.mark.parametrize("name", CLOSING)
def test_copies_are_found_where_the_basis_closes(name, room):
    matrix = symmetric(CLOSING[name])
    every = torch.linalg.eigvalsh(matrix).flip(0)
    wanted = {"largest": every[:6], "magnitude": every[every.abs().argsort(descending=True)][:6]}
    wanted |= {"smallest": every.flip(0)[:6], "both": torch.cat([every[:3], every[-3:]])}
    for which, expected in wanted.items():
        found = lanczos(matrix, 6, which=which, max_products=400, max_basis=room)
        assert found.converged.all() and found.basis.shape[1] <= (room or 80), which
        torch.testing.assert_close(found.values.abs(), expected.abs(), rtol=0, atol=1e-3 * float(every.abs().max()))
        torch.testing.assert_close(found.images, matrix @ found.basis, rtol=0, atol=1e-9)


def test_a_search_for_copies_that_is_cut_short_or_cramped_says_so():
    cramped = lanczos(symmetric(CLOSING["three levels"]), 6, which="largest", max_basis=9)
    assert float(cramped.values[-1]) < 3.9 and not cramped.converged.any()
    matrix = symmetric(CLOSING["two levels"])
    assert lanczos(matrix, 2).converged.all() and not lanczos(matrix, 2, max_products=2).converged.any()
    assert lanczos(matrix, 2).values.tolist() == pytest.approx([5.0, 5.0])


def test_lanczos_can_be_run_product_by_product():
    matrix = symmetric(trained())
    whole, steps, pauses = lanczos(matrix, 3, seed=2), lanczos.steps(matrix, 3, seed=2), 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            assert pauses == whole.products and torch.equal(end.value.values, whole.values)
            break
        pauses += 1


@pytest.mark.parametrize("room", [None, 30])
def test_eigenthings_has_ghosts_in_float32_here_a_hundred_steps_have_none(room):
    spectrum = torch.cat([torch.tensor([100.0, 50.0]), torch.linspace(0, 1, 298)])
    found = lanczos(symmetric(spectrum).float(), 10, tol=0.0, max_products=100, max_basis=room, which="largest")
    assert int((found.values > 25).sum()) == 2
    torch.testing.assert_close(found.values[:2], torch.tensor([100.0, 50.0]).double(), rtol=1e-6, atol=0)
    true = (symmetric(spectrum) @ found.vectors - found.vectors * found.values).norm(dim=0) / 100
    assert float(true[:2].max()) < 6e-6


def test_eigenthings_k1_is_half_off_and_never_converged_here_it_is_right():
    for seed in range(20):
        found = lanczos(symmetric(trained()), 1, seed=seed)
        assert found.converged.all() and abs(float(found.values) - 60) < 0.06 and found.products > 2


def test_pyhessians_power_iteration_stops_short_where_the_gap_is_small_here_it_does_not():
    matrix = symmetric(torch.cat([torch.tensor([1.0, 0.99, 0.98]), torch.linspace(0, 0.9, 97)]))
    vector, before = torch.randn(100, generator=torch.Generator().manual_seed(2)).double(), 0.0
    for _ in range(100):
        vector = matrix @ (vector / vector.norm())
        value = float(vector @ (matrix @ vector) / (vector @ vector))
        if abs(value - before) / value < 1e-3:
            break
        before = value
    assert 1 - value > 5e-3  # its rule, a small change, is no error bound
    assert all(abs(float(lanczos(matrix, 1, tol=1e-4, seed=seed).values) - 1) < 1e-6 for seed in range(20))


def smoothed(values, grid, width, n):
    return torch.exp(-((grid[:, None] - values) / width).square() / 2).sum(1) / (n * width * math.sqrt(2 * math.pi))


def w1(a, b, grid):
    step = grid[1] - grid[0]
    return float(((a - b).cumsum(0) * step).abs().sum() * step)


DENSITIES = {
    "spread out": (torch.linspace(-3, 7, 300).double(), 0),
    "trained": (trained(300), 10),
    "low rank": (torch.cat([torch.tensor([5.0, -2.0]), torch.zeros(98)]).double(), 2),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_the_density_is_that_of_the_eigenvalues(name):
    spectrum, outliers = DENSITIES[name]
    matrix, n = symmetric(spectrum), len(spectrum)
    pairs = lanczos(matrix, outliers, tol=1e-9) if outliers else None
    rest = spectrum[spectrum.abs().argsort(descending=True)][outliers:]
    distances, covered, traces = [], [], []
    for seed in range(10):
        found = slq(matrix, num_probes=10, steps=60, pairs=pairs, seed=seed)
        exact = smoothed(rest, found.grid, found.width, n)
        total = float(torch.trapezoid(found.density, found.grid)) + len(found.atoms) / n
        assert total == pytest.approx(1, abs=1e-6) and bool((found.density >= 0).all())
        distances.append(w1(found.density, exact, found.grid) / float(rest.max() - rest.min() + 1e-9))
        seen = exact > found.one_eigenvalue
        covered.append(
            float(((found.low <= exact * (1 + 1e-6)) & (exact * (1 - 1e-6) <= found.high))[seen].double().mean())
        )
        value, error = found.implied_trace()
        traces.append((value - float(spectrum.sum())) / (error + 1e-9))
    if name != "low rank":
        assert sum(distances) / 10 < 0.015
    assert sum(covered) / 10 > (0.88 if name != "low rank" else 0.75)
    assert max(map(abs, traces)) < 5 and sum(abs(t) < 2 for t in traces) >= 7


def test_the_band_is_students_t_of_the_logarithm():
    from scipy.stats import t

    found = slq(symmetric(trained()), num_probes=5, steps=20)
    kernels = torch.exp(-((found.grid[:, None, None] - found.nodes) / found.width).square() / 2)
    curves = (kernels * found.weights).sum(2) / (found.width * math.sqrt(2 * math.pi))  # (points, vectors)
    mean, stderr = curves.mean(1), curves.std(1) / 5**0.5
    seen = mean > 1e-12
    reach = t.ppf(0.975, 4) * (stderr / mean)[seen]
    torch.testing.assert_close(found.low[seen], mean[seen] * torch.exp(-reach))
    torch.testing.assert_close(found.high[seen], mean[seen] * torch.exp(reach))
    assert bool((found.low >= 0).all()) and "5 vectors" in found.about["band"]
    value, error = found.implied_trace()
    assert found.interval(0.9) == pytest.approx(t.interval(0.9, 4, value, error))


def test_the_interval_of_the_implied_trace_and_of_the_negative_share_hold_the_truth():
    spectrum = torch.cat([trained(200)[:70], torch.linspace(-0.5, 0.3, 130).double()])
    matrix, held = symmetric(spectrum), []
    share = float(-spectrum.clamp_max(0).sum() / spectrum.abs().sum())
    pairs = lanczos(matrix, 10, tol=1e-9)
    for seed in range(40):
        found = slq(matrix, pairs=pairs, num_probes=8, steps=30, seed=seed)
        ends = found.interval(), found.interval(of=found.negative_share())
        truths = float(spectrum.sum()), share
        held.append([low <= truth <= high for (low, high), truth in zip(ends, truths, strict=True)])
    assert all(0.85 <= sum(column) / 40 < 1.01 for column in zip(*held, strict=True))


NEGATIVE = {  # eigenvalues and how many of the outermost are known exactly
    "half": (torch.cat([-torch.linspace(1, 2, 30), torch.linspace(1, 2, 30)]), 0),
    "outliers of both signs": (torch.cat([torch.tensor([50.0, -40.0, 30.0]), torch.linspace(-2, -1, 40)]), 3),
    "none": (torch.linspace(1, 3, 50), 2),
    "all": (torch.linspace(-3, -1, 50), 0),
    "most near zero": (torch.cat([torch.tensor([8.0, -4.0]), torch.full((58,), -1e-9)]), 2),
}


@pytest.mark.parametrize("name", NEGATIVE)
def test_the_negative_share_is_that_of_the_matrix(name):
    spectrum, k = NEGATIVE[name]
    spectrum = spectrum.double()
    found = slq(symmetric(spectrum), pairs=lanczos(symmetric(spectrum), k, tol=1e-9) if k else None, num_probes=20)
    for by, mass, edge in (("magnitude", spectrum.abs(), 0.0), ("count", torch.ones_like(spectrum), found.width)):
        exact = float(mass[spectrum < -edge].sum() / mass.sum())
        share, error = found.negative_share(by)
        assert abs(share - exact) < 4 * error + 1e-6, by
        assert error < 0.05 and 0 <= share <= 1 + 1e-9
    assert found.negative_share("count", tol=5.0)[0] == pytest.approx(float((spectrum < -5).double().mean()))
    assert "negative, of Σ|λ|" in found.table.index


def test_a_negative_share_that_cannot_be_told_is_not_told():
    found = slq(symmetric(trained()), num_probes=1, steps=20)
    assert math.isnan(found.negative_share()[1]) and all(map(math.isnan, found.interval()))
    assert math.isnan(slq(torch.zeros(20, 20), num_probes=2, steps=5).negative_share()[0])  # 0/0
    for settings, message in (({"by": "sign"}, "by must be one of"), ({"tol": -1.0}, "tol must be >= 0")):
        with pytest.raises(ValueError, match=message):
            found.negative_share(**settings)


def test_more_vectors_bring_the_density_closer():
    matrix, spectrum = symmetric(torch.linspace(-3, 7, 300)), torch.linspace(-3, 7, 300).double()
    distances = {}
    for vectors in (1, 16):
        runs = [slq(matrix, num_probes=vectors, steps=40, seed=seed) for seed in range(8)]
        distances[vectors] = sum(w1(d.density, smoothed(spectrum, d.grid, d.width, 300), d.grid) for d in runs) / 8
    assert distances[16] < 0.5 * distances[1]


def test_deflation_takes_the_outliers_out_of_the_noise_of_the_density():
    matrix = symmetric(trained())
    plain, deflated = slq(matrix), slq(matrix, pairs=lanczos(matrix, 10, tol=1e-6))
    torch.testing.assert_close(deflated.atoms, trained()[:10], rtol=1e-6, atol=0)
    assert deflated.implied_trace()[1] < 0.2 * plain.implied_trace()[1] and float(deflated.nodes.max()) < 1.51
    half = lanczos(matrix, 10, tol=1e-12, max_products=14)
    assert 0 < int(half.converged.sum()) < 10
    assert len(slq(matrix, pairs=half, steps=5).atoms) == int(half.converged.sum())


def test_an_invariant_subspace_ends_the_quadrature():
    found = slq(symmetric(torch.tensor([2.0] * 20 + [-1.0] * 20)), num_probes=3)
    assert found.nodes.shape == (3, 40) and int((found.weights > 0).sum()) == 6
    torch.testing.assert_close(found.weights.sum(1), torch.ones(3).double())
    every = slq(torch.eye(5), pairs=lanczos(torch.eye(5), 5))
    assert every.implied_trace()[0] == pytest.approx(5) and float(every.density.max()) == 0 and "5 atoms" in repr(every)


def test_one_vector_has_no_band_and_weights_are_real():
    """PyHessian's weights are complex, from eig in place of eigh, and one vector is its default."""
    found = slq(symmetric(trained()), num_probes=1)
    assert found.low.isnan().all() and found.high.isnan().all() and math.isnan(found.implied_trace()[1])
    assert found.weights.dtype == found.density.dtype == torch.float64 and bool((found.weights >= 0).all())
    drawn = [
        one.draw().axes[0].get_legend_handles_labels()[1] for one in (found, slq(symmetric(trained()), num_probes=3))
    ]
    assert "95 % band" not in drawn[0] and "95 % band" in drawn[1]


def test_the_density_of_a_float32_operator():
    """Another package's density crashed on one."""
    exact, found = (slq(symmetric(trained()).to(kind), steps=40) for kind in (torch.float64, torch.float32))
    assert w1(exact.density, found.density, exact.grid) < 0.01 * float(exact.grid[-1] - exact.grid[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_probes": 0}, "num_probes must be a whole number >= 1, got 0"),
        ({"steps": 0}, "steps must be a whole number >= 1, got 0"),
        ({"points": 100}, "points must be a whole number >= 160, twice the steps, got 100"),
    ],
)
def test_bad_settings_of_a_density_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        slq(torch.eye(3), **settings)
    with pytest.raises(ValueError, match="a product with the operator is not finite"):
        slq(torch.full((3, 3), math.nan))


@pytest.mark.parametrize("vectors", [1, 3])
def test_a_loaded_density_is_what_was_saved(vectors, tmp_path):
    matrix = symmetric(trained())
    for pairs in (None, lanczos(matrix, 3)):
        found = slq(matrix, num_probes=vectors, steps=10, points=50, pairs=pairs)
        again = load(found.save(tmp_path / "density.nc"))
        assert same(found, again) and repr(again) == repr(found)


@pytest.mark.parametrize("outliers", [0, 10])
def test_pictures_of_a_density_show_its_numbers(outliers):
    import matplotlib.pyplot as plt

    matrix = symmetric(trained())
    found = slq(matrix, steps=40, pairs=lanczos(matrix, outliers, tol=1e-6) if outliers else None)
    (ax,) = found.draw().axes
    lines = {line.get_label(): line for line in ax.get_lines()}
    np.testing.assert_array_equal(lines["bulk"].get_ydata(), found.density)
    assert ax.get_yscale() == "log" and ax.get_ylim()[0] == pytest.approx(found.one_eigenvalue / 3)
    assert ax.get_xscale() == ("asinh" if outliers else "linear") and ax.get_ylabel() == "Density"
    figure = found.plot()
    traces = {trace.name: trace for trace in figure.data}
    np.testing.assert_array_equal(traces["bulk"].y, found.density)
    np.testing.assert_array_equal(traces["bulk"].customdata, found.grid)
    assert figure.layout.yaxis.type == "log" and "95 % band" in traces
    (dotted,) = figure.layout.shapes
    assert (dotted.name, dotted.y0) == ("one eigenvalue", found.one_eigenvalue) and dotted.showlegend
    assert 10 ** figure.layout.yaxis.range[0] == pytest.approx(found.one_eigenvalue / 3)
    assert ("10 outliers" in traces) == ("10 outliers" in lines) == bool(outliers)
    if outliers:
        np.testing.assert_array_equal(lines["10 outliers"].get_xdata(), found.atoms)
        np.testing.assert_array_equal(traces["10 outliers"].customdata, found.atoms)
        assert "10" in figure.layout.xaxis.ticktext and "asinh" in ax.get_xlabel()
    without = slq(matrix, num_probes=1, steps=40)
    assert "95 % band" not in {trace.name for trace in without.plot().data} and without.draw()
    plt.close("all")


@pytest.mark.parametrize(
    "name", ["linalg.lanczos", "linalg.operators", "linalg.slq", "linalg.traces", "checking", "progress"]
)
def test_examples_run(name):
    assert not doctest.testmod(importlib.import_module(f"landscape.{name}")).failed


@pytest.mark.parametrize("room", [None, 24])
def test_a_float32_operator_has_a_float32_basis_at_a_loose_tolerance(room):
    matrix = symmetric(trained()).float()
    found = lanczos(matrix, 6, max_basis=room, tol=1e-4)
    assert found.basis.dtype == torch.float32 and found.converged.all()
    gram = found.basis.T @ found.basis
    torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=3e-6)
    true = (matrix.double() @ found.vectors.double() - found.vectors * found.values).norm(dim=0) / 60
    torch.testing.assert_close(found.residuals, true, rtol=0, atol=3e-6)
    torch.testing.assert_close(found.values, WANTED["magnitude"](trained())[:6], rtol=0, atol=60e-6)
    assert lanczos(matrix, 6, tol=1e-6).basis.dtype == torch.float64


@pytest.mark.parametrize("room", [None, 24])
def test_folds_of_eigenvalues_come_from_the_recurrence(room):
    folds = torch.stack([symmetric(trained(300), seed=seed) for seed in range(3)])
    found = lanczos(Folded(folds, GROUPS), 4, tol=1e-4, max_basis=room)
    expected = torch.stack([(found.vectors * (fold @ found.vectors)).sum(0) for fold in folds])
    torch.testing.assert_close(found.fold_values, expected, rtol=0, atol=1e-9)


class Started(Folded):
    offered = None

    def start(self):
        return self.offered


def test_the_start_that_an_operator_offers_is_leant_on_and_not_trusted():
    matrix = symmetric(trained())
    operator = Started(matrix[None], torch.ones(1))
    plain = lanczos(operator, 3)
    vectors = torch.linalg.eigh(matrix).eigenvectors
    operator.offered = vectors[:, -3:].sum(1)
    assert lanczos(operator, 3).products < plain.products
    for useless in (torch.zeros(400), torch.full((400,), math.nan)):
        operator.offered = useless.double()
        assert torch.equal(lanczos(operator, 3).values, plain.values)
    operator.offered = vectors[:, 0]  # an eigenvector at the wrong end: the noise finds the others
    found = lanczos(operator, 3, which="largest", tol=1e-6)
    torch.testing.assert_close(found.values, WANTED["largest"](trained())[:3], rtol=0, atol=1e-6)
