"""A zoo of networks that people bring, each with its data, its loss, and that loss of all data in plain PyTorch.

Nothing here uses `landscape`.
"""

import dataclasses
import types
from collections import UserDict, namedtuple
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from networks import convolutional, quantized
from strangers import (
    IMAGES,
    LABELS,
    SERIES,
    TOKENS,
    Codebook,
    Function,
    Language,
    Merging,
    Outputs,
    Padded,
    Recurrent,
    Reversed,
    Round,
    Swish,
    Tied,
    Twice,
    Watching,
    X,
    Y,
    packed,
    perceptron,
    seeded,
)
from torch import nn
from torch.ao.quantization import FakeQuantize
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models.resnet import BasicBlock

CE = nn.CrossEntropyLoss
WEIGHT = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
IGNORED = torch.where(torch.arange(24) < 9, -100, Y)
REAL = X[:, :3]
MULTI = (REAL > 0).double()
SCENES = IMAGES[:5, :, :4, :4]
PIXELS = torch.randint(3, (5, 4, 4), generator=torch.Generator().manual_seed(0))
PIXELS[:, :1] = -100
WORDS = torch.where(TOKENS % 3 == 0, -100, TOKENS % 3)
SMALL = torch.randn(24, 2, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class Case:
    """One network of the zoo.

    Attributes:
        make: makes the network, the very same each time, in the state in which its user has it.
        data: as its user hands them over.
        whole: the loss of all data at once, of a network.
        settings: of `landscape.Objective`.
        output, of: the loss once more, as a function of the output and the output of the network; None where there is
            none to take apart.
        plain: makes the network for the truth, where that is another object.
        mode: in which the truth is taken.
        underived: whether PyTorch has no second derivative, or a wrong one; the truth is then by differences.
        derivatives: what they are called.
        rtol: to which losses, and ten to a thousand times of which derivatives, agree.
        refused: the kinds of call that cannot be right, and are refused: "everything", "gradients", "products",
            "Gauss-Newton" or the name of a call.
        space: which weights the truth displaces.
    """

    make: Callable[[], nn.Module]
    data: Any
    whole: Callable[[nn.Module], torch.Tensor]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    output: Callable[[nn.Module], torch.Tensor] | None = None
    of: Callable[[torch.Tensor], torch.Tensor] | None = None
    plain: Callable[[], nn.Module] | None = None
    mode: str = "eval"
    underived: bool = False
    derivatives: str = "exact"
    rtol: float = 1e-9
    refused: frozenset[str] = frozenset()
    space: str | None = None


def case(make, x=X, y=Y, loss=F.cross_entropy, data=None, settings=None, part=lambda output: output, **more):
    """A network with inputs and targets, and the part of its output that the loss takes."""
    return Case(
        make,
        (x, y) if data is None else data,
        lambda model: loss(part(model(x)), y),
        settings or {},
        lambda model: part(model(x)),
        lambda output: loss(output, y),
        **{name: frozenset(value) if name == "refused" else value for name, value in more.items()},
    )


def with_loss(make, loss, x=X, y=Y, **more):
    return case(make, x, y, loss, settings={"loss": loss}, **more)


def with_objective(make, data, objective, whole, **more):
    refused = {"Gauss-Newton", *more.pop("refused", ())}
    return Case(make, data, whole, {"objective": objective}, refused=frozenset(refused), **more)


def sequential(*layers):
    """A network of layers, and of functions."""
    return seeded(lambda: nn.Sequential(*(f() if isinstance(f, type | partial) else Function(f) for f in layers)))


def linear(inputs=6, outputs=3, **settings):
    return partial(nn.Linear, inputs, outputs, **settings)


def wrapped(layer, wrap):
    """A perceptron whose first layer was made by somebody else's hand."""
    return seeded(lambda: nn.Sequential(wrap(layer()), nn.Tanh(), nn.Linear(5, 3)))


def frozen_half():
    model = perceptron()
    model[0].requires_grad_(False)
    return model


def low_rank():
    """An adapter beside a frozen layer."""
    model = seeded(LowRank)
    model.base.requires_grad_(False)
    return model


def in_train_mode(make):
    return lambda: make().train()


def pruned():
    model = perceptron()
    prune.l1_unstructured(model[0], "weight", 0.4)
    return model


def pruned_rows():
    model = perceptron()
    prune.ln_structured(model[0], "weight", 0.4, n=2, dim=0)
    prune.random_unstructured(model[2], "bias", 1)
    return model


def frozen_norms():
    model = convolutional(2)
    for norm in (model[1], model[4]):
        norm.requires_grad_(False)
    return model


def parametrized():
    model = sequential(linear(), nn.Tanh, linear(3, 3))
    parametrize.register_parametrization(model[2], "weight", Symmetric())
    return model


def hooked():
    model = perceptron()
    model[0].register_forward_hook(lambda _m, _i, output: 2 * output)
    model[2].register_forward_pre_hook(lambda _m, inputs: (inputs[0] + 1,))
    return model


def half_base():
    """A frozen base of bfloat16 below a head of float32."""
    model = perceptron().float()
    model[0].bfloat16().requires_grad_(False)
    return nn.Sequential(Function(lambda x: x.bfloat16()), model[0], Function(lambda h: h.float()), *model[1:])


def fake_quantized(bits=4):
    """Activations fake-quantized by torch.ao, its observer as it is after training."""
    torch.manual_seed(0)
    fake = FakeQuantize(quant_min=0, quant_max=2**bits - 1)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), fake, nn.Linear(5, 3))
    model.train()(X.float())
    return model.eval()


