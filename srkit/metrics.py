"""The analysis steps: finished tables in, `metrics/*.json` out. No model is loaded.

Each file holds tidy tables by name, every rate with n and a 95 % interval, and each analysis
module says what its columns mean. Figures and the report read these files and nothing else.

    python -c "from srkit import metrics, study; \\
        print(metrics.load(study.Study.open('runs/first'), 'win_rates'))"
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise

import pandas as pd

from srkit import (
    ablations,
    benchmarks,
    blind_spots,
    breakdowns,
    calibration,
    constraints,
    costs,
    distribution,
    drift,
    equal_length,
    headtohead,
    health,
    length,
    overoptimisation,
    probes,
    refine,
    reward_accuracy,
    strength,
    successors,
    ways,
)
from srkit.config import Config, Judge, SrkitError
from srkit.plan import (
    SEED_MODELS,
    SEEDED,
    arrived,
    frozen_judges,
    model_after,
    model_names,
    refines,
)
from srkit.study import Study
from srkit.texts import column, prompt_sets, trained_texts, vectors

Tables = dict[str, pd.DataFrame]

# of tables that may have no rows: JSON forgets what columns they have
COLUMNS = {
    "reward_accuracy": {"ways_costs": ways.COSTS},
    "benchmarks": {
        "scores": benchmarks.SCORES,
        "changes": benchmarks.CHANGES,
        "two_turn": benchmarks.TWO_TURN,
    },
    "breakdowns": {"answers": breakdowns.TABLE, "judging": breakdowns.TABLE},
    "refine": {
        "ways": refine.ANSWERS,
        "rounds": refine.ROUNDS,
        "feedback": refine.FEEDBACK,
        "matches": refine.MATCHES,
    },
    "reward_hacking": {
        "probes": probes.TABLE,
        "blind_spots": blind_spots.TABLE,
        "transitions": blind_spots.TRANSITIONS,
        "curve": overoptimisation.TABLE,
    },
    "rivals": {"gains": costs.GAINS},
    "successors": {"switches": successors.SWITCHES},
}


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


def runs(study: Study) -> list[ablations.Run]:
    """The seed models, of which arms start from one, then every iteration of every arm."""
    scale = _scale(study.config)
    found = [ablations.Run("", 0, model, scale=scale) for model in SEED_MODELS]
    rounds = range(1, study.config.iterations + 1)
    for arm in study.arms:
        config = study.config.for_arm(arm)
        found += [
            ablations.Run(
                arm,
                t,
                model_after(config, arm, t),
                config.start,
                f"{arm}/iter-{t}",
                _scale(config),
            )
            for t in rounds
        ]
    return found


def judged_by(study: Study, name: str) -> Judge:
    """The settings by which a model judged the held-out responses, or an iteration was judged."""
    arm = name.rpartition("/")[0]
    return (study.config.for_arm(arm) if arm else study.config).judge


def _scale(config: Config) -> str:
    """What the scores of a model's judgements are on; of others no differences are taken."""
    return f"{config.judge.rubric}, {config.judge.method}"


def make_reward_accuracy(study: Study) -> Tables:
    """Step `metrics/reward_accuracy`: each model as a judge of the held-out rankings (Table 4).

    The frozen reward model of an arm that has one is a judge beside them.

    Tables: `accuracy`, `differences` (paired, each model against the one before it, unless that
    judges by another rubric or method; a frozen judge against where the arms start), `histogram`
    and `health` of the judgements of held-out responses and of each iteration's candidates;
    `calibration`, `calibration_slopes` and `agreement` (the same pairs of models); of the models
    that judge in several ways `ways`, `ways_differences` and `ways_costs`.
    """

    def compute() -> Tables:
        frozen = frozen_judges(study.config, study.arms)
        judges = [*models(study), *frozen]
        rankings, judged = study.frame("seed/eft_eval"), _tables(study, judges, "judgements")
        loops = _tables(study, iterations(study), "judgements")
        options, everything = _options(study), {**judged, **loops}
        asked = _tables(study, _with(study, "ways"), "ways")
        changes = _changes(study)
        pairs = [*changes, *((judge, study.config.start) for judge in frozen)]
        return {
            "accuracy": reward_accuracy.accuracy_table(rankings, judged, **options),
            "differences": reward_accuracy.paired_differences(rankings, judged, pairs, **options),
            "histogram": health.score_histogram(everything),
            "health": health.health_table(everything),
            "calibration": calibration.bins(rankings, judged, **options),
            "calibration_slopes": calibration.slopes(rankings, judged),
            "agreement": calibration.agreement(judged, changes, rankings, **options),
            "ways": ways.ways_table(rankings, asked, **options),
            "ways_differences": ways.ways_differences(rankings, asked, **options),
            "ways_costs": ways.ways_costs(asked),
        }

    return _make(study, "reward_accuracy", compute)


