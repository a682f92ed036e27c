import math
from typing import Literal

import numpy as np
import pytest
import torch

from landscape.checking import numbers, one_of

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
