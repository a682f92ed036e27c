"""A picture for every result, with both libraries and the same options; tables in notebooks; figures in one call."""

import importlib
import inspect
import math
import os

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from matplotlib.figure import Figure
from networks import RAGGED, convolutional

import landscape
from landscape.files import atomic
from landscape.plotting import drawing_function
from landscape.results import Result, plotted

X, Y = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
DATA = [(X[i : i + 4], Y[i : i + 4]) for i in range(0, 24, 4)]


def network(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))


def results():
    model, batches = network(), DATA
    path = landscape.trajectory(model, [network(seed) for seed in (1, 2, 3)], (X, Y))
    found = [
        landscape.line(model, batches, points=5),
        landscape.surface(model, batches, points=5),
        path,
        landscape.trace(model, batches, units="filter"),
        landscape.top_eigenvalues(model, batches, k=3),
        landscape.density(model, batches, k=2, num_probes=2, steps=5, points=50),
        landscape.curvature_at_scale(model, batches, radii=[1e-2]),
        landscape.worst_case_sharpness(model, batches, steps=2),
        landscape.rounding_sharpness(model, batches),
        landscape.sharpness(model, batches, measures=["worst case, filter", "rounding noise"]),
        landscape.sensitivity(model, batches, formats=("W2", "W4")),
        landscape.compare({"a": model, "<b>": network(1)}, batches, points=3, radii=(0.1,)),
        landscape.audit([network(seed).state_dict() for seed in range(3)], model, (X, Y)),
    ]
    found.append(landscape.basin(model, {"a": network(1), "<b>": network(2)}, batches, points=5))
    named = {type(result).__name__: result for result in found}
    named["Trace by layer"] = landscape.trace(model, batches, units="filter", per_layer=True)
    named["Basin, one network"] = landscape.basin(model, {"<b>": network(1)}, batches, points=5)
    named["BatchNormCheck"] = landscape.batchnorm_check(convolutional(), RAGGED)
    return named


RESULTS = results()
PLANE = landscape.surface(network(), (X, Y), directions=RESULTS["Trajectory"], span=((-9, 9), (-9, 9)), points=5)
OPTIONS = {"Trajectory": {"surface": PLANE}}


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def every_result():
    kinds = [Result]
    for kind in kinds:
        kinds += kind.__subclasses__()
    ours = [kind for kind in kinds[1:] if kind.__module__.startswith("landscape.")]
    return {kind for kind in ours if not kind.__subclasses__()}  # what has any is what they share


def test_every_result_has_a_picture():
    assert {type(result) for result in RESULTS.values()} == every_result()
    assert all(kind.picture for kind in every_result())


@pytest.mark.parametrize("kind", sorted({kind.picture for kind in every_result()}))
def test_both_libraries_take_the_same_options(kind):
    options = []
    for how in ("plot", "draw"):
        parameters = inspect.signature(drawing_function(kind, how)).parameters.values()
        options.append([(p.name, p.annotation) for p in parameters if p.kind is p.KEYWORD_ONLY])
    assert options[0] == options[1] and {"scale", "title"} <= {name for name, _ in options[0]}


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_is_drawn_into_new_axes_and_those_of_the_caller(name):
    result, options = RESULTS[name], OPTIONS.get(name, {})
    figure = result.plot(title="mine <", **options)
    assert isinstance(figure, go.Figure) and figure.layout.title.text == "mine <" and len(figure.data)
    drawn = figure._print()  # the picture that stands where no front end draws plotly's: the same options
    assert isinstance(drawn, Figure)
    titles = [drawn.get_suptitle(), *(ax.get_title() for ax in drawn.axes)]
    assert "mine <" in titles
    drawn.canvas.draw()
    if name != "Comparison":
        own, axes = plt.subplots(1, 2)
        axes[0].set_ylabel("mine")
        assert result.draw(axes[0], **options) is own and not axes[1].has_data() and axes[0].has_data()
        assert axes[0].get_ylabel() == "mine" or name == "Trace by layer"


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_every_result_knows_its_scales(name, scale):
    result, options = RESULTS[name], OPTIONS.get(name, {})
    assert result.plot(scale=scale, **options) is not None
    result.draw(scale=scale, **options).canvas.draw()
    with pytest.raises(ValueError, match="scale must be one of 'auto', 'linear', 'log', got 'cubic'"):
        result.plot(scale="cubic", **options)


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_is_a_line_and_in_a_notebook_a_table_with_errors_and_a_caption(name):
    result = RESULTS[name]
    assert "\n" not in repr(result) and repr(result).startswith(type(result).__name__)
    html = result._repr_html_()
    assert html.count("<table") == html.count("<p ") == 1 and html.count("samples") >= 1
    assert ("data:image/png;base64," in html) == (name in ("Line", "Surface"))
    assert len(result.table) and len(result.frame)
    assert not plt.get_fignums()  # a thumbnail is no figure of the caller's


