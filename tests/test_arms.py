"""The arms: what they share, where their preferences come from, and whether the controls control.

The slow test is the test of the whole machine: a real model, the preset cpu, and two arms that
differ in who judges. Trained on an oracle's preferences the oracle's score must rise on prompts
that no training saw; trained on coin flips it must not. (It may fall: coins agree with length by
chance, and that is learned. An interval over prompts does not know of other draws of coins.)
"""

import pytest

from srkit import human, metrics, series
from srkit.config import ARMS
from srkit.instruct import make_prompts
from srkit.judge import judge_candidates
from srkit.pairs import make_candidates, make_pairs
from srkit.rows import read_jsonl
from srkit.sft import best, positives
from srkit.study import Study

SEED = ["baseline/adapter", "seed/eft_targets", "M1/adapter"]


def ranked(prompts: int, responses: int = 3) -> list[dict]:
    return [
        {
            "id": f"e{p}-{r}",
            "prompt_id": f"e{p}",
            "prompt": f"q{p}",
            "response": f"a{p}{r}",
            "rank": r,
        }
        for p in range(prompts)
        for r in range(responses)
    ]


@pytest.fixture
def begun(study, make):
    """`begun(arms)`: a study up to M1."""

    def begun(arms: str, overrides: str = "") -> Study:
        new = Study.open(study.path, overrides=overrides, arm=arms, change=True)
        make(new, "seed/eft", ranked(5))
        make(new, "seed/ift", [{"id": p, "prompt": p} for p in ("Say hello.", "Count to ten.")])
        for name in SEED:
            make(new, name)
        return new

    return begun


# --- what arms share -----------------------------------------------------------------------------


def test_a_copy_is_byte_by_byte_the_table_of_the_papers_arm(begun, engine):
    drafts = "\n".join(f"{n}. Tell me about the number {n} of {n * n}." for n in range(9, 40))
    engine.reply = lambda content, seed: drafts if "11." in content else f"{content}! {seed}"
    study = begun("oracle,random-judge")
    prompts = make_prompts(study, "oracle", 1)
    rows = make_candidates(study, "oracle", 1)
    assert rows[0]["id"].startswith("self-rewarding-1-")
    assert len(rows) == study.config.candidates.n * sum(not p["dropped"] for p in prompts)
    calls = len(engine.calls)
    make_prompts(study, "random-judge", 1)
    make_candidates(study, "random-judge", 1)
    assert len(engine.calls) == calls, "nothing is drawn twice"
    for table in ("prompts", "candidates"):
        files = [study.path / arm / f"iter-1/{table}.jsonl" for arm in
                 ("self-rewarding", "oracle", "random-judge")]  # fmt: skip
        assert len({file.read_bytes() for file in files}) == 1
    copied = study.records()["oracle/iter-1/candidates"]
    assert copied["inputs"] == study.records()["self-rewarding/iter-1/candidates"]["outputs"]
    assert "tokens" not in copied, "a copy costs none"


def test_arms_that_differ_after_judging_share_the_judgements(begun, engine, make):
    study = begun("nll,high-beta")
    make(study, "self-rewarding/iter-1/prompts", [{"id": "a", "prompt": "q", "dropped": None}])
    for arm in ("nll", "high-beta"):
        make(study, f"{arm}/iter-1/prompts", study.read("self-rewarding/iter-1/prompts"))
        make_candidates(study, arm, 1)
        rows = judge_candidates(study, arm, 1)
        calls = len(engine.calls)
    assert len(rows) == study.config.candidates.n
    assert calls == 2, "candidates and judgements, once each"
    name = "iter-1/judgements.jsonl"
    files = [study.path / arm / name for arm in ("self-rewarding", "nll", "high-beta")]
    assert len({file.read_bytes() for file in files}) == 1


def test_a_source_that_is_made_again_makes_its_copies_stale(begun, make):
    study = begun("oracle")
    for name in ("self-rewarding/iter-1/prompts", "oracle/iter-1/prompts"):
        make(study, name)
    assert study.state("oracle/iter-1/prompts") == "done"
    (study.path / "self-rewarding/iter-1/prompts.jsonl").unlink()
    make(study, "self-rewarding/iter-1/prompts")
    assert study.state("oracle/iter-1/prompts").startswith("stale")


# --- human ---------------------------------------------------------------------------------------


def test_ranked_prompts_are_dealt_out_to_the_iterations():
    dealt = [human.dealt(["a", "b", "a", "c", "d", "e"], t, 2) for t in (1, 2)]
    assert dealt == [["a", "c", "e"], ["b", "d"]]


def test_the_ranked_responses_are_the_candidates(begun):
    study = begun("human")
    prompts = make_prompts(study, "human", 1)
    assert [row["id"] for row in prompts] == ["e0", "e2", "e4"]
    rows = make_candidates(study, "human", 1)
    assert [(row["id"], row["text"], row["rank"]) for row in rows[:3]] == [
        ("e0-0", "a00", 0), ("e0-1", "a01", 1), ("e0-2", "a02", 2)
    ]  # fmt: skip
    assert {row["tokens"] for row in rows} == {None}
    assert human.score(0) > human.score(1) > human.score(2)


# --- spin ----------------------------------------------------------------------------------------


