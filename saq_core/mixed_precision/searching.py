"""The one function that searches for bits per layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from landscape import Sensitivity
from landscape.checking import numbers
from landscape.model import Criterion

from .. import processes
from ..contexts import device_of, seeded
from ..data import data_of
from ..data.feeding import first_inputs
from ..quantization import QuantizerName
from ..quantization.convert import check_float
from .asga import ASGA, Alignment
from .baselines import at_random, by_hessian, by_sensitivity, uniform
from .resuming import Checkpoint
from .samq import SAMQ, Search
from .space import Policy, Space

Method = Literal["uniform", "random", "hessian", "sensitivity", "samq", "asga"]
SETTINGS: dict[str, Any] = {"samq": SAMQ, "asga": ASGA}


def search(
    model: nn.Module,
    data: Any,
    *,
    budget: float,
    method: Method = "samq",
    seed: int = 0,
    candidates: Sequence[int | str] | None = None,
    quantizer: QuantizerName = "lsq",
    settings: SAMQ | ASGA | None = None,
    sensitivity: Sensitivity | None = None,
    first_input_bits: int = 8,
    checkpoint: str | Path | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    objective: Callable[[nn.Module, Any], Any] | None = None,
    output: str | int | Callable[[Any], Any] | None = None,
) -> Policy:
    """Search bits per layer within a budget of bit operations: ``quantize(model, bits=search(…).bits)``.

    The first and the last layer stay at 8 bits. A shortcut's convolution takes the bits of the branch beside it and the
    products of attention those of its projections; every other layer has a decision of its own. Model, data and random
    state are left as they are, also after an error. Train the quantized network afterwards: no method does.

    Args:
        model: A float network, trained: all but "uniform" and "random" look at its weights.
        data: `Data`, of which "hessian" uses the probe, "samq" and "asga" the training images; validation and test
            images are never looked at. Or what `train` takes: a pair (x, y), a Dataset, a loader, batches that are
            pairs or mappings; not batches for "samq". The others look at one sample, maybe of inputs alone.
        budget: Bit operations of one sample, at most, as `cost` counts them: ``cost(model, bits="W4A4").bops``.
        method: "uniform": the most bits that fit, the same everywhere. "random": random bits that cost from 98 to 100 %
            of the budget. "hessian": least ``Σ mean Hessian trace · squared error of quantization``, exactly (in the
            manner of HAWQ-V2). "sensitivity": least sum of measured loss increases, exactly; one that is below 0 counts
            as 0, and fewer bits never cost less than more. "samq": a controller learns by REINFORCE which bits leave a
            low perturbed loss, and the flattest of its proposals is taken. "asga": descent on a mixture of all bits,
            with gradients aligned between the weights and their sharp neighbour.
        seed: Of everything drawn; "uniform" draws nothing.
        candidates: Bits that a layer can take: 4 or "W4A4" (both alike), "W2A4" and so on; by default (2, 3, 4, 5), and
            for "sensitivity" the formats that were measured.
        quantizer: See `quantize`; pass the one that the policy is for.
        settings: A `SAMQ` or an `ASGA`, for the method of that name; None = its defaults, 100 and 25 epochs.
        sensitivity: What `landscape.sensitivity` measured of this network, for the method of that name: at formats that
            the candidates are ("W4A4"), or at those of their weights ("W4"). To go by KL instead:
            ``dataclasses.replace(result, rows=[row | {"increase": row["kl"]} for row in result.rows])``.
        first_input_bits: See `cost`.
        checkpoint: File that is written after every epoch, every configuration compared, and the traces; if it exists,
            the search goes on from it, to the policy of an uninterrupted one (on a CPU in float32).
        loss, objective, output: What the Hessian is of, and what "samq" and "asga" minimise: see `landscape.Objective`;
            by default cross-entropy, or the loss that the network returns. The other methods look at no loss.

    Raises:
        ValueError: If no bits fit into the budget (the error names the least possible), or none that were drawn; if the
            sensitivity lacks a layer or a candidate; if the method or quantizer is unknown, the network quantized
            already, `settings` of another method, the budget not finite, the data or the loss of a kind that the method
            does not take, or the checkpoint that of a search with other arguments.

    Cost: a few forward passes of one sample; "hessian": 30 to 120 Hessian-vector products of the probe and 80
    quantizations of each weight per candidate; "samq": per epoch two forward and backward passes over one half of the
    training images and two forward passes and one backward pass over the other; at the end three forward and one
    backward pass over that half per configuration compared; "asga": per epoch two forward and backward passes over the
    training images, where every weight and input is quantized once per candidate.

    Source: Liu et al., Sharpness-aware Quantization, first version (2021), and its released code; Dong et al., HAWQ-V2
    (2020); Ma et al., Adaptive Sharpness-Aware Gradient Aligning (2025), as far as `ASGA` says.

    Example:
        >>> import saq_core
        >>> data = saq_core.load_data("digits", limit=64, device="cpu")
        >>> model = saq_core.build_model("resnet8", data)
        >>> budget = saq_core.cost(model, bits="W4A4").bops
        >>> policy = saq_core.search(model, data, budget=budget, method="uniform")
        >>> set(policy.bits.values()), policy.bops == budget
        ({'W4A4'}, True)
    """
    if candidates is None:
        candidates = tuple(map(_candidate, sensitivity.formats if sensitivity else ())) or (2, 3, 4, 5)
    arguments = {name: value for name, value in locals().items() if name != "checkpoint"}
    functions: dict[str, Any] = {"loss": loss, "objective": objective, "output": output}
    numbers(note="bit operations of one sample", budget=budget)
    _check(method, settings, sensitivity, functions)
    check_float(model)
    if processes.size() > 1:
        raise ValueError(f"search runs in one process, got {processes.size()}: call it in one and pass policy.bits on")
    device = device_of(model)
    kept = Checkpoint(checkpoint, arguments, device)
    cuda = device.type == "cuda"
    with seeded(seed, device):
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        inputs = [(first_inputs(model, data, "data"),)]
        space = Space.of(model, inputs, candidates=candidates, first_input_bits=first_input_bits)
        space.check(budget)
        room = math.floor(budget)  # a tensor of whole numbers would be compared with a float in single precision
        details: dict[str, Any] = {}
        if method == "uniform":
            choice = uniform(space, room)
        elif method == "random":
            choice = at_random(space, room, seed)
        elif method == "hessian":
            choice, details = by_hessian(space, model, data, room, seed, quantizer, kept, **functions)
        elif sensitivity is not None:
            choice, details = by_sensitivity(space, sensitivity, room)
        else:
            criterion = Criterion(**functions)
            data = data_of(data, has_labels=criterion.is_default)
            how: Any = (settings or SETTINGS[method](), seed, quantizer, criterion)
            if method == "samq":
                choice, details = Search(model, data, space, room, *how).found(kept)
            else:
                choice, details = Alignment(model, data, space, *how).found(room, kept)
    peak = torch.cuda.max_memory_allocated(device) if cuda else None
    bops = int(space.bops(choice))
    return Policy(space.bits(choice), bops, kept.seconds, method, float(budget), int(seed), peak, details)


def _candidate(form: str) -> int | str:
    """Return what a layer may have by a format of a sensitivity."""
    if "A" in form:
        return form
    if not form.removeprefix("W").isdecimal():
        raise ValueError(f'sensitivity must have formats like "W4" or "W4A4" for a search, got {form!r}')
    return int(form.removeprefix("W"))


def _check(method: Method, settings: Any, sensitivity: Sensitivity | None, functions: dict[str, Any]) -> None:
    if settings is not None and not isinstance(settings, SETTINGS.get(method, ())):
        known = SETTINGS[method].__name__ if method in SETTINGS else "None"
        raise ValueError(f"settings must be {known} for method={method!r}, got {type(settings).__name__}")
    given = [name for name, value in functions.items() if value is not None]
    if (sensitivity is None) == (method == "sensitivity"):
        rule = "a landscape.Sensitivity" if sensitivity is None else "None"
        raise ValueError(f"sensitivity must be {rule} for method={method!r}, got {type(sensitivity).__name__}")
    if given and method in ("uniform", "random", "sensitivity"):
        raise ValueError(f"{given[0]} must be None for method={method!r}, which looks at no loss, got one")
