"""Networks, losses and batches composed at random, against plain automatic differentiation on all data at once."""

import random
from functools import partial

import pytest
import torch
from strangers import SERIES, TOKENS, Function, X, Y, truth
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from landscape import Hessian, Objective

pytestmark = pytest.mark.usefixtures("no_group_is_left")

WIDTH = 4
ACTIVATIONS = (
    nn.Tanh,
    nn.GELU,
    nn.SiLU,
    nn.Softplus,
    nn.Sigmoid,
    nn.ELU,
    nn.Mish,
    nn.CELU,
    nn.LogSigmoid,
    nn.Tanhshrink,
)
ACTIVATIONS += (nn.ReLU, nn.LeakyReLU, nn.Hardswish, nn.Hardsigmoid, nn.PReLU, nn.Softsign)
UNDERIVED = (nn.Hardsigmoid,)  # by PyTorch: what follows is written out for the truth


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Again(nn.Module):
    """The same layer under two names, called twice."""

    def __init__(self, layer):
        super().__init__()
        self.one, self.other = layer, nn.Sequential(layer)

    def forward(self, x):
        return self.other(torch.tanh(self.one(x)))


class Checkpointed(Residual):
    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


class Attention(nn.Module):
    """Attention among the features, each a token."""

    def __init__(self):
        super().__init__()
        self.body = nn.MultiheadAttention(2, 1, batch_first=True)
        self.into, self.out = nn.Linear(1, 2), nn.Linear(2, 1)

    def forward(self, x):
        h = self.into(x[..., None])
        return self.out(self.body(h, h, h, need_weights=False)[0])[..., 0]


class Adapted(nn.Module):
    """A frozen layer and a trained correction of low rank beside it."""

    def __init__(self):
        super().__init__()
        self.base = linear().requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(2, WIDTH) / 2), nn.Parameter(torch.randn(WIDTH, 2) / 2)

    def forward(self, x):
        return self.base(x) + F.linear(F.linear(x, self.a), self.b)


class Exponential(nn.Module):
    def forward(self, w):
        return w.exp() - 1


def linear():
    return nn.Linear(WIDTH, WIDTH)


def tied():
    layers = nn.Sequential(linear(), nn.Tanh(), linear())
    layers[2].weight = layers[0].weight
    return layers


def parametrized():
    layer = linear()
    parametrize.register_parametrization(layer, "weight", Exponential())
    return layer


def pruned():
    layer = linear()
    prune.random_unstructured(layer, "weight", 0.3)
    return layer


def moved(norm):
    """Statistics of BatchNorm that are not those of a new one."""
    norm.running_mean.uniform_(-0.5, 0.5)
    norm.running_var.uniform_(0.5, 2)
    return norm


def convolutional():
    inner = nn.Sequential(nn.Conv1d(1, 3, 3, padding=1), moved(nn.BatchNorm1d(3)), nn.Tanh(), nn.Conv1d(3, 1, 1))
    return nn.Sequential(nn.Unflatten(1, (1, WIDTH)), inner, nn.Flatten())


