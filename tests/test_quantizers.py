import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from saq_core import LIQ, LSQ, PACT, DoReFa, LSQPlus, MinMax
from saq_core.quantization.base import Unquantized
from saq_core.quantization.functional import round_ste, scale_gradient
from saq_core.quantization.quantizers import AsymmetricLSQ, input_quantizer, weight_quantizer

W = torch.tensor([-1.3, -0.5, -0.1, 0.0, 0.2, 0.9])
A = torch.tensor([-0.5, 0.0, 0.2, 0.5, 0.9, 3.0])
NAMES = ["lsq", "lsq+", "pact", "dorefa", "liq", "minmax"]
ROLES = ["weight", "weight per channel", "signed input", "unsigned input"]
ONE_BIT_IS_REFUSED = {(name, role) for name in ("lsq", "lsq+", "minmax") for role in ROLES[:3]}
CASES = [
    (name, role, bits)
    for name in NAMES
    for role in ROLES
    for bits in (1, 2, 3, 4, 8)
    if bits > 1 or (name, role) not in ONE_BIT_IS_REFUSED
]


def values(role, seed=0, dtype=torch.float64):
    """Weights of four filters of unequal size, or a batch of inputs."""
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    if "weight" in role:
        return x * torch.tensor([0.1, 0.3, 1.0, 0.02], dtype=dtype).view(4, 1, 1, 1)
    return x.relu() if role.startswith("unsigned") else x


def calibrated(name, role, bits, x):
    if "weight" in role:
        return weight_quantizer(name, bits, x, per_channel="channel" in role)
    quantizer = input_quantizer(name, bits, x)
    quantizer.observe_()
    quantizer(x)
    quantizer.finish_()
    return quantizer


def groups(role, *tensors):
    """Split tensors into the parts that share a step."""
    return list(zip(*(t.flatten(1) if "channel" in role else t.flatten()[None] for t in tensors), strict=True))


def normalises(name, role, bits):
    """Whether the weights are put into other units by themselves, so that a second quantization is of other values."""
    return "weight" in role and (name == "liq" or name in ("pact", "dorefa") and bits > 1)


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
    quantizer = with_step(LIQ(3, normalise=True).double(), 1.5)
    mean, std = w.mean(), w.var(correction=1).sqrt()
    u = ((w - mean) / std / 1.5).clamp(-1, 1)
    expected = 1.5 * (2 * ((u + 1) / 2 * 7).round() / 7 - 1)
    close(quantizer(w), expected * std + mean, 1e-12)
    close(quantizer.step_size(w).flatten(), [2 * 1.5 / 7 * float(std)], 1e-12)


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


