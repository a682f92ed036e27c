"""Everything public is called with odd arguments: see odd_arguments.py, which is also a script."""

import pytest
from odd_arguments import BAD, passed, run, table


def listed(outcomes):
    return "\n".join([*(str(o) for o in outcomes if o.kind not in ("result", "named")), table(outcomes)])


def test_a_sample_of_odd_arguments_gives_results_or_errors_that_name_the_argument():
    outcomes = run(sample=300, seed=1)
    assert passed(outcomes), listed(outcomes)
    assert len(outcomes) == 300 and {outcome.kind for outcome in outcomes} >= {"result", "named"}


@pytest.mark.slow
def test_all_odd_arguments_give_results_or_errors_that_name_the_argument():
    outcomes = run()
    assert len(outcomes) >= 20_000 and not [o for o in outcomes if o.kind in BAD], listed(outcomes)
    assert passed(outcomes), listed(outcomes)
