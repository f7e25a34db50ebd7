"""Length of answers, and of chosen and rejected responses.

Drawn from a study's tables by:

    srkit figures runs/first
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from srkit import length
from srkit.figures.style import (
    COLOURS,
    COLUMN,
    PAGE,
    PAPER_GREY,
    Plate,
    caption,
    dots,
    drawing,
    name_axis,
    percent,
    short_labels,
    span,
    turned,
)

TITLES = {
    "sentences": "Sentences",
    "list_items": "List items",
    "headings": "Headings",
    "repetition": "Repeated 4-grams",
}


@drawing(length.SUMMARY, "no response was measured", names=["model"])
def length_trend(table: pd.DataFrame, unit: str = "characters") -> Figure | None:
    """Mean length of each model's answers, and the paper's in a panel of their own.

    `table` is `length.length_table`.
    """
    rows = table[table["unit"] == unit].dropna(subset="value")
    if rows.empty:
        return None
    figure = Plate(figsize=(PAGE, 3.2 if turned(rows["model"]) else 2.6))
    ours, paper = figure.subplots(1, 2, width_ratios=[3, 2])
    dots(ours, np.arange(len(rows)), rows, COLOURS[0])
    cut = [f"n = {r.n:,}\n{percent(r.truncated)} cut" for r in rows.itertuples()]
    name_axis(ours, rows["model"], cut)
    ours.set(title="This study: answers to the test prompts", ylabel=f"mean {unit}")
    lengths = list(length.PAPER_CHARACTERS.values())
    paper.plot(lengths, "D", color=PAPER_GREY, mfc="white")
    for x, value in enumerate(lengths):
        paper.annotate(
            f"{value:,}", (x, value), (0, 6), textcoords="offset points", ha="center", fontsize=7
        )
    name_axis(paper, list(length.PAPER_CHARACTERS), ["n = 805"] * len(lengths))
    paper.set(title="The paper: 70B, AlpacaEval", ylabel="mean characters", ylim=(0, 3000))
    ours.set_ylim(bottom=0)
    caption(figure, "Bars: 95 % interval by prompt. cut: share stopped at the token limit.")
    return figure


@drawing(length.LENGTHS, "no response was measured", names=["model"])
def length_distributions(lengths: pd.DataFrame, unit: str = "characters") -> Figure:
    """Histogram of response lengths, a row per model on one scale; the line is the median.

    `lengths` is `length.lengths`.
    """
    models = list(dict.fromkeys(lengths["model"]))
    figure = Plate(figsize=(COLUMN, 0.68 * len(models) + 0.6))
    bins = np.histogram_bin_edges(lengths[unit].dropna(), bins=30)
    panels = figure.subplots(len(models), 1, sharex=True, squeeze=False)[:, 0]
    labels = short_labels(models)
    for axes, model in zip(panels, models, strict=True):
        rows = lengths[lengths["model"] == model]
        axes.hist(rows[unit], bins=bins, color=COLOURS[0], alpha=0.75)
        axes.axvline(rows[unit].median(), color=COLOURS[1])
        axes.set_title(labels[model], loc="left", fontsize=7, pad=2, weight="bold")
        cut = percent(rows["truncated"].eq(True).mean())
        note = f"n = {len(rows):,}, median {rows[unit].median():,.0f}, {cut} cut"
        axes.set_title(note, loc="right", fontsize=7, pad=2)
        axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    panels[-1].set_xlabel(unit)
    panels[-1].set_xlim(left=0)
    figure.supylabel("responses", fontsize=7)
    caption(figure, "Line: median. cut: share stopped at the token limit.")
    return figure


@drawing(length.SUMMARY, "no response was measured", names=["model"])
def answer_form(table: pd.DataFrame) -> Figure | None:
    """Sentences, list items, headings and repetition of each model's answers, a panel each.

    `table` is `length.length_table`.
    """
    rows = table[table["unit"].isin(length.FORMS)].dropna(subset="value")
    if rows.empty:
        return None
    models = list(dict.fromkeys(rows["model"]))
    rows_of_panels = 2 if turned(models) else 1  # long names need the width
    figure = Plate(figsize=(PAGE, 2.4 * rows_of_panels))
    panels = figure.subplots(rows_of_panels, len(length.FORMS) // rows_of_panels).ravel()
    for axes, unit in zip(panels, length.FORMS, strict=True):
        part = rows[rows["unit"] == unit]
        dots(axes, np.arange(len(part)), part, COLOURS[0])
        name_axis(axes, part["model"])
        axes.set(title=TITLES[unit], ylim=(0, max(axes.get_ylim()[1], 0.1)))
    panels[-1].yaxis.set_major_formatter(PercentFormatter(1, 0))
    figure.supylabel("mean per answer", fontsize=7)
    n = span(rows["n"].min(), rows["n"].max())
    caption(figure, f"n = {n} answers per model. Bars: 95 % interval by prompt.")
    return figure


@drawing(length.CONTRAST, "no pair was left", names=["name"])
def chosen_rejected_lengths(table: pd.DataFrame, unit: str = "characters") -> Figure | None:
    """Mean length of chosen and rejected responses, and of their difference, per iteration.

    `table` is `length.chosen_against_rejected`.
    """
    rows = table[table["unit"] == unit]
    if rows["value"].isna().all():
        return None
    names = list(dict.fromkeys(rows["name"]))
    figure = Plate(figsize=(PAGE, 3.1 if turned(names) else 2.5))
    means, gap = figure.subplots(1, 2)
    place = np.arange(len(names))
    for side, shift, colour in (("chosen", -0.1, COLOURS[0]), ("rejected", 0.1, COLOURS[1])):
        dots(means, place + shift, rows[rows["quantity"] == side], colour, label=side)
    difference = rows[rows["quantity"] == "difference"]
    dots(gap, place, difference, COLOURS[6])
    gap.axhline(0, color=PAPER_GREY, ls="--")
    counts = [f"n = {n:,} pairs" if n else "no pair left" for n in difference["n"]]
    for axes in (means, gap):
        name_axis(axes, names, counts)
    means.set(title="Length of the pairs", ylabel=f"mean {unit}")
    means.set_ylim(bottom=0)
    means.legend(loc="lower center", ncols=2)
    gap.set(title="Chosen less rejected", ylabel=f"difference in {unit}")
    caption(figure, "Bars: 95 % interval by prompt.")
    return figure
