"""The plan: what depends on what."""

from dataclasses import replace
from pathlib import PurePosixPath

import pytest

from srkit.config import ARMS, Config, SrkitError, resolve
from srkit.plan import (
    PAPER_ARM,
    SEED_MODELS,
    Step,
    judge_before,
    model_after,
    model_names,
    notebooks,
    plan,
)

EVERY_ARM = tuple(ARMS)
VARIATIONS = [
    "",
    "iterations=1",
    "iterations=4",
    "sft.eft_targets=self",
    "sft.eft_targets=reference",
    "instruct.writer=current",
    "eval.referee=M0",
    "eval.referee=baseline",
    "eval.benchmarks=[piqa] eval.two_turn_questions=2 eval.refined_of=[M1,last]",
    "eval.referee=endpoint instruct.writer=endpoint endpoint.url=http://a/v1 endpoint.model=m",
]


def by_name(config: Config, arms: tuple[str, ...]) -> dict[str, Step]:
    return {step.name: step for step in plan(config, arms)}


def ancestors(steps: dict[str, Step], name: str) -> set[str]:
    found = set(steps[name].inputs)
    return found.union(*(ancestors(steps, other) for other in steps[name].inputs))


@pytest.mark.parametrize("arms", [*((arm,) for arm in EVERY_ARM), EVERY_ARM], ids="+".join)
@pytest.mark.parametrize("overrides", VARIATIONS)
def test_inputs_precede_and_names_and_files_are_unique(overrides, arms):
    config = resolve("tiny", overrides)
    steps = plan(config, arms)
    names = [step.name for step in steps]
    outputs = [output for step in steps for output in step.outputs]
    assert len(set(names)) == len(names)
    assert len(set(outputs)) == len(outputs)
    for place, step in enumerate(steps):
        assert set(step.inputs) <= set(names[:place]), step
        assert len(set(step.inputs)) == len(step.inputs), step
        assert all(
            PurePosixPath(output).is_relative_to(step.name.split("/")[0]) for output in step.outputs
        ) or step.name in ("browse", "report")
        assert config.for_arm(step.arm).digest(*step.settings)


def test_the_steps_of_the_paper_in_order():
    steps = by_name(resolve("tiny", "sft.eft_targets=self iterations=1"), ("self-rewarding",))
    folder, policy = "self-rewarding/iter-1", "M1/adapter"
    assert steps["baseline/adapter"].inputs == ("seed/ift",)
    assert steps["baseline/eft_judgements"].inputs == ("baseline/adapter", "seed/eft")
    assert steps["seed/eft_targets"].inputs == ("seed/eft", "baseline/eft_judgements")
    assert steps["M1/adapter"].inputs == ("seed/ift", "seed/eft_targets")
    assert steps[f"{folder}/prompts"].inputs == ("seed/ift",), "the writer is M0"
    assert steps[f"{folder}/candidates"].inputs == (f"{folder}/prompts", policy)
    assert steps[f"{folder}/judgements"].inputs == (f"{folder}/candidates", policy)
    assert steps[f"{folder}/pairs"].inputs == (f"{folder}/candidates", f"{folder}/judgements")
    assert steps["self-rewarding/M2/adapter"].inputs == (f"{folder}/pairs", policy)
    assert set(steps["self-rewarding/M2/comparisons"].inputs) == {
        "self-rewarding/M2/responses", "baseline/responses", "M1/responses", "M1/adapter"
    }  # fmt: skip


def test_drift_is_measured_from_where_the_arm_starts():
    steps = by_name(resolve("tiny"), ("self-rewarding", "ift-only"))
    inputs = ("self-rewarding/M3/adapter", "M1/adapter", "seed/test_prompts")
    assert steps["self-rewarding/M3/drift"].inputs == inputs
    assert "baseline/adapter" in steps["ift-only/M2/drift"].inputs
    assert {"self-rewarding/M2/drift", "ift-only/M3/drift"} < set(steps["report"].inputs)
    assert not {"M1/drift", "baseline/drift"} & set(steps)


def test_nothing_to_train_on_depends_on_held_out_data():
    for arms in ((arm,) for arm in EVERY_ARM):
        steps = by_name(resolve("tiny", "sft.eft_targets=self instruct.writer=current"), arms)
        for name in steps:
            if name.endswith("/adapter"):
                assert not ancestors(steps, name) & {"seed/eft_eval", "seed/test_prompts"}, name


def test_a_later_iteration_knows_the_earlier_prompts_and_starts_from_the_earlier_model():
    steps = by_name(resolve("tiny", "instruct.writer=current"), ("self-rewarding",))
    assert steps["self-rewarding/iter-2/prompts"].inputs == (
        "seed/ift", "self-rewarding/M2/adapter", "self-rewarding/iter-1/prompts"
    )  # fmt: skip
    assert "self-rewarding/M2/adapter" in steps["self-rewarding/iter-2/candidates"].inputs
    assert "self-rewarding/M2/adapter" in steps["self-rewarding/M3/adapter"].inputs


