"""What a study shows and does not show, in sentences.

Surprising decision: they are chosen by intervals, not by signs: a difference whose 95 % interval
contains nothing-changed is reported as not shown.

    python -c "from srkit import findings, study; \\
        print(*findings.findings(study.Study.open('runs/first')), sep='\\n')"
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pandas as pd

from srkit import ablations, benchmarks, blind_spots, metrics, overoptimisation, refine
from srkit.headtohead import MATCH
from srkit.plan import PAPER_ARM, REWARD_MODEL, SEEDED
from srkit.probes import CONTROL
from srkit.reward_accuracy import LENGTH_ALONE
from srkit.rows import Row
from srkit.study import Study

NAMED = ("model", "reference", "name", "against", "left", "right", "way")  # columns of names


def findings(study: Study) -> dict[str, list[str]]:
    """What the study shows and does not show, by question: plain sentences, with intervals."""

    def tables(analysis: str) -> metrics.Tables:
        found = metrics.load(study, analysis)
        return {name: uncrowded(study, table) for name, table in found.items()}

    def table(analysis: str, name: str) -> pd.DataFrame:
        return uncrowded(study, metrics.table(study, analysis, name))

    accuracy, lengths = tables("reward_accuracy"), tables("length_drift")
    wins, texts = tables("win_rates"), tables("data_distribution")
    told = {
        "Does the judge get better?": [
            *_judging(accuracy["accuracy"], partial(_writes, study)),
            *_changes(accuracy["differences"]),
            *_calibration(table("reward_accuracy", "calibration_slopes")),
            *_agreement(table("reward_accuracy", "agreement")),
            *_ways(table("reward_accuracy", "ways_differences")),
            *_left_out(study),
        ],
        "Do answers get better?": [
            *_constraints(wins["constraints"]),
            *_matches(wins["head_to_head"], table("win_rates", "measures")),
            *(_equal_length(lengths["equal_length"]) if _decides(wins["head_to_head"]) else []),
            *_card(wins["referee_card"]),
            *_power(table("win_rates", "power")),
        ],
        "Do they get longer?": [
            *_lengths(lengths["by_model"]),
            *_score_and_length(lengths["score_and_length"]),
        ],
        "What do controls and other arms change?": [
            *_controls(wins["controls"]),
            *_arms(metrics.table(study, "ablations", "outcomes")),
        ],
        "Is an answer refined worth what training is?": _refined(tables("refine")),
        "Can the judge be talked into a score, and what does it not see?": [
            *_probes(table("reward_hacking", "probes")),
            *_blind_spots(table("reward_hacking", "blind_spots")),
            *_transitions(table("reward_hacking", "transitions")),
            *_own_and_independent(table("reward_hacking", "curve")),
        ],
        "What did training cost, and how far did it go?": [
            *_benchmarks(table("benchmarks", "changes")),
            *_kl(uncrowded(study, metrics.kl_to_start(study))),
        ],
        "What were the models trained on?": [
            *_leaks(_self_made(study, texts["novelty"])),
            *_topic_drift(texts["topic_drift"]),
        ],
    }
    return {question: sentences for question, sentences in told.items() if sentences}


def uncrowded(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """A table without the models and iterations that `ablations.foremost` leaves out."""
    columns = [name for name in NAMED if name in table.columns]
    return table[~table[columns].isin(_crowd(study)).any(axis=1)]


def _crowd(study: Study) -> set[str]:
    every = (metrics.models(study), metrics.iterations(study))
    return {name for names in every for name in set(names) - set(ablations.foremost(names))}


def _left_out(study: Study) -> list[str]:
    models = metrics.models(study)
    told = [name for name in models if name not in _crowd(study)]
    words = f"Sentences here are about {len(told)} of {len(models)} models: {', '.join(told)}. "
    words += "The others stand in the tables, and beside each other below."
    return [words] if len(told) < len(models) else []


def _writes(study: Study, judge: str) -> bool:
    """Whether a judge writes its judgements: probabilities and rewards are read, and always are."""
    return metrics.judged_by(study, judge).method == "sampled" and judge != REWARD_MODEL


def _judging(table: pd.DataFrame, writes: Callable[[str], bool]) -> list[str]:
    """How right each judge is, and how many of the judgements that it wrote could be read."""
    rows = table[table["metric"] == "pairwise_accuracy"].set_index("model")
    parsed = table[table["metric"] == "parse_rate"].set_index("model", drop=False)
    told = []
    for model, row in rows.iterrows():
        if model == "length alone" or pd.isna(row["value"]):
            continue
        verdict = _against(row, 0.5, "above chance", "below chance", "not told from chance")
        told.append(
            f"As a judge, {model} orders {rate(row)} of the untied held-out pairs as the seed "
            f"does: {verdict}."
        )
        if writes(model):
            told[-1] += f" Of its judgements {rate(parsed.loc[model].to_dict())} parse."
    return told


def _changes(table: pd.DataFrame) -> list[str]:
    told = []
    for row in table[table["metric"] == "pairwise_accuracy"].to_dict("records"):
        if pd.isna(row["value"]):
            continue
        verdict = _against(row, 0, "better", "worse", "no difference shown")
        told.append(
            f"Judging, {row['model']} against {row['reference']}: {100 * row['value']:+.1f} points "
            f"[{_interval(row, '+.1f')}], {row['prompts']:.0f} prompts: {verdict}."
        )
    return told


def _calibration(table: pd.DataFrame) -> list[str]:
    return [
        f"One standard deviation more between two scores of {row['model']} raises the log-odds "
        f"that it orders them as the seed does by {row['value']:.2f} [{row['low']:.2f}, "
        f"{row['high']:.2f}], {row['n']:.0f} pairs: "
        f"{_against(row, 0, 'its differences mean something', 'they mislead', 'not shown')}."
        for row in table.dropna(subset="value").to_dict("records")
    ]


def _agreement(table: pd.DataFrame) -> list[str]:
    told = []
    for row in table[table["measure"] == "kendall"].dropna(subset="value").to_dict("records"):
        ends = "no interval"
        if not pd.isna(row["low"]):
            ends = f"{row['low']:.2f}, {row['high']:.2f}"
        told.append(
            f"{row['model']} and {row['reference']} judge the held-out responses alike by a mean "
            f"Kendall's tau-b of {row['value']:.2f} [{ends}, n = {row['n']:.0f} prompts]."
        )
    return told


def _ways(table: pd.DataFrame) -> list[str]:
    """Per model, which ways of judging differ from the paper's (the mean of K additive draws)."""
    if table.empty:
        return []
    rows = table[(table["metric"] == "pairwise_accuracy") & (table["reference"] != LENGTH_ALONE)]
    told = []
    for (of, paper), group in rows.groupby(["of", "reference"], sort=False):
        known = group.dropna(subset=["value", "low"])
        shown = [
            f"{row['model']} {verdict} by {100 * abs(row['value']):.1f} points "
            f"[{_interval(row, '+.1f')}], {row['prompts']:.0f} prompts"
            for row in known.to_dict("records")
            if (verdict := _against(row, 0, "better", "worse", ""))
        ]
        said = "; ".join(shown) or "no difference shown"
        if shown:
            said += f" ({len(known) / 20:.1g} would be by chance alone)"
        told.append(
            f"{of} judging in {len(group)} other ways, against {paper}, of which "
            f"{len(known)} could be compared, each on the pairs that it tells apart: {said}."
        )
    return told


