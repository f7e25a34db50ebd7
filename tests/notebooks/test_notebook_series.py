"""The whole series with preset `tiny`, through papermill, as a user runs it; then what a second
run, a deleted table and altered notebooks do. The numbers mean nothing here, the plumbing does.
"""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OASST = ROOT.parent / "shared" / "data" / "oasst1"
OTHER_ARMS = ("positive-only", "human")
MODELS = ["baseline", "M1", "self-rewarding/M2", "self-rewarding/M3"]


def srkit(*words: str, check: bool = True) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "srkit.cli", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def status(study: Path) -> dict[str, dict]:
    steps = json.loads(srkit("status", study, "--json").stdout)["steps"]
    return {step["step"]: step for step in steps}


def load(study: Path, name: str) -> dict:
    return json.loads((study / "metrics" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("series") / "tiny"
    srkit("run", "--preset", "tiny", "--study", path)
    return path


def test_every_step_is_done_with_rows_seconds_and_hashes(study):
    steps = status(study)
    assert {s["state"] for s in steps.values()} == {"done"}
    assert all(s["seconds"] >= 0 for s in steps.values())
    hashes = [sha for s in steps.values() for sha in s["outputs"].values()]
    assert all(re.fullmatch(r"[0-9a-f]{64}", sha) for sha in hashes)
    assert steps["self-rewarding/iter-1/candidates"]["rows"] == 8 * 3
    assert steps["M1/judgements"]["rows"] == steps["seed/eft_eval"]["rows"]


def test_adapters_differ_and_start_where_they_should(study):
    prints = {m: json.loads((study / m / "adapter/fingerprint.json").read_text()) for m in MODELS}
    assert len({p["adapter_sha256"] for p in prints.values()}) == len(MODELS)
    for t in (1, 2):
        numbers = load(study, f"04_iteration-self-rewarding-{t}")
        assert numbers["first_loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert numbers["pairs"] >= 2


def test_reward_accuracy_is_within_its_bounds(study):
    rows = load(study, "reward_accuracy")["accuracy"]
    assert {r["model"] for r in rows} == {*MODELS, "length alone"}
    parse = {r["model"]: r["value"] for r in rows if r["metric"] == "parse_rate"}
    assert all(parse[m] == 1 for m in MODELS), "an expected score always parses"
    for row in rows:
        if row["value"] is not None and row["low"] is not None:
            assert -1 <= row["low"] <= row["value"] <= row["high"] <= 1, row


def test_lengths_are_those_of_the_responses(study):
    rows = load(study, "length_drift")["by_model"]
    for model in MODELS:
        texts = [json.loads(x)["text"] for x in (study / model / "responses.jsonl").open()]
        (row,) = [r for r in rows if r["model"] == model and r["unit"] == "characters"]
        assert row["n"] == len(texts) == 8
        assert row["value"] == pytest.approx(sum(map(len, texts)) / len(texts))


def test_the_data_map_places_what_was_trained_on(study):
    tables = load(study, "data_distribution")
    ift = [r for r in tables["map"] if (r["kind"], r["set"]) == ("instructions", "IFT")]
    assert len(ift) == 24
    assert {r["set"] for r in tables["map"]} >= {"IFT", "EFT", "self-rewarding/iter-1"}
    drafts = (study / "self-rewarding/iter-1/prompts.jsonl").open()
    kept = [row for row in map(json.loads, drafts) if not row["dropped"]]
    sizes = {r["n"] for r in tables["topics"] if r["name"] == "self-rewarding/iter-1"}
    assert sizes == {len(kept)}


def test_breakdowns_add_up_and_name_small_groups(study):
    rows = [r for r in load(study, "breakdowns")["answers"] if r["quantity"] == "characters"]
    for model in MODELS:
        mine = [r for r in rows if (r["model"], r["label"]) == (model, "task")]
        (everything,) = [r for r in mine if r["group"] == "all"]
        groups = [r for r in mine if r["group"] != "all"]
        assert sum(r["n"] for r in groups) == everything["n"] == 8
        total = sum(r["n"] * r["value"] for r in groups)
        assert total / 8 == pytest.approx(everything["value"])
        assert all(r["small"] for r in mine)


def test_win_rates_follow_from_the_comparisons(study):
    rows = load(study, "win_rates")["head_to_head"]
    assert len(rows) == 6, "four models, every pair once"
    for row in rows:
        assert row["wins"] + row["ties"] + row["losses"] == row["n"] == 8
        assert row["win_rate"] == pytest.approx((row["wins"] + row["ties"] / 2) / row["n"])


def test_every_pair_has_its_rates_at_equal_length_and_every_model_its_strength(study):
    tables = load(study, "win_rates")
    rates = {r["measure"]: r["value"] for r in tables["measures"] if r["left"] == "M1"}
    (game,) = [g for g in tables["head_to_head"] if g["left"] == "M1"]
    assert rates["win_rate"] == rates["win_rate_wilson"] == game["win_rate"]
    assert 0 < rates["win_rate_length_controlled"] < 1
    assert [r["left"] for r in tables["strengths"]] == MODELS
    assert {r["n"] for r in tables["power"] if r["here"]} == {8, 256}


def test_instructions_followed_are_those_of_the_constraints(study):
    tables = load(study, "benchmarks")
    strict = {r["model"]: r["value"] for r in tables["scores"] if r["metric"] == "prompts, strict"}
    every = [r for r in load(study, "win_rates")["constraints"] if r["kind"] == "all constraints"]
    assert {m: strict[m] for m in MODELS} == {r["model"]: r["value"] for r in every}
    assert set(strict) == {"M0", *MODELS}
    pairs = {(r["model"], r["reference"]) for r in tables["changes"]}
    trained = {(m, "baseline") for m in MODELS[1:]} | {(m, "M1") for m in MODELS[2:]}
    assert pairs == trained | {(m, "M0") for m in MODELS}


def test_figures_in_three_formats_can_be_made_again_to_the_byte(study):
    files = sorted((study / "figures").iterdir())
    before = {f.name: f.read_bytes() for f in files}
    stems = {name.rpartition(".")[0] for name in before}
    assert {"reward_accuracy", "win_rates", "strengths", "length_trend"} <= stems
    assert all(
        f"{stem}.{kind}" in before for stem in stems for kind in ("png", "svg", "pdf", "csv")
    )
    for file in files:
        file.unlink()
    srkit("figures", study)
    assert {f.name: f.read_bytes() for f in (study / "figures").iterdir()} == before


def test_report_is_self_contained_and_states_the_model(study):
    page = (study / "report.html").read_text()
    assert "tiny" in page
    assert page.count("data:image/png;base64,") == len(list((study / "figures").glob("*.png")))
    assert not re.search(r'(src|href)="(?!data:)', page), "nothing is loaded from elsewhere"


def test_executed_notebooks_carry_their_parameters(study):
    notebook = json.loads((study / "notebooks/04_iteration-self-rewarding-2.ipynb").read_text())
    parameters = notebook["metadata"]["papermill"]["parameters"]
    assert parameters == {"study": str(study), "arm": "self-rewarding", "iteration": 2}
    errors = [o for c in notebook["cells"] for o in c.get("outputs", []) if "ename" in o]
    assert errors == []


def test_the_same_command_again_does_no_model_work(study):
    before = (study / "manifest.jsonl").read_text()
    done = srkit("run", "--preset", "tiny", "--study", study)
    assert "no model was loaded" in done.stdout
    assert (study / "manifest.jsonl").read_text() == before


def test_other_settings_are_refused_and_change_nothing(study):
    before = (study / "manifest.jsonl").read_text()
    done = srkit("run", "--study", study, "--set", "dpo.beta=0.5", check=False)
    assert done.returncode == 1
    assert "dpo.beta: 0.1 -> 0.5" in done.stderr
    assert "Traceback" not in done.stderr
    assert (study / "manifest.jsonl").read_text() == before


@pytest.mark.parametrize("again", ["make", pytest.param("run", marks=pytest.mark.slow)])
def test_deleting_one_table_makes_its_dependents_again(study, again):
    """Last: it changes the study. Everything it makes again must come out the same."""
    before = status(study)
    (study / "self-rewarding/iter-2/pairs.jsonl").unlink()
    srkit(again, "--study", study)
    after = status(study)
    ran = {n for n in after if after[n]["made_at"] != before[n]["made_at"]}
    names = ("adapter", "judgements", "ways", "responses", "comparisons", "drift")
    names += ("probes", "blind_spots")
    made = {"self-rewarding/iter-2/pairs", *(f"self-rewarding/M3/{n}" for n in names)}
    analyses = ("reward_accuracy", "length_drift", "win_rates", "benchmarks")
    analyses += ("data_distribution", "breakdowns", "ablations", "rivals", "reward_hacking")
    analyses += ("successors",)
    metrics = {*(f"metrics/{name}" for name in analyses), "report", "browse"}
    assert made | metrics == ran
    tables = made | metrics - {"report"}  # the report states seconds
    assert {n: after[n]["outputs"] for n in tables} == {n: before[n]["outputs"] for n in tables}


@pytest.mark.parametrize(
    "arm", ["oracle", *(pytest.param(arm, marks=pytest.mark.slow) for arm in OTHER_ARMS)]
)
def test_another_arm_joins_the_study_with_its_own_iterations(study, arm):
    before = status(study)
    srkit("run", "--study", study, "--arm", arm, "--only", f"04_iteration-{arm}-1")
    after = status(study)
    mine = [name for name in after if name.startswith((f"{arm}/iter-1", f"{arm}/M2"))]
    assert len(mine) == 9
    assert {after[name]["state"] for name in mine} == {"done"}
    for name in (n for n in before if not n.startswith(("metrics", "report"))):
        assert after[name].get("outputs") == before[name].get("outputs"), "nothing else is made"
    for table in ("prompts", "candidates"):
        tables = [study / a / f"iter-1/{table}.jsonl" for a in ("self-rewarding", arm)]
        assert (len({file.read_bytes() for file in tables}) == 1) == (arm != "human")
    numbers = load(study, f"04_iteration-{arm}-1")
    assert (numbers["first_loss"] is None) == (arm == "positive-only")


def test_a_notebook_says_which_one_to_run_first(tmp_path):
    srkit("run", "--preset", "tiny", "--study", tmp_path / "new", "--only", "00")
    done = srkit("run", "--study", tmp_path / "new", "--only", "10", check=False)
    assert done.returncode == 1
    assert "Run notebook 01_seed_data first" in done.stderr


@pytest.mark.parametrize("name", [pytest.param("train", marks=pytest.mark.slow), "validation"])
def test_open_assistant_rows_take_the_kits_place(tmp_path, name):
    file = OASST / f"{name}.messages.jsonl.gz"
    if not file.exists():
        pytest.skip(f"needs Open Assistant rows, which are not shipped: put them at {file}")
    path = tmp_path / name
    srkit("run", "--preset", "tiny", "--study", path, "--set", f"seed.source={file}")
    assert {s["state"] for s in status(path).values()} == {"done"}
    prompts = [json.loads(line)["prompt"] for line in (path / "seed/ift.jsonl").open()]
    assert len(set(prompts)) == 24
