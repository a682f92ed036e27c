"""The figures of FPQ: what is measured, on networks whose answer is known, and that a training is the catalogue's."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import xarray
from scipy import stats
from torch import nn

import saq_core
from figures import features, fpq, profiles, study

SMALL = dataclasses.replace(profiles.PROFILES["smoke"], name="small", changes=(("epochs", 1), ("batch_size", 256)))


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(24, 1, 8, 8, generator=generator), torch.arange(24) % 10


@pytest.fixture
def model(images):
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    ]
    twin = saq_core.quantize(nn.Sequential(*layers), "W3A4")
    return saq_core.calibrate(twin, images[0]).eval()


def test_scatter_of_a_linear_network_is_known_and_relative_to_its_scale(images):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), images[0]
    variance, relative = features.scatter(model, x, draws=400)
    true = (0.1 * x.std()).square() * model[1].weight.detach().square().sum(1).mean()
    assert variance == pytest.approx(float(true), rel=0.02)
    model[1].weight.data *= 3
    scaled = features.scatter(model, x, draws=400)
    assert scaled == pytest.approx((9 * variance, relative), rel=1e-4)


@torch.no_grad()
def test_weight_noise_is_half_a_step_in_training_mode_on_the_layers_with_feature_noise(model):
    first, second = model[0], model[2]
    assert list(features.noisy_layers(model)) == ["2"]
    clean, step = second.used_weight().detach(), float(second.weight_quantizer.step_size(second.weight))
    for factor, given in ((1.0, None), (0.5, {"2": 0.5})):
        with features.weight_noise(model, given):
            assert torch.equal(second.used_weight(), clean)
            model.train()
            assert torch.equal(first.used_weight(), first.used_weight())
            drawn = torch.stack([second.used_weight() - clean for _ in range(50)]) / (factor * step)
            assert drawn.abs().max() <= 0.5 + 1e-5 and float(drawn.var()) == pytest.approx(1 / 12, rel=0.03)
            model.eval()
    assert torch.equal(second.train().used_weight(), clean)


@torch.no_grad()
def test_features_are_what_goes_into_the_rounding_and_sizes_are_relative_to_it(model, images):
    x = images[0]
    found = features.features(model, ["2"], x)["2"]
    torch.testing.assert_close(found, torch.relu(model[0](x)))
    sizes = features.relative_sizes(model, x)
    layer = model[2]
    values = ((layer.input_quantizer, found), (layer.weight_quantizer, layer.weight))
    true = [float(q.step_size(v)) / 12**0.5 / float(q(v).square().mean().sqrt()) for q, v in values]
    assert list(sizes) == ["2"] and sizes["2"] == pytest.approx(tuple(true))
    assert not layer._forward_pre_hooks


def test_gradient_norms_leave_the_model_alone_and_see_the_noise_that_is_on(model, images):
    x, y = images
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    weights = [model[k].weight for k in (0, 2, 5)]
    true = torch.cat(
        [g.flatten() for g in torch.autograd.grad(nn.functional.cross_entropy(model(x), y), weights)]
    ).norm()
    clean = features.gradient_norm(model, x, y)
    assert clean == pytest.approx(float(true))
    noisy = {kind: features.gradient_norm(model, x, y, kind) for kind in fpq.NOISES}
    assert noisy["none"] == clean and len(set(noisy.values())) == len(fpq.NOISES)
    with features.weight_noise(model):  # of a training: it comes along with the copy
        assert features.gradient_norm(model, x, y) == noisy["weights"]
    with saq_core.feature_noise(model, 1.0):
        assert features.gradient_norm(model, x, y) == noisy["features"]
    assert not model.training and weights[0].grad is None and torch.equal(torch.get_rng_state(), random)
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items() if isinstance(v, torch.Tensor))


def test_distance_is_wassersteins_in_units_of_the_deviation():
    random = np.random.default_rng(0)
    true, other = random.normal(size=(3, 50)), random.exponential(size=(3, 50))
    found = [stats.wasserstein_distance(a, b) / a.std() for a, b in zip(true, other, strict=True)]
    assert features.distance(true, other) == pytest.approx(found)
    assert features.distance(true, 2 + true[:, ::-1]) == pytest.approx(2 / true.std(1))


def test_shift_of_the_means_is_relative_to_them():
    before, after = np.array([[3.0, 4.0], [1.0, 1.0]]), np.array([[3.0, 4.5], [1.0, 1.0]])  # (seed, channel)
    values = np.zeros((2, 3, 2, 2))
    values[:, 1, 0], values[:, 1, 1] = before, after
    array = xarray.DataArray(values, {"statistic": list(fpq.STATISTICS)}, ("seed", "statistic", "when", "channel"))
    assert fpq.mean_shift(array) == pytest.approx([10.0, 0.0])


def test_epochs_go_evenly_from_before_to_the_last():
    assert fpq.epochs_of(profiles.PROFILES["cpu"]) == [0, 3, 6, 9, 12, 15]
    assert fpq.epochs_of(profiles.PROFILES["smoke"]) == [0, 2]
    assert fpq.epochs_of(SMALL) == [0, 1]


def test_a_training_that_is_measured_is_the_catalogues(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "RUNS", tmp_path)
    found = fpq.over_training(
        SMALL, "fpq", "W4A4", 0, [0, 1], lambda model: {"weight": model.fc.weight.detach().clone()}
    )
    assert not torch.equal(*found["weight"])
    assert torch.equal(found["weight"][1], SMALL.network("fpq", "W4A4", 0).fc.weight)
    noisy = fpq.over_training(
        SMALL, "sgd", "W4A4", 0, [1], lambda model: {"weight": model.fc.weight}, features.weight_noise
    )
    assert not torch.equal(noisy["weight"][0], SMALL.network("sgd", "W4A4", 0).fc.weight)


def test_numbers_are_shown_to_two_digits_of_their_error():
    assert study.mean_shown(np.array([-60.0, -70.0, -80.0]), "+") == "−70.0 ± 5.8"
    assert study.mean_shown(np.array([0.0101, 0.0103])) == "0.01020 ± 0.00010"
    assert study.mean_shown(np.array([1.5])) == "1.500 ± nan"
