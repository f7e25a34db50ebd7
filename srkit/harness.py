"""Benchmarks by lm-eval: any of its tasks, item by item, on any model of a study.

EleutherAI's lm-evaluation-harness brings the tasks, their prompts and their scoring; it is given
the model that srkit has loaded and proven (base and adapter), so nothing is loaded twice and no
adapter can be missing. The tasks are named by `eval.benchmarks`; the paper's (Tables 3 and 9) are

    arc_easy, arc_challenge, hellaswag, social_iqa, piqa, gsm8k, mmlu, openbookqa, nq_open

Surprising decisions: none is named by a preset, since they come from the hub (set
`HF_DATASETS_OFFLINE=1` once they are there) and are large. Shots, prompts and
filters are the task's own, without a chat template: the paper does not state its own. Kept is what
lm-eval measured of each item, so that changes are paired by item; a metric that has no number per
item (a perplexity, an F1 over all items) is left out. Of several processes the first one works.

Needs the extra: pip install -e '.[eval]'. Tasks of your own: `eval.benchmark_tasks` is a folder of
lm-eval's YAML files; with `dataset_path: json` and local `data_files` no network is needed. Such
files can name Python functions: use those of people you trust.

    srkit make M1/benchmarks --study runs/first --set "eval.benchmarks=[arc_easy]" \\
        --set eval.benchmark_items=100 --change
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srkit.config import SrkitError
from srkit.distributed import first
from srkit.rows import Row
from srkit.study import Study

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

    from srkit.models import Policy

BATCH = 8  # rows at once; lm-eval sorts them by length


def make_benchmarks(study: Study, model: str) -> list[Row]:
    """Step `<model>/benchmarks`: a row per item and metric of each task of `eval.benchmarks`.

    A task is finished or made again as a whole. Raises: SrkitError if lm-eval is not installed,
    does not know the task, or cannot get its data.
    """

    def work(tasks: Sequence[str], _: list[Row]) -> list[Row]:
        return first(lambda: _measured(study, model, tasks[0]))

    known = {"lm_eval": version("lm-eval")} if study.config.eval.benchmarks and _lm_eval() else {}
    tasks = study.config.eval.benchmarks
    return study.make_table(f"{model}/benchmarks", tasks, work, chunk=1, extra=known)


def measure(
    policy: Policy, task: str, items: int = 0, folder: str = "", seed: int = 1234
) -> list[Row]:
    """One task of lm-eval, or a group of them, item by item.

    `items`: of each task at most, 0 is all; `folder` has task files of one's own; `seed` chooses
    the shots (lm-eval's own is 1234). Rows: id, task, subtask, metric (with lm-eval's filter, if
    any), item, value, version (of the subtask). Raises: SrkitError as `make_benchmarks` does.
    """
    lm_eval = _lm_eval()
    manager = _manager(task, folder)
    try:
        found = lm_eval.simple_evaluate(
            model=as_lm(policy),
            tasks=[task],
            task_manager=manager,
            limit=items or None,
            bootstrap_iters=0,  # intervals are srkit's own
            fewshot_random_seed=seed,
            **dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed")),
        )
    except Exception as error:  # of datasets, of the hub, of the task's own code
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise SrkitError(
            f"lm-eval could not run the task {task!r} on {policy.name}: {type(error).__name__}: "
            f"{reason}. If its data is not there, run once with a network, or name a task whose "
            "data is local (eval.benchmark_tasks)."
        ) from error
    rows = [
        row
        for subtask, samples in found["samples"].items()
        for sample in samples
        for row in _rows(task, subtask, sample, str(found["versions"].get(subtask, "")))
    ]
    if not rows:
        raise SrkitError(
            f"The task {task!r} of lm-eval has no metric with a number per item, so that changes "
            "could not be paired. Name another in eval.benchmarks."
        )
    return rows


def as_lm(policy: Policy) -> HFLM:
    """lm-eval's view of a model that is loaded already; the same object, nothing is copied."""
    _lm_eval()
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=policy.model, tokenizer=policy.tokenizer, batch_size=BATCH)


def _measured(study: Study, model: str, task: str) -> list[Row]:
    from srkit.models import open_policy

    settings = study.config.eval
    policy = open_policy(study, model)
    return measure(policy, task, settings.benchmark_items, settings.benchmark_tasks)


def _rows(task: str, subtask: str, sample: dict[str, Any], of: str) -> list[Row]:
    """Rows of one item as lm-eval logged it: a metric is kept if it is one finite number."""
    rows, filtered = [], sample.get("filter", "none")
    for name in sample["metrics"]:
        value = sample[name]
        if not isinstance(value, Real) or not math.isfinite(value):
            continue
        metric = name if filtered == "none" else f"{name}, {filtered}"
        item = f"{subtask}/{sample['doc_id']}"
        names = {"id": f"{item}/{metric}", "task": task, "subtask": subtask, "metric": metric}
        rows.append({**names, "item": item, "value": float(value), "version": of})
    return rows


def _lm_eval() -> Any:
    try:
        import lm_eval
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as error:
        raise SrkitError(
            f"eval.benchmarks needs lm-eval, which cannot be imported ({error}). Install it with "
            "`pip install -e '.[eval]'`, or set eval.benchmarks=[]."
        ) from error
    return lm_eval


def _manager(task: str, folder: str) -> Any:
    """lm-eval's index of tasks: of one's own folder, or of all where the task is not in it."""
    if folder and not Path(folder).is_dir():
        raise SrkitError(
            f"eval.benchmark_tasks = {folder!r} is no folder. Give one with lm-eval's task files "
            "(.yaml), or leave it empty."
        )
    if folder and task in (own := _index(folder, False)).all_tasks:
        return own
    everything = _index(folder, True)
    _check_known(task, everything.all_tasks, folder)
    return everything


@lru_cache(maxsize=2)
def _index(folder: str, defaults: bool) -> Any:
    """With lm-eval's own tasks, thousands of files are read for it."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder or None, include_defaults=defaults)


def _check_known(task: str, names: Sequence[str], folder: str) -> None:
    if task in names:
        return
    near = difflib.get_close_matches(task[:80], names, n=3, cutoff=0.5)
    guess = f" Near it: {', '.join(near)}." if near else ""
    where = f" nor {folder}" if folder else ""
    raise SrkitError(
        f"Neither lm-eval {version('lm-eval')}{where} has a task {task!r}.{guess} `lm-eval ls "
        "tasks` lists all; eval.benchmark_tasks names a folder with your own."
    )
