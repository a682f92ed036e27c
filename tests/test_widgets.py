"""The explorer without a front end: setting ``.value`` calls the callbacks, and work is done before it returns."""

import asyncio
import base64
import copy
import html
import json
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from networks import X, Y, convolutional, quantized
from states import assert_same, state, tour
from torch import nn

import landscape
from landscape import explore, load, surface
from landscape.explorer import app, event_loop
from landscape.explorer.study import Study
from landscape.explorer.views import View
from landscape.model.objective import Objective

pytestmark = pytest.mark.usefixtures("coarse")
DATA = (X, Y)
NETWORKS = {"float": convolutional(0), ("W4A4", 0.05): quantized("W4A4"), ("W2A2", 0.05): quantized("W2A2")}
NETWORKS[("W4A4", 0.1)] = quantized("W4A4", quantizer="minmax")


@pytest.fixture
def forwards(monkeypatch):
    """A list that grows by one with every evaluation of a network and every product or gradient's forward pass."""
    seen, loss = [], Objective.loss

    def counted(self, live, batch):
        seen.append(self.model)
        return loss(self, live, batch)

    monkeypatch.setattr(Objective, "loss", counted)
    return seen


def quick(models=None, **settings):
    settings = {"points": 5, "path": "picture"} | settings
    return explore(NETWORKS if models is None else models, DATA, **settings)


def test_one_network_gives_the_surface_of_surface():
    explorer = quick(NETWORKS["float"], span=0.5)
    found = explorer.surfaces["model"]
    expected = surface(NETWORKS["float"], DATA, span=0.5, points=5)
    for name in ("alphas", "betas", "loss", "accuracy", "stderr", "status"):
        assert_same(getattr(expected, name), getattr(found, name))
    assert explorer.view.names == ("model",) and "5 × 5 points · done" in explorer.outputs["said"].value


def test_sliders_choose_among_the_trained_networks():
    explorer = quick(parts=("bits", "ρ"))
    assert list(explorer.surfaces) == ["float", "W4A4, ρ = 0.05"]
    assert [explorer.controls[f"part {n}"].description for n in (1, 2)] == ["bits", "ρ"]
    explorer.controls["part 2"].value = 0.1
    assert list(explorer.surfaces) == ["float", "W4A4, ρ = 0.1"]
    expected = surface(NETWORKS[("W4A4", 0.1)], DATA, points=5)
    assert torch.equal(explorer.surfaces["W4A4, ρ = 0.1"].loss, expected.loss)
    explorer.controls["part 1"].value = "W2A2"
    assert "no network ('W2A2', 0.1)" in explorer.outputs["message"].value
    explorer.controls["part 2"].value = 0.05
    assert list(explorer.surfaces) == ["float", "W2A2, ρ = 0.05"] and explorer.outputs["message"].value == ""


def test_what_was_computed_is_not_computed_again(forwards):
    explorer = quick()
    assert forwards
    there = dict(explorer.surfaces)
    for name, value in (
        ("scale", "log"),
        ("quantity", "accuracy"),
        ("kind", "both"),
        ("slice", 0.5),
        ("axis", 1),
        ("linked", False),
    ):
        forwards.clear()
        explorer.controls[name].value = value
        assert not forwards, name
    explorer.controls["span"].value = 0.5  # a half: the inner points of the coarse grid are there, and the table is
    assert forwards
    explorer.controls["seed"].value = 1
    forwards.clear()
    explorer.controls["seed"].value = 0
    explorer.controls["span"].value = 1.0
    assert not forwards and torch.equal(explorer.surfaces["float"].loss, there["float"].loss)


def test_a_finer_grid_computes_only_the_points_between(forwards):
    explorer = quick(NETWORKS["float"])
    batches = 1
    explorer.controls["numbers"].value = False
    forwards.clear()
    explorer.controls["points"].value = 9
    assert len(forwards) == (81 - 25) * batches
    forwards.clear()
    explorer.controls["span"].value = 2.0  # its 5 × 5 inner points are every second one of before
    assert len(forwards) == 81 - 25
    explorer.controls["span"].value = 1.0
    assert torch.equal(explorer.surfaces["model"].loss, surface(NETWORKS["float"], DATA, points=9).loss)


