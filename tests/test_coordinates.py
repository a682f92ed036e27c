import copy

import pytest
import torch
from networks import X, convolutional, filter_scale, perceptron, quantized, varied
from torch import nn

from landscape.model.coordinates import coordinates, filter_norms, gaussian


@pytest.mark.parametrize("space", [None, "quantized", "latent"])
@pytest.mark.parametrize("bits", [None, "W4A32", "W4A4"])
def test_what_varies_is_every_trainable_weight_and_no_quantizer(bits, space):
    model = quantized(bits) if bits else convolutional()
    found = coordinates(model, space)
    assert found.names == [name for name, _ in convolutional().named_parameters()]
    assert list(found.tensors.values()) == varied(model, space)
    assert found.space == ("float" if bits is None else space or "quantized")
    rounded = bits is not None and (found.space == "latent" or bits == "W4A4")
    assert found.straight_through == rounded


def test_the_centre_is_what_the_network_computes_with():
    model = quantized("W4A32")
    model[3].delta.fill_(0.25)
    found = coordinates(model)
    assert torch.equal(found.centre["3.weight"], model[3].used_weight())
    assert torch.equal(found.base["3.weight"], model[3].delta)
    assert torch.equal(found.centre["7.bias"], model[7].bias)
    assert torch.equal(coordinates(model, "latent").centre["3.weight"], model[3].weight)


def test_points_and_vectors_are_two_forms_of_the_same():
    found = coordinates(convolutional())
    vector = torch.arange(float(found.numel), dtype=torch.float64)
    point = found.unflatten(vector)
    assert [part.shape for part in point.values()] == [p.shape for p in convolutional().parameters()]
    assert torch.equal(found.flatten(dict(reversed(point.items()))), vector)


def test_a_displacement_moves_what_it_names():
    found = coordinates(quantized("W4A32"))
    moved = found.displaced({"3.weight": torch.ones(4, 3, 2, 2, dtype=torch.float64)})
    assert torch.equal(moved["3.delta"], torch.ones(4, 3, 2, 2, dtype=torch.float64))
    assert torch.equal(moved["7.bias"], found.base["7.bias"]) and len(moved) == len(found.names)


@pytest.mark.parametrize("bits", [None, "W4A32"])
def test_filter_scale_and_norm(bits):
    model = quantized(bits) if bits else convolutional()
    found = coordinates(model)
    torch.testing.assert_close(found.flatten(found.filter_scale()), filter_scale(model))
    weights = [m.used_weight() if bits else m.weight for m in (model[0], model[3], model[7])]
    assert found.norm() == pytest.approx(float(torch.cat([w.detach().flatten() for w in weights]).norm()))


def test_a_filter_is_a_slice_along_the_first_dimension():
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0], [5.0, 12.0]])
    assert filter_norms(weight).tolist() == [[5.0], [0.0], [13.0]]
    assert filter_norms(torch.ones(2, 3, 4, 5)).shape == (2, 1, 1, 1)


def test_frozen_weights_stay_and_tied_weights_vary_once():
    model = perceptron()
    model[0].weight.requires_grad_(False)
    assert coordinates(model).names == ["0.bias", "2.weight", "2.bias"]
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    assert coordinates(tied).names == ["0.weight"]


def test_the_draw_depends_on_name_shape_and_seed_alone():
    point = {"a": torch.zeros(3, 2), "b": torch.zeros(3, 2)}
    torch.manual_seed(0)
    first = dict(gaussian(point, 0))
    torch.manual_seed(1)
    alone = dict(gaussian({"b": torch.ones(3, 2).double()}, 0))
    torch.testing.assert_close(first["b"].double(), alone["b"], rtol=1e-6, atol=1e-6)
    assert not torch.equal(first["a"], first["b"]) and not torch.equal(first["a"], dict(gaussian(point, 1))["a"])
    many = dict(gaussian({"w": torch.zeros(100, 100)}, 3))["w"]
    assert abs(float(many.mean())) < 0.05 and abs(float(many.std()) - 1) < 0.05


class Integers(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.arange(4))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Integers(), "the model holds integers only"),
        (nn.ReLU(), "no trainable weights: the model has no parameters"),
        (perceptron().requires_grad_(False), "no trainable weights: every parameter has requires_grad=False"),
    ],
)
def test_models_in_which_nothing_varies_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        coordinates(model)


def test_unknown_spaces_are_refused_and_the_known_ones_listed():
    with pytest.raises(ValueError, match="space must be one of quantized, latent, got 'float'"):
        coordinates(convolutional(), "float")


class Foreign(nn.Linear):
    def quantized_weights(self):
        return {"weight": (self.weight.detach(), torch.zeros_like(self.weight), torch.ones(()))}


def test_a_delta_that_is_no_buffer_is_refused():
    with pytest.raises(TypeError, match="must return the layer's own buffer as delta"):
        coordinates(nn.Sequential(Foreign(2, 2)))


def test_collecting_coordinates_changes_nothing():
    model = quantized("W4A4")
    before = copy.deepcopy(model.state_dict())
    coordinates(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if isinstance(v, torch.Tensor))
    assert not model[3].delta.any() and model(X).isfinite().all()


def test_a_weight_that_quantized_layers_share_is_refused_in_quantized_space():
    from saq_core import quantize

    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    net[2].weight = net[0].weight
    twin = quantize(net, "W4A32")
    with pytest.raises(ValueError, match="shared by several layers.*space='latent'"):
        coordinates(twin)
    assert coordinates(twin, "latent").names[0] == "0.weight"


def test_weights_without_elements_do_not_vary():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    model.register_parameter("adapter", nn.Parameter(torch.empty(0, 3)))
    assert coordinates(model).names == ["0.weight", "0.bias", "1.weight", "1.bias"]
