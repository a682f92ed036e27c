"""Exported networks: dense integers, exact values, the same outputs, and refusals."""

import copy

import numpy as np
import pytest
import torch
from networks import thin_networks
from torch import nn

import landscape
import saq_core
from saq_core import (
    Recipe,
    SizeReport,
    build_model,
    calibrate,
    describe,
    export,
    load,
    quantize,
    save,
    train,
)
from saq_core.quantization.quantizers import QUANTIZERS

LIMIT = 64  # of the digits
pytestmark = pytest.mark.usefixtures("coarse")


@pytest.fixture(scope="module", autouse=True)
def thin():
    with thin_networks():
        yield


@pytest.fixture(scope="module")
def floats(digits, thin):
    return {name: build_model(name, digits) for name in ("resnet8", "vit")}


def same_outputs(model, twin, x):
    with torch.no_grad():
        return torch.equal(model.eval()(x), twin(x))


@pytest.mark.parametrize("bits, per_channel", [("W2A2", True), ("W3A8", False)])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("network", ["resnet8", "vit"])
def test_an_exported_network_computes_the_same_bits(network, quantizer, bits, per_channel, digits, floats, tmp_path):
    model = quantize(floats[network], bits, quantizer=quantizer, per_channel=per_channel)
    model = calibrate(model, digits)
    before = copy.deepcopy(model.state_dict())
    report = export(model, tmp_path / "net")
    twin = load(tmp_path / "net")
    assert same_outputs(model, twin, digits.test[0])
    assert describe(twin, digits.test[0].shape[1:]).layers == describe(model).layers
    for size in report.weights.values():
        assert size.integers == -(-int(np.prod(size.shape)) * size.bits // 8)
    after = model.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items() if isinstance(v, torch.Tensor))
    again = export(twin, tmp_path / "again")
    assert again.weights == report.weights and same_outputs(model, load(tmp_path / "again"), digits.test[0])


def test_a_trained_network_keeps_its_function_without_its_latent_weights(digits, tmp_path):
    model = calibrate(quantize(build_model("resnet8", digits), "W2A4"), digits)
    train(model, digits, Recipe(epochs=2, lr=0.05, batch_size=16))
    export(model, tmp_path / "net")
    save(model, tmp_path / "all")
    twin = load(tmp_path / "net")
    assert same_outputs(model, twin, digits.test[0])
    latent, stored = model.layer1[0].conv1.weight, twin.layer1[0].conv1.weight
    assert len(latent.unique()) > 100 and len(stored.unique()) <= 4
    assert (tmp_path / "net").stat().st_size < 0.35 * (tmp_path / "all").stat().st_size
    data = digits.probe
    ours, theirs = (landscape.trace(m, data, seed=1, num_probes=4, rtol=0.01) for m in (model, twin))
    assert theirs.value == pytest.approx(ours.value, rel=1e-4)


def test_the_file_holds_what_the_documentation_says(digits, floats, tmp_path):
    """Read by hand: bits from the lowest up, (integer - zero) · scale."""
    model = calibrate(quantize(floats["resnet8"], "W3A3"), digits)
    report = export(model, tmp_path / "net")
    stored = torch.load(tmp_path / "net", weights_only=True)["packed"]["layer2.0.conv1.weight"]
    count, raw = int(np.prod(stored["shape"])), stored["integers"].numpy()
    bits = np.array([(byte >> k) & 1 for byte in raw for k in range(8)])[: 3 * count].reshape(count, 3)
    values = ((bits * [1, 2, 4]).sum(1) - float(stored["zero"])) * float(stored["scale"])
    expected = model.layer2[0].conv1.used_weight().detach().flatten().numpy()
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=0)
    content = torch.load(tmp_path / "net", weights_only=True)
    tensors = [t for t in content["state"].values() if isinstance(t, torch.Tensor)]
    for packed in content["packed"].values():
        tensors += [packed["integers"], packed["scale"], packed["zero"]]
    assert report.bytes == sum(t.numel() * t.element_size() for t in tensors)
    weights = sum(p.numel() for n, p in model.named_parameters() if "quantizer" not in n)
    statistics = {n: b for n, b in model.named_buffers() if n in floats["resnet8"].state_dict()}
    assert report.float_bytes == 4 * weights + sum(b.numel() * b.element_size() for b in statistics.values())
    assert report.file_bytes == (tmp_path / "net").stat().st_size > report.bytes


def test_the_report_reads_like_a_table(digits, floats, tmp_path):
    report = export(calibrate(quantize(floats["resnet8"], "W4A4"), digits), tmp_path / "net")
    lines = str(report).splitlines()
    assert lines[1].split() == ["conv1.weight", "16x1x3x3", "8", "144", "8"]
    assert "times fewer than" in lines[-2] and str(tmp_path / "net") in lines[-1]
    assert isinstance(report, SizeReport)


def test_what_is_not_quantized_stays_as_it_is(digits, floats, tmp_path):
    model = quantize(floats["resnet8"], {"layer1.0.conv1": "W2A32"}, first_last_bits=None)
    report = export(model, tmp_path / "net")
    twin = load(tmp_path / "net")
    assert list(report.weights) == ["layer1.0.conv1.weight"]
    assert torch.equal(twin.layer2[0].conv1.weight, model.layer2[0].conv1.weight)
    assert same_outputs(model, twin, digits.test[0])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
        self.hidden, self.out.weight = nn.Linear(6, 6), self.table.weight

    def forward(self, tokens):
        return self.out(self.hidden(self.table(tokens)).relu())


