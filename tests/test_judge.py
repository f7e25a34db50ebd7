"""The judge: EFT targets, judgements, means. What does not parse is never a number."""

import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srkit import judge
from srkit.config import SrkitError
from srkit.judge import (
    agrees,
    judge_candidates,
    judge_held_out,
    judge_responses,
    make_eft_targets,
    make_judgements,
    mean_scores,
    rank_score,
    survival,
    targets_from_judgements,
    targets_from_ranks,
    targets_from_reference,
    thin_most_common,
)
from srkit.prompts import parse_score
from srkit.rows import kept
from srkit.study import Study


def ranked(*scores, prompt="p1", **more) -> list[dict]:
    """Ranked responses to one prompt, best first, with reference scores."""
    return [
        {"id": f"{prompt}-{i}", "prompt_id": prompt, "prompt": "Why?", "response": f"answer {i}",
         "rank": i, "rationale": f"because {i}", "score": score, **more}
        for i, score in enumerate(scores)
    ]  # fmt: skip


def judgements(scores: dict[str, list], prompt="p1", truncated=False) -> list[dict]:
    """K judgements by response id."""
    return [
        {"id": f"{response}@{k}", "response_id": response, "prompt_id": prompt, "sample": k,
         "text": f"x\nScore: {score}", "score": score, "truncated": truncated}
        for response, values in scores.items()
        for k, score in enumerate(values)
    ]  # fmt: skip


# --- EFT targets ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "scores"),
    [(1, [5]), (2, [5, 1]), (3, [5, 3, 1]), (4, [5, 4, 2, 1]), (5, [5, 4, 3, 2, 1])],
)
def test_rank_scores_spread_from_the_top_to_one(ranks, scores):
    assert [rank_score(r, ranks) for r in range(ranks)] == scores
    assert [rank_score(r, ranks, "multiple_choice") for r in range(ranks)] == scores


@given(st.integers(2, 30))
def test_rank_scores_never_rise(ranks):
    scores = [rank_score(r, ranks) for r in range(ranks)]
    assert scores == sorted(scores, reverse=True)
    assert (scores[0], scores[-1]) == (5, 1)


@pytest.mark.parametrize(
    ("scores", "ranks", "agreed"),
    [
        ([5, 3, 1], [0, 1, 2], True),
        ([1, 5, 3], [2, 0, 1], True),
        ([5, 3, 3], [0, 1, 2], False),
        ([5, 1, 3], [0, 1, 2], False),
        ([5, None, 1], [0, 1, 2], False),
        ([2.5, 2.4], [0, 1], True),
        ([0, 5], [0, 1], False),
    ],
)
def test_agreement_is_strict_and_complete(scores, ranks, agreed):
    assert agrees(scores, ranks) == agreed


def test_targets_from_reference():
    rows = targets_from_reference(ranked(5, 0), "additive")
    assert [row["target"] for row in rows] == ["because 0\nScore: 5", "because 1\nScore: 0"]
    assert [row["score"] for row in rows] == [5, 0]
    assert all(row["dropped"] is None and row["prompt"] == "Why?" for row in rows)
    assert [row["response"] for row in rows] == ["answer 0", "answer 1"]
    low = targets_from_reference(ranked(5, 0), "multiple_choice")
    assert [parse_score(row["target"], "multiple_choice") for row in low] == [5, 1]
    with pytest.raises(SrkitError, match=r"to p1 have no reference.*eft_targets=self.*=rank"):
        targets_from_reference(ranked(5, None), "additive")


def test_targets_from_ranks():
    rows = targets_from_ranks(ranked(None, None, None), "additive")
    assert [row["target"] for row in rows] == ["Score: 5", "Score: 3", "Score: 1"]
    assert [row["score"] for row in rows] == [5, 3, 1]


