"""Length-controlled win rates, strengths and power: by hand, by plain loops, and simulated."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references import by_definition as slow

from srkit import headtohead, stats, strength

VERDICT = {1.0: ("left", "left"), 0.5: ("left", "right"), 0.0: ("right", "right")}
OTHER = {"left": "right", "right": "left"}


def games(points, left: str = "M2", right: str = "M1") -> pd.DataFrame:
    """Comparisons in which left gets these points (1, 0.5 or 0) on prompts p0, p1, ..."""
    rows = [
        {"prompt_id": f"p{i}", "left": left, "right": right, "first": first, "preferred": preferred}
        for i, point in enumerate(points)
        for first, preferred in zip(("left", "right"), VERDICT[point], strict=True)
    ]
    return pd.DataFrame(rows).assign(referee="R", log_odds_left=0.0)


def lengths(**by_model) -> pd.DataFrame:
    rows = [
        {"model": model, "prompt_id": f"p{i}", "characters": float(characters)}
        for model, answers in by_model.items()
        for i, characters in enumerate(answers)
    ]
    return pd.DataFrame(rows)


def measures(points, longer, **options) -> pd.DataFrame:
    """`win_rates` of one pair, by measure; left's answers are `longer` characters longer."""
    known = lengths(M2=[100 + d for d in longer], M1=[100] * len(longer))
    return strength.win_rates(games(points), known, **options).set_index("measure")


def mirrored(frame: pd.DataFrame) -> pd.DataFrame:
    words = {name: frame[name].map(OTHER) for name in ("first", "preferred")}
    return frame.assign(left=frame["right"], right=frame["left"], **words)


# --- win rates -----------------------------------------------------------------------------------


def test_win_rates_by_hand():
    points = [1, 1, 1, 1, 0.5, 0.5, 0, 0]
    table = measures(points, [0] * 8)
    assert table.loc["win_rate", "value"] == 5 / 8
    assert table.loc["win_rate_wilson", ["low", "high"]].tolist() == pytest.approx(
        slow.wilson(5, 8), abs=1e-9
    )
    assert table.loc["win_rate_decided", ["value", "n"]].tolist() == [4 / 6, 6]
    # equal lengths: half a win and half a loss are added, nothing else
    row = table.loc["win_rate_length_controlled"]
    assert row["value"] == pytest.approx(5.5 / 9)
    error = 1 / math.sqrt(9 * (5.5 / 9) * (3.5 / 9))
    low = 1 / (1 + math.exp(-(math.log(5.5 / 3.5) - slow.Z * error)))
    assert row["low"] == pytest.approx(low)
    assert np.isnan(table.loc["length_weight", "value"]), "lengths that never differ have no weight"
    assert table.loc["length_difference", "value"] == 0


@settings(max_examples=12)
@given(
    st.lists(
        st.tuples(st.integers(-200, 200), st.sampled_from([0.0, 0.5, 1.0])), min_size=3, max_size=9
    ).filter(lambda rows: len({d for d, _ in rows}) > 1)
)
def test_length_controlled_win_rate_is_its_definition(rows):
    longer, points = zip(*rows, strict=True)
    found = measures(points, longer, resamples=5)["value"]
    rate, weight = slow.length_controlled(longer, points)
    assert found["win_rate_length_controlled"] == pytest.approx(rate, abs=1e-6)
    assert found["length_weight"] == pytest.approx(weight, abs=1e-5)


@settings(max_examples=12)
@given(st.integers(0, 9999))
def test_the_other_side_sees_the_mirror_image(seed):
    rng = np.random.default_rng(seed)
    points, longer = rng.choice([0, 0.5, 1], 12), rng.integers(-99, 99, 12)
    known = lengths(M2=100 + longer, M1=[100] * 12)
    frame = games(points)
    there, back = (
        strength.win_rates(f, known, resamples=50).set_index("measure")
        for f in (frame, mirrored(frame))
    )
    rates = [name for name in strength.MEASURES if name.startswith("win_rate")]
    for name in rates:
        ours, theirs = there.loc[name], back.loc[name]
        assert ours["value"] == pytest.approx(1 - theirs["value"], nan_ok=True)
        assert ours["low"] == pytest.approx(1 - theirs["high"], nan_ok=True)
    weights = [t.loc["length_weight", "value"] for t in (there, back)]
    assert weights[0] == pytest.approx(weights[1])
    lengthwise = [t.loc["length_difference", "value"] for t in (there, back)]
    assert lengthwise[0] == pytest.approx(-lengthwise[1])
    mixed = strength.win_rates(frame.sample(frac=1, random_state=seed), known, resamples=50)
    pd.testing.assert_frame_equal(mixed.set_index("measure"), there)


