"""Benchmarks, and what training costs on them: scores, and changes on the same items.

The paper's Tables 3 and 9 ask whether the loop costs abilities (an "alignment tax"), Tables 2 and
10 how two-turn questions are answered. Whatever was measured, for whichever benchmark, comes here
as rows of one shape (`ITEMS`), so that every change is paired: the same item, two models.

The measure that every study has needs no judge, no other model and no download: how many of the
constraints that its test prompts state do its answers meet, strictly and loosely, as IFEval counts
(arXiv 2311.07911). Prompt-level: all constraints of a prompt; constraint-level: each.

Surprising decisions: a change is set against the baseline, against M0 where that was measured, and
against the model that the arm started from; the first two say what the study did to the model, the
last what the loop did. Where no item changed there is no interval: n items without a change do not
exclude one.

    python -c "from srkit.benchmarks import PAPER; print(PAPER)"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from srkit import constraints, stats

INSTRUCTIONS, QUESTIONS = "instructions", "two-turn questions"
FEW = 5
LABELS = ["benchmark", "metric", "unit"]  # unit: share (0 to 1) or points
ITEMS = ("model", *LABELS, "prompt_id", "hits", "trials")
SCORES = (*LABELS, "model", "value", "low", "high", "n", "prompts")
TWO_TURN = ("category", "turn", "model", "value", "low", "high", "n")
CHANGES = (*LABELS, "model", "reference", "value", "low", "high", "prompts")

# Tables 3 and 9, per cent; shots and harness are not stated there.
PAPER = pd.DataFrame(
    {
        "ARC-Easy": [80.20, 76.49, 78.14, 74.84, 72.35],
        "ARC-Challenge": [57.40, 55.97, 57.51, 54.51, 53.13],
        "HellaSwag": [85.30, 85.17, 84.99, 84.27, 83.29],
        "SIQA": [50.70, 51.48, 53.02, 51.23, 49.28],
        "PIQA": [82.80, 82.59, 82.92, 81.94, 80.79],
        "GSM8K": [56.80, 50.72, 60.27, 59.29, 57.70],
        "MMLU": [68.90, 69.76, 69.34, 69.31, 69.37],
        "OBQA": [60.20, 57.80, 57.60, 57.60, 58.40],
        "NQ": [25.30, 34.35, 35.48, 33.07, 31.86],
    },
    index=["Llama 2", "baseline", "M1", "M2", "M3"],
)
# Tables 2 and 10: MT-Bench by GPT-4, 0 to 10, mean of both turns.
PAPER_TWO_TURN = pd.DataFrame(
    {
        "overall": [6.85, 6.78, 7.01, 7.25],
        "writing": [8.83, 9.10, 9.10, 9.58],
        "roleplay": [8.15, 7.65, 8.00, 8.73],
        "reasoning": [5.30, 4.35, 4.60, 4.80],
        "math": [3.00, 3.05, 3.30, 3.50],
        "coding": [3.50, 4.10, 4.25, 4.20],
        "extraction": [6.90, 7.20, 7.65, 7.80],
        "STEM": [9.18, 8.93, 9.40, 9.45],
        "humanities": [9.95, 9.85, 9.80, 9.95],
    },
    index=["baseline", "M1", "M2", "M3"],
)


def instruction_items(responses: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Each answer to a prompt with constraints, a row per metric: `ITEMS`, benchmark instructions.

    `responses` maps a model's name to its table. Metrics: prompts and constraints, strict and
    loose. `hits` of `trials` constraints are met; a prompt is one trial, and a hit if all are.
    """
    rows = []
    for model, table in responses.items():
        used = stats.require(table, ("prompt_id", "text", "constraints"), f"responses of {model}")
        for answer in used[["prompt_id", "text", "constraints"]].to_dict("records"):
            text, asked = str(answer["text"]), list(answer["constraints"])
            for how, check in (("strict", constraints.check), ("loose", constraints.check_loosely)):
                met = [check(text, constraint) for constraint in asked]
                counts = {"prompts": (int(all(met)), 1), "constraints": (sum(met), len(met))}
                rows += [
                    (model, INSTRUCTIONS, f"{of}, {how}", "share", answer["prompt_id"], *count)
                    for of, count in counts.items()
                    if asked
                ]
    return pd.DataFrame(rows, columns=list(ITEMS))


