"""What is averaged, whatever a network takes and returns: against the loss of all data at once, by plain autograd."""

import copy
import types
from collections import UserDict
from functools import partial

import pytest
import torch
from strangers import (
    IMAGES,
    LABELS,
    SERIES,
    TOKENS,
    Language,
    Outputs,
    Padded,
    Recurrent,
    Tied,
    Twice,
    X,
    Y,
    packed,
    perceptron,
    seeded,
    truth,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import landscape
from landscape import Hessian, Objective

WEIGHT = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
IGNORED = torch.where(torch.arange(24) < 9, -100, Y)
MULTI = (X[:, :3] > 0).double()
PROBABILITIES = X[:, :3].softmax(1)
PARTS = [(X[:7], Y[:7]), (X[7:], Y[7:])]
PIXELS = torch.randint(3, (24, 6, 6), generator=torch.Generator().manual_seed(0))
PIXELS[:, :2] = -100


def contrastive(output, target):
    """Every sample against all others of the batch: neither a mean nor a sum of parts."""
    return F.cross_entropy(output @ output.T, torch.arange(len(output)))


def without_statistics():
    return seeded(
        lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Tanh(), nn.Linear(5, 3))
    )


def segmenting():
    return seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1)))


def pairs(loss, x=X, y=Y):
    return lambda model: loss(model(x), y)


