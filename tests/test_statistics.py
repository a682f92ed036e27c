"""The studies' statistics: size and coverage by simulation, corrections against their definitions, known numbers."""

import math

import numpy as np
import pytest
from scipy import special, stats

from figures import methods, study

TABLES = 4000
COLUMNS = 3
METHODS = (8, 10)  # at 4 and at 2 bits, as in the study


def chance(spreads, tables=TABLES, methods=METHODS, seeds=3):
    """p-values (tables, tests) where no method does anything: each less one baseline, with noise of its own size.

    `spreads`: for each group, of the logarithm of the methods' standard deviations.
    """
    random, p = np.random.default_rng(0), []
    for count, spread in zip(np.repeat(methods, COLUMNS), spreads, strict=True):
        deviation = np.exp(spread * random.standard_normal((tables, count, 1)))
        own = deviation * random.standard_normal((tables, count, seeds))
        differences = own - random.standard_normal((tables, 1, seeds))
        variances, df = study.moderate(differences.var(-1, ddof=1), np.full(count, seeds - 1.0))
        p.append(study.p_value(differences.mean(-1), np.sqrt(variances / seeds), df))
    return np.concatenate(p, -1)


@pytest.mark.parametrize(
    "spreads",
    [
        pytest.param([0.0] * 6, id="alike"),
        pytest.param([0.5] * 6, id="scattered"),
        pytest.param([0.85, 0.0, 0.0, 0.37, 0.65, 0.0], id="as fitted to the study's accuracies, traces and λ₁"),
    ],
)
def test_a_table_of_pure_chance_has_a_mark_in_one_of_twenty_at_most(spreads):
    p = chance(spreads)
    most = study.ALPHA + 2 * math.sqrt(study.ALPHA * (1 - study.ALPHA) / TABLES)
    assert (study.holm(p).min(-1) <= study.ALPHA).mean() <= most
    assert (study.benjamini_hochberg(p).min(-1) <= study.ALPHA).mean() <= most


def test_without_the_bound_on_what_is_borrowed_far_more_tables_would_have_one(monkeypatch):
    """limma's own bound, Σd, takes the differences for independent; they share a baseline."""

    def limma(variances, freedom):
        prior, scale = (np.asarray(own)[..., None] for own in study.prior_of(variances, freedom))
        finite = np.where(np.isinf(prior), 1e9, prior)
        total = np.minimum(finite + freedom, freedom.sum())
        return (finite * scale + freedom * variances) / (finite + freedom), total

    monkeypatch.setattr(study, "moderate", limma)
    assert (study.holm(chance([0.5] * 6)).min(-1) <= study.ALPHA).mean() > 0.15


def test_the_prior_is_the_one_that_the_variances_were_drawn_from():
    """Smyth 2004: s² ~ s₀² F(d, d₀); with many differences d₀ and s₀² come back, and d₀ = ∞ for one variance."""
    random, freedom = np.random.default_rng(0), np.full(20_000, 4.0)
    for d0, s0 in ((3.0, 2.0), (8.0, 0.5)):
        found = study.prior_of(s0 * stats.f(4, d0).rvs(20_000, random_state=random), freedom)
        assert found == pytest.approx((d0, s0), rel=0.1)
    same = 2.0 * random.chisquare(4, (5, 20_000)) / 4
    d0, s0 = study.prior_of(same, freedom)
    assert (d0 > 50).all() and s0 == pytest.approx(2.0, rel=0.05)


