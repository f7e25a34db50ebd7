"""How well a model judges: agreement with held-out rankings.

The five measures of the paper's Table 4 (section 3.2.4), each a ratio of sums over prompts, so that
a model is one ledger (`per_prompt`, a row per prompt) and every measure two of its columns. The
paper does not say how it treats ties, failures or pooling, so all of that is reported here:

- A response's score is the mean of the judgements of it that parsed; without one it is missing,
  never zero. Means keep nine decimals, so that a rounding error is a tie in every measure. A pair
  with an unscored response is no pair, but it is counted (`left_out`).
- Pairwise accuracy comes three ways: tied pairs left out (the only reading that fits all of the
  paper's numbers), counted half, and counted as wrong. Responses of equal human rank are no pair.
- 5-best: of the responses with the judge's perfect score, the share that humans ranked best.
  Perfect is a mean of exactly 5, every parsed judgement a 5; `five_best_rounded` takes 4.5 and up.
- Exact match is strict: every human-ordered pair of the prompt is in the right order, so a tie or a
  judgement that did not parse spoils it. Only prompts with a response never judged are left out.
- Spearman and Kendall's tau-b: mean over prompts where they are defined (a constant side, or fewer
  than two scored responses, is undefined and counted in `left_out`), and pooled over responses,
  with ranks as they are. Humans give 0 to the best; the sign is turned, so that +1 is agreement.

`reward_metrics` measures plain rows, without a study.

    python -c "from srkit.reward_accuracy import METRICS; print(*METRICS)"
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from srkit import stats
from srkit.config import SrkitError
from srkit.reading import require_rows, shown

LENGTH_ALONE = "length alone"

# measure -> (numerator, denominator, all that could have counted, unit); columns of `per_prompt`
METRICS = {
    "pairwise_accuracy": ("right", "decided", "pairs", "pairs"),
    "pairwise_accuracy_ties_half": ("right_or_half", "compared", "pairs", "pairs"),
    "pairwise_accuracy_ties_wrong": ("right", "compared", "pairs", "pairs"),
    "tie_rate": ("tied", "compared", "pairs", "pairs"),
    "parse_rate": ("parsed", "judgements", "judgements", "judgements"),
    "five_best": ("perfect_best", "perfect", "perfect", "responses"),
    "five_best_rounded": ("nearly_perfect_best", "nearly_perfect", "nearly_perfect", "responses"),
    "exact_match": ("exact", "judged", "ordered", "prompts"),
    "spearman": ("spearman", "correlated", "ordered", "prompts"),
    "kendall": ("kendall", "correlated", "ordered", "prompts"),
}
POOLED = {"spearman_pooled": stats.spearman, "kendall_pooled": stats.kendall}
ALL = (*METRICS, *POOLED)

# Table 4 of the paper, Llama 2 70B on Open Assistant; shares as fractions, no intervals given
PAPER = pd.DataFrame(
    {
        "pairwise_accuracy": [0.651, 0.787, 0.804, 0.817],
        "five_best": [0.396, 0.415, 0.443, 0.432],
        "exact_match": [0.101, 0.131, 0.143, 0.143],
        "spearman": [0.253, 0.279, 0.331, 0.349],
        "kendall": [0.233, 0.253, 0.315, 0.324],
    },
    index=pd.Index(["baseline", "M1", "M2", "M3"], name="model"),
)

JUDGEMENTS = ("response_id", "prompt_id", "sample", "score", "truncated")
RANKINGS = ("id", "prompt_id", "rank", "response")
TABLE = ("model", "metric", "value", "low", "high", "n", "unit", "prompts", "left_out", "chance")
PLAIN = ("prompt_id", "response_id", "rank", "scores")  # what `reward_metrics` reads
DIFFERENCES = ("model", "reference", "metric", "value", "low", "high", "prompts")
NUMBERS = dict.fromkeys(("value", "low", "high"), float)


def mean_scores(judgements: pd.DataFrame) -> pd.DataFrame:
    """One row per judged response: response_id, prompt_id, score, parsed, judgements.

    `score` is the mean of the K judgements that parsed to nine decimals, NaN if none did.
    """
    rows = stats.require(judgements, JUDGEMENTS, "judgements")
    rows = rows.assign(score=pd.to_numeric(rows["score"]))
    grouped = rows.groupby(["response_id", "prompt_id"])["score"]
    table = grouped.agg(score="mean", parsed="count", judgements="size").reset_index()
    return table.assign(score=table["score"].round(9))


def length_judgements(rankings: pd.DataFrame) -> pd.DataFrame:
    """Judgements of a judge that knows only the number of characters: the longer, the better.

    Scores are in units of just over the longest response, so that none is a perfect 5.
    """
    rows = stats.require(rankings, RANKINGS, "rankings")
    characters = rows["response"].astype(str).str.len()
    score = characters / (1 + characters.max()) if len(rows) else characters.astype(float)
    made = {"response_id": rows["id"], "prompt_id": rows["prompt_id"], "score": score}
    return pd.DataFrame(made).assign(sample=0, truncated=False)


def score_rankings(rankings: pd.DataFrame, judgements: pd.DataFrame) -> pd.DataFrame:
    """Ranked responses with the judge's mean score: id, prompt_id, rank, score, parsed, judgements.

    Joined by response id; a response that was not judged has no score. Raises SrkitError for
    judgements of responses that are not ranked.
    """
    ranked = stats.require(rankings, RANKINGS, "rankings")[["id", "prompt_id", "rank"]]
    scores = mean_scores(judgements).drop(columns="prompt_id").rename(columns={"response_id": "id"})
    strangers = sorted(set(scores["id"]) - set(ranked["id"]))
    if strangers:
        raise SrkitError(
            f"{len(strangers)} judged response(s) are not in the rankings, the first is "
            f"{strangers[0]!r}. Judgements and rankings must come from the same study; judge the "
            "held-out rankings again, or pass the rankings that were judged."
        )
    joined = ranked.merge(scores, on="id", how="left", validate="one_to_one")
    return joined.fillna({"parsed": 0, "judgements": 0})


def ranked_pairs(scored: pd.DataFrame) -> pd.DataFrame:
    """Every pair of a prompt that humans ordered: prompt_id, better, worse (ids), outcome.

    `outcome` says what the judge made of it: right, wrong, tied or unscored.
    """
    pairs = scored.merge(scored, on="prompt_id", suffixes=("_better", "_worse"))
    pairs = pairs[pairs["rank_better"] < pairs["rank_worse"]]
    gap = (pairs["score_better"] - pairs["score_worse"]).to_numpy(float)
    outcome = np.select([gap > 0, gap < 0, gap == 0], ["right", "wrong", "tied"], "unscored")
    made = {"better": pairs["id_better"], "worse": pairs["id_worse"], "outcome": outcome}
    return pd.DataFrame({"prompt_id": pairs["prompt_id"], **made}).reset_index(drop=True)


def per_prompt(scored: pd.DataFrame) -> pd.DataFrame:
    """The ledger of one judge: a row per prompt with the counts and sums that `METRICS` divides."""
    ledger = _response_sums(scored).join(_pair_sums(ranked_pairs(scored)))
    ledger["judged"] = (ledger["unjudged"] == 0) & (ledger["ordered"] > 0)
    ledger["exact"] = (ledger["right"] == ledger["pairs"]) & ledger["judged"]
    agreement = stats.correlations(scored.assign(quality=-scored["rank"]), "score", "quality")
    ledger = ledger.join(agreement[["spearman", "kendall"]])
    ledger["correlated"] = ledger["spearman"].notna()
    return ledger.fillna(0.0).astype(float)


def accuracy_table(
    rankings: pd.DataFrame,
    judgements: Mapping[str, pd.DataFrame],
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
    measures: Sequence[str] = ALL,
) -> pd.DataFrame:
    """All measures of all judges, one row each, and of length alone, which a judge must beat.

    `rankings` is seed/eft_eval, `judgements` maps a model's name to its table on it. Columns:
    model, metric, value, low, high (95 %, by prompt), n (in `unit`), unit, prompts, left_out
    (units that could not count), chance (what a coin, or a random order, gets).
    """
    judges = {**judgements, LENGTH_ALONE: length_judgements(rankings)}
    parts = [
        _measured(score_rankings(rankings, table), resamples, seed, measures).assign(model=name)
        for name, table in judges.items()
    ]
    return pd.concat(parts, ignore_index=True)[list(TABLE)]


def reward_metrics(
    rows: Sequence[Mapping[str, Any]], resamples: int = stats.RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """All measures of one judge from plain rows, without a study: a row per measure.

    `rows` have prompt_id, response_id (of one row each), rank (0 is best; equal ranks make no
    pair) and scores: the K judgements of the response, each a number, or None if it could not be
    read. Columns: metric, value, low, high (95 %, by prompt), n (in `unit`), unit, prompts,
    left_out, chance, as `accuracy_table` has them.

    The paper's five measures are pairwise accuracy, five_best, exact_match, spearman and kendall.
    The three conventions for ties are three rows of pairwise accuracy (left out, half, wrong); in
    the other measures ties are settled: they spoil an exact match, and correlations know them
    (midranks, tau-b). `tie_rate` and `parse_rate` stand beside them. Missing values are NaN.

    Raises: SrkitError for no rows, a missing column, an id that stands twice, a rank or score that
    is no number.
    """
    require_rows(rows, PLAIN, "reward_metrics", unique="response_id")
    scored = pd.DataFrame([_plain_row(row, number) for number, row in enumerate(rows, 1)])
    table = _measured(scored.astype({"score": float}), resamples, seed, ALL)
    return table[[name for name in TABLE if name != "model"]]


def _plain_row(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A row of `reward_metrics` as `score_rankings` has it."""
    scores = row["scores"]
    if isinstance(scores, str) or not isinstance(scores, Iterable):
        raise SrkitError(
            f"reward_metrics, row {number}: scores is {shown(scores)}, not a list of numbers and "
            "None, one per judgement."
        )
    parsed = [s for s in scores if s is not None and s == s]  # NaN is not itself
    for name, value in (("rank", row["rank"]), *(("a score", s) for s in parsed)):
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise SrkitError(f"reward_metrics, row {number}: {name} is {shown(value)}, no number.")
    made = {"id": row["response_id"], "prompt_id": row["prompt_id"], "rank": float(row["rank"])}
    mean = round(math.fsum(parsed) / len(parsed), 9) if parsed else math.nan
    return {**made, "score": mean, "parsed": len(parsed), "judgements": len(scores)}


