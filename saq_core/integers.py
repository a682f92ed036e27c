"""Networks as packed integers: what the weights of a quantized network take in a file, and back to the same outputs."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from . import files
from .layers import SWAPS

KIND = "integers"  # of the file


class PackedSize(NamedTuple):
    """One weight of a `SizeReport`: its shape and bits, bytes of its integers and of what makes floats of them."""

    shape: tuple[int, ...]
    bits: int
    integers: int
    scales: int


@dataclass(frozen=True)
class SizeReport:
    """What `export` wrote.

    Args:
        path: The file.
        weights: Weight -> its size; q, k and v of an attention apart.
        other_bytes: Of everything else, as it is: biases, norms and their statistics, quantizers of activations,
            weights that are not quantized.
        float_bytes: Of the network at 32 bits, without quantizers.
        file_bytes: Of the file.
    """

    path: Path
    weights: dict[str, PackedSize]
    other_bytes: int
    float_bytes: int
    file_bytes: int

    @property
    def bytes(self) -> int:
        """Bytes of all tensors in the file."""
        return sum(size.integers + size.scales for size in self.weights.values()) + self.other_bytes

    def __str__(self) -> str:
        width = max(len(name) for name in self.weights)
        lines = [f"{'weight':{width}}  {'shape':>16}  bits  {'integers, B':>12}  {'scales, B':>9}"]
        for name, size in self.weights.items():
            shape = "x".join(map(str, size.shape))
            lines.append(f"{name:{width}}  {shape:>16}  {size.bits:4}  {size.integers:12,}  {size.scales:9,}")
        times = f"{self.float_bytes / self.bytes:.2f} times fewer than {self.float_bytes:,} in float32"
        lines.append(f"{self.bytes:,} bytes ({self.other_bytes:,} beside these weights), {times}")
        return "\n".join([*lines, f"{self.file_bytes:,} bytes in {self.path}"])


def export(model: nn.Module, path: str | Path) -> SizeReport:
    """Write a quantized network with its weights as packed integers, and report the sizes.

    Each weight becomes whole numbers from 0 to 2^bits - 1, stored in `bits` bits without gaps, and ``(integer - zero) ·
    scale``, one scale and zero per step; zero is a whole or half number. Where that is not exact to the bit (LIQ's
    convolutions, which add a mean) the values of the levels take their place. `load` makes the network again: its
    outputs equal the exported one's to the bit on the same machine. Activations are rounded as before, in floating
    point; no integer kernels are called.

    Args:
        model: Quantized by `quantize`, calibrated; it is left as it is. Latent weights, recipe, history and probe stay
            behind: `save` keeps them.
        path: Folders are made.

    Raises:
        ValueError: If no weight is quantized, or one has values that are not its quantizer's levels.

    Cost: one quantization of each weight, and 8 bytes of memory per bit of the largest.
    """
    state, packed, sizes, gone = model.state_dict(), {}, {}, []
    for name, layer in _quantized_layers(model).items():
        for part, (quantizer, weight) in layer.quantized_parts().items():
            if not quantizer.is_quantizer:
                continue
            label = f"{name}.{part}".removeprefix(".")
            with torch.no_grad():
                value, step = quantizer(weight).cpu(), quantizer.step_size(weight).detach().cpu()
            packed[label] = _pack(value, step, quantizer.bits, label)
            scales = sum(_bytes(packed[label][key]) for key in ("scale", "zero", "levels") if key in packed[label])
            sizes[label] = PackedSize(tuple(value.shape), quantizer.bits, _bytes(packed[label]["integers"]), scales)
            gone += [f"{label}_quantizer.", f"{name}.{layer.weight_name}".removeprefix(".")]
    if not packed:
        raise ValueError("model must have quantized weights to export, got none: call quantize() first")
    rest = {key: value for key, value in state.items() if not key.startswith(tuple(gone))}
    content = {key: getattr(model, key, None) for key in ("architecture", "quantization")}
    versions = {"torch": str(torch.__version__), "python": platform.python_version()}
    files.write(path, KIND, {"state": rest, "packed": packed, "versions": versions, **content})
    quantizers = tuple(f"{n}." for n, m in model.named_modules() if getattr(m, "is_quantizer", False))
    floats = [v for k, v in state.items() if isinstance(v, Tensor) and not k.startswith(quantizers)]
    return SizeReport(
        path=Path(path),
        weights=sizes,
        other_bytes=sum(_bytes(value) for value in rest.values() if isinstance(value, Tensor)),
        float_bytes=sum(v.numel() * (4 if v.is_floating_point() else v.element_size()) for v in floats),
        file_bytes=Path(path).stat().st_size,
    )


def unpack_(model: nn.Module, packed: dict[str, dict[str, Any]]) -> dict[str, Tensor]:
    """Put packed weights into a quantized network of the same kind, without their quantizers; return them by name."""
    found, used = {}, set()
    for name, layer in _quantized_layers(model).items():
        values = []
        for part, (quantizer, _) in layer.quantized_parts().items():
            label = f"{name}.{part}".removeprefix(".")
            if label in packed and quantizer.is_quantizer:
                stored = packed[label]
                values.append(_unpack(stored))
                setattr(layer, f"{part}_quantizer", Stored(stored["bits"], stored["step"]))
                used.add(label)
        if values:
            old = getattr(layer, layer.weight_name)
            new = nn.Parameter(torch.cat(values).to(old.device), requires_grad=old.requires_grad)
            setattr(layer, layer.weight_name, new)  # a new one: whoever was tied to it keeps the float weight
            found[f"{name}.{layer.weight_name}".removeprefix(".")] = new.detach()
    if used != set(packed):
        raise ValueError(f"model must quantize {sorted(set(packed) - used)[:3]}, which the file has as integers")
    return found


class Stored(nn.Module):
    """Stand in for the quantizer of a weight that was read from integers: the identity, with its bits and step."""

    is_quantizer = True
    weight_units = "plain"
    signed = True
    step: Tensor

    def __init__(self, bits: int, step: Tensor) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("step", step, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return x: its values are levels already."""
        return x

    def step_size(self, x: Tensor) -> Tensor:
        """Return the distance between levels, broadcastable to x."""
        return self.step