def _matches(table: pd.DataFrame, measures: pd.DataFrame) -> list[str]:
    """A sentence per pair of models, but only one where a referee told nothing apart."""
    if not _decides(table):
        return [
            f"All {games['n'].sum()} verdicts of referee {referee} are ties: its win rates, also "
            "at equal length, say nothing about the models."
            for referee, games in table.groupby("referee", sort=False)
        ]
    told = []
    controlled = measures[measures["measure"] == "win_rate_length_controlled"]
    at_equal_length = controlled.set_index(MATCH).to_dict("index")
    for row in table.to_dict("records"):
        fair = at_equal_length[tuple(row[name] for name in MATCH)]
        won = {"value": row["win_rate"], "low": row["win_rate_low"], "high": row["win_rate_high"]}
        verdict = _against(won, 0.5, "preferred", "not preferred", "no difference shown")
        told.append(
            f"Answers of {row['left']} against {row['right']} (referee {row['referee']}): win rate "
            f"{rate(won | {'n': row['n']})}, ties half ({row['wins']} wins, {row['ties']} ties, "
            f"{row['losses']} losses): {verdict}. At equal length {rate(fair)}."
        )
    return told


def _decides(games: pd.DataFrame) -> bool:
    return games.empty or bool(games[["wins", "losses"]].to_numpy().any())


