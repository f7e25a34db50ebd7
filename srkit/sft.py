"""Seed fine-tuning: the baseline on IFT, M1 on IFT + EFT (paper sections 2.1 and 3.1.2).

EFT casts judging as instruction following: the instruction is the judge prompt, the answer is a
judgement. M1 is trained from M0, not from the baseline, as in the paper.

    python -c "from srkit import sft, study; print(sft.make_m1(study.Study.open('runs/first')))"
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from srkit.prompts import judge_prompt, user
from srkit.study import Row, Study, derive_seed, kept

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


def _make(study: Study, model: str, examples) -> Row:
    def work(folder) -> Row:
        from srkit.train import train_sft

        seed = derive_seed(study.config.random_seed, model)
        run = train_sft(study.config.model, examples(), study.config.sft, folder, seed)
        return run.record()

    study.make_folder(f"{model}/adapter", work)
    return study.records()[f"{model}/adapter"]
