import contextlib
import copy
import functools
import json
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray
from networks import (
    EYE,
    PAIRED,
    RAGGED,
    X,
    Y,
    classification,
    convolutional,
    linear,
    perceptron,
    quantized,
    recomputed_by_hand,
    rescaled,
)
from ranks import forked
from states import assert_same, network, state
from torch import nn
from torch.nn.functional import cross_entropy

from landscape import line, load, surface, top_eigenvalues
from landscape.io import _read
from landscape.model import walking
from landscape.model.coordinates import Coordinates, coordinates
from landscape.model.directions import random_direction, stacked
from landscape.model.objective import Objective
from landscape.plotting.captions import caption
from landscape.surfaces.batchnorm_comparison import batchnorm_check
from landscape.surfaces.survey import COMPUTED, FAILED, INTERPOLATED, PENDING
from landscape.surfaces.tiles import Tiles
from saq_core import calibrate, quantize


def unit(first, second):
    return {"weight": torch.tensor([[first, second]], dtype=torch.float64)}


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
    own = Objective(model, (X, Y), space=space, batchnorm=batchnorm).centre[:2]
    assert (
        (float(found.loss[1, 1]), float(found.accuracy[1, 1]))
        == own
        == (float(along.loss[1]), float(along.accuracy[1]))
    )
    assert found.about["batchnorm"] == batchnorm and found.about["space"] == (space or "float")


def test_a_network_without_batchnorm_says_nothing_of_it():
    model = perceptron().eval()
    batch = (torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3)
    found = surface(model, batch, points=3)
    assert "batchnorm" not in found.about and caption({"": found}).endswith(" · float weights · 8 samples")
    again = surface(model, batch, points=3, directions=found)
    assert torch.equal(again.loss, found.loss)


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
    with pytest.warns(UserWarning, match="the end of the line has loss"):
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
        ({"span": float("nan")}, "span must be a number or .*, got nan"),
        ({"span": float("inf")}, "span must be > 0 and finite, got inf"),
        ({"normalize": "weight"}, "normalize must be one of filter, layer, none, got 'weight'"),
        ({"batchnorm": "train"}, "batchnorm must be one of 'fixed', 'recomputed', None, got 'train'"),
        (
            {"directions": "hessian"},
            "directions must be one of .* or . of names, directions and networks, got 'hessian'",
        ),
        ({"directions": [{}, {}, {}]}, "directions must be .* got given and given and given"),
        ({"directions": nn.Linear(2, 2)}, "directions must be|no line between networks"),
        ({"space": "weights"}, "space must be one of 'quantized', 'latent', None, got 'weights'"),
    ],
)
@pytest.mark.parametrize("function", [line, surface])
def test_bad_settings_are_refused(function, settings, message):
    with pytest.raises(ValueError, match=message):
        function(convolutional(), RAGGED, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"span": (1.0, 0.0)}, r"span must be a number > 0 or two finite ends, the lower one first, got \(1.0, 0.0\)"),
        ({"span": (0.0, float("inf"))}, "span must be a number > 0 or two finite ends"),
        ({"span": (0, 1), "points": 1}, "points must be >= 2 between two ends, got 1"),
        ({"points": (3, 5, 7)}, "points must be a whole number or a tuple .*, got"),
        ({"tolerance": 0.0}, "tolerance must be between 0 and 1, a share"),
        ({"directions": ["random", "hessian"]}, "directions must be one of .* got 'random' and 'hessian'"),
        ({"batch_size": "fastest"}, "batch_size must be a whole number or None, got 'fastest'"),
        ({"metrics": {"val/top1": max}}, "metrics must have names of their own, without a slash, got 'val/top1'"),
        ({"metrics": {"accuracy": max}}, "metrics must have names of their own, .* got 'accuracy'"),
    ],
)
def test_bad_surface_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        surface(convolutional(), RAGGED, **settings)


# defects of other tools


def test_tg_a_grid_that_is_not_square_has_every_value_at_its_coordinates():
    along = [unit(1.0, 0.0), unit(0.0, 3.0)]
    found = surface(linear(), **PAIRED, directions=along, span=((-2.0, 0.5), (0.0, 3.0)), points=(6, 4))
    a, b = found.alphas[:, None], found.betas[None]
    assert found.alphas.tolist() == [-2, -1.5, -1, -0.5, 0, 0.5] and found.betas.tolist() == [0, 1, 2, 3]  # ymin is 0
    torch.testing.assert_close(found.loss, ((1 + a - 0.5) ** 2 + (-2 + 3 * b - 3) ** 2) / 2, rtol=1e-12, atol=0)
    assert found.centre == (4, 0) and float(found.loss[found.centre]) == pytest.approx((0.5**2 + 5**2) / 2)


