"""What of other people's networks is quantized: layers of any kind, first and last, own quantizers, warnings."""

import itertools
import re
import warnings
from collections import UserDict
from dataclasses import dataclass

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.data import DataLoader, Dataset
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import SwinTransformer
from transformers.pytorch_utils import Conv1D

import landscape
from saq_core import LSQ, PACT, Quantizer, calibrate, dequantize, describe, export, load, quantize, save
from saq_core.models import make
from saq_core.quantization.calibration import feed
from saq_core.quantization.functional import clip, round_ste
from saq_core.quantization.layers import QLinear, QTransposedLinear

transformers.logging.set_verbosity_error()


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# name → (layer, shape of its input, the operation on a weight, groups whose filters lie along dimension 1 or None)
LAYERS = {
    "Linear": (lambda: nn.Linear(6, 4), (5, 6), F.linear, None),
    "Conv1D": (lambda: Conv1D(4, 6), (2, 5, 6), lambda x, w, b: x @ w + b, 1),
    "Conv1d": (
        lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2),
        (3, 4, 9),
        lambda x, w, b: F.conv1d(x, w, b, stride=2, padding=1, groups=2),
        None,
    ),
    "Conv1d, circular": (
        lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"),
        (3, 4, 5),
        lambda x, w, b: F.conv1d(torch.cat([x[..., -1:], x, x[..., :1]], -1), w, b),
        None,
    ),
    "Conv3d": (lambda: nn.Conv3d(2, 3, 2, bias=False), (2, 2, 3, 3, 3), F.conv3d, None),
    "ConvTranspose1d": (
        lambda: nn.ConvTranspose1d(4, 3, 3, stride=2, output_padding=1),
        (2, 4, 5),
        lambda x, w, b: F.conv_transpose1d(x, w, b, stride=2, output_padding=1),
        1,
    ),
    "ConvTranspose2d": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2, dilation=2),
        (2, 4, 4, 4),
        lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2, padding=1, groups=2, dilation=2),
        2,
    ),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 3, 2), (2, 2, 2, 2, 2), F.conv_transpose3d, 1),
}


def made(name, per_channel, **settings):
    """Return float layer, its quantized form after calibration on extremes, and the input."""
    make, shape, *_ = LAYERS[name]
    torch.manual_seed(0)
    layer, x = make().double(), draw(*shape)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))
    settings = {"first_last_bits": None, "input_bits": 4, "method": "minmax", **settings}
    twin = quantize(nn.Sequential(layer), "W4A4", per_channel=per_channel, **settings)
    return layer, calibrate(twin, x, method="minmax"), x


