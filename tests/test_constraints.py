"""Each kind of constraint at its border, and pass rates by hand."""

import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srkit import constraints, stats
from srkit.config import SrkitError, resolve

LIST = "Here:\n- one\n* two\n3. three\nnot one\n-not this"


@pytest.mark.parametrize(
    ("kind", "value", "text", "met"),
    [
        ("max_words", 3, "one two three", True),
        ("max_words", 2, "one two three", False),
        ("max_words", 2, "- one\n- two", True),  # a dash is no word
        ("min_words", 3, "one two three", True),
        ("min_words", 4, "one two three", False),
        ("sentences", 1, "It costs 3.50 dollars.", True),
        ("sentences", 2, 'He said "No!" Then he left', True),
        ("sentences", 1, "Wait... what?", False),
        ("sentences", 2, "1. Wash it.\n2. Dry it.", True),
        ("list_items", 3, LIST, True),
        ("list_items", 4, LIST, False),
        ("list_items", 0, "-5 degrees and **bold**", True),
        ("include", ["cat"], "The CAT, of course", True),
        ("include", ["cat"], "a category", False),
        ("include", ["cat", "dog"], "a cat", False),
        ("avoid", ["beer"], "wine", True),
        ("avoid", ["beer"], "Beer!", False),
        ("avoid", ["teeth"], "toothed", True),
        ("starts_with", "When", "  When we run", True),
        ("starts_with", "When", '"When we run"', True),
        ("starts_with", "When", "when we run", False),
        ("ends_with", "?", "Is it?", True),
        ("ends_with", "!", 'He roared: "Hello!"', True),
        ("ends_with", "sun", "in the sun.", True),
        ("ends_with", "sun", "in the sunset", False),
        ("lowercase", True, "mercury, at 20 degrees.", True),
        ("lowercase", True, "Mercury", False),
        ("lowercase", True, "42", False),
        ("uppercase", True, "THE LIFT IS OUT.", True),
        ("uppercase", True, "THE LIFT is out.", False),
        ("number", 42, "The answer is 42.", True),
        ("number", 42, "420 or 142 or 4.2", False),
        ("number", 42, "-42", False),
        ("number", 42, "6 x 7=42", True),
        ("number", 42, "50-42", True),
        ("number", 1200, "$1,200.00", True),
        ("number", 1242, "1,2,42", False),
        ("number", -5, "It is -5 outside", True),
    ],
)
def test_check(kind, value, text, met):
    assert constraints.check(text, {"kind": kind, "value": value}) is met


@pytest.mark.parametrize("text", ["", "   \n", "...", "- -"])
def test_silence_meets_nothing(text):
    for constraint in ({"kind": "max_words", "value": 9}, {"kind": "avoid", "value": ["x"]}):
        assert not constraints.check(text, constraint)


def test_unknown_kinds_are_refused_with_the_legal_ones():
    with pytest.raises(SrkitError, match=r"'rhymes' is unknown\. Legal kinds: max_words, min"):
        constraints.check("x", {"kind": "rhymes", "value": 1})
    with pytest.raises(SrkitError, match="None is unknown"):
        constraints.check("x", {})


@given(st.text(min_size=1), st.integers(0, 30))
def test_a_text_has_at_most_or_at_least_n_words(text, n):
    at_most = constraints.check(text, {"kind": "max_words", "value": n})
    more = constraints.check(text, {"kind": "min_words", "value": n + 1})
    assert at_most != more or not (at_most or more)
    assert not (at_most and more)


@given(st.integers(-(10**6), 10**6))
def test_a_number_is_found_however_it_is_written(number):
    for text in (f"It is {number}.", f"{number:,}", f"so: {number}.0!"):
        assert constraints.check(text, {"kind": "number", "value": number})


def responses(*rows: tuple[str, list]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["text", "constraints"])
    return frame.assign(prompt_id=[f"p{i}" for i in range(len(frame))])


def test_pass_rates_by_hand():
    two = [{"kind": "max_words", "value": 2}, {"kind": "avoid", "value": ["no"]}]
    one = [{"kind": "max_words", "value": 1}]
    table = constraints.pass_rates(
        {
            "M0": responses(("yes", two), ("no", two), ("a b", one), ("free", [])),
            "M1": responses(("yes", two), ("yes", two), ("ab", one), ("free", [])),
        }
    )
    assert table["kind"].unique().tolist() == [constraints.EVERY, "max_words", "avoid"]
    table = table.set_index(["kind", "model"])
    every = table.loc[(constraints.EVERY, "M0")]
    expected = stats.wilson(1, 3)
    assert every[["value", "low", "high"]].tolist() == pytest.approx(
        [expected[k] for k in ("value", "low", "high")]
    )
    assert every[["n", "prompts"]].tolist() == [3, 3]
    assert table.loc[("max_words", "M0"), "value"] == pytest.approx(2 / 3)
    assert table.loc[("avoid", "M0"), ["value", "n"]].tolist() == [0.5, 2]
    assert table.loc[(constraints.EVERY, "M1"), "value"] == 1


