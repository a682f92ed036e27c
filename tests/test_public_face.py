"""What a user sees of the packages: their names, options, examples, and results as a line, a table and a picture."""

import doctest
import importlib
import inspect
import pathlib
import pkgutil
import sys
import warnings
from dataclasses import asdict
from types import SimpleNamespace
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

import landscape
import saq_core
from saq_core import (
    FPQ,
    SAM,
    SAQ,
    Description,
    Experiment,
    FeatureNoisePenalty,
    History,
    Policy,
    Recipe,
    describe,
    quantize,
)
from saq_core.training.history import HEIGHT

OBJECTS = [
    (package, name)
    for package in (landscape, saq_core)
    for name in package.__all__
    if not isinstance(getattr(package, name), dict)
]


@pytest.mark.parametrize(("package", "name"), OBJECTS, ids=[f"{p.__name__}.{name}" for p, name in OBJECTS])
def test_the_example_of_every_public_object_runs(package, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where examples may write
    found = getattr(package, name)
    names = vars(sys.modules[found.__module__]).copy()
    examples = doctest.DocTestParser().get_doctest(inspect.getdoc(found), names, name, None, 0)
    assert examples.examples
    report = []
    failed, _ = doctest.DocTestRunner().run(examples, out=report.append)
    plt.close("all")
    assert not failed, "".join(report)


def test_the_examples_of_what_a_wing_keeps_for_itself_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report, ran = [], set()
    for package in (landscape, saq_core):
        for entry in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if entry.name.endswith("__main__"):
                continue
            module = importlib.import_module(entry.name)
            for examples in doctest.DocTestFinder(exclude_empty=True).find(module):
                name = examples.name.removeprefix(f"{entry.name}.").partition(".")[0]
                if examples.examples and name not in package.__all__:
                    doctest.DocTestRunner().run(examples, out=report.append)
                    ran.add(name)
    assert not report and {"top_pair", "lanczos"} <= ran, "".join(report)


@pytest.mark.parametrize("package", [landscape, saq_core])
def test_dir_shows_the_public_names_alone(package):
    assert set(dir(package)) == {*package.__all__, "__version__"} and package.__version__
    assert all(hasattr(package, name) for name in dir(package))
    assert (pathlib.Path(package.__file__).parent / "py.typed").exists()


def results():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    sam = SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.1)
    rows = [{"epoch": k + 1, "loss": 1 / (k + 1), "val_loss": 2 / (k + 1), "<b>": 0} for k in range(4)]
    return {
        "SAM": sam,
        "Description": describe(model, (4,)),
        "History": History(rows),
        "Policy": Policy({"<b>": "W4A4"}, 10, 0.1, "uniform", 20.0),
        "Recipe": Recipe(epochs=3, lr=0.1, sam=SAQ(case=2)),
        "Experiment": Experiment("<b>", "digits", "resnet8", Recipe(epochs=1, lr=0.1)),
        "FeatureNoisePenalty": FeatureNoisePenalty(0.1, 0.0, 0.1, 0.0, {}, 0.1, 2, 0.0),
    }


@pytest.mark.parametrize("kind", list(results()))
def test_results_are_one_line_a_table_and_escaped_in_a_notebook(kind):
    result = results()[kind]
    assert repr(result).startswith(f"{kind}(") and "\n" not in repr(result) and len(repr(result)) < 200
    assert len(result.frame) == {"SAM": 4, "History": 4, "FeatureNoisePenalty": 0}.get(kind, len(result.frame))
    html = result._repr_html_()
    assert "<table" in html and "<b>" not in html
    ElementTree.fromstring(f"<div>{html}</div>")  # well formed


def test_a_repr_of_settings_makes_them_again():
    recipe = Recipe(epochs=3, lr=0.1, sam=SAQ(0.1, case=2), mix="cutmix")
    assert repr(recipe) == "Recipe(epochs=3, lr=0.1, sam=SAQ(rho=0.1, case=2), mix='cutmix')"
    assert eval(repr(recipe), {"Recipe": Recipe, "SAQ": SAQ}) == recipe
    frame = recipe.frame.set_index("setting")["value"]
    assert frame["sam"] == "SAQ(rho=0.1, case=2)" and frame["momentum"] == "0.9"


def curves(history):
    """Return name -> pieces of the curve in the picture, each (x, y) points in pixels."""
    svg = ElementTree.fromstring(history._picture())
    pieces = {p[0].text: [piece for piece in p.get("d").split("M") if piece] for p in svg.findall("path")}
    return {n: [[tuple(map(float, at.split())) for at in one.split("L")] for one in p] for n, p in pieces.items()}


