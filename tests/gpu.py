"""What has to be seen on a GPU, in pieces of at most eight minutes: ``make gpu``, ``python tests/gpu.py [piece …]``.

What a piece printed goes to build/gpu/PIECE.txt once it has passed, and is shown instead of running it again: after an
interruption the next call goes on with the pieces that are left, a training with its next epoch. What was measured goes
to build/gpu/table.md and table.json. Delete the folder to begin anew. Without a CUDA device nothing is run, but for
``--dry``: every piece but the tests, small and uncompiled, on whatever there is, in build/gpu-dry.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys

import torch
from benchmarks.speed import SECTIONS
from benchmarks.trainings import NAMES

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "build" / "gpu"
LIMIT = 8 * 60  # seconds


def pieces(folder, root="data", dry=False):
    """Return name → command."""
    python, small = [sys.executable], ["--dry", "--network", "resnet8"] if dry else ["--compile"]
    tests = {} if dry else {"tests": [*python, "-m", "pytest", "tests", "-m", "gpu"]}
    speeds = {
        f"speed-{name}": [*python, "tests/benchmarks/speed.py", name, *small, "--json", str(folder / f"{name}.json")]
        for name in SECTIONS
    }
    more = ["--root", root, "--out", str(folder / "runs"), *small[:dry]]
    return tests | speeds | {f"train-{n}": [*python, "tests/benchmarks/trainings.py", n, *more] for n in NAMES}


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


def tabulate(folder):
    """Put what the pieces measured into one JSON file and one Markdown table."""
    rows = [
        row for name in SECTIONS if (file := folder / f"{name}.json").exists() for row in json.loads(file.read_text())
    ]
    (folder / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
    lines = ["| what | | measured | to reach |", "|---|---|---|---|"]
    for row in rows:
        value = (
            f"{row['value']:.2f} {row['unit']}"
            if "value" in row
            else f"{row['seconds'] * 1e3:.1f} ms, {row['ratio']:.2f} ×"
        )
        reach = f"≤ {row['reach']:g}{', **falls short**' * (row['value'] > row['reach'])}" if "reach" in row else ""
        lines.append(f"| {row['title']} | {row['name']} | {value} | {reach} |")
    devices = ", ".join(sorted({f"{row['device']}, {row['network']}" for row in rows}))
    (folder / "table.md").write_text("\n".join([f"On {devices}:", "", *lines]) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = pieces(FOLDER)
    parser.add_argument("pieces", nargs="*", metavar="piece", help=f"of {', '.join(known)}; default all")
    parser.add_argument("--root", default="data", help="folder that holds the CIFAR-10 files")
    parser.add_argument("--dry", action="store_true", help="see the pieces run, small, without a GPU")
    given = parser.parse_args()
    if unknown := set(given.pieces) - set(known):
        parser.error(f"no piece {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    folder = FOLDER.with_name("gpu-dry") if given.dry else FOLDER
    commands = pieces(folder, given.root, given.dry)
    chosen = {name: commands[name] for name in given.pieces or commands if name in commands}
    cuda = torch.cuda.is_available() or given.dry
    status = run(chosen, folder, cuda=cuda)
    if cuda:
        tabulate(folder)
    sys.exit(status)


if __name__ == "__main__":
    main()