def task_items(measured: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What lm-eval measured of each item: `ITEMS`, a task is the benchmark, an item the prompt.

    `measured` maps a model's name to its table (`harness.measure`). A metric whose values all lie
    between 0 and 1, for all models, is a share, else points.
    """
    named = {"task": "benchmark", "item": "prompt_id", "value": "hits"}
    tables = [
        stats.require(table, (*named, "metric"), f"benchmarks of {model}").assign(model=model)
        for model, table in measured.items()
    ]
    if not sum(map(len, tables)):
        return pd.DataFrame(columns=list(ITEMS))
    rows = pd.concat(tables, ignore_index=True).rename(columns=named).assign(trials=1)
    inside = rows["hits"].between(0, 1).groupby([rows["benchmark"], rows["metric"]])
    rows["unit"] = inside.transform("all").map({True: "share", False: "points"})
    return rows[list(ITEMS)]


def two_turn_items(measured: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The referee's score of each answer to a two-turn question: `ITEMS`, a metric per turn.

    `measured` maps a model's name to its table (`two_turn.make_two_turn`).
    """
    rows = [
        (model, QUESTIONS, f"turn {row['turn']}", "points", row["prompt_id"], row["score"], 1)
        for model, table in measured.items()
        for row in _scored(model, table).dropna(subset="score").to_dict("records")
    ]
    return pd.DataFrame(rows, columns=list(ITEMS))


def two_turn_table(
    measured: Mapping[str, pd.DataFrame], resamples: int = stats.RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Mean score of each model by category ("all" first) and turn, with n: `TWO_TURN`.

    Fewer questions than `FEW` have no interval: resamples of two of them only say how far the two
    lie apart.
    """
    rows, options = [], {"resamples": resamples, "seed": seed}
    for model, table in measured.items():
        scored = _scored(model, table).assign(one=1)
        for category in ("all", *dict.fromkeys(scored["category"])):
            part = scored if category == "all" else scored[scored["category"] == category]
            for turn, answers in part.groupby("turn"):
                found = stats.bootstrap(answers, ("score", "one"), **options)
                if found["n"] < FEW:
                    found |= {"low": None, "high": None}
                rows.append({"category": category, "turn": turn, "model": model, **found})
    return _numbers(rows, TWO_TURN)


def _scored(model: str, table: pd.DataFrame) -> pd.DataFrame:
    columns = ("prompt_id", "category", "turn", "score")
    return stats.require(table, columns, f"two-turn answers of {model}")[list(columns)]


def scores(items: pd.DataFrame, resamples: int = stats.RESAMPLES, seed: int = 0) -> pd.DataFrame:
    """Each model on each metric: `SCORES`.

    `value` is hits over trials with its 95 % interval by prompt (`stats.rate` for shares, the
    bootstrap for points), `n` trials of `prompts` prompts.
    """
    rows, options = [], {"resamples": resamples, "seed": seed}
    for (*labels, model), part in items.groupby([*LABELS, "model"], sort=False):
        labels = dict(zip(LABELS, labels, strict=True))
        if labels["unit"] == "share":
            found = stats.rate(part, "hits", "trials", **options)
        else:
            found = stats.bootstrap(part, ("hits", "trials"), **options)
        counts = {"n": part["trials"].sum(), "prompts": found["n"]}
        rows.append({**labels, "model": model, **found, **counts})
    return _numbers(rows, SCORES)


def changes(
    items: pd.DataFrame,
    references: Sequence[tuple[str, str]],
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Change of each metric from a reference to a model, on the prompts that both have: `CHANGES`.

    `references` are pairs (model, reference). The interval is the paired bootstrap's by prompt.
    """
    rows = []
    for labels, part in items.groupby(LABELS, sort=False):
        labels = dict(zip(LABELS, labels, strict=True))
        of = dict(iter(part.groupby("model")))
        for model, reference in references:
            if model in of and reference in of:
                pair, share = (of[model], of[reference]), ("hits", "trials")
                found = stats.paired_bootstrap(*pair, share, resamples=resamples, seed=seed)
                found["prompts"] = found.pop("n")
                rows.append({**labels, "model": model, "reference": reference, **found})
    return _numbers(rows, CHANGES)


def references(models: Sequence[str], starts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Which changes to look at: against M0 if it is among `models`, the baseline, an arm's start.

    `starts` names the model that an arm's models started from.
    """
    pairs = [(m, "M0") for m in models if m != "M0" and "M0" in models]
    pairs += [(m, "baseline") for m in models if m not in ("M0", "baseline")]
    pairs += [(m, starts[m]) for m in models if m in starts]
    return list(dict.fromkeys(pairs))


def against(changes: pd.DataFrame) -> pd.DataFrame:
    """The changes against M0, and where a metric was not measured of M0 against the baseline."""
    with_m0 = changes["reference"].eq("M0").groupby([changes[c] for c in LABELS]).transform("any")
    return changes[changes["reference"] == with_m0.map({True: "M0", False: "baseline"})]


def _numbers(rows: list[dict], columns: Sequence[str]) -> pd.DataFrame:
    numbers = dict.fromkeys(("value", "low", "high"), float)
    return pd.DataFrame(rows, columns=list(columns)).astype(numbers)
