"""Training of any task: losses, outputs, batches and data sets of all kinds, optimizers, schedules, callbacks, logs."""

import copy
import json
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import landscape
import saq_core
from saq_core import ASGA, SAMQ, SAQ, Data, Recipe, StopTraining, evaluate, load, quantize, save, train

X = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 3
RECIPE = Recipe(epochs=3, lr=0.05, batch_size=8, weight_decay=0.0, nesterov=False, compile=False)


def perceptron(outputs=3, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, outputs))


def by_hand(model, batches, loss, recipe=RECIPE, call=lambda model, batch: model(batch[0])):
    """Train with a loop of one's own over the same batches; return the losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum)
    losses = []
    for epoch in range(recipe.epochs):
        for k, batch in enumerate(batches):
            optimizer.param_groups[0]["lr"] = recipe.lr_at(epoch * len(batches) + k, len(batches))
            optimizer.zero_grad()
            value = loss(call(model, batch), batch)
            value.backward()
            optimizer.step()
            losses.append(float(value.detach()))
    return torch.tensor(losses)


class Tokens(nn.Module):
    """A language model as Hugging Face has them: a dict batch in, an output with logits and a loss of its own out."""

    def __init__(self):
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7)

    def forward(self, input_ids, labels=None):
        logits = self.head(torch.tanh(self.body(self.embedding(input_ids))))
        if labels is None:
            return {"logits": logits}
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits}


class Mappings(Dataset):
    def __init__(self, whole):
        self.whole = whole

    def __len__(self):
        return len(self.whole["labels"])

    def __getitem__(self, row):
        return {name: part[row] for name, part in self.whole.items()}


class Rows(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row], self.y[row]


def tokens(rows=12):
    ids = torch.randint(7, (rows, 6), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[::3, 3:] = -100
    return {"input_ids": ids, "labels": labels}


def segments():
    random = torch.Generator().manual_seed(2)
    labels = torch.randint(4, (12, 6, 6), generator=random)
    labels[:5, :3] = 255
    return torch.randn(12, 2, 6, 6, generator=random), labels


CLASS_WEIGHTS = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0, 0.5]))
MANY = (torch.rand(24, 3, generator=torch.Generator().manual_seed(3)) < 0.4).float()
VALUES = X @ torch.linspace(-1, 1, 5)[:, None]

TASKS = {
    "classes": (perceptron, (X, LABELS), {}, lambda out, b: F.cross_entropy(out, b[1])),
    "regression": (partial(perceptron, 1), (X, VALUES), {"loss": nn.MSELoss()}, lambda out, b: F.mse_loss(out, b[1])),
    "several labels": (
        perceptron,
        (X, MANY),
        {"loss": nn.BCEWithLogitsLoss()},
        lambda out, b: F.binary_cross_entropy_with_logits(out, b[1]),
    ),
    "class weights": (perceptron, (X, LABELS), {"loss": CLASS_WEIGHTS}, lambda out, b: CLASS_WEIGHTS(out, b[1])),
    "each sample": (
        perceptron,
        (X, LABELS),
        {"loss": lambda out, y: F.cross_entropy(out, y, reduction="none")},
        lambda out, b: F.cross_entropy(out, b[1]),
    ),
    "segmentation": (
        lambda: nn.Conv2d(2, 4, 3, padding=1),
        segments(),
        {"loss": nn.CrossEntropyLoss(ignore_index=255)},
        lambda out, b: F.cross_entropy(out, b[1], ignore_index=255),
    ),
    "objective": (
        perceptron,
        (X, LABELS),
        {"objective": lambda model, b: (model(b[0]).square().mean(), len(b[0]))},
        lambda out, b: out.square().mean(),
    ),
    "part of the output": (
        lambda: Named(perceptron()),
        (X, LABELS),
        {"output": "scores"},
        lambda out, b: F.cross_entropy(out["scores"], b[1]),
    ),
}


class Named(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return {"other": x, "scores": self.net(x)}


def seeded(made):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return made()


@pytest.mark.parametrize("task", TASKS)
def test_a_task_trains_as_a_loop_of_ones_own(task):
    made, (x, y), arguments, loss = TASKS[task]
    batches = list(zip(x.split(8), y.split(8), strict=True))
    model, other = seeded(made), seeded(made)
    history = train(model, batches, RECIPE, **arguments)
    torch.testing.assert_close(history.steps, by_hand(other, batches, loss), rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    found = evaluate(model, batches, **arguments)
    objective = landscape.Objective(model, batches, **arguments)
    assert found.loss == pytest.approx(float(objective.centre.loss), rel=1e-6)
    assert found.loss == pytest.approx(evaluate(model, (x, y), batch_size=24, **arguments).loss, rel=1e-4)
    assert len(model.probe) == len(batches) and ("accuracy" in history.epochs[0]) == (task not in NO_ACCURACY)


NO_ACCURACY = ("regression", "several labels", "objective")


def test_tokens_train_with_the_loss_that_their_network_computes():
    whole = tokens()
    batches = [{name: part[k : k + 4] for name, part in whole.items()} for k in (0, 4, 8)]
    model, other = seeded(Tokens), seeded(Tokens)
    history = train(model, Data(batches, val=batches), RECIPE)
    expected = by_hand(other, batches, lambda out, b: out["loss"], call=lambda model, b: model(**b))
    torch.testing.assert_close(history.steps, expected, rtol=1e-5, atol=1e-6)
    assert 0 <= history.epochs[-1]["val_accuracy"] <= 1
    counted = [int((b["labels"][:, 1:] != -100).sum()) for b in batches]
    means = [float(model(**b)["loss"].detach()) for b in batches]
    expected = sum(m * c for m, c in zip(means, counted, strict=True)) / sum(counted)
    assert history.epochs[-1]["val_loss"] == pytest.approx(expected, rel=1e-6)


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    """Targets that are ignored, or weigh, count as in one pass."""
    for task in ("classes", "class weights", "segmentation", "each sample", "regression"):
        made, data, arguments, _ = TASKS[task]
        recipe = Recipe(epochs=2, lr=0.05, batch_size=24, compile=False)
        whole, parts = seeded(made), seeded(made)
        first = train(whole, data, recipe, **arguments)
        second = train(parts, data, Recipe(epochs=2, lr=0.05, batch_size=24, micro_batch=5, compile=False), **arguments)
        torch.testing.assert_close(first.steps, second.steps, rtol=1e-5, atol=1e-6, msg=task)
        for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=task)


@pytest.mark.parametrize(
    "data",
    [
        (X, LABELS),
        TensorDataset(X, LABELS),
        Rows(X.numpy(), LABELS.numpy()),
        DataLoader(TensorDataset(X, LABELS), 8),
        DataLoader(TensorDataset(X, LABELS), 8, shuffle=True, generator=torch.Generator()),
        [(X[:8], LABELS[:8]), (X[8:], LABELS[8:])],
        Data((X, LABELS), val=DataLoader(TensorDataset(X, LABELS), 8)),
        Data(DataLoader(TensorDataset(X, LABELS), 8), val=(X, LABELS)),
    ],
    ids=["pair", "data set", "numpy rows", "loader", "shuffled", "list", "pair and loader", "loader and pair"],
)
def test_data_of_any_kind_train_resume_and_leave_a_probe(data, tmp_path):
    model, sam = perceptron(), SAQ(0.05) if isinstance(data, DataLoader) else None
    recipe = Recipe(epochs=4, lr=0.1, batch_size=8, sam=sam, compile=False)
    history = train(model, data, recipe)
    assert history.steps.isfinite().all() and history.epochs[-1]["loss"] < history.epochs[0]["loss"]
    assert landscape.Objective(model).samples == 24
    save(model, tmp_path / "model.pt")
    assert landscape.Objective(load(tmp_path / "model.pt", perceptron())).samples == 24

    class Cut(Exception):
        pass

    def cut(state):
        if state.epoch == 2:
            raise Cut

    again = perceptron()
    with pytest.raises(Cut):
        train(again, data, recipe, on_epoch=cut, checkpoint=tmp_path / "run.pt")
    again = perceptron(seed=1)
    resumed = train(again, data, recipe, checkpoint=tmp_path / "run.pt")
    assert torch.equal(resumed.steps, history.steps)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


class Entries(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = perceptron()

    def forward(self, x):
        return self.net(x)


class Indexed:
    """A data set as Hugging Face has them: no class of torch's, and labels that the network has no use for."""

    def __len__(self):
        return len(X)

    def __getitem__(self, row):
        return {"x": X[row], "label": int(LABELS[row])}


