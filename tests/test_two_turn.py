"""Two-turn questions: what is asked in the second turn, who scores it, and the tables of scores."""

import math

import numpy as np
import pandas as pd
import pytest

from srkit import benchmarks, two_turn
from srkit.study import Study

CATEGORIES = {*benchmarks.PAPER_TWO_TURN.columns} - {"overall"}


def test_the_questions_that_ship():
    rows = two_turn.questions(99)
    assert len({row["id"] for row in rows}) == len(rows) == 16
    assert all(len(row["turns"]) == 2 and all(row["turns"]) for row in rows)
    assert {row["category"] for row in rows[:8]} == CATEGORIES, "eight have every category"
    assert {row["category"] for row in rows[8:]} == CATEGORIES
    texts = [turn for row in rows for turn in row["turns"]]
    assert len(set(texts)) == len(texts)


def test_the_second_turn_continues_the_first_and_the_referee_scores_both(tmp_path, engine):
    settings = "eval.two_turn_questions=2 eval.referee=M0"
    study = Study.open(tmp_path / "s", "tiny", settings)
    engine.reply = lambda content, seed: "An answer."
    engine.score = lambda content, option: 0.0 if option in (" 4", " 2") else -math.inf
    rows = two_turn.make_two_turn(study, "M0")
    first, second = two_turn.questions(2)
    drawn = [call for call in engine.calls if len(call) == 5]
    talks = [talk for _, conversations, *_ in drawn for talk in conversations]
    assert talks[0][0]["content"] == first["turns"][0]
    assert [message["role"] for message in talks[2]][:3] == ["user", "assistant", "user"]
    assert talks[2][2]["content"] == first["turns"][1]
    assert all(sampling.temperature == 0 for *_, sampling, _ in drawn)
    ids = [f"{q['id']}/{turn}" for turn in (1, 2) for q in (first, second)]
    assert [row["id"] for row in rows] == ids
    assert {row["score"] for row in rows} == {3.0}, "2 and 4 are equally likely"
    asked = rows[2]["prompt"]
    assert (
        asked == f"User: {first['turns'][0]}\n\nAssistant: An answer.\n\nUser: {first['turns'][1]}"
    )
    scored = [call for call in engine.calls if len(call) == 3]
    assert {name for name, *_ in scored} == {"M0"}
    assert sum(asked in talk[0]["content"] for _, talks, _ in scored for talk in talks) == 1


def table(*scores: float | None) -> pd.DataFrame:
    """Scores of question a (turn 1, turn 2) and of question b."""
    rows = [("a", "math", 1), ("a", "math", 2), ("b", "writing", 1), ("b", "writing", 2)]
    named = pd.DataFrame(rows, columns=["prompt_id", "category", "turn"])
    return named.assign(score=scores)


def test_scores_by_turn_and_category_and_their_changes():
    measured = {"baseline": table(1.0, 2.0, 3.0, None), "M1": table(2.0, 2.0, 5.0, 4.0)}
    items = benchmarks.two_turn_items(measured)
    means = benchmarks.scores(items, 50).set_index(["model", "metric"])
    assert means["value"].to_dict() == {
        ("baseline", "turn 1"): 2.0,
        ("baseline", "turn 2"): 2.0,
        ("M1", "turn 1"): 3.5,
        ("M1", "turn 2"): 3.0,
    }
    assert means.loc[("baseline", "turn 2"), "n"] == 1, "a score that is missing is no number"
    change = benchmarks.changes(items, [("M1", "baseline")], 50).set_index("metric")
    assert change["value"].to_dict() == {"turn 1": 1.5, "turn 2": 0.0}
    assert change.loc["turn 2", "prompts"] == 1
    groups = benchmarks.two_turn_table(measured, 50).set_index(["model", "category", "turn"])
    assert groups.loc[("M1", "math", 1), "value"] == 2.0
    assert groups.loc[("M1", "all", 2), "value"] == 3.0
    assert groups.loc[("M1", "all", 2), "n"] == 2
    alone = groups.loc[("M1", "math", 1), ["low", "high"]].astype(float)
    assert np.isnan(alone).all(), "one question has no interval"
    assert np.isnan(groups.loc[("baseline", "writing", 2), "value"])
    assert groups.loc[("baseline", "writing", 2), "n"] == 0


def test_few_questions_have_no_interval():
    rows = [(str(i), "math" if i < 2 else "writing", 1, float(i)) for i in range(7)]
    scored = pd.DataFrame(rows, columns=["prompt_id", "category", "turn", "score"])
    found = benchmarks.two_turn_table({"M1": scored}, 50).set_index("category")
    assert found["n"].to_dict() == {"all": 7, "math": 2, "writing": 5}
    assert found["low"].notna().to_dict() == {"all": True, "math": False, "writing": True}


def test_nothing_asked_gives_empty_tables_and_no_steps(study, tmp_path):
    assert benchmarks.two_turn_items({}).empty
    assert list(benchmarks.two_turn_table({}).columns) == list(benchmarks.TWO_TURN)
    assert not [name for name in study.steps if name.endswith("/two_turn")]
    asked = Study.open(tmp_path / "t", "tiny", "eval.two_turn_questions=3").steps
    assert asked["M1/two_turn"].inputs == ("M1/adapter",), "the referee is M1 itself"
    assert asked["M0/two_turn"].inputs == ("M1/adapter",)
    assert asked["baseline/two_turn"].inputs == ("baseline/adapter", "M1/adapter")
    assert "M0/two_turn" in asked["metrics/benchmarks"].inputs


@pytest.mark.parametrize("count", [0, 3])
def test_questions_are_the_first_ones(count):
    assert two_turn.questions(count) == two_turn.questions(16)[:count]
