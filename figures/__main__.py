"""Make the papers' figures anew.

    python -m figures                             list them
    python -m figures saq_surfaces                draw one from the saved data (computes it where there are none)
    python -m figures all                         draw all: under a minute
    python -m figures all --profile smoke --anew  compute and draw all, small, as the tests do
    python -m figures all --anew                  compute and draw all: over an hour
    python -m figures NAME --profile gpu --root data --download

The data and pictures of the cpu profile are part of the repository (figures/cpu), those of the others go to
build/figures; trained networks are kept in build/runs/PROFILE and used again.
"""

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

from . import asga, basins, fpq, saq, sensitivity, stability, tables
from .catalogue import Figure, folder, make
from .profiles import PROFILES

_PARTS = (saq, fpq, asga, tables, basins, stability, sensitivity)
FIGURES: dict[str, Figure] = {figure.name: figure for part in _PARTS for figure in part.FIGURES}


def main() -> None:
    """List the figures, or make some."""
    parser = argparse.ArgumentParser(
        prog="python -m figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="figures, or all")
    parser.add_argument("--profile", choices=list(PROFILES), default="cpu", help="how large (default: cpu)")
    parser.add_argument("--anew", action="store_true", help="compute what is saved already, too")
    parser.add_argument("--root", help="folder of the data set, for profiles that need one")
    parser.add_argument("--download", action="store_true", help="fetch a missing data set")
    parser.add_argument("--out", type=Path, help="other folder for data and pictures")
    given = parser.parse_args()
    if unknown := set(given.names) - {"all", *FIGURES}:
        parser.error(f"NAME must be all or one of {', '.join(FIGURES)}; got {', '.join(sorted(unknown))}")
    if not given.names:
        for figure in FIGURES.values():
            print(f"{figure.name:20} {figure.source}: {figure.claim}")
        return
    profile = replace(PROFILES[given.profile], root=given.root, download=given.download)
    for name in FIGURES if "all" in given.names else given.names:
        began = time.monotonic()
        pictures = make(FIGURES[name], profile, given.out or folder(given.profile), given.anew)
        print(f"{name:20} {time.monotonic() - began:6.1f} s  {os.path.relpath(pictures[-1])}", flush=True)


if __name__ == "__main__":
    main()
