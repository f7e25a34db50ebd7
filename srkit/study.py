"""A study: one directory of tables and adapters, a manifest of how each was made, and resume.

A step is finished when its last manifest line names the files that lie there (by sha256), the
settings it would use now, and inputs none of which were made after it. Order in the append-only
manifest decides, not clocks. So deleting a table makes that table and all that depends on it run
again, and nothing else.

Surprising decisions:
- Work in progress lives beside its target under a name that contains a key of its inputs and
  settings, so that only the very same work is continued.
- A table in progress has one line per chunk, synced as it is written: a kill loses at most one
  chunk, and a torn last line is a chunk to be done again. The finished table has one line per row.
- Files appear by rename only; a result that exists is replaced when its successor is complete.
- Of several processes (`srkit.distributed`) all compute the rows of a step, the first one decides
  whether it is finished, locks and writes, and all go on when it has.

    python -c "from srkit.study import Study; print(Study.open('runs/first').config.model.name)"
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from tqdm import tqdm

from srkit import prompts
from srkit.config import (
    ARMS,
    Config,
    SrkitError,
    build,
    differences,
    legal_names,
    parse_overrides,
    resolve,
)
from srkit.disk import append_line, sync_files, write_atomically, writing
from srkit.distributed import first, rank, together
from srkit.lock import held
from srkit.plan import PAPER_ARM, Step, model_after, plan
from srkit.provenance import joules, peak_memory_mb, provenance
from srkit.reading import decode, parse_yaml, read_object, read_text, shown
from srkit.rows import Row, parse_jsonl, read_jsonl, sealed, unsealed

log = logging.getLogger(__name__)


class Study:
    """A study directory with its settings. Make one with `Study.open`."""

    def __init__(self, path: Path, config: Config, arms: tuple[str, ...]) -> None:
        self.path, self.config, self.arms = path, config, arms
        # by this process's engines: tokens read, and an endpoint's requests and tokens
        self.spent: Counter[str] = Counter()
        self._manifest: tuple[bytes | None, list[Row]] = None, []  # as it was read last

    @classmethod
    def open(
        cls,
        path: str | Path,
        preset: str = "",
        overrides: str = "",
        arm: str = "",
        change: bool = False,
        save: bool = True,
    ) -> Study:
        """Open a study, or make it where there is none.

        An existing study keeps its settings: a preset or overrides that say otherwise are refused
        unless `change` is true, and then stale steps run again. A new one needs `preset`. Its arms
        are those begun and those named in `arm` (commas between several), or else the paper's.
        Without `save`, `save_settings` is left to the caller, who may have more to check.

        Raises: SrkitError if there is no study and no preset, or the settings differ.
        """
        path = Path(path)
        asked = [name.strip() for name in arm.split(",") if name.strip()]
        for name in asked:
            if name not in ARMS:
                raise SrkitError(f"There is no arm {shown(name)}. {legal_names(name, ARMS)}")
        stored = _stored_config(path)
        if stored is None:
            if not preset:
                raise SrkitError(_no_study(path))
            config = resolve(preset, overrides)
        else:
            config = _merge(path, stored, preset, overrides, change)
        for name in asked:
            _check_differs(name, config)
        arms = tuple(name for name in ARMS if name in asked or _begun(path, name))
        study = cls(path, config, arms or (PAPER_ARM,))
        if save:
            study.save_settings()
        return study

    def save_settings(self) -> None:
        """Write the settings to `study.yaml`, unless they stand there."""
        stored = _stored_config(self.path)
        if stored == self.config:
            return
        text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        with held(self.path, ".run", "changing its settings") if stored else nullcontext():
            write_atomically(self.path / "study.yaml", text)

    # --- what is there -------------------------------------------------------------------------

    @cached_property
    def steps(self) -> dict[str, Step]:
        """All steps of the study by name, in order."""
        return {step.name: step for step in plan(self.config, self.arms)}

    def step(self, name: str) -> Step:
        """The step of that name.

        Raises: SrkitError if the study has no such step (for example an iteration too many).
        """
        try:
            return self.steps[name]
        except KeyError:
            raise SrkitError(
                f"The study {self.path} has no step {name!r}. It has {self.config.iterations} "
                f"iterations and the arms {', '.join(self.arms)}; its steps are listed by "
                f"`srkit status {self.path}`."
            ) from None

    def settings(self, step: Step) -> Config:
        """The settings that apply to a step: its arm's."""
        return self.config.for_arm(step.arm)

    def policy_before(self, arm: str, iteration: int) -> str:
        """Name of the model that iteration t of an arm starts from: M_t."""
        return model_after(self.config.for_arm(arm), arm, iteration - 1)

    def manifest(self) -> list[Row]:
        """Lines of the manifest, oldest first; a torn last line is left out. Not to be changed.

        Raises: SrkitError naming a line that was damaged, or lacks what decides whether a step is
        finished.
        """
        file = self.path / "manifest.jsonl"
        data = file.read_bytes() if file.is_file() else None
        if data is None or data != self._manifest[0]:
            rows = unsealed(
                file,
                "Restore the manifest from a copy, or delete this line: the step that it told of, "
                "and what depends on it, is then made again.",
            )
            for number, row in enumerate(rows, 1):
                _check_record(row, f"{file}, line {number}")
            self._manifest = data, rows
        return self._manifest[1]

    def records(self) -> dict[str, Row]:
        """The last manifest line of every step, with its place in the manifest as `line`."""
        return {row["step"]: {**row, "line": i} for i, row in enumerate(self.manifest())}

    def state(self, name: str) -> str:
        """`done`, or why the step has to run: `not made`, `stale: ...`, `interrupted`."""
        return self.states()[self.step(name).name]

    def states(self) -> dict[str, str]:
        """The state of every step, in order."""
        records, states = self.records(), {}
        for step in self.steps.values():
            states[step.name] = self._state(step, records, states)
        return states

    def _state(self, step: Step, records: dict[str, Row], states: dict[str, str]) -> str:
        record = records.get(step.name)
        missing = [o for o in step.outputs if not (self.path / o).exists()]
        if record is None or missing:
            if self._partials(step):
                return "interrupted"
            return "not made" if missing else "stale: it is there, but not in the manifest"
        if record.get("settings") != self._digest(step):
            what = ", ".join((*step.settings, *(f"{name}.txt" for name in step.wording)))
            return f"stale: made with other settings ({what})"
        for output in step.outputs:
            if _sha256(self.path / output) != record["outputs"].get(output):
                return f"stale: {output} was changed after it was made"
        for name in step.inputs:
            if states[name] != "done":
                return f"stale: needs {name} ({states[name].split(':')[0]})"
            if records[name]["line"] > record["line"]:
                return f"stale: {name} was made again"
        if record["inputs"] != _used(step, records):
            return "stale: made from other inputs"  # another `start`, fewer iterations or arms
        return "done"

    def read(self, name: str) -> list[Row]:
        """Rows of a finished table, by step name (`seed/ift`, `self-rewarding/iter-1/pairs`).

        Raises: SrkitError naming the notebook to run first, or a file that was altered.
        """
        file = self.path / self.step(name).outputs[0]
        return parse_jsonl(decode(self._checked(name), file), file)

    def read_text(self, name: str) -> str:
        """A finished step's file as text; raises as `read` does."""
        return self._checked(name).decode()

    def _checked(self, name: str) -> bytes:
        """A finished step's file: the very bytes that were compared with the manifest."""
        step = self.step(name)
        if not self.has(name):
            raise SrkitError(self.missing(step))
        data = (self.path / step.outputs[0]).read_bytes()
        self._compare(step, {step.outputs[0]: hashlib.sha256(data).hexdigest()})
        return data

    def _compare(self, step: Step, found: dict[str, str]) -> None:
        """Refuse files of a step, each with its hash, that are not those of the manifest."""
        recorded = self.records()[step.name]["outputs"]
        for output, sha256 in found.items():
            wanted = recorded.get(output, "none")
            if sha256 == wanted:
                continue
            raise SrkitError(
                f"{self.path / output} is not what the manifest names (sha256 {sha256[:12]}, and "
                f"not {wanted[:12]}): it was changed or damaged after it was made. Restore it from "
                f"a copy. Or delete it and run notebook {step.notebook}, or `srkit run --study "
                f"{self.path}`: it is made again, and then what depends on it."
            )

    def check_inputs(self, name: str) -> None:
        """Refuse a finished step that was made from other tables than the manifest names now.

        Raises: SrkitError naming them.
        """
        step, records = self.step(name), self.records()
        now = _used(step, records)
        other = [o for o, sha256 in records[name]["inputs"].items() if now.get(o) != sha256]
        other += [o for o in now if o not in records[name]["inputs"]]
        if other:
            raise SrkitError(
                f"{name} was made from other tables than those of {self.path} now: "
                f"{', '.join(other)}. Run notebook {step.notebook} again, or `srkit run --study "
                f"{self.path}`."
            )

    def frame(self, name: str) -> pd.DataFrame:
        """A finished table as a data frame."""
        return pd.DataFrame(self.read(name))

    def adapter(self, model: str) -> Path:
        """Folder of a trained model's adapter, after comparing its files with the manifest.

        Raises: SrkitError naming the notebook to run first, or a file that was altered.
        """
        step = self.step(f"{model}/adapter")
        if not self.has(step.name):
            raise SrkitError(self.missing(step))
        self._compare(step, {output: _sha256(self.path / output) for output in step.outputs})
        return self.path / step.name

    def fingerprint(self, model: str) -> Row:
        """The fingerprint recorded when a model's adapter was trained."""
        return read_object(self.adapter(model) / "fingerprint.json")

    def training_log(self, *models: str) -> pd.DataFrame:
        """The trainer's logs of models: model, step, loss, learning_rate, ..."""
        logs = {m: read_jsonl(self.adapter(m) / "training.jsonl") for m in models}
        return pd.DataFrame([{"model": m, **row} for m, rows in logs.items() for row in rows])

    def has(self, name: str) -> bool:
        """Whether a step of this study was made and its files are there."""
        step = self.steps.get(name)
        made = step is not None and name in self.records()
        return made and all((self.path / o).exists() for o in step.outputs)

    def missing(self, step: Step) -> str:
        """What to do when a step's result is not there."""
        notebook, _, which = step.notebook.partition("-")
        where = f" (arm and iteration: {which})" if which else ""
        return (
            f"{step.name} is not there yet in {self.path}. Run notebook {notebook}{where} first, "
            f"or `srkit run --study {self.path}`, which runs whatever is missing."
        )

    def notebook_state(self, name: str, source: Path) -> str:
        """Whether a run of a notebook is `done`: executed after all steps that it makes."""
        record = self.records().get(f"notebooks/{name}")
        executed = self.path / "notebooks" / f"{name}.ipynb"
        if record is None or not executed.exists():
            return "not run"
        if record["inputs"] != {"source": _sha256(source)}:
            return "stale: the notebook was edited"
        states, records = self.states(), self.records()
        for step in self.steps.values():
            if step.notebook != name:
                continue
            if states[step.name] != "done":
                return f"{step.name}: {states[step.name]}"
            if records[step.name]["line"] > record["line"]:
                return f"stale: {step.name} was made again"
        return "done"

    def record_notebook(self, name: str, source: Path, seconds: float) -> None:
        """Write the manifest line of a notebook that ran to its end."""
        output = f"notebooks/{name}.ipynb"
        row = {"step": f"notebooks/{name}", "inputs": {"source": _sha256(source)}}
        row |= {"outputs": {output: _sha256(self.path / output)}, "seconds": round(seconds, 2)}
        self._append(row)

    # --- making things -------------------------------------------------------------------------

    def make_table(
        self,
        name: str,
        items: Sequence[Any],
        work: Callable[[Sequence[Any], list[Row]], list[Row]],
        chunk: int,
        extra: Row | None = None,
        until: Callable[[list[Row]], bool] = lambda rows: False,
        named: Sequence[str] = (),
    ) -> list[Row]:
        """Make a table chunk by chunk, continuing where an interrupted run stopped.

        `work(items of one chunk, all rows before it)` returns the chunk's rows; it stops early once
        `until(rows)` holds. `extra` goes into the manifest line, as do the tokens that the study's
        engines `read` (a prompt once for all draws from it) and have `written`, what an endpoint
        cost, and, where the chunks are `named`, the seconds of each (`seconds_of`). Nothing runs if
        the table is finished. Returns all rows.
        """
        if first(lambda: self.state(name)) == "done":
            return self.read(name)
        step = self.step(name)
        with self._making(step) as (partial, record), ExitStack() as opened:
            chunks = first(lambda: _chunks(partial))
            rows = [row for c in chunks for row in c["rows"]]
            parts = range(len(chunks) * chunk, len(items), chunk)
            begun = min(parts.start, len(items))
            bar = opened.enter_context(tqdm(total=len(items), initial=begun, desc=name, **_BAR))
            for start in parts:
                if until(rows):
                    break
                began, before = time.monotonic(), self.spent.copy()
                part = items[start : start + chunk]
                new = work(part, rows)
                done = {"chunk": len(chunks), "seconds": time.monotonic() - began, "rows": new}
                if cost := sum(together(lambda before=before: self.spent - before), Counter()):
                    done["spent"] = cost
                chunks.append(done)
                first(lambda done=done: append_line(partial, sealed(done)))
                rows += new
                bar.update(len(part))
            bar.close()
            record |= {"rows": len(rows), "seconds": sum(c["seconds"] for c in chunks)}
            cost = sum((Counter(c.get("spent")) for c in chunks), Counter())
            record |= {name: cost.pop(name, 0) for name in ("read", "written")}
            if cost:
                record["endpoint"] = {"model": self.config.endpoint.model, **cost}
            if named:
                times = (round(c["seconds"], 2) for c in chunks)
                record["seconds_of"] = dict(zip(named, times, strict=True))
            record |= extra or {}
            record |= {"tokens": sum(row.get("tokens") or 0 for row in rows)}
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            first(lambda: write_atomically(self.path / step.outputs[0], lines))
        return self.read(name)

    def copy_table(self, name: str) -> list[Row]:
        """Make a table that an arm shares with the paper's: a copy, byte by byte. Returns rows."""
        self.make_file(name, lambda: self.read_text(self.step(name).same_as))
        return self.read(name)

    def make_file(self, name: str, work: Callable[[], str]) -> None:
        """Make a step whose one output is a text file; `work` runs in the first process alone."""
        if first(lambda: self.state(name)) == "done":
            return
        step = self.step(name)
        with self._making(step):
            first(lambda: write_atomically(self.path / step.outputs[0], work()))

    def make_folder(self, name: str, work: Callable[[Path], Row]) -> None:
        """Make a step whose outputs lie in one folder; `work(folder)` may continue in it.

        What `work` returns goes into the manifest line; `earlier_seconds`, of interrupted runs,
        are added to those of this one. Folders in `work`'s folder (checkpoints)
        are removed at the end, after a note that the work is done: who is cut off there repeats
        none of it.
        """
        if first(lambda: self.state(name)) == "done":
            return
        step = self.step(name)
        with self._making(step) as (partial, record):
            worked = first(lambda: self._worked(step, partial))
            if worked is None:
                first(lambda: _make_folder(partial))
                began = time.monotonic()
                worked = work(partial)
                earlier = worked.pop("earlier_seconds", 0.0)
                worked["seconds"] = time.monotonic() - began + earlier
                first(lambda: self._note_worked(step, partial, worked))
            record |= worked
            first(lambda: _replace_folder(self.path / name, partial))

    def _note_worked(self, step: Step, partial: Path, worked: Row) -> None:
        sync_files(partial)
        note = {"sha256": self._hashes(step, partial), "worked": worked}
        write_atomically(_note(partial), json.dumps(note))

    def _worked(self, step: Step, partial: Path) -> Row | None:
        """What the work for a folder returned, if it was done and its files are still the same."""
        if not _note(partial).exists():
            return None
        note = json.loads(_note(partial).read_text("utf-8"))
        folder = partial if partial.exists() else self.path / step.name
        return note["worked"] if note["sha256"] == self._hashes(step, folder) else None

    def _hashes(self, step: Step, folder: Path) -> dict[str, str]:
        files = [folder / Path(output).name for output in step.outputs]
        return {file.name: _sha256(file) for file in files if file.exists()}

    @contextmanager
    def _making(self, step: Step) -> Iterator[tuple[Path, Row]]:
        """Hold the lock, check the inputs, and write the manifest line at the end."""
        with ExitStack() as locks:
            partial = first(lambda: self._begin(step, locks))
            began, energy, record = time.monotonic(), joules(), {}
            yield partial, record
            record.setdefault("seconds", time.monotonic() - began)
            if energy is not None and (now := joules()) is not None:
                record["joules"] = round(now - energy)
            first(lambda: self._end(step, record))

    def _begin(self, step: Step, locks: ExitStack) -> Path:
        """Where work in progress lies, once the study is locked and the inputs are there."""
        locks.enter_context(held(self.path, ".lock", f"making {step.name}"))
        states = self.states()
        if states[step.name].startswith("stale"):
            log.warning("%s is made again: %s", step.name, states[step.name])
        for name in step.inputs:
            if states[name] == "not made" or states[name] == "interrupted":
                raise SrkitError(self.missing(self.step(name)))
            if states[name] != "done":
                raise SrkitError(
                    f"{step.name} needs {name}, which is {states[name]}. Run notebook "
                    f"{self.step(name).notebook} again, or `srkit run --study {self.path}`."
                )
        if expected := self.expected(step):
            log.info("%s", _announced(step.name, expected))
        for other in self.steps.values():
            if states[other.name] == "done" and self._partials(other):
                _remove(self._partial(other))  # it was cut off right after its manifest line
        partial = self._partial(step)
        _make_folder(partial.parent)
        return partial

    def _end(self, step: Step, record: Row) -> None:
        self._record(step, record)
        for partial in self._partials(step):
            _remove(partial)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold the study for a whole run, whose steps are made by other processes (kernels).

        Raises: SrkitError if another run holds it, saying which.
        """
        with held(self.path, ".run", "running the series"):
            yield

    def _record(self, step: Step, more: Row) -> None:
        records = self.records()
        row = {
            "step": step.name,
            "settings": self._digest(step),
            "inputs": _used(step, records),
            "outputs": {o: _sha256(self.path / o) for o in step.outputs},
            "random_seed": self.config.random_seed,
            "engine": self.config.model.engine,
            "peak_memory_mb": peak_memory_mb(),
            "made_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **provenance(),
            **more,
        }
        row["seconds"] = round(row["seconds"], 2)
        if expected := self.expected(step):
            row["forecast"] = expected
        self._append(row)

    def _append(self, row: Row) -> None:
        append_line(self.path / "manifest.jsonl", sealed(row))

    def expected(self, step: Step) -> Row:
        """What `srkit forecast` said of a step: seconds, peak_memory_mb, tokens; {} if nothing.

        A forecast that was made for other settings does not count.
        """
        file = self.path / "forecast.json"
        row = read_object(file).get(step.name, {}) if file.exists() else {}
        current = row.pop("settings", None) == self._digest(step)
        return row if current else {}

    def keep_forecast(self, rows: dict[str, Row]) -> None:
        """Keep a forecast, by step, in `forecast.json`, where `expected` finds it."""
        steps = self.steps
        marked = {n: {**row, "settings": self._digest(steps[n])} for n, row in rows.items()}
        write_atomically(self.path / "forecast.json", json.dumps(marked, indent=1) + "\n")

    def _digest(self, step: Step) -> str:
        """Hash of all that a step depends on besides its inputs: settings and prompt wording."""
        digest = self.settings(step).digest(*step.settings)
        if step.wording:
            words = json.dumps([digest, *map(prompts.text, step.wording)])
            digest = hashlib.sha256(words.encode()).hexdigest()[:16]
        return digest

    def _partial(self, step: Step) -> Path:
        """Where work in progress lies; the key changes with inputs and settings, and with the
        engine: a table is made by one."""
        records = self.records()
        inputs = [records[n]["outputs"] for n in step.inputs if n in records]
        parts = [inputs, self._digest(step)]
        if step.outputs[0].endswith(".jsonl"):
            parts.append(self.config.model.engine)
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]
        return self.path / f"{step.name}.partial-{key}"

    def _partials(self, step: Step) -> list[Path]:
        target = self.path / step.name
        return sorted(target.parent.glob(f"{target.name}.partial-*"))


def _check_differs(arm: str, config: Config) -> None:
    """Refuse an arm that would be the paper's once more."""
    if ARMS[arm] and config.for_arm(arm) == config:
        same = ", ".join(f"{name}={value}" for name, value in ARMS[arm].items())
        raise SrkitError(
            f"The arm {arm} would be {PAPER_ARM} again: this study has {same} for all arms. Leave "
            "the arm out, or start a study that has another value."
        )