def test_mappings_hold_targets_that_the_network_does_not_take():
    model = Entries()
    history = train(model, Indexed(), RECIPE)
    assert history.steps.isfinite().all() and 0 <= history.epochs[-1]["accuracy"] <= 1
    assert landscape.trace(model, num_probes=2).about["samples"] == 24
    assert saq_core.describe(model, Indexed()).macs == 5 * 8 + 8 * 3
    assert evaluate(model, Indexed()).loss == pytest.approx(evaluate(model.net, (X, LABELS)).loss, rel=1e-6)
    saq_core.calibrate(quantize(model), Indexed())
    with pytest.raises(ValueError, match="must be arguments of the model, got 'x', 'label', 'id': .*unexpected"):
        train(model, [{"x": X, "label": LABELS, "id": LABELS}], RECIPE)


def test_networks_that_need_their_targets_are_calibrated_and_counted():
    class Own(Entries):
        def forward(self, x, labels):
            return {"loss": F.cross_entropy(self.net(x), labels)}

    batches = [{"x": X, "labels": LABELS}]
    assert saq_core.describe(Own(), batches).macs == 5 * 8 + 8 * 3
    train(saq_core.calibrate(quantize(Own()), batches), batches, RECIPE)


@pytest.mark.parametrize("part", ["network", "loss"])
def test_views_of_images_train_although_the_layout_changes(part):
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.norm, self.head = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(108, 3)

        def forward(self, x):
            return self.head(self.norm(self.body(x)).view(len(x), -1))

    class Reshaping(Viewing):
        def forward(self, x):
            return self.head(self.norm(self.body(x)).reshape(len(x), -1))

    x, labels = segments()
    if part == "network":
        models, arguments = [seeded(Viewing), seeded(Reshaping)], [{}, {}]
    else:
        models = [seeded(lambda: nn.Conv2d(2, 4, 3, padding=1)) for _ in range(2)]
        arguments = [
            {
                "loss": lambda output, y: F.cross_entropy(
                    output.view(len(y), 4, -1), y.view(len(y), -1), ignore_index=255
                )
            },
            {"loss": lambda output, y: F.cross_entropy(output, y, ignore_index=255)},
        ]
    y = labels[:, 0, 0] % 3 if part == "network" else labels
    one, two = (train(m, (x, y), RECIPE, **a) for m, a in zip(models, arguments, strict=True))
    torch.testing.assert_close(one.steps, two.steps, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_weights_keep_their_memory():
    """And those that share it go on sharing it, also where they are two parameters."""
    model = nn.Sequential(
        nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 3, 6), nn.Flatten()
    )
    model[1].weight = nn.Parameter(model[0].weight.data)
    views = [p.data.view(-1) for p in model.parameters()]
    train(model, (segments()[0], LABELS[:12]), RECIPE)
    assert all(torch.equal(v, p.data.view(-1)) for v, p in zip(views, model.parameters(), strict=True))
    assert torch.equal(model[0].weight, model[1].weight)


