"""The kinds of network, loss and data that curvlinops tests itself on, rebuilt: two batches of unequal size, or one.

Loss, gradient and both products are compared with those of all data at once, by plain automatic differentiation in
float64. What counts is the loss as PyTorch would compute it: a mean over everything, or a sum over everything.
"""

from collections import UserDict

import pytest
import torch
from strangers import gauss_newton, truth
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from landscape import GGN, Hessian, Objective


class Keyed(nn.Module):
    """Takes a mapping as its input."""

    def __init__(self, classes, activation=nn.ReLU):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 5), activation(), nn.Linear(5, classes))

    def forward(self, data):
        return self.net(data["x"])


class Shared(nn.Module):
    """One network for every position of a sample: its outputs stay apart (classes first, if need be), or are averaged.

    Args:
        body: maps (n, …, features), or images, to (n, …, outputs).
        way: "apart", "classes first" or "averaged".
    """

    def __init__(self, body, way):
        super().__init__()
        self.body, self.way = body, way

    def forward(self, x):
        h = self.body(x)
        if self.way == "averaged":
            return h.flatten(1, -2).mean(1)
        return h.movedim(-1, 1) if self.way == "classes first" else h


class ChannelsLast(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).movedim(1, -1)


def mlp(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 5), nn.ReLU(), nn.Linear(5, outputs))


def deep_linear(inputs, hidden, outputs):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Linear(hidden, outputs))


