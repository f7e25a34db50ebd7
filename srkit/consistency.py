"""Do M_t and the model before it judge alike? How far the pairs are believed follows from that.

CREAM (arXiv 2410.12735): both models rank the same candidates, Kendall's tau per prompt says how
alike, and C, the mean of (tau + 1) / 2, is the weight of DPO's loss on the pairs; the rest, 1 - C,
is that of the same pairs turned round. So C = 1 is DPO as it is, and with C = 1/2 nothing is
learned: what two judges in a row cannot agree on may be noise. Below 1/2 the pairs are taken the
other way round, as the formula has it.

Surprising decisions: the two judge as the study judges (a rubric, drawn or expected scores), while
CREAM ranks by the implicit DPO reward; the scores that choose the pairs are the ones whose
consistency counts. Before M1 judged the baseline, which the paper lets write EFT's targets; before
the baseline, M0. tau-b is undefined where a model scores all candidates alike: such a prompt takes
no part in C.

    python -c "from srkit import consistency, study; \\
        print(consistency.measured(study.Study.open('runs/first'), 'cream', 1))"
"""

from __future__ import annotations

import pandas as pd

from srkit import stats
from srkit.config import SrkitError
from srkit.judge import make_judgements
from srkit.plan import judge_before
from srkit.reward_accuracy import mean_scores
from srkit.rows import Row
from srkit.study import Study


def make_judgements_before(study: Study, arm: str, iteration: int) -> list[Row]:
    """Step `<arm>/iter-<t>/judgements_before`: the model before M_t judges M_t's candidates."""
    folder = f"{arm}/iter-{iteration}"
    judge = judge_before(study.config.for_arm(arm), arm, iteration)
    return make_judgements(
        study, f"{folder}/judgements_before", judge, study.read(f"{folder}/candidates")
    )


def rank_agreement(judgements: pd.DataFrame, before: pd.DataFrame) -> pd.DataFrame:
    """Kendall's tau-b per prompt between two judges of the same responses, by mean scores.

    Responses are joined by id. Index prompt_id; columns kendall (NaN where it is undefined),
    consistent ((tau + 1) / 2), items (responses that both scored).
    """
    keys = ["prompt_id", "response_id"]
    both = mean_scores(judgements).merge(mean_scores(before), on=keys, suffixes=("", "_before"))
    found = stats.correlations(both, "score", "score_before")[["kendall", "items"]]
    return found.assign(consistent=(found["kendall"] + 1) / 2)


def consistency(
    judgements: pd.DataFrame,
    before: pd.DataFrame,
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> stats.Estimate:
    """CREAM's C: mean of (tau + 1) / 2 over prompts, with its 95 % interval and n (prompts)."""
    found = rank_agreement(judgements, before).assign(one=1.0).reset_index()
    options = {"resamples": resamples, "seed": seed}
    return stats.bootstrap(found, ("consistent", "one"), **options)


def measured(study: Study, arm: str, iteration: int) -> float:
    """C of an iteration, from its two tables of judgements.

    Raises: SrkitError where there is none, or where it leaves nothing to learn.
    """
    folder = f"{arm}/iter-{iteration}"
    tables = (study.frame(f"{folder}/{name}") for name in ("judgements", "judgements_before"))
    found = consistency(*tables, resamples=1)
    if found["value"] is None:
        raise SrkitError(
            f"{folder}: M_t and the model before it have no prompt on which both tell candidates "
            "apart, so nothing says how consistent they are. See how many of their judgements "
            "parse; judge.method=expected always gives a score. New settings need --change."
        )
    if abs(found["value"] - 0.5) < 1e-9:
        raise SrkitError(
            f"{folder}: M_t and the model before it agree exactly as coins would (C = 0.5 over "
            f"{found['n']} prompts), so a pair counts as much as the same pair turned round and "
            "nothing can be learned. Raise instruct.prompts, or leave the arm cream out."
        )
    return float(found["value"])
