"""Copies of a finished study that are made again from some step on, killed, and compared.

`Killed` keeps the account of all kills: of which step, by which signal, and what they cost.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from srkit.config import resolve
from srkit.plan import Step, plan

HERE = Path(__file__).parent
SETTINGS = "dpo.epochs=3"  # six steps of DPO in preset tiny, a checkpoint after every second
SERIES = ("--preset=tiny", "--iterations=1", f"--set={SETTINGS}")
# What differs between two runs that do the same.
# What a manifest line tells of its run alone; the seal is over all of these.
PASSING = (
    "commit",
    "seconds",
    "seconds_of",
    "made_at",
    "peak_memory_mb",
    "forecast",
    "line",
    "seal",
)
MESSAGE = "What was made is kept; the same command goes on from there."


def reference_plan() -> dict[str, Step]:
    """The steps of the reference study, in order."""
    return {step.name: step for step in plan(resolve("tiny", f"{SETTINGS} iterations=1"))}


@dataclass
class Run:
    """What a run did. `code`: its exit code, negative for the signal that ended it."""

    code: int
    seconds: float
    events: list[dict]
    said: str

    def count(self, what: str, step: str) -> int:
        """How often something happened in a step."""
        return sum(e["at"][0] == what and e["step"] == step for e in self.events)


class Runner:
    """Runs `srkit` in forked processes; see forkserver."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0
        self.server = subprocess.Popen(
            [sys.executable, HERE / "forkserver.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )

    def run(self, *words: str | Path, death: dict | None = None) -> Run:
        """Run a command to its end or to its death."""
        self.number += 1
        events, said = (self.folder / f"{self.number}-{n}" for n in ("events", "said"))
        files = {"events": str(events), "said": str(said)}
        job = {"words": [str(w) for w in words], "death": death, **files}
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        answer = json.loads(self.server.stdout.readline())
        told = [json.loads(line) for line in events.read_text().splitlines()]
        return Run(**answer, events=told, said=said.read_text())

    def close(self) -> None:
        """End the server, which is idle."""
        self.server.stdin.close()
        self.server.kill()
        self.server.wait()
        self.server.stdout.close()


def manifest(study: Path) -> list[dict]:
    """The lines of a study's manifest that name steps, without what passes."""
    rows = [json.loads(line) for line in (study / "manifest.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in PASSING} for row in rows]


def copy_before(reference: Path, step: Step, steps: dict[str, Step], target: Path) -> Path:
    """A copy of a finished study as it was before a step: nothing of it and of later ones."""
    shutil.copytree(reference, target, ignore=shutil.ignore_patterns(".lock*"))
    lines = (target / "manifest.jsonl").read_text().splitlines(keepends=True)
    names = [json.loads(line)["step"] for line in lines]
    before = names.index(step.name)
    (target / "manifest.jsonl").write_text("".join(lines[:before]))
    for name in names[before:]:
        for output in steps[name].outputs:
            (target / output).unlink()
    if step.name == "report":
        shutil.rmtree(target / "figures")
    for folder in sorted(target.rglob("*"), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return target


def kind_of(step: str) -> str:
    """A step's name without arm, iteration and model."""
    owner, _, what = step.rpartition("/")
    if what == "adapter":
        return "SFT" if owner in ("baseline", "M1") else "DPO"
    if owner in ("seed", "metrics", "referee") or not owner:
        return owner or what
    return what if "/iter-" in owner else f"{what} of a model"


@dataclass
class Account:
    """What was injected, and what it cost."""

    kills: Counter = field(default_factory=Counter)  # by kind of step and name of signal
    cost: Counter = field(default_factory=Counter)

    def note(self, step: str, death: dict) -> None:
        """Count one kill."""
        how = signal.Signals(death["signal"]).name
        if death.get("torn"):
            how = "power cut"
        self.kills[kind_of(step), how] += 1

    def compare(self, reference: Path, study: Path, step: Step) -> None:
        """Count what of a step's outputs is lost, double or different."""
        for output in step.outputs:
            theirs, ours = (root / output for root in (reference, study))
            self.cost["files compared"] += 1
            if not ours.exists():
                self.cost["files lost"] += 1
                continue
            a, b = theirs.read_bytes(), ours.read_bytes()
            self.cost["bytes differing"] += a != b and max(
                1, abs(len(a) - len(b)), sum(x != y for x, y in zip(a, b, strict=False))
            )
            if output.endswith(".jsonl"):
                ids = [Counter(text.splitlines()) for text in (a, b)]
                self.cost["rows compared"] += ids[0].total()
                self.cost["rows lost"] += (ids[0] - ids[1]).total()
                self.cost["rows double"] += (ids[1] - ids[0]).total()

    def table(self) -> str:
        """The account as a Markdown table, and a sentence."""
        hows = sorted({how for _, how in self.kills})
        kinds = list(dict.fromkeys(kind for kind, _ in self.kills))
        lines = ["| step | " + " | ".join(hows) + " |", "|---|" + "---:|" * len(hows)]
        for kind in kinds:
            cells = " | ".join(str(self.kills[kind, how]) for how in hows)
            lines.append(f"| {kind} | {cells} |")
        sums = " | ".join(str(sum(self.kills[k, how] for k in kinds)) for how in hows)
        lines += [f"| all, {self.kills.total()} | {sums} |", ""]
        return "\n".join([*lines, ", ".join(f"{k}: {v}" for k, v in self.cost.items())])
