"""What arms took and gained, added up by hand."""

import numpy as np
import pandas as pd
import pytest

from srkit import costs, figures, refine, rivals
from srkit.ablations import Run

NLL, PAPER = Run("nll", 1, "nll/M2"), Run("self-rewarding", 1, "self-rewarding/M2")
TABLE = {
    "tokens": 300,
    "written": 300,
    "read": 1_000,
    "rows": 8,
    "seconds": 10.0,
    "peak_memory_mb": {"cpu": 500},
}
TRAINED = {"tokens": 5_000, "read": 0, "examples": 7, "steps": 2, "seconds": 30.0}
TRAINED |= {"peak_memory_mb": {"cpu": 900, "cuda": 4000}, "joules": 60}


def ledger(*more) -> pd.DataFrame:
    finished = [(NLL, "candidates", TABLE), (NLL, "adapter", TRAINED), *more]
    return costs.ledger(finished)


def test_tokens_are_written_read_or_trained_on():
    table = ledger()
    assert list(table) == list(costs.LEDGER)
    assert table[list(costs.TOKENS)].to_numpy().tolist() == [[300, 1000, 0], [0, 0, 5000]]
    assert table["peak_mb"].tolist() == [500, 4000], "the GPU's where there is one"
    (arm,) = costs.by_arm(table, price_per_hour=0.9).to_dict("records")
    assert (arm["tokens"], arm["seconds"], arm["peak_mb"]) == (6300, 40, 4000)
    assert arm["price"] == pytest.approx(0.01)
    assert np.isnan(costs.by_arm(table)["price"][0]), "no price was named"
    assert np.isnan(arm["joules"]), "those of one step are not known"


def test_an_endpoint_reads_too_and_what_was_not_counted_is_not_known():
    asked = {"prompt_tokens": 50, "completion_tokens": 5}
    table = ledger((PAPER, "judgements", {**TABLE, "endpoint": asked}))
    assert table["read"].tolist() == [1000, 0, 1050]
    assert table["written"].tolist() == [300, 0, 305]


def without(record: dict, *names: str) -> dict:
    return {name: value for name, value in record.items() if name not in names}


def test_what_earlier_versions_did_not_count_is_not_known():
    read = costs.by_arm(ledger((NLL, "candidates", without(TABLE, "read")))).set_index("arm")
    assert np.isnan(read.loc["nll", "tokens"])
    assert read.loc["nll", "written"] == 600
    drafts = ledger((NLL, "prompts", without(TABLE, "written")))
    assert np.isnan(drafts["written"].iloc[-1]), "rows of drafts have no tokens"
    human = ledger((NLL, "prompts", without(TABLE, "written") | {"read": 0, "tokens": 0}))
    assert human["written"].iloc[-1] == 0, "nobody was asked"
    dpo = ledger((NLL, "adapter", without(TRAINED, "read")))
    assert np.isnan(dpo["read"].iloc[-1]), "DPO's reference reads the pairs"


def test_what_an_iteration_took_is_unknown_if_a_part_is():
    assert costs.added([TABLE, TABLE], "candidates") == {"seconds": 20, "tokens": 2600}
    assert costs.added([], "candidates") == {"seconds": 0, "tokens": 0}
    assert np.isnan(costs.added([TABLE, without(TABLE, "read")], "candidates")["tokens"])


def test_budgets_are_a_row_for_every_iteration():
    again = Run("nll", 2, "nll/M3")
    found = costs.budgets(ledger((again, "prompts", {**TABLE, "rows": 5})))
    assert found["iteration"].tolist() == [1, 2]
    assert found["candidates"].tolist()[0] == 8
    assert found["examples"].tolist()[0] == 7
    assert found["drafts"].tolist()[1] == 5
    assert found["updates"].isna().tolist() == [False, True]


def outcome(arm: str, name: str, against: str, value: float, iteration: int = 1) -> dict:
    row = {"arm": arm, "iteration": iteration, "model": f"{arm}/M2", "outcome": name}
    return {**row, "against": against, "value": value, "low": value - 0.1, "high": value + 0.1}


