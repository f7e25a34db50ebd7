"""Results by kind of prompt: task, complexity, expected length (paper Figs. 4 and 11).

The paper had GPT-4 label 805 prompts; here the labels (task, complexity, expected_length) come with
the seed set's test prompts, and a seed without them (Open Assistant) has an empty breakdown.
Broken down are the win rate against the baseline, the constraints met and the length of the answers
to the test prompts, and, on the held-out rankings, the judge's score and pairwise accuracy.

Surprising decisions: a group below `SMALL` prompts keeps its row, marked `small`, so that a reader
sees that it says nothing, instead of not seeing it; the row "all" stands beside the groups, and a
group whose interval contains it is no finding. Of ten groups at least one leaves it by chance in
four studies out of ten: nothing corrects for that, groups raise questions and settle none.

    python -c "from srkit.breakdowns import PAPER; print(PAPER.query('label == \\"complexity\\"'))"
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from srkit import constraints, headtohead, length, reward_accuracy, stats
from srkit.equal_length import preferences

LABELS = ("task", "complexity", "expected_length")
EXPECTED = ("1 sentence", "1-3 sentences", "1 paragraph", "2 paragraphs")
ALL, SMALL = "all", 10
TABLE = ("label", "group", "model", "quantity", "value", "low", "high", "n", "prompts", "small")


def _paper() -> pd.DataFrame:
    """Figs. 4 and 11 read off the charts, to a point or two; win rate in percent."""
    models = ("M0", "M1", "M2", "M3")
    task = {
        "Health": (18.5, 18.5, 31.5, 31.5),
        "Professional": (11.5, 19.5, 28.5, 30),
        "Linguistics": (6.5, 15.5, 22, 28),
        "Other": (16.5, 18, 26.5, 28),
        "Entertainment": (14.5, 9, 20.5, 26.5),
        "Technology": (10, 15, 35, 25),
        "Literature": (2.5, 2.5, 10.5, 23),
        "Coding": (9, 9, 13.5, 22.5),
        "Science": (4.5, 6, 14, 22.5),
        "Gaming": (5.5, 0, 11, 22),
        "Philosophy": (6.5, 13.5, 0, 20),
        "Social Studies": (2.5, 13, 8, 18.5),
        "Travel": (14.5, 7.5, 14.5, 17),
        "Arts": (6.5, 10, 10, 17),
    }
    complexity = {
        "1": (17.5, 14.5, 23.5, 26.5),
        "2": (10.5, 12, 17.5, 19),
        "3": (8.5, 9.5, 13.8, 18.5),
        "4": (6.5, 7.5, 15.5, 18),
        "5": (4.5, 7.4, 16.2, 26.5),
        "6": (3.8, 5, 8.8, 21.5),
        "7": (4.8, 7.2, 12.2, 24.5),
        "8": (21.5, np.nan, 14.2, 28.5),  # two readings of M1 disagree by 7 points
    }
    columns = ((15.4, 20.3, 26.5, 25.8), (7.8, 8.6, 14.4, 21.6), (5.6, 5.6, 10.4, 15.6))
    expected = dict(zip(EXPECTED, (*columns, (6.5, 9.7, 12.9, 16.1)), strict=True))
    rows = [
        (label, group, model, value / 100)
        for label, groups in zip(LABELS, (task, complexity, expected), strict=True)
        for group, values in groups.items()
        for model, value in zip(models, values, strict=True)
    ]
    return pd.DataFrame(rows, columns=["label", "group", "model", "value"])


# which model the legend's M0 is, base or SFT baseline, is not known; five categories cannot be read
PAPER = _paper()


def groups(prompts: pd.DataFrame) -> pd.DataFrame:
    """Which groups each prompt is in: prompt_id, label, group; a missing label makes no row.

    `prompts` is seed/test_prompts (its `id` is the prompt's), or rankings with a `prompt_id`.
    """
    name = "prompt_id" if "prompt_id" in prompts else "id"
    parts = [pd.DataFrame(columns=["prompt_id", "label", "group"])]
    for label in (label for label in LABELS if label in prompts):
        known = prompts[[name, label]].drop_duplicates().set_axis(["prompt_id", "group"], axis=1)
        known = known[known["group"].notna() & (known["group"] != "")]
        parts.append(known.assign(label=label, group=known["group"].map(_named)))
    return pd.concat(parts, ignore_index=True)[["prompt_id", "label", "group"]]


def answers_by_group(
    prompts: pd.DataFrame,
    comparisons: pd.DataFrame,
    responses: Mapping[str, pd.DataFrame],
    reference: str = "baseline",
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Answers to the test prompts by group: a row per label, group, model and quantity.

    Quantities: win rate against `reference` (ties half), leaning (share where the order-averaged
    log-odds are for the model), constraints met (share of the prompts with constraints whose answer
    meets all), characters (mean). Columns: label, group ("all" first), model, quantity, value, low,
    high (95 %, by prompt), n (prompts), prompts (of the group), small (n below `SMALL`).
    """
    rows = headtohead.verdicts(comparisons).dropna(subset="verdict")
    won = rows[rows["right"] == reference].rename(columns={"left": "model"})
    who = ["model", "prompt_id"]
    met = constraints.outcomes(responses).query("kind == @constraints.EVERY")
    long = length.lengths(responses)
    measured = {
        **{name: won[who].assign(hits=hits) for name, hits in preferences(won).items()},
        "constraints met": met.rename(columns={"passed": "hits"}),
        "characters": long.rename(columns={"characters": "hits"}),
    }
    return _table(groups(prompts), measured, list(responses), resamples, seed)


def judging_by_group(
    rankings: pd.DataFrame,
    judgements: Mapping[str, pd.DataFrame],
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Judging of the held-out rankings by group; columns as `answers_by_group`.

    Quantities: pairwise accuracy (ties left out; a prompt weighs by its pairs), score (mean that
    the judge gave the responses). n are the prompts.
    """
    pairs, scores = [], []
    for model, table in judgements.items():
        scored = reward_accuracy.score_rankings(rankings, table)
        decided = reward_accuracy.ranked_pairs(scored).query("outcome in ('right', 'wrong')")
        hits = (decided["outcome"] == "right").astype(float)
        pairs.append(decided[["prompt_id"]].assign(model=model, hits=hits))
        scores.append(scored[["prompt_id"]].assign(model=model, hits=scored["score"].astype(float)))
    empty = [pd.DataFrame(columns=["prompt_id", "model", "hits"])]
    measured = {
        "pairwise accuracy": pd.concat([*empty, *pairs]),
        "score": pd.concat([*empty, *scores]),
    }
    return _table(groups(rankings), measured, list(judgements), resamples, seed)


def _table(
    labels: pd.DataFrame,
    measured: Mapping[str, pd.DataFrame],
    models: list[str],
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    rows = []
    for (label, group, prompts), quantity in itertools.product(_parts(labels), measured):
        table = measured[quantity]
        table = table[table["prompt_id"].isin(prompts)].assign(one=1).dropna(subset="hits")
        for model in (model for model in models if model in set(measured[quantity]["model"])):
            part = table[table["model"] == model]
            found = _estimate(part, quantity, resamples, seed)
            names = {"label": label, "group": group, "model": model, "quantity": quantity}
            sizes = {"prompts": len(prompts), "small": found["n"] < SMALL}
            rows.append({**names, **found, **sizes})
    return pd.DataFrame(rows, columns=list(TABLE)).astype(dict.fromkeys(TABLE[4:7], float))


def _parts(labels: pd.DataFrame) -> Iterator[tuple[str, str, set[str]]]:
    """Label, group and the ids of its prompts: all labelled ones first, then group by group."""
    for label, table in labels.groupby("label", sort=False):
        yield label, ALL, set(table["prompt_id"])
        named = dict(list(table.groupby("group")["prompt_id"]))
        for group in sorted(named, key=_place):
            yield label, group, set(named[group])


def _place(group: str) -> tuple[int, int, str]:
    """Numbers and expected lengths in their order, tasks by name."""
    if group in EXPECTED:
        return 0, EXPECTED.index(group), group
    return (0, int(group), group) if group.isdigit() else (1, 0, group)


def _estimate(part: pd.DataFrame, quantity: str, resamples: int, seed: int) -> dict[str, Any]:
    options = {"resamples": resamples, "seed": seed}
    if quantity in ("characters", "score"):
        return stats.bootstrap(part, ("hits", "one"), **options)
    return stats.rate(part, "hits", "one", **options)


def _named(value: Any) -> str:
    """Complexity arrives as 3, or as 3.0 where another row has none."""
    return str(int(value)) if isinstance(value, int | float | np.number) else str(value)
