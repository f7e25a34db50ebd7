"""Agreement with human rankings on a case worked by hand, and its symmetries."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from srkit import reward_accuracy as ra
from srkit.config import SrkitError

# prompt -> response -> human rank, three judgements, text
HAND = {
    "p1": {"a": (0, (5, 5, None), "x" * 9), "b": (1, (3, 3, 3), "xx"), "c": (2, (2, 4, None), "x")},
    "p2": {"a": (0, (2, 2, 2), "x"), "b": (1, (4, 5, None), "xxxx")},
    "p3": {"a": (0, (5, 5, 5), "xx"), "b": (1, (None,) * 3, "xx"), "c": (1, (5, None, None), "x")},
    "p4": {"a": (0, (3, 3, 3), "xx"), "b": (1, (1, 1, 1), "x")},
}


def tables(case: dict) -> tuple[pd.DataFrame, pd.DataFrame]:
    rankings, judgements = [], []
    for prompt, responses in case.items():
        for letter, (rank, scores, text) in responses.items():
            name = f"{prompt}-{letter}"
            rankings.append({"id": name, "prompt_id": prompt, "rank": rank, "response": text})
            judgements += [
                {"response_id": name, "prompt_id": prompt, "sample": k, "score": score}
                for k, score in enumerate(scores)
            ]
    return pd.DataFrame(rankings), pd.DataFrame(judgements).assign(truncated=False)


@pytest.fixture(scope="module")
def hand() -> pd.DataFrame:
    rankings, judgements = tables(HAND)
    table = ra.accuracy_table(rankings, {"M1": judgements}, resamples=200)
    return table.set_index(["model", "metric"])


# Ordered pairs: p1 ab right, ac right, bc tied (3 and 3); p2 ab wrong; p3 ab unscored, ac tied,
# bc none (equal human rank); p4 ab right.
@pytest.mark.parametrize(
    ("metric", "value", "n", "left_out", "chance"),
    [
        ("pairwise_accuracy", 3 / 4, 4, 3, 0.5),
        ("pairwise_accuracy_ties_half", 4 / 6, 6, 1, 0.5),
        ("pairwise_accuracy_ties_wrong", 3 / 6, 6, 1, 0.5),
        ("tie_rate", 2 / 6, 6, 1, np.nan),
        ("parse_rate", 22 / 30, 30, 0, np.nan),
        ("five_best", 2 / 3, 3, 0, 0.4),  # p1-a and p3-a are best, p3-c is not
        ("five_best_rounded", 2 / 4, 4, 0, 0.4),  # and p2-b, at 4.5
        ("exact_match", 1 / 4, 4, 0, (1 / 6 + 1 / 2 + 1 / 3 + 1 / 2) / 4),
        ("spearman", (np.sqrt(3) / 2 - 1 + 1) / 3, 3, 1, 0),  # p3 is constant
        ("kendall", (np.sqrt(2 / 3) - 1 + 1) / 3, 3, 1, 0),
    ],
)
def test_metrics_by_hand(hand, metric, value, n, left_out, chance):
    row = hand.loc[("M1", metric)]
    assert row["value"] == pytest.approx(value)
    assert (row["n"], row["left_out"]) == (n, left_out)
    assert row["chance"] == pytest.approx(chance, nan_ok=True)
    assert row["low"] <= row["value"] <= row["high"]


def test_pooled_correlations_by_scipy(hand):
    score = [5, 3, 3, 2, 4.5, 5, 5, 3, 1]
    quality = [0, -1, -2, 0, -1, 0, -1, 0, -1]
    found = hand.loc["M1"]
    assert found.loc["spearman_pooled", "value"] == pytest.approx(spearmanr(score, quality)[0])
    assert found.loc["kendall_pooled", "value"] == pytest.approx(kendalltau(score, quality)[0])
    assert found.loc["spearman_pooled", ["n", "left_out", "prompts"]].tolist() == [9, 1, 4]


def test_length_alone_is_a_judge_without_perfect_scores(hand):
    # longer is better: p1 ab, ac, bc right; p2 wrong; p3 ab tied, ac right; p4 right
    found = hand.loc[ra.LENGTH_ALONE]
    assert found.loc["pairwise_accuracy", "value"] == pytest.approx(5 / 6)
    assert found.loc["tie_rate", "value"] == pytest.approx(1 / 7)
    assert found.loc["five_best", "n"] == 0
    assert np.isnan(found.loc["five_best", "value"])


def test_order_counts_not_equality_of_scores():
    # right order with scores far from any reference is right; equal scores are no agreement
    case = {
        "p": {"a": (0, (1,), "x"), "b": (1, (0,), "x")},
        "q": {"a": (0, (5,), ""), "b": (1, (5,), "")},
    }
    ledger = ra.per_prompt(ra.score_rankings(*tables(case)))
    assert ledger["right"].tolist() == [1, 0]
    assert ledger["tied"].tolist() == [0, 1]


def test_a_failure_is_missing_and_never_a_low_score():
    case = {"p": {"a": (0, (None,), "x"), "b": (1, (0,), "x")}}
    rankings, judgements = tables(case)
    scored = ra.score_rankings(rankings, judgements).set_index("id")["score"]
    assert np.isnan(scored["p-a"])
    assert scored["p-b"] == 0
    assert ra.ranked_pairs(ra.score_rankings(rankings, judgements))["outcome"].tolist() == [
        "unscored"
    ]


def test_the_mean_is_kept_as_a_fraction():
    judgements = tables({"p": {"a": (0, (4, 5, 4), "x")}})[1]
    assert ra.mean_scores(judgements)["score"].tolist() == pytest.approx([13 / 3])


def test_prompts_never_judged_do_not_count_as_wrong():
    rankings, judgements = tables(HAND)
    part = judgements[judgements["prompt_id"] != "p1"]
    table = ra.accuracy_table(rankings, {"M1": part}, resamples=10).set_index(["model", "metric"])
    assert table.loc[("M1", "exact_match"), ["value", "n", "left_out"]].tolist() == [1 / 3, 3, 1]
    assert table.loc[("M1", "pairwise_accuracy"), "n"] == 2


def test_judgements_of_other_responses_are_refused():
    rankings, judgements = tables(HAND)
    with pytest.raises(SrkitError, match="not in the rankings, the first is 'p1-a'"):
        ra.score_rankings(rankings[rankings["prompt_id"] != "p1"], judgements)


def test_paired_differences_by_hand():
    rankings, judgements = tables(HAND)
    better = judgements.assign(
        score=judgements["response_id"].map(lambda name: {"a": 5, "b": 3, "c": 1}[name[-1]])
    )
    found = ra.paired_differences(rankings, {"M1": judgements, "M2": better}, resamples=100)
    assert set(zip(found["model"], found["reference"], strict=True)) == {("M2", "M1")}
    found = found.set_index("metric")
    assert found.loc["pairwise_accuracy", "value"] == pytest.approx(1 - 3 / 4)
    assert found.loc["exact_match", "value"] == pytest.approx(1 - 1 / 4)
    assert found.loc["tie_rate", "value"] == pytest.approx(-2 / 6)
    assert found.loc["parse_rate", "prompts"] == 4
    with pytest.raises(SrkitError, match="No judgements of M9"):
        ra.paired_differences(rankings, {"M1": judgements}, [("M9", "M1")])


def test_empty_tables_give_rows_without_values():
    table = ra.accuracy_table(pd.DataFrame(), {"M1": pd.DataFrame()}, resamples=5)
    assert table["value"].isna().all()
    assert (table["n"] == 0).all()


def test_the_papers_table_stands_as_printed():
    assert ra.PAPER["pairwise_accuracy"].tolist() == [0.651, 0.787, 0.804, 0.817]
    assert list(ra.PAPER.index) == ["baseline", "M1", "M2", "M3"]


def random_case(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    case = {}
    for prompt in range(rng.integers(2, 6)):
        size = rng.integers(2, 5)
        scores = rng.integers(0, 6, (size, 2)).astype(object)
        scores[rng.random((size, 2)) < 0.2] = None
        ranks = rng.permutation(size)
        case[f"p{prompt}"] = {
            letter: (int(rank), tuple(row), "x" * int(rank + 1))
            for letter, rank, row in zip("abcd", ranks, scores, strict=False)
        }
    return case


def ledger_of(rankings: pd.DataFrame, judgements: pd.DataFrame) -> pd.Series:
    return ra.per_prompt(ra.score_rankings(rankings, judgements)).sum()


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000))
def test_turning_the_scores_turns_the_agreement(seed):
    rankings, judgements = tables(random_case(seed))
    judgements["score"] = pd.to_numeric(judgements["score"])
    forth = ledger_of(rankings, judgements)
    back = ledger_of(rankings, judgements.assign(score=5 - judgements["score"]))
    assert (forth["right"], forth["tied"]) == (back["wrong"], back["tied"])
    assert forth["kendall"] == pytest.approx(-back["kendall"])
    assert forth["spearman"] == pytest.approx(-back["spearman"])


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000))
def test_row_order_does_not_matter_and_values_are_in_bounds(seed):
    rankings, judgements = tables(random_case(seed))
    table = ra.accuracy_table(rankings, {"M": judgements}, resamples=10)
    mixed = [frame.sample(frac=1, random_state=seed) for frame in (rankings, judgements)]
    again = ra.accuracy_table(mixed[0], {"M": mixed[1]}, resamples=10)
    pd.testing.assert_frame_equal(table, again)
    value = table.set_index(["model", "metric"])["value"].dropna()
    assert value.between(-1, 1).all()
    three = [value.get(("M", f"pairwise_accuracy{end}")) for end in ("_ties_wrong", "_ties_half")]
    assert three[0] is None or three[0] <= three[1]


def test_pairs_are_those_of_itertools():
    rankings, judgements = tables(random_case(7))
    pairs = ra.ranked_pairs(ra.score_rankings(rankings, judgements))
    expected = sum(
        len(list(itertools.combinations(group, 2)))
        for _, group in rankings.groupby("prompt_id")["id"]
    )
    assert len(pairs) == expected


# --- plain rows ----------------------------------------------------------------------------------


def plain(case: dict) -> list[dict]:
    return [
        {"prompt_id": p, "response_id": f"{p}-{r}", "rank": rank, "scores": list(scores)}
        for p, responses in case.items()
        for r, (rank, scores, _) in responses.items()
    ]


def test_plain_rows_give_what_a_studys_tables_give(hand):
    found = ra.reward_metrics(plain(HAND), resamples=200).set_index("metric")
    expected = hand.loc["M1"][found.columns]
    pd.testing.assert_frame_equal(found, expected)


def test_a_prompt_worked_by_hand_under_the_three_conventions_for_ties():
    # pairs: ab tied, ac right, ad right, bc right, bd right, cd wrong; d has one lost judgement
    scores = {"a": [4.0], "b": [3, 5], "c": [1], "d": [2, None]}
    rows = [
        {"prompt_id": "toy", "response_id": name, "rank": rank, "scores": given}
        for rank, (name, given) in enumerate(scores.items())
    ]
    found = ra.reward_metrics(rows, resamples=10).set_index("metric")
    value, n = found["value"], found["n"]
    ends = ("", "_ties_half", "_ties_wrong")
    three = [f"pairwise_accuracy{end}" for end in ends]
    assert value[three].tolist() == pytest.approx([4 / 5, 4.5 / 6, 4 / 6])
    assert n[three].tolist() == [5, 6, 6]
    assert value[["tie_rate", "parse_rate"]].tolist() == pytest.approx([1 / 6, 5 / 6])
    assert value["exact_match"] == 0
    assert value["spearman"] == pytest.approx(spearmanr([4, 4, 1, 2], [0, -1, -2, -3])[0])
    assert value["kendall"] == pytest.approx((4 - 1) / np.sqrt(5 * 6))
    assert np.isnan(value["five_best"])
    assert found["prompts"].dropna().eq(1).sum() >= 8


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there are no rows"),
        ([{"prompt_id": "p", "response_id": "a", "rank": 0}], "1: no scores; it has 'prompt_id'"),
        ([3], "row 1: 3 is no mapping"),
        (plain(HAND) + plain(HAND)[:1], "row 11: the response_id 'p1-a' stands in row 1 already"),
        (plain({"p": {"a": ("1", (1,), "")}}), "row 1: rank is '1', no number"),
        (plain({"p": {"a": (0, ("4",), "")}}), "row 1: a score is '4', no number"),
        ([{**plain(HAND)[0], "scores": 4}], "row 1: scores is 4, not a list"),
    ],
)  # fmt: skip
def test_plain_rows_that_cannot_be_measured_say_why(rows, message):
    with pytest.raises(SrkitError, match=message):
        ra.reward_metrics(rows)
