"""What has to be seen on a GPU, in pieces of at most eight minutes: ``make gpu``, ``python tests/gpu.py [piece …]``.

What a piece printed goes to build/gpu/PIECE.txt once it has passed, and is shown instead of running it again: after an
interruption the next call goes on with the pieces that are left. Delete the folder to begin anew. Without a CUDA device
nothing is run.
"""

import argparse
import pathlib
import shlex
import subprocess
import sys

import torch
from benchmarks.speed import SECTIONS

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "build" / "gpu"
LIMIT = 8 * 60  # seconds
PIECES = {"tests": [sys.executable, "-m", "pytest", "tests", "-m", "gpu"]}
PIECES |= {f"speed-{name}": [sys.executable, "tests/benchmarks/speed.py", name] for name in SECTIONS}


def done(name, folder):
    return folder / f"{name}.txt"


def passes(name, command, folder, limit):
    """Run a piece, print what it printed, and return whether it passed within the limit."""
    partial = folder / f"{name}.partial"
    with partial.open("w") as output:
        try:
            status = subprocess.run(command, stdout=output, stderr=output, cwd=ROOT, timeout=limit).returncode
            failure = f"exit status {status}" if status else ""
        except subprocess.TimeoutExpired:
            failure = f"stopped after {limit} s"
    print(partial.read_text(), end="")
    if failure:
        print(f"{name} did not pass: {failure}")
    else:
        partial.rename(done(name, folder))
    return not failure


def run(pieces, folder=FOLDER, *, limit=LIMIT, cuda):
    """Run what is left of the pieces, say what is still left then, and return the exit status."""
    left = [name for name in pieces if not done(name, folder).exists()]
    if not cuda:
        print("There is no CUDA device; on one, `make gpu` would run")
        for name in left:
            print(f"  {name:20} {shlex.join(pieces[name])}")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    for name, command in pieces.items():
        print(f"--- {name}: {shlex.join(command)}", flush=True)
        if name not in left:
            print(f"{done(name, folder).read_text()}(from {done(name, folder)})")
        elif passes(name, command, folder, limit):
            left.remove(name)
    print(f"left: {', '.join(left)}" if left else "every piece has passed", flush=True)
    return int(bool(left))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pieces", nargs="*", metavar="piece", help=f"of {', '.join(PIECES)}; default all")
    chosen = parser.parse_args().pieces
    if unknown := set(chosen) - set(PIECES):
        parser.error(f"no piece {', '.join(sorted(unknown))}; there are {', '.join(PIECES)}")
    sys.exit(run({name: PIECES[name] for name in chosen or PIECES}, cuda=torch.cuda.is_available()))


if __name__ == "__main__":
    main()
