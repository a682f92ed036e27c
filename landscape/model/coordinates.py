"""Which tensors of a network vary, and where they stand.

A point, a displacement or a direction is a ``dict[str, Tensor]`` keyed by the weight's name
(``"layer1.0.conv1.weight"``). A quantized network has two coordinate systems under the same names:

* *latent*: the float weights that the optimizer moves; the network rounds them, so a surface over them is a staircase;
* *quantized*: the weights as the forward pass uses them, ``Q(w) + delta``; what varies is ``delta``.

`landscape.model.adapters` says which weights are known to be rounded. A module with ``is_quantizer = True`` keeps its
parameters (steps, clips, offsets) out of the coordinates: they are never varied. So does a module that is seen to round
a weight.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .. import parallel
from ..checking import seed_of
from ..parallel import Layout
from ..pieces import drawn_into, inner
from .adapters import RoundedWeight, rounded_weights
from .measuring import copy_of, named_tensors
from .sharding import Shards, layouts_of, reshard

Point = dict[str, Tensor]
Space = Literal["quantized", "latent"]


@dataclass(frozen=True)
class Coordinates:
    """The tensors of one network that vary: a snapshot, which further training does not move.

    Attributes:
        space: ``"quantized"`` or ``"latent"``; ``"float"`` where nothing is quantized and the two are the same.
        straight_through: whether quantizers of a known kind lie between what varies and the loss.
        centre: name → value that the network computes with (the rounded weight in quantized space).
        tensors: name → name of the tensor in the model that moves (the weight itself, or its layer's ``delta``).
        base: name → value of that tensor at the centre (the weight itself, or ``delta``).
        masks: name → 1 where a weight varies and 0 where it does not: pruned entries, and the row of an embedding's
            ``padding_idx``, which torch gives no gradient.
        total: how many weights the model has, those that do not vary included.
        layouts: name in the model → how that tensor lies in shards over processes; empty where the model is whole.
            Then every point and every vector, the centre too, holds this process's shards.
    """

    space: str
    straight_through: bool
    centre: Point
    tensors: dict[str, str]
    base: Point
    masks: Point = field(default_factory=dict)
    total: int = 0
    layouts: dict[str, Layout] = field(default_factory=dict)

    @property
    def numel(self) -> int:
        """The number of coordinates, n."""
        return sum(math.prod(self.shape(name)) for name in self.centre)

    def shape(self, name: str) -> torch.Size:
        """Return the shape of a whole tensor."""
        return self.layouts[name].shape if self.layouts else self.centre[name].shape

    @cached_property
    def shards(self) -> Shards | None:
        """How vectors lie over processes; None where each is whole."""
        sizes = [value.numel() for value in self.centre.values()]
        return Shards([self.layouts[name] for name in self.centre], sizes) if self.layouts else None

    @property
    def names(self) -> list[str]:
        """The weights' names, in the order of `flatten`."""
        return list(self.centre)

    def flatten(self, point: Mapping[str, Tensor]) -> Tensor:
        """Lay a point out as one vector of shape (n,), or what this process holds of it."""
        return torch.cat([point[name].reshape(-1) for name in self.centre])

    def unflatten(self, vectors: Tensor) -> Point:
        """Cut a vector of shape (n,) into a point, or rows of shape (k, n) into stacks."""
        parts = vectors.split([value.numel() for value in self.centre.values()], dim=-1)
        pairs = zip(self.centre.items(), parts, strict=True)
        return {name: part.view(vectors.shape[:-1] + value.shape) for (name, value), part in pairs}

    def displaced(self, displacement: Mapping[str, Tensor]) -> Point:
        """Return the tensors at centre + displacement, by their names in the model."""
        return {
            self.tensors[name]: base + displacement[name] if name in displacement else base
            for name, base in self.base.items()
        }

    def inner(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
        """Return the inner product of two points, over the names of the first, in float64."""
        products = [inner(part, b[name]) for name, part in a.items()]
        if not self.layouts or not products:
            return torch.stack(products).sum() if products else torch.zeros((), dtype=torch.float64)
        shares = [part / self.layouts[name].copies for part, name in zip(products, a, strict=True)]
        return parallel.sum_(torch.stack(shares).sum())

    def length(self, point: Mapping[str, Tensor]) -> Tensor:
        """Return the norm of a point."""
        return self.inner(point, point).sqrt()

    def norm(self) -> float:
        """Return ‖w‖ over the weights of two or more dimensions, the ones that directions move."""
        return self._norm

    @cached_property
    def _norm(self) -> float:
        return float(self.length({name: w for name, w in self.centre.items() if w.ndim > 1}))

    def filter_norms(self, name: str, part: Tensor) -> Tensor:
        """Return the norm of each filter (slice along dimension 0) of a point's part, to broadcast against it."""
        if not self.layouts or self.layouts[name].rows_are_whole:
            return filter_norms(part)
        whole = self.whole(name, part)
        return self.cut(name, filter_norms(whole).expand_as(whole))

    def whole(self, name: str, part: Tensor) -> Tensor:
        """Return a point's part with the shards that other processes hold."""
        return self.layouts[name].gather(part) if self.layouts else part

    def cut(self, name: str, whole: Tensor) -> Tensor:
        """Return what this process holds of a whole part, or of a DTensor."""
        return _cut(whole, self.layouts.get(name))

    def results(self, point: Mapping[str, Tensor], leading: int = 0) -> Point:
        """Return a point, or stacks of such, as results keep them: on the CPU, or as DTensors of their shards."""
        if self.layouts:
            return {name: self.layouts[name].wrapped(part, leading) for name, part in point.items()}
        return {name: part.cpu() for name, part in point.items()}

    def filter_scale(self) -> Point:
        """Return D of the filter-relative units: ‖w_f‖/√(size of filter f), and zero on biases and norm parameters.

        The quadratic form of D·H·D on a standard Gaussian vector is, on average, the curvature along a
        filter-normalised random direction. A filter is a slice along dimension 0.
        """
        return {
            name: self.masked(name, (self.filter_norms(name, w) / math.prod(self.shape(name)[1:]) ** 0.5).expand_as(w))
            if w.ndim > 1
            else torch.zeros_like(w)
            for name, w in self.centre.items()
        }

    def masked(self, name: str, part: Tensor) -> Tensor:
        """Return part of a direction, zero where the weight does not vary."""
        return part * self.masks[name] if name in self.masks else part

    @cached_property
    def varies(self) -> list[int]:
        """How many numbers vary, of how many weights."""
        fixed = {name: mask == 0 for name, mask in self.masks.items()}
        return [self.numel - int(self.inner(fixed, fixed)), max(self.total, self.numel)]


def coordinates(
    model: nn.Module,
    space: Space | None = None,
    layers: Sequence[str] | None = None,
    rounded: Mapping[str, RoundedWeight] | None = None,
    *,
    frozen: bool = False,
) -> Coordinates:
    """Collect every trainable floating parameter of the float network, quantizers' own parameters left out.

    Args:
        model: any network.
        space: ``"quantized"`` (the default where something is quantized) or ``"latent"``.
        layers: names of modules or weights; nothing outside them varies. Default: everything.
        rounded: what is known to be rounded; default what layers and tensors tell.
        frozen: collect those that are not trainable as well.

    Raises:
        ValueError: unknown space; nothing trainable, or nothing by a name given; a quantized weight that several
            layers share; integer weights that would be left out.
    """
    if space not in (None, *get_args(Space)):
        raise ValueError(f"space must be one of {', '.join(get_args(Space))}, got {space!r}")
    rounded = rounded_weights(model) if rounded is None else rounded
    actual = (space or "quantized") if rounded else "float"
    reshard(model)
    layouts = layouts_of(model)
    masks = {name: _cut(mask, layouts.get(name)) for name, mask in _masks(model)}
    inside = tuple(f"{weight.moves[:-2]}." for weight in rounded.values() if weight.output is not None)
    left_out = {id(p) for module in model.modules() if is_quantizer(module) for p in module.parameters()}
    left_out |= {id(p) for n, p in model.named_parameters() if inside and n.startswith(inside) and n not in rounded}
    _check_whole(model, rounded, actual, layers)
    centre: Point = {}
    tensors: dict[str, str] = {}
    base: Point = {}
    for name, parameter in model.named_parameters():
        if parameter.is_complex() and parameter.requires_grad:
            raise ValueError(f"{name} is complex: only real weights can vary; freeze it with requires_grad_(False)")
        weight = rounded.get(name) if actual == "quantized" else None
        varies = (parameter.requires_grad or frozen) and parameter.is_floating_point()
        varies |= weight is not None and weight.moves == name  # integers
        is_asked_for = layers is None or any(_inside(name, layer) for layer in layers)
        if id(parameter) in left_out or not varies or not parameter.numel() or not is_asked_for:
            continue
        if weight is not None:
            if _is_shared(model, name, parameter):
                raise ValueError(f"{name} is shared by several layers, each with its own rounding: use space='latent'")
            centre[name], tensors[name], base[name] = weight.value, weight.moves, weight.base
        else:
            base[name] = copy_of(model, parallel.local(parameter))
            centre[name] = base[name] * masks[name] if name.endswith("_orig") and name in masks else base[name]
            tensors[name] = name
    missing = [layer for layer in layers or () if not any(_inside(name, layer) for name in centre)]
    if missing:
        raise ValueError(
            f"layers: nothing that varies is called {missing[0]!r}, or lies inside; there is {_few(model)}"
        )
    if not centre:
        raise ValueError(_nothing_varies(model))
    total = sum(p.numel() for p in model.parameters() if p.is_floating_point() and id(p) not in left_out)
    masks = {name: mask for name, mask in masks.items() if name in centre}
    through = _passes_rounding(model, actual) or actual == "latent"
    return Coordinates(actual, through, centre, tensors, base, masks, total, layouts)


def _masks(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights that do not vary everywhere, by name: 1 where they do."""
    for prefix, module in model.named_modules():
        start = f"{prefix}." if prefix else ""
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.padding_idx is not None:
            mask = torch.ones(module.weight.shape, dtype=module.weight.dtype, device=module.weight.device)
            mask[module.padding_idx] = 0
            yield f"{start}weight", mask
        for name, mask in module.named_buffers(recurse=False):  # torch.nn.utils.prune
            if name.endswith("_mask") and name.removesuffix("mask") + "orig" in module._parameters:
                yield f"{start}{name.removesuffix('mask')}orig", mask.detach().clone()


def _cut(whole: Tensor, layout: Layout | None) -> Tensor:
    return parallel.whole(whole) if layout is None else layout.cut(whole)


def _inside(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


def _few(model: nn.Module) -> str:
    names = [name for name, _ in model.named_parameters()]
    return ", ".join(names[:4]) + (" …" if len(names) > 4 else "")


def is_quantizer(module: nn.Module) -> bool:
    """Tell whether a module rounds, and its parameters (step, clip, offset) are therefore never varied."""
    return bool(getattr(module, "is_quantizer", False))


def filter_norms(weight: Tensor) -> Tensor:
    """Return the norm of each filter (slice along dimension 0), shaped to broadcast against the weight."""
    return weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.ndim - 1))


def gaussian(
    point: Mapping[str, Tensor], seed: int, layouts: Mapping[str, Layout] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Draw a standard Gaussian for each name: the same numbers for the same name, shape and seed, on every device.

    Of tensors that lie in shards, see `Coordinates.layouts`, each process draws the whole and keeps its shard.
    """
    seed = seed_of(seed)
    for name, value in point.items():
        shape = layouts[name].shape if layouts else value.shape
        digest = hashlib.sha256(f"{seed}:{name}:{tuple(shape)}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        sample = partial(torch.randn, generator=generator, dtype=torch.float64)
        if layouts:
            yield name, layouts[name].cut(sample(shape)).to(value)
        else:
            yield name, drawn_into(value.new_empty(value.numel()), sample).view(shape)


def generator() -> str:
    """Say on what `gaussian` draws, with the first numbers: a seed means nothing to another generator."""
    ((_, draw),) = gaussian({"": torch.empty(3, dtype=torch.float64)}, 0)
    return f"CPU, float64 by name: {', '.join(f'{number:.4f}' for number in draw.tolist())}"


def _is_shared(model: nn.Module, name: str, parameter: Tensor) -> bool:
    """Return whether a weight is also used outside of its layer, whose own parts may hold it as well."""
    owner = name.rpartition(".")[0]
    names = [other for other, p in model.named_parameters(remove_duplicate=False) if p is parameter and other != name]
    return any(not _inside(other, owner) for other in names if owner)


def _check_whole(
    model: nn.Module, rounded: Mapping[str, RoundedWeight], space: str, layers: Sequence[str] | None
) -> None:
    """Raise if weights are integers that cannot vary, while others would."""
    packed = [name for name, module in model.named_modules() if hasattr(module, "_packed_params")]  # torch.ao
    packed += [
        name
        for name, tensor in named_tensors(model)
        if "weight" in name and tensor.ndim > 1 and not tensor.is_floating_point() and not tensor.is_complex()
    ]
    if space != "quantized":
        packed += [name for name, weight in rounded.items() if weight.moves == name]
    if packed and layers is None and any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"{packed[0]} holds integer weights, which cannot vary in {space} space, and the rest alone is not the "
            "network: measure the fake-quantized network that it was converted from, or name what varies, layers=[…]"
        )


def _passes_rounding(model: nn.Module, space: str) -> bool:
    # in quantized space the weights' own rounding lies outside the path from delta to the loss
    return any(
        is_quantizer(module) and not (space == "quantized" and name.endswith("weight_quantizer"))
        for name, module in model.named_modules()
    )


def _nothing_varies(model: nn.Module) -> str:
    tensors = list(model.parameters()) + list(model.buffers())
    if tensors and not any(t.is_floating_point() for t in tensors):
        return "the model holds integers only: measure the fake-quantized network that it was converted from"
    if list(model.parameters()):
        return "no trainable weights: every parameter has requires_grad=False; unfreeze those that are to vary"
    return "no trainable weights: the model has no parameters (a converted integer model has none either)"
