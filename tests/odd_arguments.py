"""Call everything public with one odd argument at a time, and sort what happens.

    python tests/odd_arguments.py [--sample N] [--seed S] [--list] [--only TEXT]

Every call is valid and takes milliseconds; then each of its arguments in turn is replaced by values that somebody might
pass by mistake: of another type, NaN, negative, numpy's, empty, of the wrong shape. An outcome is

result     a value that is meant to work did: numpy's numbers give what Python's give, None the default
named      our own error, which names the argument
unnamed    our own error, which does not
foreign    an error from the depths: of Python, PyTorch, numpy, a file's reader
silent     a value that means nothing gave a result, or numpy's number another one than Python's
refused    a value that is meant to work was refused
slow       no end within SECONDS

Exit 1 where less than 99 % are results or named, or anything is silent, refused or slow.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import dataclasses
import functools
import inspect
import io
import linecache
import math
import pathlib
import random
import re
import signal
import sys
import tempfile
import types
import typing
import warnings
from typing import Any, Literal, get_args, get_origin

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import landscape
import saq_core

SECONDS = 20
BOUND = 0.99
GOOD, BAD = ("result", "named"), ("silent", "refused", "slow")
ROOT = pathlib.Path(landscape.__file__).parents[1]

_generator = torch.Generator().manual_seed(0)
X, Y = torch.randn(24, 4, generator=_generator), torch.arange(24) % 3
IMAGES = torch.randn(24, 1, 8, 8, generator=_generator)


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).eval()


def convnet(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    convs = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3)]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(8, 3)).eval()


def quantized() -> nn.Module:
    return saq_core.calibrate(quantize_images(), IMAGES)


# -- what is odd ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Odd:
    """A value, and whether it is to be refused ("no"), to work ("yes"), to be as `like`, or either ("either")."""

    label: str
    value: Any
    verdict: str
    like: Any = None


def no(**values: Any) -> list[Odd]:
    return [Odd(label, value, "no") for label, value in values.items()]


def yes(**values: Any) -> list[Odd]:
    return [Odd(label, value, "yes") for label, value in values.items()]


def either(**values: Any) -> list[Odd]:
    return [Odd(label, value, "either") for label, value in values.items()]


class Thing:
    """Nothing that any argument takes."""

    def __repr__(self) -> str:
        return "Thing()"


def junk(*taken: str) -> list[Odd]:
    """Things of every type, without those that the argument takes."""
    things = {
        "none": None,
        "nan": math.nan,
        "minus one": -1,
        "three": 3,
        "fraction": 1.5,
        "true": True,
        "text": "nonsense",
        "bytes": b"3",
        "list": [3],
        "empty list": [],
        "tuple": (1, "a"),
        "dict": {"a": Thing()},
        "empty dict": {},
        "set": {3},
        "object": Thing(),
        "class": Thing,
        "function": lambda: None,
        "tensor": torch.full((3,), math.nan),
        "0-d tensor": torch.tensor(3),
        "empty tensor": torch.empty(0),
        "array": np.array([math.nan, 1.0]),
        "module": nn.ReLU(),
        "generator": (n for n in ()),
        "complex": 3j,
        "numpy nan": np.float64("nan"),
    }
    return no(**{label: thing for label, thing in things.items() if label not in taken})


def number(valid: int | float, fits: typing.Callable[[float], bool], whole: bool, seeded: random.Random) -> list[Odd]:
    """Numbers that do not fit, numpy's that do, and what is no number."""
    plain = [-1, -0.5, 0, 1.5, 10**30, 2.0, math.nan, math.inf, -math.inf, -seeded.randint(2, 10**6)]
    plain += [-seeded.random(), float(f"-{seeded.random():.3g}e-7")]
    odd = [Odd(f"{n!r}", n, "no") for n in plain if not (isinstance(n, int) or not whole) or not fits(n)]
    kinds = [np.int64, np.int32, np.int16] if whole else [np.float64, np.float32]
    odd += [Odd(f"{kind.__name__}", kind(valid), "like", kind(valid).item()) for kind in kinds]
    odd += [
        Odd("zero array", np.array(valid), "may", valid),
        Odd("0-d tensor", torch.tensor(valid), "may", torch.tensor(valid).item()),
    ]
    odd += no(true=True, false=False, numpy_true=np.bool_(True), text=str(valid), one_array=np.array([valid] * 2))
    odd += no(nan_tensor=torch.tensor(math.nan), numpy_inf=np.float64("inf"), numpy_negative=np.int64(-3))
    odd = [
        o
        for o in odd
        if not (o.label == "numpy_negative" and fits(-3)) and not (o.label == "numpy_inf" and fits(math.inf))
    ]
    taken = {"three", "minus one", "true", "0-d tensor", "fraction", "nan"}
    return odd + junk(*taken, "none")


def flag(value: bool) -> list[Odd]:
    odd = [Odd("numpy", np.bool_(value), "like", value)]
    odd += no(text="no", empty="", one=1, zero=0, half=0.5, tensors=torch.tensor([True, False]))
    return odd + junk("true", "none")


def options(literal: Any, value: Any) -> list[Odd]:
    known = [option for option in get_args(literal) if option is not None]
    odd = [Odd("numpy text", np.str_(value), "like", value)] if isinstance(value, str) else []
    texts = [o for o in known if isinstance(o, str)]
    odd += [Odd("upper", texts[0].upper(), "no")] if texts and texts[0].upper() not in texts else []
    odd += [Odd("space", f" {known[0]}", "no"), Odd("several", known, "no"), Odd("empty", "", "no"), *no(zero=0)]
    return odd + junk("none", *(["three", "true"] if 3 in known else []))


def path(place: str, exists: bool) -> list[Odd]:
    """Paths that are none, and places where nothing can be written or read."""
    odd = no(null="a\0b", below_a_file=f"{__file__}/deep/x", device_folder="/proc/nowhere/x")
    odd += no(name_too_long="x" * 5000)
    return odd + junk("none", "text") + (no(missing=f"{place}/missing.xyz", empty="") if exists else [])


WRONG_OUTPUT = {
    "returns none": lambda *_: None,
    "returns text": lambda *_: "0.5",
    "returns tuple": lambda *_: (1, 2, 3),
    "returns nan": lambda out, y: out.sum() * math.nan,
    "returns inf": lambda out, y: out.sum() + math.inf,
    "returns integers": lambda out, y: out.argmax(1),
    "returns list": lambda out, y: [0.5],
    "raises": lambda out, y: 1 / 0,
    "detached": lambda out, y: cross_entropy(out.detach(), y),
}
ARITY = {"no arguments": lambda: torch.tensor(0.0), "five arguments": lambda a, b, c, d, e: torch.tensor(0.0)}


def function(*more: dict[str, Any], taken: tuple[str, ...] = ()) -> list[Odd]:
    odd = no(**{k: v for part in (ARITY, *more) for k, v in part.items() if k not in taken})
    return odd + junk("none", "function", "class", "module")


def datas() -> list[Odd]:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 24)
    odd = no(x_alone=X, one=(X,), three=(X, Y, Y), list_of_two=[X, Y], fewer_targets=(X, Y[:5]), no_rows=(X[:0], Y[:0]))
    odd += no(no_targets=(X, None), no_inputs=(None, Y), nan=(X * math.nan, Y), inf=(X + math.inf, Y))
    odd += no(labels_too_large=(X, Y + 7), labels_negative=(X, Y - 1), narrow=(X[:, :2], Y), flat=(X.flatten()[:24], Y))
    odd += no(text="data", bytes=b"x", complex_inputs=(X + 1j, Y), inputs_of_bool=(X > 0, Y), deep=(X, Y[:, None]))
    odd += no(generator=((X, Y) for _ in range(2)), iterator=iter([(X, Y)]), batches_of_three=[(X, Y, Y)])
    odd += no(batch_none=[None], batch_text=["ab", "cd"], batch_empty=[(X, Y), (X[:0], Y[:0])], scalar=(X, Y[0]))
    odd += no(strings=(["a"] * 24, Y), dataset=loader.dataset, unnamed={"x": X}, a_class=nn.Linear, a_function=mlp)
    odd += no(floats_as_labels=(X, X[:, 0] * math.nan), nested=((X, Y), 3), empty_pair=(torch.empty(0), torch.empty(0)))
    odd += yes(batches=[(X[:8], Y[:8]), (X[8:], Y[8:])], loader=loader)
    odd += [Odd("numpy", (X.numpy(), Y.numpy()), "like", (X, Y)), Odd("float64", (X.double(), Y), "like", (X, Y))]
    odd += [Odd("int32 labels", (X, Y.int()), "may", (X, Y)), *either(one_sample=(X[:1], Y[:1]))]
    return odd + junk("none", "text", "bytes", "tuple")


