"""Quantized weights as packed integers in a file, and back to the same outputs."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import files
from ..results import Shown
from .base import Quantizer, Stored
from .functional import check_bits

KIND = "integers"  # of the file


class PackedSize(NamedTuple):
    """One weight of a `SizeReport`: its shape and bits, bytes of its integers and of what makes floats of them."""

    shape: tuple[int, ...]
    bits: int
    integers: int
    scales: int


@dataclass(frozen=True, repr=False)
class SizeReport(Shown):
    """Sizes in the file that `export` wrote.

    Args:
        path: The file.
        weights: Weight -> its size; q, k and v of an attention apart.
        other_bytes: Of everything else, as it is: biases, norms and their statistics, quantizers of activations,
            weights that are not quantized.
        float_bytes: Of the network at 32 bits, without quantizers.
        file_bytes: Of the file.

    Example:
        >>> import tempfile, torch, saq_core
        >>> model = saq_core.quantize(torch.nn.Sequential(torch.nn.Linear(64, 64)), "W4A32", first_last_bits=None)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = saq_core.export(model, f"{folder}/small.pt")
        >>> report
        SizeReport(1 weights, 2,312 bytes, 7.20 times fewer than in float32)
        >>> int(report.frame["bits"][0])
        4
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

    def _rows(self) -> list[dict[str, Any]]:
        sizes = self.weights.items()
        return [{"weight": n, **size._asdict(), "shape": "x".join(map(str, size.shape))} for n, size in sizes]

    def __repr__(self) -> str:
        times = f"{self.float_bytes / self.bytes:.2f} times fewer than in float32"
        return f"SizeReport({len(self.weights)} weights, {self.bytes:,} bytes, {times})"

    def __str__(self) -> str:
        times = f"{self.float_bytes / self.bytes:.2f} times fewer than {self.float_bytes:,} in float32"
        total = f"{self.bytes:,} bytes ({self.other_bytes:,} beside these weights), {times}"
        return f"{self.frame.to_string(index=False)}\n{total}\n{self.file_bytes:,} bytes in {self.path}"


def export(model: nn.Module, path: str | Path) -> SizeReport:
    """Write a quantized network with its weights as packed integers, and report the sizes.

    Each weight becomes whole numbers from 0 to 2^bits - 1, stored in `bits` bits without gaps, and ``(integer - zero) ·
    scale``, one scale and zero per step; zero is a whole or half number. Where that is not exact to the bit (LIQ's
    convolutions, which add a mean; some networks in bfloat16) the different values that occur take their place. `load`
    makes the network again: its outputs equal the exported one's to the bit on the same machine. Activations are
    rounded as before, in floating point; no integer kernels are called.

    Args:
        model: Quantized by `quantize`, calibrated; it is left as it is. Latent weights, recipe, history and probe stay
            behind: `save` keeps them.
        path: Folders are made.

    Raises:
        ValueError: If no weight is quantized, activations are not calibrated, or a weight is not finite or has more
            different values than levels.

    Cost: one quantization of each weight, and 8 bytes of memory per bit of the largest.

    Example:
        >>> import tempfile, torch, saq_core
        >>> model = saq_core.quantize(torch.nn.Sequential(torch.nn.Linear(64, 64)), "W4A32", first_last_bits=None)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = saq_core.export(model, f"{folder}/small.pt")
        ...     back = saq_core.load(f"{folder}/small.pt", model)
        >>> report.weights["0.weight"].integers, torch.equal(back[0].weight, model[0].used_weight())
        (2048, True)
    """
    state, packed, sizes, replaced, steps = model.state_dict(), {}, {}, set[str](), tuple[str, ...]()
    for prefixes, layer in _quantized_layers(model):
        for part, (quantizer, weight) in layer.quantized_parts().items():
            if not quantizer.is_quantizer:
                continue
            label = f"{prefixes[0]}{part}"
            with torch.no_grad():
                value, step = quantizer(weight).cpu(), quantizer.step_size(weight).detach().cpu()
            packed[label] = _pack(value, step, quantizer.bits, label)
            scales = sum(packed[label][key].nbytes for key in ("scale", "zero", "levels") if key in packed[label])
            sizes[label] = PackedSize(tuple(value.shape), quantizer.bits, packed[label]["integers"].nbytes, scales)
            replaced |= {f"{prefix}{layer.weight_name}" for prefix in prefixes}
            steps += tuple(f"{prefix}{part}_quantizer." for prefix in prefixes)
    if not packed:
        raise ValueError("model must have quantized weights to export, got none: call quantize() first")
    inputs = [m for m in model.modules() if isinstance(m, Quantizer) and m.activation and m.sign_from_data]
    if inputs and all(quantizer.signed is None for quantizer in inputs):
        raise ValueError("model must be calibrated to be exported, got one that is not: call saq_core.calibrate first")
    rest = {key: value for key, value in state.items() if key not in replaced and not key.startswith(steps)}
    content = {key: getattr(model, key, None) for key in ("architecture", "quantization")}
    versions = {"torch": str(torch.__version__), "python": platform.python_version()}
    files.write(path, KIND, {"state": rest, "packed": packed, "versions": versions, **content})
    modules = model.named_modules(remove_duplicate=False)
    quantizers = tuple(f"{n}." for n, m in modules if getattr(m, "is_quantizer", False))
    floats = _once({key: value for key, value in state.items() if not key.startswith(quantizers)})
    return SizeReport(
        path=Path(path),
        weights=sizes,
        other_bytes=sum(value.nbytes for value in _once(rest)),
        float_bytes=sum(v.numel() * (4 if v.is_floating_point() else v.element_size()) for v in floats),
        file_bytes=Path(path).stat().st_size,
    )


