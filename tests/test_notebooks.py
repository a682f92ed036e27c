"""What is committed in notebooks/: executed, unchanged since, small, and written as agreed."""

import ast
import json
import re

import pytest
from sealing import FOLDER, seal, titled

PATHS = sorted(FOLDER.glob("*.ipynb"))
DEFINING = {"08_your_own_model", "11_your_own_quantizer", "14_monitor"}  # whose subject is code of the reader's own


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def notebook(request):
    return json.loads(request.param.read_text())


def code(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_outputs_belong_to_the_sources(notebook):
    assert notebook["metadata"].get("sealed") == seal(notebook), "execute it anew: python tests/sealing.py NAME"


def test_every_cell_was_executed_in_order_without_error(notebook):
    assert [cell["execution_count"] for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    outputs = [output for cell in code(notebook) for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" or output.get("name") == "stderr" for output in outputs)


def test_every_figure_shows_without_a_kernel(notebook):
    drawn = [cell for cell in code(notebook) if re.search(r"draw(_\w+)?\(|save_figure\(", "".join(cell["source"]))]
    assert drawn and all(any("image/png" in output.get("data", {}) for output in cell["outputs"]) for cell in drawn)


def test_it_asks_a_question_and_says_how_long_it_takes(notebook):
    first = "".join(notebook["cells"][0]["source"])
    assert first.startswith("# ") and "?" in first.splitlines()[0] and "*" in first and "Time:" in first


def test_its_answer_stands_under_the_title(notebook):
    assert "".join(notebook["cells"][0]["source"]) == titled(notebook)


def test_no_printed_line_is_broken_by_the_cell_s_width(notebook):
    printed = [output for cell in code(notebook) for output in cell["outputs"] if output["output_type"] == "stream"]
    lines = "".join(line for output in printed for line in output["text"]).splitlines()
    assert not [line for line in lines if len(line) > 100]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_defines_nothing_but_the_reader_s_own_code(path):
    for cell in code(json.loads(path.read_text())):
        body = ast.parse("".join(cell["source"])).body
        if path.stem in DEFINING:  # classes and functions, and what is in them
            body = [statement for statement in body if not isinstance(statement, ast.ClassDef | ast.FunctionDef)]
        nodes = [node for statement in body for node in ast.walk(statement)]
        assert not any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in nodes)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_is_small(path):
    assert path.stat().st_size < 1.5e6


def test_an_answer_replaces_the_one_before():
    answer = {
        "cell_type": "code",
        "metadata": {"tags": ["answer"]},
        "outputs": [{"data": {"text/markdown": "a\nb\n\nc"}}],
    }
    cells = [{"metadata": {}, "source": "# So?\n\nText.\n\n*Time*"}, answer]
    first = titled({"cells": cells})
    assert first == "# So?\n\n> **Answer**, as last run: a\n> b\n\nText.\n\n*Time*"
    assert titled({"cells": [{"metadata": {}, "source": first}, answer]}) == first


def test_a_seal_breaks_when_a_source_or_an_output_changes():
    cell = {"cell_type": "code", "source": ["1 + 1"], "outputs": [{"text": "2"}]}
    whole = {"cells": [cell, {"cell_type": "markdown", "source": "so"}]}
    seals = {seal(whole), seal({"cells": [cell]}), seal({"cells": [cell | {"source": "1 + 2"}, whole["cells"][1]]})}
    seals.add(seal({"cells": [cell | {"outputs": []}, whole["cells"][1]]}))
    assert len(seals) == 4 and seal({"cells": [cell | {"source": "1 + 1"}, whole["cells"][1]]}) == seal(whole)
