import copy
import math

import pytest
import torch
from networks import RAGGED, X, Y, convolutional, quantized, rescaled
from states import assert_same, network, state
from torch import nn
from torch.nn.functional import cross_entropy

from landscape import Objective, average_sharpness, load, worst_case_sharpness
from landscape.flatness.rounding import rounding_sharpness
from landscape.flatness.sharpness_table import MEASURES, sharpness
from landscape.model.coordinates import gaussian
from saq_core import calibrate, quantize

RADII = (0.01, 0.1, 0.5)
measures = pytest.mark.parametrize("measure", [average_sharpness, worst_case_sharpness])


def linear():
    model = nn.Linear(3, 4).double()
    generator = torch.Generator().manual_seed(0)
    model.weight.data = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    return model


W = linear().weight.detach()
G = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
ONCE = [torch.zeros(1)]


def bowl(model, _):
    return (model.weight - W).square().sum() + 0 * model.bias.sum(), 1


def slope(model, _):
    return (model.weight * G).sum() + 100 * model.bias.sum(), 1


@measures
def test_every_filter_is_moved_by_its_share(measure):
    found = measure(linear(), ONCE, objective=bowl, radii=RADII)
    if measure is worst_case_sharpness:  # the gradient is zero at the centre: ascent finds no way up
        assert not found.delta_loss.any()
        return
    expected = torch.tensor(RADII).double().square() * W.square().sum()
    torch.testing.assert_close(found.delta_loss, expected, rtol=1e-6, atol=0)
    assert float(found.stderr.max()) < 1e-12 and found.radii.tolist() == list(RADII)


def test_on_a_slope_the_worst_case_is_exact_and_biases_stay():
    found = worst_case_sharpness(linear(), ONCE, objective=slope, radii=RADII)
    expected = torch.tensor(RADII).double() * (W.norm(dim=1) * G.norm(dim=1)).sum()
    torch.testing.assert_close(found.delta_loss, expected, rtol=1e-6, atol=0)
    assert found.stderr.isnan().all() and found.samples.shape == (3, 1)


