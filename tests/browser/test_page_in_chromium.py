"""The page that can be sent, in Chromium without a network: what it draws, at three sizes; screenshots stay behind."""

import itertools
import math
import os
import shutil

import numpy as np
import pytest
import torch

import landscape

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
SOFTWARE = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # 3-D without a GPU
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: set CHROMIUM to its path"),
]
HOSTILE = "</script><img src=x onerror=alert(1)>"
KEYS = [(how, bits) for bits in ("FP32", "W4A4", "W2A2") for how in ("SGD", "SAQ")]


def surface(seed=0, points=9, gaps=()):
    """Return a surface without measuring one: a bowl, the steeper and the higher the larger the seed."""
    axis = torch.linspace(-1, 1, points, dtype=torch.float64).mul(4).round().div(4) if points == 9 else None
    axis = torch.linspace(-1, 1, points, dtype=torch.float64) if axis is None else axis
    generator = torch.Generator().manual_seed(seed)
    distance = axis[:, None] ** 2 + 0.6 * axis**2 + 0.2 * axis[:, None] * axis
    loss = 0.02 * (seed + 1) + (seed + 4) * distance / (1 + 0.2 * seed * distance)
    loss *= 1 + 0.05 * torch.rand(points, points, generator=generator, dtype=torch.float64)
    for place in gaps:
        loss[place] = math.nan
    accuracy = (100 * torch.exp(-(seed + 1) * distance)).round() / 100
    axes = [{"kind": "random", "normalize": "filter"}] * 2
    about = {"space": "quantized", "samples": 100, "directions": "random", "axes": axes, "seed": 0, "torch": "2.0"}
    return landscape.Surface(about, axis, axis, loss, accuracy, stderr=loss / 20)


@pytest.fixture(scope="module")
def surfaces():
    return {key: surface(index) for index, key in enumerate(KEYS) if key != ("SAQ", "W4A4")} | {HOSTILE: surface(7)}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Return a function that opens content as a page; at the end nothing may have been said, asked for, or run."""
    contexts = []

    def open_(content, width=1280, *, still=True, dark=False, before="", **settings):
        written = landscape.page(content, tmp_path / "page", **settings)
        context = browser.new_context(
            viewport={"width": width, "height": 800},
            offline=True,
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce" if still else "no-preference",
        )
        window = context.new_page()
        window.set_default_timeout(60_000)
        window.said, window.asked = [], []
        window.on("console", lambda message: window.said.append(message.text))
        window.on("pageerror", lambda error: window.said.append(str(error)))
        window.on("dialog", lambda dialog: (window.said.append(dialog.message), dialog.dismiss()))
        window.on("request", lambda request: window.asked.append(request.url))
        window.add_init_script(before)
        window.goto(written.path.as_uri())
        window.wait_for_selector("html[data-ready]")
        contexts.append((context, window))
        return window

    yield open_
    for index, (context, window) in enumerate(contexts):
        window.screenshot(path=tmp_path / f"{index}.png", full_page=True)
        driver = [text for text in window.said if "GPU stall" not in text]  # what the driver says of software GL
        context.close()
        assert not driver and len(window.asked) == 1 and window.asked[0].startswith("file:"), (driver, window.asked)


def captions(window):
    """Return what stands under the panels, drawn first: the page itself draws in the next frame after an input."""
    window.evaluate("landscape.now()")
    return window.locator("figcaption").all_inner_texts()


def until(window, condition):
    """Wait in steps from here: the page's policy lets nobody evaluate a text in it."""
    for _ in range(600):
        if window.evaluate(condition):
            return
        window.wait_for_timeout(50)
    raise AssertionError(condition)


def pixels(window, panel=0):
    """Return the picture of a panel, as text."""
    return window.evaluate("n => (landscape.now(), document.querySelectorAll('.stage canvas')[n].toDataURL())", panel)