def _changes(study: Study) -> list[tuple[str, str]]:
    """Each model with the one before it, where both judge by the same rubric and method."""
    found = []
    for arm in study.arms:
        config = study.config.for_arm(arm)
        other = _scale(config) != _scale(study.config)
        for before, after in pairwise(model_names(config, arm)):
            if not (other and before in SEED_MODELS and after not in SEED_MODELS):
                found.append((after, before))
    return list(dict.fromkeys(found))


def ways_costs(study: Study) -> pd.DataFrame:
    """Tokens and seconds per response of every way of judging; seconds are the manifest's."""
    records = study.records()
    names = [m for m in models(study) if f"{m}/ways" in records]
    seconds = {m: records[f"{m}/ways"].get("seconds_of", {}) for m in names}
    return ways.with_seconds(table(study, "reward_accuracy", "ways_costs"), seconds)


def make_length_drift(study: Study) -> Tables:
    """Step `metrics/length_drift`: answers per model, chosen against rejected, score and length.

    Tables: `lengths` (a row per answer), `by_model`, `by_iteration` (of the candidates),
    `chosen_rejected`, `score_follows_length`, `score_and_length` (at equal quality), and
    `equal_length` (win rate, accuracy and score gap among texts of about one length).
    """

    def compute() -> Tables:
        answers, loops = _tables(study, models(study), "responses"), iterations(study)
        pairs = _tables(study, loops, "pairs")
        candidates, judged = (_tables(study, loops, t) for t in ("candidates", "judgements"))
        options, rankings = _options(study), study.frame("seed/eft_eval")
        judges = _tables(study, models(study), "judgements")
        matched = [
            equal_length.win_rates(_comparisons(study), answers, **options),
            equal_length.pairwise_accuracy(rankings, judges, **options),
            equal_length.score_gaps(pairs, **options),
        ]
        return {
            "lengths": length.lengths(answers),
            "by_model": length.length_table(answers, **options),
            "by_iteration": length.length_table(candidates, **options),
            "chosen_rejected": length.chosen_against_rejected(pairs, **options),
            "score_follows_length": length.score_follows_length(candidates, judged, **options),
            "score_and_length": equal_length.score_and_length(rankings, judges, **options),
            "equal_length": pd.concat(matched, ignore_index=True),
        }

    return _make(study, "length_drift", compute)


def make_win_rates(study: Study) -> Tables:
    """Step `metrics/win_rates`: comparisons by the referee, its card, and checkable constraints.

    Tables: `head_to_head`, `measures` (each pair's win rates, also at equal length), `strengths`
    (Bradley-Terry), `power` (what n prompts can show), `referee_card`, `constraints` (those that
    the prompts state), `controls` (those of the oracle, on every answer).
    """

    def compute() -> Tables:
        rows = _comparisons(study)
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