def fake_quantized_weights():
    """Weights fake-quantized by torch.ao, in a layer of one's own."""
    torch.manual_seed(0)
    model = nn.Sequential(FakeLinear(6, 5), nn.Tanh(), FakeLinear(5, 3))
    model.train()(X.float())
    return model.eval()


def compiled():
    return torch.compile(perceptron(), backend="eager")


def distributed():
    """DistributedDataParallel, in one process."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    return nn.parallel.DistributedDataParallel(perceptron())


def lazy():
    model = nn.Sequential(nn.LazyLinear(5), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(3)).double()
    torch.manual_seed(0)
    model(X)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


class LowRank(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Linear(6, 3)
        self.a, self.b = nn.Parameter(torch.randn(2, 6) / 3), nn.Parameter(torch.randn(3, 2) / 3)

    def forward(self, x):
        return self.base(x) + F.linear(F.linear(x, self.a), self.b)


class Wrapped(nn.Module):
    """A perceptron whose output comes in some wrapping."""

    def __init__(self, wrap):
        super().__init__()
        self.body, self.wrap = perceptron(), wrap

    def forward(self, x):
        return self.wrap(self.body(x))


class ByName(nn.Module):
    """Takes its inputs by keyword."""

    def __init__(self):
        super().__init__()
        self.body = perceptron()

    def forward(self, *, features, scale=1.0, target=None):
        return self.body(scale * features)


class Classifier(nn.Module):
    """As Hugging Face's sequence classifiers: ids and a mask in, an object with loss and logits out."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask=None, labels=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        pooled = (torch.tanh(self.embed(input_ids)) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        logits = self.head(pooled)
        return Outputs(None if labels is None else F.cross_entropy(logits, labels), logits)


class Symmetric(nn.Module):
    """A parametrization of one's own."""

    def forward(self, w):
        return w.triu() + w.triu(1).T


class Standardized(nn.Conv2d):
    """Weight standardization."""

    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w / (w.flatten(1).std(1).view(-1, 1, 1, 1) + 1e-3), self.bias, padding=1)


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(checkpoint(lambda v: F.gelu(self.first(v)), x, use_reentrant=False))


class Squeezed(nn.Module):
    """A block of MobileNetV3: squeeze and excitation by Hardsigmoid, Hardswish, BatchNorm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3)
        self.squeeze, self.excite, self.head = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 1), nn.Linear(3, 3)

    def forward(self, x):
        h = F.hardswish(self.norm(self.conv(x)))
        gates = F.hardsigmoid(self.excite(F.relu(self.squeeze(h.mean((2, 3), keepdim=True)))))
        return self.head((gates * h).mean((2, 3)))


class LSQ(nn.Linear):
    """A hand-written quantizer of weights, with a step of its own."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.step = nn.Parameter(self.weight.detach().abs().mean() / 2)

    def forward(self, x):
        return F.linear(x, Round.apply((self.weight / self.step).clamp(-4, 3)) * self.step, self.bias)


