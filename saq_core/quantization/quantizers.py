"""The quantizers by name: LSQ, LSQ+ and LSQ with a fixed zero point, PACT, DoReFa, LIQ and MinMax."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from landscape.checking import checked

from .base import Method, Quantizer, Unquantized
from .functional import clip, round_ste, scale_gradient, smallest_step

FIXED_FROM = 8  # bits from which LSQ keeps its calibrated step: see there


class LSQ(Quantizer):
    """Quantize with a learned step size.

    ``Q(x) = s · round(clamp(x/s, -Qn, Qp))`` with Qn = 2^(b-1), Qp = 2^(b-1)-1 (signed) or 0, 2^b-1 (unsigned).
    The gradient of x is masked where x/s (not its rounded value) is out of range; the gradient of s is
    round(x/s) - x/s inside and -Qn or Qp outside, times 1/sqrt(N·Qp), N = weights per step or features per sample.

    Choose it by default: it has a level at zero and trains at 2 to 8 bits.

    Args:
        bits: 2 to 31 where signed (the one bit of a signed LSQ would have the levels -s and 0), 1 to 31 otherwise.
        signed, shape, activation: See `Quantizer`.

    Source: Esser et al., Learned Step Size Quantization (2020), eq. 1-3, section 2.2. Departures: the step is used as
    max(|s|, 1e-8), so that no update can make it negative; calibration replaces the paper's initial value; from 8 bits
    on the step is not trained. There it is so small that single updates are many times its size, and a step beyond
    the largest weight has no gradient to come back: 8-bit first layers were left with 3 to 30 levels, or none but zero
    (ResNet-8, SAQ), while the step of least error costs nothing.

    Example:
        >>> import torch, saq_core
        >>> w = torch.tensor([-1.0, -0.4, 0.1, 0.9])
        >>> quantizer = saq_core.LSQ.for_weight(2, w, method="minmax")
        >>> quantizer(w).tolist()
        [-1.0, 0.0, 0.0, 1.0]
    """

    smallest_signed_bits = 2

    def _add_state(self) -> None:
        self.step = nn.Parameter(torch.ones(self.shape), requires_grad=self.bits < FIXED_FROM)

    def _range(self) -> tuple[int, int]:
        if self.signed:
            return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1

    def _set_range_(self, low: Tensor, high: Tensor) -> None:
        self.step.data.copy_(high / self._range()[1])

    def _step(self) -> Tensor:
        least = smallest_step(self.step)
        return nn.functional.threshold(self.step.abs(), least, least)

    def _gradient_factor(self, x: Tensor) -> float:
        values = x.shape[1:].numel() if self.activation else x.numel() // self.step.numel()
        return (max(values, 1) * self._range()[1]) ** -0.5

    def _factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s = scale_gradient(self._step(), self._gradient_factor(x))
        return round_ste(clip(x * (1 / s), *self._range())), s

    def step_size(self, x: Tensor) -> Tensor:
        """Return the step, broadcastable to x."""
        return self._step().detach()


class LSQPlus(LSQ):
    """Quantize with a learned step size and a learned offset: for activations with a short negative tail.

    ``Q(x) = s · round(clamp((x - β)/s, Qn, Qp)) + β``, Qn and Qp as in `LSQ`. The gradient of x and s is LSQ's at
    x - β; that of β is 0 inside and 1 outside of the range, times the same factor as that of s.

    Choose it after GELU, swish and the like, where a symmetric range spends half of its levels on a short tail and an
    unsigned one cuts the tail off. Zero need not have a level.

    Args:
        bits, signed, shape, activation: See `LSQ`. The offset makes levels for negative values either way; `signed`
            says whether they are counted from -2^(b-1) or from 0, so what the gradient of s is at the ends.

    Source: Bhalgat et al., LSQ+ (2020), section 3. The name "lsq+" quantizes weights by `LSQ`, as in the paper without
    an offset. Departures: where the paper initialises weights from mean and three standard deviations and activations
    by gradient descent on the squared error, both get the range of least squared error by search; LSQ's gradient
    factor for the offset too is our choice; negative values seen = counted from -2^(b-1) (the paper compares both);
    from 8 bits on neither is trained, for LSQ's reason.

    Example:
        >>> import torch, saq_core
        >>> x = torch.tensor([-0.25, 0.0, 0.25, 0.5])
        >>> quantizer = saq_core.LSQPlus(2, activation=True)
        >>> quantizer.calibrate_(x, "minmax")
        >>> quantizer(x).tolist()
        [-0.25, 0.0, 0.25, 0.5]
    """

    two_ended = True

    def _add_state(self) -> None:
        super()._add_state()
        self.offset = nn.Parameter(torch.zeros(self.shape), requires_grad=self.step.requires_grad)

    def _set_range_(self, low: Tensor, high: Tensor) -> None:
        first, last = self._range()
        self.step.data.copy_((high - low) / (last - first))
        self.offset.data.copy_(low - first * self._step())

    def _quantize(self, x: Tensor) -> Tensor:
        offset = scale_gradient(self.offset, self._gradient_factor(x))
        levels, s = self._factors(x - offset)
        return levels * s + offset


class AsymmetricLSQ(LSQ):
    """Quantize with a learned step size and a fixed zero point: levels from 0 to 2^b - 1, wherever the values lie.

    ``Q(x) = s · (round(clamp(x/s + z, 0, n)) - z)``, n = 2^b - 1, s = (max - min)/n and z = round(n - max/s) at the
    start. The gradient of s is LSQ's: round(x/s) - x/s inside, -z below and n - z above, times 1/sqrt(N·n).

    Choose it to reproduce FPQ (with ``per_channel=True``).

    Args:
        bits, shape, activation: See `Quantizer`. signed: Without effect, the range of the data decides.

    Source: Pang and Cai, Stabilizing Quantization-Aware Training (2025), eq. 3-6. Departures: the mask is that of the
    unrounded value and 8-bit steps are not trained, both as in `LSQ`; a value halfway between two levels goes to the
    one whose number, of 0 to n, is even (theirs to the even multiple of s).

    Example:
        >>> import torch, saq_core
        >>> w = torch.tensor([-0.5, 0.0, 0.5, 1.0])
        >>> saq_core.AsymmetricLSQ.for_weight(2, w)(w).tolist()
        [-0.5, 0.0, 0.5, 1.0]
    """

    method: Method = "minmax"
    two_ended = True
    smallest_signed_bits = 1
    zero: Tensor

    def _add_state(self) -> None:
        super()._add_state()
        self.register_buffer("zero", torch.zeros(self.shape))

    def _range(self) -> tuple[int, int]:
        return 0, 2**self.bits - 1

    def _set_range_(self, low: Tensor, high: Tensor) -> None:
        last = self._range()[1]
        self.step.data.copy_((high - low) / last)
        self.zero.copy_((last - high / self._step()).round())

    def _factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s = scale_gradient(self._step(), self._gradient_factor(x))
        return round_ste(clip(x * (1 / s) + self.zero, *self._range())) - self.zero, s


class _Clipping(Quantizer):
    """Hold a clip c; round to ``c·R(clamp(x/c, 0, 1))``, or -1 … 1 with a level at zero where signed (±c for 1 bit)."""

    clip: Tensor

    def _add_state(self) -> None:
        self.clip = nn.Parameter(torch.ones(self.shape))

    def _set_range_(self, low: Tensor, high: Tensor) -> None:
        self.clip.data.copy_(high)

    def _clip(self) -> Tensor:
        return self.clip.abs().clamp_min(smallest_step(self.clip))

    def _steps(self) -> int:
        """Return the number of steps from 0 to the clip; 0 where the levels are ± the clip."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    def _quantize(self, x: Tensor) -> Tensor:
        c, n = self._clip(), self._steps()
        if not n:
            return (2 * round_ste((clip(x / c, -1, 1) + 1) / 2) - 1) * c
        return round_ste(clip(x * (n / c), -n if self.signed else 0, n)) * (c / n)

    def step_size(self, x: Tensor) -> Tensor:
        """Return the distance between levels, broadcastable to x."""
        return self._clip().detach() * (1 / self._steps() if self._steps() else 2)


