"""Pairs of judgements: which response, which judgements, who wins, and what is trained on."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srkit.dpo import preferences
from srkit.meta_judge import (
    judge_pair_of,
    make_judge_draws,
    make_judge_pairs,
    make_meta_judgements,
    most_varied,
    strengths,
)
from srkit.rows import kept
from srkit.study import Study

FOLDER = "meta-judge/iter-1"


def draws(**scores: list) -> list[dict]:
    """Judgements of responses, with texts that name them; equal scores have equal texts."""
    return [
        {"id": f"{response}@{k}", "response_id": response, "prompt_id": "p", "sample": k,
         "text": f"{response} is so.\nScore: {score}\n", "score": score, "tokens": 5,
         "truncated": False}
        for response, values in scores.items() for k, score in enumerate(values)
    ]  # fmt: skip


def compared(*matches: tuple[str, str, float | None, float | None]) -> list[dict]:
    return [
        {"left": left, "right": right, "first": first, "log_odds_left": odds}
        for left, right, *both in matches
        for first, odds in zip(("left", "right"), both, strict=True)
    ]


# --- which judgements are compared ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "found"),
    [
        # variances 2/9 and 14/9: the second varies most; its two 5s are one judgement
        ({"a": [3, 3, 4], "b": [2, 5, 5]}, ["b@0", "b@1"]),
        ({"a": [0, 5, None], "b": [1, 2, 3]}, ["a@0", "a@1"]),
        ({"a": [1, 3], "b": [2, 4]}, ["a@0", "a@1"]),  # the first among equals
        ({"a": [3, 3], "b": [5, 5]}, "judgements agree"),
        ({"a": [3, None], "b": [None, None]}, "judgements agree"),
        ({"a": [None, None]}, "no judgement can be read"),
    ],
)
def test_of_the_response_whose_scores_vary_most(scores, found):
    judgements = most_varied(draws(**scores))
    assert (judgements if isinstance(found, str) else [j["id"] for j in judgements]) == found


# --- who wins ------------------------------------------------------------------------------------


def test_strengths_by_hand():
    """a over b by 2, b over c by 1, a over c by 3: strengths 5/3, -1/3, -4/3."""
    rows = compared(("a", "b", 2, 2), ("a", "c", 3, 3), ("b", "c", 1, 1))
    assert strengths(["a", "b", "c"], rows) == pytest.approx([5 / 3, -1 / 3, -4 / 3])


@given(st.lists(st.floats(-9, 9), min_size=2, max_size=5), st.floats(-50, 50))
def test_strengths_are_found_again_whatever_place_is_preferred(true, place):
    """A preference for what stands first adds to one order and takes from the other."""
    names = [str(i) for i in range(len(true))]
    rows = compared(*(
        (names[i], names[j], true[i] - true[j] + place, true[i] - true[j] - place)
        for i in range(len(true)) for j in range(i + 1, len(true))
    ))  # fmt: skip
    mean = math.fsum(true) / len(true)
    assert strengths(names, rows) == pytest.approx([t - mean for t in true], abs=1e-9)


def test_a_match_without_both_orders_counts_as_even():
    assert strengths(["a", "b"], compared(("a", "b", 5, None))) == [0, 0]


def test_the_row_of_a_pair():
    rows = draws(a=[1, 4, 4, 5])
    matches = compared(("a@0", "a@1", 1, 1), ("a@0", "a@3", 1, 1), ("a@1", "a@3", 3, 5))
    row = judge_pair_of("p", rows, matches, {"a": "Judge a."})
    assert row == {
        "id": "p", "response_id": "a", "prompt": "Judge a.", "dropped": None,
        "chosen": "a is so.\nScore: 4", "chosen_strength": pytest.approx((4 - 1) / 3),
        "chosen_id": "a@1", "chosen_score": 4, "chosen_tokens": 5, "chosen_truncated": False,
        "rejected": "a is so.\nScore: 5", "rejected_strength": pytest.approx((-4 - 1) / 3),
        "rejected_id": "a@3", "rejected_score": 5, "rejected_tokens": 5,
        "rejected_truncated": False,
    }  # fmt: skip
    (learned,) = preferences([row])
    assert learned.conversation == [{"role": "user", "content": "Judge a."}]
    assert (learned.chosen, learned.chosen_finished) == ("a is so.\nScore: 4", True)


def test_what_gives_no_pair_says_why():
    assert judge_pair_of("p", draws(a=[2, 2]), [], {}) == {"id": "p", "dropped": "judgements agree"}
    even = compared(("a@0", "a@1", 3, -3))
    assert judge_pair_of("p", draws(a=[1, 2]), even, {"a": ""})["dropped"] == "tie"


# --- the steps -----------------------------------------------------------------------------------


def test_m_t_draws_compares_and_learns(study, make, engine):
    new = Study.open(study.path, overrides="pairs.judge_draws=3", arm="meta-judge", change=True)
    for name in ("seed/ift", "seed/eft", "baseline/adapter", "seed/eft_targets", "M1/adapter"):
        make(new, name)
    prompts = [{"id": p, "prompt": f"question {p}", "dropped": None} for p in ("p", "q")]
    candidates = [
        {"id": f"{p}#{i}", "prompt_id": p, "prompt": f"question {p}", "sample": i,
         "text": f"answer {p}{i}", "tokens": 3, "truncated": False}
        for p in ("p", "q") for i in range(2)
    ]  # fmt: skip
    for arm in ("self-rewarding", "meta-judge"):
        make(new, f"{arm}/iter-1/prompts", prompts)
        make(new, f"{arm}/iter-1/candidates", candidates)
    drawn = iter(range(99))

    def reply(content, seed):
        """Of p the second answer gets 1, 3, 5; all other scores are 2."""
        return f"Because.\nScore: {1 + 2 * (next(drawn) % 3) if 'answer p1' in content else 2}\n"

    engine.reply = reply
    rows = make_judge_draws(new, "meta-judge", 1)
    assert len(rows) == 2 * 2 * new.config.for_arm("meta-judge").pairs.judge_draws
    assert all(row["score"] is not None for row in rows), "written, though the method is expected"

    def prefers(content, option):
        """The lower score, and what stands first has a head start of 2."""
        place = option.strip().lower()
        score = content.partition(f"<judgement_{place}>")[2].partition("Score: ")[2][0]
        return 2.0 * (place == "a") - int(score)

    engine.score = prefers
    matches = make_meta_judgements(new, "meta-judge", 1)
    assert {call[0] for call in engine.calls} == {"M1"}
    asked = engine.calls[-1][1][0]
    assert asked[1]["content"] == "Better judgement:"
    assert asked[0]["content"].count("answer p1") == 1
    count = len({row["text"] for row in rows if row["response_id"] == "p#1"})
    assert len(matches) == count * (count - 1), "every two, in both orders"
    assert {row["preferred"] == row["first"] for row in matches} == {True, False}
    made = make_judge_pairs(new, "meta-judge", 1)
    assert [row["dropped"] for row in made] == [None, "judgements agree"]
    (pair,) = kept(made)
    assert (pair["response_id"], pair["chosen_score"], pair["rejected_score"]) == ("p#1", 1, 5)
    assert pair["prompt"].count("answer p1") == 1, "the message that asked for the judgement"