def test_subset_of_mappings_is_a_share_of_each_entry():
    whole = tokens()
    model = quantize(seeded(Tokens), "W4A32")
    history = train(model, [whole], Recipe(epochs=2, lr=0.05, sam=SAQ(policy="subset:0.5"), compile=False))
    assert history.steps.isfinite().all()


def test_metrics_are_columns():
    off = {"off": lambda output, y: (output - y).abs().mean()}
    history = train(perceptron(1), Data((X, VALUES), val=(X, VALUES)), RECIPE, loss=nn.MSELoss(), metrics=off)
    last = history.epochs[-1]
    assert last["val_off"] < history.epochs[0]["val_off"] and 0 < last["off"] < 5 and "accuracy" not in last
    result = evaluate(perceptron(1), (X, VALUES), loss=nn.MSELoss(), metrics=off)
    assert result.metrics["off"] == pytest.approx(float((perceptron(1)(X) - VALUES).abs().mean().detach()), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_metrics_of_classes_may_be_counts_and_numbers(smoothing):
    recipe = Recipe(epochs=2, lr=0.0, batch_size=24, label_smoothing=smoothing, compile=False)
    metrics = {
        "right": lambda output, y: output.argmax(1) == y,
        "count": lambda output, y: (output.argmax(1) == y).sum(),
        "number": lambda output, y: float((output.argmax(1) == y).float().mean()),
        "each": lambda output, y: F.cross_entropy(output, y, reduction="none"),
    }
    row = train(perceptron(), Data((X, LABELS), val=(X, LABELS), num_classes=3), recipe, metrics=metrics).epochs[-1]
    found = [row[name] for name in ("right", "number", "val_right", "val_accuracy")]
    assert [*found, row["count"] / 24] == pytest.approx([row["accuracy"]] * 5, rel=1e-6)
    assert row["each"] == pytest.approx(row["val_loss"], rel=1e-6)


def test_callbacks_may_set_the_learning_rate_under_a_constant_schedule():
    schedulers = []

    def plateau(state):
        if not schedulers:
            schedulers.append(torch.optim.lr_scheduler.ReduceLROnPlateau(state.optimizer, patience=0, factor=0.5))
        schedulers[0].step(1.0)

    recipe = Recipe(epochs=4, lr=0.1, schedule="constant", warmup=1, batch_size=12, compile=False)
    assert [row["lr"] for row in train(perceptron(), (X, LABELS), recipe, on_epoch=plateau).epochs] == [
        0.1,
        0.1,
        0.05,
        0.025,
    ]


def test_what_an_optimizer_leaves_out_is_said():
    recipe = Recipe(1, 0.1, optimizer=lambda groups: torch.optim.SGD(groups[0]["params"][:2], 0.1), compile=False)
    with pytest.warns(UserWarning, match="the optimizer leaves out 2.weight and 1 more"):
        train(perceptron(), (X, LABELS), recipe)


def test_optimizers_and_schedules_of_ones_own():
    """The same numbers as torch's, driven by hand; the learning rates are the optimizer's own."""
    batches = list(zip(X.split(8), LABELS.split(8), strict=True))

    def adam(groups):
        return torch.optim.Adam([{**group, "lr": 0.01 * (k + 1)} for k, group in enumerate(groups)])

    def cycle(optimizer, steps):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, steps)

    recipe = Recipe(epochs=3, lr=1.0, weight_decay=0.0, optimizer=adam, schedule=cycle, compile=False)
    model, other = perceptron(), perceptron()
    history = train(model, batches, recipe)
    optimizer = adam([{"params": list(other.parameters())}])
    scheduler = cycle(optimizer, 9)
    for _ in range(3):
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(other(x), y).backward()
            optimizer.step()
            scheduler.step()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert history.epochs[-1]["lr"] == pytest.approx(0.05 / 25 / 1e4)  # the cycle's last

    named = Recipe(epochs=2, lr=1.0, optimizer=adam, schedule="constant", compile=False)
    assert train(perceptron(), batches, named).epochs[0]["lr"] == 0.01


