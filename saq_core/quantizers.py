"""Learned-step quantizers in plain tensor operations.

Everything here is differentiable twice, works under ``torch.func`` and fuses under ``torch.compile``: rounding is
written as ``x + (round(x) - x).detach()`` and not as a custom autograd function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SMALLEST_STEP = 1e-8  # a learned step or clip below this is read as this, so that it never reaches 0 or flips sign
FIXED_FROM = 8  # bits from which LSQ keeps its calibrated step: see there
FRACTIONS = 80  # candidates tried between 0 and max|x| by the calibration
SAMPLE = 16_384  # values kept per observed batch of activations


def round_ste(x: Tensor) -> Tensor:
    """Round half to even, with gradient 1 (straight-through estimator)."""
    return x + (x.round() - x).detach()


def scale_gradient(s: Tensor, factor: float) -> Tensor:
    """Return s unchanged with its gradient multiplied by `factor`.

    A backward hook would be wrong when gradients accumulate over several uses; this is part of the graph.
    """
    return s * factor + (s - s * factor).detach()


def check_bits(bits: int, name: str = "bits") -> int:
    """Return `bits` if it is a whole number from 1 to 32."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 32:
        raise ValueError(f"{name} must be a whole number from 1 to 32 (32 = leave as it is), got {bits!r}")
    return bits


