"""The study directory: what is done, what is stale, what an interruption costs, what errors say."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
import yaml

from srkit import provenance
from srkit import study as module
from srkit.config import SrkitError
from srkit.disk import append_line, write_atomically
from srkit.rows import derive_seed, kept, read_jsonl
from srkit.study import Study

ITEMS, CHUNK = list(range(10)), 3  # four chunks, the last one short


def work(part, rows):
    """Rows that show which rows were there before: a wrong resume changes them."""
    return [{"id": f"r{i}", "before": len(rows), "text": "ü\u2028 \"'$", "tokens": i} for i in part]


def whole(path: Path) -> bytes:
    """The bytes of a table made without interruption."""
    fresh = Study.open(path, "tiny")
    fresh.make_table("seed/ift", ITEMS, work, CHUNK)
    return (fresh.path / "seed/ift.jsonl").read_bytes()


def edit(path: Path, change) -> None:
    """Rewrite a file and wait until its time stamp shows it."""
    before, data = path.stat().st_mtime_ns, change(path.read_bytes())
    while path.stat().st_mtime_ns == before:
        path.write_bytes(data)


def dependents(study: Study, name: str) -> set[str]:
    found = {name}
    for step in study.steps.values():  # in order, so one pass is enough
        if found & set(step.inputs):
            found.add(step.name)
    return found


def not_done(study: Study) -> set[str]:
    return {name for name, state in study.states().items() if state != "done"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tmp_path_factory.mktemp("finished") / "study"


@pytest.fixture
def full(finished, tmp_path, make) -> Study:
    """A study in which everything is done (made once, copied for each test)."""
    if not finished.exists():
        new = Study.open(finished, "tiny")
        for name in new.steps:
            make(new, name)
    shutil.copytree(finished, tmp_path / "full")
    return Study.open(tmp_path / "full")


# --- seeds and rows ------------------------------------------------------------------------------


def test_derived_seeds_never_change():
    assert derive_seed(0, "self-rewarding/iter-1", "p-1", 0) == 2684130130329839020
    assert derive_seed(0, "self-rewarding/iter-1", "p-1", 1) == 3529706084710694770
    assert derive_seed(0, "self-rewarding/iter-1", "p-1", 0) == derive_seed(
        "0", "self-rewarding/iter-1", "p-1", "0"
    )


def test_derived_seeds_differ_and_fit_every_generator():
    seeds = {
        derive_seed(s, "step", f"p{p}", k) for s in range(5) for p in range(20) for k in range(5)
    }
    assert len(seeds) == 500
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed("a", "bc") != derive_seed("ab", "c")


def test_read_jsonl_keeps_line_separators_inside_texts_and_names_bad_lines(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": "x\u2028y\x85z"}\n\n{"a": 1}\n', "utf-8")
    assert read_jsonl(file) == [{"a": "x\u2028y\x85z"}, {"a": 1}]
    for bad, what in (("{'a'}", "not JSON"), ("[1]", "not a JSON object"), ('{"a":', "not JSON")):
        file.write_text('{"a": 1}\n' + bad + "\n")
        with pytest.raises(SrkitError, match=rf"rows.jsonl, line 2: {what}"):
            read_jsonl(file)


def test_kept_leaves_out_dropped_rows():
    rows = [{"dropped": None}, {"dropped": "tie"}, {}, {"dropped": ""}]
    assert kept(rows) == [rows[0], rows[2], rows[3]]


# --- a finished table ----------------------------------------------------------------------------


def test_a_table_and_its_manifest_line(study):
    rows = study.make_table("seed/ift", ITEMS, work, CHUNK, extra={"counts": {"too long": 2}})
    assert [row["id"] for row in rows] == [f"r{i}" for i in ITEMS]
    assert [row["before"] for row in rows] == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9]
    assert study.read("seed/ift") == rows == read_jsonl(study.path / "seed/ift.jsonl")
    assert study.frame("seed/ift")["tokens"].sum() == 45
    (record,) = study.manifest()
    assert record["step"] == "seed/ift"
    assert (record["rows"], record["tokens"], record["counts"]) == (10, 45, {"too long": 2})
    assert record["inputs"] == {}
    assert list(record["outputs"]) == ["seed/ift.jsonl"]
    assert len(record["outputs"]["seed/ift.jsonl"]) == 64
    assert record["settings"] == study.config.digest("seed")
    assert record["seconds"] >= 0
    assert record["peak_memory_mb"]["cpu"] > 10
    assert record["versions"]["transformers"]
    assert study.state("seed/ift") == "done"
    assert not list(study.path.rglob("*.partial-*"))


def test_a_finished_table_is_not_made_again(study):
    study.make_table("seed/ift", ITEMS, work, CHUNK)
    before = (study.path / "manifest.jsonl").read_bytes()
    again = study.make_table("seed/ift", [], lambda part, rows: 1 / 0, CHUNK)
    assert len(again) == 10
    assert (study.path / "manifest.jsonl").read_bytes() == before


def test_a_table_ends_early_once_enough(study):
    rows = study.make_table("seed/ift", ITEMS, work, CHUNK, until=lambda rows: len(rows) >= 4)
    assert len(rows) == 6


def test_an_empty_table_is_a_table(study):
    assert study.make_table("seed/ift", [], work, CHUNK) == []
    assert study.state("seed/ift") == "done"


def test_half_an_emoji_does_not_lose_a_table(study):
    rows = study.make_table("seed/ift", [1], lambda part, _: [{"id": "a", "text": "x\ud83d"}], 1)
    assert rows == [{"id": "a", "text": "x?"}]


def test_versions_of_absent_packages_are_null(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("pydantic", "no-such-package"))
    provenance.provenance.cache_clear()
    versions = provenance.provenance()["versions"]
    provenance.provenance.cache_clear()
    assert versions["pydantic"][0] == "2"
    assert versions["no-such-package"] is None


def test_energy_is_that_of_the_visible_gpus_between_beginning_and_end(study, monkeypatch):
    """NVML counts millijoules since the driver was loaded; a fake of it, for want of a GPU."""
    used = {"0": 5_000, "1": 70_000, "GPU-b": 1_000_000}
    nvml = types.SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=str,
        nvmlDeviceGetHandleByUUID=str,
        nvmlDeviceGetTotalEnergyConsumption=used.__getitem__,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert provenance.joules() == 75
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, GPU-b")
    assert provenance.joules() == 1070
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")

    def burning(part, before):
        used["1"] += 2_500
        return work(part, before)

    study.make_table("seed/ift", ITEMS, burning, CHUNK)
    assert study.manifest()[0]["joules"] == 10, "four chunks"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert provenance.joules() is None


# --- interruptions -------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", [0, 1, 2, 3])
def test_an_exception_in_the_middle_costs_one_chunk_and_changes_no_byte(study, tmp_path, failing):
    calls = []

    def fragile(part, rows):
        calls.append(part[0])
        if len(calls) == failing + 1:
            raise RuntimeError("power cut")
        return work(part, rows)

    with pytest.raises(RuntimeError, match="power cut"):
        study.make_table("seed/ift", ITEMS, fragile, CHUNK)
    assert study.state("seed/ift") == ("interrupted" if failing else "not made")
    assert not (study.path / "seed/ift.jsonl").exists()
    study.make_table("seed/ift", ITEMS, fragile, CHUNK)
    assert sorted(calls) == sorted([0, 3, 6, 9, 3 * failing])
    assert (study.path / "seed/ift.jsonl").read_bytes() == whole(tmp_path / "whole")
    assert study.manifest()[-1]["rows"] == 10
    assert not list(study.path.rglob("*.partial-*"))


def interrupted(study: Study, chunks: int) -> Path:
    """Leave a table in progress with this many chunks, and name its file."""

    def fragile(part, rows):
        if part[0] == chunks * CHUNK:
            raise RuntimeError
        return work(part, rows)

    with pytest.raises(RuntimeError):
        study.make_table("seed/ift", ITEMS, fragile, CHUNK)
    (partial,) = study.path.glob("seed/ift.partial-*")
    return partial


def resumed(study: Study) -> list[int]:
    """First items of the chunks that a resume makes."""
    calls = []
    study.make_table("seed/ift", ITEMS, lambda p, r: calls.append(p[0]) or work(p, r), CHUNK)
    return calls


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_torn_last_line_is_a_chunk_to_be_done_again(study, tmp_path, cut):
    partial = interrupted(study, 3)
    partial.write_bytes(partial.read_bytes()[:-cut])
    assert resumed(study) == [6, 9]
    assert (study.path / "seed/ift.jsonl").read_bytes() == whole(tmp_path / "whole")


@pytest.mark.parametrize("rest", [b"\x00\x00\x00", b'{"rows": [\xff'])
def test_what_a_power_cut_leaves_at_the_end_is_cut_off(study, tmp_path, rest):
    partial = interrupted(study, 2)
    partial.write_bytes(partial.read_bytes() + rest)
    assert resumed(study) == [6, 9]
    assert (study.path / "seed/ift.jsonl").read_bytes() == whole(tmp_path / "whole")


def test_a_resume_never_rewrites_what_is_there(study):
    """A resume that is cut off as well, or meets a full disk, must not cost the earlier chunks."""
    partial = interrupted(study, 3)
    partial.write_bytes(partial.read_bytes() + b'{"torn')
    before, written = partial.read_bytes(), partial.stat().st_mtime_ns

    def power_cut(part, rows):
        assert partial.stat().st_mtime_ns == written
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.make_table("seed/ift", ITEMS, power_cut, CHUNK)
    assert partial.read_bytes() == before
    assert resumed(study) == [9]


def test_tokens_that_engines_read_are_counted_over_interruptions(study):
    def reading(part, before):
        if len(before) == CHUNK and not broken:
            broken.append(True)
            study.spent["read"] += 1000  # of a chunk that is lost, and asked again
            raise KeyboardInterrupt
        study.spent["read"] += 7
        return work(part, before)

    broken = []
    with pytest.raises(KeyboardInterrupt):
        study.make_table("seed/ift", ITEMS, reading, CHUNK)
    study.make_table("seed/ift", ITEMS, reading, CHUNK)
    (record,) = study.manifest()
    assert record["read"] == 7 * 4, "a chunk each"
    assert "endpoint" not in record


def test_a_kill_between_table_and_manifest_repeats_no_work(study):
    study.make_table("seed/ift", ITEMS, work, CHUNK)
    parts = [work(ITEMS[i : i + CHUNK], ITEMS[:i]) for i in (0, 3, 6, 9)]
    chunks = [{"chunk": i, "seconds": 0.0, "rows": part} for i, part in enumerate(parts)]
    partial = study._partial(study.step("seed/ift"))
    partial.write_text("".join(json.dumps(chunk) + "\n" for chunk in chunks))
    (study.path / "manifest.jsonl").unlink()
    assert study.state("seed/ift") == "interrupted"
    assert resumed(study) == []
    assert study.state("seed/ift") == "done"


def test_only_the_very_same_work_is_continued(study):
    interrupted(study, 3)
    changed = Study.open(study.path, overrides="seed.max_words=70", change=True)
    assert resumed(changed) == [0, 3, 6, 9]
    assert not list(study.path.rglob("*.partial-*"))


def test_a_table_is_made_by_one_engine(study):
    interrupted(study, 2)
    other = Study.open(study.path, "", "model.engine=vllm", change=True)
    assert resumed(other) == [0, 3, 6, 9]
    assert other.state("seed/ift") == "done"


CHILD = """
    import sys, time
    sys.path.insert(0, sys.argv[2])
    from test_study import CHUNK, ITEMS, Study, work

    def slow(part, rows):
        if part[0] == 6:
            print("two chunks are written", flush=True)
            time.sleep(60)
        return work(part, rows)

    Study.open(sys.argv[1]).make_table("seed/ift", ITEMS, slow, CHUNK)
