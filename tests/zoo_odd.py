"""More of the zoo: stranger layers, wrappers, batches and objectives."""

import warnings
from collections import OrderedDict
from functools import partial

import torch
from strangers import SERIES, TOKENS, X, Y, perceptron, seeded
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler
from zoo import (
    CE,
    REAL,
    SMALL,
    ByName,
    Case,
    Lookup,
    Tagger,
    case,
    linear,
    parts,
    sequential,
    with_loss,
    with_objective,
)

SCENES = SMALL[:6]
MASKS = torch.where(SCENES[:, 0] > 1, 255, (SCENES[:, 1] > 0).long())
EVERYTHING, NO_GAUSS_NEWTON = {"everything"}, {"Gauss-Newton"}


class Nested(nn.Module):
    """A transformer with padding as PyTorch makes it, its nested tensors on."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 2), nn.Linear(2, 3)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(2, 2, 4, 0.1, batch_first=True), 2)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x), src_key_padding_mask=x == 0)[:, 0])


class Projected(nn.Module):
    """Both directions of an LSTM whose states are projected."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.LSTM(6, 2, proj_size=1, bidirectional=True, batch_first=True), nn.Linear(2, 3)

    def forward(self, x):
        return self.head(self.layer(x)[0].mean(1))


class ModelOutput(OrderedDict):
    """A mapping whose entries are attributes too."""

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)


class Regressor(nn.Module):
    """Computes its own loss, which is no cross-entropy."""

    def __init__(self):
        super().__init__()
        self.body = perceptron(classes=1)

    def forward(self, features, labels=None):
        logits = self.body(features)
        loss = None if labels is None else F.mse_loss(logits[:, 0], labels)
        return ModelOutput(loss=loss, logits=logits)


class Remembering(nn.Module):
    """Keeps its activations, retains their gradients, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.body, self.calls, self.seen = perceptron(), 0, []

    def forward(self, x):
        self.hidden = torch.tanh(self.body[0](x))
        if self.hidden.requires_grad:
            self.hidden.retain_grad()
        self.calls += 1
        self.seen.append(len(x))
        return self.body[2](self.hidden)


class Transposed(nn.Module):
    """An autoencoder's weight, used once more transposed."""

    def __init__(self):
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(4, 6) / 2), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(x @ self.weight.T) @ self.weight)


class Cached(nn.Module):
    """Computes a parametrized weight once for two uses."""

    def __init__(self):
        super().__init__()
        self.square, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        parametrize.register_parametrization(self.square, "weight", Tanh())

    def forward(self, x):
        with parametrize.cached():
            return self.head(torch.tanh(self.square(torch.tanh(self.square(x)))))


class Tanh(nn.Module):
    def forward(self, w):
        return torch.tanh(w)


class Ensemble(nn.Module):
    """Three networks at once, by torch.func.vmap."""

    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(3, 3, 6) / 2), nn.Parameter(torch.randn(3, 3))

    def forward(self, x):
        return torch.vmap(lambda w, b: F.softplus(F.linear(x, w, b)))(self.w, self.b).mean(0)


class Slopes(nn.Module):
    """An energy whose slope by the input, from torch.func, is the output."""

    def __init__(self):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x):
        return torch.vmap(torch.func.grad(lambda row: self.energy(row).sum()))(x)[:, :3]


class Temperature(nn.Module):
    """A parameter of no dimension."""

    def __init__(self):
        super().__init__()
        self.body, self.scale = nn.Linear(6, 3), nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return self.body(x) / self.scale


