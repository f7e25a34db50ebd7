"""Bytes that changed, lines that went missing: always named, never used, never made again silently.

What is flipped is one bit, at places drawn once and for all. The figures are part of it: none is
drawn from a table that is not what the manifest names.
"""

import hashlib
import json
import random
import time

import pytest

from srkit import drawings, metrics, notebook
from srkit import study as module
from srkit.config import SrkitError
from srkit.disk import append_line
from srkit.study import Study

ITEMS, CHUNK = list(range(10)), 3


def flip(path, place: int, bit: int = 0) -> bytes:
    """Flip one bit of a file; returns what it was before."""
    before = path.read_bytes()
    damaged = bytearray(before)
    damaged[place] ^= 1 << bit
    path.write_bytes(damaged)
    return before


def dependents(study: Study, name: str) -> set[str]:
    found = {name}
    for step in study.steps.values():  # in order, so one pass is enough
        if found & set(step.inputs):
            found.add(step.name)
    return found


def not_done(study: Study) -> set[str]:
    return {name for name, state in Study.open(study.path).states().items() if state != "done"}


def contents(study: Study) -> dict:
    """The bytes of every table, adapter and metric."""
    return {o: (study.path / o).read_bytes() for s in study.steps.values() for o in s.outputs}


# --- finished tables and adapters ----------------------------------------------------------------


def test_a_flipped_bit_in_any_file_is_named_with_what_to_run(full):
    draw, flipped = random.Random(0), 0
    for step in full.steps.values():
        for output in step.outputs:
            file = full.path / output
            before = flip(file, draw.randrange(file.stat().st_size), draw.randrange(8))
            assert full.state(step.name) == f"stale: {output} was changed after it was made"
            is_adapter = step.name.endswith("/adapter")
            owner = step.name.removesuffix("/adapter")
            with pytest.raises(SrkitError) as caught:
                full.adapter(owner) if is_adapter else full.read_text(step.name)
            message = str(caught.value)
            found = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
            wanted = full.records()[step.name]["outputs"][output][:12]
            assert message.startswith(f"{file} is not what the manifest names (sha256 {found}, ")
            assert f"and not {wanted})" in message
            assert f"run notebook {step.notebook}" in message
            file.write_bytes(before)  # restored from a copy
            assert full.state(step.name) == "done"
            flipped += 1
    assert flipped == len(contents(full)) > 40


@pytest.mark.parametrize("name", ["seed/eft", "self-rewarding/iter-1/judgements", "M1/adapter"])
def test_damage_is_said_before_it_is_made_again(full, filler, caplog, name):
    """No step uses the damaged file, and the run that mends it ends with the same bytes."""
    expected, output = contents(full), full.step(name).outputs[0]
    flip(full.path / output, 5)
    assert not_done(full) == dependents(full, name)
    after = next(s for s in full.steps.values() if name in s.inputs)
    (full.path / after.outputs[0]).unlink()
    with pytest.raises(SrkitError, match=f"{after.name} needs {name}, which is stale: {output}"):
        full._making(full.step(after.name)).__enter__()
    filler(full)
    assert f"{name} is made again: stale: {output} was changed after it was made" in caplog.text
    assert not_done(full) == set()
    assert contents(full) == expected


@pytest.mark.parametrize("keep", [0, 1, 30])
def test_a_table_cut_in_the_middle_of_a_line(full, filler, keep):
    expected, file = contents(full), full.path / "seed/eft.jsonl"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(SrkitError, match=r"eft\.jsonl is not what the manifest names"):
        full.read("seed/eft")
    filler(full)
    assert contents(full) == expected


def test_doubled_rows_are_named(full):
    file = full.path / "seed/eft.jsonl"
    file.write_bytes(file.read_bytes() * 2)
    with pytest.raises(SrkitError, match=r"eft\.jsonl is not what the manifest names"):
        full.frame("seed/eft")


def test_what_is_parsed_is_what_was_compared(full, monkeypatch):
    """Also where size and times are those of the file that was compared a moment ago."""
    file = full.path / "seed/eft.jsonl"
    assert full.state("seed/eft") == "done"
    monkeypatch.setattr(module, "_sha256", lambda path: full.records()["seed/eft"]["outputs"])
    flip(file, 9)
    with pytest.raises(SrkitError, match="is not what the manifest names"):
        full.read("seed/eft")


