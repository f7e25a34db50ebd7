"""Agreement of engines: what counts as a difference, and a missing adapter that is found."""

import numpy as np
import pytest
from typer.testing import CliRunner

from srkit import parity
from srkit.cli import app
from srkit.config import SrkitError
from srkit.models import release
from srkit.parity import OPTIONS, TEXTS, Answers, differences, problems

COUNT = sum(len(options) for _, options in OPTIONS)


def some(seed: int = 0, **changes) -> Answers:
    rng = np.random.default_rng(seed)
    made = {
        "texts": [f"answer {seed} to {i}" for i in range(len(TEXTS))],
        "logprobs": rng.uniform(-5, -1, COUNT),
    }
    return Answers(**(made | changes))


def with_gaps(gap: float) -> Answers:
    """Its texts consist of tokens of one letter."""
    texts = some().texts
    return some(gaps=[[(i, gap) for i in range(len(text) + 1)] for text in texts])


def test_the_same_answers_do_not_differ():
    assert differences(some(), some(), 0.01) == []
    assert problems(some(), some(), some(1), 0.01) == []


def test_a_log_probability_beyond_the_tolerance_is_named():
    reference = some()
    logprobs = reference.logprobs.copy()
    logprobs[13] = reference.logprobs[13] + 0.02
    assert differences(some(logprobs=logprobs), reference, 0.03) == []
    (line,) = differences(some(logprobs=logprobs), reference, 0.01)
    assert line.startswith("1 of 16 option log-probabilities are off by more than 0.01")
    assert "' B' of question 3" in line
    assert f"{logprobs[13]:.4f}" in line


def test_what_is_impossible_or_unknown_is_no_difference():
    low, lower, unknown = some().logprobs, some().logprobs, some().logprobs
    low[0], lower[0], unknown[0] = -13, -50, np.nan
    assert differences(some(logprobs=low), some(logprobs=lower), 0.01) == []
    assert differences(some(logprobs=unknown), some(), 0.01) == []
    nothing = some(logprobs=np.full(COUNT, np.nan))
    assert differences(nothing, some(), 0.01) == ["no option's log-probability is known"]


def test_a_text_that_differs_is_shown_from_where_it_does():
    texts = list(some().texts)
    texts[2] = texts[2].replace("to 2", "for 2")
    (line,) = differences(some(texts=texts), with_gaps(1.0), 0.01)
    assert "differs on 1 of 5 prompts" in line
    assert "after 9 characters: 'for 2' where the reference has 'to 2'" in line
    assert "Write a short letter" in line


@pytest.mark.parametrize("shorter", [False, True])
def test_a_text_may_part_where_the_reference_is_nearly_tied(shorter):
    texts = list(some().texts)
    texts[2] = texts[2][:5] if shorter else texts[2][:5] + "?"
    assert differences(some(texts=texts), with_gaps(0.02), 0.01) == []
    assert differences(some(texts=texts), with_gaps(0.021), 0.01) != []


def test_an_adapter_that_is_not_applied_is_told_from_other_faults():
    base, trained = some(0), some(1)
    assert "looks like the base without its adapter" in problems(base, trained, base, 0.01)[0]
    assert "looks like" not in problems(some(2), trained, base, 0.01)[0]
    half = some(1, texts=base.texts)
    assert "looks like" not in problems(half, trained, base, 0.01)[0]


def test_an_adapter_that_changes_less_than_the_tolerance_is_missed_all_the_same():
    base, trained = some(), some(logprobs=some().logprobs + 0.004)
    rounded = some(logprobs=trained.logprobs + 0.001)
    assert problems(rounded, trained, base, 0.01) == []
    (line,) = problems(base, trained, base, 0.01)
    assert "looks like the base" in line
    assert "within 0 of M0's and 0.004 of the model's own" in line


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    yield parity.stand_in("tiny", tmp_path_factory.mktemp("parity") / "study")
    release()


def test_the_hf_engine_agrees_for_the_base_and_for_an_adapter(study):
    rows = parity.compare(study, ["hf"])
    assert [(row.model, row.problems) for row in rows] == [("M0", ()), ("baseline", ())]
    assert all(row.difference < 1e-3 for row in rows)


def test_models_are_those_that_are_named(study):
    assert [row.model for row in parity.compare(study, ["hf"], ["baseline"])] == ["baseline"]


def test_an_engine_that_drops_the_adapter_is_found_out(study, monkeypatch):
    honest = parity.open_engine
    monkeypatch.setattr(parity, "open_engine", lambda study, name: honest(study, "M0"))
    base, trained = parity.compare(study, ["hf"])
    assert base.problems == ()
    assert "looks like the base without its adapter" in trained.problems[0]
    assert "greedy text differs" in trained.problems[1]


def test_the_command_names_engine_model_and_tolerance():
    result = CliRunner().invoke(app, ["bench", "parity", "--preset", "tiny", "--engines", "hf"])
    assert result.exit_code == 0, result.output
    first, second = result.output.splitlines()
    assert first.startswith("M0")
    assert second.startswith("baseline")
    assert all("hf        agrees: 5 greedy texts" in line for line in (first, second))
    assert "(allowed: 0.01)" in first


def test_what_cannot_be_asked_says_why(study):
    with pytest.raises(SrkitError, match=r"no engine 'hg'. Did you mean 'hf'"):
        parity.compare(study, ["hg"])
    with pytest.raises(SrkitError, match="M1/adapter is not there yet"):
        parity.compare(study, ["hf"], ["M1"])
    rows = parity.compare(study, ["endpoint"])
    assert "no endpoint: set endpoint.url" in rows[0].problems[0]
