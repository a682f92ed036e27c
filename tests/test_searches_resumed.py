"""A search that was killed goes on from its checkpoint to the very policy of one that was not."""

import os
import random
import signal
import time
from dataclasses import asdict
from functools import partial
from threading import Timer

import pytest
import torch
from ranks import forked
from torch import nn

import saq_core
from saq_core import ASGA, SAMQ, Data, files, search
from saq_core.mixed_precision.asga import Alignment

SETTINGS = {
    "samq": SAMQ(epochs=3, warmup=1, batch_size=8, candidates=4, tries=60, slack=0.9),
    "asga": ASGA(epochs=3, batch_size=10, lr=0.05, lr_alpha=0.5),
    "hessian": None,
    "random": None,
    "uniform": None,
}
WRITTEN = {"samq": 3 + 4, "asga": 3, "hessian": 1, "random": 0, "uniform": 0}  # times


def prepared():
    """A network with dropout, whose draws are the global generator's, and BatchNorm; data of three classes."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(40) % 3
    x = torch.randn(40, 2, 4, 4, generator=generator)
    x[:, 0, 0, 0] += y
    torch.manual_seed(1)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Dropout(0.3)]
    model = nn.Sequential(*layers, nn.Conv2d(4, 6, 1), nn.Flatten(), nn.Linear(24, 3))
    return model, Data((x, y), (x[:9], y[:9]), (x[:9], y[:9]), 3)


def run(method, checkpoint=None, **changes):
    model, data = prepared()
    budget = saq_core.cost(model, data.input_shape, bits=4).bops
    settings = {"budget": budget, "method": method, "settings": SETTINGS[method], "candidates": (2, 3, 4), "seed": 3}
    torch.manual_seed(5)
    found = asdict(search(model, data, **settings | changes, checkpoint=checkpoint))
    return {name: value for name, value in found.items() if name != "seconds"}


def until(moment, method, folder):
    """Search, but for a kill -9 at a moment: after so many writes, within one, or after so many seconds."""
    kill, write, count = partial(os.kill, os.getpid(), signal.SIGKILL), torch.save, [0]

    def save(content, path):
        count[0] += 1
        if count[0] == moment:  # half a file
            path.write_bytes(b"PK")
            kill()
        write(content, path)

    files.torch.save = save
    timer = Timer(moment if isinstance(moment, float) else 1000.0, kill)
    timer.daemon = True
    timer.start()
    found = run(method, folder / "search.pt")
    timer.cancel()
    torch.save(found, folder / "found.pt")


def resumed(method, moments, folder):
    """Return what a search gives that is killed at every one of some moments."""
    kills = 0
    folder.mkdir(exist_ok=True)
    for moment in moments:
        process = forked(until, moment, method, folder)
        process.join(100)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    return torch.load(folder / "found.pt"), kills


@pytest.mark.parametrize("method", ["samq", "asga", "hessian"])
def test_a_killed_search_goes_on_to_the_very_same_policy(method, tmp_path):
    expected, _ = resumed(method, [10**9], tmp_path / "whole")
    # every process makes one row and dies in writing the next
    found, kills = resumed(method, [2] * (WRITTEN[method] - 1) + [1, 10**9], tmp_path)
    assert found == expected and kills == WRITTEN[method]
    assert sorted(file.name for file in tmp_path.glob("*.*")) == ["found.pt", "search.pt"]


@pytest.mark.parametrize("method", SETTINGS)
def test_a_finished_search_is_read_and_one_with_other_arguments_refused(method, tmp_path, monkeypatch):
    file = tmp_path / "search.pt"
    expected = run(method, file)
    if method in ("random", "uniform"):  # quicker than a file
        assert not file.exists() and run(method) == expected
        return
    for kind, name in ((Alignment, "epoch"), (saq_core.mixed_precision.samq.Search, "epoch")):
        monkeypatch.setattr(kind, name, None)
    assert run(method, file) == expected
    for change in ({"budget": 1e9}, {"seed": 4}, {"candidates": (2, 4)}, {"quantizer": "minmax"}):
        (name,) = change
        with pytest.raises(ValueError, match=f"search.pt must come from the same arguments, got other .*{name}.*"):
            run(method, file, **change)
    model, data = prepared()
    model[3].weight.data[0, 0] += 1e-6
    with pytest.raises(ValueError, match="other {'model.3.weight': .*: delete it or set these"):
        search(model, data, budget=1e9, method=method, checkpoint=file)
    data.train[1][:2] = data.train[1][:2].flip(0)
    with pytest.raises(ValueError, match="got other .*data.train.1"):
        search(prepared()[0], data, budget=1e9, method=method, checkpoint=file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cut short"):
        run(method, file)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["samq", "asga", "hessian"])
def test_a_search_killed_at_any_time_goes_on_to_the_very_same_policy(method, tmp_path):
    start = time.perf_counter()
    (expected, _), draw, kills = resumed(method, [10**9], tmp_path / "whole"), random.Random(0), 0
    seconds = time.perf_counter() - start
    for trial in range(4):
        folder = tmp_path / str(trial)
        moments = [draw.uniform(0.2, 0.8) * seconds * 1.25**k for k in range(30)]
        found, more = resumed(method, moments, folder)
        kills += more
        assert found == expected
    assert kills > 2
