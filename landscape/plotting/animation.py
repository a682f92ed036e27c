"""Surfaces that turn, and that change from one state to the next: a film."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image
from scipy.interpolate import RectBivariateSpline, RegularGridInterpolator

from .captions import label
from .interactive import height_ticks
from .levels import shared_levels
from .reliefs import draw_relief
from .style import laid_out
from .values import Scale, SurfaceLike, columns_of, limits

States = Mapping[str, Mapping[str, SurfaceLike]]
_RAMP = ("#2b1a4a", "#33306f", "#2f4f8c", "#2a6e97", "#2f8c97", "#46a98d", "#79c37c", "#b7d873", "#f2e98b")
_COLOURS = LinearSegmentedColormap.from_list("sheet", _RAMP)
_INK, _SOFT, _EDGE, _PAPER = "#1d2330", "#5d6675", "#d8d5cd", "#fbfaf7"
_SMALL: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7.5, "color": _SOFT}
_RANGES = {"frames": (2, 1000), "seconds": (0.01, 600), "swing": (0, 180)}
_SUFFIXES, _DPI, _FINE, _BYTES = (".gif", ".webp", ".mp4"), 100, 61, 2_000_000


def animate(
    content: Any, path: Path, value: str, scale: Scale, notes: Mapping[str, str], size: Any, **times: Any
) -> Path:
    """Do what `save_animation` says; `times` are frames, seconds and swing."""
    states = _states(content)
    names = list(next(iter(states.values())))
    rows, wide = laid_out(len(names))
    size = size or (max(480, 320 * wide), 50 + 330 * rows)
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"path must end in {', '.join(_SUFFIXES)}, got {path}")
    if path.suffix == ".mp4" and shutil.which("ffmpeg") is None:
        raise ValueError(f"path must end in .gif or .webp where ffmpeg is not installed, got {path}")
    for name, (low, high) in _RANGES.items():
        if not low <= times[name] <= high:
            raise ValueError(f"{name} must be from {low} to {high}, got {times[name]}")
    if len(size) != 2 or not all(isinstance(side, int) and 64 <= side <= 4096 for side in size):
        raise ValueError(f"size must be two whole numbers of pixels from 64 to 4096, got {size}")
    if unknown := [name for name in notes if name not in names]:
        raise ValueError(f"notes must be for {', '.join(map(repr, names))}, got one for {unknown[0]!r}")
    images = list(_Film(states, value, scale, notes, size).frames(times["frames"], times["swing"]))
    rate = times["frames"] / times["seconds"]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mp4":
        _write_mp4(images, path, rate)
    else:
        path.write_bytes(_encoded(images, path.suffix[1:], 1 / rate))
    return path


def _states(content: Any) -> States:
    """Return state → name → surface; a single state has no name, nor has a single surface."""
    parts: dict[str, Any] = {"": _panels(content)}
    if not parts[""] and isinstance(content, Mapping):
        parts = {str(state): _panels(part) for state, part in content.items()}
    if not parts or not all(parts.values()):
        kinds = f"state → one of these, got {type(content).__name__}"
        raise TypeError(f"content must be a Surface, name → Surface, a Comparison with surfaces, or {kinds}")
    first = next(iter(parts.values()))
    for state, panels in parts.items():
        if list(panels) != list(first):
            raise ValueError(f"content must have the names {list(first)} in all states, got {list(panels)} for {state}")
        for name, surface in panels.items():
            here, there = ([s.alphas.tolist(), s.betas.tolist()] for s in (surface, first[name]))
            if here != there:
                raise ValueError(f"content must have one grid in all states, got another one of {name!r} for {state}")
    return parts


def _panels(part: Any) -> Mapping[str, SurfaceLike]:
    """Return name → surface, nothing where it is no such thing."""
    named = {"": part} if hasattr(part, "betas") else getattr(part, "surfaces", part)
    is_named = isinstance(named, Mapping) and all(hasattr(surface, "betas") for surface in named.values())
    return {str(name): surface for name, surface in named.items()} if is_named else {}


class _Film:
    """A figure whose sheets turn, and go from state to state."""

    def __init__(
        self, states: States, value: str, scale: Scale, notes: Mapping[str, str], pixels: tuple[int, int]
    ) -> None:
        self.states, names, self.pixels = list(states), list(next(iter(states.values()))), pixels
        flat = {(state, name): surface for state, panels in states.items() for name, surface in panels.items()}
        values, log = columns_of(flat, value, scale)  # type: ignore[arg-type]
        heights = [np.log10(array) if log else array for array in values.values()]
        self.ends = limits(heights, value)
        levels = shared_levels(list(values.values()), value, log).values
        self.lines = list(np.log10(levels)) if log else levels
        fine = [_fine(surface, array) for surface, array in zip(flat.values(), heights, strict=True)]
        self.sheets = [fine[index :: len(names)] for index in range(len(names))]  # panel, state
        self.figure = Figure(figsize=(pixels[0] / _DPI, pixels[1] / _DPI), dpi=_DPI, facecolor=_PAPER)
        self.canvas = FigureCanvasAgg(self.figure)
        (tall, wide), self.axes = laid_out(len(names)), list[Any]()
        for index, name in enumerate(names):
            left, bottom = index % wide / wide, 1 - (index // wide + 1) / tall
            where = (left - 0.06 / wide, bottom + 0.02 / tall, 1.12 / wide, 0.915 / tall)
            self.axes.append(self.figure.add_axes(where, projection="3d", computed_zorder=False, facecolor="none"))
            centre: dict[str, Any] = {"x": left + 0.5 / wide, "ha": "center", "va": "center"}
            self.figure.text(y=bottom + 0.945 / tall, s=name, fontsize=13, fontweight="bold", color=_INK, **centre)
            self.figure.text(y=bottom + 0.885 / tall, s=notes.get(name, ""), fontsize=8.5, color=_SOFT, **centre)
        self._add_bar(label(value), log)
        self.marker = self._add_slider() if len(states) > 1 else None

    def frames(self, count: int, swing: float) -> Iterator[Image.Image]:
        """Yield the pictures of one period."""
        last = len(self.states) - 1
        for index in range(count):
            phase, there = 2 * np.pi * index / count, last * (1 - abs(1 - 2 * index / count))  # and back
            if index == 0 or last:
                state = min(int(there), max(last - 1, 0))
                self._draw(state, (there - state) ** 2 * (3 - 2 * (there - state)))  # slow at the states
            for ax in self.axes:
                ax.view_init(elev=27 + 5 * np.cos(phase) * bool(swing), azim=-52 + swing * np.sin(phase))
            self.canvas.draw()
            yield Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3].copy())

    def _draw(self, state: int, part: float) -> None:
        """Draw all sheets between a state and the next."""
        for ax, sheets in zip(self.axes, self.sheets, strict=True):
            ax.clear()
            x, y, heights = sheets[state]
            if part:
                heights = (1 - part) * heights + part * sheets[state + 1][2]
            draw_relief(ax, x, y, heights, self.lines, self.ends, _COLOURS)
            around = x[[0, -1, -1, 0, 0]], y[[0, 0, -1, -1, 0]]
            ax.plot(*around, ax.get_zlim()[0], color=_EDGE, linewidth=0.8, zorder=0)
            ax.set_box_aspect((1, 1, 0.86), zoom=0.95)
            ax.set_axis_off()
        if self.marker is not None:
            self.marker.set_xdata([(state + part) / (len(self.states) - 1)])

    def _strip(self, centre: float, most: int) -> Any:
        """Return axes at the lower edge, a third of the figure wide, and at most so many pixels."""
        width, height = self.pixels
        share = min(1 / 3, most / width)
        return self.figure.add_axes((centre - share / 2, 22 / height, share, 7 / height))

    def _add_bar(self, name: str, log: bool) -> None:
        ax, ticks = self._strip(0.5 if len(self.states) == 1 else 0.25, 210), height_ticks(*self.ends, log)
        ax.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap=_COLOURS, extent=(*self.ends, 0, 1))
        ax.set_xticks(ticks["tickvals"], ticks["ticktext"])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0, labelsize=7.5, colors=_SOFT, pad=2)
        ax.annotate(name, (0, 0.5), (-6, 0), xycoords="axes fraction", ha="right", va="center", **_SMALL)

    def _add_slider(self) -> Any:
        ax, places = self._strip(0.75, 260), np.linspace(0, 1, len(self.states))
        ax.set(xlim=(0, 1), ylim=(-1, 1))
        ax.set_axis_off()
        ax.plot(places, 0 * places, "o-", color=_EDGE, linewidth=2, markersize=4, clip_on=False)
        for place, name in zip(places, self.states, strict=True):
            ax.annotate(name, (place, -1), (0, -4), ha="center", va="top", **_SMALL)
        return ax.plot([0], [0], "o", color=_INK, markersize=7, clip_on=False)[0]


def _fine(surface: SurfaceLike, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return steps and heights on a finer grid: splines within the range of what was measured, lines beside gaps."""
    steps = [axis.numpy() for axis in (surface.alphas, surface.betas)]
    x, y = (np.linspace(axis[0], axis[-1], max(_FINE, len(axis))) for axis in steps)
    if np.isfinite(heights).all():
        kx, ky = (min(3, len(axis) - 1) for axis in steps)
        return x, y, np.clip(RectBivariateSpline(*steps, heights, kx=kx, ky=ky)(x, y), heights.min(), heights.max())
    return x, y, RegularGridInterpolator(steps, heights)(np.stack(np.meshgrid(x, y, indexing="ij"), -1))


