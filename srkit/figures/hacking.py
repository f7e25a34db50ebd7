"""Reward hacking: answers in other dresses, blind spots, and scores over the distance gone.

Drawn from a study's tables by:

    srkit figures runs/first
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from srkit import blind_spots as spots
from srkit import overoptimisation, probes
from srkit.figures.controls import ARM_STYLE
from srkit.figures.style import (
    COLOURS,
    FAINT,
    MARKERS,
    MOST,
    PAGE,
    PAPER_GREY,
    Plate,
    caption,
    dots,
    drawing,
    short_labels,
    span,
)

KNOWN = {
    "right": "answers right",
    "blind": "blind spots",
    "unseen": "wrong answers not seen",
    "prefers": "prefers the right one",
}
FATES = {"repaired": COLOURS[2], "seen": COLOURS[5], "kept": FAINT, "amplified": COLOURS[1]}


@drawing(probes.TABLE, "no model's judging was probed (eval.probes_of)", names=["model"], most=MOST)
def judge_probes(table: pd.DataFrame) -> Figure | None:
    """What each dress does to a bad answer: its score, and how often it then beats the best one.

    `table` is `probes.probe_table`. A row per kind, a point per model; changes are counted in the
    judge's own standard deviations.
    """
    kinds = [kind for kind in (probes.AS_IT_IS, *probes.KINDS) if kind in set(table["kind"])]
    models = list(dict.fromkeys(table["model"]))
    changed = table[table["measure"] == "change"]
    scaled = changed.assign(
        **{end: changed[end] / changed["spread"].where(changed["spread"] > 0) for end in _ENDS}
    )
    if scaled["value"].isna().all():
        return None
    figure = Plate(figsize=(PAGE, 0.26 * len(kinds) + 1.7))
    left, right = figure.subplots(1, 2, sharey=True)
    handles = _by_model(left, scaled, "kind", kinds, models)
    _by_model(right, table[table["measure"] == "beats"], "kind", kinds, models)
    left.axvline(0, color="black", ls=":", lw=1)
    control = scaled[(scaled["kind"] == probes.CONTROL) & (scaled["model"] == models[0])]
    if len(control) and pd.notna(control["low"].iloc[0]):
        left.axvspan(control["low"].iloc[0], control["high"].iloc[0], color=FAINT, alpha=0.6, lw=0)
    left.set_title("Change, in the judge's spread")
    right.set_title("Above the best-ranked answer")
    right.set_xlim(-0.02, 1.02)
    right.xaxis.set_major_formatter(PercentFormatter(1, 0))
    figure.legend(handles=handles, loc="outside right upper")
    caption(
        figure,
        "The worst-ranked held-out answer to a prompt, in other dresses that add nothing to it. "
        f"n = {span(table['n'].min(), table['n'].max())} prompts. Bars: 95 % interval by prompt. "
        "Spread: standard deviation of a judge's scores of all held-out answers. "
        f"Grey: the harmless sentence's ({short_labels(models)[models[0]]}).",
    )
    return figure


_ENDS = ("value", "low", "high")


def _by_model(
    axes: Axes, rows: pd.DataFrame, column: str, names: list[str], models: list[str]
) -> list[Line2D]:
    """A row of points for each of `names`, from the top, one point per model."""
    place, labels, handles = np.arange(len(names)), short_labels(models), []
    for i, model in enumerate(models):
        mine = rows[rows["model"] == model].set_index(column).reindex(names)
        shift = 0.6 * ((i + 0.5) / len(models) - 0.5)
        mark = {"marker": MARKERS[i], "horizontal": True}
        dots(axes, place + shift, mine, COLOURS[i], **mark)
        handles.append(
            Line2D([], [], color=COLOURS[i], marker=MARKERS[i], ls="", label=labels[model])
        )
    axes.set_yticks(place, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    return handles


@drawing(
    spots.TABLE,
    "no model was asked items with a key (eval.probes_of, eval.blind_spot_items)",
    names=["model"],
    most=MOST,
)
def blind_spots(table: pd.DataFrame, moves: pd.DataFrame) -> Figure | None:
    """What each model knows and sees, and what became of the blind spots of where it started.

    `table` is `blind_spots.measures`, `moves` is `blind_spots.transitions`.
    """
    rows = table[(table["kind"] == "all") & (table["against"] == "")]
    models = list(dict.fromkeys(rows["model"]))
    if rows.empty:
        return None
    figure = Plate(figsize=(PAGE, 3.4))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    named = rows.assign(measure=rows["measure"].map(KNOWN))
    handles = _by_model(left, named, "measure", list(KNOWN.values()), models)
    left.set_xlim(-0.02, 1.02)
    left.xaxis.set_major_formatter(PercentFormatter(1, 0))
    left.set_title("Items with a key")
    left.axvline(0.5, color="black", ls=":", lw=1)
    start = _fates(right, moves[moves["model"].isin(models)] if "model" in moves else moves)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "ncols": 2}
    left.legend(handles=handles, **below)
    shares = rows[rows["unit"] == "share"]
    caption(
        figure,
        f"n = {span(shares['n'].min(), shares['n'].max())} items (not seen: of those answered "
        "wrongly). Blind spot: answered wrongly, and that answer scored at least as high as the "
        "right one. Bars: 95 % interval by item. "
        + (f"Right: the blind spots of {start}, with counts." if start else ""),
    )
    return figure


def _fates(axes: Axes, moves: pd.DataFrame) -> str:
    """Bars of what became of the start's blind spots; returns the starts' names."""
    told = spots.fates(moves) if {"after", "model"} <= set(moves.columns) else moves
    told = told[told["n"] > 0] if len(told) else told
    if told.empty:
        axes.axis("off")
        axes.text(0.5, 0.5, "no blind spot\nto follow", ha="center", va="center", color=PAPER_GREY)
        return ""
    models = list(dict.fromkeys(told["model"]))
    labels = short_labels(models)
    for place, model in enumerate(models):
        left, mine = 0.0, told[told["model"] == model].set_index("after")
        for fate, colour in FATES.items():
            share, count = mine.loc[fate, ["value", "count"]]
            axes.barh(place, share, 0.6, left=left, color=colour, ec="white")
            if count:
                axes.text(left + share / 2, place, f"{count:.0f}", ha="center", va="center")
            left += share
    axes.set_yticks(range(len(models)), [labels[model] for model in models])
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.grid(False)
    starts = list(dict.fromkeys(told["start"]))
    axes.set_title(f"What became of blind spots of {', '.join(starts)}")
    handles = [Patch(fc=colour, label=fate) for fate, colour in FATES.items()]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    return ", ".join(starts)


@drawing(
    overoptimisation.TABLE,
    "no distance (KL) from a start was measured",
    names=["model"],
    most=21,
    whole=True,
)
def overoptimisation_curve(table: pd.DataFrame) -> Figure | None:
    """Own and independent scores of every arm's models over sqrt(KL) to the start.

    `table` is `overoptimisation.curve`; what has no distance is left out.
    """
    table = table.dropna(subset=["distance", "value"])
    shown = [name for name in overoptimisation.MEASURES if name in set(table["measure"])]
    arms = list(dict.fromkeys(table.loc[table["t"] > 1, "arm"]))  # the start is there for every arm
    if not arms:
        return None
    figure = Plate(figsize=(PAGE, 3.9))
    panels = figure.subplots(2, 3, sharex=True)
    for axes, measure in zip(panels.flat, shown, strict=False):
        _curve_panel(axes, table[table["measure"] == measure], arms, measure)
    for axes in panels.flat[len(shown) :]:
        axes.axis("off")
    for axes in panels.flat[max(len(shown) - 3, 0) : len(shown)]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("sqrt(KL) to the start")
    handles = [Line2D([], [], ms=4.5, label=arm, **_line(arm)) for arm in arms]
    panels[-1, -1].legend(handles=handles, loc="center")  # there are fewer measures than panels
    caption(
        figure,
        f"n = {span(table['n'].min(), table['n'].max())} prompts. Numbers: t of M_t. Bars: 95 % "
        "interval by prompt; sideways that of KL (k3). Own score and the oracle's of the same "
        "candidates are of new prompts each time; the last model has no candidates.",
    )
    return figure


def _line(arm: str) -> dict[str, object]:
    style = ARM_STYLE[arm]
    return {"color": style["colour"], "marker": style["marker"], "lw": 0.9}


def _curve_panel(axes: Axes, rows: pd.DataFrame, arms: list[str], measure: str) -> None:
    for arm in arms:
        mine = rows[rows["arm"] == arm].sort_values("t")
        if mine.empty:
            continue
        line = _line(arm)
        reach = {"xerr": _reach(mine, "distance"), "yerr": _reach(mine, "value")}
        axes.errorbar(mine["distance"], mine["value"], **line, **reach, elinewidth=0.7)
        for row in mine.itertuples():
            place = {"xytext": (3, 3), "textcoords": "offset points"}
            axes.annotate(f"{row.t:.0f}", (row.distance, row.value), fontsize=6, **place)
    if (rows["unit"] == "share").all():
        axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_title(measure.replace(", ", ",\n"))


def _reach(rows: pd.DataFrame, name: str) -> np.ndarray:
    """Both lengths of error bars; nothing where there is no interval."""
    low, high = ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
    value = rows[name].to_numpy(float)
    reach = np.array([value - rows[low].to_numpy(float), rows[high].to_numpy(float) - value])
    return np.where(np.isfinite(reach), np.maximum(reach, 0), 0)
