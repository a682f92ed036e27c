"""GPTQ: against a dense algorithm written apart, what it is fed, what it keeps, and how things go on from it."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import conv2d, linear

import landscape
import saq_core
from saq_core import calibrate, dequantize, evaluate, export, gptq, load, quantize
from saq_core.quantization import compensation
from saq_core.quantization.compensation import _compensated
from saq_core.quantization.quantizers import weight_quantizer

LIMIT = 256  # of the digits
pytestmark = pytest.mark.usefixtures("coarse")


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def walk(*shape, seed=0, dtype=torch.float64):
    """Neighbours that resemble each other, of different sizes."""
    return (noise(*shape, seed=seed, dtype=dtype).cumsum(-1) / 3) * (1 + torch.arange(shape[1]) % 3).view(
        -1, *[1] * (len(shape) - 2)
    ).to(dtype)


def seeded(layer, *args, **settings):
    torch.manual_seed(0)
    return layer(*args, **settings).double()


LAYERS = {
    "linear": (lambda: seeded(nn.Linear, 9, 5), walk(40, 9)),
    "sequences": (lambda: seeded(nn.Linear, 6, 4, bias=False), walk(4, 7, 6)),
    "more columns than a block": (lambda: seeded(nn.Linear, 150, 3), walk(300, 150)),
    "fewer samples than columns": (lambda: seeded(nn.Linear, 12, 4), walk(5, 12)),
    "convolution": (lambda: seeded(nn.Conv2d, 3, 4, 3, padding=1, stride=2), walk(4, 3, 7, 6)),
    "grouped": (lambda: seeded(nn.Conv2d, 4, 6, (3, 2), groups=2, stride=(1, 2), padding=(0, 1)), walk(3, 4, 6, 7)),
    "depthwise": (lambda: seeded(nn.Conv2d, 4, 8, 3, groups=4, padding="same", dilation=2), walk(3, 4, 6, 5)),
    "reflected": (lambda: seeded(nn.Conv2d, 2, 3, 3, padding=2, padding_mode="reflect", dilation=2), walk(3, 2, 6, 7)),
}


def design(layer, x):
    """Return the inputs of each filter's weights, (filters, positions, weights of one): outputs are linear in them."""
    zero = {"bias": torch.zeros_like(layer.bias)} if layer.bias is not None else {}
    outputs = torch.autograd.functional.jacobian(
        lambda w: functional_call(layer, {"weight": w, **zero}, (x,)), layer.weight.detach(), vectorize=True
    )
    dim = 1 if isinstance(layer, nn.Conv2d) else x.ndim - 1
    filters = outputs.movedim(dim, 0)
    return torch.stack([filters[f].flatten(0, x.ndim - 2)[:, f].flatten(1) for f in range(len(filters))])


def reference(w, inputs, rounded, damping):
    """Return one filter rounded: after each weight the others are solved anew, by the inverse of what remains of H."""
    w, h = w.copy(), 2 / len(inputs) * inputs.T @ inputs
    size, dead = np.diag(h).copy(), np.diag(h) == 0
    w[dead] = 0
    h[np.diag_indices(len(h))] += damping * size.mean() + dead
    result = np.zeros_like(w)
    remaining = sorted(range(len(w)), key=lambda k: size[k])
    while remaining:
        inverse = np.linalg.inv(h[np.ix_(remaining, remaining)])
        q = remaining[-1]
        result[q] = rounded(w[q])
        w[remaining] -= (w[q] - result[q]) / inverse[-1, -1] * inverse[:, -1]
        remaining.pop()
    return result


