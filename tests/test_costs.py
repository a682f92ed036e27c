import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from saq_core import Data, calibrate, cost, describe, load_data, quantize
from saq_core.data import ImageFiles
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
    with pytest.raises(ValueError, match="example must be given for this model, got None"):
        describe(small())
    for model in (nn.ReLU(), nn.Sequential(nn.Linear(3, 3))[:0], nn.Sequential(nn.LayerNorm((3, 3)))):
        with pytest.raises(ValueError, match="model must have a convolution, linear or recurrent layer or attention"):
            describe(model, (3, 3))


# what is run


class Recurrent(nn.Module):
    """Two bidirectional layers over tokens, and two linear ones; the last takes the mean over time."""

    def __init__(self):
        super().__init__()
        self.embed, self.lstm = nn.Embedding(9, 6), nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True)
        self.mix, self.head = nn.Linear(10, 4), nn.Linear(4, 3)

    def forward(self, ids, weights=None):
        states = self.mix(self.lstm(self.embed(ids))[0]).tanh()
        return self.head((states if weights is None else weights[..., None] * states).mean(1))


TOKENS, LABELS = torch.arange(28).view(4, 7) % 9, torch.tensor([0, 1, 2, 0])
RECURRENT = {"lstm": 7 * 2 * 4 * 5 * (6 + 5 + 10 + 5), "mix": 7 * 40, "head": 12}


class Probed:
    probe = TOKENS, LABELS


@pytest.mark.parametrize(
    "example",
    [
        TOKENS,
        TOKENS.int(),
        (TOKENS, LABELS),
        [TOKENS, LABELS],  # as a loader gives it
        [(TOKENS, LABELS)],
        {"ids": TOKENS, "labels": LABELS},
        [{"ids": TOKENS, "weights": torch.ones(4, 7, dtype=torch.float64)}],
        DataLoader(TensorDataset(TOKENS, LABELS), 3, shuffle=True),
        Data((TOKENS, LABELS), (TOKENS, LABELS), (TOKENS, LABELS), 3),
        Probed(),
    ],
    ids=lambda example: type(example).__name__,
)
def test_an_example_is_a_batch_of_any_kind_and_the_cost_that_of_one_sample(example):
    found = describe(Recurrent(), example)
    assert {layer.name: layer.macs for layer in found.layers} == RECURRENT
    assert cost(Recurrent(), example).macs == found.macs


def test_a_loader_is_read_without_a_trace():
    model = Recurrent()
    loader = DataLoader(TensorDataset(TOKENS), 3, shuffle=True, generator=torch.Generator().manual_seed(1))
    for generator in (torch.default_generator, loader.generator):
        before = generator.get_state()
        describe(model, loader)
        assert torch.equal(before, generator.get_state())


def test_image_files_are_not_read_for_their_shape():
    files, labels = ImageFiles(np.array([b"a file that is not there"] * 3), size=32), torch.arange(3)
    data = Data(*[(files, labels)] * 3, num_classes=3)
    model = build_model("resnet8", data)
    assert describe(model, data).macs == describe(model, (3, 32, 32)).macs


