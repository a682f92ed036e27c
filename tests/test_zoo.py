"""Every network of the zoo meets every public measuring call: measured and right, or refused in words of our own.

``python tests/test_zoo.py [part of a name …]`` prints the whole table.
"""

import collections
import functools
import sys
import time
import traceback
import warnings
from collections.abc import Mapping

import pytest
import torch
from states import assert_same, state
from strangers import perceptron
from torch import nn
from zoo import ZOO, case
from zoo_calls import CALLS, Asked, Truth
from zoo_odd import ODD

ALL = ZOO | ODD


@functools.lru_cache(2)
def truth_of(name):
    return Truth(ALL[name])


def objects(model):
    """The very objects that a network consists of, which `state` does not tell apart."""
    entries = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return [
        [id(module), *(sorted((k, id(v)) for k, v in vars(module).items()))]
        + [[(key, id(value)) for key, value in getattr(module, entry).items()] for entry in entries]
        for module in model.modules()
    ]


def entries(data):
    """The tensors of data that are handed over as tensors."""
    parts = list(data.values()) if isinstance(data, Mapping) else data
    if isinstance(parts, torch.Tensor):
        return parts.clone()
    return list(map(entries, parts)) if isinstance(parts, list | tuple) else []


def is_own(error):
    """Whether an error is raised on purpose, by this package, in words."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    raised = "/landscape/" in last.filename and (last.line or "").startswith("raise")
    return raised and isinstance(error, ValueError | TypeError) and len(str(error)) > 20


def outcome(name, called):
    """Return what a call does with a network: "right", "refused", "wrong", "changed" or "foreign", and the reason."""
    case, (function, needs) = ALL[name], CALLS[called]
    truth = None if "everything" in case.refused else truth_of(name)
    model = case.make()
    before = state(model), objects(model), entries(case.data)
    steps = function(Asked(case, model), truth)
    error = None
    try:
        next(steps)
    except Exception as raised:
        error = raised
    try:
        assert_same(before, (state(model), objects(model), entries(case.data)))
    except AssertionError:
        return "changed", "the network, its data or a global switch are others than before"
    if error is not None:
        return ("refused" if is_own(error) else "foreign"), f"{type(error).__name__}: {error}"
    if needs & case.refused:
        return "wrong", "measured where it cannot be right"
    try:
        next(steps, None)
    except AssertionError as unlike:
        return "wrong", str(unlike) or traceback.extract_tb(unlike.__traceback__)[-1].line
    return "right", ""


def expected(name, called):
    return "refused" if CALLS[called][1] & ALL[name].refused else "right"


def in_rotation(index):
    """The calls that a network meets in the normal tests: four in turn; every twelfth a comparison (it takes long)."""
    calls = [called for called in CALLS if called != "compare"]
    chosen = [calls[(4 * index + turn) % len(calls)] for turn in range(4)]
    return ["compare", *chosen[1:]] if index % 12 == 0 else chosen


pytestmark = pytest.mark.usefixtures("no_group_is_left")
WARNINGS = (
    ".*weight_norm. is deprecated:FutureWarning",
    "None of the inputs have requires_grad=True",
    "The .grad attribute of a Tensor",  # which the compiler looks at
    "`torch.jit.script` is deprecated",  # which torch.func.hessian loads
)


def on_its_own(test):
    """Leave out what PyTorch says of some networks by itself."""
    for message in WARNINGS:
        test = pytest.mark.filterwarnings(f"ignore:{message}")(test)
    return test


@on_its_own
@pytest.mark.parametrize("name", ALL)
def test_each_network_is_measured_right_or_refused_by_calls_in_rotation(name):
    for called in in_rotation(list(ALL).index(name)):
        found, reason = outcome(name, called)
        assert found == expected(name, called), (called, found, reason)


@on_its_own
@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_each_network_is_measured_right_or_refused_by_every_call(name):
    for called in CALLS:
        found, reason = outcome(name, called)
        assert found == expected(name, called), (called, found, reason)


def test_the_zoo_is_large_and_nine_tenths_of_it_can_be_measured():
    pairs = [(name, called) for name in ALL for called in CALLS]
    assert len(ALL) >= 60 and sum(expected(*pair) == "right" for pair in pairs) >= 0.9 * len(pairs)


def lazy():
    return nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.LazyLinear(3))


@pytest.mark.parametrize("make", [lazy, lambda: perceptron().to("meta")])
def test_weights_that_are_not_there_are_refused_by_every_call(make):
    elsewhere = {"line, to another network", "trajectory", "compare"}  # cannot be made for these
    for called in CALLS.keys() - elsewhere:
        with pytest.raises(ValueError, match="weights are not there yet"):
            next(CALLS[called][0](Asked(case(make), make()), None))


def main(parts):
    """Print what each call does with each network, and how often what happens."""
    warnings.simplefilter("error")
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message.split(":")[0])
    names = [name for name in ALL if not parts or any(part in name for part in parts)]
    counts, reasons = collections.Counter(), collections.defaultdict(list)
    for name in names:
        start, row = time.process_time(), {}
        for called in CALLS:
            found, reason = outcome(name, called)
            row[called] = found
            counts[found] += 1
            if found != "right":
                mark = "" if found == expected(name, called) else " (not expected)"
                reasons[f"{found}{mark}: {reason}"[:260]].append(f"{name} × {called}")
        odd = ", ".join(f"{called}: {found}" for called, found in row.items() if found != "right")
        print(
            f"{name:34} {list(row.values()).count('right'):3} right  {time.process_time() - start:5.1f} s  {odd}",
            flush=True,
        )
    print(f"\n{len(names)} networks × {len(CALLS)} calls: {dict(counts)}")
    for reason, pairs in sorted(reasons.items()):
        print(f"\n{reason}\n    {len(pairs)}: {'; '.join(pairs[:30])}")


if __name__ == "__main__":
    main(sys.argv[1:])
