"""The figures: tidy frame in, `Figure` out; `save` writes it as PNG, SVG and PDF beside its csv.

One function per figure of the paper or of the study, in one style: Okabe-Ito colours (readable with
any colour vision), type that stays legible at column width, 95 % intervals, n on every panel.

Surprising decisions: the paper's numbers are drawn grey and apart, never mixed with ours; an empty
or unusable frame gives a figure that says why, so that a study with nothing to show still has its
report; figures are made without pyplot, so none is kept in memory, and a notebook shows one only as
a cell's last value. The same frame gives the same bytes in every run: no dates, no versions, fixed
ids, matplotlib's defaults instead of the user's.

    python -c "from srkit.figures import empty; empty('no pair was left').savefig('none.png')"
"""

from __future__ import annotations

import functools
import io
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from srkit import constraints, headtohead, health, length
from srkit import reward_accuracy as accuracy
from srkit.config import ARMS

COLUMN, PAGE = 3.4, 7.0  # widths in inches: one column, the whole text
PAPER_GREY, FAINT = "#8C8C8C", "#D9D9D9"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# an arm looks the same whatever stands beside it
ARM_STYLE = {
    arm: {"colour": COLOURS[colour], "marker": marker}
    for arm, colour, marker in zip(ARMS, (0, 5, 3, 4, 2, 1, 6), "osD^vPX", strict=True)
}
WIN, TIE, LOSS = "#009E73", "#A6D8F0", "#D55E00"

STYLE = {
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,
    "savefig.dpi": 200,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ECECEC",
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "svg.hashsalt": "srkit",
}
# without dates and versions the bytes depend on the frame alone
METADATA = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}

TITLES = {
    "pairwise_accuracy": "Pairwise accuracy, ties left out",
    "pairwise_accuracy_ties_half": "Pairwise accuracy, ties half",
    "pairwise_accuracy_ties_wrong": "Pairwise accuracy, ties wrong",
    "tie_rate": "Tied pairs",
    "parse_rate": "Judgements that parsed",
    "five_best": "5-best: scored 5, ranked best",
    "five_best_rounded": "5-best: scored 4.5 and up, ranked best",
    "exact_match": "Exact match of the order",
    "spearman": "Spearman within prompts",
    "kendall": "Kendall's tau-b within prompts",
    "spearman_pooled": "Spearman, pooled",
    "kendall_pooled": "Kendall's tau-b, pooled",
}
FUNNEL = ("stage", "unit", "outcome", "count")


class Plate(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        with _style(), io.BytesIO() as buffer:
            self.savefig(buffer, format="png", dpi=self.dpi, metadata=METADATA["png"])
            return buffer.getvalue()


def save(figure: Figure, frame: pd.DataFrame, stem: Path) -> list[Path]:
    """Write `stem`.png, .svg, .pdf and the tidy frame as `stem`.csv; returns the four paths.

    Floats in the csv have six significant digits, so that it is the same on every machine.
    """
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in (*METADATA, "csv")]
    with _style():
        for path, metadata in zip(paths, METADATA.values(), strict=False):
            figure.savefig(path, metadata=metadata)
    frame.to_csv(paths[-1], index=False, float_format="%.6g", lineterminator="\n")
    return paths


def empty(reason: str) -> Figure:
    """A figure that has nothing to show and says why."""
    with _style():
        figure = Plate(figsize=(COLUMN, 1.4))
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))  # a notebook leaves figures without axes out
        axes.axis("off")
        text = textwrap.fill(f"Nothing to draw: {reason}.", 46)
        axes.text(0.5, 0.5, text, ha="center", va="center", color="#555555")
    return figure


def drawing(columns: Sequence[str], nothing: str) -> Callable:
    """Draw in the house style; a frame without rows or columns gives `empty`, not a traceback."""

    def wrap(draw: Callable[..., Figure]) -> Callable[..., Figure]:
        @functools.wraps(draw)
        def drawn(frame: pd.DataFrame, *args: Any, **options: Any) -> Figure:
            missing = [name for name in columns if name not in frame.columns]
            if frame.empty:
                return empty(nothing)
            if missing:
                return empty(f"the table lacks the column(s) {', '.join(missing)}")
            with _style():
                return _settled(draw(frame, *args, **options) or empty(nothing))

        return drawn

    return wrap