def convolutional():
    first = nn.Sequential(nn.Conv2d(1, 2, 5), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(first, nn.Conv2d(2, 3, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 10))


def normalised():
    model = nn.Sequential(nn.Linear(10, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    nn.init.uniform_(model[1].weight)
    nn.init.uniform_(model[1].bias)
    return model


def dropping():
    return nn.Sequential(nn.Linear(10, 5), nn.Dropout(), nn.ReLU(), nn.Linear(5, 2))


def real(*shape):
    return torch.rand(*shape, dtype=torch.float64)


def classes(count, *shape):
    return torch.randint(count, shape)


def binary(*shape):
    return torch.randint(2, shape).double()


def keyed(rows, kind):
    return kind(x=real(rows, 10))


CE, BCE, MSE = nn.CrossEntropyLoss, nn.BCEWithLogitsLoss, nn.MSELoss
CASES = {  # network, loss, batches
    "CE": (lambda: mlp(10, 3), CE(), lambda: [(real(n, 10), classes(3, n)) for n in (3, 4)]),
    "CE, sum": (lambda: mlp(10, 3), CE(reduction="sum"), lambda: [(real(n, 10), classes(3, n)) for n in (3, 4)]),
    "BCE, one output": (lambda: mlp(10, 1), BCE(), lambda: [(real(n, 10), binary(n, 1)) for n in (3, 4)]),
    "BCE, two outputs": (lambda: mlp(10, 2), BCE(), lambda: [(real(n, 10), binary(n, 2)) for n in (3, 4)]),
    "BCE, two outputs, sum": (
        lambda: mlp(10, 2),
        BCE(reduction="sum"),
        lambda: [(real(n, 10), binary(n, 2)) for n in (3, 4)],
    ),
    "MSE": (lambda: mlp(8, 3), MSE(), lambda: [(real(n, 8), real(n, 3)) for n in (2, 6)]),
    "MSE, sum": (lambda: mlp(8, 3), MSE(reduction="sum"), lambda: [(real(n, 8), real(n, 3)) for n in (2, 6)]),
    "mapping, CE": (
        lambda: Keyed(2),
        CE(),
        lambda: [(keyed(n, kind), classes(2, n)) for n, kind in ((3, UserDict), (4, dict))],
    ),
    "mapping, BCE": (
        lambda: Keyed(1),
        BCE(),
        lambda: [(keyed(n, kind), binary(n, 1)) for n, kind in ((3, UserDict), (4, dict))],
    ),
    "mapping, MSE": (
        lambda: Keyed(2),
        MSE(),
        lambda: [(keyed(n, kind), real(n, 2)) for n, kind in ((3, UserDict), (4, dict))],
    ),
    "sequence, CE": (
        lambda: Shared(mlp(10, 3), "classes first"),
        CE(),
        lambda: [(real(n, 5, 10), classes(3, n, 5)) for n in (3, 4)],
    ),
    "sequence, CE, sum": (
        lambda: Shared(mlp(10, 3), "classes first"),
        CE(reduction="sum"),
        lambda: [(real(n, 5, 10), classes(3, n, 5)) for n in (3, 4)],
    ),
    "sequence, BCE": (lambda: mlp(10, 2), BCE(), lambda: [(real(n, 5, 10), binary(n, 5, 2)) for n in (3, 4)]),
    "sequence, BCE, sum": (
        lambda: mlp(10, 2),
        BCE(reduction="sum"),
        lambda: [(real(n, 5, 10), binary(n, 5, 2)) for n in (3, 4)],
    ),
    "sequence, MSE": (lambda: mlp(8, 3), MSE(), lambda: [(real(n, 5, 8), real(n, 5, 3)) for n in (2, 6)]),
    "sequence, MSE, sum": (
        lambda: mlp(8, 3),
        MSE(reduction="sum"),
        lambda: [(real(n, 5, 8), real(n, 5, 3)) for n in (2, 6)],
    ),
    "images, CE": (convolutional, CE(), lambda: [(real(5, 1, 28, 28), classes(10, 5)) for _ in range(2)]),
    "one sample, CE": (lambda: deep_linear(5, 4, 3), CE(), lambda: [(real(1, 5), classes(3, 1))]),
    "one sample, CE, sum": (lambda: deep_linear(5, 4, 3), CE(reduction="sum"), lambda: [(real(1, 5), classes(3, 1))]),
    "one sample, BCE": (lambda: deep_linear(4, 3, 2), BCE(), lambda: [(real(1, 4), real(1, 2))]),
    "one sample, BCE, sum": (lambda: deep_linear(4, 3, 2), BCE(reduction="sum"), lambda: [(real(1, 4), real(1, 2))]),
    "dropout": (
        dropping,
        CE(),
        lambda: DataLoader(TensorDataset(real(12, 10), classes(2, 12)), batch_size=3),
    ),
    "BatchNorm, shuffled": (
        normalised,
        CE(),
        lambda: DataLoader(TensorDataset(real(12, 10), classes(2, 12)), batch_size=3, shuffle=True),
    ),
}
BY_REDUCTION = {
    "linear twice, one output": (lambda: deep_linear(6, 3, 1), lambda: [(real(n, 6), real(n, 1)) for n in (2, 5)]),
    "linear twice": (lambda: deep_linear(5, 4, 3), lambda: [(real(n, 5), real(n, 3)) for n in (1, 7)]),
    "linear twice, mapping": (
        lambda: Keyed(3, nn.Identity),
        lambda: [(keyed(n, kind), real(n, 3)) for n, kind in ((1, UserDict), (7, dict))],
    ),
    "linear": (lambda: nn.Linear(5, 3), lambda: [(real(7, 5), real(7, 3)) for _ in range(2)]),
    "linear, one output": (lambda: nn.Linear(6, 1), lambda: [(real(5, 6), real(5, 1)) for _ in range(2)]),
    "shared": (
        lambda: Shared(deep_linear(5, 4, 3), "apart"),
        lambda: [(real(n, 2, 4, 5), real(n, 2, 4, 3)) for n in (2, 7)],
    ),
    "shared, averaged": (
        lambda: Shared(deep_linear(5, 4, 3), "averaged"),
        lambda: [(real(n, 2, 4, 5), real(n, 3)) for n in (1, 7)],
    ),
    "convolution": (
        lambda: Shared(ChannelsLast(3, 2, 4, padding=2), "apart"),
        lambda: [(real(n, 3, 3, 3), real(n, 4, 4, 2)) for n in (2, 7)],
    ),
    "convolution, averaged": (
        lambda: Shared(ChannelsLast(3, 2, 4, padding=2), "averaged"),
        lambda: [(real(n, 3, 3, 3), real(n, 2)) for n in (1, 8)],
    ),
}
for _name, (_make, _data) in BY_REDUCTION.items():
    CASES[f"{_name}, MSE"] = (_make, MSE(), _data)
    CASES[f"{_name}, MSE, sum"] = (_make, MSE(reduction="sum"), _data)


@pytest.mark.parametrize("name", CASES)
def test_loss_gradient_and_products_are_those_of_all_data_at_once(name):
    make, loss, data = CASES[name]
    torch.manual_seed(0)
    model, batches = make().double(), data()
    xs, ys = zip(*batches, strict=True)
    y = torch.cat(ys)
    whole = {"x": torch.cat([x["x"] for x in xs])} if not isinstance(xs[0], torch.Tensor) else torch.cat(xs)

    function = Objective(model, batches, loss=loss)
    hessian, ggn = Hessian(function), GGN(function)
    vector = torch.randn(hessian.shape[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    value, gradient, product = truth(model, lambda m: loss(m(whole), y), vector)
    assert function.centre.loss.item() == pytest.approx(value, rel=1e-10)
    assert function.reduction == loss.reduction or len(y) == 1
    torch.testing.assert_close(function.coordinates.flatten(function.gradient()), gradient, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(hessian @ vector, product, rtol=1e-7, atol=1e-9)
    expected = gauss_newton(model, lambda m: m(whole), lambda z: loss(z, y), vector)
    torch.testing.assert_close(ggn @ vector, expected, rtol=1e-7, atol=1e-9)


def test_batches_that_leave_out_other_samples_in_every_pass_are_refused():
    torch.manual_seed(0)
    data = TensorDataset(real(12, 10), classes(2, 12))
    loader = DataLoader(data, batch_size=5, shuffle=True, drop_last=True)
    with pytest.raises(ValueError, match="the data change from pass to pass"):
        Objective(mlp(10, 2).double(), loader, loss=F.cross_entropy)