@pytest.mark.parametrize(("signed", "clip"), [(False, 1.5), (False, -0.8), (True, 1.5), (True, -0.8)])
def test_liq_gradients_of_activations_and_of_any_clip_follow_the_papers_formulas(signed, clip):
    """Q/|c| - x/|c| inside, 1 above and 0 (signed: -1) below, by the sign of c, whose absolute value is used."""
    x = torch.tensor([-2.0, -0.6, 0.31, 0.77, 1.6, 9.0], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([1.0, -2.0, 3.0, 0.5, 0.7, -1.1], dtype=torch.float64)
    quantizer = with_step(LIQ(3, signed=signed, activation=True).double(), clip)
    q, c = quantizer(x), abs(clip)
    q.backward(g)
    low = -c if signed else 0.0
    inside = (x.detach() >= low) & (x.detach() <= c)
    close(x.grad, g * inside, 1e-12)
    outside = torch.where(x.detach() > c, 1.0, -1.0 if signed else 0.0)
    per_value = torch.where(inside, (q - x).detach() / c, outside)
    close(quantizer.clip.grad, ((g * per_value).sum() * math.copysign(1, clip)).item(), 1e-12)


def test_liq_gradients_of_normalised_weights_follow_the_papers_formulas():
    """dL/dw = mask·g and dL/dc = std·Σ g·(Q/c - ŵ/c inside, else sign ŵ): the papers' times std, as Q is."""
    w = (torch.randn(4, 2, 3, 3, dtype=torch.float64) * 0.2 + 0.05).requires_grad_()
    g = torch.randn(w.shape, dtype=torch.float64)
    quantizer = with_step(LIQ(3, normalise=True).double(), 1.5)
    q = quantizer(w)
    q.backward(g)
    mean, std = w.detach().mean(), w.detach().std()
    place = (w.detach() - mean) / std
    inside = place.abs() <= 1.5
    assert 0 < inside.sum() < inside.numel()
    close(w.grad, g * inside, 1e-12)
    levels = (q.detach() - mean) / std / 1.5
    expected = (std * g * torch.where(inside, levels - place / 1.5, place.sign())).sum()
    close(quantizer.clip.grad, expected.item(), 1e-12)


@pytest.mark.parametrize("kind", [LSQ, AsymmetricLSQ])
def test_the_step_has_the_gradient_of_the_surrogate_whose_rounding_is_frozen(kind):
    """Central differences of f(s) = Σ g·(clip(x/s + z + r) - z)·s, r what rounding adds at s, frozen."""
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(1, 400, dtype=torch.float64).uniform_(-0.5, 1.9, generator=generator)
    g = torch.randn(1, 400, dtype=torch.float64, generator=generator)
    quantizer = kind(4, activation=True, **({"signed": True} if kind is LSQ else {})).double()
    quantizer.calibrate_(x[x.abs() < 1.2])  # a tenth and more lies outside
    low, high = quantizer._range()
    s, z = quantizer.step.detach().clone(), getattr(quantizer, "zero", torch.zeros(()))
    place = x / s + z
    inside = (place >= low) & (place <= high)
    assert 0.05 < 1 - inside.double().mean() < 0.9 and (kind is LSQ or z != 0)
    added = place.round() - place

    def surrogate(step):
        level = torch.where(inside, x / step + z + added, place.clamp(low, high))
        return (g * (level - z) * step).sum()

    h = 1e-6
    difference = (surrogate(s + h) - surrogate(s - h)) / (2 * h) / math.sqrt(x.numel() * high)
    quantizer(x).backward(g)
    assert float(quantizer.step.grad) == pytest.approx(float(difference), rel=1e-6)


def test_lsq_gradients_follow_the_papers_formulas():
    # x/s = 1.2 and -2.3 lie outside -2 … 1 although 1.2 rounds to 1: the mask is taken before rounding.
    x = torch.tensor([-2.3, -1.4, 0.3, 1.2], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)
    quantizer = with_step(LSQ(2).double(), 1.0)
    quantizer(x).backward(g)
    close(x.grad, [0, -2, 3, 0])
    per_value = torch.tensor([-2.0, -1 + 1.4, 0 - 0.3, 1.0], dtype=torch.float64)
    close(quantizer.step.grad, ((g * per_value).sum() / math.sqrt(4 * 1)).item(), 1e-12)


@pytest.mark.parametrize("signed, low, high", [(True, -4, 3), (False, 0, 7)])
def test_lsqplus_gradients_follow_the_papers_formulas(signed, low, high):
    quantizer = with_step(LSQPlus(3, signed=signed, activation=True).double(), 0.4)
    quantizer.offset.data.fill_(0.15)
    x = torch.linspace(-3, 4, 14, dtype=torch.float64).view(2, 7).requires_grad_(True)
    g = torch.randn(2, 7, dtype=torch.float64)
    q = quantizer(x)
    q.backward(g)
    v = ((x - 0.15) / 0.4).detach()
    inside = (v > low) & (v < high)
    close(q.detach(), v.clamp(low, high).round() * 0.4 + 0.15, 1e-12)
    close(x.grad, g * inside, 1e-12)
    factor = 1 / math.sqrt(7 * high)
    close(quantizer.step.grad, factor * (g * torch.where(inside, v.round() - v, v.clamp(low, high))).sum(), 1e-12)
    close(quantizer.offset.grad, factor * (g * ~inside).sum(), 1e-12)


def test_lsqplus_keeps_the_short_tail_of_gelu_that_lsq_pays_a_sign_for():
    x = nn.functional.gelu(torch.randn(20, 500, generator=torch.Generator().manual_seed(0)))
    error = {n: float((calibrated(n, "input", 3, x)(x) - x).square().mean().detach()) for n in ("lsq", "lsq+")}
    assert error["lsq+"] < 0.5 * error["lsq"]


@pytest.mark.parametrize("signed", [True, False])
def test_pact_gradient_of_the_clip_comes_from_clipped_values_alone(signed):
    quantizer = with_step(PACT(3, signed=signed, activation=True).double(), 1.5)
    x = torch.tensor([[-2.0, -1.5, -0.4, 0.3, 0.7, 1.5, 3.0]], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([[1.0, -2.0, 3.0, 0.5, 0.25, 4.0, 8.0]], dtype=torch.float64)
    q = quantizer(x)
    q.backward(g)
    n, low = (3, -1.5) if signed else (7, 0.0)
    y = x.detach().clamp(low, 1.5)
    close(q.detach(), (y * n / 1.5).round() * 1.5 / n, 1e-12)
    close(x.grad, g * ((x > low) & (x < 1.5)), 1e-12)  # at the clip itself the gradient is the clip's
    close(quantizer.clip.grad, 12 - (1.0 - 2.0) * signed, 1e-12)


def test_dorefa_weights_are_the_papers_in_units_of_the_weights():
    quantizer = DoReFa(3).double()
    w = W.double().requires_grad_(True)
    largest = w.detach().abs().max().tanh()
    u = w.detach().tanh() / largest
    q = 2 * ((u + 1) / 2 * 7).round() / 7 - 1
    factor = (w.detach() * q).sum() / (q * q).sum()
    g = torch.randn(6, dtype=torch.float64)
    out = quantizer(w)
    out.backward(g)
    close(out.detach(), factor * q, 1e-12)
    assert ((q - u).abs() <= 1 / 7 + 1e-12).all()  # the half step holds after tanh
    close(w.grad, g * factor * (1 - w.detach().tanh() ** 2) / largest, 1e-12)
    close(quantizer.step_size(w), (factor * 2 / 7).view(1), 1e-12)


def test_one_bit_dorefa_weights_are_their_signs_times_the_mean():
    w = W.double().requires_grad_(True)
    out = DoReFa(1).double()(w)
    out.backward(torch.arange(6.0))
    close(out.detach(), torch.tensor([-0.5, -0.5, -0.5, 0.5, 0.5, 0.5], dtype=torch.float64), 1e-7)
    close(w.grad, torch.arange(6.0))


def test_dorefa_inputs_beyond_one_survive_and_their_range_is_never_trained():
    x = A.clamp_min(0)[None] * 4
    quantizer = input_quantizer("dorefa", 4, x)
    quantizer.observe_()
    quantizer(x)
    quantizer.finish_(method="minmax")
    close(quantizer(x), (x / 12 * 15).round() / 15 * 12)
    assert not list(quantizer.parameters()) and float(quantizer.clip) == 12


@pytest.mark.parametrize("low, high, zero", [(-1.0, 2.0, 5), (-0.17, 3.0, 1), (0.0, 3.0, 0), (-3.0, 0.0, 15)])
def test_minmax_inputs_are_affine_with_a_level_at_zero(low, high, zero):
    quantizer = MinMax(4, activation=True).double()
    quantizer.low.fill_(low)
    quantizer.high.fill_(high)
    x = torch.linspace(-4.003, 4.001, 800, dtype=torch.float64).requires_grad_(True)
    s = (high - low) / 15
    q = quantizer(x)
    close(q.detach(), s * ((x.detach() / s + zero).clamp(0, 15).round() - zero), 1e-12)
    q.sum().backward()
    close(x.grad, ((x / s + zero >= 0) & (x / s + zero <= 15)).double())
    assert not quantizer(torch.zeros(3, dtype=torch.float64)).any()


def test_minmax_weights_follow_the_weights_with_nothing_learned():
    quantizer = weight_quantizer("minmax", 3, W)
    assert not quantizer.state_dict().keys() - {"_extra_state"}
    for w in (W, W * 5):
        v = w.clone().requires_grad_(True)
        s = w.abs().max() / 3
        out = quantizer(v)
        close(out.detach(), (w / s).round() * s)
        out.sum().backward()
        close(v.grad, torch.ones(6))  # none is clipped, the largest included


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


@pytest.mark.parametrize("name, role, bits", CASES)
def test_quantizers_are_monotone_and_have_few_levels_half_a_step_away(name, role, bits):
    x = values(role)
    quantizer = calibrated(name, role, bits, x)
    q = quantizer(x).detach()
    assert q.dtype == x.dtype and q.isfinite().all()
    for part, levels, step in groups(role, x, q, quantizer.step_size(x).expand_as(x)):
        assert 1 < len(levels.unique()) <= 2**bits
        assert (levels[part.argsort()].diff() >= -1e-12).all()
        gaps = levels.unique().diff()
        close(gaps / step[0], (gaps / step[0]).round(), 1e-6)  # levels lie whole steps apart
        if "weight" not in role or name not in ("pact", "dorefa"):  # their weights pass through tanh first
            inside = (part >= levels.min()) & (part <= levels.max())
            assert ((levels - part).abs()[inside] <= step[0] / 2 + 1e-9).all()


@pytest.mark.parametrize("name, role, bits", [case for case in CASES if not normalises(*case)])
def test_quantizers_are_idempotent_at_a_fixed_step(name, role, bits):
    x = values(role)
    quantizer = calibrated(name, role, bits, x)
    q = quantizer(x).detach()
    close(quantizer(q).detach(), q, 1e-9)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["lsq", "lsq+", "pact", "liq"]), st.sampled_from(ROLES[2:]), st.floats(0.05, 3), st.integers(2, 5)
)
def test_learned_inputs_are_projections_wherever_training_takes_them(name, role, size, bits):
    x = values(role)
    quantizer = with_step(calibrated(name, role, bits, x), size)
    q, step = quantizer(x).detach(), quantizer.step_size(x)
    close(quantizer(q).detach(), q, 1e-9)
    assert len(q.unique()) <= 2**bits
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


