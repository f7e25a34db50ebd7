"""Intervals against formulas, brute force and scipy; order and labels must not matter."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, norm, spearmanr

from srkit import stats
from srkit.config import SrkitError

RATIO = ("hits", "trials")


def counts(*rows: tuple[str, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["prompt_id", "hits", "trials"])


def random_counts(prompts: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    trials = rng.integers(1, 5, prompts)
    hits = rng.binomial(trials, 0.6)
    return counts(*((f"p{i}", h, t) for i, (h, t) in enumerate(zip(hits, trials, strict=True))))


many_counts = st.builds(random_counts, st.integers(2, 12), st.integers(0, 10_000))


def test_wilson_is_the_formula():
    z, n, share = 1.959963984540054, 60, 0.75
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    found = stats.wilson(45, 60)
    assert (found["value"], found["n"]) == (0.75, 60)
    assert found["low"] == pytest.approx(centre - half)
    assert found["high"] == pytest.approx(centre + half)


def test_wilson_at_the_ends():
    z2 = 1.959963984540054**2
    assert stats.wilson(0, 10)["low"] == pytest.approx(0)
    assert stats.wilson(0, 10)["high"] == pytest.approx(z2 / (10 + z2))
    assert stats.wilson(0, 0) == {"value": None, "low": None, "high": None, "n": 0}
    with pytest.raises(SrkitError, match="11 of 10"):
        stats.wilson(11, 10)


def test_bootstrap_of_two_prompts_by_hand():
    # the resamples are {a, a}, {a, b}, {b, b}: 1/2, 4/5 or 1
    found = stats.bootstrap(counts(("a", 1, 2), ("b", 3, 3)), RATIO)
    assert found == {"value": 0.8, "low": 0.5, "high": 1.0, "n": 2}


def test_bootstrap_resamples_prompts_not_rows():
    # a is right twice and b never: 0, 1/2 or 1, and no resample of the rows would be so wide
    frame = counts(("a", 1, 1), ("a", 1, 1), ("b", 0, 1), ("b", 0, 1))
    assert stats.bootstrap(frame, RATIO) == {"value": 0.5, "low": 0.0, "high": 1.0, "n": 2}


def test_bootstrap_equals_drawing_prompts_one_by_one():
    frame = random_counts(9, 3)
    draws = np.random.default_rng(5).multinomial(9, np.full(9, 1 / 9), size=200)
    values = []
    for times in draws:
        drawn = frame.loc[np.repeat(frame.index, times)]
        values.append(drawn["hits"].sum() / drawn["trials"].sum())
    found = stats.bootstrap(frame, RATIO, resamples=200, seed=5)
    tail = norm.cdf(-np.sqrt(9 / 8) * 2.306004)  # Student's t for 8 degrees of freedom, 97.5 %
    ends = np.quantile(values, [tail, 1 - tail])
    assert [found["low"], found["high"]] == pytest.approx(ends)


def test_bootstrap_takes_a_function_of_sums():
    frame = random_counts(9, 3)
    assert stats.bootstrap(frame, lambda sums: sums.hits / sums.trials) == stats.bootstrap(
        frame, RATIO
    )
    with pytest.raises(SrkitError, match="one value per row"):
        stats.bootstrap(frame, lambda sums: sums.hits.mean())


def test_what_is_unknown_is_none():
    nothing = {"value": None, "low": None, "high": None, "n": 0}
    assert stats.bootstrap(counts(), RATIO) == nothing
    assert stats.bootstrap(counts(("a", 0, 0)), RATIO) == nothing
    assert stats.rate(counts(), *RATIO) == nothing
    missing = counts(("a", None, 1), ("a", 3, 1), ("b", 1, 1))
    assert stats.bootstrap(missing, RATIO)["value"] == 2
    alone = stats.bootstrap(counts(("a", 1, 2), ("b", 0, 0)), RATIO)
    assert alone == {"value": 0.5, "low": None, "high": None, "n": 1}


def test_a_rate_that_is_the_same_everywhere_is_not_certain():
    frame = counts(*((f"p{i}", 3, 3) for i in range(20)))
    unknown = {"value": 1.0, "low": None, "high": None, "n": 20}
    assert stats.bootstrap(frame, RATIO) == unknown
    assert stats.paired_bootstrap(frame, frame, RATIO) == unknown | {"value": 0.0}
    assert stats.rate(frame, *RATIO) == stats.wilson(20, 20)
    ties = counts(*((f"p{i}", 0.5, 1) for i in range(20)))
    assert stats.rate(ties, *RATIO) == stats.wilson(10, 20)


def test_rate_of_single_trials_is_wilson_and_of_several_the_bootstrap():
    single = counts(*((f"p{i}", i % 4 == 0, 1) for i in range(20)))
    assert stats.rate(single, *RATIO) == stats.wilson(5, 20)
    several = random_counts(20, 1)
    assert stats.rate(several, *RATIO) == stats.bootstrap(several, RATIO)


def test_paired_bootstrap_uses_shared_prompts_and_their_correlation():
    left = random_counts(40, 1)
    right = left.assign(hits=(left["hits"] - 1).clip(lower=0))
    extra = pd.concat([right, counts(("elsewhere", 100, 100))])
    paired = stats.paired_bootstrap(left, extra, RATIO)
    assert paired["n"] == 40
    expected = (left["hits"].sum() - right["hits"].sum()) / left["trials"].sum()
    assert paired["value"] == pytest.approx(expected)
    alone = stats.bootstrap(left, RATIO)
    assert paired["high"] - paired["low"] < alone["high"] - alone["low"]


@settings(deadline=None, max_examples=25)
@given(many_counts, st.integers(0, 99))
def test_row_order_does_not_matter(frame, seed):
    shuffled = frame.sample(frac=1, random_state=seed)
    found, again = (stats.bootstrap(f, RATIO, resamples=50) for f in (frame, shuffled))
    assert found == pytest.approx(again)


@settings(deadline=None, max_examples=25)
@given(many_counts, many_counts)
def test_swapping_a_pair_turns_the_sign(left, right):
    forth = stats.paired_bootstrap(left, right, RATIO, resamples=50)
    back = stats.paired_bootstrap(right, left, RATIO, resamples=50)
    assert forth["value"] == pytest.approx(-back["value"])
    if forth["low"] is None:
        assert back["low"] is back["high"] is forth["high"] is None
    else:
        assert [forth["low"], forth["high"]] == pytest.approx([-back["high"], -back["low"]])


@settings(deadline=None, max_examples=25)
@given(many_counts)
def test_rates_stay_between_0_and_1(frame):
    found = stats.rate(frame, *RATIO, resamples=50)
    assert 0 <= found["low"] <= found["high"] <= 1
    assert 0 <= found["value"] <= 1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 3)), min_size=2))
def test_pooled_correlations_are_scipys(rows):
    frame = pd.DataFrame(rows, columns=["prompt_id", "x", "y"])
    cells = stats.contingency(frame, "x", "y")
    ours = {
        "spearman": stats.bootstrap(cells, stats.spearman, resamples=3)["value"],
        "kendall": stats.bootstrap(cells, stats.kendall, resamples=3)["value"],
    }
    if frame["x"].nunique() < 2 or frame["y"].nunique() < 2:
        assert ours == {"spearman": None, "kendall": None}
        return
    assert ours["spearman"] == pytest.approx(spearmanr(frame["x"], frame["y"]).statistic)
    assert ours["kendall"] == pytest.approx(kendalltau(frame["x"], frame["y"]).statistic)


def test_correlations_within_prompts_leave_the_undefined_out():
    rows = [("a", 5, 0), ("a", 3, -1), ("a", 3, -2), ("b", 1, 0), ("b", 1, -1), ("c", 2, 0)]
    rows += [("d", 1, 0), ("d", 2, -1), ("d", np.nan, -2)]
    frame = pd.DataFrame(rows, columns=["prompt_id", "score", "quality"])
    found = stats.correlations(frame, "score", "quality")
    assert found["items"].tolist() == [3, 2, 1, 2]
    assert found["spearman"].tolist() == pytest.approx(
        [np.sqrt(3) / 2, np.nan, np.nan, -1], nan_ok=True
    )
    assert found["kendall"].tolist() == pytest.approx(
        [np.sqrt(2 / 3), np.nan, np.nan, -1], nan_ok=True
    )


def test_require_keeps_rows_in_use_and_names_what_is_missing():
    table = pd.DataFrame({"id": ["a", "b"], "dropped": [None, "tie"]})
    assert stats.require(table, ["id"], "pairs")["id"].tolist() == ["a"]
    with pytest.raises(SrkitError, match=r"table of pairs lacks the column\(s\) chosen"):
        stats.require(table, ["id", "chosen"], "pairs")
    # a table whose rows were all dropped never got the other columns
    assert list(stats.require(table[1:], ["chosen"], "pairs").columns) == [
        "id",
        "dropped",
        "chosen",
    ]
    assert stats.require(pd.DataFrame(), ["id"], "pairs").columns.tolist() == ["id"]