@drawing(accuracy.TABLE, "no judgement of a ranked response could be read")
def reward_accuracy(
    table: pd.DataFrame, metrics: Sequence[str] = tuple(accuracy.PAPER.columns)
) -> Figure | None:
    """Agreement of each model's judging with humans (paper Table 4), a panel per metric.

    `table` is `reward_accuracy.accuracy_table`. Ours with intervals, the paper's values in grey
    beside them, what chance gives, and what length alone gives with its interval.
    """
    drawn = table["metric"].isin(metrics) & (table["model"] != accuracy.LENGTH_ALONE)
    if table.loc[drawn, "value"].isna().all():
        return None
    columns = 3 if len(metrics) > 1 else 2
    rows = math.ceil((len(metrics) + 1) / columns)
    turned = _turned(table["model"])
    figure = Plate(figsize=(PAGE, (2.7 if turned else 2.2) * rows))
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, metric in zip(panels, metrics, strict=False):
        _accuracy_panel(axes, table[table["metric"] == metric], metric)
    for axes in panels[len(metrics) :]:
        axes.axis("off")
    _accuracy_legend(panels[len(metrics)])
    _caption(figure, "Pairs with a response that got no score are left out; n says what is left.")
    return figure


@drawing(length.SUMMARY, "no response was measured")
def length_trend(table: pd.DataFrame, unit: str = "characters") -> Figure | None:
    """Mean length of each model's answers, and the paper's in a panel of their own.

    `table` is `length.length_table`.
    """
    rows = table[table["unit"] == unit].dropna(subset="value")
    if rows.empty:
        return None
    figure = Plate(figsize=(PAGE, 3.2 if _turned(rows["model"]) else 2.6))
    ours, paper = figure.subplots(1, 2, width_ratios=[3, 2])
    _dots(ours, np.arange(len(rows)), rows, COLOURS[0])
    cut = [f"n = {r.n:,}\n{_percent(r.truncated)} cut" for r in rows.itertuples()]
    _names(ours, rows["model"], cut)
    ours.set(title="This study: answers to the test prompts", ylabel=f"mean {unit}")
    lengths = list(length.PAPER_CHARACTERS.values())
    paper.plot(lengths, "D", color=PAPER_GREY, mfc="white")
    for x, value in enumerate(lengths):
        paper.annotate(
            f"{value:,}", (x, value), (0, 6), textcoords="offset points", ha="center", fontsize=7
        )
    _names(paper, list(length.PAPER_CHARACTERS), ["n = 805"] * len(lengths))
    paper.set(title="The paper: 70B, AlpacaEval", ylabel="mean characters", ylim=(0, 3000))
    ours.set_ylim(bottom=0)
    _caption(figure, "Bars: 95 % interval by prompt. cut: share stopped at the token limit.")
    return figure


@drawing(length.LENGTHS, "no response was measured")
def length_distributions(lengths: pd.DataFrame, unit: str = "characters") -> Figure:
    """Histogram of response lengths, a row per model on one scale; the line is the median.

    `lengths` is `length.lengths`.
    """
    models = list(dict.fromkeys(lengths["model"]))
    figure = Plate(figsize=(COLUMN, 0.68 * len(models) + 0.6))
    bins = np.histogram_bin_edges(lengths[unit].dropna(), bins=30)
    panels = figure.subplots(len(models), 1, sharex=True, squeeze=False)[:, 0]
    labels = _labels(models)
    for axes, model in zip(panels, models, strict=True):
        rows = lengths[lengths["model"] == model]
        axes.hist(rows[unit], bins=bins, color=COLOURS[0], alpha=0.75)
        axes.axvline(rows[unit].median(), color=COLOURS[1])
        axes.set_title(labels[model], loc="left", fontsize=7, pad=2, weight="bold")
        cut = _percent(rows["truncated"].eq(True).mean())
        note = f"n = {len(rows):,}, median {rows[unit].median():,.0f}, {cut} cut"
        axes.set_title(note, loc="right", fontsize=7, pad=2)
        axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    panels[-1].set_xlabel(unit)
    panels[-1].set_xlim(left=0)
    figure.supylabel("responses", fontsize=7)
    _caption(figure, "Line: median. cut: share stopped at the token limit.")
    return figure


