"""The recipes of figures.methods on all of CIFAR-10: ``python tests/benchmarks/trainings.py NAME --root DIR``.

Called again it goes on after the last epoch that was finished.
"""

import argparse
import dataclasses

import saq_core

NAMES = [name for name in saq_core.EXPERIMENTS if name.startswith("cifar10-resnet20-")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--root", default="data", help="folder that holds the CIFAR-10 files")
    parser.add_argument("--out", default="build/gpu/runs")
    parser.add_argument("--dry", action="store_true", help="see it run: an epoch of 64 digits")
    given = parser.parse_args()
    size = {"data": "digits", "limit": 64} if given.dry else {"limit": None}
    for name in ("cifar10-resnet20", *NAMES):  # the one that the others start from, too
        saq_core.EXPERIMENTS[name] = dataclasses.replace(saq_core.EXPERIMENTS[name], **size)
    print(saq_core.reproduce(given.name, given.root, out=given.out, **({"epochs": 1} if given.dry else {})).history)


if __name__ == "__main__":
    main()