@pytest.mark.parametrize(
    ("draws", "scores", "dropped"),
    [
        ({"p1-0": [4], "p1-1": [2]}, [4, 2], None),
        ({"p1-0": [2, 5], "p1-1": [4, 1]}, [5, 1], None),
        ({"p1-0": [None, 5], "p1-1": [4, 1]}, [5, 1], None),
        ({"p1-0": [4, 2], "p1-1": [2, 1]}, [4, 2], None),
        ({"p1-0": [3], "p1-1": [3]}, [None] * 2, "order differs from the human order"),
        ({"p1-0": [1], "p1-1": [3]}, [None] * 2, "order differs from the human order"),
        ({"p1-0": [None], "p1-1": [3]}, [None] * 2, "not parsable"),
    ],
)
def test_targets_from_the_baseline_s_own_judgements(draws, scores, dropped):
    own = {}
    for row in judgements(draws):
        own.setdefault(row["response_id"], []).append(row)
    rows = targets_from_judgements(ranked(None, None), own)
    assert [row["score"] for row in rows] == scores
    assert [row["dropped"] for row in rows] == [dropped] * 2
    assert [row["target"] for row in rows] == [s and f"x\nScore: {s}" for s in scores]


@pytest.mark.parametrize(
    ("counts", "share", "left"),
    [
        ({5: 10, 3: 4, 1: 4}, 0.5, {5: 8, 3: 4, 1: 4}),
        ({5: 20, 3: 3, 1: 3}, 0.4, {5: 4, 3: 3, 1: 3}),
        ({5: 10, 3: 4, 1: 4}, 1.0, {5: 10, 3: 4, 1: 4}),
        ({5: 2, 3: 2, 1: 2}, 0.4, {5: 2, 3: 2, 1: 2}),
        ({5: 6}, 0.4, {5: 6}),
        ({5: 9, 1: 1}, 0.1, {5: 1, 1: 1}),
    ],
)
def test_the_most_common_score_is_thinned_to_its_share(counts, share, left):
    rows = [
        {"id": f"{s}-{i}", "score": s, "dropped": None} for s, n in counts.items() for i in range(n)
    ]
    again = [dict(row) for row in rows]
    thin_most_common(rows, share, seed=3)
    assert Counter(row["score"] for row in kept(rows)) == left
    assert {row["dropped"] for row in rows} <= {None, "most common score thinned"}
    thin_most_common(again, share, seed=3)
    assert again == rows


@given(st.lists(st.integers(0, 5), min_size=2, max_size=60), st.floats(0.2, 0.9), st.integers(0, 9))
def test_thinning_touches_one_score_and_reaches_its_share(scores, share, seed):
    rows = [{"score": score, "dropped": None} for score in scores]
    before = Counter(scores)
    thin_most_common(rows, share, seed)
    after = Counter(row["score"] for row in kept(rows))
    changed = [score for score in before if after[score] != before[score]]
    assert len(changed) <= 1
    for score in changed:
        assert before[score] == max(before.values())
        assert after[score] == 1 or after[score] / after.total() <= share


def test_thinning_leaves_what_was_dropped_before_alone():
    rows = [{"score": None, "dropped": "not parsable"} for _ in range(9)]
    thin_most_common(rows, 0.4, seed=0)
    assert survival(rows) == {"not parsable": 9}


# --- the step of the targets ---------------------------------------------------------------------

EFT = [row for i in range(6) for row in ranked(5, 3, 0, prompt=f"p{i}")]


def scored_by_rank(content: str, seed: int) -> str:
    """A judge who knows the order of answers to CLEAR prompts."""
    rank = int(re.search("answer ([0-9])", content)[1])
    return f"Fine.\nScore: {4 - rank}" if "CLEAR" in content else "No score from me."


@pytest.fixture
def seeded(study, make, tmp_path):
    def seeded(overrides: str, eft=EFT) -> Study:
        new = Study.open(tmp_path / overrides.replace("/", "-"), "tiny", overrides)
        make(new, "seed/ift")
        make(new, "seed/eft", eft)
        make(new, "baseline/adapter")
        return new

    return seeded


