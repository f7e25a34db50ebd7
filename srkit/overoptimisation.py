"""Over-optimisation: does the model's own score rise while independent ones stay or fall?

A loop that judges itself can raise its own score without getting better. Gao et al. (2023, arXiv
2210.10760) draw the score that is optimised and an independent one over sqrt(KL), the way gone from
the start; here M_t's own score of its candidates stands beside the oracle's score of the same
texts, and beside what is known of M_t's answers to the test prompts: constraints met, the oracle's
score, the win rate against the start.

Surprising decisions:
- Nothing is measured here. Scores are those of `ablations`, KL is that of `drift` (the estimate k3,
  which is never negative); the start is at 0.
- In the papers on reward models the judge stays the same. Here M_t is judged by M_t, so its own
  score moves with the judge as well as with the answers, and candidates are of new prompts each
  time. The last model has no candidates, and so no own score.
- The oracle's constraints are arbitrary and nobody asked for them: a judge may ignore them and be
  right. They are independent, which is all that is needed to see a score that rises alone.

    python -c "from srkit.overoptimisation import MEASURES; print(*MEASURES, sep='\\n')"
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from srkit.ablations import Run

OWN, SAME_TEXTS = "own score", "oracle's score, same candidates"
# what is shown -> its unit; the first two are of M_t's candidates, the rest of its test answers
MEASURES = {
    OWN: "points",
    SAME_TEXTS: "share",
    "oracle's score": "share",
    "constraints met": "share",
    "win rate": "share",
}
ENDS = ("value", "low", "high")
TABLE = ("arm", "t", "model", "kl", "distance", "distance_low", "distance_high")
TABLE += ("measure", "unit", *ENDS, "n")


def curve(
    runs: Sequence[Run], outcomes: pd.DataFrame, candidates: pd.DataFrame, kl: pd.DataFrame
) -> pd.DataFrame:
    """Own and independent scores of every policy of every arm over its distance from the start.

    `runs` are `metrics.runs`, `outcomes` is `ablations.compare`'s table, `candidates` the oracle's
    scores of the iterations' candidates by folder (`constraints.oracle_scores`), `kl` is
    `drift.kl_table`. Columns `TABLE`: t of M_t; kl in nats, distance its square root with 95 %
    interval; value, low, high (95 %, by prompt), n (prompts).
    """
    levels, rows = outcomes[outcomes["against"] == ""], []
    for arm in dict.fromkeys(run.arm for run in runs if run.arm):
        mine = [run for run in runs if run.arm == arm]
        policies = [mine[0].start, *(run.model for run in mine)]
        folders = [*(run.folder for run in mine), ""]  # the last model has no candidates
        for t, (model, folder) in enumerate(zip(policies, folders, strict=True), 1):
            labels = {"arm": arm, "t": t, "model": model, **_distance(model, t, kl)}
            own = (levels["arm"] == arm) & (levels["iteration"] == t)
            for measure, unit in MEASURES.items():
                of = own if measure == OWN else levels["model"] == model
                found = levels[of & (levels["outcome"] == measure)]
                if measure == SAME_TEXTS:
                    found = candidates[candidates["model"] == folder]
                for row in found.dropna(subset="value").to_dict("records")[:1]:
                    numbers = {name: row[name] for name in (*ENDS, "n")}
                    rows.append({**labels, "measure": measure, "unit": unit, **numbers})
    numbers = dict.fromkeys(set(TABLE) - {"arm", "model", "measure", "unit"}, float)
    return pd.DataFrame(rows, columns=list(TABLE)).astype(numbers)


def _distance(model: str, t: int, kl: pd.DataFrame) -> dict[str, float]:
    """kl, distance and its interval: the start is at 0, what was not measured is NaN."""
    if t == 1:
        return {"kl": 0.0, "distance": 0.0}
    row = kl[(kl["model"] == model) & (kl["estimate"] == "k3")]
    values = row[list(ENDS)].to_numpy(float)[0] if len(row) else np.full(3, np.nan)
    return {"kl": values[0]} | dict(
        zip(("distance", "distance_low", "distance_high"), np.sqrt(values), strict=True)
    )
