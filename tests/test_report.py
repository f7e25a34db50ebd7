"""The report: sentences follow from intervals, and text of models cannot become markup."""

import pandas as pd
import pytest

from srkit import report

HOSTILE = '<script>alert(1)</script><img src=x onerror="a()">\x1b[31m\u202e&amp;'


def test_tables_escape_their_cells_whatever_they_hold():
    page = report._table(
        pd.DataFrame({"model": [HOSTILE], "value": [0.123456], "all": [[HOSTILE]]})
    )
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    assert "0.123" in page


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0.51, 0.70, "above chance"),
        (0.30, 0.49, "below chance"),
        (0.45, 0.70, "not told from chance"),
    ],
)
def test_a_judge_is_called_better_only_where_its_interval_says_so(low, high, told):
    rows = [
        {"model": "M1", "metric": "pairwise_accuracy", "value": 0.6, "low": low, "high": high},
        {"model": "M1", "metric": "parse_rate", "value": 0.9, "low": 0.8, "high": 1.0},
    ]
    (sentence,) = report._judging(pd.DataFrame(rows).assign(n=100))
    assert sentence.endswith(f"{told}. 90 % of its judgements parse.")
    assert "60.0 % [" in sentence


def test_no_difference_is_called_no_difference():
    row = {"model": "M2", "reference": "M1", "metric": "pairwise_accuracy", "value": 0.031}
    table = pd.DataFrame([row | {"low": -0.01, "high": 0.07, "prompts": 40}])
    (sentence,) = report._changes(table)
    assert sentence == (
        "Judging, M2 against M1: +3.1 points [-1.0, +7.0], 40 prompts: no difference shown."
    )


def test_an_undefined_rate_is_called_undefined():
    assert report._rate({"value": None, "n": 0}) == "(undefined, n = 0)"
