"""Disks that are full or read-only: a clear error, nothing lost, the same bytes in the end."""

import os
import shutil
import subprocess
import sys

import pytest

from srkit import drawings, metrics, report
from srkit import study as module
from srkit.config import Model, Sft, SrkitError
from srkit.notebook import finish
from srkit.study import Study

ITEMS, CHUNK = list(range(12)), 3


def work(part, rows):
    """Rows of 1 KB that show how many were there before."""
    return [{"id": f"r{i}", "before": len(rows), "text": "x" * 1000} for i in part]


def table(study: Study) -> bytes:
    study.make_table("seed/ift", ITEMS, work, CHUNK)
    return (study.path / "seed/ift.jsonl").read_bytes()


@pytest.fixture
def undisturbed(tmp_path) -> bytes:
    return table(Study.open(tmp_path / "undisturbed", "tiny"))


def refused(attempt, folder) -> None:
    """The attempt fails with one paragraph: which file, how full, what to do."""
    with pytest.raises(SrkitError) as caught:
        attempt()
    message = str(caught.value)
    assert message.startswith(f"Could not write {folder}")
    assert "No space left on device. Free some space: " in message
    assert " bytes left. Then run the same command again" in message
    assert "\n" not in message


# /dev/full stands in for files that are only written: what is appended to is read first, endlessly.
WHOLE = {"the table": "seed/ift.jsonl.new", "the lock's note": ".lock-holder.new"}


@pytest.mark.parametrize("place", WHOLE.values(), ids=WHOLE)
def test_a_disk_that_is_full_when_a_file_is_written(disk, undisturbed, place):
    study = Study.open(disk.path / "study", "tiny")
    (study.path / "seed").mkdir()
    disk.leave(0, study.path / place)
    continued(disk, study, undisturbed)


@pytest.mark.parametrize("place", ["chunk", "manifest"])
def test_a_disk_that_is_full_when_a_line_is_appended(mounted, undisturbed, monkeypatch, place):
    study = Study.open(mounted.path / "study", "tiny")
    append, pattern = module.append_line, "*.partial-*" if place == "chunk" else "manifest.jsonl"

    def full_by_then(path, line):
        if path.match(pattern) and not mounted.ballast.exists():
            mounted.leave(0)
        append(path, line)

    monkeypatch.setattr(module, "append_line", full_by_then)
    refused(lambda: table(study), study.path)
    monkeypatch.undo()
    continued(mounted, study, undisturbed)


def continued(disk, study: Study, undisturbed: bytes) -> None:
    """It fails clearly as long as there is no room, and goes on when there is."""
    refused(lambda: table(study), study.path)
    assert study.state("seed/ift") != "done"
    disk.clear()
    assert table(Study.open(study.path)) == undisturbed
    assert study.state("seed/ift") == "done"
    assert not list(study.path.rglob("*.partial-*"))
    assert not list(study.path.rglob("*.new"))


def test_the_settings_are_the_old_ones_or_the_new_ones(disk):
    study = Study.open(disk.path / "study", "tiny")
    before = (study.path / "study.yaml").read_bytes()
    disk.leave(0, study.path / "study.yaml.new")
    refused(lambda: Study.open(study.path, overrides="dpo.beta=0.3", change=True), study.path)
    assert (study.path / "study.yaml").read_bytes() == before
    disk.clear()
    changed = Study.open(study.path, overrides="dpo.beta=0.3", change=True)
    assert Study.open(study.path).config == changed.config
    assert changed.config.dpo.beta == 0.3


def test_a_new_study_on_a_full_disk(disk, tmp_path):
    (disk.path / "study").mkdir()
    disk.leave(0, disk.path / "study/study.yaml.new")
    refused(lambda: Study.open(disk.path / "study", "tiny"), disk.path)
    assert not (disk.path / "study/study.yaml").exists()
    disk.clear()
    assert Study.open(disk.path / "study", "tiny").config.preset == "tiny"


def test_every_amount_of_free_space(mounted, undisturbed):
    """From none to enough, page by page: each run fails clearly or is done, none loses a chunk."""
    failed, done = 0, 0
    for pages in range(24):
        study = Study.open(mounted.path / f"study-{pages}", "tiny")
        mounted.leave(pages)
        try:
            table(study)
            done += 1
        except SrkitError as error:
            failed += "Free some space" in str(error)
        chunks = [len(p.read_bytes().splitlines()) for p in study.path.rglob("*.partial-*")]
        mounted.clear()
        made = []
        study.make_table("seed/ift", ITEMS, lambda p, r: made.append(p) or work(p, r), CHUNK)  # noqa: B023
        assert len(made) <= len(ITEMS) // CHUNK - sum(chunks) + 1, "a chunk at most is made again"
        assert (study.path / "seed/ift.jsonl").read_bytes() == undisturbed
        shutil.rmtree(study.path)
    assert failed + done == 24
    assert min(failed, done) > 4


