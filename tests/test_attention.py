import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.models import VisionTransformer

import landscape
from landscape.model import recording, replay
from saq_core import SAQ, build_model, calibrate, dequantize, load, load_data, quantize, save
from saq_core.quantization.attention import AttentionProducts, QMultiheadAttention
from saq_core.quantization.layers import QLinear
from saq_core.quantization.quantizers import QUANTIZERS

WIDTH, HEADS = 8, 2


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(**settings):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(WIDTH, HEADS, **settings).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return layer


class Block(nn.Module):
    """Attention as torchvision calls it, between two linear layers."""

    def __init__(self, **settings):
        super().__init__()
        self.first, self.attn, self.last = nn.Linear(WIDTH, WIDTH), attention(**settings), nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = self.first(x)
        return self.last(self.attn(x, x, x, need_weights=False)[0].mean(-2))


X = draw(5, 4, WIDTH)
BATCHES = [(X[:3], torch.tensor([0, 1, 2])), (X[3:], torch.tensor([2, 1]))]


def block(bits="W4A4", **settings):
    return calibrate(quantize(Block(batch_first=True).double(), bits, **settings), X)


def tiny_vit(seed=0):
    """torchvision's, on 4x4 images: 5 tokens of width 4; weights that are not zero anywhere, float64."""
    torch.manual_seed(seed)
    model = VisionTransformer(4, 2, num_layers=2, num_heads=2, hidden_dim=4, mlp_dim=6, num_classes=3).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


IMAGES = draw(7, 3, 4, 4)
LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 2])
RAGGED = [(IMAGES[:3], LABELS[:3]), (IMAGES[3:], LABELS[3:])]


# --- the float module ------------------------------------------------------------------------------------------------

CAUSAL = nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64)
CALLS = {
    "self": lambda x, y: ((x, x, x), {}),
    "without weights": lambda x, y: ((x, x, x), {"need_weights": False}),
    "weights per head": lambda x, y: ((x, x, x), {"average_attn_weights": False}),
    "cross": lambda x, y: ((x, y, y), {}),
    "three inputs": lambda x, y: ((x, y, y * 2), {"need_weights": False}),
    "float mask": lambda x, y: ((x, x, x), {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False}),
    "bool mask": lambda x, y: ((x, x, x), {"attn_mask": CAUSAL.isinf()}),
}


@pytest.mark.parametrize("mode", ["train", "eval", "no_grad"])
@pytest.mark.parametrize("layout", ["batch first", "length first", "unbatched", "without bias"])
@pytest.mark.parametrize("call", CALLS)
def test_float_bits_are_the_float_module(call, layout, mode):
    plain = attention(batch_first=layout == "batch first", dropout=0.3, bias=layout != "without bias")
    twin = quantize(plain, "W32A32").train(mode == "train")
    plain.train(mode == "train")
    x, y = (draw(4, WIDTH), draw(6, WIDTH, seed=2)) if layout == "unbatched" else (draw(4, 3, 8), draw(6, 3, 8, seed=2))
    if layout == "batch first":
        x, y = x.transpose(0, 1), y.transpose(0, 1)
    inputs, options = CALLS[call](x, y)
    found = []
    with torch.set_grad_enabled(mode != "no_grad"):
        for layer in (plain, twin):
            torch.manual_seed(3)  # of dropout
            found.append(layer(*inputs, **options))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-12, atol=1e-13)
    if options.get("need_weights", True):
        torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-12, atol=1e-13)
    else:
        assert found[0][1] is None and found[1][1] is None


@pytest.mark.parametrize("kind", [torch.bool, torch.float64])
def test_padding_and_one_mask_per_head_are_the_float_modules(kind):
    plain = attention(batch_first=True)
    padding = torch.tensor([[False] * 4, [False, False, True, True]])
    mask = draw(2 * HEADS, 4, 4) > 0.7
    mask[:, :, 0] = False
    masks = {"key_padding_mask": padding, "attn_mask": mask}
    if kind is not torch.bool:
        masks = {name: torch.zeros(m.shape, dtype=kind).masked_fill(m, -torch.inf) for name, m in masks.items()}
    x = X[:2]
    expected, found = (layer(x, x, x, **masks) for layer in (plain, quantize(plain, 32)))
    torch.testing.assert_close(found, expected)


