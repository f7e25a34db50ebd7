"""The numbers of the analyses against plain loops (`references/by_definition.py`), on random tables
with ties, missing scores and prompts of one response, and in cases whose answer is known."""

import itertools
import statistics

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references import by_definition as slow
from scipy.stats import kendalltau, norm, spearmanr
from scipy.stats import t as student
from statsmodels.stats.proportion import proportion_confint

from srkit import constraints, headtohead, health, length, stats
from srkit import reward_accuracy as ra

# few values, so that ties are common; thirds and tenths, so that rounding errors are, too
MARKS = st.sampled_from([None, 0, 1, 2, 3, 4, 5, 4.5, 0.1, 0.2, 0.3, 1 / 3, 2 / 3])
RESPONSE = st.tuples(st.integers(0, 3), st.lists(MARKS, max_size=3))
PROMPTS = st.lists(st.lists(RESPONSE, min_size=1, max_size=5), min_size=1, max_size=6)
SIDE = st.sampled_from(["left", "right", None])
COMPARISONS = st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=12)


def tables(prompts) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rankings and judgements of a judged table, shuffled: nothing may depend on the order."""
    rankings, judgements = [], []
    for p, prompt in enumerate(prompts):
        for r, (rank, marks) in enumerate(prompt):
            names = {"prompt_id": f"p{p}", "response": "x" * (r + 1)}
            rankings.append({"id": f"p{p}-{r}", "rank": rank, **names})
            judgements += [
                {"response_id": f"p{p}-{r}", "prompt_id": f"p{p}", "sample": k, "score": mark}
                for k, mark in enumerate(marks)
            ]
    frames = pd.DataFrame(rankings), pd.DataFrame(judgements).assign(truncated=False)
    return tuple(frame.sample(frac=1, random_state=3) for frame in frames)


def measured(prompts) -> dict[str, float]:
    rankings, judgements = tables(prompts)
    table = ra.accuracy_table(rankings, {"M": judgements}, resamples=5)
    return table[table["model"] == "M"].set_index("metric")["value"].to_dict()


def by_definition(prompts) -> dict[str, float]:
    return {name: metric(prompts) for name, metric in slow.REWARD_METRICS.items()}


def same(found: dict, expected: dict) -> None:
    assert {name: found[name] for name in expected} == pytest.approx(
        {name: np.nan if value is None else value for name, value in expected.items()},
        nan_ok=True,
        abs=1e-9,
    )


# --- reward metrics ------------------------------------------------------------------------------


@settings(max_examples=40)
@given(PROMPTS)
def test_reward_metrics_are_their_definitions(prompts):
    same(measured(prompts), by_definition(prompts))


@settings(max_examples=8)
@given(PROMPTS, PROMPTS)
def test_a_paired_difference_is_the_difference_of_the_two(ours, theirs):
    # the same rankings for both: the second judge's marks are laid over the first's responses
    marks = itertools.cycle([marks for prompt in theirs for _, marks in prompt])
    other = [[(rank, next(marks)) for rank, _ in prompt] for prompt in ours]
    rankings, mine = tables(ours)
    found = ra.paired_differences(rankings, {"A": mine, "B": tables(other)[1]}, resamples=5)
    a, b = by_definition(ours), by_definition(other)
    expected = {n: None if None in (a[n], b[n]) else b[n] - a[n] for n in a}
    same(found.set_index("metric")["value"].to_dict(), expected)


@settings(max_examples=60)
@given(PROMPTS)
def test_correlations_within_a_prompt_are_scipys(prompts):
    for prompt in prompts:
        points = slow.scored_points(prompt)
        defined = points and all(len(set(side)) > 1 for side in zip(*points, strict=True))
        if not defined or slow.kendall(points) is None:
            continue
        x, y = zip(*points, strict=True)
        rounded = [round(value, 9) for value in y]
        assert slow.spearman(points) == pytest.approx(spearmanr(x, rounded).statistic)
        assert slow.kendall(points) == pytest.approx(kendalltau(x, rounded).statistic)


def test_a_rounding_error_is_a_tie_in_every_measure():
    prompts = [[(0, [0.1, 0.2]), (1, [0.3, 0.0])]]  # 0.1 + 0.2 > 0.3 + 0.0 by 5e-17
    found = measured(prompts)
    assert found["tie_rate"] == 1
    assert np.isnan(found["kendall"])
    assert np.isnan(found["spearman"])
    assert np.isnan(found["kendall_pooled"])
    assert health.judge_health(tables(prompts)[1])["flat_rate"]["value"] == 1


@settings(max_examples=8)
@given(PROMPTS, st.randoms(use_true_random=False))
def test_no_order_matters(prompts, random):
    mixed = [random.sample(prompt, len(prompt)) for prompt in random.sample(prompts, len(prompts))]
    mixed = [[(rank, random.sample(marks, len(marks))) for rank, marks in p] for p in mixed]
    same(measured(mixed), by_definition(prompts))


@settings(max_examples=8)
@given(PROMPTS)
def test_orders_do_not_see_the_scale_of_the_scores(prompts):
    single = [[(rank, marks[:1]) for rank, marks in prompt] for prompt in prompts]
    squeezed = [
        [(rank, [None if m is None else 1 + m**3 / 50 for m in marks]) for rank, marks in prompt]
        for prompt in single
    ]
    found, expected = measured(squeezed), measured(single)
    scale_free = [name for name in expected if not name.startswith("five_best")]
    same(found, {name: expected[name] for name in scale_free})


@settings(max_examples=8)
@given(PROMPTS)
def test_values_intervals_and_counts_stay_in_bounds(prompts):
    rankings, judgements = tables(prompts)
    table = ra.accuracy_table(rankings, {"M": judgements}, resamples=20)
    least = table["metric"].str.contains("spearman|kendall").map({True: -1.0, False: 0.0})
    known = table["value"].notna()
    for column in ("value", "low", "high"):
        inside = (table[column] >= least - 1e-12) & (table[column] <= 1 + 1e-12)
        assert (inside | table[column].isna()).all()
    assert (table["n"][known] > 0).all()
    assert (table["left_out"] >= 0).all()
    assert (table["prompts"] <= len(prompts)).all()
    assert (table["low"].isna() | (table["low"] <= table["high"])).all()


def case(*ranked_scores: tuple[float | None, ...], copies: int = 8) -> list:
    """Prompts whose responses are ranked as they stand, judged once each."""
    return [[(rank, [s]) for rank, s in enumerate(scores)] for scores in ranked_scores] * copies


@pytest.mark.parametrize(
    ("prompts", "accuracy", "exact", "kendall", "tie_rate"),
    [
        (case((5, 3, 1), (4, 2)), 1, 1, 1, 0),  # perfect
        (case((1, 3, 5), (2, 4)), 0, 0, -1, 0),  # reversed
        (case((3, 3, 3), (1, 1)), np.nan, 0, np.nan, 1),  # one score for everything
        (case((None, None), (None, None)), np.nan, 0, np.nan, np.nan),  # nothing parsed
        (case((5, 3, 1), copies=1), 1, 1, 1, 0),  # one prompt
        (case((5,), (3,)), np.nan, np.nan, np.nan, np.nan),  # prompts of one response
    ],
)
def test_degenerate_judges_are_called_what_they_are(prompts, accuracy, exact, kendall, tie_rate):
    rankings, judgements = tables(prompts)
    table = ra.accuracy_table(rankings, {"M": judgements}, resamples=50)
    table = table[table["model"] == "M"].set_index("metric")
    names = ["pairwise_accuracy", "exact_match", "kendall", "tie_rate"]
    expected = [accuracy, exact, kendall, tie_rate]
    assert table.loc[names, "value"].tolist() == pytest.approx(expected, nan_ok=True)
    # nothing here varies between prompts: no interval may claim certainty
    assert not (table["high"] - table["low"] <= 1e-9).any()


# --- judge health, lengths, constraints ----------------------------------------------------------


@settings(max_examples=25)
@given(PROMPTS)
def test_judge_health_is_its_definition(prompts):
    found = health.judge_health(tables(prompts)[1])
    marks = [m for prompt in prompts for _, marks in prompt for m in marks]
    parsed = [m for m in marks if m is not None]
    rates = {
        "parse_rate": slow.parse_rate(prompts),
        "tie_rate": slow.all_pairs_tie_rate(prompts),
        "flat_rate": slow.flat_rate(prompts),
    }
    assert {name: found[name]["value"] for name in rates} == pytest.approx(rates)
    assert (found["judgements"], found["parsed"]) == (len(marks), len(parsed))
    assert found["mean_score"] == pytest.approx(slow.mean(parsed))
    whole = [int(m + 0.5) for m in parsed]
    assert found["histogram"] == {str(level): whole.count(level) for level in range(6)}
    share = max(map(whole.count, whole)) / len(whole) if whole else None
    assert found["modal_share"]["value"] == pytest.approx(share)


@settings(max_examples=15)
@given(st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9)), min_size=2, max_size=9))
def test_lengths_of_pairs_are_their_definitions(texts):
    frame = pd.DataFrame(texts, columns=["chosen", "rejected"])
    frame = frame.assign(id=[f"p{i}" for i in frame.index], chosen_tokens=1, rejected_tokens=2)
    table = length.chosen_against_rejected({"x": frame}, resamples=5).set_index(
        ["unit", "quantity"]
    )
    value = table["value"]
    for unit, measure in (("characters", len), ("words", lambda text: len(text.split()))):
        sides = [[measure(text) for text in side] for side in zip(*texts, strict=True)]
        gaps = [a - b for a, b in zip(*sides, strict=True)]
        longer = [0.5 if gap == 0 else float(gap > 0) for gap in gaps]
        assert value[unit, "chosen"] == pytest.approx(statistics.mean(sides[0]))
        assert value[unit, "rejected"] == pytest.approx(statistics.mean(sides[1]))
        assert value[unit, "difference"] == pytest.approx(statistics.mean(gaps))
        assert value[unit, "longer_chosen"] == pytest.approx(statistics.mean(longer))


@settings(max_examples=20)
@given(PROMPTS)
def test_score_follows_length_is_spearman_within_prompts(prompts):
    rankings, judgements = tables(prompts)
    candidates = rankings.rename(columns={"response": "text"})
    found = length.score_follows_length({"x": candidates}, {"x": judgements}, resamples=5).iloc[0]
    points = [
        [(r + 1, slow.score(marks)) for r, (_, marks) in enumerate(prompt)] for prompt in prompts
    ]
    known = [[point for point in prompt if point[1] is not None] for prompt in points]
    each = [value for value in map(slow.spearman, known) if value is not None]
    same(found.to_dict(), {"value": slow.mean(each), "n": len(each)})
    assert found["left_out"] == len(prompts) - len(each)


@settings(max_examples=15)
@given(st.lists(st.tuples(st.text("ab1 ", max_size=9), st.integers(0, 3)), min_size=1, max_size=9))
def test_constraint_pass_rates_are_counts(answers):
    rows = [
        {
            "prompt_id": f"p{i}",
            "text": text,
            "constraints": [
                {"kind": "max_words", "value": words},
                {"kind": "include", "value": ["a"]},
            ],
        }
        for i, (text, words) in enumerate(answers)
    ]
    table = constraints.pass_rates({"M": pd.DataFrame(rows)}, resamples=5).set_index("kind")[
        "value"
    ]
    short = [bool(text.split()) and len(text.split()) <= words for text, words in answers]
    named = ["a" in text.split() for text, _ in answers]
    both = [a and b for a, b in zip(short, named, strict=True)]
    assert table["max_words"] == pytest.approx(statistics.mean(map(float, short)))
    assert table["include"] == pytest.approx(statistics.mean(map(float, named)))
    assert table[constraints.EVERY] == pytest.approx(statistics.mean(map(float, both)))


# --- comparisons ---------------------------------------------------------------------------------


def comparisons(cases, left: str = "M2", right: str = "M1") -> pd.DataFrame:
    rows = [
        {"prompt_id": f"p{i}", "left": left, "right": right, "first": first, "preferred": preferred}
        for i, both in enumerate(cases)
        for first, preferred in zip(("left", "right"), both, strict=True)
    ]
    frame = pd.DataFrame(rows).assign(referee="M0", log_odds_left=0.0)
    return frame.sample(frac=1, random_state=1)


@settings(max_examples=25)
@given(COMPARISONS)
def test_win_rates_are_their_definitions(cases):
    row = headtohead.head_to_head(comparisons(cases), resamples=20).iloc[0]
    outcomes = [slow.verdict(*both) for both in cases]
    assert row[["wins", "ties", "losses"]].tolist() == [outcomes.count(x) for x in (1, 0, -1)]
    expected = {
        "win_rate": slow.win_rate(cases),
        "position_consistency": slow.position_consistency(cases),
        "first_preferred": slow.first_preferred(cases),
    }
    same(row.to_dict(), expected)
    assert not row["win_rate_high"] - row["win_rate_low"] <= 0


# --- intervals -----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, 2 * n), st.just(n))))
def test_wilson_is_what_it_inverts_and_statsmodels(counts):
    successes, n = counts[0] / 2, counts[1]  # ties count half
    found = stats.wilson(successes, n)
    ours = [found["low"], found["high"]]
    assert ours == pytest.approx(slow.wilson(successes, n), abs=1e-9)
    assert ours == pytest.approx(proportion_confint(successes, n, method="wilson"), abs=1e-12)
    assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1


@settings(max_examples=10)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(1, 4)), min_size=4, max_size=5, unique=True
    ).filter(lambda rows: len({hits / trials for hits, trials in rows}) > 1)
)
def test_the_bootstrap_is_the_distribution_of_all_resamples(clusters):
    def ratio(drawn):
        return sum(hits for hits, _ in drawn) / sum(trials for _, trials in drawn)

    exact = slow.all_resamples(clusters, ratio)
    frame = pd.DataFrame(clusters, columns=["hits", "trials"], dtype=float)
    frame["prompt_id"] = [f"p{i}" for i in frame.index]
    found = stats.bootstrap(frame, ("hits", "trials"), resamples=20_000)
    n = len(clusters)
    tail = norm.cdf(-np.sqrt(n / (n - 1)) * student.ppf(0.975, n - 1))
    # the values of so few clusters are steps: within a half per cent of all resamples
    for end, share in (("low", tail), ("high", 1 - tail)):
        least, most = np.quantile(exact, np.clip([share - 0.005, share + 0.005], 0, 1))
        assert least - 1e-9 <= found[end] <= most + 1e-9


def covered(interval: dict, truth: float) -> bool:
    return interval["low"] is not None and interval["low"] <= truth <= interval["high"]


@pytest.mark.parametrize("prompts", [8, 40])
def test_intervals_hold_the_truth_as_often_as_they_say(prompts):
    """Simulated prompts of unequal difficulty, several trials each: 95 % means 95 %."""
    rng = np.random.default_rng(0)
    trials, studies = 3, 200
    hits = {"by prompt": 0, "by row": 0, "paired": 0}
    for _ in range(studies):
        easy = rng.beta(1.2, 0.8, prompts)  # mean 0.6, and prompts differ widely
        left, right = (
            pd.DataFrame(
                {
                    "prompt_id": np.arange(prompts),
                    "hits": rng.binomial(trials, easy * scale).astype(float),
                    "trials": float(trials),
                }
            )
            for scale in (1.0, 0.8)
        )
        by_row = stats.wilson(left["hits"].sum(), prompts * trials)
        paired = stats.paired_bootstrap(left, right, ("hits", "trials"), resamples=400)
        hits["by prompt"] += covered(stats.rate(left, "hits", "trials", resamples=400), 0.6)
        hits["by row"] += covered(by_row, 0.6)
        hits["paired"] += covered(paired, 0.6 * 0.2)
    share = {name: count / studies for name, count in hits.items()}
    assert 0.90 <= share["by prompt"] <= 0.985, share
    assert 0.90 <= share["paired"] <= 0.985, share
    assert share["by row"] < 0.90, "rows of a prompt are not independent: this is why"


def test_win_rate_intervals_hold_the_truth():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        won = pd.DataFrame({"won": rng.choice([1, 0.5, 0], size=32, p=[0.35, 0.45, 0.2]), "one": 1})
        found = stats.rate(won.assign(prompt_id=won.index), "won", "one", resamples=200)
        hits += covered(found, 0.35 + 0.45 / 2)
    assert 0.90 <= hits / 200 <= 0.985
