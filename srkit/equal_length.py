"""What is left of scores and win rates when length is held equal.

The paper's M3 answers 2.3 times as long as M1 and wins more often; how much of that is length, it
does not say. Two ways to ask. By correlation: how far a judge's score follows length on the seed's
rankings, and how far at equal quality, whose grade the seed knows. By a matched subsample: the same
win rate or accuracy among pairs of texts whose lengths differ by at most 10, 25 or 50 percent.

Surprising decisions: correlations are of ranks within prompts, centred and pooled over prompts,
because three or four responses are too few to hold anything constant within one prompt; prompts
with more responses weigh more. Two lengths differ by |a - b| / max(a, b), so that 1 keeps all
pairs. A matched subsample keeps other prompts as well as other pairs: a change of the rate may be
theirs, which is why n stands beside it. Shares explained are descriptions: nothing was randomised.

    python -c "from srkit.equal_length import *; print(relative_difference(90, 100))"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from srkit import headtohead, reward_accuracy, stats

PREFERENCES = ("win rate", "leaning")
WITHIN = (0.1, 0.25, 0.5, 1.0)  # 1: all pairs
EXPLAINED = ("name", "quantity", "value", "low", "high", "n", "responses")
MATCHED = ("name", "against", "quantity", "within", "value", "low", "high", "n", "pairs")
NUMBERS = dict.fromkeys(("value", "low", "high"), float)


def correlation(sums: pd.DataFrame, x: str, y: str) -> np.ndarray:
    """Correlation of x and y from sums of their products: columns `xx`, `yy` and `xy`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (_product(sums, x, y) / np.sqrt(sums[x + x] * sums[y + y])).to_numpy(float)


def partial_correlation(sums: pd.DataFrame, x: str, y: str, given: str) -> np.ndarray:
    """Correlation of x and y that is left when what `given` predicts of both is taken off."""
    xy, xz, yz = (correlation(sums, *two) for two in ((x, y), (x, given), (y, given)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))


def explained(sums: pd.DataFrame, y: str, first: str, second: str) -> np.ndarray:
    """Share of the variance of y that two quantities explain together (R squared)."""
    alone = correlation(sums, y, first) ** 2
    return alone + (1 - alone) * partial_correlation(sums, y, second, first) ** 2


# s: the judge's score, l: characters, q: the seed's grade of quality
QUANTITIES = {
    "score and length": lambda sums: correlation(sums, "s", "l"),
    "score and length, quality equal": lambda sums: partial_correlation(sums, "s", "l", "q"),
    "score and quality": lambda sums: correlation(sums, "s", "q"),
    "score and quality, length equal": lambda sums: partial_correlation(sums, "s", "q", "l"),
    "quality and length": lambda sums: correlation(sums, "q", "l"),
    "explained by length": lambda sums: correlation(sums, "s", "l") ** 2,
    "explained by quality": lambda sums: correlation(sums, "s", "q") ** 2,
    "explained by both": lambda sums: explained(sums, "s", "q", "l"),
}


def products(rankings: pd.DataFrame, judgements: pd.DataFrame) -> pd.DataFrame:
    """Sums of products of centred ranks, a row per prompt: ss, ll, qq, sl, sq, lq, responses.

    Ranks within the prompt of score (s), characters (l) and quality (q, from the human rank), over
    the responses that have a score. A constant side gives zeros.
    """
    scored = _with_characters(rankings, judgements).dropna(subset="score")
    sides = {"s": scored["score"].round(9), "l": scored["characters"], "q": -scored["rank"]}
    ranks = {name: side.groupby(scored["prompt_id"]).rank() for name, side in sides.items()}
    centred = {n: r - r.groupby(scored["prompt_id"]).transform("mean") for n, r in ranks.items()}
    pairs = ("ss", "ll", "qq", "sl", "sq", "lq")
    table = pd.DataFrame({two: centred[two[0]] * centred[two[1]] for two in pairs})
    return table.assign(responses=1.0).groupby(scored["prompt_id"]).sum()


