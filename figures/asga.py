"""The figures of ASGA and of bits per layer; see `policies` for what is searched and tuned."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray

import landscape

from .catalogue import Figure
from .drawing import METHODS, curve, dots, legend, note, panels, told
from .policies import BUDGET, TESTED, policy, tested, tuned, weight_bits
from .profiles import Profile
from .study import mean_and_error, two_digits

WIDTHS = ("W2A2", "W3A3", "W4A4", "W8A8")
PROXIES = {"target": ("the target", "#882255", "D"), "tenth": ("a tenth of it", "#117733", "v")}
PROXIES |= {"half": ("half of its classes", "#0072B2", "s")}
SHARPNESS = {"trace_filter": "trace", "lambda1_filter": "λ₁"}
SEEDS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
FOUND = {  # policy and training -> label, mark
    ("hessian", "sgd"): ("Hessian, SGD", "^"),
    ("samq", "sgd"): ("SAMQ, SGD", "s"),
    ("asga", "sgd"): ("ASGA, SGD", "D"),
    ("samq", "saq3"): ("SAMQ, Case 3", "s"),
}


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
    """Draw the surfaces of one seed on shared levels; above them the difference of the searches over all seeds."""
    figure, about = comparison.draw(), comparison.about
    parts = []
    for quantity, label in SHARPNESS.items():
        value, _ = comparison.value("Plain search", quantity)
        delta, error = comparison.difference("ASGA", "Plain search", quantity)
        parts.append(f"{label} {two_digits(delta, error, '+')} (of {value:.2g})")
    policies, seeds = about["policies"], len(about["order"])
    alike = sum(one == other for one, other in zip(*policies.values(), strict=True))
    text = f"ASGA − plain search over {seeds} seeds, whose bits are the same in {alike}:\n{', '.join(parts)}"
    figure.suptitle(f"{about['family']}, seed {about['order'][0]}\n{text}", fontsize=7, color="0.4")
    figure.set_figheight(figure.get_figheight() + 0.26)
    for ax in figure.axes:
        if ax.get_title() in policies:
            ax.set_title(f"{ax.get_title()}, bits {policies[ax.get_title()][0]}")
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
    """Draw loss, what it is above that of the adaptive radius (paired by seed), gap and radius against the epoch."""
    figure, axes = panels(4, 2.2)
    above = (data["loss"] - data["loss"].sel(variant="asga")).drop_sel(variant="asga")
    shown = {
        "Training loss": data["loss"],
        "Loss above ASGA's": above,
        "Gap h = L(w + ε) − L(w)": data["gap"],
        "Radius ρ, mean": data["rho"],
    }
    labels = {"asga": "ASGA, adaptive ρ", "asga-plain": "Plain search, ρ = 0"}
    for ax, (title, values) in zip(axes, shown.items(), strict=True):
        for name in values["variant"].values:
            own = values.sel(variant=name)
            if np.isfinite(own).all():
                curve(ax, data.epoch, own, name, label=labels.get(name, f"Fixed {METHODS[name][0]}"))
        ax.set(title=title, xlabel="Epoch of the search", xticks=data.epoch.values[::2])
        ax.set_ylim(bottom=None if values is above else 0)
    axes[1].axhline(0, color=METHODS["asga"][1], linewidth=0.8)
    legend(figure, axes[0], 4)
    note(figure, told(data, "untrained at the start", images=0))
    return figure


def compute_proxies(profile: Profile) -> xarray.Dataset:
    """Test networks tuned alike on the target at the bits that ASGA found on three proxies, and at uniform bits.

    Ours: the proxies (the paper's were CIFAR-10, Flowers and Food, its target ImageNet), which are the target's own
    images, a tenth of those, and those of half of the classes; everything on a proxy, the training of the float network
    that the search starts from too, takes as many steps as on the target.
    """
    axes: dict[str, list] = {"source": list(PROXIES), "budget": ["W2A2-W3A3", BUDGET], "seed": list(profile.seeds)}
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


def points(ax: Any, bops: Any, values: Any, colour: str, fmt: str, label: str) -> None:
    """Draw, against M BOPs, every seed of (places, seeds), small, and their mean with its standard error."""
    bops, values = np.atleast_2d(bops), np.atleast_2d(values)
    mean, error = mean_and_error(values.T)
    ax.plot(bops, values, ".", color=colour, markersize=2.5, alpha=0.5)
    ax.errorbar(bops.mean(1), mean, error, color=colour, fmt=fmt, label=label, capsize=2, markersize=4, linewidth=1)


def finish(figure: Any, axes: Any, data: xarray.Dataset) -> None:
    """Label two panels of accuracy and loss against BOPs."""
    ticks = np.unique(data["uniform_bops"])
    for ax, title in zip(axes, ("Test accuracy, %", "Test loss"), strict=True):
        ax.set(title=title, xlabel="M BOPs per image", xscale="log", xticks=ticks)
        ax.set_xticklabels(f"{tick:.1f}\n{width}" for tick, width in zip(ticks, data["width"].values, strict=True))
        ax.minorticks_off()
    axes[1].set_ylim(bottom=0)
    legend(figure, axes[0], -(-len(axes[0].get_legend_handles_labels()[1]) // 2))
    note(figure, told(data, "marks of one cost moved apart", images=data.images))


def draw_proxies(data: xarray.Dataset):
    """Draw accuracy and loss against BOPs."""
    figure, axes = panels(2, 2.6)
    for ax, column in zip(axes, ("accuracy", "loss"), strict=True):
        points(ax, data["uniform_bops"], data[f"uniform_{column}"], METHODS["uniform"][1], "o-", METHODS["uniform"][0])
        for k, (source, (label, colour, mark)) in enumerate(PROXIES.items()):
            own = data.sel(source=source)
            points(ax, own["bops"] * 1.04 ** (k + 1), own[column], colour, mark, f"ASGA, searched on {label}")
    finish(figure, axes, data)
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
    figure.set_figwidth(2 * figure.get_figwidth())
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
    """Draw every search's bits against sharpness, a panel per kind, and the rank correlations."""
    figure, axes = panels(3, 2.2)
    labels, middle = list(data["variant"].values), (data.sizes["seed"] - 1) / 2
    for ax, label in zip(axes, labels, strict=False):
        for k, own in enumerate(data["bits"].sel(variant=label)):
            for draw in own:
                ax.plot(data["sharpness"][k], draw + 0.12 * (k - middle), ".", color=SEEDS[k], alpha=0.4, markersize=6)
        ax.set(title=METHODS[label][0], xscale="log", xlabel="Mean Hessian trace", yticks=[2, 3, 4, 5], ylim=(1.7, 5.3))
    axes[0].set_ylabel("Bits of the layer")
    last = axes[len(labels)]
    dots(last, rank_correlations(data), labels)
    last.axvline(0, color="0.6", linewidth=0.8, zorder=1)
    last.set(title="Rank correlation of the two", xlabel="Spearman's coefficient", xlim=(-1.05, 1.05))
    note(figure, told(data, f"{data.sizes['draw']} searches each; colours: seeds, moved apart"))
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
    """Draw accuracy and loss against BOPs; the colour is the training, the mark the policy."""
    figure, axes = panels(2, 2.6)
    for ax, column in zip(axes, ("accuracy", "loss"), strict=True):
        for variant in data["variant"].values:
            own = data.sel(variant=variant)
            name, colour, _ = METHODS[variant]
            points(ax, own["uniform_bops"], own[f"uniform_{column}"], colour, "o-", f"Uniform bits, {name}")
        for k, ((policy_, variant), (label, mark)) in enumerate(FOUND.items()):
            bops, values = (data[f"{policy_}_{variant}_{what}"] for what in ("bops", column))
            points(ax, bops.values[None] * 1.06 ** (k + 1), values.values[None], METHODS[variant][1], mark, label)
    finish(figure, axes, data)
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