def test_gradients_at_float_bits_are_the_float_modules():
    plain = attention(batch_first=True)
    twin = quantize(plain, "W32A32")
    for layer in (plain, twin):
        layer(X, X, X, need_weights=False)[0].square().sum().backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(twin.get_parameter(name).grad, parameter.grad)


def test_names_shapes_and_float_checkpoints():
    plain, twin = Block(), quantize(Block())
    assert type(twin.attn) is QMultiheadAttention and type(twin.attn.out_proj) is QLinear
    assert twin.load_state_dict(plain.state_dict(), strict=False).unexpected_keys == []
    assert not any("delta" in name for name in twin.state_dict())
    assert all(torch.equal(twin.state_dict()[name], value) for name, value in plain.state_dict().items())


# --- what is quantized -----------------------------------------------------------------------------------------------


def rounded(quantizer, x):
    """The formula of LSQ, written anew."""
    low, high = (-(2 ** (quantizer.bits - 1)), 2 ** (quantizer.bits - 1) - 1) if quantizer.signed else (0, 15)
    return quantizer.step * (x / quantizer.step).round().clamp(low, high)


def test_the_output_is_that_of_the_formula():
    layer = block(first_last_bits=None, input_bits=4).attn
    x = draw(2, 4, WIDTH, seed=9)
    thirds = zip("qkv", layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3), strict=True)
    q, k, v = (
        rounded(layer.get_submodule(f"{n}_weight_quantizer"), w) @ rounded(layer.input_quantizer, x).mT + b[:, None]
        for n, w, b in thirds
    )
    heads = []
    for rows in (slice(0, 4), slice(4, 8)):
        parts = [
            rounded(layer.products.get_submodule(f"{n}_quantizer"), p[:, rows].mT)
            for n, p in zip("qkv", (q, k, v), strict=True)
        ]
        scores = parts[0] @ parts[1].mT / 4**0.5
        heads.append(rounded(layer.products.map_quantizer, scores.softmax(-1)) @ parts[2])
    joined = rounded(layer.out_proj.input_quantizer, torch.cat(heads, -1))
    expected = joined @ rounded(layer.out_proj.weight_quantizer, layer.out_proj.weight).mT + layer.out_proj.bias
    torch.testing.assert_close(layer(x, x, x)[0], expected)


SITES = [f"{n}_weight_quantizer" for n in "qkv"] + [f"products.{n}_quantizer" for n in ("q", "k", "v", "map")]
SITES += ["input_quantizer", "out_proj.weight_quantizer", "out_proj.input_quantizer"]


def test_the_sites_are_all_there_are_and_have_the_bits_and_signs():
    layer = block("W4A3").attn
    found = {name: module for name, module in layer.named_modules() if getattr(module, "is_quantizer", False)}
    assert sorted(found) == sorted(SITES)
    assert all(module.bits == (4 if "weight" in name else 3) for name, module in found.items())
    assert [found[f"products.{n}_quantizer"].signed for n in ("q", "k", "v", "map")] == [True, True, True, False]


@pytest.mark.parametrize("encoder", [False, True], ids=["alone", "in nn.TransformerEncoder"])
@pytest.mark.parametrize("mode", ["train", "eval", "no_grad"])
@pytest.mark.parametrize("site", SITES)
def test_every_quantizer_acts_in_every_mode(site, mode, encoder):
    plain = Block(batch_first=True).double()
    if encoder:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 12, dropout=0.0, batch_first=True)
        plain = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.TransformerEncoder(layer, 1), nn.Linear(WIDTH, 3)).double()
    twin = calibrate(quantize(plain), X).train(mode == "train")
    owner = twin[1].layers[0].self_attn if encoder else twin.attn
    with torch.set_grad_enabled(mode != "no_grad"):
        before = twin(X).detach()
        owner.get_submodule(site).step.data.mul_(1.5)
        after = twin(X).detach()
    assert not torch.equal(before, after)


