"""The figures of a study: which there are, from which tables, and what to say below each.

`figures/<name>.{png,svg,pdf,csv}` are drawn from finished tables; no model is loaded. How a figure
looks is in `srkit.figures`.

    srkit figures runs/first
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from srkit import ablations, breakdowns, costs, figures, metrics, signals
from srkit.parallel import fork_map, shares
from srkit.plan import SEED_MODELS, model_after
from srkit.study import Study

Drawing = tuple[Figure, pd.DataFrame]
FIGURES_EACH = 8  # that pay for a process of their own

# Figures that show one table: what draws it, the analysis and the table's name there.
SIMPLE = {
    "reward_accuracy": (figures.reward_accuracy, "reward_accuracy", "accuracy"),
    "judge_scores": (figures.score_histograms, "reward_accuracy", "histogram"),
    "judge_calibration": (figures.judge_calibration, "reward_accuracy", "calibration"),
    "judge_agreement": (figures.judge_agreement, "reward_accuracy", "agreement"),
    "constraints": (figures.constraint_pass_rates, "win_rates", "constraints"),
    "controls": (figures.controls, "win_rates", "controls"),
    "instruction_following": (figures.instruction_following, "benchmarks", "scores"),
    "alignment_tax": (figures.alignment_tax, "benchmarks", "changes"),
    "length_trend": (figures.length_trend, "length_drift", "by_model"),
    "length_distributions": (figures.length_distributions, "length_drift", "lengths"),
    "chosen_rejected": (figures.chosen_rejected_lengths, "length_drift", "chosen_rejected"),
    "answer_form": (figures.answer_form, "length_drift", "by_model"),
    "score_and_length": (figures.score_and_length, "length_drift", "score_and_length"),
    "equal_length": (figures.equal_length, "length_drift", "equal_length"),
    "data_map": (figures.data_map, "data_distribution", "map"),
    "prompt_novelty": (figures.prompt_novelty, "data_distribution", "novelty"),
    "judge_probes": (figures.judge_probes, "reward_hacking", "probes"),
    "overoptimisation": (figures.overoptimisation_curve, "reward_hacking", "curve"),
    "breakdown_judging": (figures.judging_breakdown, "breakdowns", "judging"),
}
MEASURES = ("judgements", "responses", "comparisons", "ways", "drift")
WAYS = ("ways", "ways_costs")
ROUNDS = ("rounds", "feedback")
MATCHES = ("head_to_head", "referee_card")
BLIND = ("blind_spots", "transitions")
TOPICS = ("topics", "topic_drift")
GAINS = ("gains", "tokens")
# Beginnings of the names of figures that state how long steps took: another run, other bytes.
TIMED = ("loop_signals", "ablations", "judge_ways")

CAPTIONS = {
    "reward_accuracy": "How well each model judges the held-out responses: agreement of its scores "
    "with the order of the seed, against chance and against a judge that only counts characters.",
    "judge_scores": "The scores that each judge gave, on the held-out responses (models) and on "
    "its own candidates (iterations), with the share that did not parse.",
    "judge_calibration": "Whether a difference of scores says how likely the better response is: "
    "the share of pairs ordered as the seed does, by how far apart the scores are.",
    "judge_agreement": "Whether a model judges the held-out responses as the model before it does.",
    "judge_ways": "The same held-out responses judged in several ways by one model: accuracy, "
    "beside the tokens that a way reads and writes.",
    "win_rates": "Comparisons of answers to the same test prompts by the referee, in both orders; "
    "where the orders disagree it is a tie.",
    "strengths": "Win rates as they are and as they would be if both answers were equally long (a "
    "logistic regression; AlpacaEval's term for the difficulty of an instruction is dropped), and "
    "Bradley-Terry strengths from all comparisons at once.",
    "constraints": "Share of checkable constraints that the answers meet: no judge is involved.",
    "controls": "The oracle's score: the share of its constraints that answers to the test prompts "
    "meet. Trained on the oracle's preferences it must rise, or the machine is broken; trained on "
    "coin flips it must not. (Coins agree with something by chance, length above all, and that is "
    "learned: the interval is over prompts and does not know how another draw would drift.)",
    "instruction_following": "Instructions that the answers follow, counted as IFEval does: all "
    "constraints of a prompt and each one, strictly and loosely. No judge is involved.",
    "alignment_tax": "What training changed on each benchmark, on the same items. The paper's "
    "changes are in panels of their own (Llama 2 70B, other benchmarks).",
    "length_trend": "Length of the answers to the test prompts; the paper's values are in a panel "
    "of their own (Llama 2 70B, other prompts: shapes may be compared, levels may not).",
    "length_distributions": "Distribution of answer lengths, with medians.",
    "chosen_rejected": "Length of the chosen and the rejected responses of each iteration.",
    "answer_form": "Form of the answers: sentences, list items, headings, and the share of 4-grams "
    "of words that an answer repeats.",
    "score_and_length": "How far each judge's score follows length and the seed's grade of quality "
    "on the held-out rankings, each also with the other held equal.",
    "equal_length": "What is left at equal length: win rates, accuracy and score gaps among texts "
    "whose lengths differ by at most so much.",
    "data_map": "What the models are trained on (paper Fig. 6): IFT, EFT and the self-made data.",
    "prompt_novelty": "How near prompts come to the nearest one of the seed, of earlier iterations "
    "and of the test prompts, and IFT and EFT to the rest of themselves. Among more prompts (their "
    "number is in brackets) a near one is found more easily: compare bars of the same number only.",
    "prompt_topics": "What prompts are about, by k-means over all of them, and how far the "
    "self-made ones have drifted, beside what chance gives.",
    "breakdown_task": "Answers by task, beside the paper's Fig. 4. Pale groups are too small to "
    "say anything.",
    "breakdown_complexity": "Answers by complexity of the prompt, beside the paper's Fig. 11 (a).",
    "breakdown_expected_length": "Answers by the length that the prompt asks for, beside the "
    "paper's Fig. 11 (b).",
    "breakdown_judging": "Judging of the held-out rankings by task.",
    "refine_or_train": "Refining an answer, choosing the best of N drafts for the same tokens, or "
    "training on one's own scores: quality beside the tokens that a prompt takes, each measure "
    "labelled by who gives it, and what training takes when so many prompts are answered.",
    "refine_rounds": "Answers round by round of Self-Refine (feedback by the model itself, weights "
    "unchanged), and what became of the feedback.",
    "ablations": "What each arm changes by its last iteration: against the model it started from, "
    "or, where the title does not say so, as it is. Full marks differ from the paper's arm (95 % "
    "interval of the paired difference without zero), hollow ones are not told from it, ticks were "
    "not compared with it (another rubric, another start, other prompts, a cost). Squares are "
    "controls; the grey band is random-judge's interval: a change of that size, coins made.",
    "gain_per_token": "What each arm gained from where it started, per million tokens that went "
    "through the model to make it, and which tokens these were: written, read, trained on.",
    "judge_probes": "The worst-ranked held-out answers judged again in other dresses, none of "
    "which makes them better: what each does to the score, and how often the answer then scores "
    "above the best-ranked one.",
    "blind_spots": "Questions with a key: what each model answers rightly, which of its wrong "
    "answers it scores at least as high as the right one (blind spots), and what became of the "
    "blind spots of the model that its arm started from.",
    "overoptimisation": "Own and independent scores over the distance from the start (after Gao et "
    "al. 2023): an own score that rises while the others do not is over-optimised.",
    "loop_signals": "The signals of the loop, iteration by iteration. KL: how far the model that "
    "the iteration leaves has moved from the arm's start, by its own answers to test prompts, "
    "drawn at temperature 1 and read by both models up to the limit of tokens; two estimates of "
    "the same number, which have to agree.",
    "funnel": "What each filter of the iteration kept and dropped, and why.",
    "training_sft": "Loss of supervised fine-tuning.",
    "training_dpo": "DPO on the pairs of each iteration: about the training pairs only.",
}


def drawings(study: Study) -> dict[str, Callable[[], Drawing]]:
    """Every figure of a study by name, as a function that draws it from finished tables."""
    table = partial(metrics.table, study)
    made = {
        name: _drawing(draw, partial(table, analysis, of))
        for name, (draw, analysis, of) in SIMPLE.items()
    }
    made["judge_ways"] = partial(_two, figures.judge_ways, table, "reward_accuracy", *WAYS)
    made["win_rates"] = partial(_two, figures.head_to_head, table, "win_rates", *MATCHES)
    made["blind_spots"] = partial(_two, figures.blind_spots, table, "reward_hacking", *BLIND)
    made["strengths"] = _drawing(figures.strengths, partial(_strengths, table))
    made["prompt_topics"] = partial(
        _two, figures.prompt_topics, table, "data_distribution", *TOPICS
    )
    made["gain_per_token"] = partial(_two, figures.gain_per_token, table, "rivals", *GAINS)
    made["refine_or_train"] = partial(refine_or_train, study)
    made["refine_rounds"] = partial(_two, figures.refine_rounds, table, "refine", *ROUNDS)
    made["ablations"] = _drawing(figures.ablations, partial(ablation_outcomes, study))
    for label in breakdowns.LABELS:
        by_label = partial(figures.breakdown, label=label)
        made[f"breakdown_{label}"] = _drawing(by_label, partial(table, "breakdowns", "answers"))
    done = set(study.records())  # read once: there may be hundreds of steps to ask for
    return made | _of_loops(study, done) | _of_trainings(study, done) | _of_iterations(study, done)


def _drawing(draw: Callable, frame: Callable[[], pd.DataFrame]) -> Callable[[], Drawing]:
    def both() -> Drawing:
        rows = frame()
        return draw(rows), rows

    return both


def _two(draw: Callable, table: Callable, analysis: str, main: str, beside: str) -> Drawing:
    """A figure of two tables; the first one is its csv."""
    rows = table(analysis, main)
    return draw(rows, table(analysis, beside)), rows


def refine_or_train(study: Study) -> Drawing:
    """A figure of two tables and of the manifest, which says what training took."""
    tables = metrics.load(study, "refine")
    rest = tables["matches"], metrics.refine_training(study)
    return figures.refine_or_train(tables["ways"], *rest), tables["ways"]


def _strengths(table: Callable) -> pd.DataFrame:
    return pd.concat([table("win_rates", name) for name in ("measures", "strengths")])


def _of_loops(study: Study, done: set[str]) -> dict[str, Callable[[], Drawing]]:
    rounds = range(1, study.config.iterations + 1)
    return {
        f"loop_signals_{arm}": _drawing(figures.loop_signals, partial(loop_signals, study, arm))
        for arm in study.arms
        if done.issuperset(f"{arm}/iter-{t}/pairs" for t in rounds)
    }


def _of_trainings(study: Study, done: set[str]) -> dict[str, Callable[[], Drawing]]:
    trained = [m for m in metrics.models(study) if f"{m}/adapter" in done]
    methods = {
        "sft": [m for m in trained if m in SEED_MODELS],
        "dpo": [m for m in trained if m not in SEED_MODELS],
    }
    return {
        f"training_{method}": _drawing(
            figures.training_curves, partial(study.training_log, *models)
        )
        for method, models in methods.items()
        if models
    }


def _of_iterations(study: Study, done: set[str]) -> dict[str, Callable[[], Drawing]]:
    return {
        f"funnel_{folder.replace('/', '_')}": _drawing(
            figures.iteration_funnel, partial(funnel_counts, study, folder)
        )
        for folder in metrics.iterations(study)
        if f"{folder}/pairs" in done
    }


def funnel_counts(study: Study, folder: str) -> pd.DataFrame:
    """What each step of an iteration kept and dropped, for `figures.iteration_funnel`."""
    tables = ("prompts", "candidates", "judgements", "pairs")
    return figures.funnel_counts(*(study.frame(f"{folder}/{name}") for name in tables))


def loop_signals(study: Study, arm: str) -> pd.DataFrame:
    """The signals of an arm's iterations, for `figures.loop_signals`, from tables and manifest."""
    records, iterations, spent = study.records(), {}, []
    for t in range(1, study.config.iterations + 1):
        folder, model = f"{arm}/iter-{t}", model_after(study.config.for_arm(arm), arm, t)
        tables = {name: study.frame(f"{folder}/{name}") for name in ("judgements", "pairs")}
        log = study.training_log(model) if study.has(f"{model}/adapter") else pd.DataFrame()
        iterations[folder] = {**tables, "training": log}
        if study.has(f"{model}/drift"):  # studies of earlier versions have none
            iterations[folder]["drift"] = study.frame(f"{model}/drift")
        steps = {name: [f"{folder}/{name}"] for name in ("prompts", "candidates", "judgements")}
        steps["training"] = [f"{model}/adapter"]
        steps["measures"] = [f"{model}/{n}" for n in MEASURES]
        for part, names in steps.items():
            made = [study.steps[name] for name in names if name in study.steps]
            lines = [records.get(step.same_as or step.name) for step in made]
            sums = costs.added([line for line in lines if line], part)
            spent.append({"name": folder, "part": part, **sums})
    config = study.config
    return signals.loop_signals(iterations, spent, config.eval.resamples, config.random_seed)


