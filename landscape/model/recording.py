"""What a function calls, written down while it runs, to be called again without its Python.

A recording knows nothing of what Python read meanwhile. Constants may be read. What depends on the data alone may be,
and then the recording is one of these data. A number that depends on weights, a random number and a write to something
from outside end it (`UnrecordableError`). What cannot be seen (a pointer that is read, say) has to be found by
comparison.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only, tree_structure, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

_DATA, _WEIGHTS = 1, 2  # what a value depends on: bits of a number
# what reads a tensor, or exchanges it, and calls no kernel
_UNSEEN = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.data_ptr, Tensor.untyped_storage, Tensor.__dlpack__}
_UNSEEN |= {Tensor.data.__set__, Tensor.__repr__, Tensor.__format__, Tensor.apply_, Tensor.map_}  # type: ignore[attr-defined]
_FILLING = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}  # with what they read of a list


class UnrecordableError(Exception):
    """A function that a recording would not be the same as."""


class Recording(TorchDispatchMode):
    """What a function calls, as three functions: of the data alone, of the weights alone, and of both.

    Args:
        function: gives any structure of tensors.
        data: tensors that it computes with, others of the same kind at another time.
        weights: tensors that it computes with, which are moved in place.

    Attributes:
        is_shared: whether it holds for other data of this kind: nothing was read that depends on them.
        by_weights, constants: once at each point, of these constants.
        by_both: for all data at each point, of what `by_weights` and then `on` gave: what moves of the result.

    Raises:
        UnrecordableError: see above.
    """

    def __init__(self, function: Callable[[], Any], data: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        super().__init__()
        self._graph, self._nodes, self.is_shared = Graph(), WeakTensorKeyDictionary(), True
        self._data = [self._input(tensor, _DATA) for tensor in data]
        for tensor in weights:
            self._input(tensor, _WEIGHTS).meta["value"] = tensor
        with torch.no_grad(), _Reads(self), self:
            result = function()
        self._structure = tree_structure(result)
        self._result = [self.node(leaf) if isinstance(leaf, Tensor) else leaf for leaf in tree_leaves(result)]
        self._split([node for node in self._result if isinstance(node, Node)])

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the import of what compiles takes a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call, and write down."""
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        depends = self.depends(given)
        output = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(output) if leaf is not None and not _is_size(func, leaf)]
        numbers = not all(isinstance(result, Tensor) for result in results)
        if _draws(func, args, kwargs):
            raise UnrecordableError(func)
        if numbers or has_shape_of_values(func, args):
            self.read(depends)
        if numbers:
            return output
        call = self._graph.call_function(func, *tree_map_only(Tensor, self.node, (args, kwargs)))
        call.meta |= {"depends": depends, "base": call}
        if isinstance(output, Tensor):
            self._note(call, output, given, call)
        else:
            for place, result in enumerate(output or ()):
                if isinstance(result, Tensor):
                    part = self._graph.call_function(operator.getitem, (call, place))
                    self._note(part, result, given, call)
                    call.meta["base"] = part.meta["base"]
        for tensor in _written(func, args, kwargs):
            self._write(call, tensor)
        return output

    def read(self, depends: int) -> None:
        """Take note that Python learns a value."""
        if depends & _WEIGHTS:
            raise UnrecordableError("a number that depends on weights is read")
        self.is_shared &= not depends

    def depends(self, tensors: Sequence[Tensor]) -> int:
        """Return what any of the tensors depends on."""
        return _union(map(self.node, tensors))

    def node(self, tensor: Tensor) -> Node:
        """Return where a tensor comes from; one that was there before is a constant."""
        if tensor not in self._nodes:
            self._input(tensor, 0).meta["value"] = tensor
        return self._nodes[tensor]

    def _input(self, tensor: Tensor, depends: int) -> Node:
        node = self._nodes[tensor] = self._graph.placeholder("given")
        node.meta |= {"depends": depends, "base": node}
        return node

    def _note(self, node: Node, tensor: Tensor, given: Sequence[Tensor], call: Node) -> None:
        alias = next((other for other in given if torch._C._is_alias_of(other, tensor)), None)  # type: ignore[attr-defined]
        base = call if alias is None else self.node(alias).meta["base"]
        depends = call.meta["depends"]
        node.meta |= {"depends": depends, "base": base}
        if not depends or (depends == _WEIGHTS and base.op == "placeholder"):  # the views of what moves in place
            node.meta["value"] = tensor
        self._nodes[tensor] = node

    def _write(self, call: Node, tensor: Tensor) -> None:
        """Let all that lies in a memory that is written to belong to one function, which keeps the order."""
        call.meta["writes"] = True
        base = self.node(tensor).meta["base"]
        group = {node for node in self._graph.nodes if node.meta["base"] is base} | {call}
        depends = _union(group)
        for node in group if depends else ():
            node.meta["depends"] = depends
            node.meta.pop("value", None)
        read_before = any(user.meta["depends"] not in (0, depends) for node in group for user in node.users)
        if base.op == "placeholder" or read_before:
            raise UnrecordableError("something from outside is written to, or read before it is")

    def _split(self, results: list[Node]) -> None:
        nodes = list(self._graph.nodes)
        waiting, needed = results + [node for node in nodes if node.meta.get("writes")], set()
        while waiting:
            node = waiting.pop()
            if node not in needed and "value" not in node.meta:
                needed.add(node)
                waiting += node.all_input_nodes
        bodies = {
            which: [n for n in nodes if n in needed and n.op != "placeholder" and n.meta["depends"] == which]
            for which in (_DATA, _WEIGHTS, _DATA | _WEIGHTS)
        }
        moving = [node for node in results if node.meta["depends"] & _WEIGHTS]
        if any("value" in node.meta for node in moving):
            raise UnrecordableError("a weight itself is the loss")
        inputs = _inputs(bodies[_DATA | _WEIGHTS], moving)
        shared = [node for node in inputs if node.meta["depends"] == _WEIGHTS and "value" not in node.meta]
        self._fixed = [node for node in inputs if node not in shared]
        self.by_both = _compiled(bodies[_DATA | _WEIGHTS], shared + self._fixed, moving)
        constants = _inputs(bodies[_WEIGHTS], ())
        self.by_weights, self.constants = _compiled(bodies[_WEIGHTS], constants, shared), _values(constants)
        self._kept = [n for n in (*self._fixed, *results) if n.meta["depends"] == _DATA]
        constants = [node for node in _inputs(bodies[_DATA], self._kept) if node not in self._data]
        self._by_data = _compiled(bodies[_DATA], self._data + constants, self._kept)
        self._constants = _values(constants)

    def on(self, data: Sequence[Tensor]) -> tuple[list[Tensor], list[Any]]:
        """Return what `by_both` is given for some data, and the result as far as it is the same at every point."""
        kept = dict(zip(self._kept, self._by_data(*data, *self._constants), strict=True))
        known = [kept.get(part, part.meta.get("value")) if isinstance(part, Node) else part for part in self._result]
        return [kept[node] if node in kept else node.meta["value"] for node in self._fixed], known

    def result(self, known: Sequence[Any], moving: Iterator[Tensor]) -> Any:
        """Put the result together; takes the next of what moves."""
        moves = [isinstance(part, Node) and bool(part.meta["depends"] & _WEIGHTS) for part in self._result]
        return tree_unflatten([next(moving) if m else k for m, k in zip(moves, known, strict=True)], self._structure)


