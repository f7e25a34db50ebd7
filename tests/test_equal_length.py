"""Length held equal: partial correlations against a regression, matched pairs by hand."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from srkit import equal_length


def ranked(lengths: list[list[int]], scores: list[list[float]]) -> tuple[pd.DataFrame, ...]:
    """Rankings (best first) and judgements, from lengths and scores per prompt."""
    rows = [
        (f"p{p}-{i}", f"p{p}", i, "x" * n, scores[p][i])
        for p, prompt in enumerate(lengths)
        for i, n in enumerate(prompt)
    ]
    table = pd.DataFrame(rows, columns=["id", "prompt_id", "rank", "response", "score"])
    judged = table.rename(columns={"id": "response_id"}).assign(sample=0, truncated=False)
    return table.drop(columns="score"), judged.sample(frac=1, random_state=0)


def values(table: pd.DataFrame) -> pd.Series:
    return table.set_index("quantity")["value"]


def test_a_judge_of_length_alone_follows_length_and_nothing_else():
    lengths = [[3, 2, 1], [1, 3, 2], [5, 9, 7]]
    rankings, judged = ranked(lengths, lengths)
    found = values(equal_length.score_and_length(rankings, {"j": judged}, 50))
    assert found["score and length"] == pytest.approx(1)
    assert found["explained by length"] == pytest.approx(1)
    # centred ranks of length: 1,0,-1 and -1,1,0 twice; of quality: 1,0,-1; so (2 - 1 - 1) / 6
    assert found["quality and length"] == pytest.approx(0)
    assert found["score and quality"] == pytest.approx(0)


def test_by_hand_two_prompts():
    rankings, judged = ranked([[20, 10, 30], [10, 30, 20]], [[5, 3, 1], [4, 2, 2]])
    found = values(equal_length.score_and_length(rankings, {"j": judged}, 50))
    # centred ranks, score: 1,0,-1 and 1,-.5,-.5; length: 0,-1,1 and -1,1,0; quality: 1,0,-1 twice
    sl, ss, ll = (-1) + (-1.5), 2 + 1.5, 4
    sq, qq, lq = 2 + 1.5, 4, (-1) + (-1)
    assert found["score and length"] == pytest.approx(sl / np.sqrt(ss * ll))
    assert found["score and quality"] == pytest.approx(sq / np.sqrt(ss * qq))
    assert found["quality and length"] == pytest.approx(lq / 4)


def test_partial_correlation_and_share_are_those_of_a_regression():
    rng = np.random.default_rng(1)
    lengths = [list(rng.permutation(60)[:4] + 1) for _ in range(30)]
    scores = [list(rng.normal(size=4) + np.array(prompt) / 30) for prompt in lengths]
    rankings, judged = ranked(lengths, scores)
    found = values(equal_length.score_and_length(rankings, {"j": judged}, 5))
    table = rankings.merge(judged[["response_id", "score"]], left_on="id", right_on="response_id")
    table = table.assign(length=table["response"].str.len(), quality=-table["rank"])
    columns = ["score", "length", "quality"]
    ranks = table.groupby("prompt_id")[columns].rank()
    ranks = ranks - ranks.groupby(table["prompt_id"]).transform("mean")
    both = sm.OLS(ranks["score"], ranks[["length", "quality"]]).fit()
    assert found["explained by both"] == pytest.approx(both.rsquared)
    left = [sm.OLS(ranks[c], ranks[["quality"]]).fit().resid for c in ("score", "length")]
    partial = np.corrcoef(*left)[0, 1]
    assert found["score and length, quality equal"] == pytest.approx(partial)


def test_a_judge_that_is_always_right_owes_nothing_to_length_at_equal_quality():
    rankings, judged = ranked([[30, 20, 10], [30, 10, 20]], [[3, 2, 1], [3, 2, 1]])
    found = values(equal_length.score_and_length(rankings, {"j": judged}, 50))
    assert found["score and length"] > 0.5
    assert found["explained by quality"] == pytest.approx(1)
    assert np.isnan(found["score and length, quality equal"]), "nothing of the score is left"


def test_relative_difference():
    assert equal_length.relative_difference(90, 100) == pytest.approx(0.1)
    assert equal_length.relative_difference(0, 0) == 0
    assert equal_length.relative_difference(0, 7) == 1


def comparisons(*rows: tuple[str, str]) -> pd.DataFrame:
    """Two rows per prompt: who is preferred when left is first, and when right is."""
    table = [
        {"prompt_id": f"t{i}", "first": first, "preferred": preferred}
        for i, both in enumerate(rows)
        for first, preferred in zip(("left", "right"), both, strict=True)
    ]
    names = {"left": "M2", "right": "M1", "referee": "M0", "log_odds_left": 0.0}
    return pd.DataFrame(table).assign(**names)


def answers(*lengths: int) -> pd.DataFrame:
    rows = [{"prompt_id": f"t{i}", "text": "x" * n} for i, n in enumerate(lengths)]
    return pd.DataFrame(rows).sample(frac=1, random_state=2)


def test_win_rate_at_equal_length_by_hand():
    # the long answers win; of the two matched ones one loses and one ties
    rows = comparisons(("left", "left"), ("left", "left"), ("right", "right"), ("left", "right"))
    both = equal_length.win_rates(
        rows, {"M2": answers(200, 100, 100, 50), "M1": answers(50, 60, 95, 50)}, 50
    )
    table = both[both["quantity"] == "win rate"].set_index("within")
    assert table["value"].tolist() == pytest.approx([0.25, 0.25, 0.5, 0.625])
    assert table["n"].tolist() == [2, 2, 3, 4]
    assert (table["name"] == "M2").all()
    assert (table["against"] == "M1").all()


def test_leaning_decides_where_the_orders_disagree():
    rows = comparisons(("left", "right"), ("left", "right"), ("right", "left"))
    # the places cancel: 3 - 1, -4 + 1, 2 - 2
    rows["log_odds_left"] = [3.0, -1.0, 1.0, -4.0, -2.0, 2.0]
    table = equal_length.win_rates(
        rows, {"M2": answers(10, 10, 10), "M1": answers(10, 10, 10)}, 50
    ).query("within == 1")
    assert table.set_index("quantity")["value"].to_dict() == {"win rate": 0.5, "leaning": 0.5}
    found = equal_length.preferences(
        pd.DataFrame({"verdict": ["tie", "tie", "tie"], "log_odds_left": [2.0, -3.0, np.nan]})
    )
    assert found["leaning"].tolist()[:2] == [1, 0]
    assert np.isnan(found["leaning"][2]), "an order without log-odds says nothing"


def test_accuracy_at_equal_length_by_hand():
    # p0: right, wrong and tied pairs; only the tied two are of one length
    rankings, judged = ranked([[10, 100, 100]], [[3, 2, 2]])
    table = equal_length.pairwise_accuracy(rankings, {"j": judged}, 50).set_index("within")
    assert table["value"].tolist() == pytest.approx([0.5, 0.5, 0.5, 2.5 / 3])
    assert table["pairs"].tolist() == [1, 1, 1, 3]
    unscored = judged.assign(score=[None] * 3)
    assert (equal_length.pairwise_accuracy(rankings, {"j": unscored}, 5)["pairs"] == 0).all()


def test_score_gap_at_equal_length_by_hand():
    pairs = pd.DataFrame(
        {
            "id": ["a", "b", "c"],
            "chosen": ["x" * 10, "x" * 10, "x"],
            "rejected": ["x" * 9, "x" * 2, "x"],
            "chosen_score": [3.0, 5.0, 9.0],
            "rejected_score": [2.0, 0.0, 0.0],
            "dropped": [None, None, "tie"],
        }
    )
    table = equal_length.score_gaps({"iter-1": pairs}, 50).set_index("within")
    assert table["value"].tolist() == pytest.approx([1, 1, 1, 3])
    assert table["pairs"].tolist() == [1, 1, 1, 2]


def test_nothing_to_compare_gives_rows_without_values():
    rankings, judged = ranked([[1, 2]], [[1, 2]])
    nothing = judged.iloc[:0]
    table = equal_length.score_and_length(rankings, {"j": nothing}, 5)
    assert table["value"].isna().all()
    assert (table["n"] == 0).all()
    assert (equal_length.score_gaps({"iter-1": pd.DataFrame()}, 5)["pairs"] == 0).all()
    assert equal_length.win_rates(pd.DataFrame(), {}, 5).empty