def test_the_seeds_response_is_preferred_to_m_ts_own(begun, engine, make):
    study = begun("spin", "instruct.prompts=2")
    seed = [{"id": f"i{n}", "prompt": f"q{n}", "response": f"seed {n}"} for n in range(3)]
    (study.path / "seed/ift.jsonl").unlink()
    for name, rows in {"seed/ift": seed, **dict.fromkeys(SEED)}.items():
        make(study, name, rows)
    engine.reply = lambda content, seed: f"{content}, I think"
    asked = make_prompts(study, "spin", 1)
    assert [(row["id"], row["prompt"]) for row in asked] == [("i0", "q0"), ("i1", "q1")]
    rows = make_candidates(study, "spin", 1)
    assert [(row["id"], row["text"]) for row in rows] == [
        ("i0#seed", "seed 0"), ("i0#0", "q0, I think"),
        ("i1#seed", "seed 1"), ("i1#0", "q1, I think"),
    ]  # fmt: skip
    calls = len(engine.calls)
    judge_candidates(study, "spin", 1)
    assert len(engine.calls) == calls, "no model judges"
    pairs = make_pairs(study, "spin", 1)
    assert [(row["chosen"], row["rejected"]) for row in pairs] == [
        ("seed 0", "q0, I think"), ("seed 1", "q1, I think")
    ]  # fmt: skip


def test_spin_asks_the_same_prompts_again(begun, make):
    study = begun("spin", "instruct.prompts=2")
    for t in (1, 2):
        make_prompts(study, "spin", t)
    first, second = (study.read(f"spin/iter-{t}/prompts") for t in (1, 2))
    assert first == second


# --- positive-only -------------------------------------------------------------------------------


def test_perfect_means_the_top_score_and_a_text():
    rows = [{"id": i, "text": text} for i, text in enumerate(["a", "b", " ", "d", "e"])]
    scores = {0: 5.0, 1: 14 / 3, 2: 5.0, 3: 5.0, 4: None}
    assert [row["id"] for row in positives(rows, scores, 5)] == [0, 3]


def test_of_expected_scores_the_best_share_is_taken():
    rows = [{"id": i, "text": text} for i, text in enumerate(["a", "b", " ", "d", "e", "f"])]
    scores = {0: 3.1, 1: 3.3, 2: 4.9, 3: 3.2, 4: None, 5: 3.0}
    assert [row["id"] for row in best(rows, scores, 0.25)] == [1]
    assert [row["id"] for row in best(rows, scores, 0.26)] == [1, 3]
    assert [row["id"] for row in best(rows, scores, 1)] == [1, 3, 0, 5]


# --- the controls --------------------------------------------------------------------------------


def finished(study: Study) -> Study:
    """All of it but the report, whose figures take longest."""
    for name in study.steps:
        if name != "report":
            series.make_step(study, name)
    return study


RIVALS = ("positive-only", "human", "external-judge", "random-judge", "oracle")
WRITING = ("judged-once",)  # a random model writes no judgement


@pytest.mark.parametrize(
    "arms",
    [
        RIVALS,
        pytest.param(
            tuple(arm for arm in ARMS if arm not in (*RIVALS, *WRITING, "ift-only")),
            marks=pytest.mark.slow,
        ),
    ],
    ids="+".join,
)
def test_arms_go_through_their_steps_with_the_tiny_model(tmp_path, arms):
    """Plumbing only: the numbers of a random model mean nothing."""
    sizes = "seed.test_prompts=4 instruct.prompts=6 iterations=1 eval.resamples=50"
    study = finished(Study.open(tmp_path / "arms", "tiny", sizes, ",".join(arms)))
    assert {state for name, state in study.states().items() if name != "report"} == {"done"}
    table = metrics.load(study, "win_rates")["controls"].set_index("model")
    assert set(table.index) == {"baseline", "M1", *(f"{arm}/M2" for arm in arms)}
    assert table["value"].between(0, 1).all()
    assert set(table["reference"].dropna()) == {"M1"}
    prints = {model: study.fingerprint(model)["adapter_sha256"] for model in table.index}
    assert len(set(prints.values())) == len(prints), "every arm trains another model"
    if "reward-model" in arms:
        accuracy = metrics.table(study, "reward_accuracy", "accuracy").set_index("metric")
        frozen = accuracy[accuracy["model"] == "reward-model"]
        assert frozen.loc["pairwise_accuracy", "n"] > 0
        changes = metrics.table(study, "reward_accuracy", "differences")
        assert set(changes.loc[changes["model"] == "reward-model", "reference"]) == {"M1"}
        assert frozen.loc["five_best", "n"] == 0, "its scores never reach the top of the scale"
    if "oracle" in arms:
        judged = {row["score"] for row in study.read("oracle/iter-1/judgements")}
        assert judged <= {0, 1, 2, 3, 4, 5}
        logged = read_jsonl(study.adapter("positive-only/M2") / "training.jsonl")
        assert "reward_margin" not in logged[0], "SFT has no pairs"


@pytest.mark.slow
def test_the_oracle_rises_on_held_out_prompts_and_coin_flips_do_not(tmp_path):
    """About ten minutes on two cores: M1 is trained, then two iterations of each arm."""
    study = Study.open(tmp_path / "controls", "cpu", arm="oracle,random-judge")
    finished(study)
    table = metrics.load(study, "win_rates")["controls"].set_index("model")
    rise, drift = table.loc["oracle/M3"], table.loc["random-judge/M3"]
    assert rise["difference_low"] > 0, rise.to_dict()
    assert drift["difference_low"] <= 0, drift.to_dict()
    assert rise["low"] > drift["high"], "the two arms differ in their judge alone"
