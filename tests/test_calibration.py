import copy

import pytest
import torch
from torch import nn

from saq_core import calibrate, evaluate, quantize
from saq_core.quantization.base import SAMPLE
from saq_core.quantization.quantizers import QUANTIZERS, input_quantizer, weight_quantizer

NAMES = ["lsq", "lsq+", "pact", "dorefa", "liq", "minmax"]
METHODS = ["mse", "minmax", "percentile"]


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seen(name, batches, bits=4, method=None, signed=None):
    quantizer = input_quantizer(name, bits, batches[0], signed=signed)
    quantizer.observe_()
    for x in batches:
        quantizer(x)
    quantizer.finish_(method=method)
    return quantizer


def reach(quantizer):
    """The lowest and the highest level."""
    q = quantizer(torch.tensor([[-1e6], [1e6]])).detach()
    return float(q.min()), float(q.max())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("per_channel", [False, True])
def test_eight_bits_after_calibration_alone_keep_the_function(trained, digits, name, per_channel, coarse):
    both = tuple(torch.cat([a, b]) for a, b in zip(digits.test, digits.val, strict=True))
    exact = evaluate(trained, both).accuracy
    quantized = calibrate(quantize(trained, "W8A8", quantizer=name, per_channel=per_channel), digits)
    assert abs(evaluate(quantized, both).accuracy - exact) <= 0.01
    trained.eval(), quantized.eval()
    y = trained(both[0])
    assert (quantized(both[0]) - y).norm() < (0.15 if name in ("dorefa", "pact") else 0.05) * y.norm()


@pytest.mark.parametrize("method", METHODS)
def test_the_method_reaches_every_activation_quantizer(trained, digits, method):
    quantized = calibrate(quantize(trained, "W32A4"), digits, batches=100, method=method)
    plain, largest = copy.deepcopy(trained).eval(), {}
    for name, module in plain.named_modules():
        if name.endswith("conv2"):
            module.register_forward_pre_hook(lambda _, args, name=name: largest.update({name: args[0].max().item()}))
    with torch.no_grad():
        plain(digits.probe[0])
    assert len(largest) == 3
    for name, top in largest.items():
        found = reach(quantized.get_submodule(name).input_quantizer)[1]
        assert found == pytest.approx(top, rel=1e-4) if method == "minmax" else 0.2 * top < found < top


def test_an_unknown_method_is_refused_before_anything_happens():
    quantized = quantize(nn.Sequential(nn.Linear(3, 2)), "W4A4", input_bits=4)
    with pytest.raises(ValueError, match="method must be one of .*'percentile'.*, got 'max'"):
        calibrate(quantized, noise(4, 3), method="max")
    with pytest.raises(RuntimeError, match="not calibrated"):
        quantized(noise(4, 3))
    with pytest.raises(ValueError, match="method must be one of"):
        weight_quantizer("lsq", 4, noise(4, 3), method="max")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("x", [noise(50, 40), noise(50, 40).relu(), nn.functional.gelu(noise(50, 40))])
def test_least_squares_is_no_worse_than_taking_in_everything(name, x):
    errors = {}
    for method in ("mse", "minmax"):
        errors[method] = float((seen(name, [x], bits=3, method=method)(x) - x).square().mean().detach())
    assert errors["mse"] <= errors["minmax"] * (1 + 1e-6)
    assert name == "minmax" or errors["mse"] < 0.9 * errors["minmax"]


A, B = noise(20, 100).double(), noise(20, 100, seed=1).double()
SHORT_TAIL = torch.where(A > 1, -0.2 * B.abs(), 3 * B.abs() ** 1.5)


