"""python -m figures: what is computed, saved, drawn and written, and what the repository holds of it."""

import pathlib
import re
import runpy
import warnings
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray
from matplotlib.colors import to_rgb
from matplotlib.text import Text

import landscape
from figures import (
    asga,
    basins,
    catalogue,
    dose,
    drawing,
    flatness,
    fpq,
    saq,
    scatter,
    sensitivity,
    stability,
    study,
    surfaces,
    tables,
)
from figures.__main__ import FIGURES, main
from figures.catalogue import Figure, make
from figures.profiles import PROFILES, Profile

ROOT, SMOKE = pathlib.Path(__file__).parents[1], PROFILES["smoke"]


def drawn(data):
    figure, (ax,) = drawing.panels(1)
    ax.plot(data.x, data.y)
    return figure


def counted(results):
    """Return a compute that says how often it was called."""

    def compute(profile):
        compute.calls += 1
        return results

    compute.calls = 0
    return compute


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_a_figure_is_computed_once_saved_with_its_provenance_and_drawn_again(tmp_path):
    data = xarray.Dataset({"y": ("x", [1.0, 4.0])}, {"x": [1, 2]}, {"family": "none"})
    compute = counted(data)
    figure = Figure("parabola", "none", "it rises", compute, drawn)
    for _ in range(2):
        assert [file.name for file in make(figure, SMOKE, tmp_path)] == ["parabola.pdf", "parabola.png"]
    assert compute.calls == 1 and make(figure, SMOKE, tmp_path, anew=True) and compute.calls == 2
    found = catalogue.read(tmp_path / "parabola.nc")
    assert found.y.values.tolist() == [1.0, 4.0] and found.attrs["family"] == "none"
    assert found.attrs["figure"] == "parabola" and found.attrs["profile"] == "smoke" and "torch" in found.attrs
    assert not list(tmp_path.glob("*.part"))


def test_results_of_landscape_keep_their_kind(tmp_path):
    line = landscape.Line({"samples": 4}, torch.linspace(-1, 1, 3), torch.ones(3), torch.ones(3))
    catalogue.save(line, tmp_path / "line.nc", profile="smoke")
    found = catalogue.read(tmp_path / "line.nc")
    assert isinstance(found, landscape.Line) and found.about["profile"] == "smoke" and found.about["samples"] == 4


def test_tables_are_written_as_markdown_and_latex(tmp_path):
    rows = [["", "accuracy, %"], ["λ₁", "-1.2 ± 0.3"], ["W2A2 a-b", "5"]]
    files = make(Figure("table", "none", "none", None, lambda: rows), SMOKE, tmp_path)
    assert [file.suffix for file in files] == [".md", ".tex"]
    assert files[0].read_text() == "|  | accuracy, % |\n|---|---|\n| λ₁ | -1.2 ± 0.3 |\n| W2A2 a-b | 5 |\n"
    assert r"$\lambda$$_1$ & $-$1.2 $\pm$ 0.3 \\" in files[1].read_text() and "W2A2 a-b & 5" in files[1].read_text()


@pytest.mark.parametrize("name", [name for name in FIGURES if name.startswith("table")])
def test_latex_has_no_sign_that_it_lacks(name):
    figure = FIGURES[name]
    rows = figure.draw(catalogue.read(catalogue.folder("cpu") / f"{name}.nc")) if figure.compute else figure.draw()
    assert study.latex(rows).isascii() and len({len(row) for row in rows}) == 1


def test_bands_and_dots_show_means_and_standard_errors():
    figure, (ax, other) = drawing.panels(2)
    drawing.curve(ax, [0, 1], [[1.0, 2.0], [3.0, 6.0]], "sgd")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [2.0, 4.0])
    edges = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert edges.min() == pytest.approx(1.0) and edges.max() == pytest.approx(6.0)
    drawing.dots(other, [[1.0, 3.0], [2.0, np.nan]], ["sgd", "saq3"])
    assert [text.get_text() for text in other.get_yticklabels()] == ["LSQ, SGD", "SAQ, Case 3"]
    means = [container[0].get_xdata()[0] for container in other.containers]
    assert means == [2.0, 2.0]


