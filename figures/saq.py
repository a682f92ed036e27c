"""The figures of sharpness-aware quantization (SAQ, Liu et al.), as far as its text tells what they show."""

import copy
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray
from torch.autograd.profiler import profile as profiler

import landscape
import saq_core

from .catalogue import Figure
from .drawing import MARKERS, METHODS, curve, dots, intervals, label_ends, legend, note, panels, told, whole_epochs
from .profiles import Profile
from .study import Judged, judge, mean_and_error
from .surfaces import draw_beside

BITS = ("W4A4", "W2A2")
CASES = ("saq1", "saq2", "saq3")
TRAINED = ("sgd", *CASES, "saq3-momentum")
RADII = (0.001, 0.002, 0.005, 0.01)  # beyond, the loss is that of guessing
ASCENTS = 128  # images at most
ROUNDS = 15
CHOSEN = "ρ by validation"


def compute_surfaces(profile: Profile) -> landscape.Comparison:
    """Measure the float network and its 2-bit copies alike, over the seeds; draw those of the first."""
    rows = {"FP32": ("fp32", None), "W2A2 SGD": ("sgd", "W2A2"), "W2A2 SAQ": ("saq3", "W2A2")}
    models = {label: [profile.network(*row, seed) for seed in profile.seeds] for label, row in rows.items()}
    return profile.compared(models)


def draw_surfaces(comparison: landscape.Comparison):
    """Draw SAQ's and the float network's loss over SGD's, and the profiles of the three."""
    methods = {"W2A2 SGD": "sgd", "W2A2 SAQ": "saq3", "FP32": "fp32"}
    return draw_beside(comparison, f"First seed, {CHOSEN}", methods, ["W2A2 SAQ", "FP32"])[0]


def compute_staircase(profile: Profile) -> xarray.Dataset:
    """Measure one line, finely, in the latent weights and behind their rounding."""
    spaces, seed = ("latent", "quantized"), profile.seeds[0]
    settings: dict[str, Any] = {"points": 8 * profile.points + 1, "span": 0.25}
    models = [profile.network("sgd", bits, seed) for bits in BITS]
    found = [[landscape.line(m, profile.measured(m), space=space, **settings) for space in spaces] for m in models]
    loss = [[line.loss.numpy() for line in row] for row in found]
    return profile.dataset({"loss": loss}, bits=BITS, space=spaces, alpha=found[0][0].alphas.numpy())


def draw_staircase(data: xarray.Dataset):
    """Draw a panel for each number of bits."""
    figure, axes = panels(len(BITS))
    for ax, bits in zip(axes, data.bits.values, strict=True):
        for space, colour, width in (("latent", "#D55E00", 0.7), ("quantized", "#0072B2", 1.5)):
            loss = data.loss.sel(bits=bits, space=space)
            ax.plot(data.alpha, loss, color=colour, linewidth=width, label=f"{space} weights")
        ax.set(title=f"{bits}, SGD", xlabel="Along a random direction, in filter norms", ylabel="Loss")
    legend(figure, axes[0], 2)
    note(figure, f"{data.family}, first seed, {data.samples} images, the same direction in both")
    return figure


def compute_radii(profile: Profile) -> xarray.Dataset:
    """Measure the worst-case increase of the loss (projected gradient ascent) within relative radii of Q(w)."""
    variants = profile.effort(("sgd", *CASES), ("sgd", "saq3"))

    def increases(variant: str, bits: str, seed: int) -> np.ndarray:
        model, fewer = profile.network(variant, bits, seed), profile.effort({}, {"steps": 1})
        probe = tuple(part[:ASCENTS] for part in profile.measured(model))
        found = landscape.worst_case_sharpness(model, probe, radii=RADII, **fewer)
        return np.stack([found.delta_loss.numpy(), found.converged.numpy()])

    found = np.array([[[increases(v, bits, seed) for seed in profile.seeds] for v in variants] for bits in BITS])
    where = {"bits": BITS, "variant": variants, "seed": profile.seeds, "radius": RADII}
    return profile.dataset({"rise": found[..., 0, :], "converged": found[..., 1, :] > 0}, **where)


