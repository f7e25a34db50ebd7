"""Every step of the plan has a function that makes it, called with its arm and iteration."""

import pytest

from srkit import series
from srkit.config import SrkitError
from srkit.study import Study


@pytest.fixture
def calls(monkeypatch):
    """What was called for which step: `(table, key, arguments after the study)`."""
    found = []
    for table in ("OF_STUDY", "OF_ITERATION", "OF_MODEL"):
        stand_ins = {
            key: lambda study, *more, at=(table, key): found.append((*at, more))
            for key in getattr(series, table)
        }
        monkeypatch.setattr(series, table, stand_ins)
    return found


def test_every_step_has_its_function(tmp_path, calls):
    settings = "sft.eft_targets=self eval.benchmarks=[piqa] eval.two_turn_questions=1 "
    settings += "eval.embedding_model=a/b eval.refined_of=[M1,random-judge/M2]"
    arms = "self-rewarding,ift-only,cream,anchored,meta-judge,random-judge,reward-model"
    study = Study.open(tmp_path / "s", "tiny", settings, arms)
    for name in study.steps:
        series.make_step(study, name)
    made = dict(zip(study.steps, calls, strict=True))
    assert made["seed/eft"] == ("OF_STUDY", "seed/eft", ())
    assert made["baseline/eft_judgements"] == ("OF_STUDY", "baseline/eft_judgements", ())
    assert made["M1/judgements"] == ("OF_MODEL", "judgements", ("M1",))
    assert made["random-judge/M3/responses"] == ("OF_MODEL", "responses", ("random-judge/M3",))
    judged = made["random-judge/iter-2/judgements"]
    assert judged == ("OF_ITERATION", "judgements", ("random-judge", 2))
    assert made["ift-only/M2/adapter"] == ("OF_ITERATION", "adapter", ("ift-only", 1))
    assert made["random-judge/M2/refined"] == ("OF_MODEL", "refined", ("random-judge/M2",))
    assert made["reward-model/adapter"] == ("OF_STUDY", "reward-model/adapter", ())
    assert made["reward-model/judgements"] == ("OF_MODEL", "judgements", ("reward-model",))
    assert made["report"] == ("OF_STUDY", "report", ())
    assert {call[:2] for call in calls} == {
        (table, key)
        for table in ("OF_STUDY", "OF_ITERATION", "OF_MODEL")
        for key in getattr(series, table)
    }


def test_a_step_that_is_not_in_the_plan_is_refused(study, calls):
    with pytest.raises(SrkitError, match=r"no step 'M1/candidates'"):
        series.make_step(study, "M1/candidates")
    assert not calls


def test_seed_tables_are_made_without_a_model(study):
    series.make_step(study, "seed/ift")
    assert study.state("seed/ift") == "done"
    assert len(study.read("seed/ift")) == study.config.seed.ift


def test_a_lent_table_is_made_for_the_arm_that_it_belongs_to(tmp_path, calls):
    study = Study.open(tmp_path / "s", "tiny", arm="oracle")
    for name in study.steps:
        series.make_step(study, name)
    made = dict(zip(study.steps, calls, strict=True))
    lent = made["self-rewarding/iter-2/prompts"]
    assert lent == ("OF_ITERATION", "prompts", ("self-rewarding", 2))
    assert made["oracle/iter-2/prompts"] == ("OF_ITERATION", "prompts", ("oracle", 2))
