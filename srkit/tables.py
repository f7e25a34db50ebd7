"""The main tables of a study as csv, Markdown and LaTeX: for a spreadsheet, an issue, a paper.

`tables/<name>.{csv,md,tex}` are written from finished analyses; no model is loaded. The csv holds
all columns with six significant digits, as beside the figures; Markdown and LaTeX round to three.
The same tables give the same bytes.

Surprising decisions: names of models, endpoints and groups are data, so whatever Markdown or LaTeX
would take for a command is escaped; the LaTeX is a plain `tabular` that needs no package. pandas'
own writers would need two packages more, and escape less.

    srkit figures runs/first
"""

from __future__ import annotations

import re
from numbers import Real
from pathlib import Path

import pandas as pd

from srkit import ablations, metrics
from srkit.disk import write_atomically
from srkit.drawings import ablation_outcomes
from srkit.escape import visible
from srkit.study import Study

# Tables that show one of an analysis: its name here -> the analysis, and the table's name there.
MAIN = {
    "reward_accuracy": ("reward_accuracy", "accuracy"),
    "judge_changes": ("reward_accuracy", "differences"),
    "judge_agreement": ("reward_accuracy", "agreement"),
    "judge_calibration": ("reward_accuracy", "calibration_slopes"),
    "judge_ways": ("reward_accuracy", "ways"),
    "judge_health": ("reward_accuracy", "health"),
    "length": ("length_drift", "by_model"),
    "score_and_length": ("length_drift", "score_and_length"),
    "equal_length": ("length_drift", "equal_length"),
    "win_rates": ("win_rates", "head_to_head"),
    "strengths": ("win_rates", "strengths"),
    "referee_card": ("win_rates", "referee_card"),
    "constraints": ("win_rates", "constraints"),
    "controls": ("win_rates", "controls"),
    "benchmarks": ("benchmarks", "scores"),
    "benchmark_changes": ("benchmarks", "changes"),
    "prompt_novelty": ("data_distribution", "novelty"),
    "refine_ways": ("refine", "ways"),
    "refine_rounds": ("refine", "rounds"),
    "refine_feedback": ("refine", "feedback"),
    "judge_probes": ("reward_hacking", "probes"),
    "blind_spots": ("reward_hacking", "blind_spots"),
    "blind_spot_transitions": ("reward_hacking", "transitions"),
    "overoptimisation": ("reward_hacking", "curve"),
    "breakdown_answers": ("breakdowns", "answers"),
    "breakdown_judging": ("breakdowns", "judging"),
    "budgets": ("rivals", "budgets"),
    "gains": ("rivals", "gains"),
}
LATEX = {
    **{c: rf"\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def markdown(table: pd.DataFrame) -> str:
    """The table as a pipe table of GitHub's Markdown; numbers stand to the right."""
    head = [_markdown(str(name)) for name in table.columns]
    rule = ["---:" if numeric else "---" for numeric in _numeric(table)]
    rows = [[_markdown(_cell(value)) for value in row] for row in _rows(table)]
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, rule, *rows])


def latex(table: pd.DataFrame) -> str:
    """The table as a LaTeX `tabular`; numbers stand to the right."""
    columns = "".join("r" if numeric else "l" for numeric in _numeric(table))
    head = _line([str(name) for name in table.columns])
    body = "".join(_line([_cell(value) for value in row]) for row in _rows(table))
    begin, rule, end = f"\\begin{{tabular}}{{{columns}}}\n", "\\hline\n", "\\end{tabular}\n"
    return begin + rule + head + rule + body + rule + end


def save(table: pd.DataFrame, stem: Path) -> list[Path]:
    """Write `stem`.csv, .md and .tex; returns the three paths."""
    texts = {
        "csv": table.to_csv(index=False, float_format="%.6g", lineterminator="\n"),
        "md": markdown(table),
        "tex": latex(table),
    }
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_atomically(path, text)
    return paths


def write_tables(study: Study) -> list[Path]:
    """Write all main tables of a finished study; returns their paths without endings.

    A table that has nothing to say of this study (no columns came back from its JSON) is left out.
    """
    found = {name: metrics.table(study, *of) for name, of in MAIN.items()}
    found = {name: table for name, table in found.items() if len(table.columns)}
    outcomes = ablation_outcomes(study)
    found |= {"ablations": outcomes, "ablations_summary": ablations.summary(outcomes)}
    folder = study.path / "tables"
    for name, table in found.items():
        save(table, folder / name)
    return [folder / name for name in found]


def _rows(table: pd.DataFrame) -> list[tuple]:
    return list(table.itertuples(index=False, name=None))


def _numeric(table: pd.DataFrame) -> list[bool]:
    return [
        pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind)
        for kind in table.dtypes
    ]


def _cell(value: object) -> str:
    """A value in words: three significant digits, whole numbers in full, nothing for missing."""
    if isinstance(value, list | tuple | dict):
        return " ".join(map(str, value))
    if pd.isna(value):
        return ""
    if not isinstance(value, Real) or isinstance(value, bool):
        return visible(" ".join(str(value).split()))
    if float(value).is_integer():
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_<>|~&]|\](?=[(:\[]))", r"\\\1", text)


def _line(cells: list[str]) -> str:
    """A row; one that begins like an option of the row before would be taken for it."""
    row = " & ".join("".join(LATEX.get(c, c) for c in cell) for cell in cells)
    return f"{'{}' if row.startswith(('[', '*')) else ''}{row} \\\\\n"
