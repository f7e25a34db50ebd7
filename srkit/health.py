"""Whether a judge can be used at all: parse rate, score histogram, ties, the most common score.

Shown at every iteration, with limits (`judge.min_parse_rate`, `max_modal_share`, `max_flat_rate`)
that warn, or stop the loop where the preset says so. Public implementations of this loop have
trained on judges that gave one score to half of everything, or failed to parse on most.

    python -c "from srkit.health import judge_health; help(judge_health)"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from srkit import stats
from srkit.config import Config, Judge, SrkitError
from srkit.plan import REWARD_MODEL
from srkit.reward_accuracy import JUDGEMENTS, mean_scores

HISTOGRAM = ("name", "score", "count", "share", "judgements", "parse_rate")
RATES = ("parse_rate", "truncated", "modal_share", "tie_rate", "flat_rate")


def judge_health(judgements: pd.DataFrame) -> dict[str, Any]:
    """Whether a judge can be used at all: what it says, how often, and whether it tells apart.

    `judgements` are of one model on candidates or rankings. Rates are estimates {value, low, high,
    n}, by prompt: parse_rate (of judgements), truncated (of judgements), tie_rate (equal mean
    scores among pairs of scored responses of a prompt), modal_share (of parsed judgements).
    flat_rate (of prompts with two or more scored responses: all equal, so no pair). Further:
    judgements, parsed, responses, scored, prompts, modal_score, mean_score, histogram (nearest
    whole score -> n).
    """
    rows = stats.require(judgements, JUDGEMENTS, "judgements")
    rows = rows.assign(score=pd.to_numeric(rows["score"]), one=1)
    rows = rows.assign(parsed=rows["score"].notna(), truncated=rows["truncated"].eq(True))
    scores = mean_scores(rows).dropna(subset="score")
    ties, histogram = _ties(scores), _histogram(rows["score"])
    modal = max(histogram, key=histogram.get) if rows["parsed"].any() else None
    spread = scores.groupby("prompt_id")["score"].agg(["size", "min", "max"]).query("size > 1")
    spread = spread.reset_index().assign(flat=lambda s: s["min"] == s["max"], one=1)
    said = rows[rows["parsed"]]
    said = said.assign(modal=_whole(said["score"]).astype(str) == modal)
    return {
        "judgements": len(rows),
        "parsed": len(said),
        "responses": int(rows["response_id"].nunique()),
        "scored": len(scores),
        "prompts": int(rows["prompt_id"].nunique()),
        "parse_rate": stats.rate(rows, "parsed", "one"),
        "truncated": stats.rate(rows, "truncated", "one"),
        "tie_rate": stats.rate(ties, "tied", "one"),
        "flat_rate": stats.rate(spread, "flat", "one"),
        "modal_share": stats.rate(said, "modal", "one"),
        "modal_score": None if modal is None else int(modal),
        "mean_score": float(said["score"].mean()) if len(said) else None,
        "histogram": histogram,
    }


def score_histogram(judgements: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Scores given by each judge (or in each iteration), tidy, "no score" included.

    Columns: name, score ("0" to "5", "no score"), count, share (of judgements), judgements,
    parse_rate.
    """
    parts = []
    for name, table in judgements.items():
        score = pd.to_numeric(stats.require(table, JUDGEMENTS, "judgements")["score"])
        counts = {**_histogram(score), "no score": int(score.isna().sum())}
        part = pd.DataFrame({"score": list(counts), "count": list(counts.values())})
        parsed = score.notna().mean() if len(score) else np.nan
        part = part.assign(name=name, judgements=len(score), parse_rate=parsed)
        parts.append(part.assign(share=part["count"] / max(len(score), 1)))
    if not parts:
        return pd.DataFrame(columns=list(HISTOGRAM))
    return pd.concat(parts, ignore_index=True)[list(HISTOGRAM)]


def health_table(judgements: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Health of several judges, a row each: name, judgements, mean_score, modal_score, and each
    rate with `_low` and `_high` (95 %).
    """
    rows = []
    for name, table in judgements.items():
        health = judge_health(table)
        row = {"name": name} | {k: health[k] for k in ("judgements", "mean_score", "modal_score")}
        for rate in RATES:
            ends = {"value": rate, "low": f"{rate}_low", "high": f"{rate}_high"}
            row |= {column: health[rate][end] for end, column in ends.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def health_warnings(health: dict[str, Any], settings: Judge) -> list[str]:
    """What is wrong with a judge, by the limits of the settings; empty if nothing is."""
    parsed, modal, flat = (health[r]["value"] for r in ("parse_rate", "modal_share", "flat_rate"))
    found = []
    if parsed is not None and parsed < settings.min_parse_rate:
        limit = f"judge.min_parse_rate = {settings.min_parse_rate:.0%}"
        found.append(f"only {parsed:.0%} of its judgements end with a score ({limit})")
    # fractions (expected scores, rewards) may well round alike: that the flat rate would show
    whole = settings.method == "sampled" and settings.source != REWARD_MODEL
    if whole and modal is not None and modal > settings.max_modal_share:
        limit = f"judge.max_modal_share = {settings.max_modal_share:.0%}"
        found.append(f"{modal:.0%} of its scores are the same ({limit})")
    if flat is not None and flat > settings.max_flat_rate:
        limit = f"judge.max_flat_rate = {settings.max_flat_rate:.0%}"
        found.append(f"it scores all candidates alike on {flat:.0%} of the prompts ({limit})")
    return found


def check_health(judgements: pd.DataFrame, config: Config, where: str) -> list[str]:
    """Warnings about a judge.

    Raises: SrkitError instead, where `judge.when_unhealthy` is `stop`.
    """
    found = health_warnings(judge_health(judgements), config.judge)
    if found and config.judge.when_unhealthy == "stop":
        raise SrkitError(
            f"The judge of {where} is unhealthy: {'; '.join(found)}. Read some of its judgements. "
            "More EFT rows, a larger model or judge.method=expected may help; "
            "judge.when_unhealthy=warn (with --change) goes on all the same."
        )
    return found


def _whole(score: pd.Series) -> pd.Series:
    return np.floor(score + 0.5).astype(int)


def _histogram(score: pd.Series) -> dict[str, int]:
    seen = _whole(score.dropna()).value_counts()
    levels = sorted({0, 1, 2, 3, 4, 5} | set(seen.index))
    return {str(level): int(seen.get(level, 0)) for level in levels}


def _ties(scores: pd.DataFrame) -> pd.DataFrame:
    pairs = scores.merge(scores, on="prompt_id")
    pairs = pairs[pairs["response_id_x"] < pairs["response_id_y"]]
    tied = pairs["score_x"] == pairs["score_y"]
    return pd.DataFrame({"prompt_id": pairs["prompt_id"], "tied": tied}).assign(one=1)
