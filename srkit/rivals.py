"""Ways to make a model answer better, side by side: what each is for, learns from, and changes.

The paper sets self-rewarding against learning from people (RLHF), from a fixed judge (RLAIF), and
from a frozen reward model; refining an answer at inference changes no weights at all. `WAYS` says
what they are; `beside` puts a study's own measurement of each next to it.

    python -c "from srkit.rivals import WAYS; print(WAYS)"
"""

from __future__ import annotations

import pandas as pd

from srkit import refine
from srkit.ablations import last_iteration
from srkit.plan import PAPER_ARM, SEED_MODELS

COLUMNS = ("way", "in a study", "stage", "purpose", "feedback", "weights", "when to use")
WAYS = pd.DataFrame(
    [
        (
            *("seed fine-tuning", "baseline", "training, once"),
            "answer in the form and tone of the examples",
            *("example answers", "changed", "there are good examples and no other signal"),
        ),
        (
            *("evaluation fine-tuning", "M1", "training, once"),
            "judge answers as the seed's graders do",
            *("graded answers", "changed", "the model is to judge, its own answers or others'"),
        ),
        (
            *("self-rewarding", PAPER_ARM, "training, in rounds"),
            "prefer what the model itself scores higher; the judge moves with the model",
            *("its own scores", "changed", "the judge can be trusted on what is to improve"),
        ),
        (
            *("RLHF, as DPO", "human", "training"),
            "prefer what people ranked higher",
            *("people's rankings", "changed", "people's judgement is what counts, and affordable"),
        ),
        (
            *("RLHF, reward model", "reward-model", "training"),
            "prefer what a model of people's rankings scores higher; it stays as it is",
            *("a frozen reward model", "changed", "rankings are few, and answers to score many"),
        ),
        (
            *("RLAIF", "external-judge", "training"),
            "prefer what another model scores higher; it stays as it is",
            *("a fixed other model", "changed", "a better judge is at hand than the model"),
        ),
        (
            *("Self-Refine", refine.REFINED, "inference"),
            "mend one answer after one's own criticism of it",
            *("its own words", "kept", "an answer may cost several times as much, and no more"),
        ),
        (
            *("best of N", refine.BEST, "inference"),
            "draw several answers and keep the one scored highest",
            *("its own scores", "kept", "as above; the judge is better than the writer"),
        ),
        (
            *("oracle", "oracle", "control"),
            "show that preferences get into the model at all",
            *("a program", "changed", "before any other result is believed"),
        ),
        (
            *("coins", "random-judge", "control"),
            "show what preferences without meaning do",
            *("coin flips", "changed", "before any other result is believed"),
        ),
    ],
    columns=list(COLUMNS),
)
# outcomes of arms that refined answers have too, and what `refine.MEASURES` calls them
SAME = {"constraints met": "constraints stated", "oracle's score": "oracle's score"}


def beside(outcomes: pd.DataFrame, outcome: str, refined: pd.DataFrame) -> pd.DataFrame:
    """`WAYS` with one outcome of `ablations.compare`, of the last iteration, in four columns.

    value, low, high, n: of seed models their level; of arms the paired difference from where they
    started; of refined answers and the best of N (`refine.ways_table`, of M1) that from its one
    answer. NaN where the study has no such arm, or refines nothing.
    """
    rows = last_iteration(outcomes)
    rows = rows[rows["outcome"] == outcome]
    starts = outcomes.loc[outcomes["iteration"] == 0, "model"].unique()
    levels = rows[(rows["iteration"] == 0) & (rows["against"] == "")].assign(
        key=lambda table: table["model"]
    )
    changes = rows[rows["against"].isin(starts)].assign(key=lambda table: table["arm"])
    kept = refined[(refined["of"] == "M1") & (refined["measure"] == SAME.get(outcome))]
    kept = kept[(kept["against"] == refine.ONE) & kept["way"].isin((refine.BEST, refine.REFINED))]
    parts = [levels[levels["key"].isin(SEED_MODELS)], changes, kept.assign(key=kept["way"])]
    known = pd.concat(parts).set_index("key")
    return WAYS.join(known[["value", "low", "high", "n"]], on="in a study")
