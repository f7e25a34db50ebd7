"""Candidates and pairs: what scored best against what scored worst, and nothing invented."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srkit.config import Pairs, SrkitError
from srkit.judge import judge_anchors
from srkit.pairs import (
    anchored,
    at_most,
    best_worst,
    check_enough,
    length_controlled,
    length_matched,
    make_anchors,
    make_candidates,
    make_pairs,
    pair_of,
    places_of,
)
from srkit.rows import kept
from srkit.study import Study

SETTINGS = Pairs()
scores = st.lists(st.none() | st.sampled_from([0.0, 1.0, 2.5, 10 / 3, 4.0, 5.0]), max_size=8)


def candidates(*texts: str, prompt: str = "p1") -> list[dict]:
    return [
        {"id": f"{prompt}#{i}", "prompt_id": prompt, "sample": i, "prompt": f"question {prompt}",
         "text": text, "tokens": 10 + i, "truncated": i == 1}
        for i, text in enumerate(texts)
    ]  # fmt: skip


# --- best against worst --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_scores", "found"),
    [
        ([3.0, None, 1.0], (0, 2)),
        ([1, 3], (1, 0)),
        ([2, 5, 1, 5, 1], (1, 2)),
        ([4, 4, 3], (0, 2)),
        ([3, 4, 3], (1, 0)),
        ([10 / 3, 3], (0, 1)),
        ([0, 5], (1, 0)),
        ([0.0, None], "fewer than two scored"),
        ([None, None, None], "fewer than two scored"),
        ([], "fewer than two scored"),
        ([4], "fewer than two scored"),
        ([4, 4, 4], "tie"),
        ([0, 0, None], "tie"),
    ],
)
def test_best_worst(given_scores, found):
    assert best_worst(given_scores) == found


@given(scores, st.floats(0, 3))
def test_chosen_is_always_better_than_rejected_by_more_than_the_gap(values, gap):
    found = best_worst(values, gap)
    scored = [value for value in values if value is not None]
    if isinstance(found, str):
        assert len(scored) < 2 or max(scored) - min(scored) <= gap
        return
    chosen, rejected = found
    assert values[chosen] == max(scored)
    assert values[rejected] == min(scored)
    assert values[chosen] - values[rejected] > gap
    assert values.index(values[chosen]) == chosen, "the first among equals"
    assert values.index(values[rejected]) == rejected


@given(scores)
def test_missing_scores_change_nothing_but_places(values):
    """A judgement that does not parse once counted as -1 and became the rejected response."""
    found, without = best_worst(values), best_worst([v for v in values if v is not None])
    if isinstance(found, str):
        assert found == without
        return
    assert None not in [values[place] for place in found]
    assert [values[place] for place in found] == [
        [v for v in values if v is not None][place] for place in without
    ]


def test_the_gap_itself_is_too_small():
    assert best_worst([4, 3], 1) == "gap too small"
    assert best_worst([4.5, 3], 1) == (0, 1)
    assert best_worst([3, 3], 1) == "tie"


# --- rules that look at lengths ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_scores", "lengths", "rho", "found"),
    [
        # of 0 to 5 with rho 0.2: good from 4 up, bad up to 1
        ([5, 4, 1, 0], [90, 40, 80, 30], 0.2, (1, 2)),
        ([5, 3.9, 1.1, 0], [90, 40, 80, 30], 0.2, (0, 3)),
        ([5, 4.5, 4, 0], [90, 40, 40, 30], 0.2, (1, 3)),  # the first of equal lengths
        ([0, 1, 1, 5], [30, 80, 80, 9], 0.2, (3, 1)),
        ([None, 5, 0], [1, 90, 30], 0.2, (1, 2)),
        ([10 / 3, 3, 0], [90, 40, 30], 0.1, (1, 2)),  # 0.9 x 10/3 is 3, but for the rounding
        ([3, 3], [9, 1], 0.2, "tie"),
        ([3, None], [9, 1], 0.2, "fewer than two scored"),
    ],
)
def test_length_control_takes_the_shortest_good_and_the_longest_bad(
    given_scores, lengths, rho, found
):
    assert length_controlled(given_scores, lengths, rho) == found


@pytest.mark.parametrize(
    ("given_scores", "lengths", "within", "found"),
    [
        ([5, 3, 1], [100, 60, 50], 0.25, (1, 2)),  # 60 and 50: a sixth
        ([5, 3, 1], [100, 75, 50], 0.25, (0, 1)),  # 100 and 75: a quarter, 75 and 50: a third
        ([4, 4, 2, 2], [50, 100, 100, 50], 0.25, (0, 3)),  # two alike: the first chosen
        ([4, 5, 1], [50, 50, 50], 0.25, (1, 2)),
        ([5, 1], [100, 50], 0.25, "lengths too different"),
        ([5, None, 1], [100, 90, 50], 0.25, "lengths too different"),
        ([3, 3], [50, 50], 0.25, "tie"),
        ([3], [50], 0.25, "fewer than two scored"),
    ],
)
def test_length_matching_takes_the_widest_gap_of_about_one_length(
    given_scores, lengths, within, found
):
    assert length_matched(given_scores, lengths, within) == found


@pytest.mark.parametrize(
    ("own", "anchors", "found"),
    [
        ([4, 2], [1, 3], (0, 2)),  # the worst of all is an anchor
        ([4, 2], [2, 3], (0, 1)),  # not below the worst of one's own
        ([4, 2], [5, 4], (0, 1)),  # an anchor is never chosen
        ([3, 3], [1, 0], (0, 3)),  # one's own alone would tie
        ([3, 3], [3, 4], "tie"),
        ([None, 3], [1, None], (1, 2)),
        ([None, None], [1, 0], "fewer than two scored"),
        ([4, 2], [None, None], (0, 1)),
        ([4, 2], [], (0, 1)),
    ],
)
def test_anchored_rejection_takes_the_worst_of_all_if_it_is_worse(own, anchors, found):
    assert anchored(own, anchors) == found


texts_and_scores = st.lists(
    st.tuples(st.none() | st.sampled_from([0.0, 1.0, 2.5, 10 / 3, 5.0]), st.integers(1, 9)),
    max_size=8,
)


@given(texts_and_scores)
def test_without_a_rule_for_lengths_best_stands_against_worst(rows):
    values, lengths = [score for score, _ in rows], [length for _, length in rows]
    expected = best_worst(values)
    assert places_of(values, lengths, SETTINGS) == expected
    assert length_matched(values, lengths, 1) == expected, "ties included"


@given(texts_and_scores, st.floats(0.01, 0.49), st.floats(0, 2))
def test_length_control_keeps_to_its_bands(rows, rho, gap):
    values, lengths = [score for score, _ in rows], [length for _, length in rows]
    found = places_of(values, lengths, Pairs(rho=rho, min_gap=gap))
    if isinstance(found, str):
        return
    chosen, rejected = found
    high, low = max(v for v in values if v is not None), min(v for v in values if v is not None)
    assert values[chosen] >= (1 - rho) * high + rho * low - 1e-8
    assert values[rejected] <= (1 - rho) * low + rho * high + 1e-8
    assert values[chosen] - values[rejected] > gap
    assert lengths[chosen] <= lengths[values.index(high)]
    assert lengths[rejected] >= lengths[values.index(low)]


def test_length_rules_in_the_row_of_a_prompt():
    rows = candidates("good and long winded", "good", "bad", "bad and long winded")
    values = dict(zip(["p1#0", "p1#1", "p1#2", "p1#3"], [5.0, 4.5, 1.0, 1.5], strict=True))
    row = pair_of(rows, values, Pairs(rho=0.2))
    assert (row["chosen"], row["rejected"]) == ("good", "bad and long winded")
    assert (row["chosen_score"], row["rejected_score"]) == (4.5, 1.5)
    row = pair_of(rows, values, Pairs(within=0.1))
    assert (row["chosen"], row["rejected"]) == ("good and long winded", "bad and long winded")
    assert pair_of(rows, values, Pairs(rho=0.2, min_gap=3))["dropped"] == "gap too small"
    assert pair_of(rows[:1] + rows[2:3], values, Pairs(within=0.1))["dropped"] == (
        "lengths too different"
    )


def test_an_anchor_in_the_row_of_a_prompt():
    rows, past = candidates("good", "fair"), candidates("poor", " ", prompt="p1")
    past = [{**row, "id": f"p1#M0-{row['sample']}"} for row in past]
    values = {"p1#0": 4.0, "p1#1": 3.0, "p1#M0-0": 1.0, "p1#M0-1": 0.0}
    row = pair_of(rows, values, Pairs(anchor="M0"), past)
    assert (row["chosen_id"], row["rejected_id"]) == ("p1#0", "p1#M0-0"), "no text, no part"
    assert (row["rejected"], row["rejected_score"]) == ("poor", 1.0)
    assert pair_of(rows, values, Pairs(anchor="M0", min_gap=3), past)["dropped"] == "gap too small"


# --- the row of a prompt -------------------------------------------------------------------------


def test_the_row_of_a_pair():
    rows = candidates("worst", "best", "middle")
    assert pair_of(rows, {"p1#0": 1.0, "p1#1": 4.5, "p1#2": 2.0}, SETTINGS) == {
        "id": "p1", "prompt": "question p1", "dropped": None,
        "chosen": "best", "chosen_score": 4.5, "chosen_id": "p1#1", "chosen_tokens": 11,
        "chosen_truncated": True,
        "rejected": "worst", "rejected_score": 1.0, "rejected_id": "p1#0", "rejected_tokens": 10,
        "rejected_truncated": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "values", "dropped"),
    [
        (["a", "b"], [3.0, 3.0], "tie"),
        (["a", "b"], [3.0, None], "fewer than two scored"),
        (["a", " \n"], [3.0, 1.0], "fewer than two scored"),
        (["same", " same\n"], [3.0, 1.0], "same text"),
    ],
)
def test_a_prompt_without_a_pair_keeps_its_row(texts, values, dropped):
    rows = candidates(*texts)
    found = pair_of(rows, dict(zip(["p1#0", "p1#1"], values, strict=True)), SETTINGS)
    assert found == {"id": "p1", "prompt": "question p1", "dropped": dropped}


def test_a_response_that_was_never_judged_is_not_paired():
    assert (
        pair_of(candidates("a", "b"), {"p1#0": 3.0}, SETTINGS)["dropped"] == "fewer than two scored"
    )


def test_an_empty_response_does_not_become_the_rejected_one():
    found = pair_of(
        candidates("good", "", "poor"), {"p1#0": 5.0, "p1#1": 0.0, "p1#2": 2.0}, SETTINGS
    )
    assert (found["chosen"], found["rejected"]) == ("good", "poor")


@given(scores.filter(bool))
def test_scores_are_joined_by_id_whatever_their_order(values):
    rows = candidates(*(f"text {i}" for i in range(len(values))))
    by_id = {f"p1#{i}": value for i, value in enumerate(values)}
    found = pair_of(rows, dict(reversed(by_id.items())), SETTINGS)
    if found["dropped"] is None:
        assert found["chosen_score"] == by_id[found["chosen_id"]]
        assert found["rejected_score"] == by_id[found["rejected_id"]]
        assert found["chosen_score"] > found["rejected_score"]
        assert found["chosen"] == f"text {found['chosen_id'].partition('#')[2]}"


# --- enough pairs --------------------------------------------------------------------------------


def test_too_few_pairs_say_where_the_prompts_went():
    rows = [{"dropped": d} for d in [None, None, "tie", "tie", "tie", "fewer than two scored"]]
    check_enough(rows, Pairs(min_pairs=2), "x/iter-1")
    with pytest.raises(SrkitError) as caught:
        check_enough(rows, Pairs(min_pairs=3), "x/iter-1")
    message = str(caught.value)
    assert message.startswith(
        "x/iter-1 has 2 pairs of 6 prompts, fewer than pairs.min_pairs = 3 "
        "(3 tie, 1 fewer than two scored). Nothing is invented"
    )
    for remedy in ("judge.samples", "judge.method=expected", "instruct.prompts", "candidates.n",
                   "pairs.min_pairs", "--change"):  # fmt: skip
        assert remedy in message
    assert "\n" not in message


# --- the steps -----------------------------------------------------------------------------------

ITERATION = "self-rewarding/iter-1"
PROMPTS = [{"id": f"p{i}", "prompt": f"question {i}", "dropped": None} for i in range(6)]
PROMPTS.insert(2, {"id": "gone", "prompt": "a dropped draft", "dropped": "too similar"})


@pytest.fixture
def prompted(study, make, engine) -> Study:
    needed = ["seed/ift", "seed/eft", "baseline/adapter", "seed/eft_targets", "M1/adapter"]
    for name in needed:
        make(study, name)
    make(study, f"{ITERATION}/prompts", PROMPTS)
    engine.reply = lambda content, seed: f"{content} answered with {seed % 1000}"
    return study


def judged(study: Study, make, values: dict[int, list]) -> Study:
    """Judgements: `values[i]` are the scores of the candidates of prompt i."""
    rows = [
        {"id": f"p{i}#{j}@0", "response_id": f"p{i}#{j}", "prompt_id": f"p{i}", "sample": 0,
         "text": "", "score": score, "tokens": 1, "truncated": False}
        for i, given_scores in values.items()
        for j, score in enumerate(given_scores)
    ]  # fmt: skip
    make(study, f"{ITERATION}/judgements", rows)
    return study


def test_candidates_are_n_rows_of_the_policy_per_prompt_in_use(prompted, engine):
    rows = make_candidates(prompted, "self-rewarding", 1)
    assert [row["id"] for row in rows[:4]] == ["p0#0", "p0#1", "p0#2", "p1#0"]
    assert len(rows) == 6 * 3
    assert not any("dropped draft" in row["prompt"] for row in rows)
    assert list(rows[0]) == ["id", "prompt_id", "sample", "prompt", "text", "tokens", "truncated"]
    assert len({row["text"] for row in rows if row["prompt_id"] == "p0"}) == 3
    assert [len(call[1]) for call in engine.calls] == [4, 2], "in chunks of candidates.chunk"
    assert {call[0] for call in engine.calls} == {"M1"}
    assert engine.calls[0][1][0] == [{"role": "user", "content": "question 0"}]


def test_a_prompt_s_candidates_do_not_depend_on_the_other_prompts(prompted, make, engine, tmp_path):
    rows = make_candidates(prompted, "self-rewarding", 1)
    (prompted.path / f"{ITERATION}/prompts.jsonl").unlink()
    make(prompted, f"{ITERATION}/prompts", PROMPTS[3:])
    fewer = make_candidates(prompted, "self-rewarding", 1)
    assert fewer == [row for row in rows if row["prompt_id"] in {"p2", "p3", "p4", "p5"}]


def test_pairs_step_keeps_every_prompt(prompted, make):
    make_candidates(prompted, "self-rewarding", 1)
    values = {
        0: [1, 5, 3],
        1: [2, 2, 2],
        2: [None, 4, 1],
        3: [None, None, 3],
        4: [5, 0, 0],
        5: [4, 1, 2],
    }
    rows = make_pairs(judged(prompted, make, values), "self-rewarding", 1)
    assert [row["id"] for row in rows] == [f"p{i}" for i in range(6)]
    reasons = {row["id"]: row["dropped"] for row in rows if row["dropped"]}
    assert reasons == {"p1": "tie", "p3": "fewer than two scored"}
    chosen = {row["id"]: (row["chosen_id"], row["rejected_id"]) for row in kept(rows)}
    assert chosen == {"p0": ("p0#1", "p0#0"), "p2": ("p2#1", "p2#2"), "p4": ("p4#0", "p4#1"),
                      "p5": ("p5#0", "p5#1")}  # fmt: skip
    texts = {row["id"]: row["text"] for row in prompted.read(f"{ITERATION}/candidates")}
    assert all(row["chosen"] == texts[row["chosen_id"]] for row in kept(rows))


def test_pairs_over_the_most_are_dropped_and_say_so():
    rows = [{"id": str(i), "prompt": "?", "dropped": "tie" if i == 1 else None} for i in range(5)]
    kept_pairs = at_most(rows, 2)
    over = "over the most"
    assert [row["dropped"] for row in kept_pairs] == [None, "tie", None, over, over]
    assert set(kept_pairs[3]) == {"id", "prompt", "dropped"}
    assert [row["dropped"] for row in at_most(kept_pairs, 0)] == [over, "tie", over, over, over]


def test_too_few_pairs_stop_after_the_table_was_written(prompted, make):
    make_candidates(prompted, "self-rewarding", 1)
    judged(prompted, make, {i: [3, 3, 3] if i else [1, 2, 3] for i in range(6)})
    for _ in range(2):
        with pytest.raises(SrkitError, match=rf"{ITERATION} has 1 pairs of 6 prompts.*\(5 tie\)"):
            make_pairs(prompted, "self-rewarding", 1)
    assert len(prompted.read(f"{ITERATION}/pairs")) == 6


def test_a_judge_that_always_says_the_same_stops_the_loop_where_asked(prompted, make):
    stop = "judge.when_unhealthy=stop judge.max_flat_rate=0.9"
    new = Study.open(prompted.path, overrides=stop, change=True)  # nothing is stale by that
    make_candidates(new, "self-rewarding", 1)
    judged(new, make, {i: [5, 5, 5] for i in range(6)})
    with pytest.raises(
        SrkitError, match=f"judge of {ITERATION} is unhealthy: it scores all candidates alike"
    ):
        make_pairs(new, "self-rewarding", 1)


def test_m0_answers_too_and_m_t_scores_it(prompted, make, engine):
    new = Study.open(prompted.path, arm="anchored", change=True)
    make(new, "anchored/iter-1/prompts", PROMPTS)
    own = make_candidates(new, "anchored", 1)
    for arm in ("self-rewarding", "anchored"):
        make(new, f"{arm}/iter-1/judgements", [
            {"id": f"{row['id']}@0", "response_id": row["id"], "prompt_id": row["prompt_id"],
             "sample": 0, "text": None, "score": 3.0 + row["sample"], "tokens": 0,
             "truncated": False}
            for row in own
        ])  # fmt: skip
    engine.calls.clear()
    past = make_anchors(new, "anchored", 1)
    assert [row["id"] for row in past[:4]] == ["p0#M0-0", "p0#M0-1", "p0#M0-2", "p1#M0-0"]
    assert {row["text"] for row in past}.isdisjoint(row["text"] for row in own)
    engine.score = lambda content, option: 0.0 if option == " 1" else -99.0
    judge_anchors(new, "anchored", 1)
    assert {call[0] for call in engine.calls} == {"M0", "M1"}
    assert [call[0] for call in engine.calls] == sorted(call[0] for call in engine.calls)
    rows = make_pairs(new, "anchored", 1)
    assert {(row["chosen_id"][-2:], row["rejected_id"][-5:]) for row in rows} == {("#2", "#M0-0")}
    assert {row["rejected_score"] for row in rows} == {1.0}
