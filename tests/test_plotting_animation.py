"""Surfaces that turn, as files."""

import math
import os

import numpy as np
import pytest
import torch
from PIL import Image

import landscape
from landscape.plotting import animation
from landscape.surfaces.grids import Surface

SMALL = {"frames": 4, "size": (160, 120), "seconds": 1.0}


def surface(scale=1.0, gap=False, points=9):
    steps = torch.linspace(-1, 1, points, dtype=torch.float64)
    loss = scale * (0.01 + 10 * steps[:, None] ** 2 + steps[None, :] ** 2)
    if gap:
        loss[0, 0] = math.nan
    return Surface({}, steps, steps, loss, torch.exp(-loss))


def frames(path):
    with Image.open(path) as film:
        shown = []
        for index in range(film.n_frames):
            film.seek(index)
            shown.append(np.asarray(film.convert("RGB"), int))
        return shown, film.info


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_a_surface_turns_to_and_fro_for_ever(suffix, tmp_path):
    path = landscape.save_animation(surface(), tmp_path / "deep" / f"film{suffix}", **SMALL)
    shown, info = frames(path)
    assert len(shown) == 4 and shown[0].shape == (120, 160, 3) and info["loop"] == 0
    assert all(np.abs(a - b).mean() > 0.5 for a, b in zip(shown, shown[1:], strict=False))
    still = landscape.save_animation({"A": surface(), "B": surface(2)}, path, swing=0.0, **SMALL)
    shown, _ = frames(still)
    assert all(np.abs(shown[0] - other).max() < 3 for other in shown)


def test_states_change_there_and_back_on_one_scale(tmp_path):
    states = {bits: {"net": surface(scale)} for bits, scale in (("W8", 1.0), ("W4", 3.0), ("W2", 9.0))}
    film = animation._Film(states, "loss", "log", {"net": "a note"}, (160, 120))
    assert film.ends == pytest.approx((math.log10(0.01), math.log10(99.09)))
    heights = [part[2] for part in film.sheets[0]]
    for one, state, scale in zip(heights, states, (1, 3, 9), strict=True):
        loss = states[state]["net"].loss.numpy()
        assert one[0, 0] == pytest.approx(math.log10(loss[0, 0])) and one.min() == pytest.approx(
            math.log10(0.01 * scale)
        )
    seen = []
    for _ in film.frames(8, 0.0):
        seen.append(float(film.marker.get_xdata()[0]))
    assert [seen[0], seen[2], seen[4]] == [0, 0.5, 1] and seen == pytest.approx([*seen[:5], *seen[3:0:-1]])
    texts = {text.get_text() for ax in film.figure.axes for text in ax.texts}
    assert {"W8", "W4", "W2", "Loss"} == texts
    shown, _ = frames(landscape.save_animation(states, tmp_path / "film.webp", **SMALL | {"swing": 0.0}))
    assert np.abs(shown[1] - shown[3]).mean() < 0.2 * np.abs(shown[0] - shown[2]).mean()  # WebP is not exact


def test_a_comparison_is_its_surfaces_and_gaps_stay_open(tmp_path):
    data = torch.randn(8, 3), torch.arange(8) % 2
    compared = landscape.compare({"A": torch.nn.Linear(3, 2)}, data, points=3, radii=(0.1,))
    assert animation._states(compared) == {"": {"A": compared.surfaces["A"]}}
    _, _, heights = animation._fine(surface(gap=True), surface(gap=True).loss.numpy())
    assert np.isnan(heights[0, 0]) and np.isfinite(heights[20:, 20:]).all()
    landscape.save_animation(surface(gap=True), tmp_path / "film.gif", **SMALL | {"frames": 2})


def test_splines_stay_within_what_was_measured():
    values = np.zeros((9, 9))
    values[:, 5:] = 1.0
    _, _, heights = animation._fine(surface(), values)
    assert heights.min() == 0 and heights.max() == 1 and len(heights) >= 61


def test_a_file_that_would_be_too_large_gets_fewer_colours(tmp_path, monkeypatch):
    path = tmp_path / "film.gif"
    whole = landscape.save_animation(surface(), path, **SMALL).stat().st_size
    monkeypatch.setattr(animation, "_BYTES", 1)
    assert landscape.save_animation(surface(), path, **SMALL).stat().st_size < whole


def test_mp4_is_made_by_ffmpeg_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="path must end in .gif or .webp where ffmpeg is not installed"):
        landscape.save_animation(surface(), tmp_path / "film.mp4", **SMALL)
    fake = tmp_path / "ffmpeg"  # which writes what it is given, and its arguments
    fake.write_text('#!/bin/sh\nfor last; do :; done\necho "$@" > "$last"\n/bin/cat >> "$last"\n')
    fake.chmod(0o755)
    written = landscape.save_animation(surface(), tmp_path / "film.mp4", **SMALL | {"size": (161, 121)}).read_bytes()
    arguments, _, raw = written.partition(b"\n")
    assert (
        b"-s 160x120 -r 4 -i -" in arguments and len(raw) == 4 * 160 * 120 * 3 and os.environ["PATH"] == str(tmp_path)
    )


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (
            {"2": {"A": surface()}, "4": {"B": surface()}},
            {},
            r"the names \['A'\] in all states, got \['B'\] for 4",
        ),
        (
            {"2": {"A": surface()}, "4": {"A": surface(points=5)}},
            {},
            "one grid in all states, got another one of 'A' for 4",
        ),
        (surface(), {"notes": {"A": "b"}}, "notes must be for '', got one for 'A'"),
        (surface(), {"size": (9, 200)}, "size must be two whole numbers of pixels from 64 to 4096"),
        (surface(), {"frames": 1}, "frames must be from 2 to 1000, got 1"),
        (surface(), {"value": "hits"}, 'value must be one of "loss", "accuracy"'),
    ],
)
def test_what_cannot_be_filmed_is_named(content, settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        landscape.save_animation(content, tmp_path / "film.gif", **settings)
    assert not (tmp_path / "film.gif").exists()