class FakeLinear(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.fake = FakeQuantize(quant_min=-8, quant_max=7, dtype=torch.qint8)

    def forward(self, x):
        return F.linear(x, self.fake(self.weight), self.bias)


class Spectral(nn.Module):
    """Mixes in Fourier space, with weights that are the real and imaginary parts of complex ones."""

    def __init__(self):
        super().__init__()
        self.parts, self.head = nn.Parameter(torch.randn(2, 4) / 2), nn.Linear(6, 3)

    def forward(self, x):
        mixed = torch.fft.irfft(torch.fft.rfft(x) * torch.complex(*self.parts), n=6)
        return self.head(torch.tanh(mixed))


class Complex(nn.Module):
    """A complex layer of real weights, and the modulus of what comes out."""

    def __init__(self):
        super().__init__()
        self.real, self.imaginary, self.head = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.complex(self.real(x), self.imaginary(x)).abs())


class Experts(nn.Module):
    """The expert that a gate chooses, weighted by the gate."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(6, 3), nn.Parameter(torch.randn(3, 6, 3) / 2)

    def forward(self, x):
        shares = self.gate(x).softmax(1)
        chosen = shares.argmax(1)
        return torch.einsum("ni,nio->no", x, self.experts[chosen]) * shares.gather(1, chosen[:, None])


class Hyper(nn.Module):
    """Its weights are made by another layer, from each sample."""

    def __init__(self):
        super().__init__()
        self.maker = nn.Linear(2, 12)

    def forward(self, x):
        return torch.einsum("nio,ni->no", self.maker(x[:, :2]).view(-1, 4, 3), x[:, 2:])


class Flow(nn.Module):
    """A neural ordinary differential equation by Euler's steps: one layer, used five times."""

    def __init__(self):
        super().__init__()
        self.field, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        for _ in range(5):
            x = x + 0.2 * torch.tanh(self.field(x))
        return self.head(x)


class Bags(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.table, self.head = nn.EmbeddingBag(7, 4, **settings), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.table(x)))


class Lookup(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4, **settings), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.table(x)).mean(1))


class Tagger(nn.Module):
    """A class for every token, classes second."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.table(x))).transpose(1, 2)


class Skipping(nn.Module):
    """A small U-Net."""

    def __init__(self):
        super().__init__()
        self.down, self.inner, self.up = (
            nn.Conv2d(2, 3, 3, padding=1),
            nn.Conv2d(3, 3, 3, padding=1),
            nn.Conv2d(6, 3, 1),
        )

    def forward(self, x):
        h = torch.tanh(self.down(x))
        low = torch.tanh(self.inner(F.avg_pool2d(h, 2)))
        return self.up(torch.cat([h, F.interpolate(low, scale_factor=2, mode="bilinear")], 1))


class Graphs(nn.Module):
    """Two rounds of messages, and a mean over each graph."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, graph):
        h = graph.x
        for layer in (self.first, self.second):
            h = layer(h.index_add(0, graph.edges[1], h[graph.edges[0]]))
            h = torch.tanh(h) if layer is self.first else h
        count = int(graph.graph.max()) + 1
        sizes = torch.bincount(graph.graph, minlength=count)[:, None]
        return h.new_zeros(count, 3).index_add(0, graph.graph, h) / sizes


class Lists(nn.Module):
    """Weights in lists and dictionaries of parameters."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(6, 4) / 2, torch.randn(4, 3) / 2])
        self.scales = nn.ParameterDict({"inner": torch.ones(4), "outer": torch.ones(3)})

    def forward(self, x):
        h = torch.tanh(x @ self.weights[0]) * self.scales["inner"]
        return h @ self.weights[1] * self.scales["outer"]


class Siamese(nn.Module):
    """Takes two inputs as one."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 4)

    def forward(self, pair):
        return (torch.tanh(self.body(pair[0])) - torch.tanh(self.body(pair[1]))).square().sum(1)


