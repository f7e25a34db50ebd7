"""The analysis steps: finished tables in, `metrics/*.json` out. No model is loaded.

Each file holds tidy tables by name, every rate with n and a 95 % interval, and each analysis
module says what its columns mean. Figures and the report read these files and nothing else.

    python -c "from srkit import metrics, study; \\
        print(metrics.load(study.Study.open('runs/first'), 'win_rates'))"
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise

import pandas as pd

from srkit import constraints, headtohead, health, length, reward_accuracy, strength
from srkit.config import SrkitError
from srkit.plan import model_names
from srkit.study import Study

Tables = dict[str, pd.DataFrame]


def models(study: Study) -> list[str]:
    """Names of all trained models of the study's arms, in order."""
    names = [m for arm in study.arms for m in model_names(study.config.for_arm(arm), arm)]
    return list(dict.fromkeys(names))


def starts(study: Study) -> dict[str, str]:
    """The model that each arm started from, by the names of the arm's models."""
    arms = {arm: study.config.for_arm(arm) for arm in study.arms}
    names = [(m, config.start) for arm, config in arms.items() for m in model_names(config, arm)]
    return {model: start for model, start in names if "/" in model}


def iterations(study: Study) -> list[str]:
    """Folders of all iterations, such as `self-rewarding/iter-1`."""
    rounds = range(1, study.config.iterations + 1)
    return [f"{arm}/iter-{t}" for arm in study.arms for t in rounds]


def make_reward_accuracy(study: Study) -> Tables:
    """Step `metrics/reward_accuracy`: each model as a judge of the held-out rankings (Table 4).

    Tables: `accuracy`, `differences` (paired, each model against the one before it), `histogram`
    and `health` of the judgements of held-out responses and of each iteration's candidates.
    """

    def compute() -> Tables:
        rankings, judged = study.frame("seed/eft_eval"), _tables(study, models(study), "judgements")
        loops = _tables(study, iterations(study), "judgements")
        options, everything = _options(study), {**judged, **loops}
        steps = [pairwise(model_names(study.config.for_arm(a), a)) for a in study.arms]
        changes = list(dict.fromkeys((after, before) for s in steps for before, after in s))
        return {
            "accuracy": reward_accuracy.accuracy_table(rankings, judged, **options),
            "differences": reward_accuracy.paired_differences(rankings, judged, changes, **options),
            "histogram": health.score_histogram(everything),
            "health": health.health_table(everything),
        }

    return _make(study, "reward_accuracy", compute)


def make_length_drift(study: Study) -> Tables:
    """Step `metrics/length_drift`: answers per model, chosen against rejected, score and length.

    Tables: `lengths` (a row per answer), `by_model`, `chosen_rejected`, `score_follows_length`.
    """

    def compute() -> Tables:
        answers, loops = _tables(study, models(study), "responses"), iterations(study)
        pairs = _tables(study, loops, "pairs")
        candidates, judged = (_tables(study, loops, t) for t in ("candidates", "judgements"))
        options = _options(study)
        return {
            "lengths": length.lengths(answers),
            "by_model": length.length_table(answers, **options),
            "chosen_rejected": length.chosen_against_rejected(pairs, **options),
            "score_follows_length": length.score_follows_length(candidates, judged, **options),
        }

    return _make(study, "length_drift", compute)


def make_win_rates(study: Study) -> Tables:
    """Step `metrics/win_rates`: comparisons by the referee, its card, and checkable constraints.

    Tables: `head_to_head`, `measures` (each pair's win rates, also at equal length), `strengths`
    (Bradley-Terry), `power` (what n prompts can show), `referee_card`, `constraints` (those that
    the prompts state), `controls` (those of the oracle, on every answer).
    """

    def compute() -> Tables:
        compared = _tables(study, [m for m in models(study) if m != "baseline"], "comparisons")
        rows = pd.concat(compared.values()).drop_duplicates("id")
        answers, card = (
            _tables(study, models(study), "responses"),
            study.frame("referee/comparisons"),
        )
        options = _options(study)
        matches = headtohead.head_to_head(rows, **options)
        return {
            "head_to_head": matches,
            "measures": strength.win_rates(rows, length.lengths(answers), **options),
            "strengths": strength.bradley_terry(rows),
            "power": strength.power_table(matches),
            "referee_card": headtohead.referee_card(card, study.frame("seed/eft_eval"), **options),
            "constraints": constraints.pass_rates(answers, **options),
            "controls": constraints.oracle_scores(
                answers, constraints.parse(study.config.arms.oracle), starts(study), **options
            ),
        }

    return _make(study, "win_rates", compute)


def load(study: Study, name: str) -> Tables:
    """The tables of a finished analysis, by name.

    Raises: SrkitError naming the notebook to run first, a file that was altered, or tables that
    were made again since.
    """
    text = study.read_text(f"metrics/{name}")
    study.check_inputs(f"metrics/{name}")
    tables = {table: pd.DataFrame(rows) for table, rows in json.loads(text).items()}
    for table in tables.values():
        # a column in which nothing is defined comes back from JSON as None, not NaN
        undefined = [c for c in table.columns if table[c].isna().all()]
        table[undefined] = table[undefined].astype(float)
    return tables


def table(study: Study, analysis: str, name: str) -> pd.DataFrame:
    """One table of a finished analysis.

    Raises: SrkitError as `load` does, or if an earlier version of the kit made the file.
    """
    tables = load(study, analysis)
    if name not in tables:
        step = study.step(f"metrics/{analysis}")
        raise SrkitError(
            f"{study.path / step.outputs[0]} has no table {name!r}, only {', '.join(tables)}: an "
            "earlier version of srkit made it. Delete the file and run notebook "
            f"{step.notebook} again; no model is loaded for that."
        )
    return tables[name]


def _make(study: Study, name: str, compute: Callable[[], Tables]) -> Tables:
    def text() -> str:
        tables = {t: json.loads(f.to_json(orient="records")) for t, f in compute().items()}
        return json.dumps(tables, indent=1, ensure_ascii=False) + "\n"

    study.make_file(f"metrics/{name}", text)
    return load(study, name)


def _tables(study: Study, owners: list[str], table: str) -> Tables:
    return {owner: study.frame(f"{owner}/{table}") for owner in owners}


def _options(study: Study) -> dict[str, int]:
    return {"resamples": study.config.eval.resamples, "seed": study.config.random_seed}