def by_hand(name, weight, per_channel):
    """Return (steps of the shape of the weight, the rounded weight), one filter at a time: LSQ of the range max|w|."""
    groups = LAYERS[name][3]
    steps = torch.full_like(weight, weight.abs().max() / 7)
    if per_channel and groups is None:
        for k in range(len(weight)):
            steps[k] = weight[k].abs().max() / 7
    elif per_channel:
        size = len(weight) // groups
        for g, j in itertools.product(range(groups), range(weight.shape[1])):
            rows = slice(g * size, (g + 1) * size)
            steps[rows, j] = weight[rows, j].abs().max() / 7
    return steps, (weight / steps).round().clamp(-8, 7) * steps


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_the_output_of_every_layer_is_the_formulas_and_its_gradients_are_straight_through(name, per_channel):
    layer, twin, x = made(name, per_channel)
    operation, weight = LAYERS[name][2], layer.weight.detach()
    steps, rounded = by_hand(name, weight, per_channel)
    input_step = x.abs().max() / 7
    x_rounded = (x / input_step).round().clamp(-8, 7) * input_step
    rounded.requires_grad_()
    expected = operation(x_rounded, rounded, layer.bias)
    found = twin(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    factor = draw(*found.shape, seed=2)
    (found * factor).sum().backward()
    (expected * factor).sum().backward()
    inside = (weight / steps).abs() < 6.99  # the largest weight stands on the end of the range, where it is none
    assert inside.any()
    torch.testing.assert_close(twin[0].weight.grad[inside], rounded.grad[inside], rtol=1e-10, atol=1e-10)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in twin.parameters())


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_delta_moves_the_quantized_weight_and_the_layer_tells_values_and_steps(name, per_channel):
    layer, twin, x = made(name, per_channel)
    steps, rounded = by_hand(name, layer.weight.detach(), per_channel)
    value, delta, step = twin[0].quantized_weights()["weight"]
    assert delta is twin[0].delta and not delta.any() and delta.shape == layer.weight.shape
    torch.testing.assert_close(value, rounded, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(step.expand_as(value), steps, rtol=1e-12, atol=1e-12)
    moved = draw(*delta.shape, seed=3)
    plain = dequantize(twin)
    assert type(plain[0]) is type(layer)
    delta.copy_(moved)
    with torch.no_grad():
        plain[0].weight += moved
        quantized_input = twin[0].input_quantizer(x)
    torch.testing.assert_close(twin(x), plain(quantized_input), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("quantizer", ["lsq", "liq", "minmax", "dorefa"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_come_back_from_files_bit_for_bit(name, quantizer, tmp_path):
    layer, twin, x = made(name, True, quantizer=quantizer)
    twin, x = twin.float(), x.float()
    report = export(twin, tmp_path / "net")
    assert report.weights["0.weight"].integers == -(-layer.weight.numel() * 4 // 8)
    for model in (nn.Sequential(LAYERS[name][0]()), twin):
        back = load(tmp_path / "net", model)
        assert torch.equal(back(x), twin(x)) and torch.equal(back[0].weight, twin[0].used_weight())
    save(twin, tmp_path / "latent")
    assert torch.equal(load(tmp_path / "latent", nn.Sequential(LAYERS[name][0]()))(x), twin(x))


@pytest.mark.parametrize("name", LAYERS)
def test_float_bits_are_the_float_layer(name):
    layer, _, x = made(name, False)
    assert torch.equal(quantize(nn.Sequential(layer), "W32A32")(x), layer(x))


def test_transposed_convolutions_take_an_output_size():
    twin = quantize(nn.ConvTranspose2d(2, 3, 3, stride=2), "W32A32")
    assert twin(torch.randn(1, 2, 4, 4), output_size=[10, 10]).shape[2:] == (10, 10)


# --- transformers ----------------------------------------------------------------------------------------------------

IDS = torch.randint(0, 30, (4, 6), generator=torch.Generator().manual_seed(0))
SMALL = {"vocab_size": 30, "bos_token_id": 0, "eos_token_id": 0}
PRODUCTS = "multiply activations with activations .*: those products stay float"


def gpt2():
    torch.manual_seed(0)
    sizes = {"n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**SMALL, **sizes)).eval()


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**SMALL, **sizes, num_key_value_heads=1, max_position_embeddings=8)
    return transformers.LlamaForCausalLM(config).eval()


def bits_of(model):
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "quantized_parts")}
    return {n: (next(iter(m.quantized_parts().values()))[0].bits, m.input_quantizer.bits) for n, m in layers.items()}


def test_gpt2_is_quantized_whole_exported_and_measured(tmp_path):
    model = gpt2()
    twin = quantize(model, "W4A4", per_channel=True)  # no warning: nothing but embeddings stays float
    with pytest.warns(UserWarning, match=rf"transformer.h.0.attn \(GPT2Attention\).*{PRODUCTS}"):
        calibrate(twin, [{"input_ids": IDS, "labels": IDS}])
    bits = bits_of(twin)
    assert bits.pop("lm_head") == (8, 8) and len(bits) == 4 and set(bits.values()) == {(4, 4)}
    assert all(type(m) is QTransposedLinear for n, m in twin.named_modules() if n in bits)
    assert twin.state_dict()["transformer.h.0.attn.c_attn.weight"].equal(model.transformer.h[0].attn.c_attn.weight)
    export(twin, tmp_path / "net")
    assert torch.equal(load(tmp_path / "net", model)(IDS).logits, twin(IDS).logits)

    def objective(network, ids):
        return network(input_ids=ids, labels=ids).loss, ids.numel()

    found = landscape.trace(twin, [IDS[:2], IDS[2:]], objective=objective, num_probes=2)
    assert found.about["space"] == "quantized" and found.about["derivatives"] == "straight-through"


def test_a_transposed_linear_layer_costs_what_a_linear_one_does():
    def pair(second):
        return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), second, nn.ReLU(), nn.Linear(4, 3))

    found, expected = (describe(quantize(pair(m), "W4A2"), (5,)) for m in (Conv1D(4, 6), nn.Linear(6, 4)))
    assert [row.type for row in found.layers] == ["QLinear", "QTransposedLinear", "QLinear"]
    assert (found.macs, found.bops, found.bits) == (expected.macs, expected.bops, expected.bits) and not found.left_out


class OwnConv1D(nn.Module):
    """Of that name, and no such layer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))


OwnConv1D.__name__ = "Conv1D"


def test_a_name_alone_makes_no_layer_of_transformers():
    with pytest.warns(UserWarning, match=r"1 \(Conv1D: there is no quantized form of it\)"):
        quantize(nn.Sequential(nn.Linear(4, 4), OwnConv1D()))


# --- first and last --------------------------------------------------------------------------------------------------


def test_where_tokens_come_through_an_embedding_no_layer_is_the_first():
    for settings in ({}, {"example": {"input_ids": IDS}}):
        bits = bits_of(quantize(llama(), "W4A3", **settings))
        assert bits.pop("lm_head") == (8, 8) and set(bits.values()) == {(4, 3)}
        with pytest.raises(ValueError, match="input_bits must be None for a network none of whose layers"):
            quantize(llama(), "W4A4", input_bits=8, **settings)


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2", "vit"])
def test_networks_that_register_in_the_order_of_use_need_no_example(name):
    model = make({"name": name, "num_classes": 3, "input_shape": [3, 8, 8]})
    plain, traced = (
        quantize(model, "W4A3", method="minmax", **given) for given in ({}, {"example": torch.randn(2, 3, 8, 8)})
    )
    assert str(plain) == str(traced)


class Heads(nn.Module):
    """Two heads, registered before the body, whose first layer is registered last and reads a normalised image."""

    def __init__(self, outputs=tuple):
        super().__init__()
        self.head, self.other = nn.Linear(4, 3), nn.Linear(4, 2)
        self.hidden, self.stem, self.norm = nn.Linear(4, 4), nn.Linear(5, 4), nn.LayerNorm(5)
        self.outputs = outputs

    def forward(self, x):
        h = self.hidden(self.stem(self.norm((x - 0.5) / 0.2)).relu()).relu()
        return self.outputs([self.head(h).softmax(-1), self.other(h)])


def test_an_example_shows_the_first_layer_and_every_head(tmp_path):
    x = torch.randn(6, 5)
    twin = quantize(Heads(), "W4A3", input_bits=5, example=(x, None))
    assert bits_of(twin) == {"head": (8, 8), "other": (8, 8), "hidden": (4, 3), "stem": (8, 5)}
    calibrate(twin, x)
    save(twin, tmp_path / "net")
    assert all(map(torch.equal, load(tmp_path / "net", Heads())(x), twin.eval()(x)))
    named = quantize(Heads(lambda parts: dict(zip(("aux", "logits"), parts, strict=True))), "W4A3", example=x)
    assert [name for name, (weight, _) in bits_of(named).items() if weight == 8] == ["other", "stem"]


def test_attention_may_be_the_first_and_the_last():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.after, self.attn = nn.Linear(4, 4), nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            return self.attn(x, x, x)[0]

    twin = quantize(Attention(), "W4A3", example=torch.randn(2, 3, 4))
    assert bits_of(twin) == {"after": (4, 3), "attn": (8, 32), "attn.out_proj": (8, 8)}


def test_examples_that_do_not_fit_are_refused_and_leave_nothing():
    model = Heads()
    for example, message in (
        (torch.randn(2, 3), "forward pass of a batch of example"),
        ({"y": 1}, "be arguments of the model, got 'y': missing"),
    ):
        with pytest.raises(ValueError, match=message):
            quantize(model, example=example)
    assert not any(
        m._forward_hooks or m._forward_pre_hooks for m in quantize(model, example=torch.randn(2, 5)).modules()
    )


# --- what stays float ------------------------------------------------------------------------------------------------


def warned(model, *args, **kwargs):
    with pytest.warns(UserWarning) as caught:
        quantize(model, *args, **kwargs)
    assert len(caught) == 1
    return str(caught[0].message)


def test_parameters_of_blocks_are_named_and_a_small_rest_is_no_alarm():
    convnext = ConvNeXt([CNBlockConfig(8, 16, 4), CNBlockConfig(16, None, 3)], num_classes=3)
    lines = warned(convnext).splitlines()
    assert lines[0] == "these stay in full precision:"
    assert lines[1] == "  features.1.0.layer_scale (a parameter of CNBlock)"
    assert len(lines) == 7 and lines[-1] == "  and 2 more"
    swin = SwinTransformer([2, 2], 8, [1, 1], [2, 2], [2, 2], num_classes=3)
    message = warned(swin)
    assert "relative_position_bias_table (a parameter of ShiftedWindowAttention)" in message and "only" not in message


def test_a_large_rest_is_said_first():
    message = warned(nn.Sequential(nn.Linear(8, 8), nn.LSTM(8, 16)))
    share = 64 / (64 + 4 * 16 * (8 + 16))
    assert message.startswith(f"only {share:.1%} of the weights that multiply are in quantized layers\n")
    assert "\n  1 (LSTM: there is no quantized form of it)" in message


def test_embeddings_norms_and_what_is_skipped_are_not_named():
    quantize(nn.Sequential(nn.Embedding(90, 8), nn.LayerNorm(8), nn.Linear(8, 64), nn.Linear(64, 2)), skip=["2"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (nn.utils.parametrizations.weight_norm, r"parametrized \(_WeightNorm\): call .*remove_parametrizations"),
        (nn.utils.parametrizations.spectral_norm, r"parametrized \(_SpectralNorm\): call .*remove_parametrizations"),
        (lambda layer: prune.identity(layer, "weight"), "pruned: call torch.nn.utils.prune.remove"),
    ],
)
def test_layers_whose_weight_is_made_are_named_once_with_the_remedy(change, reason):
    model = nn.Sequential(change(nn.ConvTranspose2d(2, 2, 3)), nn.Flatten(), nn.Linear(4, 3))
    message = warned(model)
    assert message.count("ConvTranspose2d") == 1
    assert re.search(rf"0 \(\w*ConvTranspose2d: its weight is {reason}", message)
    with pytest.raises(ValueError, match=rf"got none.*0 \(\w*ConvTranspose2d: its weight is {reason}"):
        quantize(model[:2])


def test_layers_in_a_block_whose_own_parameter_is_made_are_quantized():
    block = nn.Module()
    block.scale, block.inner = nn.Parameter(torch.ones(3, 3)), nn.Linear(3, 3)
    nn.utils.parametrizations.orthogonal(block, "scale")
    model = nn.Sequential(nn.Linear(3, 3), block)
    with pytest.warns(UserWarning, match=r"1 \(ParametrizedModule: its weight is parametrized"):
        assert type(quantize(model)[1].inner) is QLinear


def test_networks_that_others_quantized_are_refused_by_name():
    fake = nn.Sequential(nn.Linear(4, 4), torch.ao.quantization.FakeQuantize())
    with pytest.raises(
        ValueError, match=r"quantized already \(FakeQuantize of torch.ao.quantization.fake_quantize in 1"
    ):
        quantize(fake)
    for place in ("torchao.quantization.qat.linear", "brevitas.nn.quant_linear", "torch.ao.nn.qat.modules.linear"):
        theirs = type("TheirLinear", (nn.Linear,), {"__module__": place})
        with pytest.raises(ValueError, match=rf"quantized already \(TheirLinear of {place} in 1\)"):
            quantize(nn.Sequential(nn.Linear(4, 4), theirs(4, 4)))
    quantize(nn.Sequential(nn.Linear(4, 4), torch.ao.nn.quantized.FloatFunctional(), torch.ao.quantization.QuantStub()))


# --- products of activations -----------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Packed projections, the products as a user writes them; a product with a weight of its own beside."""

    def __init__(self, how):
        super().__init__()
        self.qkv, self.out, self.how = nn.Linear(4, 12), nn.Linear(4, 4), how
        self.mix = nn.Parameter(torch.eye(4))

    def forward(self, x):
        q, k, v = (self.qkv(x) @ torch.eye(12)).chunk(3, -1)
        return self.out(self.how(q, k, v) @ self.mix.T)


HOWS = {
    "scaled_dot_product_attention": F.scaled_dot_product_attention,
    "matmul": lambda q, k, v: (q @ k.mT).softmax(-1) @ v,
    "bmm": lambda q, k, v: torch.bmm(torch.bmm(q, k.mT).softmax(-1), v),
    "einsum": lambda q, k, v: torch.einsum("bqk,bkd->bqd", torch.einsum("bqd,bkd->bqk", q, k).softmax(-1), v),
}


@pytest.mark.parametrize("how", HOWS)
def test_calibration_names_modules_that_multiply_activations(how):
    model, x = nn.Sequential(nn.Linear(4, 4), *(Attention(HOWS[how]) for _ in range(4))), torch.randn(3, 5, 4)
    names = r"1 \(Attention\), 2 \(Attention\), 3 \(Attention\) and 1 more"
    with pytest.warns(UserWarning, match="mix .a parameter of Attention"):
        twin, weights_alone = quantize(model, "W4A4"), quantize(model, "W4A32")
    with pytest.warns(UserWarning, match=rf"^{names} multiply activations with activations \({how}\): those") as caught:
        calibrate(twin, x)
    assert len(caught) == 1 and not any(m._forward_hooks or m._forward_pre_hooks for m in twin.modules())
    calibrate(weights_alone, x)  # no activation is quantized, so there is nothing to say


def test_products_with_weights_and_quantized_ones_are_not_named():
    model = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), Attention(lambda q, k, v: q + k * v))
    with pytest.warns(UserWarning, match="mix"):
        twin = quantize(model, "W4A4")
    calibrate(twin, torch.randn(3, 5, 4))