def test_a_float_network_is_the_same_in_both_spaces(forwards):
    explorer = quick()
    forwards.clear()
    explorer.controls["space"].value = "latent"
    assert {id(model) for model in forwards} == {id(NETWORKS[("W4A4", 0.05)])}
    assert explorer.surfaces["W4A4, 0.05"].about["space"] == "latent"


def test_a_network_that_was_trained_on_is_measured_anew():
    model = convolutional(0)
    explorer = quick(model)
    before = explorer.surfaces["model"].loss
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    assert not explorer.surfaces
    explorer.start()
    assert not torch.equal(explorer.surfaces["model"].loss, before)
    assert torch.equal(explorer.surfaces["model"].loss, surface(model, DATA, points=5).loss)


def test_grids_grow_as_whole_rectangles_that_hold_each_other():
    seen, shapes = set(), []
    for grid in View(("a",), points=9).stages():
        new = set(grid.new.values())
        assert not seen & new
        seen |= new
        assert seen == {(a, b) for a in grid.alphas.tolist() for b in grid.betas.tolist()}
        shapes.append((len(grid.alphas), len(grid.betas)))
    assert shapes[0] == (3, 3) and (5, 5) in shapes and shapes[-1] == (9, 9)


@pytest.fixture
def background(monkeypatch):
    """Make explorers work in steps, as they do in a kernel, but at the test's pace."""
    monkeypatch.setattr(event_loop._TURNS, "join", lambda *_: None)

    def background(explorer):
        explorer._loop = types.SimpleNamespace(call_later=lambda *_: types.SimpleNamespace(cancel=lambda: None))
        return explorer

    return background


def test_stop_keeps_what_is_there_and_go_on_does_the_rest(monkeypatch, forwards, background):
    monkeypatch.setattr(event_loop, "_SLICE", 0.0)  # one step at a time
    model = copy.deepcopy(NETWORKS["float"])
    explorer = background(quick(model))
    before = state(model)
    explorer.controls["points"].value = 17
    for _ in range(41):  # it is asked, and works in 40 steps
        assert explorer.advance()
    explorer.outputs["stop"].click()
    assert not explorer.advance()
    assert_same(before, state(model))
    there = explorer.surfaces["model"]
    assert 5 <= len(there.alphas) < 17 and there.loss.isfinite().all()
    assert "stopped" in explorer.outputs["said"].value and not explorer.advance()
    assert not explorer.outputs["go on"].disabled and explorer.outputs["stop"].disabled
    forwards.clear()
    explorer.outputs["go on"].click()
    explorer.wait()
    assert len(forwards) == 17 * 17 - 25 - 40
    assert torch.equal(explorer.surfaces["model"].loss, surface(model, DATA, points=17).loss)


def test_curvature_goes_on_where_it_was_stopped(forwards):
    view = View(("a",), points=5)
    whole, halved = (Study({"a": NETWORKS["float"]}, DATA) for _ in range(2))
    list(whole.steps(view))
    needed = len(forwards)
    forwards.clear()
    steps = halved.steps(view)
    for _ in range(29):  # 25 points, and some of the products
        next(steps)
    steps.close()
    assert "trace_filter" not in halved.numbers(view)["a"]
    list(halved.steps(view))
    assert len(forwards) == needed
    assert halved.numbers(view)["a"]["trace_filter"] == whole.numbers(view)["a"]["trace_filter"]


