"""Other people's networks, layers and losses, and what is true of them; nothing here uses `landscape`."""

import copy
import dataclasses

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pack_sequence

_generator = torch.Generator().manual_seed(5)
X = torch.randn(24, 6, generator=_generator, dtype=torch.float64)
Y = torch.randint(3, (24,), generator=_generator)
TOKENS = torch.randint(1, 7, (24, 5), generator=_generator)
TOKENS[::2, 3:] = 0
SERIES = torch.randn(24, 4, 6, generator=_generator, dtype=torch.float64)
IMAGES = torch.randn(24, 2, 6, 6, generator=_generator, dtype=torch.float64)


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make().double().eval()


def perceptron(activation=nn.Tanh, classes=3):
    return seeded(lambda: nn.Sequential(nn.Linear(6, 5), activation(), nn.Linear(5, classes)))


class Function(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Twice(nn.Module):
    """One layer under two names, and used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.square = nn.Linear(6, 5), nn.Linear(5, 5)
        self.net = nn.Sequential(self.first, nn.Tanh(), self.square, nn.Tanh(), self.square, nn.Linear(5, 3))

    def forward(self, x):
        return self.net(x)


class Tied(nn.Module):
    """An embedding whose weight is that of the head."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(torch.tanh(self.embed(x).sum(1)))[:, :3]


class Merging(nn.Linear):
    """A low-rank adapter that eval() merges into the weight, as loralib does."""

    def __init__(self):
        super().__init__(6, 3)
        self.a, self.b = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(3, 2))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.b @ self.a).data
            self.merged = not mode
        return self

    def forward(self, x):
        extra = 0 if self.merged else x @ self.a.T @ self.b.T
        return F.linear(x, self.weight, self.bias) + extra


class Watching(nn.Module):
    """Keeps statistics in eval mode as well: in a buffer, in place, and in one that it replaces."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 3)
        self.register_buffer("largest", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        self.largest.copy_(torch.maximum(self.largest, x.detach().abs().max()))
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        return self.body(x)


class Recurrent(nn.Module):
    """The last state of a recurrent layer, whose input may be time-first or packed."""

    def __init__(self, kind=nn.LSTM, **settings):
        super().__init__()
        self.layer, self.head = kind(6, 4, **settings), nn.Linear(4, 3)

    def forward(self, x):
        state = self.layer(x)[1]
        return self.head((state[0] if isinstance(state, tuple) else state)[-1])


class Padded(nn.Module):
    """A transformer encoder with a padding mask."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4, padding_idx=0), nn.Linear(4, 3)
        layer = nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x), src_key_padding_mask=x == 0).mean(1))


@dataclasses.dataclass
class Outputs:
    """What Hugging Face's networks return."""

    loss: torch.Tensor | None
    logits: torch.Tensor


class Language(nn.Module):
    """A causal language model that computes its own loss where it is given labels."""

    def __init__(self, shifted=True):
        super().__init__()
        self.embed, self.head, self.shifted = nn.Embedding(7, 4), nn.Linear(4, 7), shifted

    def forward(self, input_ids, labels=None):
        logits = self.head(torch.tanh(self.embed(input_ids).cumsum(1)))
        if labels is None:
            return Outputs(None, logits)
        parts = (logits[:, :-1], labels[:, 1:]) if self.shifted else (logits, labels)
        return Outputs(F.cross_entropy(parts[0].flatten(0, 1), parts[1].flatten()), logits)


LABELS = TOKENS.masked_fill(TOKENS == 0, -100)


def packed(rows):
    return pack_sequence([SERIES[row, : 1 + row % 4] for row in rows], enforce_sorted=False)


class Reversed(torch.autograd.Function):
    """A gradient reversal, as domain-adversarial training has it."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -0.5 * g


class Swish(torch.autograd.Function):
    """A swish that saves memory: its backward has no derivative by x."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach()
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, g):
        s = torch.sigmoid(ctx.x)
        return g * (s * (1 + ctx.x * (1 - s)))


class Round(torch.autograd.Function):
    """A straight-through rounding."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


def plain_loss(model, loss):
    """Return the loss of a copy of a network in eval mode, and its weights, without fused paths."""
    made = [
        v for m in model.modules() for v in vars(m).values() if isinstance(v, torch.Tensor) and v.grad_fn is not None
    ]
    model = copy.deepcopy(model, {id(tensor): tensor.detach() for tensor in made}).eval()
    weights = [p for p in model.parameters() if p.requires_grad]
    return lambda: loss(model), weights


def truth(model, loss, vector=None):
    """Return loss, gradient and, for a vector, the product with the Hessian, by plain automatic differentiation."""
    function, weights = plain_loss(model, loss)
    with sdpa_kernel(SDPBackend.MATH):
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            value = function()
            parts = torch.autograd.grad(value, weights, create_graph=True, materialize_grads=True)
            gradient = torch.cat([part.to_dense().reshape(-1) for part in parts])
            if vector is None:
                return value.item(), gradient.detach(), None
            form = gradient @ vector
            images = torch.autograd.grad(form, weights, materialize_grads=True) if form.requires_grad else parts
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
    product = torch.cat([image.reshape(-1) for image in images]) if form.requires_grad else torch.zeros_like(gradient)
    return value.item(), gradient.detach(), product.detach()


def gauss_newton(model, output, loss, vector):
    """Return Jᵀ·∇²loss·J·v, the Jacobian of the outputs built row by row and the loss's Hessian dense."""
    function, weights = plain_loss(model, output)
    with sdpa_kernel(SDPBackend.MATH):
        values = function()
        rows = [
            torch.cat([part.to_dense().reshape(-1) for part in parts])
            for value in values.flatten()
            for parts in [torch.autograd.grad(value, weights, retain_graph=True, materialize_grads=True)]
        ]
    jacobian = torch.stack(rows)
    bent = torch.autograd.functional.hessian(loss, values.detach()).reshape(len(rows), -1)
    return jacobian.T @ (bent @ (jacobian @ vector))


class Codebook(nn.Module):
    """The nearest of four values, straight-through."""

    def __init__(self):
        super().__init__()
        self.body, self.values = nn.Linear(6, 3), nn.Parameter(torch.linspace(-1, 1, 4))

    def forward(self, x):
        h = self.body(x)
        nearest = self.values[(h[..., None] - self.values).abs().argmin(-1)]
        return h + (nearest - h).detach()
