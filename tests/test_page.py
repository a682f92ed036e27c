"""The page that can be sent: its numbers, its policy, its names, what it refuses; a browser is in tests/browser."""

import base64
import dataclasses
import gzip
import hashlib
import html.parser
import json
import math
import os
import re
import tomllib
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import landscape
from landscape import page

DATA = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
HOSTILE = "</script><img src=x onerror=alert(1)>"


def surface(seed=0, points=5, span=1.0, about=None, **changed):
    """Return a surface without measuring one."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-span, span, points, dtype=torch.float64)
    loss = 0.01 + axis[:, None] ** 2 + axis**2 + 0.1 * torch.rand(points, points, generator=generator)
    axes = [{"kind": "random", "normalize": "filter"}] * 2
    known = {"space": "quantized", "samples": 24, "directions": "random", "axes": axes, "seed": 0, "torch": "2.0"}
    columns = {"loss": loss, "accuracy": (24 - 6 * loss).round().clamp(0, 24) / 24, "stderr": loss / 10} | changed
    return landscape.Surface(known | (about or {}), axis, axis, **columns)


def curve():
    line = torch.linspace(-1, 1, 5)
    return landscape.Line({}, line, line**2, torch.full((5,), math.nan))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).eval()


@pytest.fixture(scope="module")
def comparison():
    return landscape.compare({"FP32": network(), "W2A2": network(1)}, DATA, points=3, rtol=0.5, radii=(0.01,))


class Document(html.parser.HTMLParser):
    """What a browser would make of a page: tags, the text of some, attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open, self.attributes = [], {}, None, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.open = f"{tag}#{dict(attributes).get('id', '')}".rstrip("#")

    def handle_data(self, data):
        self.texts[self.open] = self.texts.get(self.open, "") + data


def document(path):
    return Document(Path(path).read_text("utf-8"))


def numbers(path):
    """Return what the page's script reads: the JSON, and name → array of each network."""
    shown = json.loads(document(path).texts["script#data"])
    sorted_bytes = np.frombuffer(gzip.decompress(base64.b64decode(shown["block"])), np.uint8)
    flat = sorted_bytes.reshape(4, -1).T.copy().view("<f4").ravel()
    arrays = np.split(flat, np.cumsum(shown["lengths"])[:-1])
    return shown, {n["name"]: {k: arrays[i] for k, i in n["values"].items()} for n in shown["networks"]}


def test_the_numbers_of_a_page_are_those_of_the_frame(tmp_path):
    broken = surface(1)
    broken.loss[1, 2], broken.loss[3, 3] = math.nan, math.inf
    surfaces = {"a": surface(), "b": broken, "c": surface(2, accuracy=torch.full((5, 5), math.nan), stderr=None)}
    shown, arrays = numbers(page(surfaces, tmp_path / "x"))
    for name, given in surfaces.items():
        frame = given.frame.astype("float32")
        for column in ("loss", "accuracy") if name != "c" else ("loss",):
            np.testing.assert_array_equal(arrays[name][column], frame[column])
        if name != "c":
            np.testing.assert_allclose(arrays[name]["stderr"], frame["stderr"], rtol=3e-4)
    assert set(arrays["c"]) == {"loss"}
    grid = shown["grids"][0]
    alphas, betas = np.meshgrid(grid["x"], grid["y"], indexing="ij")
    assert [*alphas.ravel()] == [*given.frame["alpha"]] and [*betas.ravel()] == [*given.frame["beta"]]


def test_the_policy_allows_the_pages_own_script_and_nothing_else(tmp_path):
    content = Path(page(surface(), tmp_path / "x.html")).read_text("utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', content)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and set(rules) == {
        "default-src",
        "script-src",
        "style-src",
        "base-uri",
        "form-action",
    }
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", content, re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    found = document(tmp_path / "x.html")
    assert not {"link", "img", "iframe", "object", "base"} & {*found.tags}
    assert not [name for name, _ in found.attributes if name in ("src", "href", "style") or name.startswith("on")]
    assert "{{" not in content and not re.search(r"\b(fetch|XMLHttpRequest|import)\b\s*\(", content)


def test_hostile_names_stay_text(tmp_path):
    title = "</title><script>alert(1)</script> {{DATA}} &amp;"
    written = page({HOSTILE: surface(), "{{SCRIPT}}\u2028": surface(1)}, tmp_path / "x", title=title)
    found = document(written)
    assert found.tags.count("script") == 2 and "img" not in found.tags
    assert found.texts["title"].strip() == title and found.texts["h1"].strip() == title
    raw = re.search(r'id="data">(.*?)</script>', written.path.read_text("utf-8"), re.S)[1]
    assert not re.search("[<>&\u2028]", raw)
    assert list(numbers(written)[1]) == [HOSTILE, "{{SCRIPT}}\u2028"]
    assert HOSTILE not in written._repr_html_()


def test_a_page_is_small_and_the_same_twice(tmp_path):
    twelve = {f"network {k}": surface(k, points=65) for k in range(12)}
    sizes = [page(twelve, tmp_path / name).path.stat().st_size for name in "ab"]
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sizes[0] < 500_000 and page({"a": surface(points=25)}, tmp_path / "one").path.stat().st_size < 100_000


