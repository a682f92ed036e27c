"""Train from the command line, on one process or, with torchrun, on many.

    python -m saq_core list
    python -m saq_core train digits-resnet8-w2a2-saq3
    python -m saq_core train cifar10-resnet20-w4a4-saq3 --root data --seed 1
    torchrun --nproc-per-node=8 -m saq_core train my_package.experiments:W3A3 --root data
    python -m saq_core export build/runs/digits-resnet8-w2a2-saq3-0.pt small.pt

An experiment is a data set, a network, its bits and a recipe; `list` shows the built-in ones. One of your own is an
object in any module that can be imported:

    FLOAT = saq_core.Experiment("float", "cifar100", "resnet18", saq_core.Recipe(epochs=90, lr=0.1))
    W3A3 = saq_core.Experiment("w3a3", "cifar100", "resnet18", saq_core.Recipe(epochs=90, lr=0.02,
        sam=saq_core.SAQ(rho=0.05)), bits="W3A3", start="my_package.experiments:FLOAT")

Interrupted, the same command goes on after the last finished epoch, to the same numbers. It writes NAME-SEED.pt
(saq_core.load; python -m landscape surface --model saq_core:load NAME-SEED.pt), .jsonl (a line per epoch), .json.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from typing import Any

from . import processes
from .training import EXPERIMENTS, reproduce

CHANGES: dict[str, dict[str, Any]] = {
    "epochs": {"type": int, "help": "of this experiment and of the one it starts from"},
    "lr": {"type": float, "help": "learning rate at the start, of both"},
    "batch_size": {"type": int, "help": "samples per step, in all processes together"},
    "micro_batch": {"type": int, "help": "samples per forward pass, where a batch does not fit in memory"},
    "amp": {"action": "store_true", "help": "forward passes in bfloat16 (swallows most of a small perturbation)"},
    "compile": {"action": "store_true", "help": "compile the forward pass (the default on a GPU)"},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = _parser()
    try:
        _run(vars(parser.parse_args(arguments)))
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"error: {error}\n")


def _run(arguments: dict[str, Any]) -> None:
    command = arguments.pop("command")
    if command == "list":
        for source, group in itertools.groupby(EXPERIMENTS.values(), key=lambda one: one.source):
            print(f"\n{source}")
            for one in group:
                size = f"{one.recipe.epochs:3} epochs, {one.limit or 'all'} images"
                print(f"  {one.name:36} {one.bits or 'FP32':5} {size}")
        return
    if command in ("describe", "export"):
        from . import describe, export, load

        model = load(arguments["file"])
        print(describe(model) if command == "describe" else export(model, arguments["to"]))
        return
    fixed = {name: arguments.pop(name) for name in ("name", "root", "seed", "out", "device", "download")}
    changes = {name: value for name, value in arguments.items() if value is not None}
    with processes.joined() as device:
        if processes.size() > 1 and str(fixed["device"]).startswith("cuda"):
            raise ValueError(f"device must be left out with several processes, each has its own, got {fixed['device']}")
        model = reproduce(fixed.pop("name"), **{**fixed, "device": fixed["device"] or device}, **changes)
        if processes.rank() == 0:
            print(model.history)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m saq_core", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the built-in experiments, with their sources")
    train = commands.add_parser("train", help="train an experiment, and the one it starts from")
    train.add_argument("name", help="of the experiment (see list), or package.module:NAME")
    train.add_argument("--root", help="folder of the data set")
    train.add_argument("--download", action="store_true", help="fetch a missing data set into root")
    train.add_argument("--seed", type=int, default=0, help="of weights, shuffling and augmentation")
    train.add_argument("--out", default="build/runs", help="folder of the files (default: %(default)s)")
    train.add_argument("--device", help="default: the GPU where there is one")
    for name, settings in CHANGES.items():
        train.add_argument(f"--{name.replace('_', '-')}", default=None, **settings)
    described = commands.add_parser("describe", help="layers, bits, parameters, MACs and BOPs of a saved network")
    described.add_argument("file")
    exported = commands.add_parser("export", help="write a saved network with its weights as packed integers")
    exported.add_argument("file", help="that saq_core.save wrote")
    exported.add_argument("to", help="file to write; saq_core.load reads it")
    return parser


if __name__ == "__main__":
    main()
    processes.leave()
