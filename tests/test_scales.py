import math
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from networks import (
    RAGGED,
    X,
    Y,
    classification,
    convolutional,
    dense_hessian,
    filter_scale,
    perceptron,
    quantized,
    varied,
)
from states import assert_same, network, state
from torch import nn
from torch.nn.functional import cross_entropy

from landscape import load, top_eigenvalues
from landscape.curvature.finite_differences import RADII, curvature_at_scale
from saq_core import calibrate, quantize

ONCE = [torch.zeros(1)]
A = torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
A = A @ A.T
Z = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def linear(seed=0, bias=False):
    model = nn.Linear(3, 4, bias=bias).double()
    generator = torch.Generator().manual_seed(seed)
    model.weight.data = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    return model


def bowl(model, _):
    w = model.weight.flatten()
    return w @ A @ w / 2, 1


def quartic(model, _):
    return model.weight.pow(4).sum(), 1


def test_a_quadratic_has_one_curvature_at_every_scale_and_the_derivatives_is_the_same():
    found = curvature_at_scale(linear(), ONCE, objective=bowl, directions={"weight": 7 * Z})
    z = Z.flatten() / Z.norm()
    torch.testing.assert_close(found.curvature, (z @ A @ z).expand(10), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.derivative, float(z @ A @ z), rtol=1e-9, atol=0)
    assert found.radii.tolist() == list(RADII) and found.radius == 2e-3 and found.value == found.curvature[4]
    assert found.trusted.all() and found.finest == 1e-4 and not found.rounding_ratio.any()
    assert found.about["derivatives"] == "at a scale" and found.about["derivative"] == "exact"
    assert math.isnan(found.trace[0])


def test_the_scale_is_the_one_that_was_asked_for():
    model = linear()
    step = torch.zeros(4, 3, dtype=torch.float64)
    step[1, 2] = -1.0
    found = curvature_at_scale(model, ONCE, objective=quartic, directions={"weight": step}, radii=[0.5], radius=0.03)
    lengths = torch.tensor([0.03, 0.5], dtype=torch.float64) * model.weight.detach().norm()
    expected = 12 * model.weight.detach()[1, 2] ** 2 + 2 * lengths**2
    torch.testing.assert_close(found.curvature, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.derivative, float(12 * model.weight.detach()[1, 2] ** 2), rtol=1e-9, atol=0)
    assert found.radii.tolist() == [0.03, 0.5] and found.value == found.curvature[0]


def test_random_directions_imply_the_trace_and_their_error_is_calibrated():
    settings = {"objective": bowl, "radii": False, "derivatives": False}
    found = [curvature_at_scale(linear(), ONCE, seed=seed, **settings) for seed in range(150)]
    traces, errors = torch.tensor([result.trace for result in found]).double().T
    assert abs(traces.mean() - A.trace()) < 4 * traces.std() / 150**0.5
    assert 0.85 < (errors.square().mean().sqrt() / traces.std()) < 1.15
    assert found[0].numel == 12 and found[0].radii.tolist() == [2e-2] and found[0].samples.shape == (1, 10)
    assert math.isnan(found[0].derivative)
    with_derivatives = curvature_at_scale(linear(), ONCE, objective=bowl, radii=False, num_samples=3)
    torch.testing.assert_close(with_derivatives.derivatives, with_derivatives.samples[0], rtol=1e-6, atol=0)


