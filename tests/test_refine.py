"""Refining against training: costs up to each answer, measures by hand, feedback that is none."""

from dataclasses import replace

import pandas as pd
import pytest

from srkit import figures, refine
from srkit.refine import BEST, ONE, REFINED, Refined

ORACLE = [{"kind": "max_words", "value": 2}, {"kind": "ends_with", "value": "."}]
PROMPTS = pd.DataFrame(
    {"id": ["a", "b"], "constraints": [[{"kind": "include", "value": ["sun"]}], []]}
)


def rounds(*rows: tuple) -> pd.DataFrame:
    """Rows of prompt, round, text, feedback, ended; reading takes 10 and 20, writing 3 and 4."""
    names = ["prompt_id", "round", "text", "feedback", "ended"]
    table = pd.DataFrame(rows, columns=names).assign(text_read=10, text_tokens=3, truncated=False)
    said = table["feedback"].notna()
    return table.assign(
        feedback_read=20 * said, feedback_tokens=4 * said, feedback_truncated=table["round"] > 1
    )


ROUNDS = rounds(
    ("a", 0, "The moon shines bright", "No sun in it.", None),
    ("a", 1, "The sun.", "Nothing to improve.", "stop phrase"),
    ("b", 0, "Bread.", "", None),
    ("b", 1, "Bread.", "Bread.", None),
    ("b", 2, "Bread and butter, baked at home", None, "rounds"),
)


@pytest.fixture
def tables() -> Refined:
    drafts = [("a", 0, "The moon shines bright", 40, False), ("a", 1, "sun", 30, True)]
    drafts += [("b", 0, "Bread.", 10, True)]
    drafts = pd.DataFrame(drafts, columns=["prompt_id", "sample", "text", "read", "chosen"])
    drafts = drafts.assign(id=drafts.index, text_tokens=3, judge_tokens=1)
    names = [f"round {row.round}|{row.prompt_id}" for row in ROUNDS.itertuples()]
    names += [f"{name}|{p}" for name in (f"M1 {BEST}", "x/M2") for p in "ab"]
    scores = [1.0, 2.0, 3.0, 3.0, 5.0, 4.0, 3.0, 2.0, 2.0]
    own = pd.DataFrame({"response_id": names, "score": scores, "sample": 0, "truncated": False})
    own = own.assign(prompt_id=own["response_id"].str[-1])
    games = [("M1 refined", "M1"), (f"M1 {BEST}", "M1"), ("x/M2", "M1"), ("M1 refined", "x/M2")]
    rows = [(*names, p, first) for names in games for p in "ab" for first in ("left", "right")]
    games = pd.DataFrame(rows, columns=["left", "right", "prompt_id", "first"])
    games = games.assign(preferred="left", log_odds_left=1.0, referee="M0")
    trained = pd.DataFrame({"prompt_id": ["a", "b", "c"], "text": "Sun.", "tokens": [5, 7, 9]})
    return Refined(ROUNDS, drafts, own, games, {"x/M2": trained})


def test_an_answer_is_paid_for_by_all_that_came_before_it():
    found = refine.spent(ROUNDS)
    # an answer takes 13, feedback 24; the feedback that stopped a came after its last answer
    assert found["tokens"].tolist() == [13, 13 + 24 + 13, 13, 50, 87]
    assert found["tokens in all"].tolist() == [13, 13 + 24 + 13 + 24, 13, 50, 87]
    assert found["tokens written"].tolist() == [3, 3 + 4 + 3, 3, 10, 17]
    assert found["tokens written in all"].tolist() == [3, 3 + 4 + 3 + 4, 3, 10, 17]


def test_the_one_answer_is_not_charged_for_the_feedback_that_found_no_fault(tables):
    """Both prompts stop after their first feedback: refining cost 24 tokens more for nothing."""
    stopped = [(p, 0, "Sun.", "Nothing to improve.", "stop phrase") for p in "ab"]
    tables = replace(tables, rounds=rounds(*stopped))
    found = refine.answers("M1", tables).set_index(["way", "prompt_id"])["tokens"]
    assert found[ONE].tolist() == [13, 13]
    assert found[REFINED].tolist() == [37, 37]
    table = refine.ways_table({"M1": tables}, PROMPTS, ORACLE, 50)
    more = table[(table["way"] == REFINED) & (table["against"] == ONE)].set_index("measure")
    assert more.loc["tokens", "value"] == 24


def test_who_stopped_has_paid_for_the_feedback_in_the_rounds_after(tables):
    found = refine.rounds_table({"M1": tables}, PROMPTS, ORACLE, 50)
    tokens = found[found["measure"] == "tokens"].set_index("round")["value"]
    # a: 13, 50, and 74 once it has stopped; b: 13, 50, 87
    assert tokens.tolist() == [13, 50, (74 + 87) / 2]


def test_who_answered_what_for_how_much(tables):
    found = refine.answers("M1", tables).set_index(["way", "prompt_id"])
    assert list(dict.fromkeys(found.index.get_level_values(0))) == [ONE, REFINED, BEST, "x/M2"]
    assert found.loc[(REFINED, "a"), "text"] == "The sun."
    assert found.loc[(REFINED, "b"), "response_id"] == "round 2|b"
    assert found.loc[(BEST, "a"), ["text", "tokens", "drafts"]].tolist() == ["sun", 78, 2]
    assert found.loc[("x/M2", "b"), ["tokens", "tokens written"]].tolist() == [10 + 7, 7]
    assert ("x/M2", "c") not in found.index, "only prompts that were refined"


