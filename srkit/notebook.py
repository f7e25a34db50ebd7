"""What every notebook of the series begins and ends with.

`begin` checks the parameters (papermill only warns about unknown ones and passes text for
booleans), finds the project's root, and opens the study; `finish` writes the notebook's numbers.

Surprising decision: relative paths mean the same in JupyterLab, whose kernels start in
`notebooks/`, and in a batch run: `begin` changes to the project's root.

    python -c "from srkit.notebook import begin; print(begin('runs/first').states())"
"""

from __future__ import annotations

import ast
import json
import logging
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srkit.config import SrkitError, legal_names, presets
from srkit.disk import write_atomically
from srkit.escape import visible
from srkit.reading import shown
from srkit.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARAMETERS = ("study", "preset", "arm", "iteration", "overrides")


def begin(
    study: str,
    preset: str = "",
    overrides: str = "",
    arm: str = "",
    iteration: int | None = None,
    create: str = "",
) -> Study:
    """Open the study of a notebook after checking its parameters.

    `create` is the preset of a study that is not there yet and for which none was named.
    Raises: SrkitError naming the parameter, its value and what is legal.
    """
    texts = {"study": study, "preset": preset, "arm": arm, "overrides": overrides}
    for name, value in texts.items():
        if not isinstance(value, str):
            raise SrkitError(f"The parameter {name} is {shown(value)}; it must be text.")
    if not study:
        raise SrkitError("The parameter study is empty; it is a folder such as runs/first.")
    if preset and preset not in presets():
        raise SrkitError(f"There is no preset {shown(preset)}. {legal_names(preset, presets())}")
    _check_injected(("study", "preset", "overrides") if iteration is None else PARAMETERS)
    _go_to_root()
    if create and not preset and not Path(study, "study.yaml").exists():
        preset = create
    _show_log()
    opened = Study.open(study, preset, overrides, arm, save=False)
    if iteration is not None:
        _check_iteration(iteration, opened)
        opened.config.for_arm(arm)  # one arm, not several
    opened.save_settings()
    return opened


def _show_log() -> None:
    """Let the kit's log lines (what a step is expected to take) appear beside progress bars."""
    log = logging.getLogger("srkit")
    log.setLevel(logging.INFO)
    if not log.handlers:
        log.addHandler(logging.StreamHandler())


def in_batch() -> bool:
    """Whether papermill runs this notebook, so that nobody can use widgets."""
    return any(cell.startswith("# Parameters") for cell in _cells_run())


def show(title: str, text: str) -> None:
    """Print a text in full, under a title, between rules: plain text, nothing is interpreted."""
    title = visible(title)
    print(f"--- {title} " + "-" * max(4, 74 - len(title)) + f"\n{visible(text)}\n")


def draw(study: Study, name: str) -> Figure:
    """Draw one of the study's figures into its `figures/`, and show it."""
    from srkit.drawings import draw_figure

    return draw_figure(study, name)


def finish(study: Study, name: str, numbers: dict[str, Any]) -> None:
    """Write a notebook's numbers to `metrics/<name>.json`, after its checks, and say so."""
    numbers = {"notebook": name, **_plain(numbers)}
    text = json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    target = study.path / "metrics" / f"{name}.json"
    write_atomically(target, text)
    print(f"All checks of this notebook passed. Its numbers: {target}")


def _plain(value: Any) -> Any:
    """Numbers of numpy and pandas as Python's own; what is not a number becomes null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_iteration(iteration: Any, study: Study) -> None:
    last = study.config.iterations
    if isinstance(iteration, bool) or not isinstance(iteration, int):
        raise SrkitError(
            f"The parameter iteration is {shown(iteration)}; it must be a whole number."
        )
    if not 1 <= iteration <= last:
        raise SrkitError(
            f"The parameter iteration is {shown(iteration)}; this study has iterations 1 to "
            f"{last}. Another number of iterations is a setting: iterations=3."
        )


def _check_injected(legal: tuple[str, ...]) -> None:
    """Refuse names that papermill injected but the notebook does not know."""
    for cell in _cells_run():
        if not cell.startswith("# Parameters"):
            continue
        for node in ast.parse(cell).body:
            for target in getattr(node, "targets", []):
                if isinstance(target, ast.Name) and target.id not in legal:
                    raise SrkitError(
                        f"This notebook has no parameter {shown(target.id)}. "
                        f"{legal_names(target.id, legal)} Settings go into overrides, for "
                        'example overrides="dpo.beta=0.2 judge.samples=5".'
                    )


def _cells_run() -> list[str]:
    """Sources of the cells that this kernel ran; none outside IPython."""
    try:
        from IPython import get_ipython
    except ImportError:
        return []
    shell = get_ipython()
    return list(shell.user_ns.get("In", [])) if shell else []


def _go_to_root() -> None:
    here = Path.cwd()
    if here.name == "notebooks" and (here.parent / "pyproject.toml").exists():
        os.chdir(here.parent)
