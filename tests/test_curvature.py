import copy
import math
import warnings

import pytest
import scipy.stats
import torch
from networks import (
    CASES,
    RAGGED,
    X,
    Y,
    case,
    classification,
    convolutional,
    dense_hessian,
    filter_scale,
    perceptron,
    quantized,
    rescaled,
    varied,
)
from torch.nn.functional import cross_entropy

from landscape import GGN, Hessian, Objective, density, load, top_eigenvalues, trace
from landscape.linalg import lanczos
from saq_core import dequantize

all_cases = pytest.mark.parametrize("name", CASES)
both_units = pytest.mark.parametrize("units", ["raw", "filter"])


def target(name, units):
    """Return the model, its space and the dense Hessian in the units asked for."""
    model, space, dense = case(name)
    d = filter_scale(model, space) if units == "filter" else torch.ones(len(dense), dtype=torch.float64)
    return model, space, d[:, None] * dense * d


def magnitudes(matrix, k):
    values = torch.linalg.eigvalsh(matrix)
    return values[values.abs().argsort(descending=True)][:k]


@both_units
@all_cases
def test_eigenpairs_are_those_of_the_dense_hessian(name, units):
    model, space, dense = target(name, units)
    found = top_eigenvalues(model, RAGGED, space=space, units=units, k=3, tol=1e-7)
    torch.testing.assert_close(found.values, magnitudes(dense, 3), rtol=1e-4, atol=1e-8)
    assert found.converged.all()
    vectors = torch.cat([found.vectors[n].flatten(1) for n in found.vectors], dim=1)
    torch.testing.assert_close(
        vectors @ dense, found.values[:, None] * vectors, rtol=0, atol=1e-5 * float(found.values[0].abs())
    )
    weights = dict(model.named_parameters())
    assert all(part.shape == weights[n].shape for n, part in found.vector(1).items())
    assert list(found.vectors) == [n.replace(".delta", ".weight") for n in varied(model, space)]


@both_units
@all_cases
def test_traces_are_those_of_the_dense_hessian(name, units):
    model, space, dense = target(name, units)
    found = trace(model, RAGGED, space=space, units=units, rtol=0.002)
    assert abs(found.value - float(dense.trace())) < 4 * found.stderr
    assert found.stderr < 0.05 * abs(float(dense.trace()))
    assert found.about["products"] == 20 + len(found.samples)


@both_units
@all_cases
def test_pyhessian_measures_the_same_matrix(name, units):
    model, space, dense = target(name, units)
    settings = {"space": space, "units": units, "engine": "pyhessian", "seed": 5}
    probes = trace(model, RAGGED, num_probes=4, **settings)
    torch.manual_seed(5)
    shapes = [model.get_parameter(n.replace("delta", "weight")) for n in varied(model, space)]
    signs = [torch.cat([torch.randint_like(w, 2).mul(2).sub(1).flatten() for w in shapes]) for _ in range(4)]
    torch.testing.assert_close(probes.samples, torch.stack([z @ dense @ z for z in signs]), rtol=1e-6, atol=1e-8)
    assert probes.value == pytest.approx(float(probes.samples.mean()))
    found = top_eigenvalues(model, RAGGED, k=1, tol=1e-10, max_products=1000, **settings)
    assert float(found.values[0]) == pytest.approx(float(magnitudes(dense, 1)), rel=1e-4)
    v = torch.cat([part[0].flatten() for part in found.vectors.values()])
    residual = (dense @ v - found.values[0] * v).norm() / found.values[0].abs()
    assert float(found.residuals[0]) == pytest.approx(float(residual), rel=1e-3, abs=1e-9)


def test_pyhessian_itself_finds_the_same_on_a_float_network():
    from pyhessian import hessian

    model = convolutional().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of backward(create_graph=True), which it cannot do without
        reference = hessian(copy.deepcopy(model), cross_entropy, data=(X, Y), cuda=False)
    torch.manual_seed(0)
    (theirs,), _ = reference.eigenvalues(maxIter=1000, tol=1e-10)
    assert float(top_eigenvalues(model, RAGGED, k=1, tol=1e-7).values[0]) == pytest.approx(theirs, rel=1e-4)
    torch.manual_seed(1)
    samples = reference.trace(maxIter=5, tol=float("-inf"))
    found = trace(model, RAGGED, engine="pyhessian", seed=1, num_probes=5)
    assert found.samples.tolist() == pytest.approx(samples, rel=1e-9)


