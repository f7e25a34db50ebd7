"""Every name that is imported from the kit exists, also where a function or a notebook imports it.

Imports inside functions keep torch out of what needs none, and so fail only when they are reached.
"""

import ast
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    [*ROOT.glob("srkit/**/*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("notebooks/*.ipynb")]
)


def code(file: Path) -> str:
    if file.suffix == ".py":
        return file.read_text("utf-8")
    cells = json.loads(file.read_text("utf-8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def imported(text: str) -> set[tuple[str, str]]:
    """Modules of the kit and the names that are asked of them."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in nodes if (node.module or "").split(".")[0] == "srkit"]
    return {(node.module, alias.name) for node in ours for alias in node.names}


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.name)
def test_names_that_are_imported_exist(file):
    failed = []
    for module, name in sorted(imported(code(file))):
        try:
            exec(f"from {module} import {name}", {})
        except ImportError as error:
            failed.append(str(error))
    assert not failed