@drawing(length.CONTRAST, "no pair was left")
def chosen_rejected_lengths(table: pd.DataFrame, unit: str = "characters") -> Figure | None:
    """Mean length of chosen and rejected responses, and of their difference, per iteration.

    `table` is `length.chosen_against_rejected`.
    """
    rows = table[table["unit"] == unit]
    if rows["value"].isna().all():
        return None
    names = list(dict.fromkeys(rows["name"]))
    figure = Plate(figsize=(PAGE, 3.1 if _turned(names) else 2.5))
    means, gap = figure.subplots(1, 2)
    place = np.arange(len(names))
    for side, shift, colour in (("chosen", -0.1, COLOURS[0]), ("rejected", 0.1, COLOURS[1])):
        _dots(means, place + shift, rows[rows["quantity"] == side], colour, label=side)
    difference = rows[rows["quantity"] == "difference"]
    _dots(gap, place, difference, COLOURS[6])
    gap.axhline(0, color=PAPER_GREY, ls="--")
    counts = [f"n = {n:,} pairs" if n else "no pair left" for n in difference["n"]]
    for axes in (means, gap):
        _names(axes, names, counts)
    means.set(title="Length of the pairs", ylabel=f"mean {unit}")
    means.set_ylim(bottom=0)
    means.legend(loc="lower center", ncols=2)
    gap.set(title="Chosen less rejected", ylabel=f"difference in {unit}")
    _caption(figure, "Bars: 95 % interval by prompt.")
    return figure


@drawing(
    (*headtohead.MATCH, "n", "wins", "ties", "losses", "win_rate", "win_rate_low", "win_rate_high"),
    "no two models were compared in both orders",
)
def head_to_head(table: pd.DataFrame, card: pd.DataFrame | None = None) -> Figure | None:
    """Wins, ties and losses as stacked bars (paper Fig. 3), with n and the win rate of each row.

    `table` is `headtohead.head_to_head`; a row reads "left vs right", and wins are left's. Rows
    against the baseline come first, as in the paper's first panel. `card`
    (`headtohead.referee_card`) adds how often the referee agrees with humans.
    """
    if not table["n"].any():
        return None
    against = table["right"] == "baseline"
    groups = [part for part in (table[against], table[~against]) if len(part)]
    rows = pd.concat(groups).reset_index(drop=True)
    # a gap between the two groups; the first row is on top
    place = -(np.arange(len(rows)) + 0.5 * (np.arange(len(rows)) >= len(groups[0])))
    figure = Plate(figsize=(PAGE, 0.36 * len(rows) + 1.1))
    axes = figure.subplots()
    for y, row in zip(place, rows.itertuples(), strict=True):
        _match_bar(axes, y, row)
    axes.set_yticks(place, _match_names(rows))
    axes.set(xlim=(0, 100), ylim=(place.min() - 0.6, 0.6), xticks=[])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    handles = [Patch(color=c) for c in (WIN, TIE, LOSS)]
    words = ["first-named wins", "tie", "first-named loses"]
    axes.legend(handles, words, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderpad=0.1)
    header = {"transform": axes.transAxes, "fontsize": 7, "va": "bottom"}
    axes.text(1.02, 1.0, "win rate [95 %], ties half", **header)
    words = ["A win needs both orders; all else is a tie.", *_referees(rows, card)]
    _caption(figure, " ".join(words))
    return figure


@drawing(health.HISTOGRAM, "no judgement was made")
def score_histograms(table: pd.DataFrame) -> Figure | None:
    """Scores that each judge gave, as shares of its judgements, with those that did not parse.

    `table` is `health.score_histogram`.
    """
    if not table["judgements"].any():
        return None
    names = list(dict.fromkeys(table["name"]))
    columns = len(names) if len(names) < 5 else 3 if len(names) < 7 else 4
    rows = math.ceil(len(names) / columns)
    figure = Plate(figsize=(max(COLUMN, min(PAGE, 2 * columns)), 1.6 * rows + 0.3))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    labels = _labels(names)
    for axes, name in zip(panels.flat, names, strict=False):
        _score_panel(axes, table[table["name"] == name], labels[name])
    for axes in panels.flat[len(names) :]:
        axes.axis("off")
    panels[0, 0].yaxis.set_major_formatter(PercentFormatter(1, 0))
    figure.supylabel("share of judgements", fontsize=7)
    _caption(figure, "Grey: no score could be read from the judgement.")
    return figure


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