@pytest.mark.parametrize("method", ["mse", "minmax", "percentile"])
def test_calibration_of_zeros_leaves_a_step_that_training_can_move(method):
    quantizer = LSQ(4)
    quantizer.calibrate_(torch.zeros(5), method)
    assert float(quantizer.step_size(torch.zeros(5))) == pytest.approx(1 / 7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("role", ROLES[1:])
def test_hessian_over_values_and_learned_parameters_is_symmetric(name, role):
    x = values(role)[:, :1, :2, :2]
    quantizer = calibrated(name, role, 3, x)
    x = x * 1.5  # some are beyond the range
    state = {key: p.detach() for key, p in quantizer.named_parameters()}
    sizes = [x.numel(), *(p.numel() for p in state.values())]

    def loss(flat):
        first, *rest = flat.split(sizes)
        learned = {key: part.view_as(p) for (key, p), part in zip(state.items(), rest, strict=True)}
        q = torch.func.functional_call(quantizer, learned, (first.view_as(x),)).flatten()
        return (q**3).sum() + (q[:-1] * q[1:]).sum()

    point = torch.cat([x.flatten(), *(p.flatten() for p in state.values())])
    hessian = torch.autograd.functional.hessian(loss, point)
    close(hessian, hessian.T, 1e-12 * float(hessian.abs().max()))
    n = x.numel()
    assert hessian[:n, :n].any() and (not state or hessian[:n, n:].any())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("role", ROLES)
def test_gradients_of_gradients_agree_with_torch_func(name, role):
    x = values(role)
    quantizer = calibrated(name, role, 4, x)
    direction = torch.randn_like(x)

    def loss(v):
        return (quantizer(v) ** 3).sum()

    v = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(v), v, create_graph=True)
    (product,) = torch.autograd.grad((gradient * direction).sum(), v)
    close(torch.func.grad(loss)(x), gradient, 1e-12)
    close(torch.func.grad(lambda u: (torch.func.grad(loss)(u) * direction).sum())(x), product, 1e-12)
    assert product.any()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_for_each_sample_by_vmap_are_those_of_a_loop(name):
    batch = torch.stack([values("weight", seed) for seed in range(3)])
    quantizer = calibrated(name, "weight", 4, batch[0])
    gradient = torch.func.grad(lambda v: (quantizer(v) ** 3).sum())
    close(torch.func.vmap(gradient)(batch), torch.stack([gradient(v) for v in batch]), 1e-12)


