"""Measure from the command line, on one process or, with torchrun, on many.

    python -m landscape surface --model saq_core:load twin.pt --out surface.nc
    torchrun --nproc-per-node=4 -m landscape eigen --model my_package.nets:trained --out top.nc

The model is what a function returns: ``package.module:function``, called with the words that follow, gives the network
(which carries its probe) or ``(network, data)``. With torchrun products share the batches and surfaces the points; the
numbers are those of one process. A network too large for one device is shared itself, by its weights (``--shard``), or
comes sharded from the function. Results are netCDF files (``landscape.load``), or CSV tables where the name ends so.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import nn

import landscape

from . import parallel
from .curvature.estimates import Method, Units
from .linalg import Which
from .model.sharding import shard

# what each command measures, and the options that it hands on
COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "surface": ("surface", ("span", "points", "normalize", "batchnorm", "precision", "adaptive", "tolerance", "path")),
    "line": ("line", ("span", "points", "normalize", "batchnorm", "precision", "path")),
    "trace": ("trace", ("units", "rtol", "num_probes", "method", "per_layer")),
    "eigen": ("top_eigenvalues", ("units", "k", "which", "tol", "max_products")),
    "density": ("density", ("units", "k", "num_probes", "steps")),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "span": {"type": float, "help": "half the length of an axis, in units of the direction"},
    "points": {"type": int, "help": "per axis, odd"},
    "normalize": {"choices": ("filter", "layer", "none"), "help": "of the random directions"},
    "batchnorm": {"choices": ("fixed", "recomputed"), "help": "statistics at every point"},
    "precision": {"choices": ("fp32", "bf16"), "help": "of the forward passes"},
    "adaptive": {"action": "store_true", "help": "measure where the surface bends, interpolate the rest"},
    "tolerance": {"type": float, "help": "of the interpolation, as a share of the range of the log-loss"},
    "path": {"help": "folder of finished tiles: a second call goes on from there"},
    "units": {"choices": get_args(Units), "help": "raw, or comparable between networks"},
    "rtol": {"type": float, "help": "relative standard error at which probes stop"},
    "num_probes": {"type": int, "help": "random vectors: of a trace at most, of a density"},
    "method": {"choices": get_args(Method), "help": "of the estimate"},
    "per_layer": {"action": "store_true", "help": "the traces of all weights, too"},
    "k": {"type": int, "help": "how many eigenvalues"},
    "which": {"choices": get_args(Which), "help": "end of the spectrum"},
    "tol": {"type": float, "help": "relative residual at which eigenvalues are done"},
    "max_products": {"type": int, "help": "Hessian-vector products at most"},
    "steps": {"type": int, "help": "Lanczos steps for each random vector"},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for; the first process writes the result and prints it."""
    given = vars(_parser().parse_args(arguments))
    function, _ = COMMANDS[given.pop("command")]
    spec, out, is_shared = given.pop("model"), given.pop("out"), given.pop("shard")
    settings = {name: value for name, value in given.items() if value is not None}
    device = parallel.start()
    try:
        model, data = network(spec, None if is_shared else device)
        model = shard(model, device) if is_shared else model
        result = getattr(landscape, function)(model, data, **settings)
        if parallel.rank() == 0 or any(map(parallel.is_sharded, model.parameters())):
            written = result.save(out)  # by all of them: what lies in shards is gathered
        if parallel.rank() == 0:
            print(f"{result!r}\n{written}")
    finally:
        parallel.stop()


def network(spec: Sequence[str], device: torch.device | None) -> tuple[nn.Module, Any]:
    """Call ``package.module:function`` with the words that follow, and return (network on the device, data or None).

    Without a device the network stays where the function made it.

    Raises:
        ValueError: no such function, or it returns something else.
    """
    module, _, name = spec[0].partition(":")
    sys.path.insert(0, "")  # modules beside the user, as `python -m` has them and torchrun has not
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--model must be package.module:function, got {spec[0]!r}: {error}") from error
    result = function(*spec[1:])
    model, data = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{spec[0]} must return a network or (network, data), got {type(model).__name__}")
    return (model if device is None else model.to(device)), data


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m landscape", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (function, options) in COMMANDS.items():
        described = (getattr(landscape, function).__doc__ or "").partition("\n")[0]
        command = commands.add_parser(name, help=described, description=described)
        words = ("MODULE:FUNCTION", "WORD")
        command.add_argument("--model", nargs="+", required=True, metavar=words, help="what returns the network")
        command.add_argument("--out", required=True, help="file to write: .nc (all of it) or .csv (a table)")
        command.add_argument("--shard", action="store_true", help="each process holds its share of every weight")
        command.add_argument("--seed", type=int, help="of directions and probes")
        command.add_argument("--space", choices=("quantized", "latent"), help="of a quantized network")
        for option in options:
            command.add_argument(f"--{option.replace('_', '-')}", **{"default": None} | OPTIONS[option])
    return parser


if __name__ == "__main__":
    main()
    parallel.leave()