def test_a_referee_that_likes_length_is_seen_through():
    rng = np.random.default_rng(0)
    longer = rng.normal(80, 100, 400)
    # quality is equal; only length decides
    won = (1 / (1 + np.exp(-2 * np.tanh(longer / longer.std()))) > rng.random(400)).astype(float)
    table = measures(won, longer, resamples=200)
    raw, controlled = (table.loc[n] for n in ("win_rate", "win_rate_length_controlled"))
    assert raw["low"] > 0.6
    assert controlled["low"] < 0.5 < controlled["high"]
    assert table.loc["length_weight", "low"] > 1


def test_logistic_intervals_hold_the_truth():
    rng = np.random.default_rng(2)
    truth, hits = np.array([0.6, 1.0]), np.zeros(2)
    prior = pd.DataFrame(np.eye(2), columns=["advantage", "length"])
    for _ in range(120):
        design = pd.DataFrame({"advantage": 1.0, "length": np.tanh(rng.normal(0.3, 1, 60))})
        won = (rng.random(60) < 1 / (1 + np.exp(-design.to_numpy() @ truth))).astype(float)
        found = stats.logistic(design, won, np.arange(60), prior)
        hits += ((found["low"] <= truth) & (truth <= found["high"])).to_numpy()
    assert (hits / 120 >= 0.90).all()
    assert (hits / 120 <= 0.995).all()


def test_nothing_but_ties_shows_nothing_and_says_so():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = measures([0.5] * 32, range(-16, 16))
        strengths = strength.bradley_terry(games([0.5] * 32), "M1").set_index("left")
    for name in ("win_rate", "win_rate_wilson", "win_rate_length_controlled"):
        assert table.loc[name, "value"] == pytest.approx(0.5)
        assert table.loc[name, "high"] - table.loc[name, "low"] > 0.3
    assert table.loc["win_rate_decided", "n"] == 0
    assert np.isnan(table.loc["win_rate_decided", "value"])
    assert strengths.loc["M2", "value"] == pytest.approx(0)
    assert np.isnan(strengths.loc["M2", "high"]), "nothing was compared but coins"
    power = strength.power_table(headtohead.head_to_head(games([0.5] * 32)))
    assert power.loc[power["referee"] == "R", "win_rate"].isna().all()


def test_winning_everything_is_strong_but_finite():
    table = measures([1] * 20, range(-10, 10))
    row = table.loc["win_rate_length_controlled"]
    assert 0.5 < row["low"] < row["value"] < row["high"] < 1
    found = strength.bradley_terry(games([1] * 20), "M1").set_index("left").loc["M2"]
    assert found["value"] == pytest.approx(math.log(20.5 / 0.5))
    assert found["se"] == pytest.approx(math.sqrt(1 / 20.5 + 1 / 0.5))


def test_answers_without_a_length_leave_the_controlled_rate_only():
    known = lengths(M2=[9, 9], M1=[9, 9])
    table = strength.win_rates(games([1, 0, 1]), known).set_index("measure")
    assert table.loc["win_rate", "n"] == 3
    assert table.loc["win_rate_length_controlled", "n"] == 2
    none = strength.win_rates(games([1, 0]), pd.DataFrame()).set_index("measure")
    assert none.loc["win_rate_length_controlled", "n"] == 0
    assert none.loc["win_rate", "value"] == 0.5


def test_nothing_compared_gives_empty_tables():
    assert strength.win_rates(pd.DataFrame(), pd.DataFrame()).empty
    assert strength.bradley_terry(pd.DataFrame()).empty
    assert set(strength.power_table(headtohead.head_to_head(pd.DataFrame()))["referee"]) == {
        "GPT-4 (the paper)"
    }


# --- strengths -----------------------------------------------------------------------------------


def season(points: dict[tuple[str, str], list[float]]) -> pd.DataFrame:
    return pd.concat([games(p, *pair) for pair, p in points.items()], ignore_index=True)


@settings(max_examples=12)
@given(st.integers(0, 9999))
def test_strengths_are_those_of_minorisation(seed):
    rng = np.random.default_rng(seed)
    pairs = [("M2", "M1"), ("M3", "M1"), ("M3", "M2")]
    points = {pair: list(rng.choice([0, 0.5, 1], 6)) for pair in pairs}
    found = strength.bradley_terry(season(points), "M1").set_index("left")["value"]
    expected = slow.bradley_terry([(*pair, p) for pair in points for p in points[pair]])
    for model in ("M1", "M2", "M3"):
        assert found[model] == pytest.approx(expected[model] - expected["M1"], abs=1e-6)


