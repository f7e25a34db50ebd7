"""Estimates with intervals: Wilson, the bootstrap by prompt, the paired bootstrap, a logistic fit.

Rows of one prompt are not independent, so whole prompts are resampled, never single rows. Every
statistic here is a function of column *sums* (a share is hits over trials, a mean is a sum over a
count, a pooled rank correlation is a function of a contingency table), so a resample only reweights
the sums of each prompt: 2,000 resamples are one matrix product and cost milliseconds. Medians are
not of this kind; `scipy.stats.bootstrap` does those.

Surprising decisions: percentiles of few prompts lie too close together, so they are expanded to
where a mean's interval is Student's (Hesterberg 2015): at 8 prompts 0.6 and 99.4, at 190 2.4 and
97.6. A resample cannot see the uncertainty of what is the same in every prompt (an interval without
width would claim certainty), so `rate` falls back to Wilson's interval with prompts as trials, and
what is no share (a difference, a correlation) then has no interval. What is undefined is None,
never 0, and one prompt alone has no interval. The paper gives no intervals (section 3); the rule
of the kit is that every rate carries n and one.

    python -c "from srkit.stats import wilson; print(wilson(45, 60))"
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import binom, kendalltau, norm, spearmanr
from scipy.stats import t as student
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_linear_model import GLM
from statsmodels.stats.proportion import proportion_confint
from statsmodels.tools.sm_exceptions import PerfectSeparationWarning

from srkit.config import SrkitError

RESAMPLES = 2000
Estimate = dict[str, float | int | None]  # value, low, high (95 %), n
Statistic = tuple[str, str] | Callable[[pd.DataFrame], pd.Series]


def require(frame: pd.DataFrame, columns: Iterable[str], table: str) -> pd.DataFrame:
    """The rows of `frame` that are in use (`dropped` is null); an empty table gets its columns.

    Raises SrkitError when a table with rows lacks a column. `table` is the name errors give it.
    """
    rows = frame[frame["dropped"].isna()] if "dropped" in frame.columns else frame
    missing = [name for name in columns if name not in rows.columns]
    if missing and len(rows):
        raise SrkitError(
            f"The table of {table} lacks the column(s) {', '.join(missing)}; it has "
            f"{', '.join(map(str, rows.columns))}. Pass the table as the step wrote it."
        )
    return rows.reindex(columns=[*rows.columns, *missing]) if missing else rows


def wilson(successes: float, n: int) -> Estimate:
    """Share of `successes` among `n` independent trials with Wilson's 95 % interval.

    A half success (a tie) may count half. Raises SrkitError unless 0 <= successes <= n. With n = 0
    nothing is known: all None.
    """
    if not 0 <= successes <= n:
        raise SrkitError(
            f"Wilson's interval needs 0 <= successes <= n, got {successes} of {n}. "
            "Count the trials again: each is one success or one failure."
        )
    if n == 0:
        return _estimate(np.nan, np.nan, np.nan, 0)
    share = successes / n
    low, high = proportion_confint(successes, n, method="wilson")
    return _estimate(share, min(low, share), max(high, share), n)  # they miss 0 and 1 by 1e-18


def bootstrap(
    frame: pd.DataFrame,
    statistic: Statistic,
    by: str = "prompt_id",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Value and 95 % percentile interval of `statistic` when whole clusters are resampled.

    `frame` has any number of rows per cluster; `by` is a column or index level. `statistic` is two
    column names (sum of the first over sum of the second; rows with a missing value and clusters
    without a trial are left out) or a function of a frame of sums of all numeric columns,
    (resamples, columns) -> (resamples,). `n` is the number of clusters that count. No interval
    (None) where no resample differs.
    """
    sums = _cluster_sums(frame, statistic, by)
    sums = sums[_counting(sums, statistic)]
    draws = _apply(statistic, _resample(sums, _weights(len(sums), resamples, seed)))
    return _percentiles(_value(statistic, sums), draws, len(sums))


