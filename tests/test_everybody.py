"""What people have, taken through every call of saq_core and two of landscape: see `everybody`."""

import everybody
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("name", everybody.NETWORKS)
def test_everything_works_on_what_people_have(name):
    assert {call: error for call, error in everybody.tried(name).items() if error} == {}


@pytest.mark.parametrize("name", ["segmentation"])
def test_a_small_one_goes_all_the_way(name):
    assert {call: error for call, error in everybody.tried(name).items() if error} == {}
