"""Results of one's own in one picture, and pictures that show in a notebook."""

import os
import subprocess
import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
import torch

import landscape

BACKEND = "import matplotlib\nfrom matplotlib.backends.backend_agg import *\nmatplotlib.interactive(True)\n"
DRAWN = """
import landscape, matplotlib.pyplot as plt
landscape.draw_layers({"a": 1.0})
assert plt.get_backend() == "module://turns_on", plt.get_backend()
assert plt.isinteractive()
"""


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)


@pytest.fixture(scope="module")
def data():
    return torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 0, 1, 0, 0])


def test_lines_share_one_plot(model, data):
    lines = {f"seed {seed}": landscape.line(model, data, points=5, seed=seed) for seed in range(2)}
    (ax,) = landscape.draw_together(lines, scale="log").axes
    assert ax.get_legend_handles_labels()[1] == list(lines) and ax.get_yscale() == "log"
    for curve, found in zip([a for a in ax.lines if a.get_label() in lines], lines.values(), strict=True):
        assert torch.equal(torch.as_tensor(curve.get_ydata()), found.loss)
    names = {trace.name for trace in landscape.plot_together(lines, value="accuracy").data}
    assert set(lines) <= names


def test_surfaces_stand_side_by_side_on_one_scale(model, data):
    surfaces = {f"span {span}": landscape.surface(model, data, points=5, span=span) for span in (0.5, 1.0)}
    figure = landscape.draw_together(surfaces)
    assert [ax.get_title() for ax in figure.axes[:2]] == list(surfaces)
    assert landscape.draw_together(surfaces, kind="3d").axes[0].name == "3d"
    sheets = [trace for trace in landscape.plot_together(surfaces, scale="log").data if trace.type == "surface"]
    assert len(sheets) == 2 and {sheet.coloraxis for sheet in sheets} == {"coloraxis"}


def test_what_cannot_stand_together_is_refused(model, data):
    line, surface = landscape.line(model, data, points=3), landscape.surface(model, data, points=3)
    for mixed, named in (({"a": line, "b": surface}, "Line, Surface"), ({"a": 3}, r"\{'a': 3")):
        with pytest.raises(TypeError, match=f"results must be .*, got {named}"):
            landscape.draw_together(mixed)
    with pytest.raises(ValueError, match="nothing to draw"):
        landscape.plot_together({})


def test_a_backend_that_turns_interactive_mode_on_is_not_undone(tmp_path):
    (tmp_path / "turns_on.py").write_text(BACKEND)
    own = os.environ | {"MPLBACKEND": "module://turns_on", "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"}
    subprocess.run([sys.executable, "-c", DRAWN], env=own, check=True)


def test_the_interpolation_of_all_is_said_once(model, data):
    settings = {"points": 15, "adaptive": True, "tolerance": 0.1}
    surfaces = {f"span {span}": landscape.surface(model, data, span=span, **settings) for span in (0.5, 4.0)}
    counts = sorted(found.about["evaluated"] for found in surfaces.values())
    worst = 100 * max(found.about["interpolation_error"] for found in surfaces.values())
    told = " ".join(landscape.draw_together(surfaces).get_supxlabel().split())
    points = f"{counts[0]} to {counts[1]}" if counts[0] < counts[1] else f"{counts[0]}"
    assert f"interpolated from {points} measured points, error ≤ {worst:.2g} %" in told
    assert told.count("interpolated") == 1