class Attending(nn.Module):
    """Attention with a mask of its own, over a time-first sequence."""

    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(6, 2), nn.Linear(6, 3)

    def forward(self, x):
        mask = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        return self.head(self.attention(x, x, x, attn_mask=mask, need_weights=False)[0].mean(0))


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 4), nn.Linear(2, 6)

    def forward(self, x):
        mean, spread = self.encode(x).chunk(2, 1)
        return self.decode(torch.tanh(mean)), mean, spread


def block():
    """A residual block of torchvision, with statistics that have moved."""
    model = seeded(lambda: nn.Sequential(BasicBlock(2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)))
    for norm in (model[0].bn1, model[0].bn2):
        norm.running_mean.uniform_(-0.3, 0.3)
        norm.running_var.uniform_(0.5, 1.5)
    return model


def graph_batch(graphs):
    """A batch of so many graphs of three nodes each, in a ring."""
    generator = torch.Generator().manual_seed(graphs)
    nodes = torch.arange(3 * graphs)
    ring = torch.stack([nodes, 3 * (nodes // 3) + (nodes + 1) % 3])
    x = torch.randn(3 * graphs, 6, generator=generator, dtype=torch.float64)
    return types.SimpleNamespace(x=x, edges=ring, graph=nodes // 3, y=torch.arange(graphs) % 3)


def contrastive(output, target):
    return F.cross_entropy(output @ output.T, torch.arange(len(output)))


def alignment(output, target):
    """Connectionist temporal classification of (time, n, classes) outputs."""
    lengths = torch.full((output.shape[1],), len(output))
    ones = torch.ones(output.shape[1], dtype=torch.long)
    return F.ctc_loss(output.log_softmax(-1), target[:, None] % 2 + 1, lengths, ones)


def gaussian_likelihood(output, target):
    return F.gaussian_nll_loss(output[:, 0], target, output[:, 1].exp())


def physics(model, batch):
    """u'' = -u at the points, by derivatives of the network by its input, and a boundary condition."""
    points = batch[0].detach().requires_grad_()
    u = model(points)
    (slope,) = torch.autograd.grad(u.sum(), points, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), points, create_graph=True)
    return (bend + u).square().mean() + (model(points[:1] * 0) - 1).square().mean(), 1


def reconstruction(model, batch):
    x = batch[0]
    image, mean, spread = model(x)
    return F.mse_loss(image, x) + 0.1 * (mean.square() + spread.exp() - spread).mean(), len(x)


def penalised(model, batch):
    """A penalty on the weights beside the loss."""
    x, y = batch
    return F.cross_entropy(model(x), y) + 0.05 * sum(p.square().sum() for p in model.parameters()), len(y)


def by_name(model, batch):
    inputs = {"features": batch["features"], "scale": 0.5}
    return F.cross_entropy(model(**inputs), batch["target"]), len(batch["target"])


def named_parts(cut):
    """Batches as mappings, the first with so many samples."""
    return [{"features": X[rows], "target": Y[rows]} for rows in (slice(cut), slice(cut, None))]


def language_batches(kind=dict):
    return [kind(input_ids=TOKENS[rows], labels=LABELS[rows]) for rows in (slice(5), slice(5, 8))]


def parts(x=X, y=Y, first=9):
    return [(x[:first], y[:first]), (x[first:], y[first:])]


def series(make=Recurrent, **settings):
    return lambda: seeded(partial(make, **settings))


TIME_FIRST = SERIES.transpose(0, 1)
POINTS = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
Pair = namedtuple("Pair", "logits features")
RINGS = [graph_batch(5), graph_batch(3)]
SUMMED = CE(reduction="sum")
with torch.inference_mode():
    INFERRED = X.clone()

ZOO = {
    "perceptron": case(perceptron),
    "left in train mode": case(in_train_mode(lambda: sequential(linear(), partial(nn.Dropout, 0.5)))),
    "registered twice": case(lambda: seeded(Twice)),
    "tied": case(lambda: seeded(Tied), TOKENS),
    "frozen half": case(frozen_half),
    "padded transformer": case(lambda: seeded(Padded), TOKENS),
    "LSTM": case(series(batch_first=True), SERIES),
    "time-first GRU": case(series(kind=nn.GRU), TIME_FIRST),
    "time-first RNN in batches": case(
        series(kind=nn.RNN),
        TIME_FIRST,
        data=[(TIME_FIRST[:, :20], Y[:20]), (TIME_FIRST[:, 20:], Y[20:])],
    ),
    "packed LSTM": case(series(), packed(range(24)), data=[(packed(range(9)), Y[:9]), (packed(range(9, 24)), Y[9:])]),
    "masked attention": case(lambda: seeded(Attending), TIME_FIRST),
    "mapping out": case(lambda: Wrapped(lambda z: {"aux": -z, "logits": z}), part=lambda out: out["logits"]),
    "tuple out": case(lambda: Wrapped(lambda z: (z, z.exp())), part=lambda out: out[0]),
    "named tuple out": case(lambda: Wrapped(lambda z: Pair(z, z.exp())), part=lambda out: out.logits),
    "object out": case(lambda: Wrapped(lambda z: Outputs(None, z)), part=lambda out: out.logits),
    "the part that output= names": case(
        lambda: Wrapped(lambda z: {"main": z, "logits": -z}),
        settings={"output": "main"},
        part=lambda out: out["main"],
        refused={"explore"},  # which takes no objective
    ),
    "the part that output= counts": case(
        lambda: Wrapped(lambda z: (z.exp(), z)),
        y=REAL,
        loss=nn.MSELoss(),
        settings={"output": 1, "loss": nn.MSELoss()},
        part=lambda out: out[1],
        refused={"explore"},
    ),
    "the part that output= computes": case(
        lambda: Wrapped(lambda z: [z, -z]),
        settings={"output": lambda out: out[1]},
        part=lambda out: out[1],
        refused={"explore"},
    ),
    "language model, shifted": Case(
        lambda: seeded(Language),
        language_batches(),
        lambda model: model(TOKENS[:8], LABELS[:8]).loss,
        {},
        lambda model: model(TOKENS[:8]).logits,
        lambda z: F.cross_entropy(z[:, :-1].flatten(0, 1), LABELS[:8, 1:].flatten()),
    ),
    "masked language model": Case(
        lambda: seeded(partial(Language, False)),
        language_batches(UserDict),
        lambda model: model(TOKENS[:8], LABELS[:8]).loss,
        {},
        lambda model: model(TOKENS[:8]).logits,
        lambda z: F.cross_entropy(z.flatten(0, 1), LABELS[:8].flatten()),
    ),
    "sequence classifier": Case(
        lambda: seeded(Classifier),
        {"input_ids": TOKENS, "attention_mask": (TOKENS > 0).long(), "labels": Y},
        lambda model: model(TOKENS, (TOKENS > 0).long(), Y).loss,
        {},
        lambda model: model(TOKENS, (TOKENS > 0).long()).logits,
        lambda z: F.cross_entropy(z, Y),
    ),
    "mappings by an objective": with_objective(
        ByName, named_parts(7), by_name, lambda model: F.cross_entropy(model(features=X, scale=0.5), Y)
    ),
    "two inputs": with_loss(
        lambda: seeded(Siamese),
        nn.BCEWithLogitsLoss(),
        (X, X.flip(0)),
        (Y > 0).double(),
    ),
    "convolutions and BatchNorm": case(convolutional, SMALL),
    "BatchNorm in batches": case(lambda: convolutional(1), SMALL, data=parts(SMALL)),
    "BatchNorm without statistics": case(
        lambda: sequential(linear(6, 5), partial(nn.BatchNorm1d, 5, track_running_stats=False), nn.Tanh, linear(5))
    ),
    "BatchNorm, momentum None": case(
        in_train_mode(lambda: sequential(linear(6, 5), partial(nn.BatchNorm1d, 5, momentum=None), nn.Tanh, linear(5)))
    ),
    "SyncBatchNorm": case(lambda: sequential(linear(6, 5), partial(nn.SyncBatchNorm, 5), nn.Tanh, linear(5))),
    "frozen BatchNorm": case(frozen_norms, SMALL),
    "InstanceNorm with statistics": case(
        lambda: sequential(
            partial(nn.Conv2d, 2, 3, 3),
            partial(nn.InstanceNorm2d, 3, affine=True, track_running_stats=True),
            nn.Tanh,
            nn.Flatten,
            linear(12),
        ),
        SMALL,
    ),
    "LayerNorm": case(lambda: sequential(linear(6, 5), partial(nn.LayerNorm, 5), nn.GELU, linear(5))),
    "RMSNorm": case(lambda: sequential(linear(6, 5), partial(nn.RMSNorm, 5), nn.SiLU, linear(5))),
    "GroupNorm, standardized weights": case(
        lambda: sequential(
            partial(Standardized, 2, 4, 3), partial(nn.GroupNorm, 2, 4), nn.ELU, lambda h: h.mean((2, 3)), linear(4)
        ),
        SMALL,
    ),
    "residual block": case(block, SMALL),
    "pruned": case(pruned),
    "pruned rows and biases": case(pruned_rows),
    "weight_norm": case(lambda: wrapped(linear(6, 5), parametrizations.weight_norm), underived=True),
    "weight_norm of old": case(lambda: wrapped(linear(6, 5), nn.utils.weight_norm), underived=True),
    "spectral_norm": case(lambda: wrapped(linear(6, 5), parametrizations.spectral_norm)),
    "spectral_norm of old": case(lambda: wrapped(linear(6, 5), nn.utils.spectral_norm)),
    "orthogonal": case(lambda: wrapped(linear(6, 5), partial(parametrizations.orthogonal, use_trivialization=False))),
    "parametrized by hand": case(parametrized),
    "adapters": case(low_rank),
    "adapters that eval() merges": case(lambda: seeded(Merging).train(), mode="train"),
    "checkpointed": case(lambda: seeded(Checkpointed)),
    "Hardsigmoid": case(lambda: perceptron(nn.Hardsigmoid), underived=True),
    "squeeze and excitation": case(lambda: seeded(Squeezed), SMALL, underived=True),
    "EmbeddingBag": case(lambda: seeded(Bags), TOKENS, underived=True),
    "EmbeddingBag, sums, padding": case(
        lambda: seeded(partial(Bags, mode="sum", padding_idx=0)), TOKENS, underived=True
    ),
    "sparse embedding": case(lambda: seeded(partial(Lookup, sparse=True)), TOKENS, underived=True),
    "embedding scaled by frequency": case(
        lambda: seeded(partial(Lookup, scale_grad_by_freq=True)), TOKENS, plain=lambda: seeded(Lookup)
    ),
    "embedding with padding": case(lambda: seeded(partial(Lookup, padding_idx=0)), TOKENS),
    "compiled": case(compiled, plain=perceptron),
    "DataParallel": case(lambda: nn.DataParallel(perceptron())),
    "DistributedDataParallel": case(distributed, plain=lambda: nn.DataParallel(perceptron())),
    "lazy, by now made": case(lazy),
    "hooked": case(hooked),
    "watches in eval mode": case(lambda: seeded(Watching)),
    "float32": case(lambda: perceptron(nn.GELU).float(), X.float(), rtol=1e-5),
    "frozen base of bfloat16": case(half_base, X.float(), rtol=1e-5),
    "LSQ by hand": case(
        lambda: seeded(lambda: nn.Sequential(LSQ(6, 5), nn.Tanh(), LSQ(5, 3))), derivatives="straight-through"
    ),
    "rounding by detach": case(
        lambda: perceptron(lambda: Function(lambda x: x + ((4 * x).round() / 4 - x).detach())),
        derivatives="straight-through",
    ),
    "codebook": case(lambda: seeded(Codebook), derivatives="straight-through"),
    "torch.ao, activations": case(fake_quantized, X.float(), derivatives="straight-through", rtol=1e-5),
    "torch.ao, weights": case(
        fake_quantized_weights,
        X.float(),
        settings={"space": "latent"},
        derivatives="straight-through",
        space="latent",
        refused={"rounding sharpness"},
        rtol=1e-5,
    ),
    "W4A4": case(lambda: quantized("W4A4"), SMALL, derivatives="straight-through", space="quantized"),
    "W2A32": case(lambda: quantized("W2A32"), SMALL, space="quantized"),
    "W4A4, latent": case(
        lambda: quantized("W4A4"),
        SMALL,
        settings={"space": "latent"},
        derivatives="straight-through",
        space="latent",
        refused={"rounding sharpness"},  # which starts from the rounded weights
    ),
    "regression": with_loss(lambda: perceptron(classes=1), nn.MSELoss(), y=X[:, :1]),
    "Huber": with_loss(perceptron, nn.HuberLoss(), y=REAL),
    "Gaussian likelihood": with_loss(lambda: perceptron(classes=2), gaussian_likelihood, y=X[:, 0]),
    "labels of several classes": with_loss(perceptron, nn.BCEWithLogitsLoss(), y=MULTI),
    "segmentation, some ignored": case(
        lambda: sequential(partial(nn.Conv2d, 2, 4, 3, padding=1), nn.Tanh, partial(nn.Conv2d, 4, 3, 1)),
        SCENES,
        PIXELS,
    ),
    "U-Net, class weights": with_loss(lambda: seeded(Skipping), CE(WEIGHT), SCENES, PIXELS),
    "tokens, some ignored": case(lambda: seeded(Tagger), TOKENS, WORDS, data=parts(TOKENS, WORDS)),
    "ignored in batches": case(perceptron, y=IGNORED, data=parts(y=IGNORED, first=12)),
    "class weights": with_loss(perceptron, CE(WEIGHT)),
    "class weights in batches": with_loss(perceptron, CE(WEIGHT), data=parts()),
    "smoothed labels": with_loss(perceptron, CE(label_smoothing=0.2)),
    "probabilities as targets": case(perceptron, y=REAL.softmax(1)),
    "NLL of log-probabilities": with_loss(lambda: nn.Sequential(perceptron(), nn.LogSoftmax(1)), nn.NLLLoss()),
    "a sum": with_loss(perceptron, SUMMED),
    "a sum in batches": with_loss(perceptron, SUMMED, data=parts()),
    "a sum of squares": with_loss(perceptron, nn.MSELoss(reduction="sum"), y=REAL),
    "one value per sample": case(
        perceptron, data=parts(), settings={"loss": partial(F.cross_entropy, reduction="none")}
    ),
    "loader": case(perceptron, data=DataLoader(TensorDataset(X, Y), batch_size=10)),
    "loader that shuffles": case(perceptron, data=DataLoader(TensorDataset(X, Y), batch_size=10, shuffle=True)),
    "data of inference mode": case(perceptron, X, data=(INFERRED, Y)),
    "CTC": with_loss(perceptron, alignment, TIME_FIRST, refused={"products"}),
    "contrastive": with_loss(perceptron, contrastive),
    "physics-informed": with_objective(
        lambda: seeded(lambda: nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1))),
        (POINTS, POINTS),
        physics,
        lambda model: physics(model, (POINTS, POINTS))[0],
    ),
    "autoencoder": with_objective(
        lambda: seeded(Autoencoder), parts(), reconstruction, lambda model: reconstruction(model, (X, Y))[0]
    ),
    "weight decay in the objective": with_objective(
        perceptron, parts(), penalised, lambda model: penalised(model, (X, Y))[0]
    ),
    "graphs": Case(
        lambda: seeded(Graphs),
        RINGS,
        lambda model: F.cross_entropy(torch.cat([model(g) for g in RINGS]), torch.cat([g.y for g in RINGS])),
        {},
        lambda model: torch.cat([model(g) for g in RINGS]),
        lambda z: F.cross_entropy(z, torch.cat([g.y for g in RINGS])),
    ),
    "complex layers": case(lambda: seeded(Complex)),
    "Fourier layers": case(lambda: seeded(Spectral)),
    "mixture of experts": case(lambda: seeded(Experts)),
    "hypernetwork": case(lambda: seeded(Hyper)),
    "ordinary differential equation": case(lambda: seeded(Flow)),
    "lists of parameters": case(lambda: seeded(Lists)),
    "gradient reversal": case(lambda: perceptron(lambda: Function(Reversed.apply)), refused={"gradients", "products"}),
    "backward without a derivative": case(lambda: perceptron(lambda: Function(Swish.apply)), refused={"products"}),
    "random in eval mode": case(
        lambda: perceptron(lambda: Function(lambda x: F.dropout(x, 0.5))), refused={"everything"}
    ),
}


def shaken(model, seed=1, by=0.02):
    """Move every trainable weight of a network a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "quantizer" not in name:
                parameter.add_((by * torch.randn(parameter.shape, generator=generator)).to(parameter))
    return model
