"""Verdicts by hand, mirror symmetry, and the referee's card."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srkit import headtohead as h2h
from srkit.config import SrkitError

OTHER = {"left": "right", "right": "left"}


def comparisons(cases: dict[str, tuple], left: str = "M2", right: str = "M1") -> pd.DataFrame:
    """prompt -> (preferred, log-odds of left) with left first, and the same with right first."""
    rows = []
    for prompt, orders in cases.items():
        for first, order in zip(("left", "right"), orders, strict=False):
            row = {"prompt_id": prompt, "left": left, "right": right, "first": first}
            rows.append({**row, "preferred": order[0], "log_odds_left": order[1]})
    return pd.DataFrame(rows).assign(referee="M0")


HAND = {
    "win": (("left", 2.0), ("left", 1.0)),
    "loss": (("right", -1.0), ("right", -3.0)),
    "place": (("left", 1.0), ("right", -1.0)),  # the first is preferred both times
    "silent": (("left", 1.0), (None, None)),
    "half": (("left", 5.0),),
}


def test_verdicts_by_hand():
    table = h2h.verdicts(comparisons(HAND)).set_index("prompt_id")
    assert table["reason"].to_dict() == {
        "win": "agree",
        "loss": "agree",
        "place": "disagree",
        "silent": "unparsed",
        "half": "incomplete",
    }
    verdict = table["verdict"].drop("half").to_dict()
    assert verdict == {"win": "win", "loss": "loss", "place": "tie", "silent": "tie"}
    assert pd.isna(table.loc["half", "verdict"])
    odds = table.loc[["win", "loss", "place"], "log_odds_left"].tolist()
    assert odds == [1.5, -2.0, 0.0]
    assert table.loc[["silent", "half"], "log_odds_left"].isna().all()


def test_head_to_head_by_hand():
    row = h2h.head_to_head(comparisons(HAND)).iloc[0]
    assert row[["n", "wins", "ties", "losses"]].tolist() == [4, 1, 2, 1]
    assert row[["disagreed", "unparsed", "incomplete"]].tolist() == [1, 1, 1]
    assert row[["wins_percent", "ties_percent", "losses_percent"]].tolist() == [25, 50, 25]
    assert row["win_rate"] == 0.5
    assert (row["position_consistency"], row["position_consistency_n"]) == (pytest.approx(2 / 3), 3)
    assert row["first_preferred"] == pytest.approx(4 / 6)  # 1 of 2, 1 of 2, 2 of 2
    assert (row["log_odds"], row["log_odds_n"]) == (pytest.approx(-0.5 / 3), 3)
    assert 0 <= row["win_rate_low"] < 0.5 < row["win_rate_high"] <= 1


def test_all_ties_are_not_certainty():
    ties = {f"p{i}": HAND["place"] for i in range(16)}
    row = h2h.head_to_head(comparisons(ties)).iloc[0]
    assert row["win_rate"] == 0.5
    assert row["win_rate_low"] < 0.3 < 0.7 < row["win_rate_high"]
    assert row["position_consistency"] == 0
    assert row["first_preferred"] == 1


def test_each_pair_and_referee_has_its_row():
    both = pd.concat([comparisons(HAND), comparisons(HAND, "M2", "baseline")])
    table = h2h.head_to_head(pd.concat([both, both.assign(referee="other")]))
    assert len(table) == 4
    assert (table["n"] == 4).all()


def test_one_name_on_both_sides_is_refused():
    with pytest.raises(SrkitError, match="'M1' against itself"):
        h2h.head_to_head(comparisons(HAND, "M1", "M1"))


def test_repeated_orders_and_other_words_are_refused():
    frame = comparisons(HAND)
    with pytest.raises(SrkitError, match="repeat an order, the first on prompt 'win'"):
        h2h.verdicts(pd.concat([frame, frame[:1]]))
    with pytest.raises(SrkitError, match="`preferred` is 'A' in 2"):
        h2h.verdicts(frame.assign(preferred=["A", "A", *frame["preferred"][2:]]))


def random_cases(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    names = np.array(["left", "right", None], dtype=object)
    return {
        f"p{i}": tuple((names[rng.integers(3)], float(rng.normal())) for _ in range(2))
        for i in range(rng.integers(1, 9))
    }


def mirrored(frame: pd.DataFrame) -> pd.DataFrame:
    """The same comparisons told from the other side."""
    return frame.assign(
        left=frame["right"],
        right=frame["left"],
        first=frame["first"].map(OTHER),
        preferred=frame["preferred"].map(OTHER),
        log_odds_left=-frame["log_odds_left"],
    )


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 10_000))
def test_the_other_side_sees_the_mirror_image(seed):
    frame = comparisons(random_cases(seed))
    row, mirror = (h2h.head_to_head(f, 100).iloc[0] for f in (frame, mirrored(frame)))
    assert row[["wins", "ties", "losses"]].tolist() == mirror[["losses", "ties", "wins"]].tolist()
    assert row["win_rate"] == pytest.approx(1 - mirror["win_rate"])
    assert row["log_odds"] == pytest.approx(-mirror["log_odds"])
    for same in ("position_consistency", "first_preferred", "unparsed"):
        assert row[same] == pytest.approx(mirror[same], nan_ok=True)
    assert row["win_rate_low"] == pytest.approx(1 - mirror["win_rate_high"], nan_ok=True)


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 10_000), st.floats(-5, 5))
def test_a_constant_preference_for_a_place_cancels(seed, bias):
    frame = comparisons(random_cases(seed))
    push = np.where(frame["first"] == "left", bias, -bias)
    pushed = frame.assign(log_odds_left=frame["log_odds_left"] + push)
    plain, biased = (h2h.head_to_head(f, 20).iloc[0]["log_odds"] for f in (frame, pushed))
    assert plain == pytest.approx(biased, abs=1e-9)


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 10_000))
def test_rows_are_matched_by_prompt_not_by_position(seed):
    frame = comparisons(random_cases(seed))
    mixed = frame.sample(frac=1, random_state=seed)
    pd.testing.assert_frame_equal(h2h.head_to_head(frame, 20), h2h.head_to_head(mixed, 20))


def card(cases: dict[tuple[str, str], tuple], ranks: dict[str, int]) -> pd.DataFrame:
    parts = [comparisons({"eft-1": orders}, left, right) for (left, right), orders in cases.items()]
    rankings = pd.DataFrame({"id": list(ranks), "rank": list(ranks.values())})
    return h2h.referee_card(pd.concat(parts), rankings, 50).set_index("metric")


def test_referee_card_by_hand():
    found = card(
        {
            ("a", "b"): HAND["win"],  # right: a is better
            ("a", "c"): HAND["loss"],  # wrong
            ("c", "b"): HAND["win"],  # wrong: b is better
            ("b", "d"): HAND["place"],  # tie, log-odds 0
            ("a", "d"): HAND["silent"],
            ("c", "d"): HAND["win"],  # equal human rank: no pair
        },
        {"a": 0, "b": 1, "c": 2, "d": 2},
    )
    assert found["value"]["accuracy"] == pytest.approx((1 + 0 + 0 + 0.5 + 0.5) / 5)
    assert found["value"]["accuracy_decided"] == pytest.approx(1 / 3)
    assert found["value"]["accuracy_log_odds"] == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    assert found["value"]["position_consistency"] == pytest.approx(3 / 4)
    assert found["value"]["parse_rate"] == pytest.approx(9 / 10)
    assert found["n"].to_dict() == {
        "accuracy": 5,
        "accuracy_decided": 3,
        "accuracy_log_odds": 4,
        "position_consistency": 4,
        "first_preferred": 8,
        "parse_rate": 10,
    }
    assert (found["prompts"] == 1).all()


def test_a_card_needs_ranked_responses():
    with pytest.raises(SrkitError, match="'x'"):
        card({("a", "x"): HAND["win"]}, {"a": 0})


def test_nothing_compared_gives_empty_tables():
    assert h2h.head_to_head(pd.DataFrame()).empty
    assert "win_rate_low" in h2h.head_to_head(pd.DataFrame())
    assert h2h.referee_card(pd.DataFrame(), pd.DataFrame()).empty


def test_the_papers_counts_are_of_256_prompts():
    assert (h2h.PAPER[["wins", "ties", "losses"]].sum(axis=1) == 256).all()
    first = h2h.PAPER.iloc[0]
    assert round(100 * first["wins"] / 256, 1) == 30.5
