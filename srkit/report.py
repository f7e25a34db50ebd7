"""The one-page report of a study, from its tables alone: no model is loaded.

`report.html` is self-contained (pictures inside), readable on a phone and printable. All text of
models and data is escaped.

    srkit report runs/first
"""

from __future__ import annotations

import base64
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from srkit import ablations, differences, health, metrics, strength
from srkit.config import Config
from srkit.drawings import CAPTIONS, ablation_outcomes, draw_figures
from srkit.escape import block, escaped, page
from srkit.figures.style import PAGE
from srkit.findings import findings, rate, uncrowded
from srkit.headtohead import MATCH
from srkit.headtohead import PAPER as PAPER_MATCHES
from srkit.plan import PAPER_ARM
from srkit.rows import kept
from srkit.study import Study

PHONE = 92  # pixels for an inch of a figure on a narrow screen: its 7 points are then readable
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 0 auto; padding: 1rem;
       color: #222; background: #fff }
h1 { line-height: 1.2 } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd }
figure { margin: 1.5rem 0 } img { display: block; height: auto }
figcaption, .note { color: #555; font-size: .9rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .85rem }
td, th { padding: .2rem .6rem; border-bottom: 1px solid #eee; text-align: right }
td:first-child, th:first-child, table.plain td, table.plain th { text-align: left }
pre { white-space: pre-wrap; overflow-wrap: anywhere; overflow: hidden; background: #f6f6f6;
      padding: .6rem; font-size: .85rem }
@media (max-width: 40rem) { .wide > img { width: var(--phone) !important; max-width: none }
  td, th { padding: .2rem .4rem } .plain td:last-child { overflow-wrap: anywhere } }
@page { margin: 14mm }
@media print { body { max-width: none; padding: 0; font-size: 10.5pt }
  h2 { break-after: avoid } figure, tr { break-inside: avoid } .wide { overflow: visible }
  img { max-width: 100% !important; max-height: 22cm; object-fit: contain }
  table { font-size: 7.5pt; max-width: 100% }
  td, th { overflow-wrap: anywhere; padding: .1rem .3rem }
  pre { break-inside: avoid } }
"""


def make_report(study: Study) -> Path:
    """Step `report`: `report.html`, made again only if something it shows was made again."""
    study.make_file("report", lambda: report_page(study))
    return study.path / "report.html"


def report_page(study: Study) -> str:
    """The report as HTML."""
    title = f"Self-rewarding study: {study.path.name}"
    drawn = "".join(_figure(study, name, *told) for name, told in draw_figures(study).items())
    parts = [
        _section("What this study shows, and what it does not", _findings(study)),
        _section("What was run", _what_was_run(study)),
        _section("Figures", WORDS + drawn),
        _section("Reward accuracy beside the paper's", _accuracy_beside_paper(study)),
        _section("Win rates beside the paper's", _win_rates(study)),
        _section("Arms side by side", _arms(study)),
        _section("Judge health", _health(study)),
        _section("One pair per iteration", _examples(study)),
        _section("What each step took", _steps(study)),
        _section("Where this differs from the paper", _list(differences.deviations(study.config))),
        _section("Settings that differ from the paper's", _settings(study)),
        _section("Limits", _list(differences.limits(study.config))),
    ]
    return page(title, STYLE, "".join(parts))


WORDS = (
    '<p class="note">Bars and brackets are 95 % intervals, whole prompts resampled, unless a '
    "figure says otherwise; n is below each. Wide ones scroll sideways on a phone.</p>"
)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escaped(title)}</h2>{body}</section>"


def _list(items: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{escaped(item)}</li>" for item in items) + "</ul>"


def _findings(study: Study) -> str:
    told = findings(study).items()
    return "".join(f"<h3>{escaped(question)}</h3>{_list(said)}" for question, said in told)


def _table(frame: pd.DataFrame, classes: str | None = None) -> str:
    number = (int, float, np.number, type(None), type(pd.NA))
    frame = frame.map(lambda value: value if isinstance(value, number) else escaped(value))
    options = {"index": False, "escape": False, "border": 0, "na_rep": ""}
    body = frame.to_html(float_format="{:.3g}".format, classes=classes, **options)
    return f'<div class="wide">{body}</div>'


def _what_was_run(study: Study) -> str:
    config, records = study.config, study.records()
    loops = metrics.iterations(study)
    adapters = [records[f"{model}/adapter"] for model in metrics.models(study)]
    trained = max(adapters, key=lambda record: datetime.fromisoformat(record["made_at"]))
    rows = {
        "model (M0)": config.model.name + _already_tuned(config.model.name),
        "quantisation": config.model.quantization,
        "preset": config.preset,
        "arms": ", ".join(study.arms),
        "seed data": f"{config.seed.source}: " + _sizes(study),
        "EFT targets": config.sft.eft_targets,
        "judge": f"{config.judge.rubric} rubric, {config.judge.method}, K = {config.judge.samples}",
        "iterations": "; ".join(_loop(study, folder) for folder in loops),
        "training": _training(config),
        "random seed": f"{config.random_seed} (one run: what another seed gives is not known)",
        "commit": trained["commit"],
        "machine": trained["machine"],
        "trained in": _computed(adapters),
        "last model trained": trained["made_at"],
        "versions": ", ".join(f"{k} {v}" for k, v in trained["versions"].items()),
    }
    cells = "".join(f"<tr><td>{escaped(k)}</td><td>{escaped(v)}</td></tr>" for k, v in rows.items())
    return f'<div class="wide"><table class="plain">{cells}</table></div>'


def _computed(adapters: list[dict]) -> str:
    """Types, devices and optimizers of all trainings; studies of earlier versions did not say."""
    told = [f"{a['dtype']} on {a['device']}, {a['optimizer']}" for a in adapters if "dtype" in a]
    return "; ".join(dict.fromkeys(told)) or "not recorded"


def _sizes(study: Study) -> str:
    tables = {
        "ift": "IFT rows",
        "eft": "ranked responses for EFT",
        "eft_eval": "held-out ranked responses",
        "test_prompts": "test prompts",
    }
    return ", ".join(f"{len(study.read(f'seed/{t}'))} {words}" for t, words in tables.items())


def _loop(study: Study, folder: str) -> str:
    prompts, pairs = (len(kept(study.read(f"{folder}/{t}"))) for t in ("prompts", "pairs"))
    candidates = len(study.read(f"{folder}/candidates"))
    return f"{folder}: {prompts} prompts, {candidates} candidates, {pairs} pairs"


def _training(config: Config) -> str:
    sft, dpo = config.sft, config.dpo
    return (
        f"LoRA rank {config.model.lora_rank}; SFT {sft.epochs:g} epochs at {sft.learning_rate:g}, "
        f"batch {sft.batch_size}; DPO {dpo.epochs:g} epochs at {dpo.learning_rate:g}, batch "
        f"{dpo.batch_size}, beta {dpo.beta:g}"
    )


def _already_tuned(name: str) -> str:
    return " (already instruction-tuned: not a bare base model)" if "smollm2-135m" in name else ""


def _figure(study: Study, name: str, width: float, below: str) -> str:
    data = (study.path / "figures" / f"{name}.png").read_bytes()
    kind = next((kind for kind in ("funnel", "loop_signals") if name.startswith(kind)), "")
    caption = CAPTIONS[kind or name]
    label = name.removeprefix(f"{kind}_").replace("_", " ") if kind else ""
    text = escaped(f"{label}: {caption}" if label else caption)
    below = escaped(" ".join(below.split()))
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    note = f'<span class="note">Numbers: figures/{escaped(name)}.csv</span>'
    size = f"width: {width / PAGE:.0%}; --phone: {PHONE * width:.0f}px"
    image = f'<div class="wide"><img style="{size}" src="{source}" alt="{text}"></div>'
    return f"<figure>{image}<figcaption>{text} {below} {note}</figcaption></figure>"


def _accuracy_beside_paper(study: Study) -> str:
    from srkit.reward_accuracy import PAPER

    table = uncrowded(study, metrics.load(study, "reward_accuracy")["accuracy"])
    rows = []
    for row in table[table["metric"].isin(PAPER.columns)].to_dict("records"):
        short = row["model"].removeprefix(f"{PAPER_ARM}/")  # other arms have no counterpart there
        paper = PAPER[row["metric"]].get(short)
        interval = f"[{row['low']:.3f}, {row['high']:.3f}]" if not pd.isna(row["low"]) else ""
        left_out = f"{row['n']:.0f} {row['unit']}, {row['left_out']:.0f} left out"
        rows.append((row["model"], row["metric"], row["value"], interval, left_out, paper))
    columns = ("judge", "metric", "this study", "95 % interval", "n", "the paper (70B, other data)")
    return _table(pd.DataFrame(rows, columns=columns))


def _win_rates(study: Study) -> str:
    """Every pair of models: its win rates in per cent, the referee's steadiness, the paper's."""
    games = uncrowded(study, metrics.table(study, "win_rates", "head_to_head"))
    measures = metrics.table(study, "win_rates", "measures").set_index([*MATCH, "measure"])
    paper = PAPER_MATCHES.set_index(["left", "right"])
    rows = []
    for game in games.to_dict("records"):
        names = tuple(game[name] for name in MATCH)
        found = {name: measures.loc[(*names, name)] for name in strength.MEASURES}
        row = {"pair": f"{game['left']} vs {game['right']}", "referee": game["referee"]}
        rates = [name for name in found if name.startswith("win_rate")]
        row |= {strength.MEASURES[name]: rate(found[name].to_dict()) for name in rates}
        steady = {"value": "", "low": "_low", "high": "_high", "n": "_n"}
        steady = {key: game[f"position_consistency{end}"] for key, end in steady.items()}
        row["both orders agree"] = rate(steady)
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


def _arms(study: Study) -> str:
    """Every outcome of every arm after the last iteration, and of what they started from."""
    words = ablations.summary(ablation_outcomes(study))
    note = (
        "After the last iteration, with 95 % intervals; a star where the paired difference from "
        "the paper's arm has an interval without zero (own scores and judge accuracies by another "
        "rubric or method, and win rates from another start, are not compared). Own score and "
        "pairs are of the candidates that the last iteration was trained on; seconds and tokens "
        "are of all iterations."
    )
    return f"<p>{note}</p>{_table(words)}"


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
            "peak MB": max(records[name]["peak_memory_mb"].values()),
            "sha256": next(iter(records[name]["outputs"].values()))[:12],
        }
        for name in study.steps
        if name in records
    ]
    frame = pd.DataFrame(rows).astype({"rows": "Int64", "tokens": "Int64"})
    seconds, tokens = frame["seconds"].sum(), frame["tokens"].sum()
    return f"<p>{seconds:,.0f} seconds and {tokens:,} tokens in all steps.</p>{_table(frame)}"


def _settings(study: Study) -> str:
    words = "Every setting that decides a result and is not that of preset <code>paper</code>."
    told = _table(differences.from_paper(study.config), classes="plain")
    return f"<p>{words}</p>{told}"


def _health(study: Study) -> str:
    """Judge health of every table of judgements, and what its limits say."""
    table = metrics.load(study, "reward_accuracy")["health"]
    names = [*metrics.models(study), *metrics.iterations(study)]
    warned = [
        f"{name}: {warning}"
        for name in names
        for warning in health.health_warnings(
            health.judge_health(study.frame(f"{name}/judgements")), metrics.judged_by(study, name)
        )
    ]
    said = "; ".join(warned) or "All judges are within the limits of the settings."
    columns = ["name", "judgements", "mean_score", "parse_rate", "modal_share", "tie_rate"]
    return f"<p>{escaped(said)}</p>{_table(table[[*columns, 'flat_rate']])}"