def test_ml_the_plane_is_centred_and_no_column_is_shifted():
    found = surface(linear(), **PAIRED, directions=[unit(0.5, 2.0), unit(0.0, 1.0)], points=7)
    assert found.centre == (3, 3) and torch.equal(found.alphas, -found.alphas.flip(0))
    for j, beta in enumerate(found.betas.tolist()):
        column = [((0.5 + 0.5 * a) ** 2 + (-5 + 2 * a + beta) ** 2) / 2 for a in found.alphas.tolist()]
        assert found.loss[:, j].tolist() == pytest.approx(column)


def test_ls_and_pl_values_are_those_of_all_batches_unaltered_and_the_same_again():
    model = convolutional()
    first, again = (surface(network, RAGGED, points=5) for network in (model, convolutional()))
    assert torch.equal(first.loss, again.loss) and first.about["samples"] == 7
    top = first.loss == first.loss.max()
    i, j = top.nonzero()[0].tolist()
    step = {
        n: first.alphas[i] * a + first.betas[j] * b
        for (n, a), b in zip(first.direction(0).items(), first.direction(1).values(), strict=True)
    }
    assert float(Objective(model, RAGGED).evaluate(step).loss) == pytest.approx(float(first.loss.max()), rel=1e-12)


def test_ls_eigenvectors_are_walked_as_they_are():
    model = convolutional()
    top = top_eigenvalues(model, RAGGED, k=2, tol=1e-8)
    for directions in ("eigenvectors", top):
        found = line(model, RAGGED, directions=directions, span=1e-3, points=3, batchnorm="fixed")
        second = float(found.loss[0] - 2 * found.loss[1] + found.loss[2]) / 1e-6
        assert second == pytest.approx(float(top.values[0]), rel=1e-2)
    plane = surface(model, RAGGED, directions=top, points=3)
    lengths = [sum(float(p.square().sum()) for p in plane.direction(axis).values()) for axis in range(2)]
    assert lengths == pytest.approx([1, 1]) and plane.about["directions"] == "eigenvector 1 and eigenvector 2"


def test_the_gradient_is_the_slope():
    found = line(linear(), **PAIRED, directions="gradient", span=0.1, points=3)
    gradient = torch.tensor([0.5, -5.0]).double()
    assert torch.equal(found.direction()["weight"][0], gradient) and found.about["seed"] is None
    slope = float(found.loss[2] - found.loss[0]) / 0.2
    assert slope == pytest.approx(float(gradient.square().sum()))


def cut(output, target):
    """Fail beyond 0.4 on one side, be infinite beyond on the other, and below zero elsewhere."""
    value = float(output[0])
    if value > 1.4:
        raise RuntimeError("too far")
    return (output * 0).sum() + (float("inf") if value < 0.6 else -1.0)


def test_tg_what_fails_or_is_negative_is_measured_once_and_marked(tmp_path):
    calls = []

    def loss(output, target):
        calls.append(1)
        return cut(output, target)

    def found():
        return surface(
            linear(), EYE, loss=loss, directions=[unit(1.0, 0.0), unit(0.0, 1.0)], points=5, path=tmp_path / "s"
        )

    first = found()
    assert first.status.tolist() == [[FAILED] * 5] * 2 + [[COMPUTED] * 5] + [[FAILED] * 5] * 2
    assert first.loss[:2].eq(float("inf")).all() and first.loss[3:].isnan().all() and first.loss[2].eq(-1).all()
    assert first.about["failed"] == 20 and first.about["first_failure"] == "RuntimeError: too far"
    points = len(calls)
    again = found()
    assert len(calls) - points == points - 25  # what the centre costs, and no point
    assert torch.equal(first.status, again.status) and again.loss[3:].isnan().all()


def test_metrics_are_measured_beside_the_loss():
    metrics = {"mean": lambda output, target: output.mean(), "twice": lambda output, target: 2 * target.squeeze(1)}
    found = surface(linear(), **PAIRED, directions=[unit(1.0, 0.0), unit(0.0, 1.0)], points=3, metrics=metrics)
    a, b = found.alphas[:, None], found.betas[None]
    torch.testing.assert_close(found.metrics["mean"], ((1 + a) + (-2 + b)) / 2, rtol=1e-12, atol=1e-12)
    assert (found.metrics["twice"] == 3.5).all() and list(found.metrics) == ["mean", "twice"]


