"""Kills of whole processes: of notebooks, of two that train together, and with a real model."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from harness import SERIES, Account, copy_before, manifest, reference_plan

from srkit.config import resolve
from srkit.plan import plan

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "srkit.cli")
# The embedded model, as little of everything as shows several chunks and checkpoints.
SMALL = {
    "iterations": "1", "seed.ift": "4", "seed.eft_prompts": "2", "seed.max_words": "40",
    "instruct.prompts": "4", "instruct.max_tokens": "64", "instruct.lists_per_round": "4",
    "candidates.n": "2", "candidates.max_tokens": "24", "candidates.chunk": "2",
    "pairs.min_pairs": "2", "judge.max_modal_share": "1", "judge.max_flat_rate": "1",
    "dpo.epochs": "3", "dpo.batch_size": "2", "dpo.micro_batch": "2", "dpo.save_steps": "2",
}  # fmt: skip


def start(*words: str | Path, study: Path) -> subprocess.Popen:
    """Start `srkit`, or a launcher of it, on a study."""
    command = [sys.executable, "-m", *words, "--study", study]
    with (study.parent / "said").open("a") as said:
        return subprocess.Popen(
            [str(w) for w in command],
            stdout=said,
            stderr=said,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # see forkserver
        )


def wait_for(study: Path, pattern: str, process: subprocess.Popen) -> None:
    """Wait until a file is there, which a step writes in its middle."""
    while not any(study.glob(pattern)):
        assert process.poll() is None, (study.parent / "said").read_text()
        time.sleep(0.01)


def kill(process: subprocess.Popen) -> None:
    """Kill a process and its children at once."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        one.kill()
    psutil.wait_procs(family, timeout=30)
    process.wait()


def finish(*words: str | Path, study: Path) -> None:
    """Run to the end."""
    process = start(*words, study=study)
    assert process.wait(timeout=600) == 0, (study.parent / "said").read_text()


@pytest.mark.slow
def test_the_notebooks_go_on_after_kills(reference, tmp_path):
    """`srkit run` is killed, its kernel is killed, and it is told to stop; then it is let."""
    study, steps = tmp_path / "study", reference_plan()
    places = {
        "baseline/adapter.partial-*/checkpoints/checkpoint-3": ("SIGKILL", -9),
        "self-rewarding/iter-1/candidates.partial-*": ("SIGINT", 130),
        "self-rewarding/M2/adapter.partial-*/checkpoints/checkpoint-2": ("kernel", 1),
        "metrics/reward_accuracy.json": ("SIGTERM", 143),
    }
    for place, (how, code) in places.items():
        process = start("srkit.cli", "run", *SERIES, study=study)
        wait_for(study, place, process)
        kernels = psutil.Process(process.pid).children(recursive=True)
        if how == "kernel":
            kernels[0].kill()
        else:
            process.send_signal(getattr(signal, how))
        assert process.wait(timeout=120) == code, (study.parent / "said").read_text()
        assert not psutil.wait_procs(kernels, timeout=30)[1], "a kernel outlived its run"
    said = (study.parent / "said").read_text()
    assert "srkit: stopped by SIGINT. What was made is kept" in said
    assert "The kernel of 04_iteration died" in said
    assert "srkit: stopped by SIGTERM. What was made is kept" in said
    finish("srkit.cli", "run", *SERIES, study=study)
    made = [line["step"] for line in manifest(study) if line["step"] in steps]
    assert sorted(made) == sorted(steps)
    account = Account()
    for name, step in steps.items():
        if name != "report":  # it tells how long the steps took
            account.compare(reference[0], study, step)
    assert account.cost["files compared"] > 30
    bad = ("files lost", "rows lost", "rows double", "bytes differing")
    assert not any(account.cost[name] for name in bad), account.cost


@pytest.mark.slow
def test_a_training_of_two_processes_goes_on_after_kills(runner, tmp_path):
    """First one of the two is killed, which ends the launcher; then all are."""
    steps = reference_plan()
    whole, name = tmp_path / "whole" / "study", "M1/adapter"
    made = runner.run("make", "seed/ift", "seed/eft_targets", *SERIES, "--study", whole)
    assert made.code == 0, made.said
    finish(*TORCHRUN, "make", name, study=whole)
    study = copy_before(whole, steps[name], steps, tmp_path / "killed" / "study")
    launcher = start(*TORCHRUN, "make", name, study=study)
    wait_for(study, "M1/adapter.partial-*/checkpoints/checkpoint-3/whole", launcher)
    ranks = psutil.Process(launcher.pid).children()
    assert len(ranks) == 2
    ranks[1].kill()
    assert launcher.wait(timeout=120) == 1
    launcher = start(*TORCHRUN, "make", name, study=study)
    wait_for(study, "M1/adapter.partial-*/checkpoints/checkpoint-6/whole", launcher)
    kill(launcher)
    assert not (study / name).exists()
    finish(*TORCHRUN, "make", name, study=study)
    assert manifest(study) == manifest(whole)
    for output in steps[name].outputs:
        assert (study / output).read_bytes() == (whole / output).read_bytes(), output
    log = (whole / name / "training.jsonl").read_text().splitlines()
    assert len(log) == 7, "so neither kill came at the end"


@pytest.mark.slow
def test_a_real_model_goes_on_after_kills_in_generation_and_in_dpo(tmp_path):
    """SIGKILL in the second chunk of candidates, and after the first checkpoint of DPO."""
    overrides = [f"{name}={value}" for name, value in SMALL.items()]
    steps = {step.name: step for step in plan(resolve("cpu", " ".join(overrides)))}
    loop = "self-rewarding/iter-1/"
    names = ["seed/ift", "seed/eft_targets", "M1/adapter"]
    names += [f"{loop}{t}" for t in ("prompts", "candidates", "judgements", "pairs")]
    names += ["self-rewarding/M2/adapter"]
    whole, study = tmp_path / "whole" / "study", tmp_path / "killed" / "study"
    whole.parent.mkdir()
    settings = [f"--set={one}" for one in overrides]
    finish("srkit.cli", "make", *names, "--preset=cpu", *settings, study=whole)
    copy_before(whole, steps[f"{loop}candidates"], steps, study)
    checkpoint = "self-rewarding/M2/adapter.partial-*/checkpoints/checkpoint-2/whole"
    for place in (f"{loop}candidates.partial-*", checkpoint):
        process = start("srkit.cli", "make", *names, study=study)
        wait_for(study, place, process)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (study / "self-rewarding/M2/adapter").exists()
    finish("srkit.cli", "make", *names, study=study)
    assert manifest(study) == manifest(whole)
    for line in manifest(whole):
        for output in steps[line["step"]].outputs:
            assert (study / output).read_bytes() == (whole / output).read_bytes(), output
