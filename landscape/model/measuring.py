"""The state in which a network is measured: eval mode, full precision, no random numbers consumed; all is put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .precision import full_precision

_measured: set[int] = set()  # ids of the models that are being measured


@contextlib.contextmanager
def measurement_mode(
    model: nn.Module, device: torch.device, generator: torch.Generator | None = None
) -> Iterator[None]:
    """Hold a model in eval mode, TF32 off, attention in its math kernel and the RNG as it was; restore all.

    Inside itself it does nothing.

    Args:
        model: the network.
        device: where it computes.
        generator: of a DataLoader that shuffles by itself: put back to its state.

    Raises:
        RuntimeError: under ``torch.inference_mode()``, whose tensors have no derivatives.
    """
    if id(model) in _measured:
        yield
        return
    if torch.is_inference_mode_enabled():
        raise RuntimeError("nothing can be measured under torch.inference_mode(): leave it, or use torch.no_grad()")
    modes = [(module, module.training) for module in model.modules()]
    state = None if generator is None else generator.get_state()
    devices = [device] if device.type == "cuda" else []
    autocast_off = torch.autocast(device.type, enabled=False)
    with torch.random.fork_rng(devices), full_precision(), autocast_off, sdpa_kernel(SDPBackend.MATH):
        try:
            _measured.add(id(model))
            model.eval()
            yield
        finally:
            _measured.discard(id(model))
            for module, training in modes:
                module.training = training
            if generator is not None and state is not None:
                generator.set_state(state)