def test_the_standard_error_is_that_of_the_difference_to_the_centre():
    function = Objective(convolutional(), (X, Y))
    found = line(function, points=3)
    there = function.evaluate({n: 1.0 * part for n, part in found.direction().items()}).losses
    differences = there - function.evaluate().losses
    assert float(found.stderr[2]) == pytest.approx(float(differences.std() / 7**0.5))
    assert float(found.stderr[1]) == 0 and found.status.tolist() == [COMPUTED] * 3


def test_a_low_precision_surface_says_how_far_off_it_is():
    model = convolutional().float()
    low, full = (line(model, RAGGED, points=5, precision=precision) for precision in ("bf16", "fp32"))
    assert low.about["bf16_error"] == pytest.approx(float((low.loss - full.loss).abs().max()), rel=1e-3)
    assert 1e-5 < low.about["bf16_error"] < 0.2 and "bf16_error" not in full.about


def test_batchnorm_policies_side_by_side():
    found = batchnorm_check(convolutional(), RAGGED, span=0.5)
    for policy in ("fixed", "recomputed"):
        expected = line(convolutional(), RAGGED, span=0.5, points=5, batchnorm=policy).loss
        assert torch.equal(getattr(found, policy), expected)
    assert not torch.allclose(found.fixed, found.recomputed, rtol=1e-2) and "-0.5: " in repr(found)


def test_what_was_walked_is_drawn_again(tmp_path):
    model, other = convolutional(), convolutional(1)
    found = surface(model, RAGGED, points=3, metrics={"m": lambda output, target: output.mean()})
    kept = load(found.save(tmp_path / "s.nc"))
    assert not found.stored and torch.equal(kept.status, found.status)
    assert torch.equal(kept.metrics["m"], found.metrics["m"])
    drawn = [random_direction(coordinates(model), axis) for axis in range(2)]
    for steps in (found.directions(), kept.directions(model), kept.directions(Objective(model, RAGGED))):
        assert all(torch.equal(step[n], part) for step, d in zip(steps, drawn, strict=True) for n, part in d.items())
    again = surface(model, RAGGED, points=3, directions=kept.directions(model))
    assert torch.equal(again.loss, found.loss) and again.about["plane"] == found.about["plane"]
    theirs = surface(other, RAGGED, points=3, directions=found)  # the same plane through another network
    whole = load(found.save(tmp_path / "whole.nc", directions=True))
    assert torch.equal(surface(other, RAGGED, points=3, directions=whole).loss, theirs.loss)
    assert torch.equal(theirs.direction(1)["0.weight"], drawn[1]["0.weight"])
    with pytest.raises(ValueError, match="not stored here, a seed draws them .* save\\(path, directions=True\\)"):
        surface(other, RAGGED, points=3, directions=kept)
    with pytest.raises(ValueError, match="model must be the network that was measured, of fingerprint .* weights"):
        kept.directions(other)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    with pytest.raises(ValueError, match="model must be the network that was measured"):
        found.directions()


def test_what_no_seed_draws_is_stored_and_another_generator_refused(tmp_path):
    model = convolutional()
    found = surface(model, RAGGED, points=3, directions=["gradient", "random"])
    kept = load(found.save(tmp_path / "s.nc"))
    gradient, drawn = Objective(model, RAGGED).gradient(), random_direction(coordinates(model), 1)
    assert {len(stack) for stack in kept.stored.values()} == {1}
    steps = kept.directions(model)
    assert all(torch.equal(steps[0][name], part) for name, part in gradient.items())
    assert all(torch.equal(steps[1][name], part) for name, part in drawn.items())
    kept.about["generator"] = "another"
    with pytest.raises(ValueError, match="drawn on another generator, 'another', and here it is 'CPU, float64"):
        kept.directions(model)
    part = Objective(model, RAGGED, layers=["0"])  # what varies is part of the fingerprint
    found = line(part, points=3)
    assert list(found.direction()) == ["0.weight"] and list(found.directions(part)[0]) == ["0.weight"]


