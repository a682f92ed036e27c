"""Two processes train as one does on the union of their rows; a killed training goes on where it was."""

import copy
import json
import os
import signal
from unittest import mock

import pytest
import torch
from ranks import launched, torchrun
from torch import nn
from torch.multiprocessing import ProcessExitedException
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from saq_core import (
    FPQ,
    SAQ,
    Data,
    Experiment,
    Recipe,
    WinQ,
    calibrate,
    evaluate,
    load,
    processes,
    quantize,
    reproduce,
    train,
)
from saq_core.data import training_batches
from saq_core.fpq import distillation

TINY = Experiment("tiny", "digits", "vit", Recipe(epochs=1, lr=0.01, batch_size=16), limit=48)
METHODS = {
    "sgd": None,
    "distilled": FPQ(p=0),
    "case 2": SAQ(0.3, case=2, synchronised=True),
    "case 3": SAQ(0.3, synchronised=True),
    "mean": SAQ(0.3, combine="mean", synchronised=True),
    "look": SAQ(0.3, policy="look:2", synchronised=True),
    "momentum": SAQ(0.3, policy="momentum", synchronised=True),
    "winq": {"winq": WinQ(every=2, noise=0.05), "sam": SAQ(0.3, synchronised=True)},
    "averaged": {"ema": 0.7},
    "frozen": {"sam": SAQ(0.3, synchronised=True, freeze_steps=0.03, relative=True)},
    "own ε": SAQ(0.3),
}