def test_pyhessian_takes_objectives_unused_weights_and_switched_off_gradients():
    def objective(model, batch):
        return model[0](batch[0]).square().mean(), len(batch[0])  # the last layer is not used, its curvature is zero

    model = perceptron()
    data = [(x.flatten(1)[:, :5], y) for x, y in RAGGED]
    dense = dense_hessian(model, lambda m: m[0](X.flatten(1)[:, :5]).square().mean(), varied(model))
    with torch.no_grad():
        found = trace(model, data, objective=objective, engine="pyhessian", num_probes=200)
        top = top_eigenvalues(model, data, objective=objective, engine="pyhessian", k=1, tol=1e-9, max_products=500)
        assert top.frame.stderr_data.isna().all()
    assert abs(found.value - float(dense.trace())) < 4 * found.stderr
    assert float(top.values[0]) == pytest.approx(float(magnitudes(dense, 1)), rel=1e-4)


def test_a_weight_only_network_has_the_curvature_of_its_float_copy():
    model = quantized("W4A32")
    plain = dense_hessian(dequantize(model), classification, varied(convolutional()))
    found = top_eigenvalues(model, RAGGED, k=3, tol=1e-9)
    torch.testing.assert_close(found.values, magnitudes(plain, 3), rtol=1e-6, atol=0)
    assert found.about["space"] == "quantized" and found.about["derivatives"] == "exact"


def test_filter_relative_curvature_does_not_see_the_scale_of_weights_in_front_of_a_batchnorm():
    model = convolutional().eval()
    twin = rescaled(model)
    torch.testing.assert_close(twin(X), model(X), rtol=1e-10, atol=1e-10)
    pairs = [
        (trace(m, RAGGED, units="filter"), top_eigenvalues(m, RAGGED, units="filter", tol=1e-7)) for m in (model, twin)
    ]
    assert pairs[1][0].value == pytest.approx(pairs[0][0].value, rel=1e-5)
    torch.testing.assert_close(pairs[1][1].values, pairs[0][1].values, rtol=1e-5, atol=0)
    raw = [trace(m, RAGGED, rtol=0.01) for m in (model, twin)]
    assert abs(raw[0].value - raw[1].value) > 10 * (raw[0].stderr + raw[1].stderr)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((perceptron(),), {"units": "layer"}, "units must be one of 'raw', 'filter', got 'layer'"),
        ((perceptron(),), {"engine": "other"}, "engine must be one of 'landscape', 'pyhessian', got 'other'"),
        ((torch.eye(3),), {"units": "filter"}, "units='filter' needs a network"),
        ((torch.eye(3),), {"engine": "pyhessian"}, "measures networks"),
        ((torch.ones(2, 3),), {}, r"a square matrix is needed, got shape \(2, 3\)"),
        ((torch.triu(torch.ones(3, 3)),), {}, "a symmetric matrix is needed"),
    ],
)
@pytest.mark.parametrize("function", [trace, top_eigenvalues])
def test_bad_settings_are_refused(function, arguments, settings, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments, **settings)


def test_what_is_no_operator_is_refused():
    with pytest.raises(TypeError, match="model must be a network .*, got None"):
        trace(None)


def test_pyhessian_finds_one_end_only():
    with pytest.raises(ValueError, match="which must be 'magnitude' with engine='pyhessian'"):
        top_eigenvalues(convolutional(), RAGGED, which="smallest", engine="pyhessian")


# --- ways of estimating, layers, folds ------------------------------------------------------------------------------

METHODS = ["lanczos", "hutchinson"]


