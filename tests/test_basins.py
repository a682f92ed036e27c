"""The basin of a network: widths and barriers against closed forms, what is refused, two processes against one."""

import copy
import json
import math

import pytest
import torch
import torch.nn.utils.prune
from networks import RAGGED, convolutional, perceptron
from ranks import launched
from states import assert_same, state
from torch import nn

import landscape
import saq_core
from landscape import parallel

DATA = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(9) % 3


def weights(*rows):
    """Return a linear layer without a bias."""
    layer = nn.Linear(len(rows[0]), len(rows), bias=False).double()
    layer.weight.data = torch.tensor(rows, dtype=torch.float64)
    return layer


def half_square(output, _):
    return output.square().sum(1) / 2


def wells(output, _):
    """Minima at ±1, a hill of height one between them."""
    return (output.square() - 1).square().mean(1)


SCALES = torch.tensor([[1.0, 0.5], [2.0, 1.5], [0.5, 2.5]], dtype=torch.float64)  # of a sample's inputs
ZERO = torch.zeros(3, dtype=torch.float64)


def test_widths_on_a_quadratic_have_closed_forms():
    """Along w' from w = 0 the loss of sample i is (xᵢ·w')²t²/2 = cᵢt²: the width is √(margin/c̄)."""
    target, margin = [0.6, -0.4], 0.05
    found = landscape.basin(
        weights([0.0, 0.0]), {"a": weights(target)}, (SCALES, ZERO), loss=half_square, margin=margin
    )
    curvatures = (SCALES @ torch.tensor(target, dtype=torch.float64)) ** 2 / 2
    width = math.sqrt(margin / curvatures.mean())
    stderr = float(curvatures.std()) / 3**0.5 * width**2 / (2 * float(curvatures.mean()) * width)
    model, row = found.rows
    assert row["distance"] == pytest.approx(math.hypot(*target))
    assert row["increase"] == pytest.approx(float(curvatures.mean())) and row["inside"] == (width >= 1)
    assert row["width"] == pytest.approx(width, rel=1e-4)
    assert row["width_stderr"] == pytest.approx(stderr, rel=0.01)
    assert found.layers[0]["ratio"] == pytest.approx(1 / width, rel=1e-3)
    assert found.barriers[0]["barrier"] == pytest.approx(-0.09 * float(curvatures.mean()))  # −t(1 − t)·c̄, of 0.1 … 0.9
    assert math.isnan(model["width"]) and not found.surfaces


def test_two_basins_are_told_apart():
    x = torch.ones(4, 1, dtype=torch.float64)
    networks = {"same": weights([-1.3]), "other": weights([1.0])}
    found = landscape.basin(weights([-1.0]), networks, (x, x[:, 0]), loss=wells, margin=0.5)
    same, other = found.rows[1:]
    assert same["inside"] and not other["inside"] and other["increase"] == 0  # as low, and yet not inside
    assert other["width"] == pytest.approx((1 - math.sqrt(1 - math.sqrt(0.5))) / 2, rel=1e-3)
    barriers = {row["pair"]: row["barrier"] for row in found.barriers}
    assert barriers["model – other"] == pytest.approx(1.0)
    assert barriers["same – other"] == pytest.approx(max(_above(-1.3, 1.0)))
    assert not found.surfaces  # on one line there is no plane


def _above(a, b):
    height = {t: ((a + t * (b - a)) ** 2 - 1) ** 2 for t in torch.linspace(0, 1, 11, dtype=torch.float64).tolist()}
    return [loss - (1 - t) * height[0.0] - t * height[1.0] for t, loss in height.items() if 0 < t < 1]


def test_the_plane_is_at_right_angles_and_goes_through_all_three():
    first, second = [0.6, -0.4], [0.5, 0.9]
    networks = {"a": weights(first), "b": weights(second)}
    found = landscape.basin(weights([0.0, 0.0]), networks, (SCALES, ZERO), loss=half_square, margin=0.05, points=9)
    (plane,) = found.surfaces.values()
    directions = [step["weight"] for step in plane.directions()]
    assert float((directions[0] * directions[1]).sum()) == pytest.approx(0, abs=1e-12)
    assert float(directions[0].norm()) == pytest.approx(float(directions[1].norm()))
    for (x, y), weight in zip(found.about["places"], (first, second), strict=True):
        assert (x * directions[0] + y * directions[1])[0].tolist() == pytest.approx(weight)
    assert plane.centre is not None and float(plane.loss[plane.centre]) == 0
    for x, axis in zip(zip(*found.about["places"], strict=True), (plane.alphas, plane.betas), strict=True):
        assert axis[0] < min(0, *x) and axis[-1] > max(0, *x)