def _measured(
    scored: pd.DataFrame, resamples: int, seed: int, measures: Sequence[str]
) -> pd.DataFrame:
    """A row per measure of one judge; `scored` as `score_rankings` returns it."""
    sums = _sums(scored)
    rows = [_measure(sums[m], m, resamples, seed) for m in METRICS if m in measures]
    rows += [_pooled(sums[m], m, len(scored), resamples, seed) for m in POOLED if m in measures]
    table = pd.DataFrame(rows).astype(NUMBERS)
    return table.assign(chance=table["metric"].map(_chance(scored)).astype(float))


def paired_differences(
    rankings: pd.DataFrame,
    judgements: Mapping[str, pd.DataFrame],
    pairs: Sequence[tuple[str, str]] | None = None,
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
    measures: Sequence[str] = ALL,
) -> pd.DataFrame:
    """Differences model - reference of every measure, resampling the same prompts for both.

    `pairs` lists (model, reference); without it each model is set against the one before it.
    Columns: model, reference, metric, value, low, high (95 %), prompts (shared by the two).
    Raises SrkitError for a name without judgements.
    """
    names = list(judgements)
    pairs = list(zip(names[1:], names, strict=False)) if pairs is None else pairs
    unknown = sorted({name for pair in pairs for name in pair} - set(names))
    if unknown:
        raise SrkitError(f"No judgements of {', '.join(unknown)}; there are {', '.join(names)}.")
    sums = {name: _sums(score_rankings(rankings, judgements[name])) for name in names}
    rows = []
    for (model, reference), metric in itertools.product(pairs, measures):
        two = sums[model][metric], sums[reference][metric]
        statistic = POOLED.get(metric) or METRICS[metric][:2]
        found = stats.paired_bootstrap(*two, statistic, resamples=resamples, seed=seed)
        rows.append({"model": model, "reference": reference, "metric": metric, **found})
    table = pd.DataFrame(rows, columns=[*DIFFERENCES[:-1], "n"]).astype(NUMBERS)
    return table.rename(columns={"n": "prompts"})