BLOCKS = {
    "linear": linear,
    "no bias": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    "LayerNorm": lambda: nn.LayerNorm(WIDTH),
    "RMSNorm": lambda: nn.RMSNorm(WIDTH),
    "GroupNorm": lambda: nn.GroupNorm(2, WIDTH),
    "BatchNorm": lambda: moved(nn.BatchNorm1d(WIDTH)),
    "BatchNorm of the batch": lambda: nn.BatchNorm1d(WIDTH, track_running_stats=False),
    "dropout": lambda: nn.Dropout(0.5),
    "residual": lambda: Residual(nn.Sequential(linear(), nn.Tanh())),
    "twice": lambda: Again(linear()),
    "checkpoint": lambda: Checkpointed(nn.Sequential(linear(), nn.SiLU())),
    "attention": Attention,
    "pruned": pruned,
    "adapters": Adapted,
    "tied": tied,
    "parametrized": parametrized,
    "spectral_norm": lambda: parametrizations.spectral_norm(linear()),
    "orthogonal": lambda: parametrizations.orthogonal(linear(), use_trivialization=False),
    "convolution": convolutional,
    "bilinear": lambda: Function(lambda x: x * x.roll(1, 1)),
    "softmax": lambda: nn.Softmax(1),
    "frozen": lambda: linear().requires_grad_(False),
    "dead": lambda: Function(lambda x: x * 1.0),
}
INPUTS = {
    "features": (X, lambda: nn.Linear(6, WIDTH)),
    "tokens": (TOKENS, lambda: nn.Sequential(nn.Embedding(7, WIDTH), Function(lambda h: h.mean(1)))),
    "bag": (TOKENS, lambda: Bag()),
    "series": (SERIES, lambda: Last(nn.GRU, batch_first=True)),
    "time first": (SERIES.transpose(0, 1), lambda: Last(nn.LSTM)),
}
WEIGHT = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
IGNORED = torch.where(torch.arange(24) % 5 == 0, -100, Y)
REAL = X[:, :3]
SUM = nn.CrossEntropyLoss(reduction="sum")
LOSSES = {
    "default": (None, F.cross_entropy, Y),
    "ignored": (None, F.cross_entropy, IGNORED),
    "weighted": (nn.CrossEntropyLoss(WEIGHT), nn.CrossEntropyLoss(WEIGHT), Y),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.2), nn.CrossEntropyLoss(label_smoothing=0.2), Y),
    "sum": (SUM, SUM, Y),
    "own": (lambda o, y: F.cross_entropy(o, y), F.cross_entropy, Y),
    "own sum": (lambda o, y: (o.logsumexp(1) - o.gather(1, y[:, None])[:, 0]).sum(), SUM, Y),
    "samples": (partial(F.cross_entropy, reduction="none"), F.cross_entropy, Y),
    "squares": (nn.MSELoss(), nn.MSELoss(), REAL),
    "sum of squares": (nn.MSELoss(reduction="sum"), nn.MSELoss(reduction="sum"), REAL),
    "huber": (nn.HuberLoss(), nn.HuberLoss(), REAL),
    "several classes": (nn.BCEWithLogitsLoss(), nn.BCEWithLogitsLoss(), (REAL > 0).double()),
    "margin": (nn.SoftMarginLoss(), nn.SoftMarginLoss(), REAL.sign()),
}
WRAPPERS = {
    "": lambda model: model,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "DistributedDataParallel": lambda model: distributed(model),
    "inside": lambda model: nn.Sequential(model),
}
LAYOUTS = ("pair", "batches", "loader")


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, WIDTH, padding_idx=0)

    def forward(self, x):
        return self.table(x).sum(1)


class Last(nn.Module):
    def __init__(self, kind, **settings):
        super().__init__()
        self.layer = kind(6, WIDTH, **settings)

    def forward(self, x):
        return self.layer(x)[0].select(1 if self.layer.batch_first else 0, -1)


def distributed(model):
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    return nn.parallel.DistributedDataParallel(model)


def composed(seed):
    """Return a network, its data as they are handed over, its loss, and the loss of all data."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    x, make = INPUTS[draw.choice(list(INPUTS))]
    names = [draw.choice(list(BLOCKS)) for _ in range(draw.randrange(1, 4))]
    layers = [layer for name in names for layer in (BLOCKS[name](), draw.choice(ACTIVATIONS)())]
    model = nn.Sequential(make(), *layers, nn.Linear(WIDTH, 3)).double()
    name = draw.choice(list(LOSSES))
    loss, whole, y = LOSSES[name]
    layout, is_first = draw.choice(LAYOUTS), len(x) != 24
    mixes = any("of the batch" in n for n in names)
    data = (x, y)
    if not mixes and layout == "batches":
        cut = draw.randrange(1, 23)
        parts = (x[:, :cut], x[:, cut:]) if is_first else (x[:cut], x[cut:])
        data = list(zip(parts, (y[:cut], y[cut:]), strict=True))
    if not mixes and layout == "loader" and not is_first:
        data = DataLoader(TensorDataset(x, y), batch_size=draw.randrange(2, 24))
    wrapper = draw.choice(["", *WRAPPERS])
    model = WRAPPERS[wrapper](model.train(draw.random() < 0.3))
    return model, data, loss, lambda m: whole(getattr(m, "_orig_mod", m)(x), y), [*names, wrapper]


def check(seed):
    model, data, loss, whole, names = composed(seed)
    function = Objective(model, data, loss=loss)
    vector = torch.randn(function.coordinates.numel, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    underived = any(isinstance(module, UNDERIVED) for module in model.modules())
    value, gradient, product = truth(model, whole, None if underived else vector)
    assert function.centre.loss.item() == pytest.approx(value, rel=1e-9, abs=1e-12), (seed, names)
    hessian = Hessian(function)
    assert function.derivatives == "exact", (seed, names, function.about()["derivatives_note"])
    found = function.coordinates.flatten(function.gradient())
    torch.testing.assert_close(found, gradient, rtol=1e-7, atol=1e-9 * (1 + abs(value)), msg=str((seed, names)))
    if not underived:
        torch.testing.assert_close(
            hessian @ vector, product, rtol=1e-6, atol=1e-8 * (1 + abs(value)), msg=str((seed, names))
        )


@pytest.mark.parametrize("first", range(0, 100, 25))
def test_a_network_composed_at_random_is_measured_right(first):
    for seed in range(first, first + 25):
        check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 2100, 100))
def test_two_thousand_networks_composed_at_random_are_measured_right(first):
    for seed in range(first, first + 100):
        check(seed)
