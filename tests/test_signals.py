"""The loop's signals by hand, and iterations in which nothing went well."""

import pandas as pd
import pytest

from srkit import signals


def judgements(*scores: float | None) -> pd.DataFrame:
    """Two responses per prompt."""
    rows = [
        {"response_id": f"r{i}", "prompt_id": f"p{i // 2}", "score": score}
        for i, score in enumerate(scores)
    ]
    return pd.DataFrame(rows).assign(sample=0, truncated=False)


def pairs(*gaps: float | None) -> pd.DataFrame:
    rows = [
        {"id": f"p{i}", "dropped": "tie"}
        if gap is None
        else {"id": f"p{i}", "dropped": None, "chosen_score": 1 + gap, "rejected_score": 1.0}
        for i, gap in enumerate(gaps)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def table() -> pd.DataFrame:
    log = pd.DataFrame({"step": [1, 2], "logp_chosen": [-3.0, -2.0], "logp_rejected": [-4.0, -9.0]})
    return signals.loop_signals(
        {
            "iter-1": {
                "judgements": judgements(1, 3, 2, 2),
                "pairs": pairs(2, None, 1),
                "training": log,
            },
            "iter-2": {"judgements": judgements(5, 4, None, 4), "pairs": pairs(None, 1, 1)},
        },
        [{"name": "iter-1", "part": "candidates", "seconds": 12.5, "tokens": 400}],
        resamples=50,
    )


def value(table: pd.DataFrame, name: str, signal: str) -> list[float]:
    rows = table[(table["name"] == name) & (table["signal"] == signal)]
    return rows["value"].tolist()


def test_yield_scores_and_gap_by_hand(table):
    assert value(table, "iter-1", "pair yield") == pytest.approx([2 / 3])
    assert value(table, "iter-1", "gap") == pytest.approx([1.5])
    assert value(table, "iter-1", "score") == pytest.approx([2])
    assert value(table, "iter-2", "score") == pytest.approx([13 / 3])
    rows = table[table["signal"] == "gap"].set_index("name")
    assert rows.loc["iter-1", "n"] == 2
    assert (rows.loc["iter-1", "low"], rows.loc["iter-1", "high"]) == (1, 2)


def test_histograms_share_their_bins_and_count_every_score(table):
    rows = table[table["signal"] == "score histogram"]
    bins = {name: part["position"].tolist() for name, part in rows.groupby("name")}
    assert bins["iter-1"] == bins["iter-2"]
    assert bins["iter-1"][0] == 1, "from the least score to the largest"
    assert len(bins["iter-1"]) == signals.BINS
    assert rows.groupby("name")["value"].sum().tolist() == pytest.approx([1, 1])
    assert value(table, "iter-2", "score histogram")[-1] == pytest.approx(1 / 3)


def test_judge_health_is_that_of_the_health_table(table):
    rows = table[table["signal"] == "judge health"].set_index(["name", "part"])["value"]
    assert rows["iter-1", "parse_rate"] == 1
    assert rows["iter-1", "flat_rate"] == pytest.approx(0.5), "one prompt of two has equal scores"
    assert rows["iter-2", "parse_rate"] == pytest.approx(3 / 4)


def test_log_probabilities_are_the_trainers_and_costs_the_manifests(table):
    rows = table[table["signal"] == "log-probability"].set_index(["part", "position"])["value"]
    assert rows.to_dict() == {
        ("chosen", 1): -3,
        ("chosen", 2): -2,
        ("rejected", 1): -4,
        ("rejected", 2): -9,
    }
    cost = table[table["part"] == "candidates"].set_index("signal")["value"]
    assert cost.to_dict() == {"seconds": 12.5, "tokens": 400}


def test_kl_is_told_by_both_estimates_where_it_was_measured():
    drift = pd.DataFrame({"prompt_id": ["a", "b"], "start": "M1", "tokens": 3, "truncated": True})
    drift = drift.assign(logp_own=[-3.0, -4.0], logp_start=[-4.0, -7.0], k3=[1.5, 2.5])
    tables = {"judgements": judgements(1, 2), "pairs": pairs(1)}
    table = signals.loop_signals({"iter-1": {**tables, "drift": drift}, "iter-2": tables}, (), 50)
    rows = table[table["signal"] == "KL"]
    assert rows[["name", "part", "value", "n"]].to_numpy().tolist() == [
        ["iter-1", "log-ratio", 2, 2],
        ["iter-1", "k3", 2, 2],
    ]


def test_an_iteration_in_which_nothing_parsed_keeps_its_rows():
    table = signals.loop_signals(
        {"iter-1": {"judgements": judgements(None, None), "pairs": pairs(None)}}, resamples=5
    )
    rows = table.set_index("signal")
    assert rows.loc["pair yield", "value"] == 0
    assert rows.loc[["score", "gap"], "value"].isna().all()
    assert rows.loc["score", "n"] == 0
    assert rows.loc["score histogram", "value"].sum() == 0
    assert signals.loop_signals({}).empty
