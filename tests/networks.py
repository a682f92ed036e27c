"""Small networks, data and dense Hessians that the landscape tests share. Nothing here uses `landscape`."""

import contextlib
import copy
import functools
from unittest import mock

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, mse_loss
from torchvision.models.resnet import BasicBlock, ResNet

from saq_core import calibrate, models, quantize

_generator = torch.Generator().manual_seed(1)
X = torch.randn(7, 2, 4, 4, generator=_generator, dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 2, 1, 0, 2])
RAGGED = [(X[:3], Y[:3]), (X[3:], Y[3:])]


def convolutional(seed=0):
    """Convolutions, BatchNorm with statistics that have moved, a linear layer: 140 weights, float64."""
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
        for norm in (model[1], model[4]):
            norm.weight.add_(1)
            norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator) * 0.3)
            norm.running_var.copy_(torch.rand(norm.num_features, generator=generator) + 0.5)
            norm.num_batches_tracked.fill_(5)
    return model


def quantized(bits, **settings):
    model = quantize(convolutional(), bits, first_last_bits=None, **settings)
    return calibrate(model, RAGGED)


class ThinResNet(ResNet):
    """torchvision's ResNet-18 with half of its blocks and an eighth of the channels behind its first layer."""

    def __init__(self, num_classes):
        super().__init__(BasicBlock, [1, 1, 1, 1], num_classes)
        self.fc = nn.Linear(64, num_classes)

    def _make_layer(self, block, planes, *rest, **settings):
        return super()._make_layer(block, planes // 8, *rest, **settings)


@contextlib.contextmanager
def thin_networks():
    """Let saq_core build its networks of the same modules, but fewer: every kind of block stays.

    Of MobileNet's blocks those of the first four widths, a quarter as wide, at most two of each; of the pre-activation
    ResNet's and the ViT's two where there are three or four.
    """
    narrow = tuple((wider, width // 4, min(count, 2), stride) for wider, width, count, stride in models.INVERTED[:4])
    with (
        mock.patch.object(models, "INVERTED", narrow),
        mock.patch.dict(models.DEPTHS, {"preresnet20": 2}),
        mock.patch.dict(models.VITS, {"vit": (2, 2, 4, 64, 128)}),
    ):
        yield


def perceptron(seed=0, inputs=5, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, classes)).double()


CASES = {
    "float": (convolutional, None),
    "W4A32 quantized": (lambda: quantized("W4A32"), "quantized"),
    "W4A32 latent": (lambda: quantized("W4A32"), "latent"),
    "W4A4 quantized": (lambda: quantized("W4A4"), "quantized"),
    "W4A4 latent": (lambda: quantized("W4A4"), "latent"),
}


def varied(model, space=None):
    """Name the tensors inside the network that move, in the order of its parameters."""
    names = []
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        moves_delta = leaf == "weight" and space != "latent" and hasattr(model.get_submodule(owner), "delta")
        if "quantizer" not in name and parameter.requires_grad:
            names.append(f"{owner}.delta" if moves_delta else name)
    return names


class _Whole(nn.Module):
    def __init__(self, model, mean_loss):
        super().__init__()
        self.model, self.mean_loss = model, mean_loss

    def forward(self):
        return self.mean_loss(self.model)


def as_function(model, mean_loss, names):
    """Return (f, start): the mean loss as a function of one flat vector of the named tensors."""
    model = copy.deepcopy(model).eval()
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    values = [tensors[name].detach() for name in names]
    whole = _Whole(model, mean_loss)

    def f(flat):
        parts = flat.split([value.numel() for value in values])
        moved = {f"model.{n}": part.view_as(v) for n, part, v in zip(names, parts, values, strict=True)}
        return functional_call(whole, moved, ())

    return f, torch.cat([value.flatten() for value in values])


def dense_hessian(model, mean_loss, names):
    f, start = as_function(model, mean_loss, names)
    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.hessian(f, start)


def classification(model):
    return cross_entropy(model(X), Y)


@functools.cache
def case(name):
    """Return (model, space, dense Hessian) of one of CASES; the model is not to be changed."""
    make, space = CASES[name]
    model = make().eval()
    return model, space, dense_hessian(model, classification, varied(model, space))


def filter_scale(model, space=None):
    """Lay ‖w_f‖/√(size of filter) out as one vector, zero on biases and norm parameters."""
    parts = []
    for name in varied(model, space):
        owner, _, leaf = name.rpartition(".")
        layer = model.get_submodule(owner)
        w = (layer.used_weight() if leaf == "delta" else getattr(layer, leaf)).detach()
        norms = [row.norm() / row.numel() ** 0.5 * torch.ones_like(row) for row in w] if w.ndim > 1 else [0 * w]
        parts += [part.flatten() for part in norms]
    return torch.cat(parts)


def symmetric(spectrum, seed=0):
    """Return a dense symmetric matrix of a known spectrum."""
    spectrum = torch.as_tensor(spectrum, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), generator=generator, dtype=torch.float64))
    matrix = q @ torch.diag(spectrum) @ q.T
    return (matrix + matrix.T) / 2


def rescaled(model):
    """Return the same function with other convolution weights, each filter by a factor of its own."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for conv, norm in ((twin[0], twin[1]), (twin[3], twin[4])):
            c = torch.linspace(0.2, 5, len(conv.weight), dtype=torch.float64)
            conv.weight.mul_(c.view(-1, 1, 1, 1))
            conv.bias.mul_(c)
            norm.running_mean.mul_(c)
            norm.running_var.copy_(c**2 * (norm.running_var + norm.eps) - norm.eps)
    return twin


def recomputed_by_hand(model):
    """Set BatchNorm statistics to the mean of the batches' own, weighted by their sizes, layer after layer."""
    model = copy.deepcopy(model).train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    sums = {id(m): [torch.zeros(m.num_features, dtype=torch.float64) for _ in range(2)] for m in norms}

    def watch(module, inputs):
        x = inputs[0].detach()
        values = x.transpose(0, 1).flatten(1)
        sums[id(module)][0] += len(x) / 7 * values.mean(1)
        sums[id(module)][1] += len(x) / 7 * values.var(1)

    for norm in norms:
        norm.register_forward_pre_hook(watch)
    for x, _ in RAGGED:
        model(x)
    for norm in norms:
        norm.running_mean.copy_(sums[id(norm)][0])
        norm.running_var.copy_(sums[id(norm)][1])
    return model.eval()


def linear():
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    return model


EYE = (torch.eye(2, dtype=torch.float64), torch.tensor([[0.5], [3.0]], dtype=torch.float64))
PAIRED = {"data": EYE, "loss": mse_loss}
GROUPS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


class Folded:
    """Several matrices, whose weighted mean is the operator."""

    def __init__(self, folds, weights):
        self.folds, self.fold_weights = folds, weights
        self.whole = torch.einsum("f,fij->ij", weights, folds)
        self.shape, self.dtype, self.device = self.whole.shape, self.whole.dtype, self.whole.device

    def __matmul__(self, vectors):
        return self.whole @ vectors

    def by_fold(self, vectors):
        return self.folds @ vectors