def test_a_file_that_holds_all_directions_under_their_former_name_gives_them():
    model = convolutional()
    found = surface(model, RAGGED, points=3)
    whole = replace(found, stored=found.stored | stacked(found.directions(), coordinates(model)))._groups()["/"]
    former = whole.rename({name: name.replace("stored:", "directions:") for name in whole.data_vars})
    steps = _read(xarray.DataTree.from_dict({"/": former})).directions()
    assert all(torch.equal(a[n], b[n]) for a, b in zip(steps, found.directions(), strict=True) for n in b)


def test_a_saved_surface_is_small_whatever_the_network(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1024), nn.Tanh(), nn.Linear(1024, 256), nn.Linear(256, 4))
    found = surface(model, (torch.randn(4, 8, 8), torch.arange(4)), points=25)
    assert sum(p.numel() for p in model.parameters()) > 300_000
    assert found.save(tmp_path / "s.nc").stat().st_size <= 50_000


@pytest.mark.parametrize("kind", ["attention", "W4A4", "batchnorm"])
def test_weights_of_a_large_network_are_made_when_they_are_read(kind, monkeypatch):
    torch.manual_seed(0)
    model, x = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval(), torch.randn(7, 3, 4)
    model, data = nn.Sequential(model, nn.Flatten(), nn.Linear(12, 3)), (x, Y)
    if kind == "W4A4":
        model = calibrate(quantize(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), "W4A4", first_last_bits=None), data)
    elif kind == "batchnorm":  # folded, which needs all of them at once
        model, data = convolutional(), RAGGED
    before, made = state(model), []
    expected = surface(model, data, points=3, directions=["gradient", "random"])
    for module in ("network", "replay"):
        monkeypatch.setattr(f"landscape.model.{module}.LARGE", 0)
    make = walking.Late.__call__
    monkeypatch.setattr(walking.Late, "__call__", lambda late: made.append(late) or make(late))
    found = surface(model, data, points=3, directions=["gradient", "random"])
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.accuracy, expected.accuracy, equal_nan=True)
    assert bool(made) == (kind != "batchnorm")
    assert_same(before, state(model))


# tiles


def test_a_surface_that_is_stopped_keeps_what_is_there(tmp_path):
    seen = []

    def watch(unfinished):
        seen.append(unfinished)
        if len(seen) == 2:
            raise KeyboardInterrupt

    settings = {"points": 7, "path": tmp_path / "s"}
    with pytest.raises(KeyboardInterrupt):
        surface(convolutional(), RAGGED, **settings, watch=watch)
    whole = surface(convolutional(), RAGGED, points=7)
    done = seen[-1].status == COMPUTED
    assert done.sum() == 32 and (seen[-1].status[~done] == PENDING).all() and seen[-1].loss[~done].isnan().all()
    assert torch.equal(seen[-1].loss[done], whole.loss[done]) and done[1:6, 1:6].all()  # from the model outwards
    assert torch.equal(surface(convolutional(), RAGGED, **settings).loss, whole.loss)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed|plane"),
        ({"span": 0.5}, "coordinates"),
        ({"batchnorm": "recomputed"}, "batchnorm"),
        ({"model": convolutional(1)}, "model|weight_norm|plane|centre_loss"),
        ({"data": [(X[:4], Y[:4]), (X[4:], Y[4:])]}, "data|batch_rows"),
        ({"data": [(X[:3], Y[:3]), (X[3:] + 1e-9, Y[3:])]}, "data"),
        ({"adaptive": True}, "tolerance"),
        ({"metrics": {"m": lambda output, target: output.mean()}}, "metrics"),
    ],
)
def test_another_surface_does_not_go_on_in_the_folder(change, named, tmp_path):
    settings = {"model": convolutional(), "data": RAGGED, "points": 3, "path": tmp_path}
    surface(**settings)
    with pytest.raises(
        ValueError, match=f"path must be a new folder, or the one of this very surface: .* ({named}) = "
    ):
        surface(**settings | change)


def test_last_digits_that_depend_on_the_machine_do_not_make_another_surface(tmp_path, monkeypatch):
    model, settings = convolutional(), {"points": 5, "path": tmp_path / "s"}
    first = surface(model, RAGGED, **settings)
    norm = Coordinates.norm
    monkeypatch.setattr(Coordinates, "norm", lambda self: norm(self) * (1 + 1e-15))
    manifest = tmp_path / "s" / "manifest.json"
    there = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(there | {"centre_loss": there["centre_loss"] * (1 + 1e-5)}))  # another machine
    again = surface(model, RAGGED, seed=np.int64(0), **settings)
    assert again.about["weight_norm"] != first.about["weight_norm"] and torch.equal(again.loss, first.loss)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="path must be a new folder or one of a surface, but .* holds 'thesis.tex'"):
        surface(convolutional(), RAGGED, points=3, path=tmp_path)