@drawing(("step", "loss"), "no training step was logged")
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
    figure = Plate(figsize=(max(COLUMN, PAGE / 3 * len(panels)), 2.4))
    labels = _labels(list(runs))
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for (name, run), colour in zip(runs.items(), _cycle(len(runs)), strict=True):
            panel(axes, run.sort_values("step"), colour, labels[name])
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    if len(runs) > 1:
        figure.axes[0].legend()
    counts = ", ".join(f"{labels[name]} n = {len(run)}".strip() for name, run in runs.items())
    _caption(figure, f"Logged steps: {counts}.")
    return figure


@drawing(constraints.TABLE, "no test prompt has a constraint")
def constraint_pass_rates(table: pd.DataFrame) -> Figure:
    """Share of constraints met by each model, a row per kind of constraint.

    `table` is `constraints.pass_rates`.
    """
    kinds = list(dict.fromkeys(table["kind"]))
    models = list(dict.fromkeys(table["model"]))
    figure = Plate(figsize=(PAGE * 0.7, max(1.6, 0.12 * len(models) * len(kinds) + 1.0)))
    axes = figure.subplots()
    labels = _labels(models)
    shifts = np.linspace(-0.3, 0.3, len(models)) if len(models) > 1 else [0.0]
    for model, shift, colour in zip(models, shifts, _cycle(len(models)), strict=True):
        rows = table[table["model"] == model].set_index("kind").reindex(kinds)
        place = np.arange(len(kinds)) + shift
        _dots(axes, place, rows, colour, labels[model], horizontal=True)
    for border in np.arange(len(kinds) - 1) + 0.5:
        axes.axhline(border, color=FAINT, lw=0.5)
    counts = table.groupby("kind")["n"].agg(["min", "max"])
    names = [f"{kind} (n = {_span(*counts.loc[kind])})" for kind in kinds]
    axes.set_yticks(range(len(kinds)), names)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(kinds) - 0.5, -0.5))
    axes.grid(False, axis="y")
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.set_xlabel("constraints met")
    figure.legend(loc="outside right upper")
    _caption(figure, "n: constraints per model. Bars: 95 % interval by prompt.")
    return figure


@drawing(constraints.CONTROLS, "no answer was scored by the oracle")
def controls(table: pd.DataFrame) -> Figure:
    """The oracle's score of each arm's models, and the change from the model the arm started from.

    `table` is `constraints.oracle_scores`.
    """
    figure = Plate(figsize=(PAGE, 2.7))
    level, change = figure.subplots(1, 2, width_ratios=[3, 2])
    arms = list(dict.fromkeys(name.partition("/")[0] for name in table["model"] if "/" in name))
    shifts = np.linspace(-0.18, 0.18, len(arms)) if len(arms) > 1 else [0.0]
    for arm, shift in zip(arms, shifts, strict=True):
        _walk(level, change, table, arm, shift, ARM_STYLE[arm])
    change.axhline(0, color=PAPER_GREY, ls="--")
    last = table["model"].str.partition("/")[0].isin(arms).sum() // max(len(arms), 1)
    names = ["start", *(f"M{t + 1}" for t in range(1, last + 1))]
    for axes, first in ((level, 0), (change, 1)):
        axes.set_xticks(range(first, last + 1), names[first:])
        axes.set_xlim(first - 0.5, last + 0.5)
        axes.grid(False, axis="x")
        axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    level.set(title="The oracle's score on the test prompts", ylabel="constraints met")
    change.set(title="Change from the start, same prompts", ylabel="points")
    change.yaxis.set_major_formatter(PercentFormatter(1, 0, symbol=""))
    figure.legend(loc="outside right upper")
    starts = ", ".join(dict.fromkeys(table["reference"].dropna()))
    n = _span(table["n"].min(), table["n"].max())
    _caption(figure, f"n = {n} prompts per model. Start: {starts}. Bars: 95 % interval by prompt.")
    return figure


def _walk(
    level: Axes, change: Axes, table: pd.DataFrame, arm: str, shift: float, style: dict[str, str]
) -> None:
    """One arm's models on both panels of `controls`, from where it started."""
    mine = table[table["model"].str.startswith(f"{arm}/")]
    walk = pd.concat([table[table["model"] == mine["reference"].iloc[0]], mine])
    place = np.arange(len(walk)) + shift
    level.plot(place, walk["value"], color=style["colour"], lw=0.8, alpha=0.6)
    _dots(level, place, walk, label=arm, **style)
    ends = {"value": "difference", "low": "difference_low", "high": "difference_high"}
    moved = pd.DataFrame({name: mine[column] for name, column in ends.items()})
    _dots(change, place[1:], moved, **style)