def test_tuples_become_parts_and_what_is_the_same_stands_once(tmp_path):
    float_, keys = surface(), [("SGD", "W2A2"), ("SAQ", "W2A2"), ("SAQ", "W4A4")]
    content = {("SGD", "FP32"): float_, ("SAQ", "FP32"): float_} | {k: surface(i + 1) for i, k in enumerate(keys)}
    shown, _ = numbers(page(content | {"reference": surface(9)}, tmp_path / "x"))
    networks = {n["name"]: n["keys"] for n in shown["networks"]}
    assert networks.pop("FP32") == [[0, 0], [1, 0]] and networks.pop("reference") is None
    assert networks == {"SGD · W2A2": [[0, 1]], "SAQ · W2A2": [[1, 1]], "SAQ · W4A4": [[1, 2]]}
    parts = [{"name": "", "values": ["SGD", "SAQ"]}, {"name": "bits", "values": ["FP32", "W2A2", "W4A4"]}]
    assert shown["parts"] == parts and shown["slider"] == 1 and shown["slides"]
    shown, _ = numbers(page(content, tmp_path / "x", parts=("training", "b")))
    assert [part["name"] for part in shown["parts"]] == ["training", "b"]
    plain, _ = numbers(page({"a": surface(), "b": surface(1, points=7)}, tmp_path / "x"))
    assert plain["slider"] == -1 and not plain["slides"]  # side by side they may have grids of their own


def test_loss_is_logarithmic_where_it_spans_more_than_thirty(tmp_path):
    assert numbers(page(surface(span=0.1), tmp_path / "x"))[0]["start"] == "loss"
    assert numbers(page(surface(span=3), tmp_path / "x"))[0]["start"] == "log"


def test_a_comparison_brings_table_errors_verdict_methods_and_sources(comparison, tmp_path):
    written = page(comparison, tmp_path / "x")
    content = written.path.read_text("utf-8")
    shown, _ = numbers(written)
    for entry in shown["networks"]:
        for quantity in ("trace_filter", "lambda1_filter", "accuracy"):
            value, error = comparison.value(entry["name"], quantity)
            assert entry["numbers"][quantity] == [value, None if math.isnan(error) else error]
        assert entry["numbers"]["bits"] == [{"FP32": 32, "W2A2": 2}[entry["name"]], None]
    assert [name for name, _ in shown["overview"]["x"]] == ["trace_filter", "lambda1_filter", "bits"]
    assert content.count('<line class="error"') == 2 * 6 and "At the centre, the largest and the smallest: " in content
    assert "seed 0" in content and "24 samples" in content and "float weights" in content.lower()
    for source in ("li2018visualizing", "hutchinson1989stochastic", "foret2021sharpness"):
        assert source in content
    assert "lorch2016" not in content and "bengio2013" not in content
    for label in comparison.table.index:
        assert str(label).replace("&", "&amp;") in content


def test_what_is_interpolated_is_said(tmp_path):
    about = {"interpolation_error": 0.01, "interpolation_error_of": "log-loss", "evaluated": 9}
    content = page(surface(about=about), tmp_path / "x").path.read_text("utf-8")
    assert "interpolated from 9 measured points, error ≤ 1 % of the log-loss range" in content.lower()
    assert "duchon1977splines" in content


def test_networks_are_measured_each_once(tmp_path, monkeypatch):
    from landscape.explorer import offline

    asked = []

    def compare(models, data):
        asked.append((dict(models), data))
        return landscape.compare(models, data, points=3, rtol=0.5, radii=(0.01,))

    monkeypatch.setattr(offline, "compare", compare)
    one, other = network(), network(1)
    content = {("SGD", "FP32"): one, ("SAQ", "FP32"): one, ("SAQ", "W2A2"): other}
    shown, _ = numbers(page(content, tmp_path / "x", data=DATA))
    assert [(list(models.values()), data) for models, data in asked] == [([one, other], DATA)]
    assert [n["name"] for n in shown["networks"]] == ["FP32", "SAQ · W2A2"]
    shown, _ = numbers(page(landscape.Objective(one, DATA), tmp_path / "x"))
    assert [n["name"] for n in shown["networks"]] == ["network"]


def test_a_comparison_without_surfaces_and_several_comparisons(comparison, tmp_path):
    bare = dataclasses.replace(comparison, surfaces={}, lines={})
    shown, _ = numbers(page(bare, tmp_path / "x"))
    assert [n["grid"] for n in shown["networks"]] == [None, None] and shown["lengths"] == []
    shown, _ = numbers(page({"epoch 1": comparison, "epoch 2": comparison.select("W2A2")}, tmp_path / "x"))
    keys = {n["name"]: n["keys"] for n in shown["networks"]}
    assert keys == {"epoch 1 · FP32": [[0, 0]], "W2A2": [[0, 1], [1, 1]]}


