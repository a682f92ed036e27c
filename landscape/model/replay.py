"""An objective over a plane, measured by replaying a recording of its loss: the same numbers, in less time.

The kernels that the loss of one batch calls are written down while it is computed, and called again at every point,
without the network's Python around them. A recording knows nothing of what Python read meanwhile: a number that depends
on weights or data and reaches Python, a random number, or a write to something from outside ends it, and nothing is
replayed. What is not seen so (a pointer that is read, say) is measured: a replay is compared with the objective at two
points before it is used, and at the last one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only, tree_structure, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

from .batches import KEPT, bytes_of, mapped
from .coordinates import Point
from .directions import combined
from .evaluation import Evaluation, merged
from .losses import BatchLoss
from .measuring import measurement_mode
from .objective import Objective

_PAYS = 100  # points, from which a recording pays: it takes as long as 30 to 80
_MOST = 2**24  # weights that move: five copies are kept, and the Python of large networks takes no time
_ALIGNED = 64  # bytes: where PyTorch's own tensors begin; elsewhere kernels may add up in another order
_BATCH, _WEIGHTS = 1, 2  # what a value depends on: bits of a number
# what reads a tensor, or exchanges it, and calls no kernel
_UNSEEN = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.data_ptr, Tensor.untyped_storage, Tensor.__dlpack__}
_UNSEEN |= {Tensor.data.__set__}  # type: ignore[attr-defined]


def columns(here: Evaluation, centre: Evaluation) -> Tensor:
    """Return loss, accuracy, the standard error of the loss's difference to the centre, and metrics."""
    return torch.stack([here.loss, here.accuracy, here.stderr(centre), *here.metrics])