def models(taken: tuple[str, ...] = ()) -> list[Odd]:
    broken = mlp()
    with torch.no_grad():
        broken[0].weight.fill_(math.nan)
    odd = no(linear_class=nn.Linear, list_of_models=[mlp()], state=mlp().state_dict(), named={"a": mlp()}, nothing=mlp)
    odd += no(no_weights=nn.Identity(), nan_weights=broken, lazy=nn.LazyLinear(3), narrow=nn.Linear(2, 3))
    odd += no(parameters=mlp().parameters(), meta=mlp().to("meta"))
    return [o for o in odd + junk("none", "module") if o.label not in taken]


def numbers_list(valid: Any, fits: typing.Callable[[float], bool], *taken: str) -> list[Odd]:
    wrong = [n for n in (math.nan, math.inf, -1, 0) if not fits(n)]
    odd = [Odd(f"with {n}", [*valid, n], "no") for n in wrong]
    odd += [Odd("array", np.array(valid), "like", list(valid)), Odd("list", list(valid), "like", tuple(valid))]
    odd += [Odd("numpy numbers", [np.array(valid)[i] for i in range(len(valid))], "like", list(valid))]
    odd += no(with_true=[True, *valid], with_text=[*valid, "1"], with_none=[*valid, None], nested=[list(valid)])
    odd += [Odd("matrix", np.array([list(valid)] * 2), "no"), Odd("nan array", np.array([math.nan]), "no")]
    return odd + junk("none", "array", "list", *taken)


def names_list(*taken: str) -> list[Odd]:
    odd = no(unknown=["nonsense"], text="0", numbers=[0, 1], with_none=["0", None], nested=[["0"]], with_bytes=[b"0"])
    return [o for o in odd + junk("none", "empty list") if o.label not in taken]


def tensors() -> list[Odd]:
    array = Odd("array", np.ones(3), "may", torch.ones(3, dtype=torch.float64))  # results take one for its tensor
    return [*no(numbers=[1.0, 2.0]), array, *junk("none", "tensor", "0-d tensor", "empty tensor", "array")]


def texts() -> list[Odd]:
    return junk("none", "text")


# -- what fits: the documented ranges, by argument, or by call and argument --------------------------------------------


def at_least(low: float) -> typing.Callable[[float], bool]:
    return lambda n: low <= n < math.inf


def within(low: float, high: float) -> typing.Callable[[float], bool]:
    return lambda n: low <= n <= high


def above(low: float, high: float = math.inf) -> typing.Callable[[float], bool]:
    return lambda n: low < n < high


SEED = within(-(2**63), 2**63 - 1)
FITS: dict[str, typing.Callable[[float], bool]] = {
    **dict.fromkeys(("batch_size", "max_products", "steps", "m", "epochs", "micro_batch", "batches"), at_least(1)),
    **dict.fromkeys(("num_samples", "num_probes", "samples"), at_least(2)),
    **dict.fromkeys(("image_size", "limit", "candidates", "tries", "num_classes"), at_least(1)),
    **dict.fromkeys(("rtol", "atol", "tol", "margin", "lr", "momentum", "weight_decay", "rho", "lam"), at_least(0)),
    **dict.fromkeys(
        ("warmup", "padding", "workers", "weight", "generator_lr", "shrink", "slack", "lr_alpha", "beta", "step"),
        at_least(0),
    ),
    **dict.fromkeys(("radius", "span", "clip_norm", "damping"), above(0)),
    **dict.fromkeys(("bits", "first_last_bits", "input_bits", "first_input_bits"), within(1, 32)),
    **dict.fromkeys(("tolerance", "level", "val_fraction", "share"), above(0, 1)),
    **dict.fromkeys(("p", "alpha"), within(0, 1)),
    "freeze_steps": lambda n: 0 <= n < 1,
    "WinQ.every": at_least(1),
    "WinQ.noise": at_least(0),
    "Recipe.ema": lambda n: 0 <= n < 1,
    "seed": SEED,
    "basin.points": lambda n: n >= 5 and n % 4 == 1,
    "basin.margin": above(0),
    "Monitor.every": at_least(1),
    "Monitor.budget": lambda n: 0 < n <= 1,
    "feature_noise_penalty.num_samples": lambda n: n == 0 or 2 <= n < math.inf,
    "Recipe.seed": at_least(0),
    "reproduce.seed": at_least(0),
    "points": lambda n: n >= 3 and n % 2 == 1,
    "density.points": at_least(6),
    "density.num_probes": at_least(1),
    "compare.points": lambda n: n == 0 or (n >= 3 and n % 2 == 1),
    "explore.points": lambda n: n in (5, 9, 17, 33, 65),
    "top_eigenvalues.k": within(1, 43),
    "density.k": at_least(0),
    "products": at_least(0),
    "axis": within(-1, 0),
    "Surface.direction.axis": within(-2, 1),
    "Trajectory.direction.axis": within(-2, 1),
    "i": within(-2, 1),
    "memory": lambda n: n >= 0,
    "SAMQ.memory": lambda n: 0 <= n < 1,
    "label_smoothing": lambda n: 0 <= n < 1,
    "min_scale": lambda n: 0 < n <= 1,
    "budget": lambda n: 0 < n < math.inf,
    "steps_per_epoch": at_least(1),
    "LSQ.bits": within(1, 31),
    "frames": within(2, 1000),
    "seconds": within(0.01, 600),
    "swing": within(0, 180),
}


# -- the calls --------------------------------------------------------------------------------------------------------


def own(valid: Any, hint: Any, key: str, seeded: random.Random) -> list[Odd]:
    """Return odd values by the type that an annotation names."""
    parts = [part for part in get_args(hint) if part is not type(None)] if typing.get_origin(hint) in UNIONS else [hint]
    kind = parts[0]
    name = key.rpartition(".")[2]
    fits = next((FITS[k] for k in (key.removeprefix("plot_"), name) if k in FITS), None)
    is_result = (
        key.split(".")[0] in {*RESULTS, "Policy"}
        and key.count(".") == 1
        and key.rpartition(".")[0] in {*RESULTS, "Policy"}
    )
    if get_origin(kind) is Literal:
        return options(kind, valid)
    if kind is bool:
        return flag(bool(valid))
    if kind in (int, float):
        if fits is None and not is_result:
            raise LookupError(f"no range for {key}: add it to FITS")
        anything = fits is None or is_result
        rule = (lambda n: True) if anything else fits
        start = valid if valid is not None and (valid or rule(0)) else 1 if kind is int else 0.5
        odd = number(start, rule, kind is int, seeded)
        return [o for o in odd if not (anything and ("nan" in o.label or "inf" in o.label))] if anything else odd
    if kind is str and pathlib.Path not in parts:
        return texts()
    if kind is torch.Tensor:
        return tensors()
    if get_origin(kind) in (dict, list, tuple):
        taken = {dict: ("dict", "empty dict"), list: ("list", "empty list"), tuple: ("tuple",)}
        return junk("none", *taken[get_origin(kind)])
    raise LookupError(f"nothing odd is known for {key}: {hint}")


UNIONS = (typing.Union, types.UnionType)
SMALL = {"data": (X, Y)}
RESULTS: dict[str, Any] = {}
PATHS = {"path", "checkpoint", "log", "out", "root", "keep"}