def _style() -> Any:
    return matplotlib.style.context(["default", STYLE])


def _settled(figure: Figure) -> Figure:
    """Lay the figure out once: a layout that is done again with every drawing drifts a little."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _labels(names: Sequence[str]) -> dict[str, str]:
    """Short names of models or iterations: the arm is named only where there is more than one."""
    several = len({name.rpartition("/")[0] for name in names} - {""}) > 1
    return {name: name.replace("/", " ") if several else name.rpartition("/")[2] for name in names}


def _names(axes: Axes, names: Sequence[str], notes: Sequence[str] = ()) -> None:
    """Names on the x axis, each with a note below it; long ones are turned to fit."""
    labels = _labels(list(names))
    texts = [labels[name] for name in names]
    turn = {}
    if _turned(names):
        turn = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        notes = [note.replace("\n", ", ") for note in notes]
    texts = [f"{text}\n{note}" for text, note in zip(texts, notes, strict=True)] if notes else texts
    axes.set_xticks(range(len(texts)), texts, **turn)
    axes.set_xlim(-0.5, len(texts) - 0.5)
    axes.grid(False, axis="x")


def _turned(names: Sequence[str]) -> bool:
    """Whether names are too long to stand side by side."""
    names = [name for name in names if name != accuracy.LENGTH_ALONE]
    return max(map(len, _labels(names).values())) > 10


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _caption(figure: Figure, text: str) -> None:
    # about 17 characters of this size go into an inch
    width = int(17 * figure.get_figwidth())
    figure.supxlabel(textwrap.fill(text, width), fontsize=7, color="#555555")


def _percent(share: float) -> str:
    return "?" if pd.isna(share) else f"{100 * share:.0f} %"


def _interval(low: float | None, high: float | None) -> str:
    return "[no interval]" if pd.isna(low) else f"[{100 * low:.0f}, {100 * high:.0f}]"


def _span(low: float, high: float) -> str:
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"


def _dots(
    axes: Axes,
    place: np.ndarray,
    rows: pd.DataFrame,
    colour: str,
    label: str | None = None,
    horizontal: bool = False,
    marker: str = "o",
) -> None:
    """Values with their intervals; an undefined one leaves its place free."""
    value = rows["value"].to_numpy(float)
    reach = np.array([value - rows["low"].to_numpy(float), rows["high"].to_numpy(float) - value])
    reach = np.where(np.isfinite(reach), np.maximum(reach, 0), 0)
    style = {"fmt": marker, "color": colour, "ecolor": colour, "elinewidth": 1, "label": label}
    if horizontal:
        axes.errorbar(value, place, xerr=reach, **style)
    else:
        axes.errorbar(place, value, yerr=reach, **style)


def _accuracy_panel(axes: Axes, rows: pd.DataFrame, metric: str) -> None:
    by_length = rows[rows["model"] == accuracy.LENGTH_ALONE]
    rows = rows[rows["model"] != accuracy.LENGTH_ALONE]
    axes.set_title(TITLES.get(metric, metric))
    if rows.empty:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        return
    axes.axhline(rows["chance"].max(), color="black", ls=":", lw=1)
    for row in by_length.dropna(subset="value").itertuples():
        axes.axhline(row.value, color=COLOURS[4])
        axes.axhspan(row.low, row.high, color=COLOURS[4], alpha=0.15, lw=0)
    place = np.arange(len(rows))
    _dots(axes, place - 0.1, rows, COLOURS[0])
    paper = [_paper_value(model, metric) for model in rows["model"]]
    axes.plot(place + 0.2, paper, "D", color=PAPER_GREY, mfc="white", ms=4)
    for x in place[rows["value"].isna()]:
        note = {"xycoords": ("data", "axes fraction"), "ha": "center", "fontsize": 6}
        axes.annotate("none", (x, 0.03), color="#555555", **note)
    _names(axes, rows["model"])
    prompts = _span(rows["prompts"].min(), rows["prompts"].max())
    units = f"n = {_span(rows['n'].min(), rows['n'].max())} {'/'.join(set(rows['unit']))}"
    axes.set_xlabel(units if units.endswith("prompts") else f"{units}, {prompts} prompts")
    if metric.startswith(("spearman", "kendall")):
        axes.set_ylim(*_widened(axes.get_ylim()))
    else:
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1, 0))


def _widened(limits: tuple[float, float]) -> tuple[float, float]:
    return min(limits[0], -0.1), max(limits[1], 0.5)


def _paper_value(model: str, metric: str) -> float:
    """The paper's Table 4 has one arm; another arm's M2 has no counterpart there."""
    arm, _, name = model.rpartition("/")
    known = arm in ("", "self-rewarding") and name in accuracy.PAPER.index
    return accuracy.PAPER.loc[name, metric] if known and metric in accuracy.PAPER else np.nan


def _accuracy_legend(axes: Axes) -> None:
    handles = {
        "this study, 95 % interval\nby prompt": Line2D([], [], marker="o", color=COLOURS[0]),
        "the paper, 70B, Open Assistant\n(no intervals given)": Line2D(
            [], [], marker="D", ls="", color=PAPER_GREY, mfc="white"
        ),
        "chance": Line2D([], [], color="black", ls=":"),
        "length alone, 95 % interval": (
            Patch(color=COLOURS[4], alpha=0.15, lw=0),
            Line2D([], [], color=COLOURS[4]),
        ),
    }
    axes.legend(handles.values(), handles.keys(), loc="center", labelspacing=1)


def _match_names(rows: pd.DataFrame) -> list[str]:
    labels = _labels([*rows["left"], *rows["right"]])
    several = rows["referee"].nunique() > 1
    ends = [f"\n({row.referee})" if several else "" for row in rows.itertuples()]
    names = [f"{labels[row.left]} vs {labels[row.right]}" for row in rows.itertuples()]
    return [name + end for name, end in zip(names, ends, strict=True)]


def _referees(rows: pd.DataFrame, card: pd.DataFrame | None) -> list[str]:
    """A sentence per referee: how steady it is here, and how often it agrees with humans."""
    sentences = []
    for referee, table in rows.groupby("referee", sort=False):
        words = f"Referee {referee}"
        if "position_consistency" in table and table["position_consistency"].notna().any():
            low, high = table["position_consistency"].min(), table["position_consistency"].max()
            words += f": both orders agree on {_span(100 * low, 100 * high)} % of prompts"
        known = card if card is not None and len(card) else pd.DataFrame(columns=["referee"])
        for row in known[known["referee"] == referee].itertuples():
            if row.metric == "accuracy":
                words += f"; agrees with the seed on {_percent(row.value)}"
                words += f" {_interval(row.low, row.high)} of {row.n} pairs, ties half"
        sentences.append(f"{words}.")
    return sentences


def _match_bar(axes: Axes, y: float, row: Any) -> None:
    start = 0.0
    for count, colour in ((row.wins, WIN), (row.ties, TIE), (row.losses, LOSS)):
        width = 100 * count / row.n if row.n else 0.0
        axes.barh(y, width, left=start, height=0.72, color=colour, edgecolor="white", lw=0.5)
        if width >= 3:
            text = f"{width:.1f}%" if width >= 7 else f"{width:.0f}"
            axes.text(start + width / 2, y, text, ha="center", va="center", fontsize=7)
        start += width
    place = axes.get_yaxis_transform()
    text = f"n = {row.n}"
    if row.n:
        text = f"{100 * row.win_rate:.1f}% {_interval(row.win_rate_low, row.win_rate_high)}, {text}"
    axes.text(1.02, y, text, transform=place, va="center", fontsize=7)


def _score_panel(axes: Axes, rows: pd.DataFrame, label: str) -> None:
    colours = [FAINT if score == "no score" else COLOURS[0] for score in rows["score"]]
    edges = [PAPER_GREY if score == "no score" else COLOURS[0] for score in rows["score"]]
    axes.bar(rows["score"].str.replace("no score", "none"), rows["share"], color=colours, ec=edges)
    n, parsed = int(rows["judgements"].iloc[0]), rows["parse_rate"].iloc[0]
    axes.set_title(f"{label}\nn = {n:,}, {_percent(parsed)} parsed", fontsize=7)
    axes.grid(False, axis="x")
    axes.tick_params(axis="x", labelbottom=True)


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
        0.01, y, f"{kept:,} of {total:,} {unit} ({_percent(kept / total)})", va="center", fontsize=7
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
    axes.set_title("Log-probability")
    keys = [Line2D([], [], color="#555555", ls=ls) for ls in ("-", "--")]
    axes.legend(keys, ["chosen", "rejected"])
