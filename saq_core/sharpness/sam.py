"""Sharpness-aware minimisation: one optimizer, of which Sharpness-aware Quantization is a setting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields
from operator import is_not
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.checking import numbers

from .. import processes
from ..contexts import device_of
from ..results import Settings, Shown
from .diagnostics import StepFreezing
from .diagnostics import diagnose as diagnostics_of
from .radius import AdaptiveRho, Radius, checked_range
from .step_policies import StepPolicy, make_policy
from .targets import Kind, Metric, Point, Target, Weights, find_parameters, find_targets, gradients_at, scaled
from .vectors import common_grads, copied, displaced, norm, projection, restored

Case = Literal[1, 2, 3]
Combination = Literal["perturbed", "mean", "gsam"]
CASES: dict[int, tuple[Weights, Weights]] = {
    1: ("latent", "quantized"),
    2: ("latent", "latent"),
    3: ("quantized", "quantized"),
}
GSAM_ALPHA = 0.4  # share of the gradient's orthogonal component that "gsam" ascends
MARK = "_left_by_sam"  # attribute of the gradients that a step leaves, their version: no one has added to them since


@dataclass(frozen=True, repr=False)
class SAQ(Settings):
    """Configure sharpness-aware training by the case numbers of the SAQ paper: ``Recipe(sam=SAQ())``.

    Args:
        rho: Radius, in the units of the metric (0.05 is usual in plain units, 0.4 in normalised ones), or as `relative`
            says.
        case: 1 = gradient at the latent weights, ε added to the quantized ones; 2 = both at the latent weights (SAM;
            rounding swallows most of it); 3 = both at the quantized weights (SAQ itself).
        metric: See `SAM`.
        combine: See `SAM`.
        policy: See `SAM`.
        perturbed: See `SAM`. A weight that a quantized layer shares with an embedding is perturbed in that layer alone.
        rho_range: (lowest, highest) lets `AdaptiveRho` move rho within this range, starting from `rho`; None holds it.
        synchronised: See `SAM`.
        relative: See `SAM`; `rho_range` then holds shares as well.
        freeze_steps: Share c in [0, 1) above which the disorder of a quantizer's step (clip, offset) freezes it: its
            gradient is zeroed, so that with momentum it comes to rest within some steps. Disorder is the average
            ``d ← d + (o - d)/50`` over the steps with two passes, from d = 0, with o = 1 where the step's gradients at
            w (of the task) and at w + ε point against each other, ⟨∇ₛL(w), ∇ₛL(w + ε)⟩ < 0, else 0. A frozen one is
            still compared, and thaws where d falls to c. None freezes nothing.

    Raises:
        ValueError: If a setting is out of range, or the policy cannot serve `combine`, `rho_range` or `freeze_steps`.

    Source: Liu et al., Sharpness-aware Quantization (2021). That the two gradients of quantizers' steps conflict under
    SAM, that a "gradient disorder" tells where, and that the steps' gradients are then frozen layer by layer: GAQAT
    (Jiang et al., 2024, arXiv 2412.05551) and FQAT (2025, arXiv 2509.00859), of which abstracts and public reviews
    were at hand. Ours: this formula for disorder, its 50 steps, every step for itself, and what is frozen. By the
    reviews GAQAT counts changes of sign over K steps and freezes the task's gradient where its disorder is *low*;
    `freeze_steps` is another rule, in the spirit of FQAT's abstract (unstable layers are frozen).

    Example:
        >>> import saq_core
        >>> saq_core.SAQ(0.1, case=2)
        SAQ(rho=0.1, case=2)
        >>> saq_core.SAQ(0.01, relative=True, freeze_steps=0.2)
        SAQ(rho=0.01, relative=True, freeze_steps=0.2)
        >>> saq_core.Recipe(epochs=1, lr=0.1, sam=saq_core.SAQ(policy="look:5"))
        Recipe(epochs=1, lr=0.1, sam=SAQ(policy='look:5'))
    """

    rho: float = 0.05
    case: Case = 3
    metric: Metric = "plain"
    combine: Combination = "perturbed"
    policy: str = "full"
    perturbed: tuple[Kind, ...] = ("weight", "bias", "norm")
    rho_range: tuple[float, float] | None = None
    synchronised: bool = False
    relative: bool = False
    freeze_steps: float | None = None

    def __post_init__(self) -> None:
        self._check(rho=">= 0", freeze_steps="from 0 to below 1")
        object.__setattr__(self, "perturbed", _checked_kinds(self.perturbed))
        object.__setattr__(self, "rho_range", checked_range(self.rho, self.rho_range))
        _check_policy(make_policy(self.policy), self.combine, self.rho_range, self.freeze_steps)

    @classmethod
    def from_paper(cls, rho: float = 0.4, **settings: Any) -> SAQ:
        """Return the settings of the authors' released code: normalised units, activation clips perturbed as well.

        That is the code at its HEAD of 25 November 2021 (commit 594e9c7), where `include_aclip` is True: changed from
        False a day before, which an independent re-implementation takes for the default.

        Departures: weights stay in their own units (see `LIQ`), and BatchNorm statistics are updated once.
        """
        theirs = {"metric": "normalised", "perturbed": ("weight", "bias", "norm", "input_step")}
        return cls(rho, **{**theirs, **settings})

    def wrap(self, model: nn.Module, optimizer: Optimizer, **settings: Any) -> SAM:
        """Return `optimizer` as a SAM with these settings; others of `SAM` go before."""
        at, to = CASES[self.case]
        shared = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("rho", "case", "rho_range")}
        rho = AdaptiveRho(self.rho, *self.rho_range) if self.rho_range else self.rho
        return SAM(model, optimizer, rho=rho, **{"measured_at": at, "applied_to": to, **shared, **settings})


def _check_policy(policy: StepPolicy, combine: str, *comparing: Any) -> None:
    if not getattr(policy, "compares", True) and (combine != "perturbed" or any(x is not None for x in comparing)):
        rule = "policy must see a whole batch at w and at w + ε for this rho, combine or freeze_steps"
        raise ValueError(f"{rule}, got {type(policy).__name__.lower()!r}")


def _checked_kinds(perturbed: Sequence[Kind]) -> tuple[Kind, ...]:
    if not perturbed or set(perturbed) - set(get_args(Kind)):
        raise ValueError(f"perturbed must name kinds of parameters among {list(get_args(Kind))}, got {perturbed!r}")
    return tuple(perturbed)  # from a list, where a file was read


def _of_the_wrapped(name: str) -> tuple[Callable[[SAM], Any], Callable[[SAM, Any], None]]:
    return lambda sam: getattr(sam.optimizer, name), lambda sam, value: setattr(sam.optimizer, name, value)


class SAM(Shown, Optimizer):
    """Minimise the worst-case loss within radius rho of the weights.

    ``w ← w - lr·∇L(w + ε)``, ``ε = rho·T²g / ‖T g‖``: two forward and backward passes per step, on the same batch with
    the same dropout masks. ε has norm rho in the metric, ‖ε/T‖ = rho, over all tensors together.

    (latent, latent) is SAM, and Case 2 of SAQ on a quantized network; (latent, quantized) is Case 1, (quantized,
    quantized) is Case 3. A layer that is not quantized counts as Q = identity.

    It is a torch optimizer whose `param_groups`, `state` and `defaults` are those of the wrapped one: schedulers,
    Lightning and accelerate take it, and a state dict is the wrapped one's with the key "sam". What differs:

    - `step` needs a closure, which computes the loss and calls ``backward()``, several times for a batch in parts. SAM
      clears the gradients before it. Gradients that stand before `step` and that the closure would add to are refused:
      accumulate in the closure (Lightning: ``accumulate_grad_batches=1``).
    - transformers' Trainer calls ``step()`` without one. Make the passes in ``training_step``, before it clips::

        class SAMTrainer(transformers.Trainer):  # SAMTrainer(model, args, optimizers=(sam, None), …)
            def training_step(self, *batch):
                return self.optimizer.optimizer.passes(functools.partial(super().training_step, *batch))

    - No GradScaler (accelerate's "fp16", Lightning's "16-mixed"): autocast to bfloat16 in the closure needs none. Where
      nothing was scaled before, torch is first to say so: "Attempted step but _scale is None".
    - Lightning clips after each pass, so that ε comes from clipped gradients: clip in a step pre-hook of `optimizer`.
    - On several processes whose DistributedDataParallel you do not see, pass ``synchronised=True``.

    Args:
        model: The network; its quantized layers are found by their method `quantized_weights()`.
        optimizer: Any torch optimizer over the model's parameters; it makes the actual update. What it does before a
            step (a hook that clips gradients, say) never changes ε. Groups that are added later get their ε too.
        rho: Radius >= 0, or a function of (loss, loss at the perturbed weights, index of the step) that returns it;
            both losses are None before the first step with two passes and tensors afterwards (see `AdaptiveRho`). With
            0 every step equals the optimizer's own bit for bit, at the price of two passes.
        measured_at: Where the gradient g is taken: "latent" or "quantized".
        applied_to: What ε is added to: "latent" (before rounding) or "quantized" (after).
        metric: "plain": T = 1. "adaptive": T = |w| + 0.01. "normalised": T = std(w) of each tensor. The last two on
            tensors of two or more dimensions, else T = 1.
        combine: The gradient of the update: "perturbed", that at w + ε; "mean", its mean with the one at w; "gsam",
            the perturbed one less 0.4 times the component of the plain one that is orthogonal to it.
        policy: Which steps pay for a second pass: "full", "look:5", "momentum:0.6" or "subset:0.25" (see
            `saq_core.sharpness.step_policies`), or an object with their methods.
        perturbed: Kinds of parameters that get ε: "weight" (everything that is none of the others), "bias", "norm",
            "weight_step" and "input_step" (steps, clips and offsets of quantizers).
        synchronised: Under several processes: False gives each its own ε from its own rows (m-sharpness, as in the
            paper's code), True one ε from the mean gradient.
        no_sync: DistributedDataParallel's context of this name: keeps a backward pass from averaging gradients. Pass
            it there unless `synchronised`; a quantized network's must not broadcast its buffers.
        shrink: Shortens ε to ``rho - shrink·‖T g‖``; below 0 it points downhill (beta of SAGM, Wang et al., 2023).
        relative: Take rho as a share of ‖w‖: ``ε = rho·‖w‖·T²g/‖T²g‖``, so that ‖ε‖ = rho·‖w‖ in every metric. ‖w‖ is
            the plain norm of the latent values of all that gets an ε, the same for every case.
        freeze_steps: See `SAQ`.

    Raises:
        ValueError: If a setting is out of range, if nothing that the optimizer trains is of the kinds `perturbed`, or
            for (quantized, latent): ε would be measured after rounding and added where rounding undoes it. In a step
            without closure, of a GradScaler, or if the closure leaves no gradient; the weights then are as before.

    Cost: two forward and backward passes per step, or what the policy says; `freeze_steps` adds a few small kernels per
    quantizer and, on several processes, two short exchanges.

    Source: Foret et al. (2021) eq. 2-3; Kwon et al. (2021) for "adaptive" (eta on weights only, as released);
    Liu et al. (2021) for the cases; Zhuang et al. (2022) for "gsam". Departures: BatchNorm statistics, and all other
    buffers, are updated in one pass only (the authors' code updates them twice); clips are perturbed where asked for.

    Example:
        >>> import torch, saq_core
        >>> data = torch.utils.data.TensorDataset(torch.randn(64, 8), torch.randint(3, (64,)))
        >>> loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        >>> model = saq_core.calibrate(saq_core.quantize(model, "W4A4"), loader)
        >>> base = torch.optim.SGD(saq_core.parameter_groups(model, weight_decay=1e-4), lr=0.1, momentum=0.9)
        >>> sam = saq_core.SAM(model, base, rho=0.05, measured_at="quantized", applied_to="quantized")
        >>> scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(sam, T_max=len(loader))
        >>> for x, y in loader:
        ...     def closure():
        ...         loss = torch.nn.functional.cross_entropy(model(x), y)
        ...         loss.backward()
        ...         return loss
        ...     loss = sam.step(closure)
        ...     scheduler.step()
        >>> sam
        SAM(SGD, rho=0.05, quantized → quantized, 4 perturbed parameters of 195 values, 4 steps)
    """

    # the objects themselves, also those that loading a state puts in their place
    param_groups = property(*_of_the_wrapped("param_groups"))  # type: ignore[assignment]
    state = property(*_of_the_wrapped("state"))  # type: ignore[assignment]
    defaults = property(*_of_the_wrapped("defaults"))  # type: ignore[assignment]
    _step_supports_amp_scaling = True  # so that a GradScaler comes to `step`, which refuses it

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        rho: Radius,
        measured_at: Weights = "latent",
        applied_to: Weights = "latent",
        metric: Metric = "plain",
        combine: Combination = "perturbed",
        policy: str | StepPolicy = "full",
        perturbed: Sequence[Kind] = ("weight", "bias", "norm"),
        synchronised: bool = False,
        no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
        shrink: float = 0.0,
        relative: bool = False,
        freeze_steps: float | None = None,
    ) -> None:
        numbers(at_least=0, rho=0.0 if callable(rho) else rho, shrink=shrink)
        numbers(optional=True, at_least=0, below=1, freeze_steps=freeze_steps)
        if (measured_at, applied_to) not in CASES.values():
            rule = 'applied_to must be "quantized" when measured_at is "quantized", got "latent"'
            raise ValueError(f"{rule}: rounding would undo a perturbation that was measured after it")
        if isinstance(optimizer, torch.optim.LBFGS | SAM):
            rule = "optimizer must make one step from one gradient, as SGD and AdamW do"
            raise ValueError(f"{rule}: {type(optimizer).__name__} calls the closure by itself")
        self.model, self.optimizer, self.no_sync = model, optimizer, no_sync
        self.__setstate__({})
        self.rho, self.metric, self.combine, self.shrink, self.relative = rho, metric, combine, shrink, relative
        self.measured_at, self.applied_to, self.synchronised = measured_at, applied_to, synchronised
        self.freeze_steps = freeze_steps
        self.policy = make_policy(policy) if isinstance(policy, str) else policy
        _check_policy(self.policy, combine, rho if callable(rho) else None, freeze_steps)
        self.diagnostics: Point = {}
        self.steps, self._passed = 0, False  # whether the gradient of a step stands in .grad
        self.losses: tuple[Tensor, Tensor] | tuple[None, None] = (None, None)  # at w and at w + ε, when last both
        self.perturbed = _checked_kinds(perturbed)
        self._find()
        if not self.parameters:
            kinds = f"trainable parameters of the kinds {list(perturbed)}"
            raise ValueError(f"model must have {kinds} to perturb, got none: see requires_grad, perturbed, optimizer")
        parallel: Any = getattr(no_sync, "__self__", None)  # DistributedDataParallel
        shared = parallel.modules_buffers if getattr(parallel, "broadcast_buffers", False) else ()
        deltas = {id(delta) for p in self.parameters for delta in p.deltas() if applied_to == "quantized"}
        if not synchronised and deltas & {id(buffer) for buffer in shared}:
            rule = "no_sync must be of a network that broadcasts no buffers, else the first process's ε goes to all"
            raise ValueError(f"{rule}: set broadcast_buffers=False of DistributedDataParallel, or synchronised=True")
        self.radius: float | Tensor = 0.0
        self._dtype: torch.dtype | None = None
        self._earlier: dict[Tensor, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        # as torch: neither hooks nor what a scheduler puts in the place of `step`
        return {key: value for key, value in vars(self).items() if key != "step" and not key.startswith("_optimizer_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        super().__setstate__({key: hooks for key, hooks in vars(self.optimizer).items() if "state_dict" in key})

    def _find(self) -> None:
        self._groups = len(self.param_groups)
        trained = {id(p) for p in self._trained()}
        self.parameters = [p for p in find_parameters(self.model, self.perturbed) if id(p.tensor) in trained]
        steps = {id(p.tensor) for p in find_parameters(self.model, ("weight_step", "input_step"))}
        self.freezing = StepFreezing([p for p in self._trained() if id(p) in steps], self.freeze_steps)
        self._targets: dict[str, Target] = {}
        self._deltas: list[Tensor] = []
        # what a forward pass may write to: all buffers but the deltas of quantized weights
        self._buffers = [(m._buffers, name) for m in self.model.modules() for name in m._buffers if name != "delta"]

    def _trained(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def __repr__(self) -> str:
        values = sum(p.tensor.numel() for p in self.parameters)
        size = f"{len(self.parameters)} perturbed parameters of {values:,} values, {self.steps} steps"
        rho, optimizer = f"{self.rho}{'·‖w‖' if self.relative else ''}", type(self.optimizer).__name__
        return f"SAM({optimizer}, rho={rho}, {self.measured_at} → {self.applied_to}, {size})"

    def _rows(self) -> list[dict[str, Any]]:
        rows = [(p.name, tuple(p.tensor.shape), len(p.users)) for p in self.parameters]
        return [dict(zip(("parameter", "shape", "quantized layers"), row, strict=True)) for row in rows]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer; its parameters of the kinds `perturbed` get their ε."""
        self.optimizer.add_param_group(param_group)
        self._find()

    def gradients(self) -> dict[int, Tensor]:
        """Return the gradients of all parameters that have one, by their index in the optimizer."""
        return {k: p.grad for k, p in enumerate(self._trained()) if p.grad is not None}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state, and under "sam" what this process remembers of its ε.

        Under several processes each has its own: who wants to resume to the same numbers stores those of all.
        """
        local: dict[str, Any] = {"steps": self.steps, "losses": self.losses, "policy": self.policy.state}
        local["disorder"] = self.freezing.disorder
        return {**self.optimizer.state_dict(), "sam": processes.moved(local, "cpu")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; what the wrapped optimizer's returned leaves ε without memory."""
        if "processes" in state_dict:  # as 0.2 wrote it
            parts = state_dict["processes"]
            state_dict = {**state_dict["optimizer"], "sam": parts[processes.rank() % len(parts)]}
        self.optimizer.load_state_dict({key: part for key, part in state_dict.items() if key != "sam"})
        if "sam" in state_dict:
            local = processes.moved(state_dict["sam"], device_of(self.model))
            self.steps, self.losses, self.policy.state = local["steps"], local["losses"], local["policy"]
            self.freezing.disorder = local.get("disorder")

    def step(self, closure: Callable[..., Any] | None = None, *, diagnose: torch.dtype | None = None) -> Any:
        """Make one step; return the loss of the first pass.

        Args:
            closure: torch.optim's own: forward (inside its own autocast), loss, backward, return the loss. It is called
                as often as the policy says. "subset" passes it the share of the batch that is enough. None makes the
                update from the gradient that `passes` left.
            diagnose: Fill `diagnostics` in this step, for forward passes in this dtype: see
                `saq_core.sharpness.diagnostics`.
        """
        if vars(self).pop("grad_scale", None) is not None:
            rule = "SAM must get gradients as they are, not those of a GradScaler, which scales the two passes apart"
            raise ValueError(f"{rule}: use torch.autocast to bfloat16 in the closure, which needs no scaler")
        if closure is None and not self._passed:
            rule = "closure must be a function that computes the loss and calls backward(), for SAM calls it twice"
            raise ValueError(f"{rule}, got None; where step() is called for you, call passes(closure) before it")
        loss = None if closure is None else self.passes(closure, diagnose=diagnose)
        self._passed = False
        self.optimizer.step()
        for g in self.gradients().values():
            setattr(g, MARK, g._version)
        self.steps += 1
        return loss

    def passes(self, closure: Callable[..., Any], *, diagnose: torch.dtype | None = None) -> Any:
        """Leave the gradient of a step in `.grad` and return the first loss; ``step()`` then makes the update."""
        self._dtype, self._passed = diagnose, False
        with self._gradients_at_deltas(diagnose is not None):
            loss = self.policy.step(self, torch.enable_grad()(closure))
        self.freezing.freeze()
        self._passed = True
        return loss

    @contextmanager
    def at_perturbed(self, closure: Callable[..., Any]) -> Iterator[Any]:
        """Stay at w + ε, ε from one call of the closure; yield its loss, leave no gradient, make no step."""
        with self._gradients_at_deltas(False):
            loss = self.backward(torch.enable_grad()(closure))
            epsilon = self.epsilon(self.gradient())
            self.zero_grad()
            with self.displaced(epsilon):
                yield loss

    def full_step(
        self, closure: Callable[..., Any], share: float | None = None, *, keep_plain: bool = False
    ) -> tuple[Any, dict[int, Tensor]]:
        """Leave the gradient of a step with two passes in `.grad`; return the first loss and the plain gradient.

        With `share`, the first pass sees a part of the batch. The plain gradient is empty where nothing needs it.
        """
        whole, device = share is None, device_of(self.model)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # the second pass draws the same
            loss = self.backward(closure, *(() if whole else (share,)), local=True, still=not whole)
            epsilon = self.epsilon(self.gradient())
            self.observe(epsilon)
        task = self.freezing.gradients() if self._dtype is not None or self.freeze_steps is not None else []
        plain = {}
        if keep_plain or self.combine != "perturbed":
            plain = self.gradients()
            plain = dict(zip(plain, copied(list(plain.values())), strict=True))
            processes.average_(list(plain.values()))
        with self.displaced(epsilon):
            perturbed = self.backward(closure, still=whole)
        if task:
            self.diagnostics = self.freezing.compare(task) | self.diagnostics  # what a step before left stays
        if callable(self.rho):
            if not (isinstance(loss, Tensor) and isinstance(perturbed, Tensor)):
                raise ValueError(f"closure must return the loss (a tensor) for a rho that adapts to it, got {loss!r}")
            both = [loss.detach().clone(), perturbed.detach().clone()]
            if self.synchronised:
                processes.average_(both)
            self.losses = both[0], both[1]
        if self.combine != "perturbed":
            self._combine(plain)
        return loss, plain

    def backward(self, closure: Callable[..., Any], *arguments: Any, local: bool = False, still: bool = False) -> Any:
        """Call the closure from cleared gradients; raise if it leaves none.

        `local` leaves them to this process, `still` leaves all buffers as they were.
        """
        parameters, earlier = self._trained(), self._earlier
        for p in {*parameters} - {*earlier}:
            p.grad = None
        self._earlier = {}
        with ExitStack() as stack:
            if local:
                stack.enter_context(self.no_sync())
            if still:
                written = [b for holder, name in self._buffers if (b := holder.get(name)) is not None]
                stack.enter_context(restored(written))
            loss = closure(*arguments)
        if any(p.grad is g for p, g in earlier.items()):
            rule = "gradients must be cleared before step(), or by the closure: SAM cannot add to what was there before"
            raise ValueError(f"{rule}; accumulate inside the closure, or call zero_grad() first")
        if all(tensor.grad is None for tensor in (*parameters, *self._deltas)):
            raise ValueError("closure must call backward() on the loss, got no gradient in any parameter after it")
        return loss

    def gradient(self) -> Point:
        """Return the gradients where they are measured, by the names of the weights; `synchronised`, their mean."""
        gradient = gradients_at(self._targets)
        if self.synchronised:
            processes.average_(list(gradient.values()))
        return gradient

    @torch.no_grad()
    def epsilon(self, gradient: Point, targets: dict[str, Target] | None = None) -> Point:
        """Return ε for gradients by name."""
        targets = targets or self._targets
        if not gradient:
            return {}
        once, twice = scaled(list(gradient.values()), [targets[name] for name in gradient], self.metric)
        length = norm(once)
        if self.relative:
            length = norm(twice) / norm([targets[k].parameter.tensor for k in gradient if not targets[k].user])
        factor = torch.where(length > 0, self.radius / length, 0.0) - self.shrink
        return dict(zip(gradient, torch._foreach_mul(twice, factor), strict=True))

    @contextmanager
    def displaced(self, epsilon: Point) -> Iterator[None]:
        """Stay at w + ε; gradients at the deltas start afresh."""
        self._clear_deltas()
        torch.clear_autocast_cache()  # it would hand the weights of one pass to the other
        try:
            with displaced([self._targets[name].tensor for name in epsilon], list(epsilon.values())):
                yield
        finally:
            torch.clear_autocast_cache()

    def observe(self, epsilon: Point) -> None:
        """Fill `diagnostics` if this step asked for it; the gradients of the pass that measured ε must stand."""
        if self._dtype is not None:
            self.diagnostics = diagnostics_of(self, epsilon, self._dtype)

    def _combine(self, plain: dict[int, Tensor]) -> None:
        g, perturbed = common_grads(plain, self.gradients())
        if self.combine == "mean":
            torch._foreach_add_(perturbed, g)
            torch._foreach_mul_(perturbed, 0.5)
        else:
            rest = torch._foreach_sub(g, torch._foreach_mul(perturbed, projection(g, perturbed)))
            torch._foreach_sub_(perturbed, rest, alpha=GSAM_ALPHA)

    @contextmanager
    def _gradients_at_deltas(self, always: bool) -> Iterator[None]:
        if len(self.param_groups) != self._groups:
            self._find()
        deltas = [delta for parameter in self.parameters for delta in parameter.deltas()]
        if not self._targets or any(map(is_not, deltas, self._deltas)):  # moving a model replaces deltas
            self._deltas = deltas
            self._targets = find_targets(self.parameters, self.measured_at, self.applied_to)
        with_one = [(p, p.grad) for p in self._trained() if p.grad is not None]
        self._earlier = {p: g for p, g in with_one if getattr(g, MARK, None) != g._version}  # no step has used them
        rho: Any = self.rho
        self.radius = rho(*self.losses, self.steps) if callable(rho) else rho
        needed = always or self.measured_at == "quantized"
        try:
            self._clear_deltas()
            for delta in deltas if needed else ():
                delta.requires_grad_(True)
            yield
        finally:
            for delta in deltas if needed else ():
                delta.requires_grad_(False)
            self._clear_deltas()

    def _clear_deltas(self) -> None:
        for delta in self._deltas:
            delta.grad = None