def score_and_length(
    rankings: pd.DataFrame,
    judgements: Mapping[str, pd.DataFrame],
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """How much of each judge's score length explains, with and without the seed's grade of quality.

    `rankings` is seed/eft_eval, `judgements` maps a name to its table on it. A row per name and
    quantity (`QUANTITIES`: correlations in [-1, 1], shares explained in [0, 1]). Columns: name,
    quantity, value, low, high (95 %, by prompt), n (prompts), responses.
    """
    rows = []
    for name, table in judgements.items():
        sums = products(rankings, table)
        counts = {"responses": int(sums["responses"].sum())}
        for quantity, statistic in QUANTITIES.items():
            found = stats.bootstrap(sums, statistic, resamples=resamples, seed=seed)
            rows.append({"name": name, "quantity": quantity, **found, **counts})
    return pd.DataFrame(rows, columns=list(EXPLAINED)).astype(NUMBERS)


def relative_difference(a: Any, b: Any) -> Any:
    """|a - b| / max(a, b) of two lengths or columns of them, in [0, 1]; two empty texts: 0."""
    return np.abs(a - b) / np.maximum(np.maximum(a, b), 1)


def win_rates(
    comparisons: pd.DataFrame,
    responses: Mapping[str, pd.DataFrame],
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Win rates of left against right among prompts where both answers are about equally long.

    `responses` maps each compared model to its table. A row per pair of models, quantity
    (`preferences`) and limit of `WITHIN`. Columns: name (left), against (right), quantity, within,
    value, low, high (95 %, by prompt), n (prompts), pairs (the same here).
    """
    table = headtohead.verdicts(comparisons).dropna(subset="verdict")
    characters = _answer_lengths(responses)
    lengths = [
        np.array(
            [characters[answer] for answer in zip(table[side], table["prompt_id"], strict=True)]
        )
        for side in ("left", "right")
    ]
    table["apart"] = relative_difference(*lengths)
    table = table.assign(**preferences(table))
    options = {"resamples": resamples, "seed": seed}
    rows = [
        {"name": left, "against": right, "quantity": quantity, **row}
        for (left, right), match in table.groupby(["left", "right"], sort=False)
        for quantity in PREFERENCES
        for row in _at_limits(match.assign(hits=match[quantity]).dropna(subset="hits"), **options)
    ]
    return pd.DataFrame(rows, columns=list(MATCHED)).astype(NUMBERS)


def preferences(verdicts: pd.DataFrame) -> dict[str, pd.Series]:
    """For left, 1, against it, 0, or neither, 0.5, by prompt and by each of `PREFERENCES`.

    Win rate: both orders agree. Leaning: the sign of the order-averaged log-odds, which says
    something where a small referee follows the place and so ties nearly everything.
    """
    won = verdicts["verdict"].map({"win": 1.0, "tie": 0.5, "loss": 0.0}).astype(float)
    return {"win rate": won, "leaning": 0.5 + np.sign(verdicts["log_odds_left"]) / 2}


def pairwise_accuracy(
    rankings: pd.DataFrame,
    judgements: Mapping[str, pd.DataFrame],
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy of each judge on pairs of ranked responses that are about equally long, ties half.

    A row per judge and limit of `WITHIN`; columns as `win_rates`, with `against` the ranking of
    the seed, n the prompts and pairs the pairs.
    """
    rows = []
    for name, table in judgements.items():
        scored = _with_characters(rankings, table)
        pairs = reward_accuracy.ranked_pairs(scored)
        pairs = pairs[pairs["outcome"] != "unscored"]
        characters = scored.set_index("id")["characters"]
        better, worse = (pairs[side].map(characters).astype(float) for side in ("better", "worse"))
        hits = pairs["outcome"].map({"right": 1.0, "tied": 0.5, "wrong": 0.0}).astype(float)
        pairs = pairs.assign(apart=relative_difference(better, worse), hits=hits)
        labels = {"name": name, "against": "the seed", "quantity": "pairwise accuracy"}
        found = _at_limits(pairs, resamples=resamples, seed=seed)
        rows += [{**labels, **row} for row in found]
    return pd.DataFrame(rows, columns=list(MATCHED)).astype(NUMBERS)


def score_gaps(
    pairs: Mapping[str, pd.DataFrame], resamples: int = stats.RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Score of chosen less rejected among training pairs of about equal length, per iteration.

    A row per name and limit of `WITHIN`; columns as `win_rates`, with `pairs` how many of the
    iteration's pairs a rule that asks for equal length would leave.
    """
    columns = ("id", "chosen", "rejected", "chosen_score", "rejected_score")
    rows = []
    for name, table in pairs.items():
        used = stats.require(table, columns, f"pairs of {name}")
        lengths = [used[side].astype(str).str.len() for side in ("chosen", "rejected")]
        made = used[["id"]].rename(columns={"id": "prompt_id"})
        made["apart"] = relative_difference(*lengths)
        made["hits"] = (used["chosen_score"] - used["rejected_score"]).astype(float)
        labels = {"name": name, "against": "rejected", "quantity": "score gap"}
        found = _at_limits(made, resamples=resamples, seed=seed, share=False)
        rows += [{**labels, **row} for row in found]
    return pd.DataFrame(rows, columns=list(MATCHED)).astype(NUMBERS)


def _at_limits(
    table: pd.DataFrame, resamples: int, seed: int, share: bool = True
) -> list[dict[str, Any]]:
    """The mean of `hits` among rows at most each limit `apart`; shares may use Wilson."""
    rows, estimate = [], stats.rate if share else stats.bootstrap
    for within in WITHIN:
        part = table[table["apart"] <= within].assign(one=1)
        columns = ("hits", "one") if share else (("hits", "one"),)
        found = estimate(part, *columns, resamples=resamples, seed=seed)
        rows.append({"within": within, **found, "pairs": len(part)})
    return rows


def _with_characters(rankings: pd.DataFrame, judgements: pd.DataFrame) -> pd.DataFrame:
    scored = reward_accuracy.score_rankings(rankings, judgements)
    characters = rankings.set_index("id")["response"].astype(str).str.len().astype(float)
    return scored.assign(characters=scored["id"].map(characters))


def _answer_lengths(responses: Mapping[str, pd.DataFrame]) -> dict[tuple[str, str], int]:
    """Characters of each answer, by model and prompt."""
    found = {}
    for model, table in responses.items():
        rows = stats.require(table, ("prompt_id", "text"), f"responses of {model}")
        lengths = zip(rows["prompt_id"], rows["text"].astype(str).str.len(), strict=True)
        found |= {(model, prompt): n for prompt, n in lengths}
    return found


def _product(sums: pd.DataFrame, x: str, y: str) -> pd.Series:
    return sums[x + y] if x + y in sums else sums[y + x]
