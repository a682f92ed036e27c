"""Surfaces beside a reference: maps of the ratio of the losses, and their profiles against the distance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.interpolate import RegularGridInterpolator

import landscape

from .drawing import METHODS, label_ends, note, panels
from .study import two_digits

RATIOS = (0.05, 0.1, 0.2, 0.5, 0.8, 1.25, 2, 5, 10, 20)  # levels, white in the middle


def draw_beside(
    comparison: landscape.Comparison, about: str, methods: Mapping[str, str], maps: Sequence[str]
) -> tuple[Figure, Any]:
    """Draw maps of some networks' loss over that of the first, and the profiles of all; return the last panel, too.

    Both are of the first seed. Under each map stands how much more than the reference's the loss increases on average
    at a step of 5 % of every filter's norm, over the seeds.

    Args:
        comparison: Of the networks.
        about: What the note begins with.
        methods: Network -> key of `METHODS`, the reference first.
        maps: Networks of which a map is drawn.
    """
    reference = next(iter(methods))
    averages = [quantity for quantity in comparison.seeds[reference][0] if quantity.startswith("average_")]
    quantity = averages[:2][-1]  # at 5 %, in a test at the only one
    figure, axes = panels(3, 2.5)
    for ax, name in zip(axes, maps, strict=False):
        surface, other = comparison.surfaces[name], comparison.surfaces[reference]
        ratio = np.clip((surface.loss / other.loss).numpy(), RATIOS[0], RATIOS[-1])
        place, levels = (surface.alphas, surface.betas), np.log10(RATIOS)
        filled = ax.contourf(*place, np.log10(ratio).T, levels=levels, cmap="RdBu_r", vmin=-1, vmax=1)
        ax.plot(0, 0, "+", color="black")
        change = two_digits(*comparison.difference(name, reference, quantity), "+")
        increase = f"ΔL at {100 * float(quantity.removeprefix('average_')):g} %: {change}"
        ax.set(title=f"{name} / {reference}", xlabel=f"Direction 1, filter norms\n{increase}", aspect="equal")
        ax.grid(visible=False)
    axes[0].set_ylabel("Direction 2, filter norms")
    bar = figure.colorbar(filled, ax=axes[len(maps) - 1], ticks=np.log10(RATIOS), shrink=0.8)
    bar.ax.set_yticklabels([f"{ratio:g}" for ratio in RATIOS])
    bar.set_label("Ratio of the losses", fontsize=7)
    ax = axes[len(maps)]
    for name, method in methods.items():
        _, colour, dash = METHODS[method]
        distance, losses = profile(comparison.surfaces[name])
        low, middle, high = np.quantile(losses, [0.1, 0.5, 0.9], axis=1)
        ax.plot(distance, middle, color=colour, linestyle=dash, label=name)
        ax.fill_between(distance, low, high, color=colour, alpha=0.2, linewidth=0)
    ax.set(title="Loss by distance", xlabel="Distance, filter norms", yscale="log", xlim=(0, distance[-1]))
    label_ends(ax)
    seeds = f"less {reference}'s, {len(comparison.seeds[reference])} seeds ± 1 stderr"
    about = f"{about}, {comparison.about['samples']} images; bands: 80 % of the directions"
    note(figure, f"{about}\nΔL: mean increase of the loss, {seeds}")
    return figure, axes[-1]


def per_seed(comparison: Any, network: str, quantity: str) -> np.ndarray:
    """Return one number of a network of a `landscape.Comparison` for each seed."""
    own = [seed[quantity] for seed in comparison.seeds[network]]
    return np.array([q["value"] if isinstance(q, dict) else q[0] for q in own])


def profile(surface: landscape.Surface, distances: int = 50, directions: int = 72) -> tuple[np.ndarray, np.ndarray]:
    """Return distances from the centre and the loss there, (distances, directions), its logarithm interpolated."""
    away = np.linspace(0, float(surface.alphas.max()), distances)
    angles = np.linspace(0, 2 * np.pi, directions, endpoint=False)
    places = away[:, None, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
    axes = (surface.alphas.numpy(), surface.betas.numpy())
    logarithm = RegularGridInterpolator(axes, np.log(surface.loss.double().numpy()))
    return away, np.exp(logarithm(np.clip(places, axes[0][0], axes[0][-1])))