# --- quantizers of one's own -----------------------------------------------------------------------------------------


class Ternary(Quantizer):
    def _add_state(self):
        self.clip = nn.Parameter(torch.ones(self.shape))

    def _set_range_(self, low, high):
        self.clip.data.copy_(high)

    def _quantize(self, x):
        return round_ste(clip(x / self.clip, -1, 1)) * self.clip

    def step_size(self, x):
        return self.clip.detach()


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


@pytest.mark.parametrize("quantizer", [Ternary, (Ternary, LSQ)])
def test_a_quantizer_of_ones_own_trains_is_measured_and_comes_back(quantizer, tmp_path):
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    twin = calibrate(quantize(mlp(), "W2A3", quantizer=quantizer, per_channel=True), x)
    kind = quantizer[1] if isinstance(quantizer, tuple) else quantizer
    assert type(twin[2].weight_quantizer) is Ternary and type(twin[2].input_quantizer) is kind
    assert all(len(row.unique()) <= 3 for row in twin[2].used_weight())
    F.cross_entropy(twin(x), y).backward()
    assert twin[2].weight_quantizer.clip.grad.any() and twin[0].weight.grad.any()
    assert landscape.trace(twin, (x, y), num_probes=2).about["space"] == "quantized"
    save(twin, tmp_path / "net")
    export(twin, tmp_path / "small")
    again = quantize(mlp(), "W2A3", quantizer=quantizer, per_channel=True)
    for path in (tmp_path / "net", tmp_path / "small"):
        assert torch.equal(load(path, again)(x), twin(x))
        name = rf"{Ternary.__module__}\.Ternary"
        with pytest.raises(ValueError, match=rf"model must be quantized with {name}.* to load .*got a float one"):
            load(path, mlp())
        with pytest.raises(ValueError, match="must have the quantizer"):
            load(path, quantize(mlp(), "W2A3"))