def test_the_picture_of_a_history_has_two_curves_with_gaps():
    losses = [4.0, 3.0, float("nan"), 2.0, 1.0]
    history = History([{"epoch": k + 1, "loss": x, "val_loss": 5.0 - k} for k, x in enumerate(losses)])
    found = curves(history)
    assert [len(piece) for piece in found["loss"]] == [2, 2] and [len(piece) for piece in found["val_loss"]] == [5]
    (_, top), (_, bottom) = found["val_loss"][0][0], found["loss"][1][1]
    assert top == 4 and bottom == HEIGHT - 4  # the largest and the smallest value
    assert not History()._picture() and not History([{"epoch": 1, "loss": 1.0}])._picture()
    history._repr_html_()


def test_a_history_can_be_plotted_and_drawn():
    history = results()["History"]
    traces = history.plot().data
    assert [trace.name for trace in traces] == ["training", "validation"]
    assert list(traces[0].x) == [1, 2, 3, 4] and list(traces[0].y) == [1, 1 / 2, 1 / 3, 1 / 4]
    figure = history.draw()
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["training", "validation"]
    assert list(lines[1].get_ydata()) == [2, 1, 2 / 3, 1 / 2]
    mine, ax = plt.subplots()
    assert history.draw(ax) is mine and len(ax.get_lines()) == 2
    plt.close("all")


def test_settings_are_refused_in_words_and_keep_no_number_of_numpy():
    for settings, message in (
        ({"epochs": 0}, "epochs must be a whole number >= 1, got 0"),
        ({"epochs": True}, "epochs must be a whole number, got True"),
        ({"lr": float("nan")}, "lr must be >= 0 and finite, got nan"),
        ({"lr": "1"}, "lr must be a number, got '1'"),
        ({"label_smoothing": 1}, "label_smoothing must be from 0 to below 1, got 1"),
        ({"optimizer": "lion"}, "optimizer must be one of 'sgd', 'adamw' or a function of 1 argument, got 'lion'"),
    ):
        with pytest.raises(ValueError) as caught:
            Recipe(**{"epochs": 1, "lr": 0.1, **settings})
        assert str(caught.value) == message
    recipe = Recipe(epochs=np.int64(2), lr=np.float32(0.5), clip_norm=np.float64(1), micro_batch=None)
    kinds = {type(getattr(recipe, name)) for name in ("lr", "clip_norm", "momentum")}
    assert kinds == {float} and type(recipe.epochs) is int and recipe.micro_batch is None


def test_recurrent_layers_count_by_formula():
    for kind, gates in ((nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)):
        model = kind(5, 7, num_layers=2, bidirectional=True, batch_first=True)
        found = describe(model, (3, 5))
        first, second = 2 * gates * 7 * (5 + 7), 2 * gates * 7 * (14 + 7)
        assert found.macs == 3 * (first + second) and isinstance(found, Description)
        assert found.layers[0].parameters == found.parameters == sum(p.numel() for p in model.parameters())
    projecting = nn.LSTM(5, 7, proj_size=3, batch_first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of a slower kernel
        assert describe(projecting, (3, 5)).macs == 3 * (4 * 7 * (5 + 3) + 3 * 7)


def test_a_layer_under_two_names_counts_once():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert [(row.name, row.macs) for row in describe(model, (4,)).layers] == [("0", 32)]
    assert describe(quantize(model, "W4A4", first_last_bits=None), (4,)).bops == 32 * 4 * 32


def test_recipes_of_old_files_are_read():
    recipe = Recipe(epochs=2, lr=0.1, fpq=FPQ(p=0.5), sam=SAQ(rho_range=(0.01, 0.1)))
    stored = asdict(recipe)
    stored["fpq"] |= {"placement": "post", "statistics": "batch"}  # which had other values then
    assert Recipe.from_dict(stored) == recipe
    assert Recipe.from_dict({"epochs": 2, "lr": 0.1}) == Recipe(2, 0.1)


def test_whatever_carries_a_probe_calibrates():
    x = torch.rand(16, 4)
    layers = [nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)]
    given = [
        saq_core.calibrate(quantize(nn.Sequential(*layers), "W4A4"), data)
        for data in (SimpleNamespace(probe=(x, x)), x)
    ]
    assert torch.equal(*(model[2].input_quantizer.step for model in given))
