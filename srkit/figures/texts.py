"""Where the training texts lie, how new the self-made ones are, and what they are about.

Drawn from a study's tables by:

    srkit figures runs/first
"""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from srkit import distribution
from srkit.escape import visible
from srkit.figures.style import (
    COLOURS,
    MARKERS,
    MOST,
    PAGE,
    PAPER_GREY,
    Plate,
    caption,
    dots,
    drawing,
    percent,
    short_labels,
    turned,
)

KINDS = {"instructions": "Instructions", "responses": "Responses"}


@drawing((*distribution.MAP, "kind"), "there is no text to place")
def data_map(table: pd.DataFrame) -> Figure | None:
    """t-SNE of IFT, EFT and self-made data, instructions and responses (paper Fig. 6).

    `table` is the table `map` of `metrics.make_data_distribution`.
    """
    if not table[["x", "y"]].to_numpy().any():
        return None
    names = list(dict.fromkeys(table["set"]))
    labels = short_labels(names)
    figure = Plate(figsize=(PAGE, 3.9))
    for axes, kind in zip(figure.subplots(1, len(KINDS)), KINDS, strict=True):
        part = table[table["kind"] == kind]
        for name, colour, marker in zip(names, COLOURS * 3, MARKERS * 3, strict=False):
            rows = part[part["set"] == name]
            look = {"s": 9, "color": colour, "marker": marker, "alpha": 0.6, "lw": 0}
            n = f"{len(rows):,}" + (f" of {rows['texts'].max():,}" if len(rows) else "")
            axes.scatter(rows["x"], rows["y"], label=f"{labels[name]}, n = {n}", **look)
        axes.set(title=KINDS[kind], xticks=[], yticks=[], xlabel="dimension 1")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, markerscale=1.5)
    figure.axes[0].set_ylabel("dimension 2")
    words = "t-SNE: what lies near what; distances between groups mean nothing."
    whose = visible(str(table["vectors"].iloc[0])).rpartition("/")[2][-40:]
    caption(figure, f"{whose}, {words} EFT as trained on: judge prompts and judgements.")
    return figure


@drawing(distribution.NOVELTY, "no prompt was made", names=["name"])
def prompt_novelty(table: pd.DataFrame) -> Figure | None:
    """How near prompts come to the seed, to earlier iterations and to the test prompts.

    `table` is `distribution.novelty`.
    """
    if table["value"].isna().all():
        return None
    kinds = list(dict.fromkeys(table["quantity"]))
    asked = table[["name", "against"]].drop_duplicates()
    labels = short_labels(list(table["name"]))
    figure = Plate(figsize=(PAGE, 0.26 * len(asked) + 1.0))
    panels = figure.subplots(1, len(kinds), sharey=True)
    references = list(dict.fromkeys(asked["against"]))
    for axes, kind in zip(panels, kinds, strict=True):
        rows = table[table["quantity"] == kind].reset_index(drop=True)
        for against, colour, marker in zip(references, COLOURS, MARKERS, strict=False):
            part = rows[rows["against"] == against]
            place = -part.index.to_numpy(float)
            dots(axes, place, part, colour, horizontal=True, marker=marker)
        axes.set_title(f"{kind[0].upper()}{kind[1:]}")
        axes.set_xlim(left=-0.03 * axes.get_xlim()[1])
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
    panels[-1].xaxis.set_major_formatter(PercentFormatter(1, 0))
    names = [
        f"{labels[r.name]}, n = {r.n:,}, to {r.against} ({r.references:,})"
        for r in rows.itertuples()
    ]
    panels[0].set_yticks(-np.arange(len(rows)), names)
    panels[0].set_ylim(-len(rows) + 0.5, 0.5)
    limit = f"Near-duplicates: ROUGE-L above {distribution.NEAR}."
    caption(figure, f"{limit} Bars: 95 % interval by prompt.")
    return figure


@drawing(distribution.COUNTS, "there is no prompt to sort", names=["name"], most=MOST)
def prompt_topics(table: pd.DataFrame, drift: pd.DataFrame | None = None) -> Figure:
    """Share of each set's prompts in each topic; `drift` adds how far apart the sets are.

    `table` is `distribution.topic_counts`, `drift` is `distribution.topic_drift`.
    """
    names, topics = (list(dict.fromkeys(table[c])) for c in ("name", "topic"))
    shares = table.pivot(index="topic", columns="name", values="share").loc[topics, names]
    counts = table.pivot(index="topic", columns="name", values="count").loc[topics, names]
    drift = pd.DataFrame(columns=["name"]) if drift is None else drift.dropna(subset="distance")
    if len(drift):
        drift = drift[drift[["name", "against"]].isin(names).all(axis=1)]
    height = 0.26 * len(topics) + 1.4
    if not len(drift):
        figure = Plate(figsize=(PAGE, height))
        panels = [figure.subplots()]
    elif turned(names):  # long names need the width
        figure = Plate(figsize=(PAGE, height + 0.2 * len(drift) + 1.1))
        panels = figure.subplots(2, 1, height_ratios=[height, 0.2 * len(drift) + 1.1])
    else:
        figure = Plate(figsize=(PAGE, height))
        panels = figure.subplots(1, 2, width_ratios=[3, 2])
    axes, labels = panels[0], short_labels(names)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=max(shares.to_numpy().max(), 0.01) * 1.8)
    for (y, x), count in np.ndenumerate(counts.to_numpy()):
        text = f"{count:.0f} ({percent(shares.iloc[y, x])})"
        axes.text(x, y, text, ha="center", va="center", fontsize=6)
    sizes = table.drop_duplicates("name").set_index("name")["n"]
    breaks = {n: labels[n].replace(" ", "\n") for n in names}
    axes.set_xticks(range(len(names)), [f"{breaks[n]}\nn = {sizes[n]:,}" for n in names])
    words = table.drop_duplicates("topic").set_index("topic")["terms"]
    axes.set_yticks(range(len(topics)), [textwrap.shorten(words[t], 34) for t in topics])
    axes.set(title="Prompts by topic, named by their heaviest words", aspect="auto")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if len(drift):
        _drift_panel(panels[1], drift, labels)
    return figure


def _drift_panel(axes: Axes, drift: pd.DataFrame, labels: dict[str, str]) -> None:
    place = -np.arange(len(drift))
    axes.plot(drift["distance"], place, "o", color=COLOURS[0], label="distance of the topics")
    chance = {"color": PAPER_GREY, "alpha": 0.5, "height": 0.3, "label": "by chance, up to 95 %"}
    axes.barh(place, drift["by_chance_high"], **chance)
    names = [f"{labels[row.name]} to {labels[row.against]}" for row in drift.itertuples()]
    axes.set_yticks(place, names)
    axes.set(xlim=(0, 1), ylim=(-len(drift) + 0.4, 0.6), title="Drift (Jensen-Shannon distance)")
    axes.grid(False, axis="y")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14))