def logged(log, out, **settings):
    """Measure a surface with a loss that leaves a letter in a file at each call."""

    def loss(output, target):
        with log.open("a") as file:
            file.write("x" * (1 + 0 * int(output.sum())))  # what reads a number is called at every point
        return cross_entropy(output, target, reduction="none")

    surface(convolutional(), RAGGED, loss=loss, points=15, span=0.5, tolerance=0.002, **settings).save(out)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("adaptive", [False, True])
def test_killed_at_any_moment_it_goes_on_and_does_nothing_twice(adaptive, tmp_path):
    kills, log, done = [3, *torch.randint(20, 130, (3,)).tolist()], tmp_path / "calls", 0
    log.touch()
    for calls in (*kills, None):  # of the loss, until the kill
        began = log.stat().st_size
        child = forked(functools.partial(logged, adaptive=adaptive, path=tmp_path / "s"), log, tmp_path / "result.nc")
        while calls is not None and log.stat().st_size < began + calls:
            assert child.is_alive()
            time.sleep(1e-4)
        if calls is not None:
            child.kill()
        child.join()
        assert child.exitcode == (0 if calls is None else -signal.SIGKILL)
        left = len(list((tmp_path / "s").glob("*.npz")))
        assert left >= done + (calls is None or calls > 17 + 32)
        done = left
    logged(tmp_path / "calls of the whole", tmp_path / "whole.nc", adaptive=adaptive)
    found, whole = load(tmp_path / "result.nc"), load(tmp_path / "whole.nc")
    for values in ("loss", "accuracy", "stderr", "status"):
        assert np.array_equal(getattr(found, values), getattr(whole, values), equal_nan=True), kills
    # each start looks at the centre in 17 calls at most, each kill loses a tile of 16 points in two batches at most
    least = 2 * whole.about["evaluated"]
    calls = (tmp_path / "calls").stat().st_size
    assert least < (tmp_path / "calls of the whole").stat().st_size <= least + 17
    assert least <= calls <= least + 17 * (len(kills) + 1) + 2 * 16 * len(kills), kills
    assert json.loads((tmp_path / "s" / "manifest.json").read_text())["samples"] == 7


# adaptive


def plane_loss(function):
    """A loss over the plane of a linear model's two weights, through its output on the unit vectors."""
    return lambda output, target: function(output[0, 0], output[1, 0])


def over_plane(function, **settings):
    model = linear()
    model.weight.data.zero_()
    along = [unit(1.0, 0.0), unit(0.0, 1.0)]
    return surface(model, EYE, loss=plane_loss(function), directions=along, **{"points": 51} | settings)


SMOOTH = {
    "a valley": lambda a, b: 0.05 + (a + 0.5 * b) ** 2 + 0.1 * (b - 0.3 * a) ** 2,
    "rosenbrock": lambda a, b: 0.1 + (1 - a) ** 2 + 10 * (b - a**2) ** 2,
    "a soft kink": lambda a, b: 0.2 + (a - 0.2).relu() ** 1.5 + ((b + 0.3 * a) ** 2 + 0.03).sqrt(),
    "below zero": lambda a, b: (3 * a).sin() + b**2 - 0.5,
}


@pytest.mark.parametrize("name", SMOOTH)
def test_an_adaptive_surface_is_as_good_as_it_says_from_a_fifth_of_the_points(name):
    found, whole = over_plane(SMOOTH[name], adaptive=True), over_plane(SMOOTH[name])
    measured = found.status == COMPUTED
    assert torch.equal(found.loss[measured], whole.loss[measured]) and (found.status[~measured] == INTERPOLATED).all()
    assert int(measured.sum()) == found.about["evaluated"] == found.about["forward_passes"] <= 520
    log = found.about["interpolation_error_of"] == "log-loss"
    assert log == (name != "below zero")
    heights, truth = (found.loss.log(), whole.loss.log()) if log else (found.loss, whole.loss)
    error = float((heights - truth).abs().max() / (truth.max() - truth.min()))
    assert found.about["interpolation_held_out"] <= 0.01
    assert error <= min(0.015, 1.25 * found.about["interpolation_error"])
    assert found.stderr[~measured].isnan().all() and measured[found.centre]
    assert f"{int(measured.sum())} evaluated, interpolated to" in repr(found)