@both_units
@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_trace_and_its_layers(method, units):
    model, space, dense = target("W4A4 quantized", units)
    found = trace(model, RAGGED, units=units, method=method, per_layer=True, rtol=0.005, num_probes=40)
    assert abs(found.value - float(dense.trace())) < 4 * found.stderr + 1e-9
    assert list(found.layers) == [name.replace(".delta", ".weight") for name in varied(model, space)]
    assert sum(value for value, _ in found.layers.values()) == pytest.approx(found.value, rel=1e-9)
    sizes = [samples.numel() for samples in Hessian(model, RAGGED).coordinates.centre.values()]
    blocks = [float(part.sum()) for part in dense.diagonal().split(sizes)]
    for truth, (value, error) in zip(blocks, found.layers.values(), strict=True):
        assert abs(value - truth) < 5 * error + 1e-6 * float(dense.diagonal().abs().sum())
    assert found.about["products"] == len(found.samples) + {"lanczos": 20, "hutchinson": 0}[method]


def test_eigenvalues_at_hand_take_the_place_of_lanczos():
    model, _, dense = target("float", "filter")
    top = top_eigenvalues(model, RAGGED, units="filter", k=8, tol=1e-8)
    found = trace(model, RAGGED, units="filter", eigenvalues=top, per_layer=True, rtol=1e-3, num_probes=30)
    assert found.about["products"] == len(found.samples) and found.method == "deflated Hutchinson"
    assert abs(found.value - float(dense.trace())) < 4 * found.stderr
    assert sum(value for value, _ in found.layers.values()) == pytest.approx(found.value, rel=1e-6)
    alone = trace(model, RAGGED, units="filter", method="hutchinson", num_probes=30, rtol=0)
    assert found.samples.std() < 0.7 * alone.samples.std()
    with pytest.raises(ValueError, match="eigenvalues= are of another operator: centre_loss"):
        trace(perceptron(), (X.flatten(1)[:, :5], Y), units="filter", eigenvalues=top)
    with pytest.raises(ValueError, match="of another operator: units 'filter', not 'raw'"):
        trace(model, RAGGED, eigenvalues=top)
    with pytest.raises(ValueError, match="must all have converged"):
        rough = top_eigenvalues(model, RAGGED, units="filter", k=8, max_products=8)
        trace(model, RAGGED, units="filter", eigenvalues=rough)
    with pytest.raises(ValueError, match="are for method='lanczos'"):
        trace(model, RAGGED, eigenvalues=top, method="hutchinson")


def test_eigenvalues_of_other_folds_tell_no_error_over_data():
    model, single = convolutional(), [(X[i : i + 1], Y[i : i + 1]) for i in range(7)]
    errors = [
        trace(model, single, eigenvalues=top_eigenvalues(model, data, k=3), num_probes=5).stderr_data
        for data in (single, RAGGED)
    ]
    assert errors[0] > 0 and math.isnan(errors[1])


def test_operators_can_be_passed_in_place_of_a_network():
    model, _, dense = target("float", "filter")
    found = top_eigenvalues(Hessian(model, RAGGED, memory=0).filter_relative(), k=2, tol=1e-8)
    torch.testing.assert_close(found.values, magnitudes(dense, 2), rtol=1e-6, atol=0)
    assert found.about["units"] == "filter" and found.about["products_by"] == "double backward, graphs rebuilt"
    same = top_eigenvalues(Hessian(model, RAGGED), units="filter", k=2, tol=1e-8)
    torch.testing.assert_close(same.values, found.values, rtol=1e-9, atol=0)
    gauss_newton = top_eigenvalues(GGN(model, RAGGED), k=2, which="both")
    assert gauss_newton.about["matrix"] == "generalised Gauss-Newton" and float(gauss_newton.values[1]) > -1e-9
    with pytest.raises(ValueError, match="belong to a network"):
        trace(Hessian(model, RAGGED), RAGGED)
    with pytest.raises(ValueError, match="a matrix has no layers"):
        trace(torch.eye(4), per_layer=True)


@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
def test_both_ends_of_the_spectrum(which):
    model, _, dense = target("float", "raw")
    truth = torch.linalg.eigvalsh(dense)
    wanted = {"largest": truth.flip(0)[:4], "smallest": truth[:4], "both": truth[[-1, -2, 1, 0]]}[which]
    found = top_eigenvalues(model, RAGGED, k=4, which=which, tol=1e-8)
    torch.testing.assert_close(found.values, wanted, rtol=1e-6, atol=1e-9)
    assert float(found.residuals.max()) < 1e-8 and found.about["products"] > 4