def converged(data: xarray.Dataset) -> xarray.DataArray:
    """Return where every ascent of a case and of SGD converged, over the seeds."""
    done = data.converged.all("seed")
    return done & done.sel(variant="sgd")


def draw_radii(data: xarray.Dataset):
    """Draw each case's increase over SGD's, paired by seed; hollow where an ascent did not converge: a lower bound."""
    figure, axes = panels(len(BITS), 2.2, sharey=True)
    done = converged(data)
    cases = [v for v in data["variant"].values if v != "sgd"]
    for ax, bits in zip(axes, data.bits.values, strict=True):
        own = data.rise.sel(bits=bits)
        for place, variant in enumerate(cases):
            label, colour, _ = METHODS[variant]
            means, errors = mean_and_error((own.sel(variant=variant) / own.sel(variant="sgd")).values)
            places = np.arange(len(means)) + 0.18 * (place - (len(cases) - 1) / 2)
            ax.errorbar(places, means, errors, fmt="none", color=colour, linewidth=1)
            for x, y, full in zip(places, means, done.sel(bits=bits, variant=variant).values, strict=True):
                ax.plot(x, y, MARKERS[variant], color=colour, mfc=colour if full else "white", ms=4.5)
            ax.plot([], [], MARKERS[variant], color=colour, label=label)
        sgd = own.sel(variant="sgd").mean("seed").values
        labels = [f"{100 * r:g}\n{rise:.2g}" for r, rise in zip(data.radius.values, sgd, strict=True)]
        ax.axhline(1, color=METHODS["sgd"][1], linewidth=0.8, zorder=0)
        ax.set_xticks(range(len(labels)), labels)
        ax.set(title=bits, xlabel="Radius, % of each filter's norm (below: SGD's increase)")
    axes[0].set(ylabel="Worst-case increase / SGD's", ylim=(0, None))
    legend(figure, axes[0], 4)
    seen = told(data, "paired by seed", images=min(ASCENTS, data.attrs["samples"]))
    note(figure, f"{seen}; hollow: an ascent did not converge; orange: SGD; {CHOSEN}")
    return figure


def compute_flips(profile: Profile) -> xarray.Dataset:
    """Read what was logged of ε on the first step of each epoch."""
    columns = ("flip_rate", "cosine_case1_case3", "relative_norm")
    networks = [[[profile.network(v, bits, s) for s in profile.seeds] for v in CASES] for bits in BITS]
    logs = [[[model.history.epochs for model in case] for case in row] for row in networks]
    values: dict[str, Any] = {
        column: [[[[row[column] for row in seed] for seed in case] for case in bits] for bits in logs]
        for column in columns
    }
    values["rho"] = [[case[0].recipe.sam.rho for case in row] for row in networks]
    epochs = [row["epoch"] for row in logs[0][0][0]]
    where = {"bits": BITS, "variant": CASES, "seed": profile.seeds, "epoch": epochs}
    return profile.dataset(values, **where)


def draw_flips(data: xarray.Dataset):
    """Draw how many weights change level: a colour for the bits, a dash for the case; what else was logged is flat."""
    figure, (ax,) = panels(1, 2.5)
    for bits, colour in zip(BITS, ("#0072B2", "#D55E00"), strict=True):
        for variant in data["variant"].values:
            own = 1e3 * data.flip_rate.sel(bits=bits, variant=variant)
            case, rho = METHODS[variant][0].removeprefix("SAQ, "), float(data.rho.sel(bits=bits, variant=variant))
            curve(ax, data.epoch, own, variant, color=colour, label=f"{bits}, {case}, ρ = {rho:g}")
    ax.set(ylabel="Weights that change level, ‰", ylim=(0, None))
    label_ends(ax)
    whole_epochs(ax)
    note(figure, told(data, f"first step of each epoch\n{CHOSEN}", images=0))
    return figure


