"""A network that holds several numbers of bits at once: one latent weight, a quantizer and a BatchNorm for each."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from ..data import Data
from ..quantization import Quantizer, QuantizerName, calibrate, quantize
from .space import Space


class Switch(nn.Module):
    """Stand in for a module of which there are several: the chosen one computes.

    Args:
        options: One per candidate; the same module may stand for several.
    """

    def __init__(self, options: Sequence[nn.Module]) -> None:
        super().__init__()
        self.options = nn.ModuleList(options)
        self.chosen = 0

    @property
    def current(self) -> Any:
        """The chosen option."""
        return self.options[self.chosen]

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the chosen option."""
        return self.current(x)


class QuantizerSwitch(Switch):
    """Expose the interface of the chosen quantizer."""

    @property
    def bits(self) -> int:
        """Of the chosen quantizer."""
        return self.current.bits

    def step_size(self, x: Tensor) -> Tensor:
        """Return the chosen quantizer's step."""
        return self.current.step_size(x)


class Switchable:
    """A network whose bits are chosen before each forward pass.

    The layers are those of `quantize`: latent weight, `delta`, `quantized_weights()`, so that `SAM` perturbs them as it
    perturbs any other. Each of their quantizers is replaced by one per candidate (one per number of bits: "W2A4" and
    "W4A4" share the input's), and each BatchNorm by one per candidate of the layer that feeds it.

    Args:
        model: The float network, which is left as it is.
        space: What can be chosen.
        data: To calibrate every quantizer on, before its network learns anything else.
        quantizer: See `quantize`.

    Source: Liu et al., Sharpness-aware Quantization, first version (2021), released code. Departures: every step is
    calibrated (theirs all start at 1); BatchNorm is copied once per candidate, not once per pair of numbers of bits,
    and PreResNet's last one is copied too.
    """

    def __init__(self, model: nn.Module, space: Space, data: Data, *, quantizer: QuantizerName = "lsq") -> None:
        fixed = [space.bits(space.everywhere(k)) for k in range(len(space.candidates))]
        networks = [calibrate(quantize(model, bits, quantizer=quantizer), data) for bits in fixed]
        self.model = networks[0]
        self.switches: dict[str, list[Switch]] = {leader: [] for leader in space.groups}
        owners = {name: leader for leader, group in space.groups.items() for name in group}
        for name in [n for n, m in self.model.named_modules() if isinstance(m, Quantizer)]:
            owner = max((layer for layer in owners if name.startswith(f"{layer}.")), key=len, default=None)
            if owner is not None:
                options = cast(list[Any], [network.get_submodule(name) for network in networks])
                by_bits = {option.bits: option for option in options}
                self._put(name, QuantizerSwitch([by_bits[option.bits] for option in options]), owners[owner])
        for name, leader in space.norms.items():
            norm = self.model.get_submodule(name)
            self._put(name, Switch([copy.deepcopy(norm) for _ in space.candidates]), leader)

    def _put(self, name: str, switch: Switch, leader: str) -> None:
        self.model.set_submodule(name, switch)
        self.switches[leader].append(switch)

    def choose_(self, choice: Tensor) -> None:
        """Switch to a choice (decisions,), on the CPU."""
        for switches, k in zip(self.switches.values(), choice.tolist(), strict=True):
            for switch in switches:
                switch.chosen = k