def test_the_error_over_data_is_that_of_paired_second_differences():
    model = linear()
    c = torch.randn(7, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss(output, target):
        return target[:, 0] * model_weight(output) ** 2 / 2

    def model_weight(output):
        return output[:, 0]

    # output = w·x with x = e₁ for all: f_i = c_i w₁²/2
    x = torch.zeros(7, 3, dtype=torch.float64)
    x[:, 0] = 1
    step = torch.zeros(4, 3, dtype=torch.float64)
    step[0, 0] = 1
    found = curvature_at_scale(model, [(x[:3], c[:3]), (x[3:], c[3:])], loss=loss, directions={"weight": step})
    torch.testing.assert_close(found.curvature, c[:, 0].mean().expand(10), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.stderr_data, (c[:, 0].std() / 7**0.5).expand(10), rtol=1e-5, atol=0)
    assert found.stderr_draws.isnan().all()


def test_filter_units_agree_with_the_dense_hessian_and_with_eigenvectors():
    model = perceptron(inputs=32)
    model = nn.Sequential(nn.Flatten(), *model).double()
    dense = dense_hessian(model, classification, varied(model))
    d = filter_scale(model)
    scaled = d[:, None] * dense * d
    top = top_eigenvalues(model, RAGGED, k=1, units="filter", tol=1e-8)
    found = curvature_at_scale(model, RAGGED, directions=top, radius=1e-4)
    exact = float(torch.linalg.eigvalsh(scaled).abs().amax())
    torch.testing.assert_close(found.value, exact, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.derivative, exact, rtol=1e-6, atol=0)
    assert found.about["units"] == "filter"
    random = curvature_at_scale(model, RAGGED, units="filter", num_samples=40, radius=1e-3, radii=False)
    assert abs(random.trace[0] - scaled.trace()) < 4 * random.trace[1]
    assert abs(random.numel * random.derivative - scaled.trace()) < 4 * random.trace[1]
    assert random.numel == int((d > 0).sum())


def test_in_raw_units_everything_moves():
    model = perceptron()
    data = [(torch.ones(3, 5, dtype=torch.float64), torch.tensor([0, 1, 2]))]
    assert curvature_at_scale(model, data, num_samples=2, radii=False, derivatives=False).numel == 39
    found = curvature_at_scale(model, data, directions={"2.bias": torch.tensor([1.0, 0, 0])}, radii=False)
    torch.testing.assert_close(found.value, found.derivative, rtol=1e-5, atol=0)


def test_float32_drowns_at_fine_radii_as_the_rounding_error_says():
    double = perceptron(3, inputs=32)
    single = nn.Sequential(nn.Flatten(), *double).float()
    settings = {"radii": [1e-6, 1e-5, 1e-4, 1e-3, 1e-2], "units": "filter", "derivatives": False, "num_samples": 4}
    ratios = []
    for seed in range(6):
        rough = curvature_at_scale(single.float(), RAGGED, seed=seed, **settings)
        fine = curvature_at_scale(single.double(), RAGGED, seed=seed, **settings)
        ratios.append(((rough.curvature - fine.curvature) / rough.rounding)[:3])
        assert not rough.trusted[0] and rough.rounding[0] > rough.curvature[-1].abs()
        assert fine.rounding[2] < 1e-3 * fine.curvature[2].abs()
    spread = torch.stack(ratios).square().mean().sqrt()
    assert 0.05 < float(spread) < 2  # rather too large than too small, but no fantasy


@pytest.mark.parametrize("bits", ["W4A32", "W4A4"])
def test_a_staircase_is_marked_in_latent_space(bits):
    model = quantized(bits)
    settings = {"radius": 1e-6, "radii": [0.3], "num_samples": 2}
    mixed = curvature_at_scale(model, RAGGED, space="latent", **settings)  # biases move as they should
    assert mixed.curvature[0] != 0 and mixed.rounding_ratio[0] == 1 and not mixed.trusted[0]
    found = curvature_at_scale(model, RAGGED, space="latent", units="filter", **settings)
    assert found.curvature[0] == 0 and found.rounding_ratio[0] == 1 and not found.trusted[0]
    assert found.derivative != 0 and found.about["derivative"] == "straight-through"
    assert "staircase" in repr(found) and "straight-through" in repr(found)
    smooth = curvature_at_scale(model, RAGGED, **settings)
    assert not smooth.rounding_ratio.any() and smooth.about["space"] == "quantized"


def test_the_rounding_ratio_is_how_far_rounding_moves_the_network_beside_the_step():
    model = quantized("W4A32")
    layer = model[3]
    step = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found = curvature_at_scale(model, RAGGED, space="latent", directions={"3.weight": step}, radius=0.2, radii=False)
    norm = sum(float(p.detach().square().sum()) for n, p in model.named_parameters() if p.ndim > 1) ** 0.5
    step = step * 0.2 * norm / step.norm()
    with torch.no_grad():
        seen = layer.weight_quantizer(layer.weight + step) - layer.weight_quantizer(layer.weight)
    torch.testing.assert_close(
        float(found.rounding_ratio[0]), float((seen - step).norm() / step.norm()), rtol=1e-6, atol=0
    )


def test_layers_left_unrounded_do_not_hide_a_staircase():
    model = calibrate(quantize(convolutional(), {"3": "W4A32"}, first_last_bits=None), RAGGED)
    found = curvature_at_scale(model, RAGGED, space="latent", units="filter", radius=1e-6, radii=False, num_samples=2)
    assert found.curvature[0] != 0 and found.rounding_ratio[0] == 1 and not found.trusted[0]


def test_losses_that_break_stay_nan_and_are_not_trusted():
    def broken(model, _):
        w = model.weight
        return (w.square().sum() - 1e3).abs().sqrt().where(w.abs().amax() < 3, torch.nan), 1

    found = curvature_at_scale(
        linear(), ONCE, objective=broken, radius=1e-3, radii=[50.0], derivatives=False, num_samples=2
    )
    assert found.curvature[1].isnan() and not found.trusted[1] and found.curvature[0].isfinite()


def test_the_same_seed_gives_the_same_numbers_and_another_does_not():
    first, again, other = (
        curvature_at_scale(convolutional(), RAGGED, seed=s, radii=False, num_samples=2, derivatives=False)
        for s in (0, 0, 1)
    )
    assert first.value == again.value != other.value


def test_results_are_saved_shown_and_laid_out(tmp_path):
    found = curvature_at_scale(quantized("W4A4"), RAGGED, directions="random", num_samples=2, units="filter")
    loaded = load(found.save(tmp_path / "scales.nc"))
    assert repr(loaded) == repr(found) and loaded.frame.equals(found.frame)
    assert list(found.frame["radii"]) == list(RADII) and (found.frame["trusted"] == found.trusted.numpy()).all()
    assert repr(found).startswith("ScaleCurvature(") and "2 random directions; filter units, quantized space" in repr(
        found
    )


def curvatures_of(values, errors, *, ratios=0.0, derivative=1.0):
    """Curvatures by radius with these values and errors along one direction."""
    found = curvature_at_scale(
        linear(), ONCE, objective=quartic, directions={"weight": Z}, radius=1e-3, radii=[10.0**-r for r in (4, 2, 1)]
    )
    values, errors = (torch.tensor(numbers, dtype=torch.float64) for numbers in (values, errors))
    settings = {"stderr_data": errors, "rounding": 0 * errors, "rounding_ratio": 0 * errors + ratios}
    derivatives = torch.tensor([derivative] if derivative is not None else [], dtype=torch.float64)
    return replace(found, curvature=values, samples=values[:, None], derivatives=derivatives, **settings)


WINDOWS = {  # lowest and highest curvature that is shown, before the margin, and how many radii lie outside
    "all trusted": (curvatures_of([2.0, 1.5, 1.2, 1.0], [0.1] * 4), (0, 2.1), 0),
    "a fine one far off": (curvatures_of([60.0, 1.5, 1.2, 1.0], [40.0, 0.1, 0.1, 0.1]), (0, 1.6), 1),
    "a fine one of great error": (curvatures_of([1.0, 1.5, 1.2, 1.0], [9.0, 0.1, 0.1, 0.1]), (0, 1.6), 0),
    "none trusted": (curvatures_of([9e4, -5e3, 3.0, 1.0], [3e5, 4e3, 1.1, 0.4], ratios=2), (0, 1.4), 3),
    "no derivative": (
        curvatures_of([9e4, 7.0, 3.0, 2.0], [1e5, 1e4, 1.0, 0.5], ratios=2, derivative=None),
        (0, 2.5),
        3,
    ),
    "negative": (curvatures_of([-50.0, -2.0, -1.0, -1.0], [99.0, 0.1, 0.1, 0.1], derivative=-1.5), (-2.1, 0), 1),
    "broken": (
        curvatures_of([math.nan, math.inf, -math.inf, 1.0], [0.0, 1.0, math.nan, 0.5], derivative=2.0),
        (0, 2),
        0,
    ),
    "nothing": (curvatures_of([math.nan] * 4, [0.0] * 4, derivative=None), None, 0),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_a_picture_holds_zero_the_derivative_and_what_can_be_trusted_and_says_what_lies_outside(name):
    found, ends, outside = WINDOWS[name]
    figure, (ax,) = found.plot(), found.draw().axes
    low, high = figure.layout.yaxis.range
    assert low < 0 < high and ax.get_ylim() == pytest.approx((low, high))
    if ends is not None:
        margin = 0.12 * (ends[1] - ends[0])
        assert (low, high) == pytest.approx((ends[0] - margin, ends[1] + margin))
    for text in (figure.layout.title.subtitle.text, ax.figure.get_supxlabel().replace("\n", " ")):
        assert (f"{outside} of 4 radii lie outside of the picture" in text) == bool(outside)
        assert ("no radius can be trusted" in text) == (not (found.trusted & found.curvature.isfinite()).any())
    plt.close("all")


def test_a_logarithmic_curvature_leaves_out_what_is_not_positive():
    found = curvatures_of([2.0, 1.5, 1.2, 1.0], [0.1] * 4)
    low, high = found.draw(scale="log").axes[0].get_ylim()
    assert 0 < low < 0.9 and high > 2.1 and found.plot(scale="log").layout.yaxis.type == "log"
    plt.close("all")


def test_pictures_show_trusted_radii_filled_the_others_hollow_and_the_derivative():
    found = curvature_at_scale(linear(), ONCE, objective=quartic, directions={"weight": Z}, radii=[1e-9, 1e-2, 0.1])
    assert found.trusted.tolist() == [False, True, True, True]
    figure = found.plot()
    filled, hollow = figure.data
    assert list(filled.y[1:]) == found.curvature[1:].tolist() and np.isnan(filled.y[0])
    assert list(filled.error_y.array[1:]) == found.error[1:].tolist()
    assert hollow.name == "not to be trusted" and list(hollow.x[np.isfinite(hollow.y)]) == [1e-9]
    (dashed,) = figure.layout.shapes
    assert (dashed.name, dashed.y0) == (f"exact {found.derivative:.4g}", found.derivative) and dashed.showlegend
    assert "no radius can be trusted" not in figure.layout.title.subtitle.text
    (ax,) = found.draw().axes
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    assert handles["at a radius ± one error"][0].get_ydata()[1:].tolist() == found.curvature[1:].tolist()
    assert handles[dashed.name].get_ydata()[0] == found.derivative and len(handles) == 3
    assert ax.get_ylim() == pytest.approx(figure.layout.yaxis.range) and ax.get_xscale() == "log"
    assert "no radius can be trusted" not in ax.figure.get_supxlabel()
    plt.close(ax.figure)


TOP = top_eigenvalues(convolutional(), RAGGED, k=1, units="filter", tol=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radius": 0.0}, "radius and radii must be finite numbers > 0, relative to ‖w‖, got"),
        ({"radii": [0.1, math.inf]}, "radius and radii must be finite numbers > 0"),
        ({"num_samples": 1}, "num_samples must be a whole number >= 2, for a standard error, got 1"),
        ({"units": "layer"}, "units must be one of 'raw', 'filter', None, got 'layer'"),
        ({"directions": TOP, "units": "raw"}, "units must be those of the eigenvectors, 'filter', got 'raw'"),
        ({"directions": "gradient"}, 'directions must be "random", a point or Eigenvalues, got'),
        ({"directions": {"0.weight": torch.zeros(3, 2, 3, 3)}}, "the direction given is zero"),
        ({"directions": {"0.bias": torch.ones(3)}, "units": "filter"}, "the direction given is zero"),
        ({"directions": {"nothing": torch.ones(3)}}, "the direction moves 'nothing', which does not vary here"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        curvature_at_scale(convolutional(), RAGGED, **settings)


@pytest.mark.parametrize("call", [9, 14, 40])
@pytest.mark.parametrize("space", ["quantized", "latent"])
def test_nothing_changes_when_the_loss_fails_in_the_midst_of_the_radii(call, space):
    calls = []

    def loss(output, target):
        calls.append(0)
        if len(calls) == call:
            raise KeyboardInterrupt("on purpose")
        return cross_entropy(output, target)

    model = network("W4A4")
    before = state(model)
    with pytest.raises(KeyboardInterrupt, match="on purpose"):
        curvature_at_scale(model, (X, Y), loss=loss, space=space, num_samples=2)
    assert_same(before, state(model))
    curvature_at_scale(model, (X, Y), space=space, num_samples=2, radii=False)
    assert_same(before, state(model))