def compute_curvature(profile: Profile) -> xarray.Dataset:
    """Measure trace and λ₁ of D·H·D, and the loss, behind the rounding and, straight-through, in the latent weights."""
    spaces, variants = ("quantized", "latent"), profile.effort(TRAINED, ("sgd", "saq3"))

    def curvature(variant: str, bits: str, seed: int, space: str) -> tuple[float, float, float]:
        model = profile.network(variant, bits, seed)
        hessian = landscape.Hessian(model, profile.measured(model), space=space).filter_relative()
        top = landscape.top_eigenvalues(hessian, k=1, tol=profile.effort(1e-2, 0.1))
        settings = {"rtol": profile.rtol or 0.03, "num_probes": profile.effort(30, 2)}
        trace = landscape.trace(hessian, eigenvalues=top, **settings)
        return trace.value, float(top.values[0]), trace.about["centre_loss"]

    found = np.array(
        [[[[curvature(v, b, s, space) for space in spaces] for s in profile.seeds] for v in variants] for b in BITS]
    )
    where = {"bits": BITS, "variant": variants, "seed": profile.seeds, "space": spaces}
    return profile.dataset(dict(zip(("trace", "top", "probe_loss"), np.moveaxis(found, -1, 0), strict=True)), **where)


def draw_curvature(data: xarray.Dataset):
    """Draw trace and λ₁ at both numbers of bits, as they are behind the rounding."""
    figure, axes = panels(4, 1.9, sharey=True)
    shown = [(bits, quantity, title) for quantity, title in (("trace", "Trace"), ("top", "λ₁")) for bits in BITS]
    for ax, (bits, quantity, title) in zip(axes, shown, strict=True):
        dots(ax, data[quantity].sel(bits=bits, space="quantized"), list(data["variant"].values))
        ax.set(title=f"{title}, {bits}")
    largest = float(abs(data.trace.sel(space="latent") / data.trace.sel(space="quantized") - 1).max())
    units = f"filter-relative, straight-through; latent: within {100 * largest:.0f} %"
    note(figure, told(data, units, CHOSEN))
    return figure


def compute_fluctuation(profile: Profile) -> xarray.Dataset:
    """Measure, per epoch, the spread of the loss between consecutive steps (of different batches)."""
    variants = ("sgd", "saq3")
    networks = [("fp32", None), *((variant, bits) for bits in BITS for variant in variants)]

    def spread(variant: str, bits: str | None, seed: int) -> np.ndarray:
        history = profile.network(variant, bits, seed).history
        steps = history.steps.double().numpy().reshape(len(history.epochs), -1)
        return np.diff(steps, axis=1).std(1) / steps.mean(1)

    found = [[spread(*network, seed) for seed in profile.seeds] for network in networks]
    names = [f"{variant} {bits or ''}".strip() for variant, bits in networks]
    where = {"network": names, "seed": profile.seeds, "epoch": 1 + np.arange(len(found[0][0]))}
    return profile.dataset({"spread": found}, **where)


def draw_fluctuation(data: xarray.Dataset):
    """Draw every network's mean over the epochs, between which it is noise, and the paired differences."""
    figure, (left, right) = panels(2, 1.9)
    names = [str(name).split() for name in data.network.values]
    labels = [", ".join([METHODS[variant][0], *bits]) for variant, *bits in names]
    dots(left, data.spread.mean("epoch"), [variant for variant, *_ in names], labels)
    left.set(title="Step-to-step change of the loss", xlabel="Standard deviation over the mean loss", xlim=(0, None))
    tests = fluctuations(data)
    intervals(right, list(tests.values()), ["saq3" if "SAQ" in name else "sgd" for name in tests], list(tests))
    right.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    right.set(title="Paired differences, 95 % intervals", xlabel="Filled: survives Holm's correction")
    note(figure, told(data, "mean over the epochs", CHOSEN, images=0))
    return figure


def fluctuations(data: xarray.Dataset) -> dict[str, Judged]:
    """Test, over the seeds, SGD's fluctuation against the float network's, and SAQ's against SGD's."""
    spread = data.spread.mean("epoch")
    pairs = {f"{bits}, SGD − FP32": (f"sgd {bits}", "fp32") for bits in BITS}
    pairs |= {f"{bits}, SAQ − SGD": (f"saq3 {bits}", f"sgd {bits}") for bits in BITS}
    return judge({k: (spread.sel(network=a) - spread.sel(network=b)).values for k, (a, b) in pairs.items()})