def many_batches():
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(64, 5, generator=generator, dtype=torch.float64)
    return list(zip(x.split(8), torch.randint(0, 3, (64,), generator=generator).split(8), strict=True))


def test_the_error_over_data_is_the_spread_of_the_folds_at_the_eigenvectors_of_all():
    model, batches = perceptron(), many_batches()
    top = top_eigenvalues(model, batches, k=2, tol=1e-9)
    v = torch.cat([top.vectors[name].flatten(1) for name in top.vectors], dim=1)
    by_hand = torch.stack(
        [
            (v * (v @ dense_hessian(model, lambda m, x=x, y=y: cross_entropy(m(x), y), varied(model)))).sum(1)
            for x, y in batches
        ]
    )
    torch.testing.assert_close(top.fold_values, by_hand, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(top.stderr_data, by_hand.std(0) / 8**0.5)
    torch.testing.assert_close((top.fold_weights @ top.fold_values), top.values)
    found = trace(model, batches, rtol=0, num_probes=200)
    traces = torch.stack(
        [dense_hessian(model, lambda m, x=x, y=y: cross_entropy(m(x), y), varied(model)).trace() for x, y in batches]
    )
    assert found.stderr_data == pytest.approx(float(traces.std()) / 8**0.5, rel=0.2)
    assert "over data" in repr(found) and f"over data ({len(top.fold_weights)} folds)" in repr(top)
    for interval, value, error in zip(top.interval(0.9).tolist(), top.values, top.stderr_data, strict=True):
        expected = scipy.stats.t.interval(0.9, len(top.fold_weights) - 1, float(value), float(error))
        assert interval == pytest.approx(expected)
    assert "over data" not in repr(top_eigenvalues(model, batches[:2], k=1))


def test_densities_hold_the_outliers_and_integrate_to_one(tmp_path):
    model, _, dense = target("float", "raw")
    found = density(model, RAGGED, k=4, num_probes=6, steps=30)
    torch.testing.assert_close(found.atoms, magnitudes(dense, 4), rtol=1e-3, atol=0)
    whole = torch.trapezoid(found.density, found.grid) + 4 / len(dense)
    assert float(whole) == pytest.approx(1, abs=1e-3)
    value, error = found.implied_trace()
    assert abs(value - float(dense.trace())) < 5 * error
    again = load(found.save(tmp_path / "density.nc"))
    assert torch.equal(again.density, found.density) and again.about == found.about
    assert found.about["space"] == "float" and found.about["products"] > 6 * 30 - 6
    assert torch.equal(density(model, RAGGED, k=4, num_probes=6, steps=30).density, found.density)
    assert len(density(dense, k=0, num_probes=2, steps=10).atoms) == 0


def test_a_hessian_whose_graphs_are_kept_offers_the_gradient():
    model = convolutional()
    objective = Objective(model, RAGGED)
    gradient = objective.coordinates.flatten(objective.gradient())
    hessian = Hessian(objective, memory=1e12)
    offered = hessian.start()
    torch.testing.assert_close(offered / sum(objective.batch_weights), gradient.double(), rtol=1e-5, atol=1e-7)
    scale = torch.linspace(0, 1, len(gradient)).to(gradient)
    torch.testing.assert_close(hessian.scaled(scale).start(), scale * offered)
    assert Hessian(objective, memory=0).start() is None  # it would cost a gradient
    assert GGN(objective, memory=1e12).start() is None


@pytest.mark.parametrize(("tol", "more"), [(1e-3, 0), (1e-6, 3)])
def test_residuals_are_measured_where_the_tolerance_is_tight(tol, more):
    hessian = Hessian(convolutional().double(), [(x.double(), y) for x, y in RAGGED])
    found = top_eigenvalues(hessian, k=3, tol=tol)
    before = hessian.products
    pairs = lanczos(hessian, 3, tol=tol)
    assert found.about["products"] == hessian.products - before + more == pairs.products + more
    vectors = pairs.vectors
    true = (hessian @ vectors - vectors * pairs.values).norm(dim=0) / pairs.values.abs().max()
    torch.testing.assert_close(found.residuals, true, rtol=1e-3, atol=1e-12)
