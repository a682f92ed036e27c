"""Sharpness-aware minimisation: one optimizer, of which Sharpness-aware Quantization is a setting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.checking import numbers

from .. import processes
from ..contexts import device_of
from ..results import Settings, Shown
from .diagnostics import diagnose as diagnostics_of
from .radius import AdaptiveRho, Radius, checked_range
from .step_policies import StepPolicy, make_policy
from .targets import Combination, Kind, Metric, Point, Target, Weights, find_parameters, find_targets, gradients_at
from .vectors import TINY, common_grads, displaced, norm, projection, restored

Case = Literal[1, 2, 3]
CASES: dict[int, tuple[Weights, Weights]] = {
    1: ("latent", "quantized"),
    2: ("latent", "latent"),
    3: ("quantized", "quantized"),
}
ADAPTIVE_OFFSET = 0.01  # ASAM's eta
GSAM_ALPHA = 0.4  # share of the gradient's orthogonal component that "gsam" ascends


@dataclass(frozen=True, repr=False)
class SAQ(Settings):
    """Configure sharpness-aware training by the case numbers of the SAQ paper: ``Recipe(sam=SAQ())``.

    Args:
        rho: Radius, in the units of the metric (0.05 is usual in plain units, 0.4 in normalised ones).
        case: 1 = gradient at the latent weights, ε added to the quantized ones; 2 = both at the latent weights (SAM;
            rounding swallows most of it); 3 = both at the quantized weights (SAQ itself).
        metric: See `SAM`.
        combine: See `SAM`.
        policy: See `SAM`.
        perturbed: See `SAM`. A weight that a quantized layer shares with an embedding is perturbed in that layer alone.
        rho_range: (lowest, highest) lets `AdaptiveRho` move rho within this range, starting from `rho`; None holds it.
        synchronised: See `SAM`.

    Raises:
        ValueError: If a setting is out of range, or the policy cannot serve `combine` or `rho_range`.

    Source: Liu et al., Sharpness-aware Quantization (2021).

    Example:
        >>> import saq_core
        >>> saq_core.SAQ(0.1, case=2)
        SAQ(rho=0.1, case=2)
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

    def __post_init__(self) -> None:
        self._check(rho=">= 0")
        object.__setattr__(self, "perturbed", _checked_kinds(self.perturbed))
        object.__setattr__(self, "rho_range", checked_range(self.rho, self.rho_range))
        _check_policy(make_policy(self.policy), adaptive=self.rho_range is not None, combine=self.combine)

    @classmethod
    def from_paper(cls, rho: float = 0.4, **settings: Any) -> SAQ:
        """Return the settings of the authors' released code: normalised units, activation clips perturbed as well.

        Departures: weights stay in their own units (see `LIQ`), and BatchNorm statistics are updated once.
        """
        kinds = ("weight", "bias", "norm", "input_step")
        return cls(**{"rho": rho, "metric": "normalised", "perturbed": kinds, **settings})

    def wrap(self, model: nn.Module, optimizer: Optimizer, **settings: Any) -> SAM:
        """Return `optimizer` as a SAM with these settings; others of `SAM` go before."""
        measured_at, applied_to = CASES[self.case]
        shared = {name: getattr(self, name) for name in ("metric", "combine", "policy", "perturbed", "synchronised")}
        rho = AdaptiveRho(self.rho, *self.rho_range) if self.rho_range else self.rho
        settings = {"measured_at": measured_at, "applied_to": applied_to, **shared, **settings}
        return SAM(model, optimizer, rho=rho, **settings)


def _check_policy(policy: StepPolicy, *, adaptive: bool, combine: str) -> None:
    if not getattr(policy, "compares", True) and (adaptive or combine != "perturbed"):
        name = type(policy).__name__.lower()
        raise ValueError(f"policy must see a whole batch at w and at w + ε for this rho or combine, got {name!r}")


def _checked_kinds(perturbed: Sequence[Kind]) -> tuple[Kind, ...]:
    if not perturbed or set(perturbed) - set(get_args(Kind)):
        raise ValueError(f"perturbed must name kinds of parameters among {list(get_args(Kind))}, got {perturbed!r}")
    return tuple(perturbed)  # from a list, where a file was read


