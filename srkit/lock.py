"""One writer at a time: locks of a study, and who holds them.

The system gives a lock back when its holder dies, so a stale one stops nobody. Beside it lies a
note of who took it, since when and for what, for whoever has to wait.

    python -c "from srkit.lock import held; print(held.__doc__)"
"""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from srkit.disk import write_atomically, writing
from srkit.reading import SrkitError

PATIENCE = 2.0  # seconds for a lock: a process that was killed leaves it when its forks have ended


@contextmanager
def held(study: Path, name: str, doing: str) -> Iterator[None]:
    """Hold one of the locks in a study's folder (`.run`, `.lock`).

    Raises: SrkitError, if another process holds it, saying which.
    """
    note, lock = study / f"{name}-holder", FileLock(study / name, timeout=PATIENCE)
    with writing(note):
        try:
            acquired = lock.acquire()
        except Timeout:
            raise SrkitError(
                f"The study {study} is being written by {_holder(note)}. Wait for it to "
                "finish, stop it, or use another --study."
            ) from None
    with acquired:
        since, words = time.strftime("%Y-%m-%d %H:%M:%S"), " ".join(sys.orig_argv).split()
        who = f"process {os.getpid()} on {platform.node()} ({' '.join(words)[:200]})"
        write_atomically(note, f"{who}, since {since}, {doing}")
        yield


def _holder(note: Path) -> str:
    """Who holds a lock, as its note says; nobody knows if that process has ended."""
    said = note.read_text("utf-8") if note.exists() else ""
    found = re.match(r"process (\d+) on (\S+)", said)
    if not found or (found[2] == platform.node() and not psutil.pid_exists(int(found[1]))):
        return "another process"
    return said
