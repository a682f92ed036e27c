import pytest
import torch
from networks import convolutional, perceptron, quantized
from torch import nn

from landscape.coordinates import coordinates
from landscape.directions import checked_direction, direction_to, random_direction


def rows(tensor):
    return tensor.flatten(1).norm(dim=1)


@pytest.mark.parametrize("make", [convolutional, lambda: quantized("W4A4")])
def test_every_filter_gets_the_norm_of_the_weights_filter(make):
    centre = coordinates(make())
    direction = random_direction(centre, seed=0)
    assert list(direction) == ["0.weight", "3.weight", "7.weight"]
    for name, step in direction.items():
        torch.testing.assert_close(rows(step), rows(centre.centre[name]), rtol=1e-12, atol=0)


def test_layers_get_the_norm_of_their_weight_or_none():
    centre = coordinates(convolutional())
    layer, none = (random_direction(centre, 0, normalize) for normalize in ("layer", "none"))
    for name in none:
        assert float(layer[name].norm()) == pytest.approx(float(centre.centre[name].norm()))
        torch.testing.assert_close(layer[name] / layer[name].norm(), none[name] / none[name].norm())
        assert 0.5 < float(none[name].square().mean()) < 1.6


def test_two_networks_get_the_same_draw_each_with_its_own_norms():
    first, second = (random_direction(coordinates(m), seed=4) for m in (convolutional(0), quantized("W4A32")))
    for name in first:
        unit = [step.flatten(1) / rows(step)[:, None] for step in (first[name], second[name])]
        torch.testing.assert_close(unit[0], unit[1], rtol=1e-9, atol=1e-12)
        assert not torch.allclose(first[name], second[name])


def test_two_random_directions_are_nearly_orthogonal():
    centre = coordinates(nn.Linear(200, 50).double())
    a, b = (random_direction(centre, seed)["weight"] for seed in (0, 1))
    assert abs(float((a * b).sum() / a.norm() / b.norm())) < 0.05


@pytest.mark.parametrize("normalize", ["filter", "layer"])
def test_a_zero_filter_gets_a_zero_direction(normalize):
    model = perceptron()
    with torch.no_grad():
        model[0].weight[1 if normalize == "filter" else slice(None)] = 0
    step = random_direction(coordinates(model), 0, normalize)["0.weight"]
    assert step.isfinite().all() and not step[1].any()
    assert bool(step[0].any()) == (normalize == "filter")


def test_the_step_to_another_network():
    mine, other = convolutional(0), convolutional(1)
    step = direction_to(coordinates(mine), other)
    assert list(step) == [name for name, _ in mine.named_parameters()]
    torch.testing.assert_close(step["1.bias"] + mine[1].bias, other[1].bias)
    small, large = quantized("W2A32"), quantized("W4A32")
    step = direction_to(coordinates(small), large)
    torch.testing.assert_close(step["3.weight"] + small[3].used_weight(), large[3].used_weight())
    assert not direction_to(coordinates(small, "latent"), large)["3.weight"].any()
    step = direction_to(coordinates(mine), small)
    torch.testing.assert_close(step["3.weight"] + mine[3].weight, small[3].used_weight())


def test_directions_that_do_not_fit_are_refused():
    centre = coordinates(perceptron())
    with pytest.raises(ValueError, match="normalize must be one of filter, layer, none, got 'weight'"):
        random_direction(centre, 0, "weight")
    with pytest.raises(ValueError, match="no line between networks of different weights"):
        direction_to(centre, convolutional())
    with pytest.raises(
        ValueError, match="the direction moves 'other', which does not vary here; what varies: .'0.weight'"
    ):
        checked_direction(centre, {"other": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"the direction of '0.bias' must have shape \(4,\), got \(3,\)"):
        checked_direction(centre, {"0.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match="random directions move nothing"):
        random_direction(coordinates(nn.BatchNorm1d(3)), 0)