class SAM(Shown):
    """Minimise the worst-case loss within radius rho of the weights.

    ``w ← w - lr·∇L(w + ε)``, ``ε = rho·T²g / ‖T g‖``: two forward and backward passes per step, on the same batch with
    the same dropout masks. ε has norm rho in the metric, ‖ε/T‖ = rho, over all tensors together.

    (latent, latent) is SAM, and Case 2 of SAQ on a quantized network; (latent, quantized) is Case 1, (quantized,
    quantized) is Case 3. A layer that is not quantized counts as Q = identity. torch's learning-rate schedulers take
    `.optimizer`, the wrapped one.

    Args:
        model: The network; its quantized layers are found by their method `quantized_weights()`.
        optimizer: Any torch optimizer over the model's parameters; it makes the actual update. What it does before a
            step (a hook that clips gradients, say) never changes ε.
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
        no_sync: DistributedDataParallel's context of this name: keeps a backward pass from averaging gradients.
        shrink: Shortens ε to ``rho - shrink·‖T g‖``; below 0 it points downhill (beta of SAGM, Wang et al., 2023).

    Raises:
        ValueError: If a setting is out of range, if nothing that the optimizer trains is of the kinds `perturbed`, or
            for (quantized, latent): ε would be measured after rounding and added where rounding undoes it.

    Cost: two forward and backward passes per step, or what the policy says.

    Source: Foret et al. (2021) eq. 2-3; Kwon et al. (2021) for "adaptive" (eta on weights only, as released);
    Liu et al. (2021) for the cases; Zhuang et al. (2022) for "gsam". Departures: BatchNorm statistics, and all other
    buffers, are updated in one pass only (the authors' code updates them twice); clips are perturbed where asked for.

    Example:
        >>> import torch, saq_core
        >>> model = torch.nn.Linear(3, 2)
        >>> x, y = torch.randn(8, 3), torch.randint(2, (8,))
        >>> sam = saq_core.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
        >>> sam
        SAM(SGD, rho=0.05, latent → latent, 2 perturbed parameters of 8 values, 0 steps)
        >>> def closure():
        ...     sam.zero_grad()
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> bool(sam.step(closure) > 0)
        True
    """

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
    ) -> None:
        if not callable(rho):
            numbers(at_least=0, rho=rho)
        numbers(at_least=0, shrink=shrink)
        if (measured_at, applied_to) not in CASES.values():
            rule = 'applied_to must be "quantized" when measured_at is "quantized", got "latent"'
            raise ValueError(f"{rule}: rounding would undo a perturbation that was measured after it")
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError("optimizer must make one step from one gradient: LBFGS calls the closure by itself")
        self.model, self.optimizer, self.no_sync = model, optimizer, no_sync
        self.rho, self.metric, self.combine, self.shrink = rho, metric, combine, shrink
        self.measured_at, self.applied_to, self.synchronised = measured_at, applied_to, synchronised
        self.policy = make_policy(policy) if isinstance(policy, str) else policy
        _check_policy(self.policy, adaptive=callable(rho), combine=combine)
        self.diagnostics: Point = {}
        self.steps = 0
        self.losses: tuple[Tensor, Tensor] | tuple[None, None] = (None, None)  # at w and at w + ε, when last both
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.parameters = [p for p in find_parameters(model, _checked_kinds(perturbed)) if id(p.tensor) in trained]
        if not self.parameters:
            kinds = f"trainable parameters of the kinds {list(perturbed)}"
            raise ValueError(f"model must have {kinds} to perturb, got none: see requires_grad, perturbed, optimizer")
        self._targets: dict[str, Target] = {}
        self.radius: float | Tensor = 0.0
        self._dtype: torch.dtype | None = None

    def __repr__(self) -> str:
        values = sum(p.tensor.numel() for p in self.parameters)
        size = f"{len(self.parameters)} perturbed parameters of {values:,} values, {self.steps} steps"
        pair = f"{self.measured_at} → {self.applied_to}"
        return f"SAM({type(self.optimizer).__name__}, rho={self.rho}, {pair}, {size})"

    def _rows(self) -> list[dict[str, Any]]:
        rows = [(p.name, tuple(p.tensor.shape), len(p.users)) for p in self.parameters]
        return [dict(zip(("parameter", "shape", "quantized layers"), row, strict=True)) for row in rows]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The wrapped optimizer's."""
        return self.optimizer.param_groups

    def gradients(self) -> dict[int, Tensor]:
        """Return the gradients of all parameters that have one, by their index in the optimizer."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        return {k: p.grad for k, p in enumerate(parameters) if p.grad is not None}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed training needs: the optimizer's state, and what each process remembers of its ε.

        Under several processes all have to call it.
        """
        local = {"steps": self.steps, "losses": self.losses, "policy": self.policy.state}
        return {"optimizer": self.optimizer.state_dict(), "processes": processes.gather(processes.moved(local, "cpu"))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        local = processes.moved(state["processes"][processes.rank() % len(state["processes"])], device_of(self.model))
        self.steps, self.losses, self.policy.state = local["steps"], local["losses"], local["policy"]

    def step(self, closure: Callable[..., Any], *, diagnose: torch.dtype | None = None) -> Any:
        """Make one step; return the loss of the first pass.

        Args:
            closure: torch.optim's own: zero_grad, forward (inside its own autocast), loss, backward, return the loss.
                It is called as often as the policy says. "subset" passes it the share of the batch that is enough.
            diagnose: Fill `diagnostics` in this step, for forward passes in this dtype: see
                `saq_core.sharpness.diagnostics`.
        """
        self._dtype = diagnose
        with self._gradients_at_deltas(diagnose is not None):
            loss = self.policy.step(self, torch.enable_grad()(closure))
        self.optimizer.step()
        self.steps += 1
        return loss

    @contextmanager
    def at_perturbed(self, closure: Callable[..., Any]) -> Iterator[Any]:
        """Stay at w + ε, ε from one call of the closure; yield its loss, leave no gradient, make no step."""
        with self._gradients_at_deltas(False):
            loss = torch.enable_grad()(closure)()
            epsilon = self.epsilon(self.shared(self.gradient()))
            self.zero_grad()
            with self.displaced(epsilon):
                yield loss

    def full_step(
        self, closure: Callable[..., Any], share: float | None = None, *, keep_plain: bool = False
    ) -> tuple[Any, dict[int, Tensor]]:
        """Leave the gradient of a step with two passes in `.grad`; return the first loss and the plain gradient.

        With `share`, the first pass sees a part of the batch. The plain gradient is empty where nothing needs it.
        """
        whole = share is None
        random = _random_state(device_of(self.model))
        loss = self.backward(closure, *(() if whole else (share,)), local=True, still=not whole)
        epsilon = self.epsilon(self.shared(self.gradient()))
        self.observe(epsilon)
        plain = {}
        if keep_plain or self.combine != "perturbed":
            plain = {k: g.clone() for k, g in self.gradients().items()}
            processes.average_(list(plain.values()))
        _replay(random)
        with self.displaced(epsilon):
            perturbed = self.backward(closure, still=whole)
        if callable(self.rho):
            both = [loss.detach().clone(), perturbed.detach().clone()]
            if self.synchronised:
                processes.average_(both)
            self.losses = both[0], both[1]
        if self.combine != "perturbed":
            self._combine(plain)
        return loss, plain

    def backward(self, closure: Callable[..., Any], *arguments: Any, local: bool = False, still: bool = False) -> Any:
        """Call the closure; `local` leaves its gradients to this process, `still` leaves all buffers as they were."""
        with ExitStack() as stack:
            if local:
                stack.enter_context(self.no_sync())
            if still:
                stack.enter_context(restored(_buffers(self.model)))
            return closure(*arguments)

    def gradient(self) -> Point:
        """Return the gradients where they are measured, by the names of the weights."""
        return gradients_at(self._targets)

    def shared(self, gradient: Point) -> Point:
        """Average a gradient over the processes where ε is to be the same in all."""
        if self.synchronised:
            processes.average_(list(gradient.values()))
        return gradient

    @torch.no_grad()
    def epsilon(self, gradient: Point, targets: dict[str, Target] | None = None) -> Point:
        """Return ε for gradients by name."""
        targets = targets or self._targets
        if not gradient:
            return {}
        scales = [self._scale(targets[name]) for name in gradient]
        scaled = [g * t for g, t in zip(gradient.values(), scales, strict=True)]
        factor = self.radius / norm(scaled).clamp_min(TINY) - self.shrink
        return {name: t * g * factor for name, t, g in zip(gradient, scales, scaled, strict=True)}

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

    def _scale(self, target: Target) -> Tensor | float:
        w = target.parameter.tensor.detach()
        if self.metric == "plain" or w.ndim < 2 or w.numel() < 2:
            return 1.0
        if self.metric == "normalised":
            return w.std()
        latent = target.source is target.parameter.tensor
        return (w if latent else target.parameter.quantized()[target.user]).abs() + ADAPTIVE_OFFSET

    def _combine(self, plain: dict[int, Tensor]) -> None:
        both = common_grads(plain, self.gradients())
        along = projection(*both)
        for g, perturbed in zip(*both, strict=True):
            if self.combine == "mean":
                perturbed.add_(g).mul_(0.5)
            else:
                perturbed.sub_(g - along * perturbed, alpha=GSAM_ALPHA)

    @contextmanager
    def _gradients_at_deltas(self, always: bool) -> Iterator[None]:
        self._targets = find_targets(
            self.parameters, self.measured_at, self.applied_to
        )  # moving a model replaces deltas
        rho: Any = self.rho
        self.radius = rho(*self.losses, self.steps) if callable(rho) else rho
        needed = always or self.measured_at == "quantized"
        deltas = [delta for parameter in self.parameters for delta in parameter.deltas()] if needed else []
        try:
            self._clear_deltas()
            for delta in deltas:
                delta.requires_grad_(True)
            yield
        finally:
            for delta in deltas:
                delta.requires_grad_(False)
            self._clear_deltas()

    def _clear_deltas(self) -> None:
        for parameter in self.parameters:
            for delta in parameter.deltas():
                delta.grad = None


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None, torch.device]:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), cuda, device


def _replay(state: tuple[Tensor, Tensor | None, torch.device]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], state[2])


def _buffers(model: nn.Module) -> list[Tensor]:
    """Return the buffers that a forward pass may write to: all but the deltas of quantized weights."""
    return [buffer for name, buffer in model.named_buffers() if name.rpartition(".")[2] != "delta"]
