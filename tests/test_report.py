"""The report: sentences follow from intervals, and text of models cannot become markup."""

import subprocess
import sys
from itertools import takewhile

import numpy as np
import pandas as pd
import pytest

from srkit import findings, metrics, report
from srkit.config import SrkitError
from srkit.study import Study

HOSTILE = '<script>alert(1)</script><img src=x onerror="a()">\x1b[31m\u202e&amp;'


def test_tables_escape_their_cells_whatever_they_hold():
    page = report._table(
        pd.DataFrame({"model": [HOSTILE], "value": [0.123456], "all": [[HOSTILE]]})
    )
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    assert "0.123" in page


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0.51, 0.70, "above chance"),
        (0.30, 0.49, "below chance"),
        (0.45, 0.70, "not told from chance"),
    ],
)
def test_a_judge_is_called_better_only_where_its_interval_says_so(low, high, told):
    rows = [
        {"model": "M1", "metric": "pairwise_accuracy", "value": 0.6, "low": low, "high": high},
        {"model": "M1", "metric": "parse_rate", "value": 0.9, "low": 0.8, "high": 1.0},
    ]
    table = pd.DataFrame(rows).assign(n=100)
    (sentence,) = findings._judging(table, lambda judge: True)
    parsed = "Of its judgements 90.0 % [80.0, 100.0, n = 100] parse."
    assert sentence.endswith(f"{told}. {parsed}")
    assert "60.0 % [" in sentence
    (sentence,) = findings._judging(table, lambda judge: False)
    assert sentence.endswith(f"{told}."), "probabilities always parse"


def test_who_writes_judgements_is_the_arms_own_setting(tmp_path):
    arms = "self-rewarding,judged-once,reward-model"
    study = Study.open(tmp_path / "many", "cpu", arm=arms)
    writes = [findings._writes(study, f"{arm}/M2") for arm in study.arms]
    assert writes == [False, True, False]
    assert not findings._writes(study, "M1")
    sampled = Study.open(tmp_path / "sampled", "cpu", "judge.method=sampled", "reward-model")
    assert findings._writes(sampled, "M1")
    assert not findings._writes(sampled, "reward-model"), "the frozen one"
    assert metrics.judged_by(study, "judged-once/iter-1").method == "sampled"
    assert metrics.judged_by(study, "M1").method == "expected"


def test_of_many_arms_sentences_are_about_the_papers_and_the_controls(tmp_path):
    arms = "self-rewarding,nll,high-beta,length-control,length-penalty,cream,anchored,spin,human,"
    arms += "random-judge,oracle"
    study = Study.open(tmp_path / "many", "tiny", arm=arms)
    last = [f"{arm}/M3" for arm in arms.split(",")]
    models = ["length alone", "M1", *last, "self-rewarding/M2"]
    told = findings.uncrowded(study, pd.DataFrame({"model": models, "value": 1}))["model"]
    ends = ["self-rewarding/M3", "random-judge/M3", "oracle/M3"]
    assert told.tolist() == ["length alone", "M1", *ends, "self-rewarding/M2"]
    (sentence,) = findings._left_out(study)
    assert sentence.startswith("Sentences here are about 6 of 24 models: baseline, M1, self-reward")
    few = Study.open(tmp_path / "few", "tiny", arm="self-rewarding,nll")
    assert findings._left_out(few) == []
    assert len(findings.uncrowded(few, pd.DataFrame({"model": ["M1", "nll/M2", "nll/M3"]}))) == 3


def test_no_difference_is_called_no_difference():
    row = {"model": "M2", "reference": "M1", "metric": "pairwise_accuracy", "value": 0.031}
    table = pd.DataFrame([row | {"low": -0.01, "high": 0.07, "prompts": 40}])
    (sentence,) = findings._changes(table)
    assert sentence == (
        "Judging, M2 against M1: +3.1 points [-1.0, +7.0], 40 prompts: no difference shown."
    )


def test_an_undefined_rate_is_called_undefined():
    assert findings.rate({"value": None, "n": 0}) == "(undefined, n = 0)"


def test_what_has_no_interval_is_said_to_have_none():
    assert findings.rate({"value": 1.0, "low": None, "high": np.nan, "n": 1}) == (
        "100.0 % [no interval, n = 1]"
    )
    row = {"model": "M2", "reference": "M1", "metric": "pairwise_accuracy", "value": 0.0}
    table = pd.DataFrame([row | {"low": np.nan, "high": np.nan, "prompts": 40}])
    (sentence,) = findings._changes(table)
    assert sentence.endswith("+0.0 points [no interval], 40 prompts: no difference shown.")