def test_names_are_escaped():
    html = RESULTS["Comparison"]._repr_html_()
    assert "&lt;b&gt;" in html and "<b>" not in html
    titles = [note.text for note in RESULTS["Comparison"].plot().layout.annotations]
    assert any("&lt;b&gt;" in title for title in titles)


def test_a_thumbnail_leaves_the_current_figure_of_the_caller_alone():
    figure = plt.figure()
    RESULTS["Surface"]._repr_html_()
    assert plt.gcf() is figure and not figure.axes


# where no front end draws plotly's pictures


def test_every_function_that_plots_has_a_picture_for_print_with_its_options():
    line, layers = {"a": RESULTS["Line"]}, {"a": 1.0, "b": 2.0}
    figures = [landscape.plot_together(line, value="accuracy"), landscape.plot_layers(layers, quantity="q")]
    figures += [landscape.plot_history({"accuracy": [0.1, 0.2]}), RESULTS["Comparison"].plot_lines(value="accuracy")]
    labels = [figure._print().axes[0].get_ylabel() for figure in figures]
    assert labels == ["Accuracy", "q", "Accuracy", "Accuracy"]
    deep, flat = (RESULTS["Surface"].plot(kind=kind)._print().axes[0].name for kind in ("3d", "contour"))
    assert (deep, flat) == ("3d", "rectilinear")
    assert not [
        module for module in CHARTS for name in dir(module) if name.startswith("plot_") and not paired(module, name)
    ]


CHARTS = [
    importlib.import_module(f"landscape.plotting.{name}")
    for name in ("courses", "history", "layers", "lines", "radii", "spectra", "surfaces", "trajectories")
]


def paired(module, name):
    function = getattr(module, name)
    return hasattr(function, "__wrapped__") and hasattr(inspect.getmodule(function), name.replace("plot_", "draw_"))


def test_pages_scroll_under_the_wheel_and_home_is_the_own_camera(tmp_path):
    figure = RESULTS["Surface"].plot()
    figure.write_html(tmp_path / "a.html", include_plotlyjs=False)
    for text in (figure.to_html(include_plotlyjs=False), (tmp_path / "a.html").read_text()):
        assert '"scrollZoom": false' in text and '"displaylogo": false' in text and "resetCameraDefault3d" in text
    assert '"displaylogo": true' in figure.to_html(include_plotlyjs=False, config={"displaylogo": True})
    assert figure.layout.paper_bgcolor is None and "rgba(0, 0, 0, 0)" in str(
        figure.layout.template.layout.paper_bgcolor
    )


NOTEBOOK = """
import torch, landscape
from landscape import progress
progress._DELAY = 0
data = torch.randn(16, 3), torch.arange(16) % 2
landscape.plot_line(torch.nn.Linear(3, 2), data, points=5)
---
from IPython.display import display
display(landscape.plot_surface(torch.nn.Linear(3, 2), data, points=3))
landscape.top_eigenvalues(torch.diag(torch.arange(400.0)), k=1);
progress.announce(30, 60.0, 1e9, 2e9)
---
list(progress.progress(iter(range(3)), "unknown"))
for _ in progress.progress(range(9), "early"):
    break
try:
    for _ in progress.progress(range(9), "failing"):
        1 / 0
except ZeroDivisionError:
    pass
---
monitor, drawn = landscape.Monitor(torch.nn.Linear(3, 2), (torch.randn(16, 3), torch.arange(16) % 2)), []
monitor._affords = lambda quantity: quantity == "loss" or quantity == "picture" and len(monitor.rows) == 1
monitor.draw = lambda: (drawn.append(len(monitor.rows)), landscape.Monitor.draw(monitor))[1]
for _ in range(3):
    monitor.step()
---
assert drawn == [1, 3], drawn  # the last when the cell had ended
"""


