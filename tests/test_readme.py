"""README's calls work, in the order in which they stand there."""

import ast
import pathlib
import re

import matplotlib.pyplot as plt

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
SHORTER = {
    r'"digits"': '"digits", limit=32',
    r"epochs=\d+": "epochs=1",
    r"points=\d+": "points=5",
    r"rtol=0\.01": "rtol=0.5, num_probes=2",
    r"plot_surface\(twin\)": "plot_surface(twin, points=5)",
    r'"W4A4 SAQ": twin}\)': '"W4A4 SAQ": twin}, points=3, radii=(0.05,))',
    r"trace\(twin\)": "trace(twin, num_probes=2)",
    r"per_layer=True\)": "per_layer=True, num_probes=2)",
    r"top_eigenvalues\(twin\)": "top_eigenvalues(twin, tol=0.1)",
    r"density\(twin\)": "density(twin, steps=10)",
}


def test_the_snippets_run_one_after_the_other_on_fewer_images_epochs_and_points(tmp_path, monkeypatch, coarse):
    monkeypatch.chdir(tmp_path)
    text = "".join(re.findall(r"```python\n(.*?)```", README, re.S))
    for pattern, shorter in SHORTER.items():
        text, count = re.subn(pattern, shorter, text)
        assert count, pattern
    names = {}
    for statement in ast.parse(text).body:
        exec(compile(ast.Module([statement], []), ast.unparse(statement), "exec"), names)
    plt.close("all")
    assert {path.name for path in tmp_path.iterdir()} == {"comparison.nc", "run.jsonl", "tiles", "twin.pt"}