class Reentrant(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = x.detach().requires_grad_(torch.is_grad_enabled())
        return self.last(checkpoint(lambda v: torch.tanh(self.first(v)), x, use_reentrant=True))


class Determinant(nn.Module):
    """A flow's exact likelihood, by matrix exponential and determinant."""

    def __init__(self):
        super().__init__()
        self.raw = nn.Parameter(torch.randn(6, 6) / 4)

    def forward(self, x):
        w = torch.linalg.matrix_exp(self.raw)
        return (x @ w).square().sum(1) / 2 - torch.linalg.slogdet(w + torch.eye(6).to(w))[1]


class Kernel(nn.Module):
    """Features of a Gaussian process."""

    def __init__(self):
        super().__init__()
        self.body, self.noise = nn.Linear(6, 2), nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        h = self.body(x)
        distances = (h[:, None] - h[None]).square().sum(-1)
        return torch.exp(-distances / 2) + self.noise.exp() * torch.eye(len(x)).to(x)


class Sorted(nn.Module):
    """Largest activations, a median and a running sum."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = self.body(x)
        top = h.topk(3, 1)[0]
        return self.head(torch.cat([top, h.median(1, keepdim=True)[0], h.cumsum(1).sort(1)[0][:, :1]], 1))


class Heads(nn.Module):
    """Two tasks."""

    def __init__(self):
        super().__init__()
        self.body, self.kind, self.size = nn.Linear(6, 4), nn.Linear(4, 3), nn.Linear(4, 1)

    def forward(self, x):
        h = torch.tanh(self.body(x))
        return {"kind": self.kind(h), "size": self.size(h)[:, 0]}


class InPlace(nn.Module):
    """Works in place wherever it may."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = self.first(x)
        h.clamp_(min=-1).mul_(2)
        h[:, 0] += 1
        return self.last(F.relu(h, inplace=True))


class Positions(nn.Module):
    """Makes what it adds to its input once, in the dtype of the first input that it meets."""

    def __init__(self):
        super().__init__()
        self.body, self.cache = nn.Linear(6, 3), None

    def forward(self, x):
        if self.cache is None:
            self.cache = torch.arange(6).to(x.dtype).sin()
        return self.body(torch.tanh(x) * self.cache)


class Buffered(nn.Module):
    """The same by a buffer that its forward pass registers."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 3)

    def forward(self, x):
        if "cache" not in self._buffers:
            self.register_buffer("cache", torch.arange(6).to(x.dtype).sin(), persistent=False)
        return self.body(torch.tanh(x) * self.cache)


class Adaptive(nn.Module):
    """Computes its own loss by an adaptive softmax, and returns no logits."""

    def __init__(self):
        super().__init__()
        self.table, self.softmax = nn.Embedding(7, 4), nn.AdaptiveLogSoftmaxWithLoss(4, 7, [3], div_value=2.0)

    def forward(self, tokens, labels):
        return self.softmax(torch.tanh(self.table(tokens)).mean(1), labels)


class Fusing(nn.Module):
    """Two branches that eval() fuses into one layer, and train() takes apart."""

    def __init__(self):
        super().__init__()
        self.one, self.other, self.head = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 3)

    def train(self, mode=True):
        super().train(mode)
        if not mode:
            with torch.no_grad():
                self.fused = nn.Linear(6, 4).to(self.one.weight)
                self.fused.weight.copy_(self.one.weight + self.other.weight)
                self.fused.bias.copy_(self.one.bias + self.other.bias)
            del self.one, self.other
        return self

    def forward(self, x):
        h = self.one(x) + self.other(x) if "one" in self._modules else self.fused(x)
        return self.head(torch.tanh(h))


def fusing():
    torch.manual_seed(0)
    return Fusing().double()


class Spoiling(nn.Module):
    """Overwrites its own input."""

    def __init__(self, change):
        super().__init__()
        self.body, self.change = perceptron(), change

    def forward(self, x):
        return self.body(self.change(x))


def spoiling(make, data=None):
    return Case(
        lambda: seeded(make),
        (X.clone(), Y) if data is None else data,
        lambda model: F.cross_entropy(model(X.clone()), Y),
        {},
        lambda model: model(X.clone()),
        lambda output: F.cross_entropy(output, Y),
    )


class Pixels(nn.Module):
    """Takes bytes."""

    def __init__(self):
        super().__init__()
        self.body = perceptron()

    def forward(self, x):
        return self.body(x.double() / 128 - 1)


class Reading(IterableDataset):
    """Samples read from somewhere, one after another."""

    def __iter__(self):
        yield from zip(X, Y, strict=True)


class Mixed(nn.Module):
    """Convolutions of all kinds."""

    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv2d(2, 4, 2, groups=2, dilation=2)
        self.up, self.head = nn.ConvTranspose2d(4, 2, 2, stride=2), nn.Linear(2, 3)

    def forward(self, x):
        h = F.pixel_unshuffle(F.gelu(self.up(F.silu(self.grouped(x)))), 2)
        return self.head(F.adaptive_max_pool2d(F.pixel_shuffle(h, 2), 1).flatten(1))


def multi_task(output, target):
    return F.cross_entropy(output["kind"], target["kind"]) + 0.3 * F.mse_loss(output["size"], target["size"])


def focal(output, target):
    """Normalised by the positives of a batch: neither a mean nor a sum of parts."""
    chances = output.softmax(1).gather(1, target[:, None])[:, 0]
    return (-((1 - chances) ** 2) * chances.log()).sum() / (target == 0).sum()


def dice(output, target):
    chances, wanted = output.sigmoid().flatten(1), target.flatten(1)
    return 1 - 2 * (chances * wanted).sum() / (chances.sum() + wanted.sum())


def triplets(output, target):
    return F.triplet_margin_loss(output, output.roll(1, 0), output.roll(2, 0), margin=3.0)


def marginal(output, target):
    factor = torch.linalg.cholesky(output)
    solved = torch.cholesky_solve(target[:, None], factor)[:, 0]
    return (target @ solved) / 2 + factor.diagonal().log().sum()


def inner_step(model, batch):
    """The loss after a step of descent: meta-learning."""
    x, y = batch
    weights = dict(model.named_parameters())
    loss = F.cross_entropy(torch.func.functional_call(model, weights, (x[::2],)), y[::2])
    slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    stepped = {n: w - 0.5 * g for (n, w), g in zip(weights.items(), slopes, strict=True)}
    return F.cross_entropy(torch.func.functional_call(model, stepped, (x[1::2],)), y[1::2]), len(y)


def functional_slope(model, batch):
    """A residual by torch.func: the Laplacian of a network of three inputs."""

    def laplacian(row):
        return torch.func.hessian(lambda r: model(r)[0])(row).trace()

    return (torch.vmap(laplacian)(batch[0][:, :3]) - 1).square().mean(), len(batch[0])


def three_parts(model, batch):
    x, y, weight = batch
    return (weight * F.cross_entropy(model(x), y, reduction="none")).sum() / weight.sum(), weight.sum()


def quietly(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def dynamic():
    model = perceptron().float()
    return quietly(lambda: torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8))


def graph_module():
    return torch.fx.symbolic_trace(perceptron())


def partly_compiled():
    model = perceptron()
    model[1] = torch.compile(model[1], backend="eager")
    return model


def one_dimensional():
    model = sequential(linear(6, 5), partial(nn.LayerNorm, 5), nn.Tanh, linear(5))
    for layer in (model[0], model[3]):
        layer.requires_grad_(False)
    return model


def all_frozen():
    return perceptron().requires_grad_(False)


def complex_weights():
    model = perceptron()
    model.phase = nn.Parameter(torch.ones(2, dtype=torch.complex128))
    return model


WEIGHTS = X[:, 0].square() + 0.1
TWO = {"kind": Y, "size": X[:, 0]}
BYTES = ((X.clamp(-1, 1) + 1) * 100).to(torch.uint8)
LOADER = partial(DataLoader, TensorDataset(X, Y), batch_size=8)
SAMPLER = WeightedRandomSampler(torch.ones(24), 24)
ODD = {
    "nested tensors": case(lambda: seeded(Nested), TOKENS),
    "bidirectional, projected LSTM": case(lambda: seeded(Projected), SERIES[:, :3]),
    "loss of its own that is none of ours": Case(
        lambda: seeded(Regressor),
        [{"features": X[rows], "labels": X[rows, 0]} for rows in (slice(9), slice(9, None))],
        lambda model: F.mse_loss(model(X).logits[:, 0], X[:, 0]),
        refused=frozenset(NO_GAUSS_NEWTON),
    ),
    "remembers": case(lambda: seeded(Remembering)),
    "a weight and its transpose": case(lambda: seeded(Transposed)),
    "parametrization cached": case(lambda: seeded(Cached)),
    "ensemble by vmap": case(lambda: seeded(Ensemble)),
    "slopes by torch.func": with_loss(lambda: seeded(Slopes), nn.MSELoss(), y=REAL),
    "a weight of no dimension": case(lambda: seeded(Temperature)),
    "re-entrant checkpoint": case(lambda: seeded(Reentrant), refused={"gradients", "products"}),
    "matrix exponential": with_loss(lambda: seeded(Determinant), lambda o, y: o.mean(), y=X[:, 0]),
    "Gaussian process": with_loss(lambda: seeded(Kernel), marginal, y=X[:, 0]),
    "sorted": case(lambda: seeded(Sorted)),
    "two tasks": Case(
        lambda: seeded(Heads),
        [(X, TWO)],
        lambda model: multi_task(model(X), TWO),
        {"loss": multi_task},
        refused=frozenset(NO_GAUSS_NEWTON),
    ),
    "in place": case(lambda: seeded(InPlace)),
    "bytes in": case(lambda: seeded(Pixels), BYTES),
    "convolutions of all kinds": case(lambda: seeded(Mixed), SMALL),
    "traced": case(lambda: quietly(lambda: torch.jit.trace(perceptron(), X)), plain=perceptron),
    "scripted": case(lambda: quietly(lambda: torch.jit.script(perceptron())), plain=perceptron),
    "graph module": case(graph_module),
    "one layer compiled": case(partly_compiled, plain=perceptron),
    "ignore_index=255": with_loss(
        lambda: sequential(partial(nn.Conv2d, 2, 2, 3, padding=1)), CE(ignore_index=255), SCENES, MASKS
    ),
    "focal": with_loss(perceptron, focal),
    "Dice": with_loss(
        lambda: sequential(partial(nn.Conv2d, 2, 1, 3, padding=1)), dice, SCENES, (SCENES[:, :1] > 0).double()
    ),
    "triplets": with_loss(perceptron, triplets),
    "token by token": case(
        lambda: seeded(Tagger), TOKENS, TOKENS % 3, settings={"loss": partial(F.cross_entropy, reduction="none")}
    ),
    "meta-learning": with_objective(perceptron, [(X, Y)], inner_step, lambda model: inner_step(model, (X, Y))[0]),
    "Laplacian by torch.func": with_objective(
        lambda: sequential(linear(3, 4), nn.Tanh, linear(4, 1)),
        [(X, Y)],
        functional_slope,
        lambda model: functional_slope(model, (X, Y))[0],
    ),
    "three parts in a batch": with_objective(
        perceptron,
        [(X[rows], Y[rows], WEIGHTS[rows]) for rows in (slice(5), slice(5, None))],
        three_parts,
        lambda model: three_parts(model, (X, Y, WEIGHTS))[0],
    ),
    "read one by one": case(perceptron, data=DataLoader(Reading(), batch_size=7)),
    "arrays": case(perceptron, data=(X.numpy(), Y.numpy())),
    "labels of few bits": case(perceptron, data=(X, Y.to(torch.uint8))),
    "samples without a loader": case(perceptron, data=[(X[i], Y[i]) for i in range(24)], refused=EVERYTHING),
    "single samples, kept in a batch": case(perceptron, data=[(X[i : i + 1], Y[i : i + 1]) for i in range(24)]),
    "norms alone": case(one_dimensional, refused={"directions"}),
    "drawn anew in every pass": case(perceptron, data=LOADER(sampler=SAMPLER), refused=EVERYTHING),
    "positions cached": case(lambda: seeded(Positions).float(), X.float(), rtol=1e-5),
    "positions in a buffer": case(lambda: seeded(Buffered).float(), X.float(), rtol=1e-5),
    "adaptive softmax": Case(
        lambda: seeded(Adaptive),
        [{"tokens": TOKENS[rows], "labels": TOKENS[rows, 0]} for rows in (slice(9), slice(9, None))],
        lambda model: model(TOKENS, TOKENS[:, 0]).loss,
        refused=frozenset(NO_GAUSS_NEWTON),
    ),
    "a mean of one element, in batches": case(
        perceptron, data=parts(), settings={"loss": lambda o, y: F.cross_entropy(o, y)[None]}
    ),
    "texts beside the tensors": with_objective(
        perceptron,
        [{"x": X[rows], "y": Y[rows], "names": ["a", "b"]} for rows in (slice(7), slice(7, None))],
        lambda model, batch: (F.cross_entropy(model(batch["x"]), batch["y"]), len(batch["y"])),
        lambda model: F.cross_entropy(model(X), Y),
    ),
    "weights of float32 in the loss": with_loss(
        perceptron, nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0])), y=(REAL > 0).double()
    ),
    "dynamic int8": case(dynamic, X.float(), refused=EVERYTHING),
    "branches that eval() fuses": case(fusing, mode="train"),
    "embedding with max_norm": case(
        lambda: seeded(partial(Lookup, max_norm=0.8)), TOKENS, refused={"gradients", "products"}
    ),
    "overwrites its input": spoiling(partial(Spoiling, lambda x: x.mul_(0.5))),
    "normalises its input in place": spoiling(partial(Spoiling, lambda x: x.sub_(x.mean(1, keepdim=True)).div_(2))),
    "activates its input in place": spoiling(partial(Spoiling, lambda x: F.relu_(x)), [(X.clone(), Y)]),
    "overwrites an entry of a mapping": with_objective(
        ByName,
        [{"features": X.clone(), "target": Y}],
        lambda model, batch: (F.cross_entropy(model(features=batch["features"].tanh_()), batch["target"]), 1),
        lambda model: F.cross_entropy(model(features=X.tanh()), Y),
    ),
    "all frozen": case(all_frozen, refused=EVERYTHING),
    "complex weights": case(complex_weights, refused=EVERYTHING),
    "regression by default": case(perceptron, y=REAL, loss=F.mse_loss, refused=EVERYTHING),
}