def test_a_big_adapter_is_hashed_once(full, monkeypatch):
    """Looking at the state of a study again costs nothing that grows with its files."""
    hashed = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: hashed.append(1) or digest(*a))
    full.states()
    first = len(hashed)
    began = time.perf_counter()
    for _ in range(3):
        full.states()
        full.adapter("M1")
    assert len(hashed) == first <= len(contents(full))
    assert time.perf_counter() - began < 3


# --- a table in progress -------------------------------------------------------------------------


def work(part, rows):
    return [{"id": f"r{i}", "before": len(rows), "text": f"ü {i}"} for i in part]


@pytest.fixture
def interrupted(study):
    """A table in progress with three chunks of four: study, its file, the bytes of the table."""
    study.make_table("seed/ift", ITEMS, work, CHUNK)
    table = (study.path / "seed/ift.jsonl").read_bytes()
    (study.path / "seed/ift.jsonl").unlink()

    def power_cut(part, rows):
        if part[0] == 9:
            raise RuntimeError
        return work(part, rows)

    with pytest.raises(RuntimeError):
        study.make_table("seed/ift", ITEMS, power_cut, CHUNK)
    (partial,) = study.path.glob("seed/ift.partial-*")
    return study, partial, table


def test_any_flipped_bit_of_a_table_in_progress(interrupted):
    """It is named, or cut off as a torn end is, or changes white space: no row is ever wrong."""
    study, partial, table = interrupted
    whole = partial.read_bytes()
    rows = [row for chunk in module._chunks(partial) for row in chunk["rows"]]
    named = cut = same = 0
    for place in range(len(whole)):
        flip(partial, place, bit=place % 7)
        try:
            found = [row for chunk in module._chunks(partial) for row in chunk["rows"]]
        except SrkitError as error:
            named += f"{partial}, line " in str(error) and "Delete this line" in str(error)
        else:
            cut += found != rows and found == rows[: len(found)]
            same += found == rows
        partial.write_bytes(whole)
    assert named + cut + same == len(whole) > 500
    assert cut == 1, "the last line's end"
    assert same < 0.1 * len(whole)
    study.make_table("seed/ift", ITEMS, work, CHUNK)
    assert (study.path / "seed/ift.jsonl").read_bytes() == table


DAMAGES = {
    "doubled": lambda lines: [lines[0], lines[0], *lines[1:]],
    "missing": lambda lines: lines[1:],
    "swapped": lambda lines: [lines[1], lines[0], lines[2]],
    "cut in the middle": lambda lines: [lines[0], lines[1][:40] + b"\n", lines[2]],
    "not text": lambda lines: [lines[0], b"\xff\xfe\n", lines[2]],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_chunks_that_are_doubled_missing_or_torn(interrupted, damage):
    study, partial, table = interrupted
    lines = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(b"".join(DAMAGES[damage](lines)))
    with pytest.raises(SrkitError, match=r"ift\.partial-\w+, line [12]: .*or the whole file"):
        study.make_table("seed/ift", ITEMS, work, CHUNK)
    partial.unlink()
    study.make_table("seed/ift", ITEMS, work, CHUNK)
    assert (study.path / "seed/ift.jsonl").read_bytes() == table


# --- the manifest --------------------------------------------------------------------------------


def test_any_flipped_bit_of_the_manifest(full):
    """It is named with its line, or changes white space; at the very end it loses one line."""
    manifest, draw = full.path / "manifest.jsonl", random.Random(1)
    whole, rows = manifest.read_bytes(), full.manifest()
    places = [len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(300))]
    named = same = 0
    for place in places:
        flip(manifest, place, draw.randrange(8))
        try:
            found = full.manifest()
        except SrkitError as error:
            line = whole[:place].count(b"\n") + 1
            named += f"manifest.jsonl, line {line}: " in str(error) and "delete this" in str(error)
        else:
            same += found == rows or (place == len(whole) - 1 and found == rows[:-1])
        manifest.write_bytes(whole)
    assert named + same == len(places)
    assert same < 0.1 * len(places)


def test_any_flipped_bit_of_a_seal_and_of_its_name(full):
    """A seal whose name is damaged must not pass for a line of an earlier version, without one."""
    manifest = full.path / "manifest.jsonl"
    whole = manifest.read_bytes()
    for place in range(whole.index(b'"seal"'), whole.index(b"\n")):
        for bit in range(8):
            flip(manifest, place, bit)
            with pytest.raises(SrkitError, match=r"manifest\.jsonl, line 1: .*delete this"):
                full.manifest()
            manifest.write_bytes(whole)


