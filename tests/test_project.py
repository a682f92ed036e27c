"""The rules that keep the project in shape: import arrows, light imports, one list of dependencies."""

import ast
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("landscape", "saq_core")
PUBLIC_WINGS = {"landscape", "landscape.parallel", "landscape.model.measuring"}
HEAVY = ("plotly", "matplotlib", "ipywidgets", "xarray", "sklearn", "torchvision", "pyhessian", "pandas")


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def imported(path):
    """Yield (module, whether at the top of the file) of every import."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{'.' * node.level}{node.module or ''}"]
        for name in names:
            yield name, node in tree.body


def test_landscape_never_imports_saq_core_which_imports_its_public_names_and_its_processes():
    for package, other, allowed in (("landscape", "saq_core", set()), ("saq_core", "landscape", PUBLIC_WINGS)):
        for path in sources(package):
            found = {name for name, _ in imported(path) if name.split(".")[0] == other}
            assert found <= allowed, path


def test_plotting_libraries_stay_in_plotting():
    allowed = {ROOT / "landscape" / "plotting", ROOT / "landscape" / "widgets.py"}
    for path in [p for package in PACKAGES for p in sources(package)]:
        if path in allowed or path.parent in allowed:
            continue
        assert not [name for name, _ in imported(path) if name.split(".")[0] in ("plotly", "matplotlib")], path


def test_traces_and_spectra_never_see_a_model():
    for name in ("traces", "spectra", "densities"):
        path = ROOT / "landscape" / f"{name}.py"
        own = {module for module, _ in imported(path) if module.startswith(".")}
        assert own <= {".operators", ".results", ".timing", ".spectra", ".plotting"}, own
        tree = ast.parse(path.read_text())
        taken = [
            a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "operators" for a in n.names
        ]
        assert set(taken) <= {"Operator", "fold_products", "fold_shares"} and "nn.Module" not in path.read_text()


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
    code = f"import sys, landscape, saq_core; print([m for m in {HEAVY} if m in sys.modules])"
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
    for name in module.__all__:
        assert getattr(module, name).__doc__, name


def test_functions_and_files_stay_short():
    for path in [p for package in PACKAGES for p in sources(package)]:
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                body = node.end_lineno - node.lineno + 1 - len((ast.get_docstring(node) or "").splitlines())
                assert body <= 60, f"{path}: {node.name} has {body} lines"


def test_environment_yml_installs_what_pyproject_declares():
    text = (ROOT / "environment.yml").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = re.search(r"^\s+- -e \.\[(\w+)\]$", text, re.M)
    assert extra and extra[1] in project["optional-dependencies"]
    assert f"python{project['requires-python']}" in text
    conda = re.findall(r"^  - ([\w-]+)", text, re.M)
    assert set(conda) <= {"python", "pip", "make"}, "packages are declared in pyproject.toml alone"


def test_the_mandated_packages_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {re.match(r"[\w-]+", line)[0] for lines in lists for line in lines}
    mandated = {"torch", "torchvision", "matplotlib", "plotly", "ipywidgets", "pyhessian", "jupyterlab", "nbmake"}
    assert mandated <= declared
