"""A clock that goes backwards: the manifest's order decides, and seconds are never negative."""

import glob
import os

import pytest

from srkit.study import Study

LIBRARIES = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")

# The clock jumps back a day in the middle of a step, then each step is made a day before the last.
CHILD = """
    import sys, time
    from pathlib import Path
    from srkit.study import Study

    path, clock = sys.argv[1], sys.argv[2]

    def back(days):
        if clock:
            Path(clock).write_text(f"-{days}d")
        else:
            time.time = lambda: now() - 86400 * days
            time.strftime = lambda form: strftime(form, time.localtime(time.time()))

    now, strftime = time.time, time.strftime
    study, seen = Study.open(path, "tiny"), []

    def work(part, rows):
        seen.append(time.time())
        back(len(seen))
        return list(part)

    for name in ("seed/ift", "seed/eft", "seed/eft_eval", "seed/test_prompts"):
        study.make_table(name, [{"id": f"{name}-{i}"} for i in range(2)], work, 1)
    (study.path / "seed/eft.jsonl").unlink()
    study.make_table("seed/eft", [{"id": "again"}], work, 1)
    assert all(later < earlier - 80000 for earlier, later in zip(seen, seen[1:])), seen
"""


@pytest.mark.parametrize("how", ["libfaketime", "in Python"])
def test_a_clock_that_goes_backwards(child, tmp_path, make, how):
    clock, environment = "", {}
    if how == "libfaketime":
        if not LIBRARIES:
            pytest.skip("needs libfaketime: apt-get install faketime")
        clock = tmp_path / "clock"
        clock.write_text("+0d")
        environment = {"LD_PRELOAD": LIBRARIES[0], "FAKETIME_TIMESTAMP_FILE": str(clock)}
        # the real clock that cannot be set back cannot be set back here either
        environment |= {"FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    process = child(CHILD, tmp_path / "study", clock, **environment)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    study = Study.open(tmp_path / "study")
    lines = study.manifest()
    assert [line["step"] for line in lines] == [
        "seed/ift", "seed/eft", "seed/eft_eval", "seed/test_prompts", "seed/eft"
    ]  # fmt: skip
    days = [line["made_at"][:10] for line in lines]
    assert days == sorted(set(days), reverse=True), "each was made on an earlier day"
    assert all(0 <= line["seconds"] < 200 for line in lines)
    assert study.read("seed/eft") == [{"id": "again"}]
    assert [study.state(line["step"]) for line in lines] == ["done"] * 5

    # what was made today from tables of the day before is newer, and older files do not matter
    os.utime(study.path / "seed/ift.jsonl", (4e9, 4e9))
    make(study, "baseline/adapter")
    assert study.state("baseline/adapter") == "done"
    (study.path / "seed/ift.jsonl").unlink()
    make(study, "seed/ift")
    os.utime(study.path / "seed/ift.jsonl", (0, 0))
    assert study.state("baseline/adapter") == "stale: seed/ift was made again"