@pytest.mark.parametrize(
    ("source", "scores"), [("reference", {5: 4, 3: 6, 0: 6}), ("rank", {5: 6, 3: 6, 1: 6})]
)
def test_targets_step(seeded, engine, source, scores):
    new = seeded(f"sft.eft_targets={source} sft.eft_modal_share=0.25")
    rows = make_eft_targets(new)
    assert len(rows) == 18, "dropped rows stay"
    assert Counter(row["score"] for row in kept(rows)).total() == 12 + 4
    assert survival(rows) == {"kept": 16, "most common score thinned": 2}
    assert engine.calls == [], "no model is needed"


def test_targets_step_with_the_baseline_as_judge(seeded, engine):
    rows = [
        row | {"prompt": "CLEAR" if int(row["prompt_id"][1]) % 2 == 0 else "HARD"} for row in EFT
    ]
    engine.reply = scored_by_rank
    new = seeded(
        "sft.eft_targets=self sft.eft_samples=2 sft.eft_modal_share=1 judge.method=sampled", rows
    )
    made = make_eft_targets(new)
    assert survival(made) == {"kept": 9, "not parsable": 9}
    assert [row["target"] for row in kept(made)[:3]] == [f"Fine.\nScore: {s}" for s in (4, 3, 2)]
    assert {call[0] for call in engine.calls} == {"baseline"}
    assert len(new.read("baseline/eft_judgements")) == 18 * 2


def test_own_targets_are_written_even_where_the_judge_answers_by_probabilities(seeded, engine):
    """With `expected` there would be no text to learn from."""
    rows = [row | {"prompt": "CLEAR"} for row in EFT]
    engine.reply = scored_by_rank
    new = seeded("sft.eft_targets=self judge.method=expected sft.eft_modal_share=1", rows)
    assert make_eft_targets(new)[0]["target"] == "Fine.\nScore: 4"


def test_no_target_left_is_an_error(seeded, engine):
    engine.reply = lambda content, seed: "Score: 9"
    new = seeded("sft.eft_targets=self judge.method=sampled")
    with pytest.raises(SrkitError, match=r"of 18: \{'not parsable': 18\}.*sft.eft_samples"):
        make_eft_targets(new)


# --- judging -------------------------------------------------------------------------------------


@pytest.fixture
def candidates(study, make):
    """A study up to the candidates of the first iteration: two prompts, three responses each."""

    def candidates(overrides: str, arm: str = "self-rewarding") -> Study:
        new = Study.open(study.path, overrides=overrides, arm=arm, change=True)
        rows = [
            {
                "id": f"p{p}#{i}",
                "prompt_id": f"p{p}",
                "prompt": f"q{p}",
                "text": f"a{p}{i}",
                "rank": i,
            }
            for p in range(2)
            for i in range(3)
        ]
        needed = ["seed/ift", "seed/eft", "seed/eft_eval", "baseline/adapter", "seed/eft_targets"]
        for name in [*needed, "M1/adapter"]:
            make(new, name)
        for table in ("prompts", "candidates"):
            name = f"{arm}/iter-1/{table}"
            for one in filter(None, (new.step(name).same_as, name)):
                make(new, one, rows)
        return new

    return candidates


def test_sampled_judgements_are_k_rows_per_response_in_order(candidates, engine):
    replies = {"a00": "Good.\nScore: 4", "a01": "Score: 9", "a02": "no idea"}
    engine.reply = lambda content, seed: next(
        (reply for text, reply in replies.items() if text in content), "Score: 1"
    )
    new = candidates("judge.method=sampled judge.samples=3 judge.chunk=4 judge.temperature=0.5")
    rows = judge_candidates(new, "self-rewarding", 1)
    assert [row["id"] for row in rows[:4]] == ["p0#0@0", "p0#0@1", "p0#0@2", "p0#1@0"]
    assert len(rows) == 6 * 3, "exactly K rows"
    assert [row["score"] for row in rows] == [4] * 3 + [None] * 6 + [1] * 9
    assert [row["sample"] for row in rows] == [0, 1, 2] * 6
    assert list(rows[0]) == ["id", "response_id", "prompt_id", "sample", "text", "score", "tokens",
                             "truncated"]  # fmt: skip
    policy, conversations, n, sampling, _ = engine.calls[0]
    assert (policy, n, len(conversations), sampling.temperature) == ("M1", 3, 4, 0.5)
    assert len({seed for call in engine.calls for row in call[4] for seed in row}) == 18
    assert "<response>a00</response>" in conversations[0][0]["content"]


