"""How all figures look, and how they are written.

Okabe-Ito colours (readable with any colour vision), type that stays legible at column width, 95 %
intervals, n on every panel.

Surprising decisions: the paper's numbers are drawn grey and apart, never mixed with ours; an empty
or unusable frame gives a figure that says why, so that a study with nothing to show still has its
report; figures are made without pyplot, so none is kept in memory, and a notebook shows one only as
a cell's last value. The same frame gives the same bytes in every run: no dates, no versions, fixed
ids, matplotlib's defaults instead of the user's.

    python -c "from srkit.figures.style import COLOURS; print(*COLOURS)"
"""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srkit.ablations import ROOM, foremost
from srkit.disk import write_atomically
from srkit.escape import visible
from srkit.reward_accuracy import LENGTH_ALONE

COLUMN, PAGE = 3.4, 7.0  # widths in inches: one column, the whole text
PAPER_GREY, FAINT = "#8C8C8C", "#D9D9D9"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # the second cue beside the colour
MOST = 6  # names in a panel that colour and marker tell apart
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
    "text.parse_math": False,  # a name with dollar signs is a name, not a formula
}
# without dates and versions the bytes depend on the frame alone
METADATA = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


class Plate(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        with style(), io.BytesIO() as buffer:
            self.savefig(buffer, format="png", dpi=self.dpi, metadata=METADATA["png"])
            return buffer.getvalue()


def save(figure: Figure, frame: pd.DataFrame, stem: Path) -> list[Path]:
    """Write `stem`.png, .svg, .pdf and the tidy frame as `stem`.csv; returns the four paths.

    A full disk leaves the earlier files whole. Floats in the csv have six significant digits, so
    that it is the same on every machine.
    """
    stem = Path(stem)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in (*METADATA, "csv")]
    with style():
        for path, (kind, metadata) in zip(paths, METADATA.items(), strict=False):
            picture = io.BytesIO()
            figure.savefig(picture, format=kind, metadata=metadata)
            write_atomically(path, picture.getvalue())
    rows = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_atomically(paths[-1], rows)
    return paths


def empty(reason: str) -> Figure:
    """A figure that has nothing to show and says why."""
    with style():
        figure = Plate(figsize=(COLUMN, 1.4))
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))  # a notebook leaves figures without axes out
        axes.axis("off")
        text = textwrap.fill(f"Nothing to draw: {reason}.", 46)
        axes.text(0.5, 0.5, text, ha="center", va="center", color="#555555")
    return figure


def drawing(
    columns: Sequence[str],
    nothing: str,
    names: Sequence[str] = (),
    most: int = ROOM,
    whole: bool = False,
) -> Callable:
    """Draw in the house style; a frame without rows or columns gives `empty`, not a traceback.

    Texts in frames are made harmless: a control character would end a reader of the svg. `names`
    are the columns with models or iterations, of which a figure shows `most`
    (`ablations.foremost`); its caption then says so.
    """

    def wrap(draw: Callable[..., Figure]) -> Callable[..., Figure]:
        @functools.wraps(draw)
        def drawn(frame: pd.DataFrame, *args: Any, **options: Any) -> Figure:
            missing = [name for name in columns if name not in frame.columns]
            if frame.empty:
                return empty(nothing)
            if missing:
                return empty(f"the table lacks the column(s) {', '.join(missing)}")
            here = [name for name in names if name in frame.columns]
            everyone = dict.fromkeys(name for row in frame[here].to_numpy() for name in row)
            few = foremost(list(everyone), most, whole)
            rows = frame[frame[here].isin(few).all(axis=1)] if len(few) < len(everyone) else frame
            with style():
                figure = draw(*map(_harmless, (rows, *args)), **options)
                if figure and len(few) < len(everyone):
                    caption(figure, f"{figure.get_supxlabel()} {left_out(len(few), len(everyone))}")
                return settled(figure or empty(nothing))

        return drawn

    return wrap


def _harmless(table: Any) -> Any:
    if not isinstance(table, pd.DataFrame):
        return table
    words = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    plain = table[words].map(lambda value: visible(value) if isinstance(value, str) else value)
    return table.assign(**plain)


def style() -> Any:
    return matplotlib.style.context(["default", STYLE])


def settled(figure: Figure) -> Figure:
    """Lay the figure out once: a layout that is done again with every drawing drifts a little."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def short_labels(names: Sequence[str]) -> dict[str, str]:
    """Short names of models or iterations: the arm is named only where there is more than one."""
    several = len({name.rpartition("/")[0] for name in names} - {""}) > 1
    return {name: name.replace("/", " ") if several else name.rpartition("/")[2] for name in names}


def name_axis(axes: Axes, names: Sequence[str], notes: Sequence[str] = ()) -> None:
    """Names on the x axis, each with a note below it; long ones are turned to fit."""
    labels = short_labels(list(names))
    texts = [labels[name] for name in names]
    turn = {}
    if turned(names):
        turn = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        notes = [note.replace("\n", ", ") for note in notes]
    texts = [f"{text}\n{note}" for text, note in zip(texts, notes, strict=True)] if notes else texts
    axes.set_xticks(range(len(texts)), texts, **turn)
    axes.set_xlim(-0.5, len(texts) - 0.5)
    axes.grid(False, axis="x")


def turned(names: Sequence[str]) -> bool:
    """Whether names are too long to stand side by side."""
    names = [name for name in names if name != LENGTH_ALONE]
    return max(map(len, short_labels(names).values())) > 10


def cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def dots(
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


def caption(figure: Figure, text: str) -> None:
    # about 17 characters of this size go into an inch
    width = int(17 * figure.get_figwidth())
    figure.supxlabel(textwrap.fill(text, width), fontsize=7, color="#555555")


def left_out(drawn: int, of: int) -> str:
    """What a caption says where not all names are drawn."""
    return f"{of - drawn} of {of} are not drawn; all are in the csv." if drawn < of else ""


def percent(share: float) -> str:
    return "?" if pd.isna(share) else f"{100 * share:.0f} %"


def interval(low: float | None, high: float | None) -> str:
    return "[no interval]" if pd.isna(low) else f"[{100 * low:.0f}, {100 * high:.0f}]"


def span(low: float, high: float) -> str:
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"
