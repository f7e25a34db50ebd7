"""Calibration and agreement of judges, on cases worked by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar

from srkit import calibration


def tables(scores: dict[str, list]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rankings and judgements of prompts with the given scores, best response first."""
    ranked, judged = [], []
    for prompt, values in scores.items():
        for rank, score in enumerate(values):
            name = f"{prompt}-{rank}"
            ranked.append({"id": name, "prompt_id": prompt, "rank": rank, "response": "x"})
            judged.append({"response_id": name, "prompt_id": prompt, "sample": 0, "score": score})
    return pd.DataFrame(ranked), pd.DataFrame(judged).assign(truncated=False)


def test_pairs_with_a_gap_by_hand():
    pairs = calibration.decided_pairs(*tables({"p": [4, 1, 1], "q": [2, 3], "r": [5, None]}))
    assert pairs["prompt_id"].tolist() == ["p", "p", "q"], "a tie and a missing score are no pair"
    assert pairs["gap"].tolist() == [3, 3, -1]


def test_shares_rise_with_the_gap_where_a_judge_means_it():
    # gaps 1 (right, wrong), 2 (right, wrong), 3 and 4 and 5 (always right), of a prompt each
    gaps = [1, -1, 2, -2, 3, 3, 4, 4, 5, 5]
    rankings, judged = tables({f"p{i}": [10 + gap, 10] for i, gap in enumerate(gaps)})
    found = calibration.bins(rankings, {"M1": judged}, resamples=50)
    assert found["part"].tolist() == [1, 2, 3, 4, 5]
    assert found["value"].tolist() == [0.5, 0.5, 1, 1, 1]
    assert (
        found["gap"].tolist() == found["from"].tolist() == found["to"].tolist() == [1, 2, 3, 4, 5]
    )
    assert found["n"].tolist() == found["prompts"].tolist() == [2] * 5
    assert (found["low"] < 1).all(), "two prompts are no certainty"


def test_parts_hold_equally_many_pairs_and_equal_gaps_stay_together():
    rankings, judged = tables({f"p{i}": [i + 1, 0] for i in range(20)})
    assert calibration.bins(rankings, {"M": judged}, resamples=5)["n"].tolist() == [4] * 5
    rankings, judged = tables({f"p{i}": [1, 0] for i in range(9)})
    one = calibration.bins(rankings, {"M": judged}, resamples=5)
    assert one[["part", "n", "value"]].to_numpy().tolist() == [[1, 9, 1]]


def test_the_slope_is_that_of_a_fit_by_hand():
    gaps = np.array([1.0, -1, 2, 2, -0.5, 3, 1, -2])
    rankings, judged = tables({f"p{i}": [10 + gap, 10] for i, gap in enumerate(gaps)})
    (row,) = calibration.slopes(rankings, {"M": judged}).to_dict("records")
    sd = np.sqrt((gaps**2).mean())

    def loss(slope):
        prior = np.logaddexp(0, slope) / 2 + np.logaddexp(0, -slope) / 2
        return np.logaddexp(0, -slope * gaps / sd).sum() + prior

    assert row["value"] == pytest.approx(minimize_scalar(loss).x, abs=1e-4)
    assert row["low"] < row["value"] < row["high"]
    assert (row["sd"], row["n"], row["prompts"]) == (pytest.approx(sd), 8, 8)


def test_the_slope_of_turned_scores_is_the_negative():
    scores = {f"p{i}": [float(i % 5), float(i * 7 % 11)] for i in range(12)}
    rankings, judged = tables(scores)
    turned = judged.assign(score=-judged["score"])
    forth, back = calibration.slopes(rankings, {"a": judged, "b": turned})["value"]
    assert forth == pytest.approx(-back)


def test_agreement_by_hand():
    # p: alike but for one pair of three (b over c); q: turned round; r: the other is constant
    rankings, one = tables({"p": [3, 2, 1], "q": [2, 1], "r": [1, 2]})
    other = tables({"p": [3, 1, 2], "q": [1, 2], "r": [4, 4]})[1]
    found = calibration.agreement({"M2": one, "M1": other}, [("M2", "M1")], rankings, 50)
    tau, alike = found.to_dict("records")
    assert tau["measure"] == "kendall"
    assert tau["value"] == pytest.approx((1 / 3 - 1) / 2)
    assert (tau["n"], tau["prompts"]) == (2, 2)
    assert alike["value"] == pytest.approx(2 / 4)
    assert (alike["n"], alike["unit"], alike["prompts"]) == (4, "pairs", 2)


def test_a_judge_agrees_with_itself():
    rankings, one = tables({f"p{i}": [i, 1, 7] for i in range(2, 6)})
    found = calibration.agreement({"a": one, "b": one}, [("a", "b")], rankings, 20)
    assert found["value"].tolist() == [1, 1]


def test_nothing_to_measure_gives_no_numbers():
    rankings, judged = tables({"p": [None, None]})
    assert calibration.bins(rankings, {"M": judged}).empty
    slope = calibration.slopes(rankings, {"M": judged})
    assert slope["value"].isna().all()
    assert slope["n"].tolist() == [0]
    found = calibration.agreement({"M": judged, "N": judged}, [("M", "N")], rankings, 5)
    assert found["value"].isna().all()