def test_expected_scores_are_means_over_the_score_tokens(candidates, engine):
    probabilities = {" 0": 0.1, " 1": 0.0, " 2": 0.0, " 3": 0.0, " 4": 0.3, " 5": 0.1}
    engine.score = lambda content, option: math.log(probabilities[option] + 1e-300) - 700
    rows = judge_candidates(
        candidates("judge.method=expected judge.samples=3"), "self-rewarding", 1
    )
    assert len(rows) == 6, "one draw is enough"
    assert rows[0]["score"] == pytest.approx((4 * 0.3 + 5 * 0.1) / 0.5)
    assert rows[0]["text"] is None
    _, conversations, options = engine.calls[0]
    assert options == [" 0", " 1", " 2", " 3", " 4", " 5"]
    assert conversations[0][-1] == {"role": "assistant", "content": "Score:"}


def test_expected_scores_of_the_multiple_choice_rubric_start_at_one(candidates, engine):
    new = candidates("judge.method=expected judge.rubric=multiple_choice")
    assert judge_candidates(new, "self-rewarding", 1)[0]["score"] == 3
    assert engine.calls[0][2] == [" 1", " 2", " 3", " 4", " 5"]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_probabilities_that_overflowed_are_no_score(candidates, engine, broken):
    engine.score = lambda content, option: broken if "a00" in content else 0.0
    with np.errstate(invalid="ignore"):
        rows = judge_candidates(candidates("judge.method=expected"), "self-rewarding", 1)
    assert [row["score"] for row in rows] == [None, 2.5, 2.5, 2.5, 2.5, 2.5]


def test_the_random_judge_tosses_coins_in_the_loop_and_nowhere_else(candidates, engine, make):
    new = candidates("judge.samples=2 judge.method=sampled", arm="random-judge")
    rows = judge_candidates(new, "random-judge", 1)
    assert engine.calls == []
    assert {row["score"] for row in rows} <= {0, 1, 2, 3, 4, 5}
    assert len({row["score"] for row in rows}) > 1
    (new.path / "random-judge/iter-1/judgements.jsonl").unlink()
    assert judge_candidates(new, "random-judge", 1) == rows
    engine.reply = lambda content, seed: "Score: 2"
    for name in ("random-judge/iter-1/pairs", "random-judge/M2/adapter"):
        make(new, name)
    (new.path / "seed/eft_eval.jsonl").unlink()
    make(new, "seed/eft_eval", ranked(5, 1))
    held_out = judge_held_out(new, "random-judge/M2")
    assert [row["score"] for row in held_out] == [2, 2]
    assert engine.calls[0][0] == "random-judge/M2"


def test_the_oracle_gives_a_point_for_each_constraint_that_is_met(candidates, engine):
    limits = "arms.oracle=[starts_with=a1,ends_with=2,max_words=1]"
    new = candidates(f"judge.samples=3 judge.method=sampled {limits}", arm="oracle")
    rows = judge_candidates(new, "oracle", 1)
    assert [row["id"] for row in rows][:2] == ["p0#0@0", "p0#1@0"], "once is enough"
    assert [row["score"] for row in rows] == [1, 1, 2, 2, 2, 3]  # a00 a01 a02 a10 a11 a12
    assert engine.calls == [], "no model is asked"


def test_ranks_are_the_judgements_of_the_arm_human(candidates, engine):
    rows = judge_candidates(candidates("judge.method=sampled", arm="human"), "human", 1)
    assert [row["score"] for row in rows] == [5, 4, 3, 5, 4, 3]
    assert engine.calls == []


