import hashlib
from dataclasses import replace

import pytest
import torch
from networks import RAGGED, X, Y, convolutional, perceptron, quantized
from torch import nn

from landscape import Hessian, line, surface, top_eigenvalues
from landscape.model.coordinates import coordinates, gaussian
from landscape.model.directions import (
    checked_direction,
    direction_to,
    eigenvector,
    fingerprint,
    principal_directions,
    random_direction,
)


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
    step = direction_to(coordinates(mine), coordinates(other))
    assert list(step) == [name for name, _ in mine.named_parameters()]
    torch.testing.assert_close(step["1.bias"] + mine[1].bias, other[1].bias)
    small, large = quantized("W2A32"), quantized("W4A32")
    step = direction_to(coordinates(small), coordinates(large))
    torch.testing.assert_close(step["3.weight"] + small[3].used_weight(), large[3].used_weight())
    assert not direction_to(coordinates(small, "latent"), coordinates(large, "latent"))["3.weight"].any()
    step = direction_to(coordinates(mine), coordinates(small))
    torch.testing.assert_close(step["3.weight"] + mine[3].weight, small[3].used_weight())


def test_directions_that_do_not_fit_are_refused():
    centre = coordinates(perceptron())
    with pytest.raises(ValueError, match="normalize must be one of filter, layer, none, got 'weight'"):
        random_direction(centre, 0, "weight")
    with pytest.raises(ValueError, match="no line between networks of different weights"):
        direction_to(centre, coordinates(convolutional()))
    with pytest.raises(
        ValueError, match="the direction moves 'other', which does not vary here; what varies: .'0.weight'"
    ):
        checked_direction(centre, {"other": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"the direction of '0.bias' must have shape \(4,\), got \(3,\)"):
        checked_direction(centre, {"0.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match="directions must move something, got one without tensors"):
        line(perceptron(), [(X.flatten(1)[:, :5], Y)], directions={})
    found = line(convolutional(), RAGGED, points=3)
    with pytest.raises(ValueError, match="directions must be a result that holds 2, got a Line with 1"):
        surface(convolutional(), RAGGED, directions=found)
    stripped = replace(found, stored={})  # as `compare` has them
    with pytest.raises(ValueError, match="directions are not stored here, a seed draws them"):
        line(convolutional(), RAGGED, directions=stripped)
    with pytest.raises(ValueError, match="random directions move nothing"):
        random_direction(coordinates(nn.BatchNorm1d(3)), 0)


def test_packed_q_k_and_v_are_three_layers():
    attention = nn.MultiheadAttention(4, 2).double()
    with torch.no_grad():
        attention.in_proj_weight[:4] *= 10
        attention.in_proj_weight[8:] = 0
    step = random_direction(coordinates(attention), 0, "layer")["in_proj_weight"]
    for part, weight in zip(step.chunk(3), attention.in_proj_weight.detach().chunk(3), strict=True):
        torch.testing.assert_close(part.norm(), weight.norm())
    assert step[:4].any() and not step[8:].any() and step.isfinite().all()


def test_ml_and_pl_random_directions_have_no_sign_and_no_common_part():
    # drawn uniformly on [0, 1], two "random" directions of a peer have cosine 0.75
    steps = [random_direction(coordinates(nn.Linear(100, 40).double()), seed)["weight"] for seed in range(6)]
    units = torch.stack([step.flatten() / step.norm() for step in steps])
    cosines = units @ units.T - torch.eye(6).double()
    assert float(cosines.abs().max()) < 0.1 and all(0.4 < float((step > 0).double().mean()) < 0.6 for step in steps)


@pytest.mark.parametrize("units", ["raw", "filter"])
def test_an_eigenvector_is_walked_in_weights(units):
    model = convolutional()
    found = top_eigenvalues(model, RAGGED, k=2, tol=1e-9, units=units)
    centre = coordinates(model)
    step = centre.flatten(eigenvector(centre, found, 1))
    hessian = Hessian(model, RAGGED)
    if units == "raw":
        torch.testing.assert_close(step, centre.flatten(found.vector(1)))
        torch.testing.assert_close(hessian @ step, found.values[1] * step, rtol=0, atol=1e-6 * float(found.values[0]))
    else:  # v'DHDv = (Dv)'H(Dv)
        torch.testing.assert_close(step @ (hessian @ step), found.values[1], rtol=1e-6, atol=0)


def test_principal_directions_are_the_top_singular_vectors():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 10, generator=generator, dtype=torch.float64)
    points = [{"a": row[:6].view(2, 3), "b": row[6:]} for row in rows]
    found, shares = principal_directions(points, 3)
    _, s, v = torch.linalg.svd(rows, full_matrices=False)
    torch.testing.assert_close(shares, s.square() / s.square().sum())
    flat = torch.stack([torch.cat([step["a"].flatten(), step["b"]]) for step in found])
    torch.testing.assert_close((flat @ v.T).abs(), torch.eye(3, 4).double(), rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="the checkpoints span 4 dimensions, and 5 are needed"):
        principal_directions(points, 5)


def test_eigenvectors_that_do_not_fit_are_refused():
    model = quantized("W4A4")
    found = top_eigenvalues(model, RAGGED, k=1, max_products=5)
    with pytest.raises(ValueError, match="directions need eigenvector 2, but the result has 1: raise k"):
        eigenvector(coordinates(model), found, 1)
    with pytest.raises(ValueError, match="found in quantized space, the surface is in latent: pass space="):
        eigenvector(coordinates(model, "latent"), found, 0)


def test_draws_by_pieces_are_those_of_one_draw(monkeypatch):
    monkeypatch.setattr("landscape.pieces._PIECE", 32)
    point = {
        name: torch.zeros(size, dtype=torch.float64) for name, size in (("a", 15), ("b", 33), ("c", 95), ("d", 96))
    }
    for name, draw in gaussian(point, 3):
        seed = hashlib.sha256(f"3:{name}:{tuple(draw.shape)}".encode()).digest()[:7]
        generator = torch.Generator().manual_seed(int.from_bytes(seed, "little"))
        assert torch.equal(draw, torch.randn(len(draw), generator=generator, dtype=torch.float64))


def test_a_fingerprint_sees_every_bit_and_name():
    here = {"a": torch.ones(2, 3), "b": torch.zeros(())}
    others = [{"a": torch.ones(3, 2), "b": here["b"]}, {"c": here["a"], "b": here["b"]}, here | {"b": -here["b"]}]
    others += [here | {"a": torch.ones(2, 3) + 2**-23}, {"a": here["a"]}, here | {"a": torch.ones(2, 3).double()}]
    assert len({fingerprint(point) for point in [here, *others]}) == 7
    assert fingerprint(dict(reversed(here.items()))) == fingerprint(here)