def made_results() -> dict[str, Any]:
    """Return one small result of every kind."""
    model, other = mlp(), mlp(1)
    plane = landscape.surface(model, (X, Y), points=5)
    made = {
        "Trace": landscape.trace(model, (X, Y), num_probes=3, method="hutchinson"),
        "Eigenvalues": landscape.top_eigenvalues(model, (X, Y), k=2),
        "Density": landscape.density(model, (X, Y), k=0, num_probes=2, steps=3, points=40),
        "Sharpness": landscape.average_sharpness(model, (X, Y), num_samples=2),
        "SharpnessTable": landscape.sharpness(model, (X, Y), measures=["average, filter"]),
        "RoundingSharpness": landscape.rounding_sharpness(model, (X, Y), bits=[4], num_samples=2),
        "Sensitivity": landscape.sensitivity(model, (X, Y), formats=["W4"]),
        "ScaleCurvature": landscape.curvature_at_scale(model, (X, Y), radii=False, num_samples=2, derivatives=False),
        "Line": landscape.line(model, (X, Y), points=5),
        "Surface": plane,
        "Trajectory": landscape.trajectory(model, [mlp(1), mlp(2), model], (X, Y), surface=plane),
        "BatchNormCheck": landscape.batchnorm_check(convnet(), (IMAGES, Y)),
        "Basin": landscape.basin(model, {"a": other}, (X, Y), points=5),
        "TrainingCurvature": landscape.audit([mlp(1).state_dict(), mlp(2).state_dict()], model, (X, Y)),
        "Comparison": landscape.compare({"a": model, "b": other}, (X, Y), points=3, rtol=0.5),
    }
    return made