# --- torch's own encoder layers --------------------------------------------------------------------------------------


def encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 12, dropout=0.0, batch_first=True, activation="gelu")
    return nn.TransformerEncoder(layer, 2).double()


@pytest.mark.parametrize("mode", ["train", "eval", "no_grad"])
def test_an_encoder_at_float_bits_is_the_float_encoder(mode):
    plain = encoder().train(mode == "train")
    twin = quantize(plain, 32)
    found = []
    with torch.set_grad_enabled(mode != "no_grad"):
        for model in (plain, twin):
            found.append(model(X))
    torch.testing.assert_close(found[1], found[0], rtol=1e-11, atol=1e-12)


def test_padding_does_not_make_nested_tensors_of_a_quantized_encoder():
    plain = encoder().eval()
    twin = quantize(plain, 32)
    padding = torch.tensor([[False] * 4] * 4 + [[False, False, True, True]])
    with torch.no_grad():
        with pytest.warns(UserWarning, match="nested tensors"):
            expected = plain(X, src_key_padding_mask=padding)
        found = twin(X, src_key_padding_mask=padding)
    torch.testing.assert_close(found[~padding], expected[~padding])
    assert plain.use_nested_tensor


def test_an_encoder_layer_keeps_out_of_its_fused_path(monkeypatch):
    calls = []
    fused = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *a, **k: calls.append(1) or fused(*a, **k))
    plain = encoder().eval()
    twin = calibrate(quantize(plain), X)
    assert type(twin.layers[0].linear1) is QLinear
    with torch.no_grad():
        twin(X)
        assert calls == []
        plain(X)
        dequantize(twin)(X)
    assert len(calls) == 4  # two layers each: the float network still takes it


class Own(nn.MultiheadAttention):
    """Somebody's subclass, which may compute something else."""


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.MultiheadAttention(8, 2, kdim=4), "another width"),
        (lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True), "keys of its own"),
        (lambda: nn.MultiheadAttention(8, 2, add_zero_attn=True), "keys of its own"),
        (lambda: Own(8, 2), r"Own: there is no quantized form of it"),
    ],
)
def test_other_attention_stays_float_as_a_whole_and_says_why(make, reason):
    model = nn.Sequential(make(), nn.Linear(8, 2))
    with pytest.warns(UserWarning, match=rf"full precision:\n  0 \(.*{reason}") as caught:
        twin = quantize(model)
    assert len(caught) == 1 and not hasattr(twin[0].out_proj, "quantized_weights") and type(twin[1]) is QLinear


def test_an_encoder_layer_with_other_attention_stays_whole():
    layer = nn.TransformerEncoderLayer(8, 2, 12)
    layer.self_attn = Own(8, 2)
    with pytest.warns(UserWarning, match=r"0 \(TransformerEncoderLayer: its fused evaluation reads"):
        twin = quantize(nn.Sequential(layer, nn.Linear(8, 2)))
    assert type(twin[0].linear1) is nn.Linear


# --- the protocol ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_layer_tells_its_quantized_weights(name, per_channel):
    layer = block("W4A32", quantizer=name, per_channel=per_channel).attn
    q, delta, step = layer.quantized_weights()["in_proj_weight"]
    assert delta is layer.delta and not delta.any() and not q.requires_grad and step.shape == (3 * WIDTH, 1)
    torch.testing.assert_close(q, layer.used_weight())
    if per_channel:
        assert step.unique().numel() > 3
    else:
        assert [part.unique().numel() for part in step.chunk(3)] == [1, 1, 1] and step.unique().numel() == 3
    for part, s in zip(q.chunk(3), step.chunk(3), strict=True):
        gaps = (part - part.amin(1, keepdim=True)) / s  # within a row
        torch.testing.assert_close(gaps, gaps.round(), rtol=0, atol=1e-6)


