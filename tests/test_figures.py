"""Every figure from small frames: right numbers drawn, n stated, the same bytes in every run."""

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from srkit import (
    ablations,
    benchmarks,
    blind_spots,
    breakdowns,
    constraints,
    costs,
    distribution,
    equal_length,
    figures,
    headtohead,
    health,
    length,
    overoptimisation,
    probes,
    signals,
    strength,
)
from srkit import reward_accuracy as accuracy
from srkit.figures import judging, style

MODELS = ("baseline", "M1", "self-rewarding/M2")
ARMS = ("self-rewarding", "nll", "random-judge", "oracle")


def gallery() -> dict[str, tuple[Figure, pd.DataFrame]]:
    """All figures from frames that the analysis modules made of small made-up tables."""
    rng = np.random.default_rng(0)
    responses = [(f"p{p}", f"p{p}-{rank}", rank) for p in range(6) for rank in range(3)]
    rankings = pd.DataFrame(responses, columns=["prompt_id", "id", "rank"]).assign(response="words")
    judged = {}
    for skill, model in enumerate(MODELS):
        table = rankings.drop(columns="response").rename(columns={"id": "response_id"})
        score = np.clip(rng.normal(3 - skill * table["rank"], 1).round(), 0, 5)
        score = np.where(rng.random(len(score)) > 0.1, score, np.nan)
        judged[model] = table.assign(score=score, sample=0, truncated=False)
    answers, compared = {}, []
    for model in MODELS:
        limits = [[{"kind": "max_words", "value": 5}], [], [{"kind": "avoid", "value": ["no"]}]]
        answers[model] = pd.DataFrame(
            {
                "prompt_id": [f"t{i}" for i in range(9)],
                "text": ["word " * int(n) for n in rng.integers(1, 12, 9)],
                "tokens": 7,
                "truncated": [i == 0 for i in range(9)],
                "constraints": limits * 3,
            }
        )
    for left, right in (("M1", "baseline"), ("self-rewarding/M2", "M1")):
        for i, first in ((i, first) for i in range(9) for first in ("left", "right")):
            odds = float(rng.normal(0.5))
            row = {"prompt_id": f"t{i}", "left": left, "right": right, "first": first}
            preferred = "left" if odds > 0 else "right"
            compared.append(row | {"preferred": preferred, "log_odds_left": odds, "referee": "M0"})
    pairs = pd.DataFrame({"id": list("abcd"), "chosen": "four", "rejected": ["a", "bb", "c", "d"]})
    pairs = pairs.assign(chosen_tokens=4, rejected_tokens=1, dropped=[None, None, None, "tie"])
    steps = np.arange(1, 6)
    training = pd.DataFrame({"step": steps, "loss": math.log(2) / steps, "reward_accuracy": 0.8})
    training = training.assign(logp_chosen=-steps, logp_rejected=-2.0 * steps, model="M2")
    items = benchmarks.instruction_items(answers)
    frames = {
        "instruction_following": benchmarks.scores(items, 50),
        "alignment_tax": benchmarks.changes(
            items, benchmarks.references(MODELS, {"self-rewarding/M2": "M1"}), 50
        ),
        "reward_accuracy": accuracy.accuracy_table(rankings, judged, 50),
        "length_trend": length.length_table(answers, 50),
        "length_distributions": length.lengths(answers),
        "chosen_rejected_lengths": length.chosen_against_rejected({"iter-1": pairs}, 50),
        "head_to_head": headtohead.head_to_head(pd.DataFrame(compared), 50),
        "strengths": pd.concat(
            [
                strength.win_rates(pd.DataFrame(compared), length.lengths(answers), 50),
                strength.bradley_terry(pd.DataFrame(compared)),
            ],
            ignore_index=True,
        ),
        "score_histograms": health.score_histogram(judged),
        "iteration_funnel": figures.funnel_counts(
            pd.DataFrame({"dropped": [None, "too short", "too short", "similar"]}),
            rankings[["id"]],
            judged["M1"],
            pairs,
        ),
        "training_curves": training,
        "constraint_pass_rates": constraints.pass_rates(answers, 50),
        "controls": constraints.oracle_scores(
            answers,
            constraints.parse(["max_words=5"]),
            {"self-rewarding/M2": "M1"},
            50,
        ),
        **arm_frames(),
        **drift_frames(rankings, judged, answers, pd.DataFrame(compared), training),
    }
    return {name: (getattr(figures, name)(frame), frame) for name, frame in frames.items()}


