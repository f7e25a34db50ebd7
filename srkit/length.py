"""How long the answers are, what form they have, and whether the pairs teach length.

The paper's answers grow from 1092 to 2552 characters over M1 to M3 (section 3.2.2), and its win
rates are not corrected for that; so length stands beside every result here. Three questions: how
long each model's answers are, whether chosen responses are longer than rejected ones, and whether
the judge's score follows length.

Surprising decisions: characters are the unit that compares across tokenizers and with the paper's
numbers; an answer cut at the token limit is shorter than the model wanted it, so the truncated
share belongs beside every mean. Repetition is the share of an answer's 4-grams of words that stood
in it before; an answer of three words or fewer repeats nothing. Score and length are correlated
within prompts (rank correlation, then the mean), because across prompts both follow how much the
prompt asks for.

    python -c "from srkit.length import PAPER_CHARACTERS; print(PAPER_CHARACTERS)"
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

import numpy as np
import pandas as pd

from srkit import reward_accuracy, stats
from srkit.constraints import list_items, sentences

UNITS = ("characters", "words", "tokens")
FORMS = ("sentences", "list_items", "headings", "repetition")
MEASURES = (*UNITS, *FORMS)
# mean length of the answers to AlpacaEval's 805 prompts; the paper gives no unit, AlpacaEval's is
# characters
PAPER_CHARACTERS = {"M1": 1092, "M2": 1552, "M3": 2552}

RESPONSES = ("prompt_id", "text", "tokens", "truncated")
PAIRS = ("id", "chosen", "rejected", "chosen_tokens", "rejected_tokens")
LENGTHS = ("model", "prompt_id", *MEASURES, "truncated")
PAIR_LENGTHS = ("name", "prompt_id", "unit", "chosen", "rejected", "difference")
SPREAD = ("q25", "median", "q75")
CUT = ("truncated", "truncated_low", "truncated_high")
SUMMARY = ("model", "unit", "value", "low", "high", *SPREAD, "n", "prompts", *CUT)
CONTRAST = ("name", "unit", "quantity", "value", "low", "high", "n")
FOLLOWING = ("name", "value", "low", "high", "n", "left_out")
NUMBERS = dict.fromkeys(("value", "low", "high"), float)


def lengths(responses: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per response: model, prompt_id, each of `MEASURES`, truncated.

    `responses` maps a name (a model, an iteration) to its table; words are separated by white
    space. Tokens are missing where the table has none.
    """
    parts = []
    for model, table in responses.items():
        rows = stats.require(table, RESPONSES, f"responses of {model}")
        part = rows[["prompt_id"]].assign(model=model, tokens=rows["tokens"].astype(float))
        part = part.join(measured(rows["text"]))
        parts.append(part.assign(truncated=rows["truncated"].eq(True)))
    if not parts:
        return pd.DataFrame(columns=list(LENGTHS))
    return pd.concat(parts, ignore_index=True)[list(LENGTHS)]