def ablation_outcomes(study: Study) -> pd.DataFrame:
    """The outcomes of all arms and what they took, from table and manifest."""
    table = metrics.table(study, "ablations", "outcomes")
    return ablations.with_costs(table, costs.as_outcomes(metrics.ledger(study)))


def draw_figure(study: Study, name: str) -> Figure:
    """Draw one figure into the study's `figures/` (png, svg, pdf, csv) and return it."""
    return _saved(study, name, drawings(study)[name])


def _saved(study: Study, name: str, draw: Callable[[], Drawing]) -> Figure:
    figure, frame = draw()
    figures.save(figure, frame, study.path / "figures" / name)
    return figure


def draw_figures(study: Study) -> dict[str, tuple[float, str]]:
    """Draw all figures of a finished study, on all cores.

    Returns, by name, the width in inches and the text below, which states n and interval.
    """
    made = drawings(study)
    names = list(made)
    parts = fork_map(partial(_drawn, study, made), shares(names, [1] * len(names), FIGURES_EACH))
    found = {name: told for part in parts for name, told in part.items()}
    return {name: found[name] for name in names}


def _drawn(
    study: Study, made: Mapping[str, Callable[[], Drawing]], names: Sequence[str]
) -> dict[str, tuple[float, str]]:
    drawn = {name: _saved(study, name, made[name]) for name in names}
    return {name: (f.get_figwidth(), f.get_supxlabel()) for name, f in drawn.items()}
