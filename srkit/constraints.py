"""Constraints that a program can check: the oracle of the positive control, and a measure.

The oracle (`arms.oracle`) is a list of constraints that applies to every answer, asked for or not,
a point for each that is met. As the judge of the arm `oracle` it decides the pairs; on the answers
to the test prompts it says of every model how far it came. It is a control, not a taste: what it
asks for is arbitrary, but it is known, it does not drift, and it differs among the candidates.

A test prompt may state constraints in words ("in at most 20 words"), and carries them as data
(`{"kind": "max_words", "value": 20}`). Whether an answer meets them needs no judge, so pass rates
are the one measure here that no model's taste enters.

Surprising decisions: an answer without a single letter or digit meets nothing, so that silence is
no way to keep to "at most 20 words". Words are runs of characters between white space that hold a
letter or digit. `include` and `avoid` mean whole words in any case ("cat" is not in "category").
Sentences end with . ! or ? before white space, so an abbreviation ("e.g. this") counts as an end.
Numbers are compared by value ("1,200.0" is 1200); it is enough that the number occurs, so an answer
that lists many numbers can pass by luck. `starts_with` and `ends_with` keep case and look past
quotation marks.

Strict and loose are IFEval's (Zhou et al. 2023, arXiv 2311.07911): loose also looks at the answer
without its asterisks, its first line ("Sure, here it is:") and its last. Each constraint may be met
by another of these forms, so loose forgives what is beside the answer, and now and then a fault: a
word to avoid in the last line.

    python -c "from srkit.constraints import CHECKS; print(*CHECKS)"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from srkit import stats
from srkit.config import SrkitError, legal_names

Constraint = Mapping[str, Any]  # kind and value
EVERY = "all constraints"
OUTCOMES = ("model", "prompt_id", "kind", "passed")
TABLE = ("model", "kind", "value", "low", "high", "n", "prompts")
CONTROLS = ("model", "value", "low", "high", "n", "reference", "difference", "difference_low")
CONTROLS += ("difference_high",)


def parse(constraints: Sequence[str]) -> list[Constraint]:
    """Constraints from their short form: "max_words=20" is {"kind": "max_words", "value": 20}.

    One word each for `include` and `avoid`. Raises SrkitError for an unknown kind, or a value that
    is not of the kind.
    """
    parsed = []
    for short in constraints:
        kind, _, value = short.partition("=")
        if kind not in CHECKS:
            raise SrkitError(f"there is no constraint {kind!r}. {legal_names(kind, CHECKS)}")
        try:
            parsed.append({"kind": kind, "value": VALUES.get(kind, str)(value)})
        except ValueError:
            raise SrkitError(
                f"the constraint {short!r} has no legal value; max_words=20, lowercase=true, "
                "include=you and ends_with=. have"
            ) from None
    return parsed


def check(text: str, constraint: Constraint) -> bool:
    """Whether `text` meets one constraint, {"kind": ..., "value": ...}.

    Raises SrkitError for an unknown kind.
    """
    kind = constraint.get("kind")
    if kind not in CHECKS:
        raise SrkitError(
            f"Constraint kind {kind!r} is unknown. Legal kinds: {', '.join(CHECKS)}. "
            "Correct the `constraints` of the test prompt."
        )
    return bool(re.search(r"\w", text)) and bool(CHECKS[kind](text.strip(), constraint["value"]))


def loosened(text: str) -> list[str]:
    """The forms of a text that IFEval's loose accuracy looks at, the text itself first.

    It, it without the first line, without the last and without both; each also without asterisks.
    """
    lines = text.split("\n")
    cuts = (lines, lines[1:], lines[:-1], lines[1:-1])
    forms = ["\n".join(cut).strip() for cut in cuts]
    return list(dict.fromkeys([*forms, *(form.replace("*", "") for form in forms)]))


def check_loosely(text: str, constraint: Constraint) -> bool:
    """Whether any of the loosened forms of `text` meets one constraint."""
    return any(check(form, constraint) for form in loosened(text))


def points(text: str, constraints: Sequence[Constraint]) -> int:
    """The oracle's score of a text: how many of the constraints it meets."""
    return sum(check(text, constraint) for constraint in constraints)


