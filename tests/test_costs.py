import copy

import pytest
import torch
from torch import nn

from saq_core import calibrate, describe, load_data, quantize
from saq_core.models import build_model, make


def network(name, classes, shape):
    return make({"name": name, "num_classes": classes, "input_shape": list(shape)})


class Up(nn.ConvTranspose2d):
    """Of a type that is not quantized."""


def small():
    """Grouped, strided and transposed convolutions on (4, 6, 6)."""
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, groups=4),  # 8·36·9·1
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 6, 3, stride=2, bias=False),  # 6·4·9·8
        Up(6, 3, 2, stride=2),  # 6·4·3·4
        nn.Flatten(),
        nn.Linear(48, 5),  # 48·5
    )


MACS = [8 * 36 * 9, 6 * 4 * 9 * 8, 6 * 4 * 3 * 4, 240]


@pytest.mark.parametrize(
    ("name", "classes", "size", "unit", "printed"),
    [
        ("preresnet20", 100, 32, 1e6, {2: 190.2, 3: 392.1, 4: 674.6, 5: 1038.0, 8: 2612.4, 32: 41798.6}),
        ("mobilenet_v2", 100, 32, 1e6, {2: 425.8, 3: 877.1, 4: 1508.9, 5: 2321.3, 8: 5841.3, 32: 93460.6}),
        ("resnet18", 1000, 224, 1e9, {2: 14.37, 3: 22.85, 4: 34.71, 32: 1857.6}),
        ("resnet34", 1000, 224, 1e9, {2: 21.77, 3: 39.49, 4: 64.31, 32: 3751.7}),
        ("resnet50", 1000, 224, 1e9, {2: 23.56, 3: 43.41, 4: 71.19, 32: 4187.3}),
        ("mobilenet_v2", 1000, 224, 1e9, {2: 1.93, 3: 3.37, 4: 5.39}),
    ],
)
def test_bit_operations_are_the_papers(name, classes, size, unit, printed):
    model = network(name, classes, (3, size, size))
    for bits, bops in printed.items():
        found = describe(model if bits == 32 else quantize(model, bits, quantizer="minmax"))
        digits = 2 if unit == 1e9 and bits < 32 else 1
        assert round(found.bops / unit, digits) == pytest.approx(bops)


def test_the_multiplications_of_a_vision_transformer_are_those_that_torch_counts():
    found = describe(network("deit_tiny", 1000, (3, 224, 224)))
    tokens, width = 197, 192
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    assert found.macs == 12 * block + 196 * 768 * width + width * 1000
    assert found.frame["name"].iloc[-1] == "heads.head"  # torch's counter found none elsewhere


def test_each_layer_has_its_multiplications_bits_and_parameters():
    found = describe(small(), (4, 6, 6))
    assert [layer.macs for layer in found.layers] == MACS and found.bops == sum(MACS) * 1024
    assert [layer.parameters for layer in found.layers] == [80, 432, 75, 245]
    assert found.parameters == sum(p.numel() for p in small().parameters()) and found.bits == 32 * found.parameters
    assert found.layers[0].shape == (8, 1, 3, 3) and found.bops_ratio == 1 and found.quantized_share == 0


def test_bits_follow_the_layers_and_the_image_counts_eight():
    with pytest.warns(UserWarning, match="3 "):
        twin = quantize(small(), "W4A3")
    found = describe(twin, [4, 6, 6])
    bits = [(layer.weight_bits, layer.activation_bits) for layer in found.layers]
    assert bits == [(8, 8), (4, 3), (32, 32), (8, 8)]
    assert found.bops == MACS[0] * 64 + MACS[1] * 12 + MACS[2] * 1024 + MACS[3] * 64
    assert found.quantized_share == pytest.approx(1 - MACS[2] / sum(MACS))
    steps = sum(p.numel() for n, p in twin.named_parameters() if "quantizer" in n)
    assert found.parameters == 80 + 16 + 432 + 75 + 245
    assert found.bits == 72 * 8 + 432 * 4 + 240 * 8 + 32 * (8 + 16 + 75 + 5 + steps)
    assert found.left_out == {"3": "Up: there is no quantized form of it"}


def test_a_first_linear_layer_takes_no_image():
    twin = quantize(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), 4)
    assert describe(twin, (4,)).layers[0].activation_bits == 32


