"""The figures and the one-page report of a study, from its tables alone: no model is loaded.

`figures/<name>.{png,svg,pdf,csv}` are drawn from finished tables; `report.html` is self-contained
(pictures inside), readable on a phone and printable. All text of models and data is escaped.

Surprising decision: sentences about results are chosen by intervals, not by signs: a difference
whose 95 % interval contains nothing-changed is reported as not shown.

    srkit figures runs/first && srkit report runs/first
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from srkit import breakdowns, figures, health, metrics, signals, strength
from srkit.config import Config
from srkit.escape import block, escaped, page
from srkit.figures.style import PAGE
from srkit.headtohead import MATCH
from srkit.headtohead import PAPER as PAPER_MATCHES
from srkit.plan import SEED_MODELS, model_after
from srkit.study import Row, Study

Drawing = tuple[Figure, pd.DataFrame]

CAPTIONS = {
    "reward_accuracy": "How well each model judges the held-out responses: agreement of its scores "
    "with the order of the seed, against chance and against a judge that only counts characters.",
    "judge_scores": "The scores that each judge gave, on the held-out responses (models) and on "
    "its own candidates (iterations), with the share that did not parse.",
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
    "and of the test prompts; IFT and EFT against themselves say what is usual.",
    "prompt_topics": "What prompts are about, by k-means over all of them, and how far the "
    "self-made ones have drifted, beside what chance gives.",
    "breakdown_task": "Answers by task, beside the paper's Fig. 4. Pale groups are too small to "
    "say anything.",
    "breakdown_complexity": "Answers by complexity of the prompt, beside the paper's Fig. 11 (a).",
    "breakdown_expected_length": "Answers by the length that the prompt asks for, beside the "
    "paper's Fig. 11 (b).",
    "breakdown_judging": "Judging of the held-out rankings by task.",
    "loop_signals": "The signals of the loop, iteration by iteration. KL to M1 is not measured.",
    "funnel": "What each filter of the iteration kept and dropped, and why.",
    "training_sft": "Loss of supervised fine-tuning.",
    "training_dpo": "DPO on the pairs of each iteration: about the training pairs only.",
}


def drawings(study: Study) -> dict[str, Callable[[], Drawing]]:
    """Every figure of a study by name, as a function that draws it from finished tables."""
    table = partial(metrics.table, study)
    simple = {
        "reward_accuracy": (figures.reward_accuracy, "reward_accuracy", "accuracy"),
        "judge_scores": (figures.score_histograms, "reward_accuracy", "histogram"),
        "constraints": (figures.constraint_pass_rates, "win_rates", "constraints"),
        "controls": (figures.controls, "win_rates", "controls"),
        "length_trend": (figures.length_trend, "length_drift", "by_model"),
        "length_distributions": (figures.length_distributions, "length_drift", "lengths"),
        "chosen_rejected": (figures.chosen_rejected_lengths, "length_drift", "chosen_rejected"),
        "answer_form": (figures.answer_form, "length_drift", "by_model"),
        "score_and_length": (figures.score_and_length, "length_drift", "score_and_length"),
        "equal_length": (figures.equal_length, "length_drift", "equal_length"),
        "data_map": (figures.data_map, "data_distribution", "map"),
        "prompt_novelty": (figures.prompt_novelty, "data_distribution", "novelty"),
        "breakdown_judging": (figures.judging_breakdown, "breakdowns", "judging"),
    }

    def draw(function: Callable, frame: Callable[[], pd.DataFrame]) -> Callable[[], Drawing]:
        def both() -> Drawing:
            rows = frame()
            return function(rows), rows

        return both

    def matches() -> Drawing:
        games, card = (table("win_rates", name) for name in ("head_to_head", "referee_card"))
        return figures.head_to_head(games, card), games

    def strengths() -> pd.DataFrame:
        names = ("measures", "strengths")
        return pd.concat([table("win_rates", name) for name in names])

    made = {n: draw(f, lambda a=a, t=t: table(a, t)) for n, (f, a, t) in simple.items()}
    made["win_rates"] = matches
    made["strengths"] = draw(figures.strengths, strengths)

    def topics() -> Drawing:
        counts, drift = (table("data_distribution", name) for name in ("topics", "topic_drift"))
        return figures.prompt_topics(counts, drift), counts

    made["prompt_topics"] = topics
    for label in breakdowns.LABELS:
        grouped = partial(figures.breakdown, label=label)
        made[f"breakdown_{label}"] = draw(grouped, lambda: table("breakdowns", "answers"))
    for arm in study.arms:
        if all(study.has(f"{arm}/iter-{t + 1}/pairs") for t in range(study.config.iterations)):
            board = draw(figures.loop_signals, lambda arm=arm: loop_signals(study, arm))
            made[f"loop_signals_{arm}"] = board
    trained = [m for m in metrics.models(study) if study.has(f"{m}/adapter")]
    by_method = {"sft": SEED_MODELS, "dpo": tuple(m for m in trained if m not in SEED_MODELS)}
    for method, names in by_method.items():
        if here := [name for name in names if name in trained]:
            logs = draw(figures.training_curves, lambda here=here: study.training_log(*here))
            made[f"training_{method}"] = logs
    for folder in metrics.iterations(study):
        if study.has(f"{folder}/pairs"):
            funnel = draw(figures.iteration_funnel, lambda f=folder: funnel_counts(study, f))
            made[f"funnel_{folder.replace('/', '_')}"] = funnel
    return made


def funnel_counts(study: Study, folder: str) -> pd.DataFrame:
    """What each step of an iteration kept and dropped, for `figures.iteration_funnel`."""
    tables = ("prompts", "candidates", "judgements", "pairs")
    return figures.funnel_counts(*(study.frame(f"{folder}/{name}") for name in tables))


def loop_signals(study: Study, arm: str) -> pd.DataFrame:
    """The signals of an arm's iterations, for `figures.loop_signals`, from tables and manifest."""
    records, iterations, costs = study.records(), {}, []
    for t in range(1, study.config.iterations + 1):
        folder, model = f"{arm}/iter-{t}", model_after(study.config.for_arm(arm), arm, t)
        tables = {name: study.frame(f"{folder}/{name}") for name in ("judgements", "pairs")}
        log = study.training_log(model) if study.has(f"{model}/adapter") else pd.DataFrame()
        iterations[folder] = {**tables, "training": log}
        steps = {name: [f"{folder}/{name}"] for name in ("prompts", "candidates", "judgements")}
        steps["training"] = [f"{model}/adapter"]
        steps["measures"] = [f"{model}/{n}" for n in ("judgements", "responses", "comparisons")]
        for part, names in steps.items():
            found = [records[name] for name in names if name in records]
            spent = {c: sum(r.get(c) or 0 for r in found) for c in ("seconds", "tokens")}
            costs.append({"name": folder, "part": part, **spent})
    config = study.config
    return signals.loop_signals(iterations, costs, config.eval.resamples, config.random_seed)


