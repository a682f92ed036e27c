"""How sharp are a float network, its low-bit twins trained with SGD, and one trained with SAQ, on CIFAR-10?

    python figures/cifar10_sharpness.py train --root DIR --seed 0     (and 1, 2: one process each)
    python figures/cifar10_sharpness.py compare                       (measures, prints the table, saves, draws)

Networks and measurements are kept in build/cifar10/; a training that was interrupted goes on where it stopped.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import landscape
import saq_core

OUT = Path("build/cifar10")
FLOAT = saq_core.Recipe(epochs=40, lr=0.1)
TUNE = saq_core.Recipe(epochs=8, lr=0.02)
# every network, the float one too, is tuned alike: what differs between two rows is the rounding or SAQ, not the epochs
TWINS = {
    "W4A4 SGD": ("W4A4", TUNE),
    "W2A2 SGD": ("W2A2", TUNE),
    "W2A2 SAQ": ("W2A2", replace(TUNE, sam=saq_core.SAQ(rho=0.05, case=3))),
}


def train(root: str, seed: int, limit: int, network: str) -> None:
    """Train the float network, each twin from it, and the float one as long as they; with the same data and probe."""
    data = saq_core.load_data("cifar10", root, limit=limit)
    model = saq_core.build_model(network, data, seed=seed)
    finish("base", model, data, replace(FLOAT, seed=seed))
    for name, (bits, recipe) in TWINS.items():
        twin = saq_core.calibrate(saq_core.quantize(model, bits), data)
        finish(name, twin, data, replace(recipe, seed=seed))
    finish("FP32", model, data, replace(TUNE, seed=seed))


def finish(name: str, model, data, recipe: saq_core.Recipe) -> None:
    """Train one network (or go on with it), test it and save it."""
    OUT.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace(' ', '_')}_{recipe.seed}"
    history = saq_core.train(model, data, recipe, checkpoint=OUT / f"{stem}.training.pt")
    saq_core.save(model, OUT / f"{stem}.pt")
    test = saq_core.evaluate(model, data.test)
    seconds = sum(row["seconds"] for row in history.epochs)
    text = f"{stem}: test accuracy {test.accuracy:.4f} ± {test.accuracy_stderr:.4f}, {seconds:.0f} s"
    (OUT / f"{stem}.txt").write_text(text + "\n")
    print(text, flush=True)


def compare(seeds: list[int], samples: int) -> None:
    """Measure all networks on the first `samples` images of their probe; save, print and draw."""
    models = {n: [saq_core.load(OUT / f"{n.replace(' ', '_')}_{s}.pt") for s in seeds] for n in ("FP32", *TWINS)}
    x, y = models["FP32"][0].probe
    comparison = landscape.compare(models, (x[:samples], y[:samples]))
    comparison.save(OUT / "comparison.nc")
    print(comparison)
    draw()


def draw() -> None:
    """Redraw from what was saved."""
    comparison = landscape.load(OUT / "comparison.nc")
    landscape.save_figure(comparison.draw(), OUT / "surfaces")
    landscape.save_figure(comparison.draw_lines(log=True), OUT / "lines")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "compare", "draw"])
    parser.add_argument("--root", default="data", help="folder that holds the CIFAR-10 files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--limit", type=int, default=5000, help="training images")
    parser.add_argument("--samples", type=int, default=1024, help="images of the probe that are measured")
    parser.add_argument("--network", default="resnet8")
    given = parser.parse_args()
    if given.command == "train":
        train(given.root, given.seed, given.limit, given.network)
    elif given.command == "compare":
        compare(given.seeds, given.samples)
    else:
        draw()
