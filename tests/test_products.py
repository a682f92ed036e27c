"""Gauss-Newton matrices, chosen layers, a layer's input, folds of the data, and what is refused."""

import pytest
import torch
from networks import (
    RAGGED,
    X,
    Y,
    as_function,
    case,
    classification,
    convolutional,
    dense_hessian,
    perceptron,
    quantized,
)
from networks import varied as names_of
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from landscape import GGN, Hessian, surface, top_eigenvalues, trace
from landscape.model.objective import Objective


def dense(operator):
    return operator @ torch.eye(operator.shape[0], dtype=operator.dtype)


def close(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


# --- Gauss-Newton ---------------------------------------------------------------------------------------------------


def dense_gauss_newton(model, names, loss):
    """Jᵀ·H·J sample by sample, from dense Jacobians."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    start = torch.cat([tensors[name].detach().flatten() for name in names])
    sizes = [tensors[name].numel() for name in names]
    total = torch.zeros(len(start), len(start), dtype=torch.float64)
    for x, y in zip(X, Y, strict=True):

        def output(flat, x=x):
            moved = {n: part.view_as(tensors[n]) for n, part in zip(names, flat.split(sizes), strict=True)}
            return functional_call(model, moved, (x[None],))[0]

        jacobian = torch.autograd.functional.jacobian(output, start)
        bend = torch.autograd.functional.hessian(lambda z, y=y: loss(z[None], y[None]), output(start))
        total += jacobian.T @ bend @ jacobian / len(X)
    return total


@pytest.mark.parametrize("name", ["float", "W4A4 quantized", "W4A4 latent"])
def test_the_gauss_newton_matrix_is_that_of_dense_jacobians(name):
    model, space, hessian = case(name)
    found = dense(GGN(model, RAGGED, space=space))
    close(found, dense_gauss_newton(model, names_of(model, space), F.cross_entropy))
    assert float(torch.linalg.eigvalsh(found).min()) > -1e-12
    assert not torch.allclose(found, hessian, rtol=0.01)


def test_the_gauss_newton_matrix_of_a_regression():
    model = convolutional().eval()
    targets = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batches = [(X[:3], targets[:3]), (X[3:], targets[3:])]

    def loss(output, target):
        return (output - target).pow(4).mean()

    sizes = [len(x) for x, _ in batches]
    parts = []
    for (x, t), size in zip(batches, sizes, strict=True):
        f, start = as_function(model, lambda m, x=x: m(x), names_of(model))
        jacobian = torch.autograd.functional.jacobian(lambda w, f=f: f(w).flatten(), start)
        bend = torch.autograd.functional.hessian(lambda z, t=t: loss(z.view_as(t), t), f(start).flatten().detach())
        parts.append(size * jacobian.T @ bend @ jacobian / 7)
    close(dense(GGN(model, batches, loss=loss)), sum(parts))


def test_of_a_linear_model_both_matrices_are_the_same():
    model, data = nn.Linear(5, 3).double(), (X.flatten(1)[:, :5], Y)
    close(dense(GGN(model, data)), dense(Hessian(model, data)))


def test_the_gauss_newton_matrix_needs_the_output():
    def objective(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1]), len(batch[1])

    with pytest.raises(ValueError, match="make the objective with loss=loss"):
        GGN(Objective(convolutional(), RAGGED, objective=objective))


# --- chosen layers, a layer's input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float", "W4A4 quantized", "W4A4 latent"])
def test_chosen_layers_give_their_block_of_the_whole(name):
    model, space, whole = case(name)
    some = Hessian(model, RAGGED, space=space, layers=["3", "7.bias"])
    mine = torch.cat(
        [
            torch.full((n.numel(),), k.startswith("3.") or k == "7.bias")
            for k, n in Hessian(model, RAGGED, space=space).coordinates.centre.items()
        ]
    )
    assert some.coordinates.names == ["3.weight", "3.bias", "7.bias"]
    close(dense(some), whole[mine][:, mine])


def test_a_name_that_nothing_has_is_refused():
    with pytest.raises(ValueError, match="layers: nothing that varies is called 'conv9'"):
        Hessian(convolutional(), RAGGED, layers=["3", "conv9"])
    with pytest.raises(TypeError, match=r"layers must be a list .*write \['3'\]"):
        Hessian(convolutional(), RAGGED, layers="3")


@pytest.mark.parametrize("bits", [None, "W4A4"])
@pytest.mark.parametrize("at", ["3.input", "7.input"])
def test_the_curvature_over_a_layers_input_is_that_of_the_dense_hessian(bits, at):
    model = (quantized(bits) if bits else convolutional()).eval()
    index = int(at.split(".")[0])
    features = model[:index](X).detach()

    def tail(flat):
        return F.cross_entropy(model[index:](flat.view_as(features)), Y)

    expected = torch.autograd.functional.hessian(tail, features.flatten())
    hessian = Hessian(model, RAGGED, at=at)
    close(dense(hessian), expected)
    torch.testing.assert_close(hessian.coordinates.centre[at], features)
    assert float(torch.trace(expected)) == pytest.approx(
        float(sum(hessian.by_fold(v)[0] @ v for v in torch.eye(len(expected), dtype=torch.float64))), rel=1e-9
    )
    assert hessian.about()["space"] == f"input of {index}"
    assert not model[index]._forward_pre_hooks


def test_what_comes_out_of_one_layer_goes_into_the_next():
    outside, inside = (Hessian(convolutional(), RAGGED, at=at) for at in ("2.output", "3.input"))
    assert outside.about()["space"] == "output of 2" and not outside.objective.model[2]._forward_hooks
    close(dense(outside), dense(inside))


@pytest.mark.parametrize("at", ["1.output", "2.input"])
def test_what_comes_next_may_work_in_place(at):
    layers = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 3)
    inside = nn.Sequential(*layers).double().eval()
    outside = nn.Sequential(*layers[:2], nn.ReLU(), *layers[3:]).eval()
    close(dense(Hessian(inside, RAGGED, at=at)), dense(Hessian(outside, RAGGED, at=at)))


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.attention(x, x, x)[0].mean(1))


def test_an_output_of_several_tensors_is_refused():
    with pytest.raises(ValueError, match="whose output is one tensor, got a tuple"):
        Hessian(Attentive().double(), (X[:, 0], Y), at="attention.output")


def test_a_layer_input_that_cannot_vary_is_refused():
    with pytest.raises(ValueError, match='at must be "<module>.input"'):
        Hessian(convolutional(), RAGGED, at="3")
    with pytest.raises(ValueError, match="has no filters"):
        Hessian(convolutional(), RAGGED, at="3.input").filter_relative()
    twice = nn.Sequential(layer := nn.Linear(5, 5), nn.Tanh(), layer, nn.Linear(5, 3)).double()
    with pytest.raises(ValueError, match="must be called once"):
        Hessian(twice, (X.flatten(1)[:, :5], Y), at="0.input")


# --- folds ----------------------------------------------------------------------------------------------------------


def batches_of(sizes):
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(ends[-1], 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (ends[-1],), generator=generator)
    return [(x[a:b], y[a:b]) for a, b in zip(ends, ends[1:], strict=False)]


@pytest.mark.parametrize("sizes", [[3, 4, 1, 2], [2] * 20, [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 9]])
@pytest.mark.parametrize("kind", [Hessian, GGN])
def test_the_folds_are_the_hessians_of_their_samples(kind, sizes):
    model, batches = perceptron(), batches_of(sizes)
    operator = kind(model, batches)
    folds = [n * min(16, len(sizes)) // len(sizes) for n in range(len(sizes))]
    weights = operator.fold_weights
    v = torch.randn(operator.shape[0], 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    images = operator.by_fold(v)
    assert images.shape == (min(16, len(sizes)), *v.shape) and float(weights.sum()) == pytest.approx(1)
    for fold in range(len(weights)):
        own = [batch for batch, f in zip(batches, folds, strict=True) if f == fold]
        close(images[fold], kind(model, own) @ v)
        assert float(weights[fold]) == pytest.approx(sum(len(x) for x, _ in own) / sum(sizes))
    close(torch.einsum("f,fnk->nk", weights, images), operator @ v)
    torch.testing.assert_close(operator.by_fold(v[:, 0]), images[:, :, 0])


def test_fewer_than_four_batches_are_one_fold():
    operator = Hessian(convolutional(), RAGGED)
    assert operator.fold_weights.tolist() == [1.0]
    v = torch.ones(operator.shape[0], dtype=torch.float64)
    close(operator.filter_relative().by_fold(v)[0], operator.filter_relative() @ v)


def test_asking_for_the_weights_costs_no_product_that_is_counted():
    operator = Hessian(convolutional(), RAGGED)
    _ = operator.fold_weights
    assert operator.products == 0


# --- estimates and guards -------------------------------------------------------------------------------------------


def test_estimates_grow_with_the_products_and_stay_within_memory():
    roomy, tight = (Hessian(convolutional(), RAGGED, memory=memory) for memory in (1e9, 0))
    one, ten = roomy.estimate(1), roomy.estimate(10)
    assert 0 < one["seconds"] < ten["seconds"] and one["bytes"] == ten["bytes"] > 0
    assert tight.estimate(10)["bytes"] == 0 and tight.estimate(10)["seconds"] > ten["seconds"] * 0.5


class Rounded(torch.autograd.Function):
    """LSQ's gradient written by hand: right at first order, not the derivative of anything at second."""

    @staticmethod
    def forward(ctx, x, step):
        ctx.save_for_backward(x, step)
        return (x / step).round() * step

    @staticmethod
    def backward(ctx, slope):
        x, step = ctx.saved_tensors
        return slope, (slope * ((x / step).round() - x / step)).sum()


class HandWritten(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = convolutional()
        self.step = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x):
        return self.inner(Rounded.apply(x * self.inner[0].weight.mean(), self.step))


def test_products_that_are_not_symmetric_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="not symmetric.*hand-written autograd.Function"):
        Hessian(HandWritten(), RAGGED)


