"""The device and dtype of a network, and seeded random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from landscape.checking import seed_of


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's weights; the CPU if it has none."""
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


def check_loaded(model: nn.Module, may_be_meta: bool = False) -> None:
    """Raise if a weight has no values yet: of a lazy module that has not run, or on the meta device.

    Args:
        model: any network.
        may_be_meta: whether shapes suffice.
    """
    for name, tensor in model.named_parameters():
        is_empty = tensor.is_meta and type(tensor) in (torch.Tensor, nn.Parameter)  # a subclass may hold them elsewhere
        if is_lazy(tensor) or (is_empty and not may_be_meta):
            way = "run the network once" if is_lazy(tensor) else "call to_empty() and load or initialise the weights"
            raise ValueError(f"model must have its weights, and {name} has no values yet: {way}")


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return the first floating dtype of the model's weights; float32 if it has none."""
    return next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), torch.float32)


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global generators of the CPU and of one device inside the context; restore them, touch no other."""
    device = torch.device("cpu") if device is None else device
    seed = seed_of(seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)
        yield
