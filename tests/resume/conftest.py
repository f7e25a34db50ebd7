"""A study that nothing interrupted, made once for all tests here."""

from pathlib import Path

import pytest
from harness import SERIES, Run, Runner


@pytest.fixture(scope="session")
def runner(tmp_path_factory):
    runner = Runner(tmp_path_factory.mktemp("runs"))
    yield runner
    runner.close()


@pytest.fixture(scope="session")
def reference(runner, tmp_path_factory) -> tuple[Path, Run]:
    """A study that nothing interrupted, and what was done for it."""
    study = tmp_path_factory.mktemp("reference") / "study"
    run = runner.run("make", *SERIES, "--study", study)
    assert run.code == 0, run.said
    return study, run
