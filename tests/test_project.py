"""The rules that keep the project in shape: import arrows, light imports, one list of dependencies."""

import ast
import dataclasses
import graphlib
import inspect
import io
import pathlib
import re
import subprocess
import sys
import tokenize
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("landscape", "saq_core")
HEAVY = ("plotly", "matplotlib", "ipywidgets", "xarray", "sklearn", "torchvision", "pyhessian", "pandas")


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def modules(package):
    """Return every module's dotted name → (its file, whether it is a package)."""
    named = {}
    for path in sources(package):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        named[".".join(parts[:-1] if is_package else parts)] = path, is_package
    return named


def imports(package, for_types=True):
    """Return every module's name → what it imports, in functions and for type checking too: our modules, and others."""
    named = modules(package)
    arrows = {}
    for module, (path, is_package) in named.items():
        arrows[module] = set()
        tree = ast.parse(path.read_text())
        blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
        unseen = set() if for_types else {node for block in blocks for node in ast.walk(block)}
        for node in ast.walk(tree):
            if node in unseen:
                continue
            if isinstance(node, ast.Import):
                arrows[module] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = module.split(".")[: None if is_package else -1]
                base = base[: len(base) - max(node.level - 1, 0)] if node.level else []
                target = ".".join([*base, *filter(None, [node.module])])
                arrows[module] |= {full if (full := f"{target}.{a.name}") in named else target for a in node.names}
        arrows[module].discard(module)
    return arrows


def rooms(package):
    """Return the same for wings: a folder is one room, a file beside it another."""
    within = {}
    for module, others in imports(package).items():
        room = ".".join(module.split(".")[:2])
        inside = {".".join(other.split(".")[:2]) for other in others if other.split(".")[0] == package}
        within.setdefault(room, set()).update(inside - {room})
    return within


def order(arrows):
    """Return each node's floor, the ground floor being 1; fails on a circle."""
    known = {node for others in arrows.values() for node in others} & set(arrows)
    sorter = graphlib.TopologicalSorter({node: others & known for node, others in arrows.items()})
    floors = {}
    for node in sorter.static_order():  # raises CycleError, which names the circle
        floors[node] = 1 + max((floors[other] for other in arrows[node] if other in floors), default=0)
    return floors


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_is_in_a_circle_of_imports(package):
    assert order(imports(package))


@pytest.mark.parametrize(("package", "floors"), [("landscape", 9), ("saq_core", 8)])
def test_imports_run_downwards_only(package, floors):
    assert max(order(rooms(package)).values()) <= floors


def test_landscape_never_imports_saq_core_which_imports_its_public_names():
    assert not [m for m, others in imports("landscape").items() if any(o.split(".")[0] == "saq_core" for o in others)]
    wings = ("", ".checking", ".files", ".parallel", ".progress", ".model", ".model.errors", ".model.measuring")
    allowed = {f"landscape{wing}" for wing in wings}
    for module, others in imports("saq_core").items():
        assert {other for other in others if other.split(".")[0] == "landscape"} <= allowed, module


def test_plotting_libraries_stay_in_plotting_and_in_the_explorer():
    for package in PACKAGES:
        for module, others in imports(package, for_types=False).items():
            drawing = {other for other in others if other.split(".")[0] in ("plotly", "matplotlib")}
            assert not drawing or module.startswith(("landscape.plotting.", "landscape.explorer.")), module


def test_linalg_never_sees_a_model_and_plotting_no_result():
    own = imports("landscape")
    for module, others in own.items():
        inside = {".".join(other.split(".")[1:2]) for other in others if other.split(".")[0] == "landscape"}
        if module.startswith("landscape.linalg"):
            assert inside <= {"linalg", "checking", "pieces", "results", "progress", "plotting"}, module
            assert "nn.Module" not in modules("landscape")[module][0].read_text()
        if module.startswith("landscape.plotting"):
            assert inside <= {"plotting"}, module


def test_notebooks_and_figures_use_public_names_only():
    import json

    sources = [path.read_text() for path in (ROOT / "figures").glob("*.py")]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        sources.append("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
    assert sources
    for source in sources:
        for package in PACKAGES:
            used = set(re.findall(rf"\b{package}\.(\w+)", source))
            assert used <= set(__import__(package).__all__), used
            assert not re.search(rf"from {package}", source)


def test_heavy_packages_are_imported_where_they_are_used():
    code = f"import sys, landscape.plotting, saq_core; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_carries_the_name_of_a_public_function(package):
    public = __import__(package).__all__
    modules = {path.stem for path in sources(package)}
    assert not [name for name in public if name in modules]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_exists_and_is_documented(package):
    module = __import__(package)
    texts = [path.read_text() for path in sources(package)]
    for name in module.__all__:
        found = getattr(module, name)
        if not callable(found):  # a constant has no docstring, but a comment above it
            assert any(re.search(rf"^# .+\n{name}\b", text, re.M) for text in texts), name
            continue
        told = inspect.getdoc(found) or ""
        made = f"{name}{inspect.signature(found)}".replace(" -> None", "") if dataclasses.is_dataclass(found) else ""
        assert told and told != made, name


def code_lines(source):
    """Return the numbers of the lines that hold code: no blanks, comments or docstrings."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {line for t in tokens if t.type not in skipped and t.string for line in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def test_functions_and_files_stay_short():
    for path in [p for package in PACKAGES for p in sources(package)]:
        lines = code_lines(source := path.read_text())
        assert len(lines) <= 300, f"{path} has {len(lines)} lines of code"
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = len(lines & set(range(node.lineno, node.end_lineno + 1)))
                assert body <= 60, f"{path}: {node.name} has {body} lines of code"


def test_environment_yml_installs_what_pyproject_declares():
    text = (ROOT / "environment.yml").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = re.search(r"^\s+- -e \.\[(\w+)\]$", text, re.M)
    assert extra and extra[1] in project["optional-dependencies"]
    assert f"python{project['requires-python']}" in text
    conda = re.findall(r"^  - ([\w-]+)", text, re.M)
    assert set(conda) <= {"python", "pip", "make"}, "packages are declared in pyproject.toml alone"


def test_the_mandated_packages_are_declared_and_all_have_a_lowest_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {re.match(r"[\w-]+", line)[0] for lines in lists for line in lines}
    mandated = {"torch", "torchvision", "matplotlib", "plotly", "ipywidgets", "pyhessian", "jupyterlab", "nbmake"}
    assert mandated <= declared
    assert not [x for lines in lists for x in lines if not re.search("[>=]=", x) and "saq-landscape" not in x]
