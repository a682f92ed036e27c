"""The state in which a network is measured: eval mode, full precision, no random numbers consumed; all is put back.

What is recorded are objects: every module's attributes and entries, the bits of every tensor in them, and the switches
of the process. Putting back compares and assigns, and may be repeated or cut short anywhere: an interrupt waits only
while this file is at work, and finds the network whole.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _len_torch_function_stack, _pop_mode
from torch.utils._python_dispatch import _pop_mode as _pop_dispatch_mode
from torch.utils.weak import WeakTensorKeyDictionary

from .precision import ATTENTION, switches_of
from .sharding import reshard, without_hooks

_HELD = ("SIGINT", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGTERM", "SIGUSR1")  # signals whose handlers may raise
_AS_WHOLE_NUMBERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class measurement_mode:  # noqa: N801 - a context, written as one
    """Hold a model in eval mode and its process in full precision; leave both as they were, whatever happens inside.

    The weights, buffers, gradients, flags, hooks and attributes of every module are afterwards the same objects with
    the same bits, also after an exception or an interrupt, which is delivered as soon as they are. An ``eval()`` that
    changes tensors (adapters merged into a weight, fused branches) is undone: the flags alone are set. One thread
    measures at a time; others wait. Inside itself it does nothing.

    Not covered: what is changed in place deeper inside of attributes than one list or dict; an optimizer's state;
    another thread that trains the model meanwhile.

    Args:
        model: the network.
        generators: of a DataLoader that shuffles by itself: put back to their states.
        copies: name → tensor equal to the model's own, so that no further copy is kept.

    Raises:
        RuntimeError: under ``torch.inference_mode()``, whose tensors have no derivatives.

    Cost: two comparisons of all tensors and of every module's attributes (on one CPU core 0.3 ms for a small MLP, 24 ms
    for ResNet-18), and a copy of the tensors where ``copies`` has none.
    """

    def __init__(
        self, model: nn.Module, generators: Sequence[torch.Generator] = (), copies: Mapping[str, Tensor] | None = None
    ) -> None:
        self.model: nn.Module = getattr(model, "_orig_mod", model)  # of a compiled one
        self.generators, self.copies, self.device = generators, copies or {}, torch.device("cpu")
        self._record: _Record | None = None
        self._switches: list[tuple[Callable[[], Any], Callable[[Any], Any], Any]] = []
        self._handlers: dict[int, Any] = {}
        self._pending: list[int] = []
        self._locked = self._is_inner = False
        self.interruption: BaseException | None = None  # what a signal's handler raised inside
        self._functions = self._kernels = self.thread = 0

    def __enter__(self) -> measurement_mode:
        outer = _active.get(id(self.model))
        if outer is not None and outer.thread == threading.get_ident():
            self._is_inner = True
            return outer
        if torch.is_inference_mode_enabled():
            raise RuntimeError("nothing can be measured under torch.inference_mode(): leave it, or use torch.no_grad()")
        try:
            self._hold_signals()
            while not self._locked and not self._pending:
                self._locked = _lock.acquire(timeout=0.05)  # so that an interrupt ends the wait for another thread
            if self._locked:
                self.thread = threading.get_ident()
                self.device = next((tensor.device for _, tensor in named_tensors(self.model)), self.device)
                self._functions = _len_torch_function_stack()
                self._kernels = torch._C._len_torch_dispatch_stack()  # type: ignore[attr-defined]
                self._switches = [(get, put, get()) for get, put, _ in self._all_switches()]
                reshard(self.model)
                self._record = _Record(self.model, self.copies)
                _active[id(self.model)] = self
                self._settle()
        except BaseException:
            self.__exit__()
            raise
        if self._pending:
            self.__exit__()
            raise KeyboardInterrupt  # where the handler of a signal returned
        return self

    def __exit__(self, kind: Any = None, error: BaseException | None = None, trace: Any = None) -> None:
        if self._is_inner:
            return
        if self._record is not None:
            while _len_torch_function_stack() > self._functions:  # a mode whose exit was interrupted
                _pop_mode()
            while torch._C._len_torch_dispatch_stack() > self._kernels:  # type: ignore[attr-defined]
                _pop_dispatch_mode()
            self._put_back()
            _active.pop(id(self.model), None)
        if self._locked:
            self._locked = False
            _lock.release()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        pending, self._pending = self._pending, []
        for number in pending:
            signal.raise_signal(number)
        if self.interruption is not None and error is not self.interruption:
            # caught on the way, or replaced where contexts that it cut short stumbled over themselves
            raise self.interruption

    def renew(self) -> None:
        """Undo what the model keeps of the passes so far: made in float64, say, it fits no others."""
        assert self._record is not None
        self._record.put_back()
        self._settle()

    @property
    def attention(self) -> dict[str, bool]:
        """Which kernels of attention the process allows outside of this, by their names in torch.backends.cuda."""
        return {ATTENTION[read]: value for read, _, value in self._switches if read in ATTENTION}

    def _settle(self) -> None:
        assert self._record is not None
        for _, put, value in self._all_switches():
            if value is not None:
                put(value)
        without_hooks(self.model)
        functions = (f for module in self.model.modules() for f in (module.train, module.eval))
        is_own = any(getattr(f, "__func__", None) not in (nn.Module.train, nn.Module.eval) for f in functions)
        self.model.eval()
        if is_own and self._record.tensors_changed():
            self._record.put_back()
            for module in self.model.modules():
                module.training = False

    def _put_back(self) -> None:
        if self._record is not None:
            self._record.put_back()
        for get, put, value in self._switches:
            now = get()
            if not (torch.equal(now, value) if isinstance(now, Tensor) else now == value):
                put(value)

    def _all_switches(self) -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any], Any]]:
        """Yield how to read and write each switch, and what it is while measuring; None leaves it."""
        yield from switches_of(self.device)
        yield torch.is_grad_enabled, torch.set_grad_enabled, None
        yield torch.get_rng_state, torch.set_rng_state, None
        if self.device.type == "cuda":
            read, write = torch.cuda.get_rng_state, torch.cuda.set_rng_state
            yield partial(read, self.device), partial(write, device=self.device), None
        for generator in self.generators:
            yield generator.get_state, generator.set_state, None

    def _hold_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        numbers = [getattr(signal, name) for name in _HELD if hasattr(signal, name)]
        self._handlers = {number: was for number in numbers if callable(was := signal.getsignal(number))}
        for number in self._handlers:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        """Wait while the network is being taken apart or put together; else let the handler speak, and leave it whole.

        That this code is at work is read from the frames: with a flag, the first instruction would be unprotected.
        """
        if any(below.f_code in UNINTERRUPTIBLE for below, _ in traceback.walk_stack(frame)):
            self._pending.append(number)
            return
        try:
            self._handlers[number](number, frame)
        except BaseException as error:
            self.interruption = error
            self._put_back()
            raise


NOTHING = object()
ENTRIES = ("_parameters", "_buffers")


class _Record:
    """The attributes and entries of every module, and the bits of the tensors among them."""

    def __init__(self, model: nn.Module, copies: Mapping[str, Tensor]) -> None:
        self.containers: list[tuple[Any, dict[Any, Any]]] = []
        self.modes = [(module, module.training) for module in model.modules()]  # TorchScript keeps it elsewhere
        for module in model.modules():
            inside = [value for value in module.__dict__.values() if type(value) in CONTAINERS]
            inside += [entries for entries in (module._parameters, module._buffers) if type(entries) not in CONTAINERS]
            self.containers += [(container, contents(container)) for container in (module.__dict__, *inside)]
        equal = {id(tensor): copies[name] for name, tensor in named_tensors(model) if name in copies}
        held = {id(v): v for _, before in self.containers for v in before.values() if isinstance(v, Tensor)}
        self.leaves = [(tensor, tensor.grad, tensor.requires_grad) for tensor in held.values() if tensor.is_leaf]
        comparable = [tensor for tensor in held.values() if has_bits(tensor)]
        for tensor, _ in _differing([(tensor, equal[id(tensor)]) for tensor in comparable if id(tensor) in equal]):
            del equal[id(tensor)]
        self.bits = [(t, equal[id(t)] if id(t) in equal else t.detach().clone()) for t in comparable]
        self.copies = {id(tensor): copy for tensor, copy in self.bits}
        _sums.update({copy: _bits(copy).sum() for _, copy in self.bits if copy not in _sums})

    def tensors_changed(self) -> bool:
        """Return whether any tensor or module was exchanged, added, taken away, or any tensor written to."""
        for container, before in self.containers:
            now = contents(container)
            for key in now.keys() | before.keys():
                pair = now.get(key), before.get(key)
                if pair[0] is not pair[1] and any(isinstance(value, Tensor | nn.Module) for value in pair):
                    return True
        return bool(_differing(self.bits))

    def put_back(self) -> None:
        """Put everything back that is not as it was; to be repeated without harm."""
        for container, before in self.containers:
            _refill(container, before)
        for module, training in self.modes:
            if module.training is not training:
                module.training = training
        for tensor, gradient, requires_grad in self.leaves:
            if tensor.grad is not gradient:
                tensor.grad = gradient
            if tensor.requires_grad is not requires_grad:
                tensor.requires_grad_(requires_grad)
        # a copy is what networks compute with: one that a pass has written to is no witness
        for tensor, copy in ((t, c) for t, c in _differing(self.bits) if torch.equal(_bits(c).sum(), _sums[c])):
            if (tensor.shape, tensor.dtype) == (copy.shape, copy.dtype):
                tensor.data.copy_(copy)
            else:
                tensor.data = copy.clone()


def check_interruption(model: nn.Module) -> None:
    """Raise what a signal's handler raised while a model is measured, if it was caught meanwhile."""
    mode = _active.get(id(model))
    if mode is not None and mode.interruption is not None:
        raise mode.interruption