def _response_sums(scored: pd.DataFrame) -> pd.DataFrame:
    best = scored["rank"] == scored.groupby("prompt_id")["rank"].transform("min")
    marks = scored[["prompt_id", "parsed", "judgements"]].assign(
        unjudged=scored["judgements"] == 0,
        perfect=scored["score"] >= 5,
        nearly_perfect=scored["score"] >= 4.5,
    )
    marks["perfect_best"] = marks["perfect"] & best
    marks["nearly_perfect_best"] = marks["nearly_perfect"] & best
    return marks.groupby("prompt_id").sum()


def _pair_sums(pairs: pd.DataFrame) -> pd.DataFrame:
    marks = pairs[["prompt_id"]].assign(
        pairs=1,
        **{name: pairs["outcome"] == name for name in ("right", "wrong", "tied")},
    )
    sums = marks.groupby("prompt_id").sum().astype(float)
    sums["decided"] = sums["right"] + sums["wrong"]
    sums["compared"] = sums["decided"] + sums["tied"]
    sums["right_or_half"] = sums["right"] + sums["tied"] / 2
    return sums.assign(ordered=1.0)


def _sums(scored: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What each metric is computed from, per prompt: the ledger, or a contingency table."""
    cells = stats.contingency(scored.assign(quality=-scored["rank"]), "score", "quality")
    # prompts without a score stay, empty: a difference is over the same prompts for both judges
    cells = cells.reindex(sorted(scored["prompt_id"].unique()), fill_value=0).rename_axis(
        "prompt_id"
    )
    return {**dict.fromkeys(METRICS, per_prompt(scored)), **dict.fromkeys(POOLED, cells)}


def _measure(ledger: pd.DataFrame, metric: str, resamples: int, seed: int) -> dict[str, Any]:
    above, below, possible, unit = METRICS[metric]
    if metric in ("spearman", "kendall"):
        found = stats.bootstrap(ledger, (above, below), resamples=resamples, seed=seed)
    else:
        found = stats.rate(ledger, above, below, resamples=resamples, seed=seed)
    n = int(ledger[below].sum())
    counts = {"n": n, "unit": unit, "prompts": found["n"]}
    return {"metric": metric, **found, **counts, "left_out": int(ledger[possible].sum()) - n}


def _pooled(
    cells: pd.DataFrame, metric: str, responses: int, resamples: int, seed: int
) -> dict[str, Any]:
    found = stats.bootstrap(cells, POOLED[metric], resamples=resamples, seed=seed)
    n = int(cells.to_numpy().sum())
    counts = {"n": n, "unit": "responses", "prompts": found["n"], "left_out": responses - n}
    return {"metric": metric, **found, **counts}


def _chance(ranked: pd.DataFrame) -> dict[str, float]:
    """What a judge without knowledge gets: a coin per pair, a random order per prompt."""
    best = (ranked["rank"] == ranked.groupby("prompt_id")["rank"].transform("min")).mean()
    # k responses can stand in k! orders; those with equal human ranks agree with several
    orders = ranked.groupby("prompt_id")["rank"].agg(_chance_of_order)
    exact = orders[orders < 1].mean() if len(orders) else np.nan
    coin = dict.fromkeys((name for name in METRICS if name.startswith("pairwise")), 0.5)
    zero = dict.fromkeys(("spearman", "kendall", *POOLED), 0.0)
    return {**coin, **zero, "five_best": best, "five_best_rounded": best, "exact_match": exact}


def _chance_of_order(ranks: pd.Series) -> float:
    alike = math.prod(math.factorial(k) for k in ranks.value_counts())
    return alike / math.factorial(len(ranks))
