"""What the switches did, worked out by hand."""

import pandas as pd
import pytest

from srkit.successors import MEASURES, SWITCHES, switches


def judged(**scores: list) -> pd.DataFrame:
    return pd.DataFrame([
        {"response_id": f"{p}{i}", "prompt_id": p, "sample": 0, "score": score,
         "truncated": False}
        for p, values in scores.items() for i, score in enumerate(values)
    ])  # fmt: skip


def comparison(prompt: str, first: str, preferred: str | None) -> dict:
    return {"referee": "M1", "left": "a", "right": "b", "prompt_id": prompt, "first": first,
            "preferred": preferred, "log_odds_left": 1.0}  # fmt: skip


PAIRS = pd.DataFrame([
    {"id": "p", "dropped": None, "rejected_id": "p#M0-1", "chosen_score": 4, "rejected_score": 1},
    {"id": "q", "dropped": None, "rejected_id": "q#0", "chosen_score": 4, "rejected_score": 1},
    {"id": "r", "dropped": "tie"},
])  # fmt: skip
JUDGE_PAIRS = pd.DataFrame([
    {"id": "p", "dropped": None, "rejected_id": "j", "chosen_score": 4, "rejected_score": 1},
    {"id": "q", "dropped": None, "rejected_id": "k", "chosen_score": 2, "rejected_score": 5},
    {"id": "r", "dropped": None, "rejected_id": "l", "chosen_score": 3, "rejected_score": 3},
    {"id": "s", "dropped": "judgements agree"},
])  # fmt: skip
TABLES = {
    "self-rewarding/iter-1": {"judgements": judged(p=[1, 2]), "pairs": PAIRS},
    "cream/iter-1": {
        "judgements": judged(p=[1, 2, 3], q=[1, 2]), "pairs": PAIRS,
        "judgements_before": judged(p=[1, 3, 2], q=[1, 2]),
    },
    "anchored/iter-1": {
        "judgements": judged(p=[1, 2]), "pairs": PAIRS,
        "anchors": pd.DataFrame({"id": ["p#M0-0", "p#M0-1", "q#M0-0"]}),
    },
    "meta-judge/iter-1": {
        "judgements": judged(p=[1, 2]), "pairs": PAIRS, "judge_pairs": JUDGE_PAIRS,
        "meta_judgements": pd.DataFrame([
            comparison("p", "left", "left"), comparison("p", "right", "right"),
            comparison("q", "left", "left"), comparison("q", "right", "left"),
            comparison("r", "left", None),
        ]),
    },
}  # fmt: skip


def test_measures_by_hand():
    table = switches(TABLES, resamples=100).set_index("measure")
    assert list(table.reset_index().columns) == [
        "measure",
        *(n for n in SWITCHES if n != "measure"),
    ]
    assert set(table.index) == set(MEASURES)
    # tau 1/3 and 1
    assert table.loc["consistency", "value"] == pytest.approx((2 / 3 + 1) / 2)
    found = {row.Index: (row.value, row.n) for row in table[1:].itertuples()}
    assert found == {
        "anchors rejected": (0.5, 2),
        "judge pairs": (0.75, 4),
        "first place preferred": (0.75, 2),
        "higher score chosen": (0.5, 2),  # r has equal scores
    }
    assert table["low"].le(table["value"]).all()
    assert set(table["name"]) == {"cream/iter-1", "anchored/iter-1", "meta-judge/iter-1"}


def test_arms_without_a_switch_have_no_rows_and_empty_tables_no_numbers():
    assert switches({"self-rewarding/iter-1": TABLES["self-rewarding/iter-1"]}).empty
    nothing = {**TABLES["meta-judge/iter-1"], "meta_judgements": pd.DataFrame()}
    nothing["judge_pairs"] = pd.DataFrame([{"id": "p", "dropped": "no judgement can be read"}])
    table = switches({"meta-judge/iter-1": nothing}, resamples=5).set_index("measure")
    assert table.loc["judge pairs", "value"] == 0
    assert table.loc[["first place preferred", "higher score chosen"], "n"].tolist() == [0, 0]
