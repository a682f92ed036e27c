import copy

import pytest
import torch
from networks import RAGGED, X, Y, classification, convolutional, quantized
from test_curvature import rescaled
from test_objective import recomputed_by_hand
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from landscape import line, surface
from landscape.coordinates import coordinates
from landscape.directions import random_direction
from landscape.objective import Objective


def linear():
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    return model


def unit(first, second):
    return {"weight": torch.tensor([[first, second]], dtype=torch.float64)}


EYE = (torch.eye(2, dtype=torch.float64), torch.tensor([[0.5], [3.0]], dtype=torch.float64))
PAIRED = {"data": EYE, "loss": mse_loss}


def test_every_value_belongs_to_its_coordinates():
    found = surface(linear(), **PAIRED, directions=[unit(1.0, 0.0), unit(0.0, 3.0)], span=2.0, points=5)
    assert found.alphas.tolist() == found.betas.tolist() == [-2, -1, 0, 1, 2]
    a, b = found.alphas[:, None], found.betas[None]
    expected = ((1 + a - 0.5) ** 2 + (-2 + 3 * b - 3) ** 2) / 2
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=0)
    assert found.loss.shape == found.accuracy.shape == (5, 5) and found.accuracy.isnan().all()


def test_a_line_follows_its_direction():
    found = line(linear(), **PAIRED, directions=unit(1.0, 0.5), span=0.5, points=7)
    expected = ((1 + found.alphas - 0.5) ** 2 + (-2 + 0.5 * found.alphas - 3) ** 2) / 2
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=0)
    assert found.alphas.tolist() == pytest.approx([-0.5, -1 / 3, -1 / 6, 0, 1 / 6, 1 / 3, 0.5])


MODELS = {"float": (convolutional, None), "quantized": (lambda: quantized("W4A4"), "quantized")}
MODELS["latent"] = (lambda: quantized("W4A4"), "latent")


@pytest.mark.parametrize("batchnorm", ["fixed", "recomputed"])
@pytest.mark.parametrize("name", MODELS)
def test_the_centre_is_the_model(name, batchnorm):
    make, space = MODELS[name]
    model = make().eval()
    found = surface(model, (X, Y), points=3, space=space, batchnorm=batchnorm)
    along = line(model, (X, Y), points=3, space=space, batchnorm=batchnorm)
    if batchnorm == "fixed":
        output = model(X)
        assert float(found.loss[1, 1]) == pytest.approx(
            cross_entropy(output, Y).item(), rel=1e-13
        )  # BatchNorm is folded
        assert float(found.accuracy[1, 1]) == float((output.argmax(1) == Y).double().mean())
    own = Objective(model, (X, Y), space=space, batchnorm=batchnorm).centre()
    assert (
        (float(found.loss[1, 1]), float(found.accuracy[1, 1]))
        == own
        == (float(along.loss[1]), float(along.accuracy[1]))
    )
    assert found.about["batchnorm"] == batchnorm and found.about["space"] == (space or "float")


def moved(model, space, steps):
    """Return a copy whose weights were set by hand."""
    model = copy.deepcopy(model)
    for name, step in steps.items():
        owner, _, leaf = name.rpartition(".")
        layer = model.get_submodule(owner)
        tensor = layer.delta if space == "quantized" and leaf == "weight" else getattr(layer, leaf)
        tensor.data += step
    return model


@pytest.mark.parametrize("batchnorm", ["fixed", "recomputed"])
@pytest.mark.parametrize("name", MODELS)
def test_every_point_is_a_plain_model_whose_weights_were_set_by_hand(name, batchnorm):
    make, space = MODELS[name]
    model = make().eval()
    first, second = (random_direction(coordinates(model, space), seed) for seed in (3, 4))
    found = surface(model, RAGGED, directions=[first, second], points=3, space=space, batchnorm=batchnorm)
    for i, a in enumerate(found.alphas.tolist()):
        for j, b in enumerate(found.betas.tolist()):
            twin = moved(model, space, {n: a * first[n] + b * second[n] for n in first})
            twin = recomputed_by_hand(twin) if batchnorm == "recomputed" else twin
            loss = sum(len(x) / 7 * cross_entropy(twin(x), y).item() for x, y in RAGGED)
            right = sum(int((twin(x).argmax(1) == y).sum()) for x, y in RAGGED)
            assert float(found.loss[i, j]) == pytest.approx(loss, rel=1e-9)
            assert float(found.accuracy[i, j]) == pytest.approx(right / 7)