def _power(table: pd.DataFrame) -> list[str]:
    told = []
    for row in table[table["here"] & ~table["referee"].str.endswith("(the paper)")].to_dict(
        "records"
    ):
        words = f"With {row['n']} prompts and {100 * row['tie_share']:.0f} % ties, "
        if pd.isna(row["win_rate"]):
            words += (
                f"no win rate that referee {row['referee']} could give would show a difference."
            )
        else:
            words += (
                f"referee {row['referee']} would show a win rate of {100 * row['win_rate']:.0f} % "
                "or more (or as far below one half) in four of five studies; smaller ones seldom."
            )
        told.append(words)
    return told


def _card(table: pd.DataFrame) -> list[str]:
    rows = table.set_index("metric").to_dict("index")
    accuracy, consistency = rows["accuracy"], rows["position_consistency"]
    verdict = _against(accuracy, 0.5, "above a coin", "below a coin", "not told from a coin")
    return [
        f"The referee itself agrees with the seed on {rate(accuracy)} of held-out pairs "
        f"({verdict}) and keeps its verdict when the order is swapped in {rate(consistency)}. "
        "Win rates are worth as much as that."
    ]


def _constraints(table: pd.DataFrame) -> list[str]:
    if table.empty:
        return ["No test prompt carries a constraint that a program could check."]
    rows = table[table["kind"] == "all constraints"].to_dict("records")
    each = ", ".join(f"{row['model']} {rate(row)}" for row in rows)
    return [f"Checkable constraints met: {each}."] if rows else []


def _controls(table: pd.DataFrame) -> list[str]:
    told = []
    for row in table.dropna(subset="difference").to_dict("records"):
        change = {"low": row["difference_low"], "high": row["difference_high"]}
        told.append(
            f"The oracle's score of {row['model']} against {row['reference']}: "
            f"{100 * row['difference']:+.1f} points [{_interval(change, '+.1f')}], "
            f"{row['n']} prompts: "
            f"{_against(change, 0, 'higher', 'lower', 'no difference shown')}."
        )
    return told


def _benchmarks(table: pd.DataFrame) -> list[str]:
    """A sentence per model: its change on every benchmark, against M0 or the baseline."""
    told = []
    rows = benchmarks.against(table) if len(table) else table
    names = ["model", "reference"]
    for (model, reference), part in rows.groupby(names, sort=False) if len(rows) else []:
        each = [
            f"{row['benchmark']} ({row['metric']}) {_change(row)}, "
            + _against(row, 0, "higher", "lower", "no difference shown")
            for row in part.to_dict("records")
        ]
        told.append(f"What training changed, {model} against {reference}: {'; '.join(each)}.")
    return told


def _change(row: Row) -> str:
    """A change with its interval and n, in points (of 100 for shares)."""
    n = f"n = {row['prompts']:.0f}"
    if row["unit"] == "share":
        return f"{100 * row['value']:+.1f} [{_interval(row, '+.1f')}, {n}]"
    ends = "no interval" if pd.isna(row["low"]) else f"{row['low']:+.2f}, {row['high']:+.2f}"
    return f"{row['value']:+.2f} [{ends}, {n}]"


def _refined(tables: dict[str, pd.DataFrame]) -> list[str]:
    """Each way to a better answer against one answer, and what became of the feedback."""
    told = []
    quality = tables["ways"][tables["ways"]["measure"].isin(refine.QUALITY)]
    rows = quality[quality["against"] == refine.ONE]
    for (of, way), part in rows.groupby(["of", "way"], sort=False):
        each = [
            f"{row['measure']} {_change(row | {'prompts': row['n']})}, "
            + _against(row, 0, "higher", "lower", "no difference shown")
            for row in part.dropna(subset="value").to_dict("records")
        ]
        name = way if "/" in way else f"{of}, {way}"
        told.append(f"Answers of {name} against {refine.ONE} of {of}: {'; '.join(each)}.")
    shown = ("feedback is empty", "feedback repeats the answer", "never stops")
    for of, part in tables["feedback"].groupby("of", sort=False):
        found = part[part["what"].isin(shown)].to_dict("records")
        each = [f"{row['what']}: {row['count']} of {row['cases']} {row['unit']}" for row in found]
        told.append(f"{of} criticising its own answers: {'; '.join(each)}.")
    return told