def test_the_moderation_is_limmas_where_its_bound_does_not_bind():
    """A hand-written squeezeVar of limma: posterior variance and degrees of freedom, one difference after the other."""
    variances, freedom = np.array([0.01, 3.0, 0.2, 40.0, 0.5, 1.7, 9.0, 0.05]), np.array([2.0, 2, 4, 2, 2, 4, 2, 2])
    logs = [math.log(v) - special.digamma(d / 2) + math.log(d / 2) for v, d in zip(variances, freedom, strict=True)]
    excess = np.var(logs, ddof=1) - np.mean([special.polygamma(1, d / 2) for d in freedom])
    low, high = 1e-3, 1e3
    for _ in range(200):  # trigamma falls
        half = (low + high) / 2
        low, high = (half, high) if special.polygamma(1, half) > excess else (low, half)
    s0 = math.exp(np.mean(logs) + special.digamma(half) - math.log(half))
    expected = [(2 * half * s0 + d * v) / (2 * half + d) for v, d in zip(variances, freedom, strict=True)]
    found, df = study.moderate(variances, freedom)
    assert found == pytest.approx(expected) and df == pytest.approx(freedom + 2 * half)
    np.testing.assert_array_equal(study.moderate(variances[:5], freedom[:5])[0], variances[:5])  # few borrow nothing


def test_differences_alone_are_students_t():
    random = np.random.default_rng(0)
    values = {k: random.normal(0.5, 1, n) for k, n in enumerate((2, 3, 5, 8))}
    for key, judged in study.judge(values).items():
        expected = stats.ttest_1samp(values[key], 0)
        assert judged.p == pytest.approx(expected.pvalue)
        assert judged.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))


@pytest.mark.parametrize("count", [8, 10])
def test_intervals_hold_the_truth_nineteen_times_of_twenty(count):
    random, seeds = np.random.default_rng(1), 3
    noise = random.standard_normal((TABLES, count, seeds)) - random.standard_normal((TABLES, 1, seeds))
    variances, df = study.moderate(noise.var(-1, ddof=1), np.full(count, seeds - 1.0))
    half = stats.t.ppf(0.975, df) * np.sqrt(variances / seeds)
    assert (np.abs(noise.mean(-1)) <= half).mean() == pytest.approx(0.95, abs=0.01)


def naive_holm(p):
    order, worst, found = sorted(range(len(p)), key=lambda k: p[k]), 0.0, [0.0] * len(p)
    for rank, k in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[k]))
        found[k] = worst
    return found


def naive_bh(p):
    return [min(1.0, *(len(p) * q / sum(r <= q for r in p) for q in p if q >= own)) for own in p]


def test_corrections_are_their_definitions():
    random = np.random.default_rng(0)
    tables = random.uniform(size=(50, 12)) ** 3
    tables[0, :6] = tables[0, 6]  # ties
    for p, holm, bh in zip(tables, study.holm(tables), study.benjamini_hochberg(tables), strict=True):
        assert holm == pytest.approx(naive_holm(list(p))) and bh == pytest.approx(naive_bh(list(p)))
    np.testing.assert_allclose(study.benjamini_hochberg(tables[1]), stats.false_discovery_control(tables[1]))


def test_fiellers_interval_holds_the_ratio_and_is_the_whole_line_where_nothing_is_known():
    random, ratio, held = np.random.default_rng(0), 0.6, []
    for _ in range(2000):
        whole = random.normal(-6, 1.5, 3)
        low, high = study.fieller(ratio * -6 + 0.4 * (whole + 6) + random.normal(0, 0.8, 3), whole)
        held.append(low <= ratio <= high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)
    assert study.fieller([1.0, 2.0, 3.0], [1.0, -1.0, 0.5]) == (-math.inf, math.inf)


def older_rows():
    """The rows that the review counted, which have no probe loss."""
    return {key: row for key, row in methods.by_seed().items() if math.isnan(row["probe_loss"])}


def test_fiellers_intervals_of_the_committed_rows_are_the_reviews():
    rows, names = older_rows(), ("saq3-subset", "saq3-momentum")
    found = [methods.kept(rows, f"{methods.BASE}-w4a4-{name}", "trace") for name in names]
    assert [round(100 * share) for share, _ in found] == [58, 19]
    assert [[round(100 * end) for end in ends] for _, ends in found] == [[12, 80], [-22, 43]]