class _Reads(TorchFunctionMode):
    """Tells a recording where Python reads a tensor and calls no kernel for it."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Pass on what calls kernels."""
        if func == Tensor.data.__get__:  # type: ignore[attr-defined]
            return args[0].detach()
        if func in _UNSEEN:
            self._recording.read(self._recording.depends(args[:1]))
        if func in _FILLING:
            lists = [part for part in args if not isinstance(part, Tensor)]
            read = [part for part in tree_leaves(lists) if isinstance(part, Tensor)]
            self._recording.read(self._recording.depends(read))
        return func(*args, **(kwargs or {}))


def _union(nodes: Iterable[Node]) -> int:
    """Return what any of the nodes depends on."""
    return functools.reduce(operator.or_, (node.meta["depends"] for node in nodes), 0)


def has_shape_of_values(func: Any, args: Any) -> bool:
    """Return whether how much a function returns, or writes to, depends on values: then Python reads these."""
    indices = args[1] if len(args) > 1 else None
    if not any(part.name == "indices" for part in func._schema.arguments) or not isinstance(indices, list | tuple):
        return torch.Tag.dynamic_output_shape in func.tags
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _is_size(func: Any, result: Any) -> bool:
    """Return whether a result is a whole number that kernels of attention hand out: lengths of what they are given."""
    return isinstance(result, int) and "scaled_dot_product" in func._schema.name


def _draws(func: Any, args: Any, kwargs: Any) -> bool:
    """Return whether a function draws random numbers; attention does where it drops some."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    names = [argument.name for argument in func._schema.arguments]
    if "dropout_p" not in names:
        return True
    place = names.index("dropout_p")
    return bool(kwargs.get("dropout_p", args[place] if place < len(args) else 0))


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors that a function writes to."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[place] if place < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor))


def _inputs(body: Sequence[Node], outputs: Sequence[Node]) -> list[Node]:
    """Return what some calls are given from elsewhere, and the outputs that are no call among them; each once."""
    inside = set(body)
    given = [node for call in body for node in call.all_input_nodes] + list(outputs)
    return list(dict.fromkeys(node for node in given if node not in inside))


def _values(nodes: Sequence[Node]) -> list[Tensor]:
    return [node.meta["value"] for node in nodes]


def _compiled(body: Sequence[Node], inputs: Sequence[Node], outputs: Sequence[Node]) -> Any:
    graph = Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    for node in body:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output([copies[node] for node in outputs])
    return GraphModule(nn.Module(), graph).forward