def compute_steps(profile: Profile) -> xarray.Dataset:
    """Measure an epoch of each method as a multiple of one with SGD, in turns, and the peak memory of its steps.

    Time is the processor's on a CPU (other work on the machine does not count), the clock's on a GPU.
    """
    variants = (*TRAINED, "saq3-subset", "fpq")
    recipes = {v: replace(profile.experiment(v, "W4A4").recipe, epochs=1, compile=False) for v in variants}
    model = saq_core.calibrate(saq_core.quantize(profile.network("base"), "W4A4"), profile.data)
    clock = time.perf_counter if profile.data.train[0].is_cuda else time.process_time

    def seconds(recipe: saq_core.Recipe) -> float:
        trained, began = copy.deepcopy(model), clock()
        saq_core.train(trained, profile.data, recipe)
        return clock() - began

    rounds = range(profile.effort(ROUNDS, 3))
    seconds(recipes["sgd"])  # the first run is slower
    spent = np.array([[seconds(recipe) for recipe in recipes.values()] for _ in rounds]).T
    memory = np.array([_peak(model, profile.data, recipe) for recipe in recipes.values()])
    where = {"variant": variants, "round": rounds}
    values = {"seconds": spent / spent[0], "memory": memory / memory[0]}
    return profile.dataset(values, **where)


def _peak(model: torch.nn.Module, data: saq_core.Data, recipe: saq_core.Recipe) -> int:
    """Return the most bytes in use at once, above what there was, while two batches are trained on."""
    two = replace(data, train=tuple(part[: 2 * recipe.batch_size] for part in data.train), val=data.probe)
    trained = copy.deepcopy(model)
    if data.train[0].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        saq_core.train(trained, two, recipe)
        return torch.cuda.max_memory_allocated() - before
    with profiler(profile_memory=True, use_kineto=True) as found:
        saq_core.train(trained, two, recipe)
    total = peak = 0
    for event in found.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return peak


def draw_steps(data: xarray.Dataset):
    """Draw time and memory as multiples of a plain quantization-aware step's."""
    names = [str(name) for name in data["variant"].values]
    figure, axes = panels(2, 2.1, sharey=True)
    dots(axes[0], data.seconds, names)
    dots(axes[1], data.memory.values[:, None], names)
    for ax, title in zip(axes, ("Time of a step", "Peak memory of a step"), strict=True):
        ax.axvline(1, color="0.6", linewidth=0.6)
        ax.set(title=title, xlabel="As a multiple of LSQ with SGD", xlim=(0, None))
    note(figure, f"{data.family}, W4A4, eager; time: {data.sizes['round']} epochs each in turns, ± 1 stderr")
    return figure


FIGURES = [
    Figure(
        "saq_surfaces",
        "SAQ, loss landscapes",
        "SAQ's quantized network lies in a flatter valley than the one trained with SGD",
        compute_surfaces,
        draw_surfaces,
    ),
    Figure(
        "saq_staircase",
        "SAQ, why ε is added after the rounding",
        "over the latent weights the loss is a staircase, over the quantized ones it is nearly smooth",
        compute_staircase,
        draw_staircase,
    ),
    Figure(
        "saq_radii",
        "SAQ, sharpness against ρ",
        "SAQ lowers the worst-case loss increase at every radius, Case 3 the most",
        compute_radii,
        draw_radii,
    ),
    Figure(
        "saq_flips",
        "SAQ, mismatch and diminishment",
        "rounding swallows most of Case 2's ε (few weights change level), and Case 1's ε is not Case 3's",
        compute_flips,
        draw_flips,
    ),
    Figure(
        "saq_curvature",
        "SAQ, curvature of the trained networks",
        "SAQ's networks have a lower trace and a lower top eigenvalue, Case 3's the lowest",
        compute_curvature,
        draw_curvature,
    ),
    Figure(
        "saq_fluctuation",
        "SAQ, fluctuation of the training loss",
        "discrete weights make the loss fluctuate from step to step, and SAQ calms it",
        compute_fluctuation,
        draw_fluctuation,
    ),
    Figure(
        "saq_steps",
        "SAQ, cost of a step",
        "full SAQ costs two passes; the efficient strategy little more than one (the policies are ours)",
        compute_steps,
        draw_steps,
    ),
]