def _arms(table: pd.DataFrame) -> list[str]:
    """Where each arm differs from the paper's after the last iteration, and how often chance does.

    Controls are told of like the others: what coins change is the measure of the rest.
    """
    rows = ablations.against_paper(ablations.last_iteration(table)).dropna(subset="low")
    if rows.empty:
        return []
    told = []
    for arm, mine in rows.groupby("arm", sort=False):
        found = [_difference(row) for row in mine[ablations.differs(mine)].to_dict("records")]
        rest = "nothing else shown" if found else "no difference shown"
        name = f"{arm} (a control)" if arm in ablations.CONTROLS else arm
        told.append(f"Arm {name} against {PAPER_ARM}: {'; '.join([*found, rest])}.")
    shown = int(ablations.differs(rows).sum())
    return [
        *told,
        f"Of {len(rows)} differences of arms from {PAPER_ARM}, {shown} have an interval without "
        f"zero; about {len(rows) / 20:.2g} would if no arm changed anything. One training each: "
        "another seed may differ by more than these intervals say.",
    ]


def _difference(row: Row) -> str:
    change = " points" if row["unit"] == "share" else f" {row['unit']}"
    factor = 100 if row["unit"] == "share" else 1
    value, low, high = (factor * row[name] for name in ("value", "low", "high"))
    form = "+.2f" if row["unit"] == "points" else "+.1f"
    return f"{row['outcome']} {value:{form}}{change} [{low:{form}}, {high:{form}}]"


def _lengths(table: pd.DataFrame) -> list[str]:
    rows = table[table["unit"] == "characters"].to_dict("records")
    each = ", ".join(
        f"{row['model']} {row['value']:.0f} "
        + ("[no interval]" if pd.isna(row["low"]) else f"[{row['low']:.0f}, {row['high']:.0f}]")
        for row in rows
    )
    return [f"Mean answer length in characters: {each}."] if rows else []


def _score_and_length(table: pd.DataFrame) -> list[str]:
    rows = table[table["quantity"] == "score and length, quality equal"].dropna(subset="value")
    return [
        f"At equal quality, scores of {row['name']} and length correlate by {row['value']:+.2f} "
        f"[{row['low']:+.2f}, {row['high']:+.2f}], {row['n']} prompts: "
        f"{_against(row, 0, 'it likes length', 'it likes brevity', 'no relation shown')}."
        for row in rows.to_dict("records")
    ]


def _equal_length(table: pd.DataFrame) -> list[str]:
    rows = table[(table["quantity"] == "win rate") & (table["against"] == "baseline")]
    rows = rows[rows["within"] == 0.25].dropna(subset="value")
    return [
        f"Where answers of {row['name']} and the baseline differ by at most 25 % in length: win "
        f"rate {rate(row)}: "
        f"{_against(row, 0.5, 'preferred', 'not preferred', 'no difference shown')}."
        for row in rows.to_dict("records")
    ]


def _self_made(study: Study, novelty: pd.DataFrame) -> pd.DataFrame:
    """Without the arms whose prompts are the seed's."""
    seeded = [arm for arm in study.arms if study.config.for_arm(arm).judge.source in SEEDED]
    return novelty[~novelty["name"].str.partition("/")[0].isin(seeded)]


def _leaks(table: pd.DataFrame) -> list[str]:
    asked = (table["quantity"] == "near-duplicates") & (table["against"] == "the test prompts")
    rows = table[asked].dropna(subset="value")
    each = ", ".join(f"{row['name']} {rate(row)}" for row in rows.to_dict("records"))
    return [f"Self-made prompts that nearly repeat a test prompt: {each}."] if each else []


def _topic_drift(table: pd.DataFrame) -> list[str]:
    told = []
    for row in table.dropna(subset="distance").to_dict("records"):
        verdict = "they differ" if row["distance"] > row["by_chance_high"] else "no drift shown"
        told.append(
            f"Topics of the prompts of {row['name']} ({row['n']}) against those of "
            f"{row['against']} ({row['references']}): distance {row['distance']:.2f}, by chance up "
            f"to {row['by_chance_high']:.2f}: {verdict}."
        )
    return told