def test_a_line_to_another_network_ends_there():
    mine, other = convolutional(0).eval(), convolutional(1).eval()
    found = line(mine, RAGGED, directions=other, points=3)
    assert found.about["batchnorm"] == "recomputed" and found.about["directions"] == "towards a network"
    for i, model in ((1, mine), (2, other)):
        twin = recomputed_by_hand(model)
        expected = sum(len(x) / 7 * cross_entropy(twin(x), y).item() for x, y in RAGGED)
        assert float(found.loss[i]) == pytest.approx(expected, rel=1e-9)


def test_a_line_to_another_network_with_fixed_statistics_keeps_those_of_the_first():
    mine, other = convolutional(0).eval(), convolutional(1).eval()
    found = line(mine, RAGGED, directions=other, points=3, batchnorm="fixed")
    state = dict(mine.named_buffers()) | dict(other.named_parameters())
    expected = torch.func.functional_call(other, state, (X,))
    assert float(found.loss[2]) == pytest.approx(cross_entropy(expected, Y).item(), rel=1e-12)


def test_a_line_between_weight_only_networks_ends_at_the_other():
    mine, other = quantized("W2A32").eval(), quantized("W4A32").eval()
    found = line(mine, RAGGED, directions=other, points=3, batchnorm="fixed")
    assert float(found.loss[2]) == pytest.approx(classification(other).item(), rel=1e-12)


def test_a_plane_through_three_networks():
    mine, first, second = (convolutional(i).eval() for i in range(3))
    for model in (first, second):
        model.load_state_dict(model.state_dict() | {n: b for n, b in mine.state_dict().items() if "running" in n})
    found = surface(mine, RAGGED, directions=[first, second], points=3, batchnorm="fixed")
    assert float(found.loss[2, 1]) == pytest.approx(classification(first).item(), rel=1e-12)
    assert float(found.loss[1, 2]) == pytest.approx(classification(second).item(), rel=1e-12)


def test_in_latent_space_a_quantized_network_stands_on_stairs():
    model = quantized("W2A32")
    stairs, slope = (line(model, RAGGED, points=41, span=0.02, space=space).loss for space in ("latent", "quantized"))
    assert len(stairs.unique()) < 12 and len(slope.unique()) == 41


def test_the_draw_is_that_of_the_seed():
    model = convolutional()
    first, again, other = (line(model, RAGGED, points=5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.loss, again.loss) and not torch.equal(first.loss, other.loss)
    plane = surface(model, RAGGED, points=5)
    torch.testing.assert_close(plane.loss[:, 2], first.loss, rtol=1e-12, atol=0)
    assert not torch.allclose(plane.loss, plane.loss.T)


def test_values_do_not_see_the_scale_of_weights_in_front_of_a_batchnorm():
    pictures = [
        (line(m, RAGGED, points=5), surface(m, RAGGED, points=3)) for m in (convolutional(), rescaled(convolutional()))
    ]
    for mine, theirs in zip(*pictures, strict=True):
        torch.testing.assert_close(mine.loss, theirs.loss, rtol=1e-5, atol=0)
        assert torch.equal(mine.accuracy, theirs.accuracy)


def test_what_is_not_finite_stays_so():
    def loss(output, target):
        return (output.mean() - 1).log()  # NaN below one

    model = linear()
    data = (torch.tensor([[1.0, 0.0]]).double().repeat(3, 1) * 2, torch.zeros(3, 1))
    found = line(model, data, loss=loss, directions=unit(0.5, 0.0), points=5, span=2.0)
    assert found.loss.isnan().tolist() == [True, False, False, False, False] or found.loss[0].isnan()
    assert found.loss[2:].isfinite().all() and "not finite" in repr(found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points": 4}, "points must be odd and >= 3, so that the middle one is the model itself, got 4"),
        ({"points": 1}, "points must be odd and >= 3, .* got 1"),
        ({"span": 0.0}, "span must be > 0 and finite, got 0.0"),
        ({"span": -1}, "span must be > 0 and finite, got -1"),
        ({"span": float("nan")}, "span must be > 0 and finite, got nan"),
        ({"span": float("inf")}, "span must be > 0 and finite, got inf"),
        ({"normalize": "weight"}, "normalize must be one of filter, layer, none, got 'weight'"),
        ({"batchnorm": "train"}, "batchnorm must be one of fixed, recomputed, got 'train'"),
        ({"directions": "hessian"}, "directions must be \"random\" or . of directions and networks, got 'hessian'"),
        ({"directions": [{}, {}, {}]}, "directions must be .* got given and given and given"),
        ({"directions": nn.Linear(2, 2)}, "directions must be|no line between networks"),
        ({"space": "weights"}, "space must be one of quantized, latent, got 'weights'"),
    ],
)
@pytest.mark.parametrize("function", [line, surface])
def test_bad_settings_are_refused(function, settings, message):
    with pytest.raises(ValueError, match=message):
        function(convolutional(), RAGGED, **settings)