def test_delta_is_added_after_the_quantizers_and_gets_the_gradient_of_the_quantized_weight():
    twin = block("W4A32").eval()
    expected, e = dequantize(twin), draw(3 * WIDTH, WIDTH) * 0.1
    expected.attn.in_proj_weight.data += e
    twin.attn.delta.copy_(e)
    torch.testing.assert_close(twin(X), expected(X))
    twin.attn.delta.requires_grad_(True)
    for model in (twin, expected):
        model(X).square().sum().backward()
    torch.testing.assert_close(twin.attn.delta.grad, expected.attn.in_proj_weight.grad)


def test_dequantizing_gives_the_float_module_back():
    twin = block("W3A32").eval()
    plain = dequantize(twin)
    torch.testing.assert_close(plain(X), twin(X))
    assert [type(m) for m in plain.modules()] == [type(m) for m in Block().modules()]
    assert plain.state_dict().keys() == Block().state_dict().keys()
    calibrate(quantize(plain), X)(X)


def test_bits_by_name_reach_every_part():
    bits = {"attn": "W2A3", "attn.products": "W32A5", "attn.out_proj": "W6A7"}
    layer = block(bits).attn
    found = [layer.get_submodule(site).bits for site in SITES]
    assert found == [2, 2, 2, 5, 5, 5, 5, 3, 6, 7]
    layer = block({"attn": "W2A3"}).attn
    assert layer.products.map_quantizer.bits == 3 and layer.out_proj.weight_quantizer.bits == 32
    with pytest.raises(ValueError, match=r"bits must name layers .* got 'attn\.map'"):
        block({"attn.map": 4})


def test_attention_as_first_layer_leaves_its_input_and_quantizes_its_products():
    twin = quantize(nn.Sequential(attention(), nn.Linear(8, 2)), "W4A4")
    bits = [twin[0].q_weight_quantizer.bits, twin[0].input_quantizer.bits, twin[0].products.q_quantizer.bits]
    assert bits == [8, 32, 4]


def test_bad_masks_are_refused():
    layer = quantize(attention(), 32)
    with pytest.raises(ValueError, match="attn_mask must be given when is_causal=True"):
        layer(X, X, X, is_causal=True)
    with pytest.raises(ValueError, match=r"attn_mask must have shape \(…, 5, 5\), got \(5, 3\)"):
        layer(X, X, X, attn_mask=torch.zeros(5, 3))


def test_the_products_have_second_derivatives():
    products = AttentionProducts()
    products.attach_(32, "lsq", X)
    q, k, v = (draw(2, 3, 4, seed=s).requires_grad_() for s in range(3))
    assert torch.autograd.gradgradcheck(lambda *a: products(*a, [], 0.0)[0], (q, k, v))


def test_one_graph_for_the_compiler():
    twin = block().train()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X), twin(X))


# --- whole networks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantizer", ["lsq", "liq"])
def test_a_vision_transformer_is_quantized_without_a_warning_and_its_tokens_stay(quantizer):
    twin = calibrate(quantize(tiny_vit(), "W4A4", quantizer=quantizer), IMAGES)
    bits = {
        n: (m.weight_quantizer.bits, m.input_quantizer.bits)
        for n, m in twin.named_modules()
        if hasattr(m, "weight_quantizer")
    }
    assert bits.pop("conv_proj") == (8, 32) and bits.pop("heads.head") == (8, 8)
    assert len(bits) == 6 and set(bits.values()) == {(4, 4)}  # out_proj and two of the MLP, twice
    assert type(twin.class_token) is nn.Parameter and type(twin.encoder.ln) is nn.LayerNorm
    assert not torch.equal(twin(IMAGES), tiny_vit()(IMAGES))


def test_around_the_quantized_weights_curvature_and_surface_are_those_of_the_float_network_there():
    twin = quantize(tiny_vit(), "W4A32")
    plain = dequantize(twin)
    traces = [landscape.trace(model, RAGGED, num_probes=3) for model in (twin, plain)]
    assert traces[0].about["space"] == "quantized" and traces[0].value == pytest.approx(traces[1].value, rel=1e-9)
    surfaces = [landscape.surface(model, RAGGED, points=3).loss for model in (twin, plain)]
    torch.testing.assert_close(*surfaces)