def make_benchmarks(study: Study) -> Tables:
    """Step `metrics/benchmarks`: what the models can do, and what training changed (Table 3).

    Tables: `scores` (each model on each metric), `changes` (paired by item), `two_turn` (scores of
    two-turn questions by category; empty unless they were asked).
    """

    def compute() -> Tables:
        options, everyone, asked = _options(study), ["M0", *models(study)], study.config.eval
        questions = _tables(study, everyone if asked.two_turn_questions else [], "two_turn")
        tasks = _tables(study, everyone if asked.benchmarks else [], "benchmarks")
        kinds = [
            benchmarks.instruction_items(_tables(study, everyone, "responses")),
            benchmarks.two_turn_items(questions),
            benchmarks.task_items(tasks),
        ]
        items = pd.concat([rows for rows in kinds if len(rows)] or kinds[:1], ignore_index=True)
        pairs = benchmarks.references(everyone, starts(study))
        return {
            "scores": benchmarks.scores(items, **options),
            "changes": benchmarks.changes(items, pairs, **options),
            "two_turn": benchmarks.two_turn_table(questions, **options),
        }

    return _make(study, "benchmarks", compute)


def make_data_distribution(study: Study) -> Tables:
    """Step `metrics/data_distribution`: what is trained on, and how new the self-made part is.

    Tables: `map` (kind is instructions or responses; IFT, EFT and the first arm's iterations),
    `novelty`, `topics` (counts) and `topic_drift` of the prompts of all iterations. Where
    `eval.embedding_model` names a model, its vectors are made first.
    """
    known = vectors(study)

    def compute() -> Tables:
        seed, options, sets = study.config.random_seed, _options(study), prompt_sets(study)
        test = column(study.read("seed/test_prompts"), "prompt")
        source = list(dict.fromkeys([*sets["IFT"], *sets["EFT"]]))
        asked = [(name, sets[name], "the rest of it", None) for name in ("IFT", "EFT")]
        for folder in iterations(study):
            asked.append((folder, sets[folder], "the seed", source))
            asked.append((folder, sets[folder], "the test prompts", test))
            if earlier := _earlier(folder):
                before = [text for name in earlier for text in sets[name]]
                asked.append((folder, sets[folder], "earlier iterations", before))
        topics = distribution.assign_topics(sets, seed, known)
        drift = [(folder, "IFT") for folder in iterations(study)]
        drift += [(f, earlier[-1]) for f in iterations(study) if (earlier := _earlier(f))]
        maps = [
            distribution.text_map(texts, seed, known).assign(kind=kind)
            for kind, texts in trained_texts(study).items()
        ]
        return {
            "map": pd.concat(maps, ignore_index=True),
            "novelty": distribution.novelty(asked, **options, known=known),
            "topics": distribution.topic_counts(topics),
            "topic_drift": distribution.topic_drift(topics, drift, seed),
        }

    return _make(study, "data_distribution", compute)


def make_breakdowns(study: Study) -> Tables:
    """Step `metrics/breakdowns`: results by task, complexity and expected length.

    Tables: `answers` (to the test prompts), `judging` (of the held-out rankings).
    """

    def compute() -> Tables:
        answers, judged = (_tables(study, models(study), t) for t in ("responses", "judgements"))
        prompts, rankings = study.frame("seed/test_prompts"), study.frame("seed/eft_eval")
        options, compared = _options(study), _comparisons(study)
        return {
            "answers": breakdowns.answers_by_group(prompts, compared, answers, **options),
            "judging": breakdowns.judging_by_group(rankings, judged, **options),
        }

    return _make(study, "breakdowns", compute)


def make_refine(study: Study) -> Tables:
    """Step `metrics/refine`: refined answers, the best of N, and the trained models side by side.

    Tables: `ways`, `rounds`, `feedback`, `matches` (by the referee); empty unless `eval.refined_of`
    names a model.
    """

    def compute() -> Tables:
        options, prompts = _options(study), study.frame("seed/test_prompts")
        oracle = constraints.parse(study.config.arms.oracle)
        found = {model: _refined(study, model) for model in _refining(study)}
        return {
            "ways": refine.ways_table(found, prompts, oracle, **options),
            "rounds": refine.rounds_table(found, prompts, oracle, **options),
            "feedback": refine.feedback_table(found, **options),
            "matches": refine.matches_table(found, **options),
        }

    return _make(study, "refine", compute)