def check_latent(model: nn.Module, remedy: str) -> None:
    """Raise if the latent weights of a network are gone because it was read from integers."""
    if any(isinstance(module, Stored) for module in model.modules()):
        raise ValueError(f"model must have its latent weights, got one that was read from integers: {remedy}")


def _quantized_layers(model: nn.Module) -> dict[str, Any]:
    kinds = tuple(SWAPS.values())
    return {name: cast(Any, layer) for name, layer in model.named_modules() if isinstance(layer, kinds)}


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _pack(value: Tensor, step: Tensor, bits: int, label: str) -> dict[str, Any]:
    """Return levels as integers without gaps, and what makes floats of them again, checked to be exact."""
    stored = {"bits": bits, "shape": list(value.shape), "step": step}
    rows = value.reshape(step.numel(), -1)
    unit = step.where(step > 0, 1).reshape(-1, 1).double()  # weights that are all zero may have a step of zero
    zero = -(2 * rows.amin(1, keepdim=True) / unit).round() / 2  # levels are multiples of the step, or halfway between
    codes = (rows / unit + zero).round().long()
    if int(codes.max()) >= 2**bits:
        raise ValueError(f"{label} must have at most {2**bits} levels for {bits} bits, got {int(codes.max()) + 1}")
    integers = _packed_bits(codes, bits)
    scaled = {**stored, "scale": step, "zero": zero.to(step.dtype).reshape(step.shape), "integers": integers}
    if torch.equal(_unpack(scaled), value):
        return scaled
    levels = torch.zeros(len(rows), 2**bits, dtype=rows.dtype).scatter_(1, codes, rows)
    tabled = {**stored, "levels": levels, "integers": integers}
    if not torch.equal(_unpack(tabled), value):
        raise ValueError(f"{label} must lie on the levels of its quantizer to be exported, got values between them")
    return tabled


def _unpack(stored: dict[str, Any]) -> Tensor:
    shape, bits = torch.Size(stored["shape"]), stored["bits"]
    spread = np.unpackbits(stored["integers"].cpu().numpy(), count=shape.numel() * bits, bitorder="little")
    codes = torch.from_numpy(spread.reshape(-1, bits) @ (1 << np.arange(bits)))
    if "levels" in stored:
        levels = stored["levels"].cpu()
        return levels.gather(1, codes.reshape(len(levels), -1)).reshape(shape)
    scale, zero = stored["scale"].cpu(), stored["zero"].cpu()
    return (codes.to(scale.dtype).reshape(shape) - zero) * scale


def _packed_bits(codes: Tensor, bits: int) -> Tensor:
    spread = (codes.reshape(-1, 1).long().numpy() >> np.arange(bits)) & 1
    return torch.from_numpy(np.packbits(spread.astype(np.uint8), bitorder="little"))