def draw_figure(study: Study, name: str) -> Figure:
    """Draw one figure into the study's `figures/` (png, svg, pdf, csv) and return it."""
    figure, frame = drawings(study)[name]()
    figures.save(figure, frame, study.path / "figures" / name)
    return figure


def draw_figures(study: Study) -> list[Path]:
    """Draw all figures of a finished study; returns their paths without endings."""
    names = drawings(study)
    for name in names:
        draw_figure(study, name)
    return [study.path / "figures" / name for name in names]


# --- sentences -----------------------------------------------------------------------------------


def findings(study: Study) -> list[str]:
    """What the study shows and does not show, one plain sentence per question, with intervals."""
    accuracy = metrics.load(study, "reward_accuracy")
    lengths = metrics.load(study, "length_drift")
    wins = metrics.load(study, "win_rates")
    texts = metrics.load(study, "data_distribution")
    return [
        *_judging(accuracy["accuracy"]),
        *_changes(accuracy["differences"]),
        *_matches(wins["head_to_head"], metrics.table(study, "win_rates", "measures")),
        *_power(metrics.table(study, "win_rates", "power")),
        *_card(wins["referee_card"]),
        *_constraints(wins["constraints"]),
        *_controls(wins["controls"]),
        *_lengths(lengths["by_model"]),
        *_score_and_length(lengths["score_and_length"]),
        *_equal_length(lengths["equal_length"]),
        *_leaks(texts["novelty"]),
        *_topic_drift(texts["topic_drift"]),
    ]


def _judging(table: pd.DataFrame) -> list[str]:
    rows = table[table["metric"] == "pairwise_accuracy"].set_index("model")
    parsed = table[table["metric"] == "parse_rate"].set_index("model")["value"]
    told = []
    for model, row in rows.iterrows():
        if model == "length alone" or pd.isna(row["value"]):
            continue
        verdict = _against(row, 0.5, "above chance", "below chance", "not told from chance")
        told.append(
            f"As a judge, {model} orders {_rate(row)} of the untied held-out pairs as the seed "
            f"does: {verdict}. {100 * parsed[model]:.0f} % of its judgements parse."
        )
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