def test_a_missing_line_is_said_and_its_step_made_again(full, filler, caplog):
    manifest, expected = full.path / "manifest.jsonl", contents(full)
    lines = manifest.read_bytes().splitlines(keepends=True)
    for name in ("seed/ift", "M1/adapter", "self-rewarding/iter-1/pairs", "metrics/win_rates"):
        caplog.clear()
        manifest.write_bytes(b"".join(line for line in lines if f'"{name}", "s' not in str(line)))
        assert full.state(name) == "stale: it is there, but not in the manifest"
        assert not_done(full) == dependents(full, name)
        filler(full)
        assert f"{name} is made again: stale: it is there, but" in caplog.text
        assert not_done(full) == set()
        assert contents(full) == expected


def test_a_line_torn_in_the_middle_is_named_and_can_be_deleted(full, filler):
    manifest, expected = full.path / "manifest.jsonl", contents(full)
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join([*lines[:3], lines[3][:50] + b"\n", *lines[4:]]))
    with pytest.raises(SrkitError, match=r"manifest\.jsonl, line 4: not JSON.*delete this line"):
        full.states()
    manifest.write_bytes(b"".join(lines[:3] + lines[4:]))
    filler(full)
    assert not_done(full) == set()
    assert contents(full) == expected


def test_doubled_lines_change_nothing_or_make_more_run(full, filler):
    manifest, expected = full.path / "manifest.jsonl", contents(full)
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(line * 2 for line in lines))
    assert not_done(full) == set()
    manifest.write_bytes(b"".join([*lines, lines[0]]))  # as if it had just been made
    first = json.loads(lines[0])["step"]
    assert not_done(full) == dependents(full, first) - {first}
    filler(full)
    assert not_done(full) == set()
    assert contents(full) == expected


def test_a_manifest_without_seals_is_read(full):
    """As versions before this one wrote it."""
    manifest = full.path / "manifest.jsonl"
    rows = full.manifest()
    manifest.unlink()
    for row in rows:
        append_line(manifest, json.dumps(row))
    assert full.manifest() == rows
    assert not_done(full) == set()


# --- figures -------------------------------------------------------------------------------------

DRAWN = {
    "constraints": ("metrics/win_rates", "metrics/win_rates.json"),
    "training_sft": ("M1/adapter", "M1/adapter/training.jsonl"),
    "training_dpo": ("self-rewarding/M2/adapter", "self-rewarding/M2/adapter/training.jsonl"),
    "funnel_self-rewarding_iter-1": (
        "self-rewarding/iter-1/pairs",
        "self-rewarding/iter-1/pairs.jsonl",
    ),
}


@pytest.mark.parametrize("figure", DRAWN)
def test_no_figure_is_drawn_from_a_table_that_was_changed(full, figure):
    step, output = DRAWN[figure]
    file = full.path / output
    text = file.read_text()
    number = next(i for i, letter in enumerate(text) if letter.isdigit() and letter != "9")
    file.write_text(f"{text[:number]}9{text[number + 1 :]}")  # a figure could be drawn from it
    for draw in (drawings.draw_figure, notebook.draw):
        with pytest.raises(SrkitError, match=f"{file.name} is not what the manifest names"):
            draw(full, figure)
    if step.startswith("metrics/"):
        with pytest.raises(SrkitError, match="is not what the manifest names"):
            metrics.load(full, step.removeprefix("metrics/"))
    assert not (full.path / "figures").exists()


def test_no_figure_is_drawn_from_numbers_of_other_tables(full, make):
    """The metrics are as they were made, but one of the tables behind them was made anew."""
    drawings.draw_figure(full, "constraints")
    (full.path / "M1/responses.jsonl").unlink()
    make(full, "M1/responses", [{"id": "another"}])
    with pytest.raises(SrkitError, match=r"other tables .*M1/responses\.jsonl.*notebook 12_win"):
        drawings.draw_figure(full, "constraints")
    (full.path / "M1/responses.jsonl").unlink()
    make(full, "M1/responses")  # as it was
    drawings.draw_figure(full, "constraints")