def old_limma(variances, freedom):
    """limma before 2017: s₀² is the limit of its formula where d₀ = ∞, and the quantiles are then a normal's."""
    prior, scale = study.prior_of(variances, freedom)
    if np.isinf(prior):
        logs = np.log(variances) - special.digamma(freedom / 2) + np.log(freedom / 2)
        return np.full_like(variances, math.exp(logs.mean())), np.full_like(freedom, math.inf)
    return (prior * scale + freedom * variances) / (prior + freedom), prior + freedom


@pytest.mark.parametrize(
    ("moderated", "survive", "discovered"),
    [
        pytest.param(lambda variances, freedom: (variances, freedom), 1, 19, id="each its own variance"),
        pytest.param(old_limma, 26, 41, id="borrowed as if independent"),
        pytest.param(study.moderate, 20, 38, id="with the bound for a shared baseline"),
    ],
)
def test_what_survives_of_the_older_rows_by_how_much_is_borrowed(monkeypatch, moderated, survive, discovered):
    """72 differences of 70 networks, with the worst cases that did not converge and without a floor of the images."""
    monkeypatch.setattr(study, "moderate", moderated)
    rows, columns = older_rows(), ("accuracy", "trace", "top", methods.UNCONVERGED)
    recipes = [name for name in methods.NAMES if methods.baseline(name).endswith("-sgd")]
    differences = {(name, c): methods.paired(rows, name)[c] for name in recipes for c in columns}
    tests = study.judge(differences, lambda key: (key[1], methods.baseline(key[0])))
    assert len(tests) == 72
    assert sum(test.holm <= study.ALPHA for test in tests.values()) == survive
    assert sum(test.bh <= study.ALPHA for test in tests.values()) == discovered


def test_hits_survive_packing():
    hits = np.random.default_rng(0).random(10_001) < 0.8
    np.testing.assert_array_equal(study.unpack_hits(study.pack_hits(hits), 10_001), hits)


def test_the_error_over_test_images_is_joined_to_that_over_seeds():
    """Of the images a tenth is won in every seed, a tenth lost: new images scatter the mean more than new seeds."""
    random, seeds, images, held = np.random.default_rng(0), 5, 500, []
    for _ in range(400):
        hit, effect = random.random((2, seeds, images)) < 0.75, random.choice([1, 0, -1], images, p=[0.1, 0.8, 0.1])
        base, ours = hit[0], np.where(effect == 0, hit[1], effect > 0)
        differences, truth = 100 * (ours.mean(1) - base.mean(1)), 100 * 0.1 * (0.25 - 0.75)
        tests = [study.judge({0: differences}, images=own)[0] for own in ({}, {0: study.images_of(ours, base)})]
        held.append([test.interval[0] <= truth <= test.interval[1] for test in tests])
    alone, joined = np.mean(held, 0)
    assert alone < 0.9 and 0.93 <= joined <= 0.99


def test_an_error_over_seeds_is_not_let_below_that_of_the_images():
    small = study.judge({"a": [0.21, 0.22, 0.23]})["a"]
    floor = study.images_unknown(3, 10_000)
    found = study.judge({"a": [0.21, 0.22, 0.23]}, images={"a": floor})["a"]
    assert small.verdict == "holm" and found.verdict == "none"
    assert found.error == pytest.approx(math.sqrt(0.12 / 3e4) * 100)


def test_verdicts_and_marks():
    tests = study.judge({"a": [5.0, 5.1, 4.9], "b": [1.0, 1.5, 1.3], "c": [1.0, -1.0, 0.2], "d": [2.0]})
    assert [test.verdict for test in tests.values()] == ["holm", "holm", "none"] and "d" not in tests
    assert study.marked(tests["a"]) == "**+5.000 [4.752, 5.248]**"
    assert study.marked(tests["c"]) == "+0.07 [−2.43, 2.57]"
    assert study.latex([["", "x"], ["a", "**−1**"], ["b", "*2*"]]).count(r"\text") == 2
    assert study.judge({"a": [0.0, 0.0]})["a"].p == 1.0
