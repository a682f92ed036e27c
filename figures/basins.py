"""The basin of a float network: does rounding leave it, and does quantization-aware training come back?"""

import copy
from typing import Any

import numpy as np
from matplotlib.patheffects import withStroke
from torch import nn

import landscape
import saq_core

from .catalogue import Figure
from .drawing import note, panels
from .profiles import Profile
from .study import mean_and_error

BITS = ("W4A32", "W3A32", "W2A32")
WAYS = {"RTN": ("#D55E00", "o"), "GPTQ": ("#0072B2", "s"), "QAT": ("#009E73", "^")}
COLUMNS = ("increase", "excess_in_stderr", "width", "inside", "loss", "loss_recomputed", "accuracy")


def quantized(profile: Profile, model: nn.Module, bits: str, seed: int) -> dict[str, nn.Module]:
    """Return a float network rounded to nearest, by GPTQ, and tuned with rounded weights."""
    calibration = profile.data.train
    nearest = saq_core.calibrate(saq_core.quantize(copy.deepcopy(model), bits), calibration)
    by_gptq = saq_core.gptq(copy.deepcopy(model), calibration, bits, per_channel=False)
    return {"RTN": nearest, "GPTQ": by_gptq, "QAT": profile.network("sgd", bits, seed)}


def compute(profile: Profile) -> Any:
    """Measure the basin of every seed's float network on the way to its quantized copies."""
    measured = profile.effort(BITS, BITS[-1:])
    shape = len(WAYS), len(measured), len(profile.seeds)
    columns = {name: np.full(shape, np.nan) for name in COLUMNS}
    ratios: dict[str, Any] = {}
    for s, seed in enumerate(profile.seeds):
        model = profile.network("base", seed=seed)
        for b, bits in enumerate(measured):
            networks = quantized(profile, model, bits, seed)
            found = landscape.basin(model, networks, profile.measured(model), points=profile.effort(25, 5))
            for k, row in enumerate(found.rows[1:]):
                for name, column in columns.items():
                    column[k, b, s] = row[name]
            if not s and bits == measured[-1]:
                both = {name: networks[name] for name in ("RTN", "QAT")}
                points = 4 * (profile.points // 4) + 1
                plane = landscape.basin(model, both, profile.measured(model), points=max(5, points))
                ratios = {row["layer"]: row["ratio"] for row in found.layers if row["network"] == "RTN"}
    surface = plane.surfaces[""]
    data = profile.dataset(columns, network=list(WAYS), bits=list(measured), seed=list(profile.seeds))
    data = data.assign(
        plane=(("x", "y"), surface.loss.numpy()),
        places=(("end", "axis"), np.array([[0.0, 0.0], *plane.about["places"]])),
        ratio=("layer", np.array(list(ratios.values()))),
    )
    where = {"x": surface.alphas.numpy(), "y": surface.betas.numpy(), "layer": list(ratios)}
    return data.assign_coords(where).assign_attrs(
        margin=plane.margin, centre=float(surface.loss[surface.centre]), points=len(surface.alphas)
    )


def draw(data: Any) -> Any:
    """Draw the plane at two bits, and by bits the increase of the loss and what each network loses by itself."""
    figure, (plane, increase, own) = panels(3, 2.4)
    labels, rim = [str(bits)[:2] for bits in data.bits.values], data.centre + data.margin
    values = np.log10(data.plane.values.T)
    levels = np.linspace(values.min(), values.max(), 12)
    plane.contourf(data.x, data.y, values, levels, cmap="viridis")
    plane.contour(data.x, data.y, 10**values, [rim], colors="#D55E00", linewidths=1.4)
    halo = [withStroke(linewidth=2, foreground="white")]
    for name, (x, y) in zip(("FP32", "RTN", "QAT"), data.places.values, strict=True):
        plane.plot(x, y, "o", color="white", markeredgecolor="black", markersize=4)
        plane.annotate(name, (x, y), (0, 4), textcoords="offset points", ha="center", fontsize=7, path_effects=halo)
    plane.set(title=f"{labels[-1]}, seed 0", xlabel="towards RTN", ylabel="across", aspect="equal")
    plane.grid(visible=False)
    places = np.arange(len(labels))
    for k, (name, (colour, mark)) in enumerate(WAYS.items()):
        hollow = {"linestyle": ":", "markerfacecolor": "white"}
        for ax, column, look in (
            (increase, "increase", {"label": name}),
            (own, "loss", {}),
            (own, "loss_recomputed", hollow),
        ):
            mean, error = mean_and_error(data[column].values[k].T)
            ax.errorbar(places + 0.1 * (k - 1), mean, error, color=colour, marker=mark, capsize=2, **look)
    for ax, level in ((increase, data.margin), (own, rim)):
        ax.axhline(level, color="#D55E00", linestyle="--", linewidth=1)
        ax.set_xticks(places, labels)
    increase.set(title="Loss increase, weights alone")
    own.set(title="Each network's own loss", yscale="log")
    increase.legend(fontsize=7)
    count, samples = len(data.seed), data.attrs["samples"]
    told = f"Orange: loss = FP32's + {data.margin:g}, the rim. {samples} images; {count} seeds ± 1 stderr"
    note(figure, f"{told}\nHollow, and the two panels on the left: BatchNorm's statistics recomputed on the images")
    return figure


FIGURES = (
    Figure(
        "basin_by_bits",
        "question of arXiv 2606.09012 and 2510.06213; the measure is ours",
        "rounding to few bits leaves the basin of the float network, and quantization-aware training comes back to it",
        compute,
        draw,
    ),
)