def made_calls(folder: pathlib.Path) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return name → (what is called, its arguments); every value may be replaced."""
    RESULTS.update(made_results())
    s: dict[str, Any] = {"data": (X, Y), "seed": 0, "loss": cross_entropy, "objective": None, "space": "latent"}
    calls: dict[str, tuple[Any, dict[str, Any]]] = {}
    sampled = {"num_samples": 2}
    line = s | {"span": 1.0, "points": 3, "directions": "random", "normalize": "filter", "batchnorm": "fixed"}
    line |= {"metrics": {"mine": cross_entropy}, "precision": "fp32", "batch_size": 24, "path": folder / "line"}
    surface = line | {"adaptive": False, "tolerance": 0.1, "watch": lambda surface: None, "path": folder / "surface"}
    trace = s | {"units": "raw", "rtol": 0.5, "atol": 0.0, "method": "hutchinson", "per_layer": False}
    trace |= {"eigenvalues": None, "num_probes": 3, "engine": "landscape"}
    top = s | {"k": 1, "which": "magnitude", "units": "raw", "tol": 0.5, "max_products": 20, "engine": "landscape"}
    density = s | {"k": 0, "num_probes": 2, "steps": 3, "points": 40, "units": "raw"}
    scale = s | sampled | {"directions": "random", "radius": 0.01, "radii": False, "units": "filter"}
    scale |= {"derivatives": False}
    table = {k: v for k, v in s.items() if k != "space"} | {"measures": ["average, filter"]}
    plain = {k: v for k, v in s.items() if k != "seed"}
    ball = {"radii": (0.01, 0.05), "metric": "filter", "relative": True}
    measuring = {
        "trace": trace,
        "top_eigenvalues": top,
        "density": density,
        "curvature_at_scale": scale,
        "sharpness": table,
        "line": line,
        "surface": surface,
    }
    for name, arguments in measuring.items():
        calls[name] = getattr(landscape, name), arguments
        calls[f"plot_{name}"] = (
            getattr(landscape, f"plot_{name}"),
            arguments | ({} if "path" not in arguments else {"path": folder / f"plot_{name}"}),
        )
    calls["rounding_sharpness"] = (
        landscape.rounding_sharpness,
        {k: v for k, v in s.items() if k != "space"} | sampled | {"bits": [4]},
    )
    layers = {"formats": ["W4"], "layers": ["0"], "quantize": None, "predictions": ["ggn"], "interactions": "whole"}
    for name in ("sensitivity", "plot_sensitivity"):
        calls[name] = getattr(landscape, name), {k: v for k, v in s.items() if k != "space"} | layers
    calls["worst_case_sharpness"] = landscape.worst_case_sharpness, plain | ball | {"steps": 2, "m": 24}
    calls["average_sharpness"] = landscape.average_sharpness, s | ball | sampled
    calls["batchnorm_check"] = landscape.batchnorm_check, s | {"model": convnet(), "data": (IMAGES, Y), "span": 1.0}
    states = [mlp(1).state_dict(), mlp(2).state_dict()]
    ways = {"networks": {"a": mlp(1)}, "margin": 0.1, "points": 5, "batchnorm": "fixed", "batch_size": 24}
    for name in ("basin", "plot_basin"):
        calls[name] = getattr(landscape, name), {k: v for k, v in plain.items() if k != "space"} | ways
    watched = {"data": (X, Y), "loss": cross_entropy, "objective": None, "output": None}
    calls["Monitor"] = landscape.Monitor, watched | {"optimizer": None, "every": 2, "budget": 0.5, "log": None}
    kept = {"pattern": "*.pt", "keep": folder / "rows.audit"}
    calls["audit"] = landscape.audit, watched | kept | {"folder": states[:1], "model": mlp()}
    calls["trajectory"] = landscape.trajectory, plain | {"checkpoints": states, "surface": None, "batchnorm": "fixed"}
    made = {k: v for k, v in plain.items() if k != "loss"} | {"layers": ["0"], "batch_size": 24, "validate": True}
    made |= {"output": None, "metrics": {"mine": cross_entropy}, "batchnorm": "fixed", "precision": "fp32"}
    calls["Objective"] = landscape.Objective, made | {"loss": cross_entropy}
    product = {"layers": ["0"], "at": None, "memory": 1.0}
    calls["Hessian"] = landscape.Hessian, plain | product
    calls["GGN"] = landscape.GGN, {k: v for k, v in plain.items() if k != "objective"} | product
    for arguments in [a for _, a in calls.values()]:
        arguments.setdefault("model", mlp())
    models = {"models": {"a": mlp()}, "span": 1.0, **s}
    calls["compare"] = landscape.compare, models | {"radii": (0.01,), "points": 3, "rtol": 0.5}
    explored = {k: v for k, v in models.items() if k != "space"}
    explored |= {"parts": None, "points": 5, "samples": 24, "path": folder / "explored"}
    calls["explore"] = landscape.explore, explored
    paged = {"content": RESULTS["Surface"], "path": folder / "page", "data": None, "title": "t", "parts": None}
    calls["page"] = landscape.page, paged
    calls |= drawing_calls(folder) | saq_calls(folder)
    for name, result in RESULTS.items():
        calls[name] = type(result), fields_of(result)
        calls[f"{name}.save"] = result.save, {"path": folder / f"{name}.nc"}
        more = {"surface": RESULTS["Surface"]} if name == "Trajectory" else {}
        calls[f"{name}.plot"] = result.plot, {"scale": "auto", "title": "t", **more}
        calls[f"{name}.draw"] = result.draw, {"ax": None, "scale": "auto", "title": "t", **more}
    calls["Result"] = landscape.Result, {"about": {}}
    calls["load"] = landscape.load, {"path": RESULTS["Line"].save(folder / "kept.nc")}
    calls["Trace.interval"] = RESULTS["Trace"].interval, {"level": 0.9}
    calls["Eigenvalues.vector"] = RESULTS["Eigenvalues"].vector, {"i": 0}
    calls["Trajectory.span"] = RESULTS["Trajectory"].span, {"margin": 0.1}
    calls["Trajectory.check"] = RESULTS["Trajectory"].check, {"surface": RESULTS["Surface"]}
    for name in ("Line", "Surface", "Trajectory"):
        calls[f"{name}.direction"] = RESULTS[name].direction, {"axis": 0, "model": mlp()}
    comparison = RESULTS["Comparison"]
    calls["Comparison.value"] = comparison.value, {"network": "a", "quantity": "loss"}
    calls["Comparison.difference"] = comparison.difference, {"network": "b", "other": "a", "quantity": "loss"}
    verdict = {"network": "b", "other": "a", "quantity": "loss", "level": 0.9}
    calls["Comparison.verdict"] = comparison.verdict, verdict
    hessian = landscape.Hessian(mlp(), (X, Y))
    calls["Hessian.estimate"] = hessian.estimate, {"products": 3}
    calls["Hessian.by_fold"] = hessian.by_fold, {"vectors": torch.ones(hessian.shape[0], 2)}
    calls["Hessian.scaled"] = hessian.scaled, {"d": torch.ones(hessian.shape[0])}
    return calls


def drawing_calls(folder: pathlib.Path) -> dict[str, tuple[Any, dict[str, Any]]]:
    import matplotlib.pyplot as plt

    layers = {"values": {"conv": (3.0, 0.5), "fc": 2.0}, "bits": {"conv": "W4A4"}, "quantity": "Trace", "scale": "auto"}
    layers["title"] = "t"
    history = {"history": {"epoch": [1, 2], "loss": [2.0, 1.0]}, "scale": "auto", "title": "t"}
    together = {"results": {"a": RESULTS["Line"]}, "value": "loss", "scale": "auto", "title": "t"}
    figure = plt.figure()
    plt.close(figure)
    film = {"content": RESULTS["Surface"], "path": folder / "film.gif", "size": (64, 64), "frames": 2, "seconds": 1.0}
    film |= {"value": "loss", "scale": "auto", "notes": None, "swing": 9.0}
    planes = {"scale": "auto", "title": "t", "value": "loss", "kind": "contour", "levels": [1.0, 2.0]}
    return {
        "plot_layers": (landscape.plot_layers, layers),
        "draw_layers": (landscape.draw_layers, layers | {"ax": None}),
        "plot_history": (landscape.plot_history, history),
        "draw_history": (landscape.draw_history, history | {"axes": None}),
        "plot_together": (landscape.plot_together, together),
        "draw_together": (landscape.draw_together, together | {"ax": None}),
        "save_figure": (landscape.save_figure, {"figure": figure, "path": folder / "figure"}),
        "save_animation": (landscape.save_animation, film),
        "Surface.plot kind": (RESULTS["Surface"].plot, planes),
        "Surface.draw kind": (RESULTS["Surface"].draw, planes),
    }


def with_defaults(called: Any, **given: Any) -> tuple[Any, dict[str, Any]]:
    """Return what is called, and all its arguments: the defaults, where none is given."""
    parameters = inspect.signature(called).parameters.values()
    plain = {p.name: p.default for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    arguments = plain | given
    return called, {name: value for name, value in arguments.items() if value is not inspect.Parameter.empty}


def saq_calls(folder: pathlib.Path) -> dict[str, tuple[Any, dict[str, Any]]]:
    split = IMAGES, Y
    data = saq_core.Data(split, split, split, num_classes=3)
    digits = saq_core.load_data("digits", limit=64, device="cpu")
    small, ready, uncalibrated = saq_core.build_model("resnet8", digits), quantized(), quantize_images()
    recipe, shape = saq_core.Recipe(epochs=1, lr=0.01), {"example": (1, 8, 8)}
    experiment = saq_core.Experiment("mine", "digits", "resnet8", recipe, limit=64)
    history, penalty = saq_core.History([{"epoch": 1, "loss": 1.0}]), {"steps": {"3": 0.1}, "rtol": 0.5}
    features = {"student": [torch.ones(4, 3)], "teacher": [torch.zeros(4, 3)]}
    policy = {"bits": {"a": "W4A4"}, "bops": 3, "seconds": 0.1, "method": "uniform", "budget": 3.0, "details": {}}
    searched = {"model": convnet(), "data": data, "budget": 1e9, "method": "uniform", "candidates": (2, 4)}
    sam = {"model": convnet(), "optimizer": None, "rho": 0.05, "perturbed": ("weight",)}
    splits = {"train": split, "val": split, "test": split}
    saq_core.save(small, folder / "kept.pt")
    calls = {
        "Data": with_defaults(saq_core.Data, **splits, num_classes=3),
        "load_data": with_defaults(saq_core.load_data, name="digits", limit=64, device="cpu"),
        "build_model": with_defaults(saq_core.build_model, name="resnet8", data=digits),
        "describe": with_defaults(saq_core.describe, model=convnet(), **shape),
        "cost": with_defaults(saq_core.cost, model=convnet(), **shape, bits="W4A4"),
        "quantize": with_defaults(saq_core.quantize, model=convnet(), skip=["0"]),
        "calibrate": with_defaults(saq_core.calibrate, model=uncalibrated, data=split, batches=2, method="minmax"),
        "gptq": with_defaults(saq_core.gptq, model=convnet(), data=split),
        "dequantize": with_defaults(saq_core.dequantize, model=ready),
        "search": with_defaults(saq_core.search, **searched),
        "SAM": with_defaults(saq_core.SAM, **sam),
        "parameter_groups": with_defaults(saq_core.parameter_groups, model=convnet(), weight_decay=0.1),
        "SAQ": with_defaults(saq_core.SAQ, perturbed=("weight",)),
        "SAMQ": with_defaults(saq_core.SAMQ),
        "ASGA": with_defaults(saq_core.ASGA),
        "FPQ": with_defaults(saq_core.FPQ),
        "WinQ": with_defaults(saq_core.WinQ, every=2),
        "Recipe": with_defaults(saq_core.Recipe, epochs=1, lr=0.1),
        "Recipe.lr_at": with_defaults(saq_core.Recipe(epochs=2, lr=0.1).lr_at, step=0, steps_per_epoch=2),
        "train": (trained, with_defaults(saq_core.train, model=convnet(), data=data, recipe=recipe)[1]),
        "evaluate": with_defaults(saq_core.evaluate, model=convnet(), split=split, batch_size=8),
        "Experiment": with_defaults(saq_core.Experiment, **fields_of(experiment)),
        "reproduce": with_defaults(saq_core.reproduce, experiment=experiment, out=folder / "runs", device="cpu"),
        "save": with_defaults(saq_core.save, model=small, path=folder / "small.pt"),
        "load (saq_core)": with_defaults(saq_core.load, path=folder / "kept.pt"),
        "export": with_defaults(saq_core.export, model=quantized_digits(digits), path=folder / "small.bin"),
        "feature_noise": (noised, {"model": ready, "p": 0.5}),
        "feature_noise_penalty": with_defaults(
            saq_core.feature_noise_penalty, model=ready, data=split, p=0.5, **penalty, num_samples=2, num_probes=2
        ),
        "distillation_loss": with_defaults(saq_core.distillation_loss, **features),
        "Policy": with_defaults(saq_core.Policy, **policy),
        "History": (saq_core.History, {"epochs": history.epochs, "steps": torch.ones(2), "snapshots": []}),
        "History.plot": with_defaults(history.plot),
        "History.draw": with_defaults(history.draw),
        "History.write_lines": with_defaults(history.write_lines, path=folder / "log.jsonl"),
    }
    for name in ("LSQ", "LSQPlus", "AsymmetricLSQ", "PACT", "DoReFa", "LIQ", "MinMax"):
        kind, weight = getattr(saq_core, name), torch.randn(3, 4)
        calls[name] = with_defaults(kind, bits=4)
        calls[f"{name}.for_weight"] = with_defaults(kind.for_weight, bits=4, weight=weight)
        calls[f"{name}.calibrate_"] = with_defaults(kind.for_weight(4, weight).calibrate_, x=weight)
    return calls


def fields_of(item: Any) -> dict[str, Any]:
    return {f.name: getattr(item, f.name) for f in dataclasses.fields(item)}


def quantize_images() -> nn.Module:
    return saq_core.quantize(convnet(), "W4A4")


def quantized_digits(digits: Any) -> nn.Module:
    return saq_core.calibrate(saq_core.quantize(saq_core.build_model("resnet8", digits), "W4A4"), digits)


def noised(model: nn.Module, p: float) -> Any:
    with saq_core.feature_noise(model, p):
        return None


def trained(**arguments: Any) -> Any:
    """Train a copy: every call starts from the same network."""
    model = arguments.pop("model")
    same = isinstance(model, nn.Module) and not any(p.is_meta for p in model.parameters())
    return saq_core.train(convnet() if same and len(list(model.parameters())) == 8 else model, **arguments).epochs[0][
        "loss"
    ]


# -- what is special about an argument, by its name or by call and name -----------------------------------------------


@functools.cache
def surface_of_another() -> Any:
    return landscape.surface(convnet(), (IMAGES, Y), points=3)


def special(key: str, valid: Any, seeded: random.Random) -> list[Odd] | None:
    """Return odd values of arguments whose annotation does not say all; None where it does."""
    call, _, name = key.rpartition(".")
    files = {"load.path": True, "load (saq_core).path": True}
    if name in PATHS and call != "save_animation":
        kept = ("name_too_long", "below_a_file", "device_folder")  # which only matter once something is written there
        odd = path(str(valid), files.get(key, False))
        return [o for o in odd if o.label not in kept] if valid is None or call == "explore" else odd
    if key in ("Data.train", "Data.val", "Data.test", "evaluate.split"):
        odd = no(fewer=(IMAGES, Y[:5]), none=(IMAGES[:0], Y[:0]), above=(IMAGES, Y + 7), negative=(IMAGES, Y - 1))
        odd += no(one=(IMAGES,), three=(IMAGES, Y, Y), labels_none=(IMAGES, None), swapped=(Y, IMAGES), alone=IMAGES)
        odd += no(floats=(IMAGES, Y.float()), deep=(IMAGES, Y[:, None]), generator=((IMAGES, Y) for _ in "a"))
        odd += no(strings=(["a"] * 24, Y))
        return odd + junk("none", "tuple")
    if key in ("calibrate.forward", "gptq.forward"):
        return function()
    if name == "data" and call in ("train", "search", "build_model"):
        pair = [Odd("pair", (IMAGES, Y), "no" if call == "build_model" else "yes")]
        return pair + no(a_class=saq_core.Data) + junk("none")
    if key in ("calibrate.data", "gptq.data", "quantize.example"):
        odd = [o for o in datas() if "target" not in o.label and "label" not in o.label]
        plain = {"three", "list_of_two", "batches_of_three", "deep", "floats_as_labels", "scalar", "x_alone", "one"}
        return [o for o in odd if o.verdict == "no" and o.label not in plain]
    if name in ("data",) or (name == "model" and call.endswith("data")):
        wide = [o for o in datas() if o.label != "numpy" or call != "feature_noise_penalty"]
        return wide if valid is not None and valid[0] is X else [o for o in wide if o.verdict == "no"]
    if name in ("model", "teacher"):
        taken = {"save": ("no_weights", "nan_weights", "lazy", "narrow", "meta"), "search": ("narrow", "nan_weights")}
        taken |= {
            "quantize": ("narrow", "nan_weights"),
            "gptq": ("nan_weights",),
            "calibrate": ("no_weights",),
            "dequantize": ("no_weights", "nan_weights", "lazy", "narrow", "meta"),
        }
        taken |= dict.fromkeys(("SAM", "parameter_groups"), ("nan_weights", "narrow", "meta"))
        # whose steps are stored: nothing is drawn for a network
        taken["Trajectory.direction"] = ("no_weights", "nan_weights", "lazy", "narrow", "meta", "module")
        odd = models(taken.get(call, ()))
        matrix = call in ("trace", "top_eigenvalues", "density", "plot_trace", "plot_top_eigenvalues", "plot_density")
        odd += (
            no(rectangle=torch.ones(3, 2), skew=torch.tensor([[0.0, 1], [-1, 0]]), whole=torch.ones(2, 2).long())
            if matrix
            else []
        )
        odd += no(nan_matrix=torch.full((2, 2), math.nan), numpy=np.eye(2)) if matrix else []
        return odd
    if name == "networks":
        odd = no(none_inside={"a": None}, class_inside={"a": nn.Linear}, number={1: mlp(1)}, listed=[mlp(1)])
        odd += no(narrow={"a": nn.Linear(2, 3)}, same={"a": mlp()}, taken={"model": mlp(1)}, alone=mlp(1))
        return odd + junk()
    if key == "Monitor.optimizer":
        return no(foreign=torch.optim.SGD(mlp(1).parameters(), lr=0.1)) + junk("none")
    if key == "Monitor.log":
        return no(path="log.jsonl") + junk("none")
    if key == "audit.folder":
        odd = no(numbers=[3], foreign=[convnet().state_dict()], strange=[{"a": torch.ones(3)}], missing="nowhere")
        return odd + no(state=mlp(1).state_dict(), empty_state=[{}], wrong_type=[{"0.weight": 3}]) + junk()
    if name == "models":
        odd = no(none_inside={"a": None}, class_inside={"a": nn.Linear}, list_inside={"a": [mlp(), 3]}, listed=[mlp()])
        odd += no(empty_inside={"a": []}, narrow={"a": nn.Linear(2, 3)}, two={"a": mlp(), "b": nn.Linear(4, 2)})
        odd = [o for o in odd if not (call == "explore" and o.label == "two")]  # it says so beside the picture
        return odd + junk("none", *(["module"] if call == "explore" else []))
    if name == "loss" and call not in RESULTS:
        if call == "evaluate":  # NaN stays NaN
            return function(WRONG_OUTPUT, taken=("detached", "returns nan", "returns inf"))
        return function(WRONG_OUTPUT, taken=("detached",) if call in FORWARD else ())
    if name == "objective":
        wrong = {
            k: v for k, v in WRONG_OUTPUT.items() if k in ("returns none", "returns text", "returns list", "raises")
        }
        wrong |= {
            "no pair": lambda model, batch: (1, 2, 3),
            "weight nan": lambda model, batch: (model(batch[0]).mean(), math.nan),
        }
        wrong |= {
            "weight zero": lambda model, batch: (model(batch[0]).mean(), 0.0),
            "weight negative": lambda m, b: (m(b[0]).mean(), -1),
        }
        wrong |= {
            "weight text": lambda model, batch: (model(batch[0]).mean(), "a"),
            "vector": lambda m, b: (m(b[0]), 24),
        }
        return list(function(wrong)) if valid is None else None
    if name == "output":
        return no(index=7, negative=-9, unknown="nonsense", raises=lambda out: 1 / 0, wrong=lambda out: None) + junk(
            "none", "text", "three", "minus one", "function", "class", "module"
        )
    if name == "metrics" and call not in RESULTS:
        odd = no(
            no_function={"mine": 3}, none={"mine": None}, taken={"loss": cross_entropy}, slash={"a/b": cross_entropy}
        )
        odd += no(
            text={"mine": lambda out, y: "a"}, returns_none={"mine": lambda out, y: None}, numbers={3: cross_entropy}
        )
        odd += no(arity={"mine": lambda: 1}, listed=[cross_entropy])
        return odd + junk("none", "empty dict", "dict") + no(thing={"a": Thing()})
    if name in ("watch", "on_epoch", "on_step", "no_sync"):
        more = {} if name == "no_sync" else ARITY
        return no(**more) + junk("none", "function", "class", "module")
    if key.endswith("sensitivity.formats"):
        odd = no(unknown=["nonsense"], one=["W1"], text="W4", numbers=[4], twice=["W4", "W4"], none=[None])
        return odd + junk("none", "empty list")
    if key.endswith("sensitivity.predictions"):
        return names_list("empty list", "none")
    if key.endswith("sensitivity.quantize"):
        return no(**ARITY, nothing=lambda model, formats: None) + junk("none", "function", "class", "module")
    if key == "search.sensitivity":
        return no(other=RESULTS["Trace"], unneeded=RESULTS["Sensitivity"]) + junk("none")
    if name in ("layers", "skip") and call not in RESULTS:
        return names_list("empty list" if name == "skip" else "none", "none")
    if key in ("line.span", "plot_line.span", "surface.span", "plot_surface.span"):
        odd = number(1.0, above(0), False, seeded)
        odd += no(one=(1.0,), three=(0.0, 1.0, 2.0), turned=(1.0, -1.0), nan=(math.nan, 1.0), text=("a", 1.0))
        odd += no(infinite=(-math.inf, 1.0), true=(False, True), none=(None, 1.0), same=(1.0, 1.0))
        return odd
    if key in ("surface.points", "plot_surface.points"):
        odd = [o for o in number(3, FITS["points"], True, seeded) if o.label != "one_array"]
        return odd + no(one=(3,), three=(3, 3, 3), even=(3, 4), text=("3", 3), true=(3, True), nan=(3, math.nan))
    if name == "directions" and call not in RESULTS:
        odd = no(several=["random", "nonsense"], three=["random"] * 3, mixed=["random", 3], none=["random", None])
        odd += no(point={"nonsense": torch.ones(3)}, wrong_shape={"0.weight": torch.ones(2)}, numbers={"0.weight": 3})
        odd += no(nan={n: p.detach() * math.nan for n, p in mlp().named_parameters()}, other=nn.Linear(2, 3))
        odd += no(zero={n: p.detach() * 0 for n, p in mlp().named_parameters()}, trace=RESULTS["Trace"])
        return odd + junk("none", "text") + no(word="nonsense", empty="")
    if key == "curvature_at_scale.radii" or key == "plot_curvature_at_scale.radii":
        odd = numbers_list([0.001, 0.01], above(0), "true", "empty list")
        return odd + [Odd("numpy", np.bool_(False), "like", False), *no(zero=0, one=1.0, text="no")]
    if name == "radii" and call not in RESULTS:
        return numbers_list((0.01, 0.05), above(0))
    if name == "radius" and call not in RESULTS:
        return number(0.01, above(0), False, seeded)
    if name in ("normalize", "metric", "units", "method", "engine", "which", "quantity", "value", "kind", "scale") and (
        isinstance(valid, str) and call not in {*RESULTS, "Policy"}
    ):
        free = name == "quantity" and "layers" in call
        return (
            texts()
            if free
            else [
                Odd("numpy text", np.str_(valid), "like", valid),
                *no(unknown="nonsense", empty="", space=f" {valid}"),
            ]
            + texts()
        )
    if name == "measures":
        odd = no(
            unknown=["nonsense"], text="average, filter", numbers=[3], none=[None], settings={"average, filter": 3}
        )
        odd += no(odd_settings={"average, filter": {"nonsense": 1}}, negative={"average, filter": {"radii": [-1]}})
        return odd + junk("none", "empty list", "empty dict")
    if key == "rounding_sharpness.bits":
        return numbers_list([4, 8], within(2, 16)) + no(one=[1], many=[99], fraction=[2.5], word=["W4A4"])
    if name == "bits" and call in ("plot_layers", "draw_layers"):
        odd = no(
            unknown={"nonsense": 4},
            word={"conv": "nonsense"},
            negative={"conv": -1},
            zero={"conv": 0},
            nan={"conv": math.nan},
        )
        return odd + no(text={"conv": ""}, none={"conv": None}, true={"conv": True}) + junk("none", "empty dict")
    if name == "values" and call in ("plot_layers", "draw_layers"):
        odd = no(
            text={"conv": "a"}, none={"conv": None}, three={"conv": (1, 2, 3)}, one={"conv": (1,)}, number={3: 1.0}
        )
        return (
            odd + no(true={"conv": True}, negative_error={"conv": (1.0, -1.0)}, nan_list={"conv": [[1.0], 2]}) + junk()
        )
    if name == "history":
        odd = no(text={"epoch": ["a"], "loss": [1.0]}, none={"epoch": None}, ragged={"epoch": [1, 2], "loss": [1.0]})
        return odd + no(number={"epoch": 3, "loss": 4}, unknown={"nonsense": [1]}) + junk()
    if name == "content":
        odd = no(none={"a": None}, mixed={"a": RESULTS["Surface"], "b": mlp()}, listed=[mlp()])
        both: Any = yes if call == "page" else no
        odd += both(trace=RESULTS["Trace"], inside={"a": RESULTS["Line"]})
        odd += no(path=RESULTS["Trajectory"], ragged={("a",): RESULTS["Surface"], (): 3})
        return odd + junk()
    if name == "results":
        odd = no(trace={"a": RESULTS["Trace"]}, none={"a": None}, mixed={"a": RESULTS["Line"], "b": RESULTS["Surface"]})
        return odd + no(alone=RESULTS["Line"], listed=[RESULTS["Line"]], numbers={"a": 3}) + junk()
    if name in ("ax", "axes"):
        return junk("none", *(("empty list",) if name == "axes" else ()))
    if name == "figure":
        return junk()
    if key == "save_animation.path":
        return no(suffix=valid.with_suffix(".png"), none=valid.with_suffix("")) + junk("text")
    if key == "save_animation.content":
        other = {"2": {"a": surface_of_another()}, "4": {"b": surface_of_another()}}
        odd = no(line=RESULTS["Line"], inside={"a": RESULTS["Line"]}, none={"a": None}, deep={"a": {"b": {"c": 3}}})
        return odd + no(names=other, empty={"a": {}}) + junk()
    if key == "save_animation.notes":
        return no(unknown={"a": "b"}) + junk("none", "empty dict")
    if key == "save_animation.size":
        return no(one=(64,), three=(64, 64, 64), small=(8, 64), large=(10**6, 64), fraction=(64.5, 64)) + junk("none")
    if name == "levels":
        return no(
            one=[1.0], falling=[2.0, 1.0], equal=[1.0, 1.0], nan=[1.0, math.nan], text=["a", "b"], true=[False, True]
        ) + junk("none")
    if name == "eigenvalues" and call in ("trace", "plot_trace"):
        return no(
            other=RESULTS["Trace"], foreign=dataclasses.replace(RESULTS["Eigenvalues"], vectors={"x": torch.ones(1, 2)})
        ) + junk("none")
    if name == "surface":
        return no(line=RESULTS["Line"], of_another=surface_of_another()) + junk("none")
    if name == "checkpoints":
        odd = no(none=[None], numbers=[3], foreign=[convnet().state_dict()], text="ab", strange={"a": torch.ones(3)})
        odd += no(nan=[{n: p * math.nan for n, p in mlp().state_dict().items()}, mlp(1)], network=mlp(1))
        return odd + no(empty_state=[{}], wrong_type=[{"0.weight": 3}]) + junk()
    if name == "parts":
        return no(text="bits", numbers=(3,), more=("a", "b")) + junk("none", "empty tuple", "empty list")
    if name == "at":
        return no(unknown="nonsense", bytes=b"0") + junk("none", "text")
    if name == "vectors" and call == "Hessian.by_fold":
        array = Odd("array", np.ones((43, 2)), "may", torch.ones(43, 2, dtype=torch.float64))
        return [*no(short=torch.ones(3, 2)), array, *junk("none")]
    if name == "d":
        return no(
            short=torch.ones(3),
            unknown={"nonsense": torch.ones(3)},
            text={"0.weight": "a"},
            nan=torch.full((43,), math.nan),
        ) + junk("none")
    if name in ("network", "other") and call.startswith("Comparison"):
        return no(unknown="nonsense", empty="") + junk("text")
    return special_saq(key, call, name, valid, seeded)


FORWARD = {"sharpness", "line", "surface", "rounding_sharpness", "average_sharpness", "batchnorm_check"}
FORWARD |= {"plot_sharpness", "plot_line", "plot_surface", "basin", "plot_basin", "Monitor"}
FORWARD |= {"trajectory", "explore", "Objective", "Hessian", "GGN", "curvature_at_scale", "plot_curvature_at_scale"}


def special_saq(key: str, call: str, name: str, valid: Any, seeded: random.Random) -> list[Odd] | None:
    if key == "build_model.input_shape":
        return no(other=(3, 8, 8), flat=(64,), negative=(1, -8, 8), fraction=(1, 8.0, 8), text=("a", 8, 8)) + junk(
            "none"
        )
    if key == "build_model.num_classes":
        return no(other=7) + junk("none")
    if name == "example":
        odd = no(with_batch=(1, 1, 8, 8), negative=(1, -8, 8), zero=(1, 0, 8), nan=(1, math.nan, 8), text=("a", 8, 8))
        return odd + no(narrow=(8,), fraction=(1, 8.0, 8), true=(True, 8, 8), word="188") + junk("none", "empty list")
    if name == "bits" and call in ("quantize", "gptq", "cost"):
        odd = no(
            word="W4", negative="W-4A4", zero="W0A4", many="W99A4", nan=math.nan, mapping={"nonsense": 4}, float=4.0
        )
        odd += no(inside={"0": "x"}, none_inside={"0": None}, true_inside={"3": True}) + [
            Odd("numpy", np.int64(4), "like", 4)
        ]
        return odd + junk("none", "three", "0-d tensor", "empty dict")
    if key == "Experiment.bits":
        return no(word="nonsense", mapping={"a": 3.5}) + junk("none", "empty dict")
    if name == "bits" and call in ("LSQ", "LSQPlus", "AsymmetricLSQ", "PACT", "DoReFa", "LIQ", "MinMax"):
        return number(4, within(1 if call in ("LIQ", "DoReFa") else 2, 31), True, seeded)
    if name == "bits" and call.endswith("for_weight"):
        return number(4, within(1 if call[:3] in ("LIQ", "DoR") else 2, 31), True, seeded)
    if name == "signed":
        return flag(True)
    if name == "shape":
        return no(negative=(-1,), text=("a",), fraction=(1.5,), zero=(0,), nan=(math.nan,)) + junk(
            "none", "list", "empty list"
        )
    if name in ("x", "weight") and (call.endswith("calibrate_") or call.endswith("for_weight")):
        odd = no(nan=torch.full((3, 4), math.nan), inf=torch.full((3, 4), math.inf), whole=torch.ones(3, 4).long())
        odd += [Odd("array", np.ones((3, 4)), "may", torch.ones(3, 4, dtype=torch.float64))]
        return odd + no(bools=torch.ones(3, 4) > 0, complex=torch.ones(3, 4) + 1j) + junk()
    if name == "candidates" and call == "search":
        odd = no(word=["nonsense"], negative=[-1], many=[99], nan=[math.nan], fraction=[2.5], none=[None], true=[True])
        return (
            odd
            + no(text="W4A4")
            + [Odd("array", np.array([2, 4]), "may", [2, 4])]
            + junk("none", "array", "list", "set", "tensor")
        )
    if name == "settings":
        return no(other=saq_core.ASGA(), a_class=saq_core.SAMQ) + junk("none")
    if name == "rho" and call == "SAM":
        odd = number(0.05, at_least(0), False, seeded)
        return [o for o in odd if o.label not in ("function", "class", "module")]
    if name == "optimizer" and call == "SAM":
        return no(a_class=torch.optim.SGD, other=torch.optim.SGD(mlp().parameters(), lr=0.1)) + junk("none")
    if name == "policy":
        return no(
            word="nonsense",
            number="look:x",
            negative="look:-1",
            nan="momentum:nan",
            large="subset:2",
            zero="look:0",
            empty="",
        ) + junk("text")
    if name == "perturbed":
        return no(unknown=("nonsense",), word="weight", numbers=(3,), none=(None,), twice=(("weight",),)) + junk()
    if name in ("rho_range",):
        odd = no(
            one=(0.1,),
            three=(0.1, 0.2, 0.3),
            turned=(0.2, 0.1),
            nan=(math.nan, 0.2),
            negative=(-0.1, 0.2),
            text=("a", "b"),
        )
        return odd + no(infinite=(0.1, math.inf), true=(False, True)) + junk("none")
    if name == "sam":
        return no(
            a_class=saq_core.SAQ, the_optimizer=saq_core.SAM, settings=saq_core.FPQ(), mapping={"rho": 0.1}
        ) + junk("none")
    if name == "fpq":
        return no(a_class=saq_core.FPQ, settings=saq_core.SAQ()) + junk("none")
    if name == "winq":
        return no(a_class=saq_core.WinQ, settings=saq_core.SAQ(), mapping={"every": 2}) + junk("none")
    if name == "recipe":
        return no(a_class=saq_core.Recipe, settings=saq_core.SAQ(), mapping={"epochs": 1, "lr": 0.1}) + junk()
    if name == "device" and call not in RESULTS:
        return no(word="nonsense", far="cuda:99", negative="cuda:-1", meta="meta") + junk("none", "three", "true")
    if name == "map_location":
        return no(word="nonsense", far="cuda:99") + junk(
            "none", "text", "function", "dict", "empty dict", "class", "module", "three", "true"
        )
    if name == "weights" and call == "build_model":
        return no(missing="missing.pt", mapping={"nonsense": torch.ones(3)}, numbers={"a": 3}) + junk("none")
    if key == "train.snapshots":
        return no(unknown="nonsense", empty="", steps="step") + junk("none")
    if name in ("name", "network", "start", "experiment") and call in (
        "build_model",
        "load_data",
        "Experiment",
        "reproduce",
    ):
        free = key in ("Experiment.name", "Experiment.network", "Experiment.start")  # looked up when it is trained
        return texts() if free else [*no(unknown="nonsense", empty=""), *texts()]
    if key == "feature_noise_penalty.steps":
        return no(unknown={"nonsense": 0.1}, nan={"3": math.nan}, negative={"3": -1.0}, text={"3": "a"}) + junk(
            "none", "empty dict"
        )
    if name in ("student", "teacher") and call == "distillation_loss":
        odd = no(
            none=[None], numbers=[3], more=[torch.ones(4, 3)] * 2, wide=[torch.ones(4, 5)], tensor=torch.ones(4, 3)
        )
        return odd + no(empty_inside=[torch.empty(0)]) + junk()
    if name == "fill":
        return no(nan=(math.nan,), text=("a",), true=(True,)) + junk("list", "array")
    if name in ("limit", "image_size", "workers") and valid is None:
        return [o for o in number(1, FITS[name], True, seeded) if o.verdict == "no"]
    if key == "load_data.limit":
        return number(64, within(15, 1293), True, seeded)
    if key == "Policy.method":
        return texts()
    if key in ("History.epochs", "RoundingSharpness.bits"):
        return junk("none", "empty list", "list", "tensor", "empty tensor", "array", "0-d tensor")
    if key in ("Policy.bits", "Policy.details"):
        return junk("none", "dict", "empty dict")
    if key in ("History.epochs", "History.snapshots"):
        return junk("none", "empty list", "list", "empty tensor")
    return None


ALSO = {  # what an argument may be called instead, in a message
    "model": "network|module|weights|matrix|operator|layers|data and weights|labels",
    "models": "model|network|networks",
    "data": "batch|batches|targets|labels|inputs|samples|probe|loss of the model",
    "split": "batch|batches|targets|labels",
    "output": "outputs",
    "loss": "output|default loss|losses",
    "objective": "loss|weight of the batch",
    "layers": "weights|layer",
    "checkpoints": "checkpoint|weights|model",
    "directions": "direction|network|networks|model",
    "results": "value",
    "content": "model|network",
    "metrics": "metric|mine",
    "measures": "radii",
    "network": "network",
    "other": "network",
    "weight": "x",
    "per_channel": "per_channel",
    "bits": "first_last_bits",
    "student": "features|teacher",
    "teacher": "features|student|layers",
    "optimizer": "model",
    "map_location": "device",
    "path": "file|folder",
    "experiment": "experiment",
    "watch": "watch",
    "train": "labels",
    "fill": "channels",
    "surface": "plane|model",
    "example": "batch",
    "num_classes": "labels",
}


# -- trying -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Outcome:
    kind: str
    call: str
    argument: str
    label: str
    message: str = ""

    def __str__(self) -> str:
        return f"{self.kind:8} {self.call}({self.argument}={self.label}): {self.message}"


def hint_of(called: Any, name: str) -> Any:
    """Return the type that an annotation names, as far as it can be resolved."""
    plain = inspect.unwrap(called.__init__ if isinstance(called, type) else called)
    plain = getattr(plain, "__func__", plain)
    annotation = next(
        (c.__annotations__[name] for c in getattr(called, "__mro__", ()) if name in vars(c).get("__annotations__", {})),
        None,
    )
    owner = (
        sys.modules[next(c.__module__ for c in called.__mro__ if name in vars(c).get("__annotations__", {}))]
        if annotation
        else None
    )
    annotation = annotation or plain.__annotations__.get(name)
    names = vars(owner) if owner else inspect.unwrap(plain).__globals__
    return eval(annotation, dict(names)) if isinstance(annotation, str) else annotation


def trials(calls: dict[str, tuple[Any, dict[str, Any]]], seed: int, only: str = "") -> list[tuple[str, str, Odd]]:
    """Return (call, argument, odd value), shuffled."""
    seeded = random.Random(seed)
    made = []
    for call, (called, arguments) in calls.items():
        for name, valid in arguments.items():
            if only and only not in f"{call}.{name}":
                continue
            key = f"{call}.{name}"
            odd = special(key, valid, seeded)
            if odd is None:
                odd = own(valid, texts_hint(called, name), key, seeded)
            optional = valid is None or "None" in str(annotation_of(called, name))
            odd = odd if optional else odd + no(none=None)
            made += [(call, name, o) for o in odd]
    seeded.shuffle(made)
    return made


def annotation_of(called: Any, name: str) -> Any:
    with contextlib.suppress(Exception):
        return inspect.signature(called).parameters[name].annotation
    return "None"


def texts_hint(called: Any, name: str) -> Any:
    if name == "title":
        return str
    return hint_of(called, name)


def is_ours(error: BaseException) -> bool:
    """Return whether our code raised an error by a statement of its own, or the call has no such argument."""
    trace, frames = error.__traceback__, []
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    last = frames[-1]
    file = pathlib.Path(last.tb_frame.f_code.co_filename)
    line = linecache.getline(str(file), last.tb_lineno).strip()
    inside = any(file.is_relative_to(ROOT / package) for package in ("landscape", "saq_core"))
    return inside and (line.startswith("raise") or "raise" in _statement(file, last))


def _statement(file: pathlib.Path, frame: Any) -> str:
    """Return the first word of the statement that a traceback's frame stands in."""
    import ast

    tree = _parsed(file)
    inside = [n for n in ast.walk(tree) if isinstance(n, ast.Raise) and n.lineno <= frame.tb_lineno <= n.end_lineno]
    return "raise" if inside else ""


