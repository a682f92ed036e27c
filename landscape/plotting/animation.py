"""Surfaces that turn, and that change from one state to the next: a file to show."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .captions import label
from .style import columns
from .values import Scale, SurfaceLike, columns_of, limits

_RAMP = ("#2b1a4a", "#33306f", "#2f4f8c", "#2a6e97", "#2f8c97", "#46a98d", "#79c37c", "#b7d873", "#f2e98b")
_INK, _SOFT, _EDGE, _PAPER = "#1d2330", "#5d6675", "#d8d5cd", "#fbfaf7"
_SUFFIXES, _DPI, _FINE, _BYTES = (".gif", ".webp", ".mp4"), 100, 61, 2_000_000


def save_animation(
    content: Any,
    path: str | Path,
    *,
    value: str = "loss",
    scale: Scale = "auto",
    notes: Mapping[str, str] | None = None,
    frames: int = 48,
    seconds: float = 3.0,
    size: tuple[int, int] | None = None,
    swing: float = 28.0,
) -> Path:
    """Write surfaces that turn to and fro as a GIF, WebP or MP4 which repeats; return its path.

    Heights and colours have one range. Between the points of a grid they follow cubic splines, beside gaps lines; such
    a file is to be looked at: numbers are read from `Surface.plot` and `Surface.draw`.

    Args:
        content: a `Surface`, name → `Surface` or a `Comparison`; or state → one of these ("W8", "W4", … or epochs),
            all with the same names: the sheets then change from state to state and back.
        path: ends in .gif (at most 255 colours), .webp (smaller) or .mp4 (where ffmpeg is installed).
        value: ``"loss"``, ``"accuracy"``, ``"stderr"`` or a metric.
        scale: ``"auto"``, ``"linear"`` or ``"log"``: see `plot_together`.
        notes: name → what stands below it, say a curvature with its error.
        frames: of one period.
        seconds: that a period takes.
        size: width and height in pixels; default 320 by 330 for each panel.
        swing: degrees to either side; 0 stands still.

    Raises:
        TypeError: content that is not made of surfaces.
        ValueError: another suffix, states with different names or grids, settings out of range.

    Cost: about 0.1 s per frame and panel, a third more where states change. Colours or quality are lowered where the
    file would exceed 2 MB.

    Example:
        >>> import landscape, pathlib, tempfile, torch
        >>> data = torch.randn(16, 3), torch.arange(16) % 2
        >>> surface = landscape.surface(torch.nn.Linear(3, 2), data, points=5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = landscape.save_animation(surface, pathlib.Path(folder) / "turn.gif", frames=2, size=(160, 160))
        ...     path.name, path.read_bytes()[:3]
        ('turn.gif', b'GIF')
    """
    path, states = Path(path), _states(content)
    names = list(next(iter(states.values())))
    wide = columns(len(names))
    pixels = size or (max(480, 320 * wide), 50 + 330 * -(-len(names) // wide))
    _check(path, names, notes or {}, frames, seconds, pixels, swing)
    film = _Film(states, value, scale, notes or {}, pixels)
    written = _encoded(list(film.frames(frames, swing)), path.suffix, seconds / frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(written)
    return path


def _check(
    path: Path,
    names: Sequence[str],
    notes: Mapping[str, str],
    frames: int,
    seconds: float,
    size: Sequence[int],
    swing: float,
) -> None:
    """Raise if a setting of `save_animation` is out of range."""
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"path must end in {', '.join(_SUFFIXES)}, got {path}")
    if path.suffix == ".mp4" and shutil.which("ffmpeg") is None:
        raise ValueError(f"path must end in .gif or .webp where ffmpeg is not installed, got {path}")
    for name, number, low, high in (
        ("frames", frames, 2, 1000),
        ("seconds", seconds, 0.01, 600),
        ("swing", swing, 0, 180),
    ):
        if not low <= number <= high:
            raise ValueError(f"{name} must be from {low} to {high}, got {number}")
    if len(size) != 2 or not all(isinstance(side, int) and 64 <= side <= 4096 for side in size):
        raise ValueError(f"size must be two whole numbers of pixels from 64 to 4096, got {size}")
    if unknown := [name for name in notes if name not in names]:
        raise ValueError(f"notes must be for {', '.join(map(repr, names))}, got one for {unknown[0]!r}")


def _states(content: Any) -> dict[str, dict[str, SurfaceLike]]:
    """Return state → name → surface; a single state has no name, nor has a single surface."""
    single = _panels(content)
    parts: dict[str, Any] = {"": single} if single else {}
    if not parts and isinstance(content, Mapping):
        parts = {str(state): _panels(part) for state, part in content.items()}
    if not parts or not all(parts.values()):
        kind = type(content).__name__ if single is None else f"no surface in a {type(content).__name__}"
        raise TypeError(f"content must be a Surface, name → Surface, a Comparison, or state → one of these, got {kind}")
    states: dict[str, dict[str, SurfaceLike]] = parts
    first, *others = states.items()
    for state, panels in others:
        if list(panels) != list(first[1]):
            raise ValueError(
                f"content must have the same names in all states, got {list(first[1])} and, for {state}, {list(panels)}"
            )
        for name, surface in panels.items():
            grids = [(each.alphas.tolist(), each.betas.tolist()) for each in (first[1][name], surface)]
            if grids[0] != grids[1]:
                raise ValueError(
                    f"content must have the same grids in all states, got another one of {name or 'it'} for {state}"
                )
    return states


def _panels(part: Any) -> dict[str, SurfaceLike] | None:
    """Return name → surface, or None where it is no such thing."""
    if hasattr(part, "betas"):
        return {"": part}
    named = getattr(part, "surfaces", part)
    if not isinstance(named, Mapping) or not all(hasattr(surface, "betas") for surface in named.values()):
        return None
    return {str(name): surface for name, surface in named.items()}


class _Film:
    """A figure whose sheets turn, and go from state to state."""

    def __init__(
        self,
        states: Mapping[str, Mapping[str, SurfaceLike]],
        value: str,
        scale: Scale,
        notes: Mapping[str, str],
        pixels: tuple[int, int],
    ) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.figure import Figure

        from .levels import shared_levels

        self.states, self.names, self.pixels = list(states), list(next(iter(states.values()))), pixels
        flat = {
            ", ".join(filter(None, (state, name))): part
            for state, parts in states.items()
            for name, part in parts.items()
        }
        values, log = columns_of(flat, value, scale)
        heights = [np.log10(array) if log else array for array in values.values()]
        self.ends = limits(heights, value)
        levels = shared_levels(list(values.values()), value, log).values
        self.lines = list(np.log10(levels)) if log else levels
        fine = [_fine(surface, array) for surface, array in zip(flat.values(), heights, strict=True)]
        self.sheets = [fine[index :: len(self.names)] for index in range(len(self.names))]  # panel, state
        self.colours = LinearSegmentedColormap.from_list("sheet", _RAMP)
        self.figure = Figure(figsize=(pixels[0] / _DPI, pixels[1] / _DPI), dpi=_DPI, facecolor=_PAPER)
        self.canvas = FigureCanvasAgg(self.figure)
        wide = columns(len(self.names))
        tall, self.axes = -(-len(self.names) // wide), list[Any]()
        for index, name in enumerate(self.names):
            left, bottom = index % wide / wide, 1 - (index // wide + 1) / tall
            where = (left - 0.06 / wide, bottom + 0.02 / tall, 1.12 / wide, 0.915 / tall)
            self.axes.append(self.figure.add_axes(where, projection="3d", computed_zorder=False, facecolor="none"))
            centre: dict[str, Any] = {"x": left + 0.5 / wide, "ha": "center", "va": "center"}
            self.figure.text(y=bottom + 0.945 / tall, s=name, fontsize=13, fontweight="bold", color=_INK, **centre)
            self.figure.text(y=bottom + 0.885 / tall, s=notes.get(name, ""), fontsize=8.5, color=_SOFT, **centre)
        self._bar(label(value), log)
        self.marker = self._slider() if len(states) > 1 else None

    def frames(self, count: int, swing: float) -> Iterator[Any]:
        """Yield the pictures of one period."""
        from PIL import Image

        last = len(self.states) - 1
        for index in range(count):
            phase, share = 2 * np.pi * index / count, 1 - abs(1 - 2 * index / count)  # there and back
            if index == 0 or last:
                whole = min(int(share * last), max(last - 1, 0))
                part = share * last - whole
                self._draw(whole, part**2 * (3 - 2 * part))  # slow at the states
            for ax in self.axes:
                ax.view_init(elev=27 + 5 * np.cos(phase) * bool(swing), azim=-52 + swing * np.sin(phase))
            self.canvas.draw()
            yield Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3].copy())

    def _draw(self, state: int, part: float) -> None:
        """Draw all sheets between a state and the next."""
        from .reliefs import draw_relief

        for ax, sheets in zip(self.axes, self.sheets, strict=True):
            ax.clear()
            x, y, heights = sheets[state]
            if part:
                heights = (1 - part) * heights + part * sheets[state + 1][2]
            draw_relief(ax, x, y, heights, self.lines, self.ends, self.colours)
            frame = np.array([[x[0], y[0]], [x[-1], y[0]], [x[-1], y[-1]], [x[0], y[-1]], [x[0], y[0]]]).T
            ax.plot(*frame, ax.get_zlim()[0], color=_EDGE, linewidth=0.8, zorder=0)
            ax.set_box_aspect((1, 1, 0.86), zoom=0.95)
            ax.set_axis_off()
        if self.marker is not None:
            self.marker.set_xdata([(state + part) / (len(self.states) - 1)])

    def _strip(self, centre: float, width: int) -> Any:
        """Return axes at the lower edge, so many pixels wide."""
        share = width / self.pixels[0]
        return self.figure.add_axes((centre - share / 2, 22 / self.pixels[1], share, 7 / self.pixels[1]))

    def _bar(self, name: str, log: bool) -> None:
        from .interactive import height_ticks

        ax = self._strip(0.5 if len(self.states) == 1 else 0.25, min(210, self.pixels[0] // 3))
        ax.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap=self.colours, extent=(*self.ends, 0, 1))
        ticks = height_ticks(*self.ends, log)
        ax.set_xticks(ticks["tickvals"], ticks["ticktext"])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0, labelsize=7.5, colors=_SOFT, pad=2)
        ax.annotate(
            name,
            (0, 0.5),
            (-6, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8,
            color=_SOFT,
        )

    def _slider(self) -> Any:
        ax = self._strip(0.75, min(260, self.pixels[0] // 3))
        places = np.linspace(0, 1, len(self.states))
        ax.plot([0, 1], [0.5, 0.5], color=_EDGE, linewidth=2, solid_capstyle="round", clip_on=False)
        ax.plot(places, np.full(len(places), 0.5), "o", color=_SOFT, markersize=3, clip_on=False)
        ax.set(xlim=(0, 1), ylim=(0, 1))
        ax.set_axis_off()
        for place, name in zip(places, self.states, strict=True):
            ax.annotate(
                name, (place, 0), (0, -4), textcoords="offset points", ha="center", va="top", fontsize=7.5, color=_SOFT
            )
        return ax.plot([0], [0.5], "o", color=_INK, markersize=7, clip_on=False)[0]


def _fine(surface: SurfaceLike, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return steps and heights on a finer grid: splines within the range of what was measured, lines beside gaps."""
    from scipy.interpolate import RectBivariateSpline, RegularGridInterpolator

    steps = [axis.numpy() for axis in (surface.alphas, surface.betas)]
    x, y = (np.linspace(axis[0], axis[-1], max(_FINE, len(axis))) for axis in steps)
    if np.isfinite(heights).all():
        kx, ky = (min(3, len(axis) - 1) for axis in steps)
        return x, y, np.clip(RectBivariateSpline(*steps, heights, kx=kx, ky=ky)(x, y), heights.min(), heights.max())
    return x, y, RegularGridInterpolator(steps, heights)(np.stack(np.meshgrid(x, y, indexing="ij"), -1))


def _encoded(images: Sequence[Any], suffix: str, seconds: float) -> bytes:
    """Return the file, with fewer colours or a lower quality where it would be too large."""
    if suffix == ".mp4":
        return _mp4(images, 1 / seconds)
    written = b""
    for colours, quality in ((255, 82), (128, 60), (64, 40)):
        shown, content = list(images), io.BytesIO()
        options: dict[str, Any] = {"quality": quality, "method": 4}
        if suffix == ".gif":
            palette, options = _palette(images, colours), {"optimize": True}
            shown = [image.quantize(palette=palette, dither=0) for image in images]
        more = {"save_all": True, "append_images": shown[1:], "duration": round(1000 * seconds), "loop": 0}
        shown[0].save(content, suffix[1:], **more, **options)
        written = content.getvalue()
        if len(written) <= _BYTES:
            break
    return written


def _palette(images: Sequence[Any], colours: int) -> Any:
    """Return one palette for all frames, learnt mostly from coloured pixels: else the background takes most of it."""
    from PIL import Image

    some = images[:: max(1, len(images) // 6)]
    pixels = np.concatenate([np.asarray(image).reshape(-1, 3)[::3] for image in some])
    vivid = np.ptp(pixels.astype(int), 1) > 25
    plain = pixels[~vivid][:: max(1, 8 * (~vivid).sum() // max(1, vivid.sum()))]
    chosen = np.concatenate([pixels[vivid], plain])
    width = max(1, len(chosen) // 500)
    picture = Image.fromarray(np.ascontiguousarray(chosen[: len(chosen) // width * width].reshape(-1, width, 3)))
    return picture.quantize(colours, method=Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)


def _mp4(images: Sequence[Any], rate: float) -> bytes:
    """Return the frames as ffmpeg encodes them for browsers."""
    import tempfile

    width, height = (side // 2 * 2 for side in images[0].size)  # which the codec wants even
    raw = b"".join(np.asarray(image)[:height, :width].tobytes() for image in images)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "film.mp4"
        given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{rate:g}", "-i", "-"]
        wanted = ["-pix_fmt", "yuv420p", "-crf", "20", "-movflags", "+faststart", str(file)]
        subprocess.run(["ffmpeg", "-loglevel", "error", "-y", *given, *wanted], input=raw, check=True)
        return file.read_bytes()
