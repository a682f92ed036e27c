"""The tensors of a network replaced, wherever it holds them, until the measurement ends."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..parallel import Layout
from .measuring import CONTAINERS, ENTRIES, UNINTERRUPTIBLE, check_interruption, contents, named_tensors
from .sharding import GatheredOnReading, Notes
from .walking import Late, MadeOnReading


class TensorSwap:
    """Every entry that holds a tensor of a model, also of a module registered twice and of tied tensors.

    Args:
        model: the network.
        outputs: "<module>()" → what that module returns; a tensor of this name is returned in its place, or as the
            first of a tuple.
        layouts: tensor → how it lies in shards, see `landscape.model.sharding`: shards are put in, and gathered when
            they are read.
    """

    def __init__(self, model: nn.Module, outputs: Mapping[str, Any], layouts: Mapping[str, Layout]) -> None:
        self._model, tensors = model, dict(named_tensors(model))
        names = {id(tensor): name for name, tensor in reversed(tensors.items())}  # the first name of a tied tensor

        def held(module: nn.Module) -> list[Any]:
            others = [c for kind, c in module.__dict__.items() if type(c) in CONTAINERS and kind not in ENTRIES]
            # tied by hand, in a list, say; FSDP keeps its own account
            return [module._parameters, module._buffers] + ([] if layouts else others)

        self._entries = [
            (container, key, names[id(tensor)])
            for module in model.modules()
            for container in held(module)
            for key, tensor in contents(container).items()
            if id(tensor) in names
        ]
        self._outputs = [
            (model.get_submodule(name.removesuffix("()")).__dict__, name, output if type(output) is tuple else None)
            for name, output in outputs.items()
        ]
        self.notes = Notes()

        def laid_out(entries: Mapping[str, Any]) -> dict[str, Layout]:
            return {k: layouts[names[id(t)]] for k, t in entries.items() if names.get(id(t)) in layouts}

        self._owners = [
            (module.__dict__, kind, module.__dict__[kind], laid_out(module.__dict__[kind]))
            for module in model.modules()
            for kind in ENTRIES
            if isinstance(module.__dict__.get(kind), dict)  # no TorchScript
        ]
        plain = [entries for _, _, entries, _ in self._owners]
        foreign = {name for entries, _, name in self._entries if not any(entries is one for one in plain)}
        self.are_entries = {name for _, _, name in self._entries} - foreign

    def __call__(self, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors in by name; they stay until `measurement_mode` ends, also while gradients are taken.

        A backward pass may run parts of the network again (checkpointing), and has to find the same tensors.

        Raises:
            BaseException: what a signal's handler raised, if it was caught meanwhile. The model is as it was given
                then, perhaps in training: a pass would write to the tensors put in.
        """
        check_interruption(self._model)
        for entries, key, name in self._entries:
            if name in tensors:
                entries[key] = tensors[name]
        are_late = any(type(tensor) is Late for tensor in tensors.values())
        for attributes, kind, entries, layouts in self._owners:
            made = MadeOnReading(entries) if are_late else entries
            attributes[kind] = GatheredOnReading(entries, layouts, self.notes) if layouts else made
        for attributes, name, output in self._outputs:
            if name in tensors:
                attributes["forward"] = partial(_returned, tensors[name], output)


def _returned(tensor: Tensor, output: tuple[Any, ...] | None, *_: Any, **__: Any) -> Any:
    return tensor if output is None else (tensor, *output[1:])


UNINTERRUPTIBLE.add(TensorSwap.__call__.__code__)