def test_two_models_by_hand():
    table = strength.bradley_terry(games([1] * 6 + [0] * 2), "M1").set_index("left")
    assert table.loc["M2", "value"] == pytest.approx(math.log(6.5 / 2.5))
    assert table.loc["M2", "se"] == pytest.approx(math.sqrt(1 / 6.5 + 1 / 2.5), rel=1e-5)
    assert table.loc["M1", "value"] == 0
    assert np.isnan(table.loc["M1", "se"])
    assert table["n"].to_dict() == {"M1": 8, "M2": 8}
    assert table.index[0] == "M1", "the reference comes first"


def test_strengths_do_not_depend_on_who_is_named_first():
    points = {("M2", "M1"): [1, 1, 0.5, 0], ("M3", "M2"): [1, 0, 0, 0.5], ("M3", "M1"): [1] * 4}
    frame = season(points)
    there, back = (
        strength.bradley_terry(f, "M1").set_index("left")[["value", "se"]].sort_index()
        for f in (frame, mirrored(frame))
    )
    pd.testing.assert_frame_equal(there, back)


def test_prompts_that_decide_every_pair_alike_are_no_further_evidence():
    alike = dict.fromkeys([("M2", "M1"), ("M2", "M3")], [1, 1, 0, 0] * 5)
    shared = season({**alike, ("M3", "M1"): [1, 0] * 10})
    apart = shared.assign(prompt_id=shared["prompt_id"] + shared["left"] + shared["right"])
    wide, narrow = (
        strength.bradley_terry(f, "M1").set_index("left")["se"]["M2"] for f in (shared, apart)
    )
    assert wide > 1.2 * narrow


def test_a_model_that_nobody_of_the_others_met_has_no_strength():
    frame = season({("M2", "M1"): [1, 0, 1], ("X", "Y"): [1, 1, 1]})
    found = strength.bradley_terry(frame, "M1").set_index("left")["value"]
    assert np.isnan(found["X"])
    assert np.isnan(found["Y"])
    assert found["M2"] == pytest.approx(math.log(2.5 / 1.5))


def test_each_referee_has_strengths_of_its_own():
    frame = pd.concat([games([1] * 4), games([0] * 4).assign(referee="S")])
    found = strength.bradley_terry(frame, "M1").set_index(["referee", "left"])["value"]
    assert found["R", "M2"] == pytest.approx(-found["S", "M2"])
    assert found["R", "M2"] > 0


# --- power ---------------------------------------------------------------------------------------


def test_what_n_prompts_can_show_by_hand():
    # of six all have to be won (2 / 64 < 5 %), which 0.8 = p ** 6 + (1 - p) ** 6 does
    assert stats.smallest_shown(6) == pytest.approx(0.8 ** (1 / 6), abs=1e-4)
    # 256 prompts, no ties: near h = (1.960 + 0.842) / 16, and sin(h) / 2 above a half (Cohen)
    assert stats.smallest_shown(256) == pytest.approx(0.5 + math.sin(2.8016 / 16) / 2, abs=0.01)
    # half of them ties: as 128 decided prompts, and the win rate moves half as far
    above = stats.smallest_shown(128) - 0.5
    assert stats.smallest_shown(256, ties=0.5) == pytest.approx(0.5 + above / 2)
    assert stats.smallest_shown(256, ties=1.0) is None
    assert stats.smallest_shown(5) is None, "2 / 32 > 5 %"
    assert stats.smallest_shown(40, ties=0.875) is None


@pytest.mark.parametrize("n", [6, 9, 32, 64, 128, 256])
def test_power_is_what_an_exact_sign_test_has(n):
    assert slow.sign_test_power(n, stats.smallest_shown(n)) == pytest.approx(0.8, abs=1e-6)


def test_power_table_uses_each_referees_ties_and_names_the_studys_n():
    table = headtohead.head_to_head(games([1, 0, 0.5, 0.5] * 10))
    power = strength.power_table(table, prompts=(40, 400))
    ours = power[power["referee"] == "R"]
    assert ours["tie_share"].tolist() == [0.5, 0.5]
    assert ours["n"].tolist() == [40, 400]
    assert ours["here"].tolist() == [True, False]
    assert ours["win_rate"].tolist() == [stats.smallest_shown(n, 0.5) for n in (40, 400)]
    assert power.loc[power["referee"] != "R", "n"].tolist() == [40, 256, 400]
