"""Self-Refine and the best of N: the turns of the chat, what ends it, and the budget of tokens."""

import types

import numpy as np
import pytest

from srkit import self_refine
from srkit.engine import Completion, Sampling
from srkit.plan import arrived
from srkit.prompts import text
from srkit.self_refine import Asked, best_of, contestants, refine
from srkit.study import Study

FEEDBACK, AGAIN = (text(name).strip() for name in ("self_feedback", "self_refine"))
ANSWERS = [
    {
        "prompt_id": p,
        "prompt": f"question {p}",
        "text": f"draft {p}",
        "tokens": 2,
        "truncated": False,
    }
    for p in ("a", "b")
]


def words(talk: list[dict]) -> int:
    return sum(len(message["content"].split()) for message in talk)


def asked(reply, context: int = 10_000) -> Asked:
    """Who answers `reply(conversation)`; tokens are words; `engine.calls` are the talks."""
    calls = []

    def sample(talks, n, sampling, seeds):
        assert np.shape(seeds) == (len(talks), n) == (len(talks), 1)
        calls.append(talks)
        said = [reply(talk) for talk in talks]
        return [[Completion(one, len(one.split()), False)] for one in said]

    engine = types.SimpleNamespace(sample=sample, calls=calls)
    sampling = Sampling(20), Sampling(30)
    return Asked(engine, lambda talks: [words(talk) for talk in talks], context, *sampling, seed=0)


def reply(talk: list[dict]) -> str:
    """Prompt a is satisfied with its second answer; b never is."""
    turns = (len(talk) - 1) // 2
    if talk[-1]["content"] == FEEDBACK:
        done = "question a" in talk[0]["content"] and turns > 2
        return "It is fine: NOTHING to improve!" if done else f"fault {turns}"
    return f"answer {turns} now"


def test_the_conversation_is_the_history():
    who = asked(reply)
    refine(who, ANSWERS)
    first, second = who.engine.calls[0], who.engine.calls[1]
    assert [m["content"] for m in first[0]] == ["question a", "draft a", FEEDBACK]
    assert [m["content"] for m in second[1]] == [
        "question b",
        "draft b",
        FEEDBACK,
        "fault 1",
        AGAIN,
    ]
    assert [m["role"] for m in second[1]] == ["user", "assistant", "user", "assistant", "user"]
    longest = who.engine.calls[-1][0]
    assert len(longest) == 1 + 4 * self_refine.ROUNDS, "all rounds are still there"


def test_it_ends_with_the_stop_phrase_or_after_four_rounds():
    rows = refine(asked(reply), ANSWERS)
    mine = {p: [row for row in rows if row["prompt_id"] == p] for p in "ab"}
    assert [row["ended"] for row in mine["a"]] == [None, "stop phrase"]
    assert [row["ended"] for row in mine["b"]] == [None] * 4 + ["rounds"]
    assert [row["text"] for row in mine["a"]] == ["draft a", "answer 2 now"]
    assert mine["b"][-1]["feedback"] is None, "what is not refined is not criticised"
    assert [row["id"] for row in rows][:3] == ["a/0", "a/1", "b/0"]


def test_tokens_are_counted_call_by_call():
    rows = refine(asked(reply), ANSWERS[:1])
    question, draft, ask, again = 2, 2, len(FEEDBACK.split()), len(AGAIN.split())
    assert (rows[0]["text_read"], rows[0]["text_tokens"]) == (question, draft)
    assert rows[0]["feedback_read"] == question + draft + ask
    assert rows[0]["feedback_tokens"] == 2
    assert rows[0]["tokens"] == 2, "the draft was written by another step"
    assert rows[1]["text_read"] == question + draft + ask + 2 + again
    assert rows[1]["tokens"] == 3 + 6


def test_a_conversation_that_does_not_fit_ends_as_it_is():
    room = 2 + 2 + len(FEEDBACK.split()) + 20
    (row,) = refine(asked(reply, room), ANSWERS[:1])
    assert (row["ended"], row["feedback"]) == ("context", "fault 1"), "there was room for that"
    (row,) = refine(asked(reply, room - 1), ANSWERS[:1])
    assert (row["ended"], row["feedback"]) == ("context", None)


# --- the best of N -------------------------------------------------------------------------------


def judged(rows: list[dict]) -> list[dict]:
    """Scores rise with the draft's number; judging reads 10 tokens and writes 1."""
    return [row | {"score": row["sample"] * 1.0, "read": 10, "judge_tokens": 1} for row in rows]


