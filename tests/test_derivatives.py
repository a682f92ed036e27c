"""Labels of derivatives on networks whose truth is known, and what PyTorch cannot derive twice."""

import pytest
import torch
from networks import convolutional, quantized
from strangers import (
    SERIES,
    TOKENS,
    Codebook,
    Function,
    Padded,
    Recurrent,
    Reversed,
    Round,
    Swish,
    X,
    Y,
    perceptron,
    seeded,
    truth,
)
from torch import nn
from torch.ao.quantization import FakeQuantize
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import landscape
from landscape import Hessian, Objective


class Checkpointed(nn.Module):
    def __init__(self, reentrant=False):
        super().__init__()
        self.first, self.last, self.reentrant = nn.Linear(6, 5), nn.Linear(5, 3), reentrant

    def forward(self, x):
        x = x.requires_grad_(torch.is_grad_enabled() and self.reentrant)
        inner = checkpoint(lambda v: torch.tanh(self.first(v)), x, use_reentrant=self.reentrant)
        return self.last(inner)


class Quantized(nn.Linear):
    def forward(self, x):
        return F.linear(x, Round.apply(self.weight * 4) / 4, self.bias)


class Low(nn.Module):
    """Casts to bfloat16 inside, as mixed-precision blocks do."""

    def __init__(self):
        super().__init__()
        self.body = perceptron(nn.GELU)

    def forward(self, x):
        return self.body(x.float().to(x.dtype))


def activated(function):
    return perceptron(lambda: Function(function))


def hooked(model):
    model[1].register_full_backward_hook(lambda _m, _i, outputs: tuple(0.3 * g for g in outputs))
    return model


def fake_quantized():
    model = perceptron().float()
    return nn.Sequential(model[0], FakeQuantize(quant_min=0, quant_max=15), model[1], model[2]).train()