class Fixed(nn.Module):
    """A network that takes batches of one size."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.first(x.reshape(6, 3)))


def test_a_network_that_refuses_one_sample_runs_the_batch():
    assert [layer.macs for layer in describe(Fixed(), torch.randn(6, 3)).layers] == [12, 8]
    with pytest.raises(ValueError, match=r"the forward pass of an example of shape \(5, 3\) failed: .* \(PyTorch said"):
        describe(Fixed(), torch.randn(5, 3))


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.gru(x)[1][-1])


def test_a_packed_sequence_counts_its_steps_and_divides_by_its_samples():
    packed = pack_sequence([torch.ones(5, 3, dtype=torch.float64), torch.ones(3, 3, dtype=torch.float64)])
    for example in (packed, (packed, LABELS[:2]), [(packed, LABELS[:2])]):
        assert [layer.macs for layer in describe(Packed(), example).layers] == [8 * 12 * (3 + 4) // 2, 8]


def test_an_example_is_brought_to_the_models_device_and_dtype(device):
    for dtype in (torch.float64, torch.bfloat16):
        model = small().to(device, dtype)
        assert [layer.macs for layer in describe(model, torch.randn(2, 4, 6, 6)).layers] == MACS
    assert [layer.macs for layer in describe(small().to("meta"), torch.randn(2, 4, 6, 6)).layers] == MACS


EMPTY = "example must hold a batch of at least one sample, in tensors, got"


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (Recurrent, (7,), r"\(1, 7\) failed in embed .*: it looks rows up by whole numbers \(tokens\)"),
        (Recurrent, torch.rand(4, 7), r"\(4, 7\) failed in embed .*: pass inputs of dtype int64"),
        (Recurrent, {"tokens": TOKENS}, "entries must be arguments of the model, got 'tokens'"),
        (Recurrent, TOKENS[:0], f"{EMPTY} none"),
        (Recurrent, [(TOKENS[:0], LABELS)], rf"{EMPTY} \(0, 7\)"),
        (Recurrent, {"labels": LABELS}, "entries must be arguments of the model, got 'labels': missing .* argument"),
        (Recurrent, [], f"{EMPTY} none"),
        (small, (4, 0, 6), "example must be a whole number >= 1, each length of a shape, got 0"),
        (small, (4, 6.0, 6), "example must be a whole number >= 1, each length of a shape, got 6.0"),
        (small, 4, r"example must be \(x, y\), an iterable of batches, .* got int"),
        (small, torch.randn(2, 3, 6, 6), r"an example of shape \(2, 3, 6, 6\) failed in 0 \(Conv2d\)"),
    ],
)
def test_examples_that_do_not_fit_are_refused(model, example, message):
    with pytest.raises(ValueError, match=message):
        describe(model(), example)


# other people's networks


def language(kind):
    """Return a network of two layers of 16 channels with two heads, and its MACs, layer by layer, for 7 tokens."""
    import transformers as hf

    sizes = {"vocab_size": 9, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    if kind == "bert":
        settings = sizes | {"intermediate_size": 24, "max_position_embeddings": 8, "num_labels": 3}
        block = [256] * 4 + [384] * 2
        return hf.BertForSequenceClassification(hf.BertConfig(**settings)), [7 * n for n in 2 * block] + [256, 48]
    if kind == "gpt2":
        settings = {"vocab_size": 9, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 2}
        config = hf.GPT2Config(**settings, bos_token_id=0, eos_token_id=0)
        return hf.GPT2LMHeadModel(config), [7 * n for n in [*2 * [768, 256, 1024, 1024], 144]]
    settings = sizes | {"intermediate_size": 24, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 0}
    block = [256, 128, 128, 256] + [384] * 3
    return hf.LlamaForCausalLM(hf.LlamaConfig(**settings)), [7 * n for n in [*2 * block, 144]]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_language_models_cost_what_their_layers_say_and_what_torch_counts(kind):
    from transformers import BatchEncoding

    model, layers = language(kind)
    labels = LABELS if kind == "bert" else TOKENS
    batch = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS), "labels": labels}
    found = describe(model, batch)
    attention = 2 * 2 * 7**2 * 16  # two layers of two products, which are no layer's
    assert [layer.macs for layer in found.layers] == [*layers, attention]
    assert found.layers[-1].name == "elsewhere" and {layer.type for layer in found.layers[:-2]} == {
        "Conv1D" if kind == "gpt2" else "Linear"
    }
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.eval()(input_ids=TOKENS[:1])
    assert found.macs == counter.get_total_flops() // 2
    assert {describe(model, other).macs for other in (TOKENS, (TOKENS, labels), BatchEncoding(batch), [batch])} == {
        found.macs
    }


def test_timms_attention_is_counted_elsewhere():
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    found, block = describe(model, (torch.randn(2, 3, 32, 32), LABELS[:2])), 5 * 12 * 192**2
    assert found.macs == 4 * 768 * 192 + 2 * (block + 2 * 5**2 * 192) + 3 * 192
    assert (found.layers[-1].name, found.layers[-1].macs) == ("elsewhere", 2 * 2 * 5**2 * 192)


class Segmenting(nn.Module):
    """Down, up, and classes per pixel, in a mapping."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 3, 2, padding=1), nn.ConvTranspose2d(4, 4, 2, 2)
        self.skip, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

    def forward(self, x):
        return {"out": self.head(self.up(self.down(x).relu()) + self.skip(x)), "aux": None}


def test_a_segmentation_network_counts_its_transposed_convolution():
    found = describe(Segmenting(), (torch.randn(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long)))
    macs = {"down": 16 * 27 * 4, "up": 64 * 4 * 4, "skip": 64 * 12, "head": 64 * 20}
    assert {layer.name: layer.macs for layer in found.layers} == macs


class Handmade(nn.Module):
    """A linear layer of one's own, whose weight is (in, out), as that of GPT-2."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 6))

    def forward(self, x):
        return {"y": x @ self.matrix}


def test_any_layer_whose_matrix_multiplies_has_a_row_and_no_other():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.own, self.spare = nn.Embedding(9, 4), Handmade(), Handmade()
            self.cell, self.scale = nn.LSTMCell(6, 5), nn.Parameter(torch.ones(5, 5))

        def forward(self, ids):
            return self.cell(self.own(self.embed(ids))["y"])[0] @ self.scale

    found = describe(Whole(), torch.tensor([1, 2]))
    rows = {layer.name: (layer.type, layer.macs) for layer in found.layers}
    assert rows == {"own": ("Handmade", 24), "cell": ("LSTMCell", 20 * 11), "elsewhere": ("", 25)}
