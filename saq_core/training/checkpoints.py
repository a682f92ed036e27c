"""Saving a network with all that a further training needs, and loading it without executing anything."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landscape.model import quantized_layers

from .. import files, processes
from ..models import make
from ..quantization import KIND, QUANTIZERS, check_latent, copy_model, quantize, unpack_
from .history import History
from .recipes import Recipe


def save(model: nn.Module, path: str | Path) -> None:
    """Write weights, quantizer settings, recipe, history, probe and versions to `path`, whole or not at all.

    Args:
        model: Any network, with the attributes that `build_model`, `quantize` and `train` set on it.
        path: Of the file; folders are made.

    Raises:
        ValueError: If the network was read from a file of `export`.

    Example:
        >>> import tempfile, torch, saq_core
        >>> model = saq_core.quantize(torch.nn.Sequential(torch.nn.Linear(4, 2)), "W4A32")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     saq_core.save(model, f"{folder}/model.pt")
        ...     back = saq_core.load(f"{folder}/model.pt", model)
        >>> torch.equal(back[0].weight, model[0].weight)
        True
    """
    check_latent(model, "copy that file, or export() again")
    recipe, history = getattr(model, "recipe", None), getattr(model, "history", None)
    content = {
        "state": model.state_dict(),
        "architecture": getattr(model, "architecture", None),
        "quantization": getattr(model, "quantization", None),
        "recipe": None if recipe is None else recipe.stored(),
        "history": None if history is None else history.state(),
        "probe": _plain(getattr(model, "probe", None)),
        "versions": {"torch": str(torch.__version__), "python": platform.python_version()},
    }
    files.write(path, "model", content)


def load(path: str | Path, model: nn.Module | None = None, *, map_location: torch.device | str = "cpu") -> nn.Module:
    """Return the network that `save` wrote, in evaluation mode, with its recipe, history and probe.

    From a file of `export`, the network has the weights it computed with, and can be measured but not trained.

    Args:
        path: Of the file.
        model: Needed for networks that `build_model` did not make: one of the same kind, float or quantized. It is
            left as it is.
        map_location: Device of the weights; the probe stays on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is cut short or not ours, or holds another network or quantizer than `model`.

    Example:
        See `save`.

        >>> import saq_core
        >>> saq_core.load("nowhere.pt")
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] No such file or directory: 'nowhere.pt'
    """
    content = files.read(path, ("model", KIND), map_location)
    network = _instance(content, model, path)
    if content["kind"] == KIND:
        content["state"] |= unpack_(network, content["packed"])
    files.check_same_network(network, content["state"], path)
    dtypes = {k: v.dtype for k, v in content["state"].items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    network.to(dtype=Counter(dtypes.values()).most_common(1)[0][0] if dtypes else torch.float32)
    for name, tensor in network.state_dict(keep_vars=True).items():
        if name in dtypes:
            tensor.data = tensor.data.to(dtypes[name])
    network.load_state_dict(content["state"])
    readers: dict[str, Callable[[Any], Any]] = {"architecture": dict, "probe": partial(processes.moved, device="cpu")}
    readers |= {"recipe": Recipe.from_dict, "history": History.from_state}
    for name, read in readers.items():
        if content.get(name) is not None:
            setattr(network, name, read(content[name]))
    return network.to(map_location).eval()


def _plain(value: Any) -> Any:
    """Return a probe as a file can hold it, in plain containers; None where there is something else in it."""
    if isinstance(value, Mapping):
        value = {key: _plain(part) for key, part in value.items()}
        return None if None in value.values() else value
    if isinstance(value, list | tuple):
        parts = [_plain(part) for part in value]
        return None if any(part is None for part in parts) else type(value)(parts) if type(value) is tuple else parts
    return value if isinstance(value, torch.Tensor | int | float | str) else None


def _check_size(content: dict[str, Any], path: str | Path) -> None:
    """Raise if a file names a network of more weights than it holds, before memory for them is taken."""
    try:
        with torch.device("meta"):
            named = sum(parameter.numel() for parameter in make(content["architecture"]).parameters())
    except Exception as error:  # whatever a network without sense raises
        raise ValueError(f"{path} names no network that can be built: {error}") from error
    held = sum(value.numel() for value in content["state"].values() if isinstance(value, torch.Tensor))
    held += sum(math.prod(stored["shape"]) for stored in content.get("packed", {}).values())
    if named > held:
        raise ValueError(f"{path} names a network of {named:,} weights, but holds {held:,}")


def _instance(content: dict[str, Any], model: nn.Module | None, path: str | Path) -> nn.Module:
    if model is not None:
        network = copy_model(model)
    elif content["architecture"] is not None:
        _check_size(content, path)
        network = make(content["architecture"])
    else:
        raise ValueError(f"model must be given for {path}, got None: its network is not one of build_model's")
    settings, expected = content["quantization"], getattr(network, "quantization", None)
    if settings and expected and settings["quantizer"] != expected["quantizer"]:
        kinds = f"model must have the quantizer {settings['quantizer']!r} of {path}, got {expected['quantizer']!r}"
        raise ValueError(f"{kinds}: pass the float network, or quantize it alike")
    if settings is None or quantized_layers(network):
        return network
    if settings["quantizer"] not in QUANTIZERS:
        kind = f"model must be quantized with {settings['quantizer']} to load {path}"
        raise ValueError(f"{kind}, got a float one: quantize it alike first")
    # steps come from the file
    return quantize(network, settings["bits"], method="minmax", **{k: v for k, v in settings.items() if k != "bits"})