def level(step, bits):
    return lambda x: step * np.clip(np.round(x / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_weights_are_those_of_the_dense_algorithm(kind, per_channel):
    make, x = LAYERS[kind]
    layer = make()
    result = gptq(layer, x, "W3A32", per_channel=per_channel, first_last_bits=None, damping=0.02)
    steps = result.weight_quantizer.step.detach().flatten().expand(len(layer.weight)).numpy()
    columns, w = design(layer, x).numpy(), layer.weight.detach().flatten(1).numpy()
    found = [reference(*pair, level(step, 3), 0.02) for *pair, step in zip(w, columns, steps, strict=True)]
    assert result.gptq["weight"].kept == "compensated"
    np.testing.assert_allclose(result.used_weight().detach().flatten(1), found, rtol=0, atol=1e-10)
    nearest = [level(step, 3)(row) for row, step in zip(w, steps, strict=True)]
    errors = [np.linalg.norm(np.einsum("fpk,fk->fp", columns, r - w)) for r in (nearest, found, np.zeros_like(w))]
    np.testing.assert_allclose(result.gptq["weight"][:2], np.array(errors[:2]) / errors[2], rtol=1e-8)


def test_weights_whose_inputs_are_always_zero_become_zero():
    layer, x = seeded(nn.Linear, 6, 4), walk(30, 6)
    x[:, [1, 4]] = 0
    result = gptq(layer, x, "W3A32", first_last_bits=None)
    step = result.weight_quantizer.step.detach().flatten().numpy()
    found = [
        reference(w.numpy(), x.numpy(), level(s, 3), 0.01) for w, s in zip(layer.weight.detach(), step, strict=True)
    ]
    np.testing.assert_allclose(result.used_weight().detach(), found, atol=1e-12)
    assert not result.used_weight()[:, [1, 4]].any() and layer.weight.all()


class Several(nn.Module):
    """A strided and a grouped convolution, one layer in two places, and attention to oneself and to something else."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=2)
        self.second = nn.Conv2d(6, 8, 3, groups=2, padding=1, padding_mode="circular")
        self.twice = nn.Linear(8, 8)
        self.self_attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.cross_attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        x = self.second(self.first(x).relu()).flatten(2).mT
        x = self.twice(self.twice(x).tanh())
        y, _ = self.self_attention(x, x, x, need_weights=False)
        z, _ = self.cross_attention(value=x, query=y, key=x - y)
        return self.last(z).mean(1)


@pytest.fixture(scope="module")
def several():
    torch.manual_seed(1)
    return Several()


IMAGES = walk(40, 3, 8, 8, dtype=torch.float32)


def inputs_of(model, x):
    """Return name -> what each layer is called with, once per use."""
    seen = {}
    for name, module in model.named_modules():
        if hasattr(module, "quantized_parts"):
            module.register_forward_pre_hook(
                lambda m, args, kwargs, name=name: seen.setdefault(name, []).append((*args, *kwargs.values())),
                with_kwargs=True,
            )
    with torch.no_grad():
        model.eval()(x)
    return seen


def test_errors_are_those_under_the_inputs_that_the_quantized_network_gives(several):
    model, plain = gptq(several, IMAGES, "W3A32"), quantize(several, "W3A32", per_channel=True)
    attention = [
        f"{n}_attention.{p}" for n in ("self", "cross") for p in (*(f"{q}_weight" for q in "qkv"), "out_proj.weight")
    ]
    assert list(model.gptq) == ["first.weight", "second.weight", "twice.weight", *attention, "last.weight"]
    seen = inputs_of(copy.deepcopy(model), IMAGES)
    for name in ("first", "second", "self_attention", "cross_attention", "cross_attention.out_proj", "last"):
        layers = [network.get_submodule(name) for network in (several, plain, model)]
        weights = [getattr(layers[0], layers[1].weight_name), *(layer.used_weight() for layer in layers[1:])]
        (inputs,) = seen[name]
        if name == "cross_attention":
            inputs = inputs[1], inputs[2], inputs[0]
        names = [label for label in model.gptq if label.rpartition(".")[0] == name]
        for k, label in enumerate(names):
            parts = [w.detach().chunk(len(names))[k] for w in weights]
            if isinstance(layers[0], nn.Conv2d):
                settings = {"stride": layers[0].stride, "groups": layers[0].groups}
                x = inputs[0] if name == "first" else nn.functional.pad(inputs[0], (1, 1, 1, 1), "circular")
                exact, nearest, ours = (conv2d(x, w, **settings) for w in parts)
            else:
                exact, nearest, ours = (linear(inputs[k], w) for w in parts)
            errors = [float((y - exact).norm() / exact.norm()) for y in (nearest, ours)]
            rounding = model.gptq[label]
            assert rounding[:2] == pytest.approx(errors, rel=1e-3), label
            assert errors[1] <= errors[0] and rounding.kept == "compensated"


def test_a_layer_in_two_places_is_fed_by_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = seeded(nn.Linear, 5, 5)

        def forward(self, x):
            return self.layer(self.layer(x).tanh())

    model, x = Twice(), walk(30, 5)
    result = gptq(model, x, "W3A32", first_last_bits=None)
    plain = quantize(model, "W3A32", per_channel=True, first_last_bits=None)
    with torch.no_grad():
        columns = torch.cat([x, plain.layer(x).tanh()]).numpy()
    steps = plain.layer.weight_quantizer.step.detach().flatten().tolist()
    weights = model.layer.weight.detach().numpy()
    found = [reference(w, columns, level(s, 3), 0.01) for w, s in zip(weights, steps, strict=True)]
    np.testing.assert_allclose(result.layer.used_weight().detach(), found, atol=1e-12)


def test_inputs_are_those_behind_their_quantizer():
    model, x = nn.Sequential(seeded(nn.Linear, 5, 6), nn.ReLU(), seeded(nn.Linear, 6, 4)), walk(50, 5)
    result = gptq(model, x, "W3A2", first_last_bits=None)
    nearest = calibrate(quantize(model, "W3A2", per_channel=True, first_last_bits=None), x)
    with torch.no_grad():
        columns = nearest[2].input_quantizer(result[1](result[0](x)))
        exact, rounded, ours = (
            linear(columns, layer[2].weight) for layer in (model, dequantize(nearest), dequantize(result))
        )
    errors = [float((y - exact).norm() / exact.norm()) for y in (rounded, ours)]
    assert result.gptq["2.weight"][:2] == pytest.approx(errors, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "name, bits", [("lsq", 3), ("lsq", 8), ("lsq-asymmetric", 4), ("lsq-asymmetric", 8), ("liq", 1)]
)
@pytest.mark.parametrize("per_channel", [True, False])
def test_what_was_rounded_column_by_column_is_q_of_the_latent_weights_to_the_bit(dtype, name, bits, per_channel):
    w, x = noise(6, 40).to(dtype), walk(100, 40)
    quantizer = weight_quantizer(name, bits, w, per_channel=per_channel)
    rounded = []
    quantizer.register_forward_hook(lambda m, args, output: rounded.append(output))
    with torch.no_grad():
        matrix = (x.T @ x)[None]
        latent = _compensated(quantizer, w, matrix, 0.01, "w")
        columns = torch.cat(rounded, 1)
        order = matrix[0].diagonal().argsort(stable=True).flip(0)
        assert torch.equal(columns, quantizer(latent)[:, order]) and latent.dtype == columns.dtype == dtype
    assert not torch.equal(latent, w)


def test_what_is_no_better_stays_rounded_to_nearest():
    x = torch.eye(6).double()  # nothing makes up for anything
    layer = seeded(nn.Linear, 6, 4)
    result = gptq(layer, x, "W2A32", first_last_bits=None)
    rounding = result.gptq["weight"]
    assert rounding.nearest == rounding.compensated > 0 and rounding.kept == "nearest"
    assert torch.equal(result.weight, layer.weight)
    layer, x = seeded(nn.Linear, 4, 2), noise(20, 4, seed=12)
    result = gptq(layer, x, "W2A32", first_last_bits=None)
    assert result.gptq["weight"].nearest < result.gptq["weight"].compensated
    assert torch.equal(result.weight, layer.weight) and result.gptq["weight"].kept == "nearest"


def same(one, other):
    """Whether two networks have the same state to the bit."""
    states = one.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    return all(
        torch.equal(v, states[1][k]) if isinstance(v, torch.Tensor) else v == states[1][k] for k, v in states[0].items()
    )


def test_it_is_deterministic_and_leaves_everything_as_it_was(several):
    several.train()
    before, random, y = copy.deepcopy(several), torch.get_rng_state(), torch.zeros(40).long()
    batches = [(IMAGES[:16], y[:16]), (IMAGES[16:], y[16:])]
    first = gptq(several, batches, "W4A4", damping=0.05)
    assert same(several, before) and several.training and first.training
    assert torch.equal(torch.get_rng_state(), random)
    again = gptq(several, (batch for batch in batches), "W4A4", damping=0.05)
    assert same(first, again) and first.gptq == again.gptq == copy.deepcopy(first).gptq
    assert not any(module._forward_pre_hooks for module in first.modules())
    assert not same(first, gptq(several, batches, "W4A4", damping=0.5))
    assert not hasattr(dequantize(first), "gptq")


@pytest.mark.filterwarnings("ignore:these layers stay in full precision")
def test_a_weight_of_two_modules_and_a_layer_that_nothing_reaches_are_rounded_to_nearest():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.first, self.last = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)
            self.unused = nn.Linear(4, 4)
            self.last.weight = self.table.weight

        def forward(self, x):
            return self.last(self.first(self.table(x)))

    torch.manual_seed(0)
    model = Tied()
    result = gptq(model, torch.arange(9)[None], "W3A32")
    assert {name for name, rounding in result.gptq.items() if np.isnan(rounding.nearest)} == {
        "last.weight",
        "unused.weight",
    }
    assert result.gptq["last.weight"].kept == result.gptq["unused.weight"].kept == "nearest"
    assert result.gptq["first.weight"].kept == "compensated"
    assert all(
        torch.equal(result.get_submodule(n).weight, model.get_submodule(n).weight) for n in ("table", "last", "unused")
    )


def test_a_transposed_weight_is_rounded_like_the_weight_and_other_convolutions_to_nearest():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    (plain, transposed), x = (seeded(nn.Linear, 7, 5), seeded(conv1d, 5, 7)), walk(30, 7)
    transposed.weight.data.copy_(plain.weight.t())
    ours, same_again = (gptq(layer, x, "W3A32", first_last_bits=None) for layer in (plain, transposed))
    assert torch.equal(ours.weight, same_again.weight.t()) and ours.gptq == same_again.gptq
    assert ours.gptq["weight"].kept == "compensated"
    network = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ConvTranspose2d(1, 2, 3), nn.Conv2d(2, 3, 1))
    network[0].register_forward_hook(lambda m, args, output: output[:, None])
    result = gptq(network, IMAGES[:, :, 0], "W3A32")
    assert [np.isnan(rounding.nearest) for rounding in result.gptq.values()] == [True, True, False]
    assert torch.equal(result[1].weight, network[1].weight)


def test_the_network_is_run_as_forward_says():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x, scale):
            return self.second(self.first(x) * scale)

    model, x = Two(), walk(30, 4, dtype=torch.float32)
    batches = [{"x": x, "scale": torch.full((30, 1), 2.0)}]
    named = gptq(model, batches, "W3A8")
    run = gptq(model, [(x,)], "W3A8", forward=lambda model, batch: model(batch[0], torch.full((30, 1), 2.0)))
    assert same(named, run) and named.gptq == run.gptq


@pytest.mark.parametrize("copies, passes", [(False, 0), (True, 2)])
def test_layers_that_are_fed_the_same_tensor_share_a_pass(copies, passes):
    class Projections(nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            Projections.calls += 1
            return self.q(x) + self.k(x.clone() if copies else x) + self.v(x.clone() if copies else x)

    gptq(Projections(), [IMAGES[:, 0, 0, :4], IMAGES[:, 0, 1, :4]])
    assert Projections.calls == 2 * (2 + 1) + 1 + 2 * (1 + passes)  # calibrated twice, ordered, summed up


@pytest.mark.parametrize("bits", [pytest.param("W3A32", marks=pytest.mark.slow), "W3A3"])
def test_a_trained_network_does_better_than_rounded_to_nearest_and_goes_on(trained, digits, bits, tmp_path):
    nearest = calibrate(quantize(trained, bits, per_channel=True), digits)
    model = gptq(trained, digits, bits)
    assert all(rounding.compensated < rounding.nearest for rounding in model.gptq.values())
    losses = [evaluate(network, digits.test).loss for network in (trained, model, nearest)]
    assert losses[1] - losses[0] < 0.5 * (losses[2] - losses[0])
    export(model, tmp_path / "net")
    back, x = load(tmp_path / "net"), digits.test[0][:50]
    assert torch.equal(back(x), model.eval()(x))
    saq_core.save(model, tmp_path / "all")
    assert same(load(tmp_path / "all"), model)
    batch = digits.probe[0][:64], digits.probe[1][:64]
    ours, theirs = (landscape.trace(m, batch, seed=1, num_probes=2, rtol=1.0) for m in (model, back))
    assert theirs.value == pytest.approx(ours.value, rel=1e-4)
    latent = model.layer1[0].conv1.weight.detach().clone()
    history = saq_core.train(
        model, saq_core.load_data("digits", limit=64, device="cpu"), saq_core.Recipe(epochs=1, lr=0.01)
    )
    assert np.isfinite(history.frame["loss"]).all() and not torch.equal(latent, model.layer1[0].conv1.weight)


SMALL, NAN = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.full((5, 4), torch.nan)
HUGE = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
nn.init.constant_(HUGE[0].weight, 1e38)


@pytest.mark.parametrize(
    ("message", "model", "data", "settings"),
    [
        ("model must be a float network", quantize(SMALL), IMAGES, {}),
        ("data must be .* got NoneType", SMALL, None, {"bits": "W4A4"}),
        ("data must hold at least one sample", SMALL, [], {}),
        ("data must be finite", SMALL, NAN, {}),
        ("inputs of 1.weight must be finite", HUGE, torch.ones(5, 4) * 10, {}),
        ("damping must be > 0", SMALL, IMAGES[:, 0, 0, :4], {"damping": 0.0}),
        ("damping must be a number", SMALL, IMAGES[:, 0, 0, :4], {"damping": "a"}),
        ("damping must make the inputs of 0.weight independent", SMALL, torch.ones(5, 4), {"damping": 1e-30}),
        *(
            (f"quantizer must keep its levels .* got '{name}'", SMALL, IMAGES, {"quantizer": name})
            for name in ("pact", "dorefa", "minmax")
        ),
        ("quantizer must keep its levels .* got 'liq'", nn.Conv2d(3, 2, 3), IMAGES, {"quantizer": "liq"}),
        ("bits must look like", SMALL, IMAGES, {"bits": "4"}),
    ],
)
def test_what_cannot_be_done_is_refused(message, model, data, settings):
    with pytest.raises(ValueError, match=message):
        gptq(model, data, **settings)


@pytest.mark.parametrize("kind", ["linear", "grouped"])
@pytest.mark.filterwarnings("ignore")  # brevitas' own
def test_brevitas_rounds_the_same_weights_to_the_same_levels(kind):
    import brevitas.nn
    from brevitas.graph.gptq import gptq_mode
    from brevitas.inject.enum import ScalingImplType
    from brevitas.quant import Int8WeightPerChannelFloat

    class ThreeBits(Int8WeightPerChannelFloat):
        bit_width, narrow_range, scaling_impl_type = 3, False, ScalingImplType.PARAMETER_FROM_STATS

    if kind == "linear":
        sizes, settings, x = (24, 12), {}, noise(256, 24) @ noise(24, 24, seed=1)
    else:
        sizes, settings, x = (6, 8, 3), {"groups": 2, "padding": 1, "stride": 2}, walk(12, 6, 8, 8)
    names = ("Linear", "QuantLinear") if kind == "linear" else ("Conv2d", "QuantConv2d")
    layer = getattr(nn, names[0])(*sizes, bias=False, **settings).double()
    theirs = getattr(brevitas.nn, names[1])(*sizes, bias=False, weight_quant=ThreeBits, **settings).double()
    theirs.weight.data.copy_(layer.weight)
    network = nn.Sequential(theirs).eval()
    network(x)
    with torch.no_grad(), gptq_mode(network, use_quant_activations=False, act_order=True, dtype=torch.float64) as mode:
        mode.model(x)
        mode.update()
    ours = quantize(nn.Sequential(layer), "W3A32", per_channel=True, first_last_bits=None)
    quantizer = ours[0].weight_quantizer
    quantizer.step.data.copy_(theirs.weight_quant.scale().reshape(quantizer.step.shape))
    with torch.no_grad():
        matrix = compensation._gram_matrices(ours[0], [x])[0]
        found = quantizer(compensation._compensated(quantizer, ours[0].weight, matrix, 0.01, ""))
    torch.testing.assert_close(found, theirs.quant_weight().value.detach(), rtol=1e-12, atol=1e-12)
    assert not torch.equal(found, quantizer(ours[0].weight))