def test_gains_are_from_the_start_and_of_a_win_rate_what_exceeds_half():
    start = outcome("", "judge accuracy", "", 0.6, 0) | {"model": "M1"}
    outcomes = pd.DataFrame(
        [
            start,
            outcome("nll", "win rate", "", 0.7),
            outcome("nll", "win rate", "self-rewarding/M2", 0.3),
            outcome("nll", "judge accuracy", "", 0.66),
            outcome("nll", "judge accuracy", "M1", 0.06),
            outcome("nll", "length", "M1", 12),
        ]
    ).assign(n=40, unit="share")
    found = costs.gains(outcomes, costs.by_arm(ledger()))
    assert found["outcome"].tolist() == ["judge accuracy", "win rate"]
    assert found["value"].tolist() == pytest.approx([0.06, 0.2])
    assert found["low"].tolist() == pytest.approx([-0.04, 0.1])
    assert found["per_million"].tolist() == pytest.approx([0.06 / 0.0063, 0.2 / 0.0063])
    assert costs.gains(outcomes[:1], costs.by_arm(ledger())).empty


def test_a_way_stands_beside_its_level_or_its_change():
    outcomes = pd.DataFrame(
        [
            outcome("", "judge accuracy", "", 0.6, 0) | {"model": "M1"},
            outcome("human", "judge accuracy", "M1", 0.05),
            outcome("human", "judge accuracy", "", 0.65),
            outcome("human", "length", "M1", 7),
        ]
    ).assign(n=40, unit="share")
    nothing = refine.ways_table({}, pd.DataFrame(), [])
    found = rivals.beside(outcomes, "judge accuracy", nothing).set_index("in a study")
    assert len(found) == len(rivals.WAYS)
    assert found.loc["M1", "value"] == 0.6
    assert found.loc["human", "value"] == 0.05
    assert found["value"].notna().sum() == 2, "nothing is said of arms that the study has not"


def test_refined_answers_stand_beside_the_one_answer_of_where_arms_start():
    start = outcome("", "constraints met", "", 0.3, 0) | {"model": "M1", "n": 44}
    rows = [
        ("baseline", refine.REFINED, "constraints stated", refine.ONE, 0.3),
        ("M1", refine.REFINED, "constraints stated", refine.ONE, -0.04),
        ("M1", refine.REFINED, "constraints stated", "", 0.26),
        ("M1", refine.REFINED, "length", refine.ONE, 9.0),
        ("M1", "x/M2", "constraints stated", refine.ONE, 0.2),
        ("x/M2", refine.BEST, "constraints stated", refine.ONE, 0.1),
    ]
    refined = pd.DataFrame(rows, columns=["of", "way", "measure", "against", "value"])
    refined = refined.assign(low=-1.0, high=1.0, n=8)
    found = rivals.beside(pd.DataFrame([start]), "constraints met", refined)
    known = found.set_index("way")["value"].dropna()
    assert known.to_dict() == {"evaluation fine-tuning": 0.3, "Self-Refine": -0.04}
    assert found.set_index("way")["n"].dropna().to_dict() == {
        "evaluation fine-tuning": 44,
        "Self-Refine": 8,
    }, "other prompts"
    told = rivals.beside(pd.DataFrame([start]), "length", refined)
    assert told["value"].isna().all(), "lengths have different units"


def test_the_figure_shows_every_arm_and_no_bar_of_what_is_not_known():
    spent = costs.by_arm(ledger((PAPER, "adapter", {**TRAINED, "tokens": None})))
    rows = [
        {**outcome(arm, name, "M1", 0.02), "n": 40, "tokens": 6300.0, "per_million": 3.2}
        for arm in ("nll", "self-rewarding")
        for name in costs.GAINED
    ]
    figure = figures.gain_per_token(pd.DataFrame(rows), spent)
    first, *panels = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["nll", "self-rewarding"]
    assert [p.get_width() for p in first.patches] == pytest.approx([3e-4, 1e-3, 5e-3])
    assert [p.get_title() for p in panels] == list(costs.GAINED)
    assert panels[0].lines[1].get_xdata()[0] == pytest.approx(100 * 0.02 / 0.0063), "points"


def test_a_model_cost_all_iterations_up_to_it():
    again = Run("nll", 2, "nll/M3")
    more = [(again, "candidates", TABLE), (PAPER, "candidates", TABLE)]
    table = costs.as_outcomes(ledger(*more)).set_index(["outcome", "model"])["value"]
    tokens = {"nll/M2": 6300, "nll/M3": 7600, "self-rewarding/M2": 1300}
    assert table["tokens"].to_dict() == tokens
    assert table["seconds"].to_dict() == {"nll/M2": 40, "nll/M3": 50, "self-rewarding/M2": 10}
    unknown = ledger((again, "candidates", without(TABLE, "read")))
    table = costs.as_outcomes(unknown).set_index(["outcome", "model"])["value"]
    assert table["tokens", "nll/M2"] == 6300
    assert np.isnan(table["tokens", "nll/M3"])