def test_all_quantizers_compile_into_one_graph():
    x, w = values("signed input", dtype=torch.float32), values("weight", dtype=torch.float32)
    pairs = [(calibrated(n, "weight", 3, w), calibrated(n, "signed input", 3, x)) for n in NAMES]

    def product(w, x):
        return sum((f(w) * g(x)).sum() for f, g in pairs)

    a, b = (w.clone().requires_grad_(True) for _ in range(2))
    product(a, x).backward()
    torch.compile(product, backend="aot_eager", fullgraph=True)(b, x).backward()
    torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("role", ROLES)
def test_hard_values_do_no_harm(name, role):
    x = values(role, dtype=torch.float32)
    zeros, constant = torch.zeros_like(x), torch.full_like(x, 0.7)
    assert calibrated(name, role, 4, zeros)(zeros).abs().max() <= 0.01
    error = (calibrated(name, role, 4, constant)(constant) - 0.7).abs().max()
    assert error <= (0.02 if name == "lsq" and "input" in role else 1e-3)  # 80 clips, none of which may fit
    quantizer = calibrated(name, role, 4, x)
    holed = x.clone()
    holed[1, 0, 0, 0] = torch.nan
    assert quantizer(holed)[1, 0, 0, 0].isnan()
    for key, parameter in quantizer.named_parameters():
        before = quantizer(x)
        if key != "offset":
            parameter.data.neg_()
            assert torch.equal(quantizer(x), before)
            for tiny in (0.0, 1e-30, -1e-12):
                parameter.data.fill_(tiny)
                for part, q in groups(role, x, quantizer(x).detach()):
                    assert (q[part.argsort()].diff() >= 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("method", ["mse", "minmax", "percentile"])
def test_bfloat16_stays_bfloat16(name, role, method):
    x = values(role, dtype=torch.float32).bfloat16()  # its own draws differ between versions of torch
    if "weight" in role:
        quantizer = weight_quantizer(name, 4, x, per_channel="channel" in role, method=method)
    else:
        quantizer = input_quantizer(name, 4, x)
        quantizer.observe_()
        quantizer(x)
        quantizer.finish_(method=method)
    q = quantizer(x)
    assert q.dtype == torch.bfloat16 and len(q.unique()) <= (64 if "channel" in role else 16)
    assert (q - x).float().norm() < 0.25 * x.float().norm()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("role", ROLES)
def test_state_dict_carries_everything(name, role):
    x = values(role)
    source = calibrated(name, role, 4, x)
    if "weight" in role:
        target = weight_quantizer(name, 4, x * 3 + 1, per_channel="channel" in role)
    else:
        target = input_quantizer(name, 4, x)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(x), source(x)) and target.signed is source.signed


