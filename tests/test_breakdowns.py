"""Groups by hand; a seed without labels; the paper's charts."""

import pandas as pd
import pytest

from srkit import breakdowns, seed
from srkit.breakdowns import EXPECTED, PAPER


@pytest.fixture
def prompts() -> pd.DataFrame:
    rows = [
        ("t0", "list", 1.0),
        ("t1", "list", 10.0),
        ("t2", "advice", 2.0),
        ("t3", "advice", None),
    ]
    return pd.DataFrame(rows, columns=["id", "task", "complexity"])


def responses(*lengths: int) -> pd.DataFrame:
    limit = [{"kind": "max_words", "value": 1}]
    rows = [
        {"prompt_id": f"t{i}", "text": "w " * n, "constraints": limit if i < 2 else []}
        for i, n in enumerate(lengths)
    ]
    return pd.DataFrame(rows).assign(tokens=1, truncated=False)


def comparisons(**preferred: str) -> pd.DataFrame:
    """Both orders of M2 against the baseline say the same, per prompt."""
    rows = [
        {"prompt_id": prompt, "first": first, "preferred": side}
        for prompt, side in preferred.items()
        for first in ("left", "right")
    ]
    names = {"left": "M2", "right": "baseline", "referee": "M0", "log_odds_left": 0.0}
    return pd.DataFrame(rows).assign(**names)


def test_win_rate_constraints_and_length_by_hand(prompts):
    rows = comparisons(t0="left", t1="right", t2="left", t3="left")
    answers = {"baseline": responses(1, 1, 1, 1), "M2": responses(1, 2, 3, 4)}
    table = breakdowns.answers_by_group(prompts, rows, answers, resamples=50)
    value = table.set_index(["quantity", "model", "label", "group"])["value"]
    assert value["win rate", "M2", "task", "list"] == 0.5
    assert value["win rate", "M2", "task", "advice"] == 1
    assert value["win rate", "M2", "task", "all"] == 0.75
    assert value["win rate", "M2", "complexity", "10"] == 0
    assert ("win rate", "baseline", "task", "list") not in value, "nobody plays against itself"
    assert value["constraints met", "M2", "task", "list"] == 0.5
    assert value["constraints met", "baseline", "task", "list"] == 1
    assert pd.isna(value["constraints met", "M2", "task", "advice"]), "none is stated there"
    assert value["characters", "M2", "task", "advice"] == pytest.approx(7)


def test_n_is_told_and_small_groups_are_marked(prompts):
    table = breakdowns.answers_by_group(
        prompts, comparisons(t0="left"), {"M2": responses(1, 1)}, resamples=5
    )
    wins = table[(table["quantity"] == "win rate") & (table["label"] == "task")].set_index("group")
    assert wins["n"].to_dict() == {"all": 1, "advice": 0, "list": 1}
    assert wins["prompts"].to_dict() == {"all": 4, "advice": 2, "list": 2}
    assert wins["small"].all()
    assert (wins.loc["list", "low"], wins.loc["list", "high"]) == pytest.approx(
        (0.2065, 1), abs=1e-4
    )
    many = pd.DataFrame({"id": [f"t{i}" for i in range(10)], "task": "list"})
    wins = breakdowns.answers_by_group(
        many, comparisons(**{f"t{i}": "left" for i in range(10)}), {"M2": responses(1)}, resamples=5
    ).query("quantity == 'win rate'")
    assert not wins["small"].any()


def test_groups_stand_in_their_order(prompts):
    table = breakdowns.answers_by_group(
        prompts, comparisons(t0="left"), {"M2": responses(1)}, resamples=5
    )
    order = table.groupby("label", sort=False)["group"].unique().map(list).to_dict()
    assert order == {"task": ["all", "advice", "list"], "complexity": ["all", "1", "2", "10"]}
    labelled = pd.DataFrame(
        {"id": ["a", "b", "c"], "expected_length": [EXPECTED[i] for i in (2, 0, 1)]}
    )
    names = [group for _, group, _ in breakdowns._parts(breakdowns.groups(labelled))]
    assert names == ["all", *EXPECTED[:3]]


def test_a_seed_without_labels_has_an_empty_breakdown():
    bare = pd.DataFrame({"id": ["t0", "t1"], "task": "", "complexity": None})
    table = breakdowns.answers_by_group(
        bare, comparisons(t0="left"), {"M2": responses(1)}, resamples=5
    )
    assert table.empty
    assert list(table.columns) == list(breakdowns.TABLE)


def test_judging_by_group_by_hand():
    rows = [("a", "list", 0, 4.0), ("a", "list", 1, 2.0), ("b", "advice", 0, 1.0)]
    rows += [("b", "advice", 1, 3.0), ("b", "advice", 2, 1.0)]
    table = pd.DataFrame(rows, columns=["prompt_id", "task", "rank", "score"])
    table["id"] = [f"r{i}" for i in range(5)]
    rankings = table.drop(columns="score").assign(response="text")
    judged = table.rename(columns={"id": "response_id"}).assign(sample=0, truncated=False)
    found = breakdowns.judging_by_group(rankings, {"M1": judged}, resamples=50)
    value = found.set_index(["quantity", "group"])["value"]
    assert value["pairwise accuracy", "list"] == 1
    # b: 1 against 3 wrong, 1 against 1 tied and left out, 3 against 1 right
    assert value["pairwise accuracy", "advice"] == 0.5
    assert value["pairwise accuracy", "all"] == pytest.approx(2 / 3)
    assert value["score", "advice"] == pytest.approx(5 / 3)
    assert found.set_index(["quantity", "group"]).loc[("score", "all"), "n"] == 2


def test_the_papers_charts_stand_as_read():
    value = PAPER.set_index(["label", "group", "model"])["value"]
    assert value["task", "Technology", "M2"] == pytest.approx(0.35)
    assert value["complexity", "5", "M3"] == pytest.approx(0.265)
    assert value["expected_length", "1-3 sentences", "M3"] == pytest.approx(0.216)
    gain = value.unstack()["M3"] - value.unstack()["M0"]
    assert gain.loc["expected_length"].gt(0).all(), "the paper: gains for all expected lengths"


def test_the_kits_prompts_are_labelled_and_each_task_has_eight():
    rows = pd.DataFrame(
        [r.model_dump() for r in seed._rows(seed.KIT / seed.FILES[2], seed.TestRow)]
    )
    table = breakdowns.groups(rows)
    assert table["label"].value_counts().to_dict() == dict.fromkeys(breakdowns.LABELS, len(rows))
    assert set(table.loc[table["label"] == "expected_length", "group"]) == set(EXPECTED)
    assert (table[table["label"] == "task"]["group"].value_counts() == 8).all()
