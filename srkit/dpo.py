"""The DPO step of an iteration: M(t+1) from M_t and the pairs that M_t judged (paper section 2.4).

Only the pairs of the current iteration are used; policy and reference start as M_t. The training
itself, and the equation, are in `srkit.train`.

    python -c "from srkit import dpo, study; \\
        dpo.make_dpo(study.Study.open('runs/first'), 'self-rewarding', 1)"
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from srkit.prompts import user
from srkit.sft import make_positive
from srkit.study import Row, Study, derive_seed, kept

if TYPE_CHECKING:
    from srkit.train import Preference


def preferences(pairs: list[Row]) -> list[Preference]:
    """Kept pairs as training examples; a truncated side is not taught to end where it was cut."""
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

        rows = study.read(f"{folder}/pairs")
        check_enough(rows, config.pairs, folder)
        start = study.adapter(study.policy_before(arm, iteration))
        seed = derive_seed(config.random_seed, step)
        run = train_dpo(config.model, start, preferences(rows), config.dpo, partial, seed)
        return run.record() | {"first_loss": run.first_loss}

    study.make_folder(step, work)
    return study.records()[step]
