"""Gradients, weights and inputs at the ends of what numbers hold, and networks of several dtypes."""

import pytest
import torch
from strangers import TOKENS, Tied
from torch import nn
from torch.nn import functional as F

import saq_core


@pytest.mark.parametrize("scale", [1e-15, 1e-25, 1e-30, 1.0, 1e15])
def test_epsilon_is_as_long_as_rho_at_any_gradient(scale):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    before, seen = [p.detach().clone() for p in model.parameters()], []
    sam, factors = saq_core.SAM(model, torch.optim.SGD(model.parameters(), lr=0.0), rho=0.05), torch.randn(3, 5)

    def closure():
        moves = [p.detach() - w for p, w in zip(model.parameters(), before, strict=True)]
        seen.append(float(torch.cat([move.flatten() for move in moves]).norm()))
        loss = (scale * factors[:, :4] * model.weight).sum() + (scale * factors[:, 4] * model.bias).sum()
        loss.backward()
        return loss

    sam.step(closure)
    assert seen == pytest.approx([0.0, 0.05], rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_gradient_of_zero_moves_nothing(dtype):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).to(dtype)
    before = [p.detach().clone() for p in model.parameters()]
    sam = saq_core.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)

    def closure():
        loss = 0 * F.cross_entropy(model(torch.ones(3, 4, dtype=dtype)).float(), torch.tensor([0, 1, 0]))
        loss.backward()
        return loss

    sam.step(closure)
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("quantizer", ["lsq", "minmax", "dorefa", "pact"])
def test_a_layer_of_zeros_stays_so_in_half_precision(quantizer):
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    nn.init.zeros_(model[1].weight)
    quantized = saq_core.quantize(model.half(), "W4A32", quantizer=quantizer)
    assert not quantized[1].used_weight().any()


def test_files_keep_the_dtype_of_each_tensor(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4).bfloat16(), nn.LayerNorm(4), nn.Linear(4, 2).double())
    model[1].weight.data += 0.001 * torch.randn(4)
    saq_core.save(model, tmp_path / "model.pt")
    loaded = saq_core.load(tmp_path / "model.pt", model)
    for name, part in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == part.dtype and torch.equal(loaded.state_dict()[name], part), name


def test_an_embedding_that_shares_the_heads_weight_counts_at_32_bits(tmp_path):
    quantized = saq_core.calibrate(saq_core.quantize(Tied(), "W4A32"), TOKENS)
    size, packed = saq_core.cost(quantized, TOKENS).size_bytes, saq_core.export(quantized, tmp_path / "model.pt").bytes
    assert packed - 16 <= size <= packed  # but for the steps' own bytes


def test_a_network_that_takes_batches_of_one_size_is_calibrated():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.cell, self.last = nn.Linear(6, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)
            self.inner = nn.Linear(8, 8)
            self.register_buffer("state", torch.zeros(1, 10, 8))

        def forward(self, x):
            return self.last(self.inner(self.cell(self.first(x), self.state)[0]))

    with pytest.warns(UserWarning, match="there is no quantized form"):
        quantized = saq_core.quantize(Recurrent(), "W4A4")
    saq_core.calibrate(quantized, torch.randn(10, 5, 6))
    assert quantized.inner.input_quantizer.signed is not None


def test_a_mask_of_minus_infinity_is_an_input():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
            self.first, self.layer, self.last = nn.Linear(8, 8), layer, nn.Linear(8, 3)

        def forward(self, src, src_mask):
            return self.last(self.layer(self.first(src), src_mask=src_mask))

    batch = {"src": torch.randn(4, 7, 8), "src_mask": nn.Transformer.generate_square_subsequent_mask(7)}
    assert saq_core.calibrate(saq_core.quantize(Attending(), "W4A4", example=batch), [batch])


def test_other_tensors_called_like_a_weight_are_in_a_file(tmp_path):
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    model[1].register_buffer("weight_scale", torch.full((1,), 3.0))
    saq_core.export(saq_core.quantize(model, "W4A32"), tmp_path / "model.pt")
    assert saq_core.load(tmp_path / "model.pt", model)[1].weight_scale == 3


@pytest.mark.parametrize("scale", [1e-25, 1e20])
def test_gptq_does_not_depend_on_the_inputs_scale(scale):
    torch.manual_seed(0)
    model, x = nn.Sequential(*(nn.Linear(6, 6, bias=False) for _ in range(3))).double(), torch.randn(64, 6)
    expected, found = (
        saq_core.gptq(model, (x * k).double(), "W3A32", first_last_bits=None)[0].weight for k in (1.0, scale)
    )
    torch.testing.assert_close(found, expected)
    for result in saq_core.gptq(model.float(), x * scale, "W3A32").gptq.values():
        assert 0 < result.nearest < 1


def test_training_on_a_dataset_that_draws_leaves_the_random_numbers_alone():
    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            return torch.randn(4) + index, index % 3

    probes = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before, model = torch.get_rng_state(), nn.Linear(4, 3)
        after = torch.get_rng_state()
        saq_core.train(model, Noisy(), saq_core.Recipe(epochs=1, lr=0.1, batch_size=4))
        assert torch.equal(torch.get_rng_state(), after) and not torch.equal(before, after)
        probes.append(model.probe[0])
    assert torch.equal(*probes)
