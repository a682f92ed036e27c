"""The figure of sensitivity: what predictions are worth, and what bits by measured loss increases come to."""

from itertools import product

import numpy as np
import xarray

import landscape
import saq_core

from .asga import tests_of
from .catalogue import Figure
from .drawing import MARKERS, curve, legend, note, panels, told
from .policies import budget_of, policy, start_of, tested
from .profiles import Profile

VARIANTS = ("uniform", "hessian", "sensitivity", "samq", "asga")
BUDGETS = ("W2A2-W3A3", "W3A3", "W3A3-W4A4", "W4A4")  # costs in between are the mean of both
PREDICTIONS = ("hessian", "trace")  # of ReLU networks the Gauss-Newton matrix gives what the Hessian gives
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def compute_front(profile: Profile) -> xarray.Dataset:
    """Measure the float networks' sensitivity, and test networks at the bits of five policies, rounded and tuned.

    Rounded networks are calibrated and not trained; all of a seed come from one float network and see one test set.
    """
    variants, budgets = profile.effort((VARIANTS, BUDGETS), (VARIANTS[::2], BUDGETS[1:2]))
    seeds = profile.effort(profile.seeds, profile.seeds[:1])
    found = [sensitivity_of(profile, seed) for seed in seeds]
    where: dict[str, list] = {"variant": list(variants), "budget": list(budgets), "seed": list(seeds)}
    front = {name: np.zeros([len(values) for values in where.values()]) for name in ("rounded", "tuned", "bops")}
    for place, (label, budget, seed) in zip(np.ndindex(*front["bops"].shape), product(*where.values()), strict=True):
        bits, model = policy(profile, label, seed, budget=budget).bits, start_of(profile, "target", seed)
        model = saq_core.calibrate(saq_core.quantize(model, bits), profile.data)
        front["rounded"][place] = 100 * saq_core.evaluate(model, profile.data.test).accuracy
        front["tuned"][place], _, front["bops"][place] = tested(profile, bits, seed)
    model = start_of(profile, "target", seeds[0])
    limits = [budget_of(model, budget) / 1e6 for budget in budgets]
    columns = {name: [result.array(name).numpy() for result in found] for name in ("increase", "stderr", *PREDICTIONS)}
    taus = [
        [[_tau(result, measured, name) for result in found] for name in PREDICTIONS] for measured in ("increase", "kl")
    ]
    return xarray.Dataset(
        {key: (tuple(where), values) for key, values in front.items()}
        | {key: (("seed", "layer", "format"), np.array(values)) for key, values in columns.items()}
        | {"tau": (("measured", "prediction", "seed", "end"), np.array(taus)), "limit": ("budget", limits)},
        where
        | {"layer": found[0].layers, "format": found[0].formats, "measured": ["increase", "kl"]}
        | {"prediction": list(PREDICTIONS), "end": ["tau", "low", "high", "repeat"]},
        tests_of(profile),
    )


def sensitivity_of(profile: Profile, seed: int) -> landscape.Sensitivity:
    """Measure the float network of a seed, one layer's weights rounded at a time."""
    model = start_of(profile, "target", seed)
    return landscape.sensitivity(model, profile.measured(model), predictions=PREDICTIONS)


def _tau(result: landscape.Sensitivity, measured: str, prediction: str) -> list[float]:
    frame = [row for row in result.correlations if (row["measured"], row["prediction"]) == (measured, prediction)]
    return [frame[0][end] for end in ("tau", "low", "high", "repeat")]  # overall comes first


def draw_front(data: xarray.Dataset):
    """Draw measured against predicted increases in one seed, and accuracies against the budget, rounded and tuned."""
    figure, (ax, *fronts) = panels(3, 2.5)
    own = data.isel(seed=0)
    for index, form in enumerate(data["format"].values):
        cells = own.sel(format=form)
        y, error = (np.where(cells["increase"] > 0, cells[name], np.nan) for name in ("increase", "stderr"))
        ax.errorbar(
            cells["hessian"], y, error, fmt="osD^"[index % 4], color=COLOURS[index % 4], label=form, capsize=1.5
        )
    ends = [float(own["hessian"].min()), float(own["hessian"].max())]
    ax.plot(ends, ends, color="0.6", linewidth=0.8, zorder=1)
    tau, low, high, _ = own["tau"].sel(measured="increase", prediction="hessian").values
    title = f"One layer rounded: τ = {tau:.2f} [{low:.2f}, {high:.2f}]"
    ax.set(xscale="log", yscale="log", xlabel="Predicted, ½ΔᵀHΔ", ylabel="Loss increase, measured", title=title)
    ax.legend(loc="upper left", handletextpad=0.1)
    for ax, (name, title) in zip(fronts, {"rounded": "Rounded, not trained", "tuned": "Tuned"}.items(), strict=True):
        for variant in data["variant"].values:
            curve(
                ax,
                data["limit"],
                data[name].sel(variant=variant).transpose("seed", "budget"),
                variant,
                marker=MARKERS[variant],
            )
        ax.set(title=title, xlabel="Budget, M BOPs per image", ylabel="Test accuracy, %")
    legend(figure, fronts[0], len(VARIANTS))
    note(figure, told(data, images=data.images))
    return figure


FIGURES = [
    Figure(
        "sensitivity_front",
        "ours, for HAWQ-V2 and AutoQuantize",
        "bits by measured loss increases are above uniform bits of the same cost",
        compute_front,
        draw_front,
    ),
]