def test_a_quantized_network_lies_where_its_rounded_weights_are_and_has_a_loss_of_its_own():
    model = convolutional()
    rounded = saq_core.calibrate(saq_core.quantize(model, "W4A4", first_last_bits=None), RAGGED)
    before = [state(each) for each in (model, rounded)]
    found = landscape.basin(model, {"W4": rounded}, RAGGED, points=5)
    assert_same(before, [state(each) for each in (model, rounded)])
    row, own = found.rows[1], landscape.Objective(rounded, RAGGED)
    assert row["loss"] == pytest.approx(float(own.centre.loss)) and row["accuracy"] == float(own.centre.accuracy)
    again = landscape.Objective(rounded, RAGGED, batchnorm="recomputed")
    assert row["loss_recomputed"] == pytest.approx(float(again.centre.loss))
    weights_alone = copy_of_weights(model, rounded)
    there = landscape.Objective(weights_alone, RAGGED, batchnorm="recomputed").centre.loss
    line = found.lines["W4"]
    assert float(line.loss[line.alphas == 1]) == pytest.approx(float(there), rel=1e-9)
    here = landscape.Objective(model, RAGGED, batchnorm="recomputed").centre.loss
    assert row["increase"] == pytest.approx(float(there - here), rel=1e-9)
    assert found.about["batchnorm"] == line.about["batchnorm"] == "recomputed"
    again = landscape.basin(landscape.Objective(model, RAGGED), {"W4": rounded}, points=5)
    assert again.rows[1] == found.rows[1]


def copy_of_weights(model, quantized):
    """Return the float network with another's rounded weights."""
    result = copy.deepcopy(model)
    layers = dict(quantized.named_modules())
    for name, module in result.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data = layers[name].weight_quantizer(layers[name].weight).detach()
    return result


def test_a_file_holds_all_of_it(tmp_path):
    model = perceptron()
    found = landscape.basin(model, {name: perceptron(seed) for name, seed in (("a", 1), ("b", 2))}, DATA, points=5)
    again = landscape.load(found.save(tmp_path / "basin.nc"))
    assert again.rows[1:] == found.rows[1:] and again.barriers == found.barriers and repr(again) == repr(found)
    assert again.frame.equals(found.frame) and torch.equal(again.surfaces[""].loss, found.surfaces[""].loss)
    for view in ("plane", "lines", "layers"):
        assert again.draw(view=view).axes and again.plot(view=view).data


def _measured():
    networks = {name: perceptron(seed) for name, seed in (("a", 1), ("b", 2))}
    return landscape.basin(perceptron(), networks, DATA, points=5)


def _numbers():
    found = _measured()
    return [found.rows[1:], found.layers, found.barriers, found.surfaces[""].loss.tolist()]


def _written(folder):
    parallel.start()
    (folder / str(parallel.rank())).write_text(json.dumps(_numbers()))


def test_two_processes_find_what_one_does(tmp_path):
    launched(_written, tmp_path)
    assert [(tmp_path / rank).read_text() for rank in "01"] == 2 * [json.dumps(_numbers())]


@pytest.mark.parametrize(
    ("networks", "settings", "told"),
    [
        ({}, {}, "networks must hold at least one"),
        ({"model": perceptron(1)}, {}, "none named 'model'"),
        ({"a": nn.Linear(3, 2)}, {}, r"networks\['a'\] must be the model with other weights"),
        ({"a": perceptron()}, {}, r"networks\['a'\] has the model's weights"),
        ({"a": perceptron(1)}, {"margin": 0.0}, "margin must be > 0"),
        ({"a": perceptron(1)}, {"margin": math.nan}, "margin"),
        ({"a": perceptron(1)}, {"points": 24}, "one more than a multiple of 4"),
        ({"a": "a file"}, {}, "networks"),
    ],
)
def test_what_cannot_be_measured_is_refused(networks, settings, told):
    model = perceptron()
    before = state(model)
    with pytest.raises((ValueError, TypeError), match=told):
        landscape.basin(model, networks, DATA, **settings)
    assert_same(before, state(model))