def test_a_tied_weight_stays_float_where_it_was_float(tmp_path):
    """The embedding reads the latent table, the layer after it the quantized one: the file has to hold both."""
    torch.manual_seed(0)
    tokens = torch.randint(0, 11, (5, 3))
    model = calibrate(quantize(Tied(), "W2A8", first_last_bits=None), [(tokens, tokens[:, 0])])
    export(model, tmp_path / "net")
    twin = load(tmp_path / "net", model=Tied())
    assert same_outputs(model, twin, tokens)


def test_networks_of_other_people_need_a_model(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    quantized = calibrate(quantize(model, "W4A4"), [(x, torch.zeros(6).long())])
    export(quantized, tmp_path / "net")
    with pytest.raises(ValueError, match="model must be given"):
        load(tmp_path / "net")
    for given in (model, quantized):
        assert same_outputs(quantized, load(tmp_path / "net", model=given), x)
    with pytest.raises(ValueError, match="another network|which the file has as integers"):
        load(tmp_path / "net", model=nn.Sequential(nn.Linear(4, 5)))
    with pytest.raises(ValueError, match="another network.*shape"):
        load(tmp_path / "net", model=nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))


def test_what_cannot_be_exported_trained_or_saved_says_so(digits, floats, tmp_path):
    with pytest.raises(ValueError, match="must have quantized weights to export, got none"):
        export(floats["resnet8"], tmp_path / "net")
    with pytest.raises(ValueError, match="must have quantized weights to export, got none"):
        export(quantize(floats["resnet8"], "W32A8", first_last_bits=None), tmp_path / "net")
    assert not list(tmp_path.iterdir())
    model = calibrate(quantize(floats["resnet8"], "W4A4"), digits)
    export(model, tmp_path / "net")
    twin = load(tmp_path / "net")
    with pytest.raises(ValueError, match="latent weights.*train the one that save"):
        train(twin, digits, Recipe(epochs=1, lr=0.1))
    with pytest.raises(ValueError, match="latent weights.*export"):
        save(twin, tmp_path / "other")
    with pytest.raises(ValueError, match="latent weights.*use latent=False"):
        saq_core.dequantize(twin, latent=True)
    train(saq_core.dequantize(twin), digits, Recipe(epochs=1, lr=0.01))
    (tmp_path / "cut").write_bytes((tmp_path / "net").read_bytes()[:5000])
    with pytest.raises(ValueError, match="cut short"):
        load(tmp_path / "cut")
    model.layer1[0].conv1.weight_quantizer.forward = lambda w: w
    with pytest.raises(ValueError, match="layer1.0.conv1.weight must have at most 16 different values"):
        export(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.again = self.twice

    def forward(self, x):
        return self.last(self.again(self.twice(self.first(x).relu()).relu()).relu())


def test_a_layer_of_two_names_is_stored_once(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(9, 4)
    model = calibrate(quantize(Shared(), "W3A8"), x)
    report = export(model, tmp_path / "net")
    assert same_outputs(model, load(tmp_path / "net", model=Shared()), x)
    assert report.float_bytes == 4 * sum(p.numel() for p in Shared().parameters())
    assert list(report.weights) == ["first.weight", "twice.weight", "last.weight"]


@pytest.mark.parametrize("quantizer", ["lsq-asymmetric", "liq", "minmax"])
def test_networks_in_bfloat16_keep_their_bits(quantizer, tmp_path):
    """Products of integers and steps round there, so that levels lie beside their multiples."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 3)
    model, x = nn.Sequential(*layers).bfloat16(), torch.randn(5, 1, 6, 6).bfloat16()
    twin = calibrate(quantize(model, "W8A8", quantizer=quantizer), x)
    export(twin, tmp_path / "net")
    assert same_outputs(twin, load(tmp_path / "net", model=model), x)


@pytest.mark.parametrize("quantizer", ["liq", "minmax", "lsq-asymmetric"])
def test_levels_that_do_not_occur_take_no_room(quantizer, tmp_path):
    torch.manual_seed(0)
    model = quantize(nn.Sequential(nn.Conv2d(1, 8, 3)), "W24A32", quantizer=quantizer, first_last_bits=None)
    report = export(model, tmp_path / "net")
    assert report.weights["0.weight"].scales <= 4 * model[0].weight.numel()


def test_a_weight_that_is_not_finite_says_so(tmp_path):
    model = quantize(nn.Sequential(nn.Linear(4, 3)), "W4A32", first_last_bits=None)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="0.weight must be finite"):
        export(model, tmp_path / "net")


@pytest.mark.parametrize("quantizer", ["pact", "dorefa", "liq"])
def test_levels_halfway_between_multiples_of_the_step_are_whole_numbers_less_a_half(quantizer, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(16, 5)
    export(calibrate(quantize(model, "W2A2", quantizer=quantizer), [(x, torch.zeros(16).long())]), tmp_path / "net")
    stored = torch.load(tmp_path / "net", weights_only=True)["packed"]["2.weight"]
    assert float(stored["zero"]) % 1 == 0.5 and "levels" not in stored and len(stored["integers"]) == 16