def test_a_trajectory_lies_on_the_surface_of_its_plane(tmp_path):
    model = network()
    path = landscape.trajectory(model, [network(1), network(2), model], DATA)
    plane = landscape.surface(model, DATA, directions=path, span=path.span(), points=5)
    written = page({"network": plane, "training": path}, tmp_path / "x")
    shown, _ = numbers(written)
    (entry,) = shown["networks"]
    assert set(entry["path"]) == {"x", "y", "loss", "plane", "off", "distance"} and entry["name"] == "network"
    assert "lorch2016visualizing" in written.path.read_text("utf-8") and "loss" in entry["note"]
    for content in (path, {"a": surface(), "training": path}):
        with pytest.raises(
            ValueError, match="content must hold the surface over the plane of the trajectory 'training'"
        ):
            page(content, tmp_path / "y")


def test_any_other_result_is_a_picture_and_a_table(tmp_path):
    trace = landscape.trace(network(), DATA)
    basin = landscape.basin(network(), {"<b>": network(1), "a": network(2)}, DATA, points=5)
    written = page({"the <trace>": trace, "W2": basin}, tmp_path / "x")
    text = written.path.read_text("utf-8")
    images = re.findall(r'<img class="print" alt="(.*?)" src="data:image/png;base64,(.*?)">', text)
    assert [alt for alt, _ in images] == ["the &lt;trace&gt; · Trace"] + 3 * ["W2 · Basin"]
    assert all(base64.b64decode(image).startswith(b"\x89PNG") for _, image in images)
    assert "img-src data:;" in text and "&lt;b&gt;" in text and "<b>" + "</th>" not in text and " style=" not in text
    assert [n["name"] for n in numbers(written)[0]["networks"]] == ["W2"]  # the plane
    alone = page(landscape.sensitivity(network(), DATA, formats=("W2",)), tmp_path / "y").path.read_text("utf-8")
    assert "img-src data:;" in alone and "img-src" not in page(surface(), tmp_path / "z").path.read_text("utf-8")


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ({}, {}, "content must hold at least one network or result, got none"),
        (3, {}, "content must be networks, results, .* got int"),
        ({"a": surface(), "b": "text"}, {}, "content must be networks, results, .* got str"),
        ([network()], {}, "content must be networks, .* got list"),
        ({"a": surface(), "b": network()}, {}, "content must hold networks or results, got both"),
        ({1: surface(), "1": surface()}, {}, "content must have names that look different, got '1' twice"),
        ({1: curve(), "1": curve()}, {}, "content must have names that look different, got '1' twice"),
        ({("a", 1): surface(), ("b",): surface()}, {}, r"same number of parts, got \[1, 2\]"),
        ({("a", 1): surface()}, {"parts": ("x",)}, r"parts must name each of the 2 parts .* got \('x',\)"),
        (surface(), {"data": DATA}, "data must be None where content holds results"),
        (
            {("a", 1): surface(), ("a", 2): surface(points=7)},
            {},
            "same steps where names are tuples, .* got 5 from -1 to 1 × 5 .* of 'a · 1' and 7 from .* of 'a · 2'",
        ),
    ],
)
def test_what_makes_no_page_is_refused(content, settings, message, tmp_path):
    with pytest.raises((ValueError, TypeError), match=message):
        page(content, tmp_path / "x", **settings)
    assert not list(tmp_path.iterdir())


def test_a_page_is_a_path_and_shows_itself_in_a_frame_over_a_picture(tmp_path):
    written = page({"a": surface(), "b": surface(1)}, tmp_path / "deep" / "x")
    assert os.fspath(written) == str(tmp_path / "deep" / "x.html") and Path(written).exists()
    assert repr(written).startswith("Page('") and "2 surfaces" in repr(written)
    found = Document(written._repr_html_())
    attributes = dict(found.attributes)
    assert found.tags == ["div", "img", "iframe"] and attributes["sandbox"] == "allow-scripts"
    assert attributes["srcdoc"] == written.path.read_text("utf-8")
    assert base64.b64decode(attributes["src"].partition(",")[2]).startswith(b"\x89PNG")


def test_the_template_is_installed_with_the_package():
    settings = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert "explorer/page.*" in settings["tool"]["setuptools"]["package-data"]["landscape"]
    assert {f"page.{kind}" for kind in ("html", "css", "js", "bib")} <= {
        file.name for file in files("landscape.explorer").iterdir()
    }


def test_what_was_measured_along_a_training_is_a_picture_and_a_table(tmp_path):
    snapshots = [torch.nn.Linear(3, 2).state_dict() for _ in range(2)]
    model, data = torch.nn.Linear(3, 2), (torch.randn(16, 3), torch.arange(16) % 2)
    course = landscape.audit(snapshots, model, data)
    alone = landscape.page(course, tmp_path / "alone").path.read_text("utf-8")
    surface = landscape.surface(model, data, points=3)
    beside = landscape.page({"end": surface, HOSTILE: course}, tmp_path / "beside").path.read_text("utf-8")
    for content in (alone, beside):
        assert content.count("data:image/png;base64,") == 1 and "img-src data:;" in content
        assert "lambda1" in content and "critical sharpness is 2/η" in content and HOSTILE not in content
    assert "img-src" not in landscape.page(surface, tmp_path / "surface").path.read_text("utf-8")