def test_an_adapter_on_a_full_disk(mounted, tmp_path):
    """Checkpoints, weights and logs are written by libraries that hide the system's error."""
    from srkit.prompts import user
    from srkit.train import Example, train_sft

    examples = [Example(user(f"What is {i}?"), f"It is {i}.") for i in range(12)]
    settings = Sft(epochs=2, learning_rate=1e-2, batch_size=4, micro_batch=4, save_steps=2)

    def train(study: Study) -> list[bytes]:
        cfg = Model(name="tiny", lora_rank=4, lora_alpha=8, device="cpu")
        name = "baseline/adapter"

        def train_into(folder):
            return train_sft(cfg, examples, settings, folder, 7).record()

        study.make_folder(name, train_into)
        return [(study.path / o).read_bytes() for o in study.step(name).outputs]

    def new(folder) -> Study:
        study = Study.open(folder, "tiny")
        study.make_table("seed/ift", [{"id": "a"}], lambda part, _: list(part), 1)
        return study

    undisturbed = train(new(tmp_path / "undisturbed"))
    study, failures = new(mounted.path / "study"), []
    for pages in (3, 14, 30, 45, 60, 80):  # a checkpoint takes about 40
        mounted.leave(pages)
        try:
            train(study)
        except SrkitError as error:
            failures.append(str(error))
    assert len(failures) >= 3
    for message in failures:
        assert message.startswith(f"Could not write {study.path}")
        assert "Free some space" in message
    mounted.clear()
    assert train(study) == undisturbed
    assert study.state("baseline/adapter") == "done"


@pytest.mark.parametrize("ending", ["png", "svg", "pdf", "csv"])
def test_a_figure_on_a_full_disk_leaves_the_earlier_one_whole(disk, full, ending):
    shutil.copytree(full.path, disk.path / "study")
    study = Study.open(disk.path / "study")
    drawings.draw_figure(study, "constraints")
    file = study.path / "figures" / f"constraints.{ending}"
    expected = file.read_bytes()
    file.write_bytes(b"an earlier one\n")
    disk.leave(0, file.with_name(f"{file.name}.new"))
    refused(lambda: drawings.draw_figure(study, "constraints"), study.path / "figures")
    assert file.read_bytes() == b"an earlier one\n"
    disk.clear()
    drawings.draw_figure(study, "constraints")
    assert file.read_bytes() == expected


def srkit(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "srkit.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_line_on_a_full_disk(mounted):
    study = Study.open(mounted.path / "study", "tiny")
    mounted.leave(1)
    done = srkit("make", "seed/ift", "--study", study.path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"srkit: Could not write {study.path}")
    assert "Free some space" in done.stderr
    assert done.stderr.count("\n") == 1
    mounted.clear()
    assert srkit("make", "seed/ift", "--study", study.path).returncode == 0
    assert study.state("seed/ift") == "done"


@pytest.mark.slow
def test_a_notebook_on_a_full_disk(mounted):
    study = Study.open(mounted.path / "study", "tiny")
    mounted.leave(4)
    done = srkit("run", "--only", "00", "--study", study.path)
    assert done.returncode == 1
    assert "Free some space" in done.stderr
    assert "Traceback" not in done.stderr
    mounted.clear()
    done = srkit("run", "--only", "00", "--study", study.path)
    assert done.returncode == 0, done.stderr


# --- read-only -----------------------------------------------------------------------------------


def test_a_finished_study_can_be_read_where_nothing_can_be_written(full, read_only):
    names = ("constraints", "training_sft", "training_dpo")
    for name in names:
        drawings.draw_figure(full, name)
    finish(full, "12_win_rates_numbers", {"n": 3})
    before = {p: p.read_bytes() for p in full.path.rglob("*") if p.is_file()}
    read_only(full.path)

    study = Study.open(full.path)
    assert set(study.states().values()) == {"done"}
    assert study.read("seed/ift") == [{"id": "seed/ift-0"}, {"id": "seed/ift-1"}]
    assert metrics.load(study, "win_rates")["constraints"]["n"].tolist() == [8]
    assert study.adapter("M1").is_dir()
    for name in names:
        drawings.draw_figure(study, name)  # the same bytes as those that lie there
    assert report.make_report(study) == study.path / "report.html"
    finish(study, "12_win_rates_numbers", {"n": 3})
    done = srkit("status", study.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(" done\n") == len(study.steps)
    assert srkit("make", "--study", study.path).returncode == 0
    assert {p: p.read_bytes() for p in full.path.rglob("*") if p.is_file()} == before


def test_what_has_to_write_refuses_clearly(full, read_only):
    (full.path / "seed/eft.jsonl").unlink()
    read_only(full.path)
    attempts = {
        "table": lambda: full.make_table("seed/eft", ITEMS, work, CHUNK),
        "settings": lambda: Study.open(full.path, overrides="dpo.beta=1", change=True),
        "figure": lambda: drawings.draw_figure(full, "constraints"),
        "numbers": lambda: finish(full, "10_new", {"n": 3}),
        "run": lambda: full.running().__enter__(),
        "new study": lambda: Study.open(full.path / "another", "tiny"),
    }
    for what, attempt in attempts.items():
        with pytest.raises(SrkitError) as caught:
            attempt()
        message = str(caught.value)
        reason = "Permission denied" if os.geteuid() else "Read-only file system"
        assert message.startswith(f"Could not write {full.path}"), what
        assert f"{reason}. Let {full.path}" in message, what
        assert "or copy the study to a folder that can be" in message, what
    done = srkit("make", "seed/eft", "--study", full.path)
    assert done.returncode == 1
    assert done.stderr.startswith("srkit: Could not write ")
    assert done.stderr.count("\n") == 1
