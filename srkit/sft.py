"""Supervised fine-tuning: baseline and M1 (paper sections 2.1 and 3.1.2), positive-only (App. A.4).

The baseline learns IFT, M1 learns IFT + EFT. EFT casts judging as instruction following: the
instruction is the judge prompt, the answer is a judgement. M1 is trained from M0, not from the
baseline, as in the paper. The arm `positive-only` learns M_t's own best responses, without pairs.

Surprising decisions of `positive-only`: M(t+1) starts at M_t, as in the other arms, while the paper
adds the responses to the seed data and trains anew. It takes those whose score is the top of the
scale; an expected score never is, so there it takes the best `arms.positive_share` of them all.

    python -c "from srkit import sft, study; print(sft.make_m1(study.Study.open('runs/first')))"
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from srkit.config import SrkitError
from srkit.judge import mean_scores
from srkit.prompts import SCALES, judge_prompt, user
from srkit.rows import Row, derive_seed, kept
from srkit.study import Study

if TYPE_CHECKING:
    from srkit.train import Example


def ift_examples(study: Study) -> list[Example]:
    """The IFT table as training examples."""
    from srkit.train import Example

    return [Example(user(row["prompt"]), row["response"]) for row in study.read("seed/ift")]


def eft_examples(study: Study) -> list[Example]:
    """The kept EFT targets as training examples: judge prompt in, judgement out."""
    from srkit.train import Example

    rubric = study.config.judge.rubric
    rows = kept(study.read("seed/eft_targets"))
    prompts = [judge_prompt(rubric, row["prompt"], row["response"]) for row in rows]
    return [Example(p, row["target"]) for p, row in zip(prompts, rows, strict=True)]


def make_baseline(study: Study) -> Row:
    """Step `baseline/adapter`: SFT on IFT alone. Returns its manifest line."""
    return _make(study, "baseline", lambda: ift_examples(study))


def make_m1(study: Study) -> Row:
    """Step `M1/adapter`: SFT on IFT + EFT. Returns its manifest line."""
    return _make(study, "M1", lambda: [*ift_examples(study), *eft_examples(study)])


def positives(responses: list[Row], scores: dict[str, float | None], top: float) -> list[Row]:
    """The responses that have the top score, empty ones left out."""
    return [row for row in responses if scores[row["id"]] == top and row["text"].strip()]


def best(responses: list[Row], scores: dict[str, float | None], share: float) -> list[Row]:
    """The best-scored `share` of the responses that have a score and a text, rounded up."""
    scored = [r for r in responses if scores[r["id"]] is not None and r["text"].strip()]
    count = math.ceil(share * len(scored))
    return sorted(scored, key=lambda row: -scores[row["id"]])[:count]


def make_positive(study: Study, arm: str, iteration: int) -> Row:
    """Step `<arm>/M(t+1)/adapter` by SFT from M_t on its best responses alone (App. A.4).

    Raises: SrkitError if they are fewer than `pairs.min_pairs`.
    """
    config, folder = study.config.for_arm(arm), f"{arm}/iter-{iteration}"
    step = f"{study.policy_before(arm, iteration + 1)}/adapter"

    def work(partial: Path) -> Row:
        from srkit.train import Example, train_sft

        responses = study.read(f"{folder}/candidates")
        scores = mean_scores(study.read(f"{folder}/judgements"))
        if config.judge.method == "expected":
            rows = best(responses, scores, config.arms.positive_share)
        else:
            rows = positives(responses, scores, SCALES[config.judge.rubric][1])
        if len(rows) < config.pairs.min_pairs:
            raise SrkitError(
                f"{folder} has {len(rows)} responses with a perfect score, fewer than "
                f"pairs.min_pairs = {config.pairs.min_pairs}. Raise instruct.prompts or "
                "candidates.n, or use judge.method=expected with arms.positive_share."
            )
        examples = [Example(user(r["prompt"]), r["text"], not r["truncated"]) for r in rows]
        start = study.adapter(study.policy_before(arm, iteration))
        seed = derive_seed(config.random_seed, step)
        return train_sft(config.model, examples, config.sft, partial, seed, start).record()

    study.make_folder(step, work)
    return study.records()[step]


def _make(study: Study, model: str, examples) -> Row:
    def work(folder) -> Row:
        from srkit.train import train_sft

        seed = derive_seed(study.config.random_seed, model)
        run = train_sft(study.config.model, examples(), study.config.sft, folder, seed)
        return run.record()

    study.make_folder(f"{model}/adapter", work)
    return study.records()[f"{model}/adapter"]
