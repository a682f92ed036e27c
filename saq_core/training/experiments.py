"""The built-in experiments, and running one by name: from the data to a tested network, in files."""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from landscape.parallel import check_agreement

from .. import files, processes
from ..data import Data, DataName, load_data
from ..fpq import FPQ
from ..models import build_model
from ..quantization import QuantizerName, calibrate, parse_bits, quantize
from ..results import Settings
from ..sharpness import SAQ, Case
from .checkpoints import load, save
from .evaluation import evaluate
from .loop import train
from .recipes import Recipe
from .weights import WinQ


@dataclass(frozen=True, repr=False)
class Experiment(Settings):
    """Specify one trained network: data, network, bits, and the recipe.

    Write one in a module of your own and run it by ``python -m saq_core train my_package.my_module:NAME``.

    Args:
        name: Of its files.
        data: See `load_data`.
        network: See `build_model`.
        recipe: Its seed is replaced by the run's.
        bits: See `quantize`; None = full precision.
        quantizer: See `quantize`.
        per_channel: See `quantize`.
        start: Experiment whose trained network this one starts from, with the same seed; None = random weights.
        limit: Training images; None = all.
        source: Of the settings.

    Example:
        >>> import saq_core
        >>> recipe = saq_core.Recipe(epochs=2, lr=0.1)
        >>> saq_core.Experiment("small", "digits", "resnet8", recipe, limit=64)
        Experiment(name='small', data='digits', network='resnet8', recipe=Recipe(epochs=2, lr=0.1), limit=64)
    """

    name: str
    data: DataName
    network: str
    recipe: Recipe
    bits: str | dict[str, str] | None = None
    quantizer: QuantizerName = "lsq"
    per_channel: bool = False
    start: str | None = None
    limit: int | None = None
    source: str = ""

    def __post_init__(self) -> None:
        self._check(limit=1)
        for bits in self.bits.values() if isinstance(self.bits, dict) else [self.bits] if self.bits else []:
            parse_bits(bits)


VARIANTS: dict[str, dict[str, Any]] = {  # changes of the recipe
    "sgd": {},
    **{f"saq{case}": {"sam": SAQ(0.05, case=case)} for case in get_args(Case)},
    "saq3-momentum": {"sam": SAQ(0.05, policy="momentum:0.6")},
    "saq3-subset": {"sam": SAQ(0.05, policy="subset:0.15")},
    "sfp": {"fpq": FPQ(distill=False)},
    "csd": {"fpq": FPQ(p=0)},
    "fpq": {"fpq": FPQ()},
    "sfp-p1": {"fpq": FPQ(p=1.0, distill=False)},
    "fpq-p0.5": {"fpq": FPQ(p=0.5)},  # with csd, p = 0, and fpq, p = 0.1: the scan of FPQ's table 3
    "fpq-p1": {"fpq": FPQ(p=1.0)},
    "winq": {"winq": WinQ(every=100)},
    "saq3-frozen": {"sam": SAQ(0.05, freeze_steps=0.2)},  # a share that freezes half of the steps at W2A2
    "ema": {"ema": 0.99},
}


def _family(data: DataName, network: str, limit: int | None, start: Recipe, source: str) -> Iterator[Experiment]:
    """Yield a float network, the same tuned further, and its W4A4 and W2A2 networks with every variant."""
    base, tuned = f"{data}-{network}", replace(start, lr=0.02)
    shared: dict[str, Any] = {"data": data, "network": network, "limit": limit, "source": source}
    yield Experiment(base, recipe=start, **shared)
    yield Experiment(f"{base}-fp32", recipe=tuned, start=base, **shared)
    for bits in ("W4A4", "W2A2"):
        for label, changes in VARIANTS.items():
            name = f"{base}-{bits.lower()}-{label}"
            yield Experiment(name, recipe=replace(tuned, **changes), bits=bits, start=base, **shared)


def _fpq_paper() -> Iterator[Experiment]:
    """Yield ResNet-18 on CIFAR-10 in FPQ's own setting: plain LSQ and FPQ, and the float network they start from."""
    source = (
        "FPQ (Pang and Cai, 2025), section 4: asymmetric LSQ per channel, 200 epochs, batch 256, decay 5e-4, lr 0.01; "
        "the float recipe is ours; hours on a GPU, never run here"
    )
    tuned = Recipe(epochs=200, lr=0.01, batch_size=256, weight_decay=5e-4, nesterov=False)
    base = Experiment("fpq-resnet18", "cifar10", "resnet18", replace(tuned, lr=0.1), source=source)
    shared: dict[str, Any] = {"quantizer": "lsq-asymmetric", "per_channel": True, "start": base.name}
    yield base
    for bits in ("W4A4", "W2A4", "W2A2"):
        for label, fpq in (("lsq", None), ("fpq", FPQ())):
            name = f"{base.name}-{bits.lower()}-{label}"
            yield replace(base, name=name, recipe=replace(tuned, fpq=fpq), bits=bits, **shared)