def _refining(study: Study) -> list[str]:
    return [model for model in models(study) if refines(study.config, model)]


def _refined(study: Study, model: str) -> refine.Refined:
    own = ("refined", "best_of", "refined_judgements", "refined_comparisons")
    others = _tables(study, arrived(study.config, study.arms, model), "responses")
    return refine.Refined(*(study.frame(f"{model}/{name}") for name in own), others)


def refine_training(study: Study) -> pd.DataFrame:
    """Tokens that training took from a refining model to the last of each arm: `refine.TRAINING`.

    They are the ledger's, of the iterations between the two; a frozen reward model's training
    belongs to the first.
    """
    spent, rows = ledger(study), []
    for of in _refining(study):
        for way in arrived(study.config, study.arms, of):
            arm, _, last = way.partition("/")
            mine, _, number = of.rpartition("/M")
            start = int(number) if mine == arm else 1
            here = (spent["arm"] == arm) & spent["iteration"].between(start, int(last[1:]) - 1)
            sums = spent.loc[here, list(costs.TOKENS)].sum(skipna=False)
            rows.append({"of": of, "way": way, **sums})
    return pd.DataFrame(rows, columns=list(refine.TRAINING))


def make_ablations(study: Study) -> Tables:
    """Step `metrics/ablations`: what each arm changes, with the controls.

    Table: `outcomes`; seconds and tokens are added from the manifest where it is shown.
    """

    def compute() -> Tables:
        arms = {arm: study.config.for_arm(arm) for arm in study.arms}
        judging = {name for name, config in arms.items() if config.judge.source == "model"}
        pairing = {name for name, config in arms.items() if config.update == "dpo"}
        sums = ablations.sums_of(
            study.frame("seed/eft_eval"),
            _tables(study, models(study), "judgements"),
            _tables(study, models(study), "responses"),
            _comparisons(study),
            starts(study),
            constraints.parse(study.config.arms.oracle),
            _tables(study, _of_arms(study, judging), "judgements"),
            _tables(study, _of_arms(study, pairing), "pairs"),
        )
        return {"outcomes": ablations.compare(runs(study), sums, **_options(study))}

    return _make(study, "ablations", compute)


def make_reward_hacking(study: Study) -> Tables:
    """Step `metrics/reward_hacking`: what else than better answers raises the own score.

    Tables: `probes` (answers in other dresses, by the models that `eval.probes_of` names),
    `blind_spots` and `transitions` (what they get wrong and do not see; what became of it), `curve`
    (own and independent scores over the distance from the start).
    """
    asked = {name: _with(study, name) for name in ("probes", "blind_spots")}

    def compute() -> Tables:
        options, known = _options(study), _tables(study, asked["blind_spots"], "blind_spots")
        own = {a for a in study.arms if study.config.for_arm(a).judge.source not in SEEDED}
        drawn = _tables(study, _of_arms(study, own), "candidates")
        oracle = constraints.parse(study.config.arms.oracle)
        return {
            "probes": probes.probe_table(
                study.frame("seed/eft_eval"),
                _tables(study, asked["probes"], "judgements"),
                _tables(study, asked["probes"], "probes"),
                **options,
            ),
            "blind_spots": blind_spots.measures(known, starts(study), **options),
            "transitions": blind_spots.transitions(known, starts(study)),
            "curve": overoptimisation.curve(
                runs(study),
                table(study, "ablations", "outcomes"),
                constraints.oracle_scores(drawn, oracle, {}, **options),
                kl_to_start(study),
            ),
        }

    return _make(study, "reward_hacking", compute)


def make_rivals(study: Study) -> Tables:
    """Step `metrics/rivals`: what each arm had to learn from, took in tokens, and gained.

    Tables: `budgets`, `tokens` (by arm; what took time or memory is in the manifest, see `ledger`)
    and `gains`.
    """

    def compute() -> Tables:
        known = ledger(study)
        spent = costs.by_arm(known)
        outcomes = table(study, "ablations", "outcomes")
        return {
            "budgets": costs.budgets(known),
            "tokens": spent[["arm", *costs.TOKENS, "tokens"]],
            "gains": costs.gains(outcomes, spent),
        }

    return _make(study, "rivals", compute)