def test_curvature_begins_again_after_an_interruption_within_a_product(monkeypatch):
    view, study = View(("a",), points=5), Study({"a": NETWORKS["float"]}, DATA)

    def interrupted(*_):
        yield
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("landscape.explorer.study.trace_and_top.steps", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(study.steps(view))
    assert "trace_filter" not in study.numbers(view)["a"]
    list(study.steps(view))
    assert study.numbers(view)["a"]["trace_filter"].value > 0


def test_the_table_holds_the_numbers_of_compare():
    explorer = quick({"a": NETWORKS["float"], "b": convolutional(1)})
    expected = landscape.compare({"a": NETWORKS["float"], "b": convolutional(1)}, DATA, points=0)
    for name in ("a", "b"):
        for quantity in ("loss", "accuracy", "trace_filter", "lambda1_filter"):
            assert explorer.comparison.value(name, quantity) == pytest.approx(
                expected.value(name, quantity), rel=1e-9, nan_ok=True
            )
    assert "trace, filter-relative" in explorer.outputs["table"].value


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = convolutional(2)

    def forward(self, x):
        raise RuntimeError("no such <layer>")


def test_an_error_in_one_network_is_shown_and_the_others_go_on():
    models = {"good": convolutional(0), "bad": Broken()}
    before = [state(model) for model in models.values()]
    explorer = quick(models)
    assert list(explorer.surfaces) == ["good"]
    assert "bad" in explorer.outputs["message"].value and "no such &lt;layer&gt;" in explorer.outputs["message"].value
    assert_same(before, [state(model) for model in models.values()])
    with pytest.raises(ValueError, match="bad: no such"):
        quick({"bad": Broken()})


def test_nothing_is_left_changed():
    models = {name: copy.deepcopy(model).train() for name, model in NETWORKS.items()}
    before = [state(model) for model in models.values()]
    explorer = quick(models)
    for name, value in (("directions", "eigenvectors"), ("batchnorm", "recomputed"), ("directions", "between")):
        explorer.controls[name].value = value
    assert_same(before, [state(model) for model in models.values()])


def test_between_two_networks_the_way_ends_at_both():
    models = {"a": convolutional(0), "b": convolutional(1)}
    explorer = quick(models)
    explorer.controls["batchnorm"].value = "recomputed"
    explorer.controls["directions"].value = "between"
    found = explorer.surfaces["a → b"]
    assert found.alphas.tolist() == [-0.5, 0.0, 0.5, 1.0, 1.5]
    for place, model in ((1, "a"), (3, "b")):
        there = Objective(models[model], DATA, batchnorm="recomputed").centre.loss.item()
        assert float(found.loss[place, 2]) == pytest.approx(there, rel=1e-9)
    explorer.controls["models"].value = ("a",)
    assert "choose two networks" in explorer.outputs["message"].value


@pytest.mark.parametrize(
    ("directions", "samples"), [("random", 4), ("random", None), ("eigenvectors", None), ("between", 4)]
)
def test_the_code_gives_the_same_numbers(directions, samples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    explorer = quick(samples=samples or 4)
    explorer.controls["samples"].value = samples
    explorer.controls["kind"].value = "both"
    explorer.controls["directions"].value = directions
    names = {"models": NETWORKS, "data": DATA}
    exec(explorer.code(), names)
    assert list(names["surfaces"]) == list(explorer.surfaces)
    for name, found in explorer.surfaces.items():
        torch.testing.assert_close(names["surfaces"][name].loss, found.loss, rtol=1e-9, atol=0, equal_nan=True)
        assert names["surfaces"][name].about["directions"] == found.about["directions"]
    assert {path.name for path in tmp_path.iterdir()} == {
        f"landscape_{k}.{e}" for k in ("3d", "contour") for e in ("pdf", "png")
    }


def test_code_for_one_network_uses_its_own_probe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = convolutional(0)
    model.probe = DATA
    explorer = explore(model, points=5)
    names = {"model": model}
    exec(explorer.code(), names)
    assert torch.equal(names["surfaces"]["model"].loss, explorer.surfaces["model"].loss)


def test_figures_and_data_are_saved(tmp_path):
    explorer = quick(path=tmp_path / "mine")
    explorer.controls["kind"].value = "both"
    explorer.outputs["save figure"].click()
    explorer.outputs["save data"].click()
    assert "mine.nc" in explorer.outputs["message"].value
    kinds = [f"mine_{kind}.{ending}" for kind in ("3d", "contour", "slice") for ending in ("pdf", "png")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kinds, "mine.nc"])
    back = load(tmp_path / "mine.nc")
    assert torch.equal(back.surfaces["float"].loss, explorer.surfaces["float"].loss)
    assert list(back.table) and list(back.lines) == list(explorer.surfaces)


def drawn(explorer, name):
    return json.loads(explorer.picture.cuts["slice"] if name == "slice" else explorer.picture.figures[name])


def numbers(array):
    """Decode an array as plotly writes it."""
    values = np.frombuffer(base64.b64decode(array["bdata"]), array["dtype"])
    return values.reshape([int(n) for n in array.get("shape", "-1").split(",")]).tolist()


def test_the_slice_is_a_row_of_the_surface_and_the_slider_stands_at_it():
    explorer = quick(NETWORKS["float"])
    explorer.controls["slice"].value = 0.6
    assert explorer.controls["slice"].value == 0.5
    found = explorer.surfaces["model"]
    assert numbers(drawn(explorer, "slice")["data"][0]["y"]) == found.loss[:, 3].tolist()
    assert drawn(explorer, "slice")["title"] == "Slice along direction 1, at 0.5 of direction 2"
    explorer.controls["axis"].value = 1
    assert numbers(drawn(explorer, "slice")["data"][0]["y"]) == found.loss[3].tolist()


def test_the_slice_has_the_scale_of_the_surface():
    explorer = quick(NETWORKS["float"])
    for scale in ("log", "linear"):
        explorer.controls["scale"].value = scale
        assert drawn(explorer, "slice")["layout"]["yaxis"]["type"] == scale
        assert ("(log scale)" in drawn(explorer, "3d")["title"]) == (scale == "log")


def quick_of(explorer):
    """Return an explorer that was never in another state, of what another one has measured."""
    other = app.Explorer(explorer.study, {}, (), explorer.view, "picture")
    other.start()
    return other


def test_what_is_drawn_depends_on_what_is_chosen_alone(background):
    """Every ordered pair of views, quantities and scales, and of directions and spaces: as a fresh explorer has it."""
    kinds, shown = ("contour", "both"), [("loss", scale) for scale in ("auto", "linear", "log")]
    pictures = [
        {"models": ("b",), "kind": kind, "quantity": quantity, "scale": scale}
        for kind in kinds
        for quantity, scale in [*shown, ("accuracy", "auto")]
    ]
    planes = [
        {"models": ("a", "b"), "kind": "contour", "directions": directions, "space": space}
        for directions in ("random", "eigenvectors", "between")
        for space in ("quantized", "latent")
    ]
    walked = background(quick({"a": convolutional(0), "b": quantized("W4A4")}))
    walked.controls["numbers"].value = False

    def chosen(state, explorer=walked):
        for name, value in state.items():
            explorer.controls[name].value = value
        explorer.wait()
        return explorer.picture.figures, explorer.picture.cuts

    for states in (pictures, planes):
        alone = [chosen(state, quick_of(walked)) for state in states]
        for order in tour(len(states)):
            assert chosen(states[order]) == alone[order], states[order]


def test_the_camera_and_the_slice_are_saved_as_they_are_seen():
    explorer = quick({"a": convolutional(0), "b": convolutional(1)})
    explorer.picture.cameras = {"scene2": {"eye": {"x": 0.0, "y": 2.0, "z": 2.0}, "center": {"x": 0, "y": 0, "z": 0}}}
    explorer.controls["slice"].value = 0.5
    explorer.controls["scale"].value = "linear"
    first, second, *_ = explorer.draw("3d").axes
    assert (second.azim, second.elev) == pytest.approx((90, 45)) and first.azim != pytest.approx(90)
    line = second.lines[-1].get_data_3d()
    assert set(line[1]) == {0.5} and list(line[2]) == explorer.surfaces["b"].loss[:, 3].tolist()
    explorer.outputs["reset view"].click()
    assert explorer.picture.cameras == {}


def test_each_panel_may_have_its_own_scale():
    explorer = quick({"a": convolutional(0), "b": quantized("W2A2")})
    for kind, name in (("3-D", "3d"), ("contour", "contour")):
        explorer.controls["kind"].value = kind
        explorer.controls["scale"].value = "linear"
        explorer.controls["own scales"].value = True
        layout = drawn(explorer, name)["layout"]
        assert f"landscape.plot_together({{name: surface}}, kind={name!r}, **drawn) for name" in explorer.code()
        for axis, found in zip(("coloraxis", "coloraxis2"), explorer.surfaces.values(), strict=True):
            assert layout[axis]["cmin"] == pytest.approx(float(found.loss.min()))
        explorer.controls["own scales"].value = False
        assert "coloraxis2" not in drawn(explorer, name)["layout"]


def test_captions_and_dimming_say_what_is_seen(monkeypatch, background):
    explorer = background(quick({"a": NETWORKS["float"], "b": NETWORKS["W4A4", 0.05], "c": convolutional(2)}))
    assert "random directions in filter norms, seed 0, span 1" in drawn(explorer, "3d")["caption"]
    assert explorer.picture.busy == ""
    before = explorer.picture.figures
    explorer.controls["directions"].value = "eigenvectors"
    monkeypatch.setattr(event_loop, "_SLICE", 0.0)
    for _ in range(4):
        explorer.advance()
    assert explorer.picture.busy == "computing top eigenvectors …" and explorer.picture.figures == before
    explorer.wait()
    assert "eigenvector 1 and eigenvector 2" in drawn(explorer, "3d")["caption"] and explorer.picture.busy == ""
    explorer.controls["directions"].value = "between"
    explorer.wait()
    assert "at 1 stand the rounded weights of b inside a, not shown: c" in drawn(explorer, "3d")["caption"]


def test_hovering_over_contours_tells_the_values_of_the_point():
    explorer = quick(NETWORKS["float"])
    explorer.controls["kind"].value = "contour"
    trace, found = drawn(explorer, "contour")["data"][0], explorer.surfaces["model"]
    hover = trace["customdata"] if isinstance(trace["customdata"], list) else numbers(trace["customdata"])
    assert hover[3][1][0] == float(found.loss[1, 3])


def test_the_code_is_shown_as_long_as_it_is_asked_for_and_is_current():
    explorer = quick()
    explorer.outputs["show code"].value = True
    for seed in (0, 7):
        explorer.controls["seed"].value = seed
        assert html.escape(explorer.code()) in explorer.outputs["code"].value and f"'seed': {seed}" in explorer.code()
    explorer.outputs["show code"].value = False
    assert explorer.outputs["code"].value == ""


def test_a_page_is_saved_of_all_that_is_measured_alike_with_its_sliders(tmp_path, monkeypatch):
    written = []
    module = types.SimpleNamespace(page=lambda content, path, parts: written.append((content, path, parts)))
    monkeypatch.setitem(sys.modules, "landscape.explorer.offline", module)
    explorer = quick(path=tmp_path / "mine", parts=("bits", "ρ"))
    first, slider = list(explorer.surfaces), explorer.controls["part 1"]
    slider.value = next(value for value in slider.options if value != slider.value)
    explorer.outputs["save page"].click()
    (content, path, parts), measured = written[0], {*first, *explorer.surfaces}
    assert path == tmp_path / "mine.html" and parts == ("bits", "ρ") and len(content.surfaces) == len(measured) > 2
    assert content.surfaces.keys() == content.seeds.keys() <= NETWORKS.keys()


BAD = {
    "a mapping .each value a network .nn.Module.., got 3": (
        {"models": 3},
        TypeError,
    ),
    "a mapping .each value a network .nn.Module.., got {'a': 'b'}": (
        {"models": {"a": "b"}},
        TypeError,
    ),
    "at least one network": ({"models": {}}, ValueError),
    "look different": ({"models": {"1": convolutional(), 1: convolutional()}}, ValueError),
    "same number of parts": ({"models": {("a",): convolutional(), ("a", 1): convolutional()}}, ValueError),
    "points must be one of 5, 9": ({"points": 7}, ValueError),
    "span must be > 0": ({"span": -1.0}, ValueError),
    "samples must be a whole number >= 2": ({"samples": 0}, ValueError),
    "parts must name each of the 2 parts": ({"parts": ("bits",)}, ValueError),
    "carries no probe": ({"data": None}, ValueError),
}


@pytest.mark.parametrize("text", BAD)
def test_bad_input_is_refused_in_words(text):
    settings, kind = BAD[text]
    settings = {"models": NETWORKS, "data": DATA} | settings
    with pytest.raises(kind, match=text):
        explore(settings.pop("models"), settings.pop("data"), **settings)


def test_loss_and_objective_are_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loss = nn.functional.multi_margin_loss
    explorer = quick({"a": NETWORKS["float"]}, loss=loss)
    names = {"models": {"a": NETWORKS["float"]}, "data": DATA, "loss": loss}
    exec(explorer.code(), names)
    assert torch.equal(names["surfaces"]["a"].loss, explorer.surfaces["a"].loss)


def test_in_the_background_messages_come_through_between_steps(monkeypatch):
    """What a kernel does: an event loop that has other things to do, of which one is to press Stop."""
    monkeypatch.setattr(event_loop, "_SLICE", 0.0)

    async def run():
        monkeypatch.setattr(app, "_front_end_loop", asyncio.get_running_loop)
        explorer = quick(NETWORKS["float"], points=65)
        assert explorer.live and not explorer.surfaces
        while "model" not in explorer.surfaces:
            await asyncio.sleep(0.01)
        explorer.outputs["stop"].click()
        while event_loop._TURNS._waiting:
            await asyncio.sleep(0.01)
        there = len(explorer.surfaces["model"].alphas)
        await asyncio.sleep(0.1)
        assert len(explorer.surfaces["model"].alphas) == there < 65 and event_loop._TURNS._task.done()

    asyncio.run(run())


def test_explorers_take_turns_and_all_end_right(monkeypatch):
    async def run():
        monkeypatch.setattr(app, "_front_end_loop", asyncio.get_running_loop)
        explorers = [quick(NETWORKS["float"]), quick({"a": convolutional(1)}), quick(convolutional(2))]
        ended = []
        while len(ended) < 3:
            await asyncio.sleep(0.01)
            ended += [one for one in explorers if one not in ended and "done" in one.outputs["said"].value]
        assert ended == explorers[::-1]
        for explorer in explorers:
            assert drawn(explorer, "3d")["data"] and "5 × 5" in explorer.outputs["said"].value

    asyncio.run(run())


def test_a_static_picture_follows_what_is_seen(monkeypatch, background):
    shown, delayed = [], []

    def display(content, **settings):
        shown.append(content)
        return types.SimpleNamespace(update=lambda bundle, **_: shown.append(bundle)) if settings else None

    monkeypatch.setattr("IPython.display.display", display)
    explorer = background(quick(NETWORKS["float"]))
    explorer._ipython_display_()
    explorer._loop.call_later = lambda _, call: delayed.append(call) or types.SimpleNamespace(cancel=delayed.clear)
    explorer.controls["quantity"].value = "accuracy"
    explorer.controls["slice"].value = 0.5
    explorer.wait()
    (renew,) = delayed
    renew()
    explorer.wait()
    assert shown[0]["text/plain"] == repr(explorer) and len(shown) == 3 and shown[1] != shown[2]
    for bundle in shown[1:]:
        assert base64.b64decode(bundle["image/png"])[1:4] == b"PNG"
        assert "application/vnd.jupyter.widget-view+json" in bundle


def test_without_a_front_end_it_shows_a_static_picture_and_says_so(capsys):
    explorer = quick(NETWORKS["float"])
    assert not explorer.live and repr(explorer) == "Explorer(model: 5×5)"
    explorer._ipython_display_()
    assert "A static picture" in capsys.readouterr().out


def test_an_executed_notebook_ends_with_the_whole_picture(tmp_path):
    source = [
        "import torch, landscape",
        "model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))",
        "data = torch.randn(9, 16), torch.arange(9) % 3",
        "explorer = landscape.explore(model, data, points=9)",
        "explorer.controls['span'].value = 0.5",
        "assert explorer.surfaces['model'].loss.shape == (9, 9)",
        "explorer",
    ]
    cell = {"cell_type": "code", "source": "\n".join(source), "metadata": {}, "outputs": [], "execution_count": None}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path = tmp_path / "notebook.ipynb"
    path.write_text(json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 4}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jupyter's own
        import nbformat
        from nbclient import NotebookClient  # takes seconds

        notebook = nbformat.read(path, 4)
        NotebookClient(notebook, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = notebook["cells"][0]["outputs"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any("A static picture" in "".join(output.get("text", "")) for output in outputs)


def test_an_interruption_keeps_what_is_there(monkeypatch, background):
    explorer = background(quick(NETWORKS["float"]))
    explorer.controls["points"].value = 9

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("landscape.explorer.study.evaluate_points", interrupted)
    explorer.wait()
    assert explorer.surfaces["model"].loss.shape == (5, 5) and "stopped" in explorer.outputs["said"].value