def test_measures_and_their_differences_by_hand(tables):
    found = refine.ways_table({"M1": tables}, PROMPTS, ORACLE, 50)
    levels = found[found["against"] == ""].set_index(["measure", "way"])["value"]
    # one answer: 0 of 2 and 2 of 2; refined: 2 of 2 and 0 of 2; best: 1 of 2 and 2 of 2
    assert levels["oracle's score"].to_dict() == {ONE: 0.5, REFINED: 0.5, BEST: 0.75, "x/M2": 1.0}
    assert levels["constraints stated"].to_dict() == {ONE: 0, REFINED: 1, BEST: 1, "x/M2": 1}
    assert levels["self-score"].to_dict() == {ONE: 2.0, REFINED: 3.5, BEST: 3.5, "x/M2": 2.0}
    assert levels["drafts"].to_dict() == {BEST: 1.5}
    apart = found[found["against"] == ONE].set_index(["measure", "way"])
    assert apart.loc[("self-score", REFINED), "value"] == 1.5
    assert apart.loc[("constraints stated", REFINED), "n"] == 1, "only a states one"
    assert apart.loc[("tokens", REFINED), "value"] == (74 + 87 - 26) / 2


def test_rounds_keep_the_answer_of_prompts_that_stopped(tables):
    found = refine.rounds_table({"M1": tables}, PROMPTS, ORACLE, 50).set_index(["measure", "round"])
    assert found.loc["self-score"]["value"].tolist() == [2.0, 2.5, 3.5]
    assert found.loc["self-score"]["n"].tolist() == [2, 2, 2]
    assert found.loc["self-score"]["reached"].tolist() == [2, 2, 1]


def test_feedback_that_is_none_is_counted(tables):
    found = refine.feedback_table({"M1": tables}, 50).set_index("what")
    counts = found[["count", "cases"]].apply(tuple, axis=1).to_dict()
    assert counts == {
        "feedback is empty": (1, 4),
        "feedback repeats the answer": (1, 4),
        "feedback is cut": (0, 4),
        "refined answer is empty": (0, 3),
        "refined answer is the one before": (1, 3),
        "refined answer is cut": (0, 3),
        "stops at once": (0, 2),
        "never stops": (1, 2),
        "does not fit the context": (0, 2),
    }
    assert found.loc["never stops", "value"] == 0.5
    assert found.loc["feedback is empty", "n"] == 2, "prompts"


def test_training_is_paid_once(tables):
    ways = refine.ways_table({"M1": tables}, PROMPTS, ORACLE, 50)
    training = pd.DataFrame([("M1", "x/M2", 100, 45, 500)], columns=list(refine.TRAINING))
    found = refine.amortised(ways, training, [1, 10]).set_index(["way", "prompts"])["tokens"]
    assert found["x/M2"].to_dict() == {1: 645 + 16, 10: 64.5 + 16}
    assert found[REFINED].to_dict() == {1: 80.5, 10: 80.5}
    (row,) = refine.breaks_even(ways, training).to_dict("records")
    assert row == {"of": "M1", "way": "x/M2", "prompts": 10.0}
    unknown = training.assign(read=float("nan"))
    found = refine.amortised(ways, unknown, [1]).set_index("way")["tokens"]
    assert found[REFINED] == 80.5
    assert pd.isna(found["x/M2"])
    assert refine.breaks_even(ways, unknown).empty, "not known is not nothing"
    dear = ways.assign(value=ways["value"].where(ways["way"] != "x/M2", 1e6))
    assert refine.breaks_even(dear, training).empty, "never"


def test_the_figures_say_who_judges_and_how_many(tables):
    ways = refine.ways_table({"M1": tables}, PROMPTS, ORACLE, 50)
    matches = refine.matches_table({"M1": tables}, 50)
    training = pd.DataFrame([("M1", "x/M2", 100, 45, 500)], columns=list(refine.TRAINING))
    figure = figures.refine_or_train(ways, matches, training)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:4] == [
        "Oracle's score (no judge)\nn = 2",
        "Stated constraints met (no judge)\nn = 1",
        "Self-score by M1\nn = 2",
        "Win rate against one answer\nreferee M0, n = 2",
    ]
    below = " ".join(figure.get_supxlabel().split())
    assert "x/M2 from prompt 10 on" in below
    level = ways[(ways["measure"] == "tokens") & (ways["against"] == "")].set_index("way")["value"]
    drawn = [line for line in figure.axes[0].lines if line.get_marker() in "os^D"]
    assert [line.get_xdata().item() for line in drawn] == list(level), "where they are"
    (won,) = [line for line in figure.axes[3].lines if line.get_marker() == "s"]
    assert won.get_ydata().tolist() == [1.0]
    parts = refine.rounds_table({"M1": tables}, PROMPTS, ORACLE, 50)
    feedback = refine.feedback_table({"M1": tables}, 50)
    drawn = figures.refine_rounds(parts, feedback)
    assert "M1 2/2/1 of 2" in drawn.get_supxlabel()


def test_nothing_refined_gives_tables_without_rows_and_figures_that_say_so():
    empty = refine.ways_table({}, PROMPTS, ORACLE)
    assert list(empty.columns) == list(refine.ANSWERS)
    for draw in (figures.refine_or_train, figures.refine_rounds):
        (axes,) = draw(pd.DataFrame()).axes
        assert "no model refined its answers" in axes.texts[0].get_text().replace("\n", " ")
