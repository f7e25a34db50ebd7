"""The series without its notebooks: which function makes which step of the plan.

`srkit make` goes through the plan in order; the notebooks call the same functions and then find
the steps finished.

    python -c "from srkit import series, study; \\
        series.make_step(study.Study.open('runs/first'), 'seed/ift')"
"""

from __future__ import annotations

from srkit import (
    blind_items,
    consistency,
    dpo,
    drift,
    evaluate,
    harness,
    instruct,
    judge,
    judge_ways,
    meta_judge,
    metrics,
    pairs,
    probes,
    reward_model,
    seed,
    self_refine,
    sft,
    texts,
    two_turn,
)
from srkit.browse import make_page
from srkit.report import make_report
from srkit.study import Study

OF_STUDY = {
    "seed/ift": seed.make_seed,
    "seed/eft": seed.make_seed,
    "seed/eft_eval": seed.make_seed,
    "seed/test_prompts": seed.make_seed,
    "baseline/adapter": sft.make_baseline,
    "baseline/eft_judgements": judge.make_eft_targets,
    "seed/eft_targets": judge.make_eft_targets,
    "M1/adapter": sft.make_m1,
    "reward-model/adapter": reward_model.make_reward_model,
    "referee/comparisons": evaluate.make_referee_comparisons,
    "embeddings": texts.vectors,
    "browse": make_page,
    "metrics/reward_accuracy": metrics.make_reward_accuracy,
    "metrics/length_drift": metrics.make_length_drift,
    "metrics/win_rates": metrics.make_win_rates,
    "metrics/benchmarks": metrics.make_benchmarks,
    "metrics/data_distribution": metrics.make_data_distribution,
    "metrics/breakdowns": metrics.make_breakdowns,
    "metrics/refine": metrics.make_refine,
    "metrics/ablations": metrics.make_ablations,
    "metrics/rivals": metrics.make_rivals,
    "metrics/successors": metrics.make_successors,
    "metrics/reward_hacking": metrics.make_reward_hacking,
    "report": make_report,
}
OF_ITERATION = {
    "prompts": instruct.make_prompts,
    "candidates": pairs.make_candidates,
    "judgements": judge.judge_candidates,
    "judgements_before": consistency.make_judgements_before,
    "anchors": pairs.make_anchors,
    "anchor_judgements": judge.judge_anchors,
    "judge_draws": meta_judge.make_judge_draws,
    "meta_judgements": meta_judge.make_meta_judgements,
    "judge_pairs": meta_judge.make_judge_pairs,
    "pairs": pairs.make_pairs,
    "adapter": dpo.make_dpo,
}
OF_MODEL = {
    "judgements": judge.judge_held_out,
    "responses": evaluate.make_responses,
    "comparisons": evaluate.make_comparisons,
    "drift": drift.make_drift,
    "ways": judge_ways.make_ways,
    "benchmarks": harness.make_benchmarks,
    "two_turn": two_turn.make_two_turn,
    "refined": self_refine.make_refined,
    "best_of": self_refine.make_best_of,
    "refined_judgements": self_refine.make_refined_judgements,
    "refined_comparisons": self_refine.make_refined_comparisons,
    "probes": probes.make_probes,
    "blind_spots": blind_items.make_blind_spots,
}


def make_step(study: Study, name: str) -> None:
    """Make one step of a study, unless it is finished; its inputs have to be.

    Raises: SrkitError if there is no such step, or it cannot be made.
    """
    step = study.step(name)
    owner, _, what = name.rpartition("/")
    if name in OF_STUDY:
        OF_STUDY[name](study)
    elif "/iter-" in owner or what == "adapter":
        arm, _, iteration = step.notebook.partition("-")[2].rpartition("-")
        arm = owner.partition("/iter-")[0] if "/iter-" in owner else arm  # it may be a shared table
        OF_ITERATION[what](study, arm, int(iteration))
    else:
        OF_MODEL[what](study, owner)
