"""Rendering prompts, and reading scores and requests out of generated text."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import srkit
from srkit.config import SrkitError
from srkit.prompts import (
    SCALES,
    SCORE_STOP,
    compare_prompt,
    judge_prompt,
    judgement_text,
    one_line,
    parse_requests,
    parse_score,
    render,
    self_instruct_prompt,
    text,
)

FILES = sorted(Path(srkit.__file__).parent.joinpath("prompts").glob("*.txt"))
SPECIAL = "$instruction ${response} $$ {0} {x} %s \\1 \\n"
words = st.text(st.characters(codec="utf-8"), max_size=60)
lines = st.one_of(
    words,
    st.sampled_from(
        ["Score: 3", "Score:", "score: five", "Score: 4 of", "3", "5/5", "The score is 2", "7.", ""]
    ),
    st.builds("Score: {}".format, st.integers(-20, 20) | st.floats(-20, 20) | words),
    st.builds("{} score: {}".format, words, st.integers(0, 9)),
)
texts = st.lists(lines, max_size=6).map("\n".join)

# --- scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("judgement", "score"),
    [
        ("Good and short.\nScore: 4", 4),
        ("Score: 0", 0),
        ("Score: 5\n", 5),
        ("Score:3", 3),
        ("score : 2", 2),
        ("SCORE: 2.", 2),
        ("  Score: 4  ", 4),
        ("Score: 4/5", 4),
        ("Score: 4 / 5", 4),
        ("Score: 3 out of 5", 3),
        ("Score: 3 out of 5.", 3),
        ("**Score:** 3", 3),
        ("**Score**: 3", 3),
        ("**Score: 3**", 3),
        ("### Score: 3", 3),
        ("- Score: `3`", 3),
        ("Score: <3>", 3),
        ("Score: (3)", 3),
        ("Score: 2.5", 2.5),
        ("Score: 4.0", 4),
        ("Score: 2\nScore: 4", 4),
        ("Score: 4\nThat is all.", 4),
        ("Score: 4\n\nI hope that 1 + 1 = 2 helps.\n", 4),
        ("Score: 4\nScore:", 4),
        # Not a score, or not on this scale: whatever stands before it.
        ("Score: 7", None),
        ("Score: 10", None),
        ("Score: 55", None),
        ("Score: 5.5", None),
        ("Score: -1", None),
        ("Score: -3", None),
        ("Score: .5", None),
        ("Score: 4/10", None),
        ("Score: 4 out of 10", None),
        ("Score: 40%", None),
        ("Score: 3 or 4", None),
        ("Score: 3-4", None),
        ("Score: 3, 4", None),
        ("Score: 3,5", None),
        ("Score: 2³", None),
        ("Score: ٣", None),
        ("Score: 3\nScore: 10", None),
        ("Score: 3\nScore: 4/10", None),
        ("Score: 3\nScore: -1", None),
        ("Score: 2\nScore: " + "9" * 400, None),
        # No score line.
        ("", None),
        ("\n \n", None),
        ("4", None),
        ("4/5", None),
        ("I give it 4 points.", None),
        ("The score is 4", None),
        ("Total score: 4", None),
        ("So the total is Score: 4", None),
        ("Score 4", None),
        ("Score: four", None),
        ("Score:\n4", None),
        ("Underscore: 4", None),
        ("Scores: 4", None),
    ],
)
def test_parse_score(judgement, score):
    assert parse_score(judgement) == score


def test_the_scale_is_the_rubric_s():
    assert parse_score("Score: 0") == 0
    assert parse_score("Score: 0", "multiple_choice") is None
    assert parse_score("Score: 1", "multiple_choice") == 1
    assert parse_score("Score: 5", "multiple_choice") == 5


@given(texts, st.sampled_from(sorted(SCALES)))
def test_a_score_is_on_the_scale_and_on_the_last_line_that_has_one(judgement, rubric):
    score = parse_score(judgement, rubric)
    if score is None:
        return
    low, high = SCALES[rubric]
    assert low <= score <= high
    candidates = [
        line
        for line in judgement.splitlines()
        if re.match(r"(?i)\W*score\W*:", line) and re.search("[0-9]", line.partition(":")[2])
    ]
    numbers = re.findall(r"[0-9]+(?:\.[0-9]+)?", candidates[-1])
    assert float(numbers[0]) == score
    assert "-" not in candidates[-1].partition(":")[2]


@given(texts, st.integers(0, 5))
def test_the_last_line_wins(before, score):
    assert parse_score(f"{before}\nScore: {score}") == score


@given(texts, st.integers(6, 10**6) | st.integers(-(10**6), -1))
def test_a_score_out_of_range_is_none_whatever_stands_before(before, score):
    assert parse_score(f"{before}\nScore: {score}") is None


@given(st.lists(words.filter(lambda w: "score" not in w.casefold()), max_size=5).map("\n".join))
def test_without_a_score_line_no_number_is_read(judgement):
    assert parse_score(judgement) is None


@given(st.text() | texts)
def test_any_text_can_be_parsed(judgement):
    score = parse_score(judgement)
    assert score is None or 0 <= score <= 5


@given(words, st.integers(0, 5))
def test_a_written_judgement_is_read_back(rationale, score):
    assert parse_score(judgement_text(rationale, score)) == score
    assert parse_score(judgement_text(None, score)) == score


def test_written_judgements():
    assert judgement_text(" Right, but long.\n", 3) == "Right, but long.\nScore: 3"
    assert judgement_text(None, 4.0) == "Score: 4"
    assert judgement_text("", 2.5) == "Score: 2.5"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_prompt_s_own_text_holds_no_score(file):
    assert parse_score(file.read_text()) is None


@pytest.mark.parametrize("rubric", SCALES)
def test_a_judge_prompt_echoed_back_is_no_score(rubric):
    (message,) = judge_prompt(rubric, "What is 2 + 2?", "It is 4.")
    assert parse_score(message["content"], rubric) is None


@pytest.mark.parametrize(
    ("so_far", "ends"),
    [
        ("Fine.\nScore: 4\n", True),
        ("Score: 10\n", True),
        ("**Score:** 3\n", True),
        ("Score: 4/5\nAnd", True),
        ("Score: 1", False),  # a 10 may come of it
        ("Score: 4", False),
        ("Score:\n", False),
        ("I give 4 points\n", False),
        ("The user's Score: 4\n", False),
    ],
)
def test_generation_ends_after_the_whole_score_line(so_far, ends):
    assert bool(re.search(SCORE_STOP, so_far)) == ends


@given(st.integers(0, 200))
def test_what_the_stop_leaves_is_read_as_if_it_had_gone_on(number):
    full = f"Fine.\nScore: {number}\nScore: 2\n"
    stopped = next(full[:i] for i in range(len(full) + 1) if re.search(SCORE_STOP, full[:i]))
    assert parse_score(stopped) == (number if number <= 5 else None)


# --- rendering -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rubric", SCALES)
def test_values_are_filled_in_as_they_are(rubric):
    (message,) = judge_prompt(rubric, SPECIAL, f"A {SPECIAL} Z")
    assert message["role"] == "user"
    assert f"User: {SPECIAL}\n<response>A {SPECIAL} Z</response>" in message["content"]
    assert message["content"].count("$instruction") == 2


def test_comparison_shows_both_orders_and_forces_the_answer():
    prompt, forced = compare_prompt("Why? $x", "one $y", "two {z}")
    assert "<answer_a>one $y</answer_a>" in prompt["content"]
    assert "<answer_b>two {z}</answer_b>" in prompt["content"]
    assert "Message: Why? $x" in prompt["content"]
    assert forced == {"role": "assistant", "content": "Better answer:"}


@given(words, words)
def test_a_rendered_prompt_holds_its_values(instruction, response):
    content = judge_prompt("additive", instruction, response)[0]["content"]
    assert f"User: {instruction}\n<response>{response}</response>" in content


def test_rubrics_keep_the_criteria_in_the_paper_s_order():
    additive = text("judge_additive")
    places = [additive.index(w) for w in ("Relevant", "Substantial", "Useful", "Clear", "Expert")]
    assert places == sorted(places)
    assert "at most 100 words" in additive
    assert additive.rstrip().endswith("Score: <0 to 5>")
    assert text("judge_multiple_choice").rstrip().endswith("Score: <1 to 5>")


def test_missing_and_unknown_fields_are_named():
    with pytest.raises(SrkitError, match=r"judge_additive.txt .* \$instruction; it has \['instru"):
        render("judge_additive", instruction="x")
    with pytest.raises(SrkitError, match=r"no prompt file nothing.txt"):
        text("nothing")


def test_another_wording(tmp_path, monkeypatch):
    monkeypatch.setenv("SRKIT_PROMPTS", str(tmp_path))
    assert text("compare").startswith("Two assistants"), "files that are not there: the kit's own"
    (tmp_path / "judge_additive.txt").write_text("Rate $response for $instruction, or pay $$5.\n")
    assert judge_prompt("additive", "q", "a")[0]["content"] == "Rate a for q, or pay $5."
    (tmp_path / "judge_additive.txt").write_text("Rate $response, $instruction, or pay $5.")
    with pytest.raises(SrkitError, match=r"judge_additive.txt .*\$\$"):
        judge_prompt("additive", "q", "a")
    (tmp_path / "judge_additive.txt").write_text("Rate $answer.")
    with pytest.raises(SrkitError, match=r"\$instruction, \$response; it has \['answer'\]"):
        judge_prompt("additive", "q", "a")


def test_a_folder_of_prompts_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("SRKIT_PROMPTS", str(tmp_path / "promts"))
    with pytest.raises(SrkitError, match=r"SRKIT_PROMPTS.*promts"):
        text("compare")


# --- self-instruct -------------------------------------------------------------------------------


def test_the_few_shot_list_is_continued_at_the_next_number():
    prompt, forced = self_instruct_prompt(["Name a bird.", "Two\n lines $x"])
    assert prompt["content"].endswith("\n\n1. Name a bird.\n2. Two lines $x")
    assert forced == {"role": "assistant", "content": "3."}


@pytest.mark.parametrize(
    ("generated", "finished", "requests"),
    [
        (
            " Name a bird.\n10. Add 2 and 3.\n",
            True,
            [("Name a bird.", True), ("Add 2 and 3.", True)],
        ),
        ("Name a bird.\n10. Add 2 an", False, [("Name a bird.", True), ("Add 2 an", False)]),
        ("Name a bird", False, [("Name a bird", False)]),
        ("Name\n  a bird.\n\n10) Add.", True, [("Name a bird.", True), ("Add.", True)]),
        ("The 3. of May is 3.5 days off.", True, [("The 3. of May is 3.5 days off.", True)]),
        ("A.\n10. \n11. B.", True, [("A.", True), ("B.", True)]),
        ("A.\n10. ", False, [("A.", True)]),
        ("", True, []),
        ("   \n", False, []),
    ],
)
def test_parse_requests(generated, finished, requests):
    assert parse_requests(generated, 9, finished) == requests


@given(
    st.lists(st.from_regex(r"[A-Z][a-z]{1,8}( [a-z]{1,8}){0,5}[.?]", fullmatch=True), min_size=1)
)
def test_a_well_formed_list_comes_back(requests):
    first, *others = requests
    generated = "\n".join([f" {first}", *(f"{i}. {r}" for i, r in enumerate(others, 10))])
    assert parse_requests(generated, 9, True) == [(r, True) for r in requests]
    cut = parse_requests(generated, 9, False)
    assert [finished for _, finished in cut] == [True] * len(others) + [False]


@given(st.text())
def test_one_line_is_one_line(content):
    assert one_line(content).split() == content.split()
    assert len(one_line(content).splitlines()) <= 1