@pytest.mark.parametrize(
    ("budget", "n"), [(0, 1), (27, 1), (28, 2), (40, 2), (41, 3), (2 + 13 * 9, 9), (130, 9)]
)
def test_n_is_the_most_that_the_budget_holds(budget, n):
    # read once: 2; each draft: 2 written, 10 read and 1 written to judge it
    rows = best_of(asked(lambda talk: "one two"), ANSWERS[:1], {"a": budget}, judged)
    assert len(rows) == n
    assert [row["sample"] for row in rows] == list(range(n))
    assert [row["chosen"] for row in rows] == [False] * (n - 1) + [True]
    spent = sum(row["read"] + row["text_tokens"] + row["judge_tokens"] for row in rows)
    assert spent == (2 + 13 * n if n > 1 else 4), "a single draft is not judged"
    assert spent <= budget or n == 1
    assert rows[0]["text"] == "draft a"
    assert (rows[0]["score"] is None) == (n == 1)


def test_a_score_that_cannot_be_read_is_never_the_best_and_the_first_wins_a_tie():
    scores = iter([None, 1.0, 3.0, 3.0, None])

    def some(rows):
        return [row | {"score": next(scores), "read": 10, "judge_tokens": 0} for row in rows]

    rows = best_of(asked(lambda talk: "x y"), ANSWERS[:1], {"a": 2 + 5 * 12}, some)
    assert [row["score"] for row in rows] == [None, 1.0, 3.0, 3.0, None]
    assert [row["chosen"] for row in rows].index(True) == 2


def test_each_prompt_has_its_own_budget():
    rows = best_of(asked(lambda talk: "one two"), ANSWERS, {"a": 41, "b": 0}, judged)
    assert [row["id"] for row in rows] == ["a#0", "a#1", "a#2", "b#0"]
    assert [row["budget"] for row in rows] == [41, 41, 41, 0]


# --- in a study ----------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path, make) -> Study:
    """A study whose models have answered."""
    study = Study.open(tmp_path / "s", "tiny", "eval.refined_of=[M1] iterations=1")
    skipped = ("judgements", "ways", "drift", "comparisons", "eft_eval")
    for name in list(study.steps)[: list(study.steps).index("self-rewarding/M2/responses") + 1]:
        if "/iter-" in name or not name.endswith(skipped):
            make(study, name, [{"id": r["prompt_id"], **r} for r in ANSWERS])
    return study


def test_it_is_planned_where_a_model_is_named(tmp_path):
    settings = "eval.refined_of=[M1] iterations=1"
    study = Study.open(tmp_path / "s", "tiny", settings, "self-rewarding,random-judge")
    steps = study.steps
    assert steps["M1/refined"].inputs == ("M1/adapter", "M1/responses")
    assert "M1/refined" in steps["M1/best_of"].inputs
    assert "random-judge/M2/responses" in steps["M1/refined_comparisons"].inputs
    assert "M1/refined_judgements" in steps["metrics/refine"].inputs
    assert arrived(study.config, study.arms, "random-judge/M2") == ["self-rewarding/M2"]
    without = Study.open(tmp_path / "t", "tiny").steps
    assert without["metrics/refine"].inputs == ("seed/test_prompts",)
    assert not [name for name in without if name.endswith(("/refined", "/best_of"))]


def test_the_steps_go_from_one_to_the_next(study, monkeypatch, engine):
    monkeypatch.setattr(self_refine, "_asked", lambda *_: asked(reply))
    monkeypatch.setattr(self_refine, "_judged", lambda _, rows, __: judged(rows))
    rounds = self_refine.make_refined(study, "M1")
    assert len(rounds) == 2 + 5
    drafts = self_refine.make_best_of(study, "M1")
    spent = sum(row["read"] + row["text_tokens"] + row["judge_tokens"] for row in drafts)
    assert spent <= sum({row["prompt_id"]: row["budget"] for row in drafts}.values())
    who = contestants(study, "M1")
    assert list(who) == [
        "M1",
        "M1 refined",
        "M1 best of N",
        *arrived(study.config, study.arms, "M1"),
    ]
    assert who["M1 refined"]["b"]["text"] == "answer 8 now"
    own = self_refine.make_refined_judgements(study, "M1")
    assert {row["response_id"] for row in own} >= {"round 1|a", "M1 best of N|b"}
    assert len(own) == 7 + 2 * 2
    compared = self_refine.make_refined_comparisons(study, "M1")
    pairs = {(row["left"], row["right"]) for row in compared}
    assert ("M1 refined", "M1") in pairs
    assert ("M1 refined", "self-rewarding/M2") in pairs
    assert len(compared) == 5 * 2 * 2, "5 pairs, 2 prompts, both orders"
