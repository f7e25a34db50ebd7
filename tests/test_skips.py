"""Whatever test can be skipped says what it needs and what would lift that: "needs X: do Y".

`python tests/test_skips.py` lists all of them; `pytest -rs` those of a run.
"""

import ast
import re
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
AGREED = re.compile(r"needs [^:]{3,}: \S.{3,}", re.DOTALL)
MARKS = {"skip", "skipif", "xfail", "importorskip"}


def skips(source: str) -> list[tuple[int, str, str]]:
    """Line, kind and reason of each skip and xfail in a test's source; "" where there is none."""
    tree, found = ast.parse(source), []
    texts = {
        target.id: _text(node.value, {})
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        bare = isinstance(node, ast.Attribute) and node.attr in MARKS and id(node) not in called
        if bare and ast.unparse(node).startswith("pytest."):
            found.append((node.lineno, node.attr, ""))  # a mark without arguments
        if not isinstance(node, ast.Call) or getattr(node.func, "attr", "") not in MARKS:
            continue
        kind, reasons = node.func.attr, [k.value for k in node.keywords if k.arg == "reason"]
        reasons += node.args[:1] if kind in ("skip", "xfail") else []
        found.append((node.lineno, kind, _text(reasons[0], texts) if reasons else ""))
    return sorted(found)


def _text(node: ast.expr, texts: dict[str, str]) -> str:
    """A string as it will read, with {code} where a value comes in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Name) and node.id in texts:
        return texts[node.id]
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, texts) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left, texts) + _text(node.right, texts)
    return "{" + ast.unparse(node).strip("{}") + "}"


def listing() -> list[tuple[str, str, str]]:
    """File and line, kind, reason: of every test that can be skipped or may fail."""
    return [
        (f"{file.relative_to(TESTS)}:{line}", kind, reason)
        for file in sorted(TESTS.rglob("*.py"))
        for line, kind, reason in skips(file.read_text("utf-8"))
    ]


def test_every_skip_says_what_it_needs_and_what_would_lift_it():
    found = listing()
    assert len(found) > 5, "they are found at all"
    bad = [f"{place}: {kind}({reason!r})" for place, kind, reason in found
           if not AGREED.fullmatch(reason)]  # fmt: skip
    assert not bad, 'reasons are "needs <what>: <what would lift it>":\n' + "\n".join(bad)


def test_what_counts_as_a_reason():
    source = """
import pytest
WHY = "needs a disk: run as root"
@pytest.mark.skip
def test_a(): ...
@pytest.mark.skipif(True, reason=WHY)
def test_b(): pytest.skip(f"needs {1 + 1} disks: buy one")
def test_c(): pytest.importorskip("vllm")
@pytest.mark.xfail(reason="flaky")
def test_d(): ...
"""
    found = [(kind, reason, bool(AGREED.fullmatch(reason))) for _, kind, reason in skips(source)]
    assert found == [
        ("skip", "", False),
        ("skipif", "needs a disk: run as root", True),
        ("skip", "needs {1 + 1} disks: buy one", True),
        ("importorskip", "", False),
        ("xfail", "flaky", False),
    ]


if __name__ == "__main__":
    sys.stdout.write("".join(f"{place}\t{reason}\n" for place, _, reason in listing()))