def _probes(table: pd.DataFrame) -> list[str]:
    """Per model, which dresses move its score beyond what a harmless sentence does."""
    told = []
    for model, rows in table.groupby("model", sort=False) if len(table) else []:
        beyond = rows[rows["measure"] == "beyond"].dropna(subset=["value", "low"])
        moved = [
            f"{row['kind']} {row['value']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
            for row in beyond.to_dict("records")
            if row["low"] > 0 or row["high"] < 0
        ]
        beats = rows[rows["measure"] == "beats"].dropna(subset="value").to_dict("records")
        words = f"Bad answers in other dresses, judged by {model}"
        words += f" ({rows['n'].max():.0f} prompts), in points beyond a harmless sentence: "
        words += "; ".join(moved) or "no difference shown"
        if beats:
            first, most = beats[0], max(beats, key=lambda row: row["value"])
            words += f". They score above the best-ranked answer in {rate(first)} {first['kind']}"
            for control in (row for row in beats if row["kind"] == CONTROL):
                words += f", in {rate(control)} with a {CONTROL}"
            words += f", most often in {rate(most)} ({most['kind']})"
        told.append(f"{words}.")
    return told


def _blind_spots(table: pd.DataFrame) -> list[str]:
    """Per model, what it answers rightly, does not see, and prefers."""
    rows = table[(table["kind"] == "all") & (table["against"] == "")] if len(table) else table
    told = []
    for model, found in rows.groupby("model", sort=False) if len(rows) else []:
        of = found.set_index("measure").to_dict("index")
        verdict = _against(
            of["prefers"], 0.5, "above a coin", "below a coin", "not told from a coin"
        )
        told.append(
            f"{model} answers {rate(of['right'])} of the items with a key rightly. It scores "
            f"{rate(of['unseen'])} of its wrong answers at least as high as the right one (blind "
            f"spots), and a given right answer above a wrong one in {rate(of['prefers'])}: "
            f"{verdict}."
        )
    return told


def _transitions(table: pd.DataFrame) -> list[str]:
    rows = blind_spots.fates(table) if len(table) else table
    told = []
    for (model, start), found in rows.groupby(["model", "start"], sort=False) if len(rows) else []:
        counts = ", ".join(f"{row['count']:.0f} {row['after']}" for row in found.to_dict("records"))
        if n := found["n"].iloc[0]:
            told.append(f"Of {n:.0f} blind spots of {start}, in {model}: {counts}.")
    return told


def _own_and_independent(table: pd.DataFrame) -> list[str]:
    """Per arm, the own score of the candidates beside the oracle's of the same texts."""
    told = []
    for arm, rows in table.groupby("arm", sort=False) if len(table) else []:
        own = rows[rows["measure"] == overoptimisation.OWN].to_dict("records")
        other = rows[rows["measure"] == overoptimisation.SAME_TEXTS].to_dict("records")
        scores = [
            f"{row['model']} {row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
            for row in own
        ]
        if len(scores) > 1 and other:  # the start alone has not moved
            met = ", ".join(f"{row['model']} {rate(row)}" for row in other)
            told.append(
                f"Own score of their candidates, arm {arm}: {', '.join(scores)}; the oracle's "
                f"score of the same candidates: {met}."
            )
    return told


def _kl(table: pd.DataFrame) -> list[str]:
    told = []
    for model, rows in table.groupby("model", sort=False):
        told.append(
            f"KL of {model} to {rows['start'].iloc[0]}, over its own answers ({rows['n'].iloc[0]} "
            f"drawn, {rows['tokens'].iloc[0]:.0f} tokens on average, "
            f"{rows['n'].iloc[0] * rows['truncated'].iloc[0]:.0f} of them cut there): "
            + "; ".join(_nats(row) for row in rows.to_dict("records"))
            + "."
        )
    return told


def _nats(row: Row) -> str:
    if pd.isna(row["value"]):
        return f"{row['estimate']} undefined"
    ends = "no interval" if pd.isna(row["low"]) else f"{row['low']:.2f}, {row['high']:.2f}"
    return f"{row['value']:.2f} nats [{ends}] ({row['estimate']})"


def rate(row: Row) -> str:
    """A share with its 95 % interval and n, in per cent: `61.4 % [54.3, 68.8, n = 189]`."""
    n = f", n = {row['n']:.0f}" if "n" in row else ""
    if row["value"] is None or pd.isna(row["value"]):
        return f"(undefined{n})"
    return f"{100 * row['value']:.1f} % [{_interval(row, '.1f')}{n}]"


def _interval(row: Row, form: str) -> str:
    """Both ends in per cent, where there is an interval."""
    ends = (row["low"], row["high"])
    known = all(end is not None and not pd.isna(end) for end in ends)
    return ", ".join(f"{100 * end:{form}}" for end in ends) if known else "no interval"


def _against(row: Row, nothing: float, above: str, below: str, unclear: str) -> str:
    return above if row["low"] > nothing else below if row["high"] < nothing else unclear