def paired_bootstrap(
    left: pd.DataFrame,
    right: pd.DataFrame,
    statistic: Statistic,
    by: str = "prompt_id",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Difference left - right of `statistic` for two models, resampling the same prompts for both.

    Only prompts that both frames have are used; `n` is the number of those with a trial in either.
    Pairing removes what the prompts have in common, so this interval is the one to read, not the
    overlap of two others. No interval (None) where no resample differs: n prompts without a change
    do not exclude one.
    """
    left, right = _cluster_sums(left, statistic, by), _cluster_sums(right, statistic, by)
    shared = left.index.intersection(right.index).sort_values()
    counting = _counting(left.loc[shared], statistic) | _counting(right.loc[shared], statistic)
    shared = shared[counting]
    left, right = left.loc[shared], right.loc[shared]
    weights = _weights(len(shared), resamples, seed)
    draws = _apply(statistic, _resample(left, weights))
    draws = draws - _apply(statistic, _resample(right, weights))
    return _percentiles(_value(statistic, left) - _value(statistic, right), draws, len(shared))


def rate(
    frame: pd.DataFrame,
    hits: str,
    trials: str,
    by: str = "prompt_id",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Share hits / trials over prompts; both are column names, a hit may be half a hit.

    One whole trial per prompt, or the same share in every prompt: Wilson with prompts as trials
    (for shares within prompts it is on the wide side). Otherwise the bootstrap by prompt. `n` is
    the number of prompts with a trial.
    """
    sums = _cluster_sums(frame, (hits, trials), by)
    sums = sums[sums[trials] != 0]
    shares = sums[hits] / sums[trials]
    single = (sums[trials] == 1).all() and shares.isin([0, 1]).all()
    if single or _alike(shares.to_numpy()):
        return wilson(shares.sum(), len(sums))
    return bootstrap(sums, (hits, trials), by, resamples, seed)


def correlations(frame: pd.DataFrame, x: str, y: str, by: str = "prompt_id") -> pd.DataFrame:
    """Rank correlations within each prompt: index `by`, columns spearman, kendall (tau-b), items.

    Rows with a missing value are left out. Fewer than two rows, or a constant side, leave both
    correlations undefined (NaN).
    """
    rows = frame[[by, x, y]].dropna(subset=[x, y])
    table = {prompt: _correlate(group[x], group[y]) for prompt, group in rows.groupby(by)}
    names = ["spearman", "kendall", "items"]
    frame = pd.DataFrame.from_dict(table, orient="index", columns=names, dtype=float)
    return frame.rename_axis(index=by)


def contingency(frame: pd.DataFrame, x: str, y: str, by: str = "prompt_id") -> pd.DataFrame:
    """How often each (x, y) occurs in each prompt: (prompts, cells), columns a MultiIndex (x, y).

    The sum over prompts holds all that a pooled rank correlation needs: `spearman` and `kendall`
    are statistics for `bootstrap` on this frame.
    """
    rows = frame[[by, x, y]].dropna(subset=[x, y])
    if rows.empty:
        empty = pd.MultiIndex.from_arrays([[], []], names=[x, y])
        return pd.DataFrame(index=pd.Index([], name=by), columns=empty, dtype=float)
    return pd.crosstab(rows[by], [rows[x], rows[y]])


def spearman(counts: pd.DataFrame) -> pd.Series:
    """Spearman's correlation of each row of cell counts (see `contingency`), ties by midranks."""
    x, y = _signs(counts, 0), _signs(counts, 1)
    n = counts.to_numpy(float)  # (resamples, cells)
    rank_x, rank_y = n @ x.T, n @ y.T  # twice the midrank less its mean
    spread = (n * rank_x**2).sum(1) * (n * rank_y**2).sum(1)
    return _quotient((n * rank_x * rank_y).sum(1), np.sqrt(spread), counts.index)


def kendall(counts: pd.DataFrame) -> pd.Series:
    """Kendall's tau-b of each row of cell counts (see `contingency`)."""
    x, y = _signs(counts, 0), _signs(counts, 1)
    n = counts.to_numpy(float)  # (resamples, cells)
    untied_x, untied_y = (n * (n @ np.abs(x))).sum(1), (n * (n @ np.abs(y))).sum(1)
    return _quotient((n * (n @ (x * y))).sum(1), np.sqrt(untied_x * untied_y), counts.index)


def logistic(
    design: pd.DataFrame, target: np.ndarray, clusters: np.ndarray, prior: pd.DataFrame
) -> pd.DataFrame:
    """Logistic regression without intercept: a row per column of `design` with value (log-odds),
    se, low, high (95 %).

    `target` is 1, 0 or a half (a tie). Each row of `prior` is added as half a success and half a
    failure, which keeps estimates finite where all went one way (Haldane, Anscombe). `se` is the
    larger of two: the model's, for which every row is a coin and a tie thus no certainty, and the
    one clustered by `clusters`, which sees what the rows of one prompt have in common.
    """
    rows = pd.concat([design, prior[list(design.columns)]], ignore_index=True).astype(float)
    targets = np.append(np.asarray(target, float), np.full(len(prior), 0.5))
    codes = np.append(pd.factorize(clusters)[0], np.arange(len(prior)) + len(design))
    model = GLM(targets, rows, family=Binomial())
    with warnings.catch_warnings():
        # nothing but ties is predicted perfectly; with the prior the maximum is finite all the same
        warnings.simplefilter("ignore", PerfectSeparationWarning)
        plain = model.fit(tol=1e-12)
        clustered = model.fit(tol=1e-12, cov_type="cluster", cov_kwds={"groups": codes})
    value, error = plain.params, np.maximum(plain.bse, clustered.bse)
    reach = norm.ppf(0.975) * error
    return pd.DataFrame({"value": value, "se": error, "low": value - reach, "high": value + reach})


def smallest_shown(n: int, ties: float = 0.0, power: float = 0.8) -> float | None:
    """The smallest win rate above a half (ties half) that n prompts can show.

    Shown: the exact two-sided sign test at 5 % finds it with probability `power`; `ties` is their
    share, of which a win rate learns nothing. None where not even winning every decided prompt
    would do: of fewer than six.
    """
    decided = round(n * (1 - ties))
    lost = int(binom.ppf(0.025, decided, 0.5))
    lost -= binom.cdf(lost, decided, 0.5) > 0.025  # the most that may be lost, or won
    if lost < 0:
        return None

    def missing(p: float) -> float:
        return power - binom.sf(decided - lost - 1, decided, p) - binom.cdf(lost, decided, p)

    return ties / 2 + (1 - ties) * brentq(missing, 0.5, 1)


def _correlate(x: pd.Series, y: pd.Series) -> tuple[float, float, int]:
    if x.nunique() < 2 or y.nunique() < 2:
        return np.nan, np.nan, len(x)
    return spearmanr(x, y).statistic, kendalltau(x, y).statistic, len(x)


def _signs(counts: pd.DataFrame, level: int) -> np.ndarray:
    values = counts.columns.get_level_values(level).to_numpy(float)
    return np.sign(np.subtract.outer(values, values))  # (cells, cells)


def _quotient(above: np.ndarray, below: np.ndarray, index: pd.Index) -> pd.Series:
    with np.errstate(invalid="ignore", divide="ignore"):
        return pd.Series(np.where(below > 0, above / below, np.nan), index=index)


def _cluster_sums(frame: pd.DataFrame, statistic: Statistic, by: str) -> pd.DataFrame:
    if isinstance(statistic, tuple):
        if frame.index.name == by and frame.index.is_unique:  # they are sums already
            return frame[list(statistic)].astype(float).dropna().sort_index()
        frame = frame.reset_index()[[by, *statistic]]
        frame = frame.astype(dict.fromkeys(statistic, float)).dropna()
    return frame.groupby(by).sum(numeric_only=True).astype(float)


def _counting(sums: pd.DataFrame, statistic: Statistic) -> np.ndarray:
    """Which clusters have a trial, or for a function of sums anything at all."""
    columns = [statistic[1]] if isinstance(statistic, tuple) else list(sums.columns)
    return (sums[columns] != 0).any(axis=1).to_numpy()


def _weights(clusters: int, resamples: int, seed: int) -> np.ndarray:
    """How often each resample holds each cluster: (resamples, clusters)."""
    if not clusters:
        return np.zeros((resamples, 0))
    even = np.full(clusters, 1 / clusters)
    return np.random.default_rng(seed).multinomial(clusters, even, size=resamples)


def _resample(sums: pd.DataFrame, weights: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(weights @ sums.to_numpy(), columns=sums.columns)


def _value(statistic: Statistic, sums: pd.DataFrame) -> float:
    return float(_apply(statistic, _resample(sums, np.ones((1, len(sums)))))[0])


def _apply(statistic: Statistic, sums: pd.DataFrame) -> np.ndarray:
    if isinstance(statistic, tuple):
        values = _quotient(sums[statistic[0]].to_numpy(), sums[statistic[1]].to_numpy(), sums.index)
    else:
        values = statistic(sums)
    if np.shape(values) != (len(sums),):
        raise SrkitError(
            f"A statistic must give one value per row of sums ({len(sums)}), not an array of "
            f"shape {np.shape(values)}. Write it with columns: lambda sums: sums.hits / sums.trials"
        )
    return np.asarray(values, float)


def _percentiles(value: float, draws: np.ndarray, n: int) -> Estimate:
    draws = draws[np.isfinite(draws)]
    if n < 2 or not len(draws) or not np.isfinite(value) or _alike(draws):
        return _estimate(value, np.nan, np.nan, n)
    tail = norm.cdf(-math.sqrt(n / (n - 1)) * student.ppf(0.975, n - 1))
    return _estimate(value, *np.quantile(draws, [tail, 1 - tail]), n)


def _alike(values: np.ndarray) -> bool:
    """Whether values differ by rounding errors only."""
    return len(values) > 0 and np.ptp(values) <= 1e-9 * max(1.0, np.abs(values).max())


def _estimate(value: float, low: float, high: float, n: int) -> Estimate:
    numbers = zip(("value", "low", "high"), (value, low, high), strict=True)
    known = {name: float(x) if np.isfinite(x) else None for name, x in numbers}
    return {**known, "n": int(n)}
