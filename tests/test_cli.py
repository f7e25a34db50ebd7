"""The command line: light help, errors in one paragraph, status as JSON, what `run` would run."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from srkit import cli, doctor
from srkit.config import resolve
from srkit.plan import notebooks, plan
from srkit.study import Study

HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "pandas", "matplotlib", "papermill")


def python(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def srkit(monkeypatch, capsys):
    """Run the command line in this process: `(exit code, output, errors)`."""

    def srkit(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["srkit", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return srkit


@pytest.fixture
def executed(monkeypatch):
    """Stand in for papermill; the names of the notebooks that would run."""
    names = []

    def execute(source, target, parameters):
        names.append((target.stem, parameters))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("{}")

    monkeypatch.setattr(cli, "_execute", execute)
    return names


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_with_one_line(number, code, srkit, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        os.kill(os.getpid(), getattr(signal, number))
        time.sleep(5)

    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    monkeypatch.setattr(Study, "open", interrupted)
    try:
        said = srkit("make", "--study", tmp_path / "s", "--preset", "tiny")
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert said == (code, "", f"srkit: stopped by {number}. {cli.KEPT}\n")


def test_help_and_package_import_nothing_heavy():
    probe = (
        "import sys, srkit.cli\n"
        "sys.argv = ['srkit', '--help']\n"
        "try:\n    srkit.cli.main()\n"
        "except SystemExit:\n    pass\n"
        f"print('HEAVY', [m for m in {HEAVY} if m in sys.modules])"
    )
    done = python("-c", probe)
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr
    for command in ("run", "forecast", "status", "doctor", "figures", "report"):
        assert command in done.stdout


def test_the_doctor_looks_at_this_machine(srkit, monkeypatch):
    code, out, _ = srkit("doctor")
    said = dict(line.split(None, 1)[::-1] for line in out.splitlines())
    version = importlib.metadata.version("torch")
    assert said[f"torch {version}"] == "ok"
    assert code == int("MISS" in said.values()), out
    monkeypatch.setattr(doctor, "_package", lambda name: (False, f"{name} is not installed"))
    code, out, _ = srkit("doctor")
    assert code == 1
    assert "MISS  torch is not installed" in out


LIGHT = ("config", "plan", "study", "prompts", "seed", "instruct", "judge", "pairs", "evaluate",
         "notebook", "stats", "reward_accuracy", "health", "headtohead", "length", "constraints",
         "metrics", "figures", "report", "engine", "endpoint", "memory", "speed", "workload",
         "forecast", "distributed", "series", "browse", "escape", "reading", "equal_length",
         "distribution", "breakdowns", "ablations", "signals", "consistency", "meta_judge",
         "successors", "probes", "blind_items", "blind_spots", "overoptimisation", "costs",
         "rivals", "refine", "doctor", "parallel", "drawings")  # fmt: skip


def test_ground_analyses_and_the_pure_half_of_the_steps_import_no_torch():
    imports = "".join(f"import srkit.{module}\n" for module in LIGHT)
    done = python("-c", f"import sys\n{imports}print([m for m in {HEAVY[:5]} if m in sys.modules])")
    assert done.stdout == "[]\n", done.stderr


def test_an_error_is_one_paragraph_on_stderr_and_exit_code_1(tmp_path):
    done = python("-m", "srkit.cli", "status", str(tmp_path / "none"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("srkit: There is no study at ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "tiyn"], "no preset 'tiyn'. Did you mean 'tiny'"),
        (["--preset", "tiny", "--set", "dpo.bta=0.2"], "Did you mean 'beta'"),
        (["--preset", "tiny", "--set", "dpo.beta=much"], "dpo.beta = 'much'"),
        (["--preset", "tiny", "--set", "dpo.beta"], "section.field=value"),
        (["--preset", "tiny", "--iterations", "0"], "iterations = '0'"),
        (["--preset", "tiny", "--arm", "humen"], "no arm 'humen'"),
        (["--preset", "tiny", "--only", "99"], "No notebook's name starts with '99'"),
        ([], "There is no study at"),
    ],
)
def test_errors_of_run(srkit, executed, tmp_path, words, message):
    code, out, err = srkit("run", "--study", tmp_path / "s", *words)
    assert (code, out) == (1, "")
    assert err.startswith("srkit: ")
    assert message in err
    assert err.count("\n") == 1
    assert executed == []


def test_other_settings_for_an_existing_study_need_change(srkit, executed, tmp_path):
    assert srkit("run", "--study", tmp_path / "s", "--preset", "tiny", "--only", "00")[0] == 0
    code, _, err = srkit("run", "--study", tmp_path / "s", "--set", "dpo.beta=0.3")
    assert code == 1
    assert "dpo.beta: 0.1 -> 0.3" in err
    words = ("--set", "dpo.beta=0.3", "--change", "--only", "01")
    assert srkit("run", "--study", tmp_path / "s", *words)[0] == 0
    assert Study.open(tmp_path / "s").config.dpo.beta == 0.3
    assert [name for name, _ in executed] == ["00_start_here", "01_seed_data"]


def test_settings_with_spaces_arrive_whole(srkit, executed, tmp_path):
    words = (
        "--preset",
        "tiny",
        "--set",
        "model.name=my model",
        "--set",
        "model.lora_targets=[a, b]",
    )
    assert srkit("run", "--study", tmp_path / "s", *words, "--only", "00")[0] == 0
    model = Study.open(tmp_path / "s").config.model
    assert (model.name, model.lora_targets) == ("my model", ["a", "b"])


def test_run_executes_the_series_in_order_with_its_parameters(srkit, executed, tmp_path):
    code, out, _ = srkit("run", "--study", tmp_path / "s", "--preset", "tiny", "--iterations", "1")
    assert code == 0
    assert [name for name, _ in executed] == [
        "00_start_here", "01_seed_data", "02_seed_sft", "03_judge", "04_iteration-self-rewarding-1",
        "05_browse_pairs", "10_reward_accuracy", "11_length_drift", "12_win_rates",
        "13_benchmarks", "14_data_distribution", "15_breakdowns", "16_self_refine", "20_ablations",
        "21_rivals", "22_reward_hacking", "23_successors", "30_report",
    ]  # fmt: skip
    study = str(tmp_path / "s")
    assert executed[0][1] == {"study": study}
    assert executed[4][1] == {"study": study, "arm": "self-rewarding", "iteration": 1}
    assert "for what is made and what is missing" in out


@pytest.mark.parametrize("arms", ["self-rewarding,ift-only", "ift-only, self-rewarding"])
def test_several_arms_of_a_new_study_all_run(srkit, executed, tmp_path, arms):
    code, _, err = srkit(
        "run", "--study", tmp_path / "s", "--preset", "tiny", "--arm", arms, "--only", "04"
    )
    assert code == 0, err
    assert [name for name, _ in executed] == [
        f"04_iteration-{arm}-{t}" for arm in ("self-rewarding", "ift-only") for t in (1, 2)
    ]


def test_a_study_of_one_arm_stays_one(srkit, executed, tmp_path):
    words = ("--preset", "tiny", "--arm", "ift-only", "--only", "04")
    assert srkit("run", "--study", tmp_path / "s", *words)[0] == 0
    (tmp_path / "s/ift-only/iter-1").mkdir(parents=True)
    executed.clear()
    assert srkit("run", "--study", tmp_path / "s", "--only", "04")[0] == 0
    assert [name for name, _ in executed] == ["04_iteration-ift-only-1", "04_iteration-ift-only-2"]
    steps = json.loads(srkit("status", tmp_path / "s", "--json")[1])["steps"]
    others = {step["step"] for step in steps if step["step"].startswith("self-rewarding")}
    assert others == {f"self-rewarding/iter-{t}/prompts" for t in (1, 2)}  # which both arms use


def test_a_second_run_does_nothing(srkit, executed, tmp_path, make):
    path = tmp_path / "s"
    study = Study.open(path, "tiny")
    for name in study.steps:
        make(study, name)
    assert srkit("run", "--study", path)[0] == 0
    assert len(executed) == len(notebooks(study.config))
    executed.clear()
    code, out, _ = srkit("run", "--study", path)
    assert (code, executed) == (0, [])
    assert "Everything was finished already" in out
    (path / "metrics/win_rates.json").unlink()
    srkit("run", "--study", path)
    assert [name for name, _ in executed] == ["12_win_rates", "30_report"]


def test_status_as_json(srkit, tmp_path, make):
    study = Study.open(tmp_path / "s", "tiny")
    make(study, "seed/ift")
    code, out, _ = srkit("status", study.path, "--json")
    assert code == 0
    told = json.loads(out)
    assert told["study"] == str(study.path)
    assert [step["step"] for step in told["steps"]] == [step.name for step in plan(study.config)]
    first, second = told["steps"][:2]
    assert (first["state"], first["rows"]) == ("done", 2)
    assert set(first) == {"step", "state", "rows", "seconds", "tokens", "outputs", "inputs",
                          "peak_memory_mb", "made_at", "forecast"}  # fmt: skip
    assert first["outputs"] == study.records()["seed/ift"]["outputs"]
    assert second == {"step": "seed/eft", "state": "not made"}


def test_status_as_text(srkit, study, make):
    make(study, "seed/ift")
    code, out, _ = srkit("status", study.path)
    lines = out.splitlines()
    assert code == 0
    assert len(lines) == len(study.steps)
    sha = study.records()["seed/ift"]["outputs"]["seed/ift.jsonl"]
    assert lines[0].split()[:3] == ["seed/ift", "2", "rows"]
    assert lines[0].endswith("done")
    assert sha[:12] in lines[0]
    assert lines[1].split() == ["seed/eft", "not", "made"]


def failing(monkeypatch, error) -> None:
    def execute_notebook(*_, **__):
        raise error

    monkeypatch.setattr("papermill.execute_notebook", execute_notebook)


def test_an_error_inside_a_notebook_is_its_own_paragraph(srkit, monkeypatch, tmp_path):
    from papermill.exceptions import PapermillExecutionError

    def error(ename, evalue):
        return PapermillExecutionError(4, 4, "begin(study)", ename, evalue, ["a", "long", "trace"])

    failing(monkeypatch, error("SrkitError", "seed/ift is not there yet."))
    code, _, err = srkit("run", "--study", tmp_path / "s", "--preset", "tiny", "--only", "01")
    assert code == 1
    assert err.startswith(
        "srkit: 01_seed_data stopped: seed/ift is not there yet.\nThe executed copy"
    )
    assert "the same command goes on" in err
    assert "trace" not in err
    failing(monkeypatch, error("ValueError", "bad"))
    assert "01_seed_data stopped (ValueError): bad" in srkit("run", "--study", tmp_path / "s",
                                                             "--only", "01")[2]  # fmt: skip


def test_a_kernel_that_died_is_explained(srkit, monkeypatch, tmp_path):
    from nbclient.exceptions import DeadKernelError

    failing(monkeypatch, DeadKernelError("Kernel died"))
    code, _, err = srkit("run", "--study", tmp_path / "s", "--preset", "tiny", "--only", "02")
    assert code == 1
    assert "The kernel of 02_seed_sft died" in err
    assert "micro_batch" in err


def test_no_notebooks_no_traceback(srkit, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "NOTEBOOKS", tmp_path / "notebooks")
    code, _, err = srkit("run", "--study", tmp_path / "s", "--preset", "tiny")
    assert code == 1
    assert "no notebook" in err


def test_every_notebook_of_the_plan_is_there():
    for name in notebooks(resolve("tiny")):
        assert (cli.NOTEBOOKS / f"{name.partition('-')[0]}.ipynb").exists(), name
