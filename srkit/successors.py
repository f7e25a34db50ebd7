"""What the switches of later methods did inside their arms, iteration by iteration.

The loop's successors are arms of one switch each, and what they lead to is compared in
`srkit.ablations`. Here is what happened on the way, where there is something to tell: CREAM's C;
how often an anchor was the worst answer; how many prompts gave a pair of judgements, and two signs
by which Meta-Rewarding saw its meta-judge go wrong (arXiv 2407.19594): that it prefers a place, and
that it hardly ever prefers the lower score.

Surprising decision: an anchor is known by its id, which names the model that wrote it.

    python -c "from srkit.successors import MEASURES; print(*MEASURES)"
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from srkit import headtohead, stats
from srkit.consistency import consistency

# The arms, each of one setting in `config.ARMS`, and whose method it is.
PAPERS = {
    "length-control": "Meta-Rewarding, arXiv 2407.19594",
    "nll": "Iterative Reasoning Preference Optimization, arXiv 2404.19733",
    "length-penalty": "R-DPO, arXiv 2403.19159",
    "cream": "CREAM, arXiv 2410.12735",
    "anchored": "Temporal Self-Rewarding, arXiv 2508.06026",
    "meta-judge": "Meta-Rewarding, arXiv 2407.19594",
    "spin": "SPIN, arXiv 2401.01335",
}
# measure -> what it is, and of what
MEASURES = {
    "consistency": "CREAM's C, mean over prompts: 1 as the judge before, 1/2 as a coin",
    "anchors rejected": "share of the pairs whose rejected response is an anchor",
    "judge pairs": "share of the prompts that gave a pair of judgements",
    "first place preferred": "share of the meta-judge's comparisons, both orders; 1/2 is fair",
    "higher score chosen": "share of the pairs of judgements with different scores",
}
TABLES = ("judgements", "judgements_before", "pairs", "anchors", "judge_pairs", "meta_judgements")
SWITCHES = ("name", "measure", "value", "low", "high", "n")
Tables = Mapping[str, pd.DataFrame]


def switches(
    iterations: Mapping[str, Tables], resamples: int = stats.RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """The measures of each iteration that has them.

    `iterations` maps names to their tables, of `TABLES` those that are there. Columns: name,
    measure (`MEASURES`), value, low, high (95 %, by prompt), n (prompts).
    """
    options = {"resamples": resamples, "seed": seed}
    rows = [
        {"name": name, "measure": measure, **found}
        for name, tables in iterations.items()
        for measure, found in _measures(tables, options).items()
    ]
    table = pd.DataFrame(rows, columns=list(SWITCHES))
    return table.astype(dict.fromkeys(("value", "low", "high"), float))


def _measures(tables: Tables, options: dict[str, int]) -> dict[str, stats.Estimate]:
    found = {}
    if "judgements_before" in tables:
        before = tables["judgements_before"]
        found["consistency"] = consistency(tables["judgements"], before, **options)
    if "anchors" in tables:
        pairs = _pairs(tables["pairs"])
        past = pairs["rejected_id"].isin(tables["anchors"]["id"])
        found["anchors rejected"] = _share(pairs["id"], past, options)
    if "judge_pairs" in tables:
        every, pairs = tables["judge_pairs"], _pairs(tables["judge_pairs"])
        found["judge pairs"] = _share(every["id"], every["dropped"].isna(), options)
        found["first place preferred"] = _first(tables["meta_judgements"], options)
        gap = pairs["chosen_score"].astype(float) - pairs["rejected_score"].astype(float)
        found["higher score chosen"] = _share(pairs["id"][gap != 0], gap[gap != 0] > 0, options)
    return found


def _pairs(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that are pairs."""
    columns = ("id", "rejected_id", "chosen_score", "rejected_score")
    return stats.require(table, columns, "pairs")


def _share(prompts: pd.Series, hits: pd.Series, options: dict[str, int]) -> stats.Estimate:
    table = pd.DataFrame({"prompt_id": prompts, "hits": hits.astype(float), "one": 1.0})
    return stats.rate(table, "hits", "one", **options)


def _first(comparisons: pd.DataFrame, options: dict[str, int]) -> stats.Estimate:
    rows = stats.require(comparisons, headtohead.COMPARISONS, "meta_judgements")
    decided = rows[rows["preferred"].notna()]
    return _share(decided["prompt_id"], decided["preferred"] == decided["first"], options)
