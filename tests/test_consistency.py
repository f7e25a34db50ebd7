"""CREAM's C by hand, from judgements to the weight in the loss."""

import numpy as np
import pandas as pd
import pytest

from srkit import train
from srkit.config import SrkitError
from srkit.consistency import consistency, make_judgements_before, measured, rank_agreement
from srkit.dpo import make_dpo
from srkit.study import Study

FOLDER = "cream/iter-1"


def judgements(scores: dict[str, list]) -> list[dict]:
    """A judgement of each response; `scores[p][i]` is that of response i to prompt p."""
    return [
        {"id": f"{p}#{i}@0", "response_id": f"{p}#{i}", "prompt_id": p, "sample": 0,
         "score": score, "text": None, "tokens": 0, "truncated": False}
        for p, values in scores.items() for i, score in enumerate(values)
    ]  # fmt: skip


NOW = {"p1": [1, 2, 3, 4], "p2": [1, 2, 3], "p3": [2, 1], "p4": [5, 5], "p5": [3, None]}
BEFORE = {"p1": [1, 2, 4, 3], "p2": [3, 2, 1], "p3": [4, 0], "p4": [1, 2], "p5": [3, 1]}


def test_c_by_hand():
    now, before = (pd.DataFrame(judgements(scores)) for scores in (NOW, BEFORE))
    found = rank_agreement(now, before)
    # p1: five of six pairs alike; p2: none of three; p3: the one; p4, p5: nothing to order
    assert found["kendall"].tolist() == pytest.approx([4 / 6, -1, 1, np.nan, np.nan], nan_ok=True)
    assert found["consistent"].dropna().tolist() == pytest.approx([5 / 6, 0, 1])
    assert found["items"].tolist() == [4, 3, 2, 2, 1]
    c = consistency(now, before, resamples=200)
    assert (c["value"], c["n"]) == (pytest.approx((5 / 6 + 0 + 1) / 3), 3)
    assert 0 <= c["low"] < c["value"] < c["high"] <= 1
    assert consistency(now, now, resamples=5)["value"] == 1


def test_responses_are_joined_by_id_and_not_by_place():
    now, before = pd.DataFrame(judgements(NOW)), pd.DataFrame(judgements(BEFORE))
    shuffled = before.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(rank_agreement(now, shuffled), rank_agreement(now, before))


@pytest.fixture
def begun(study, make) -> Study:
    """An arm cream whose first candidates are judged."""
    new = Study.open(study.path, arm="cream", change=True)
    for name in ("seed/ift", "seed/eft", "baseline/adapter", "seed/eft_targets", "M1/adapter"):
        make(new, name)
    prompts = [{"id": p, "prompt": f"question {p}", "dropped": None} for p in NOW]
    candidates = [
        {"id": f"{p}#{i}", "prompt_id": p, "prompt": f"question {p}", "sample": i,
         "text": f"answer {p} {i}", "tokens": 3, "truncated": False}
        for p, values in NOW.items() for i in range(len(values))
    ]  # fmt: skip
    tables = {"prompts": prompts, "candidates": candidates, "judgements": judgements(NOW)}
    for name, rows in tables.items():
        for arm in ("self-rewarding", "cream"):
            make(new, f"{arm}/iter-1/{name}", rows)
    return new


def test_the_baseline_judged_before_m1(begun, engine):
    rows = make_judgements_before(begun, "cream", 1)
    assert {call[0] for call in engine.calls} == {"baseline"}
    assert [row["response_id"] for row in rows[:5]] == ["p1#0", "p1#1", "p1#2", "p1#3", "p2#0"]


def test_the_loss_has_one_minus_c_and_the_manifest_c(begun, make, monkeypatch):
    make(begun, f"{FOLDER}/judgements_before", judgements(BEFORE))
    pair = {"dropped": None, "prompt": "q", "chosen": "a", "rejected": "b"}
    pair |= {"chosen_truncated": False, "rejected_truncated": False}
    make(begun, f"{FOLDER}/pairs", [{"id": p, **pair} for p in NOW])
    told = {}

    def fake(model, start, pairs, settings, folder, seed):
        told.update(smoothing=settings.label_smoothing, pairs=len(pairs))
        for output in begun.step("cream/M2/adapter").outputs:
            (folder / output.rpartition("/")[2]).write_text("{}")
        return train.TrainingRun(1, 5, 0, 1, 1, 1, 1.0, [], 0.6931)

    monkeypatch.setattr(train, "train_dpo", fake)
    record = make_dpo(begun, "cream", 1)
    assert record["consistency"] == pytest.approx(11 / 18)
    assert told == {"smoothing": pytest.approx(7 / 18), "pairs": 5}


@pytest.mark.parametrize(
    ("before", "says"),
    [
        ({p: [1] * len(v) for p, v in NOW.items()}, "no prompt on which both tell candidates"),
        ({**{p: [1] * len(v) for p, v in NOW.items()}, "p1": [1, 2, 3, 4], "p2": [3, 2, 1]},
         "exactly as coins would .C = 0.5 over 2 prompts"),
    ],
    ids=["undefined", "a coin"],
)  # fmt: skip
def test_where_nothing_can_be_learned_it_says_so(begun, make, before, says):
    make(begun, f"{FOLDER}/judgements_before", judgements(before))
    with pytest.raises(SrkitError, match=says):
        measured(begun, "cream", 1)
