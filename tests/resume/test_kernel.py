"""Interrupting a Jupyter kernel in the middle of a notebook, then running all its cells again."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty

import pytest
from harness import copy_before, manifest, reference_plan
from jupyter_client.manager import start_new_kernel

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
STEPS = reference_plan()
FIRST, ITERATION = "self-rewarding/iter-1/prompts", "self-rewarding"


def cells(notebook: str, **parameters: object) -> list[str]:
    """The code of a notebook, with these parameters after its own."""
    found = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text("utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]
    code[0] += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
    return code


def run_all(manager, client, code: list[str], now: Callable[[], bool]) -> str:
    """Run cells until one fails, as "Run all" does, and interrupt the kernel once `now()` holds.

    Returns the name of the error, or nothing.
    """
    for source in code:
        asked, interrupted = client.execute(source), False
        while True:
            if not interrupted and now():
                interrupted = True
                manager.interrupt_kernel()
            try:
                reply = client.get_shell_msg(timeout=0.002)
            except Empty:
                continue
            if reply["parent_header"].get("msg_id") == asked:
                break
        if reply["content"]["status"] != "ok":
            return reply["content"]["ename"]
    return ""


def begun(study: Path, pattern: str, rng: random.Random) -> Callable[[], bool]:
    """Whether something that a step writes in its middle is there, and a moment has passed."""
    wait, seen = rng.uniform(0, 0.2), []

    def now() -> bool:
        if not seen and any(p.stat().st_size for p in study.glob(pattern)):
            seen.append(time.monotonic())
        return bool(seen) and time.monotonic() > seen[0] + wait

    return now


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_run_all_after_interrupts_goes_on_in_the_same_kernel(seed, reference, tmp_path):
    """In prompts, candidates, judgements, DPO and the measures of M2: a kernel that has a model in
    memory, half dressed or half trained, must not let it be seen."""
    rng, whole = random.Random(seed), reference[0]
    study = copy_before(whole, STEPS[FIRST], STEPS, tmp_path / "study")
    code = cells("04_iteration", study=str(study), arm="self-rewarding", iteration=1)
    places = [f"self-rewarding/iter-1/{t}.partial-*" for t in ("prompts", "candidates")]
    places += ["self-rewarding/iter-1/judgements.partial-*"]
    places += ["self-rewarding/M2/adapter.partial-*/checkpoints/checkpoint-2/whole*"]
    places += ["self-rewarding/M2/adapter.partial-*/checkpoints/checkpoint-4/optimizer.pt"]
    places += ["self-rewarding/M2/judgements.partial-*"]
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(NOTEBOOKS))
    try:
        met = [run_all(manager, client, code, begun(study, place, rng)) for place in places]
        assert run_all(manager, client, code, lambda: False) == ""
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert set(met) <= {"KeyboardInterrupt", ""}
    assert met.count("KeyboardInterrupt") >= 3, "some may come too late"
    lines = manifest(study)
    made = [line["step"] for line in lines]
    assert made == list(dict.fromkeys(made))
    for line in lines:
        assert line == next(row for row in manifest(whole) if row["step"] == line["step"])
        for output in STEPS[line["step"]].outputs:
            assert (study / output).read_bytes() == (whole / output).read_bytes(), output
    assert "self-rewarding/M2/comparisons" in made