def test_outcomes_feed_the_paired_bootstrap():
    one = [{"kind": "max_words", "value": 1}]
    table = constraints.outcomes(
        {"M0": responses(("a b", one), ("a", one)), "M1": responses(("a", one), ("a", one))}
    ).assign(one=1)
    every = table[table["kind"] == constraints.EVERY]
    two = [every[every["model"] == model] for model in ("M1", "M0")]
    assert stats.paired_bootstrap(*two, ("passed", "one"))["value"] == 0.5


def test_loosened_forms_are_cut_at_either_end_and_freed_of_asterisks():
    assert constraints.loosened("Sure:\n\n**Yes** *we*\nBye") == [
        "Sure:\n\n**Yes** *we*\nBye",
        "**Yes** *we*\nBye",
        "Sure:\n\n**Yes** *we*",
        "**Yes** *we*",
        "Sure:\n\nYes we\nBye",
        "Yes we\nBye",
        "Sure:\n\nYes we",
        "Yes we",
    ]
    assert constraints.loosened("one line") == ["one line", ""]
    assert constraints.loosened("") == [""]


@pytest.mark.parametrize(
    ("kind", "value", "text", "met"),
    [
        ("max_words", 2, "Sure, here it is:\nSun rises.\nI hope that this helps!", True),
        ("max_words", 1, "Sure, here it is:\nSun rises.\nI hope that this helps!", False),
        ("starts_with", "Sun", "Sure:\nSun", True),
        ("ends_with", "sun", "the sun\nDone.", True),
        ("include", ["sun"], "the s*un", True),
        ("avoid", ["sun"], "rain\nno sun", True),  # its known price: the fault is in the last line
        ("avoid", ["sun"], "the sun", False),
        ("max_words", 5, "**", False),  # no form says anything
    ],
)
def test_a_loose_check_takes_the_best_form(kind, value, text, met):
    constraint = {"kind": kind, "value": value}
    assert constraints.check_loosely(text, constraint) is met
    assert met or not constraints.check(text, constraint), "loose is never stricter"


def test_no_constraints_give_an_empty_table():
    assert constraints.pass_rates({"M0": responses(("free", []))}).empty
    assert constraints.pass_rates({"M0": pd.DataFrame()}).empty


def test_the_kits_test_prompts_use_legal_kinds():
    path = Path(__file__).parents[1] / "data" / "seed" / "test_prompts.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    used = [constraint for row in rows for constraint in row["constraints"]]
    assert used
    for constraint in used:
        assert constraints.check("A harmless answer.", constraint) in (True, False)


# --- the oracle ----------------------------------------------------------------------------------


def test_the_short_form_of_constraints():
    short = ["max_words=20", "include=you", "lowercase=true", "number=1.5", "ends_with=."]
    assert constraints.parse(short) == [
        {"kind": "max_words", "value": 20},
        {"kind": "include", "value": ["you"]},
        {"kind": "lowercase", "value": True},
        {"kind": "number", "value": 1.5},
        {"kind": "ends_with", "value": "."},
    ]
    for wrong in ("max_words=ten", "max_words", "lowercase=maybe", "shortness=3"):
        with pytest.raises(SrkitError):
            constraints.parse([wrong])


def test_points_of_the_oracle_that_ships():
    oracle = constraints.parse(resolve("tiny").arms.oracle)
    texts = {
        "Sugar dissolves in hot tea because its molecules move faster.": 5,
        "No.": 4,
        "": 0,
        "- Wash it and dry it well\n- Put it on the highest shelf": 3,
        "one " * 21: 3,
    }
    assert {text: constraints.points(text, oracle) for text in texts} == texts


def test_oracle_scores_are_shares_and_differences_from_the_start():
    def answers(*texts):
        return pd.DataFrame({"prompt_id": ["a", "b"], "text": texts})

    given_answers = {"M1": answers("x y", "x"), "o/M2": answers("x", "x")}
    wanted = constraints.parse(["max_words=1", "include=x"])
    table = constraints.oracle_scores(given_answers, wanted, {"o/M2": "M1"}, 200)
    first, second = table.to_dict("records")
    assert (first["value"], second["value"]) == (0.75, 1.0)
    assert pd.isna(first["reference"])
    assert pd.isna(first["difference"])
    assert (second["reference"], second["difference"], second["n"]) == ("M1", 0.25, 2)
    assert (second["difference_low"], second["difference_high"]) == (0, 0.5)
