"""Ways of judging: made of a tiny model, and compared on a case worked by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from srkit import judge_ways, ways
from srkit.chat import encode_completion, encode_prompt
from srkit.config import Model, SrkitError, resolve
from srkit.models import load_policy
from srkit.plan import model_before, plan
from srkit.prompts import judge_prompt, user, yes_no_prompt
from srkit.study import Study

RANKED = [
    {"id": f"{p}-{i}", "prompt_id": p, "prompt": f"Name {p}.", "response": text, "rank": i}
    for p, texts in {"p": ("Mars", "A long answer."), "q": ("x", "yy", "zzz")}.items()
    for i, text in enumerate(texts)
]


@pytest.fixture
def judged(study, make, monkeypatch) -> Study:
    """A study whose M1 and M0 are the tiny model."""
    for name in ("seed/ift", "seed/eft", "baseline/adapter", "seed/eft_targets", "M1/adapter"):
        make(study, name)
    make(study, "seed/eft_eval", RANKED)
    policy = load_policy(Model(name="tiny", device="cpu"))
    asked = []

    def opened(study, name):
        asked.append(name)
        return policy

    monkeypatch.setattr(judge_ways, "plain_policy", opened)
    study.asked, study.policy = asked, policy
    return study


def test_every_way_judges_every_response(judged, plain_logp):
    rows = judge_ways.make_ways(judged, "M1")
    table = pd.DataFrame(rows)
    draws = 3
    counts = table["way"].value_counts().to_dict()
    assert counts == {
        "additive": 5 * draws, "multiple_choice": 5 * draws, "expected_additive": 5,
        "expected_multiple_choice": 5, "yes_no": 5, "likelihood_sum": 5, "likelihood_mean": 5,
        "implicit_reward": 5,
    }  # fmt: skip
    assert judged.asked == ["M1"] * 6 + ["M0"], "the reference of M1 is M0"
    by = {(r["way"], r["response_id"], r["sample"]): r for r in rows}
    # the likelihood is that of the response and its end; the model is its own reference here
    tokenizer, model = judged.policy.tokenizer, judged.policy.model
    prompt, end = encode_prompt(tokenizer, user("Name p.")), encode_completion(tokenizer, "Mars")
    logp = float(plain_logp(model, prompt, end))
    assert by["likelihood_sum", "p-0", 0]["score"] == pytest.approx(logp, abs=1e-4)
    assert by["likelihood_mean", "p-0", 0]["score"] == pytest.approx(logp / len(end), abs=1e-4)
    assert by["implicit_reward", "p-0", 0]["score"] == 0
    assert by["likelihood_sum", "p-0", 0]["read"] == len(prompt) + len(end)
    assert by["implicit_reward", "p-0", 0]["read"] == 2 * (len(prompt) + len(end))
    # draws read their prompt once
    asked = encode_prompt(tokenizer, judge_prompt("additive", "Name p.", "Mars"))
    assert [by["additive", "p-0", k]["read"] for k in range(draws)] == [len(asked), 0, 0]
    yes, no = (
        float(plain_logp(model, encode_prompt(tokenizer, yes_no_prompt("Name p.", "Mars")), ids))
        for ids in (tokenizer.encode(f" {w}", add_special_tokens=False) for w in ("Yes", "No"))
    )
    expected = math.exp(yes) / (math.exp(yes) + math.exp(no))
    assert by["yes_no", "p-0", 0]["score"] == pytest.approx(expected, abs=1e-5)
    record = judged.records()["M1/ways"]
    assert list(record["seconds_of"]) == list(judge_ways.CHUNKS)


def test_only_so_many_prompts_are_judged_in_ways(judged):
    few = Study.open(judged.path, overrides="eval.ways_prompts=1 eval.ways_draws=1", change=True)
    rows = judge_ways.make_ways(few, "M1")
    assert {row["prompt_id"] for row in rows} == {"p"}
    found = ways.ways_table(few.frame("seed/eft_eval"), {"M1": pd.DataFrame(rows)}, 5)
    alone = found[found["model"] == "length alone"].set_index("metric")
    assert alone.loc["pairwise_accuracy", ["n", "left_out"]].tolist() == [1, 0]


def test_a_cut_way_is_judged_again_and_nothing_else(judged, monkeypatch):
    rows = judge_ways.make_ways(judged, "M1")
    (judged.path / "M1/ways.jsonl").unlink()

    def cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(judge_ways, "_by_yes", cut)
        with pytest.raises(KeyboardInterrupt):
            judge_ways.make_ways(judged, "M1")
    judged.asked.clear()
    assert judge_ways.make_ways(judged, "M1") == rows
    assert judged.asked == ["M1", "M1", "M0"], "a question, the likelihood, the reference"


# --- the analysis, by hand -----------------------------------------------------------------------

# additive draws of three responses, best first; the multiple choice never parses
DRAWS = {"a": (3, 3, 5), "b": (4, None, 4), "c": (1, 2, 4)}


@pytest.fixture
def table() -> pd.DataFrame:
    rows = []
    for name, scores in DRAWS.items():
        for k, score in enumerate(scores):
            cost = {"read": 0 if k else 100, "tokens": 5}
            rows.append((name, "additive", k, score, cost["read"], cost["tokens"]))
            rows.append((name, "multiple_choice", k, None, cost["read"], 20))
        rows.append((name, "yes_no", 0, {"a": 0.9, "b": 0.5, "c": 0.1}[name], 60, 0))
        rows.append((name, "implicit_reward", 0, {"a": 1, "b": 2, "c": 3}[name], 80, 0))
    names = ["response_id", "way", "sample", "score", "read", "tokens"]
    return pd.DataFrame(rows, columns=names).assign(prompt_id="p", truncated=False)


@pytest.fixture
def rankings() -> pd.DataFrame:
    texts = {"a": "xx", "b": "xxx", "c": "x"}
    return pd.DataFrame(
        [
            {"id": name, "prompt_id": "p", "rank": rank, "response": text}
            for rank, (name, text) in enumerate(texts.items())
        ]
    )


def test_judges_by_hand(table):
    found = ways.judges(table)
    assert list(found) == [
        "additive, one draw", "additive, mean of 3", "additive, median of 3", "additive, mode of 3",
        "multiple choice, one draw", "multiple choice, mean of 3", "multiple choice, median of 3",
        "multiple choice, mode of 3", "probability of Yes", "implicit DPO reward",
    ]  # fmt: skip
    scores = {n: f.set_index("response_id")["score"] for n, f in found.items()}
    assert scores["additive, median of 3"].to_dict() == {"a": 3, "b": 4, "c": 2}
    assert scores["additive, mode of 3"].to_dict() == {"a": 3, "b": 4, "c": pytest.approx(7 / 3)}
    assert scores["multiple choice, mode of 3"].isna().all(), "what did not parse has no mode"
    assert ways.reference(table) == "additive, mean of 3"
    assert ways.draws_shown(11) == [1, 3, 5, 11]
    assert ways.draws_shown(4) == [1, 3, 4]
    assert ways.draws_shown(1) == [1]


def test_measures_of_ways_by_hand(table, rankings):
    found = ways.ways_table(rankings, {"M1": table}, resamples=20).set_index(["model", "metric"])
    value = found["value"]
    accuracy = "pairwise_accuracy"
    assert value["additive, one draw", accuracy] == pytest.approx(2 / 3)  # 3 4 1
    assert value["additive, mean of 3", accuracy] == pytest.approx(2 / 3)  # 11/3 4 7/3
    assert value["probability of Yes", accuracy] == 1
    assert value["implicit DPO reward", accuracy] == 0
    assert value["length alone", accuracy] == pytest.approx(2 / 3)
    assert value["additive, mean of 3", "parse_rate"] == pytest.approx(8 / 9)
    assert np.isnan(value["multiple choice, mean of 3", accuracy])
    assert found.loc[("multiple choice, mean of 3", accuracy), "left_out"] == 3
    assert set(found["of"]) == {"M1"}
    assert not {"five_best", "exact_match"} & set(found.index.get_level_values("metric"))


def test_differences_are_to_the_papers_way_and_to_length(table, rankings):
    found = ways.ways_differences(rankings, {"M1": table}, resamples=20)
    found = found[found["metric"] == "pairwise_accuracy"].set_index(["model", "reference"])["value"]
    first = "additive, mean of 3"
    assert found["probability of Yes", first] == pytest.approx(1 / 3)
    assert found["implicit DPO reward", "length alone"] == pytest.approx(-2 / 3)
    assert found["length alone", first] == 0
    assert (first, first) not in found.index


def test_costs_by_hand(table):
    costs = ways.ways_costs({"M1": table}).set_index("model")
    read = {"additive, one draw": 105, "additive, mean of 3": 115, "additive, mode of 3": 115}
    assert costs["tokens"][list(read)].to_dict() == read
    assert costs["tokens"]["probability of Yes"] == 60
    assert costs["tokens"]["length alone"] == 0
    seconds = {"additive": 6.0, "likelihood": 3.0, "implicit_reward": 6.0, "yes_no": 1.5}
    timed = ways.with_seconds(costs.reset_index(), {"M1": seconds}).set_index("model")["seconds"]
    assert timed["additive, mean of 3"] == 2
    assert timed["additive, median of 3"] == 2
    assert np.isnan(timed["additive, one draw"]), "one draw alone was not timed"
    assert timed["implicit DPO reward"] == 3, "both likelihoods are needed"
    assert timed["length alone"] == 0


def test_no_ways_give_empty_tables(rankings):
    assert ways.ways_table(rankings, {}).empty
    assert ways.ways_differences(rankings, {}).empty
    assert ways.with_seconds(ways.ways_costs({}), {}).empty


# --- settings and plan ---------------------------------------------------------------------------


def test_which_models_judge_in_several_ways():
    def made(overrides, *arms):
        return [s.name for s in plan(resolve("tiny", overrides), arms) if s.name.endswith("/ways")]

    assert made("", "self-rewarding") == ["M1/ways", "self-rewarding/M3/ways"]
    assert made("iterations=1", "self-rewarding") == ["M1/ways", "self-rewarding/M2/ways"]
    assert made("eval.ways_of=[]", "self-rewarding") == []
    assert made("eval.ways_of=[oracle/M2]", "self-rewarding", "oracle") == ["oracle/M2/ways"]
    with pytest.raises(SrkitError, match=r"ways_of.*'orcle/M2'.*Did you mean 'oracle/M2'"):
        resolve("tiny", "eval.ways_of=[orcle/M2]")


def test_the_reference_is_the_model_before():
    config = resolve("tiny")
    names = ["baseline", "M1", "self-rewarding/M2", "self-rewarding/M3", "ift-only/M2"]
    before = ["M0", "M0", "M1", "self-rewarding/M2", "baseline"]
    assert [model_before(config, name) for name in names] == before