@pytest.mark.parametrize("judge", ["M0", "baseline", "M1"])
def test_an_external_judge_is_a_fixed_model(candidates, engine, judge):
    new = candidates(f"arms.external_judge={judge}", arm="external-judge")
    judge_candidates(new, "external-judge", 1)
    assert {call[0] for call in engine.calls} == {judge}
    adapters = {i for i in new.step("external-judge/iter-2/judgements").inputs if "adapter" in i}
    assert adapters == ({f"{judge}/adapter"} if judge != "M0" else set())


def test_an_external_judge_may_compare_candidates_two_by_two(candidates, engine):
    """It prefers later candidates, and whatever stands first: the latter cancels."""
    settings = "judge.chunk=3 arms.external_method=pairwise judge.method=sampled"

    def odds(content, option):
        places = {name: content.find(name) for name in ("a00", "a01", "a02", "a10", "a11", "a12")}
        first, second = sorted((n for n, i in places.items() if i >= 0), key=places.get)
        return math.log(3) * (int(first[2]) - int(second[2])) + 5.0 if option == " A" else 0.0

    engine.score = odds
    rows = judge_candidates(candidates(settings, arm="external-judge"), "external-judge", 1)
    assert len(engine.calls) == 2, "a prompt's three candidates in each chunk"
    assert [len(call[1]) for call in engine.calls] == [6, 6], "both orders of three pairs"
    scores = [row["score"] for row in rows]
    assert scores[0] < scores[1] == 2.5 < scores[2], "the middle one wins half"
    assert scores[0] + scores[2] == pytest.approx(5)
    share = [1 / (1 + math.exp(-(k * math.log(3) + sign * 5))) for k in (1, 2) for sign in (1, -1)]
    assert scores[2] == pytest.approx(5 * sum(share) / 4, abs=1e-6)
    assert scores[3:] == scores[:3]


def test_comparisons_without_an_answer_are_no_score(candidates, engine):
    engine.score = lambda content, option: math.nan if "a01" in content else 0.0
    settings = "arms.external_method=pairwise"
    rows = judge_candidates(candidates(settings, arm="external-judge"), "external-judge", 1)
    assert [row["score"] for row in rows] == [2.5, None, 2.5, 2.5, 2.5, 2.5]


def test_held_out_rankings_have_their_own_k(study, make, engine):
    new = Study.open(study.path, overrides="judge.method=sampled eval.judge_samples=2", change=True)
    engine.reply = lambda content, seed: f"Score: {seed % 6}"
    for name in ("seed/ift", "baseline/adapter"):
        make(new, name)
    make(new, "seed/eft_eval", ranked(5, 3, 1))
    rows = judge_held_out(new, "baseline")
    assert len(rows) == 3 * 2
    assert [row["response_id"] for row in rows] == ["p1-0", "p1-0", "p1-1", "p1-1", "p1-2", "p1-2"]
    assert "<response>answer 0</response>" in engine.calls[0][1][0][0]["content"]


def test_judging_again_after_a_cut_gives_the_same(candidates, engine, tmp_path):
    engine.reply = lambda content, seed: f"Score: {seed % 6}"
    new = candidates("judge.method=sampled judge.chunk=2")
    step, table = (
        "self-rewarding/iter-1/judgements",
        new.path / "self-rewarding/iter-1/judgements.jsonl",
    )
    rows = judge_candidates(new, "self-rewarding", 1)
    before = table.read_bytes()
    table.unlink()
    engine.calls.clear()

    def cut(content, seed):
        if len(engine.calls) == 2:
            raise KeyboardInterrupt
        return f"Score: {seed % 6}"

    engine.reply = cut
    with pytest.raises(KeyboardInterrupt):
        judge_candidates(new, "self-rewarding", 1)
    engine.reply = lambda content, seed: f"Score: {seed % 6}"
    responses = new.read("self-rewarding/iter-1/candidates")
    assert make_judgements(new, step, "M1", responses) == rows
    assert len(engine.calls) == 4
    assert table.read_bytes() == before