class Noisy(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.rand_like(x)


def test_what_is_random_is_found_and_named():
    model = nn.Sequential(nn.Sequential(nn.Linear(5, 4), Noisy()), nn.Linear(4, 3)).double()
    with pytest.raises(ValueError, match=r"loss changed when repeated .*: 0\.1 \(Noisy\) is stochastic in eval mode"):
        trace(model, (X.flatten(1)[:, :5], Y))
    assert not any(module._forward_hooks for module in model.modules())

    def loss(output, target):
        return F.cross_entropy(output, target) + torch.rand(())

    with pytest.raises(ValueError, match="the model or its loss is stochastic"):
        top_eigenvalues(convolutional(), RAGGED, loss=loss)


class Sampled(nn.Module):
    """Draws between two modules that are no more random than the noise that they are given."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        mean = self.encoder(x)[0][:, -1]
        return self.decoder(mean + torch.randn_like(mean))


def test_a_module_that_is_given_noise_is_not_blamed_for_it():
    data = torch.randn(9, 5, 4), torch.arange(9) % 3
    with pytest.raises(ValueError, match="the model or its loss is stochastic"):
        trace(Sampled(), data)
    with pytest.raises(ValueError, match=r"0 \(Sampled\) is stochastic in eval mode"):
        trace(nn.Sequential(Sampled()), data)


def test_metrics_and_errors_over_the_data_come_with_the_loss():
    model, data = convolutional().eval(), (X, Y)
    function = Objective(
        model, data, metrics={"margin": lambda z, y: z.max(1).values, "mean": lambda z, y: z.mean()}, batch_size=3
    )
    here, there = function.evaluate(), function.evaluate({"7.bias": torch.ones(3, dtype=torch.float64) * 0.1})
    output = model(X).detach()
    losses = F.cross_entropy(output, Y, reduction="none")
    torch.testing.assert_close(here.losses, losses)
    assert here.metrics.tolist() == pytest.approx([output.max(1).values.mean().item(), output.mean().item()])
    assert float(here.stderr()) == pytest.approx(float(losses.std()) / 7**0.5)
    assert float(there.stderr(here)) == pytest.approx(float((there.losses - here.losses).std()) / 7**0.5)
    one = Objective(model, [data], objective=lambda m, b: (F.cross_entropy(m(b[0]), b[1]), 7)).evaluate()
    assert float(one.stderr()) != float(one.stderr())


def test_tokens_to_be_ignored_do_not_count():
    model = nn.Conv1d(5, 4, 1).double()
    x = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.randint(0, 4, (3, 6), generator=torch.Generator().manual_seed(0))
    y[:, 4:] = -100
    assert Objective(model, (x, y)).centre.loss.item() == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-12)


def test_dense_hessians_and_both_batchings_agree():
    expected = dense_hessian(convolutional(), classification, names_of(convolutional()))
    close(dense(Hessian(convolutional(), (X, Y))), expected)


# --- a device that is not waited for ---------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """How often a number of a tensor was asked for: on a GPU everything behind it waits."""

    count = 0

    def __torch_dispatch__(self, operation, types, arguments=(), settings=None):
        self.count += operation in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return operation(*arguments, **(settings or {}))


@pytest.mark.parametrize("make", [lambda: convolutional(), lambda: quantized("W4A4")], ids=["float", "W4A4"])
def test_a_product_waits_for_no_number(make):
    model = make().eval()
    hessian = Hessian(model, RAGGED)
    vectors = torch.randn(hessian.shape[0], 3, dtype=hessian.dtype)
    hessian @ vectors  # the first one checks the data
    with Waits() as waits:
        hessian @ vectors[:, 0]
        hessian @ vectors
    assert not waits.count


def test_a_surface_waits_as_often_for_many_points_as_for_few():
    counts = []
    for points in (3, 7):
        with Waits() as waits:
            surface(convolutional().eval(), RAGGED, points=points)
        counts.append(waits.count)
    assert counts[0] == counts[1] > 0
