"""The curvature of a network while it trains, and over the checkpoints that a training left."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from . import parallel
from .checking import is_logger, numbers
from .curvature import Hessian
from .flatness import rounding_gap
from .linalg import TopPair, fold_shares, fold_stderr, hutchinson, top_pair
from .model import BatchObjective, Loss, Objective, Output, Point, mapped, objective_of, recentred
from .plotting import drawing_function
from .progress import in_notebook
from .results import Result, with_error
from .stability import critical_sharpness, keeps_second_moments, preconditioner, stability_threshold

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BITS, PROBES = 4, 5
# what a quantity takes before it has been measured once, in forward passes over the data
_FORWARDS = {"loss": 1, "rounding": 2, "gradient": 8, "lambda1": 50, "preconditioned": 40, "trace": 40, "picture": 20}
_ERRORS = ("_stderr", "_residual")
_STATE = ("rows", "calls", "trained", "used", "costs", "vectors")


@dataclass(frozen=True, eq=False)
class TrainingCurvature(Result):
    """What was measured along a training, a row for each time.

    Attributes:
        rows: ``step``; ``seconds`` of training before; ``learning_rate``, and ``threshold``: the λ₁ beyond which its
            steps grow along the top eigenvector (NaN for optimizers without a formula here); ``probe_loss``, on the
            data measured; ``weight_norm``; ``rounding_gap``: the loss increase when the weights are rounded to 4 bits;
            ``critical_sharpness``; ``gradient_cosine``: of this and the gradient measured before it; ``lambda1``,
            ``preconditioned_lambda1`` and ``trace``. What a column has as ``…_stderr`` is over the data, of the trace
            over its probes; ``…_residual`` says how far an eigenvalue is, at most, relative to it. What was skipped is
            missing from a row, and NaN in `frame`.

    Example:
        >>> import torch, landscape
        >>> model, data = torch.nn.Linear(3, 2), (torch.randn(32, 3), torch.randint(2, (32,)))
        >>> (row,) = landscape.audit([model.state_dict()], model, data).rows
        >>> 0 < row["lambda1"] <= row["trace"] + 3 * row["trace_stderr"]
        True
    """

    rows: list[dict[str, Any]]
    picture: ClassVar[str] = "courses.course"
    how: ClassVar[str] = (
        "λ₁ of the Hessian by Rayleigh–Ritz from the eigenvectors found before, bands one standard error; critical "
        "sharpness is 2/η, η a step along the gradient that no longer descends"
    )

    def _cells(self) -> dict[str, list[str]]:
        cells = {}
        for name in [name for name in self.frame if not name.endswith(_ERRORS)]:
            values = [(row.get(name, math.nan), row.get(f"{name}_stderr", math.nan)) for row in self.rows]
            cells[name] = [v if isinstance(v, str) else with_error(v, e) if v == v else "–" for v, e in values]
        return cells

    def __repr__(self) -> str:
        parts = [f"{len(self.rows)} rows"]
        for name in ("probe_loss", "lambda1", "preconditioned_lambda1", "threshold", "trace", "rounding_gap"):
            values = [row[name] for row in self.rows if math.isfinite(row.get(name, math.nan))]
            parts += [f"{name} {values[0]:.3g} → {values[-1]:.3g}"] if values else []
        return f"TrainingCurvature({', '.join(parts)}; {self._kind() or 'raw units'})"


class Monitor:
    """Measure curvature while a network trains, within a share of the training's time, and without a trace in it.

    Call `step` in a loop of your own; or hand the monitor itself to ``saq_core.train(on_step=monitor)`` or
    ``on_epoch=``, to Lightning's or Hugging Face's ``Trainer(callbacks=[monitor])``. Weights, buffers, gradients and
    random numbers are, bit by bit, those of a training without it. Everything is measured in eval mode, on ``data``.

    - ``probe_loss``; ``weight_norm``, of weights of two or more dimensions; ``rounding_gap``: the loss increase when
      the weights are rounded to 4 bits, each tensor to the grid of least squared error.
    - ``critical_sharpness``: 2/η_c, η_c a learning rate at which a step along the gradient (with Adam, along P⁻¹g) no
      longer lowers the loss, by at most 10 forward passes, and NaN where they do not find it: the smallest of them
      unless the loss rises and falls again before; ``gradient_cosine``, from the same gradient.
    - ``lambda1``: the largest eigenvalue of the Hessian H, starting from the eigenvectors that were found last; where
      another direction has overtaken them unseen, it is a lower bound.
      Beside it the ``threshold`` beyond which steps at this learning rate grow on a quadratic: 2/lr for SGD, with
      momentum β (2 + 2β)/lr, with Nesterov's (2 + 2β)/((1 + 2β)·lr). With Adam it is (2 + 2β₁)/((1 − β₁)·lr), which is
      38/lr for β₁ = 0.9, and concerns ``preconditioned_lambda1``, that of P^(−½)HP^(−½), where P = (1 − β₁ᵗ)·(√v̂ + ε)
      divides the steps. It also concerns that where the optimizer moves a part of the weights (P is one on it).
      Weight decay and what SAM adds are left out.
    - ``trace`` of H: 5 probes, the same each time, beside the two top eigenvectors.

    The budget so far is shared out, the cheapest quantity first: each may take a part of what cheaper ones left, by the
    square root of its cost: one that costs a hundred times as much comes a tenth as often. A quantity that would exceed
    its part, going by what it took last, is skipped. In a notebook a picture follows the training, on a tenth. Under
    several processes all of them call it.

    Args:
        model: the network that is trained, or an `Objective` of it; what is trainable now is what is measured.
        data: ``(x, y)`` or batches, best a few hundred samples; default ``model.probe``. See `Objective`.
        optimizer: any; default the one that the training hands over. Of its groups with weights that are measured, that
            of the largest learning rate counts.
        loss, objective, output: see `Objective`.
        every: measure at every so many calls at most.
        budget: of the training's time, at most, above 0 to 1; the first look at network and data counts too.
        log: anything with ``.log(dict)`` (W&B, trackio, accelerate): gets each row.

    Attributes:
        rows: the measurements so far; `result` has them with `Result.frame`, ``.save()`` and pictures.
        used: quantity → the seconds that it took; "setup" of the first look, and of what each row takes besides.
        trained: the seconds between calls.

    Raises:
        ValueError: every < 1, budget outside of (0, 1], no data, an optimizer that trains none of the model's weights.
        TypeError: an optimizer without ``param_groups``, a log without ``.log``.

    Cost: that of an `Objective` when made. A row, in forward passes: 1 for the loss, 1 for rounding, 3 for the gradient
    and 4 to 10 along it, about 20 for λ₁ (3 products where the matrix has changed by a few per cent), 30 for the trace.

    Source: Cohen et al. 2021 (thresholds of SGD) and 2022 (of Adam); Kalra et al. 2026, arXiv 2601.16979 (critical
    sharpness, along the optimizer's update there; the secant search is ours).

    Example:
        >>> import torch, landscape
        >>> model, data = torch.nn.Linear(3, 2), (torch.randn(32, 3), torch.randint(2, (32,)))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> monitor = landscape.Monitor(model, data, optimizer=optimizer, every=5)
        >>> for _ in range(200):
        ...     optimizer.zero_grad()
        ...     torch.nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        ...     optimizer.step()
        ...     _ = monitor.step()
        >>> monitor.calls, monitor.draw().axes[0].get_ylabel()
        (200, 'Sharpness')
    """

    state_key = _legacy_state_key = "landscape.Monitor"  # Lightning keeps the state under it

    def __init__(
        self,
        model: nn.Module | Objective,
        data: Any = None,
        *,
        optimizer: Any = None,
        loss: Loss | None = None,
        objective: BatchObjective | None = None,
        output: Output | None = None,
        every: int = 1,
        budget: float = 0.1,
        log: Any = None,
    ) -> None:
        if in_notebook():
            drawing_function(TrainingCurvature.picture, "draw")  # what it imports takes seconds, once
        start = time.perf_counter()
        numbers(whole=True, at_least=1, every=every)
        numbers(above=0, at_most=1, budget=budget)
        if not (log is None or is_logger(log)):
            raise TypeError(f"log must have a method log(row), got {type(log).__name__}")
        self._function = objective_of(model, data, loss=loss, objective=objective, output=output)
        self.every, self.budget, self._log, self.optimizer = every, budget, log, None
        self._keeps_optimizer, self._seen = optimizer is not None, -1
        if optimizer is not None:
            self._take(optimizer)
        self.rows: list[dict[str, Any]] = []
        self.calls, self.trained = 0, 0.0
        self._hessian: Hessian | None = None
        self.vectors: dict[str, Any] = {}  # the last gradient, and the last eigenvectors by quantity
        self.costs: dict[str, float] = {}
        self._left: float | None = None  # when the training went on
        self._display: Any = None
        again = time.perf_counter()
        recentred(self._function)
        self.costs["loss"] = time.perf_counter() - again
        self.used = {"setup": time.perf_counter() - start}

    def __call__(self, state: Any = None, *_: Any, **__: Any) -> dict[str, float]:
        """Do what `step` does, as a callback: of `saq_core.train`, or of any loop that hands a state over."""
        several = getattr(state, "optimizers", None) or [None]  # of Lightning's Trainer
        step = getattr(state, "step", getattr(state, "global_step", None))
        return self._step(getattr(state, "optimizer", several[0]), step if isinstance(step, int) else None)

    def __getattr__(self, name: str) -> Any:
        """Offer the events of other people's trainers, in which nothing is to be done."""
        if name.startswith("on_") or name in ("setup", "teardown"):
            return lambda *_, **__: None
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        if not self.rows:
            used, trained = sum(self.used.values()), self.trained
            return (
                f"Monitor(no rows yet: making it took {used:.2g} s, {self.budget:.0%} of {trained:.2g} s of training "
                "are allowed; train for longer or raise budget=)"
            )
        share = f"; {sum(self.used.values()) / self.trained:.1%} of the training's time" if self.trained else ""
        return f"Monitor({self.result!r}{share})"

    def _repr_html_(self) -> str:
        return self.result._repr_html_()

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """Measure after a step of Hugging Face's Trainer."""
        self._step(optimizer, state.global_step)

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        """Measure after a step of Lightning's Trainer, which may take several batches."""
        if trainer.global_step != self._seen:
            self._seen = trainer.global_step
            self(trainer)

    def step(self) -> dict[str, float]:
        """Measure what the budget allows, after a step of the training; return what was measured, {} where nothing."""
        return self._step(None, None)

    @property
    def result(self) -> TrainingCurvature:
        """The measurements so far."""
        settings = {"every": self.every, "budget": self.budget, "bits": BITS, "units": "raw"}
        settings |= {"optimizer": type(self.optimizer).__name__, "seconds": sum(self.used.values())}
        about = {k: v for k, v in self._function.about().items() if k not in ("centre_loss", "weight_norm")}
        return TrainingCurvature(about | settings, [dict(row) for row in self.rows])

    @property
    def frame(self) -> pd.DataFrame:
        """See `Result.frame`."""
        return self.result.frame

    def plot(self, **options: Any) -> go.Figure:
        """See `Result.plot`."""
        return self.result.plot(**options)

    def draw(self, ax: Axes | None = None, **options: Any) -> Figure:
        """See `Result.draw`; into ``ax`` the sharpness alone."""
        return self.result.draw(ax, **options)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` goes on from: numbers, texts, and tensors (the last gradient, eigenvectors)."""
        return copy.deepcopy({name: getattr(self, name) for name in _STATE})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from another monitor's `state_dict`.

        Raises:
            ValueError: it is none, or of another network.
        """
        state = state if isinstance(state, Mapping) else {}
        if missing := [name for name in _STATE if name not in state]:
            raise ValueError(f"state must be what state_dict() of a monitor returns, got none of {', '.join(missing)}")
        shapes = [value.shape for value in self._function.coordinates.centre.values()]
        for name, value in state["vectors"].items():
            parts = [part.shape for part in value.values()] if isinstance(value, Mapping) else value.shape[-1]
            if parts not in (shapes, sum(map(math.prod, shapes))):
                raise ValueError(f"state must come from a monitor of this network, got the {name} of another")
        for name in _STATE:
            setattr(self, name, copy.deepcopy(state[name]))
        self.vectors = mapped(self.vectors, lambda tensor: tensor.to(self._function.device))
        self._left = None

    def _take(self, optimizer: Any) -> None:
        groups = getattr(optimizer, "param_groups", None)
        if not groups:
            raise TypeError(f"optimizer must have param_groups, as torch's have, got {type(optimizer).__name__}")
        weights = {id(parameter) for parameter in self._function.model.parameters()}
        if weights.isdisjoint(id(parameter) for group in groups for parameter in group["params"]):
            raise ValueError(
                "optimizer must train weights of the monitored model, got one of another: pass the model that is "
                "trained, not a copy"
            )
        self.optimizer = optimizer

    def _step(self, optimizer: Any, number: int | None) -> dict[str, float]:
        if optimizer not in (None, self.optimizer) and not self._keeps_optimizer:
            self._take(optimizer)
        self.calls += 1
        is_due = self.calls % self.every == 0
        now = self._now() if is_due else time.perf_counter()
        self.trained += 0.0 if self._left is None else now - self._left
        self._left, before = now, sum(self.used.values())
        try:
            if not (is_due and self._affords("loss")):
                return {}
            settings = stability_threshold(self.optimizer, self._function)
            return self._measured(settings, self.calls if number is None else number)
        finally:
            self._left = time.perf_counter()
            self.used["setup"] += self._left - now - (sum(self.used.values()) - before)

    def _measured(self, settings: dict[str, float], step: int, **name: str) -> dict[str, float]:
        """Measure a row, the cheapest quantities first."""
        root = preconditioner(self.optimizer, self._function)
        if root is None and self.optimizer is not None and keeps_second_moments(self.optimizer):
            settings = settings | {"threshold": math.nan}  # which concerns what is not known
        present = _Present(self, root)
        with self._function.measurement_mode():
            order = sorted(_FORWARDS.keys() - {"picture"}, key=lambda q: (q != "loss", q == "trace", self._cost(q)))
            for quantity in order:
                if present.has(quantity) and self._affords(quantity):
                    with self._counted(quantity):
                        present.found |= getattr(present, f"_{quantity}")()
        seconds = {"seconds": self.trained} if self.calls else {}
        self.rows.append({"step": step} | seconds | settings | name | present.found)
        if self._log is not None:
            self._log.log(dict(self.rows[-1]))
        if in_notebook() and self._affords("picture"):
            with self._counted("picture"):
                self._show()
        return present.found

    def _cost(self, quantity: str) -> float:
        return self.costs.get(quantity, _FORWARDS[quantity] * self.costs["loss"])

    def _affords(self, quantity: str) -> bool:
        """Return whether a quantity would stay within its part of the time; the first process decides for all."""
        if math.isinf(self.budget):
            return True
        cost, whole, idle = self._cost(quantity), self.budget * self.trained, {"preconditioned"} - self.vectors.keys()
        order = sorted(_FORWARDS.keys() - {"picture"} - idle | {quantity}, key=self._cost)
        cheaper, others = order[: order.index(quantity)], order[order.index(quantity) :]
        left = whole - self.used["setup"] - sum(self.used.get(other, 0.0) for other in cheaper)
        part = left * cost**0.5 / max(sum(self._cost(other) ** 0.5 for other in others), 1e-12)
        part = whole / 10 if quantity == "picture" else part
        affords = self.used.get(quantity, 0.0) + cost <= part and sum(self.used.values()) + cost <= whole
        return bool(parallel.gather(affords)[0])

    @contextlib.contextmanager
    def _counted(self, quantity: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.costs[quantity] = self._now() - start
            self.used[quantity] = self.used.get(quantity, 0.0) + self.costs[quantity]

    def _now(self) -> float:
        if self._function.device.type == "cuda":
            torch.cuda.synchronize(self._function.device)
        return time.perf_counter()

    def _show(self) -> None:
        """Draw what is known below the cell that runs, and all of it when that has ended."""
        from IPython import get_ipython
        from IPython.display import Image, display

        from .plotting.paper import png

        image = Image(png(self.draw()))
        if self._display is not None:
            self._display.update(image)
            return
        self._display, events = display(image, display_id=True), get_ipython().events

        def last(_: Any) -> None:
            events.unregister("post_run_cell", last)
            self._show()
            self._display = None  # another cell has a picture of its own

        events.register("post_run_cell", last)


class _Present:
    """The network as it is at one step: what is measured of it, each quantity by a function that returns columns."""

    def __init__(self, monitor: Monitor, root: Point | None) -> None:
        self.monitor, self.root, self.vectors = monitor, root, monitor.vectors
        self.function, self.found = monitor._function, dict[str, float]()
        self.pair: TopPair | None = None

    def has(self, quantity: str) -> bool:
        """Return whether a quantity can be measured: none where the training has diverged, the trace beside λ₁."""
        is_finite = quantity == "loss" or math.isfinite(self.found["probe_loss"])
        needs = {"trace": self.pair, "preconditioned": self.root}
        return is_finite and needs.get(quantity, self) is not None

    @cached_property
    def hessian(self) -> Hessian:
        """The operator here; what the first one has found out about its costs holds for all."""
        if self.monitor._hessian is None:
            whole = Hessian(self.function)
            self.monitor._hessian = whole.recentred(self.function)  # without its graphs
            return whole
        return self.monitor._hessian.recentred(self.function)

    def _loss(self) -> dict[str, float]:
        self.function = recentred(self.function)
        return {"probe_loss": float(self.function.centre.loss), "weight_norm": self.function.coordinates.norm()}

    def _rounding(self) -> dict[str, float]:
        return dict(zip(("rounding_gap", "rounding_gap_stderr"), rounding_gap(self.function, BITS), strict=True))

    def _gradient(self) -> dict[str, float]:
        coordinates, before = self.function.coordinates, self.vectors.get("gradient")
        gradient = self.vectors["gradient"] = self.function.loss_and_gradient()[1]
        direction = {k: g if self.root is None else self.root[k] ** 2 * g for k, g in gradient.items()}
        known = [row["critical_sharpness"] for row in self.monitor.rows if "critical_sharpness" in row]
        found = {"critical_sharpness": critical_sharpness(self.function, gradient, direction, *known[-1:])[0]}
        if before is not None:
            lengths = coordinates.length(gradient) * coordinates.length(before)
            found["gradient_cosine"] = float(coordinates.inner(before, gradient) / lengths)
        return found

    def _lambda1(self) -> dict[str, float]:
        self.pair = pair = top_pair(self.hessian, self.vectors.get("lambda1", ()))
        self.vectors["lambda1"] = pair.vectors
        stderr = fold_stderr(pair.fold_values, fold_shares(self.hessian))
        return {"lambda1": pair.value, "lambda1_residual": pair.residual, "lambda1_stderr": stderr}

    def _preconditioned(self) -> dict[str, float]:
        assert self.root is not None
        pair = top_pair(self.hessian.scaled(self.root), self.vectors.get("preconditioned", ()))
        self.vectors["preconditioned"] = pair.vectors
        return {"preconditioned_lambda1": pair.value, "preconditioned_lambda1_residual": pair.residual}

    def _trace(self) -> dict[str, float]:
        assert self.pair is not None
        parts = self.pair.fold_traces
        known: dict[str, Any] = {"basis": self.pair.vectors.T, "fold_traces": parts}
        known["basis_trace"] = float(fold_shares(self.hessian) @ parts)
        trace = hutchinson(self.hessian, num_probes=PROBES, **known)
        return {"trace": trace.value, "trace_stderr": trace.stderr}
