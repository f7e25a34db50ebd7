"""The signals of the loop: what shows, iteration by iteration, that it runs well or goes wrong.

Pair yield, the judge's scores and health, the gap between chosen and rejected, their
log-probabilities while training, how far the model has moved (KL), seconds and tokens: one tidy
table for one dashboard. A falling yield, scores that crowd at one value, a shrinking gap,
log-probabilities of the chosen that fall with those of the rejected, or a KL that runs away are how
this loop is known to fail.

Surprising decisions: log-probabilities are those that the trainer logged, update by update, each of
another batch, so that their level jumps with the texts; with two epochs or more the same pairs come
again. KL is that of the model which the iteration leaves to the arm's start, by two estimates of
the same number (`srkit.drift`). Seconds and tokens are the manifest's and differ from run to run;
tokens are those read, written and trained on, and a table that is copied from another arm counts as
if it had been made (`srkit.costs`).

    python -c "from srkit.signals import SIGNALS; print(*SIGNALS)"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from srkit import stats
from srkit.drift import kl_estimates
from srkit.health import judge_health
from srkit.reward_accuracy import mean_scores

SIGNALS = (
    "pair yield",
    "score",
    "score histogram",
    "gap",
    "log-probability",
    "KL",
    "judge health",
    "seconds",
    "tokens",
)
TABLE = ("name", "signal", "part", "position", "value", "low", "high", "n")
RATES = ("parse_rate", "modal_share", "tie_rate", "flat_rate")
BINS = 20
Row = dict[str, Any]


def loop_signals(
    iterations: Mapping[str, Mapping[str, pd.DataFrame]],
    costs: Sequence[Row] = (),
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """All signals of all iterations, tidy.

    `iterations` maps an iteration's name to its tables `judgements`, `pairs`, `training` (the
    trainer's log) and `drift`, of which the last two may lack; `costs` are rows of name, part (a
    step), seconds, tokens. Columns: name, signal (`SIGNALS`), part (chosen or rejected, a rate, an
    estimate, a step), position (left end of a bin, number of an update), value, low, high (95 %, by
    prompt), n. Shares are in [0, 1], scores in points, log-probabilities and KL in nats per
    response.
    """
    options = {"resamples": resamples, "seed": seed}
    edges = _edges([tables["judgements"] for tables in iterations.values()])
    rows: list[Row] = []
    for name, tables in iterations.items():
        found = [
            *_pairs(tables["pairs"], **options),
            *_scores(tables["judgements"], edges, **options),
            *_health(tables["judgements"]),
            *_training(tables.get("training", pd.DataFrame())),
            *_kl(tables.get("drift", pd.DataFrame()), **options),
        ]
        rows += [{"name": name, **row} for row in found]
    for cost in costs:
        labels = {"name": cost["name"], "part": cost["part"]}
        rows += [{**labels, "signal": s, "value": cost[s]} for s in ("seconds", "tokens")]
    table = pd.DataFrame(rows, columns=list(TABLE))
    return table.astype(dict.fromkeys(TABLE[3:], float))


def _pairs(pairs: pd.DataFrame, **options: int) -> list[Row]:
    """Share of prompts that gave a pair, and by how much chosen outscores rejected."""
    table = pairs.assign(one=1, prompt_id=pairs.get("id"), kept=pairs["dropped"].isna())
    used = table[table["kept"]]
    gap = used.get("chosen_score", np.nan) - used.get("rejected_score", np.nan)
    gap = used.assign(gap=gap)[["prompt_id", "gap", "one"]]
    return [
        {"signal": "pair yield", **stats.rate(table, "kept", "one", **options)},
        {"signal": "gap", **stats.bootstrap(gap, ("gap", "one"), **options)},
    ]


def _scores(judgements: pd.DataFrame, edges: np.ndarray, **options: int) -> list[Row]:
    """Mean of the candidates' scores, and how they spread over the bins."""
    scores = mean_scores(judgements).dropna(subset="score").assign(one=1)
    mean = stats.bootstrap(scores, ("score", "one"), **options)
    counts, _ = np.histogram(scores["score"], edges)
    bins = zip(edges[:-1], counts / max(len(scores), 1), strict=True)
    row = {"signal": "score histogram", "n": len(scores)}
    return [{"signal": "score", **mean}, *({**row, "position": x, "value": y} for x, y in bins)]


def _health(judgements: pd.DataFrame) -> list[Row]:
    health = judge_health(judgements)
    return [{"signal": "judge health", "part": rate, **health[rate]} for rate in RATES]


def _training(log: pd.DataFrame) -> list[Row]:
    """Mean log-probability of the batch's responses at every update."""
    sides = [side for side in ("chosen", "rejected") if f"logp_{side}" in log]
    return [
        {"signal": "log-probability", "part": side, "position": row.step, "value": value}
        for side in sides
        for row, value in zip(log.itertuples(), log[f"logp_{side}"], strict=True)
    ]


def _kl(drift: pd.DataFrame, **options: int) -> list[Row]:
    kept = ("value", "low", "high", "n")
    return [
        {"signal": "KL", "part": row["estimate"], **{name: row[name] for name in kept}}
        for row in kl_estimates(drift, **options)
    ]


def _edges(judgements: Sequence[pd.DataFrame]) -> np.ndarray:
    """Bins common to all iterations, over the scores that occur."""
    scores = [mean_scores(table)["score"].astype(float).dropna() for table in judgements]
    scores = pd.concat(scores) if scores else pd.Series(dtype=float)
    return np.histogram_bin_edges(scores, bins=BINS)