def test_a_difference_is_filled_where_it_survives_holm_and_has_its_interval():
    _, (ax,) = drawing.panels(1)
    tests = [study.Judged(-1.0, 0.1, 4.0, 3, 0.01, holm, 0.01) for holm in (0.01, 0.2)]
    drawing.intervals(ax, tests, ["sgd", "fpq"])
    assert [line.get_markerfacecolor() for line in ax.lines[1::2]] == [drawing.METHODS["sgd"][1], "white"]
    for row, (bar, mark, test) in enumerate(zip(ax.lines[::2], ax.lines[1::2], tests, strict=True)):
        assert mark.get_xdata() == [-1.0] and mark.get_ydata() == [row] and tuple(bar.get_xdata()) == test.interval


def test_labels_at_the_ends_keep_their_order_and_a_distance():
    _, (ax,) = drawing.panels(1)
    for name, end in (("high", 1.0), ("low", 0.0), ("near", 0.01)):
        ax.plot([0, 0.1], [0.05, end / 10], label=name)
    limits = ax.axis()
    drawing.label_ends(ax, 0.1)
    ax.autoscale_view()
    assert ax.axis() == limits
    places = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert places["high"] > places["near"] > places["low"]
    assert places["near"] - places["low"] == pytest.approx(0.1)


def test_the_profile_of_a_round_bowl_is_its_loss_at_every_distance():
    steps = torch.linspace(-1, 1, 41, dtype=torch.float64)
    loss = torch.exp(steps[:, None] ** 2 + steps**2)
    bowl = landscape.Surface({}, steps, steps, loss, loss, loss)
    distance, found = surfaces.profile(bowl)
    np.testing.assert_allclose(found, np.exp(distance[:, None] ** 2) * np.ones(found.shape), rtol=2e-3)


def test_networks_of_a_profile_are_trained_once_and_alike(tmp_path, monkeypatch):
    monkeypatch.setattr("figures.profiles.RUNS", tmp_path)
    profile = Profile("quick", "digits-resnet8", (0,), 16, 3, (("epochs", 1),))
    model = profile.network("saq3", "W2A2")
    assert model.recipe.sam.rho == 0.1 and model.recipe.epochs == 1  # what the validation split chose at W2A2
    names = {file.name for file in profile.runs.glob("*.pt") if "training" not in file.name}
    assert names == {"digits-resnet8-0.pt", "digits-resnet8-w2a2-saq3-rho0.1-0.pt"}
    again = profile.network("saq3", "W2A2")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    x, y = profile.measured(model)
    assert len(x) == len(y) == 16
    assert profile.experiment("sgd", "W2A4").bits == "W2A4" and profile.experiment("fp32").bits is None
    assert profile.network("saq3", "W3A3").recipe.sam.rho == 0.05  # where none was chosen


class Met(dict):
    """The methods, and which of them were looked up."""

    def __init__(self):
        super().__init__(drawing.METHODS)
        self.names = set()

    def __getitem__(self, name):
        self.names.add(name)
        return super().__getitem__(name)


def lab(colour, seen):
    """Return CIELAB's coordinates of a colour, as somebody sees it: a matrix on linear RGB."""
    rgb = np.array(to_rgb(colour))
    linear = seen @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = np.array([[0.4338, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0177, 0.1095, 0.8728]]) @ linear.clip(0, 1)
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def styles_of(names):
    """Return colour, dash and mark of each method."""
    return {name: (*drawing.METHODS[name][1:], drawing.MARKERS[name]) for name in names}


def check_told_apart(styles):
    """Assert that any two methods differ in hue, also without green cones, and in style."""
    deuteranopia = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])  # Machado 2009
    for (one, (colour, dash, mark)), (other, (its_colour, its_dash, its_mark)) in combinations(styles.items(), 2):
        assert mark != its_mark, (one, other)
        assert dash != its_dash or len(styles) > 5, (one, other)  # there are five dashes; no more meet as lines
        for seen, least in ((np.eye(3), 25), (deuteranopia, 10)):
            assert np.linalg.norm(lab(colour, seen) - lab(its_colour, seen)) > least, (one, other)


