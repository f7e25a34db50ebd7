"""Refining against training: quality beside tokens, what training adds, and round by round.

Drawn from a study's tables by:

    srkit figures runs/first
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from srkit import refine
from srkit.ablations import foremost
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
    left_out,
    short_labels,
    span,
)

TITLES = {
    "oracle's score": "Oracle's score (no judge)",
    "constraints stated": "Stated constraints met (no judge)",
}
WIN = "win rate"
ANSWERED = np.logspace(0, 6, 25)  # prompts
NOTHING = "no model refined its answers (eval.refined_of)"
BY_ROUND = ("oracle's score", "self-score", "length", "tokens")


@drawing(refine.ANSWERS, NOTHING)
def refine_or_train(table: pd.DataFrame, matches: pd.DataFrame, training: pd.DataFrame) -> Figure:
    """Quality beside tokens per prompt for each way to a better answer, and training's share.

    `table` is `refine.ways_table`, `matches` `refine.matches_table`, `training` has `TRAINING`.
    One model that refines is drawn, the first; the csv has all.
    """
    of = table["of"].iloc[0]
    table, matches = table[table["of"] == of], matches[matches["of"] == of]
    ways = list(dict.fromkeys(table["way"]))
    looks = {
        way: {"colour": COLOURS[i], "marker": MARKERS[i], "label": _name(way, of, table)}
        for i, way in enumerate(foremost(ways, MOST))
    }
    figure = Plate(figsize=(PAGE, 4.6))
    panels = figure.subplots(2, 3)
    levels = table[table["against"] == ""].set_index(["measure", "way"])
    for axes, measure in zip(panels.flat, refine.QUALITY, strict=False):
        rows = levels.loc[measure]
        _beside_tokens(axes, rows, levels.loc["tokens"], looks)
        title = TITLES.get(measure, f"Self-score by {of}")
        axes.set_title(f"{title}\nn = {span(rows['n'].min(), rows['n'].max())}")
        if measure != "self-score":
            axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    wins = _wins(matches, of)
    _beside_tokens(panels[1, 0], wins, levels.loc["tokens"], looks)
    panels[1, 0].axhline(0.5, color=PAPER_GREY, ls="--", lw=0.8)
    referee, n = matches["referee"].iloc[0], wins["n"].max()
    panels[1, 0].set(title=f"Win rate against one answer\nreferee {referee}, n = {n:.0f}")
    panels[1, 0].yaxis.set_major_formatter(PercentFormatter(1, 0))
    _amortised(panels[1, 1], table, training, looks)
    panels[1, 2].axis("off")
    panels[1, 2].legend(*panels[0, 0].get_legend_handles_labels(), loc="center left")
    words = f"{of} answers; tokens are read and written. 95 % intervals by prompt. "
    words += "The best of N is chosen by its self-score, which so rises by construction. "
    drawn = table[table["way"].isin(looks)]
    words += f"{_crossing(drawn, training)} {left_out(len(looks), len(ways))}"
    caption(figure, words + _others(table, of))
    return figure


@drawing(refine.ROUNDS, NOTHING, names=["of"], most=MOST)
def refine_rounds(table: pd.DataFrame, feedback: pd.DataFrame) -> Figure:
    """Answers after each round of refining, and what became of the feedback.

    `table` is `refine.rounds_table`, `feedback` `refine.feedback_table`; a line per model.
    """
    models = list(dict.fromkeys(table["of"]))
    labels = short_labels(models)
    figure = Plate(figsize=(PAGE, 3.9))
    grid = [[*BY_ROUND[:2], "shares"], [*BY_ROUND[2:], "shares"]]
    panels = figure.subplot_mosaic(grid, width_ratios=(1, 1, 1.1))
    for measure in BY_ROUND:
        rows = table[table["measure"] == measure]
        for i, model in enumerate(models):
            mine = rows[rows["of"] == model]
            place = mine["round"].to_numpy() + 0.08 * (i - (len(models) - 1) / 2)
            panels[measure].plot(place, mine["value"], color=COLOURS[i], lw=0.8, alpha=0.6)
            look = {"label": labels[model], "marker": MARKERS[i]}
            dots(panels[measure], place, mine, COLOURS[i], **look)
        panels[measure].set(title=f"{measure[0].upper()}{measure[1:]}", xlabel="refinements")
        panels[measure].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels["oracle's score"].yaxis.set_major_formatter(PercentFormatter(1, 0))
    panels["length"].set_ylabel("characters")
    panels["tokens"].set_ylabel("read and written")
    panels["self-score"].set_ylabel("points")
    _feedback(panels["shares"], feedback, models)
    if len(models) > 1:
        panels["oracle's score"].legend()
    reached = table[table["measure"] == "tokens"]
    counts = "; ".join(
        f"{labels[of]} {'/'.join(map(str, rows['reached']))} of {rows['n'].max():.0f}"
        for of, rows in reached.groupby("of", sort=False)
    )
    words = f"Prompts that wrote an answer in round 0, 1, ...: {counts}; the others keep theirs. "
    caption(figure, words + "95 % intervals by prompt.")
    return figure


def _name(way: str, of: str, table: pd.DataFrame) -> str:
    """A way in the legend; of the best of N, how many they were on average."""
    if way != refine.BEST:
        return f"{way} of {of}" if way == refine.ONE else way
    drafts = table[(table["measure"] == "drafts") & (table["against"] == "")]["value"]
    return f"{way} (mean N = {drafts.iloc[0]:.1f})"


def _beside_tokens(axes: Axes, rows: pd.DataFrame, tokens: pd.DataFrame, looks: dict) -> None:
    """Values over tokens per prompt, with both intervals."""
    for way, look in looks.items():
        if way not in rows.index:
            continue
        one, colour = rows.loc[[way]], look["colour"]
        x = tokens.loc[way, ["value", "low", "high"]].to_numpy(float)
        dots(axes, x[:1], one, colour, look["label"], marker=look["marker"])
        axes.plot(x[1:], [one["value"].iloc[0]] * 2, color=colour, lw=1)
    axes.set(xscale="log", xlabel="tokens per prompt")
    _plain_log(axes.xaxis)


def _plain_log(axis: Axis) -> None:
    """Labels such as 300, 1k, 3k: powers would need formulas, which figures do not parse."""
    axis.set_major_locator(LogLocator(10, (1, 3)))
    axis.set_major_formatter(EngFormatter(sep=""))
    axis.set_minor_formatter(NullFormatter())


def _wins(matches: pd.DataFrame, of: str) -> pd.DataFrame:
    """Win rates against the one answer, by way."""
    rows = matches[matches["right"] == of]
    names = {f"{of} {way}": way for way in (refine.REFINED, refine.BEST)}
    ends = {"win_rate": "value", "win_rate_low": "low", "win_rate_high": "high"}
    found = rows[["left", *ends, "n"]].rename(columns=ends)
    return found.assign(way=found["left"].replace(names)).set_index("way")


def _amortised(axes: Axes, table: pd.DataFrame, training: pd.DataFrame, looks: dict) -> None:
    rows = refine.amortised(table, training, ANSWERED)
    for way, look in looks.items():
        mine = rows[rows["way"] == way]
        style = {"color": look["colour"], "marker": look["marker"], "markevery": 8, "ms": 3.5}
        axes.plot(mine["prompts"], mine["tokens"], **style)
    axes.set(xscale="log", yscale="log", xlabel="prompts answered")
    axes.set_title("Tokens per prompt,\ntraining included")
    for axis in (axes.xaxis, axes.yaxis):
        _plain_log(axis)
    axes.set_xticks(10.0 ** np.arange(0, 7, 2))


def _crossing(table: pd.DataFrame, training: pd.DataFrame) -> str:
    """From how many prompts on a trained model has taken fewer tokens than refining."""
    found = refine.breaks_even(table, training)
    told = [f"{row.way} from prompt {math.ceil(row.prompts):,} on" for row in found.itertuples()]
    if not told:
        return ""
    return (
        f"Fewer tokens than refining, training included: {', '.join(told)} (a token trained on "
        "costs about three that are read)."
    )


def _others(table: pd.DataFrame, of: str) -> str:
    more = table["of"].nunique() - 1
    return f" {more} more models that refine are in the csv beside {of}." if more else ""


def _feedback(axes: Axes, feedback: pd.DataFrame, models: list[str]) -> None:
    """What became of it: a row each, with n cases."""
    what = list(dict.fromkeys(feedback["what"]))[::-1]
    place = np.arange(len(what))
    for i, model in enumerate(models):
        mine = feedback[feedback["of"] == model].set_index("what").reindex(what)
        shift = 0.2 * ((len(models) - 1) / 2 - i)
        dots(axes, place + shift, mine, COLOURS[i], horizontal=True, marker=MARKERS[i])
    cases = feedback.drop_duplicates("unit").set_index("unit")["cases"]
    units = feedback.drop_duplicates("what").set_index("what")["unit"]
    labels = [f"{name}\nof {cases[units[name]]} {units[name]}" for name in what]
    axes.set_yticks(place, labels, fontsize=6)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.5, len(what) - 0.5))
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.set_title("What became of the feedback")
    axes.grid(False, axis="y")
