"""Running an experiment by name: from the data to a trained network and its test accuracy, in files."""

from __future__ import annotations

import difflib
import importlib
import json
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import files, processes
from .calibration import calibrate
from .checkpoints import load, save
from .data import Data, load_data
from .layers import quantize
from .models import build_model
from .recipes import EXPERIMENTS, Experiment, Recipe
from .training import evaluate, train

# What a record that was written before a setting existed is taken to mean.
DEFAULTS = {f.name: f.default for f in (*fields(Experiment), *fields(Recipe)) if f.default is not MISSING}


def find_experiment(name: str) -> Experiment:
    """Return the experiment of that name, or the one that ``package.module:NAME`` holds.

    Raises:
        ValueError: If there is none.
    """
    module, colon, attribute = name.partition(":")
    if colon:
        found = getattr(importlib.import_module(module), attribute, None)
        if not isinstance(found, Experiment):
            raise ValueError(f"{name} must be a saq_core.Experiment, got {type(found).__name__}")
        return found
    if name not in EXPERIMENTS:
        close = difflib.get_close_matches(name, EXPERIMENTS, n=3) or list(EXPERIMENTS)[:3]
        raise ValueError(f"name must be an experiment or package.module:NAME, got {name!r}: close are {close}")
    return EXPERIMENTS[name]


def reproduce(
    experiment: str | Experiment,
    root: str | Path | None = None,
    *,
    seed: int = 0,
    out: str | Path = "build/runs",
    device: torch.device | str | None = None,
    download: bool = False,
    **changes: Any,
) -> nn.Module:
    """Train the network of an experiment (after the one that it starts from), test it, and return it.

    Writes ``NAME-SEED.pt`` (the network), ``.training.pt`` (from which an interrupted training goes on), ``.jsonl``
    (the epochs) and ``.json`` (settings and test accuracy) into `out`. What is there already is not trained again.

    Args:
        experiment: A name of `saq_core.recipes.EXPERIMENTS`, ``package.module:NAME``, or an `Experiment`.
        root: Folder of the data set.
        seed: Of initial weights, shuffling and augmentation; the splits of the data never depend on it.
        out: Folder of the files.
        device: None = the GPU where there is one.
        download: Fetch a missing data set.
        changes: Other settings of the recipe, of the network that it starts from as well (``epochs=2``).

    Raises:
        ValueError: For an unknown name, or if the files in `out` belong to other settings.
    """
    chosen = find_experiment(experiment) if isinstance(experiment, str) else experiment
    data = load_data(chosen.data, root, limit=chosen.limit, device=device, download=download)
    return _trained(chosen, data, seed, Path(out), changes)


def _trained(experiment: Experiment, data: Data, seed: int, out: Path, changes: dict[str, Any]) -> nn.Module:
    experiment = replace(experiment, recipe=replace(experiment.recipe, seed=seed, **changes))
    recipe, stem = experiment.recipe, f"{experiment.name}-{seed}"
    file, record = out / f"{stem}.pt", out / f"{stem}.json"
    settings = json.loads(json.dumps(asdict(experiment)))
    known = json.loads(record.read_text()) if record.exists() else settings
    mine, theirs = ({**DEFAULTS, **one, **one["recipe"], "recipe": None, "source": None} for one in (settings, known))
    other = {name: theirs.get(name) for name in mine if theirs.get(name) != mine[name]}
    if other:
        raise ValueError(f"{record} must hold this run's settings, got other {other}: pass another out, or delete it")
    if file.exists():
        return load(file, map_location=data.train[0].device)
    if experiment.start is None:
        model = build_model(experiment.network, data, seed=seed)
    else:
        start = find_experiment(experiment.start)
        if (start.data, start.limit) != (experiment.data, experiment.limit):
            rule = f"{experiment.name} must have the data and limit of {start.name}, which it starts from"
            raise ValueError(f"{rule}: {(start.data, start.limit)}, got {(experiment.data, experiment.limit)}")
        model = _trained(start, data, seed, out, changes)
    if experiment.bits is not None:
        twin = quantize(model, experiment.bits, quantizer=experiment.quantizer, per_channel=experiment.per_channel)
        model = calibrate(twin, data)
    processes.wait()  # until all have looked
    if processes.rank() == 0:
        files.write_text(record, json.dumps(settings, indent=1) + "\n")
    history = train(model, data, recipe, checkpoint=out / f"{stem}.training.pt", log=out / f"{stem}.jsonl")
    test = evaluate(model, data.test)
    if processes.rank() == 0:
        seconds = sum(row["seconds"] for row in history.epochs)
        found = {"seed": seed, "test": test._asdict(), "seconds": seconds, "torch": str(torch.__version__)}
        files.write_text(record, json.dumps({**settings, **found}, indent=1) + "\n")
        save(model, file)
        print(f"{stem}: test accuracy {test.accuracy:.4f} ± {test.accuracy_stderr:.4f}", flush=True)
    processes.wait()
    return model
