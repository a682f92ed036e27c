import copy
import itertools

import pytest
import torch
from networks import RAGGED, convolutional, quantized
from torch import nn
from torch.autograd.function import once_differentiable
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from landscape import GGN, Hessian, top_eigenvalues, trace


def network(activation, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), activation, nn.Linear(12, 12), activation, nn.Linear(12, 3)).to(dtype)


def data(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(96, 8, generator=generator).to(dtype), torch.randint(3, (96,), generator=generator)


def vectors(n):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(n, 3, generator=generator, dtype=torch.float64).unbind(1)


@pytest.mark.parametrize(("dtype", "slack"), [(torch.float64, 1e-6), (torch.float32, 1e-3), (torch.bfloat16, 0.4)])
def test_products_are_the_second_derivatives(dtype, slack):
    model = network(nn.Tanh(), dtype)
    exact = Hessian(copy.deepcopy(model).double(), data(torch.float64))
    hessian = Hessian(model, data(dtype), products="difference")
    for v in vectors(hessian.shape[0]):
        expected = exact @ v
        gap = float(((hessian @ v.to(dtype)).double() - expected).norm() / expected.norm())
        assert gap < slack
    block = torch.stack(vectors(hessian.shape[0]), dim=1).to(dtype)
    torch.testing.assert_close((hessian @ block)[:, 1], hessian @ block[:, 1])
    folds = hessian.by_fold(block[:, 0]).to(dtype)
    mean = torch.einsum("f,fn->n", hessian.fold_weights.to(dtype), folds)
    torch.testing.assert_close(mean, hessian @ block[:, 0], rtol=0.05, atol=0.05 * float(mean.abs().max()))


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.GELU(), nn.ReLU()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_stated_error_covers_the_truth(activation, dtype):
    model = network(activation, dtype)
    exact = Hessian(copy.deepcopy(model).double(), data(torch.float64))
    hessian = Hessian(model, data(dtype), products="difference")
    for v in vectors(hessian.shape[0]):
        found = (hessian @ v.to(dtype)).double()
        gap = float((found - exact @ v).norm() / found.norm())
        stated = hessian.product_error(v.to(dtype))
        assert gap <= stated and (stated < 100 * gap or isinstance(activation, nn.ReLU))
    assert exact.product_error(v) == 0.0


class Recomputed(nn.Sequential):
    def forward(self, x):
        for block in self:
            x = checkpoint(block, x, use_reentrant=False)
        return x


def test_what_a_network_recomputes_takes_no_memory_in_differences_and_all_of_it_in_graphs():
    batch = [(torch.randn(1000, 32, generator=torch.Generator().manual_seed(0)), torch.arange(1000) % 32)]
    peaks = {}
    for kind, products in ((nn.Sequential, "exact"), (Recomputed, "exact"), (Recomputed, "difference")):
        torch.manual_seed(0)
        blocks = [nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32)) for _ in range(6)]
        hessian = Hessian(kind(*blocks), batch, products=products, memory=0)
        vector = torch.randn(hessian.shape[0], generator=torch.Generator().manual_seed(1))
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as found:
            image = hessian @ vector
        changes = [event.nbytes() for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
        peaks[kind, products] = max(itertools.accumulate(changes)), image
    (most, expected), (same, image), (least, near) = peaks.values()
    assert most == pytest.approx(same, rel=0.1) and least < 0.3 * most
    torch.testing.assert_close(image, expected)
    assert float((near - expected).norm() / expected.norm()) < 0.01


def test_rounded_activations_are_refused_and_rounded_weights_are_not():
    with pytest.raises(ValueError, match="differences of straight-through gradients are off"):
        Hessian(quantized("W4A4"), RAGGED, products="difference")
    model = quantized("W4A32")
    exact, hessian = Hessian(model, RAGGED), Hessian(model, RAGGED, products="difference")
    v = vectors(hessian.shape[0])[0].to(hessian.dtype)
    found = hessian @ v
    assert float((found - exact @ v).norm() / found.norm()) <= max(1e-6, hessian.product_error(v))


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        return 3 * ctx.saved_tensors[0] ** 2 * slope


class Kernel(nn.Module):
    def forward(self, x):
        return Cube.apply(x)


class Plain(nn.Module):
    def forward(self, x):
        return x**3


def test_a_kernel_without_a_second_derivative_is_measured_on_request():
    model, twin = network(Kernel()), network(Plain())
    with pytest.raises(ValueError, match=r"products='difference'"):
        Hessian(model, data())
    hessian = Hessian(model, data(), products="difference")
    expected = top_eigenvalues(twin, data(), k=2).values
    found = top_eigenvalues(hessian, k=2)
    stated = hessian.product_error(torch.cat([part.reshape(-1) for part in found.vector(0).values()]))
    assert stated < 0.2 and abs(float(found.values[0] / expected[0]) - 1) < stated
    assert found.about["derivatives"] == "difference" and "differences of gradients" in found.about["products_by"]
    assert trace(hessian, rtol=0.1).value == pytest.approx(trace(twin, data(), rtol=0.1).value, rel=0.15)


def test_weights_are_moved_and_put_back_and_nothing_else_is_differenced():
    model = convolutional()
    before = copy.deepcopy(model.state_dict())
    hessian = Hessian(model, RAGGED, products="difference")
    zero = torch.zeros(hessian.shape[0])
    assert not (hessian @ zero).any()
    hessian.product_error(torch.ones(hessian.shape[0]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match="moves weights: leave at= out"):
        Hessian(model, RAGGED, at="fc.input", products="difference")
    with pytest.raises(ValueError, match="products must be one of"):
        Hessian(model, RAGGED, products="forward")
    with pytest.raises(TypeError):
        GGN(model, RAGGED, products="difference")


def test_weights_of_zero_are_moved_too():
    model = nn.Linear(8, 3)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    hessian, v = Hessian(model, data(), products="difference"), torch.arange(27.0)
    torch.testing.assert_close(hessian @ v, Hessian(model, data()) @ v, rtol=0.01, atol=0.01)
    assert hessian.product_error(v) < 0.05