@functools.cache
def _parsed(file: pathlib.Path) -> Any:
    import ast

    return ast.parse(file.read_text())


def names(error: BaseException, argument: str, value: Any) -> bool:
    text = str(error)
    words = "|".join([argument, ALSO.get(argument, argument)])
    shown = isinstance(value, str | pathlib.Path) and str(value) and str(value) in text and isinstance(error, OSError)
    return shown or re.search(rf"(?<![\w.]){words}(?![\w])".replace(words, f"(?:{words})"), text) is not None


def _alarm(*_: Any) -> None:
    raise TimeoutError("no end")


def attempt(called: Any, arguments: dict[str, Any]) -> tuple[Any, BaseException | None]:
    signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(SECONDS)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            return called(**arguments), None
    except Exception as error:
        return None, error
    finally:
        signal.alarm(0)


def plain(value: Any) -> Any:
    """Return what two results have to agree in, without times, places and addresses."""
    if isinstance(value, torch.Tensor):
        return torch.nan_to_num(value.detach().double() if not value.is_complex() else value.abs()).tolist()
    if isinstance(value, nn.Module):
        return plain(value.state_dict()), str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__, plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    if isinstance(value, typing.Mapping):
        left_out = ("seconds", "seconds_expected", "path", "file_bytes", "bytes", "plane", "peak_bytes")
        return {str(k): plain(v) for k, v in value.items() if k not in left_out}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    if isinstance(value, np.generic):
        return "numpy", type(value).__name__  # a result keeps no numbers of numpy's
    if isinstance(value, int | float | str | None):
        return value
    if hasattr(value, "to_plotly_json"):
        return [trace.type for trace in value.data]
    if isinstance(value, landscape.Objective):
        return value.about()["centre_loss"], value.batch_rows
    return type(value).__name__


