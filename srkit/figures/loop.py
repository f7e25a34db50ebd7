"""What happens inside an iteration: what each step keeps, and the training.

Drawn from a study's tables by:

    srkit figures runs/first
"""

from __future__ import annotations

import math
import textwrap

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from srkit import reward_accuracy as accuracy
from srkit.figures.style import (
    COLUMN,
    PAGE,
    TIE,
    Plate,
    caption,
    cycle,
    drawing,
    percent,
    short_labels,
)

FUNNEL = ("stage", "unit", "outcome", "count")


@drawing(FUNNEL, "the iteration has no rows")
def iteration_funnel(counts: pd.DataFrame) -> Figure:
    """What becomes of an iteration's drafts, candidates and prompts, and why the rest was dropped.

    `counts` is `funnel_counts`. Each bar is one step; the reasons are named below it.
    """
    stages = list(dict.fromkeys(counts["stage"]))
    figure = Plate(figsize=(PAGE, 0.75 * len(stages)))
    axes = figure.subplots()
    for y, stage in zip(range(0, -len(stages), -1), stages, strict=True):
        _funnel_bar(axes, y, counts[counts["stage"] == stage])
    axes.set_yticks(range(0, -len(stages), -1), stages)
    axes.set(xlim=(0, 1), ylim=(-len(stages) + 0.25, 0.3), xticks=[])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return figure


def funnel_counts(
    prompts: pd.DataFrame,
    candidates: pd.DataFrame,
    judgements: pd.DataFrame,
    pairs: pd.DataFrame,
) -> pd.DataFrame:
    """Counts for `iteration_funnel` from the four tables of an iteration, dropped rows included.

    Columns: stage, unit, outcome (kept, or why not), count. A candidate is scored if at least one
    judgement of it parsed. A step that has not run has no rows.
    """
    scored = set(accuracy.mean_scores(judgements).dropna(subset="score")["response_id"])
    reasons = {True: None, False: "no judgement parsed"}
    judged = [reasons[row in scored] for row in candidates.get("id", [])]
    steps = [
        ("drafts to prompts", "drafts", prompts.get("dropped", [])),
        ("candidates to scored", "candidates", judged),
        ("prompts to pairs", "prompts", pairs.get("dropped", [])),
    ]
    rows = []
    for stage, unit, dropped in steps:
        outcome = pd.Series(dropped, dtype=object)
        outcome = outcome.where(outcome.notna(), "kept").value_counts()
        outcome = {"kept": 0, **outcome.to_dict()} if len(outcome) else {}
        rows += [dict(zip(FUNNEL, (stage, unit, *item), strict=True)) for item in outcome.items()]
    return pd.DataFrame(rows, columns=list(FUNNEL))


@drawing(("step", "loss"), "no training step was logged", names=["model"], most=7, whole=True)
def training_curves(training: pd.DataFrame) -> Figure | None:
    """Loss, and for DPO reward accuracy and log-probabilities, over the steps of one or more runs.

    `training` is the trainer's log; a column `model`, if there is one, separates the runs.
    """
    runs = {"": training}
    if "model" in training.columns:
        runs = dict(list(training.groupby("model", sort=False)))
    known = {name for name in training.columns if training[name].notna().any()}
    if "loss" not in known:
        return None
    panels = [_loss_panel]
    panels += [_reward_panel] if "reward_accuracy" in known else []
    panels += [_log_prob_panel] if {"logp_chosen", "logp_rejected"} <= known else []
    labels = short_labels(list(runs))
    keys = math.ceil(len(runs) / 4) if len(runs) > 1 else 0  # lines of the legend
    figure = Plate(figsize=(max(COLUMN, PAGE / 3 * len(panels)), 2.4 + 0.17 * keys))
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for (name, run), colour in zip(runs.items(), cycle(len(runs)), strict=True):
            panel(axes, run.sort_values("step"), colour, labels[name])
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    if keys:
        lines = figure.axes[0].get_legend_handles_labels()
        figure.legend(*lines, loc="outside upper center", ncols=math.ceil(len(runs) / keys))
    counts = ", ".join(f"{labels[name]} n = {len(run)}".strip() for name, run in runs.items())
    first = "At the first step of DPO policy and reference are one: no pair is told apart."
    caption(figure, f"Logged steps: {counts}. {first if len(panels) > 1 else ''}".strip())
    return figure


def _funnel_bar(axes: Axes, y: float, rows: pd.DataFrame) -> None:
    total, start = rows["count"].sum(), 0.0
    greys = mpl.colormaps["Greys"](np.linspace(0.25, 0.5, max(len(rows) - 1, 1)))
    for count, colour in zip(rows["count"], [TIE, *greys], strict=False):
        axes.barh(
            y, count / total, left=start, height=0.44, color=colour, edgecolor="white", lw=0.5
        )
        start += count / total
    kept = int(rows.loc[rows["outcome"] == "kept", "count"].sum())
    unit = rows["unit"].iloc[0]
    axes.text(
        0.01, y, f"{kept:,} of {total:,} {unit} ({percent(kept / total)})", va="center", fontsize=7
    )
    lost = rows[rows["outcome"] != "kept"].sort_values("count", ascending=False)
    # a hard space keeps a number with its reason when the line is broken
    reasons = [
        f"{n:,} {why}".replace(" ", "\u00a0")
        for n, why in zip(lost["count"], lost["outcome"], strict=True)
    ]
    text = f"left out: {'; '.join(reasons)}" if reasons else "none left out"
    text = textwrap.fill(text, 108, max_lines=2)
    axes.text(0.0, y - 0.28, text, va="top", fontsize=7, color="#555555")


def _loss_panel(axes: Axes, run: pd.DataFrame, colour: str, label: str) -> None:
    axes.plot(run["step"], run["loss"], color=colour, label=label)
    axes.set_title("Loss")
    dpo = "reward_accuracy" in run and run["reward_accuracy"].notna().any()
    if dpo and not any(line.get_label() == "_ln2" for line in axes.lines):
        axes.axhline(math.log(2), color="black", ls=":", lw=1, label="_ln2")
        note = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate("ln 2", (1, math.log(2)), (0, 2), ha="right", va="bottom", fontsize=7, **note)


def _reward_panel(axes: Axes, run: pd.DataFrame, colour: str, label: str) -> None:
    axes.plot(run["step"], run["reward_accuracy"], color=colour, label=label)
    axes.axhline(0.5, color="black", ls=":", lw=1)
    axes.set(title="Reward accuracy on the batch", ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))


def _log_prob_panel(axes: Axes, run: pd.DataFrame, colour: str, label: str) -> None:
    axes.plot(run["step"], run["logp_chosen"], color=colour)
    axes.plot(run["step"], run["logp_rejected"], color=colour, ls="--")
    axes.set_title("Log-probability (dashed: rejected)")
