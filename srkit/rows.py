"""Rows of tables: JSON Lines, sealed lines that show damage, and a seed for each row.

A table is a file with one JSON object per line. Files that are appended to (the manifest, a table
in progress) have a seal on each line, a hash of the rest, so that a flipped byte is found; only a
torn last line, of a process that was killed, is left out in silence.

    python -c "from srkit.rows import derive_seed; print(derive_seed(0, 'candidates', 'p1', 3))"
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from srkit.reading import SrkitError, parse_object, read_text

Row = dict[str, Any]


def derive_seed(*coordinates: int | str) -> int:
    """A 63-bit seed from a row's coordinates alone (study seed, step, prompt id, sample)."""
    text = "\x1f".join(str(c) for c in coordinates).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def read_jsonl(path: Path) -> list[Row]:
    """Rows of a JSON Lines file.

    Raises: SrkitError with the line number if a line is not UTF-8 or not a JSON object.
    """
    return parse_jsonl(read_text(path), path)


def complete_lines(path: Path) -> list[Row]:
    """Rows of an append-only file, without a torn last line."""
    if not path.exists():
        return []
    return parse_jsonl(read_text(path, complete=True), path)


def parse_jsonl(text: str, path: Path) -> list[Row]:
    """Rows of a text in JSON Lines; `path` is for errors, which are those of `read_jsonl`."""
    lines = enumerate(text.split("\n"), 1)
    return [parse_object(line, f"{path}, line {n}") for n, line in lines if line.strip()]


def sealed(row: Row) -> str:
    """A row as a line that shows when it was damaged."""
    return json.dumps({**row, "seal": _seal(row)})


def _seal(row: Row) -> str:
    return hashlib.sha256(json.dumps(row).encode()).hexdigest()[:16]


def unsealed(path: Path, advice: str) -> list[Row]:
    """Rows of an append-only file; lines of earlier versions have no seal.

    Raises: SrkitError naming a line that was damaged, with the advice.
    """
    try:
        rows = complete_lines(path)
        for number, row in enumerate(rows, 1):
            if not row:
                continue
            name, last = row.popitem()
            # a seal under another name is one whose name was damaged
            if (name == "seal") != (last == _seal(row)):
                raise SrkitError(f"{path}, line {number}: it was changed after it was written.")
            if name != "seal":
                row[name] = last
    except SrkitError as error:
        raise SrkitError(f"{error} {advice}") from None
    return rows


def kept(rows: list[Row]) -> list[Row]:
    """Rows in use: tables keep what a filter dropped, with the reason in `dropped`."""
    return [row for row in rows if not row.get("dropped")]