def test_averages_are_over_pairs_scaled_to_the_filters_in_which_no_slope_is_seen():
    def curved(model, _):
        e = model.weight - W
        return (G.square() * e.square()).sum() + (100 * G * e).sum(), 1

    found = average_sharpness(linear(), ONCE, objective=curved, radii=RADII, num_samples=5, seed=2)
    for draw in range(5):
        ((_, step),) = gaussian({"weight": W}, 2 * 1_000_003 + draw)
        step = step * W.norm(dim=1, keepdim=True) / step.norm(dim=1, keepdim=True)
        expected = torch.tensor(RADII).double().square() * (step * G).square().sum()
        torch.testing.assert_close(found.samples[:, draw], expected, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(found.delta_loss, found.samples.mean(1))
    torch.testing.assert_close(found.stderr, found.samples.std(1) / 5**0.5)
    assert len(found.samples.unique()) == 15


def test_the_perturbed_point_stays_in_its_ball_and_bends_back():
    def tilted(model, _):
        e = model.weight - W
        return (e * G).sum() - 3 * e.square().sum(), 1

    found = worst_case_sharpness(linear(), ONCE, objective=tilted, radii=(0.5,), rtol=0.01, steps=315)
    assert bool(found.converged) and float(found.gain) <= 0.01 * float(found.delta_loss)
    assert 0.99 * float(G.square().sum() / 12) < float(found.delta_loss) <= float(G.square().sum() / 12) + 1e-12


def test_the_worst_case_is_never_below_the_centre():
    def peak(model, _):
        return -1e6 * (model.weight - W).square().sum() + 1e-3 * (model.weight * G).sum(), 1

    assert worst_case_sharpness(linear(), ONCE, objective=peak, radii=(0.1,)).delta_loss.tolist() == [0.0]


@pytest.mark.parametrize("make", [convolutional, lambda: quantized("W4A4")])
def test_the_worst_case_is_worse_than_the_average_and_than_every_random_point(make):
    model = make()
    worst, average = (m(model, RAGGED, radii=(0.02, 0.1)) for m in (worst_case_sharpness, average_sharpness))
    assert (worst.delta_loss > average.samples.amax(1)).all() and worst.delta_loss[1] > worst.delta_loss[0] > 0


@pytest.mark.parametrize("bits", ["W4A4", "W2A2"])
def test_the_worst_case_converges_or_says_that_it_has_not(bits, tmp_path):
    function = Objective(quantized(bits), (X, Y))
    found = worst_case_sharpness(function, radii=(0.005, 0.02, 0.1))
    best = worst_case_sharpness(function, radii=(0.005, 0.02, 0.1), rtol=0, steps=315).delta_loss
    missing = torch.maximum(found.gain, 0.02 * found.delta_loss)
    assert ((best - found.delta_loss <= missing) | ~found.converged).all() and found.converged.any()
    single = worst_case_sharpness(function, radii=(0.1,), steps=5)
    assert not single.converged and repr(single).count("†") == 1 and "†" in str(single.table.iloc[0, 0])
    assert not load(single.save(tmp_path / "single.nc")).converged and single.gain.equal(single.delta_loss)


@measures
def test_rises_do_not_see_the_scale_of_weights_in_front_of_a_batchnorm(measure):
    mine, theirs = (measure(m, RAGGED) for m in (convolutional(), rescaled(convolutional())))
    torch.testing.assert_close(mine.delta_loss, theirs.delta_loss, rtol=1e-5, atol=0)


@measures
@pytest.mark.parametrize("radii", [(), (0.1, 0.0), (-0.1,), (float("nan"),), (float("inf"),)])
def test_radii_that_mean_nothing_are_refused(measure, radii):
    with pytest.raises(ValueError, match="radii must be finite numbers > 0, relative to the filters' norms, got"):
        measure(convolutional(), RAGGED, radii=radii)


def test_too_few_draws_or_steps_are_refused():
    with pytest.raises(ValueError, match="num_samples must be a whole number >= 2, for a standard error, got 1"):
        average_sharpness(convolutional(), RAGGED, num_samples=1)
    with pytest.raises(ValueError, match="steps must be a whole number >= 1, got 0"):
        worst_case_sharpness(convolutional(), RAGGED, steps=0)


def everything(model):
    """All weights and biases of a linear layer as one vector."""
    return torch.cat([model.weight.flatten(), model.bias])


def test_the_plain_ball_holds_all_that_varies_and_the_worst_case_on_a_bowl_is_known():
    model = linear()
    centre = everything(model).detach()
    spectrum = torch.linspace(0.1, 3, 16).double()
    q, _ = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64))

    def tilted(model, _):  # the slope points along the top eigenvector: max ½λρ² + cρ
        e = q.T @ (everything(model) - centre)
        return (spectrum * e.square()).sum() / 2 + 2 * e[-1], 1

    found = worst_case_sharpness(model, ONCE, objective=tilted, radii=(0.1, 2.0), metric="plain", relative=False)
    torch.testing.assert_close(found.delta_loss, torch.tensor([0.015 + 0.2, 6.0 + 4.0]).double(), rtol=1e-6, atol=0)
    share = float(0.5 / model.weight.detach().norm())
    relative = worst_case_sharpness(model, ONCE, objective=tilted, radii=(share,), metric="plain")
    torch.testing.assert_close(relative.delta_loss, torch.tensor([0.375 + 1.0]).double(), rtol=1e-6, atol=0)


def test_the_adaptive_ball_is_in_units_of_each_weight():
    model = linear()
    w, g = everything(model).detach(), torch.cat([G.flatten(), torch.full((4,), 100.0, dtype=torch.float64)])
    found = worst_case_sharpness(model, ONCE, objective=slope, radii=(0.5,), metric="adaptive", relative=False)
    torch.testing.assert_close(found.delta_loss, 0.5 * (g * w).norm().reshape(1), rtol=1e-6, atol=0)
    relative = worst_case_sharpness(model, ONCE, objective=slope, radii=(0.1,), metric="adaptive")
    torch.testing.assert_close(relative.delta_loss, 0.1 * 4 * (g * w).norm().reshape(1), rtol=1e-6, atol=0)


