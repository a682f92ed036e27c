"""README's calls work, in the order in which they stand there."""

import ast
import pathlib
import re

import matplotlib.pyplot as plt

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHORTER = {
    r"load_digits\(return_X_y=True\)": "(a[:1024] for a in load_digits(return_X_y=True))",
    r"plot_surface\(model, loader": "plot_surface(model, loader, points=5",
    r"quantized}, loader\)\nprint\(comparison\)": "quantized}, loader, points=3, radii=(0.05,))",
    r"explore\((.*), loader\)": r"explore(\1, loader, points=5)",
}


def test_the_snippets_run_one_after_the_other_on_fewer_images_epochs_and_points(tmp_path, monkeypatch, capsys, coarse):
    monkeypatch.chdir(tmp_path)
    text = "".join(re.findall(r"```python\n(.*?)```", README, re.S))
    for pattern, shorter in SHORTER.items():
        text, count = re.subn(pattern, shorter, text)
        assert count, pattern
    names = {}
    for statement in ast.parse(text).body:
        exec(compile(ast.Module([statement], []), ast.unparse(statement), "exec"), names)
    plt.close("all")
    assert {path.name for path in tmp_path.iterdir()} == {"landscape.html"}
    printed = re.search(r"```text\n(.*?)```", README, re.S)[1]  # the numbers are those of all images and epochs
    told = capsys.readouterr().out.replace(", stopped before the tolerance", "")  # which is coarse here
    shapes = [re.sub(r"[-+.\de]+|\s+", "#", lines) for lines in (printed, told)]
    assert shapes[0] == shapes[1]


def test_it_is_short_has_short_lines_of_code_and_no_dead_link():
    prose = re.sub(r"<!--.*?-->", "", README)
    assert len(prose.split()) <= 1500
    assert all(len(line) <= 100 for block in re.findall(r"```.*?```", README, re.S) for line in block.splitlines())
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_the_citation_is_of_this_version():
    version = re.search(r"^version = \"(.*)\"", (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
