"""Does a difference of scores say how likely the better response is? Do two judges agree?

Two questions to judgements of the held-out rankings. Calibration: pairs are sorted by how far apart
the judge's scores are, and the share that it orders as the seed does is taken in each part; a judge
whose scores mean something is right more often where they differ more. The slope of a logistic fit
says the same in one number. Agreement: mean Kendall's tau-b per prompt of two models' scores, with
which CREAM (arXiv 2410.12735) measures whether M_t and M_(t-1) judge alike, and the share of pairs
that both order alike.

Surprising decisions: parts hold about as many pairs, since scales differ from judge to judge; pairs
with equal scores are no part, for they make no claim. The fit has no intercept: without a
difference there is no better one. Its slope is per standard deviation of the judge's own
differences, so that judges can be set side by side; and it is drawn a little towards 0
(see `stats.logistic`).

    python -c "from srkit import calibration; print(calibration.PARTS)"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from srkit import stats
from srkit.reward_accuracy import score_rankings

PARTS = 5
ESTIMATE = ("value", "low", "high")
BINS = ("model", "part", "from", "to", "gap", *ESTIMATE, "n", "prompts")
SLOPES = ("model", *ESTIMATE, "sd", "n", "prompts")
AGREEMENT = ("model", "reference", "measure", *ESTIMATE, "n", "unit", "prompts")


def decided_pairs(rankings: pd.DataFrame, judgements: pd.DataFrame) -> pd.DataFrame:
    """Pairs that the seed and the judge order: prompt_id, gap (score of the better less the other).

    A positive gap is right. Pairs of equal or missing scores are left out.
    """
    scored = score_rankings(rankings, judgements)[["id", "prompt_id", "rank", "score"]]
    pairs = scored.merge(scored, on="prompt_id", suffixes=("_better", "_worse"))
    pairs = pairs[pairs["rank_better"] < pairs["rank_worse"]]
    gap = (pairs["score_better"] - pairs["score_worse"]).astype(float)
    found = pd.DataFrame({"prompt_id": pairs["prompt_id"], "gap": gap})
    return found[found["gap"].abs() > 0].reset_index(drop=True)  # NaN is not


def bins(
    rankings: pd.DataFrame,
    judgements: Mapping[str, pd.DataFrame],
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Share of pairs ordered right by the size of the judge's difference, at most `PARTS` a judge.

    Columns: model, part (1 is the smallest differences), from, to, gap (mean, absolute), value,
    low, high (95 %, by prompt), n (pairs), prompts.
    """
    rows = []
    for model, table in judgements.items():
        pairs = decided_pairs(rankings, table)
        pairs = pairs.assign(size=pairs["gap"].abs(), right=pairs["gap"] > 0, one=1.0)
        for part, group in pairs.groupby(_parts(pairs["size"])):
            found = stats.rate(group, "right", "one", resamples=resamples, seed=seed)
            size = group["size"]
            ends = {"from": size.min(), "to": size.max(), "gap": size.mean()}
            counts = {"n": len(group), "prompts": found.pop("n")}
            rows.append({"model": model, "part": int(part) + 1, **ends, **found, **counts})
    return _table(rows, BINS)


def slopes(rankings: pd.DataFrame, judgements: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Log-odds of being right per standard deviation of the judge's differences (logistic fit).

    Columns: model, value, low, high (95 %, clustered by prompt), sd (of differences, in points), n
    (pairs), prompts. 0: a larger difference is no more likely to be right.
    """
    rows = []
    for model, table in judgements.items():
        pairs = decided_pairs(rankings, table)
        counts = {"n": len(pairs), "prompts": pairs["prompt_id"].nunique()}
        row: dict[str, Any] = {"model": model, **counts}
        if counts["prompts"] > 1:
            row |= _slope(pairs)
        rows.append(row)
    return _table(rows, SLOPES)


def agreement(
    judgements: Mapping[str, pd.DataFrame],
    pairs: Sequence[tuple[str, str]],
    rankings: pd.DataFrame,
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """How alike two models judge the same responses; `pairs` lists (model, reference).

    Measures: `kendall` (mean tau-b over the prompts where it is defined) and `ordered_alike` (of
    the pairs that both order, those in the same order). Columns: model, reference, measure, value,
    low, high (95 %, by prompt), n (in `unit`), unit, prompts.
    """
    options = {"resamples": resamples, "seed": seed}
    rows = []
    for model, reference in pairs:
        mine, other = (
            score_rankings(rankings, judgements[name])[["id", "prompt_id", "score"]]
            for name in (model, reference)
        )
        both = mine.merge(other.drop(columns="prompt_id"), on="id", suffixes=("", "_other"))
        names = {"model": model, "reference": reference}
        rows += [{**names, **found} for found in (_tau(both, options), _alike(both, options))]
    return _table(rows, AGREEMENT)


def _parts(sizes: pd.Series) -> pd.Series:
    """The part of each pair, from 0; equal sizes stay together."""
    if sizes.nunique() < 2:
        return sizes * 0
    cut = pd.qcut(sizes, min(PARTS, sizes.nunique()), labels=False, duplicates="drop")
    return cut.rank(method="dense").astype(int) - 1


def _slope(pairs: pd.DataFrame) -> dict[str, float]:
    sd = float(np.sqrt((pairs["gap"] ** 2).mean()))  # around 0: a pair can be turned round
    design = pd.DataFrame({"gap": pairs["gap"] / sd})
    prior = pd.DataFrame({"gap": [1.0]})
    clusters = pairs["prompt_id"].to_numpy()
    fit = stats.logistic(design, np.ones(len(pairs)), clusters, prior).iloc[0]
    return {"sd": sd, **{name: float(fit[name]) for name in ESTIMATE}}


def _tau(both: pd.DataFrame, options: dict[str, int]) -> dict[str, Any]:
    taus = stats.correlations(both, "score", "score_other").reset_index()
    taus = taus.assign(one=taus["kendall"].notna().astype(float))
    found = stats.bootstrap(taus, ("kendall", "one"), **options)
    n = found.pop("n")
    return {"measure": "kendall", **found, "n": n, "unit": "prompts", "prompts": n}


def _alike(both: pd.DataFrame, options: dict[str, int]) -> dict[str, Any]:
    pairs = both.merge(both, on="prompt_id", suffixes=("_a", "_b"))
    pairs = pairs[pairs["id_a"] < pairs["id_b"]]
    one = (pairs["score_a"] - pairs["score_b"]).to_numpy(float)
    two = (pairs["score_other_a"] - pairs["score_other_b"]).to_numpy(float)
    decided = np.abs(one * two) > 0
    marks = pairs[["prompt_id"]].assign(alike=one * two > 0, decided=decided.astype(float))
    found = stats.rate(marks, "alike", "decided", **options)
    counts = {"n": int(decided.sum()), "unit": "pairs", "prompts": found.pop("n")}
    return {"measure": "ordered_alike", **found, **counts}


def _table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns)).astype(dict.fromkeys(ESTIMATE, float))