class Odd(nn.Module):
    """A layer used twice, one never used, one whose weight is shared, and a product outside of layers."""

    def __init__(self):
        super().__init__()
        self.first, self.spare, self.twice, self.tied = (nn.Linear(4, 4, bias=False) for _ in range(4))
        self.tied.weight = self.twice.weight

    def forward(self, x):
        x = self.twice(self.twice(self.first(x)))
        return self.tied(x) @ x.mT


def test_uses_count_each_time_and_weights_once():
    found = describe(quantize(Odd(), "W4A4", first_last_bits=None), (3, 4))
    rows = {layer.name: (layer.macs, layer.bops) for layer in found.layers}
    assert rows["first"] == (48, 48 * 4 * 32) and rows["twice"] == (96, 96 * 16) and rows["tied"] == (48, 48 * 16)
    assert rows["spare"] == (0, 0) and rows["elsewhere"] == (36, 36 * 1024)
    assert [layer.name for layer in found.layers] == ["first", "twice", "tied", "spare", "elsewhere"]
    steps = 8 - 1  # a step for each weight and input, the image's input excepted
    assert found.parameters == 48 and found.bits == 48 * 4 + 32 * steps


class Cross(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, **settings)

    def forward(self, x):
        keys = torch.cat([x, x], 0)[..., : self.attn.kdim]
        return self.attn(x, key=keys, value=keys, need_weights=False)[0]


@pytest.mark.parametrize("settings", [{}, {"kdim": 4, "vdim": 4}, {"add_bias_kv": True, "add_zero_attn": True}])
def test_attention_in_its_parts(settings):
    found = describe(Cross(**settings), (5, 8))  # one sample of 5 rows: torch reads it as (length, batch, width)
    width, extra = settings.get("kdim", 8), 2 if "add_bias_kv" in settings else 0
    assert [layer.name for layer in found.layers] == ["attn", "attn.products", "attn.out_proj"]
    expected = [8 * (40 + 2 * 2 * 5 * width), 2 * 5 * 1 * (2 + extra) * 8, 40 * 8]
    assert [layer.macs for layer in found.layers] == expected
    if not settings:
        twin = describe(quantize(Cross(), {"attn": "W2A3", "attn.products": 5, "attn.out_proj": "W6A7"}), (5, 8))
        assert [layer.macs for layer in twin.layers] == expected
        bits = [(layer.weight_bits, layer.activation_bits) for layer in twin.layers]
        assert bits == [(2, 3), (5, 5), (6, 7)]


def test_torchs_encoder_is_counted_in_evaluation_mode_too():
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    found = describe(layer.eval(), (5, 8))
    assert found.macs == 5 * (4 * 64 + 2 * 96) + 2 * 25 * 8
    assert [layer.name for layer in found.layers][-2:] == ["linear1", "linear2"]


def test_the_model_is_left_as_it_is_calibrated_or_not():
    data = load_data("digits", limit=64, device="cpu")
    model = quantize(build_model("resnet8", data), "W4A4").train()
    model.bn1.eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    uncalibrated = describe(model)
    after = model.state_dict()
    assert all(torch.equal(value, after[k]) for k, value in before.items() if isinstance(value, torch.Tensor))
    assert modes == [m.training for m in model.modules()] and not any(m._forward_hooks for m in model.modules())
    assert torch.backends.mha.get_fastpath_enabled() and model.conv1.weight.requires_grad
    with pytest.raises(RuntimeError, match="calibrate"):
        model(data.test[0][:2])
    calibrate(model, data)
    model.probe = data.probe
    assert describe(model) == uncalibrated


def test_the_result_reads_well():
    with pytest.warns(UserWarning):
        found = describe(quantize(small(), "W4A3"), (4, 6, 6))
    assert repr(found) == "Description(4 layers, 848 parameters, 0.0 M MACs, 0.5 M BOPs, 0.000964 MB)"
    assert list(found.frame) == [
        *("name", "type", "weight_bits", "activation_bits", "shape", "parameters", "macs", "bops")
    ]
    text = str(found)
    assert "QConv2d" in text and "float       3: Up" in text and f"{found.bops:,}" in text


def test_what_cannot_be_described_is_refused():
    with pytest.raises(ValueError, match="input_shape must be given for this model, got None"):
        describe(small())
    with pytest.raises(ValueError, match="model must have a convolution, linear or recurrent layer or attention"):
        describe(nn.ReLU(), (3,))