def test_muon_trains_matrices():
    def muon(groups):
        return torch.optim.Muon([{**group, "lr": 0.02} for group in groups])

    model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False))
    history = train(model, (X, LABELS), Recipe(epochs=10, lr=1.0, batch_size=24, optimizer=muon, compile=False))
    assert history.steps[-1] < history.steps[0]


def decaying(optimizer, steps):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def test_a_file_keeps_the_names_of_functions(tmp_path):
    recipe = Recipe(epochs=2, lr=0.05, batch_size=8, schedule=decaying, compile=False)
    model = perceptron()
    train(model, (X, LABELS), recipe, checkpoint=tmp_path / "run.pt")
    save(model, tmp_path / "model.pt")
    back = load(tmp_path / "model.pt", perceptron()).recipe
    assert back.stored() == recipe.stored() and back.stored()["schedule"] == f"{__name__}.decaying"
    assert json.dumps(recipe.stored())
    with pytest.raises(ValueError, match="recipe must have its schedule to train, got the name .*decaying"):
        train(perceptron(), (X, LABELS), back)
    again = perceptron()
    assert torch.equal(train(again, (X, LABELS), recipe, checkpoint=tmp_path / "run.pt").steps, model.history.steps)
    with pytest.raises(ValueError, match="same recipe and loss, got other .'loss': None"):
        train(perceptron(), (X, LABELS), recipe, checkpoint=tmp_path / "run.pt", loss=nn.CrossEntropyLoss())
    train(perceptron(), (X, LABELS), recipe, checkpoint=tmp_path / "two.pt", loss=CLASS_WEIGHTS)
    for other in ({"loss": nn.CrossEntropyLoss(2 * CLASS_WEIGHTS.weight)}, {"loss": CLASS_WEIGHTS, "output": "scores"}):
        with pytest.raises(ValueError, match="same recipe and loss, got other"):
            train(Named(perceptron()).net, (X, LABELS), recipe, checkpoint=tmp_path / "two.pt", **other)