def _matches(table: pd.DataFrame, measures: pd.DataFrame) -> list[str]:
    told = []
    controlled = measures[measures["measure"] == "win_rate_length_controlled"]
    at_equal_length = controlled.set_index(MATCH).to_dict("index")
    for row in table.to_dict("records"):
        fair = at_equal_length[tuple(row[name] for name in MATCH)]
        rate = {"value": row["win_rate"], "low": row["win_rate_low"], "high": row["win_rate_high"]}
        verdict = _against(rate, 0.5, "preferred", "not preferred", "no difference shown")
        told.append(
            f"Answers of {row['left']} against {row['right']} (referee {row['referee']}): win rate "
            f"{_rate(rate | {'n': row['n']})}, ties half ({row['wins']} wins, {row['ties']} ties, "
            f"{row['losses']} losses): {verdict}. At equal length {_rate(fair)}."
        )
    return told


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
        f"The referee itself agrees with the seed on {_rate(accuracy)} of held-out pairs "
        f"({verdict}) and keeps its verdict when the order is swapped in {_rate(consistency)}. "
        "Win rates are worth as much as that."
    ]


def _constraints(table: pd.DataFrame) -> list[str]:
    if table.empty:
        return ["No test prompt carries a constraint that a program could check."]
    rows = table[table["kind"] == "all constraints"].to_dict("records")
    each = ", ".join(f"{row['model']} {_rate(row)}" for row in rows)
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


def _lengths(table: pd.DataFrame) -> list[str]:
    rows = table[table["unit"] == "characters"].to_dict("records")
    each = ", ".join(
        f"{row['model']} {row['value']:.0f} [{row['low']:.0f}, {row['high']:.0f}]" for row in rows
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
        f"rate {_rate(row)}: "
        f"{_against(row, 0.5, 'preferred', 'not preferred', 'no difference shown')}."
        for row in rows.to_dict("records")
    ]


def _leaks(table: pd.DataFrame) -> list[str]:
    asked = (table["quantity"] == "near-duplicates") & (table["against"] == "the test prompts")
    rows = table[asked].dropna(subset="value")
    each = ", ".join(f"{row['name']} {_rate(row)}" for row in rows.to_dict("records"))
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


def _rate(row: Row) -> str:
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


# --- the page ------------------------------------------------------------------------------------

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 0 auto; padding: 1rem;
       color: #222; background: #fff }
