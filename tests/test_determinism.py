"""The same machine, seed and number of threads give the same bytes; what another number changes.

The determinism statement of the README, as far as one machine without a GPU can check it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from srkit.drawings import TIMED
from srkit.rows import read_jsonl
from srkit.study import Study

ROOT = Path(__file__).resolve().parents[1]


def made(path: Path, threads: int, hash_seed: int) -> Study:
    """A whole study with preset tiny, in a process of its own."""
    command = [sys.executable, "-m", "srkit.cli", "make", "--preset", "tiny", "--study", str(path)]
    # whatever walks through a set of names in its own order would show under another hash seed
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return Study.open(path)


def hashes(study: Study) -> dict[str, str]:
    """sha256 of every table, adapter and analysis; the report states seconds."""
    records = study.records()
    outputs = {n: r["outputs"] for n, r in records.items() if n in study.steps and n != "report"}
    return {file: sha for files in outputs.values() for file, sha in files.items()}


@pytest.mark.slow
def test_two_runs_give_the_same_bytes_and_two_threads_the_same_texts(tmp_path):
    one, again, two = (
        made(tmp_path / name / "study", threads, seed)  # a page states the study's name
        for name, threads, seed in (("one", 1, 1), ("again", 1, 2), ("two", 2, 3))
    )
    assert len(hashes(one)) > 40
    assert hashes(one) == hashes(again)
    drawn = (one.path / "figures").iterdir()
    for file in (f for f in drawn if not f.name.startswith(TIMED)):
        assert file.read_bytes() == (again.path / "figures" / file.name).read_bytes(), file.name
    for name, step in one.steps.items():
        ours, theirs = (study.path / step.outputs[0] for study in (one, two))
        if name.endswith("/adapter"):
            weights, others = load_file(ours), load_file(theirs)
            assert weights.keys() == others.keys()
            assert all(np.allclose(weights[w], others[w], rtol=0, atol=1e-5) for w in weights)
        elif ours.suffix == ".jsonl":
            # log-probabilities of whole texts: hundreds of nats in seven digits
            within = 3e-4 if name.endswith("/ways") else 1e-5
            assert_alike(read_jsonl(ours), read_jsonl(theirs), within)


def assert_alike(rows: list[dict], others: list[dict], within: float) -> None:
    """The same rows, but for probabilities: another company in a batch is another rounding."""
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        numbers = {key for key, value in row.items() if isinstance(value, float)}
        kept = {key: value for key, value in row.items() if key not in numbers}
        assert json.dumps(kept) == json.dumps({key: other[key] for key in kept})
        for key in numbers:
            assert row[key] == pytest.approx(other[key], abs=within, rel=0)
