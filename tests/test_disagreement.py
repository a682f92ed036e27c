"""Processes that were given different things: refused by all of them, in words, within seconds."""

import os
import re

import pytest
import torch
from networks import convolutional as net
from ranks import launched
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import landscape
import saq_core
from saq_core import SAQ, Data, Recipe, processes

PATIENCE = 60  # seconds for one group
X = torch.randn(24, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 3
BATCHES = list(zip(X.split(6), Y.split(6), strict=True))
RECIPE = {"epochs": 1, "lr": 0.1, "batch_size": 8}


def images(x=X, y=Y, **changes):
    return Data(**{"train": (x, y), "val": (x[:6], y[:6]), "test": (x[:6], y[:6]), "num_classes": 3} | changes)


def other(model, by=1e-9):
    """The network with one weight that differs in a digit that no loss shows."""
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] += by
    return model


def trained(rank, **changes):
    saq_core.train(net(), images(), Recipe(**RECIPE | changes))


def own_loss(rank):
    return lambda output, target: (1 + 1e-3 * rank) * F.cross_entropy(output, target)


def shuffled(rank):
    """A loader whose order is that of a seed, one for each process."""
    generator = torch.Generator().manual_seed(rank)
    return DataLoader(TensorDataset(X, Y), batch_size=6, shuffle=True, generator=generator)


def quantized(rank, **changes):
    return saq_core.calibrate(saq_core.quantize(net(), "W4A4"), X[: 12 + 6 * rank])


def private(rank, name):
    """Return a path that is the same in all processes, in a folder that is not: two machines without a common disk."""
    folder = FOLDER[0] / f"machine{rank}"
    folder.mkdir()
    os.chdir(folder)
    if rank == 0:
        saq_core.files.write(name, "training", {"of": "the first machine"})
    return name