@pytest.mark.parametrize("width", [1280, 900, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_a_page_fits_the_window_and_asks_for_nothing(opened, surfaces, width, dark):
    window = opened(surfaces, width, dark=dark)
    assert window.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert window.locator(".stage canvas").count() == 3
    assert len({pixels(window, panel) for panel in range(3)}) == 3
    assert window.locator("img").count() == 0 and HOSTILE in captions(window)[0]


def test_the_numbers_in_the_page_are_those_of_the_frame(opened, surfaces):
    window = opened(surfaces | {HOSTILE: surface(7, gaps=[(0, 0), (4, 5)])})
    read = "landscape.networks.map(n => [n.name, Object.entries(n.values).map(([k, v]) => [k, [...v].map(String)])])"
    found = {name: dict(columns) for name, columns in window.evaluate(read)}
    for key, given in surfaces.items():
        frame, name = given.frame.astype("float32"), key if isinstance(key, str) else " · ".join(key)
        for column in ("loss", "accuracy"):
            expected = frame[column].to_numpy().copy()
            if key == HOSTILE and column == "loss":
                expected[[0, 4 * 9 + 5]] = math.nan
            np.testing.assert_array_equal(np.array(found[name][column], "float32"), expected)
        np.testing.assert_allclose(np.array(found[name]["stderr"], "float32")[1:36], frame["stderr"][1:36], rtol=3e-4)


def walk(states):
    """Go through all states so that each follows each other one: an Eulerian circuit of all ordered pairs."""
    left = {state: [other for other in states if other != state] for state in states}
    stack, circuit = [states[0]], []
    while stack:
        if left[stack[-1]]:
            stack.append(left[stack[-1]].pop())
        else:
            circuit.append(stack.pop())
    return circuit[::-1]


def test_every_state_after_every_other_shows_what_the_controls_say(opened, surfaces):
    window = opened(surfaces, 390)
    quantities = {"log": "loss (log scale)", "loss": "loss", "accuracy": "accuracy"}
    states = list(itertools.product(quantities, ("3d", "map"), range(3)))
    script = """([quantity, view, stop]) => {
        const hash = canvas => {  // of a copy: a canvas that is read often is drawn in another way
            const copy = document.createElement("canvas");
            [copy.width, copy.height] = [canvas.width, canvas.height];
            const context = copy.getContext("2d", {willReadFrequently: true});
            context.drawImage(canvas, 0, 0);
            const {data} = context.getImageData(0, 0, copy.width, copy.height);
            return new Uint32Array(data.buffer).reduce((sum, pixel) => Math.imul(sum, 31) + pixel | 0, 0);
        };
        for (const [id, key] of [["quantity", quantity], ["view", view]])
            document.querySelector(`#${id} [data-key="${key}"]`).click();
        document.querySelectorAll("#states .stops button")[stop].click();
        landscape.now();
        const canvases = [...document.querySelectorAll(".stage canvas")];
        return {
            captions: [...document.querySelectorAll("figcaption b")].map(b => b.textContent),
            labels: canvases.map(c => c.getAttribute("aria-label")),
            scale: document.querySelector("#drawn").textContent,
            pressed: [...document.querySelectorAll("[aria-pressed=true]")].map(b => b.textContent),
            now: document.querySelector("#states .now").textContent,
            pixels: canvases.map(hash),
        };
    }"""
    pictures, circuit = {}, walk(states)
    assert len(circuit) == len(states) * (len(states) - 1) + 1
    for quantity, view, stop in circuit:
        shown, bits = window.evaluate(script, [quantity, view, stop]), ("FP32", "W4A4", "W2A2")[stop]
        expected = [HOSTILE, f"SGD · {bits}", f"SAQ · {bits}"]
        assert shown["captions"] == expected and shown["now"] == bits and shown["scale"] == quantities[quantity]
        kind = "map" if view == "map" else "3-D surface"
        for name, label in zip(expected, shown["labels"], strict=True):
            missing = name == "SAQ · W4A4"
            assert label.startswith(f"{name}: {quantities[quantity]}, {kind}.") and ("not measured" in label) == missing
        before = pictures.setdefault((quantity, view, stop), shown["pixels"])
        assert shown["pixels"] == before, f"another picture of {quantity}, {view}, {bits} than the first time"
    assert len({picture[1] for picture in pictures.values()}) == len(states)


def test_the_slider_plays_morphs_and_settles(opened, surfaces):
    window = opened(surfaces, still=False)
    assert "SGD · W2A2" in captions(window)[1]  # it begins at the last state
    window.locator("#states .play").click()
    until(window, "landscape.state.at > 0.2 && landscape.state.at < 0.8")
    assert window.locator("#states .play").get_attribute("aria-label") == "Pause"
    until(window, "landscape.state.at === 2")
    window.wait_for_selector("#states .play[aria-label=Play]")
    slider = window.locator("#states input")
    slider.focus()
    slider.press("ArrowLeft")
    until(window, "landscape.state.at === 1")
    assert "SGD · W4A4" in captions(window)[1] and "not measured" in captions(window)[2]
    window.evaluate("landscape.state.at = 0.4")
    between = pixels(window, 1)
    window.evaluate("landscape.state.at = 0")
    assert between != pixels(window, 1)


def test_the_wheel_scrolls_the_page_and_the_pointer_turns_tells_and_cuts(opened, surfaces):
    window = opened(surfaces)
    canvas = window.locator(".stage canvas").nth(1)
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.45
    window.mouse.move(x, y)
    window.wait_for_selector(".tip.on")
    i, j = window.evaluate("landscape.state.hover")
    told = window.locator(".tip").nth(1).inner_text()
    given = surfaces[("SGD", "W2A2")]
    assert f"accuracy {100 * float(given.accuracy[i, j]):.1f} %" in told and told.startswith("loss ")
    assert float(told.split()[1]) == pytest.approx(float(given.loss[i, j]), rel=0.05)
    window.mouse.click(x, y)
    assert window.evaluate("landscape.state.cut") == j
    before, turn = pixels(window, 2), window.evaluate("landscape.state.turn")
    window.mouse.down()
    window.mouse.move(x + 80, y, steps=3)
    window.mouse.up()
    assert window.evaluate("landscape.state.turn") == pytest.approx(turn - 0.72) and pixels(window, 2) != before
    window.mouse.wheel(0, 250)
    until(window, "scrollY > 200")
    assert window.evaluate("landscape.state.zoom") == 1
    canvas.focus()
    for key in ("ArrowLeft", "ArrowUp", "+"):
        canvas.press(key)
    assert window.evaluate("landscape.state.zoom") == pytest.approx(1.1)
    canvas.press("0")
    assert window.evaluate("[landscape.state.zoom, landscape.state.turn]") == [1, -0.9]


def test_points_of_the_overview_choose_the_panels(opened):
    seeds = {
        name: [{"trace_filter": _number(k + 1), "accuracy": _number(0.9 - k / 10)}] for k, name in enumerate("abc")
    }
    about = {"samples": 9, "space": "float", "derivatives": "exact", "seed": 0}
    planes = {name: surface(k) for k, name in enumerate("abc")}
    window = opened(landscape.Comparison(about, seeds, {}, planes))
    assert window.locator("#points circle").count() == 3 and len(captions(window)) == 3
    window.locator("#points .point").nth(2).click()
    window.locator("#points .point").nth(0).focus()
    window.keyboard.press("Enter")
    assert [text.split("\n")[0] for text in captions(window)] == ["a", "c"]
    assert window.locator("tr.on").count() == 2
    window.get_by_role("button", name="Show all").click()
    assert len(captions(window)) == 3
    window.locator("#beside").click()
    assert len(captions(window)) == 1 and window.locator("#states .stops button").all_inner_texts() == ["a", "b", "c"]


def _number(value):
    return {"value": value, "stderr": value / 10, "parts": None, "converged": True, "folds": None}


def test_a_trajectory_has_a_scrubber(opened):
    about = {"plane": "p", "model": "m"}
    plane = surface(3)
    plane.about.update(about)
    columns = {"loss": [5.0, 2.0, 0.1], "plane_loss": [4.0, 2.1, 0.1], "distance": [1.2, 0.7, 0.0]}
    numbers = {name: torch.tensor(column) for name, column in columns.items()}
    steps = torch.tensor([[0.9, -0.8], [0.5, 0.2], [0.0, 0.0]])
    path = landscape.Trajectory(about, steps, off_plane=torch.zeros(3), explained=torch.ones(2), stored={}, **numbers)
    window = opened({"network": plane, "path": path})
    assert "checkpoint 2 of 2: loss 0.1," in captions(window)[0].replace("\n", " ")
    last = pixels(window)
    slider = window.locator("#training input")
    slider.focus()
    slider.press("ArrowLeft")
    assert "checkpoint 1 of 2: loss 2.00, on the plane 2.10; distance 0.7" in captions(window)[0].replace("\n", " ")
    assert pixels(window) != last


def test_other_results_are_seen_under_the_page_s_policy(opened):
    line = landscape.Line({}, torch.arange(5.0) - 2, (torch.arange(5.0) - 2) ** 2, torch.full((5,), math.nan))
    window = opened({"a line": line})
    assert window.locator("#charts").is_hidden() and window.get_by_role("heading", name="a line · Line").is_visible()
    assert window.locator("img.print").evaluate("image => image.complete && image.naturalWidth") > 300


def test_twelve_networks_of_65_points_are_drawn(opened):
    window = opened({f"network {index}": surface(index, points=65) for index in range(12)})
    assert window.locator(".stage canvas").count() == 12
    assert len({pixels(window, panel) for panel in range(12)}) == 12


def test_gaps_stay_gaps(opened):
    whole, torn = (opened(surface(2, points=17, gaps=gaps)) for gaps in ((), [(3, 3), (8, 9), (8, 10)]))
    assert "3 of 289 points not drawn" in captions(torn)[0] and "not drawn" not in captions(whole)[0]
    for window in (whole, torn):
        window.locator('#view [data-key="map"]').click()
    assert pixels(whole) != pixels(torn)
    none = opened(landscape.Surface({}, *[torch.arange(3.0)] * 2, *[torch.full((3, 3), math.nan)] * 2))
    assert none.locator("#charts").is_hidden() and "Methods" in none.inner_text("main")


def test_a_page_shows_in_a_notebooks_frame(browser, surfaces, tmp_path):
    outside = tmp_path / "notebook.html"
    outside.write_text(f"<!doctype html><p>Out[1]:</p>{landscape.page(surfaces, tmp_path / 'inside')._repr_html_()}")
    window, said = browser.new_context(offline=True, reduced_motion="reduce").new_page(), []
    window.on("console", lambda message: said.append(message.text))
    window.on("pageerror", lambda error: said.append(str(error)))
    window.goto(outside.as_uri())
    inside = window.frame_locator("iframe")
    inside.locator("html[data-ready]").wait_for()
    assert inside.locator(".stage canvas").count() == 3
    inside.locator('#quantity [data-key="accuracy"]').click()
    sync_api.expect(inside.locator("#drawn")).to_have_text("accuracy")
    window.screenshot(path=tmp_path / "notebook.png")
    window.evaluate("document.querySelector('iframe').remove()")  # as viewers do that trust nobody
    assert window.locator("img").bounding_box()["width"] > 300
    window.context.close()
    assert not [text for text in said if "GPU stall" not in text]


def test_without_webgl_or_after_its_loss_maps_stand_there(opened, surfaces):
    patched = (
        "const canvas = HTMLCanvasElement.prototype, get = canvas.getContext; canvas.getContext = function (k, o) "
    )
    keep = patched + "{ const made = get.call(this, k, o); if (k === 'webgl2') window.__gl = made; return made; };"
    window = opened(surfaces, before=keep)
    drawn = pixels(window, 1)
    window.evaluate("window.__lose = __gl.getExtension('WEBGL_lose_context'); __lose.loseContext();")
    until(window, "landscape.state.flat === 1")
    assert pixels(window, 1) != drawn
    window.evaluate("__lose.restoreContext()")
    until(window, "landscape.state.flat === 0")
    assert pixels(window, 1) == drawn
    none = opened(surfaces, before=patched + "{ return k === 'webgl2' ? null : get.call(this, k, o); };")
    assert none.get_by_text("draws no WebGL 2").is_visible() and none.locator("#view").is_hidden()
    assert len({pixels(none, panel) for panel in range(3)}) == 3