def test_a_notebook_that_no_front_end_ran_has_pictures_and_no_rest_of_a_bar(monkeypatch):
    nbformat, exporters = pytest.importorskip("nbformat"), pytest.importorskip("nbconvert.exporters")
    from nbclient import NotebookClient

    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in NOTEBOOK.split("---")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=120).execute()
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    assert {output.get("name") for output in outputs} <= {None, "stdout"}  # stderr is a red box
    assert [o.text for o in outputs if o.output_type == "stream"] == [
        "ahead: about 30 matrix-vector products, 1 min 0 s; graphs hold 1.0 GB, vectors 2.0 GB\n"
    ]
    shown = [output.data for output in outputs if "data" in output and any(output.data.values())]
    interactive = [data for data in shown if "application/vnd.plotly.v1+json" in data]
    assert len(interactive) == 2 and all("image/png" in data for data in interactive)
    assert all(data["application/vnd.plotly.v1+json"]["config"]["scrollZoom"] is False for data in interactive)
    assert "widget" not in str([list(data) for data in shown]) and "early" not in str(shown) + str(outputs)
    page, _ = exporters.HTMLExporter().from_notebook_node(notebook)
    assert page.count("<img") == 3  # the monitor's, too


def test_a_front_end_that_asks_gets_the_plot_alone(monkeypatch):
    from landscape.plotting import interactive

    figure = RESULTS["Line"].plot()
    assert "image/png" in figure._repr_mimebundle_()
    monkeypatch.setattr(interactive, "asked", lambda: True)
    assert "image/png" not in figure._repr_mimebundle_()


# what is in the new pictures


def test_a_trace_shows_its_probes_and_the_mean_so_far():
    trace = RESULTS["Trace"]
    band, probes, mean = trace.plot().data
    samples = trace.samples.numpy()
    assert list(probes.y) == samples.tolist() and list(probes.x) == list(range(1, len(samples) + 1))
    assert mean.y[2] == pytest.approx(samples[:3].mean()) and mean.y[-1] == pytest.approx(trace.value)
    assert np.nanmax(band.y[np.asarray(band.x) == len(samples)]) == pytest.approx(trace.value + trace.stderr)
    (ax,) = trace.draw().axes
    assert ax.lines[1].get_ydata()[-1] == pytest.approx(trace.value) and "filter-relative" in ax.get_ylabel()


def test_a_trace_by_layer_is_bars_without_what_does_not_vary():
    trace = RESULTS["Trace by layer"]
    (bars,) = trace.plot().data
    assert list(bars.x) == ["0.weight", "2.weight"] and list(bars.y) == [trace.layers[name][0] for name in bars.x]
    assert list(bars.error_y.array) == [trace.layers[name][1] for name in bars.x]
    assert "2 tensors at zero are left out" in trace.plot().layout.title.subtitle.text
    figure = trace.draw()
    assert [bar.get_height() for bar in figure.axes[0].patches] == list(bars.y)
    assert "left out" in figure.get_supxlabel() and "samples" in figure.get_supxlabel()


def test_eigenvalues_have_errors_over_the_data_and_are_hollow_where_not_converged():
    top = RESULTS["Eigenvalues"]
    points = [trace for trace in top.plot().data if trace.mode == "markers"]
    assert np.concatenate([trace.y for trace in points]).tolist() == top.values.tolist()
    assert points[0].error_y.array[0] == pytest.approx(float(top.stderr_data[0])) and points[0].error_y.array[0] > 0
    few = landscape.top_eigenvalues(torch.diag(torch.arange(40.0)), k=3, max_products=5)
    assert not few.converged.all() and "not converged" in {trace.name for trace in few.plot().data}
    labels = few.draw().axes[0].get_legend_handles_labels()[1]
    assert "not converged" in labels


def test_loss_increases_have_errors_over_draws_and_data():
    sharpness, rounding = RESULTS["Sharpness"], RESULTS["RoundingSharpness"]
    (curve,) = sharpness.plot().data
    assert list(curve.x) == sharpness.radii.tolist() and list(curve.y) == sharpness.delta_loss.tolist()
    np.testing.assert_allclose(curve.error_y.array, sharpness.stderr_data)  # the worst case has no draws
    noise, rounded = rounding.plot().data
    assert list(noise.x) == ["8 bits", "4 bits", "3 bits", "2 bits"] and list(rounded.y) == rounding.rounded.tolist()
    np.testing.assert_allclose(noise.error_y.array, torch.hypot(rounding.stderr, rounding.stderr_data))
    (ax,) = rounding.draw().axes
    assert [container.get_label() for container in ax.containers] == [noise.name, rounded.name]