def test_training_stops_where_a_callback_says_so(tmp_path):
    seen = []

    def step(state):
        seen.append((state.epoch, state.step, float(state.loss)))
        assert state.model.training and state.optimizer.param_groups
        if state.step == 5:
            raise StopTraining

    model = perceptron()
    data = Data((X, LABELS), val=(X, LABELS), num_classes=3)
    history = train(model, data, RECIPE, on_step=step, checkpoint=tmp_path / "run.pt", log=tmp_path / "run.jsonl")
    assert [s[:2] for s in seen] == [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5)] and len(history.epochs) == 2
    assert torch.equal(history.steps, torch.tensor([s[2] for s in seen])) and not model.training
    assert history.epochs[-1]["val_loss"] == pytest.approx(evaluate(model, (X, LABELS)).loss)
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 2 and model.history is history

    def epoch(state):
        if state.epoch == 2:
            raise StopTraining

    assert len(train(perceptron(), data, RECIPE, on_epoch=epoch).epochs) == 2


def test_log_takes_anything_that_logs():
    class Run:
        rows = []

        def log(self, row):
            self.rows.append(row)

    history = train(perceptron(), (X, LABELS), RECIPE, log=Run())
    assert Run.rows == history.epochs


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, output, y):
        return F.cross_entropy(self.scale * output, y)


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield X[0], LABELS[0]