def _begun(path: Path, arm: str) -> bool:
    """Whether an arm has tables; those that others copy are no sign that the paper's was begun."""
    folder = path / arm / "iter-1"
    if arm != PAPER_ARM:
        return folder.is_dir()
    lent = ("prompts", "candidates", "judgements")
    return any(not f.name.startswith(lent) for f in folder.glob("*"))


def _make_folder(path: Path) -> None:
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def _replace_folder(target: Path, partial: Path) -> None:
    """Let a finished folder take its place; folders in it (checkpoints) go."""
    old = target.with_name(target.name + ".replaced")
    if partial.exists():
        for leftover in [p for p in partial.iterdir() if p.is_dir()]:
            shutil.rmtree(leftover)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _remove(partial: Path) -> None:
    for litter in (partial, _note(partial)):
        shutil.rmtree(litter) if litter.is_dir() else litter.unlink(missing_ok=True)


def _note(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.worked")


def _chunks(partial: Path) -> list[Row]:
    """Chunks of a table in progress. Raises: SrkitError if one was damaged, doubled or lost."""
    advice = "Delete this line and those after it, or the whole file: those chunks are made again."
    chunks = unsealed(partial, advice)
    for place, chunk in enumerate(chunks):
        if chunk.get("chunk") != place:
            raise SrkitError(f"{partial}, line {place + 1}: this is not chunk {place}. {advice}")
    return chunks


def _announced(name: str, expected: Row) -> str:
    seconds = expected["seconds"]
    time = "time not measured" if seconds is None else f"about {seconds:.0f} s"
    return f"{name}: {time}, {expected['peak_memory_mb'] / 1000:.1f} GB"


def _check_record(row: Row, where: str) -> None:
    """Refuse a manifest line that another version, or a person, wrote in another shape."""
    kinds = {"step": str, "inputs": dict, "outputs": dict}
    if not str(row.get("step")).startswith("notebooks/"):
        kinds["settings"] = str
    for name, kind in kinds.items():
        if not isinstance(row.get(name), kind):
            raise SrkitError(
                f"{where}: the field {name!r} is {shown(row.get(name))}, which this version of "
                "srkit cannot use. Restore the manifest, or delete the line: its step runs again."
            )


def _used(step: Step, records: dict[str, Row]) -> Row:
    """Files that a step is made from, with their hashes."""
    made = [records[n] for n in step.inputs if n in records]
    return {o: s for record in made for o, s in record["outputs"].items()}


_BAR = {"unit": "item", "mininterval": 2.0, "delay": 2.0, "disable": rank() > 0}


def _sha256(path: Path) -> str:
    stat = path.stat()
    return _sha256_of(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=4096)
def _sha256_of(path: Path, *state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stored_config(path: Path) -> Config | None:
    file = path / "study.yaml"
    try:
        if not str(path).isprintable():
            raise OSError(0, "control characters and half characters are not legal in a path")
        if not file.exists():
            return None
    except OSError as error:  # also a name that is too long, a folder that may not be entered
        raise SrkitError(
            f"The study {shown(str(path))} cannot be opened: {error.strerror}. Name another "
            "folder, such as runs/first."
        ) from None
    values = parse_yaml(read_text(file), str(file))
    try:
        return build(values, {}, str(file))
    except SrkitError as error:
        raise SrkitError(
            f"{error} A study that another version of srkit made goes on with that version: start "
            "another study here, or restore the file."
        ) from None


def _merge(path: Path, stored: Config, preset: str, overrides: str, change: bool) -> Config:
    """The stored settings, unless others are asked for and `change` allows it."""
    wanted = parse_overrides(overrides)
    base = resolve(preset) if preset and preset != stored.preset else stored
    config = build(base.model_dump(mode="json"), wanted, str(path)) if wanted else base
    changes = differences(stored, config)
    if changes and not change:
        raise SrkitError(
            f"The study {path} was made with other settings. Asked for: {'; '.join(changes)}. "
            "Leave --preset and --set out (in a notebook: empty preset and overrides) to keep the "
            "study's own, use another study for new settings, or run `srkit run` with --change "
            "to take them over here: steps that depend on them run again."
        )
    return config


def _no_study(path: Path) -> str:
    near = sorted(p.parent.name for p in path.parent.glob("*/study.yaml"))
    found = f" Studies beside it: {', '.join(near)}." if near else ""
    return (
        f"There is no study at {path}.{found} Make one with notebook 00_start_here, with "
        f"`srkit run --preset cpu --study {path}`, or by giving this notebook a preset."
    )
