"""README's first picture: log loss around a float network and its 4-bit and 2-bit copies, turning.

``python -m figures.turning`` draws it from turning.nc, or measures that anew where there is none (minutes).
"""

from pathlib import Path

import landscape
import saq_core

from .study import RUNS

DATA = Path(__file__).with_suffix(".nc")
NETWORKS = {"FP32": "digits-resnet8-fp32", "W4A4": "digits-resnet8-w4a4-sgd", "W2A2": "digits-resnet8-w2a2-sgd"}


def compute() -> landscape.Comparison:
    """Measure all three, tuned for as many epochs from one float network, on 256 images along the same directions."""
    models = {name: saq_core.reproduce(experiment, out=RUNS) for name, experiment in NETWORKS.items()}
    probe = next(iter(models.values())).probe
    return landscape.compare(models, tuple(part[:256] for part in probe))


def main() -> None:
    """Write figures/turning.gif."""
    if not DATA.exists():
        compute().save(DATA)
    landscape.save_animation(landscape.load(DATA), DATA.with_suffix(".gif"))


if __name__ == "__main__":
    main()
