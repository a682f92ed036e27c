import copy

import pytest
import torch
from torch import nn

from saq_core import LSQ, Data, calibrate, dequantize, evaluate, quantize
from saq_core.quantization.layers import QConv2d, QLinear


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5)
    )


def states(model):
    """Sign and step of every activation quantizer."""
    quantizers = [m.input_quantizer for m in model.modules() if hasattr(m, "input_quantizer")]
    return [(q.signed, *(float(p.detach()) for p in q.parameters())) for q in quantizers]


X = torch.randn(7, 2, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("quantizer", ["lsq", "liq"])
def test_float_bits_are_the_float_network_bit_for_bit(quantizer):
    model = small().eval()
    assert torch.equal(quantize(model, "W32A32", quantizer=quantizer)(X), model(X))


@pytest.mark.parametrize("quantizer", ["lsq", "liq"])
def test_eight_bits_after_calibration_alone_keep_the_accuracy(trained, digits, quantizer):
    both = [torch.cat([a, b]) for a, b in zip(digits.test, digits.val, strict=True)]
    exact = evaluate(trained, tuple(both)).accuracy
    found = evaluate(calibrate(quantize(trained, "W8A8", quantizer=quantizer), digits), tuple(both)).accuracy
    assert abs(found - exact) <= 0.005


def test_names_shapes_and_values_of_the_float_network_stay(trained):
    quantized = quantize(trained, "W4A4", per_channel=True)
    state = quantized.state_dict()
    for name, value in trained.state_dict().items():
        assert torch.equal(state[name], value)
    assert not any("delta" in name for name in state)
    assert quantized.load_state_dict(trained.state_dict(), strict=False).unexpected_keys == []


def test_the_original_is_left_alone_and_shares_no_weights():
    model = small()
    before = copy.deepcopy(model.state_dict())
    twin = quantize(model)
    twin[0].weight.data.zero_()
    assert type(model[0]) is nn.Conv2d and all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_probe_and_architecture_are_handed_on(trained):
    twin = quantize(trained, "W4A4")
    assert all(a is b for a, b in zip(twin.probe, trained.probe, strict=True))
    assert twin.architecture == trained.architecture and not hasattr(twin, "history")
    assert twin.quantization["bits"] == "W4A4"


def test_layers_tell_their_quantized_weights():
    twin = quantize(small(), "W4A32")
    q, delta, step = twin[3].quantized_weights()["weight"]
    assert delta is twin[3].delta and not delta.any() and not q.requires_grad
    assert q.shape == twin[3].weight.shape and torch.equal(q, twin[3].used_weight())
    torch.testing.assert_close((q / step).round() * step, q)


def test_delta_is_added_after_the_quantizer_and_gets_the_gradient_of_the_quantized_weight():
    twin = quantize(small(), "W4A32").double().eval()
    layer = twin[3]
    e = torch.randn_like(layer.weight) * 0.1
    expected = dequantize(twin)
    expected[3].weight.data += e
    layer.delta.copy_(e)
    torch.testing.assert_close(twin(X.double()), expected(X.double()))
    layer.delta.requires_grad_(True)
    twin(X.double()).square().sum().backward()
    expected(X.double()).square().sum().backward()
    torch.testing.assert_close(layer.delta.grad, expected[3].weight.grad)


@pytest.mark.parametrize("quantizer", ["lsq", "liq"])
def test_dequantized_network_computes_the_same(quantizer):
    twin = quantize(small(), "W3A32", quantizer=quantizer).eval()
    plain = dequantize(twin)
    assert torch.equal(plain(X), twin(X))
    assert {type(m) for m in plain} == {type(m) for m in small()}


def test_dequantizing_leaves_what_is_tied_to_a_weight_as_it_was():
    model = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5))
    model[3].weight = model[0].weight
    tokens = torch.arange(5)
    twin = quantize(model, "W2A32", first_last_bits=None).eval()
    plain = dequantize(twin)
    assert torch.equal(plain(tokens), twin(tokens)) and torch.equal(plain[0].weight, model[0].weight)
    assert plain[3].weight.requires_grad and plain[3].weight.is_leaf


def test_first_and_last_layers_get_their_own_bits():
    twin = quantize(small(), "W4A3")
    bits = [(m.weight_quantizer.bits, m.input_quantizer.bits) for m in (twin[0], twin[3], twin[6])]
    assert bits == [(8, 32), (4, 3), (8, 8)]
    twin = quantize(small(), "W4A3", first_last_bits=None, input_bits=6)
    bits = [(m.weight_quantizer.bits, m.input_quantizer.bits) for m in (twin[0], twin[3], twin[6])]
    assert bits == [(4, 6), (4, 3), (4, 3)]
    twin = quantize(small(), "W4A32")
    assert twin[6].input_quantizer.bits == 32
    twin = quantize(small(), {"3": "W2A5", "6": 4})
    bits = [(m.weight_quantizer.bits, m.input_quantizer.bits) for m in (twin[0], twin[3], twin[6])]
    assert bits == [(8, 32), (2, 5), (4, 4)]


