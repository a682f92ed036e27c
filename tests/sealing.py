"""Execute notebooks in place and seal them: ``python tests/sealing.py [NAME …]``, all of them without a name.

The seal is a hash of the sources and of what they gave, kept in the notebook's metadata: who edits a cell, or an output
by hand, breaks it. The first paragraph that the cell tagged "answer" shows is also written under the title.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "notebooks"


def seal(notebook: dict) -> str:
    """Return the hash of the cells' kinds, sources and outputs."""
    cells = [[c["cell_type"], "".join(c["source"]), c.get("outputs", [])] for c in notebook["cells"]]
    return hashlib.sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()


def titled(notebook: dict) -> str:
    """Return the source of the first cell with the notebook's answer under its title."""
    (cell,) = [cell for cell in notebook["cells"] if "answer" in cell["metadata"].get("tags", [])]
    answer = "".join(cell["outputs"][-1]["data"]["text/markdown"]).split("\n\n")[0]
    title, *rest = "".join(notebook["cells"][0]["source"]).split("\n\n")
    quote = "> **Answer**, as last run: " + answer.replace("\n", "\n> ")
    return "\n\n".join([title, quote, *(part for part in rest if not part.startswith("> **Answer**"))])


def execute(path: Path) -> None:
    """Run a notebook from top to bottom and write it back with its outputs; nothing is written after an error."""
    import nbformat
    from nbclient import NotebookClient

    start = time.perf_counter()
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": FOLDER}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
    notebook.metadata.pop("widgets", None)
    notebook.cells[0].source = titled(notebook)
    nbformat.write(notebook, path)
    written = json.loads(path.read_text())
    written["metadata"]["sealed"] = seal(written)
    path.write_text(json.dumps(written, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    print(f"{path.name}: {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    for name in sys.argv[1:] or sorted(path.name for path in FOLDER.glob("*.ipynb")):
        execute(FOLDER / Path(name).with_suffix(".ipynb").name)