def arm_frames() -> dict[str, pd.DataFrame]:
    """Frames of arms side by side: two of them, after one iteration each."""
    prompts = pd.DataFrame({"prompt_id": [f"p{i}" for i in range(9)], "count": 1})
    models = ["M1", *(f"{arm}/M2" for arm in ARMS)]
    runs = [ablations.Run("", 0, "M1")]
    runs += [ablations.Run(arm, 1, f"{arm}/M2", "M1", f"{arm}/iter-1") for arm in ARMS]
    sums = {name: {} for name in ("judge accuracy", "oracle's score", "length")}
    for place, owners in enumerate(sums.values()):
        for turn, model in enumerate(models):
            owners[model] = prompts.assign(sum=(prompts.index + turn * (place + 1)) % 2)
    outcomes = ablations.compare(runs, sums, 50)
    line = {"tokens": 900, "read": 4000, "rows": 9, "seconds": 7.0, "peak_memory_mb": {"cpu": 1}}
    finished = [(run, part, line) for run in runs[1:] for part in ("candidates", "adapter")]
    ledger = costs.ledger(finished)
    return {
        "ablations": ablations.with_costs(outcomes, costs.as_outcomes(ledger)),
        "gain_per_token": costs.gains(outcomes, costs.by_arm(ledger)),
    }


def drift_frames(
    rankings: pd.DataFrame,
    judged: dict[str, pd.DataFrame],
    answers: dict[str, pd.DataFrame],
    compared: pd.DataFrame,
    training: pd.DataFrame,
) -> dict[str, pd.DataFrame]:
    """Frames of length control, of the data's distribution, of breakdowns and of signals."""
    tasks = pd.DataFrame(
        {"id": [f"t{i}" for i in range(9)], "task": ["list", "advice", "plan"] * 3}
    )
    sets = {"IFT": [f"sail {word} sea" for word in "abcdef"], "iter-1": ["bake bread", "eat bread"]}
    maps = [distribution.text_map(sets).assign(kind=kind) for kind in ("instructions", "responses")]
    asked = [("iter-1", sets["iter-1"], "the seed", sets["IFT"])]
    scored = [{"id": f"p{i}", "chosen_score": 3.0, "rejected_score": i / 4} for i in range(6)]
    scored = pd.DataFrame(scored).assign(dropped=[None] * 5 + ["tie"], chosen="x", rejected="xy")
    loops = {f"iter-{t}": {"judgements": judged["M1"], "pairs": scored} for t in (1, 2)}
    loops["iter-1"]["training"] = training
    moved = {"start": "M1", "tokens": 4, "truncated": False, "logp_own": -9.0, "logp_start": -11.0}
    loops["iter-1"]["drift"] = answers["M1"][["prompt_id"]].assign(**moved, k3=np.arange(9) / 4)
    matched = [
        equal_length.win_rates(compared, answers, 50),
        equal_length.pairwise_accuracy(rankings, judged, 50),
        equal_length.score_gaps({"iter-1": scored}, 50),
    ]
    costs = [{"name": "iter-1", "part": part, "seconds": 60, "tokens": 9} for part in ("a", "b")]
    return {
        "answer_form": length.length_table(answers, 50),
        "score_and_length": equal_length.score_and_length(rankings, judged, 50),
        "equal_length": pd.concat(matched),
        "data_map": pd.concat(maps),
        "prompt_novelty": distribution.novelty(asked, 50),
        "prompt_topics": distribution.topic_counts(distribution.assign_topics(sets)),
        "breakdown": breakdowns.answers_by_group(tasks, compared, answers, resamples=50),
        "judging_breakdown": breakdowns.judging_by_group(rankings.assign(task="list"), judged, 50),
        "loop_signals": signals.loop_signals(loops, costs, 50),
        "judge_probes": probes.probe_table(rankings, judged, dressed(judged), 50),
        "overoptimisation_curve": curve(),
    }


