"""The DPO step of an iteration: M(t+1) from M_t and the pairs that M_t judged (paper section 2.4).

Only the pairs of the current iteration are used; policy and reference start as M_t. The training
itself is in `srkit.train`, the equation in `srkit.losses`. Two arms change what is learned:
`meta-judge` adds pairs of judgements (`srkit.meta_judge`), `cream` weighs all pairs by
`srkit.consistency`.

    python -c "from srkit import dpo, study; \\
        dpo.make_dpo(study.Study.open('runs/first'), 'self-rewarding', 1)"
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from srkit.consistency import measured
from srkit.prompts import user
from srkit.rows import Row, derive_seed, kept
from srkit.sft import make_positive
from srkit.study import Study

if TYPE_CHECKING:
    from srkit.train import Preference


def preferences(pairs: list[Row]) -> list[Preference]:
    """Kept pairs, of responses or of judgements, as training examples.

    A truncated side is not taught to end where it was cut.
    """
    from srkit.train import Preference

    return [
        Preference(
            user(row["prompt"]),
            row["chosen"],
            row["rejected"],
            not row["chosen_truncated"],
            not row["rejected_truncated"],
        )
        for row in kept(pairs)
    ]


def make_dpo(study: Study, arm: str, iteration: int) -> Row:
    """Step `<arm>/M(t+1)/adapter`: DPO from M_t. Returns its manifest line.

    An arm whose `update` is `sft` goes to `sft.make_positive`. Raises: SrkitError if too few pairs
    are left, or the start is not what DPO assumes.
    """
    from srkit.pairs import check_enough

    config = study.config.for_arm(arm)
    if config.update == "sft":
        return make_positive(study, arm, iteration)
    folder = f"{arm}/iter-{iteration}"
    step = f"{study.policy_before(arm, iteration + 1)}/adapter"

    def work(partial: Path) -> Row:
        from srkit.train import train_dpo

        rows, settings, told = study.read(f"{folder}/pairs"), config.dpo, {}
        check_enough(rows, config.pairs, folder)
        if config.pairs.judge_draws:
            taught = study.read(f"{folder}/judge_pairs")
            rows, told = rows + taught, {"judge_pairs": len(kept(taught))}
        if settings.label_smoothing == "consistency":
            told["consistency"] = measured(study, arm, iteration)
            settings = settings.model_copy(update={"label_smoothing": 1 - told["consistency"]})
        start = study.adapter(study.policy_before(arm, iteration))
        seed = derive_seed(config.random_seed, step)
        run = train_dpo(config.model, start, preferences(rows), settings, partial, seed)
        return run.record() | {"first_loss": run.first_loss} | told

    study.make_folder(step, work)
    return study.records()[step]