CE = nn.CrossEntropyLoss
MEAN = {  # network, data, settings, the loss of all data
    "default": (perceptron, (X, Y), {}, pairs(F.cross_entropy)),
    "probabilities as targets": (perceptron, (X, PROBABILITIES), {}, pairs(F.cross_entropy, y=PROBABILITIES)),
    "ignored targets": (perceptron, (X, IGNORED), {}, pairs(F.cross_entropy, y=IGNORED)),
    "ignored targets, batches": (
        perceptron,
        [(X[:12], IGNORED[:12]), (X[12:], IGNORED[12:])],
        {},
        pairs(F.cross_entropy, y=IGNORED),
    ),
    "class weights": (perceptron, (X, Y), {"loss": CE(WEIGHT)}, pairs(CE(WEIGHT))),
    "class weights, batches": (perceptron, PARTS, {"loss": CE(WEIGHT)}, pairs(CE(WEIGHT))),
    "weights, smoothing, ignored": (
        perceptron,
        (X, IGNORED),
        {"loss": CE(WEIGHT, label_smoothing=0.1)},
        pairs(CE(WEIGHT, label_smoothing=0.1), y=IGNORED),
    ),
    "a partial function": (
        perceptron,
        PARTS,
        {"loss": partial(F.cross_entropy, weight=WEIGHT)},
        pairs(partial(F.cross_entropy, weight=WEIGHT)),
    ),
    "negative log-likelihood": (
        lambda: nn.Sequential(perceptron(), nn.LogSoftmax(1)),
        PARTS,
        {"loss": nn.NLLLoss(WEIGHT)},
        pairs(nn.NLLLoss(WEIGHT)),
    ),
    "one value per sample": (
        perceptron,
        (X, Y),
        {"loss": partial(F.cross_entropy, reduction="none")},
        pairs(F.cross_entropy),
    ),
    "weights unknown to us": (
        perceptron,
        (X, Y),
        {"loss": lambda o, y: F.cross_entropy(o, y, WEIGHT)},
        pairs(CE(WEIGHT)),
    ),
    "squared error": (perceptron, (X, X[:, :3]), {"loss": nn.MSELoss()}, pairs(F.mse_loss, y=X[:, :3])),
    "one output": (
        lambda: perceptron(classes=1),
        (X, X[:, :1]),
        {"loss": nn.MSELoss()},
        pairs(F.mse_loss, y=X[:, :1]),
    ),
    "several classes": (
        perceptron,
        (X, MULTI),
        {"loss": nn.BCEWithLogitsLoss()},
        pairs(F.binary_cross_entropy_with_logits, y=MULTI),
    ),
    "contrastive": (perceptron, (X, Y), {"loss": contrastive}, pairs(contrastive)),
    "BatchNorm without statistics": (without_statistics, (X, Y), {}, pairs(F.cross_entropy)),
    "pixels, some ignored": (segmenting, (IMAGES, PIXELS), {}, pairs(F.cross_entropy, IMAGES, PIXELS)),
    "pixels, weighted": (segmenting, (IMAGES, PIXELS), {"loss": CE(WEIGHT)}, pairs(CE(WEIGHT), IMAGES, PIXELS)),
    "time first": (
        lambda: seeded(Recurrent),
        (SERIES.transpose(0, 1), Y),
        {},
        pairs(F.cross_entropy, SERIES.transpose(0, 1)),
    ),
    "time first, batches": (
        lambda: seeded(partial(Recurrent, nn.GRU)),
        [(SERIES[:20].transpose(0, 1), Y[:20]), (SERIES[20:].transpose(0, 1), Y[20:])],
        {},
        pairs(F.cross_entropy, SERIES.transpose(0, 1)),
    ),
    "packed sequences": (
        lambda: seeded(Recurrent),
        [(packed(range(9)), Y[:9]), (packed(range(9, 24)), Y[9:])],
        {},
        pairs(F.cross_entropy, packed(range(24))),
    ),
    "padded transformer": (lambda: seeded(Padded), (TOKENS, Y), {}, pairs(F.cross_entropy, TOKENS)),
    "registered twice": (lambda: seeded(Twice), (X, Y), {}, pairs(F.cross_entropy)),
    "tied": (lambda: seeded(Tied), (TOKENS, Y), {}, pairs(F.cross_entropy, TOKENS)),
    "own loss, shifted": (
        lambda: seeded(Language),
        [{"input_ids": TOKENS[:5], "labels": LABELS[:5]}, {"input_ids": TOKENS[5:], "labels": LABELS[5:]}],
        {},
        lambda model: model(TOKENS, LABELS).loss,
    ),
    "own loss, aligned": (
        lambda: seeded(partial(Language, False)),
        [UserDict(input_ids=TOKENS[:5], labels=LABELS[:5]), UserDict(input_ids=TOKENS[5:], labels=LABELS[5:])],
        {},
        lambda model: model(TOKENS, LABELS).loss,
    ),
    "a mapping alone": (
        lambda: seeded(Language),
        {"input_ids": TOKENS, "labels": LABELS},
        {},
        lambda model: model(TOKENS, LABELS).loss,
    ),
    "an unsplit loader": (
        perceptron,
        DataLoader(TensorDataset(X, IGNORED), batch_size=10),
        {},
        pairs(F.cross_entropy, y=IGNORED),
    ),
}
SUM = {
    "sum": (perceptron, (X, Y), {"loss": CE(reduction="sum")}, pairs(CE(reduction="sum"))),
    "weighted sum, batches": (
        perceptron,
        PARTS,
        {"loss": CE(WEIGHT, reduction="sum")},
        pairs(CE(WEIGHT, reduction="sum")),
    ),
    "sum of squares": (
        perceptron,
        (X, X[:, :3]),
        {"loss": nn.MSELoss(reduction="sum")},
        pairs(nn.MSELoss(reduction="sum"), y=X[:, :3]),
    ),
    "sum of an own loss, batches": (
        perceptron,
        PARTS,
        {"loss": lambda o, y: (F.one_hot(y, 3) - o).abs().sum()},
        pairs(lambda o, y: (F.one_hot(y, 3) - o).abs().sum()),
    ),
    "sum, several classes": (
        perceptron,
        (X, MULTI),
        {"loss": nn.BCEWithLogitsLoss(reduction="sum")},
        pairs(nn.BCEWithLogitsLoss(reduction="sum"), y=MULTI),
    ),
}


