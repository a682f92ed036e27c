"""Every notebook runs from top to bottom on fewer images, epochs and points; at full size it does in `.ci/run`."""

import ast
import io
import json
import logging
import re

import matplotlib.pyplot as plt
import pytest
import torch
from networks import thin_networks
from sealing import FOLDER

SMALL = {"SEEDS": 2, "EPOCHS": 1, "SAMPLES": 16, "POINTS": 5, "VECTORS": 2}
SHORTER = {
    r"^((?:SEEDS|EPOCHS|SAMPLES|POINTS|VECTORS)\b.*?) = .*$": lambda found: (
        f"{found[1]} = {', '.join(str(SMALL[name]) for name in found[1].split(', '))}"
    ),
    r"load_data\(\"digits\"\)": 'load_data("digits", limit=64)',
    r"limit=(128|256)\b": "limit=64",
    r"\bepochs=[\w *+]+": "epochs=1",
    r"\bpoints=(9|11|19)\b": "points=5",
    r"\brtol=0\.\d+(, num_probes=\d+)?": "rtol=0.5, num_probes=2",
    r"\bnum_probes=\d+": "num_probes=2",
    r"\bsteps=\d+": "steps=1",
    r"\"(num_samples|num_probes)\": \d+": r'"\1": 2',
}
OWN = {
    "00_quickstart": {
        "SEEDS, EPOCHS, SAMPLES = 2": "SEEDS, EPOCHS, SAMPLES = 1",
        "points=5": "points=3, radii=(0.005,), rtol=0.5",
    },
    "02_hessian": {"k=10": "k=3", r"per_layer=True\)": "per_layer=True, num_probes=2)"},
    "03_quantized_landscapes": {
        r"60 \* SCALE": "6 * SCALE",
        '"W8A8", "W4A4", ': "",
        r"ladder\.trusted & \(ladder\.radii <= 0\.02\)": "ladder.radii <= 0.02",  # after one epoch no step is trusted
    },
    "04_saq": {r"\(0\.02, 0\.05, 0\.1, 0\.4\)": "(0.1, 0.4)"},
    "05_fpq": {"EPOCHS, SEEDS, SAMPLES = 1, 2, 16": "EPOCHS, SEEDS, SAMPLES = 1, 1, 8"},
    "06_mixed_precision": {
        r"SAMQ\(epochs=1, warmup=1, candidates=8": "SAMQ(epochs=2, warmup=1, candidates=2",
        r"/ traces\[flattest\]": "/ (traces[flattest] or 1)",  # of few probes, which may not see that it is positive
    },
    "07_transformers": {", warmup=1": ""},
    "08_your_own_model": {
        r"radii=\((0\.005|0\.05),\), rtol=0\.5, num_probes=2": r"radii=(\1,), rtol=0.5",
        "points=POINTS": "points=3",
        r"\[:1400\]": "[:64]",
        r"\[1400:\]": "[-64:]",
        r"unfold\(0, 32, 16\)": "unfold(0, 32, 400)",
        '"test_resnet"': '"test_resnet", channels=(4, 4, 4, 4)',
        r"range\(3 \* EPOCHS\)": "range(EPOCHS)",
    },
    "10_explorer": {"samples=64": "samples=8"},
    "11_your_own_quantizer": {r"radii=\(0\.05,\)": "radii=(0.05,), rtol=0.5", ", 200, ": ", 5, "},
    "12_flatter_or_sharper": {
        "points=0": "points=0, radii=(0.005, 0.05), rtol=0.5",
        r"\(2, 3, 5\)": "(2,)",
        r'\("W4A32", "W2A32", "W2A2"\)': '("W2A2",)',
        r'"#009E73"\), strict=True': '"#009E73"), strict=False',
    },
    "13_sensitivity": {
        r"model, probe, predictions": 'model, probe, formats=("W2", "W8"), predictions',
        "ends, 5": "ends, 1",
    },
    "14_monitor": {
        "every=25, budget=1.0": "every=5, budget=1.0",
        r"    for _ in range\(steps\):": "    monitor.budget = float('inf')\n    for _ in range(20):",
        r"STEPS // 2\]": "10]",
    },
    "09_scaling": {"EPOCHS, SAMPLES = 1, 16": "EPOCHS, SAMPLES = 4, 64", '"--points", "11"': '"--points", "5"'},
}
OWN["09_scaling"] |= {"^import subprocess$": "import forking as subprocess"}  # no interpreter is started anew


def shortened(name):
    """Return the cells of a notebook as they are run here."""
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    for pattern, shorter in SHORTER.items():
        sources = [re.sub(pattern, shorter, source, flags=re.M) for source in sources]
    for pattern, shorter in OWN.get(name, {}).items():
        assert any(re.search(pattern, source, re.M) for source in sources), pattern
        sources = [re.sub(pattern, shorter, source, flags=re.M) for source in sources]
    return sources


def run(source, names):
    """Execute a cell as a kernel does: what its last expression gives is shown, unless it ends with a semicolon."""
    from IPython.core.formatters import DisplayFormatter

    body, last = ast.parse(source).body, None
    if body and isinstance(body[-1], ast.Expr):
        last = ast.Expression(body.pop().value)
    exec(compile(ast.Module(body, []), "<cell>", "exec"), names)
    if last:
        value = eval(compile(last, "<cell>", "eval"), names)
        if value is not None and not source.rstrip().endswith(";"):
            DisplayFormatter().format(value)


@pytest.fixture
def kernel(monkeypatch, tmp_path, capsys, caplog):
    """Run cells in an empty folder; what widgets and formatters catch and only report is an error all the same."""
    import plotly.io

    def execute(sources):
        names = {"__name__": "notebook"}
        with plt.rc_context(), torch.random.fork_rng(), thin_networks():
            for source in sources:
                run(source, names)
                assert not [record for record in caplog.records if record.levelno >= logging.WARNING], caplog.text
                assert capsys.readouterr().err == ""
            for number in plt.get_fignums():
                plt.figure(number).savefig(io.BytesIO())
        return names

    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(plotly.io.renderers, "default", "json")
    plt.close("all")
    plt.switch_backend("Agg")
    yield execute
    plt.close("all")


@pytest.mark.alone
@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.ipynb")))
def test_it_runs_from_top_to_bottom(name, kernel, coarse):
    names = kernel(shortened(name))
    if "explorer" in names:
        assert names["explorer"].outputs["message"].value == ""


WIDGET = "import ipywidgets\nout = ipywidgets.Output()\n"
FAILING = {
    "interact": WIDGET + "ipywidgets.interact(lambda x: 1 / x, x=ipywidgets.IntSlider(0, 0, 1));",
    "output": WIDGET + "with out:\n    1 / 0",
    "capture": WIDGET + "out.capture()(lambda: 1 / 0)()",
    "picture": "class Bad:\n    def _repr_html_(self):\n        return 1 / 0\nBad()",
}


@pytest.mark.parametrize("name", FAILING)
def test_an_error_in_a_widget_or_a_picture_is_one_of_the_notebook(name, kernel):
    with pytest.raises((AssertionError, ZeroDivisionError, DeprecationWarning)):
        kernel([FAILING[name]])
