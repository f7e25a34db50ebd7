"""Arms side by side: levels, changes and differences, each worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from srkit import ablations, figures, stats
from srkit.ablations import Run, compare, summary, sums_of
from srkit.config import ARMS
from srkit.constraints import parse

PROMPTS = ["p1", "p2", "p3", "p4"]
RUNS = [
    Run("", 0, "M1", scale="additive"),
    Run("self-rewarding", 1, "self-rewarding/M2", "M1", "self-rewarding/iter-1", "additive"),
    Run("nll", 1, "nll/M2", "M1", "nll/iter-1", "additive"),
    Run("oracle", 1, "oracle/M2", "M1", "oracle/iter-1", "other"),
]


def frame(*totals: float, count: float = 1) -> pd.DataFrame:
    return pd.DataFrame({"prompt_id": PROMPTS[: len(totals)], "sum": totals, "count": count})


def cell(table: pd.DataFrame, model: str, outcome: str, against: str = "") -> pd.Series:
    rows = table[(table["model"] == model) & (table["outcome"] == outcome)]
    (row,) = rows[rows["against"] == against].to_dict("records")
    return row


def answers(*texts: str, constraints: list | None = None) -> pd.DataFrame:
    rows = zip(PROMPTS, texts, strict=False)
    return pd.DataFrame(
        [{"prompt_id": p, "text": t, "constraints": constraints or []} for p, t in rows]
    )


def test_levels_and_both_differences_by_hand():
    lengths = {
        "M1": frame(10, 20, 30, 40),
        "self-rewarding/M2": frame(12, 22, 36, 46),
        "nll/M2": frame(10, 19, 30, 41),
    }
    table = compare(RUNS, {"length": lengths}, resamples=200)
    assert cell(table, "M1", "length")["value"] == 25
    assert cell(table, "nll/M2", "length")["value"] == 25
    assert cell(table, "nll/M2", "length", "M1")["value"] == 0
    found = cell(table, "nll/M2", "length", "self-rewarding/M2")
    assert found["value"] == pytest.approx(-4)  # (-2 - 3 - 6 - 5) / 4
    assert found["low"] < -4 < found["high"] < 0
    assert found["n"] == 4
    assert set(table["model"]) == {"M1", "self-rewarding/M2", "nll/M2"}, "oracle has no answers"
    own = table[table["model"] == "self-rewarding/M2"]
    assert list(own["against"]) == ["", "M1"], "the paper's arm is not set against itself"
    assert set(table["unit"]) == {"characters"}


def test_differences_are_over_the_prompts_that_both_have():
    scores = {"self-rewarding/iter-1": frame(1, 2, 3, 4), "nll/iter-1": frame(2, 4)}
    table = compare(RUNS, {"own score": scores}, resamples=50)
    found = cell(table, "nll/M2", "own score", "self-rewarding/M2")
    assert (found["value"], found["n"]) == (1.5, 2)


def test_own_scores_of_another_scale_have_no_difference():
    scores = {f"{arm}/iter-1": frame(1, 2, 3) for arm in ("self-rewarding", "nll", "oracle")}
    table = compare(RUNS, {"own score": scores}, resamples=50)
    assert set(table.loc[table["arm"] == "oracle", "against"]) == {""}
    assert set(table.loc[table["arm"] == "nll", "against"]) == {"", "self-rewarding/M2"}
    assert "M1" not in set(table["against"]), "new prompts: nothing to pair with"


def test_judges_by_another_rubric_have_an_accuracy_and_no_difference():
    """It would be the rubric's: M1 by that rubric may well be as right as the arm's M3."""
    models = ("M1", "self-rewarding/M2", "nll/M2", "oracle/M2")
    table = compare(RUNS, {"judge accuracy": {m: frame(1, 0, 1) for m in models}}, resamples=50)
    against = table.groupby("arm")["against"].agg(set).to_dict()
    assert against["oracle"] == {""}
    assert against["nll"] == {"", "M1", "self-rewarding/M2"}


def test_a_win_rate_is_against_the_start_already():
    wins = {"self-rewarding/M2": frame(1, 0.5, 0, 0.5), "nll/M2": frame(1, 1, 0.5, 0.5)}
    table = compare(RUNS, {"win rate": wins}, resamples=50)
    assert cell(table, "nll/M2", "win rate")["value"] == 0.75
    assert cell(table, "nll/M2", "win rate", "self-rewarding/M2")["value"] == 0.25
    assert set(table["against"]) == {"", "self-rewarding/M2"}


def test_win_rates_against_other_opponents_are_not_subtracted():
    ift_only = Run("ift-only", 1, "ift-only/M2", "baseline", "ift-only/iter-1", "s")
    wins = {"self-rewarding/M2": frame(1, 0.5, 0, 0.5), "ift-only/M2": frame(1, 1, 0.5, 0.5)}
    table = compare([*RUNS, ift_only], {"win rate": wins}, resamples=50)
    assert cell(table, "ift-only/M2", "win rate")["value"] == 0.75, "against the baseline"
    assert set(table["against"]) == {""}
    lengths = {model: frame(1, 2, 1, 2) for model in wins}
    table = compare([*RUNS, ift_only], {"length": lengths}, resamples=50)
    assert "self-rewarding/M2" in set(table["against"]), "lengths have no opponent"


def test_without_the_papers_arm_changes_from_the_start_are_left():
    runs = [RUNS[0], *RUNS[2:]]
    table = compare(runs, {"length": {"M1": frame(1, 2), "nll/M2": frame(2, 4)}})
    assert list(table["against"]) == ["", "", "M1"]
    assert list(compare([], {}).columns) == list(ablations.TABLE)


def test_what_is_measured_by_hand():
    rankings = pd.DataFrame(
        [
            {"id": f"{p}{r}", "prompt_id": p, "rank": r, "response": "x"}
            for p in "ab"
            for r in (0, 1)
        ]
    )
    scores = {"a0": 4, "a1": 2, "b0": 1, "b1": 3}
    judged = pd.DataFrame(
        [
            {"response_id": i, "prompt_id": i[0], "sample": 0, "score": s, "truncated": False}
            for i, s in scores.items()
        ]
    )
    verdict = [("p1", "left", "left"), ("p2", "left", "right"), ("p3", "right", "right")]
    compared = pd.DataFrame(
        [
            {"referee": "M1", "left": "nll/M2", "right": right, "prompt_id": p, "first": first,
             "preferred": preferred, "log_odds_left": 0.1}
            for p, *both in verdict
            for first, preferred in zip(("left", "right"), both, strict=True)
            for right in ("M1", "baseline")
        ]
    )  # fmt: skip
    pairs = pd.DataFrame({"id": PROMPTS, "dropped": [None, "tie", None, None]})
    written = answers("One two.", "no", constraints=[{"kind": "max_words", "value": 1}])
    sums = sums_of(
        rankings, {"M1": judged}, {"nll/M2": written}, compared, {"nll/M2": "M1"},
        parse(["max_words=1", "ends_with=."]), {"nll/iter-1": judged}, {"nll/iter-1": pairs},
    )  # fmt: skip

    def value(outcome: str, owner: str) -> tuple[float, int]:
        found = stats.bootstrap(sums[outcome][owner], ("sum", "count"), resamples=10)
        return found["value"], found["n"]

    assert tuple(sums) == tuple(o for o in ablations.OUTCOMES if o not in ablations.COSTS)
    assert value("judge accuracy", "M1") == (0.5, 2)  # a in order, b not
    assert value("win rate", "nll/M2") == (0.5, 3)  # won, tied, lost; not against the baseline
    assert value("constraints met", "nll/M2") == (0.5, 2)
    assert value("oracle's score", "nll/M2") == (0.5, 2)  # the full stop; the one word
    assert value("length", "nll/M2") == (5, 2)
    assert value("own score", "nll/iter-1") == (2.5, 2)
    assert value("pairs", "nll/iter-1") == (0.75, 4)


def outcomes(arms: list[str], iterations: int = 2, prompts: int = 30) -> pd.DataFrame:
    """A table of that many arms, whose models differ by chance; costs included."""
    rng, names = np.random.default_rng(0), [f"p{i}" for i in range(prompts)]
    runs = [Run("", 0, "M1")] + [
        Run(arm, t, f"{arm}/M{t + 1}", "M1", f"{arm}/iter-{t}", "additive")
        for arm in arms
        for t in range(1, iterations + 1)
    ]

    def draw(unit: str) -> pd.DataFrame:
        values = rng.integers(0, 2, prompts) if unit == "share" else rng.normal(100, 20, prompts)
        return pd.DataFrame({"prompt_id": names, "sum": values, "count": 1})

    sums = {
        outcome: {run.owner(outcome): draw(unit) for run in runs}
        for outcome, unit in ablations.OUTCOMES.items()
        if outcome not in ablations.COSTS
    }
    costs = [
        {"arm": r.arm, "iteration": r.iteration, "model": r.model, "outcome": c, "value": 90.0}
        for r in runs[1:]
        for c in ablations.COSTS
    ]
    return ablations.with_costs(compare(runs, sums, resamples=100), pd.DataFrame(costs))


def test_the_summary_has_a_row_per_arm_and_stars_what_differs():
    table = outcomes(["self-rewarding", "nll"])
    here = (table["model"] == "nll/M3") & (table["against"] == "self-rewarding/M3")
    lengths = here & (table["outcome"] == "length")
    table.loc[lengths, ["value", "low", "high"]] = (9.0, 1.0, 17.0)
    table.loc[here & (table["outcome"] == "pairs"), ["value", "low", "high"]] = (0.0, -0.1, 0.1)
    words = summary(table).set_index("arm")
    assert list(words.index) == ["M1", "self-rewarding", "nll"]
    assert list(words.columns) == list(ablations.OUTCOMES)
    assert words.loc["nll", "length"].endswith("] *")
    assert not words.loc["nll", "pairs"].endswith("*")
    assert words.loc["M1", "tokens"] == ""
    assert words.loc["nll", "tokens"] == "90"
    assert "% [" in words.loc["self-rewarding", "win rate"]


@pytest.mark.parametrize("arms", [["self-rewarding"], ["nll"], list(ARMS)], ids=len)
def test_the_figure_has_a_panel_per_outcome_and_a_row_per_arm(arms):
    figure = figures.ablations(outcomes(arms))
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert len(panels) == len(ablations.OUTCOMES)
    names = [label.get_text() for label in panels[0].get_yticklabels()]
    assert [name.removesuffix(" (control)") for name in names] == arms
    assert sum(name.endswith("(control)") for name in names) == len(
        {*arms} & {"random-judge", "oracle"}
    )


def test_a_table_without_arms_draws_what_is_missing():
    table = outcomes(["self-rewarding"])
    assert len(figures.ablations(table[table["arm"] == ""]).axes) == 1
