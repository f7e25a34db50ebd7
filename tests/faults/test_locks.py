"""Two runs on one study: the second stops and says who holds it; a dead one holds nothing."""

import os
import platform
import signal
import subprocess
import sys
import time

import pytest

from srkit.config import SrkitError
from srkit.study import Study

HOLD = """
    import sys, time
    from srkit.lock import held
    from srkit.study import Study

    study, what = Study.open(sys.argv[1]), sys.argv[2]
    with study.running() if what == "run" else held(study.path, ".lock", "making seed/ift"):
        print("held", flush=True)
        time.sleep(120)
"""
ONE = [{"id": "a"}]


def attempt(study: Study) -> None:
    study.make_table("seed/eft", ONE, lambda part, _: list(part), 1)


def told(message: str, pid: int, doing: str) -> None:
    """Host, process, command, since when, what, and what to do."""
    assert f"process {pid} on {platform.node()} ({sys.executable} -c " in message
    assert f", since {time.strftime('%Y-%m-%d')} " in message
    assert f", {doing}. Wait for it to finish, stop it, or use another --study." in message


def test_a_second_step_stops_and_a_killed_holder_does_not_hold(study, child):
    holder = child(HOLD, study.path, "step")
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(SrkitError) as caught:
        attempt(study)
    told(str(caught.value), holder.pid, "making seed/ift")
    assert not (study.path / "seed/eft.jsonl").exists()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (study.path / ".lock-holder").exists(), "what it left"
    attempt(study)
    assert study.state("seed/eft") == "done"


@pytest.mark.parametrize("command", [["run", "--only", "01"], ["make", "seed/ift"]])
def test_a_second_run_stops_before_its_first_step(study, child, command):
    holder = child(HOLD, study.path, "run")
    assert holder.stdout.readline() == "held\n"
    before = sorted(p.name for p in study.path.iterdir())
    words = [sys.executable, "-m", "srkit.cli", *command, "--study", study.path]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    told(done.stderr, holder.pid, "running the series")
    assert done.stderr.count("\n") == 1
    assert sorted(p.name for p in study.path.iterdir()) == before
    with pytest.raises(SrkitError, match=f"process {holder.pid} on"):
        Study.open(study.path, overrides="dpo.beta=0.3", change=True)


def test_the_steps_of_a_run_are_made_by_other_processes(study):
    """The run holds one lock, whoever makes a step the other one."""
    with study.running():
        attempt(study)
    assert study.state("seed/eft") == "done"


def test_files_left_by_a_machine_that_went_down_are_no_lock(study):
    for name in (".lock", ".run"):
        (study.path / name).touch()
        left = "process 1 on another-host (srkit run), since 2020-01-01 00:00:00, making seed/ift"
        (study.path / f"{name}-holder").write_text(left)
    with study.running():
        attempt(study)
    assert study.state("seed/eft") == "done"


def test_a_note_of_a_dead_process_accuses_nobody(study, child):
    dead = child("pass")
    dead.wait()
    from filelock import FileLock

    note = f"process {dead.pid} on {platform.node()} (srkit run), since 2020-01-01 00:00:00, x"
    with FileLock(study.path / ".lock"):
        (study.path / ".lock-holder").write_text(note)
        with pytest.raises(SrkitError, match="is being written by another process"):
            attempt(study)


def test_a_lock_is_waited_for_while_the_forks_of_a_killed_process_end(study, child):
    """A fork has the lock of its parent, and ends half a second after it at the latest."""
    holder = child(
        """
        import sys, time
        from srkit.parallel import fork_map
        from srkit.study import Study

        with Study.open(sys.argv[1]).running():
            print("held", flush=True)
            fork_map(time.sleep, [60, 60])
        """,
        study.path,
    )
    assert holder.stdout.readline() == "held\n"
    time.sleep(1)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with study.running():
        attempt(study)


@pytest.mark.slow
def test_two_whole_runs_at_once(tmp_path):
    """Exactly one of them goes to the end."""
    words = [sys.executable, "-m", "srkit.cli", "make", "--preset", "tiny", "--study"]
    Study.open(tmp_path / "study", "tiny")
    runs = [
        subprocess.Popen([*words, tmp_path / "study"], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [run.communicate(timeout=1800)[1] for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 1]
    assert "is being written by process" in said[runs[0].returncode == 0]
    assert set(Study.open(tmp_path / "study").states().values()) == {"done"}
