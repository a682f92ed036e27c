"""The base class of quantizers: state, calibration, and observation of activations."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from landscape.checking import checked, numbers

from .functional import check_bits

FRACTIONS = 80  # candidates tried for each end by the calibration
SAMPLE = 16_384  # values kept per observed batch of activations
PERCENTILE = 0.9999
Method = Literal["mse", "minmax", "percentile"]
_PATH = ("forward", "_output", "_quantize")  # of x through a quantizer


class Quantizer(nn.Module):
    """Base class of quantizers: state, calibration, and observation of activations.

    A subclass creates its state in `_add_state`, sets a range in `_set_range_`, defines `_quantize` and `step_size`:
    help(saq_core) says how. `quantize` takes such a class.

    Args:
        bits: 1 to 31.
        signed: Whether negative values have levels; None = calibration decides (activations only).
        shape: Shape of the step or clip, broadcastable to the quantized tensor: () or (channels, 1, …).
        activation: Whether the input has a batch dimension.

    Example:
        >>> import torch, saq_core
        >>> from saq_core.quantization.functional import clip, round_ste
        >>> class Ternary(saq_core.Quantizer):
        ...     def _add_state(self):
        ...         self.level = torch.nn.Parameter(torch.ones(self.shape))
        ...     def _set_range_(self, low, high):
        ...         self.level.data.copy_(high)
        ...     def _quantize(self, x):
        ...         return round_ste(clip(x / self.level, -1, 1)) * self.level
        ...     def step_size(self, x):
        ...         return self.level.detach()
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
        >>> len(saq_core.quantize(model, "W2A32", quantizer=Ternary)[1].used_weight().unique())
        3
    """

    is_quantizer = True
    method: Method = "mse"  # of calibration, where none is named
    two_ended = False  # whether the range has a lower end of its own; if not it is 0 … clip or -clip … clip
    dynamic = False  # whether the range of weights is taken anew in every forward pass
    smallest_signed_bits = 1  # 2 where one bit would leave no level on one side of zero
    signed: bool | None = None
    layer = ""  # whose values it quantizes, for messages

    def __init__(
        self, bits: int, *, signed: bool | None = True, shape: tuple[int, ...] = (), activation: bool = False
    ) -> None:
        super().__init__()
        if check_bits(bits) == 32:
            raise ValueError("bits must be at most 31 for a quantizer, got 32: use saq_core.quantization.Unquantized")
        if self.dynamic and not (signed or activation):
            raise ValueError(f"signed must be True for weights with {type(self).__name__}, got {signed}")
        numbers(whole=True, at_least=1, shape=min(shape, default=1))
        self.bits, self.activation, self.shape = bits, activation, tuple(shape)
        self.sign_from_data = signed is None
        self.records: list[Tensor] | None = None
        self._set_signed(signed)
        self._add_state()

    @classmethod
    @checked
    def for_weight(
        cls, bits: int, weight: Tensor, *, per_channel: bool = False, method: Method | None = None, **options: Any
    ) -> Quantizer:
        """Return a quantizer for `weight` (filters along dimension 0), calibrated on it."""
        _check_values(weight)
        shape = (weight.shape[0],) + (1,) * (weight.ndim - 1) if per_channel else ()
        quantizer = cls(bits, signed=True, shape=shape, **options).to(weight.device, weight.dtype)
        quantizer.calibrate_(weight, method)
        return quantizer

    def _check_signed(self, signed: bool | None) -> None:
        if signed and self.bits < self.smallest_signed_bits:
            rule = f"bits must be >= {self.smallest_signed_bits} for signed values with {type(self).__name__}"
            raise ValueError(f'{rule}, got {self.bits}: use quantizer="liq"')

    def _set_signed(self, signed: bool | None) -> None:
        self._check_signed(signed)
        self.signed = signed

    def _add_state(self) -> None:
        """Create parameters and buffers."""

    def _set_range_(self, low: Tensor, high: Tensor) -> None:
        raise NotImplementedError

    def _factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return whole numbers and the step whose product the quantized x is; for whom does not define `_quantize`."""
        raise NotImplementedError

    def _quantize(self, x: Tensor) -> Tensor:
        levels, step = self._factors(x)
        return levels * step

    def step_size(self, x: Tensor) -> Tensor:
        """Return the distance between neighbouring levels, in the units of the output, broadcastable to x."""
        raise NotImplementedError

    def _rounded_units(self, x: Tensor) -> Tensor:
        """Return x in the units in which it is clipped and rounded."""
        return x

    def _output(self, x: Tensor) -> Tensor:
        """Return the quantized x in the units of the output."""
        return self._quantize(x)

    def _dims(self, x: Tensor) -> tuple[int, ...]:
        """Return the dimensions that share a step."""
        return tuple(range(1 if self.shape else 0, x.ndim))

    def forward(self, x: Tensor) -> Tensor:
        """Return the quantized x; while observing, record x and return it unchanged."""
        if self.records is not None:
            self._observe(x.detach())
            return x
        if self.signed is None:
            where = f" of {self.layer}" if self.layer else ""
            raise RuntimeError(f"activations{where} are not calibrated: call saq_core.calibrate(model, data) first")
        return self._output(x)

    def factors(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return whole numbers and the step whose product the quantized x is; None where it is to be asked for x."""
        hooked = self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks
        if hooked or self.signed is None or self.records is not None:
            return None
        own = any(getattr(type(self), name) is not getattr(Quantizer, name) for name in _PATH)
        return None if own else self._factors(x)

    @torch.no_grad()
    @checked
    def calibrate_(self, x: Tensor, method: Method | None = None) -> None:
        """Set the range (so the step, clip or offset) from x, per channel where the step is.

        Without effect on weights whose range is taken anew in every forward pass.

        Args:
            x: What is to be quantized.
            method: "mse" tries 80 clips between 0 and max|x| and takes the one of least squared error (a range of two
                ends is drawn towards the median, both together, then each alone). "minmax" keeps all values in range.
                "percentile" takes the 99.99th percentile (of |x|, or at each end), where outliers would coarsen the
                step. None = the quantizer's own, "minmax" for `MinMax`, "mse" for the others.

        Cost: for "mse" 80 quantizations of x, 240 with two ends; else a sort at most.
        """
        _check_values(x)
        if self.dynamic and not self.activation:
            return
        z, method = self._rounded_units(x), method or self.method
        low, high = self._ends(z, method)
        high = torch.where(high > low, high, low + 1)
        self._set_range_(*(self._least_error(z, low, high) if method == "mse" else (low, high)))

    def _rows(self, z: Tensor) -> Tensor:
        return z.reshape(self.shape[0] if self.shape else 1, -1)

    def _ends(self, z: Tensor, method: Method) -> tuple[Tensor, Tensor]:
        """Return the lower and upper end of the values, the lower one 0 where it has no meaning."""

        def top(rows: Tensor) -> Tensor:
            rank = math.ceil(PERCENTILE * rows.shape[1])
            return (rows.kthvalue(rank).values if method == "percentile" else rows.amax(1)).reshape(self.shape)

        rows = self._rows(z)
        if self.two_ended:
            return -top(-rows), top(rows)
        high = top(rows.abs())
        return torch.zeros_like(high), high

    def _least_error(self, z: Tensor, low: Tensor, high: Tensor) -> list[Tensor]:
        """Shrink the end towards zero, or two ends towards the median, to the least squared error."""
        ends, pivot = [low, high], self._rows(z).median(1).values.reshape(self.shape) if self.two_ended else low
        for moved in ((0, 1), (0,), (1,)) if self.two_ended else ((1,),):
            best, least = ends, torch.full_like(high, torch.inf)
            for k in range(FRACTIONS, 0, -1):
                tried = [pivot + (e - pivot) * (k / FRACTIONS) if i in moved else e for i, e in enumerate(ends)]
                self._set_range_(*tried)
                error = self._rows((self._quantize(z) - z).square()).mean(1).reshape(self.shape)
                best = [torch.where(error < least, new, old) for new, old in zip(tried, best, strict=True)]
                least = torch.minimum(error, least)
            ends = best
        return ends

    def observe_(self) -> None:
        """Pass values through unchanged from now on, and record a sample of them."""
        self.records = []

    def _observe(self, x: Tensor) -> None:
        assert self.records is not None
        flat = x.flatten()
        chosen = torch.randint(flat.numel(), (SAMPLE,), generator=torch.Generator().manual_seed(len(self.records)))
        values = flat if flat.numel() <= SAMPLE else flat[chosen.to(flat.device)]
        self.records.append(torch.cat([values, flat.amin()[None], flat.amax()[None]]))

    def observed(self) -> Tensor | None:
        """Return the recorded values, None if there are none; raise if they cannot be quantized."""
        if not self.records:
            return None
        values = torch.cat(self.records)
        if not values.isfinite().all():
            raise ValueError("activations must be finite to calibrate on, got NaN or infinity: check data and weights")
        self._check_signed(self._sign_of(values))
        return values

    def _sign_of(self, values: Tensor) -> bool:
        return bool(values.min() < 0) if self.sign_from_data else bool(self.signed)

    def finish_(self, *, keep: bool = True, method: Method | None = None) -> None:
        """Stop observing; with `keep`, set sign and range from the recorded values, if there are any."""
        try:
            values, batches = self.observed() if keep else None, self.records or []
        finally:
            self.records = None
        if values is not None:
            self._set_signed(self._sign_of(values))
            if method == "percentile":  # the extremes that stand beside every sample would shift it
                values = torch.cat([batch[:-2] for batch in batches])
            self.calibrate_(values, method)

    def get_extra_state(self) -> dict[str, Any]:
        """Return bits and sign, which a state dict must carry beside the tensors."""
        return {"bits": self.bits, "signed": self.signed}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Load the sign from a state dict; the number of bits has to agree."""
        if state["bits"] != self.bits:
            raise ValueError(f"bits must agree with the stored quantizer's {state['bits']}, got {self.bits}")
        self._set_signed(state["signed"])

    def extra_repr(self) -> str:
        """Show bits and sign."""
        return f"bits={self.bits}, signed={self.signed}"


def _check_values(x: Tensor) -> None:
    if not (x.numel() and x.is_floating_point() and x.isfinite().all()):
        values = f"{x.dtype} of shape {tuple(x.shape)}"
        raise ValueError(f"x, say a weight, must hold finite floating-point numbers and at least one, got {values}")


class Unquantized(nn.Identity):
    """Stand in for a quantizer where nothing is quantized (32 bits): the identity, with step 0."""

    is_quantizer = False
    bits = 32
    signed = True

    def step_size(self, x: Tensor) -> Tensor:
        """Return 0: there are no levels."""
        return x.new_zeros(())


class Stored(nn.Identity):
    """Stand in for the quantizer of a weight that was read from integers: the identity, with its bits and step."""

    is_quantizer = True
    signed = True
    step: Tensor

    def __init__(self, bits: int, step: Tensor) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("step", step, persistent=False)

    def step_size(self, x: Tensor) -> Tensor:
        """Return the distance between levels, broadcastable to x."""
        return self.step


def check_latent(model: nn.Module, remedy: str) -> None:
    """Raise if a network has no latent weights because it was read from integers."""
    if any(isinstance(module, Stored) for module in model.modules()):
        raise ValueError(f"model must have its latent weights, got one that was read from integers: {remedy}")
