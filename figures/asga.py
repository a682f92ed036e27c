"""The figures of ASGA and of bits per layer; see `policies` for what is searched and tuned."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import xarray

import landscape

from .catalogue import Figure
from .drawing import MARKERS, METHODS, TWO_COLUMNS, curve, dots, label_ends, legend, note, panels, told
from .policies import BUDGET, TESTED, policy, tested, tuned, weight_bits
from .profiles import Profile
from .study import mean_and_error
from .surfaces import draw_beside, per_seed

WIDTHS = ("W2A2", "W3A3", "W4A4", "W8A8")
PROXIES = {"target": "asga-target", "tenth": "asga-tenth", "half": "asga-half"}
FOUND = (("hessian", "sgd"), ("samq", "sgd"), ("asga", "sgd"), ("samq", "saq3"))  # policy and training


def compute_surfaces(profile: Profile) -> landscape.Comparison:
    """Measure the networks tuned alike (SGD) at uniform W3A3, at the plain search's bits, and at ASGA's.

    Plain: ρ = β = 0. Ours: which seed is drawn, the first whose two searches differ in their bits, where one does.
    """
    names = {"Plain search": "asga-plain", "ASGA": "asga"}
    found = {seed: [policy(profile, label, seed).bits for label in names.values()] for seed in profile.seeds}
    seeds = sorted(profile.seeds, key=lambda seed: found[seed][0] == found[seed][1])
    models = {"Uniform W3A3": [tuned(profile, BUDGET, seed) for seed in seeds]}
    models |= {name: [tuned(profile, found[seed][k], seed) for seed in seeds] for k, name in enumerate(names)}
    result = profile.compared(models)
    bits = {name: ["".join(map(str, weight_bits(found[seed][k]))) for seed in seeds] for k, name in enumerate(names)}
    own = {"family": profile.family, "order": seeds, "policies": bits}
    return replace(result, about=result.about | own)


def draw_surfaces(comparison: landscape.Comparison):
    """Draw ASGA's loss over the plain search's in one seed, the profiles, and the traces of all seeds."""
    methods, about = {"Plain search": "asga-plain", "ASGA": "asga"}, comparison.about
    bits = ", ".join(f"{name} {own[0]}" for name, own in about["policies"].items())
    first = f"{about['family']}, seed {about['order'][0]}, bits: {bits}"
    figure, ax = draw_beside(comparison, first, methods, ["ASGA"])
    methods["Uniform W3A3"] = "uniform"
    dots(ax, [per_seed(comparison, name, "trace_filter") for name in methods], list(methods.values()))
    ax.set(title="Trace, all seeds", xlim=(0, None))
    return figure


def compute_convergence(profile: Profile) -> xarray.Dataset:
    """Read what searches from untrained networks logged: each epoch's means of the loss, of h = L(w + ε) - L(w), of ρ.

    Ours: the start (the trained digits' loss has nowhere to go), ρ's ends 0.005 and 0.1 and its first value 0.05.
    """
    labels = ["asga", "asga-fixed", "asga-cap", "asga-plain"]
    rows = [
        [policy(profile, label, seed, source="untrained").details["epochs"] for seed in profile.seeds]
        for label in labels
    ]
    columns = {
        column: [[[row.get(column, np.nan) for row in own] for own in seeds] for seeds in rows]
        for column in ("loss", "gap", "rho", "cosine", "at_floor", "at_cap", "complexity")
    }
    return profile.dataset(columns, variant=labels, seed=profile.seeds, epoch=[row["epoch"] for row in rows[0][0]])


def draw_convergence(data: xarray.Dataset):
    """Draw the gap, and the loss above that of the adaptive radius (paired by seed), against the epoch."""
    figure, axes = panels(2, 2.2)
    above = (data["loss"] - data["loss"].sel(variant="asga")).drop_sel(variant="asga")
    shown = {"Gap h = L(w + ε) − L(w)": data["gap"], "Training loss above ASGA's": above}
    labels = {"asga": "ASGA,\nadaptive ρ", "asga-plain": "ρ = 0"}
    for ax, (title, values) in zip(axes, shown.items(), strict=True):
        for name in values["variant"].values:
            own = values.sel(variant=name)
            if np.isfinite(own).all():
                curve(ax, data.epoch, own, name, label=labels.get(name, METHODS[name][0]))
        ax.set(title=title, xlabel="Epoch of the search", xticks=data.epoch.values[::2])
        if values is above:
            ax.axhline(0, color=METHODS["asga"][1], linewidth=0.8, label="ASGA")
        else:
            ax.set_ylim(bottom=0)
        label_ends(ax)
    note(figure, told(data, "untrained at the start", images=0))
    return figure


def compute_proxies(profile: Profile) -> xarray.Dataset:
    """Test networks tuned alike on the target at the bits that ASGA found on three proxies, and at uniform bits.

    Ours: the proxies (the paper's were CIFAR-10, Flowers and Food, its target ImageNet), which are the target's own
    images, a tenth of those, and those of half of the classes; everything on a proxy, the training of the float network
    that the search starts from too, takes as many steps as on the target.
    """
    seeds = list(profile.effort(profile.seeds, profile.seeds[:1]))
    axes: dict[str, list] = {"source": list(PROXIES), "budget": ["W2A2-W3A3", BUDGET], "seed": seeds}
    rows = [
        tested(profile, policy(profile, "asga", seed, budget=budget, source=source).bits, seed)
        for source in axes["source"]
        for budget in axes["budget"]
        for seed in axes["seed"]
    ]
    uniform: dict[str, list] = {"width": list(WIDTHS[:3]), "seed": axes["seed"]}
    alike = [tested(profile, width, seed) for width in uniform["width"] for seed in uniform["seed"]]
    return xarray.Dataset(table(rows, axes) | table(alike, uniform, "uniform_"), axes | uniform, tests_of(profile))


def tests_of(profile: Profile) -> dict[str, Any]:
    """Return what a note says, and of how many test images the accuracies are."""
    return profile.about | {"images": len(profile.data.test[1])}


def table(rows: Sequence[tuple[float, ...]], axes: Mapping[str, list], prefix: str = "") -> dict[str, Any]:
    """Return the variables of what `tested` returned for every combination of the axes, the last one fastest."""
    values = np.array(rows).reshape(*map(len, axes.values()), len(TESTED))
    return {prefix + name: (tuple(axes), values[..., k]) for k, name in enumerate(TESTED)}


def draw_proxies(data: xarray.Dataset):
    """Draw accuracy and loss at both budgets, where ASGA searched on each row."""
    figure, axes = panels(4, 1.8, sharey=True)
    columns = (("accuracy", "accuracy, %"), ("loss", "loss"))
    for ax, ((column, title), budget) in zip(axes, product(columns, data["budget"].values), strict=True):
        own = data[column].sel(budget=budget).transpose("source", "seed").values
        alike = data[f"uniform_{column}"]
        even = alike.sel(width=budget).values if budget in data["width"].values else np.full(len(data.seed), np.nan)
        dots(ax, [*own, even], [*PROXIES.values(), "uniform"])
        ax.set(title=f"Test {title}", xlabel=f"At {budget.replace('-', ' to ')}'s cost")
    note(figure, told(data, images=data.images))
    return figure


def compute_bits(profile: Profile) -> xarray.Dataset:
    """Collect the bits per layer of three searches at the cost of W3A3, and the layers' mean Hessian trace."""
    return layers_of(profile, ("hessian", "samq", "asga"), draws=1)


def compute_correlation(profile: Profile) -> xarray.Dataset:
    """Collect the same for three searches of each kind on every seed's float network.

    Ours: a layer's sharpness is its Hessian's mean trace per weight in the float network.
    """
    return layers_of(profile, ("samq", "asga"), draws=profile.effort(3, 1))


def layers_of(profile: Profile, labels: tuple[str, ...], draws: int) -> xarray.Dataset:
    """Return bits (variant, seed, draw, layer) and sharpness (seed, layer)."""
    bits = [
        [[weight_bits(policy(profile, label, seed, draw=draw).bits) for draw in range(draws)] for seed in profile.seeds]
        for label in labels
    ]
    hessian = [policy(profile, "hessian", seed) for seed in profile.seeds]
    layers = list(hessian[0].bits)
    sharpness = [[own.details["mean_traces"][f"{layer}.weight"] for layer in layers] for own in hessian]
    found = profile.dataset({"bits": bits}, variant=labels, seed=profile.seeds, draw=range(draws), layer=layers)
    return found.assign(sharpness=(("seed", "layer"), np.array(sharpness)))


def draw_bits(data: xarray.Dataset):
    """Draw the layers' sharpness over a row of bits for each search: a number per seed, coloured by their mean."""
    figure, (top, ax) = panels(1, 1.45, 2, sharex=True)
    figure.set_figwidth(TWO_COLUMNS)
    sharpness, layers = data["sharpness"].values, data["layer"].values
    mean, error = mean_and_error(sharpness)
    top.plot(sharpness.T, ".", color="0.3", markersize=2.5, alpha=0.5)
    top.errorbar(range(len(layers)), mean, error, fmt="o", color="0.3", capsize=2, markersize=4)
    top.set(yscale="log", ylabel="Mean Hessian trace", title="Sharpness of the layers of the float network")
    own = data["bits"].isel(draw=0)
    image = ax.imshow(own.mean("seed").values, vmin=2, vmax=5, cmap="YlGnBu", aspect="auto")
    for row, column in np.ndindex(len(own), len(layers)):
        bits = own.values[row, :, column]
        text = " ".join(map(str, bits)) if len(layers) < 10 else f"{bits.mean():.1f}"
        colour = "white" if bits.mean() > 3.8 else "black"
        ax.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    ax.set_yticks(range(len(own)), [METHODS[label][0] for label in data["variant"].values])
    ax.set_xticks(range(len(layers)), layers, rotation=60 if len(layers) > 9 else 0)
    ax.set(title=f"Bits that were chosen, seeds {', '.join(map(str, data['seed'].values))}")
    ax.grid(visible=False)
    figure.colorbar(image, ax=ax, label="Bits, mean", ticks=[2, 3, 4, 5])
    note(figure, told(data, "trace per weight"))
    return figure


def rank_correlations(data: xarray.Dataset) -> np.ndarray:
    """Return Spearman's ρ of bits and sharpness over the layers, the mean over the draws, (variants, seeds).

    Bits that are the same everywhere follow no order: they count as 0.
    """
    from scipy.stats import spearmanr

    bits, sharpness = data["bits"].values, data["sharpness"].values
    found = np.zeros(bits.shape[:3])
    for place in np.ndindex(*found.shape):
        if len(set(bits[place])) > 1:
            found[place] = spearmanr(bits[place], sharpness[place[1]]).statistic
    return found.mean(2)


def draw_correlation(data: xarray.Dataset):
    """Draw how often each layer got how many bits, a panel per kind of search, and the rank correlations."""
    figure, axes = panels(3, 2.2)
    labels, sharpness = list(data["variant"].values), data["sharpness"].mean("seed")
    for ax, label in zip(axes, labels, strict=False):
        own, colour = data["bits"].sel(variant=label), METHODS[label][1]
        for bits in np.unique(data["bits"]):
            often = (own == bits).sum(("seed", "draw"))
            ax.scatter(sharpness, np.full(len(sharpness), bits), 14 * often, color=colour, alpha=0.35, linewidth=0)
        mean = own.mean(("seed", "draw")).sortby(sharpness)
        ax.plot(sharpness.sortby(sharpness), mean, MARKERS[label], ls=METHODS[label][2], color=colour)
        ax.set(title=f"{METHODS[label][0]}: bits of a layer", xscale="log", xlabel="Mean Hessian trace")
        ax.set_yticks(np.unique(data["bits"]))
        ax.margins(y=0.15)
    last = axes[len(labels)]
    dots(last, rank_correlations(data), labels)
    last.axvline(0, color="0.6", linewidth=0.8, zorder=1)
    last.set(title="Rank correlation of the two", xlabel="Spearman's coefficient", xlim=(-1.05, 1.05))
    searches = data.sizes["seed"] * data.sizes["draw"]
    note(figure, told(data, f"{searches} searches each; area: how many; line: their mean"))
    return figure


def compute_front(profile: Profile) -> xarray.Dataset:
    """Test networks of uniform bits, tuned with SGD and with SAQ, and of policies at W3A3's cost."""
    axes: dict[str, list] = {"variant": ["sgd", "saq3"], "width": list(WIDTHS), "seed": list(profile.seeds)}
    uniform = [
        tested(profile, width, seed, variant)
        for variant in axes["variant"]
        for width in axes["width"]
        for seed in axes["seed"]
    ]
    values = table(uniform, axes, "uniform_")
    for label, variant in FOUND:
        rows = [tested(profile, policy(profile, label, seed).bits, seed, variant) for seed in profile.seeds]
        values |= table(rows, {"seed": axes["seed"]}, f"{label}_{variant}_")
    return xarray.Dataset(values, axes, tests_of(profile))


def draw_front(data: xarray.Dataset):
    """Draw accuracy and loss of uniform bits against their cost and, below, of all policies at the budget's."""
    figure, axes = panels(2, 1.7, 2)
    variants, widths = list(data["variant"].values), data["width"].values
    shown = sorted([*(("uniform", variant) for variant in variants), *FOUND], key=lambda own: variants.index(own[1]))
    labels = [f"{METHODS[policy_][0]}, {METHODS[variant][0].split(', ')[-1]}" for policy_, variant in shown]
    columns = {"accuracy": "Test accuracy, %", "loss": "Test loss"}
    for top, below, (column, title) in zip(axes[:2], axes[2:], columns.items(), strict=True):
        uniform, costs = data[f"uniform_{column}"], data["uniform_bops"].mean(("variant", "seed"))
        for variant in variants:
            own = uniform.sel(variant=variant).transpose("seed", "width")
            curve(top, costs, own, variant, marker=MARKERS[variant])
        top.set(title=title, xlabel="Uniform bits, M BOPs per image", xscale="log")
        top.set_xticks(costs, [f"{width}\n{cost:.1f}" for width, cost in zip(widths, costs.values, strict=True)])
        top.minorticks_off()
        rows = {("uniform", variant): uniform.sel(variant=variant, width=BUDGET) for variant in variants}
        rows |= {pair: data["_".join([*pair, column])] for pair in FOUND}
        dots(below, [rows[pair] for pair in shown], [variant for _, variant in shown], labels)
        below.set_xlabel(f"{title} at {BUDGET}'s cost")
    axes[3].tick_params(labelleft=False)
    legend(figure, axes[0], 2)
    note(figure, told(data, images=data.images))
    return figure


FIGURES = [
    Figure(
        "asga_surfaces",
        "ASGA, figure 1",
        "with ASGA the searched network has a smaller gap h and less sharpness than with the plain search",
        compute_surfaces,
        draw_surfaces,
    ),
    Figure(
        "asga_convergence",
        "ASGA, figure 4",
        "the search converges faster with an adaptive radius than with a fixed one",
        compute_convergence,
        draw_convergence,
    ),
    Figure(
        "asga_proxies",
        "ASGA, figure 6",
        "bits found on a small proxy are as good on the target as those found on the target",
        compute_proxies,
        draw_proxies,
    ),
    Figure(
        "asga_bits",
        "ours, for ASGA and SAQ's first version",
        "the searches give sharper layers more bits, and agree with each other",
        compute_bits,
        draw_bits,
    ),
    Figure(
        "saq_bits",
        "SAQ's first version, section on SAMQ (from memory)",
        "SAMQ gives sharper layers more bits",
        compute_correlation,
        draw_correlation,
    ),
    Figure(
        "saq_front",
        "SAQ's first version, results of SAMQ",
        "at equal bit operations SAQ is above SGD, and SAMQ's bits are above uniform ones",
        compute_front,
        draw_front,
    ),
]