def judge(calls: dict[str, Any], call: str, name: str, odd: Odd, folder: pathlib.Path) -> Outcome:
    called, arguments = calls[call]
    arguments = {k: fresh(v, folder) for k, v in arguments.items()}
    if call in CHANGING:
        arguments["model"] = copy.deepcopy(arguments["model"])
    value = odd.value
    result, error = attempt(called, arguments | {name: value})
    said = "" if error is None else f"{type(error).__name__}: {str(error).strip()[:160]!r}"
    if isinstance(error, TimeoutError):
        return Outcome("slow", call, name, odd.label, said)
    if error is not None:
        if odd.label == "raises" and isinstance(error, ZeroDivisionError):
            return Outcome("result", call, name, odd.label)  # what the user's own function raises comes through
        ours = is_ours(error) or (isinstance(error, OSError) and not isinstance(error, TimeoutError))
        kind = "foreign" if not ours else "named" if names(error, name, value) else "unnamed"
        if odd.verdict in ("yes", "like"):
            kind = "refused"
        return Outcome(kind, call, name, odd.label, said)
    if odd.verdict == "no":
        return Outcome("silent", call, name, odd.label, f"gave {type(result).__name__}")
    if odd.verdict in ("like", "may"):
        expected, failed = attempt(called, {k: fresh(v, folder) for k, v in calls[call][1].items()} | {name: odd.like})
        if failed is not None:
            return Outcome("slow", call, name, odd.label, f"the plain value failed: {failed!r}")
        if plain(expected) != plain(result):
            return Outcome(
                "silent", call, name, odd.label, f"{plain(result)!s:.150} instead of {plain(expected)!s:.150}"
            )
    return Outcome("result", call, name, odd.label)


