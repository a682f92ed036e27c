import pytest
import torch
from networks import symmetric

from landscape import top_eigenvalues
from landscape.spectra import lanczos

WANTED = {
    "magnitude": lambda v: v[v.abs().argsort(descending=True)],
    "largest": lambda v: v.sort(descending=True).values,
    "smallest": lambda v: v.sort().values,
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


@pytest.mark.parametrize("which", WANTED)
@pytest.mark.parametrize("name", SPECTRA)
def test_eigenpairs_are_those_of_the_matrix(name, which):
    matrix = symmetric(SPECTRA[name])
    k = min(4, len(matrix))
    found = lanczos(matrix, k, which=which, tol=1e-8)
    expected = WANTED[which](torch.linalg.eigvalsh(matrix))[:k]
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
        ({"k": 0}, "k must lie in 1…3, the size of the operator, got 0"),
        ({"k": 4}, "k must lie in 1…3, the size of the operator, got 4"),
        ({"k": 1, "which": "top"}, "which must be one of magnitude, largest, smallest, got 'top'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        lanczos(torch.eye(3), **settings)


def test_a_product_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="a product with the operator is not finite"):
        lanczos(torch.tensor([[1.0, float("nan")], [float("nan"), 1.0]]), 1)
