"""Sharpness-aware minimisation: one optimizer, of which Sharpness-aware Quantization is a setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .data import device_of

PLACES = ("latent", "quantized")
METRICS = ("plain", "adaptive", "normalised")
CASES = {1: ("latent", "quantized"), 2: ("latent", "latent"), 3: ("quantized", "quantized")}
ADAPTIVE_OFFSET = 0.01  # ASAM's eta
TINY = 1e-30  # keeps a zero gradient from dividing by zero; far below any norm in float32


def _check_settings(rho: float, metric: str) -> None:
    if isinstance(rho, bool) or not isinstance(rho, int | float) or not math.isfinite(rho) or rho < 0:
        raise ValueError(f"rho must be >= 0 and finite, got {rho!r}")
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {list(METRICS)}, got {metric!r}")


@dataclass(frozen=True)
class SAQ:
    """Say how a network is trained sharpness-aware, by the case numbers of the SAQ paper.

    Args:
        rho: Radius, in the units of the metric (0.05 is usual in plain units, 0.4 in normalised ones).
        case: 1 = gradient at the latent weights, added to the quantized ones; 2 = both at the latent weights (SAM;
            rounding swallows most of it); 3 = both at the quantized weights (SAQ itself).
        metric: See `SAM`.

    Source: Liu et al., Sharpness-aware Quantization (2021).
    """

    rho: float = 0.05
    case: int = 3
    metric: str = "plain"

    def __post_init__(self) -> None:
        if self.case not in CASES:
            raise ValueError(f"case must be one of {sorted(CASES)}, got {self.case!r}")
        _check_settings(self.rho, self.metric)

    def wrap(self, model: nn.Module, optimizer: Optimizer) -> SAM:
        """Return `optimizer` as a SAM with these settings."""
        measured, applied = CASES[self.case]
        return SAM(model, optimizer, rho=self.rho, measured_at=measured, applied_to=applied, metric=self.metric)


@dataclass
class _Site:
    """A trainable tensor, and the quantized layers (with its name there) that use it."""

    parameter: nn.Parameter
    users: list[tuple[nn.Module, str, str]]  # layer, weight's name, name of its delta

    def deltas(self) -> list[Tensor]:
        return [layer.get_buffer(delta) for layer, _, delta in self.users]

    def quantized(self) -> list[Tensor]:
        return [cast(Any, layer).quantized_weights()[name][0] for layer, name, _ in self.users]


class SAM:
    """Minimise the worst loss within rho of the weights.

    ``w ← w - lr·∇L(w + ε)``, ``ε = rho·T²g / ‖T g‖``: two forward and backward passes per step, on the same batch with
    the same dropout masks. ε has norm rho in the metric, ‖ε/T‖ = rho, over all tensors together.

    (latent, latent) is SAM, and Case 2 of SAQ on a quantized network; (latent, quantized) is Case 1, (quantized,
    quantized) is Case 3. A layer that is not quantized counts as Q = identity. All trainable tensors are perturbed,
    biases and norms included; steps and clips of quantizers never. torch's learning-rate schedulers want `.optimizer`,
    the wrapped one.

    Args:
        model: The network; its quantized layers are found by their method `quantized_weights()`.
        optimizer: Any torch optimizer over the model's parameters; it makes the actual update.
        rho: Radius >= 0. With 0 every step equals the optimizer's own bit for bit, at the price of two passes.
        measured_at: Where the gradient g is taken: "latent" or "quantized".
        applied_to: What ε is added to: "latent" (before rounding) or "quantized" (after).
        metric: "plain": T = 1. "adaptive": T = |w| + 0.01. "normalised": T = std(w) of each tensor. The last two on
            tensors of two or more dimensions, else T = 1.

    Raises:
        ValueError: For settings out of range, a model without trainable weights, and for (quantized, latent): ε would
            be measured where rounding has happened and added where rounding undoes it.

    Cost: two forward and backward passes per step.

    Source: Foret et al. (2021) eq. 2-3; Kwon et al. (2021) for "adaptive" (eta on weights only, as released);
    Liu et al. (2021) for the cases. Departures: BatchNorm statistics move in the first pass only (the authors' code
    moves them twice); clips are not perturbed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        rho: float,
        measured_at: str = "latent",
        applied_to: str = "latent",
        metric: str = "plain",
    ) -> None:
        _check_settings(rho, metric)
        for argument, value in (("measured_at", measured_at), ("applied_to", applied_to)):
            if value not in PLACES:
                raise ValueError(f"{argument} must be one of {list(PLACES)}, got {value!r}")
        if (measured_at, applied_to) not in CASES.values():
            raise ValueError(
                'applied_to must be "quantized" when measured_at is "quantized", got "latent": rounding would undo a '
                "perturbation that was measured after it"
            )
        self.model, self.optimizer = model, optimizer
        self.rho, self.metric = rho, metric
        self.measured_at, self.applied_to = measured_at, applied_to
        self.diagnostics: dict[str, Tensor] = {}
        self._sites = _find_sites(model)
        if not self._sites:
            raise ValueError("model must have trainable weights, got none: call model.requires_grad_(True) before SAM")

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The wrapped optimizer's."""
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state; SAM has none of its own."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the wrapped optimizer's state."""
        self.optimizer.load_state_dict(state)

    def step(self, closure: Callable[[], Any], *, diagnose: torch.dtype | None = None) -> Any:
        """Make one step; return the loss of the first pass.

        Args:
            closure: torch.optim's own: zero_grad, forward (inside its own autocast), loss, backward, return the loss.
                It is called twice.
            diagnose: Fill `diagnostics` in this step, for forward passes in this dtype: "flip_rate" (share of weights
                whose level changes at Q(w + ε), the diminishment of Case 2), "cosine_case1_case3" (between the ε of
                these cases), "relative_norm" (‖ε‖/‖w‖), "received_cosine" (between ε and what rounding and the dtype
                let through, over tensors of two or more dimensions). NaN where there is no such thing.
        """
        closure = torch.enable_grad()(closure)
        with self._gradients_at_deltas(diagnose is not None):
            state = self._random_state()
            loss = closure()
            pairs = self._pairs(self.measured_at, self.applied_to)
            epsilon = self._epsilon(pairs)
            if diagnose is not None:
                self.diagnostics = self._diagnose(pairs, epsilon, diagnose)
            self._clear_deltas()
            with _displaced([target for _, target, _ in pairs], epsilon), _kept(_statistics(self.model)):
                self._replay(state)
                closure()
        self.optimizer.step()
        return loss

    @contextmanager
    def _gradients_at_deltas(self, always: bool) -> Iterator[None]:
        wanted = always or self.measured_at == "quantized"
        deltas = [delta for site in self._sites for delta in site.deltas()] if wanted else []
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
        for site in self._sites:
            for delta in site.deltas():
                delta.grad = None

    def _random_state(self) -> tuple[Tensor, Tensor | None, torch.device]:
        device = device_of(self.model)
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return torch.get_rng_state(), cuda, device

    def _replay(self, state: tuple[Tensor, Tensor | None, torch.device]) -> None:
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], state[2])

    def _pairs(self, measured_at: str, applied_to: str) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return (gradient, tensor that gets ε, tensor of the metric) of everything that has a gradient."""
        pairs = []
        for site in self._sites:
            latent, deltas = site.parameter, site.deltas()
            at_q = measured_at == "quantized" and bool(deltas)
            sources: list[Tensor] = deltas if at_q else [latent] * max(1, len(deltas) if applied_to != "latent" else 1)
            targets: list[Tensor] = deltas if applied_to == "quantized" and deltas else [latent]
            values = site.quantized() if at_q and self.metric == "adaptive" else [latent.detach()] * len(targets)
            for source, target, value in zip(sources, targets, values, strict=True):
                if source.grad is not None:
                    pairs.append((source.grad.detach(), target, value))
        return pairs

    def _scale(self, w: Tensor) -> Tensor | float:
        if self.metric == "plain" or w.ndim < 2 or w.numel() < 2:
            return 1.0
        return w.abs() + ADAPTIVE_OFFSET if self.metric == "adaptive" else w.std()

    @torch.no_grad()
    def _epsilon(self, pairs: list[tuple[Tensor, Tensor, Tensor]]) -> list[Tensor]:
        if not pairs:
            return []
        scales = [self._scale(w) for _, _, w in pairs]
        scaled = [g * t for (g, _, _), t in zip(pairs, scales, strict=True)]
        factor = self.rho / _norm(scaled).clamp_min(TINY)
        return [t * g * factor for t, g in zip(scales, scaled, strict=True)]

    @torch.no_grad()
    def _diagnose(
        self, pairs: list[tuple[Tensor, Tensor, Tensor]], epsilon: list[Tensor], dtype: torch.dtype
    ) -> dict[str, Tensor]:
        nan = torch.full((), math.nan, device=device_of(self.model))
        targets = [target for _, target, _ in pairs]
        found = {"flip_rate": nan, "cosine_case1_case3": nan}
        if any(site.users for site in self._sites):
            latent = self._pairs("latent", "latent")
            found["flip_rate"] = self._flip_rate([t for _, t, _ in latent], self._epsilon(latent))
            first, third = self._pairs("latent", "quantized"), self._pairs("quantized", "quantized")
            found["cosine_case1_case3"] = _cosine(self._epsilon(first), self._epsilon(third))
        weights = [site.parameter.detach() for site in self._sites if site.parameter.grad is not None]
        found["relative_norm"] = _norm(epsilon) / _norm(weights)
        found["received_cosine"] = self._received(targets, epsilon, dtype)
        return found

    def _flip_rate(self, targets: list[Tensor], epsilon: list[Tensor]) -> Tensor:
        before = _levels(self._sites)
        with _displaced(targets, epsilon):
            after = _levels(self._sites)
        # Half a step: a normalising quantizer moves all its levels a little with the mean and spread of the weights.
        flips = [(a - b).abs() > step / 2 for (b, step), (a, _) in zip(before, after, strict=True)]
        real = [(step > 0).expand_as(b) for b, step in before]
        flipped = torch.stack([(f & r).sum() for f, r in zip(flips, real, strict=True)]).sum()
        return flipped / torch.stack([r.sum() for r in real]).sum()

    def _received(self, targets: list[Tensor], epsilon: list[Tensor], dtype: torch.dtype) -> Tensor:
        kept = [(t, e) for t, e in zip(targets, epsilon, strict=True) if t.ndim >= 2]
        if not kept:
            return torch.full((), math.nan, device=device_of(self.model))
        sites = [site for site in self._sites if site.parameter.ndim >= 2 and site.parameter.grad is not None]
        every = self.applied_to == "quantized"
        before = [w.to(dtype) for w in _used(sites, every)]
        with _displaced([t for t, _ in kept], [e for _, e in kept]):
            after = [w.to(dtype) for w in _used(sites, every)]
        received = [a.to(e.dtype) - b.to(e.dtype) for a, b, (_, e) in zip(after, before, kept, strict=True)]
        return _cosine([e for _, e in kept], received)


def _find_sites(model: nn.Module) -> list[_Site]:
    users: dict[int, list[tuple[nn.Module, str, str]]] = {}
    own: set[int] = set()  # parameters of quantizers
    for layer in model.modules():
        if getattr(layer, "is_quantizer", False):
            own.update(id(p) for p in layer.parameters())
        if hasattr(layer, "quantized_weights"):
            for name, (_, delta, _) in cast(Any, layer).quantized_weights().items():
                place = next(key for key, buffer in layer.named_buffers() if buffer is delta)
                users.setdefault(id(getattr(layer, name)), []).append((layer, name, place))
    perturbed = (p for p in model.parameters() if p.requires_grad and p.is_floating_point() and id(p) not in own)
    return [_Site(p, users.get(id(p), [])) for p in perturbed]


def _levels(sites: list[_Site]) -> list[tuple[Tensor, Tensor]]:
    found = (cast(Any, layer).quantized_weights()[name] for site in sites for layer, name, _ in site.users)
    return [(q, step) for q, _, step in found]


def _used(sites: list[_Site], every: bool) -> list[Tensor]:
    """Return the tensors that the forward pass computes with; of a shared weight `every` use or the first."""
    used: list[Tensor] = []
    for site in sites:
        tensors = [q + delta for q, delta in zip(site.quantized(), site.deltas(), strict=True)]
        used += (tensors if every else tensors[:1]) or [site.parameter.detach().clone()]
    return used


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))


def _cosine(a: list[Tensor], b: list[Tensor]) -> Tensor:
    product = torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()
    return product / (_norm(a) * _norm(b)).clamp_min(TINY)


def _statistics(model: nn.Module) -> list[Tensor]:
    """Return the buffers that a forward pass in training mode moves."""
    norms = (m for m in model.modules() if getattr(m, "running_mean", None) is not None)
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


@contextmanager
def _kept(tensors: list[Tensor]) -> Iterator[None]:
    """Copy the tensors back at the end, whatever happens: subtracting what was added would drift."""
    with torch.no_grad():
        saved = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)


@contextmanager
def _displaced(tensors: list[Tensor], by: list[Tensor]) -> Iterator[None]:
    """Add to the tensors for a while."""
    with _kept(tensors):
        with torch.no_grad():
            for tensor, e in zip(tensors, by, strict=True):
                tensor.add_(e)
        yield