def test_float_weights_with_quantized_activations_work():
    twin = calibrate(quantize(small(), "W32A4"), X).eval()
    assert twin(X).isfinite().all() and not torch.equal(twin(X), small().eval()(X))


def test_calibration_chooses_the_sign_of_activations():
    twin = calibrate(quantize(small(), "W4A4", input_bits=8), (X, torch.zeros(7)))
    assert twin[0].input_quantizer.signed is True and twin[3].input_quantizer.signed is False
    assert type(twin[0]) is QConv2d and type(twin[6]) is QLinear


def test_uncalibrated_network_raises_and_calibration_restores_the_mode():
    twin = quantize(small(), "W4A4").train()
    with pytest.raises(RuntimeError, match="calibrate"):
        twin(X)
    statistics = twin[1].running_mean.clone()
    assert calibrate(twin, [X[:3], (X[3:], None)]) is twin
    assert twin.training and torch.equal(twin[1].running_mean, statistics)
    twin(X)


def test_failed_calibration_leaves_the_network_uncalibrated():
    twin = quantize(small(), "W4A4")
    for empty in ([], (X[:0], torch.zeros(0)), X[:0]):
        with pytest.raises(ValueError, match="at least one sample"):
            calibrate(twin, empty)
    with pytest.raises(ValueError, match="the forward pass of a batch of data failed in 0"):
        calibrate(twin, [X, torch.randn(2, 5)])
    with pytest.raises(RuntimeError, match="calibrate"):
        twin(X)
    with pytest.raises(ValueError, match="data must be"):
        calibrate(twin, 3)


def test_calibration_restores_the_mode_of_every_module():
    twin = quantize(small(), "W4A4").train()
    twin[1].eval()
    calibrate(twin, X)
    assert [m.training for m in twin] == [True, False, True, True, True, True, True] and twin.training


def test_calibration_names_the_quantizers_that_it_never_reached():
    model = small()
    model[0].spare = nn.Linear(4, 4)
    twin = quantize(model, "W4A4")
    with pytest.warns(UserWarning, match=r"never reached 0\.spare\.input_quantizer: left as they were") as caught:
        calibrate(twin, X)
    assert len(caught) == 1 and twin[0].spare.input_quantizer.signed is None
    twin(X)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_data_that_are_not_finite_are_refused_and_leave_the_network_unchanged(value):
    bad = X.clone()
    bad[3, 0, 1, 1] = value
    twin = calibrate(quantize(small(), "W4A4", input_bits=8), X * 0.5)
    before = states(twin)
    with pytest.raises(ValueError, match="(data|activations) must be finite"):  # −inf may be a mask
        calibrate(twin, bad)
    assert states(twin) == before
    assert calibrate(twin, X) is twin and states(twin) != before


def test_activations_that_overflow_are_refused_and_leave_the_network_unchanged():
    twin = calibrate(quantize(small(), "W4A4", input_bits=8), X)
    before = states(twin)
    twin[3].bias.data.fill_(torch.inf)  # only the last quantizer sees it
    with pytest.raises(ValueError, match="activations must be finite"):
        calibrate(twin, X * 2)
    assert states(twin) == before


def test_an_impossible_sign_leaves_the_quantizers_before_it_unchanged():
    twin = quantize(small(), {"3": "W4A4", "6": "W4A1"}, input_bits=8)
    twin[4] = nn.Identity()  # the 1-bit input now has a sign
    before = states(twin)
    with pytest.raises(ValueError, match='quantizer="liq"'):
        calibrate(twin, X)
    assert states(twin) == before


def test_calibration_casts_floating_inputs_to_the_models_dtype():
    twin, other = (quantize(small().double(), "W4A4", input_bits=8) for _ in range(2))
    calibrate(twin, X)
    assert states(twin) == states(calibrate(other, X.double()))


@pytest.mark.parametrize("bits", ["W4A", "4", "W4A4x", "", "A4W4", "W0A4", "W4A33", 0, 33, 2.5])
def test_malformed_bits_are_refused(bits):
    with pytest.raises(ValueError, match="bits must"):
        quantize(small(), bits)


