"""Networks that people bring go through every public call: torchvision's, recurrent ones, language models."""

import copy

import numpy as np
import plotly.graph_objects
import pytest
import torch
import torchvision
from networks import ThinResNet
from torch import nn
from torch.nn import functional as F

import landscape


def images(n=4, size=32, classes=10):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, size, size, generator=generator), torch.randint(0, classes, (n,), generator=generator)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 16, num_layers=2, batch_first=True), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class LanguageModel(nn.Module):
    """A small causal transformer whose head shares the embedding's weight; takes token ids by keyword."""

    def __init__(self, tokens=23, width=32):
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        layer = nn.TransformerEncoderLayer(width, 2, 48, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, tokens, bias=False)
        self.head.weight = self.embedding.weight
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, *, ids):
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.head(self.encoder(self.embedding(ids), mask=mask, is_causal=True))


def next_token(model, batch):
    output = model(ids=batch["ids"])
    targets = batch["ids"][:, 1:].masked_fill(batch["padding"][:, 1:], -100)
    loss = F.cross_entropy(output[:, :-1].transpose(1, 2), targets, ignore_index=-100)
    return loss, (targets >= 0).sum()


def text():
    generator = torch.Generator().manual_seed(0)
    lengths = (7, 5)
    return [
        {
            "ids": torch.randint(0, 23, (2, length), generator=generator),
            "padding": torch.arange(length).expand(2, -1) >= length - torch.tensor([[0], [2]]),
        }
        for length in lengths
    ]


def sequences():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 7, 5, generator=generator), torch.randint(0, 3, (6,), generator=generator)


def vision_transformer(patch_size=8, num_layers=2, hidden_dim=32):
    sizes = {"patch_size": patch_size, "num_layers": num_layers, "hidden_dim": hidden_dim, "mlp_dim": 4 * hidden_dim}
    return torchvision.models.VisionTransformer(image_size=32, num_heads=4, num_classes=10, **sizes)


def shaken(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return other


WIDE = {  # what the thin ones are made of, as wide as people bring it
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), images, {}),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=10), images, {}),
    "vision transformer, 5 M": (lambda: vision_transformer(4, 6, 256), images, {}),
}
SHORT = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 64, 1, 2], [6, 320, 1, 2]]  # with a shortcut and without


def thin_mobilenet():
    return torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.25, inverted_residual_setting=SHORT)


NETWORKS = {
    "thin resnet18": (lambda: ThinResNet(num_classes=10), images, {}),
    "thin mobilenet_v2": (thin_mobilenet, images, {}),
    "thin vision transformer": (vision_transformer, images, {}),
    "LSTM": (Recurrent, sequences, {}),
    "language model": (LanguageModel, text, {"objective": next_token}),
}
CALLS = {
    "trace": lambda m, d, s: landscape.trace(m, d, num_probes=2, method="hutchinson", per_layer=True, **s),
    "density": lambda m, d, s: landscape.density(m, d, k=0, num_probes=1, steps=3, points=50, **s),
    "top_eigenvalues": lambda m, d, s: landscape.top_eigenvalues(m, d, k=1, max_products=3, **s),
    "line": lambda m, d, s: landscape.line(m, d, points=3, **s),
    "surface": lambda m, d, s: landscape.surface(m, d, points=3, **s),
    "plot_line": lambda m, d, s: landscape.plot_line(m, d, points=3, **s),
    "plot_surface": lambda m, d, s: landscape.plot_surface(m, d, points=3, **s),
    "adaptive": lambda m, d, s: landscape.surface(m, d, points=5, adaptive=True, tolerance=0.3, **s),
    "trajectory": lambda m, d, s: landscape.trajectory(m, [shaken(m) for _ in range(3)], d, **s),
    "batchnorm_check": lambda m, d, s: landscape.batchnorm_check(m, d, **s),
    "curvature_at_scale": lambda m, d, s: landscape.curvature_at_scale(m, d, num_samples=2, radii=False, **s),
    "rounding_sharpness": lambda m, d, s: landscape.rounding_sharpness(m, d, bits=(4,), num_samples=2, **s),
    "sharpness": lambda m, d, s: landscape.sharpness(m, d, measures=["worst case, plain", "rounding noise"], **s),
    "average_sharpness": lambda m, d, s: landscape.average_sharpness(m, d, num_samples=2, radii=(0.1,), **s),
    "worst_case_sharpness": lambda m, d, s: landscape.worst_case_sharpness(m, d, steps=1, radii=(0.1,), **s),
    "Hessian": lambda m, d, s: (h := landscape.Hessian(m, d, **s)) @ torch.ones(h.shape[0]),
}


NETWORKS |= WIDE
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in WIDE]
NUMBERS = ("value", "loss", "values", "delta_loss", "density", "recomputed", "curvature")


def finite(result):
    if isinstance(result, torch.Tensor):
        assert result.isfinite().all() and result.any()
        return
    if isinstance(result, plotly.graph_objects.Figure):
        measured = [trace for trace in result.data if getattr(trace, "fill", None) is None]  # in bands NaN is a gap
        heights = [trace.y if trace.type == "scatter" else trace.z for trace in measured]
        drawn = [np.asarray(part, dtype=float) for part in heights if part is not None]
        assert max(part.size for part in drawn) > 2 and all(np.isfinite(part).all() for part in drawn)
        return
    numbers = [torch.as_tensor(vars(result)[name]) for name in NUMBERS if name in vars(result)]
    numbers += [torch.tensor([row["value"] for row in getattr(result, "rows", ())])]
    assert any(number.numel() for number in numbers) and all(number.isfinite().all() for number in numbers)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in WIDE] + SLOW)
def test_every_network_goes_through_every_call(name, call):
    make, data, settings = NETWORKS[name]
    torch.manual_seed(0)
    finite(CALLS[call](make(), data(), settings))


@pytest.mark.parametrize("name", ["LSTM", "language model"])
def test_they_can_be_compared(name, coarse):
    make, data, settings = NETWORKS[name]
    model = make()
    table = landscape.compare({"a": model, "b": shaken(model)}, data(), points=3, radii=(0.1,), **settings)
    finite(table)
    assert list(table.table.columns) == ["a", "b", "b − a"]


@pytest.mark.parametrize("name", ["LSTM", "language model", "thin vision transformer", SLOW[-1]])
def test_products_with_them_are_second_differences(name):
    """In float64, along one direction: an oracle that shares nothing with double backward."""
    make, data, settings = NETWORKS[name]
    torch.manual_seed(0)
    model = make().double()
    hessian = landscape.Hessian(model, data(), **settings)
    names = hessian.coordinates.names
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(hessian.shape[0], generator=generator, dtype=torch.float64)
    v /= v.norm()
    function, step = hessian.objective, 1e-4
    slopes = [function.gradient(hessian.coordinates.unflatten(sign * step * v)) for sign in (1, -1)]
    ahead, behind = (torch.cat([slope[n].flatten() for n in names]) for slope in slopes)
    expected = (ahead - behind) / (2 * step)
    assert float((hessian @ v - expected).norm() / expected.norm()) < 1e-5
