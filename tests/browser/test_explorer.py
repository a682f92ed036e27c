"""Notebooks and the explorer in JupyterLab, as a hand would use them, in Chromium; screenshots stay in the folder."""

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
    return folder


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
def page(server, folder, request):
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
    """Return errors that could be ours; those of the server's and Chromium's own doing are left out."""
    foreign = re.compile("favicon|WebGL|GPU stall|Failed to load resource|extension-manager|jupyterlab/.*news|DevTools")
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


def test_the_explorer_computes_slides_stops_and_saves(page, server, folder):
    opened(page, server, "10_explorer.ipynb")
    run_all(page)
    page.wait_for_selector(".js-plotly-plot .gl-container canvas", timeout=600_000)
    reached(page, "9 × 9 points · done")
    page.screenshot(path=folder / "explorer.png")

    page.get_by_text("Slice along direction 1, at 0 of direction 2").wait_for()
    handle = page.locator(".widget-slider", has_text="slice at").locator(".noUi-handle")
    handle.focus()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    page.get_by_text(re.compile("Slice along direction 1, at 0.25 of direction 2")).wait_for()

    finest = page.locator(".widget-slider", has_text="points").locator(".noUi-handle")
    finest.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    reached(page, "s left")  # it is at work
    button(page, "Stop").click()
    reached(page, "stopped")

    button(page, "both").click()
    page.wait_for_selector(".js-plotly-plot .contourlayer path", state="attached")
    page.wait_for_timeout(3000)
    page.screenshot(path=folder / "both.png")
    button(page, "Save figure").click()
    reached(page, "wrote landscape_3d.pdf")
    assert (folder / "landscape_contour.png").stat().st_size > 10_000
    button(page, "Copy code").click()
    page.wait_for_selector("textarea:visible")
    assert not errors(page)