def test_an_adaptive_grid_need_not_be_square_nor_centred():
    settings = {"points": (41, 25), "span": ((-0.3, 1.0), (-2.0, 0.5))}
    found, whole = (over_plane(SMOOTH["a valley"], adaptive=adaptive, **settings) for adaptive in (True, False))
    assert (found.status == INTERPOLATED).sum() > 500
    assert float((found.loss.log() - whole.loss.log()).abs().max()) < 0.02 * float(whole.loss.log().max() + 3)


def test_stairs_do_not_fool_an_adaptive_surface():
    def stairs(a, b):
        return 1 + ((4 * a).floor() ** 2 + (4 * b).floor() ** 2) / 4

    found = over_plane(stairs, adaptive=True, points=35)
    assert (found.status == COMPUTED).all() and "interpolation_error" not in found.about
    assert torch.equal(found.loss, over_plane(stairs, points=35).loss)


@pytest.mark.parametrize("rate", [0.95, 0.997])
def test_jumps_that_interpolation_cannot_see_show_in_the_stated_error_or_are_measured(rate):
    def rough(a, b):
        return (a**2 + b**2 + 0.02 * (torch.sin(1e4 * a + 2e4 * b) > rate)).exp()

    points = 31 if rate == 0.95 else 51
    found, whole = over_plane(rough, adaptive=True, points=points), over_plane(rough, points=points)
    error = float((found.loss.log() - whole.loss.log()).abs().max() / (whole.loss.log().max() - whole.loss.log().min()))
    if rate == 0.95:
        assert error == 0 and (found.status == COMPUTED).all()
    else:  # so few that no tile in five meets a large one: those that are measured tell
        assert error > 0.01 >= found.about["interpolation_held_out"]
        assert 0.8 * error < found.about["interpolation_error"] < 1.25 * error


def test_next_to_what_is_not_finite_an_adaptive_surface_interpolates_nothing():
    def hole(a, b):
        return 1 + a**2 + b**2 + torch.where((a - 0.5) ** 2 + (b - 0.5) ** 2 < 0.05, float("nan"), 0.0)

    found, whole = over_plane(hole, adaptive=True), over_plane(hole)
    assert torch.equal(found.loss.isnan(), whole.loss.isnan()) and (found.status[whole.loss.isnan()] == FAILED).all()
    assert (found.status == INTERPOLATED).sum() > 1000 and "not finite" in repr(found)


def test_a_flat_surface_is_known_from_a_few_points():
    found = over_plane(lambda a, b: 0 * a + 2.0, adaptive=True)
    assert found.about["evaluated"] < 250 and found.about["interpolation_error"] < 1e-4
    torch.testing.assert_close(found.loss, torch.full((51, 51), 2.0).double())


def test_a_small_adaptive_surface_is_measured_whole():
    found = surface(convolutional(), RAGGED, points=3, adaptive=True)
    assert torch.equal(found.loss, surface(convolutional(), RAGGED, points=3).loss)


LONG = {
    "adaptive": {"points": 7, "adaptive": True},
    "eigenvectors": {"points": 3, "directions": "eigenvectors"},
    "gradient": {"points": 3, "directions": ["gradient", "random"]},
    "low precision": {"points": 3, "precision": "bf16"},
    "recomputed": {"points": 3, "batchnorm": "recomputed"},
}


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("name", LONG)
def test_no_surface_leaves_a_trace(name, interrupted, tmp_path):
    calls = []

    def loss(output, target):
        torch.rand(1)
        calls.append(1)
        if interrupted and len(calls) > 20:
            raise KeyboardInterrupt
        return cross_entropy(output, target)

    model = network("W4A4")
    before = state(model)
    with pytest.raises(KeyboardInterrupt) if interrupted else contextlib.nullcontext():
        surface(model, RAGGED, loss=loss, path=tmp_path / "s", **LONG[name])
    assert_same(before, state(model))


def test_a_tile_of_other_points_is_not_read(tmp_path):
    tiles = Tiles(tmp_path, {"seed": 0})
    points, values = torch.tensor([3, 5]), torch.rand(2, 3, dtype=torch.float64)
    tiles.write(0, points, values, "")
    read, failure = Tiles(tmp_path, {"seed": 0}).read(0, points)
    assert torch.equal(read, values) and failure == ""
    assert tiles.read(0, torch.tensor([3, 6])) is None and tiles.read(1, points) is None
