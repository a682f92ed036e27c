import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from saq_core import LIQ, LSQ
from saq_core.quantizers import Unquantized, round_ste, scale_gradient

W = torch.tensor([-1.3, -0.5, -0.1, 0.0, 0.2, 0.9])
A = torch.tensor([-0.5, 0.0, 0.2, 0.5, 0.9, 3.0])
CASES = [(LSQ, 2, True), (LSQ, 4, True), (LSQ, 3, False), (LIQ, 1, True), (LIQ, 4, True), (LIQ, 3, False)]


def with_step(quantizer, value):
    next(quantizer.parameters()).data.fill_(value)
    return quantizer


def close(a, b, atol=1e-6):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), atol=atol, rtol=0)


def test_liq_weights_take_the_values_of_the_papers_code():
    close(with_step(LIQ(2), 1.0)(W), [-1, -1 / 3, -1 / 3, 1 / 3, 1 / 3, 1])
    close(with_step(LIQ(3), 0.8)(W), [-0.8, -0.8 * 5 / 7, -0.8 / 7, 0.8 / 7, 0.8 / 7, 0.8])


def test_liq_unsigned_activations_take_the_values_of_the_papers_code():
    close(with_step(LIQ(2, signed=False), 1.0)(A), [0, 0, 1 / 3, 2 / 3, 1, 1])


def test_liq_normalises_with_the_unbiased_moments_and_brings_them_back():
    w = torch.randn(4, 3, 3, 3, dtype=torch.float64) * 0.2 + 0.05
    plain = with_step(LIQ(3, normalise=True).double(), 1.5)
    literal = with_step(LIQ(3, normalise=True, rescale=False).double(), 1.5)
    mean, std = w.mean(), w.var(correction=1).sqrt()
    u = ((w - mean) / std / 1.5).clamp(-1, 1)
    expected = 1.5 * (2 * ((u + 1) / 2 * 7).round() / 7 - 1)
    close(literal(w), expected, 1e-12)
    close(plain(w), expected * std + mean, 1e-12)
    close(plain.step_size(w).flatten(), [2 * 1.5 / 7 * float(std)], 1e-12)
    assert (plain.weight_units, literal.weight_units) == ("plain", "normalised")


def test_liq_gradients_follow_the_papers_formulas():
    x = torch.tensor([-1.3, -0.5, 0.2, 0.9], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)
    quantizer = with_step(LIQ(2).double(), 1.0)
    q = quantizer(x)
    q.backward(g)
    close(x.grad, g * (x.abs() <= 1), 1e-12)
    inside = (q - x).detach()
    expected = g * torch.where(x.abs() <= 1, inside, x.sign())
    close(quantizer.clip.grad, expected.sum().item(), 1e-12)


def test_lsq_gradients_follow_the_papers_formulas():
    # x/s = 1.2 and -2.3 lie outside -2 … 1 although 1.2 rounds to 1: the mask is taken before rounding.
    x = torch.tensor([-2.3, -1.4, 0.3, 1.2], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)
    quantizer = with_step(LSQ(2).double(), 1.0)
    quantizer(x).backward(g)
    close(x.grad, [0, -2, 3, 0])
    per_value = torch.tensor([-2.0, -1 + 1.4, 0 - 0.3, 1.0], dtype=torch.float64)
    close(quantizer.step.grad, ((g * per_value).sum() / math.sqrt(4 * 1)).item(), 1e-12)


@pytest.mark.parametrize(
    "quantizer, shape, values, high",
    [
        (LSQ(4), (6, 5, 3, 3), 270, 7),
        (LSQ(4, shape=(6, 1, 1, 1)), (6, 5, 3, 3), 45, 7),
        (LSQ(4, signed=False, activation=True), (8, 5, 2, 2), 20, 15),
    ],
)
def test_lsq_scales_the_gradient_of_its_step_by_values_and_levels(quantizer, shape, values, high):
    x = torch.randn(shape)
    with_step(quantizer, 0.3)(x).sum().backward()
    step = torch.full_like(quantizer.step, 0.3, requires_grad=True)
    low = -8 if quantizer.signed else 0
    (round_ste((x / step).clamp(low, high)) * step).sum().backward()
    torch.testing.assert_close(quantizer.step.grad, step.grad / math.sqrt(values * high))


def test_gradient_scale_leaves_the_value_and_scales_the_gradient():
    s = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    scaled = scale_gradient(s, 0.1)
    scaled.backward()
    assert scaled.item() == pytest.approx(0.3, abs=1e-15) and float(s.grad) == pytest.approx(0.1)


def test_lsq_step_can_be_negative_or_zero_without_harm():
    x = torch.randn(20)
    torch.testing.assert_close(with_step(LSQ(4), -0.3)(x), with_step(LSQ(4), 0.3)(x))
    assert with_step(LSQ(4), 0.0)(x).isfinite().all()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(CASES), st.floats(0.05, 3), st.integers(0, 10_000))
