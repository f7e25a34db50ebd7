"""New prompts: Self-Instruct's filters, the few-shot lists, and the step with a stand-in writer."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from srkit.config import Instruct, SrkitError
from srkit.instruct import (
    drop_reason,
    few_shots,
    filter_drafts,
    make_prompts,
    max_rouge,
    rouge_tokens,
)
from srkit.rows import kept
from srkit.study import Study

ORACLE = RougeScorer(["rougeL"], use_stemmer=False)
TINY = Instruct(min_words=2, max_words=9)
TOKENS = ["a", "b", "c", "dd", "ee", "the", "The", "x1", "2", "don't", "ü", "-"]
words = st.lists(st.sampled_from(TOKENS), max_size=12)

# --- ROUGE-L -------------------------------------------------------------------------------------


def oracle(one: str, other: str) -> float:
    return ORACLE.score(one, other)["rougeL"].fmeasure


@given(words.map(" ".join), words.map(" ".join))
def test_rouge_l_is_that_of_rouge_score(one, other):
    expected = oracle(one, other)
    assert max_rouge(rouge_tokens(one), [rouge_tokens(other)]) == pytest.approx(expected, abs=1e-12)


@given(st.text(max_size=30), st.text(max_size=30))
def test_rouge_l_of_any_text_is_that_of_rouge_score(one, other):
    expected = oracle(one, other)
    assert max_rouge(rouge_tokens(one), [rouge_tokens(other)]) == pytest.approx(expected, abs=1e-12)


@given(words.map(" ".join), st.lists(words.map(" ".join), max_size=5))
def test_the_largest_similarity_counts(draft, earlier):
    expected = max((oracle(draft, other) for other in earlier), default=0.0)
    found = max_rouge(rouge_tokens(draft), [rouge_tokens(other) for other in earlier])
    assert found == pytest.approx(expected, abs=1e-12)


def test_rouge_by_hand():
    # The longest common subsequence of "a b c d" and "a x c d e" is "a c d": 2 * 3 / (4 + 5).
    assert max_rouge(list("abcd"), [list("axcde")]) == pytest.approx(6 / 9)
    assert max_rouge(list("abc"), [list("abc"), list("x")]) == 1
    assert max_rouge([], [list("abc")]) == max_rouge(list("abc"), []) == 0
    assert rouge_tokens("Don't  say 3.5, Ärger!") == ["don", "t", "say", "3", "5", "rger"]


# --- filters -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draft", "reason"),
    [
        ("Why is the sky blue?", None),
        ("Name three birds", "too short"),
        ("Name three small birds", None),
        ("", "too short"),
        (" ".join(["word"] * 150), None),
        (" ".join(["word"] * 151), "too long"),
        ("Describe the image in detail", "keyword"),
        ("Describe the Images in detail", "keyword"),
        ("Say what this graph shows", "keyword"),
        ("Open the file and read", "keyword"),
        ("Draw me a sheep please", "keyword"),
        ("Where should I go to eat?", "keyword"),
        ("Imagine that profiles are imaginary", None),
        ("How is a paragraph mapped out?", None),
        ("Tell me about drawing and plotters", None),
        ("Write a program that adds numbers", "program"),
        ("write a programme for our concert", "program"),
        ("How do I write a program?", None),
        ("'Quote' means what in law?", "first character"),
        ("- Name three small birds", "first character"),
        ("Überall ist es schön, warum?", "first character"),
        ("7 plus 8 is what?", None),
        ("What is the capital of France?", "too similar"),
        ("what is the capital of France", "too similar"),
        ("What is the capital of Spain?", "too similar"),
        ("What is the largest city in Spain?", None),
    ],
)
def test_filters(draft, reason):
    assert (
        drop_reason(draft, [rouge_tokens("What is the capital of France?")], Instruct()) == reason
    )


def test_the_limit_of_similarity_itself_is_kept():
    # Of ten words each seven in common: F1 is exactly 0.7, and only more than that is too much.
    earlier = [list("abcdefghij")]
    assert max_rouge(list("abcdefgxyz"), earlier) == 0.7
    assert drop_reason("a b c d e f g x y z", earlier, Instruct()) is None
    assert drop_reason("a b c d e f g h y z", earlier, Instruct()) == "too similar"
    assert drop_reason("a b c d e f g x y z", earlier, Instruct(max_rouge=0.69)) == "too similar"


def test_drafts_are_compared_with_those_kept_before_them():
    drafts = [("One red apple", True), ("one red apple", True), ("Two dogs", True), ("x", True)]
    rows = filter_drafts(drafts, [], TINY, room=9)
    assert [row["dropped"] for row in rows] == [None, "too similar", None, "too short"]
    assert [row["prompt"] for row in rows] == [draft for draft, _ in drafts], "none is lost"


def test_a_dropped_draft_drops_no_other():
    rows = filter_drafts([("Draw one red apple", True), ("Eat one red apple", True)], [], TINY, 9)
    assert [row["dropped"] for row in rows] == ["keyword", None]


def test_drafts_beyond_the_number_wanted_stay_as_rows():
    drafts = [("One apple", True), ("Two dogs", True), ("x", True), ("Three cats", True)]
    rows = filter_drafts(drafts, [], TINY, room=1)
    assert [r["dropped"] for r in rows] == [None, "enough already", "too short", "enough already"]
    assert not kept(filter_drafts(drafts, [], TINY, room=0))


def test_unfinished_drafts():
    drafts = [("One apple", False), ("Two dogs", True)]
    assert [r["dropped"] for r in filter_drafts(drafts, [], TINY, 9)] == ["unfinished", None]
    keep = Instruct(min_words=2, keep_unfinished=True)
    assert [r["dropped"] for r in filter_drafts(drafts, [], keep, 9)] == [None, None]


# --- few shots -----------------------------------------------------------------------------------

SEED, NEW = [f"seed {i}" for i in range(20)], [f"new {i}" for i in range(20)]


@pytest.mark.parametrize(
    ("seeds", "generated", "composition"),
    [
        (20, 20, (6, 2)),
        (20, 1, (7, 1)),
        (20, 0, (8, 0)),
        (6, 20, (6, 2)),
        (3, 20, (3, 2)),
        (3, 0, (3, 0)),
    ],
)
def test_eight_shots_six_seed_two_generated(seeds, generated, composition):
    shots = few_shots(SEED[:seeds], NEW[:generated], Instruct(), random.Random(0))
    counts = Counter(shot.split()[0] for shot in shots)
    assert (counts["seed"], counts["new"]) == composition
    assert len(set(shots)) == len(shots)


def test_shots_are_shuffled_and_follow_the_generator():
    lists = [few_shots(SEED, NEW, Instruct(), random.Random(i)) for i in range(200)]
    places = Counter(i for shots in lists for i, shot in enumerate(shots) if shot.startswith("new"))
    assert set(places) == set(range(8))
    assert max(places.values()) < 2 * min(places.values())
    assert few_shots(SEED, NEW, Instruct(), random.Random(3)) == lists[3]
    assert len({shot for shots in lists for shot in shots}) == 40


# --- the step ------------------------------------------------------------------------------------

SEEDS = [{"id": f"i{i}", "prompt": f"Seed number{i} request{i}"} for i in range(10)]
LETTERS = "abcdefghijklmnop"


def write_list(content: str, seed: int) -> str:
    """Three requests of random words, then one that a filter drops."""
    rng = random.Random(seed)
    made = [" ".join("".join(rng.choices(LETTERS, k=8)) for _ in range(4)) for _ in range(3)]
    return f" {made[0]}\n8. {made[1]}\n9. {made[2]}\n10. too_short"


@pytest.fixture
def ready(study, make, engine) -> Study:
    study = Study.open(study.path, overrides="instruct.lists_per_round=2", change=True)
    make(study, "seed/ift", SEEDS)
    engine.reply = write_list
    return study


def test_rounds_go_on_until_there_are_enough(ready, engine):
    rows = make_prompts(ready, "self-rewarding", 1)
    reasons = Counter(row["dropped"] for row in rows)
    assert reasons == {None: 8, "too short": 4, "enough already": 4}
    assert [row["round"] for row in rows] == [0] * 8 + [1] * 8
    assert len({row["id"] for row in rows}) == len(rows)
    assert {row["source"] for row in rows} == {"M0"}
    assert list(rows[0]) == ["id", "round", "source", "prompt", "dropped"]
    assert [call[0] for call in engine.calls] == ["M0", "M0"]


def test_lists_hold_seeds_first_and_then_two_of_its_own(ready, engine):
    rows = make_prompts(ready, "self-rewarding", 1)
    own = {row["prompt"] for row in rows}
    first, second = (call[1] for call in engine.calls)
    for conversation, new in [(c, 0) for c in first] + [(c, 2) for c in second]:
        shots = [line.partition(". ")[2] for line in conversation[0]["content"].split("\n")[-8:]]
        assert sum(shot in own for shot in shots) == new
        assert sum(shot.startswith("Seed number") for shot in shots) == 8 - new
        assert conversation[1] == {"role": "assistant", "content": "9."}


def test_an_interrupted_and_an_uninterrupted_run_write_the_same(ready, engine, tmp_path, make):
    make_prompts(ready, "self-rewarding", 1)
    other = Study.open(tmp_path / "other", "tiny", "instruct.lists_per_round=2")
    make(other, "seed/ift", SEEDS)
    calls = len(engine.calls)

    def cut(content, seed):
        if len(engine.calls) == calls + 2:
            raise KeyboardInterrupt
        return write_list(content, seed)

    engine.reply = cut
    with pytest.raises(KeyboardInterrupt):
        make_prompts(other, "self-rewarding", 1)
    engine.reply = write_list
    make_prompts(other, "self-rewarding", 1)
    assert len(engine.calls) == calls + 3, "one round was repeated"
    table = "self-rewarding/iter-1/prompts.jsonl"
    assert (other.path / table).read_bytes() == (ready.path / table).read_bytes()


def test_the_next_iteration_differs_and_knows_the_earlier_prompts(ready, engine):
    first = {row["prompt"] for row in kept(make_prompts(ready, "self-rewarding", 1))}
    engine.calls.clear()
    second = {row["prompt"] for row in kept(make_prompts(ready, "self-rewarding", 2))}
    assert not first & second
    for conversation in engine.calls[0][1]:
        assert sum(prompt in conversation[0]["content"] for prompt in first) == 2


def test_no_prompt_left_is_an_error_that_says_where_to_look(ready, engine):
    engine.reply = lambda content, seed: "Draw a map"
    with pytest.raises(SrkitError, match=r"iter-1/prompts \(12 drafts\).*`dropped`.*max_rounds"):
        make_prompts(ready, "self-rewarding", 1)
    rows = ready.read("self-rewarding/iter-1/prompts")
    assert Counter(row["dropped"] for row in rows) == {"keyword": 12}