EXACT = {
    **{kind.__name__: lambda kind=kind: (perceptron(kind), X) for kind in (nn.ReLU, nn.GELU, nn.Hardswish, nn.ELU)},
    "hardsigmoid": lambda: (perceptron(nn.Hardsigmoid), X),
    "functional hardsigmoid": lambda: (activated(F.hardsigmoid), X),
    "floor that cancels": lambda: (activated(lambda x: x - torch.floor(x).detach()), X),
    "a mask by comparison": lambda: (activated(lambda x: x * (x > 0)), X),
    "LSTM": lambda: (seeded(lambda: Recurrent(batch_first=True)), SERIES),
    "padded transformer": lambda: (seeded(Padded), TOKENS),
    "checkpoint": lambda: (seeded(Checkpointed), X),
    "weight_norm": lambda: (seeded(lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 3)))), X),
    "old weight_norm": lambda: (seeded(lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 3)))), X),
    "spectral_norm": lambda: (seeded(lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 3)))), X),
    "embedding bag": lambda: (seeded(lambda: nn.Sequential(nn.EmbeddingBag(7, 4), nn.Tanh(), nn.Linear(4, 3))), TOKENS),
    "sparse embedding": lambda: (
        seeded(lambda: nn.Sequential(nn.Embedding(7, 4, sparse=True), Function(lambda h: h.mean(1)), nn.Linear(4, 3))),
        TOKENS,
    ),
    "float32": lambda: (perceptron(nn.GELU).float(), X.float()),
    "bfloat16": lambda: (perceptron(nn.GELU).bfloat16(), X.bfloat16()),
    "a cast inside": lambda: (seeded(Low).float(), X.float()),
    "BatchNorm, folded": lambda: (convolutional(), torch.randn(24, 2, 4, 4, dtype=torch.float64)),
    "weights rounded, quantized space": lambda: (quantized("W4A32"), torch.randn(24, 2, 4, 4, dtype=torch.float64)),
}
THROUGH = {
    "LSQ by hand": lambda: (
        nn.Sequential(seeded(lambda: Quantized(6, 5)), nn.Tanh(), seeded(lambda: nn.Linear(5, 3))),
        X,
    ),
    "rounding by detach": lambda: (activated(lambda x: x + (x.round() - x).detach()), X),
    "sign": lambda: (activated(lambda x: x.tanh() + (x.sign() - x.tanh()).detach()), X),
    "an integer cast": lambda: (activated(lambda x: x + ((4 * x).long().to(x) / 4 - x).detach()), X),
    "codebook": lambda: (seeded(Codebook), X),
    "torch.ao": lambda: (fake_quantized(), X.float()),
    "W4A4": lambda: (quantized("W4A4"), torch.randn(24, 2, 4, 4, dtype=torch.float64)),
    "W2A32, latent": lambda: (quantized("W2A32"), torch.randn(24, 2, 4, 4, dtype=torch.float64)),
}
WRONG = {
    "reversal": (lambda: activated(Reversed.apply), "gradient of the loss is not its derivative"),
    "detached scale": (lambda: activated(lambda x: x / x.abs().max().detach()), "gradient of the loss is not"),
    "hook": (lambda: hooked(perceptron()), "gradient of the loss is not its derivative"),
    "detached backward": (lambda: activated(Swish.apply), "derivative of the gradient is not what a product says"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", EXACT)
def test_derivatives_that_are_exact_are_called_so_and_are(name):
    model, x = EXACT[name]()
    hessian = Hessian(model, (x, Y))
    assert hessian.about()["derivatives"] == "exact"
    if name == "weights rounded, quantized space" or hessian.dtype != torch.float64:
        return
    vector = torch.randn(hessian.shape[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    _, gradient, product = truth(model, lambda m: F.cross_entropy(m(x), Y), None if name in UNDERIVED else vector)
    found = hessian.coordinates.flatten(hessian.objective.gradient())
    torch.testing.assert_close(found, gradient, rtol=1e-7, atol=1e-9)
    if name in UNDERIVED:
        step = hessian.coordinates.unflatten(1e-6 * vector)
        ends = [hessian.objective.gradient({n: sign * d for n, d in step.items()}) for sign in (1, -1)]
        product = (hessian.coordinates.flatten(ends[0]) - hessian.coordinates.flatten(ends[1])) / 2e-6
    torch.testing.assert_close(hessian @ vector, product, rtol=1e-5, atol=1e-7)


# PyTorch has no second derivative of these, or a wrong one: differences of gradients are the truth
UNDERIVED = (
    "hardsigmoid",
    "functional hardsigmoid",
    "weight_norm",
    "old weight_norm",
    "embedding bag",
    "sparse embedding",
)


@pytest.mark.parametrize("name", THROUGH)
def test_derivatives_through_roundings_are_called_straight_through(name):
    model, x = THROUGH[name]()
    space = "latent" if "latent" in name else None
    found = landscape.trace(model, (x, Y), space=space, num_probes=3)
    assert found.about["derivatives"] == "straight-through" and "straight-through" in repr(found)
    assert found.about["derivatives_note"].startswith(("rounds what varies", "decides by what varies"))


@pytest.mark.parametrize("name", WRONG)
def test_a_backward_that_is_no_derivative_is_refused_where_it_matters(name):
    make, message = WRONG[name]
    model = make()
    with pytest.raises(ValueError, match=message):
        Hessian(model, (X, Y))
    function = Objective(model, (X, Y))
    if message.startswith("gradient"):
        with pytest.raises(ValueError, match=message):
            function.gradient()
    else:
        assert len(function.gradient()) == 4
    assert landscape.line(model, (X, Y), points=3).about["derivatives"] == "not measured"


def test_of_a_large_network_one_tensor_of_each_kind_is_asked(monkeypatch):
    monkeypatch.setattr("landscape.model.derivatives._MOST", 0)
    for make, message in WRONG.values():
        with pytest.raises(ValueError, match=message):
            Hessian(make(), (X, Y))
    for label, cases in (("exact", EXACT), ("straight-through", THROUGH)):
        for name in ("LSTM", "BatchNorm, folded", "LSQ by hand", "rounding by detach", "W2A32, latent"):
            if name in cases:
                model, x = cases[name]()
                assert Hessian(model, (x, Y), space="latent").about()["derivatives"] == label, name


def test_a_loss_that_is_another_with_gradients_on_is_refused():
    model = activated(lambda x: x.tanh() if torch.is_grad_enabled() else x.sigmoid())
    with pytest.raises(ValueError, match="two functions"):
        landscape.line(model, (X, Y), points=3)


def test_gradients_of_a_checkpointed_network_are_right_beside_the_centre_too():
    found, plain = (Objective(seeded(make), (X, Y)) for make in (Checkpointed, lambda: as_plain(Checkpointed())))
    for one, other in zip(*(f.gradient(moved(f, 0.1)).values() for f in (found, plain)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def as_plain(model):
    return nn.Sequential(model.first, nn.Tanh(), model.last)


def moved(function, by):
    return {name: torch.full_like(value, by) for name, value in function.coordinates.centre.items()}


def test_rows_of_padding_do_not_vary():
    model = seeded(Padded)
    function = Objective(model, (TOKENS, Y))
    total = sum(p.numel() for p in model.parameters())
    assert function.about()["varies"] == [total - 4, total]
    direction = landscape.line(model, (TOKENS, Y), points=3).direction()["embed.weight"]
    assert not direction[0].any() and direction[1:].all()
    frozen = perceptron()
    frozen[0].requires_grad_(False)
    assert "18 of 53 weights vary" in repr(landscape.trace(frozen, (X, Y), num_probes=3))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_errors_of_pytorch_name_module_reason_and_remedy():
    with pytest.raises(ValueError, match=r"failed in 0 \(Linear\).*shapes cannot be multiplied"):
        Objective(perceptron(), (X[:, :4], Y))
    with pytest.raises(ValueError, match="use_reentrant=False|not its derivative"):
        Hessian(seeded(lambda: Checkpointed(True)), (X, Y))
    series = X.reshape(24, 6)[:, None].expand(24, 4, 6).transpose(0, 1)
    lengths = torch.full((24,), 4)

    def ctc(output, target):
        return F.ctc_loss(output.log_softmax(-1), target[:, None] % 2 + 1, lengths, torch.ones(24, dtype=torch.long))

    with pytest.raises(ValueError, match="no second derivative of ctc_loss"):
        Hessian(perceptron(), (series, Y), loss=ctc)
    assert landscape.line(perceptron(), (series, Y), loss=ctc, points=3).loss.isfinite().all()
    with pytest.raises(TypeError, match="model must be a network .* got 'resnet'"):
        landscape.trace("resnet", (X, Y))


def test_among_many_kinks_the_label_costs_no_more_passes():
    torch.manual_seed(0)
    hidden = [layer for width in (3072, 300, 300, 300) for layer in (nn.Linear(width, 300), nn.ReLU())]
    model, calls = nn.Sequential(*hidden, nn.Linear(300, 10)), []

    def loss(output, target):
        calls.append(output.dtype)
        return F.cross_entropy(output, target)

    made = Objective(model, (torch.randn(16, 3072), torch.arange(16) % 10), loss=loss)
    before = len(calls)
    assert made.about()["derivatives"] == "not measured"
    Hessian(made)
    assert made.about()["derivatives"] == "exact"
    assert sum(dtype == torch.float64 for dtype in calls[before:]) == 7