class Growing:
    def __iter__(self):
        return iter([(X, LABELS)] * 3)

    def __len__(self):
        return 2


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"data": DataLoader(Endless())}, TypeError, "without a length: an epoch needs an end"),
        ({"data": []}, ValueError, "must hold at least one sample, got none"),
        ({"data": [X, LABELS]}, TypeError, "got a list of Tensor and Tensor: pass the tuple"),
        ({"data": (X, LABELS[:5])}, ValueError, "got 24 inputs, 5 targets"),
        ({"data": (X, VALUES)}, ValueError, "pass loss=torch.nn.MSELoss"),
        ({"data": (X, MANY)}, ValueError, "BCEWithLogitsLoss"),
        ({"data": (X, LABELS + 1)}, ValueError, "labels must lie in 0…2 for 3 outputs, got 1…3"),
        ({"loss": lambda output, y: (output.argmax(1) != y).float()}, ValueError, "loss must depend on trainable weig"),
        ({"loss": lambda output, y: 1.0}, TypeError, "must return a tensor, got float"),
        ({"loss": nn.MSELoss(), "objective": lambda m, b: (0, 1)}, ValueError, "computes its own loss"),
        ({"output": "scores"}, ValueError, "output must be part of what the network returns"),
        ({"recipe": Recipe(1, 0.1, label_smoothing=0.1), "loss": nn.MSELoss()}, ValueError, "label_smoothing belongs"),
        ({"recipe": Recipe(1, 0.1, schedule=lambda o, n: decaying(torch.optim.SGD([X.clone()], 0.1), n))}, ValueError,
         "schedule must return a scheduler of the optimizer that it is given, got a CosineAnnealingLR of another SGD"),
        ({"recipe": Recipe(1, 0.1, schedule=lambda o, n: torch.optim.lr_scheduler.ReduceLROnPlateau(o))}, TypeError,
         "call it in on_epoch"),
        ({"recipe": Recipe(1, 0.1, optimizer=lambda groups: 3)}, TypeError, "optimizer must return a torch.optim.Opt"),
        ({"recipe": Recipe(1, 0.1, mix="mixup")}, ValueError, "mix belongs to .* .images, labels."),
        ({"log": 3}, TypeError, "log must be"),
        ({"loss": nn.MSELoss}, TypeError, "loss must be a function, got the class MSELoss: pass an instance of it"),
        ({"metrics": {"mae": nn.L1Loss}}, TypeError, r"metrics\['mae'\] must be a function, got the class L1Loss"),
        ({"metrics": {"lr": lambda o, y: o.mean()}}, ValueError, "metrics must have names of their own, .* got 'lr'"),
        ({"objective": lambda m, b: m(b[0]).mean()}, TypeError, "must return .mean loss, weight of the batch., got"),
        ({"objective": lambda m, b: (m(b[0]).mean(1), 8)}, TypeError, r"a tensor of one value, got \(8,\)"),
        ({"loss": Scaled()}, ValueError, "loss must have no trainable parameters of its own, got scale"),
        ({"recipe": Recipe(1, 0.1, micro_batch=5), "loss": lambda o, y: F.cross_entropy(o, y, CLASS_WEIGHTS.weight)},
         ValueError, "micro_batch needs a loss that is a mean over samples"),
        ({"recipe": Recipe(1, 0.1, micro_batch=5), "data": (X, MANY), "loss": nn.BCEWithLogitsLoss(reduction="sum")},
         ValueError, "micro_batch needs a loss that is a mean over samples"),
        ({"data": [(X, LABELS), (X[:0], LABELS[:0])], "recipe": Recipe(1, 0.0)}, ValueError, "got none in batch 2"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_a_weight_moves(change, error, message):
    model = perceptron()
    before = copy.deepcopy(model.state_dict())
    arguments = {"data": (X, LABELS), "recipe": RECIPE, **change}
    with pytest.raises(error, match=message):
        train(model, arguments.pop("data"), arguments.pop("recipe"), **arguments)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_loss_that_is_nan_is_said_to_come_from_data_too():
    with pytest.raises(
        FloatingPointError, match="nan at step 1 of epoch 1: try an lr below 0.05, or look at that batch"
    ):
        train(perceptron(), (X * torch.nan, LABELS), RECIPE)


def test_a_comparison_names_the_network_that_is_not_calibrated():
    networks = {"float": perceptron(), "W4A4": quantize(nn.Sequential(*(nn.Linear(5, 5) for _ in range(3))), "W4A4")}
    with pytest.raises(RuntimeError, match="network 'W4A4': activations of 1 are not calibrated"):
        landscape.compare(networks, (X, LABELS))


def test_batches_beyond_their_number_are_noticed():
    with pytest.raises(ValueError, match="data says that it has 2 batches and gives more: does it end?"):
        train(perceptron(), Growing(), RECIPE)


@pytest.mark.parametrize("method", ["samq", "asga"])
@pytest.mark.parametrize("task", ["regression", "tokens"])
def test_bits_are_searched_for_any_task(method, task):
    if task == "tokens":
        whole, arguments = tokens(), {}
        model = seeded(Tokens)
        data = Mappings(whole) if method == "samq" else [whole]
    else:
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
        data, arguments = (X, VALUES), {"loss": nn.MSELoss()}
    settings = SAMQ(epochs=2, warmup=1, candidates=2, tries=50) if method == "samq" else ASGA(epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few draws, and an embedding that stays float
        budget = saq_core.cost(model, data, bits="W4A4").bops
        policy = saq_core.search(model, data, budget=budget, method=method, settings=settings, **arguments)
    rows = policy.details["epochs"]
    assert policy.bops <= budget and all(torch.tensor(row["loss"]).isfinite() for row in rows)


def test_one_sample_trains_and_batchnorm_says_why_it_cannot():
    assert len(train(perceptron(), (X[:1], LABELS[:1]), RECIPE).steps) == 3
    with pytest.raises(ValueError, match="a training step failed in 1 .BatchNorm1d."):
        train(nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)), (X[:1], LABELS[:1]), RECIPE)


def test_own_data_set_says_what_it_is():
    data = Data(TensorDataset(X, LABELS), val=DataLoader(TensorDataset(X, LABELS), 8))
    assert repr(data) == "Data(custom: 24 train, 3 batches of val; TensorDataset)"
    assert data.input_shape == (5,) and saq_core.Data((X, VALUES)).probe[1].shape == (24, 1)


def test_a_layout_is_tried_once_in_a_training():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(18, 3))
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    history = train(model, (torch.randn(24, 1, 5, 5), LABELS), RECIPE)
    assert len(calls) == len(history.steps) + 1