class Quantizer(nn.Module):
    """The part that all quantizers share: state, calibration, and watching activations.

    A subclass holds one learned parameter (its step or clip) and gives `_set_clip_`, `_quantize` and `step_size`.

    Args:
        bits: 1 to 31.
        signed: Whether negative values have levels; None = calibration decides (activations only).
        shape: Shape of the learned parameter, broadcastable to the quantized tensor: () or (channels, 1, …).
        activation: Whether the input has a batch dimension.
    """

    is_quantizer = True
    weight_units = "plain"

    def __init__(
        self, bits: int, *, signed: bool | None = True, shape: tuple[int, ...] = (), activation: bool = False
    ) -> None:
        super().__init__()
        if check_bits(bits) == 32:
            raise ValueError("bits must be at most 31 for a quantizer, got 32: use saq_core.quantizers.Unquantized")
        self.bits, self.activation, self.shape = bits, activation, tuple(shape)
        self._observed: list[Tensor] | None = None
        self.signed: bool | None = None
        if signed is not None:
            self._set_signed(signed)

    @classmethod
    def for_weight(cls, bits: int, weight: Tensor, *, per_channel: bool = False, **options: Any) -> Quantizer:
        """Make a quantizer for `weight` (filters along dimension 0) and calibrate it."""
        shape = (weight.shape[0],) + (1,) * (weight.ndim - 1) if per_channel else ()
        quantizer = cls(bits, signed=True, shape=shape, **options).to(weight.device, weight.dtype)
        quantizer.calibrate_(weight)
        return quantizer

    def _check_signed(self, signed: bool) -> None:
        """Raise if there are too few bits for negative values."""

    def _set_signed(self, signed: bool) -> None:
        self._check_signed(signed)
        self.signed = signed

    def _set_clip_(self, clip: Tensor) -> None:
        raise NotImplementedError

    def _quantize(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def step_size(self, x: Tensor) -> Tensor:
        """Return the distance between neighbouring levels, in the units of the output, broadcastable to x."""
        raise NotImplementedError

    def _rounded_units(self, x: Tensor) -> Tensor:
        """Return x in the units in which it is clipped and rounded."""
        return x

    def _output(self, x: Tensor) -> Tensor:
        """Return the quantized x in the units of the output."""
        return self._quantize(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the quantized x; while observing, watch x and return it untouched."""
        if self._observed is not None:
            self._observe(x.detach())
            return x
        if self.signed is None:
            raise RuntimeError("activations are not calibrated: call saq_core.calibrate(model, data) first")
        return self._output(x)

    @torch.no_grad()
    def calibrate_(self, x: Tensor) -> None:
        """Set the step or clip to the one of least squared error on x.

        Tries 80 clips between 0 and max|x| (per channel where the step is). A departure from LSQ's 2·mean|x|/sqrt(Qp)
        and from LIQ's c = 1: neither looks at the error, and at 8 bits both clip what would have fitted.

        Cost: 80 quantizations of x.
        """
        if x.numel() == 0:
            raise ValueError("x must hold at least one value, got an empty tensor")
        z = self._rounded_units(x)
        top = z.abs().amax(dim=tuple(range(1, z.ndim)), keepdim=True) if self.shape else z.abs().amax()
        top = torch.where(top > 0, top, torch.ones_like(top))
        best, least = top, torch.full_like(top, torch.inf)
        for k in range(FRACTIONS, 0, -1):
            clip = top * (k / FRACTIONS)
            self._set_clip_(clip)
            square = (self._quantize(z) - z).square()
            error = square.mean(dim=tuple(range(1, z.ndim)), keepdim=True) if self.shape else square.mean()
            best, least = torch.where(error < least, clip, best), torch.minimum(error, least)
        self._set_clip_(best)

    def observe_(self) -> None:
        """Let values through untouched from now on, and remember a sample of them."""
        self._observed = []

    def _observe(self, x: Tensor) -> None:
        assert self._observed is not None
        flat = x.flatten()
        chosen = torch.randint(flat.numel(), (SAMPLE,), generator=torch.Generator().manual_seed(len(self._observed)))
        values = flat if flat.numel() <= SAMPLE else flat[chosen.to(flat.device)]
        self._observed.append(torch.cat([values, flat.amin()[None], flat.amax()[None]]))

    def observed(self) -> Tensor | None:
        """Return the values seen, or None without any; raise if they cannot be quantized."""
        if not self._observed:
            return None
        values = torch.cat(self._observed)
        if not values.isfinite().all():
            raise ValueError("activations must be finite to calibrate on, got NaN or infinity: check data and weights")
        self._check_signed(bool(values.min() < 0))
        return values

    def finish_(self, *, keep: bool = True) -> None:
        """Stop observing; with `keep`, set sign and step from what was seen (nothing seen: stays as it was)."""
        try:
            values = self.observed() if keep else None
        finally:
            self._observed = None
        if values is not None:
            self._set_signed(bool(values.min() < 0))
            self.calibrate_(values)

    def get_extra_state(self) -> dict[str, Any]:
        """Return what a state dict must carry beside the tensors."""
        return {"bits": self.bits, "signed": self.signed}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take sign over from a state dict; the number of bits has to agree."""
        if state["bits"] != self.bits:
            raise ValueError(f"bits must agree with the stored quantizer's {state['bits']}, got {self.bits}")
        if state["signed"] is None:
            self.signed = None
        else:
            self._set_signed(state["signed"])

    def extra_repr(self) -> str:
        """Show bits and sign."""
        return f"bits={self.bits}, signed={self.signed}"


class LSQ(Quantizer):
    """Quantize with a learned step size.

    ``Q(x) = s · round(clamp(x/s, -Qn, Qp))`` with Qn = 2^(b-1), Qp = 2^(b-1)-1 (signed) or 0, 2^b-1 (unsigned).
    The gradient of x is masked where x/s (not its rounded value) is out of range; the gradient of s is
    round(x/s) - x/s inside and -Qn or Qp outside, times 1/sqrt(N·Qp), N = weights per step or features per sample.

    Choose it by default: it has a level at zero and trains at 2 to 8 bits.

    Args:
        bits: 2 to 31 where signed (the one bit of a signed LSQ would have the levels -s and 0), 1 to 31 otherwise.
        signed: See `Quantizer`.
        shape: See `Quantizer`.
        activation: See `Quantizer`.

    Source: Esser et al., Learned Step Size Quantization (2020), eq. 1-3, section 2.2. Departures: the step is used as
    max(|s|, 1e-8), so that no update can make it negative; calibration replaces the paper's initial value; from 8 bits
    on the step is not trained. There it is so small that single updates are many times its size, and a step beyond
    the largest weight has no gradient to come back: 8-bit first layers were left with 3 to 30 levels, or none but zero
    (ResNet-8, SAQ), while the step of least error costs nothing.
    """

    def __init__(
        self, bits: int, *, signed: bool | None = True, shape: tuple[int, ...] = (), activation: bool = False
    ) -> None:
        super().__init__(bits, signed=signed, shape=shape, activation=activation)
        self.step = nn.Parameter(torch.ones(shape), requires_grad=bits < FIXED_FROM)

    def _check_signed(self, signed: bool) -> None:
        if signed and self.bits == 1:
            raise ValueError('bits must be >= 2 for signed values with LSQ, got 1: use quantizer="liq"')

    def _range(self) -> tuple[int, int]:
        if self.signed:
            return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1

    def _set_clip_(self, clip: Tensor) -> None:
        self.step.data.copy_(clip / self._range()[1])

    def _step(self) -> Tensor:
        return self.step.abs().clamp_min(SMALLEST_STEP)

    def _quantize(self, x: Tensor) -> Tensor:
        low, high = self._range()
        values = x[0].numel() if self.activation else x.numel() // self.step.numel()
        s = scale_gradient(self._step(), (max(values, 1) * high) ** -0.5)
        return round_ste((x / s).clamp(low, high)) * s

    def step_size(self, x: Tensor) -> Tensor:
        """Return the step, broadcastable to x."""
        return self._step().detach()


class LIQ(Quantizer):
    """Quantize with a learned clip, after normalising convolution weights.

    Weights: ŵ = (w - mean)/std, u = clamp(ŵ/c, -1, 1), ``Q̂ = c·(2·R((u+1)/2) - 1)`` with R(v) = round(n·v)/n and
    n = 2^b - 1: 2^b levels from -c to c, none at zero. Then ``Q = σ·Q̂ + mean``. Mean and std are held constant in the
    gradient. Linear weights are not normalised. Unsigned activations: ``c·R(clamp(x/c, 0, 1))``.

    Choose it to reproduce SAQ, or for 1-bit weights.

    Args:
        bits: 1 to 31.
        signed: See `Quantizer`.
        shape: See `Quantizer`.
        activation: See `Quantizer`.
        normalise: Whether x is normalised first (convolution weights).
        rescale: False leaves Q̂ in units of std(w), the authors' literal form (BatchNorm absorbs the scale); only for
            reproducing them: rho, directions and curvature then have other units than in every other network.

    Source: Liu et al., Sharpness-aware Quantization (2021), released code. Departures: Q̂ is brought back to the units
    of w (mean too: without it a trained network loses its function the moment it is quantized); std is at least 1e-8;
    the clip is calibrated; signed activations get ``c·round(m·clamp(x/c, -1, 1))/m``, m = 2^(b-1)-1, because the
    weights' formula would turn every zero into c/n (the authors clip negative activations away).
    """

    def __init__(
        self,
        bits: int,
        *,
        signed: bool | None = True,
        shape: tuple[int, ...] = (),
        activation: bool = False,
        normalise: bool = False,
        rescale: bool = True,
    ) -> None:
        super().__init__(bits, signed=signed, shape=shape, activation=activation)
        self.clip = nn.Parameter(torch.ones(shape))
        self.normalise = normalise
        self.weight_units = "plain" if rescale or not normalise else "normalised"

    @classmethod
    def for_weight(cls, bits: int, weight: Tensor, *, per_channel: bool = False, **options: Any) -> Quantizer:
        """Make a quantizer for `weight`, normalised if it belongs to a convolution, and calibrate it."""
        if per_channel and weight.ndim > 2 and weight[0].numel() < 2:
            raise ValueError(f"per_channel=True needs >= 2 weights per filter with liq, got {tuple(weight.shape)}")
        options.setdefault("normalise", weight.ndim > 2)
        return super().for_weight(bits, weight, per_channel=per_channel, **options)

    def _set_clip_(self, clip: Tensor) -> None:
        self.clip.data.copy_(clip)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        w = x.detach()
        dims = tuple(range(1, x.ndim)) if self.shape else tuple(range(x.ndim))
        return w.mean(dims, keepdim=True), w.std(dims, keepdim=True).clamp_min(SMALLEST_STEP)

    def _rounded_units(self, x: Tensor) -> Tensor:
        if not self.normalise:
            return x
        mean, std = self._moments(x)
        return (x - mean) / std

    def _output(self, x: Tensor) -> Tensor:
        if not self.normalise:
            return self._quantize(x)
        mean, std = self._moments(x)
        q = self._quantize((x - mean) / std)
        return q * std + mean if self.weight_units == "plain" else q

    def _clip(self) -> Tensor:
        return self.clip.abs().clamp_min(SMALLEST_STEP)

    def _quantize(self, x: Tensor) -> Tensor:
        c, n = self._clip(), 2**self.bits - 1
        if not self.signed:
            return round_ste((x / c).clamp(0, 1) * n) / n * c
        u = (x / c).clamp(-1, 1)
        m = 2 ** (self.bits - 1) - 1
        if self.activation and m:
            return round_ste(u * m) / m * c
        return (2 * round_ste((u + 1) / 2 * n) / n - 1) * c

    def step_size(self, x: Tensor) -> Tensor:
        """Return the distance between levels, broadcastable to x."""
        n, m = 2**self.bits - 1, 2 ** (self.bits - 1) - 1
        gap = 1 / n if not self.signed else 1 / m if self.activation and m else 2 / n
        step = (self._clip() * gap).detach()
        return step * self._moments(x)[1] if self.normalise and self.weight_units == "plain" else step


class Unquantized(nn.Module):
    """Stand in for a quantizer where nothing is quantized (32 bits): the identity, with step 0."""

    is_quantizer = False
    weight_units = "plain"
    bits = 32
    signed = True

    def forward(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    def step_size(self, x: Tensor) -> Tensor:
        """Return 0: there are no levels."""
        return x.new_zeros(())


# Name -> (class, options for weights).
QUANTIZERS: dict[str, tuple[type[Quantizer], dict[str, Any]]] = {
    "lsq": (LSQ, {}),
    "liq": (LIQ, {}),
    "liq-authors": (LIQ, {"rescale": False}),
}


def weight_quantizer(name: str, bits: int, weight: Tensor, *, per_channel: bool = False) -> nn.Module:
    """Make the quantizer of that name for a weight, calibrated on it; the identity for 32 bits."""
    if bits == 32:
        return Unquantized()
    kind, options = QUANTIZERS[name]
    return kind.for_weight(bits, weight.detach(), per_channel=per_channel, **options)


def input_quantizer(name: str, bits: int, like: Tensor, *, signed: bool | None = None) -> nn.Module:
    """Make the quantizer of that name for activations, on the device of `like`; the identity for 32 bits.

    It waits for calibration, which also decides on the sign where `signed` is None.
    """
    if bits == 32:
        return Unquantized()
    kind, _ = QUANTIZERS[name]
    return kind(bits, signed=signed, activation=True).to(like.device, like.dtype)