@pytest.mark.parametrize("name", [*MEAN, *SUM])
def test_loss_gradient_and_product_are_those_of_all_data_at_once(name):
    make, data, settings, loss = (MEAN | SUM)[name]
    model = make()
    function = Objective(model, data, **settings)
    hessian = Hessian(function)
    vector = torch.randn(hessian.shape[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    value, gradient, product = truth(model, loss, vector)
    assert function.centre.loss.item() == pytest.approx(value, rel=1e-10)
    torch.testing.assert_close(function.coordinates.flatten(function.gradient()), gradient, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(hessian @ vector, product, rtol=1e-8, atol=1e-9)
    assert function.samples == 24 and function.about().get("reduction", "mean") == ("sum" if name in SUM else "mean")
    assert function.derivatives == "exact"


@pytest.mark.parametrize("size", [1, 5, 24])
def test_a_batch_size_changes_no_number(size):
    for loss in (None, CE(WEIGHT), CE(reduction="sum")):
        expected, found = (Objective(perceptron(), (X, IGNORED), loss=loss, batch_size=n) for n in (None, size))
        assert found.centre.loss.item() == pytest.approx(expected.centre.loss.item(), rel=1e-12)
        assert float(found.centre.stderr()) == pytest.approx(float(expected.centre.stderr()), rel=1e-9)


@pytest.mark.parametrize("name", ["contrastive", "BatchNorm without statistics", "weights unknown to us"])
def test_a_batch_size_that_would_change_the_loss_is_refused(name):
    make, data, settings, _ = MEAN[name]
    with pytest.raises(ValueError, match="batch_size=8 would change the loss"):
        Objective(make(), data, batch_size=8, **settings)


def test_ignored_targets_count_neither_in_the_accuracy_nor_in_its_error():
    model = perceptron()
    function = Objective(model, (X, IGNORED))
    right = (model(X[9:]).argmax(1) == Y[9:]).double()
    assert function.centre.accuracy.item() == pytest.approx(right.mean().item())
    error = (right - right.mean()).square().sum() * 24 / 23 / 15**2
    assert float(function.centre.stderr(field="hits")) == pytest.approx(error.sqrt().item())


def test_the_part_of_an_output_is_the_logits_or_what_is_asked_for():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = perceptron()

        def forward(self, x):
            return {"aux": -self.body(x), "logits": self.body(x)}

    expected = F.cross_entropy(Several()(X)["logits"], Y).item()
    assert Objective(seeded(Several), (X, Y)).centre.loss.item() == pytest.approx(expected)
    for output in ("aux", lambda found: found["aux"]):
        found = Objective(seeded(Several), (X, Y), output=output)
        assert found.centre.loss.item() == pytest.approx(F.cross_entropy(-Several()(X)["logits"], Y).item())
    graph = types.SimpleNamespace(nodes=X, y=Y)
    model = seeded(lambda: OnGraphs(perceptron()))
    assert Objective(model, [graph]).centre.loss.item() == pytest.approx(F.cross_entropy(model(graph), Y).item())


class OnGraphs(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, graph):
        return self.body(graph.nodes)


REFUSED = [
    (lambda: perceptron(classes=1), (X, X[:, :1]), "MSELoss"),
    (perceptron, (X, X[:, :3]), "MSELoss"),
    (perceptron, (X, MULTI), "BCEWithLogitsLoss"),
    (perceptron, (X, MULTI.bool()), "BCEWithLogitsLoss"),
    (lambda: perceptron(classes=1), (X, Y.clamp_max(0)), "zero for one class"),
    (lambda: nn.Sequential(perceptron(), nn.Softmax(1)), (X, Y), "probabilities already"),
    (lambda: seeded(Language), [{"input_ids": TOKENS}], "tensor of labels, got NoneType"),
    (lambda: nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 4)).double(), (TOKENS, TOKENS % 4), "classes come last"),
    (perceptron, (X, Y + 1), "labels must lie in 0…2 for 3 outputs, got 1…3"),
]


@pytest.mark.parametrize(("make", "data", "message"), REFUSED)
def test_the_default_loss_is_refused_where_it_does_not_fit(make, data, message):
    with pytest.raises(ValueError, match=message):
        landscape.line(make(), data, points=3)


def test_data_without_an_end_and_sizes_that_nothing_tells_are_refused():
    class Endless:
        def __iter__(self):
            while True:
                yield X[:1], Y[:1]

    with pytest.raises(ValueError, match="does it end"):
        Objective(perceptron(), Endless())
    boxes = [({"x": X[:9]}, {"boxes": Y[:9]}), ({"x": X[9:]}, {"boxes": Y[9:]})]
    model = Boxes(perceptron())
    with pytest.raises(ValueError, match="how many samples each batch has"):
        Objective(model, boxes, loss=lambda o, t: F.cross_entropy(o, t["boxes"]))
    found = Objective(model, boxes[:1], loss=lambda o, t: F.cross_entropy(o, t["boxes"]))
    assert found.samples is None and found.about()["samples"] == "unknown" and "samples unknown" in repr(found)


class Boxes(OnGraphs):
    def forward(self, x):
        return self.body(x["x"])


def test_a_loader_tells_the_error_over_data_unless_it_shuffles_and_is_too_large_to_keep(monkeypatch):
    data = TensorDataset(X, Y)
    plain, shuffled = (DataLoader(data, batch_size=4, shuffle=shuffle) for shuffle in (False, True))
    listed = landscape.trace(perceptron(), list(plain))
    found = landscape.trace(perceptron(), plain)
    assert found.stderr_data == listed.stderr_data > 0
    assert landscape.trace(perceptron(), shuffled).stderr_data > 0
    monkeypatch.setattr(landscape.model.objective, "KEPT", 0)
    assert landscape.trace(perceptron(), plain).stderr_data == listed.stderr_data
    assert not landscape.trace(perceptron(), shuffled).stderr_data > 0


@pytest.mark.parametrize("shifted", [False, True])
def test_the_gauss_newton_matrix_is_that_of_the_loss_that_outputs_carry(shifted):
    model = seeded(partial(Language, shifted))
    tokens, labels = TOKENS[:, :4].repeat(1, 2)[:, :7], LABELS[:, :4].repeat(1, 2)[:, :7]  # as many tokens as classes
    batch = {"input_ids": tokens, "labels": labels}
    ggn = landscape.GGN(model, [batch])
    vector = torch.randn(ggn.shape[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = dict(model.named_parameters())
    point = dict(zip(weights, vector.split([w.numel() for w in weights.values()]), strict=True))
    moves = {name: point[name].view_as(weight) for name, weight in weights.items()}

    def logits(values):
        return torch.func.functional_call(model, values, (tokens,)).logits

    def loss(values):
        aligned = (values[:, :-1], labels[:, 1:]) if shifted else (values, labels)
        return F.cross_entropy(aligned[0].flatten(0, 1), aligned[1].flatten())

    centre = {name: weight.detach() for name, weight in weights.items()}
    output, pushed = torch.func.jvp(logits, (centre,), (moves,))
    _, bent = torch.func.jvp(torch.func.grad(loss), (output,), (pushed,))
    (expected,) = torch.func.vjp(logits, centre)[1](bent)
    torch.testing.assert_close(ggn @ vector, torch.cat([part.flatten() for part in expected.values()]))


def test_groups_of_samples_weigh_by_their_targets():
    model = perceptron()
    for loss in (None, CE(WEIGHT), CE(reduction="sum")):
        groups = [(X[start : start + 6], IGNORED[start : start + 6]) for start in range(0, 24, 6)]
        kept = [(x, y) for x, y in groups if (y >= 0).any()]
        found = landscape.worst_case_sharpness(model, kept, loss=loss, radii=(0.05,), steps=2, m=6)
        singles = [landscape.worst_case_sharpness(model, pair, loss=loss, radii=(0.05,), steps=2) for pair in kept]
        increases = torch.stack([one.delta_loss[0] for one in singles])
        if loss is not None and loss.reduction == "sum":
            assert found.delta_loss[0].item() == pytest.approx(increases.sum().item())
            continue
        weights = [(loss.weight[y[y >= 0]].sum() if loss is not None else (y >= 0).sum()).item() for _, y in kept]
        expected = (increases * torch.tensor(weights)).sum() / sum(weights)
        assert found.delta_loss[0].item() == pytest.approx(expected.item())


def test_outputs_of_a_dataclass_take_a_loss_of_ones_own():
    model = seeded(Language)
    batch = {"input_ids": TOKENS, "labels": TOKENS}
    found = Objective(model, [batch], loss=lambda out, y: F.cross_entropy(out.logits.flatten(0, 1), y.flatten()))
    assert isinstance(model(TOKENS), Outputs)
    expected = F.cross_entropy(model(TOKENS).logits.flatten(0, 1), TOKENS.flatten())
    assert found.centre.loss.item() == pytest.approx(expected.item())


def test_recomputed_statistics_are_those_of_the_batches_that_were_given():
    torch.manual_seed(0)
    layers = [nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)]
    model = nn.Sequential(*layers).double()
    x, y = X.repeat(20, 1), Y.repeat(20)
    x = x + torch.randn(x.shape, dtype=x.dtype)
    step = {name: torch.full_like(p, 0.1) for name, p in model.named_parameters()}
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in moved.named_parameters():
            p += step[name]
        for module in moved.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.momentum = 1.0
        moved.train()(x)
        expected = F.cross_entropy(moved.eval()(x), y).item()
    for batch_size in (None, 480, 100):
        function = Objective(model, (x, y), batchnorm="recomputed", batch_size=batch_size)
        assert function.evaluate(step).loss.item() == pytest.approx(expected, rel=1e-10)
        assert function.of(moved).centre.loss.item() == pytest.approx(expected, rel=1e-10)