def test_classes_of_ours_are_known_by_their_name():
    assert quantize(mlp(), quantizer=LSQ).quantization["quantizer"] == "lsq"
    assert quantize(mlp(), quantizer=(LSQ, PACT)).quantization["quantizer"].count("saq_core.") == 2


@pytest.mark.parametrize("quantizer", ["own", nn.Linear, Ternary(2), (Ternary,), (Ternary, "lsq"), 3, None])
def test_what_is_no_quantizer_is_refused(quantizer):
    with pytest.raises(ValueError, match="quantizer must be one of 'lsq'.* a subclass of saq_core.Quantizer"):
        quantize(mlp(), quantizer=quantizer)


# --- calibration and what it is asked for ----------------------------------------------------------------------------

ROWS = torch.randn(12, 4, generator=torch.Generator().manual_seed(4))


class Rows(Dataset):
    def __init__(self, make):
        self.make = make

    def __len__(self):
        return len(ROWS)

    def __getitem__(self, k):
        return self.make(ROWS[k])


@dataclass
class Batch:
    x: torch.Tensor
    y: torch.Tensor

    def to(self, device):
        return Batch(self.x.to(device), self.y.to(device))


class Named(nn.Module):
    """Takes its input by name or as an object."""

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        return self.body(x.x if isinstance(x, Batch) else x)


