"""Notebooks and the explorer in JupyterLab, as a hand would use them, in Chromium; screenshots stay in the folder."""

import itertools
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import walk
from networks import X, Y, convolutional, quantized
from states import tour

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
ROOT = pathlib.Path(__file__).parents[2]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: set CHROMIUM to its path"),
]


def cells_of_code(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def saved(path):
    """Return a notebook from its file; while it is not whole (JupyterLab empties it before it writes), wait."""
    for _ in range(50):
        try:
            return json.loads(path.read_text())
        except ValueError:
            time.sleep(0.1)
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    whole = json.loads((ROOT / "notebooks" / "00_quickstart.ipynb").read_text())
    for cell in cells_of_code(whole):
        cell["execution_count"] = None  # who has one has run here
    (folder / "00_quickstart.ipynb").write_text(json.dumps(whole))
    whole = json.loads((ROOT / "notebooks" / "10_explorer.ipynb").read_text())
    last = next(k for k, cell in enumerate(whole["cells"]) if "explore(" in "".join(cell["source"]))
    whole["cells"] = whole["cells"][: last + 1]  # what follows would scroll the explorer out of view
    (folder / "10_explorer.ipynb").write_text(json.dumps(whole))
    (folder / "several.ipynb").write_text(json.dumps(several()))
    return folder


def several():
    """Return a notebook that opens three explorers, one after the other."""
    first = [
        "import torch, landscape",
        "torch.manual_seed(0)",
        "x, y = torch.randn(64, 5), torch.arange(64) % 3",
        "layers = lambda: (torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))",
        "models = {name: torch.nn.Sequential(*layers()) for name in 'abc'}",
    ]
    opened = "landscape.explore({}, (x, y), points=9)"
    sources = ["\n".join(first), *(opened.format(what) for what in ("models", "models['a']", "{'b': models['b']}"))]
    cells = [
        {"cell_type": "code", "id": f"c{k}", "source": source, "metadata": {}, "outputs": [], "execution_count": None}
        for k, source in enumerate(sources)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
    return {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}


@pytest.fixture(scope="module")
def server(folder):
    """JupyterLab on a folder of its own, with settings of its own."""
    own = {name: str(folder / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "spaces")}
    news = folder / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false"}')
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    settings = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={folder}",
    ]
    with open(folder / "server.log", "w") as log:
        command = [sys.executable, "-m", "jupyter", "lab", *settings]
        process = subprocess.Popen(command, env=os.environ | own | {"PYTHONPATH": str(ROOT)}, stdout=log, stderr=log)
        try:
            for _ in range(120):
                try:
                    urllib.request.urlopen(f"http://localhost:{port}/api").close()
                    break
                except OSError:
                    time.sleep(0.5)
            yield f"http://localhost:{port}/lab/tree"
        finally:
            process.terminate()
            process.wait()


@pytest.fixture
def page(folder, request):
    """A window, and what its console said; at the end a screenshot is left."""
    with sync_api.sync_playwright() as tools:
        software = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # 3-D without a GPU
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=software)
        page = browser.new_page(viewport={"width": 1420, "height": 1500})
        page.set_default_timeout(120_000)
        page.said = []
        page.on("console", lambda message: page.said.append((message.type, message.text)))
        page.on("pageerror", lambda error: page.said.append(("error", str(error))))
        yield page
        page.screenshot(path=folder / f"{request.node.name}.png")
        browser.close()


def errors(page):
    """Return errors that could be ours; those of the server's, Chromium's and plotly.js's own doing are left out.

    Where the browser takes a context away, for there are 16, plotly.js polls it to begin anew, and stumbles once over a
    scene that has gone meanwhile: "reading 'gl'" of null.
    """
    words = "favicon|WebGL|GPU stall|Failed to load resource|extension-manager|jupyterlab/.*news|DevTools|reading 'gl'"
    foreign = re.compile(words)
    return [text for kind, text in page.said if kind == "error" and not foreign.search(text)]


