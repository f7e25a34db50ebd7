"""Items with a key: who is right, what is not seen, and what iterations make of it, by hand."""

import math

import pandas as pd
import pytest

from srkit import blind_items, blind_spots, overoptimisation
from srkit.ablations import Run
from srkit.blind_items import is_right, items
from srkit.blind_spots import BLIND, RIGHT, SEEN
from srkit.study import Study

# --- items and keys ------------------------------------------------------------------------------


def test_the_items_that_ship():
    rows = items()
    assert (
        len(rows) == len({row["id"] for row in rows}) == len({row["prompt"] for row in rows}) == 72
    )
    assert [row["kind"] for row in rows[:4]] == [*blind_items.KINDS, "arithmetic"]
    assert items(5) == rows[:5]
    assert rows == items(), "they are drawn from a fixed seed"
    for row in rows:
        assert is_right(f"The answer is {row['key'][0]}.", row), row
        assert not is_right(f"The answer is {row['wrong']}.", row), row
        assert not is_right(row["prompt"], row), "repeating the question is no answer"
        assert not is_right("", row)


def test_the_keys_of_sums_and_words_are_right():
    for row in items():
        asked = row["prompt"].replace("?", "").split()
        if row["kind"] == "arithmetic":
            a, sign, b = asked[2:5]
            sums = {"plus": int(a) + int(b), "minus": int(a) - int(b), "times": int(a) * int(b)}
            assert row["key"] == [str(sums[sign])], row
        if row["kind"] == "spelling":
            word = row["prompt"].split("'")[1]
            places = dict(zip(("first", "second", "third", "last"), (0, 1, 2, -1), strict=True))
            keys = {"How many": str(len(word)), "How is": word[::-1]}
            keys |= {f"Which is the {place}": word[at] for place, at in places.items()}
            (right,) = [key for begins, key in keys.items() if row["prompt"].startswith(begins)]
            assert row["key"] == [right], row


@pytest.mark.parametrize(
    ("prompt", "key", "wrong", "answer", "right"),
    [
        ("What is 7 plus 8?", "15", "16", "7 plus 8 is 15.", True),
        ("What is 7 plus 8?", "15", "16", "15.0", True),
        ("What is 7 plus 8?", "15", "16", "It is 15 or 16.", False),
        ("How many metres?", "1500", "1400", "1,500 metres", True),
        ("What is 7 plus 8?", "15", "16", "150", False),
        ("How many legs?", "8", "6", "A spider has eight legs.", True),
        ("How many legs?", "8", "6", "Six or eight.", False),
        ("How many legs?", "8", "6", "Eight; the number of legs is 8.", True),
        ("Which letter?", "w", "o", "The first letter of 'window' is 'W'.", True),
        ("Which letter?", "w", "o", "It's a w.", True),
        ("Which letter?", "w", "o", "w, i, n, d, o, w", False),
        ("Which letter?", "w", "o", "window", False),
        ("Capital?", "Canberra", "Sydney", "It is canberra!", True),
        ("Capital?", "Canberra", "Sydney", "Canberra, not Sydney.", False),
        ("Capital?", "Canberra", "Sydney", "Canberran", False),
    ],
)
def test_an_answer_states_the_key_and_nothing_against_it(prompt, key, wrong, answer, right):
    assert is_right(answer, {"prompt": prompt, "key": [key], "wrong": wrong}) == right


def test_one_of_several_names_will_do():
    item = {"prompt": "Gas?", "key": ["carbon dioxide", "CO2"], "wrong": "oxygen"}
    assert is_right("CO2", item)
    assert is_right("Carbon dioxide is taken in.", item)


# --- the step ------------------------------------------------------------------------------------


