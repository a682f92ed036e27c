"""BatchNorm folded on the fly: the same function, whatever is done with a convolution's output."""

import copy

import pytest
import torch
from networks import RAGGED, X, Y, convolutional
from torch import nn
from torch.nn import functional as F

from landscape import Hessian
from landscape.folding import Folding
from landscape.objective import Objective


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


def test_where_folding_would_change_the_loss_it_is_left_out(monkeypatch):
    right, wrong = Objective(convolutional(), RAGGED), Objective(convolutional(), RAGGED)
    right.centre()
    monkeypatch.setattr(Folding, "_fold", lambda self, x, *args, **kwargs: 0 * self._computed(x))
    wrong.centre()
    assert right.folded and not wrong.folded
    assert wrong.centre()[0] == pytest.approx(F.cross_entropy(convolutional().eval()(X), Y).item(), rel=1e-12)


def test_folding_remembers_nothing_of_a_batch():
    model = Reuse("norm first").double().eval()
    with Folding(False) as folding:
        model(images(2))
        assert not len(folding._waiting)


def test_float32_products_agree_with_those_of_the_plain_network():
    model = convolutional().float()
    folded, plain = Hessian(model, RAGGED), Hessian(copy.deepcopy(model), RAGGED)
    plain.objective.folded = False
    v = torch.randn(folded.shape[0], generator=torch.Generator().manual_seed(0))
    expected = plain @ v
    assert float((folded @ v - expected).norm() / expected.norm()) < 1e-5
    assert folded.about()["batchnorm_folded"]
