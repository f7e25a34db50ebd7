"""Files that survive: whole or not at all, synced, and help where the disk is full or closed.

    python -c "from pathlib import Path; from srkit.disk import write_atomically; \\
        write_atomically(Path('runs/note.txt'), 'whole or not at all')"
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from srkit.reading import SrkitError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file so that readers see the old one or the new one, never a part.

    A file that says the same already is left alone: a finished study may be read-only.
    """
    # A lone surrogate (half of an emoji, from a broken source) becomes a question mark.
    data = content.encode(errors="replace") if isinstance(content, str) else content
    if path.is_file() and path.read_bytes() == data:
        return
    new = path.with_name(path.name + ".new")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with new.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
        except OSError:
            new.unlink(missing_ok=True)
            raise


def append_line(path: Path, line: str) -> None:
    """Append one line and sync it to disk; a torn earlier line is cut off first."""
    with writing(path), path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def sync_files(folder: Path) -> None:
    """Wait until the files of a folder, which a library wrote, are on the disk."""
    for path in folder.iterdir():
        if path.is_file():
            with writing(path), path.open("rb") as file:
                os.fsync(file.fileno())


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say what to do where the disk is full or cannot be written."""
    try:
        yield
    except Exception as error:
        full = _disk_full(error)
        if not (full or getattr(error, "errno", None)):  # an error of the system
            raise
        folder = next(p for p in (path, *path.absolute().parents) if p.is_dir())
        advice = (
            f"Free some space: {folder} has {shutil.disk_usage(folder).free:,} bytes left. Then"
            if full
            else f"Let {folder} be written, or copy the study to a folder that can be, and"
        )
        reason = getattr(error, "strerror", None) or os.strerror(errno.ENOSPC)
        raise SrkitError(
            f"Could not write {path}: {reason}. {advice} run the same command again: what was "
            "made is kept."
        ) from error


def _disk_full(error: Exception) -> bool:
    """Also where a library's own error hides it: safetensors, and torch, which gives no reason."""
    hidden = ("os error 28", "PytorchStreamWriter failed", "unexpected pos", "iostream error")
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(words in str(error) for words in hidden)