h1 { line-height: 1.2 } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd }
figure { margin: 1.5rem 0 } img { min-width: min(100%, 22rem); height: auto }
figcaption, .note { color: #555; font-size: .9rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .85rem }
td, th { padding: .2rem .6rem; border-bottom: 1px solid #eee; text-align: right }
td:first-child, th:first-child, .plain td { text-align: left }
pre { white-space: pre-wrap; overflow-wrap: anywhere; overflow: hidden; background: #f6f6f6;
      padding: .6rem; font-size: .85rem }
@media print { h2, figure { break-inside: avoid } body { max-width: none } }
"""


def make_report(study: Study) -> Path:
    """Step `report`: `report.html`, made again only if something it shows was made again."""
    study.make_file("report", lambda: report_page(study))
    return study.path / "report.html"


def report_page(study: Study) -> str:
    """The report as HTML."""
    title = f"Self-rewarding study: {study.path.name}"
    shown = drawings(study)
    parts = [
        _list("What this study shows, and what it does not", findings(study)),
        _section("What was run", _what_was_run(study)),
        _section("Figures", "".join(_figure(study, name) for name in shown)),
        _section("Reward accuracy beside the paper's", _accuracy_beside_paper(study)),
        _section("Win rates beside the paper's", _win_rates(study)),
        _section("Judge health", _health(study)),
        _section("One pair per iteration", _examples(study)),
        _section("What each step took", _steps(study)),
        _list("Where this differs from the paper", deviations(study)),
    ]
    return page(title, STYLE, "".join(parts))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escaped(title)}</h2>{body}</section>"


def _list(title: str, items: list[str] | tuple[str, ...]) -> str:
    return _section(
        title, "<ul>" + "".join(f"<li>{escaped(item)}</li>" for item in items) + "</ul>"
    )


def _table(frame: pd.DataFrame) -> str:
    number = (int, float, np.number, type(None), type(pd.NA))
    frame = frame.map(lambda value: value if isinstance(value, number) else escaped(value))
    options = {"index": False, "escape": False, "border": 0, "na_rep": ""}
    body = frame.to_html(float_format="{:.3g}".format, **options)
    return f'<div class="wide">{body}</div>'


def _what_was_run(study: Study) -> str:
    config, records = study.config, study.records()
    loops = metrics.iterations(study)
    trained = records[f"{metrics.models(study)[-1]}/adapter"]
    rows = {
        "model (M0)": config.model.name + _already_tuned(config.model.name),
        "quantisation": config.model.quantization,
        "preset": config.preset,
        "arms": ", ".join(study.arms),
        "seed data": config.seed.source,
        "EFT targets": config.sft.eft_targets,
        "judge": f"{config.judge.rubric} rubric, {config.judge.method}, K = {config.judge.samples}",
        "candidates": ", ".join(f"{f}: {len(study.read(f'{f}/candidates'))}" for f in loops),
        "random seed": config.random_seed,
        "commit": trained["commit"],
        "machine": trained["machine"],
        "last model trained": trained["made_at"],
        "versions": ", ".join(f"{k} {v}" for k, v in trained["versions"].items()),
    }
    cells = "".join(f"<tr><td>{escaped(k)}</td><td>{escaped(v)}</td></tr>" for k, v in rows.items())
    return f'<div class="wide"><table class="plain">{cells}</table></div>'


def _already_tuned(name: str) -> str:
    return " (already instruction-tuned: not a bare base model)" if "smollm2-135m" in name else ""


def _figure(study: Study, name: str) -> str:
    width = draw_figure(study, name).get_figwidth() / PAGE
    data = (study.path / "figures" / f"{name}.png").read_bytes()
    kind = next((kind for kind in ("funnel", "loop_signals") if name.startswith(kind)), "")
    caption = CAPTIONS[kind or name]
    label = name.removeprefix(f"{kind}_").replace("_", " ") if kind else ""
    text = escaped(f"{label}: {caption}" if label else caption)
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    note = f'<span class="note">Numbers: figures/{escaped(name)}.csv</span>'
    image = f'<img style="width: {width:.0%}" src="{source}" alt="{text}">'
    return f"<figure>{image}<figcaption>{text} {note}</figcaption></figure>"


def _accuracy_beside_paper(study: Study) -> str:
    from srkit.reward_accuracy import PAPER

    table = metrics.load(study, "reward_accuracy")["accuracy"]
    rows = []
    for row in table[table["metric"].isin(PAPER.columns)].to_dict("records"):
        short = row["model"].rpartition("/")[2]
        paper = PAPER[row["metric"]].get(short)
        interval = f"[{row['low']:.3f}, {row['high']:.3f}]" if not pd.isna(row["low"]) else ""
        left_out = f"{row['n']:.0f} {row['unit']}, {row['left_out']:.0f} left out"
        rows.append((row["model"], row["metric"], row["value"], interval, left_out, paper))
    columns = ("judge", "metric", "this study", "95 % interval", "n", "the paper (70B, other data)")
    return _table(pd.DataFrame(rows, columns=columns))


def _win_rates(study: Study) -> str:
    """Every pair of models: its win rates in per cent, the referee's steadiness, the paper's."""
    games = metrics.table(study, "win_rates", "head_to_head")
    measures = metrics.table(study, "win_rates", "measures").set_index([*MATCH, "measure"])
    paper = PAPER_MATCHES.set_index(["left", "right"])
    rows = []
    for game in games.to_dict("records"):
        names = tuple(game[name] for name in MATCH)
        found = {name: measures.loc[(*names, name)] for name in strength.MEASURES}
        row = {"pair": f"{game['left']} vs {game['right']}", "referee": game["referee"]}
        rates = [name for name in found if name.startswith("win_rate")]
        row |= {strength.MEASURES[name]: _rate(found[name].to_dict()) for name in rates}
        steady = {"value": "", "low": "_low", "high": "_high", "n": "_n"}
        steady = {key: game[f"position_consistency{end}"] for key, end in steady.items()}
        row["both orders agree"] = _rate(steady)
        short = tuple(game[side].removeprefix("self-rewarding/") for side in ("left", "right"))
        counts = paper.loc[short] if short in paper.index else None
        of = None if counts is None else "/".join(f"{100 * n / 256:.1f}" for n in counts)
        rows.append(row | {"the paper: wins/ties/losses (70B, GPT-4, n = 256)": of})
    note = (
        "Win rates in per cent with 95 % intervals. Wilson's takes a tie for a coin and is "
        "wider; at equal length is a logistic regression without AlpacaEval's term for the "
        "difficulty of an instruction, which exists for its 805 prompts only."
    )
    power = metrics.table(study, "win_rates", "power").drop(columns="here")
    shown = power.pivot(index=["referee", "tie_share"], columns="n", values="win_rate")
    shown = shown.rename(columns=lambda n: f"n = {n}").rename_axis(columns=None).reset_index()
    words = (
        "The smallest win rate (ties half) that n prompts show in four of five studies, by a "
        "two-sided test at 5 %; empty where no result would."
    )
    return f"<p>{note}</p>{_table(pd.DataFrame(rows))}<p>{words}</p>{_table(shown)}"


def _examples(study: Study) -> str:
    parts = []
    for folder in metrics.iterations(study):
        pairs = [row for row in study.read(f"{folder}/pairs") if not row["dropped"]]
        if not pairs:
            continue
        row = pairs[0]
        parts.append(
            f"<p>{escaped(folder)}, the first of {len(pairs)} pairs. Prompt:</p>"
            f"{block(row['prompt'])}<p>chosen ({row['chosen_score']:.2f}):</p>"
            f"{block(row['chosen'])}<p>rejected ({row['rejected_score']:.2f}):</p>"
            f"{block(row['rejected'])}"
        )
    return "".join(parts)


def _steps(study: Study) -> str:
    records = study.records()
    rows = [
        {
            "step": name,
            "rows": records[name].get("rows"),
            "seconds": records[name]["seconds"],
            "tokens": records[name].get("tokens"),
            "peak MB": records[name]["peak_memory_mb"].get("cpu"),
            "sha256": next(iter(records[name]["outputs"].values()))[:12],
        }
        for name in study.steps
        if name in records
    ]
    frame = pd.DataFrame(rows).astype({"rows": "Int64", "tokens": "Int64"})
    seconds, tokens = frame["seconds"].sum(), frame["tokens"].sum()
    return f"<p>{seconds:,.0f} seconds and {tokens:,} tokens in all steps.</p>{_table(frame)}"


def deviations(study: Study) -> list[str]:
    """Where this study differs from the paper, from its settings."""
    config = study.config
    training = (
        f"batches of {config.sft.batch_size} (SFT) and {config.dpo.batch_size} (DPO), learning "
        f"rates {config.sft.learning_rate:g} and {config.dpo.learning_rate:g}; the paper: 16, "
        "5.5e-06 and 1e-06"
    )
    found = {
        f"The model is {config.model.name}; the paper's is Llama 2 70B.": True,
        f"LoRA adapters are trained, {training}.": True,
        f"{config.instruct.prompts} new prompts are asked for per iteration; the paper ended with "
        "3,964 and 6,942 pairs.": True,
        f"They are written by {_who(config.instruct.writer, config)}; the paper: a fixed Llama "
        "2-Chat 70B.": True,
        f"The referee of the comparisons is {_who(config.eval.referee, config)}; the paper's is "
        "GPT-4.": True,
        "No checkpoint is selected by an outside judge (the paper: Claude 2, 253 prompts); each "
        "model is the end of its training.": True,
        "The rubric's wording is this kit's own; its criteria and output contract are the "
        "paper's.": True,
        "The seed set is the kit's own: grades follow from how each response was made, they are "
        "not human votes; agreement with them is not agreement with people.": config.seed.source
        == "kit",
        f"EFT targets come from `{config.sft.eft_targets}`, not from the baseline.": (
            config.sft.eft_targets != "self"
        ),
        "A score is the mean of 0 to 5 under the probabilities of the score token, without a "
        "rationale (the paper: the mean of 3 sampled judgements with rationales); such scores "
        "hardly ever tie.": config.judge.method == "expected",
        "The map of the data is made of TF-IDF vectors, without a model; the paper's embedding "
        "model is not known.": True,
        "Tasks, complexity and expected length of the test prompts were set by hand (the paper: "
        "GPT-4).": config.seed.source == "kit",
        "Answers to the test prompts are greedy, one per prompt.": config.eval.temperature == 0,
    }
    return [text for text, applies in found.items() if applies]


def _who(role: str, config: Config) -> str:
    """A model of the study, or the one behind the endpoint."""
    return config.endpoint.model if role == "endpoint" else f"{role} of this study"


def _health(study: Study) -> str:
    """Judge health of every table of judgements, and what its limits say."""
    table = metrics.load(study, "reward_accuracy")["health"]
    names = [*metrics.models(study), *metrics.iterations(study)]
    warned = [
        f"{name}: {warning}"
        for name in names
        for warning in health.health_warnings(
            health.judge_health(study.frame(f"{name}/judgements")), study.config.judge
        )
    ]
    said = "; ".join(warned) or "All judges are within the limits of the settings."
    columns = ["name", "judgements", "mean_score", "parse_rate", "modal_share", "tie_rate"]
    return f"<p>{escaped(said)}</p>{_table(table[[*columns, 'flat_rate']])}"