def test_m_sharpness_is_the_mean_of_the_groups_own_worst_cases():
    model, x = (
        nn.Linear(3, 1, bias=False).double(),
        torch.randn(7, 3, generator=torch.Generator().manual_seed(3)).double(),
    )
    settings = {"loss": lambda output, _: output[:, 0], "radii": (0.2, 0.4), "metric": "plain", "relative": False}
    groups = x.tensor_split(3)
    worst = torch.stack([group.mean(0).norm() for group in groups])
    shares = torch.tensor([3, 2, 2]).double() / 7
    found = worst_case_sharpness(model, (x, x), m=3, **settings)
    torch.testing.assert_close(
        found.delta_loss, (worst * shares).sum() * torch.tensor([0.2, 0.4]).double(), rtol=1e-6, atol=0
    )
    assert found.samples.shape == (2, 3) and "mean over 3 groups" in found.about["measure"]
    scatter = (shares * (worst - (worst * shares).sum())).square().sum().mul(3 / 2).sqrt()
    torch.testing.assert_close(found.stderr_data[0], 0.2 * scatter, rtol=1e-6, atol=0)
    together = worst_case_sharpness(model, (x, x), **settings)
    torch.testing.assert_close(together.delta_loss[0], 0.2 * x.mean(0).norm(), rtol=1e-6, atol=0)
    single = worst_case_sharpness(model, (x, x), m=1, **settings)
    assert together.delta_loss[0] < found.delta_loss[0] < single.delta_loss[0]


@pytest.mark.parametrize("metric", ["filter", "plain", "adaptive"])
def test_groups_of_a_network_are_sharper_than_all_samples_together(metric):
    rises = [
        worst_case_sharpness(quantized("W4A4"), (X, Y), metric=metric, radii=(0.05,), m=m).delta_loss
        for m in (None, 3, 1)
    ]
    assert 0 < rises[0] < rises[1] < rises[2]


@pytest.mark.parametrize("metric", ["plain", "adaptive"])
def test_gaussian_averages_have_the_expected_second_moment(metric):
    model = linear()
    centre = everything(model).detach()
    a = torch.linspace(0.1, 3, 16).double()

    def bowl_of_all(model, _):
        return (a * (everything(model) - centre).square()).sum() / 2, 1

    found = average_sharpness(model, ONCE, objective=bowl_of_all, metric=metric, radii=(0.1, 0.3), num_samples=400)
    scale = W.square().sum() / 16 if metric == "plain" else centre.square()
    expected = torch.tensor([0.1, 0.3]).double().square() * (a * scale).sum() / 2
    assert ((found.delta_loss - expected).abs() < 4 * found.stderr).all() and (found.stderr < 0.05 * expected).all()


