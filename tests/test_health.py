"""Judge health on judgements worked by hand, and the limits that warn or stop."""

import pandas as pd
import pytest

from srkit.config import SrkitError, resolve
from srkit.health import (
    check_health,
    health_table,
    health_warnings,
    judge_health,
    score_histogram,
)

# response -> three judgements; the letter before the dash is the prompt
HAND = {
    "p1-a": (5, 5, None),
    "p1-b": (3, 3, 3),
    "p1-c": (2, 4, None),
    "p2-a": (2, 2, 2),
    "p2-b": (4, 5, None),
    "p3-a": (5, 5, 5),
    "p3-b": (None, None, None),
    "p3-c": (5, None, None),
    "p4-a": (3, 3, 3),
    "p4-b": (1, 1, 1),
}


def judgements(case: dict) -> pd.DataFrame:
    rows = [
        {"response_id": r, "prompt_id": r.split("-")[0], "sample": k, "score": score}
        for r, scores in case.items()
        for k, score in enumerate(scores)
    ]
    return pd.DataFrame(rows).assign(truncated=False)


def test_judge_health_by_hand():
    health = judge_health(judgements(HAND))
    assert health["histogram"] == {"0": 0, "1": 3, "2": 4, "3": 6, "4": 2, "5": 7}
    assert (health["modal_score"], health["modal_share"]["value"]) == (5, pytest.approx(7 / 22))
    assert health["parse_rate"]["value"] == pytest.approx(22 / 30)
    assert health["mean_score"] == pytest.approx((3 + 8 + 18 + 8 + 35) / 22)
    # scored pairs: three of p1 (one tied), one of p2, one of p3 (tied), one of p4
    assert health["tie_rate"]["value"] == pytest.approx(2 / 6)
    assert (health["responses"], health["scored"]) == (10, 9)
    assert health["flat_rate"]["value"] == pytest.approx(1 / 4)  # p3 of the four prompts
    assert health["truncated"]["value"] == 0


def test_health_of_a_judge_that_never_parses():
    health = judge_health(judgements(HAND).assign(score=None))
    assert health["parse_rate"]["value"] == 0
    assert (health["modal_score"], health["mean_score"], health["scored"]) == (None, None, 0)
    assert judge_health(pd.DataFrame())["judgements"] == 0


def test_score_histogram_counts_what_did_not_parse():
    table = score_histogram({"M1": judgements(HAND)}).set_index("score")
    assert table["count"].to_dict() == {
        "0": 0,
        "1": 3,
        "2": 4,
        "3": 6,
        "4": 2,
        "5": 7,
        "no score": 8,
    }
    assert table["share"].sum() == pytest.approx(1)
    assert table["parse_rate"].iloc[0] == pytest.approx(22 / 30)


def test_a_healthy_judge_has_no_warnings_and_each_limit_has_its_own():
    settings = resolve("paper").judge
    assert health_warnings(judge_health(judgements(HAND)), settings) == []
    same = judgements({f"p{i}-{r}": (4, 4, 4) for i in range(4) for r in "ab"})
    modal, flat = health_warnings(judge_health(same), settings)
    assert "100% of its scores are the same" in modal
    assert "100% of the prompts" in flat
    (unparsed,) = health_warnings(judge_health(judgements(HAND).assign(score=None)), settings)
    assert "only 0% of its judgements end with a score" in unparsed


def test_the_loop_stops_where_the_settings_say_so():
    same = judgements({f"p{i}-{r}": (4, 4, 4) for i in range(4) for r in "ab"})
    assert len(check_health(same, resolve("paper", "judge.when_unhealthy=warn"), "M1")) == 2
    with pytest.raises(SrkitError, match="The judge of M1 is unhealthy"):
        check_health(same, resolve("paper"), "M1")


def test_health_table_has_a_row_per_judge_with_intervals():
    table = health_table({"M1": judgements(HAND)}).set_index("name")
    assert table.loc["M1", "parse_rate"] == pytest.approx(22 / 30)
    assert table.loc["M1", "parse_rate_low"] < 22 / 30 < table.loc["M1", "parse_rate_high"]