def left_behind(model: nn.Module) -> list[tuple[Any, Any, Any]]:
    """Return what passes left in the attributes of a model that is measured, computed from weights perhaps.

    Container, key and what was there: None for the key where all of a list or dict is meant, `NOTHING` for no value.
    """
    record, found = _active[id(model)]._record, list[tuple[Any, Any, Any]]()
    assert record is not None
    attributes = {id(module.__dict__) for module in model.modules()}
    entries = {id(module.__dict__.get(kind)) for module in model.modules() for kind in ENTRIES}
    for container, before in record.containers:
        now = contents(container)
        if id(container) in attributes:
            keys = [k for k, v in now.items() if k not in ENTRIES and v is not before.get(k, NOTHING)]
            found += [(container, k, before.get(k, NOTHING)) for k in keys if isinstance(now[k], Tensor | list | dict)]
        elif id(container) not in entries and [*map(id, now.values())] != [*map(id, before.values())]:
            found.append((container, None, before))
    return found


def taken_back(left: Sequence[tuple[Any, Any, Any]]) -> None:
    """Take back what `left_behind` found."""
    for container, key, before in left:
        if key is None:
            _refill(container, before)
        elif before is NOTHING:
            container.pop(key, None)
        else:
            container[key] = before


def copy_of(model: nn.Module, tensor: Tensor) -> Tensor:
    """Return a copy of a model's tensor, not to be written to: the one that is kept while the model is measured."""
    mode = mode_of(model)
    record = mode._record if mode else None
    copy = record.copies.get(id(tensor)) if record else None
    return tensor.detach().clone() if copy is None else copy