def prepared():
    """A quantized network without BatchNorm, whose batches have no common statistics, and data of ragged size."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(27) % 3
    x = torch.randn(27, 4, generator=generator, dtype=torch.float64) + 2 * F.one_hot(y, 4)
    data = Data((x, y), (x[:9], y[:9]), (x[:12], y[:12]), 3)
    torch.manual_seed(1)
    convolved = nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 2, padding=1), nn.Flatten())
    model = nn.Sequential(convolved, nn.LayerNorm(18), nn.ReLU(), nn.Linear(18, 6), nn.ReLU(), nn.Linear(6, 3))
    return calibrate(quantize(model.double(), "W3A4"), data), data


def recipe(method, **settings):
    own = method if isinstance(method, dict) else {"fpq" if isinstance(method, FPQ) else "sam": method}
    return Recipe(**{"epochs": 2, "lr": 0.1, "batch_size": 8, "seed": 3, **own, **settings})


def write(task, out):
    """Run a task in this process, one of one or of two, and write what it found."""
    with processes.joined():
        found = task()
        if processes.rank() == 0:
            torch.save(found, out)


def _trainings():
    found = {}
    for name, method in METHODS.items():
        for micro in (None, 3):
            model, data = prepared()
            with mock.patch.object(distillation, "_standardised", F.instance_norm):  # knows no other rows
                history = train(model, data, recipe(method, micro_batch=micro))
            state = {k: v for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
            found[f"{name} {micro}"] = {
                **state,
                "steps": history.steps,
                "test": torch.tensor(evaluate(model, data.test)[:4]),
            }
    return found


def _perturbations():
    """ε of both ranks in the second pass, as the forward pass of each sees it, and the gradient of the update."""
    model, data = prepared()
    forward, no_sync = processes.parallel(model, model)
    sam = SAQ(0.3).wrap(
        model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0), no_sync=no_sync
    )
    batches = training_batches(
        data, 8, generator=torch.Generator().manual_seed(5), rank=processes.rank(), world_size=processes.size()
    )
    x, y = next(batches)
    seen = []
    model[3].register_forward_pre_hook(lambda layer, _: seen.append(layer.delta.detach().clone()))

    def closure():
        sam.zero_grad()
        loss = F.cross_entropy(forward(x), y)
        loss.backward()
        return loss

    sam.step(closure)
    both = [torch.zeros_like(seen[1]) for _ in range(2)]
    torch.distributed.all_gather(both, seen[1])
    return {"epsilon": both, "gradient": [p.grad for p in model.parameters() if p.grad is not None]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    file = tmp_path_factory.mktemp("two") / "two.pt"
    launched(write, _trainings, file)
    return _trainings(), torch.load(file)


@pytest.mark.parametrize("micro", [None, 3])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "own ε"])
def test_two_processes_train_as_one_does_on_the_union_of_their_rows(trained, name, micro):
    one, two = (found[f"{name} {micro}"] for found in trained)
    for key, value in one.items():
        tolerance = 1e-10 if value.dtype == torch.float64 else 1e-6
        torch.testing.assert_close(two[key], value, atol=tolerance, rtol=tolerance, msg=key)


def test_each_process_has_its_own_perturbation_unless_synchronised(trained):
    one, two = (found["own ε None"] for found in trained)
    assert not torch.allclose(one["steps"], two["steps"], atol=1e-6)


def test_m_sharpness_is_the_mean_of_gradients_each_at_its_own_worst_case(tmp_path):
    launched(write, _perturbations, tmp_path / "two.pt")
    found = torch.load(tmp_path / "two.pt")
    model, data = prepared()
    x, y = next(training_batches(data, 8, generator=torch.Generator().manual_seed(5)))
    halves = []
    for rank in range(2):
        twin = copy.deepcopy(model)
        sam = SAQ(0.3).wrap(twin, torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.0))
        seen = []

        def closure(twin=twin, sam=sam, seen=seen, rank=rank):
            sam.zero_grad()
            seen.append(twin[3].delta.detach().clone())
            loss = F.cross_entropy(twin(x[rank::2]), y[rank::2])
            loss.backward()
            return loss

        sam.step(closure)
        torch.testing.assert_close(found["epsilon"][rank], seen[1], atol=1e-12, rtol=1e-9)
        halves.append([p.grad for p in twin.parameters() if p.grad is not None])
    assert (found["epsilon"][0] - found["epsilon"][1]).norm() > 0.1 * found["epsilon"][0].norm()
    for mean, a, b in zip(found["gradient"], *halves, strict=True):
        torch.testing.assert_close(mean, (a + b) / 2, atol=1e-12, rtol=1e-9)


def _run(folder, kill=False):
    """Train for four epochs, or send this process a kill -9 in the third."""

    def on_epoch(state):
        if kill and len(state.history.epochs) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    with processes.joined():
        model, data = prepared()
        method = recipe(SAQ(0.3, policy="look:2", rho_range=(0.1, 0.5)), epochs=4)
        train(model, data, method, on_epoch=on_epoch, checkpoint=folder / "run.pt", log=folder / "run.jsonl")
        state = {k: v for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
        torch.save(state, folder / "end.pt")


@pytest.mark.parametrize("count", [1, 2])
def test_a_killed_training_goes_on_to_the_same_numbers(tmp_path, count):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    launched(_run, whole, count=count)
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        launched(_run, killed, True, count=count)
    assert not (killed / "end.pt").exists() and len((killed / "run.jsonl").read_text().splitlines()) == 2
    launched(_run, killed, count=count)
    one, two = torch.load(whole / "end.pt"), torch.load(killed / "end.pt")
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    lines = [[json.loads(line) for line in (f / "run.jsonl").read_text().splitlines()] for f in (whole, killed)]
    assert [row["loss"] for row in lines[0]] == [row["loss"] for row in lines[1]] and len(lines[0]) == 4


def _ignoring(path):
    with processes.joined():
        model, data = prepared()
        y = data.train[1].clone()
        y[::3] = -100
        steps = [train(copy.deepcopy(model), (data.train[0], y), recipe(None, micro_batch=m)).steps for m in (None, 2)]
        rows = list(zip(*data.train, strict=True))
        sampler = BatchSampler(DistributedSampler(rows), 4, drop_last=True)
        steps.append(train(copy.deepcopy(model), DataLoader(rows, batch_sampler=sampler), recipe(None)).steps)
        refused = []
        for batches in ([(data.train[0], y)], DataLoader(rows, 4)):
            with pytest.raises(ValueError) as error:
                train(model, batches, recipe(None))
            refused.append(str(error.value))
        if processes.rank() == 0:
            torch.save((steps, refused), path)


def test_targets_that_are_ignored_weigh_alike_in_all_processes(tmp_path):
    launched(_ignoring, tmp_path / "two.pt")
    (whole, parts, drawn), refused = torch.load(tmp_path / "two.pt")
    model, data = prepared()
    y = data.train[1].clone()
    y[::3] = -100
    one = train(model, (data.train[0], y), recipe(None)).steps
    torch.testing.assert_close(whole, one, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts, one, atol=1e-5, rtol=1e-5)
    assert drawn.isfinite().all()
    assert "a batch for each of 2 processes, got 1" in refused[0] and "DistributedSampler" in refused[1]


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch):
    model, data = prepared()
    monkeypatch.setattr(processes, "size", lambda: 3)
    with pytest.raises(ValueError, match="batch_size must give equal shares for 3 processes.*got 8"):
        train(model, data, recipe(None))


def test_torchrun_trains_as_one_process_does(tmp_path):
    """The real thing, through the command line, on a network without BatchNorm."""
    words = ["saq_core", "train", "test_processes:TINY", "--device", "cpu", "--out", tmp_path / "two"]
    found = torchrun(*words, told=tmp_path / "told")
    assert found.count("tiny-0: test accuracy") == found.count("1 epochs") == 1
    one, two = reproduce(TINY, out=tmp_path / "one", device="cpu"), load(tmp_path / "two" / "tiny-0.pt")
    torch.testing.assert_close(dict(two.named_parameters()), dict(one.named_parameters()), atol=1e-5, rtol=1e-4)