"""


def test_another_process_holds_the_lock_and_is_killed(study, tmp_path):
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(CHILD),
        str(study.path),
        str(Path(__file__).parent),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "two chunks are written\n"
        with pytest.raises(SrkitError) as caught:
            study.make_table("seed/eft", ITEMS, work, CHUNK)
        child.send_signal(signal.SIGKILL)
    message = str(caught.value)
    assert f"process {child.pid} on " in message
    assert "making seed/ift" in message
    assert "another --study" in message
    assert study.state("seed/ift") == "interrupted"
    assert resumed(study) == [6, 9]
    assert (study.path / "seed/ift.jsonl").read_bytes() == whole(tmp_path / "whole")


def test_a_lock_without_a_note_is_still_an_error_of_the_kit(study):
    from filelock import FileLock

    with FileLock(study.path / ".lock"), pytest.raises(SrkitError, match="by another process"):
        study.make_table("seed/ift", ITEMS, work, CHUNK)


def test_a_lock_that_the_work_waits_for_is_not_the_study_s(study):
    """Downloads use file locks as well: their time-outs mean something else."""
    from filelock import Timeout

    def download(part, rows):
        raise Timeout("model.lock")

    with pytest.raises(Timeout, match=r"model\.lock"):
        study.make_table("seed/ift", ITEMS, download, CHUNK)
    assert resumed(study) == [0, 3, 6, 9], "the study's lock was released"


# --- the manifest --------------------------------------------------------------------------------


def test_a_torn_manifest_line_counts_as_not_written(full):
    manifest = full.path / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    assert len(lines) == len(full.steps)
    manifest.write_bytes(b"".join(lines)[:-1])
    last = list(full.steps)[-1]
    assert not_done(full) == {last}
    full.make_file(last, lambda: "new\n")
    assert not_done(full) == set()
    assert [json.loads(line)["step"] for line in manifest.read_text().splitlines()] == list(
        full.steps
    )


def test_a_broken_manifest_line_is_named(full):
    edit(full.path / "manifest.jsonl", lambda data: data.replace(b'{"step"', b"step", 2))
    with pytest.raises(SrkitError, match=r"manifest.jsonl, line 1: not JSON"):
        full.states()


@pytest.mark.parametrize("there", ["", "torn", "one\n", "one\ntorn", "one\ntwo\ntorn \xfc"])
def test_append_line_cuts_a_torn_line_off(tmp_path, there):
    file = tmp_path / "lines"
    file.write_text(there, "latin-1")
    append_line(file, "new")
    complete = there.rpartition("\n")
    assert file.read_bytes().decode() == complete[0] + complete[1] + "new\n"


def test_append_line_makes_the_file(tmp_path):
    append_line(tmp_path / "lines", "a")
    append_line(tmp_path / "lines", "b")
    assert (tmp_path / "lines").read_text() == "a\nb\n"


# --- what depends on what ------------------------------------------------------------------------


def test_deleting_any_output_makes_exactly_its_dependents_stale(full):
    assert not_done(full) == set()
    for step in full.steps.values():
        for output in step.outputs[:: max(len(step.outputs) - 1, 1)]:  # first and last
            file = full.path / output
            file.rename(file.with_suffix(".away"))
            states = full.states()
            assert states[step.name] == "not made"
            assert not_done(full) == dependents(full, step.name), step.name
            assert all(
                state.startswith(("done", "stale: needs"))
                for name, state in states.items()
                if name != step.name
            )
            file.with_suffix(".away").rename(file)
            assert not_done(full) == set()


@pytest.mark.parametrize(
    "name", ["seed/ift", "M1/adapter", "self-rewarding/iter-1/judgements", "M1/responses"]
)
def test_making_a_table_again_makes_its_dependents_run_and_nothing_else(full, make, name):
    before = {n: r["line"] for n, r in full.records().items()}
    (full.path / full.step(name).outputs[0]).unlink()
    make(full, name)
    assert not_done(full) == dependents(full, name) - {name}
    first = next(s.name for s in full.steps.values() if name in s.inputs)
    assert full.state(first) == f"stale: {name} was made again"
    for step in full.steps:
        make(full, step)
    assert not_done(full) == set()
    again = {n for n, r in full.records().items() if r["line"] != before[n]}
    assert again == dependents(full, name)


def test_a_changed_byte_is_named(full):
    file = full.path / "seed/eft.jsonl"
    edit(file, lambda data: data.replace(b"eft-0", b"eft-7"))
    assert full.state("seed/eft") == "stale: seed/eft.jsonl was changed after it was made"
    assert not_done(full) == dependents(full, "seed/eft")
    with pytest.raises(SrkitError, match=r"seed/eft.jsonl is not what.*notebook 01_seed_data"):
        full.read("seed/eft")


def test_a_changed_adapter_is_named(full):
    edit(full.path / "M1/adapter/adapter_config.json", lambda data: data + b" ")
    assert "adapter_config.json was changed" in full.state("M1/adapter")
    assert not_done(full) == dependents(full, "M1/adapter")


SETTINGS = {
    "dpo.beta": 0.3,
    "judge.samples": 2,
    "judge.rubric": "multiple_choice",
    "pairs.min_gap": 0.5,
    "candidates.n": 5,
    "instruct.prompts": 9,
    "sft.epochs": 2,
    "sft.eft_modal_share": 0.3,
    "seed.ift": 9,
    "eval.resamples": 9,
    "eval.judge_samples": 2,
    "eval.temperature": 0.1,
    "eval.referee": "baseline",
    "model.lora_rank": 2,
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_changed_settings_make_exactly_their_steps_stale(full, setting):
    section, field = setting.split(".")
    old = getattr(getattr(full.config, section), field)
    changed = Study.open(full.path, overrides=f"{setting}={SETTINGS[setting]}", change=True)
    users = {s.name for s in full.steps.values() if {section, setting} & set(s.settings)}
    expected = set().union(*(dependents(full, name) for name in users))
    assert users
    assert not_done(changed) == expected
    assert all("made with other settings" in changed.state(n) for n in users)
    assert not_done(Study.open(full.path, overrides=f"{setting}={old}", change=True)) == set()


@pytest.mark.parametrize(
    "setting",
    ["judge.when_unhealthy=stop", "judge.max_modal_share=0.5", "judge.max_flat_rate=0.5",
     "judge.min_parse_rate=0.1", "pairs.min_pairs=1", "model.cache=elsewhere"],
)  # fmt: skip
def test_a_limit_that_was_too_strict_costs_no_work(full, setting):
    assert not_done(Study.open(full.path, overrides=setting, change=True)) == set()


def test_more_judgements_do_not_train_m1_again(full):
    """The advice of an iteration with too many ties is to raise judge.samples."""
    changed = Study.open(full.path, overrides="judge.samples=9 eval.resamples=9", change=True)
    states = changed.states()
    assert states["M1/adapter"] == states["M1/responses"] == "done"
    assert states["self-rewarding/iter-1/candidates"] == "done"
    assert states["self-rewarding/iter-1/judgements"].startswith("stale: made with other settings")


def test_another_random_seed_makes_everything_stale(full):
    changed = Study.open(full.path, overrides="random_seed=1", change=True)
    assert not_done(changed) == set(full.steps)


def test_fewer_or_more_iterations_make_the_analyses_stale(full):
    analyses = {name for name in full.steps if name.startswith(("browse", "metrics/", "report"))}
    analyses -= {"metrics/refine"}  # nothing was refined here, so it tells of no model
    fewer = Study.open(full.path, overrides="iterations=1", change=True)
    # what is asked of the last model, which M2 is now
    last = {f"self-rewarding/M2/{name}" for name in ("ways", "probes", "blind_spots")}
    assert not_done(fewer) == analyses | last, "they still tell of M3"
    more = Study.open(full.path, overrides="iterations=3", change=True)
    assert not_done(more) == set(more.steps) - set(full.steps) | analyses


def test_another_start_makes_the_loop_stale(full):
    changed = Study.open(full.path, overrides="start=baseline", change=True)
    assert changed.state("self-rewarding/iter-1/candidates") == "stale: made from other inputs"
    assert changed.state("self-rewarding/M2/adapter").startswith("stale")
    assert changed.state("self-rewarding/iter-1/prompts") == "done"


def test_a_step_needs_its_inputs(study, full, make):
    with pytest.raises(
        SrkitError, match=r"baseline/adapter is not there yet.*notebook 02_seed_sft"
    ):
        make(study, "baseline/judgements")
    with pytest.raises(
        SrkitError, match=r"iter-1/prompts .*04_iteration.*\(arm and iteration: self"
    ):
        make(study, "self-rewarding/iter-1/candidates")
    edit(full.path / "seed/eft.jsonl", lambda data: data + b"\n")
    (full.path / "M1/adapter/training.jsonl").unlink()
    with pytest.raises(SrkitError, match="M1/adapter needs seed/eft_targets, which is stale"):
        make(full, "M1/adapter")


def test_unknown_steps_are_errors_of_the_kit(study):
    for ask in (study.step, study.state, study.read):
        with pytest.raises(
            SrkitError, match=r"no step 'self-rewarding/iter-9/pairs'.*2 iterations"
        ):
            ask("self-rewarding/iter-9/pairs")
    assert not study.has("self-rewarding/iter-9/pairs")


# --- settings ------------------------------------------------------------------------------------


def test_a_study_keeps_its_settings(tmp_path):
    made = Study.open(tmp_path / "s", "tiny", "dpo.learning_rate=5e-7 model.name='a b'")
    assert made.config.dpo.learning_rate == 5e-7
    for preset, overrides in [("", ""), ("tiny", ""), ("", "dpo.learning_rate=5e-7")]:
        assert Study.open(tmp_path / "s", preset, overrides).config == made.config


@pytest.mark.parametrize(
    ("preset", "overrides", "change"),
    [
        ("", "dpo.beta=0.3", "dpo.beta: 0.1 -> 0.3"),
        ("tiny", "dpo.beta=0.3", "dpo.beta: 0.1 -> 0.3"),
        ("cpu", "", "model.name: tiny -> smollm2-135m"),
    ],
)
def test_other_settings_are_refused_unless_said_so(study, preset, overrides, change):
    before = (study.path / "study.yaml").read_bytes()
    with pytest.raises(SrkitError, match=change) as caught:
        Study.open(study.path, preset, overrides)
    assert "--change" in str(caught.value)
    assert (study.path / "study.yaml").read_bytes() == before
    changed = Study.open(study.path, preset, overrides, change=True)
    assert Study.open(study.path).config == changed.config != study.config


def test_no_study_and_no_preset(study):
    with pytest.raises(SrkitError, match=r"no study at .*Studies beside it: study.*--preset cpu"):
        Study.open(study.path.parent / "studdy")


@pytest.mark.parametrize("content", ["", "[1, 2]\n", "just words\n", "dpo:\n", "a: [\n"])
def test_a_broken_study_yaml_is_an_error_and_never_the_paper_s_settings(study, content):
    (study.path / "study.yaml").write_text(content)
    with pytest.raises(SrkitError, match=r"study\.yaml"):
        Study.open(study.path)


def test_a_wrong_arm_makes_no_study(tmp_path):
    with pytest.raises(SrkitError, match=r"no arm 'random_judge'. Did you mean 'random-judge'"):
        Study.open(tmp_path / "s", "tiny", arm="random_judge")
    assert not (tmp_path / "s").exists()


def test_arms_are_those_begun_and_those_asked_for(study):
    assert study.arms == ("self-rewarding",)
    path = study.path
    assert Study.open(path, arm="ift-only").arms == ("ift-only",)
    assert Study.open(path, arm="ift-only, self-rewarding").arms == ("self-rewarding", "ift-only")
    (path / "ift-only/iter-1").mkdir(parents=True)
    assert Study.open(path).arms == ("ift-only",)
    assert Study.open(path, arm="random-judge").arms == ("ift-only", "random-judge")
    (path / "self-rewarding/iter-1").mkdir(parents=True)
    for shared in ("prompts.jsonl", "candidates.jsonl", "judgements.partial-0"):
        (path / "self-rewarding/iter-1" / shared).touch()
    assert Study.open(path).arms == ("ift-only",), "another arm copies those"
    (path / "self-rewarding/iter-1/pairs.jsonl").touch()
    assert Study.open(path).arms == ("self-rewarding", "ift-only")


def test_an_arm_that_would_be_the_papers_again_is_refused(tmp_path):
    with pytest.raises(SrkitError, match=r"nll would be self-rewarding again.*dpo.nll=1"):
        Study.open(tmp_path / "s", "tiny", "dpo.nll=1", "nll")
    assert not (tmp_path / "s").exists()
    assert Study.open(tmp_path / "s", "tiny", "dpo.nll=0.5", "nll").arms == ("nll",)


def test_a_folder_that_is_no_arm_disturbs_nothing(full):
    shutil.copytree(full.path / "self-rewarding", full.path / "backup of self-rewarding")
    assert Study.open(full.path).arms == ("self-rewarding",)
    assert not_done(Study.open(full.path)) == set()


def test_policy_before_is_the_model_an_iteration_starts_from(study):
    assert study.policy_before("self-rewarding", 1) == "M1"
    assert study.policy_before("self-rewarding", 2) == "self-rewarding/M2"
    assert study.policy_before("ift-only", 1) == "baseline"


# --- folders and files ---------------------------------------------------------------------------


def test_a_folder_is_continued_and_its_checkpoints_go(full):
    step, target = full.step("M1/adapter"), full.path / "M1/adapter"
    (target / "fingerprint.json").unlink()

    def train(folder):
        if not (folder / "checkpoint-2").exists():
            (folder / "checkpoint-2").mkdir()
            (folder / "checkpoint-2/state").write_text("at step 2")
            raise RuntimeError("out of memory")
        for output in step.outputs:
            (folder / Path(output).name).write_text("trained")
        return {"first_loss": 0.6931}

    with pytest.raises(RuntimeError, match="out of memory"):
        full.make_folder("M1/adapter", train)
    assert full.state("M1/adapter") == "interrupted"
    assert (target / "training.jsonl").exists(), "what is there stays until there is better"
    full.make_folder("M1/adapter", train)
    assert full.state("M1/adapter") == "done"
    assert sorted(p.name for p in target.iterdir()) == sorted(Path(o).name for o in step.outputs)
    assert sorted(p.name for p in target.parent.glob("adapter*")) == ["adapter"]
    assert full.manifest()[-1]["first_loss"] == 0.6931
    assert full.adapter("M1") == target


@pytest.fixture
def trained(full):
    """`trained()` makes M1 again, whose folder was lost; a list of what training it did."""
    step, done = full.step("M1/adapter"), []
    shutil.rmtree(full.path / "M1/adapter")

    def train(folder):
        done.append(folder.name)
        (folder / "checkpoints").mkdir()
        for output in step.outputs:
            (folder / Path(output).name).write_text("trained")
        return {"steps": 7, "earlier_seconds": 1000.0}

    def make() -> list[str]:
        full.make_folder("M1/adapter", train)
        return done

    return make


def killed_in(function: str, monkeypatch, act) -> None:
    """Do something, until this function of the study would be called."""

    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, function, die)
        with pytest.raises(KeyboardInterrupt):
            act()


@pytest.mark.parametrize("lost", ["_replace_folder", "append_line"])
def test_a_kill_after_training_repeats_no_training(lost, full, trained, monkeypatch):
    """Before the folder takes its place, and after that, before the manifest line."""

    killed_in(lost, monkeypatch, trained)
    assert len(trained()) == 1
    assert full.state("M1/adapter") == "done"
    assert full.manifest()[-1]["steps"] == 7
    assert 1000 <= full.manifest()[-1]["seconds"] < 1010, "with those of interrupted runs"
    assert sorted(p.name for p in (full.path / "M1").glob("adapter*")) == ["adapter"]


def test_a_trained_folder_that_was_altered_is_trained_again(full, trained, monkeypatch):
    """What the note says of the work holds for the very files that it names."""
    killed_in("append_line", monkeypatch, trained)
    (full.path / "M1/adapter/fingerprint.json").write_text("torn")
    assert len(trained()) == 2
    assert full.state("M1/adapter") == "done"


def test_what_a_kill_after_the_manifest_line_left_goes_with_the_next_step(full, make):
    step = full.step("M1/adapter")
    litter = full._partial(step)
    note = litter.with_name(f"{litter.name}.worked")
    note.write_text("{}")
    other = litter.with_name("adapter.partial-12345678")
    other.mkdir()
    assert full.state("M1/adapter") == "done"
    (full.path / "report.html").unlink()
    make(full, "report")
    assert not note.exists()
    assert other.exists(), "work under other settings, which may come back"


def test_a_file_step(study, full):
    assert (full.path / "report.html").read_text() == "report\n"
    full.make_file("report", lambda: 1 / 0)
    with pytest.raises(SrkitError, match=r"seed/eft_eval is not there yet"):
        study.make_file("metrics/reward_accuracy", lambda: "x")


def test_a_notebook_s_state(full, tmp_path, make):
    source, name = tmp_path / "10_reward_accuracy.ipynb", "10_reward_accuracy"
    source.write_text("{}")
    assert full.notebook_state(name, source) == "not run"
    write_atomically(full.path / f"notebooks/{name}.ipynb", "{}")
    full.record_notebook(name, source, 1.5)
    assert full.notebook_state(name, source) == "done"
    assert not_done(full) == set(), "lines of notebooks are not steps"
    (full.path / "metrics/reward_accuracy.json").unlink()
    assert full.notebook_state(name, source) == "metrics/reward_accuracy: not made"
    make(full, "metrics/reward_accuracy")
    assert full.notebook_state(name, source) == "stale: metrics/reward_accuracy was made again"
    full.record_notebook(name, source, 1.5)
    edit(source, lambda data: data + b"\n")
    assert full.notebook_state(name, source) == "stale: the notebook was edited"
    (full.path / f"notebooks/{name}.ipynb").unlink()
    assert full.notebook_state(name, source) == "not run"


# --- disks ---------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    """A disk of 256 KiB, to be filled or made read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not shutil.which("mount") or os.geteuid():
        pytest.skip("needs root to mount a small disk: run as root")
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs a machine where root may mount: leave the locked-down container")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_says_so_and_costs_one_chunk(disk, tmp_path):
    study = Study.open(disk / "s", "tiny")
    ballast, calls = disk / "ballast", []
    ballast.write_bytes(bytes(220 * 1024))

    def large(part, rows):
        calls.append(part[0])
        return [row | {"text": "x" * 4000} for row in work(part, rows)]

    with pytest.raises(SrkitError, match=r"Could not write .*ift.*No space left on device.*kept"):
        study.make_table("seed/ift", ITEMS, large, CHUNK)
    assert calls in ([0, 3], [0, 3, 6]), "the disk was full in the middle"
    done = len(calls) - 1
    with pytest.raises(SrkitError, match="No space left"):
        study.make_table("seed/ift", ITEMS, large, CHUNK)
    ballast.unlink()
    calls.clear()
    study.make_table("seed/ift", ITEMS, large, CHUNK)
    assert calls == [i for i in (0, 3, 6, 9) if i >= 3 * done], "what was written was kept"
    fresh = Study.open(tmp_path / "whole", "tiny")
    fresh.make_table("seed/ift", ITEMS, large, CHUNK)
    table = "seed/ift.jsonl"
    assert (study.path / table).read_bytes() == (fresh.path / table).read_bytes()


