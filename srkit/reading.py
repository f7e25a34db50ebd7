"""Reading what a person, another program or a fault may have written: text, JSON, YAML, values.

Surprising decisions: a byte order mark and Windows line ends are legal, another encoding is not;
`NaN` and `Infinity`, which Python's reader takes for numbers, are not JSON; a name that stands
twice in YAML, of which the last would silently win, is an error.

    python -c "from srkit.reading import parse_json; parse_json('[NaN]', 'an example')"
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


class SrkitError(ValueError):
    """What a user can put right: says what is wrong, where, what is legal and what to do next."""

    def _render_traceback_(self) -> list[str]:
        """Let IPython show the message alone; a stack trace would bury it."""
        return [f"{type(self).__name__}: {self}"]


def shown(value: Any, most: int = 80) -> str:
    """A value as it is repeated in an error: escaped, and cut if it is long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def read_text(file: Path, complete: bool = False) -> str:
    """A file's text, with line ends as "\\n" and without a byte order mark.

    `complete` leaves out what stands behind the last line end: a line that was torn off.

    Raises: SrkitError if it cannot be read, or is not UTF-8 (with the line).
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise SrkitError(f"{file} cannot be read: {error.strerror}.") from None
    return decode(data.rpartition(b"\n")[0] if complete else data, file)


def decode(data: bytes, file: Path) -> str:
    """The text that a file's bytes are; as `read_text`, which reads them."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SrkitError(
            f"{file}, line {line}: not UTF-8 ({error.reason}). Restore the file, or save it again "
            "with the encoding UTF-8."
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str, where: str, strict: bool = True) -> Any:
    """A JSON value; unless `strict`, NaN and Infinity are numbers, as in some models' configs.

    Raises: SrkitError that begins with `where`, also on what would exhaust the reader.
    """
    try:
        if not strict:
            return json.loads(text)
        return json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        reason = "nested too deeply"
    except ValueError as error:  # JSONDecodeError, or a number of thousands of digits
        reason = str(error)
    raise SrkitError(f"{where}: not JSON ({reason}).")


def parse_object(text: str, where: str, strict: bool = True) -> dict[str, Any]:
    """A JSON object. Raises: SrkitError, as `parse_json`."""
    value = parse_json(text, where, strict)
    if not isinstance(value, dict):
        raise SrkitError(f"{where}: not a JSON object but {shown(value)}.")
    return value


def read_object(file: Path, strict: bool = True) -> dict[str, Any]:
    """The JSON object in a file. Raises: SrkitError, as `read_text` and `parse_object`."""
    return parse_object(read_text(file), str(file), strict)


def parse_yaml(text: str, where: str) -> Any:
    """A YAML value. Raises: SrkitError that begins with `where`."""
    try:
        return yaml.load(text, _Strict)
    except RecursionError:
        reason = "nested too deeply"
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-13-45
        reason = " ".join(str(error).split())
    raise SrkitError(f"{where} is not YAML: {reason}. Restore it, or correct that place.")


def require_rows(
    rows: Sequence[Mapping[str, Any]], columns: Iterable[str], where: str, unique: str
) -> None:
    """Refuse plain rows that lack a column or a value in one, or of which two have one `unique`.

    Raises: SrkitError that begins with `where`, also where there are no rows.
    """
    columns = tuple(columns)
    legal = f"Every row needs {', '.join(columns)}"
    if not len(rows):
        raise SrkitError(f"{where}: there are no rows. {legal}.")
    seen: dict[Any, int] = {}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise SrkitError(f"{where}, row {number}: {shown(row)} is no mapping. {legal}.")
        if missing := [name for name in columns if row.get(name) is None]:
            names = ", ".join(missing)
            has = ", ".join(shown(name) for name in row) or "nothing"
            raise SrkitError(f"{where}, row {number}: no {names}; it has {has}. {legal}.")
        key = row[unique]
        if key in seen:
            raise SrkitError(
                f"{where}, row {number}: the {unique} {shown(key)} stands in row {seen[key]} "
                f"already. Every row needs a {unique} of its own."
            )
        seen[key] = number


class _Strict(yaml.SafeLoader):
    """YAML in which a name stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value if isinstance(key.value, str)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _finite(digits: str) -> float:
    """A number as large as 1e999 would silently be infinite."""
    return float(digits) if math.isfinite(float(digits)) else _no_number(digits)


def _no_number(name: str) -> float:
    raise ValueError(f"{shown(name)[1:-1]} is no number in JSON, or too large a one")