def mode_of(model: nn.Module) -> measurement_mode | None:
    """Return the `measurement_mode` that this thread holds a model in, if any."""
    mode = _active.get(id(model))
    return mode if mode is not None and mode.thread == threading.get_ident() else None


def copied(model: nn.Module, shared: Sequence[Any] = ()) -> nn.Module:
    """Return a deep copy of a model that shares some objects with it.

    Weights that a hook computed (pruning, weight_norm) hang in a graph, which cannot be copied: their values are.
    """
    memo: dict[int, Any] = {id(value): value for value in shared}
    for module in model.modules():
        made = [v for v in module.__dict__.values() if isinstance(v, Tensor) and v.grad_fn is not None]
        memo |= {id(tensor): tensor.detach().clone() for tensor in made}
    return deepcopy(model, memo)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers by name."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def contents(container: Any) -> dict[Any, Any]:
    """Return what a dict or list holds, by key or index."""
    return dict(enumerate(container) if isinstance(container, list) else container.items())


def _refill(container: Any, before: dict[Any, Any]) -> None:
    """Give a container its contents back, without a moment in which one is missing where the keys are the same."""
    if isinstance(container, list):
        if [*map(id, container)] != [*map(id, before.values())]:
            container[:] = before.values()
        return
    for key in [key for key in container.keys() if key not in before]:  # noqa: SIM118 - TorchScript's are no dicts
        del container[key]
    for key, value in before.items():
        if key not in container or container[key] is not value:
            container[key] = value
    if isinstance(container, dict) and list(container) != list(before):
        container.clear()
        container.update(before)


def has_bits(tensor: Tensor) -> bool:
    """Return whether a tensor is an ordinary one, whose bits can be compared and written."""
    plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and tensor.layout is torch.strided
    return plain and not tensor.is_meta and not tensor.is_quantized


def _differing(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Return the pairs whose bits differ; an accelerator is waited for once."""
    differing, there = [], []
    for tensor, before in pairs:
        alike = (tensor.shape, tensor.dtype) == (before.shape, before.dtype)
        if alike and tensor.device.type != "cpu":
            there.append((tensor, before))
        elif not alike or (tensor is not before and not torch.equal(_bits(tensor), _bits(before))):
            differing.append((tensor, before))
    flags = [(_bits(tensor) != _bits(before)).any().reshape(1) for tensor, before in there]
    changed = torch.cat([flag.to(flags[0].device) for flag in flags]).tolist() if flags else []
    return differing + [pair for pair, flag in zip(there, changed, strict=True) if flag]


def _bits(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.view(_AS_WHOLE_NUMBERS[tensor.element_size()])  # NaN is no other than itself


def _new_lock() -> None:
    global _lock
    _lock = threading.RLock()
    _active.clear()


CONTAINERS = (dict, OrderedDict, defaultdict, list)
_sums = WeakTensorKeyDictionary()  # copy of a tensor → the sum of its bits
_active: dict[int, measurement_mode] = {}  # the models that are being measured
_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)
_mode = measurement_mode
_at_work = (_mode.__enter__, _mode.__exit__, _mode._on_signal, _mode._put_back, _mode.renew, _mode._settle, taken_back)
UNINTERRUPTIBLE = {function.__code__ for function in _at_work}  # and what other files add
