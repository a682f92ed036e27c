"""Which steps of a sharpness-aware training pay for a second pass.

A policy leaves the gradient of the update in `.grad` and returns the loss. They are ours or from the literature named
below: the SAQ paper's own efficient strategy is not known to us and is not claimed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch

from .. import processes
from .vectors import common_grads, norm, projection

NOISE = 1e-5
LOOK_ALPHA = 0.7  # LookSAM's, in public re-implementations


@runtime_checkable
class StepPolicy(Protocol):
    """What `SAM` asks of a policy: `step`, and `state` (tensors and primitives) that a checkpoint stores and sets.

    Of `SAM` a step may use the methods `full_step`, `backward`, `gradients`, `gradient`, `epsilon`, `displaced` and
    `observe`, and what it was made with.

    One with ``compares = False`` does not see the same batch at w and at w + ε: no adaptive radius, no combining.
    """

    state: dict[str, Any]

    def step(self, sam: Any, closure: Callable[..., Any]) -> Any:
        """Call the closure as often as it takes; leave the update's gradient in `.grad`; return the first loss."""
        ...


@dataclass
class Full:
    """Two passes in every step: the method itself."""

    state: dict[str, Any] = field(default_factory=dict)

    def step(self, sam: Any, closure: Callable[..., Any]) -> Any:
        """Make a step with two passes."""
        return sam.full_step(closure)[0]


@dataclass
class Look:
    """Two passes in every k-th step; in between, the component that the second pass had added is added again.

    ``g + alpha·(‖g‖/‖v‖)·v`` with v the component of the perturbed gradient that is orthogonal to the plain one.

    Cost: 1 + 1/k passes, and one copy of the parameters.

    Source: Liu et al., Towards Efficient and Scalable Sharpness-Aware Minimization (2022), "LookSAM"; alpha = 0.7 as in
    public re-implementations; norms over all parameters together.
    """

    k: int = 5
    state: dict[str, Any] = field(default_factory=dict)

    def step(self, sam: Any, closure: Callable[..., Any]) -> Any:
        """Make a step with two passes or one."""
        if sam.steps % self.k:
            loss = sam.backward(closure)
            gradients, orthogonal = common_grads(sam.gradients(), self.state["orthogonal"])
            length = norm(orthogonal)
            factor = torch.where(length > 0, LOOK_ALPHA * norm(gradients) / length, 0.0)
            torch._foreach_add_(gradients, torch._foreach_mul(orthogonal, factor))
            return loss
        loss, plain = sam.full_step(closure, keep_plain=True)
        sharp = sam.gradients()
        g, s = common_grads(plain, sharp)
        along = projection(s, g)
        names = [k for k in plain if k in sharp]
        rest = torch._foreach_sub(s, torch._foreach_mul(g, along))
        # the component of a gradient that the perturbation did not turn is rounding noise: never scale that up
        real = (norm(list(rest)) > NOISE * norm(s)).to(along.dtype)
        self.state["orthogonal"] = dict(zip(names, torch._foreach_mul(rest, real), strict=True))
        return loss


@dataclass
class Momentum:
    """One pass in every step: ε comes from an average of the gradients of the steps before.

    ``ε = rho·T²m / ‖T m‖``, ``m ← decay·m + (1 - decay)·g``, with g the gradient at w + ε: for Case 3 that of the
    quantized weights, ∂L/∂delta, so that it is Case 3 and not Case 1.

    Choose it where a second pass is too expensive. All processes have one ε, as if synchronised. BatchNorm statistics
    are those of the perturbed weights.

    Cost: 1 pass, and one copy of the perturbed tensors.

    Source: the idea is Becker et al., Momentum-SAM (2024), which takes the optimizer's own momentum.
    """

    compares: ClassVar[bool] = False

    decay: float = 0.6
    state: dict[str, Any] = field(default_factory=dict)

    def step(self, sam: Any, closure: Callable[..., Any]) -> Any:
        """Make a step with one pass."""
        epsilon = sam.epsilon(self.state)
        with sam.displaced(epsilon):
            loss = sam.backward(closure)
        sam.observe(epsilon)
        gradient = sam.gradient()
        processes.average_(list(gradient.values()))  # changes nothing where the pass of the update has averaged it
        for name, g in gradient.items():
            self.state.setdefault(name, torch.zeros_like(g))
        torch._foreach_lerp_([self.state[name] for name in gradient], list(gradient.values()), 1 - self.decay)
        return loss


@dataclass
class Subset:
    """Two passes, the first one over a random share of the batch: ε from fewer samples.

    The closure, ``closure(share=1.0)``, is called with that share first and must compute on so many samples of its
    batch; then without it, on all of them. BatchNorm statistics move in the second pass, at the perturbed weights.

    Choose it where two whole passes are too expensive; see README.md for how much of the flattening remains.

    Cost: 1 + share passes.

    Source: the idea of a cheaper first pass is Du et al., ESAM (2022), whose choice of samples needs a whole first
    forward pass.
    """

    compares: ClassVar[bool] = False

    share: float = 0.25
    state: dict[str, Any] = field(default_factory=dict)

    def step(self, sam: Any, closure: Callable[..., Any]) -> Any:
        """Make a step with a small first pass."""
        takes = signature(closure)
        try:
            takes.bind(self.share)
        except TypeError:
            rule = f'policy="subset:{self.share:g}" hands the closure its share of the batch: write closure(share=1.0)'
            raise ValueError(f"{rule}, got closure{takes}; or choose another policy") from None
        return sam.full_step(closure, self.share)[0]


# Name -> (class, type of its argument, what that must be; "" = it takes none).
POLICIES: dict[str, tuple[Any, type, str]] = {
    "full": (Full, float, ""),
    "look": (Look, int, ">= 1"),
    "momentum": (Momentum, float, "in [0, 1)"),
    "subset": (Subset, float, "in (0, 1)"),
}


def make_policy(text: str) -> StepPolicy:
    """Return the policy that "full", "look:5", "momentum:0.6" or "subset:0.25" names."""
    name, colon, text_value = str(text).partition(":")
    try:
        kind, type_, rule = POLICIES[name]
        value = type_(text_value) if colon else None
    except (KeyError, ValueError):
        raise ValueError(f'policy must be one of {list(POLICIES)}, as "look:5", got {text!r}') from None
    if value is None:
        return kind()
    fits = {">= 1": value >= 1, "in [0, 1)": 0 <= value < 1, "in (0, 1)": 0 < value < 1, "": False}
    if not fits[rule]:
        raise ValueError(f"policy {name!r} takes {'a number ' + rule if rule else 'no number'}, got {text!r}")
    return kind(value)