def dressed(judged: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Judgements of the worst answers in every dress, each a little higher than the one before."""
    found = {}
    for model, table in judged.items():
        worst = table[table["response_id"].str.endswith("-2")]
        parts = [
            worst.assign(response_id=worst["response_id"] + f"!{kind}", score=worst["score"] + i)
            for i, kind in enumerate(probes.KINDS)
        ]
        found[model] = pd.concat(parts)
    return found


def curve() -> pd.DataFrame:
    """Two arms of three models each, on every measure."""
    rows = [
        {"arm": arm, "t": t, "model": f"M{t}", "kl": t - 1.0, "distance": (t - 1) ** 0.5}
        | {"measure": measure, "unit": unit, "value": t / 4, "low": t / 5, "high": t / 3, "n": 9}
        for arm in ("self-rewarding", "oracle")
        for t in (1, 2, 3)
        for measure, unit in overoptimisation.MEASURES.items()
    ]
    return pd.DataFrame(rows, columns=list(overoptimisation.TABLE))


def save_all(folder: Path) -> dict[str, str]:
    """File name -> sha256 of every figure and csv."""
    paths = [
        path
        for name, (figure, frame) in gallery().items()
        for path in figures.save(figure, frame, folder / name)
    ]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def drawn() -> dict[str, tuple[Figure, pd.DataFrame]]:
    return gallery()


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text)).replace("\u00a0", " ")


def test_bytes_are_the_same_in_another_process(tmp_path, monkeypatch):
    code = "import sys, pathlib, test_figures as t; print(t.save_all(pathlib.Path(sys.argv[1])))"
    tests = str(Path(__file__).parent)
    paths = os.pathsep.join([tests, str(Path(tests).parent)])
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": paths, "TZ": "Asia/Tokyo"}
    there = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "there")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    # a user's own settings must not show
    monkeypatch.setitem(mpl.rcParams, "font.size", 19.0)
    monkeypatch.setitem(mpl.rcParams, "savefig.dpi", 31)
    here = save_all(tmp_path / "here")
    assert len(here) == 4 * len(gallery())
    assert str(here) == there.stdout.strip()


def test_saving_twice_gives_the_same_bytes(drawn, tmp_path):
    figure, frame = drawn["head_to_head"]
    first = [path.read_bytes() for path in figures.save(figure, frame, tmp_path / "a")]
    second = [path.read_bytes() for path in figures.save(figure, frame, tmp_path / "b")]
    assert first == second


def test_save_writes_four_files_and_keeps_dots_in_the_name(tmp_path):
    frame = pd.DataFrame({"x": [1 / 3], "n": [1_234_567]})
    paths = figures.save(figures.empty("no pair was left"), frame, tmp_path / "deep" / "fig.3")
    assert [path.name for path in paths] == ["fig.3.png", "fig.3.svg", "fig.3.pdf", "fig.3.csv"]
    assert paths[-1].read_bytes() == b"x,n\n0.333333,1234567\n"
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert b"<dc:date>" not in paths[1].read_bytes()
    assert b"CreationDate" not in paths[2].read_bytes()


def test_a_notebook_shows_a_figure_without_pyplot(drawn):
    assert drawn["training_curves"][0]._repr_png_().startswith(b"\x89PNG")


def test_every_committed_figure_is_named_in_its_readme():
    folder = Path(__file__).resolve().parents[1] / "figures"
    text = (folder / "README.md").read_text("utf-8")
    assert [p.stem for p in folder.glob("*.png") if f"`{p.stem}`" not in text] == []


def test_every_figure_states_n_or_counts(drawn):
    for name, (figure, _) in drawn.items():
        text = words(figure)
        assert "n = " in text or (name == "iteration_funnel" and " of " in text), name


def test_nothing_is_cut_at_the_border(drawn):
    for name, (figure, _) in drawn.items():
        box = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())  # inches
        width, height = figure.get_size_inches()
        assert box.x0 >= -0.01, name
        assert box.y0 >= -0.01, name
        assert box.x1 <= width + 0.01, name
        assert box.y1 <= height + 0.01, name


def test_reward_accuracy_draws_ours_and_the_papers_apart(drawn):
    figure, table = drawn["reward_accuracy"]
    axes = figure.axes[0]
    assert axes.get_title() == "Pairwise accuracy, ties left out"
    ours = axes.containers[0].lines[0].get_ydata()
    rows = table[
        (table["metric"] == "pairwise_accuracy") & (table["model"] != accuracy.LENGTH_ALONE)
    ]
    assert ours.tolist() == pytest.approx(rows["value"].tolist())
    paper = next(line for line in axes.lines if line.get_marker() == "D")
    assert paper.get_ydata().tolist() == [0.651, 0.787, 0.804]
    assert paper.get_color() == style.PAPER_GREY


def test_another_arm_has_no_counterpart_in_the_paper():
    assert judging._paper_value("self-rewarding/M3", "pairwise_accuracy") == 0.817
    assert np.isnan(judging._paper_value("oracle/M3", "pairwise_accuracy"))
    assert np.isnan(judging._paper_value("M3", "tie_rate"))


def test_length_trend_has_the_paper_in_its_own_panel(drawn):
    ours, paper = drawn["length_trend"][0].axes
    assert paper.lines[0].get_ydata().tolist() == [1092, 1552, 2552]
    assert "n = 9\n11 % cut" in ours.get_xticklabels()[0].get_text()


def test_bars_of_a_match_add_up_to_a_hundred(drawn):
    figure, table = drawn["head_to_head"]
    axes = figure.axes[0]
    widths = [patch.get_width() for patch in axes.patches]
    percent = table[["wins_percent", "ties_percent", "losses_percent"]].to_numpy()
    assert widths == pytest.approx(percent.ravel())
    assert "M1 vs baseline" in words(figure)
    assert "Referee M0: both orders agree on" in words(figure)


def test_strengths_show_raw_and_equal_length_side_by_side(drawn):
    figure, table = drawn["strengths"]
    rates, scale = figure.axes
    for container, measure in zip(
        rates.containers, ("win_rate", "win_rate_length_controlled"), strict=True
    ):
        values = table.loc[table["measure"] == measure, "value"]
        assert container.lines[0].get_xdata().tolist() == pytest.approx(values.tolist())
    marks = [container.lines[0].get_marker() for container in rates.containers]
    assert len(set(marks)) == 2, "a second cue besides the colour"
    assert scale.get_yticklabels()[0].get_text() == "baseline, n = 9"
    assert scale.containers[0].lines[0].get_xdata()[0] == 0
    assert "Every verdict of referee" not in words(figure)


def test_strengths_say_where_every_verdict_is_a_tie(drawn):
    table = drawn["strengths"][1]
    decided = table["measure"] == "win_rate_decided"
    silent = table.assign(n=table["n"].mask(decided, 0))
    assert "Every verdict of referee M0 is a tie" in words(figures.strengths(silent))


def test_the_referees_card_is_cited(drawn):
    table = drawn["head_to_head"][1]
    row = {"referee": "M0", "metric": "accuracy", "value": 0.61, "low": 0.52, "high": 0.7, "n": 97}
    text = words(figures.head_to_head(table, pd.DataFrame([row]))).replace("\n", " ")
    assert "on 61 % [52, 70] of 97 pairs" in text


def test_funnel_counts_and_reasons(drawn):
    figure, counts = drawn["iteration_funnel"]
    drafts = counts[counts["stage"] == "drafts to prompts"]
    assert dict(zip(drafts["outcome"], drafts["count"], strict=True)) == {
        "kept": 1,
        "too short": 2,
        "similar": 1,
    }
    text = words(figure)
    assert "1 of 4 drafts (25 %)" in text
    assert "left out: 2 too short; 1 similar" in text
    assert "3 of 4 prompts (75 %)" in text


def test_training_curves_show_ln_2_for_dpo_only(drawn):
    dpo = drawn["training_curves"][0]
    assert [axes.get_title() for axes in dpo.axes] == [
        "Loss",
        "Reward accuracy on the batch",
        "Log-probability (dashed: rejected)",
    ]
    levels = [line.get_ydata()[0] for line in dpo.axes[0].lines if line.get_linestyle() == ":"]
    assert levels == [math.log(2)]
    sft = figures.training_curves(pd.DataFrame({"step": [1, 2], "loss": [3.0, 2.0]}))
    assert len(sft.axes) == 1
    assert "ln 2" not in words(sft)


def test_dresses_are_counted_in_each_judges_own_spread(drawn):
    figure, table = drawn["judge_probes"]
    left, right = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == [
        probes.AS_IT_IS, *probes.KINDS
    ]  # fmt: skip
    rows = table[(table["model"] == "M1") & (table["measure"] == "change")]
    points = left.containers[1].lines[0].get_xdata()
    assert points[1:].tolist() == pytest.approx((rows["value"] / rows["spread"]).tolist())
    assert np.isnan(points[0]), "an answer as it is has not changed"
    beats = table[(table["model"] == "M1") & (table["measure"] == "beats")]
    assert right.containers[1].lines[0].get_xdata().tolist() == pytest.approx(beats["value"])
    flat = table.assign(spread=0.0)
    assert "Nothing to draw" in words(figures.judge_probes(flat)), "such a judge says nothing"


def test_the_curve_has_a_panel_per_measure_and_numbers_its_models(drawn):
    figure = drawn["overoptimisation_curve"][0]
    titles = [axes.get_title().replace("\n", " ") for axes in figure.axes]
    assert titles[:5] == list(overoptimisation.MEASURES)
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "2", "3"] * 2
    lost = curve().assign(distance=np.nan)
    assert "Nothing to draw" in words(figures.overoptimisation_curve(lost))


def test_fates_of_blind_spots_add_up():
    rows = [
        {"prompt_id": f"i{i}", "kind": "fact", "shown": shown, "right": shown == "key", "score": s}
        for i in range(8)
        for shown, s in (("own", 3 - i % 2), ("key", 2.5), ("wrong", 2))
    ]
    start = pd.DataFrame(rows)
    own = start["shown"] == "own"
    later = start.assign(score=start["score"].mask(own & (start["prompt_id"] == "i0"), 1))
    tables, starts = {"M1": start, "self-rewarding/M2": later}, {"self-rewarding/M2": "M1"}
    levels = blind_spots.measures(tables, starts, 50)
    figure = figures.blind_spots(levels, blind_spots.transitions(tables, starts))
    bars = [patch.get_width() for patch in figure.axes[1].patches]
    assert bars == pytest.approx([0, 1 / 4, 3 / 4, 0])
    assert [text.get_text() for text in figure.axes[1].texts] == ["1", "3"]
    assert "n = 8 items" in words(figure)
    alone = figures.blind_spots(levels, blind_spots.transitions({}, {}))
    assert "no blind spot" in words(alone)


def test_controls_start_where_the_arm_started():
    rows = [("M1", 0.5), ("oracle/M2", 0.6), ("oracle/M3", 0.7)]
    rows += [("random-judge/M2", 0.5), ("random-judge/M3", 0.4)]
    table = pd.DataFrame(rows, columns=["model", "value"]).assign(n=9)
    table = table.assign(low=table["value"] - 0.1, high=table["value"] + 0.1)
    table["reference"] = [None, *["M1"] * 4]
    table["difference"] = [np.nan, *(table["value"][1:] - 0.5)]
    for end in ("low", "high"):
        table[f"difference_{end}"] = table["difference"]
    figure = figures.controls(table)
    level, change = figure.axes
    walks = [line.get_ydata().tolist() for line in level.lines if len(line.get_ydata()) == 3]
    assert [0.5, 0.6, 0.7] in walks
    assert [0.5, 0.5, 0.4] in walks
    assert [t.get_text() for t in level.get_xticklabels()] == ["start", "M2", "M3"]
    assert [t.get_text() for t in change.get_xticklabels()] == ["M2", "M3"]
    assert "Start: M1" in words(figure)
    assert "n = 9 prompts" in words(figure)


def models_of(*arms):
    return ["M0", "baseline", "M1", *(f"{arm}/M{t}" for arm in arms for t in (2, 3))]


@pytest.mark.parametrize(
    ("arms", "most", "whole", "drawn"),
    [
        (("self-rewarding", "oracle"), 7, False, models_of("self-rewarding", "oracle")),
        (
            ("self-rewarding", "nll", "oracle"),
            7,
            False,
            [*models_of("self-rewarding"), "nll/M3", "oracle/M3"],
        ),
        (("cream", "self-rewarding", "nll"), 5, False, models_of("self-rewarding")),
        (
            ("self-rewarding", "nll", "cream", "random-judge", "oracle"),
            7,
            False,
            [*models_of("self-rewarding"), "random-judge/M3", "oracle/M3"],
        ),
        (
            ("self-rewarding", "nll", "random-judge", "oracle"),
            9,
            True,
            models_of("self-rewarding", "random-judge", "oracle"),
        ),
        (("nll", "cream"), 5, False, models_of("nll")),
        (("nll",), 4, False, ["M0", "baseline", "M1", "nll/M2"]),
    ],
)
def test_a_crowded_figure_shows_the_papers_arm_and_the_controls(arms, most, whole, drawn):
    assert ablations.foremost(models_of(*arms), most, whole) == drawn


def test_an_arms_last_model_and_last_iteration_are_shown():
    names = [f"{arm}/{name}" for arm in ("nll", "oracle") for name in ("M2", "M3")]
    loops = [f"{arm}/iter-{t}" for arm in ("nll", "oracle") for t in (1, 2)]
    wanted = ["nll/M2", "nll/M3", "oracle/M3", "nll/iter-1", "nll/iter-2", "oracle/iter-2"]
    assert ablations.foremost([*names, *loops], 6) == wanted


def test_a_crowded_figure_says_how_many_models_it_leaves_out():
    arms = [*ARMS, "cream", "anchored", "human"]
    rows = [
        {"model": m, "unit": "characters", "value": 9.0, "low": 8.0, "high": 9.5, "n": 4}
        for m in models_of(*arms)
    ]
    table = pd.DataFrame(rows).reindex(columns=list(length.SUMMARY)).assign(truncated=0.0)
    figure = figures.length_trend(table)
    names = [label.get_text().partition("\n")[0] for label in figure.axes[0].get_xticklabels()]
    wanted = ablations.foremost(models_of(*arms), ablations.ROOM)
    assert names == [name.replace("/", " ") for name in wanted]
    assert len(wanted) == 11  # the paper's arm whole, the last model of six others
    assert "6 of 17 are not drawn; all are in the csv." in figure.get_supxlabel().replace("\n", " ")


def test_the_papers_changes_have_panels_of_their_own():
    labels = {"benchmark": "arc_easy", "metric": "acc", "unit": "share", "prompts": 9}
    rows = [("M1", "baseline", -0.25), ("x/M2", "baseline", 0.5), ("x/M2", "M1", 0.75)]
    table = pd.DataFrame(rows, columns=["model", "reference", "value"])
    table = table.assign(low=table["value"] - 0.1, high=table["value"] + 0.1, **labels)
    figure = figures.alignment_tax(table)
    ours, paper, two_turn = figure.get_axes()
    places = [c.lines[0].get_xydata().tolist() for c in ours.containers]
    assert places[0] == [[-0.25, -0.13], [0.5, 0.87]], "against the baseline"
    assert places[1][1] == [0.75, 1.13], "against the arm's start"
    assert [t.get_text() for t in ours.get_yticklabels()] == ["M1", "M2"]
    drawn = {line.get_label(): line.get_ydata() for line in paper.lines}
    assert drawn["SFT"][0] == pytest.approx(76.49 - 80.20)
    assert drawn["M3"][-1] == pytest.approx(31.86 - 25.30)
    assert "SFT" not in {line.get_label() for line in two_turn.lines}, "it is the reference"
    assert "n = 9 prompts or items" in words(figure).replace("\n", " ")
    with_m0 = pd.concat([table, table[:2].assign(reference="M0")])
    base = table[:1].assign(model="baseline", reference="M0")
    first = figures.alignment_tax(pd.concat([with_m0, base])).get_axes()[0]
    assert [t.get_text() for t in first.get_yticklabels()] == ["baseline", "M1", "M2"]
    assert "against M0" in words(figures.alignment_tax(with_m0))


@pytest.mark.parametrize(
    ("draw", "reason"),
    [
        (figures.reward_accuracy, "no judgement of a ranked response could be read"),
        (figures.length_trend, "no response was measured"),
        (figures.length_distributions, "no response was measured"),
        (figures.chosen_rejected_lengths, "no pair was left"),
        (figures.head_to_head, "no two models were compared in both orders"),
        (figures.strengths, "no two models were compared in both orders"),
        (figures.score_histograms, "no judgement was made"),
        (figures.iteration_funnel, "the iteration has no rows"),
        (figures.training_curves, "no training step was logged"),
        (figures.constraint_pass_rates, "no test prompt has a constraint"),
        (figures.controls, "no answer was scored by the oracle"),
        (figures.instruction_following, "no test prompt carries a constraint"),
        (figures.alignment_tax, "no benchmark was measured for two models"),
        (figures.answer_form, "no response was measured"),
        (figures.score_and_length, "no judgement of a ranked response could be read"),
        (figures.equal_length, "nothing was compared"),
        (figures.data_map, "there is no text to place"),
        (figures.prompt_novelty, "no prompt was made"),
        (figures.prompt_topics, "there is no prompt to sort"),
        (figures.breakdown, "no test prompt carries a label to break down by"),
        (figures.judging_breakdown, "no ranked prompt carries a label to break down by"),
        (figures.loop_signals, "no iteration was finished"),
        (figures.judge_ways, "no model judged in several ways"),
        (figures.judge_calibration, "no judge told two responses apart"),
        (figures.judge_agreement, "there are no two models to compare"),
    ],
)
def test_an_empty_frame_says_why(draw, reason):
    assert reason in words(draw(pd.DataFrame())).replace("\n", " ")
    lacking = words(draw(pd.DataFrame({"other": [1]}))).replace("\n", " ")
    assert "Nothing to draw: the table lacks the column(s)" in lacking


def test_tables_may_come_from_json(drawn):
    # null where all of a column is undefined, as one prompt alone leaves it
    rows = {"prompt_id": "t", "left": "M1", "right": "baseline", "referee": "M0"}
    rows = pd.DataFrame([rows, rows]).assign(first=["left", "right"], preferred="left")
    table = headtohead.head_to_head(rows.assign(log_odds_left=None), 5)
    card = pd.DataFrame([{"referee": "M0", "metric": "accuracy", "value": 0.5, "n": 1}])
    card[["low", "high"]] = None
    loaded = pd.DataFrame(json.loads(table.to_json(orient="records")))
    assert loaded["log_odds"].dtype == object
    assert "100.0% [21, 100], n = 1" in words(figures.head_to_head(loaded, card))
    for name, (_, frame) in drawn.items():
        again = pd.DataFrame(json.loads(frame.to_json(orient="records")))
        assert "Nothing to draw" not in words(getattr(figures, name)(again)), name


def test_rows_without_values_say_why_too():
    nothing = pd.DataFrame()
    tables = [
        (figures.reward_accuracy, accuracy.accuracy_table(nothing, {"M1": nothing}, 5)),
        (figures.length_trend, length.length_table({"M1": nothing}, 5)),
        (figures.chosen_rejected_lengths, length.chosen_against_rejected({"1": nothing}, 5)),
        (figures.score_histograms, health.score_histogram({"M1": nothing})),
        (figures.training_curves, pd.DataFrame({"step": [1], "loss": [None]})),
    ]
    for draw, table in tables:
        assert len(table)
        assert "Nothing to draw" in words(draw(table)), draw.__name__


def test_a_breakdown_stands_beside_the_papers_and_pales_where_n_is_small(drawn):
    figure, table = drawn["breakdown"]
    *ours, paper = figure.axes
    assert "Technology" in [label.get_text() for label in paper.get_yticklabels()]
    names = [label.get_text() for label in ours[0].get_yticklabels()]
    assert names == ["all, n = 6 to 9", "advice, n = 0 to 3", "list, n = 3", "plan, n = 3"]
    colours = {line.get_color() for line in ours[0].lines if line.get_marker() in style.MARKERS}
    assert table["small"].all()
    assert {colour[-2:] for colour in colours} == {"40"}
    nothing = figures.breakdown(table, label="complexity")
    assert "no test prompt carries a label" in words(nothing).replace("\n", " ")


def test_topics_and_their_drift(drawn):
    counts = drawn["prompt_topics"][1]
    drift = {"name": "iter-1", "against": "IFT", "distance": 0.7, "by_chance": 0.2}
    drift = pd.DataFrame([drift | {"by_chance_high": 0.3, "n": 2, "references": 6}])
    figure = figures.prompt_topics(counts, drift)
    assert "iter-1 to IFT" in words(figure)
    assert "n = 6" in words(figure)
    assert "bread" in words(figure)
    (line,) = [line for line in figure.axes[1].lines if line.get_marker() == "o"]
    assert line.get_xdata().tolist() == [0.7]


def test_the_dashboard_has_a_panel_per_signal(drawn):
    figure, _ = drawn["loop_signals"]
    assert len(figure.axes) == len(signals.SIGNALS) == 9
    panel = {axes.get_title(): axes for axes in figure.axes}
    bars = [patch.get_height() for patch in panel["Minutes"].patches]
    assert bars == [1, 0, 1, 0], "two steps of a minute; the second iteration has no cost"
    assert [*panel["Prompts that gave a pair"].lines[0].get_ydata()] == pytest.approx([5 / 6] * 2)
    updates = panel["Log-probability, nats"].lines[0]
    assert updates.get_ydata().tolist() == [-1, -2, -3, -4, -5]