class PACT(_Clipping):
    """Quantize activations with a learned clip whose gradient comes from the clipped values alone.

    ``y = clamp(x, 0, α)``, ``Q(x) = α/n · round(y·n/α)``, n = 2^b - 1. The gradient of α is 1 where x >= α and 0
    elsewhere: what rounding leaves over does not enter, unlike in LSQ and LIQ. The gradient of x is masked outside.

    Choose it as the baseline that most papers compare with. The paper also decays α by L2, which is left to the
    trainer (ours decays no parameter of a quantizer).

    Args:
        bits, signed, shape, activation: See `Quantizer`.

    Source: Choi et al., PACT (2018), eq. 1-3. The name "pact" quantizes weights by `DoReFa`, as the paper. Departures:
    α starts from calibration; signed activations, which the paper does not have, get -α … α with a level at zero and
    the gradient of α is -1 where x <= -α (an unsigned range would make zeros of half of them).

    Example:
        >>> import torch, saq_core
        >>> x = torch.tensor([-1.0, 0.0, 1.1, 3.0])
        >>> quantizer = saq_core.PACT(2, signed=False, activation=True)
        >>> quantizer.calibrate_(x, "minmax")
        >>> quantizer(x).tolist()
        [0.0, 0.0, 1.0, 3.0]
    """

    def _quantize(self, x: Tensor) -> Tensor:
        a = self._clip()
        y = torch.where(x >= a, a, torch.where(x <= -a, -a, x) if self.signed else x.clamp_min(0))
        return super()._quantize(x).detach() + (y - y.detach())


