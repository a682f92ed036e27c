import inspect
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

import landscape
import saq_core
from landscape.checking import argument, checked, numbers, one_of

Units = Literal["raw", "filter"]


@pytest.mark.parametrize("value", ["raw", np.str_("filter")])
def test_options_are_accepted(value):
    one_of("units", value, Units)


@pytest.mark.parametrize("value", ["layer", None, 3, ["raw"], np.array(["raw", "raw"]), torch.zeros(2)])
def test_what_is_no_option_is_refused(value):
    with pytest.raises(ValueError, match="units must be one of 'raw', 'filter', got "):
        one_of("units", value, Units)


def test_options_may_be_none_numbers_or_a_table():
    one_of("units", None, Units | None)
    one_of("case", np.int64(3), Literal[1, 2, 3])
    one_of("quantizer", "lsq", {"lsq": 1, "pact": 2})
    for options in (Units | None, ("raw", "filter", None)):
        with pytest.raises(ValueError, match="units must be one of 'raw', 'filter', None, got 'x'"):
            one_of("units", "x", options)
    with pytest.raises(ValueError, match="case must be one of 1, 2, 3, got 4"):
        one_of("case", 4, Literal[1, 2, 3])


@pytest.mark.parametrize(
    ("rule", "value", "message"),
    [
        ({"whole": True}, 1.0, "x must be a whole number, got 1.0"),
        ({"whole": True, "at_least": 1}, True, "x must be a whole number >= 1, got True"),
        ({"whole": True, "at_least": 1, "optional": True}, 0, "x must be a whole number >= 1 or None, got 0"),
        (
            {"whole": True, "at_least": 2, "note": "for an error"},
            1,
            "x must be a whole number >= 2, for an error, got 1",
        ),
        ({"whole": True, "at_least": 1, "at_most": 32}, 33, "x must be a whole number from 1 to 32, got 33"),
        ({}, math.inf, "x must be a finite number, got inf"),
        ({"finite": False}, math.nan, "x must be a number, got nan"),
        ({"finite": False, "at_least": 0}, -1, "x must be >= 0, got -1"),
        ({"at_least": 0}, math.inf, "x must be >= 0 and finite, got inf"),
        ({"at_least": 0}, "0.1", "x must be >= 0 and finite, got '0.1'"),
        ({"at_least": 0, "below": 1}, 1, "x must be from 0 to below 1, got 1"),
        ({"above": 0, "below": 1}, 0, "x must be between 0 and 1, got 0"),
        ({"above": 0}, 0.0, "x must be > 0 and finite, got 0.0"),
        ({"at_most": 1}, 2, "x must be <= 1, got 2"),
        ({"at_least": 0}, torch.zeros(2), "x must be >= 0 and finite, got tensor"),
    ],
)
def test_numbers_out_of_bounds_are_refused(rule, value, message):
    with pytest.raises(ValueError) as caught:
        numbers(**rule, x=value)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ({"whole": True, "at_least": 1}, np.int64(1)),
        ({"at_least": 0, "below": 1}, np.float32(0)),
        ({"finite": False, "above": 0}, math.inf),
        ({"optional": True, "above": 0}, None),
        ({"at_most": 1}, 1),
    ],
)
def test_numbers_within_bounds_are_accepted(rule, value):
    numbers(**rule, x=value, y=value)


LOSS = Callable[[Any, Any], torch.Tensor]


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (np.int64(3), int, 3),
        (torch.tensor(3), int | None, 3),
        (np.float32(0.5), float, 0.5),
        (np.bool_(True), bool, True),
        (np.array([1.0, 2.0]), Sequence[float], [1.0, 2.0]),
        (torch.tensor([1, 2]), tuple[int, int], (1, 2)),
        ([np.int64(1), 2.5], tuple[float, ...], (1, 2.5)),
        ({"a": np.float64(1)}, Mapping[str, float], {"a": 1.0}),
        ("cpu", torch.device | str | None, "cpu"),
        (np.str_("raw"), Units, "raw"),
        (math.nan, Any, math.nan),
        (math.inf, float, math.inf),
    ],
)
def test_what_an_annotation_means_comes_as_python_has_it(value, hint, expected):
    found = argument("x", value, hint)
    assert type(found) is type(expected) and (found == expected or found is expected)


def test_what_fits_comes_as_the_very_same_object():
    for value, hint in (([1.0], Sequence[float]), ({"a": 1}, Mapping[str, int]), (max, LOSS), (torch.ones(2), Any)):
        assert argument("x", value, hint) is value


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        (True, int, "x must be a whole number, got True"),
        (math.nan, float | None, "x must be a number or None, got nan"),
        (1, bool, "x must be True or False, got 1"),
        ("0.1", Sequence[str], "x must be a list (each a text), got '0.1': write ['0.1']"),
        (torch.empty(0), Sequence[float], "x must be a list (each a number), got tensor([])"),
        ((1, True), tuple[int, int], "x must be a tuple (a whole number, a whole number), got (1, True)"),
        ({"a": "b"}, dict[str, int], "x must be a mapping (each value a whole number), got {'a': 'b'}"),
        (len, LOSS, "x must be a function of 2 arguments, got <built-in function len>"),
        ("a\0b", str | Path, "x must be a path, got 'a\\x00b'"),
        ("nowhere", torch.device | str, "x must be a device that is there, got 'nowhere'"),
        (torch.nn.Linear, torch.nn.Module, "x must be a network (nn.Module), got <class"),
        (3, Units | None, "x must be one of 'raw', 'filter', None, got 3"),
    ],
)
def test_other_types_are_refused_in_words(value, hint, message):
    with pytest.raises(ValueError) as caught:
        argument("x", value, hint)
    assert str(caught.value).startswith(message)


def test_everything_public_is_checked_and_looks_as_before():
    for package in (landscape, saq_core):
        for item in (getattr(package, name) for name in package.__all__):
            if inspect.isfunction(item):
                assert hasattr(item, "__wrapped__") and pickle.loads(pickle.dumps(item)) is item
            elif inspect.isclass(item) and "__init__" in vars(item):
                assert hasattr(item.__init__, "__wrapped__"), item
    assert str(inspect.signature(landscape.load)) == "(path: 'str | Path') -> 'Any'"


def test_a_call_that_python_refuses_is_refused_in_its_words():
    @checked
    def half(number: "float") -> float:
        return number / 2

    with pytest.raises(TypeError, match=r"half\(\) missing 1 required positional argument: 'number'"):
        half()
    with pytest.raises(ValueError, match="number must be a number, got '3'"):
        half("3")
    assert half(np.float32(3)) == 1.5