def _encoded(images: Sequence[Image.Image], kind: str, seconds: float) -> bytes:
    """Return a GIF or WebP, with fewer colours or a lower quality where it would be too large."""
    for colours, quality in ((255, 82), (128, 60), (64, 40)):
        shown, content, how = list(images), io.BytesIO(), {"quality": quality, "method": 4}
        if kind == "gif":
            palette, how = _palette(images, colours), {"optimize": True}
            shown = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
        every = {"save_all": True, "append_images": shown[1:], "duration": round(1000 * seconds), "loop": 0}
        shown[0].save(content, kind, **every, **how)
        if content.tell() <= _BYTES:
            break
    return content.getvalue()


def _palette(images: Sequence[Image.Image], colours: int) -> Image.Image:
    """Return one palette for all frames, learnt mostly from coloured pixels: else the background takes most of it."""
    pixels = np.concatenate([np.asarray(image).reshape(-1, 3)[::3] for image in images[:: len(images) // 6 or 1]])
    vivid = np.ptp(pixels.astype(int), 1) > 25
    plain = pixels[~vivid][:: max(1, 8 * (~vivid).sum() // max(1, vivid.sum()))]
    chosen = np.concatenate([pixels[vivid], plain])
    width = max(1, len(chosen) // 500)
    picture = Image.fromarray(chosen[: len(chosen) // width * width].reshape(-1, width, 3))
    return picture.quantize(colours, method=Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)


def _write_mp4(images: Sequence[Image.Image], path: Path, rate: float) -> None:
    width, height = (side // 2 * 2 for side in images[0].size)  # which the codec wants even
    raw = b"".join(np.asarray(image)[:height, :width].tobytes() for image in images)
    given = f"-loglevel error -y -f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {rate:g} -i -"
    wanted = "-pix_fmt yuv420p -crf 20 -movflags +faststart"
    subprocess.run(["ffmpeg", *given.split(), *wanted.split(), str(path)], input=raw, check=True)
