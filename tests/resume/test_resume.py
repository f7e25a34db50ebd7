"""A study that is killed anywhere and run again ends with the same bytes, and little is done twice.

The short version kills every kind of step once, the slow one every step in all ways, and both tell
the account of it at the end.
"""

import random
import shutil
import signal
import sys
from pathlib import Path

import pytest
from harness import (
    MESSAGE,
    SERIES,
    Account,
    Run,
    Runner,
    copy_before,
    kind_of,
    manifest,
    reference_plan,
)

from srkit.drawings import TIMED
from srkit.plan import Step

STEPS = reference_plan()
ONE_OF_A_KIND = list({kind_of(name): name for name in STEPS}.values())
CODES = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}
CHECKPOINT = {"SFT": 3, "DPO": 2}  # save_steps of preset tiny


@pytest.fixture(scope="module")
def account(request):
    """The account of all kills of this module, told at its end."""
    account = Account()
    yield account
    # a worker of pytest-xdist has no terminal of its own, but it shares the standard error
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{account.table()}", file=sys.stderr, flush=True)


def death(how: str, step: str, events: list[dict], rng: random.Random) -> dict:
    """One way to die in a step, at a place drawn at random.

    `rename`: between writing a file and its renaming; `torn`: the power is cut while a file is
    written; `later`: at any time, from outside; otherwise before an event, by a signal's name.
    """
    if how == "later":
        return {"after": rng.uniform(0.1, 0.6), "signal": rng.choice(list(CODES))}
    only = {"rename": "rename", "torn": "fsync"}.get(how)
    event = rng.choice([e for e in events if e["step"] == step and only in (None, e["at"][0])])
    name = how if how.startswith("SIG") else "SIGKILL"
    return {**event, "signal": signal.Signals[name]} | ({"torn": True} if how == "torn" else {})


def kill_and_rerun(
    step: Step, deaths: list[dict], runner: Runner, reference: tuple[Path, Run], account: Account
) -> None:
    """Make a step on a copy of the study, die of each death in turn, run again, and compare."""
    whole, done = reference
    study = copy_before(whole, step, STEPS, runner.folder / f"copy-{runner.number}" / "study")
    runs = []
    for one in deaths:
        runs.append(runner.run("make", step.name, "--study", study, death=one))
        if runs[-1].code == 0 and "after" in one:
            continue  # it came too late
        account.note(step.name, one)
        assert runs[-1].code == CODES[one["signal"]], (one, runs[-1].said)
        if one["signal"] != signal.SIGKILL:
            assert runs[-1].said.strip().endswith(MESSAGE), (one, runs[-1].said)
            assert "Traceback" not in runs[-1].said, (one, runs[-1].said)
    killed = sum(run.code != 0 for run in runs)
    runs.append(runner.run("make", step.name, "--study", study))
    assert runs[-1].code == 0, (deaths, runs[-1].said)
    lines = manifest(study)
    assert lines == manifest(whole)[: len(lines)], deaths
    assert [line["step"] for line in lines].count(step.name) == 1, deaths
    for line in lines:
        account.compare(whole, study, STEPS[line["step"]])
    again = repeated("chunk", step.name, runs, done)
    account.cost["chunks done again"] += again
    assert again <= killed, deaths
    again = repeated("training step", step.name, runs, done)
    account.cost["training steps done again"] += again
    assert again <= killed * CHECKPOINT.get(kind_of(step.name), 0), deaths
    if runs[-1].events:  # else the last kill came after the manifest line; the next step tidies up
        assert not strangers(whole, study), deaths
    for bad in ("files lost", "rows lost", "rows double", "bytes differing"):
        assert not account.cost[bad], (bad, deaths)
    if step.name == "report":
        for figure in (whole / "figures").iterdir():
            assert (study / "figures" / figure.name).read_bytes() == figure.read_bytes(), deaths
    shutil.rmtree(study.parent)


def repeated(what: str, step: str, runs: list[Run], reference: Run) -> int:
    """How often more than in an uninterrupted run something was done in a step."""
    return sum(run.count(what, step) for run in runs) - reference.count(what, step)


def strangers(whole: Path, study: Path) -> list[str]:
    """Files of a study that an uninterrupted one does not have."""
    theirs, ours = ({str(p.relative_to(r)) for p in r.rglob("*")} for r in (whole, study))
    return sorted(ours - theirs)


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_every_kind_of_step_survives_a_kill(name, runner, reference, account):
    rng = random.Random(name)
    how = rng.choice(["SIGKILL", "SIGINT", "SIGTERM", "rename", "torn"])
    kill_and_rerun(
        STEPS[name], [death(how, name, reference[1].events, rng)], runner, reference, account
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT", "SIGTERM", "rename", "torn", "later"])
@pytest.mark.parametrize("name", STEPS)
def test_every_step_survives_every_kill(name, how, runner, reference, account):
    rng = random.Random(f"{name} {how}")
    kill_and_rerun(
        STEPS[name], [death(how, name, reference[1].events, rng)], runner, reference, account
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_series_that_is_killed_again_and_again(seed, runner, reference, account, tmp_path):
    """One study from its first step on: every run is killed after some time, until one is let."""
    (whole, done), study, rng = reference, tmp_path / "study", random.Random(seed)
    runs, killed_in = [], []
    for _ in range(15):
        one = {"after": rng.uniform(0.05, 3), "signal": rng.choice(list(CODES))}
        runs.append(runner.run("make", *SERIES, "--study", study, death=one))
        if runs[-1].code == 0:
            break
        assert runs[-1].code == CODES[one["signal"]], (one, runs[-1].said)
        killed_in.append(runs[-1].events[-1]["step"])
        account.note(killed_in[-1], one)
    else:
        runs.append(runner.run("make", *SERIES, "--study", study))
    assert runs[-1].code == 0, runs[-1].said
    for name, step in STEPS.items():
        if name != "report":  # it tells how long the steps took
            account.compare(whole, study, step)
        assert repeated("chunk", name, runs, done) <= killed_in.count(name)
        steps = repeated("training step", name, runs, done)
        assert steps <= CHECKPOINT.get(kind_of(name), 0) * killed_in.count(name)
    for bad in ("files lost", "rows lost", "rows double", "bytes differing"):
        assert not account.cost[bad], bad
    assert [line["step"] for line in manifest(study)] == list(STEPS)
    for figure in (whole / "figures").iterdir():
        if not figure.name.startswith(TIMED):
            assert (study / "figures" / figure.name).read_bytes() == figure.read_bytes(), figure
    assert not strangers(whole, study)