LABELS = torch.zeros(12).long()
DATA = {
    "tensor": ROWS,
    "double": ROWS.double(),
    "pair": (ROWS, LABELS),
    "mapping": {"x": ROWS, "labels": LABELS},
    "mapping of another library": [UserDict({"x": ROWS, "label": LABELS})],
    "pair with a mapping": ({"x": ROWS}, LABELS),
    "dataset": Rows(lambda row: (row, 1)),
    "dataset of tensors": Rows(lambda row: row),
    "dataset of mappings": Rows(lambda row: {"x": row, "labels": 0}),
    "loader": DataLoader(Rows(lambda row: (row, 1)), 12),
    "endless": ((ROWS, LABELS) for _ in itertools.count()),
    "objects": [Batch(ROWS, LABELS)],
}


def steps(model):
    return {
        n: (q.signed, q.step.item()) for n, q in model.named_modules() if n.endswith("input_quantizer") and q.bits < 32
    }


@pytest.mark.parametrize("kind", DATA)
def test_data_of_every_kind_calibrate_alike(kind):
    expected = steps(calibrate(quantize(Named(), "W4A4"), ROWS))
    twin = quantize(Named(), "W4A4")
    assert steps(calibrate(twin, DATA[kind], batches=1)) == expected and len(expected) == 2