def outcomes(responses: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Each constraint of each response: model, prompt_id, kind, passed (bool).

    `responses` maps a model's name to its table. Rows of kind "all constraints" say whether the
    response meets every one of its prompt; prompts without constraints have no rows. For a paired
    difference of two models, give their rows of one kind, with a column of ones, to
    `stats.paired_bootstrap`.
    """
    rows = []
    for model, table in responses.items():
        used = stats.require(table, ("prompt_id", "text", "constraints"), f"responses of {model}")
        for response in used[["prompt_id", "text", "constraints"]].to_dict("records"):
            labels = {"model": model, "prompt_id": response["prompt_id"]}
            constraints = response["constraints"]
            passed = [check(str(response["text"]), constraint) for constraint in constraints]
            kinds = [constraint["kind"] for constraint in constraints]
            if kinds:
                kinds, passed = [EVERY, *kinds], [all(passed), *passed]
            found = zip(kinds, passed, strict=True)
            rows += [{**labels, "kind": kind, "passed": met} for kind, met in found]
    return pd.DataFrame(rows, columns=list(OUTCOMES))


def pass_rates(
    responses: Mapping[str, pd.DataFrame], resamples: int = stats.RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Share of constraints met, a row per model and kind, "all constraints" first.

    Columns: model, kind, value, low, high (95 %, by prompt: Wilson where each prompt has one such
    constraint), n (constraints; prompts for "all constraints"), prompts.
    """
    table = outcomes(responses).assign(one=1)
    rows = []
    for kind in [kind for kind in (EVERY, *CHECKS) if kind in set(table["kind"])]:
        for model in responses:
            part = table[(table["model"] == model) & (table["kind"] == kind)]
            found = stats.rate(part, "passed", "one", resamples=resamples, seed=seed)
            counts = {"prompts": found["n"], "n": len(part)}
            rows.append({"model": model, "kind": kind, **found, **counts})
    numbers = dict.fromkeys(("value", "low", "high"), float)
    return pd.DataFrame(rows, columns=list(TABLE)).astype(numbers)


def oracle_scores(
    responses: Mapping[str, pd.DataFrame],
    constraints: Sequence[Constraint],
    references: Mapping[str, str],
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """The oracle's score of each model's answers, and its change: the table of the controls.

    `references` names the model that an arm started from. Columns: model, value (mean share of the
    constraints that an answer meets), low, high (95 %, by prompt), n (prompts), reference,
    difference (model - reference, on the same prompts), difference_low, difference_high.
    """
    share, options = ("points", "most"), {"resamples": resamples, "seed": seed}
    scored = {}
    for model, table in responses.items():
        used = stats.require(table, ("prompt_id", "text"), f"responses of {model}")
        met = [points(str(text), constraints) for text in used["text"]]
        scored[model] = used[["prompt_id"]].assign(points=met, most=len(constraints))
    rows = []
    for model, table in scored.items():
        row = {"model": model, **stats.bootstrap(table, share, **options)}
        if reference := references.get(model):
            change = stats.paired_bootstrap(table, scored[reference], share, **options)
            ends = {"value": "difference", "low": "difference_low", "high": "difference_high"}
            row |= {"reference": reference, **{name: change[key] for key, name in ends.items()}}
        rows.append(row)
    numbers = dict.fromkeys(set(CONTROLS) - {"model", "n", "reference"}, float)
    return pd.DataFrame(rows, columns=list(CONTROLS)).astype(numbers)


def _words(text: str) -> int:
    return sum(bool(re.search(r"\w", word)) for word in text.split())


def sentences(text: str) -> int:
    """Sentences of a text, by how they end; a list without full stops is one."""
    # the mark of a list item is no sentence ("1. Wash")
    text = re.sub(r"(?m)^\s*(?:[-*]|\d+\.)\s+(?=\S)", "", text)
    return sum(bool(re.search(r"\w", part)) for part in re.split(r"[.!?]+[\"')\]]*(?:\s+|$)", text))


def list_items(text: str) -> int:
    """Lines that start as an item of a list: with `-`, `*`, or a number such as `1.`."""
    return len(re.findall(r"(?m)^[ \t]*(?:[-*]|\d+\.)[ \t]+\S", text))


def _has_word(text: str, word: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def _starts_with(text: str, start: str) -> bool:
    return text.startswith(start) or text.lstrip("\"'(*").startswith(start)


def _ends_with(text: str, end: str) -> bool:
    # "ends with the word sun" allows the full stop after it, and a quotation its closing mark
    return any(text.rstrip(marks).endswith(end) for marks in ("", "\"')*", ".!?\"')*"))


def _has_number(text: str, number: float) -> bool:
    found = re.findall(r"(?:(?<![\w)])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?", text)
    return any(float(one.replace(",", "")) == number for one in found)


CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "max_words": lambda text, n: _words(text) <= n,
    "min_words": lambda text, n: _words(text) >= n,
    "sentences": lambda text, n: sentences(text) == n,
    "list_items": lambda text, n: list_items(text) == n,
    "include": lambda text, words: all(_has_word(text, word) for word in words),
    "avoid": lambda text, words: not any(_has_word(text, word) for word in words),
    "starts_with": _starts_with,
    "ends_with": _ends_with,
    "lowercase": lambda text, wanted: text.islower() == wanted,
    "uppercase": lambda text, wanted: text.isupper() == wanted,
    "number": _has_number,
}

VALUES: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("max_words", "min_words", "sentences", "list_items"), int),
    **dict.fromkeys(("include", "avoid"), lambda word: [word]),
    **dict.fromkeys(("lowercase", "uppercase"), lambda word: ("false", "true").index(word) == 1),
    "number": float,
}