def test_ift_only_has_no_m1():
    config = resolve("tiny", "eval.referee=baseline").for_arm("ift-only")
    assert model_names(config, "ift-only") == ["baseline", "ift-only/M2", "ift-only/M3"]
    steps = by_name(resolve("tiny", "eval.referee=baseline"), ("ift-only",))
    for name in [*(n for n in steps if n.startswith("ift-only/")), "metrics/win_rates"]:
        used = ancestors(steps, name)
        assert not any(other.startswith("M1/") for other in used), name
        assert "seed/eft" not in used
    assert "baseline/adapter" in steps["ift-only/iter-1/candidates"].inputs


def test_arms_share_the_seed_models_prompts_and_first_candidates_and_nothing_else():
    config = resolve("tiny")
    together, alone = by_name(config, EVERY_ARM), [by_name(config, (arm,)) for arm in EVERY_ARM]
    trained = sum(name.endswith("/adapter") for name in together)
    assert trained == 2 + 2 * len(EVERY_ARM) + 1, "and the reward model"
    lent = {f"{PAPER_ARM}/iter-{t}/prompts" for t in (1, 2)}
    lent |= {f"{PAPER_ARM}/iter-1/{table}" for table in ("candidates", "judgements")}
    for arm, steps in zip(EVERY_ARM, alone, strict=True):
        for name, step in steps.items():
            if not name.startswith(("browse", "metrics/", "report")):
                assert replace(together[name], notebook=step.notebook) == step
            others = {f"{other}/" for other in EVERY_ARM if other != arm}
            assert name in lent or not any(name.startswith(other) for other in others)
    analyses = ("reward_accuracy", "length_drift", "win_rates", "benchmarks")
    analyses += ("data_distribution", "breakdowns", "ablations", "rivals", "reward_hacking")
    analyses += ("successors",)
    for name in analyses:
        used = set(together[f"metrics/{name}"].inputs)
        assert used >= {i for steps in alone for i in steps[f"metrics/{name}"].inputs}
        assert len(used) == len(together[f"metrics/{name}"].inputs)


@pytest.mark.parametrize(
    ("arm", "overrides", "copied"),
    [
        (PAPER_ARM, "", set()),
        ("human", "", set()),
        ("oracle", "", {"1/prompts", "2/prompts", "1/candidates"}),
        *((arm, "", {"1/prompts", "2/prompts", "1/candidates", "1/judgements"}) for arm in
          ("positive-only", "length-control", "length-matched", "nll", "high-beta",
           "length-penalty", "cream", "anchored", "meta-judge")),
        ("spin", "", set()),
        *((arm, "", {"1/prompts", "2/prompts", "1/candidates"}) for arm in
          ("multiple-choice", "judged-once", "external-judge", "random-judge", "reward-model")),
        ("two-candidates", "", {"1/prompts", "2/prompts"}),
        ("nll", "instruct.writer=current", {"1/prompts", "1/candidates", "1/judgements"}),
        ("ift-only", "", {"1/prompts", "2/prompts"}),
        ("ift-only", "start=baseline",
         {"1/prompts", "2/prompts", "1/candidates", "1/judgements"}),
        ("oracle", "instruct.writer=current", {"1/prompts", "1/candidates"}),
        ("ift-only", "instruct.writer=current", set()),
        ("oracle", "judge.source=human", set()),
    ],
)  # fmt: skip
def test_a_table_is_shared_where_settings_and_model_are_equal(arm, overrides, copied):
    steps = by_name(resolve("tiny", overrides), (arm,)).values()
    mine = {s.name.partition("iter-")[2]: s for s in steps if s.name.startswith(f"{arm}/iter-")}
    assert {name for name, step in mine.items() if step.same_as} == copied
    for name in copied:
        assert mine[name].same_as == f"{PAPER_ARM}/iter-{name}"
        assert mine[name].inputs == (mine[name].same_as,)


@pytest.mark.parametrize("arm", [PAPER_ARM, "nll", "reward-model"])
def test_the_reward_model_is_there_for_whatever_arm_asks_it(arm):
    steps = by_name(resolve("tiny", "judge.source=reward-model"), (arm,))
    assert steps["reward-model/adapter"].inputs == ("seed/eft",)
    for t in (1, 2):
        judged = steps[f"{arm}/iter-{t}/judgements"]
        judged = steps[judged.same_as] if judged.same_as else judged
        assert "reward-model/adapter" in judged.inputs
        assert not any(name.endswith("M1/adapter") for name in judged.inputs)


def test_a_judge_that_is_no_model_waits_for_none():
    steps = by_name(resolve("tiny"), EVERY_ARM)
    for arm in ("oracle", "human", "spin"):
        assert steps[f"{arm}/iter-2/judgements"].inputs == (f"{arm}/iter-2/candidates",)
    assert steps["human/iter-1/prompts"].inputs == ("seed/eft",)
    assert steps["spin/iter-2/prompts"].inputs == ("seed/ift",)
    own = ("spin/iter-2/prompts", "seed/ift", "spin/M2/adapter")
    assert steps["spin/iter-2/candidates"].inputs == own
    positive = steps["positive-only/M2/adapter"]
    assert "positive-only/iter-1/pairs" not in positive.inputs
    assert {"positive-only/iter-1/candidates", "M1/adapter"} < set(positive.inputs)