def test_rounding_is_the_rise_from_the_float_network_to_the_quantized_one():
    twin = quantize(tiny_vit(), "W4A32")
    losses = [F.cross_entropy(model.eval()(IMAGES), LABELS).item() for model in (twin, tiny_vit())]
    found = landscape.rounding_sharpness(twin, RAGGED, num_samples=2)
    assert found.rounded.item() == pytest.approx(losses[0] - losses[1], rel=1e-6)


@pytest.mark.parametrize("space", ["quantized", "latent"])
def test_landscapes_where_activations_are_quantized_too(space):
    twin = calibrate(quantize(tiny_vit(), "W4A4"), IMAGES)
    trace = landscape.trace(twin, RAGGED, space=space, num_probes=3)
    surface = landscape.surface(twin, RAGGED, space=space, points=3)
    assert trace.value != 0 and surface.loss.isfinite().all() and surface.loss.std() > 0
    sharp = landscape.average_sharpness(twin, RAGGED, space=space, num_samples=2)
    assert torch.as_tensor(sharp.delta_loss).isfinite().all() and torch.as_tensor(sharp.delta_loss).any()


@pytest.mark.parametrize("case", [1, 2, 3])
def test_a_sharpness_aware_step_perturbs_the_packed_weight(case):
    twin = calibrate(quantize(tiny_vit(), "W4A4"), IMAGES).train()
    layer = twin.encoder.layers[0].self_attention
    before, seen = layer.in_proj_weight.detach().clone(), []
    optimizer = SAQ(rho=0.5, case=case).wrap(twin, torch.optim.SGD(twin.parameters(), lr=0.01))

    def closure():
        optimizer.zero_grad()
        seen.append((layer.delta.detach().clone(), layer.in_proj_weight.detach() - before))
        loss = F.cross_entropy(twin(IMAGES), LABELS)
        loss.backward()
        return loss

    optimizer.step(closure)
    (first, _), (delta, moved) = seen
    assert not first.any() and bool(delta.any()) == (case != 2) and bool(moved.any()) == (case == 2)
    assert not layer.delta.any() and not torch.equal(layer.in_proj_weight, before)


def test_checkpoints_bring_a_quantized_vision_transformer_back(tmp_path):
    data = load_data("digits", limit=64, device="cpu")
    twin = calibrate(quantize(build_model("vit", data), "W4A4"), data).eval()
    save(twin, tmp_path / "vit.pt")
    again = load(tmp_path / "vit.pt")
    assert torch.equal(again(data.test[0][:5]), twin(data.test[0][:5]))
    assert again.state_dict().keys() == twin.state_dict().keys()


class Watched(Block):
    """Notes, at each pass, whether gradients are recorded and which fused kernels of attention are allowed."""

    seen = ()

    def forward(self, x):
        backends = torch.backends.cuda
        Watched.seen += ((torch.is_grad_enabled(), backends.flash_sdp_enabled(), backends.mem_efficient_sdp_enabled()),)
        return super().forward(x)


def test_passes_without_gradients_may_take_fused_kernels_and_only_those_that_the_process_allows():
    data = draw(6, 5, WIDTH), torch.arange(6) % 3
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    try:
        objective = landscape.Objective(Watched().double(), data)
        Watched.seen = ()
        objective.evaluate()
        assert set(Watched.seen) == {(False, True, False)}
        Watched.seen = ()
        hessian = landscape.Hessian(objective)
        hessian @ torch.ones(hessian.shape[0], dtype=torch.float64)
        assert {flags for flags in Watched.seen if flags[0]} == {(True, False, False)}
        flags = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
        assert flags == (True, False)
    finally:
        torch.backends.cuda.enable_mem_efficient_sdp(True)