def test_a_disk_that_is_full_from_the_start(disk):
    study = Study.open(disk / "s", "tiny")
    free = shutil.disk_usage(disk).free
    (disk / "ballast").write_bytes(bytes(free))
    with pytest.raises(SrkitError, match=r"No space left on device. Free some space"):
        study.make_table("seed/ift", ITEMS, work, CHUNK)
    with pytest.raises(SrkitError, match=r"No space left on device. Free some space"):
        Study.open(disk / "other", "tiny")


def test_a_read_only_disk_can_be_read_and_says_that_it_cannot_be_written(disk):
    study = Study.open(disk / "s", "tiny")
    study.make_table("seed/ift", ITEMS, work, CHUNK)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert len(Study.open(disk / "s").read("seed/ift")) == 10
    for attempt in (
        lambda: study.make_table("seed/eft", ITEMS, work, CHUNK),
        lambda: Study.open(disk / "s", overrides="dpo.beta=1", change=True),
        lambda: Study.open(disk / "other", "tiny"),
    ):
        with pytest.raises(SrkitError, match=r"Could not write .*Read-only file system"):
            attempt()


@pytest.mark.parametrize("what", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, what):
    file = tmp_path / "file"
    write_atomically(file, "old")

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, what, fail)
    with pytest.raises(SrkitError, match=r"Could not write .*No space left"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_in_the_way_is_an_error_of_the_kit(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(SrkitError, match="Could not write"):
        Study.open(tmp_path / "runs/first", "tiny")


def test_study_yaml_holds_every_setting(study):
    stored = yaml.safe_load((study.path / "study.yaml").read_text())
    assert stored == study.config.model_dump(mode="json")