def test_each_model_answers_and_judges_three_answers(tmp_path, make, engine):
    study = Study.open(tmp_path / "s", "tiny", "eval.blind_spot_items=3")
    for name in ("seed/ift", "seed/eft", "seed/eft_targets", "M1/adapter"):
        make(study, name)
    engine.reply = lambda content, seed: "Canberra" if "Australia" in content else "I see."
    engine.score = lambda content, option: (
        0.0 if option == (" 4" if "I see." in content else " 2") else -math.inf
    )
    rows = blind_items.make_blind_spots(study, "M1")
    assert [row["id"] for row in rows[:3]] == [f"arithmetic-01/{s}" for s in blind_items.SHOWN]
    assert [int(row["right"]) for row in rows] == [0, 1, 0, 0, 1, 0, 1, 1, 0]
    own = [row for row in rows if row["shown"] == "own"]
    assert [row["score"] for row in own] == [4, 4, 2]
    assert {row["score"] for row in rows if row["shown"] != "own"} == {2}
    assert rows[1]["text"] == f"The answer is {items(1)[0]['key'][0]}."
    drawn = [call for call in engine.calls if len(call) == 5]
    ((_, _, _, sampling, _),) = drawn
    assert (sampling.temperature, sampling.max_tokens) == (0, 16)
    found = blind_spots.states(study.frame("M1/blind_spots")).set_index("prompt_id")
    assert found["state"].to_dict() == {
        "arithmetic-01": BLIND, "spelling-01": BLIND, "fact-01": RIGHT
    }  # fmt: skip


# --- the analysis --------------------------------------------------------------------------------

# own answer right?, scores of own answer, key, wrong
START = {
    "a": (True, 3, 3, 2),
    "b": (False, 3, 2, 3),
    "c": (False, 2, 2, 2),
    "d": (False, 1, 2, 1),
    "e": (False, 4, 1, None),
    "f": (False, None, 2, 1),
}
LATER = {
    "a": (False, 3, 2, 1),  # a new blind spot
    "b": (True, 2, 3, 1),  # repaired
    "c": (False, 2.5, 2, 2),  # amplified
    "d": (False, 1, 2, 1),
    "e": (False, 2, 1, 1),  # kept
    "f": (False, 2, 2, 1),
}


def table(of: dict) -> pd.DataFrame:
    rows = []
    for item, (right, *scores) in of.items():
        for shown, score in zip(blind_items.SHOWN, scores, strict=True):
            said = right if shown == "own" else shown == "key"
            row = {"prompt_id": item, "kind": "fact" if item < "d" else "spelling", "shown": shown}
            rows.append(row | {"right": said, "score": score})
    return pd.DataFrame(rows)


TABLES = {"M1": table(START), "x/M2": table(LATER)}
STARTS = {"x/M2": "M1"}


def test_states_by_hand():
    found = blind_spots.states(TABLES["M1"]).set_index("prompt_id")
    assert found["state"].tolist() == [RIGHT, BLIND, BLIND, SEEN, BLIND, None]
    assert found["blind"].tolist()[:5] == [0, 1, 1, 0, 1]
    assert math.isnan(found.loc["f", "blind"])
    assert found["prefers"].tolist()[:4] == [1, 0, 0.5, 1]
    assert math.isnan(found.loc["e", "prefers"])
    assert found["margin"].dropna().to_dict() == {"b": 1, "c": 0, "d": -1, "e": 3}


def test_items_keep_their_states_whatever_their_order():
    """The kit's own ids are not sorted: arithmetic-01, spelling-01, fact-01, ..."""
    turned = table(dict(reversed(START.items())))
    found = blind_spots.states(turned).set_index("prompt_id")
    pd.testing.assert_frame_equal(
        found.sort_index(), blind_spots.states(TABLES["M1"]).set_index("prompt_id")
    )


def test_measures_by_hand():
    found = blind_spots.measures(TABLES, STARTS, 50)
    every = found[(found["kind"] == "all") & (found["against"] == "")]
    value = every.set_index(["model", "measure"])["value"]
    assert value["M1", "right"] == pytest.approx(1 / 6)
    assert value["M1", "blind"] == pytest.approx(3 / 5)
    assert value["M1", "unseen"] == pytest.approx(3 / 4)
    assert value["M1", "prefers"] == pytest.approx(3.5 / 5)
    assert value["M1", "margin"] == pytest.approx(3 / 4)
    assert value["x/M2", "unseen"] == pytest.approx(4 / 5)
    count = every.set_index(["model", "measure"])["n"]
    assert count["M1"].to_dict() == {"right": 6, "blind": 5, "unseen": 4, "prefers": 5, "margin": 4}
    kinds = found[(found["measure"] == "right") & (found["model"] == "M1")].set_index("kind")
    assert kinds["value"].round(3).to_dict() == {"all": 0.167, "fact": 0.333, "spelling": 0}
    change = found[found["against"] == "M1"].set_index("measure")
    assert change.loc["blind", "value"] == pytest.approx(3 / 5 - 3 / 5)
    assert change.loc["margin", ["value", "n"]].tolist() == pytest.approx([0.5 / 3 - 2 / 3, 3])