def test_m0_answers_too_so_that_what_training_costs_can_be_seen():
    steps = {step.name: step for step in plan(resolve("tiny"))}
    answers = steps["M0/responses"]
    assert answers.inputs == ("seed/test_prompts",), "M0 has no adapter"
    assert "model" in answers.settings, "so the model itself decides"
    assert "model" not in steps["M1/responses"].settings, "its adapter says which model"
    assert "M0/responses" in steps["metrics/benchmarks"].inputs


def test_what_single_arms_make_beside_the_usual_tables():
    steps = by_name(resolve("tiny"), EVERY_ARM)
    usual = {"prompts", "candidates", "judgements", "pairs"}
    more = {n for n in steps if "/iter-2/" in n and n.rpartition("/")[2] not in usual}
    before, past, taught = "cream/iter-2/", "anchored/iter-2/", "meta-judge/iter-2/"
    assert more == {
        f"{before}judgements_before", f"{past}anchors", f"{past}anchor_judgements",
        *(f"{taught}{n}" for n in ("judge_draws", "meta_judgements", "judge_pairs")),
    }  # fmt: skip
    assert "M1/adapter" in steps[f"{before}judgements_before"].inputs, "M2 judges, after M1"
    assert "baseline/adapter" in steps["cream/iter-1/judgements_before"].inputs
    learned = (f"{before}pairs", f"{before}judgements", f"{before}judgements_before")
    assert steps["cream/M3/adapter"].inputs == (*learned, "cream/M2/adapter")
    assert steps[f"{past}anchors"].inputs == (f"{past}prompts",), "M0 has no adapter"
    assert "model" in steps[f"{past}anchors"].settings
    assert "anchored/M2/adapter" in steps[f"{past}anchor_judgements"].inputs
    assert {f"{past}anchors", f"{past}anchor_judgements"} < set(steps[f"{past}pairs"].inputs)
    pairs = (f"{taught}pairs", f"{taught}judge_pairs")
    assert steps["meta-judge/M3/adapter"].inputs == (*pairs, "meta-judge/M2/adapter")
    assert more < set(steps["metrics/successors"].inputs) & set(steps["browse"].inputs)


def test_who_judged_before():
    config = resolve("tiny")
    assert [judge_before(config, "cream", t) for t in (1, 2)] == ["baseline", "M1"]
    assert judge_before(config, "cream", 3) == "cream/M2"
    assert judge_before(resolve("tiny", "start=baseline"), "cream", 1) == "M0"


@pytest.mark.parametrize("arm", EVERY_ARM)
def test_model_after_walks_through_model_names(arm):
    config = resolve("tiny", "iterations=3").for_arm(arm)
    start = len(SEED_MODELS) if config.start == "M1" else 1
    names = model_names(config, arm)
    assert [model_after(config, arm, t) for t in range(4)] == names[start - 1 :]
    assert names[-1] == f"{arm}/M4"


def test_notebooks_are_the_series_in_order():
    names = notebooks(resolve("tiny"))
    assert names[:4] == ["00_start_here", "01_seed_data", "02_seed_sft", "03_judge"]
    assert names[4:6] == ["04_iteration-self-rewarding-1", "04_iteration-self-rewarding-2"]
    assert names[-1] == "30_report"
    both = notebooks(resolve("tiny"), ("self-rewarding", "ift-only"))
    assert set(both) - set(names) == {"04_iteration-ift-only-1", "04_iteration-ift-only-2"}
    assert both.index("04_iteration-ift-only-2") < both.index("10_reward_accuracy")


def test_every_analysis_reads_the_models_of_all_arms_and_iterations():
    steps = by_name(resolve("tiny", "iterations=3"), ("self-rewarding", "random-judge"))
    read = {n: set(steps[f"metrics/{n}"].inputs) for n in ("reward_accuracy", "length_drift")}
    read["reward_accuracy"] -= {"M1/ways", "self-rewarding/M4/ways"}
    judged = {i for i in read["reward_accuracy"] if "/iter-" not in i}
    models = [
        "baseline",
        "M1",
        *(f"{a}/M{t}" for a in ("self-rewarding", "random-judge") for t in (2, 3, 4)),
    ]
    assert judged == {"seed/eft_eval", *(f"{model}/judgements" for model in models)}
    for arm, t in (("self-rewarding", 1), ("random-judge", 3)):
        assert f"{arm}/iter-{t}/judgements" in read["reward_accuracy"], "for the judge's health"
        assert {f"{arm}/iter-{t}/{n}" for n in ("candidates", "judgements", "pairs")} < read[
            "length_drift"
        ]


def test_an_unknown_arm_is_refused():
    with pytest.raises(SrkitError, match="no arm 'humen'"):
        plan(resolve("tiny"), ("humen",))
