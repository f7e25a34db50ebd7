"""Lengths by hand: answers, pairs, and whether scores follow them."""

import pandas as pd
import pytest

from srkit import length


def responses(*rows: tuple[str, int, bool]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["text", "tokens", "truncated"])
    return frame.assign(prompt_id=[f"p{i}" for i in range(len(frame))])


def pairs(*rows: tuple[str, str, str | None]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["chosen", "rejected", "dropped"])
    frame["id"] = [f"p{i}" for i in range(len(frame))]
    return frame.assign(chosen_tokens=3, rejected_tokens=5).assign(
        chosen_truncated=False, rejected_truncated=[i == 0 for i in range(len(frame))]
    )


def test_length_table_by_hand():
    table = length.length_table(
        {"M1": responses(("a b", 2, False), ("abc de", 4, True), ("", 0, False))}, resamples=200
    ).set_index(["model", "unit"])
    assert table.loc[("M1", "characters"), "value"] == pytest.approx((3 + 6 + 0) / 3)
    assert table.loc[("M1", "words"), "value"] == pytest.approx(4 / 3)
    assert table.loc[("M1", "tokens"), ["q25", "median", "q75", "n"]].tolist() == [1, 2, 3, 3]
    assert table.loc[("M1", "tokens"), "truncated"] == pytest.approx(1 / 3)
    row = table.loc[("M1", "characters")]
    assert 0 <= row["low"] < row["value"] < row["high"] <= 6


def test_a_model_without_responses_keeps_its_row():
    table = length.length_table({"M1": pd.DataFrame()})
    assert table["unit"].tolist() == list(length.MEASURES)
    assert (table["n"] == 0).all()
    assert table["value"].isna().all()
    assert length.length_table({}).empty


def test_characters_are_counted_not_bytes():
    assert length.lengths({"M": responses(("é→", 9, False))})["characters"].tolist() == [2]


def test_chosen_against_rejected_by_hand():
    table = length.chosen_against_rejected(
        {
            "iter-1": pairs(
                ("abcd", "ab", None), ("a", "abc", None), ("ab", "cd", None), ("x" * 99, "", "tie")
            )
        },
        resamples=200,
    ).set_index(["unit", "quantity"])
    value = table["value"]
    assert value["characters", "chosen"] == pytest.approx(7 / 3)
    assert value["characters", "rejected"] == pytest.approx(7 / 3)
    assert value["characters", "difference"] == pytest.approx(0)
    assert value["characters", "longer_chosen"] == pytest.approx(
        0.5
    )  # one longer, one shorter, one tie
    assert value["tokens", "difference"] == pytest.approx(-2)
    assert value["truncated", "difference"] == pytest.approx(-1 / 3)
    assert (table["n"] == 3).all()


def test_swapping_the_sides_turns_the_difference():
    one = pairs(("abcd", "ab", None), ("a", "abc", None), ("abcde", "c", None))
    other = one.rename(columns={"chosen": "rejected", "rejected": "chosen"})
    forth = length.chosen_against_rejected({"x": one}).set_index(["unit", "quantity"])
    back = length.chosen_against_rejected({"x": other}).set_index(["unit", "quantity"])
    row, mirrored = forth.loc[("words", "difference")], back.loc[("words", "difference")]
    assert row["value"] == -mirrored["value"]
    row, mirrored = forth.loc[("characters", "difference")], back.loc[("characters", "difference")]
    assert [row["low"], row["high"]] == pytest.approx([-mirrored["high"], -mirrored["low"]])
    share = [t.loc[("characters", "longer_chosen"), "value"] for t in (forth, back)]
    assert sum(share) == pytest.approx(1)


def test_an_iteration_whose_pairs_were_all_dropped_keeps_its_row():
    dropped = pd.DataFrame({"id": ["p0"], "prompt": ["x"], "dropped": ["tie"]})
    table = length.chosen_against_rejected({"iter-1": dropped, "iter-2": pd.DataFrame()})
    assert (table["n"] == 0).all()
    assert set(table["name"]) == {"iter-1", "iter-2"}


def test_score_follows_length_within_prompts_not_across():
    # within p0 longer is better, within p1 shorter is better, p2 has one score only
    texts = {"p0": ["a", "aa", "aaa"], "p1": ["a" * 50, "a" * 60, "a" * 70], "p2": ["a", "aa"]}
    scores = {"p0": [1, 2, 3], "p1": [5, 4, 3], "p2": [2, 2]}
    rows = [(f"{p}#{i}", p, t, scores[p][i]) for p in texts for i, t in enumerate(texts[p])]
    frame = pd.DataFrame(rows, columns=["id", "prompt_id", "text", "score"])
    judged = frame.rename(columns={"id": "response_id"}).assign(sample=0, truncated=False)
    mixed = judged.sample(frac=1, random_state=1)  # joined by id, not by position
    found = length.score_follows_length({"x": frame}, {"x": mixed}).iloc[0]
    assert found["value"] == pytest.approx(0)
    assert (found["low"], found["high"]) == (-1, 1)
    assert (found["n"], found["left_out"]) == (2, 1)


ANSWER = """## Packing

**Clothes:**
- a coat. It may rain!
- shoes
1. socks"""


def test_form_of_an_answer_by_hand():
    row = length.measured(pd.Series([ANSWER])).iloc[0]
    assert row[["list_items", "headings", "words"]].tolist() == [3, 2, 13]
    # two sentences of the coat; what follows it has no full stop
    assert row["sentences"] == 3
    assert length.headings("#hashtag\nnot **all** bold\n# Yes") == 1


def test_repetition_by_hand():
    # nine words have six 4-grams, the last of which stood there before
    assert length.repetition("a b c d e A B C D") == pytest.approx(1 / 6)
    assert length.repetition("no no no no no no") == pytest.approx(2 / 3)
    assert length.repetition("no no no") == 0
    assert length.repetition("") == 0


def test_a_table_without_tokens_is_measured_otherwise():
    table = length.length_table({"M": responses(("One. Two.", None, False))}, 5).set_index("unit")
    assert table.loc["sentences", "value"] == 2
    assert pd.isna(table.loc["tokens", "value"])


def test_the_papers_lengths_stand_as_printed():
    assert length.PAPER_CHARACTERS == {"M1": 1092, "M2": 1552, "M3": 2552}