def test_other_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"close are \['3'"):
        quantize(small(), {"33": 4})
    with pytest.raises(ValueError, match="quantizer must be one of .*'lsq'"):
        quantize(small(), quantizer="lqs")
    with pytest.raises(ValueError, match="first_last_bits must"):
        quantize(small(), first_last_bits=40)
    with pytest.raises(ValueError, match="input_bits must"):
        quantize(small(), input_bits=0)
    with pytest.raises(ValueError, match="needs >= 2 weights per filter"):
        quantize(nn.Sequential(nn.Conv2d(1, 3, 1)), quantizer="liq", per_channel=True)
    with pytest.raises(ValueError, match="quantized already"):
        quantize(quantize(small()))
    with pytest.raises(ValueError, match="got none"):
        quantize(nn.Sequential(nn.ReLU()))


def test_layers_that_cannot_be_quantized_are_named_with_the_reason():
    block = nn.Module()
    block.attention, block.linear = nn.MultiheadAttention(4, 2, add_zero_attn=True), nn.Linear(4, 4)
    reasons = r"0 \(LSTM: there is no quantized form of it\)\n  1\.attention \(MultiheadAttention: it adds keys"
    with pytest.warns(UserWarning, match=reasons) as caught:
        twin = quantize(nn.Sequential(nn.LSTM(2, 2, 3), block))
    assert len(caught) == 1 and type(twin[1].linear) is QLinear


class Token(nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.token = nn.Parameter(torch.ones(rows, 4))


def test_a_token_is_no_weight_but_a_matrix_is():
    quantize(nn.Sequential(nn.Linear(4, 4), Token(1)))
    with pytest.warns(UserWarning, match=r"1 \(Token: there is no quantized form"):
        quantize(nn.Sequential(nn.Linear(4, 4), Token(2)))


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_subclasses_are_left_alone():
    with pytest.warns(UserWarning, match=r"0 \(Doubled: there is no quantized form"):
        assert type(quantize(nn.Sequential(Doubled(4, 4), nn.Linear(4, 2)))[0]) is Doubled


def test_custom_data_can_be_calibrated_on():
    data = Data((X, torch.zeros(7, dtype=torch.long)), (X, torch.zeros(7).long()), (X, torch.zeros(7).long()), 5)
    calibrate(quantize(small()), data)(X)


def test_signed_one_bit_input_is_refused_and_leaves_no_quantizer_observing():
    twin = quantize(small(), "W4A1", first_last_bits=None, input_bits=1)
    with pytest.raises(ValueError, match='quantizer="liq"'):
        calibrate(twin.train(), X)
    assert twin.training
    twin[0].input_quantizer = nn.Identity()
    with pytest.raises(RuntimeError, match="calibrate"):
        twin(X)


def test_the_calibration_of_the_weights_can_be_chosen():
    model = nn.Sequential(nn.Linear(40, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    best, widest = (quantize(model, "W4A32", first_last_bits=None, method=m) for m in (None, "minmax"))
    largest = model[0].weight.abs().max()
    assert widest[0].weight_quantizer(largest).item() == pytest.approx(largest.item(), rel=1e-6)
    errors = [(m[0].used_weight() - model[0].weight).square().sum().item() for m in (best, widest)]
    assert errors[0] < errors[1]
    with pytest.raises(ValueError, match="method must be one of"):
        quantize(model, method="best")


class Half(LSQ):
    """Somebody's own, with what LSQ gives times a half."""

    def _quantize(self, x):
        return super()._quantize(x) / 2


@pytest.mark.parametrize("quantizer", ["lsq", "lsq-asymmetric", "lsq+", "pact", Half])
def test_a_layer_is_the_product_of_what_its_two_quantizers_return(quantizer):
    """In float64, gradients of steps too; the layer takes an input's step to its weight where it may."""
    model = calibrate(quantize(small().double(), "W4A4", quantizer=quantizer), X.double())
    layer, x = model[3], torch.randn(5, 4, 3, 3, dtype=torch.float64)
    steps = [*layer.input_quantizer.parameters(), layer.weight]

    def found(y):
        return y, *torch.autograd.grad(y.square().sum(), steps, create_graph=True)

    expected = found(nn.functional.conv2d(layer.input_quantizer(x), layer.used_weight()))
    levels, _ = layer.operands(x)
    assert torch.equal(levels, levels.round()) == (quantizer in ("lsq", "lsq-asymmetric"))
    for a, b in zip(found(layer(x) - layer.bias[:, None, None]), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    seen = []
    with layer.input_quantizer.register_forward_hook(lambda module, inputs, output: seen.append(output)):
        torch.testing.assert_close(layer(x) - layer.bias[:, None, None], expected[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(seen[0], layer.input_quantizer(x))