# --- plain rows, without a study -----------------------------------------------------------------

PLAIN = [
    {"prompt_id": "p", "response_id": f"r{i}", "prompt": "Why?", "response": f"answer {i}"}
    for i in range(3)
]


def test_plain_rows_are_judged_k_times_each(engine):
    fake = judge.open_engine(None, "any")
    engine.reply = lambda content, seed: "no" if "answer 1" in content else f"Score: {seed % 6}"
    rows = judge_responses(fake, PLAIN, samples=2, temperature=0.5, seed=3)
    assert [(r["response_id"], r["sample"]) for r in rows] == [
        ("r0", 0), ("r0", 1), ("r1", 0), ("r1", 1), ("r2", 0), ("r2", 1)
    ]  # fmt: skip
    assert [row["score"] is None for row in rows] == [False, False, True, True, False, False]
    assert {row["text"] for row in rows[2:4]} == {"no"}
    assert {"prompt_id", "tokens", "truncated"} <= set(rows[0])
    sampling = engine.calls[0][3]
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.5, 0.9, 256)
    assert judge_responses(fake, PLAIN[2:], samples=2, temperature=0.5, seed=3) == rows[4:]
    assert judge_responses(fake, PLAIN, samples=2, seed=4) != rows, "another seed, other draws"


def test_plain_rows_are_judged_once_by_expected_score(engine):
    engine.score = lambda content, option: 0.0 if option == " 5" else -1e9
    fake = judge.open_engine(None, "any")
    rows = judge_responses(fake, PLAIN, rubric="multiple_choice", samples=7, method="expected")
    assert [(row["score"], row["text"]) for row in rows] == [(5, None)] * 3


def test_plain_rows_are_judged_by_a_policy_as_by_its_engine():
    from srkit.config import Model
    from srkit.generate import HfEngine
    from srkit.models import load_policy

    policy = load_policy(Model(name="tiny", device="cpu"))
    found = judge_responses(policy, PLAIN, method="expected")
    assert found == judge_responses(HfEngine(policy), PLAIN, method="expected")
    assert all(0 < row["score"] < 5 for row in found)


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([], {}, "judge_responses: there are no rows"),
        ([{"prompt_id": "p"}], {}, "row 1: no response_id, prompt, response; it has 'prompt_id'"),
        (PLAIN[:1] * 2, {}, "the response_id 'r0' stands in row 1 already"),
        (PLAIN, {"rubric": "additve"}, "judge.rubric = 'additve'"),
        (PLAIN, {"method": "guess"}, "judge.method = 'guess'"),
        (PLAIN, {"samples": 0}, "judge.samples = 0"),
        (PLAIN, {"temprature": 1}, "temperature"),
    ],
)
def test_plain_rows_that_cannot_be_judged_say_why(engine, rows, more, message):
    with pytest.raises(SrkitError, match=message):
        judge_responses(judge.open_engine(None, "any"), rows, **more)
    assert engine.calls == []


# --- means ----------------------------------------------------------------------------------------


def test_means_are_over_what_parses_and_stay_fractions():
    rows = judgements({"a": [4, None, 5], "b": [None, None], "c": [3], "d": [5, 5, 4]})
    assert mean_scores(rows) == {"a": 4.5, "b": None, "c": 3, "d": 14 / 3}


@given(
    st.lists(st.one_of(st.none(), st.integers(0, 50).map(lambda x: x / 10)), max_size=9),
    st.randoms(),
)
def test_the_order_of_judgements_never_breaks_a_tie(scores, rng):
    """Sums of decimals depend on their order by a bit, which would make a pair of a tie."""
    mixed = list(scores)
    rng.shuffle(mixed)
    means = mean_scores(judgements({"a": scores or [None], "b": mixed or [None]}))
    assert means["a"] == means["b"]
