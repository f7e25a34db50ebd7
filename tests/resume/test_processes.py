"""Kills of whole processes: of two that train together, and with a real model."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from harness import SERIES, copy_before, manifest, reference_plan

from srkit.config import resolve
from srkit.plan import plan

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "srkit.cli")
# The embedded model, as little of everything as shows several chunks and checkpoints.
SMALL = {
    "iterations": "1", "seed.ift": "8", "seed.eft_prompts": "4", "seed.eval_prompts": "4",
    "seed.test_prompts": "4", "seed.max_words": "40", "sft.max_tokens": "512",
    "instruct.prompts": "8", "candidates.n": "2", "candidates.max_tokens": "24",
    "candidates.chunk": "2", "pairs.min_pairs": "2", "dpo.epochs": "4", "dpo.batch_size": "2",
    "dpo.micro_batch": "2", "dpo.save_steps": "2", "judge.max_modal_share": "1",
    "judge.max_flat_rate": "1",
}  # fmt: skip


def start(*words: str | Path, study: Path) -> subprocess.Popen:
    """Start `srkit`, or a launcher of it, on a study."""
    command = [sys.executable, "-m", *words, "--study", study]
    with (study.parent / "said").open("a") as said:
        return subprocess.Popen([str(w) for w in command], stdout=said, stderr=said)


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
