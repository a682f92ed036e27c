"""The basin of a float network: does rounding leave it, and does quantization-aware training come back?"""

import copy
from collections.abc import Callable
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogFormatter
from torch import nn

import landscape
import saq_core

from .catalogue import Figure
from .drawing import note, panels
from .profiles import Profile
from .study import mean_and_error

BITS = ("W8A32", "W4A32", "W3A32", "W2A32")
WAYS = {"RTN": ("#D55E00", "o"), "GPTQ": ("#0072B2", "s"), "QAT": ("#009E73", "^")}
COLUMNS = (
    *("increase", "increase_stderr", "excess_in_stderr", "width", "inside"),
    *("loss", "loss_recomputed", "accuracy"),
)
MOST = {"cifar10-resnet20": (128, 1000)}  # images that are measured, a thousand times by layers, and that GPTQ sees
LENGTH, WIDTH = 64, 64  # letters of a window, and width of the transformer that reads them


def rounded(model: nn.Module, bits: str, images: Any) -> dict[str, nn.Module]:
    """Return a float network rounded to nearest, and by GPTQ."""
    nearest = saq_core.calibrate(saq_core.quantize(copy.deepcopy(model), bits), images)
    return {"RTN": nearest, "GPTQ": saq_core.gptq(copy.deepcopy(model), images, bits, per_channel=False)}


def compute(profile: Profile) -> Any:
    """Measure the basin of every seed's float network on the way to its quantized copies."""
    probe, calibration = MOST.get(profile.family, (None, None))

    def copies(seed: int) -> Copies:
        model = profile.network("base", seed=seed)
        images = tuple(part[:calibration] for part in profile.data.train)

        def quantized(bits: str) -> dict[str, nn.Module]:
            return rounded(model, bits, images) | {"QAT": profile.network("sgd", bits, seed)}

        return model, tuple(part[:probe] for part in profile.measured(model)), quantized

    return measured(profile, copies)


def compute_text(profile: Profile) -> Any:
    """Measure the same of a small causal transformer that reads English letter by letter."""
    texts, letters = text(profile.effort(None, 40 * profile.samples))
    probe = tuple(part[: profile.effort(128, profile.samples)] for part in texts.test)
    settings: dict[str, Any] = {"batch_size": 64, "optimizer": "adamw", "warmup": profile.effort(1, 0)}

    def copies(seed: int) -> Copies:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = Letters(letters)
        epochs = profile.effort(12, 1)
        saq_core.train(model, texts, saq_core.Recipe(epochs=epochs, lr=3e-3, seed=seed, **settings))

        def quantized(bits: str) -> dict[str, nn.Module]:
            found = rounded(model, bits, texts.train)
            tuned = copy.deepcopy(found["RTN"])
            epochs = profile.effort(3, 1)
            saq_core.train(tuned, texts, saq_core.Recipe(epochs=epochs, lr=1e-3, seed=seed, **settings))
            return found | {"QAT": tuned}

        return model, probe, quantized

    return measured(profile, copies).assign_attrs(family="transformer on text")


Copies = tuple[nn.Module, tuple[torch.Tensor, ...], Callable[[str], dict[str, nn.Module]]]


