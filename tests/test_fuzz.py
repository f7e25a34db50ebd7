"""What the fuzzer has found, and where it starts from, replayed: see fuzz/run.py."""

from pathlib import Path

import pytest
from fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "fuzz" / "corpus"


@pytest.mark.parametrize(
    "file", sorted(CORPUS.glob("*/*")), ids=lambda f: f"{f.parent.name}-{f.name}"
)
def test_every_kept_input_has_the_properties(file):
    TARGETS[file.parent.name](file.read_bytes())


def test_every_target_has_a_corpus():
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)