FOLDER = []
# what is different → what each process does, and how the refusal names it
LANDSCAPE = {
    "seed of a trace": (lambda r: landscape.trace(net(), BATCHES, seed=r), "seed, got 0, 1"),
    "method": (
        lambda r: landscape.trace(net(), BATCHES, method=("lanczos", "hutchinson")[r]),
        "method, got 'lanczos', 'hutchinson'",
    ),
    "units": (lambda r: landscape.trace(net(), BATCHES, units=("raw", "filter")[r]), "units"),
    "num_probes": (lambda r: landscape.trace(net(), BATCHES, num_probes=20 + r), "num_probes, got 20, 21"),
    "per_layer": (lambda r: landscape.trace(net(), BATCHES, per_layer=bool(r)), "per_layer"),
    "a wrong method in one": (
        lambda r: landscape.trace(net(), BATCHES, method=("lanczos", "x")[r]),
        "method, got 'lanczos', 'x'",
    ),
    "weights": (lambda r: landscape.trace(other(net(), r * 1e-9), BATCHES), "model.0.weight"),
    "what trains": (lambda r: landscape.trace(frozen(net(), r), BATCHES), "model.0.weight, got .*frozen"),
    "layers": (lambda r: landscape.Hessian(net(), BATCHES, layers=[["0"], ["0", "7"]][r]), "layers"),
    "an objective in one": (
        lambda r: landscape.trace(net() if r else landscape.Objective(net(), BATCHES), BATCHES),
        "got .*absent",
    ),
    "data": (lambda r: landscape.trace(net(), (X + 1e-9 * r, Y)), "data.0"),
    "targets": (lambda r: landscape.trace(net(), (X, Y.roll(r))), "data.1"),
    "order": (lambda r: landscape.density(net(), BATCHES[:: 1 - 2 * r]), "data.0.0"),
    "number of batches": (lambda r: landscape.trace(net(), BATCHES[r:]), "data.0.0"),
    "cut": (lambda r: landscape.line(net(), (X, Y), batch_size=6 + r, points=3), "batch_size, got 6, 7"),
    "a loader's order": (lambda r: landscape.surface(net(), shuffled(r), points=3), r"data\.\d"),
    "loss": (lambda r: landscape.trace(net(), BATCHES, loss=own_loss(r)), "loss.0, got '1.*', '1.*'"),
    "kind of loss": (
        lambda r: landscape.trace(net(), BATCHES, loss=(F.cross_entropy, nn.CrossEntropyLoss())[r]),
        "loss, got cross_entropy, .CrossEntropyLoss",
    ),
    "steps of a density": (lambda r: landscape.density(net(), BATCHES, steps=4 + r), "steps, got 4, 5"),
    "k": (lambda r: landscape.top_eigenvalues(net(), BATCHES, k=1 + r), "k, got 1, 2"),
    "a matrix": (lambda r: landscape.trace(torch.eye(3) * (1 + r)), "model, got torch.float32"),
    "another function": (
        lambda r: landscape.line(net(), BATCHES, points=3) if r else landscape.density(net(), BATCHES),
        "got .*absent",
    ),
    "seed of a surface": (lambda r: landscape.surface(net(), BATCHES, points=3, seed=r), "seed, got 0, 1"),
    "directions": (
        lambda r: landscape.surface(net(), BATCHES, points=3, directions=[moved(r), moved(2)]),
        r"directions.0.0.weight",
    ),
    "the network at an end": (
        lambda r: landscape.line(net(), BATCHES, points=3, directions=other(net(), 0.1 + r)),
        "directions.0.weight",
    ),
    "points": (lambda r: landscape.surface(net(), BATCHES, points=3 + 2 * r), "points, got 3, 5"),
    "span": (lambda r: landscape.line(net(), BATCHES, points=3, span=1.0 + r), "span, got 1.0, 2.0"),
    "normalize": (
        lambda r: landscape.line(net(), BATCHES, points=3, normalize=("filter", "layer")[r]),
        "normalize",
    ),
    "batchnorm": (
        lambda r: landscape.line(net(), BATCHES, points=3, batchnorm=("fixed", "recomputed")[r]),
        "batchnorm",
    ),
    "metrics": (
        lambda r: landscape.line(
            net(), BATCHES, points=3, metrics={"size": lambda z, y: (1 + 1e-3 * r) * z.norm(dim=1)}
        ),
        "loss.1",
    ),
    "names of metrics": (
        lambda r: landscape.line(net(), BATCHES, points=3, metrics={f"m{r}": lambda z, y: z.sum(1)}),
        "metrics.m0, got .*absent",
    ),
    "adaptive": (lambda r: landscape.surface(net(), BATCHES, points=9, adaptive=bool(r)), "adaptive"),
    "precision": (
        lambda r: landscape.line(net().float(), BATCHES, points=3, precision=("fp32", "bf16")[r]),
        "precision",
    ),
    "dtype": (lambda r: landscape.trace(net().to((torch.float64, torch.float32)[r]), BATCHES), "model.0.w"),
    "space": (lambda r: landscape.trace(w4(), BATCHES, space=("quantized", "latent")[r]), "space"),
    "radii": (lambda r: landscape.worst_case_sharpness(net(), BATCHES, radii=(0.1, 0.2)[r:]), "radii.0"),
    "ascent steps": (
        lambda r: landscape.worst_case_sharpness(net(), BATCHES, steps=1 + r),
        "steps, got 1, 2",
    ),
    "metric": (
        lambda r: landscape.average_sharpness(net(), BATCHES, metric=("filter", "plain")[r]),
        "metric, got 'filter', 'plain'",
    ),
    "draws": (lambda r: landscape.average_sharpness(net(), BATCHES, num_samples=2 + r), "num_samples"),
    "bits": (lambda r: landscape.rounding_sharpness(net(), BATCHES, bits=(4, 3)[r:]), "bits.0"),
    "measures": (
        lambda r: landscape.sharpness(net(), BATCHES, measures=["average, filter", "rounding noise"][r:]),
        "measures.0",
    ),
    "radius of a curvature": (
        lambda r: landscape.curvature_at_scale(net(), BATCHES, radius=0.1 + r),
        "radius",
    ),
    "networks compared": (
        lambda r: landscape.compare({"a": net(), "b": other(net(), r * 1e-9)}, BATCHES, points=0),
        "models.b.0.weight",
    ),
    "names compared": (
        lambda r: landscape.compare({"a": net(), "bc"[r]: net()}, BATCHES, points=0),
        "models.b, got .*absent",
    ),
    "checkpoints": (
        lambda r: landscape.trajectory(net(), [other(net(), 1e-3 + r), net()], BATCHES),
        "checkpoints.0.0.weight",
    ),
    "a folder in one": (
        lambda r: landscape.surface(net(), BATCHES, points=3, path=(FOLDER[0] / "tiles", None)[r]),
        "path, got .*tiles, None",
    ),
    "tiles of another surface": (
        lambda r: [landscape.surface(net(), BATCHES, points=3, path=FOLDER[0], seed=s) for s in (0, 1)],
        "path must be a new folder",
    ),
    "seed of a check": (lambda r: landscape.batchnorm_check(net(), BATCHES, seed=r), "seed, got 0, 1"),
}
SAQ_CORE = {
    "recipe": (lambda r: trained(r, lr=0.1 + r), "recipe.lr, got 0.1, 1.1"),
    "epochs": (lambda r: trained(r, epochs=1 + r), "recipe.epochs, got 1, 2"),
    "batch_size": (lambda r: trained(r, batch_size=8 + 4 * r), "recipe.batch_size, got 8, 12"),
    "seed of a training": (lambda r: trained(r, seed=r), "recipe.seed, got 0, 1"),
    "sam": (lambda r: trained(r, sam=(None, SAQ())[r]), "recipe.sam, got None, SAQ"),
    "radius of sam": (lambda r: trained(r, sam=SAQ(0.1 + r)), "recipe.sam.rho, got 0.1, 1.1"),
    "training images": (
        lambda r: saq_core.train(net(), images(X + 1e-9 * r), Recipe(**RECIPE)),
        "data.train.0",
    ),
    "order of training images": (
        lambda r: saq_core.train(net(), images(X.roll(3 * r, 0)), Recipe(**RECIPE)),
        "data.train.0",
    ),
    "number of images": (
        lambda r: saq_core.train(net(), images(X[8 * r :], Y[8 * r :]), Recipe(**RECIPE)),
        "data.train.0",
    ),
    "augmentation": (
        lambda r: saq_core.train(net(), images(padding=r), Recipe(**RECIPE)),
        "data.padding, got 0, 1",
    ),
    "network to train": (
        lambda r: saq_core.train(other(net(), r * 1e-9), images(), Recipe(**RECIPE)),
        "model.0.weight",
    ),
    "bits of the network": (
        lambda r: saq_core.train(saq_core.quantize(net(), ("W4A32", "W3A32")[r]), images(), Recipe(**RECIPE)),
        "model",
    ),
    "data it was calibrated on": (
        lambda r: saq_core.train(quantized(r), images(), Recipe(**RECIPE)),
        "model.*quantizer",
    ),
    "snapshots": (
        lambda r: saq_core.train(net(), images(), Recipe(**RECIPE), snapshots=(None, "epoch")[r]),
        "snapshots, got None, 'epoch'",
    ),
    "a checkpoint on one machine": (
        lambda r: saq_core.train(net(), images(), Recipe(**RECIPE), checkpoint=private(r, "run.pt")),
        "checkpoint, got run.pt .*, run.pt",
    ),
    "experiment": (
        lambda r: saq_core.reproduce("digits-resnet8", out=FOLDER[0], device="cpu", epochs=1 + r),
        "changes.epochs, got 1, 2",
    ),
    "network on one machine": (
        lambda r: private(r, "digits-resnet8-0.pt") and saq_core.reproduce("digits-resnet8", out=".", device="cpu"),
        "digits-resnet8-0.pt",
    ),
    "split": (lambda r: saq_core.evaluate(net(), (X[r:], Y[r:])), "split.0"),
    "network to evaluate": (lambda r: saq_core.evaluate(other(net(), r * 1e-9), (X, Y)), "model.0.weight"),
    "search": (
        lambda r: saq_core.search(net(), images(), budget=1e6, seed=r),
        "search runs in one process, got 2",
    ),
}