_counter = iter(range(10**9))


def fresh(value: Any, folder: pathlib.Path) -> Any:
    """Return a path where nothing is yet; anything else as it is."""
    if isinstance(value, pathlib.Path) and not value.name.startswith("kept"):
        return folder / f"{next(_counter)}" / value.name
    return value


def prepare(folder: pathlib.Path, verify: bool) -> dict[str, Any]:
    """Return the calls, each of which works as it stands, which may be verified."""
    import matplotlib

    matplotlib.use("agg")
    calls = made_calls(folder)
    sam, arguments = calls["SAM"]
    arguments["optimizer"] = torch.optim.SGD(arguments["model"].parameters(), lr=0.1)
    for name, (called, given) in calls.items() if verify else ():
        _, error = attempt(called, {k: fresh(v, folder) for k, v in given.items()})
        if error is not None:
            raise RuntimeError(f"the valid call of {name} failed") from error
    return calls


CHANGING = ("calibrate", "train")  # a model


def untouched(calls: dict[str, Any]) -> list[Any]:
    kept = {name: a.get("model") for name, (_, a) in calls.items() if name not in CHANGING}
    return [plain(model) for model in kept.values() if isinstance(model, nn.Module)]


def run(sample: int | None = None, seed: int = 0, only: str = "") -> list[Outcome]:
    """Try all odd arguments, or so many drawn from them."""
    import matplotlib.pyplot as plt

    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        folder = pathlib.Path(place)
        calls = prepare(folder, verify=sample is None)
        before = untouched(calls)
        outcomes = []
        for number_, (call, name, odd) in enumerate(trials(calls, seed, only)[:sample]):
            outcomes.append(judge(calls, call, name, odd, folder))
            if number_ % 50 == 0:
                plt.close("all")
        if untouched(calls) != before:
            outcomes.append(Outcome("silent", "a call", "model", "", "a network was changed"))
    return outcomes


def table(outcomes: list[Outcome]) -> str:
    counts = collections.Counter(outcome.kind for outcome in outcomes)
    share = sum(counts[kind] for kind in GOOD) / max(1, len(outcomes))
    kinds = ("result", "named", "unnamed", "foreign", "silent", "refused", "slow")
    lines = [f"{len(outcomes):>7,} odd arguments of {len({o.call for o in outcomes})} calls"]
    lines += [f"{counts[kind]:>7,} {kind}" for kind in kinds]
    return "\n".join([*lines, f"{share:>7.2%} results or errors that name the argument"])


def passed(outcomes: list[Outcome]) -> bool:
    counts = collections.Counter(outcome.kind for outcome in outcomes)
    good = sum(counts[kind] for kind in GOOD)
    return good >= BOUND * len(outcomes) and not any(counts[kind] for kind in BAD)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="so many, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="calls and arguments, call.argument, that hold this text")
    options_ = parser.parse_args()
    outcomes = run(options_.sample, options_.seed, options_.only)
    for outcome in sorted(outcomes, key=lambda o: (o.kind, o.call, o.argument)):
        if outcome.kind not in GOOD:
            print(outcome)
    print(table(outcomes))
    return 0 if passed(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