def length_table(
    responses: Mapping[str, pd.DataFrame], resamples: int = stats.RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Length and form of each model's answers, a row per model and unit (one of `MEASURES`).

    Columns: model, unit, value (the mean), low, high (95 %, by prompt), q25, median, q75, n
    (responses), prompts, truncated (share cut at the token limit) with truncated_low and _high.
    """
    rows = []
    for model in responses:
        table = lengths({model: responses[model]}).assign(one=1)
        cut = stats.rate(table, "truncated", "one", resamples=resamples, seed=seed)
        shares = dict(zip(CUT, (cut[key] for key in ("value", "low", "high")), strict=True))
        for unit in MEASURES:
            mean = stats.bootstrap(table, (unit, "one"), resamples=resamples, seed=seed)
            quartiles = table[unit].quantile([0.25, 0.5, 0.75])
            spread = dict(zip(SPREAD, quartiles, strict=True))
            counts = {"prompts": mean["n"], "n": len(table)}
            rows.append({"model": model, "unit": unit, **mean, **spread, **counts, **shares})
    numbers = dict.fromkeys(set(SUMMARY) - {"model", "unit", "n", "prompts"}, float)
    return pd.DataFrame(rows, columns=list(SUMMARY)).astype(numbers)


def pair_lengths(pairs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Measures of both sides of every pair in use, a row per pair and unit.

    `pairs` maps a name (an iteration, an arm) to its table of pairs; the units are `MEASURES` and
    truncated (0 or 1). Columns: name, prompt_id,
    unit, chosen, rejected, difference (chosen - rejected).
    """
    parts = []
    for name, table in pairs.items():
        rows = stats.require(table, PAIRS, f"pairs of {name}")
        sides = {side: _side(rows, side) for side in ("chosen", "rejected")}
        for unit in (*MEASURES, "truncated"):
            values = {side: table[unit] for side, table in sides.items()}
            part = pd.DataFrame({"name": name, "prompt_id": rows["id"], "unit": unit, **values})
            parts.append(part.assign(difference=part["chosen"] - part["rejected"]))
    if not parts:
        return pd.DataFrame(columns=list(PAIR_LENGTHS))
    return pd.concat(parts, ignore_index=True)[list(PAIR_LENGTHS)]


def chosen_against_rejected(
    pairs: Mapping[str, pd.DataFrame], resamples: int = stats.RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Mean length of chosen and rejected responses and of their difference, per name and unit.

    Columns: name, unit, quantity (chosen, rejected, difference, or longer_chosen: the share of
    pairs whose chosen response is the longer one, ties half), value, low, high (95 %, by prompt),
    n (pairs).
    """
    rows = []
    measured_pairs = {name: pair_lengths({name: table}) for name, table in pairs.items()}
    for name, unit in itertools.product(pairs, (*MEASURES, "truncated")):
        table = measured_pairs[name].query("unit == @unit").dropna(subset="difference")
        table = table.assign(one=1, longer_chosen=(np.sign(table["difference"]) + 1) / 2)
        found = {
            quantity: stats.bootstrap(table, (quantity, "one"), resamples=resamples, seed=seed)
            for quantity in ("chosen", "rejected", "difference")
        }
        found["longer_chosen"] = stats.rate(
            table, "longer_chosen", "one", resamples=resamples, seed=seed
        )
        labels = {"name": name, "unit": unit}
        rows += [{**labels, "quantity": quantity, **found[quantity]} for quantity in found]
    return pd.DataFrame(rows, columns=list(CONTRAST)).astype(NUMBERS)


def score_follows_length(
    candidates: Mapping[str, pd.DataFrame],
    judgements: Mapping[str, pd.DataFrame],
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean over prompts of Spearman's correlation between the judge's mean score and characters.

    Both map the same names (iterations, arms) to their tables, joined by response id. Columns:
    name, value, low, high (95 %, by prompt), n (prompts where it is defined), left_out (prompts
    where it is not: a constant side, or fewer than two scored candidates).
    """
    rows = []
    for name, table in candidates.items():
        joined = _scored_lengths(table, judgements[name])
        within = stats.correlations(joined, "score", "characters").dropna().assign(one=1)
        found = stats.bootstrap(within, ("spearman", "one"), resamples=resamples, seed=seed)
        lost = joined["prompt_id"].nunique() - len(within)
        rows.append({"name": name, **found, "left_out": lost})
    return pd.DataFrame(rows, columns=list(FOLLOWING)).astype(NUMBERS)


def measured(texts: pd.Series) -> pd.DataFrame:
    """Characters, words, sentences, list_items, headings and repetition of each text."""
    texts = texts.astype(str)
    counts = {
        "characters": texts.str.len(),
        "words": texts.str.split().str.len(),
        "sentences": texts.map(sentences),
        "list_items": texts.map(list_items),
        "headings": texts.map(headings),
        "repetition": texts.map(repetition),
    }
    return pd.DataFrame(counts, index=texts.index).astype(float)


def headings(text: str) -> int:
    """Lines that are a heading in Markdown: after one to six #, or bold as a whole."""
    return len(re.findall(r"(?m)^ {0,3}(?:#{1,6}[ \t]+\S|\*\*[^*\n]+\*\*:?[ \t]*$)", text))


def repetition(text: str) -> float:
    """Share, in [0, 1], of the text's 4-grams of words that stood in it before, in any case."""
    words = text.lower().split()
    grams = list(zip(*(words[i:] for i in range(4)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _side(pairs: pd.DataFrame, side: str) -> pd.DataFrame:
    found = measured(pairs[side]).assign(tokens=pairs[f"{side}_tokens"].astype(float))
    cut = f"{side}_truncated"
    return found.assign(truncated=pairs[cut].astype(float) if cut in pairs else np.nan)


def _scored_lengths(candidates: pd.DataFrame, judgements: pd.DataFrame) -> pd.DataFrame:
    rows = stats.require(candidates, ("id", "prompt_id", "text"), "candidates")
    scores = reward_accuracy.mean_scores(judgements).set_index("response_id")["score"]
    characters = rows["text"].astype(str).str.len().astype(float)
    score = rows["id"].map(scores).astype(float)
    return pd.DataFrame({"prompt_id": rows["prompt_id"], "score": score, "characters": characters})