def test_a_referee_that_ties_everything_is_told_once():
    pair = {"left": "M1", "right": "baseline", "referee": "M0", "n": 32, "ties": 32}
    pair |= {"win_rate": 0.5, "win_rate_low": 0.4, "win_rate_high": 0.6, "wins": 0, "losses": 0}
    rate = {"measure": "win_rate_length_controlled", "value": 0.5, "low": 0.4, "high": 0.6, "n": 32}
    games, measures = pd.DataFrame([pair, pair | {"left": "M2"}]), pd.DataFrame([pair | rate])
    (sentence,) = findings._matches(games, measures)
    assert sentence.startswith("All 64 verdicts of referee M0 are ties")
    (sentence,) = findings._matches(games[:1].assign(wins=1, ties=31), measures)
    assert "50.0 % [40.0, 60.0, n = 32], ties half (1 wins, 31 ties, 0 losses)" in sentence


def test_what_training_changed_is_told_by_model_with_intervals():
    share = {"benchmark": "instructions", "metric": "prompts, strict", "unit": "share"}
    points = {"benchmark": "two-turn", "metric": "turn 1", "unit": "points"}
    change = {"model": "M1", "reference": "baseline", "prompts": 44}
    rows = [change | share | {"value": -0.114, "low": -0.2, "high": -0.02}]
    rows += [change | points | {"value": 0.0, "low": None, "high": None}]
    rows += [rows[0] | {"model": "x/M2", "reference": "M1"}]
    (sentence,) = findings._benchmarks(pd.DataFrame(rows))
    assert sentence == (
        "What training changed, M1 against baseline: instructions (prompts, strict) -11.4 "
        "[-20.0, -2.0, n = 44], lower; two-turn (turn 1) +0.00 [no interval, n = 44], no "
        "difference shown."
    )
    assert findings._benchmarks(pd.DataFrame()) == []


def test_the_power_of_n_prompts_is_told_and_the_papers_is_not_ours():
    rows = [("M1", 1.0, 32, True, None), ("M0", 0.5, 32, True, 0.68), ("M0", 0.5, 64, False, 0.6)]
    rows.append(("GPT-4 (the paper)", 0.33, 256, True, 0.57))
    table = pd.DataFrame(rows, columns=["referee", "tie_share", "n", "here", "win_rate"])
    silent, other = findings._power(table)
    assert silent.startswith("With 32 prompts and 100 % ties, no win rate that referee M1")
    assert "referee M0 would show a win rate of 68 % or more" in other


def test_metrics_of_an_earlier_version_say_what_to_do(study, make):
    for name in takewhile("metrics/win_rates".__ne__, study.steps):
        make(study, name)
    study.make_file("metrics/win_rates", lambda: '{"head_to_head": [{"n": 1}]}')
    assert metrics.table(study, "win_rates", "head_to_head")["n"].tolist() == [1]
    with pytest.raises(SrkitError, match=r"no table 'power'.* run notebook 12_win_rates"):
        metrics.table(study, "win_rates", "power")


def test_arms_are_told_with_what_chance_alone_would_show():
    row = {"iteration": 2, "model": "nll/M3", "against": "self-rewarding/M3", "arm": "nll"}
    rows = [
        row | {"outcome": "length", "unit": "characters", "value": 12, "low": 3, "high": 20},
        row | {"outcome": "win rate", "unit": "share", "value": -0.02, "low": -0.05, "high": 0},
        row | {"outcome": "pairs", "unit": "share", "value": 0.0, "low": None, "high": None},
    ]
    coins = {"arm": "random-judge", "model": "random-judge/M3", "unit": "share"}
    rows.append(row | coins | {"outcome": "win rate", "value": -0.1, "low": -0.2, "high": -0.01})
    other, control, chance = findings._arms(pd.DataFrame(rows))
    assert other == (
        "Arm nll against self-rewarding: length +12.0 characters [+3.0, +20.0]; nothing else shown."
    )
    assert control.startswith("Arm random-judge (a control) against self-rewarding: win rate -10.0")
    assert chance.startswith("Of 3 differences of arms from self-rewarding, 2 have an interval")
    assert "about 0.15 would" in chance, "a twentieth of three"
    assert findings._arms(pd.DataFrame(rows).assign(against="")) == []


def test_figures_and_report_load_no_model_library():
    """A page is made on any machine, within seconds: not even torch is imported."""
    code = "import sys, srkit.drawings, srkit.report; print({'torch', 'peft'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