def test_what_became_of_the_starts_blind_spots():
    found = blind_spots.transitions(TABLES, STARTS)
    fates = blind_spots.fates(found).set_index("after")
    assert fates["count"].to_dict() == {"repaired": 1, "seen": 0, "kept": 1, "amplified": 1}
    assert set(fates["n"]) == {3}
    assert fates.loc["repaired", "low"] == pytest.approx(0.0615, abs=1e-3), "Wilson, 1 of 3"
    counts = found.set_index(["before", "after"])["count"]
    assert counts[RIGHT, BLIND] == 1
    assert counts[SEEN, SEEN] == 1
    assert counts[BLIND, BLIND] == 2
    states = found[~found["after"].isin(blind_spots.FATES)]
    assert states["count"].sum() == 5, "an item without a state at the start is left out"
    assert blind_spots.transitions({"x/M2": TABLES["x/M2"]}, STARTS).empty, "the start is needed"


def test_nothing_asked_is_an_empty_table():
    assert list(blind_spots.measures({}, {}).columns) == list(blind_spots.TABLE)
    assert list(blind_spots.transitions({}, {}).columns) == list(blind_spots.TRANSITIONS)


# --- scores over the distance --------------------------------------------------------------------


def level(arm: str, iteration: int, model: str, outcome: str, value: float) -> dict:
    row = {"arm": arm, "iteration": iteration, "model": model, "outcome": outcome, "against": ""}
    return row | {"value": value, "low": value, "high": value, "n": 9}


def test_the_curve_puts_own_and_independent_scores_of_one_policy_together():
    runs = [
        Run("", 0, "M1"),
        Run("a", 1, "a/M2", "M1", "a/iter-1", "s"),
        Run("a", 2, "a/M3", "M1", "a/iter-2", "s"),
    ]
    outcomes = pd.DataFrame(
        [
            level("a", 1, "a/M2", "own score", 2.0),  # of M1's candidates
            level("a", 2, "a/M3", "own score", 3.0),
            level("", 0, "M1", "oracle's score", 0.5),
            level("a", 1, "a/M2", "oracle's score", 0.4),
            level("a", 2, "a/M3", "oracle's score", 0.3),
            level("a", 1, "a/M2", "win rate", 0.6),
            level("a", 1, "a/M2", "length", 99.0),
            level("a", 2, "a/M3", "oracle's score", 0.9) | {"against": "M1"},
        ]
    )
    candidates = pd.DataFrame(
        [{"model": f"a/iter-{t}", "value": t / 8, "low": 0, "high": 1, "n": 4} for t in (1, 2)]
    )
    kl = [("a/M2", "log-ratio", -1, -2, 1), ("a/M2", "k3", 4.0, 1.0, 9.0)]
    kl = pd.DataFrame(kl, columns=["model", "estimate", "value", "low", "high"])
    found = overoptimisation.curve(runs, outcomes, candidates, kl)
    by = found.set_index(["t", "measure"])
    assert by["value"].to_dict() == {
        (1, "own score"): 2.0, (1, "oracle's score, same candidates"): 1 / 8,
        (1, "oracle's score"): 0.5, (2, "own score"): 3.0,
        (2, "oracle's score, same candidates"): 2 / 8, (2, "oracle's score"): 0.4,
        (2, "win rate"): 0.6, (3, "oracle's score"): 0.3,
    }  # fmt: skip
    assert set(by.loc[1, "model"]) == {"M1"}
    assert set(by.loc[1, "distance"]) == {0}
    ends = ["kl", "distance", "distance_low", "distance_high"]
    assert by.loc[(2, "own score"), ends].tolist() == [4, 2, 1, 3]
    assert math.isnan(by.loc[(3, "oracle's score"), "distance"]), "its KL was not measured"
    assert overoptimisation.curve([], outcomes, candidates, kl).empty