def test_a_fused_kernel_that_gives_another_loss_is_not_taken(monkeypatch):
    whole = F.scaled_dot_product_attention

    def wrong(*args, **kwargs):
        return whole(*args, **kwargs) * (1.1 if torch.backends.cuda.flash_sdp_enabled() else 1)

    class Direct(Block):
        def forward(self, x):
            x = self.first(x)
            return self.last(F.scaled_dot_product_attention(x, x, x).mean(-2))

    data = draw(6, 5, WIDTH), torch.arange(6) % 3
    right = landscape.Objective(Direct().double(), data)
    assert right.network.attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", wrong)
    objective = landscape.Objective(Direct().double(), data)
    assert not objective.network.attention
    torch.testing.assert_close(objective.evaluate().loss, right.centre.loss)


def test_kernels_are_not_fused_where_the_process_allows_none_or_has_none_that_fits():
    data = draw(6, 5, WIDTH), torch.arange(6) % 3
    for kernel in (SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION):  # of the latter a CPU has none
        with sdpa_kernel(kernel):
            objective = landscape.Objective(Block().double(), data)
        assert not objective.network.attention
        objective.evaluate()


class Laplacian(Block):
    """Differentiates twice inside, whatever the mode: no fused kernel does."""

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(super().forward(x).sum(), x, create_graph=True)
            (bend,) = torch.autograd.grad(slope.square().sum(), x, create_graph=True)
        return super().forward(x) + bend.mean((1, 2))[:, None]


def test_a_network_that_differentiates_attention_twice_keeps_the_math_kernel():
    data = draw(6, 5, WIDTH), torch.arange(6) % 3
    assert not landscape.Objective(Laplacian().double(), data).network.attention


def test_attention_is_replayed_unless_it_drops_at_random():
    class Direct(Block):
        def forward(self, x):
            x = self.first(x)
            return self.last(F.scaled_dot_product_attention(x, x, x).mean(-2))

    objective = landscape.Objective(Direct().double(), (draw(6, 5, WIDTH), torch.arange(6) % 3))
    step = {name: torch.ones_like(value) for name, value in objective.coordinates.centre.items()}
    with objective.measurement_mode():
        replay._Recorded(objective, [step])
    for name in ("flash_attention", "efficient_attention", "cudnn_attention"):
        kernel = getattr(torch.ops.aten, f"_scaled_dot_product_{name}").default
        given = [argument.name for argument in kernel._schema.arguments]
        for dropped in (0.0, 0.5):
            args = [dropped if argument == "dropout_p" else None for argument in given]
            assert recording._draws(kernel, args, {}) == recording._draws(kernel, [], {"dropout_p": dropped})
            assert recording._draws(kernel, args, {}) == bool(dropped)
        assert not recording._draws(kernel, [], {})
        assert recording._is_size(kernel, 7) and not recording._is_size(torch.ops.aten.item.default, 7)
    assert recording._draws(torch.ops.aten.bernoulli.default, [], {})


def test_a_slice_of_much_data_takes_no_more_memory_of_a_recording_than_it_is_long(monkeypatch):
    monkeypatch.setattr(replay, "KEPT", 20_000)
    images = draw(100, 5, WIDTH)
    objective = landscape.Objective(Block().double(), (images[:6], torch.arange(6) % 3))
    step = {name: torch.ones_like(value) for name, value in objective.coordinates.centre.items()}
    assert images.nbytes > 20_000
    with objective.measurement_mode():
        replay._Recorded(objective, [step])


def test_large_views_of_small_weights_take_no_memory_of_a_recording(monkeypatch):
    """A bias, say, that attention lays out for every token of the batch."""
    monkeypatch.setattr(replay, "KEPT", 20_000)
    layers = nn.Linear(WIDTH, 1), nn.Unflatten(-1, (1, 1)), Spread(), nn.Flatten(), nn.Linear(4096, 3)
    model, data = nn.Sequential(*layers).double(), (draw(6, WIDTH), torch.arange(6) % 3)
    objective = landscape.Objective(model, data)
    step = {name: torch.ones_like(value) for name, value in objective.coordinates.centre.items()}
    with objective.measurement_mode():
        replay._Recorded(objective, [step])


class Spread(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(draw(1))

    def forward(self, x):
        return x + self.bias.expand(6, 1, 4096)