def check_print(figure):
    """Assert a width of one column or two, letters of 7 points, and that nothing sticks out."""
    width, height = figure.get_size_inches()
    assert width in (drawing.ONE_COLUMN, drawing.TWO_COLUMNS)
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 7
    box = figure.get_tightbbox()
    assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.01


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_from_what_the_repository_holds(name, tmp_path, monkeypatch):
    stored = catalogue.folder("cpu") / f"{name}.nc"
    assert stored.exists() or FIGURES[name].compute is None, "compute it: python -m figures --profile cpu"
    if stored.exists():
        (tmp_path / stored.name).write_bytes(stored.read_bytes())
    met = Met()
    for module in (asga, dose, drawing, fpq, saq, scatter, surfaces, tables):
        monkeypatch.setattr(module, "METHODS", met, raising=False)
    written = []

    def laid_out(figure, path):
        """Lay the figure out as writing it does, which the figures that are computed anew do."""
        written.append(figure)
        figure.draw_without_rendering()
        return [path.with_suffix(suffix) for suffix in (".pdf", ".png")]

    monkeypatch.setattr(landscape, "save_figure", laid_out)
    files = make(FIGURES[name], PROFILES["cpu"], tmp_path)
    assert all((catalogue.folder("cpu") / file.name).exists() for file in files)
    assert len(written) == ({file.suffix for file in files} == {".pdf", ".png"}) and not plt.get_fignums()
    for figure in written:
        check_print(figure)
        check_told_apart(styles_of(sorted(met.names)))
        rounded = {key: (colour, key, mark) for key, (_, colour, mark) in flatness.METHODS.items()}  # dashes: of what
        check_told_apart(rounded)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder of the networks that the figures share."""
    return tmp_path_factory.mktemp("runs")


def by_networks():
    """Name the figures, those of the same networks as one group, which one process trains once."""
    for part in (saq, asga, sensitivity, fpq, tables, stability, basins):
        group = pytest.mark.xdist_group((asga if part is sensitivity else part).__name__)
        yield from (pytest.param(figure.name, marks=group) for figure in part.FIGURES)


@pytest.mark.alone
@pytest.mark.parametrize("name", list(by_networks()))
def test_every_figure_is_computed_and_drawn_anew_on_two_hundred_images(name, runs, tmp_path, monkeypatch, coarse):
    monkeypatch.setattr("figures.profiles.RUNS", runs)
    for file in make(FIGURES[name], SMOKE, tmp_path, anew=True):
        if file.suffix == ".png":
            ink = plt.imread(file)[..., :3].min(2) < 0.9
            assert ink.mean() > 0.01 and ink.any(0).mean() > 0.5 and ink.any(1).mean() > 0.5
        else:
            assert file.read_bytes().startswith({".pdf": b"%PDF", ".md": b"| ", ".tex": b"\\begin"}[file.suffix])
    data = tmp_path / f"{name}.nc"
    assert data.exists() == (FIGURES[name].compute is not None)
    assert FIGURES[name].compute is None or catalogue.read(data) is not None


def test_the_readme_tells_of_every_figure_and_no_other():
    text = (ROOT / "figures" / "README.md").read_text()
    told = set(re.findall(r"^### `(\w+)`", text, re.MULTILINE))
    assert told == set(FIGURES)
    for link in re.findall(r"\]\(((?:cpu|cifar)/[\w.]+)\)", text):
        assert (ROOT / "figures" / link).exists(), link


def test_the_command_line_lists_figures_and_refuses_others(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["figures"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the module is imported already
        runpy.run_module("figures", run_name="__main__")
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == list(FIGURES)
    monkeypatch.setattr("sys.argv", ["figures", "saq_surface"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "got saq_surface" in capsys.readouterr().err


def test_the_command_line_makes_what_it_is_asked_for(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["figures", "table_bops", "--profile", "smoke", "--anew", "--out", str(tmp_path)])
    main()
    assert {file.name for file in tmp_path.iterdir()} == {f"table_bops{suffix}" for suffix in (".nc", ".md", ".tex")}
    assert capsys.readouterr().out.split()[0] == "table_bops"