def test_forward_gets_the_batch_as_it_came():
    seen = []

    def forward(model, batch):
        seen.append(batch)
        model.body(batch["inputs"][0])  # not the network's own forward

    batches = [{"inputs": [ROWS], "labels": LABELS, "note": "kept"}] * 3
    twin = calibrate(quantize(Named(), "W4A4"), batches, forward=forward, batches=2)
    assert steps(twin) == steps(calibrate(quantize(Named(), "W4A4"), ROWS))
    assert len(seen) == 3 and all(batch.keys() == {"inputs", "labels", "note"} for batch in seen)


def test_feeding_returns_the_first_batch_and_takes_no_more_than_asked():
    drawn = []

    def endless():
        for k in itertools.count():
            drawn.append(k)
            yield ROWS + k, LABELS

    inputs = []
    model = nn.Sequential(nn.Linear(4, 2))
    model.register_forward_hook(lambda _, args, __: inputs.append(args[0]))
    assert feed(model, endless(), 3).equal(ROWS) and drawn == [0, 1, 2]
    assert torch.equal(torch.stack(inputs), torch.stack([ROWS, ROWS + 1, ROWS + 2]))


def test_entries_that_the_network_does_not_take_are_named():
    with pytest.raises(ValueError, match="must be arguments of the model, got 'x', 'z'"):
        calibrate(quantize(Named(), "W4A4"), [{"x": ROWS, "z": ROWS}])


def test_an_uncalibrated_network_is_not_exported_and_its_error_names_the_layer(tmp_path):
    twin = quantize(mlp(), "W4A4")
    with pytest.raises(ValueError, match="model must be calibrated to be exported.*saq_core.calibrate"):
        export(twin, tmp_path / "net")
    with pytest.raises(RuntimeError, match="activations of 2 are not calibrated"):
        twin(ROWS)
    twin[1].spare = nn.Linear(2, 2)
    twin[1].spare.input_quantizer = LSQ(4, signed=None, activation=True)  # of a layer that is never used
    with pytest.warns(UserWarning, match="never reached 1.spare"):
        calibrate(twin, ROWS)
    export(twin, tmp_path / "net")


def test_a_bypassed_layer_leaves_the_settings_of_a_dict_too(tmp_path):
    class Bypassing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.read, self.last = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            return self.last(F.linear(self.first(x), self.read.weight))

    twin = quantize(Bypassing(), {"first": 8, "read": 4, "last": 8})
    with pytest.warns(UserWarning, match="read stays in full precision"):
        calibrate(twin, ROWS)
    assert type(twin.read) is nn.Linear and type(twin.last) is QLinear
    save(twin, tmp_path / "net")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(load(tmp_path / "net", Bypassing())(ROWS), twin.eval()(ROWS))
