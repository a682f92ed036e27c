"""Five hundred damaged files of every kind that we write: no other numbers, no deep errors, no dead interpreters."""

import functools
import json
import os
import random
from dataclasses import asdict

import pytest
import torch
from ranks import forked
from states import same
from strangers import X, Y, perceptron
from torch import nn

import landscape
import saq_core

pytestmark = pytest.mark.slow
CHUNK, PATIENCE = 10, 200  # cases for one process, and its seconds
DATA = (X.float(), Y)
RADII = {"radii": (0.05,)}


def damaged(content, draw):
    """Return bytes with a bit flipped, 8 drawn or 512 zeroed, cut, doubled or turned round; often at the end."""
    kind, length = draw.randrange(6), len(content)
    at = draw.randrange(max(0, length - 200), length) if draw.random() < 0.3 else draw.randrange(length)
    if kind == 0:
        return content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :]
    if kind in (1, 2):
        new = draw.randbytes(8) if kind == 1 else bytes(512)
        return content[:at] + new[: length - at] + content[at + len(new) :]
    if kind == 3:
        return content[:at]
    return content + content[at:] if kind == 4 else content[at:] + content[:at]


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48, 10))


@functools.cache
def digits():
    return saq_core.load_data("digits", limit=40, device="cpu")


def moved(seed):
    model, generator = perceptron(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def state(model):
    return {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}


def trained(file):
    model = network()
    history = saq_core.train(model, digits(), saq_core.Recipe(epochs=1, lr=0.1, batch_size=20), checkpoint=file)
    return state(model) | {"steps": history.steps, "loss": torch.tensor(history.epochs[0]["val_loss"])}


def searched(file):
    budget = saq_core.cost(network(), digits().input_shape, bits=4).bops
    settings = saq_core.ASGA(epochs=1, batch_size=20)
    found = saq_core.search(
        network(), digits(), budget=budget, method="asga", settings=settings, candidates=(2, 4), checkpoint=file
    )
    return asdict(found) | {"seconds": 0}


def surface(file):
    return landscape.surface(perceptron(), (X, Y), points=5, path=file.parent).loss


def reproduced(file):
    recipe = saq_core.Recipe(epochs=1, lr=0.1, batch_size=20)
    experiment = saq_core.Experiment("tiny", "digits", "resnet8", recipe, limit=40)
    return state(saq_core.reproduce(experiment, out=file.parent, device="cpu"))


def exported(file):
    model = saq_core.calibrate(saq_core.quantize(network(), "W3A4"), digits())
    if not file.exists():
        saq_core.export(model, file)
    return state(saq_core.load(file, model))


def saved(file, read=saq_core.load):
    if not file.exists():
        saq_core.save(saq_core.build_model("resnet8", digits()), file)
    return state(read(file))


def measured(name):
    """Return how to read a result, which is measured where there is no file."""
    path = {"directions": "eigenvectors", "points": 3}
    measure = {
        "trace": lambda m: landscape.trace(m, num_probes=3, method="hutchinson", per_layer=True),
        "eigenvalues": lambda m: landscape.top_eigenvalues(m, k=2),
        "density": lambda m: landscape.density(m, k=2, num_probes=2, steps=4),
        "line": lambda m: landscape.line(m, **path),
        "surface": lambda m: landscape.surface(m, metrics={"size": lambda z, y: z.norm(dim=1)}, **path),
        "sharpness": lambda m: landscape.average_sharpness(m, num_samples=3, **RADII),
        "table": lambda m: landscape.sharpness(m, measures={"average, filter": RADII}),
        "rounding": lambda m: landscape.rounding_sharpness(m, num_samples=2),
        "scale": lambda m: landscape.curvature_at_scale(m, radii=False, num_samples=2),
        "trajectory": lambda m: landscape.trajectory(m, [moved(k) for k in range(3)], (X, Y)),
        "check": lambda m: landscape.batchnorm_check(m),
        "comparison": lambda m: landscape.compare({"a/b": perceptron(), "c": moved(1)}, (X, Y), points=3, **RADII),
    }[name]

    def read(file):
        if not file.exists():
            model = perceptron()
            model.probe = X, Y
            measure(model if name in ("surface", "trajectory", "comparison") else landscape.Objective(model)).save(file)
        return landscape.load(file)

    return read


RESULTS = ["trace", "eigenvalues", "density", "line", "surface", "sharpness", "table", "rounding", "scale"]
RESULTS += ["trajectory", "check", "comparison"]
# kind → the name of its file, how it is read (and written, where it is not there), and how many are damaged
KINDS = {name: (f"{name}.nc", measured(name), 10) for name in RESULTS} | {
    "tile": ("tile_00001.npz", surface, 60),
    "manifest": ("manifest.json", surface, 60),
    "network": ("network.pt", saved, 60),
    "weights": ("w.pt", lambda f: saved(f, lambda f: saq_core.build_model("resnet8", digits(), weights=f)), 30),
    "training": ("training.pt", trained, 60),
    "integers": ("integers.pt", exported, 60),
    "search": ("search.pt", searched, 40),
    "record": ("tiny-0.json", reproduced, 30),
    "reproduced": ("tiny-0.pt", reproduced, 10),
}


def judge(kind, folder, first, last):
    """Read damaged copies of a file, a line of the log for each."""
    name, read, _ = KINDS[kind]
    kept = {file.name: file.read_bytes() for file in (folder / "whole").iterdir()}
    expected, draw = read(folder / "whole" / name), random.Random(f"{kind}{first}")
    for case in range(first, last):
        broken = damaged(kept[name], draw)
        place = folder / str(case)
        place.mkdir()
        for other, content in kept.items():
            (place / other).write_bytes(broken if other == name else content)
        with (folder / "log").open("a") as log:
            log.write(f"\n{case} ")
            log.flush()
            try:
                log.write("same" if same(read(place / name), expected) else "OTHER NUMBERS")
            except (ValueError, FileNotFoundError) as error:
                is_named = name in str(error) or str(place) in str(error)
                deep = isinstance(error, UnicodeError | json.JSONDecodeError) or not is_named
                log.write(f"{'DEEP' if deep else 'refused'} {error!r}".replace("\n", " "))
            except Exception as error:
                log.write(f"DEEP {error!r}".replace("\n", " "))


def judge_all(kind, folder, first, last):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    judge(kind, folder, first, last)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_refused_or_gives_the_same(kind, tmp_path):
    name, read, count = KINDS[kind]
    (tmp_path / "whole").mkdir()
    read(tmp_path / "whole" / name)
    assert (tmp_path / "whole" / name).exists()
    for first in range(0, count, CHUNK):
        process = forked(judge_all, kind, tmp_path, first, min(first + CHUNK, count))
        process.join(PATIENCE)
        hangs = process.exitcode is None
        if hangs:
            process.kill()
        lines = (tmp_path / "log").read_text().strip().splitlines()
        assert process.exitcode == 0 and not hangs, f"the interpreter {'hangs' if hangs else 'died'}: {lines[-1]}"
    same_count, refused = (sum(f" {word}" in line for line in lines) for word in ("same", "refused"))
    print(f"{kind}: {refused} refused, {same_count} the same")
    assert len(lines) == count
    assert same_count + refused == count, [line for line in lines if " same" not in line and " refused" not in line]
    assert refused > count / 3 or kind == "tile"  # which is measured again