@pytest.mark.parametrize("x", [SHORT_TAIL, -SHORT_TAIL, A.square(), A.abs() + 2])
@pytest.mark.parametrize("bits", [2, 3])
def test_the_search_of_two_ends_finds_what_a_grid_of_both_finds(x, bits):
    quantizer = seen("lsq+", [x], bits=bits)
    found = (quantizer(x) - x).square().mean()
    grid = torch.inf
    for low in torch.linspace(float(x.min()), float(x.max()), 41)[:-1]:
        high = torch.linspace(float(low), float(x.max()), 41)[1:].view(-1, 1, 1)
        s = (high - low) / (2**bits - 1)
        q = ((x - low) / s).clamp(0, 2**bits - 1).round() * s + low
        grid = min(grid, (q - x).square().mean((1, 2)).min())
    assert found <= 1.06 * grid


@pytest.mark.parametrize("name", [n for n in QUANTIZERS if n not in ("pact", "dorefa", "minmax")])
@pytest.mark.parametrize("per_channel", [False, True])
def test_weights_take_the_method_too(name, per_channel):
    w = noise(3, 800, 5, 5) * torch.tensor([0.1, 1.0, 5.0]).view(3, 1, 1, 1)
    w[0, 0, 0, 0] = 80.0
    clips = {
        method: next(weight_quantizer(name, 4, w, per_channel=per_channel, method=method).parameters()).flatten()
        for method in METHODS
    }
    assert (clips["mse"] <= clips["minmax"]).all() and (clips["percentile"] <= clips["minmax"]).all()
    assert clips["percentile"][0] < 0.5 * clips["minmax"][0]


@pytest.mark.parametrize("name", ["pact", "dorefa", "minmax"])
def test_weights_whose_range_is_found_in_every_pass_have_nothing_to_calibrate(name):
    w = noise(4, 6)
    first, second = (weight_quantizer(name, 4, w, method=method) for method in ("mse", "percentile"))
    assert torch.equal(first(w), second(w)) and not list(first.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_minmax_sees_the_extremes_that_the_sample_misses(name):
    batches = [noise(2, SAMPLE * 4, seed=k).clamp(-2, 2) for k in range(2)]
    batches[0][1, 17], batches[1][0, 5] = 9.0, -7.0
    low, high = reach(seen(name, batches, bits=8, method="minmax"))
    assert high == pytest.approx(9.0, rel=0.01)
    assert low == pytest.approx({"lsq+": -7.0, "minmax": -7.0, "lsq": -9 * 128 / 127}.get(name, -9.0), rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_percentiles_leave_outliers_out_at_both_ends_where_there_are_two(name):
    batches = [nn.functional.gelu(noise(4, SAMPLE * 4, seed=k)) for k in range(8)]
    for x in batches:
        x[0, 0], x[0, 1] = 50.0, -50.0  # one in 65,536 at each end, in every batch
    low, high = reach(seen(name, batches, bits=8, method="percentile"))
    everything = torch.cat([x.flatten() for x in batches])
    expected = float((everything if name in ("lsq+", "minmax") else everything.abs()).quantile(0.9999))
    assert high == pytest.approx(expected, rel=0.05)
    assert low == pytest.approx(-0.17 if name in ("lsq+", "minmax") else -high, abs=0.03)


def test_minmax_takes_everything_unless_told_otherwise():
    x = noise(20, 50)
    ends = {method: seen("minmax", [x], bits=2, method=method).high for method in (None, "minmax", "mse")}
    assert ends[None] == ends["minmax"] == x.max() and ends["mse"] < 0.8 * x.max()


@pytest.mark.parametrize("name", NAMES)
def test_a_sign_that_was_given_stays(name):
    x = noise(20, 50)
    assert seen(name, [x]).signed is True and seen(name, [x.relu()]).signed is False
    assert seen(name, [x], signed=False).signed is False and seen(name, [x.relu()], signed=True).signed is True


@pytest.mark.parametrize("name", ["lsq+", "minmax"])
@pytest.mark.parametrize("shift", [-5.0, 5.0])
def test_ranges_that_do_not_hold_zero(name, shift):
    x = noise(20, 50).clamp(-1, 1) + shift
    quantizer = seen(name, [x], bits=8)
    step = (2 if name == "lsq+" else 6) / 255
    assert (quantizer(x) - x).abs().max() <= 0.52 * step + 1e-3 * (name == "lsq+")