def ledger(study: Study) -> pd.DataFrame:
    """What every finished step of the arms took, from the manifest: `costs.ledger`.

    A frozen reward model is trained in the first iteration of the arm that asks it.
    """
    records, finished = study.records(), []
    for run in (run for run in runs(study) if run.iteration):
        steps = {
            name.rpartition("/")[2]: step
            for name, step in study.steps.items()
            if name.startswith(f"{run.folder}/")
        }
        steps["adapter"] = study.step(f"{run.model}/adapter")
        if run.iteration == 1:
            frozen = frozen_judges(study.config, (run.arm,))
            steps |= {name: study.step(f"{name}/adapter") for name in frozen}
        for part, step in steps.items():
            if record := records.get(step.same_as or step.name):
                finished.append((run, part, record))
    return costs.ledger(finished)


def make_successors(study: Study) -> Tables:
    """Step `metrics/successors`: what the switches of later methods did, by iteration.

    Table: `switches`; empty in a study whose arms have none of them.
    """

    def compute() -> Tables:
        found = {
            folder: _tables_of(study, folder, successors.TABLES) for folder in iterations(study)
        }
        return {"switches": successors.switches(found, **_options(study))}

    return _make(study, "successors", compute)


def kl_to_start(study: Study) -> pd.DataFrame:
    """How far the models of all arms have moved from their arm's start, as `drift.kl_table`.

    Not an analysis of its own: it is drawn and told beside the loop's other signals. Models without
    the table (studies of earlier versions) are left out.
    """
    measured = [m for m in starts(study) if study.has(f"{m}/drift")]
    return drift.kl_table(_tables(study, measured, "drift"), **_options(study))


def load(study: Study, name: str) -> Tables:
    """The tables of a finished analysis, by name.

    Raises: SrkitError naming the notebook to run first, a file that was altered, or tables that
    were made again since.
    """
    text = study.read_text(f"metrics/{name}")
    study.check_inputs(f"metrics/{name}")
    columns, tables = COLUMNS.get(name, {}), {}
    for table, rows in json.loads(text).items():
        tables[table] = pd.DataFrame(rows, columns=None if rows else columns.get(table))
    for table in tables.values():
        # a column in which nothing is defined comes back from JSON as None, not NaN
        undefined = [c for c in table.columns if len(table) and table[c].isna().all()]
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


def _with(study: Study, name: str) -> list[str]:
    """The models that have a step of that name."""
    return [model for model in models(study) if f"{model}/{name}" in study.steps]


def _of_arms(study: Study, arms: set[str]) -> list[str]:
    """Folders of all iterations of these arms."""
    return [folder for folder in iterations(study) if folder.partition("/")[0] in arms]


def _comparisons(study: Study) -> pd.DataFrame:
    """Comparisons of all models; arms share those of the seed models."""
    compared = _tables(study, [m for m in models(study) if m != "baseline"], "comparisons")
    return pd.concat(compared.values()).drop_duplicates("id")


def _earlier(folder: str) -> list[str]:
    """Folders of the same arm's earlier iterations, in order."""
    start, _, t = folder.rpartition("-")
    return [f"{start}-{i}" for i in range(1, int(t))]


def _tables(study: Study, owners: list[str], table: str) -> Tables:
    return {owner: study.frame(f"{owner}/{table}") for owner in owners}


def _tables_of(study: Study, folder: str, names: Sequence[str]) -> Tables:
    """An iteration's tables by name, of those that its arm makes."""
    made = [name for name in names if f"{folder}/{name}" in study.steps]
    return {name: study.frame(f"{folder}/{name}") for name in made}


def _options(study: Study) -> dict[str, int]:
    return {"resamples": study.config.eval.resamples, "seed": study.config.random_seed}