# The built-in experiments by name. Quantized networks: LSQ, first and last layer at 8 bits; rho = 0.05 in plain units.
EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        *_family("digits", "resnet8", None, Recipe(15, lr=0.1, batch_size=64), "ours, a test of the whole in minutes"),
        *_family(
            "cifar10",
            "resnet20",
            10_000,
            Recipe(20, lr=0.1, warmup=1),
            "SAQ's scripts: Nesterov 0.9, decay 1e-4, batch 128, from a float network; 10,000 images, 20 epochs, "
            "lr 0.02 to 0 by cosine, 1 epoch of warm-up are ours; rho 0.05 from Foret et al. (2021)",
        ),
        *_fpq_paper(),
    )
}


def find_experiment(name: str) -> Experiment:
    """Return the experiment of that name, or ``package.module:NAME``.

    Raises:
        ValueError: If there is none.
    """
    module, colon, attribute = name.partition(":")
    if colon:
        value = getattr(importlib.import_module(module), attribute, None)
        if not isinstance(value, Experiment):
            raise ValueError(f"{name} must be a saq_core.Experiment, got {type(value).__name__}")
        return value
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
        experiment: A name of `saq_core.EXPERIMENTS`, ``package.module:NAME``, or an `Experiment`.
        root: Folder of the data set.
        seed: Of initial weights, shuffling and augmentation; the splits of the data never depend on it.
        out: Folder of the files.
        device: None = the GPU where there is one.
        download: Fetch a missing data set.
        changes: Other settings of the recipe, of the network that it starts from as well (``epochs=2``).

    Raises:
        ValueError: If the name is unknown, or the files in `out` belong to other settings.

    Cost: that of `train`, for the network it starts from too.

    Example:
        >>> import tempfile, saq_core
        >>> recipe = saq_core.Recipe(epochs=1, lr=0.1, batch_size=32)
        >>> small = saq_core.Experiment("small", "digits", "resnet8", recipe, limit=64)
        >>> with tempfile.TemporaryDirectory() as out:
        ...     model = saq_core.reproduce(small, out=out, device="cpu")  # doctest: +ELLIPSIS
        small-0: test accuracy 0... ± 0.0...
    """
    check_agreement(**locals())
    chosen = find_experiment(experiment) if isinstance(experiment, str) else experiment
    data = load_data(chosen.data, root, limit=chosen.limit, device=device, download=download)
    return _trained(chosen, data, seed, Path(out), changes)


def _compared(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of an experiment and of its recipe in one dict; what a record lacks has its default."""
    fixed = {f.name: settings.get(f.name, f.default) for f in fields(Experiment) if f.name not in ("recipe", "source")}
    return json.loads(json.dumps(fixed | Recipe.from_dict(settings["recipe"]).stored()))


def _trained(experiment: Experiment, data: Data, seed: int, out: Path, changes: dict[str, Any]) -> nn.Module:
    experiment = replace(experiment, recipe=replace(experiment.recipe, seed=seed, **changes))
    recipe, stem = experiment.recipe, f"{experiment.name}-{seed}"
    file, record = out / f"{stem}.pt", out / f"{stem}.json"
    settings = json.loads(json.dumps(asdict(experiment) | {"recipe": recipe.stored()}))
    expected = stored = _compared(settings)
    if record.exists():
        try:
            stored = _compared(json.loads(record.read_text()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{record} is damaged ({error}): pass another out, or delete it") from error
    other = {name: stored[name] for name in expected if stored[name] != expected[name]}
    if other:
        raise ValueError(f"{record} must hold this run's settings, got other {other}: pass another out, or delete it")
    check_agreement(**{file.name: file.exists()})
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
        options: Any = {"quantizer": experiment.quantizer, "per_channel": experiment.per_channel}
        model = calibrate(quantize(model, experiment.bits, **options), data)
    if processes.rank() == 0:
        files.write_text(record, json.dumps(settings, indent=1) + "\n")
    history = train(model, data, recipe, checkpoint=out / f"{stem}.training.pt", log=out / f"{stem}.jsonl")
    test = evaluate(model, data.test)
    if processes.rank() == 0:
        seconds = sum(row["seconds"] for row in history.epochs)
        outcome = {"seed": seed, "test": test._asdict(), "seconds": seconds, "torch": str(torch.__version__)}
        files.write_text(record, json.dumps({**settings, **outcome}, indent=1) + "\n")
        save(model, file)
        print(f"{stem}: test accuracy {test.accuracy:.4f} ± {test.accuracy_stderr:.4f}", flush=True)
    processes.wait()
    return model
