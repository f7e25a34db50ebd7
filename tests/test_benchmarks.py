"""Benchmark scores and their changes, worked by hand."""

import numpy as np
import pandas as pd
import pytest

from srkit import benchmarks, constraints

SHORT, WITH_A = {"kind": "max_words", "value": 2}, {"kind": "include", "value": ["a"]}


def answers(**texts: str) -> pd.DataFrame:
    """Answers: p asks for at most two words and an "a", q for at most two words, r for nothing."""
    asked = {"p": [SHORT, WITH_A], "q": [SHORT], "r": []}
    rows = [{"prompt_id": p, "text": t, "constraints": asked[p]} for p, t in texts.items()]
    return pd.DataFrame(rows)


def of(table: pd.DataFrame, **where) -> pd.DataFrame:
    return table[np.logical_and.reduce([table[c] == v for c, v in where.items()])]


@pytest.fixture
def items() -> pd.DataFrame:
    """The baseline breaks both constraints of p and meets q's once its first line is gone; M1
    meets p's, each in another form, and q's as it is."""
    return benchmarks.instruction_items(
        {
            "baseline": answers(p="one two three", q="Sure, here it is:\none", r="so"),
            "M1": answers(p="a b c\nd e", q="one two", r="so"),
        }
    )


def test_instructions_by_prompt_and_by_constraint_strictly_and_loosely(items):
    assert list(items.columns) == list(benchmarks.ITEMS)
    assert set(items["prompt_id"]) == {"p", "q"}, "a prompt without constraints is no item"
    found = {
        (model, metric): list(zip(rows["hits"], rows["trials"], strict=True))
        for (model, metric), rows in items.groupby(["model", "metric"])
    }
    assert found == {
        ("baseline", "prompts, strict"): [(0, 1), (0, 1)],
        ("baseline", "prompts, loose"): [(0, 1), (1, 1)],
        ("baseline", "constraints, strict"): [(0, 2), (0, 1)],
        ("baseline", "constraints, loose"): [(0, 2), (1, 1)],
        ("M1", "prompts, strict"): [(0, 1), (1, 1)],
        ("M1", "prompts, loose"): [(1, 1), (1, 1)],
        ("M1", "constraints, strict"): [(1, 2), (1, 1)],
        ("M1", "constraints, loose"): [(2, 2), (1, 1)],
    }


def test_scores_are_hits_over_trials(items):
    table = benchmarks.scores(items, 200)
    (row,) = of(table, model="M1", metric="constraints, strict").to_dict("records")
    assert row["value"] == pytest.approx(2 / 3)
    assert (row["n"], row["prompts"], row["unit"]) == (3, 2, "share")
    (row,) = of(table, model="M1", metric="prompts, strict").to_dict("records")
    assert (row["value"], row["n"]) == (0.5, 2)
    assert (row["low"], row["high"]) == pytest.approx((0.0945, 0.9055), abs=1e-4), "Wilson"


def test_strict_prompt_level_is_what_the_pass_rates_call_all_constraints(items):
    given = {"M1": answers(p="a b", q="one two three", r="so")}
    rates = constraints.pass_rates(given, 200)
    every = of(rates, kind=constraints.EVERY)["value"].item()
    table = benchmarks.scores(benchmarks.instruction_items(given), 200)
    assert of(table, metric="prompts, strict")["value"].item() == every == 0.5


def test_changes_are_paired_and_have_no_interval_where_nothing_changed(items):
    table = benchmarks.changes(items, [("M1", "baseline")], 200).set_index("metric")
    assert table["value"].to_dict() == pytest.approx(
        {
            "prompts, strict": 0.5,
            "constraints, strict": 2 / 3,
            "prompts, loose": 0.5,
            "constraints, loose": 2 / 3,
        }
    )
    assert (table["reference"] == "baseline").all()
    assert (table["prompts"] == 2).all()
    assert (table.loc["prompts, strict", ["low", "high"]] == [0, 1]).all()
    same = benchmarks.changes(items, [("M1", "M1")], 200)
    assert (same["value"] == 0).all()
    assert same[["low", "high"]].isna().all(axis=None)


def test_only_prompts_that_both_models_have_count(items):
    fewer = items[~((items["model"] == "M1") & (items["prompt_id"] == "q"))]
    table = benchmarks.changes(fewer, [("M1", "baseline")], 200).set_index("metric")
    assert table.loc["prompts, loose", ["value", "prompts"]].tolist() == [1, 1]


def test_points_are_means_and_no_shares():
    given = zip("abc", (7, 9, 5), strict=True)
    rows = [("M1", "b", "turn 1", "points", prompt, hits, 1) for prompt, hits in given]
    table = benchmarks.scores(pd.DataFrame(rows, columns=list(benchmarks.ITEMS)), 200)
    assert table["value"].item() == 7
    assert 5 <= table["low"].item() < 7 < table["high"].item() <= 9


def test_references_are_m0_where_measured_the_baseline_and_an_arms_start():
    starts = {"x/M2": "M1", "i/M2": "baseline"}
    models = ["baseline", "M1", "x/M2", "i/M2"]
    pairs = [("M1", "baseline"), ("x/M2", "baseline"), ("i/M2", "baseline"), ("x/M2", "M1")]
    assert benchmarks.references(models, starts) == pairs
    with_m0 = benchmarks.references(["M0", *models], starts)
    assert with_m0 == [*((model, "M0") for model in models), *pairs]


def test_nothing_to_measure_gives_empty_tables_with_their_columns():
    items = benchmarks.instruction_items({"M1": answers(r="so"), "M2": pd.DataFrame()})
    assert list(benchmarks.scores(items).columns) == list(benchmarks.SCORES)
    table = benchmarks.changes(items, [("M1", "M2")])
    assert table.empty
    assert list(table.columns) == list(benchmarks.CHANGES)


def test_the_papers_tables():
    change = benchmarks.PAPER.loc["M3"] - benchmarks.PAPER.loc["Llama 2"]
    assert change["ARC-Easy"] == pytest.approx(-7.85)
    assert change["NQ"] == pytest.approx(6.56)
    both = benchmarks.PAPER_TWO_TURN
    mean = both.drop(columns="overall").mean(axis=1)
    assert (mean - both["overall"]).abs().max() < 0.06, "the categories' mean is the overall score"


def test_changes_are_told_against_m0_where_it_was_measured_else_the_baseline():
    labels = {"benchmark": "b", "metric": "acc", "unit": "share"}
    pairs = [("M1", "M0"), ("M1", "baseline"), ("x/M2", "M1")]
    rows = [labels | {"model": m, "reference": r} for m, r in pairs]
    rows += [row | {"benchmark": "instructions"} for row in rows[1:]]
    told = benchmarks.against(pd.DataFrame(rows))
    assert told[["benchmark", "reference"]].to_numpy().tolist() == [
        ["b", "M0"],
        ["instructions", "baseline"],
    ]