def moved(seed):
    generator = torch.Generator().manual_seed(seed)
    shape = net()[0].weight.shape
    return {"0.weight": torch.randn(shape, dtype=torch.float64, generator=generator)}


def frozen(model, rank):
    model[0].weight.requires_grad_(rank == 0)
    return model


def w4():
    return saq_core.calibrate(saq_core.quantize(net(), "W4A4"), X)


def attempt(names, folder):
    """Let each process do its own, in one group after another's end; write what came of it."""
    FOLDER.append(folder)
    with processes.joined():
        for name in names:
            try:
                result = (LANDSCAPE | SAQ_CORE)[name][0](processes.rank())
                words = f"nothing was refused: {result}"
            except Exception as error:
                words = f"{type(error).__name__}: {error}"
            (folder / f"{name} {processes.rank()}.txt").write_text(words)


def check(name, folder):
    expected = (LANDSCAPE | SAQ_CORE)[name][1]
    expected = expected if " " in expected.partition(", got")[0] else f"all processes must be given the same {expected}"
    for rank in range(2):
        words = (folder / f"{name} {rank}.txt").read_text()
        assert re.match(f"ValueError: .*{expected}", words), f"{name}, process {rank}: {words}"


def test_different_arguments_are_refused_by_all_processes_which_can_go_on(tmp_path):
    names = ["seed of a trace", "order", "directions", "loss", "epochs", "order of training images", "another function"]
    launched(attempt, names, tmp_path, patience=100)
    for name in names:
        check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LANDSCAPE, *SAQ_CORE])
def test_whatever_differs_is_refused_in_words_within_seconds(name, tmp_path):
    launched(attempt, [name], tmp_path, patience=PATIENCE)
    check(name, tmp_path)