def test_quantizers_are_projections_on_few_levels(case, size, seed):
    kind, bits, signed = case
    quantizer = with_step(kind(bits, signed=signed).double(), size)
    x = (torch.randn(300, generator=torch.Generator().manual_seed(seed)).double() * 2).sort().values
    q = quantizer(x).detach()
    step = quantizer.step_size(x)
    torch.testing.assert_close(quantizer(q).detach(), q, atol=1e-12, rtol=0)
    assert len((q / step * 2).round().unique()) <= 2**bits
    assert (q.diff() >= -1e-12).all()
    inside = (x >= q.min()) & (x <= q.max())
    assert ((q - x).abs()[inside] <= step / 2 + 1e-9).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_liq_signed_activations_keep_zero(bits):
    quantizer = with_step(LIQ(bits, signed=True, activation=True), 1.0)
    q = quantizer(torch.linspace(-2, 2, 401)[:, None])
    assert len(q.unique()) <= 2**bits
    if bits > 1:
        assert not quantizer(torch.zeros(1, 1)).any()
    torch.testing.assert_close(q.max(), -q.min())


def test_calibration_finds_the_step_of_least_squared_error():
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    quantizer = LSQ(2, signed=False)
    quantizer.calibrate_(x.abs())
    found = (quantizer(x.abs()) - x.abs()).square().mean()
    errors = [(with_step(quantizer, s)(x.abs()) - x.abs()).square().mean() for s in torch.linspace(0.1, 2, 60)]
    assert found <= min(errors) * 1.02


def test_per_channel_calibration_equals_one_per_channel():
    w = torch.randn(3, 4, 3, 3) * torch.tensor([0.1, 1.0, 5.0]).view(3, 1, 1, 1)
    for kind in (LSQ, LIQ):
        together = kind.for_weight(3, w, per_channel=True)
        for k in range(3):
            torch.testing.assert_close(together(w)[k], kind.for_weight(3, w[k : k + 1])(w[k : k + 1])[0])


def test_calibration_of_zeros_stays_finite():
    quantizer = LSQ(4)
    quantizer.calibrate_(torch.zeros(5))
    assert float(quantizer.step_size(torch.zeros(5))) > 0


def test_double_backward_is_symmetric():
    w = torch.randn(12, dtype=torch.float64)
    quantizer = LSQ(3).double()
    quantizer.calibrate_(w)

    def loss(v, s):
        q = torch.func.functional_call(quantizer, {"step": s}, (v,))
        return (q**3).sum() + (q[:-1] * q[1:]).sum()

    step = quantizer.step.detach()
    flat = torch.autograd.functional.hessian(lambda v: loss(v[:-1], v[-1]), torch.cat([w, step[None]]))
    # The gradient factor scales the row of the step, so only the weights' block is the Hessian of something.
    close((flat - flat.T)[:-1, :-1].abs().max(), 0.0, 1e-12)
    assert flat[:-1, :-1].abs().max() > 0


@pytest.mark.parametrize("bits", [0, 33, -1, 2.5, True, "4"])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(ValueError, match="bits must be a whole number from 1 to 32"):
        LSQ(bits)


def test_signed_one_bit_lsq_is_refused_at_once_and_by_calibration():
    with pytest.raises(ValueError, match='quantizer="liq"'):
        LSQ(1)
    quantizer = LSQ(1, signed=None, activation=True)
    quantizer.observe_()
    quantizer(torch.randn(4, 3))
    with pytest.raises(ValueError, match='quantizer="liq"'):
        quantizer.finish_()


def test_observed_values_that_are_not_finite_are_refused_and_change_nothing():
    quantizer = with_step(LSQ(4, signed=False, activation=True), 0.3)
    quantizer.observe_()
    quantizer(torch.tensor([[1.0, -torch.inf]]))
    with pytest.raises(ValueError, match="activations must be finite to calibrate on, got NaN or infinity"):
        quantizer.finish_()
    assert quantizer.signed is False and float(quantizer.step.detach()) == pytest.approx(0.3)
    assert quantizer(torch.ones(1, 1)).item() == pytest.approx(0.9)  # no longer observing


@pytest.mark.parametrize("bits, trained", [(2, True), (7, True), (8, False), (16, False)])
def test_lsq_trains_its_step_below_eight_bits_only(bits, trained):
    quantizer = LSQ.for_weight(bits, W)
    assert quantizer.step.requires_grad is trained
    assert LIQ(bits).clip.requires_grad


def test_uncalibrated_activations_are_refused():
    with pytest.raises(RuntimeError, match="calibrate"):
        LSQ(4, signed=None, activation=True)(torch.randn(2, 3))


def test_state_dict_carries_sign_and_refuses_other_bits():
    source = LIQ(4, signed=False, activation=True)
    target = LIQ(4, signed=None, activation=True)
    target.load_state_dict(source.state_dict())
    assert target.signed is False
    with pytest.raises(ValueError, match="bits must agree"):
        LIQ(3, signed=None, activation=True).load_state_dict(source.state_dict())


def test_quantizers_announce_themselves():
    for module in (LSQ(4), LIQ(4)):
        assert isinstance(module, nn.Module) and module.is_quantizer
    assert not Unquantized().is_quantizer  # it rounds nothing
