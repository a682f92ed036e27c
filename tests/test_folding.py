"""BatchNorm folded on the fly: the same function, whatever is done with a convolution's output."""

import copy

import pytest
import torch
from networks import RAGGED, X, Y, classification, convolutional, dense_hessian, varied
from torch import nn
from torch.nn import functional as F

from landscape import Hessian
from landscape.model.folding import Folding
from landscape.model.objective import Objective


def images(dims):
    return torch.randn(2, 3, *[8] * dims, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def moved(norm):
    norm.running_mean.normal_(std=0.3)
    norm.running_var.uniform_(0.5, 1.5)
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm


CONVOLUTIONS = {
    "plain": lambda c, n: nn.Sequential(c(3, 4, 3), n(4)),
    "no bias, stride, padding, dilation": lambda c, n: nn.Sequential(c(3, 4, 3, 2, 2, 2, bias=False), n(4)),
    "groups": lambda c, n: nn.Sequential(c(3, 6, 3, groups=3), n(6)),
    "padding by name": lambda c, n: nn.Sequential(c(3, 4, 3, padding="same"), n(4)),
    "circular padding": lambda c, n: nn.Sequential(c(3, 4, 3, padding=1, padding_mode="circular"), n(4)),
    "no affine": lambda c, n: nn.Sequential(c(3, 4, 3), n(4, affine=False)),
    "norm first": lambda c, n: nn.Sequential(n(3), nn.ReLU(), c(3, 4, 3)),
    "two norms": lambda c, n: nn.Sequential(c(3, 4, 3), n(4), n(4)),
}
DIMENSIONS = {1: (nn.Conv1d, nn.BatchNorm1d), 2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}


@pytest.mark.parametrize("dims", DIMENSIONS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_folded_network_is_the_network(name, dims):
    torch.manual_seed(0)
    model = CONVOLUTIONS[name](*DIMENSIONS[dims]).double().eval()
    for module in model:
        if hasattr(module, "running_mean"):
            moved(module)
    x = images(dims)
    expected = model(x)
    for channels_last in (False, True):
        with Folding(channels_last) as folding:
            found = model(x)
        found = folding.result(found)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    parameters = list(model.parameters())
    with Folding(False):
        slopes = torch.autograd.grad(model(x).square().sum(), parameters)
    for ours, theirs in zip(slopes, torch.autograd.grad(expected.square().sum(), parameters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


class Reuse(nn.Module):
    """The convolution's output goes into BatchNorm and elsewhere too, in every order."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.norm, self.how = nn.Conv2d(3, 4, 3), moved(nn.BatchNorm2d(4)), how

    def forward(self, x):
        h = self.conv(x)
        if self.how == "norm first":
            return self.norm(h) + h
        if self.how == "sum first":
            return h.sum() + self.norm(h)
        if self.how == "in place":
            h.mul_(2)
            return self.norm(h)
        if self.how == "list":
            return self.norm(torch.cat([h, h]))
        if self.how == "keyword":
            return F.batch_norm(input=h, running_mean=self.norm.running_mean, running_var=self.norm.running_var)
        if self.how == "functional":
            return F.batch_norm(h, self.norm.running_mean, self.norm.running_var, bias=self.norm.bias, eps=0.1)
        if self.how == "batch statistics":
            return F.batch_norm(h, None, None, training=True)
        return h  # leaves the network unused


@pytest.mark.parametrize(
    "how",
    ["norm first", "sum first", "in place", "list", "keyword", "functional", "batch statistics", "nothing"],
)
def test_other_uses_of_a_convolution_see_its_output(how):
    torch.manual_seed(0)
    model = Reuse(how).double().eval()
    x = images(2)
    with Folding(False) as folding:
        found = model(x)
    found = folding.result(found)
    torch.testing.assert_close(found, model(x), rtol=1e-12, atol=1e-13)


def wrong_fold(self, x, *args, **kwargs):
    return 0 * self._computed(x)


def test_where_folding_would_change_the_loss_it_is_left_out(monkeypatch):
    right = Objective(convolutional(), RAGGED)
    monkeypatch.setattr(Folding, "_fold", wrong_fold)
    wrong = Objective(convolutional(), RAGGED)
    assert right.network.folded and not wrong.network.folded
    assert wrong.centre.loss.item() == pytest.approx(F.cross_entropy(convolutional().eval()(X), Y).item(), rel=1e-12)


def fails_once(call, error):
    """A loss that fails in one of its calls, and a list that is as long as it was called."""
    calls = []

    def loss(output, target):
        calls.append(0)
        if len(calls) == call:
            raise error("on purpose")
        return F.cross_entropy(output, target)

    return loss, calls


@pytest.mark.parametrize("call", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("fold", [Folding._fold, wrong_fold])
def test_an_interrupted_construction_leaves_the_network_as_it_was(monkeypatch, call, fold):
    monkeypatch.setattr(Folding, "_fold", fold)
    loss, calls = fails_once(call, KeyboardInterrupt)
    model = convolutional().train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        Objective(model, RAGGED, loss=loss)
    assert len(calls) == call and model.training
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    function = Objective(model, RAGGED, loss=loss)
    assert float(function.centre.loss) == pytest.approx(F.cross_entropy(model.eval()(X), Y).item(), rel=1e-12)
    assert function.network.folded == (fold is not wrong_fold)


@pytest.mark.parametrize("error", [ValueError, RuntimeError, AttributeError])
def test_a_fold_that_fails_is_left_out(monkeypatch, error):
    def failing(*args, **kwargs):
        raise error("a stand-in cannot do this")

    monkeypatch.setattr(Folding, "_fold", failing)
    function = Objective(convolutional(), RAGGED)
    expected = F.cross_entropy(convolutional().eval()(X), Y).item()
    assert function.centre.loss.item() == pytest.approx(expected, rel=1e-12) and not function.network.folded


@pytest.mark.parametrize("error", [ValueError, KeyError, RuntimeError])
def test_an_error_of_the_loss_itself_is_told(error):
    centre = convolutional().eval()(X[:3])

    def loss(output, target):
        if not torch.allclose(output[:3], centre):
            raise error("only beside the centre")
        return F.cross_entropy(output, target)

    with pytest.raises(error, match="only beside the centre"):
        Objective(convolutional(), [(X[:3], Y[:3])], loss=loss)


def test_a_loss_without_gradient_is_measured_unfolded():
    def loss(output, target):
        return torch.from_numpy(-output.log_softmax(1).numpy()[range(len(target)), target.numpy()])

    function = Objective(convolutional(), RAGGED, loss=loss)
    expected = F.cross_entropy(convolutional().eval()(X), Y).item()
    assert function.centre.loss.item() == pytest.approx(expected, rel=1e-12) and not function.network.folded


def test_folding_remembers_nothing_of_a_batch():
    model = Reuse("norm first").double().eval()
    with Folding(False) as folding:
        model(images(2))
        assert not len(folding._waiting)


def test_float32_products_agree_with_those_of_the_plain_network():
    model = convolutional().float()
    folded, plain = Hessian(model, RAGGED), Hessian(copy.deepcopy(model), RAGGED)
    plain.objective.network.folded = False
    v = torch.randn(folded.shape[0], generator=torch.Generator().manual_seed(0))
    expected = plain @ v
    assert float((folded @ v - expected).norm() / expected.norm()) < 1e-5
    assert folded.about()["batchnorm_folded"]


class Frozen(torch.autograd.Function):
    """Keeps its input for the backward pass: a stand-in would be kept as zeros."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope * ctx.saved_tensors[0]


class Contexts(nn.Module):
    """A convolution called in one context of gradients and used in another."""

    def __init__(self, how):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(2, 3, 2), moved(nn.BatchNorm2d(3)), nn.Conv2d(3, 4, 2)
        self.last, self.head, self.how = moved(nn.BatchNorm2d(4)), nn.Linear(4, 3), how

    def forward(self, x):
        h = self.norm(self.first(x))
        if self.how == "detached":
            with torch.no_grad():
                h = self.second(h)
            return self.head(self.last(h).mean((2, 3)))
        h = self.second(h)
        if self.how == "scale without gradient":
            with torch.no_grad():
                scale = h.abs().amax((1, 2, 3), keepdim=True)
            return self.head(self.last(h / scale).mean((2, 3)))
        if self.how == "custom function":
            return self.head(self.last(Frozen.apply(h)).mean((2, 3)))
        return self.head(torch.utils.checkpoint.checkpoint(self.last, h, use_reentrant=False).mean((2, 3)))


@pytest.mark.parametrize("how", ["detached", "scale without gradient", "custom function", "checkpoint"])
def test_gradients_flow_where_they_flow_in_the_plain_network(how):
    torch.manual_seed(0)
    model = Contexts(how).double().eval()
    expected = dense_hessian(model, classification, varied(model))
    hessian = Hessian(Objective(model, RAGGED, validate=False))  # what is detached has a gradient that is no derivative
    found = hessian @ torch.eye(len(expected), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


class Output:
    def __init__(self, image):
        self.image = image


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(2, 3, 1), moved(nn.BatchNorm2d(3)), nn.Conv2d(2, 2, 1)

    def forward(self, x):
        return Output(self.last(x) + 0 * self.norm(self.first(x)).sum())


def test_outputs_that_hide_tensors_are_seen_right_however_small_the_loss():
    torch.manual_seed(0)
    model = Denoiser().double().eval()
    with torch.no_grad():
        for parameter in model.last.parameters():
            parameter.mul_(1e-3)

    def loss(output, target):
        return output.image.square().mean()

    expected = float(model.last(X).square().mean().detach())
    assert Objective(model, [(X, Y)], loss=loss).evaluate().loss.item() == pytest.approx(expected, rel=1e-10)


def test_buffers_that_a_forward_pass_moves_start_anew_each_time():
    class Averaging(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = convolutional()
            self.register_buffer("average", torch.zeros((), dtype=torch.float64))

        def forward(self, x):
            self.average.mul_(0.999).add_(1e-6 * x.mean())
            return self.inner(x) * (1 + self.average)

    function = Objective(Averaging(), RAGGED)
    losses = {float(function.evaluate().loss) for _ in range(5)}
    assert losses == {function.centre.loss.item()}
    assert losses == {Objective(Averaging(), RAGGED).centre.loss.item()}