def test_errors_over_data_are_calibrated():
    """Of 100 data sets: the scatter of the rise against the error that each of them states."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False).double()
    settings = {"loss": lambda output, _: output[:, 0].square(), "radii": (0.1,)}
    for measure, more in ((average_sharpness, {"num_samples": 3}), (worst_case_sharpness, {"steps": 2})):
        rises, errors = [], []
        for seed in range(100):
            # a strong common slope: the worst ε is then nearly the same for all data sets
            x = 5 + torch.randn(12, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            found = measure(model, (x, x), **settings, **more)
            rises.append(found.delta_loss)
            errors.append(found.stderr_data)
        ratio = torch.cat(errors).square().mean().sqrt() / torch.cat(rises).std()
        assert 0.85 < float(ratio) < 1.15, measure


def test_the_error_over_data_is_paired_and_the_centre_has_none():
    model = linear()
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    offset = 1e3 * torch.arange(6).double()
    found = average_sharpness(model, (x, offset), loss=lambda o, y: o[:, 0].square() + y, radii=(0.1,), num_samples=2)
    plain = average_sharpness(
        model, (x, offset), loss=lambda o, y: o[:, 0].square() + 0 * y, radii=(0.1,), num_samples=2
    )
    torch.testing.assert_close(found.stderr_data, plain.stderr_data, rtol=1e-6, atol=0)
    peak = worst_case_sharpness(
        model, (x, offset), loss=lambda o, y: -o[:, 0].square() * 1e9 + y, radii=(5.0,), steps=1
    )
    assert peak.delta_loss.tolist() == [0.0] == peak.stderr_data.tolist() and "†" in repr(peak)
    assert average_sharpness(model, ONCE, objective=bowl, num_samples=2).stderr_data.isnan().all()  # a single batch


def test_rounding_noise_on_a_bowl_is_a_sum_over_steps():
    model = linear()
    model.weight.data = 0.25 * torch.tensor([[1, -1, 0], [0, 1, 1], [-1, 0, 0], [1, 1, -1]]).double()
    a = torch.linspace(0.1, 3, 12).double().view(4, 3)
    centre = model.weight.detach().clone()

    def bowl(model, _):
        return (a * (model.weight - centre).square()).sum() / 2 + 7 * model.bias.sum(), 1

    found = rounding_sharpness(model, ONCE, objective=bowl, bits=(2, 3), num_samples=400)
    # two bits have three levels, which the weights sit on: s = 0.25; three bits reach 3s = 0.25
    expected = a.sum() / 24 * torch.tensor([0.25, 0.25 / 3]).double().square()
    assert ((found.delta_loss - expected).abs() < 4 * found.stderr).all() and (found.stderr < 0.05 * expected).all()
    torch.testing.assert_close(found.rounded, torch.zeros(2).double(), atol=1e-12, rtol=0)
    assert found.samples.abs().max() <= (a * 0.125**2).sum() / 2 and found.bits == [2, 3]


def test_rounding_itself_is_measured_beside_the_noise():
    model = convolutional()
    found = rounding_sharpness(model, RAGGED, bits=(8, 3), num_samples=2)
    for row, bits in enumerate((8, 3)):
        twin, top = copy.deepcopy(model).eval(), 2 ** (bits - 1) - 1
        for parameter in twin.parameters():
            if parameter.ndim > 1:
                w = parameter.detach()
                clips = [w.abs().max() * k / 50 for k in range(1, 51)]
                rounded = [(w * top / c).round().clamp(-top, top) * c / top for c in clips]
                parameter.data = min(rounded, key=lambda r, w=w: float((r - w).square().sum()))
        with torch.no_grad():
            expected = cross_entropy(twin(X), Y) - cross_entropy(model.eval()(X), Y)
        torch.testing.assert_close(found.rounded[row], expected, rtol=1e-6, atol=1e-12)
    assert found.delta_loss[0].abs() < found.delta_loss[1].abs() and found.rounded_stderr_data[1] > 0


@pytest.mark.parametrize("quantizer", ["lsq", "liq"])
def test_a_quantized_network_is_moved_by_its_own_steps(quantizer):
    model = calibrate(quantize(convolutional(), "W3A32", first_last_bits=None, quantizer=quantizer), RAGGED)
    model[0].delta.fill_(0.01)
    found = rounding_sharpness(model, RAGGED, num_samples=3, seed=1)
    unrounded = copy.deepcopy(model).eval()
    for layer in (unrounded[0], unrounded[3], unrounded[7]):
        layer.weight_quantizer = nn.Identity()
    with torch.no_grad():
        expected = cross_entropy(model.eval()(X), Y) - cross_entropy(unrounded(X), Y)
        torch.testing.assert_close(found.rounded, expected.reshape(1), rtol=1e-6, atol=1e-12)
        moved, back = copy.deepcopy(model), copy.deepcopy(model)
        draw = dict(gaussian({f"{n}.weight": moved[n].weight for n in (0, 3, 7)}, 1_000_003))
        for n in (0, 3, 7):
            _, delta, step = moved[n].quantized_weights()["weight"]
            delta += step / 2 * torch.erf(draw[f"{n}.weight"] / 2**0.5)
            back.get_submodule(str(n)).delta.copy_(-delta + 2 * model[n].delta)
        rise = (cross_entropy(moved(X), Y) + cross_entropy(back(X), Y)) / 2 - cross_entropy(model(X), Y)
    torch.testing.assert_close(found.samples[0, 0], rise, rtol=1e-6, atol=1e-12)
    assert found.bits == [0] and "at its own steps" in repr(found)
    assert rounding_sharpness(model, RAGGED, bits=(4,), num_samples=2).bits == [4]


def test_the_table_holds_what_the_single_measures_give(tmp_path):
    model = quantized("W4A4")
    found = sharpness(model, (X, Y), seed=3)
    rows = {(row["measure"], row["setting"]): row for row in found.rows}
    assert len(rows) == len(found.rows) == len(MEASURES) + 1 and {name for name, _ in rows} == set(MEASURES)
    worst = worst_case_sharpness(model, (X, Y), metric="plain", radii=(0.05,), relative=False)
    row = rows["worst case, plain", "ρ = 0.05"]
    assert row["value"] == float(worst.delta_loss) and row["stderr_data"] == float(worst.stderr_data)
    assert math.isnan(row["stderr"]) and row["converged"] and (row["gradients"], row["forwards"]) == (15, 3)
    average = average_sharpness(model, (X, Y), radii=(0.05,), num_samples=10, seed=3)
    row = rows["average, filter", "r = 0.05"]
    assert row["value"] == float(average.delta_loss) and row["stderr"] == float(average.stderr)
    assert (row["gradients"], row["forwards"]) == (0, 20) and row["source"]
    rounding = rounding_sharpness(model, (X, Y), num_samples=10, seed=3)
    assert rows["rounding noise", "noise at its own steps"]["value"] == float(rounding.delta_loss)
    assert rows["rounding noise", "rounded at its own steps"]["value"] == float(rounding.rounded)
    assert list(found.frame["value"]) == [row["value"] for row in found.rows]
    assert "often fails to predict generalisation" in str(found) and "<table" in found._repr_html_()
    assert "nan" not in str(found) and "\n" not in repr(found)
    assert repr(load(found.save(tmp_path / "table.nc"))) == repr(found)


def test_the_table_measures_what_is_asked_for():
    found = sharpness(convolutional(), RAGGED, measures={"worst case, adaptive": {"radii": (0.1, 0.2), "steps": 3}})
    assert [row["setting"] for row in found.rows] == ["ρ = 0.1", "ρ = 0.2"] and found.rows[0]["gradients"] == 3
    named = sharpness(convolutional(), RAGGED, measures=["average, Gaussian"])
    assert {row["measure"] for row in named.rows} == {"average, Gaussian"}


@pytest.mark.parametrize(
    ("measure", "settings", "message"),
    [
        (worst_case_sharpness, {"metric": "box"}, "metric must be one of filter, plain, adaptive, got 'box'"),
        (average_sharpness, {"relative": False}, 'relative=False needs metric="plain" or "adaptive"'),
        (worst_case_sharpness, {"m": 0}, "m must be a whole number >= 1 or None, got 0"),
        (rounding_sharpness, {"bits": (1,)}, "bits must be 2 to 16, or 0 for the steps of a network that is quantized"),
        (rounding_sharpness, {"bits": (0,)}, "bits must be 2 to 16, or 0"),
        (rounding_sharpness, {"num_samples": 1}, "num_samples must be a whole number >= 2"),
        (
            sharpness,
            {"measures": ["flatness"]},
            "measures must be a list of names out of worst case, filter",
        ),
        (sharpness, {"measures": "average, filter"}, "measures must be a list .each a text. or a mapping"),
    ],
)
def test_settings_that_mean_nothing_are_refused(measure, settings, message):
    with pytest.raises(ValueError, match=message):
        measure(convolutional(), RAGGED, **settings)


@pytest.mark.parametrize("call", [8, 30, 60, 90])
def test_nothing_changes_when_the_loss_fails_in_the_midst_of_a_measure(call):
    calls = []

    def loss(output, target):
        calls.append(0)
        if len(calls) == call:
            raise KeyboardInterrupt("on purpose")
        return cross_entropy(output, target)

    model = network("W4A4")
    before = state(model)
    with pytest.raises(KeyboardInterrupt, match="on purpose"):
        sharpness(model, (X, Y), loss=loss)
    assert_same(before, state(model))


def test_nothing_changes_when_all_is_measured():
    model = network("W4A4")
    before = state(model)
    sharpness(model, (X, Y))
    assert_same(before, state(model))