def test_a_table_of_measures_is_a_row_each():
    table = RESULTS["SharpnessTable"]
    (points,) = table.plot().data
    assert list(points.x) == [row["value"] for row in table.rows] and points.y[0] == "worst case, filter, r = 0.005"
    (ax,) = table.draw().axes
    assert [text.get_text() for text in ax.get_yticklabels()] == list(points.y)


def test_a_batchnorm_check_is_two_curves():
    check = RESULTS["BatchNormCheck"]
    curves = {trace.name: trace.y.tolist() for trace in check.plot().data if trace.name}
    assert curves == {
        "fixed statistics": check.fixed.tolist(),
        "recomputed at every point": check.recomputed.tolist(),
    }


# histories


def test_a_history_has_a_panel_for_loss_and_one_for_accuracy():
    pandas = pytest.importorskip("pandas")
    columns = {
        "epoch": [1, 2, 3],
        "loss": [40.0, 5.0, 1.0],
        "val_loss": [30.0, 6.0, math.nan],
        "accuracy": [0.1, 0.5, 1],
    }
    for history in (columns, pandas.DataFrame(columns)):
        figure, drawn = landscape.plot_history(history), landscape.draw_history(history, title="mine")
        assert [(trace.name, list(trace.x)) for trace in figure.data] == [
            ("training", [1, 2, 3]),
            ("validation", [1, 2, 3]),
            ("training", [1, 2, 3]),
        ]
        assert figure.layout.yaxis.type == "log" and figure.layout.yaxis2.type == "linear"
        assert [ax.get_ylabel() for ax in drawn.axes] == ["Loss", "Accuracy"] and drawn.axes[0].get_yscale() == "log"
        assert drawn.get_suptitle() == "mine"
    both = landscape.plot_history({"A": columns, "B": columns}, scale="linear")
    assert len(both.data) == 6 and both.layout.yaxis.type == "linear"
    assert len({trace.line.color for trace in both.data}) == 2 and both.data[2].name == "B, training"


def test_a_history_goes_into_the_axes_of_the_caller():
    figure, axes = plt.subplots(1, 2)
    assert landscape.draw_history({"loss": [1.0, 2.0]}, axes[1]) is figure and not axes[0].has_data()
    with pytest.raises(ValueError, match="axes must be 1, for loss, got 2"):
        landscape.draw_history({"loss": [1.0, 2.0]}, axes)
    with pytest.raises(ValueError, match="history must have a column loss, accuracy, val_loss or val_accuracy"):
        landscape.plot_history({"lr": [0.1]})


# in one call


@pytest.mark.parametrize(
    "name", ["line", "surface", "trace", "top_eigenvalues", "density", "curvature_at_scale", "sharpness"]
)
def test_plot_x_has_the_parameters_and_the_documentation_of_x(name):
    measure, plot = getattr(landscape, name), getattr(landscape, f"plot_{name}")
    assert inspect.signature(plot).parameters == inspect.signature(measure).parameters
    assert inspect.signature(plot).return_annotation == "go.Figure"
    assert plot.__name__ == f"plot_{name}" and inspect.getdoc(measure).split("\n")[0] in plot.__doc__


def test_plot_x_is_x_plot():
    assert (
        landscape.plot_line(network(), DATA, points=3).to_json()
        == landscape.line(network(), DATA, points=3).plot().to_json()
    )
    assert plotted(landscape.density).__wrapped__ is landscape.density


# files


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with atomic(path) as scratch:
        assert str(os.getpid()) in scratch.name and not path.exists()
        scratch.write_text("whole")
    assert path.read_text() == "whole" and [file.name for file in path.parent.iterdir()] == ["file.txt"]
    with pytest.raises(KeyboardInterrupt), atomic(path) as scratch:
        scratch.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "whole" and [file.name for file in path.parent.iterdir()] == ["file.txt"]
    with pytest.raises(FileNotFoundError), atomic(path):
        pass