def unpack_(model: nn.Module, packed: dict[str, dict[str, Any]]) -> dict[str, Tensor]:
    """Load packed weights into a quantized network, in place of their quantizers; return them by name."""
    unpacked: dict[str, Tensor] = {}
    used = set()
    for prefixes, layer in _quantized_layers(model):
        values = []
        for part, (quantizer, _) in layer.quantized_parts().items():
            label = f"{prefixes[0]}{part}"
            if label in packed and quantizer.is_quantizer:
                stored = packed[label]
                values.append(_unpack(stored))
                setattr(layer, f"{part}_quantizer", Stored(stored["bits"], stored["step"]))
                used.add(label)
        if values:
            old = getattr(layer, layer.weight_name)
            new = torch.cat(values).to(old.device)
            new = layer.filters_first(new).contiguous() if hasattr(layer, "filters_first") else new
            new = nn.Parameter(new, requires_grad=old.requires_grad)
            setattr(layer, layer.weight_name, new)  # a new one: whoever was tied to it keeps the float weight
            unpacked |= {f"{prefix}{layer.weight_name}": new.detach() for prefix in prefixes}
    if used != set(packed):
        raise ValueError(f"model must quantize {sorted(set(packed) - used)[:3]}, which the file has as integers")
    return unpacked


def _quantized_layers(model: nn.Module) -> list[tuple[list[str], Any]]:
    """Return (what the names of its tensors begin with, all of them, layer): one module may stand in several places."""
    layers: dict[int, tuple[list[str], Any]] = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        if hasattr(layer, "quantized_parts"):
            layers.setdefault(id(layer), ([], layer))[0].append(f"{name}." if name else "")
    return list(layers.values())


def _once(state: dict[str, Any]) -> list[Tensor]:
    """Return the tensors of a state dict, each once however many names it has."""
    return list({value.data_ptr(): value for value in state.values() if isinstance(value, Tensor)}.values())


def _pack(value: Tensor, step: Tensor, bits: int, label: str) -> dict[str, Any]:
    """Return levels as integers without gaps, and what makes floats of them again, checked to be exact."""
    stored = {"bits": bits, "shape": list(value.shape), "step": step}
    rows = value.reshape(step.numel(), -1)
    unit = step.where(step > 0, 1).reshape(-1, 1).double()  # weights that are all zero may have a step of zero
    zero = -(2 * rows.amin(1, keepdim=True) / unit).round() / 2  # levels are multiples of the step, or halfway between
    integers = _packed_bits((rows / unit + zero).round(), bits)
    scaled = {**stored, "scale": step, "zero": zero.to(step.dtype).reshape(step.shape), "integers": integers}
    if torch.equal(_unpack(scaled), value):
        return scaled
    if not value.isfinite().all():
        raise ValueError(f"{label} must be finite to be exported, got NaN or infinity: train anew with a lower lr")
    tables, indices = zip(*(row.unique(return_inverse=True) for row in rows), strict=True)
    most = max(map(len, tables))
    if most > 2**bits:
        rule = f"{label} must have at most {2**bits} different values for {bits} bits, got {most}"
        raise ValueError(f"{rule}: its quantizer lets values between its levels through")
    levels = nn.utils.rnn.pad_sequence(list(tables), batch_first=True)
    return {**stored, "levels": levels, "integers": _packed_bits(torch.stack(indices), bits)}


def _unpack(stored: dict[str, Any]) -> Tensor:
    shape, bits, packed = torch.Size(stored["shape"]), check_bits(stored["bits"], "stored bits"), stored["integers"]
    size = -(-shape.numel() * bits // 8)
    if packed.dtype != torch.uint8 or packed.numel() != size:
        got = f"{packed.numel()} of {packed.dtype}"
        raise ValueError(f"packed weights must be {size} bytes for {tuple(shape)} at {bits} bits, got {got}")
    spread = np.unpackbits(stored["integers"].cpu().numpy(), count=shape.numel() * bits, bitorder="little")
    codes = torch.from_numpy(spread.reshape(-1, bits) @ (1 << np.arange(bits)))
    if "levels" in stored:
        levels = stored["levels"].cpu()
        return levels.gather(1, codes.reshape(len(levels), -1)).reshape(shape)
    scale, zero = stored["scale"].cpu(), stored["zero"].cpu()
    return (codes.reshape(shape) - zero.double()).to(scale.dtype) * scale  # in between: codes of many bits are exact


def _packed_bits(codes: Tensor, bits: int) -> Tensor:
    spread = (codes.reshape(-1, 1).long().numpy() >> np.arange(bits)) & 1
    return torch.from_numpy(np.packbits(spread.astype(np.uint8), bitorder="little"))