class Replay:
    """The columns of an objective at many points of the plane of some directions.

    Args:
        objective: the function.
        steps: the directions.
        points: (points, axes) all that are to be measured; two of them are compared.

    Cost: at the first call, where it pays, about six passes over the data; memory for what moves, a copy for each
    direction and three more, and for what depends on the data alone.
    """

    def __init__(self, objective: Objective, steps: Sequence[Point], points: Tensor) -> None:
        self.objective, self.steps = objective, steps
        self._no_network = nn.Module()  # none runs in a replay: the switches of the process are all that matters
        self._no_network.register_buffer("device", torch.zeros((), device=objective.device))
        size = len(points)  # neither the first nor the last, and on both sides of the middle: one is the centre
        self._compared = points[[2 * size // 7, 6 * size // 7]].tolist() if size >= _PAYS else []
        self._recorded: _Recorded | None = None
        self._last: tuple[Sequence[float], Tensor] | None = None

    def __call__(self, coefficients: Sequence[Sequence[float]]) -> Tensor | None:
        """Return (points, columns), None where the objective itself has to be asked."""
        compared, self._compared = self._compared, []
        try:
            if compared:
                with self.objective.measurement_mode():
                    recorded = _Recorded(self.objective, self.steps)
                    pairs = zip(recorded(compared), map(self.row, compared), strict=True)
                    self._recorded = recorded if all(self._agree(*pair) for pair in pairs) else None
            if self._recorded is None:
                return None
            with measurement_mode(self._no_network):
                rows = self._recorded(coefficients)
        except Exception:  # a network that cannot be recorded, or one that raises here
            return None
        self._last = coefficients[-1], rows[-1]
        return rows

    def row(self, coefficients: Sequence[float]) -> Tensor:
        """Return the columns at one point, measured by the objective itself."""
        return columns(self.objective.evaluate(combined(self.steps, coefficients)), self.objective.centre)

    def is_confirmed(self) -> bool:
        """Return whether the objective itself gives the same at the last point that was replayed since last asked."""
        last, self._last = self._last, None
        return last is None or self._agree(last[1], self.row(last[0]))

    def _agree(self, replayed: Tensor, measured: Tensor) -> bool:
        """Return whether two rows are the same but for rounding errors, which activations that are rounded enlarge."""
        slack = 1e-4 if self.objective.coordinates.straight_through else 8 * torch.finfo(self.objective.dtype).eps
        near = (replayed - measured).abs() <= slack * torch.maximum(measured.abs(), measured[0].abs())
        return bool((near | (replayed.isnan() & measured.isnan())).all())


class _UnrecordableError(Exception):
    pass


class _Recorded:
    """The batches of an objective, each with the recording of its kind."""

    def __init__(self, objective: Objective, steps: Sequence[Point]) -> None:
        network = objective.network
        if objective.needs_grad or network.batchnorm != "fixed" or not objective.same_order:
            raise _UnrecordableError
        if any(hasattr(module, "_orig_mod") for module in network.model.modules()):
            raise _UnrecordableError("what is compiled would be compiled anew")
        self._weights, self._centre = _Weights(objective, steps), objective.centre
        kinds: dict[Any, _Recording] = {}
        self._batches: list[tuple[_Recording, list[Tensor], list[Any]]] = []
        self._columns: dict[int, _Recording] = {}  # by the number of points
        room = float(KEPT)
        for batch in objective.value_batches():
            leaves: list[Tensor] = []
            mapped(batch, lambda leaf: leaves.append(leaf) or leaf)  # type: ignore[func-returns-value] # noqa: B023
            places = [next(i for i, other in enumerate(leaves) if other is leaf) for leaf in leaves]
            kind = (*((t.shape, t.stride(), t.dtype, i) for t, i in zip(leaves, places, strict=True)),)
            if (recording := kinds.get(kind)) is None:
                network.forget_folded()
                loss = partial(objective.loss, self._weights.tensors, batch)
                recording = _Recording(loss, leaves, self._weights.moving)
                network.forget_folded()
            if recording.is_shared:
                kinds[kind] = recording
            fixed, result = recording.on(leaves)
            self._batches.append((recording, fixed, result))
            room -= bytes_of(batch) + sum(tensor.nbytes for tensor in fixed)
            if room < 0:
                raise _UnrecordableError
        self._recordings = {recording for recording, _, _ in self._batches}

    @torch.no_grad()
    def __call__(self, coefficients: Sequence[Sequence[float]]) -> Tensor:
        points = []
        for row in coefficients:
            self._weights.move(row)
            shared = {each: each.by_weights(*each.constants) for each in self._recordings}
            batches = (each.by_both(*shared[each], *fixed) for each, fixed, _ in self._batches)
            points.append([value for batch in batches for value in batch])
        moving = [torch.stack(values) for values in zip(*points, strict=True)]
        if len(points) not in self._columns:
            self._columns[len(points)] = _Recording(lambda: torch.vmap(self._merged)(*moving), moving, ())
        return self._columns[len(points)].on(moving)[1][0]

    def _merged(self, *moving: Tensor) -> Tensor:
        rest = iter(moving)
        return columns(merged([each.loss(known, rest) for each, _, known in self._batches], True), self._centre)


class _Weights:
    """The tensors that move, as views of one buffer, so that few kernels move them.

    Attributes:
        tensors: all that vary, by their names in the model; those that no direction moves as they are.
    """

    def __init__(self, objective: Objective, steps: Sequence[Point]) -> None:
        coordinates = objective.coordinates
        base = coordinates.base
        names = [name for name in base if any(name in step and step[name].any() for step in steps)]
        moving = {name: base[name] for name in names}
        like = next(iter(moving.values()))
        unit = _ALIGNED // like.element_size()
        sizes = [-(-tensor.numel() // unit) * unit for tensor in moving.values()]
        if sum(sizes) > _MOST or any((t.dtype, t.device) != (like.dtype, like.device) for t in moving.values()):
            raise _UnrecordableError

        def laid_out(values: Point) -> tuple[Tensor, Point]:
            flat = like.new_zeros(sum(sizes))
            parts = zip(names, flat.split(sizes), strict=True)
            views = {
                n: p[: base[n].numel()].as_strided(base[n].shape, torch.empty_like(base[n]).stride()) for n, p in parts
            }
            for name in views.keys() & values.keys():
                views[name].copy_(values[name])
            return flat, views

        self._base, _ = laid_out(moving)
        self._steps = [laid_out(step)[0] for step in steps]
        self._here, views = laid_out(moving)
        self._term = torch.empty_like(self._here)
        self.moving = list(views.values())
        self.tensors = {coordinates.tensors[name]: views.get(name, value) for name, value in base.items()}

    def move(self, coefficients: Sequence[float]) -> None:
        """Move the weights, in the order of sums of `combined` and `Coordinates.displaced`."""
        torch.mul(self._steps[0], coefficients[0], out=self._here)
        for step, coefficient in zip(self._steps[1:], coefficients[1:], strict=True):
            self._here.add_(torch.mul(step, coefficient, out=self._term))
        self._here.add_(self._base)


class _Recording(TorchDispatchMode):
    """What a function calls, as three functions: of the data alone, of the weights alone, and of both.

    Attributes:
        is_shared: whether it is one of other batches of this kind, too: nothing was read that depends on the data.
        by_weights, constants: once at each point, of these constants (and the weights, which stay where they are).
        by_both: for each batch at each point, of what `by_weights` gave and what `on` gave.
    """

    def __init__(self, function: Callable[[], Any], data: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        super().__init__()
        self._graph, self._nodes, self.is_shared = Graph(), WeakTensorKeyDictionary(), True
        self._data = [self._input(tensor, _BATCH) for tensor in data]
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
        results = [leaf for leaf in tree_leaves(output) if leaf is not None]
        numbers = not all(isinstance(result, Tensor) for result in results)
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise _UnrecordableError(func)
        if numbers or _has_shape_of_values(func, args):
            self.read(depends)
        if numbers:
            return output
        call = self._graph.call_function(func, *tree_map_only(Tensor, self.node, (args, kwargs)))
        call.meta |= {"depends": depends, "base": call}
        if isinstance(output, Tensor):
            self._note(call, output, given, call)
        else:
            for place, result in enumerate(output or ()):
                if result is not None:
                    part = self._graph.call_function(operator.getitem, (call, place))
                    self._note(part, result, given, call)
                    call.meta["base"] = part.meta["base"]
        for tensor in _written(func, args, kwargs):
            self._write(call, tensor)
        return output

    def read(self, depends: int) -> None:
        """Take note that Python learns a value."""
        if depends & _WEIGHTS:
            raise _UnrecordableError("a number that depends on weights is read")
        self.is_shared &= not depends

    def depends(self, tensors: Sequence[Tensor]) -> int:
        """Return what any of the tensors depends on."""
        found = 0
        for tensor in tensors:
            found |= self.node(tensor).meta["depends"]
        return found

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
        depends = 0
        for node in group:
            depends |= node.meta["depends"]
        for node in group:
            node.meta["depends"] = depends
            if depends:
                node.meta.pop("value", None)
        read_before = any(user.meta["depends"] not in (0, depends) for node in group for user in node.users)
        if base.op == "placeholder" or read_before:
            raise _UnrecordableError("something from outside is written to, or read before it is")

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
            for which in (_BATCH, _WEIGHTS, _BATCH | _WEIGHTS)
        }
        moving = [node for node in results if node.meta["depends"] & _WEIGHTS]
        if any("value" in node.meta for node in moving):
            raise _UnrecordableError("a weight itself is the loss")
        inputs = _inputs(bodies[_BATCH | _WEIGHTS], moving)
        shared = [node for node in inputs if node.meta["depends"] == _WEIGHTS and "value" not in node.meta]
        self._fixed = [node for node in inputs if node not in shared]
        self.by_both = _compiled(bodies[_BATCH | _WEIGHTS], shared + self._fixed, moving)
        constants = _inputs(bodies[_WEIGHTS], ())
        self.by_weights, self.constants = _compiled(bodies[_WEIGHTS], constants, shared), _values(constants)
        self._kept = [n for n in (*self._fixed, *results) if n.meta["depends"] == _BATCH]
        constants = [node for node in _inputs(bodies[_BATCH], self._kept) if node not in self._data]
        self._by_data = _compiled(bodies[_BATCH], self._data + constants, self._kept)
        self._constants = _values(constants)

    def on(self, leaves: Sequence[Tensor]) -> tuple[list[Tensor], list[Any]]:
        """Return what `by_both` is given for a batch, and the result as far as it is the same at every point."""
        kept = dict(zip(self._kept, self._by_data(*leaves, *self._constants), strict=True))
        known = [kept.get(part, part.meta.get("value")) if isinstance(part, Node) else part for part in self._result]
        return [kept[node] if node in kept else node.meta["value"] for node in self._fixed], known

    def loss(self, known: Sequence[Any], moving: Iterator[Tensor]) -> BatchLoss:
        """Put the result of a batch together; takes the next of what moves."""
        moves = [isinstance(part, Node) and bool(part.meta["depends"] & _WEIGHTS) for part in self._result]
        return tree_unflatten([next(moving) if m else k for m, k in zip(moves, known, strict=True)], self._structure)


class _Reads(TorchFunctionMode):
    """Ends a recording where Python reads what depends on weights or data, and calls no kernel for it."""

    def __init__(self, recording: _Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Pass on what calls kernels."""
        if func == Tensor.data.__get__:  # type: ignore[attr-defined]
            return args[0].detach()
        if func in _UNSEEN:
            self._recording.read(self._recording.depends(args[:1]))
        return func(*args, **(kwargs or {}))


def _has_shape_of_values(func: Any, args: Any) -> bool:
    """Return whether how much a function returns depends on values: then Python reads these in its shape."""
    if func is not torch.ops.aten.index.Tensor:
        return torch.Tag.dynamic_output_shape in func.tags
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


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
