"""Properties of the parsers, on generated values: what they give back, not only that they do."""

import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from srkit.config import SrkitError, parse_overrides
from srkit.prompts import one_line, parse_requests, parse_score
from srkit.reading import shown
from srkit.rows import parse_jsonl
from srkit.seed import Message, first_turns

FILE = Path("t.jsonl")
TEXT = st.text(st.characters(exclude_categories=["Cs"]))  # all but halves of characters
VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
NAME = st.from_regex(r"[a-z_]+(\.[a-z_]+)?", fullmatch=True)


# --- scores and requests -------------------------------------------------------------------------


@given(TEXT, st.integers(0, 5), st.sampled_from(["{}", "{}/5", "**{}**", "{} out of 5", "({})."]))
def test_a_clear_last_line_decides_whatever_stands_before(before, score, form):
    assert parse_score(f"{before}\nScore: {form.format(score)}") == score


@given(TEXT, st.integers(6, 10**6) | st.integers(-(10**6), -1))
def test_a_last_line_off_the_scale_is_no_score_whatever_stands_before(before, score):
    assert parse_score(f"{before}\nScore: {score}") is None


@given(st.decimals(0, 5, places=2))
def test_a_score_is_read_to_its_last_digit(score):
    assert parse_score(f"Score: {score}") == float(score)


@given(TEXT.filter(lambda text: "score" not in text.casefold()))
def test_a_text_without_the_word_has_no_score(text):
    assert parse_score(text) is None


REQUEST = TEXT.map(one_line).filter(lambda text: text and not text[0].isdigit())


@given(st.lists(REQUEST, min_size=1, max_size=6), st.integers(1, 99), st.booleans())
def test_a_numbered_list_comes_back_and_only_its_end_can_be_unfinished(requests, first, finished):
    lines = [f"{first + i}. {request}" for i, request in enumerate(requests)]
    generated = "\n".join(lines).removeprefix(f"{first}.")
    found = parse_requests(generated, first, finished)
    assert [text for text, _ in found] == requests
    assert [done for _, done in found] == [True] * (len(requests) - 1) + [finished]


@given(TEXT, st.integers(1, 99), st.booleans())
def test_requests_are_whole_lines_of_what_was_generated(generated, first, finished):
    for text, _ in parse_requests(generated, first, finished):
        assert text
        assert text == one_line(text)
        assert text in one_line(f"{first}. {generated}")


# --- overrides -----------------------------------------------------------------------------------


@given(st.dictionaries(NAME, st.from_regex(r"[^\s'\"\\]*", fullmatch=True), max_size=4))
def test_overrides_come_back(values):
    assert parse_overrides(" ".join(f"{n}={v}" for n, v in values.items())) == values


@given(st.dictionaries(NAME, TEXT.filter(lambda text: "\0" not in text), max_size=4))
def test_quoted_overrides_come_back(values):
    assert parse_overrides(shlex.join(f"{n}={v}" for n, v in values.items())) == values


@given(st.text())
def test_any_overrides_are_names_and_values_or_refused_in_one_line(text):
    try:
        assert all(name and "=" not in name for name in parse_overrides(text))
    except SrkitError as error:
        message = str(error)
    else:
        message = ""
    assert message.isprintable()


@given(VALUE, st.integers(5, 200))
def test_a_shown_value_is_one_short_line(value, most):
    assert shown(value, most).isprintable()
    assert len(shown(value, most)) <= most + len("... (999,999 characters)")
    if len(repr(value)) <= most:
        assert shown(value, most) == repr(value)


# --- tables and rows -----------------------------------------------------------------------------


@given(st.lists(st.dictionaries(TEXT, VALUE, max_size=4), max_size=5), st.booleans())
def test_rows_come_back_as_they_were_written(rows, ascii_):
    written = "".join(json.dumps(row, ensure_ascii=ascii_) + "\n" for row in rows)
    assert parse_jsonl(written, FILE) == rows


BROKEN = ("{", "[1]", "NaN", "null", "3", '{"a": Infinity}', "{'a': 1}")
ROWS = st.lists(st.dictionaries(TEXT, VALUE, max_size=2), max_size=4)


@given(ROWS, st.integers(1, 4), st.sampled_from(BROKEN))
def test_a_broken_line_is_named_by_its_number(rows, place, broken):
    lines = [json.dumps(row) for row in rows]
    place = min(place, len(lines) + 1)
    lines.insert(place - 1, broken)
    with pytest.raises(SrkitError, match=rf"^t\.jsonl, line {place}: not "):
        parse_jsonl("\n".join(lines), FILE)


MESSAGE = st.fixed_dictionaries(
    {
        "message_id": st.sampled_from("abcdefgh"),
        "parent_id": st.none() | st.sampled_from("abcdefgh"),
        "text": st.sampled_from(["One?", " one?", "Two?", "An answer.", "word " * 60]),
        "role": st.sampled_from(["prompter", "assistant"]),
        "lang": st.sampled_from(["en", "en", "de"]),
        "rank": st.none() | st.integers(0, 3),
    },
    optional={"deleted": st.none() | st.booleans(), "review_result": st.none() | st.booleans()},
)


@given(st.lists(MESSAGE, max_size=16, unique_by=lambda row: row["message_id"]), st.randoms())
def test_every_first_turn_is_used_or_counted_whatever_the_order(rows, random):
    rows = [Message.model_validate(row).model_dump() for row in rows]
    prompts, counts = first_turns(rows, max_words=50)
    first = [r for r in rows if r["role"] == "prompter" and r["parent_id"] is None]
    assert len(prompts) + sum(counts.values()) == len(first)
    for prompt in prompts:
        assert all(reply["parent_id"] == prompt["id"] for reply in prompt["replies"])
        assert all(reply["lang"] == "en" and not reply["deleted"] for reply in prompt["replies"])
        ranks = [reply["rank"] for reply in prompt["replies"]]
        assert ranks == sorted(ranks)
    random.shuffle(rows)
    again, _ = first_turns(rows, max_words=50)
    texts = [{one_line(p["text"]).casefold() for p in found} for found in (prompts, again)]
    assert texts[0] == texts[1]


@given(VALUE, st.sampled_from(["message_id", "parent_id", "text", "role", "lang", "rank"]))
def test_a_message_keeps_its_values_or_is_refused(value, field):
    row = {"message_id": "a", "parent_id": None, "text": "b", "role": "prompter", "lang": "en"}
    row |= {"rank": None, field: value}
    try:
        kept = Message.model_validate(row).model_dump()[field]
    except ValidationError as error:
        assert {problem["loc"][0] for problem in error.errors()} == {field}  # noqa: PT017
    else:
        assert kept == value