def measured(profile: Profile, copies: Callable[[int], Copies]) -> Any:
    """Measure basins; `copies`: seed → float network, what is measured on, and bits → name → network."""
    bits_of, seeds = profile.effort((BITS, profile.seeds), (BITS[-1:], profile.seeds[:1]))
    columns = {name: np.full((len(WAYS), len(bits_of), len(seeds)), np.nan) for name in COLUMNS}
    ratios: dict[str, Any] = {}
    for s, seed in enumerate(seeds):
        model, probe, quantized = copies(seed)
        for b, bits in enumerate(bits_of):
            networks = quantized(bits)
            found = landscape.basin(model, networks, probe, points=profile.effort(25, 5))
            for k, row in enumerate(found.rows[1:]):
                for name, column in columns.items():
                    column[k, b, s] = row.get(name, np.nan)  # nothing is recomputed without BatchNorm
            if not s and bits == bits_of[-1]:
                both = {name: networks[name] for name in ("RTN", "QAT")}
                points = 4 * (profile.points // 4) + 1
                plane = landscape.basin(model, both, probe, points=max(5, points))
                ratios = {row["layer"]: row["ratio"] for row in found.layers if row["network"] == "RTN"}
    surface = plane.surfaces[""]
    data = profile.dataset(columns, network=list(WAYS), bits=list(bits_of), seed=list(seeds))
    data = data.assign(
        plane=(("x", "y"), surface.loss.numpy()),
        places=(("end", "axis"), np.array([[0.0, 0.0], *plane.about["places"]])),
        ratio=("layer", np.array(list(ratios.values()))),
    )
    where = {"x": surface.alphas.numpy(), "y": surface.betas.numpy(), "layer": list(ratios)}
    return data.assign_coords(where).assign_attrs(
        samples=len(probe[0]),
        margin=plane.margin,
        centre=float(surface.loss[surface.centre]),
        points=len(surface.alphas),
    )


class Letters(nn.Module):
    """A causal transformer of two blocks: (N, 64) letters to (N, letters, 64) scores of the next ones."""

    def __init__(self, letters: int) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(letters, WIDTH), nn.Embedding(LENGTH, WIDTH)
        look = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        block = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, **look)
        self.blocks = nn.TransformerEncoder(block, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, letters)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH), persistent=False)
        self.register_buffer("places", torch.arange(LENGTH), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return scores of each next letter."""
        found = self.blocks(self.letter(x) + self.place(self.places), mask=self.mask, is_causal=True)
        return self.head(found).transpose(1, 2)


def text(most: int | None = None) -> tuple[saq_core.Data, int]:
    """Return windows of 64 letters of Python's own help with the letters that follow, and how many letters there are.

    Other versions of Python have other texts.
    """
    whole = "".join(topics[name] for name in sorted(topics))
    letters = sorted(set(whole))
    codes = torch.tensor(np.searchsorted(letters, list(whole)))
    windows = codes.unfold(0, LENGTH + 1, LENGTH)
    windows = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))][:most]
    x, y = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
    tenth = len(x) // 10
    parts = ((x[cut], y[cut]) for cut in (slice(2 * tenth, None), slice(tenth), slice(tenth, 2 * tenth)))
    return saq_core.Data(*parts), len(letters)


def draw(data: Any) -> Any:
    """Draw the plane at two bits, and by bits the increase of the loss and what each network loses by itself."""
    figure, (plane, increase, own) = panels(3, 2.4)
    labels, rim_loss = [str(bits)[:2] for bits in data.bits.values], data.centre + data.margin
    has_batchnorm = bool(np.isfinite(data.loss_recomputed).any())
    values = np.log10(data.plane.values.T)
    levels = np.linspace(values.min(), values.max(), 12)
    plane.contourf(data.x, data.y, values, levels, cmap="viridis")
    plane.contour(data.x, data.y, 10**values, [rim_loss], colors="#D55E00", linewidths=1.4)
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
            *[(own, "loss_recomputed", hollow)] * has_batchnorm,
        ):
            mean, error = mean_and_error(data[column].values[k].T)
            if column == "increase" and len(data.seed) == 1:
                error = data.increase_stderr.values[k, :, 0]
            ax.errorbar(places + 0.1 * (k - 1), mean, error, color=colour, marker=mark, capsize=2, **look)
    for ax, level in ((increase, data.margin), (own, rim_loss)):
        ax.axhline(level, color="#D55E00", linestyle="--", linewidth=1)
        ax.set_xticks(places, labels)
    increase.set(title="Loss increase, weights alone")
    losses = np.stack([data.loss.values, data.loss_recomputed.values])
    is_wide = np.nanmax(losses) > 10 * np.nanmin(losses)
    own.set(title="Each network's own loss", yscale="log" if is_wide else "linear")
    if is_wide:  # 0.6, not 6 × 10⁻¹
        own.yaxis.set_major_formatter(LogFormatter())
        own.yaxis.set_minor_formatter(LogFormatter())
    increase.legend(fontsize=7)
    count, rim = len(data.seed), f"Orange: loss = FP32's + {data.margin:g}, the rim"
    seeds = f"{count} seeds ± 1 stderr" if count > 1 else "one seed, ± 1 stderr over them"
    recomputed = "\nHollow, and the two panels on the left: BatchNorm's statistics recomputed on the images"
    about = f"{data.attrs['family']}, {data.attrs['samples']} samples, {seeds}. {rim}"
    note(figure, about + recomputed * has_batchnorm)
    return figure


FIGURES = (
    Figure(
        "basin_by_bits",
        "question of arXiv 2606.09012 and 2510.06213; the measure is ours",
        "rounding to few bits leaves the basin of the float network, and quantization-aware training comes back to it",
        compute,
        draw,
    ),
    Figure(
        "basin_of_text",
        "the same question, of a small transformer on text; ours",
        "rounding to few bits leaves a transformer's basin, and quantization-aware training comes back to it",
        compute_text,
        draw,
    ),
)