@pytest.mark.parametrize("name", ["dorefa", "minmax"])
def test_weights_without_a_sign_are_refused_where_the_formula_has_none(name):
    kind = {"dorefa": DoReFa, "minmax": MinMax}[name]
    for signed in (False, None):
        with pytest.raises(ValueError, match=f"signed must be True for weights with {kind.__name__}, got {signed}"):
            kind(4, signed=signed)


@pytest.mark.parametrize("bits", [0, 33, -1, 2.5, True, "4"])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(ValueError, match="bits must be a whole number"):
        LSQ(bits)


@pytest.mark.parametrize("kind", [LSQ, LSQPlus, MinMax])
def test_one_bit_with_a_sign_is_refused_at_once_and_by_calibration(kind):
    with pytest.raises(ValueError, match=f'with {kind.__name__}, got 1: use quantizer="liq"'):
        kind(1)
    quantizer = kind(1, signed=None, activation=True)
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
    assert {p.requires_grad for p in LSQPlus(bits).parameters()} == {trained}
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
    for module in (LSQ(4), LSQPlus(4), PACT(4), DoReFa(4), LIQ(4), MinMax(4)):
        assert isinstance(module, nn.Module) and module.is_quantizer
    assert not Unquantized().is_quantizer  # it rounds nothing


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_levels_of_an_asymmetric_step_reach_both_ends(bits):
    for w in (torch.linspace(-0.31, 1, 101), torch.linspace(0.2, 1, 101), torch.linspace(-1, -0.4, 101)):
        quantizer = AsymmetricLSQ.for_weight(bits, w)
        assert float(((quantizer(w).detach() - w).abs() / quantizer.step_size(w)).max()) < 0.5 + 1e-3