class DoReFa(_Clipping):
    """Quantize weights after squashing them by tanh, and activations by a fixed clip.

    Weights: u = tanh(w)/max|tanh(w)|, ``q = 2·R((u+1)/2) - 1`` with R(v) = round(n·v)/n and n = 2^b - 1: levels from -1
    to 1, none at zero; ``Q = f·q`` with f = Σwq/Σq², computed as half-integers times the step 2f/n. One bit:
    ``Q = E|w|·sign(w)``, gradient 1. Activations: ``c·R(clamp(x/c, 0, 1))``.

    Choose it as the baseline without learned parameters, or for 1-bit weights; tanh bends weights beyond about ±1, so
    that a trained network with such weights has to be trained on.

    Args:
        bits, signed, shape, activation: See `Quantizer`.

    Source: Zhou et al., DoReFa-Net (2016), sections 2.3-2.4. Departures: the paper's weights are q; f, the factor of
    least squared error (for one bit the paper's E|w|), brings them back to the units of w, for otherwise a trained
    network loses its function. f and max|tanh(w)| are held constant in the gradient: f undoes what the maximum does, so
    that a gradient through the maximum alone would be of nothing that happens. Activations of a trained network exceed
    the paper's 1: c is their calibrated range, never trained; signed ones get -c … c with a level at zero.

    Example:
        >>> import torch, saq_core
        >>> w = torch.tensor([-2.0, -1.0, 1.0, 2.0])
        >>> saq_core.DoReFa.for_weight(1, w)(w).tolist()
        [-1.5, -1.5, 1.5, 1.5]
    """

    dynamic = True

    def _add_state(self) -> None:
        if self.activation:
            self.register_buffer("clip", torch.ones(self.shape))

    def _levels(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Return the levels of the weights, half-integers from -n/2 to n/2, and their distance in the units of w."""
        if self.bits == 1:
            q = (w >= 0).to(w.dtype) - 0.5
        else:
            u, n = w.tanh(), 2**self.bits - 1
            largest = u.detach().abs().amax(self._dims(w), keepdim=True).clamp_min(smallest_step(u))
            q = round_ste((u / largest + 1) / 2 * n) - n / 2
        fixed, dims = q.detach(), self._dims(w)
        return q, (w.detach() * fixed).sum(dims, keepdim=True) / fixed.square().sum(dims, keepdim=True)

    def _quantize(self, x: Tensor) -> Tensor:
        if self.activation:
            return super()._quantize(x)
        q, step = self._levels(x)
        return q * step if self.bits > 1 else q * step + (x - x.detach())

    def step_size(self, x: Tensor) -> Tensor:
        """Return the distance between levels, broadcastable to x."""
        return super().step_size(x) if self.activation else self._levels(x)[1]


class LIQ(_Clipping):
    """Quantize with a learned clip, after normalising convolution weights.

    Weights: ŵ = (w - mean)/std, u = clamp(ŵ/c, -1, 1), ``Q̂ = c·(2·R((u+1)/2) - 1)`` with R(v) = round(n·v)/n and
    n = 2^b - 1: 2^b levels from -c to c, none at zero. Then ``Q = σ·Q̂ + mean``. Mean and std are held constant in the
    gradient. Linear weights are not normalised. Unsigned activations: ``c·R(clamp(x/c, 0, 1))``.

    Choose it to reproduce SAQ, or for 1-bit weights.

    Args:
        bits, signed, shape, activation: See `Quantizer`.
        normalise: Whether x is normalised first (convolution weights).

    Source: Liu et al., Sharpness-aware Quantization (2021), released code. Departures: Q̂ is brought back to the units
    of w (theirs stays in units of std(w), which BatchNorm absorbs; the mean too: without it a trained network loses its
    function the moment it is quantized); std is at least 1e-8;
    the clip is calibrated; signed activations get ``c·round(m·clamp(x/c, -1, 1))/m``, m = 2^(b-1)-1, because the
    weights' formula would turn every zero into c/n (the authors clip negative activations away).

    Example:
        >>> import torch, saq_core
        >>> w = torch.tensor([[-1.5, -0.5], [0.5, 1.5]])
        >>> saq_core.LIQ.for_weight(2, w, method="minmax")(w).tolist()
        [[-1.5, -0.5], [0.5, 1.5]]
    """

    def __init__(
        self,
        bits: int,
        *,
        signed: bool | None = True,
        shape: tuple[int, ...] = (),
        activation: bool = False,
        normalise: bool = False,
    ) -> None:
        super().__init__(bits, signed=signed, shape=shape, activation=activation)
        self.normalise = normalise

    @classmethod
    @checked
    def for_weight(cls, bits: int, weight: Tensor, *, per_channel: bool = False, **options: Any) -> Quantizer:
        """Return a quantizer for `weight`, calibrated on it and normalising if it belongs to a convolution."""
        if per_channel and weight.ndim > 2 and weight[0].numel() < 2:
            raise ValueError(f"per_channel=True needs >= 2 weights per filter with liq, got {tuple(weight.shape)}")
        options.setdefault("normalise", weight.ndim > 2)
        return super().for_weight(bits, weight, per_channel=per_channel, **options)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        w, dims = x.detach(), self._dims(x)
        return w.mean(dims, keepdim=True), w.std(dims, keepdim=True).clamp_min(smallest_step(w))

    def _rounded_units(self, x: Tensor) -> Tensor:
        if not self.normalise:
            return x
        mean, std = self._moments(x)
        return (x - mean) / std

    def _output(self, x: Tensor) -> Tensor:
        if not self.normalise:
            return self._quantize(x)
        mean, std = self._moments(x)
        return self._quantize((x - mean) / std) * std + mean

    def _quantize(self, x: Tensor) -> Tensor:
        if self.activation or not self.signed:
            return super()._quantize(x)
        c, n = self._clip(), 2**self.bits - 1
        return (round_ste((clip(x / c, -1, 1) + 1) / 2 * n) - n / 2) * (c * (2 / n))

    def step_size(self, x: Tensor) -> Tensor:
        """Return the distance between levels, broadcastable to x."""
        if self.activation or not self.signed:
            return super().step_size(x)
        step = self._clip().detach() * (2 / (2**self.bits - 1))
        return step * self._moments(x)[1] if self.normalise else step


class MinMax(Quantizer):
    """Quantize between the smallest and the largest value, with nothing learned.

    Weights: ``s·round(w/s)``, s = max|w|/(2^(b-1) - 1) taken anew in every forward pass. Activations:
    ``s·(round(clamp(x/s + z, 0, n)) - z)``, n = 2^b - 1, s = (high - low)/n, z = round(-low/s), with low <= 0 <= high
    from calibration (low = 0 where unsigned), so that zero has a level. Gradients pass through s as through a constant.

    Choose it as the baseline of post-training quantization: good at 8 bits, poor below 4.

    Args:
        bits: 2 to 31 where signed (one bit would round half of the values to zero), 1 to 31 otherwise.
        signed, shape, activation: See `Quantizer`.

    Source: Jacob et al., Quantization and Training of Neural Networks (2018), eq. 1, section 3. Departures: weights are
    symmetric (there affine too), and ranges of activations are calibrated once (there moving averages).

    Example:
        >>> import torch, saq_core
        >>> w = torch.tensor([-3.0, -1.2, 0.4, 2.0])
        >>> saq_core.MinMax.for_weight(3, w)(w).tolist()
        [-3.0, -1.0, 0.0, 2.0]
    """

    method: Method = "minmax"
    dynamic = two_ended = True
    smallest_signed_bits = 2
    low: Tensor
    high: Tensor

    def _add_state(self) -> None:
        if self.activation:
            self.register_buffer("low", torch.zeros(()))
            self.register_buffer("high", torch.ones(()))

    def _ends(self, z: Tensor, method: Method) -> tuple[Tensor, Tensor]:
        low, high = super()._ends(z, method)
        return low.clamp(max=0) if self.signed else torch.zeros_like(low), high.clamp(min=0)

    def _set_range_(self, low: Tensor, high: Tensor) -> None:
        self.low.copy_(low.clamp(max=0))
        self.high.copy_(high.clamp(min=0))

    def _quantize(self, x: Tensor) -> Tensor:
        s = self.step_size(x)
        if not self.activation:
            return round_ste(x / s) * s
        zero = (-self.low / s).round()  # added first, so that the bounds are numbers
        return (round_ste(clip(x * (1 / s) + zero, 0, 2**self.bits - 1)) - zero) * s

    def step_size(self, x: Tensor) -> Tensor:
        """Return the step, broadcastable to x."""
        if self.activation:
            step = (self.high - self.low) / (2**self.bits - 1)
        else:
            step = x.detach().abs().amax(self._dims(x), keepdim=True) / (2 ** (self.bits - 1) - 1)
        return step.clamp_min(smallest_step(step))


QuantizerName = Literal["lsq", "lsq+", "lsq-asymmetric", "pact", "dorefa", "liq", "minmax"]
# Name -> (class for weights, class for activations).
QUANTIZERS: dict[QuantizerName, tuple[type[Quantizer], type[Quantizer]]] = {
    "lsq": (LSQ, LSQ),
    "lsq+": (LSQ, LSQPlus),
    "lsq-asymmetric": (AsymmetricLSQ, AsymmetricLSQ),
    "pact": (DoReFa, PACT),
    "dorefa": (DoReFa, DoReFa),
    "liq": (LIQ, LIQ),
    "minmax": (MinMax, MinMax),
}


# A name, or one's own class, for both or (for weights, for activations).
QuantizerLike = QuantizerName | type[Quantizer] | tuple[type[Quantizer], type[Quantizer]]


def quantizer_classes(quantizer: QuantizerLike) -> tuple[type[Quantizer], type[Quantizer]]:
    """Return (class for weights, class for activations).

    Raises:
        ValueError: If it is neither a name nor made of subclasses of `Quantizer`.
    """
    if isinstance(quantizer, str) and quantizer in QUANTIZERS:
        return QUANTIZERS[quantizer]
    pair: Any = quantizer if isinstance(quantizer, tuple) else (quantizer, quantizer)
    if len(pair) != 2 or not all(isinstance(kind, type) and issubclass(kind, Quantizer) for kind in pair):
        names = ", ".join(map(repr, QUANTIZERS))
        rule = f"quantizer must be one of {names}, a subclass of saq_core.Quantizer, or two (weights, activations)"
        raise ValueError(f"{rule}, got {quantizer!r}")
    return pair


def quantizer_name(quantizer: QuantizerLike) -> str:
    """Return the name under which files keep a quantizer: ours, or where the classes are defined."""
    pair = quantizer_classes(quantizer)
    known = (name for name, kinds in QUANTIZERS.items() if kinds == pair)
    return next(known, ", ".join(dict.fromkeys(f"{kind.__module__}.{kind.__qualname__}" for kind in pair)))


def weight_quantizer(
    quantizer: QuantizerLike, bits: int, weight: Tensor, *, per_channel: bool = False, method: Method | None = None
) -> nn.Module:
    """Return a quantizer for a weight, calibrated on it; the identity for 32 bits."""
    if bits == 32:
        return Unquantized()
    kind = quantizer_classes(quantizer)[0]
    return kind.for_weight(bits, weight.detach(), per_channel=per_channel, method=method)


def input_quantizer(quantizer: QuantizerLike, bits: int, like: Tensor, *, signed: bool | None = None) -> nn.Module:
    """Return a quantizer for activations, on the device of `like`; the identity for 32 bits.

    It waits for calibration, which also decides on the sign where `signed` is None.
    """
    if bits == 32:
        return Unquantized()
    return quantizer_classes(quantizer)[1](bits, signed=signed, activation=True).to(like.device, like.dtype)