def opened(page, server, name):
    page.goto(f"{server}/{name}?reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=120_000)


def run_all(page):
    """Run all cells; where JupyterLab has no kernel yet, the order is lost or it asks for one first."""
    page.locator("#jp-main-statusbar", has_text="Python 3 (ipykernel) | Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    asked = page.locator(".jp-Dialog button", has_text=re.compile("^\\s*Select\\s*$"))
    asked.or_(page.locator("#jp-main-statusbar", has_text="| Busy")).first.wait_for()
    if asked.count():
        asked.click()


def button(page, name):
    return page.locator("button.jupyter-button", has_text=re.compile(f"^\\s*{name}\\s*$"))


def reached(page, text, seconds=300):
    page.wait_for_function(
        "text => document.querySelector('.jp-Notebook').innerText.includes(text)", arg=text, timeout=1000 * seconds
    )


def test_the_quickstart_shows_its_saved_outputs_and_runs(page, server, folder):
    opened(page, server, "00_quickstart.ipynb")
    page.wait_for_selector(".jp-OutputArea-output table", timeout=60_000)
    for shown in (".js-plotly-plot", ".jp-OutputArea-output img"):  # far below: JupyterLab renders what is in view
        for _ in range(80):
            if page.locator(shown).count():
                break
            page.mouse.move(700, 700)
            page.mouse.wheel(0, 400)
            page.wait_for_timeout(250)
        assert page.locator(shown).count(), shown
    run_all(page)
    for _ in range(200):  # in the file: the page holds only what is in view
        page.wait_for_timeout(3000)
        page.keyboard.press("Control+s")
        code = cells_of_code(saved(folder / "00_quickstart.ipynb"))
        if all(cell["execution_count"] for cell in code):
            break
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [out for cell in code for out in cell["outputs"] if out["output_type"] == "error"]
    assert not errors(page)


WALKS = [("kind", "quantity", "scale"), ("kind", "directions", "space")]
WALKS.append(pytest.param(tuple(walk.CHOICES), marks=pytest.mark.slow))  # 5,112 pairs: without a GPU an hour


@pytest.mark.parametrize("names", WALKS, ids=" × ".join)
def test_every_ordered_pair_of_states_is_drawn_as_if_it_were_the_first(page, folder, names):
    models = {"a": convolutional(0), "b, ρ = <b>1</b>": quantized("W4A4")}
    chosen, described = [], []
    for state, explorer in walk.states(models, (X, Y), names, points=5):
        chosen.append(state)
        described.append({"figures": explorer.picture.figures, "cuts": explorer.picture.cuts})
    (folder / "walk.html").write_text(walk.page(described))
    page.goto((folder / "walk.html").as_uri())
    page.wait_for_function("window.ready", timeout=300_000)
    alone = [page.evaluate(f"fresh({index})") for index in range(len(described))]
    for state, seen in zip(chosen, alone, strict=True):
        kinds = {"3-D": {"3d"}, "contour": {"contour"}, "both": {"3d", "contour"}}[state["kind"]]
        assert seen.keys() == kinds | {"slice"}, state
        log = "(log scale)" in seen["slice"]["axes"]["yaxis"]["title"]
        assert log or state["scale"] != "log"
        assert seen["slice"]["axes"]["yaxis"]["type"] == ("log" if log else "linear")
        for kind in kinds:
            head = seen[kind]["head"]
            expected = f"{state['quantity'].capitalize()} {'surface' if kind == '3d' else 'contours'}"
            assert head.startswith(expected + " (log scale)" * log), (state, head)
            words = {"random": "random directions", "eigenvectors": "eigenvector 1", "between": "at 1 stand"}
            assert words[state["directions"]] in head
            sheets = [trace for trace in seen[kind]["traces"] if trace[0] in ("surface", "contour")]
            assert len(sheets) == (1 if state["directions"] == "between" else 2) and all(trace[5] for trace in sheets)
    order = tour(len(described))
    assert set(itertools.pairwise(order)) == set(itertools.permutations(range(len(described)), 2))
    for start in range(0, len(order) - 1, 100):
        wrong = page.evaluate("([order, alone]) => walk(order, alone)", [order[start : start + 101], alone])
        assert not wrong, [(chosen[before], chosen[after]) for before, after in wrong]
    assert not errors(page)


def picked(page, name, option):
    row = page.locator(".widget-dropdown", has=page.get_by_text(name, exact=True)).first
    row.locator("select").select_option(option)


def test_three_explorers_under_run_all_and_every_pair_of_pictures_by_hand(page, server, folder):
    opened(page, server, "several.ipynb")
    run_all(page)
    page.wait_for_function(
        "() => [...document.querySelectorAll('.landscape-explorer')].filter("
        "one => one.innerText.includes('9 × 9 points · done') && one.querySelector('.gl-container canvas')).length == 3"
    )
    for index in range(3):
        seen = page.locator(".landscape-picture").nth(index)
        assert seen.locator(".landscape-3d .landscape-head").inner_text().startswith("Loss surface")
        sheets = "el => el.querySelector('.landscape-plot')._fullData.filter(t => t.type === 'surface').length"
        assert seen.locator(".landscape-3d").evaluate(sheets) == (3, 1, 1)[index]
    page.locator(".landscape-explorer").first.scroll_into_view_if_needed()
    first = "document.querySelector('.landscape-picture')"
    states = [*itertools.product(("3-D", "contour", "both"), ("loss", "accuracy"))]
    for index in tour(len(states)):
        kind, quantity = states[index]
        button(page, kind).first.click()
        picked(page, "quantity", quantity)
        shown = {"3-D": ["3d"], "contour": ["contour"], "both": ["3d", "contour"]}[kind]
        texts = [f"{quantity.capitalize()} {'surface' if one == '3d' else 'contours'}" for one in shown]
        page.wait_for_function(
            f"""([shown, texts, quantity]) => {{
                const all = [...{first}.querySelectorAll('.landscape-figure')];
                const boxes = all.filter((box) => box.style.display !== 'none');
                const heads = boxes.map((box) => box.querySelector('b').textContent);
                const axis = boxes.at(-1).querySelector('.landscape-plot')._fullLayout.yaxis.title.text;
                return boxes.length === shown.length + 1 && texts.every((text, k) => heads[k].startsWith(text))
                    && axis.toLowerCase().startsWith(quantity);
            }}""",
            arg=[shown, texts, quantity],
        )
    assert not errors(page)


def test_the_explorer_computes_slides_stops_and_saves(page, server, folder):
    opened(page, server, "10_explorer.ipynb")
    run_all(page)
    page.wait_for_selector(".js-plotly-plot .gl-container canvas", timeout=600_000)
    reached(page, "9 × 9 points · done")
    page.screenshot(path=folder / "explorer.png")

    page.get_by_text("Slice along direction 1, at 0 of direction 2").wait_for()
    handle = page.locator(".widget-slider", has_text="slice at").locator(".noUi-handle")
    handle.focus()
    page.keyboard.press("ArrowRight")  # a row of the surface further
    page.get_by_text("Slice along direction 1, at 0.25 of direction 2").wait_for()

    plot, panel = page.locator(".landscape-3d .landscape-plot"), page.locator(".jp-WindowedPanel-outer").first
    plot.scroll_into_view_if_needed()
    eye, scrolled = "el => el._fullLayout.scene.camera.eye.x", "el => el.scrollTop"
    before, top = plot.evaluate(eye), panel.evaluate(scrolled)
    plot.hover(position={"x": 120, "y": 120})
    page.mouse.wheel(0, -200)  # scrolls the page, and zooms nothing
    page.wait_for_timeout(1000)
    assert plot.evaluate(eye) == before and (panel.evaluate(scrolled) < top or top == 0)
    plot.hover(position={"x": 120, "y": 120})
    page.mouse.down()
    page.mouse.move(
        *[value + 60 for value in (plot.bounding_box()["x"] + 120, plot.bounding_box()["y"] + 120)], steps=5
    )
    page.mouse.up()
    page.wait_for_function(
        "before => document.querySelector('.landscape-3d .landscape-plot')._fullLayout.scene.camera.eye.x !== before",
        arg=before,
    )
    page.wait_for_timeout(1000)
    assert plot.evaluate(eye) == pytest.approx(plot.evaluate(eye.replace("scene.", "scene2.")))
    button(page, "Reset view").click()
    page.wait_for_function(
        "before => document.querySelector('.landscape-3d .landscape-plot')._fullLayout.scene.camera.eye.x === before",
        arg=before,
    )

    button(page, "More").click()
    finest = page.locator(".widget-slider", has_text="points").locator(".noUi-handle")
    finest.wait_for()
    finest.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    reached(page, "s left")  # it is at work
    button(page, "Stop").click()
    reached(page, "stopped")

    button(page, "both").click()
    page.wait_for_selector(".js-plotly-plot .contourlayer path", state="attached")
    page.screenshot(path=folder / "both.png")
    button(page, "Save figure").click()
    reached(page, "wrote landscape_3d.pdf")
    assert (folder / "landscape_contour.png").stat().st_size > 10_000
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button(page, "Code").click()
    page.locator(".landscape-code button").click()
    page.get_by_text("Copied").wait_for()
    assert "landscape.plot_together(surfaces" in page.evaluate("navigator.clipboard.readText()")
    page.keyboard.press("Control+s")
    for _ in range(40):
        page.wait_for_timeout(500)
        outputs = [out for cell in cells_of_code(saved(folder / "10_explorer.ipynb")) for out in cell["outputs"]]
        if any("image/png" in out.get("data", {}) for out in outputs):
            break
        page.keyboard.press("Control+s")
    assert any("image/png" in out.get("data", {}) for out in outputs)  # for where no kernel runs
    assert not errors(page)