class Rounder(nn.Module):
    def forward(self, w):
        step = w.detach().abs().max() / 1.5
        return w + ((w / step).round() * step - w).detach()


class Rounding(nn.Linear):
    """A layer of one's own, which hands its weight to a quantizer of one's own."""

    def __init__(self, *sizes, **settings):
        super().__init__(*sizes, **settings)
        self.rounder = Rounder()

    def forward(self, x):
        return nn.functional.linear(x, self.rounder(self.weight), self.bias)


def handed(model, moved=0.01):
    """Return a copy of a perceptron whose linear layers round their weights."""
    torch.manual_seed(5)
    other = copy.deepcopy(model)
    for index, layer in enumerate(other):
        if isinstance(layer, nn.Linear):
            other[index] = Rounding(layer.in_features, layer.out_features, dtype=torch.float64)
            other[index].load_state_dict(layer.state_dict())
            other[index].weight.data.add_(moved * torch.randn_like(layer.weight))
    return other


@pytest.mark.parametrize("moved", [0.0, 0.01])
def test_the_way_leads_to_weights_that_a_quantizer_of_ones_own_rounds(moved):
    model = perceptron()
    (row,) = landscape.basin(model, {"QAT": handed(model, moved)}, DATA, points=5).rows[1:]
    lost = landscape.Objective(handed(model, moved), DATA).centre.loss - landscape.Objective(model, DATA).centre.loss
    assert row["increase"] == pytest.approx(float(lost)) and abs(float(lost)) > 1e-3
    line = landscape.line(model, DATA, directions=handed(model, moved), span=(0, 1), points=3)
    assert float(line.loss[-1]) == pytest.approx(float(landscape.Objective(handed(model, moved), DATA).centre.loss))


def test_a_way_that_does_not_get_there_is_refused():
    """Frozen weights that differ, or that only the copy rounds, and masks of pruning that do."""
    model = perceptron()
    model[0].requires_grad_(False)
    other = copy.deepcopy(model)
    other[0].weight.data.add_(0.1)
    pruned = [perceptron(seed) for seed in (0, 1)]
    for seed, network in enumerate(pruned):
        torch.manual_seed(seed)
        nn.utils.prune.random_unstructured(network[0], "weight", amount=0.5)
    for start, end, told in [
        (model, other, "0.weight is frozen and differs"),
        (model, handed(model, 0.0), "0.weight is frozen and differs"),
        (*pruned, "0.weight_orig is pruned by other masks"),
    ]:
        for measure in (
            lambda start, end: landscape.basin(start, {"a": end}, DATA, points=5),
            lambda start, end: landscape.line(start, DATA, directions=end),
        ):
            with pytest.raises(ValueError, match=told):
                measure(start, end)


def test_a_copy_may_be_frozen_and_an_objective_may_name_layers():
    model, other = perceptron(), perceptron(1)
    expected = landscape.basin(model, {"a": other}, DATA, points=5).rows[1]["increase"]
    assert landscape.basin(model, {"a": other.requires_grad_(False)}, DATA, points=5).rows[1]["increase"] == expected
    part = landscape.basin(landscape.Objective(model, DATA, layers=["0"]), {"a": other}, points=5)
    mixed = copy.deepcopy(model)
    mixed[0].load_state_dict(other[0].state_dict())
    whole = landscape.basin(model, {"a": mixed}, DATA, points=5)
    assert part.rows[1]["increase"] == pytest.approx(whole.rows[1]["increase"])


def test_the_margin_goes_by_the_loss():
    model, other = perceptron(), perceptron(1)
    summed = landscape.basin(model, {"a": other}, DATA, points=5, loss=nn.CrossEntropyLoss(reduction="sum"))
    assert summed.margin == pytest.approx(0.1 * len(DATA[1]))
    assert summed.rows[1]["inside"] == landscape.basin(model, {"a": other}, DATA, points=5).rows[1]["inside"]


def test_a_loss_of_zero_asks_for_a_margin():
    with pytest.raises(ValueError, match="pass margin="):
        landscape.basin(weights([0.0, 0.0]), {"a": weights([1.0, 0.0])}, (SCALES, ZERO), loss=half_square)
