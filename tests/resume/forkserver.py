"""Runs of `srkit` that are killed where a test says, forked from one process that imported all.

Importing torch and TRL takes ten seconds, a step of the preset tiny one. So one process imports,
and forks a child for each line of JSON that it reads: the words of a command, and its death.

A child notes its events in a file, a JSON line each: what it is about to do to files (from
Python's audit hooks), the chunks of tables and the steps of training, each with the step of the
study that it belongs to. A death is a signal, sent

- `at` an event of a `step`, before it happens: so a kill lands between any two changes on disk.
  `at` is what happens, to which file, and which of such. With `torn`, the end of what was not yet
  synced is cut off as well, as by a power cut;
- or `after` so many seconds of a step, from outside, wherever the child may be.

    echo '{"words": ["status", "runs/first"], "events": "e.jsonl", "said": "said.txt"}' \\
        | python tests/resume/forkserver.py
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections import Counter
from contextlib import contextmanager
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
PATIENCE = 600  # seconds until a child counts as hanging


class Watch:
    """Notes the events of this process, and kills it."""

    def __init__(self, events: str, death: dict[str, Any]) -> None:
        self.file = os.open(events, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.death, self.step, self.busy = death, None, False
        self.seen: Counter[tuple[str, str]] = Counter()

    def note(self, what: str, path: object = "", fd: int | None = None) -> None:
        """One event, which is about to happen to a file, or has begun or ended in the work."""
        if self.step is None or self.busy:
            return
        self.busy = True  # what is done here is no event
        if fd is not None:
            path = os.readlink(f"/proc/self/fd/{fd}")
        place = what, os.path.basename(str(path))
        row = {"step": self.step, "at": [*place, self.seen[place]]}
        os.write(self.file, json.dumps(row).encode() + b"\n")
        self.seen[place] += 1
        if row == {name: self.death.get(name) for name in row}:
            if self.death.get("torn"):
                os.truncate(f"/proc/self/fd/{fd}", max(0, os.fstat(fd).st_size - 7))
            os.kill(os.getpid(), self.death["signal"])
        self.busy = False

    def audit(self, name: str, args: tuple) -> None:
        """An audit hook: changes of files, by name."""
        if name == "open" and isinstance(args[0], str) and args[2] & WRITES:
            if not args[0].endswith("/.lock"):  # which may be opened twice
                self.note("open", args[0])
        elif name in ("os.rename", "os.remove", "os.rmdir"):
            self.note(name[3:], args[0])
        elif name == "os.mkdir" and not os.path.exists(args[0]):
            self.note("mkdir", args[0])

    @contextmanager
    def making(self, step: str):
        """Events inside belong to this step."""
        self.step, self.seen = step, Counter()
        yield
        self.step = None


def spy(watch: Watch) -> None:
    """Let the study, the trainers and `os.fsync` tell what they do."""
    from srkit.study import Study
    from srkit.trainers import Local

    def wrap(method: str) -> None:
        plain = getattr(Study, method)

        def told(study, name, *args, **more):
            if method == "make_table":
                items, work, *rest = args
                args = (items, chunk(work), *rest)
            with watch.making(name):
                return plain(study, name, *args, **more)

        setattr(Study, method, told)

    def chunk(work):
        def told(*args):
            watch.note("chunk")
            rows = work(*args)
            watch.note("chunk ends")
            return rows

        return told

    def fsync(fd: int) -> None:
        watch.note("fsync", fd=fd)
        plain_fsync(fd)

    def training_step(trainer, *args):
        watch.note("training step", trainer.state.global_step)
        loss = plain_step(trainer, *args)
        watch.note("training step ends", trainer.state.global_step)
        return loss

    for method in ("make_table", "make_file", "make_folder"):
        wrap(method)
    plain_fsync, os.fsync = os.fsync, fsync
    plain_step, Local.training_step = Local.training_step, training_step


def child(job: dict[str, Any]) -> int:
    """Run one command to its end, if it is let; the exit code."""
    from srkit import cli

    said = os.open(job["said"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    watch = Watch(job["events"], job.get("death") or {})
    spy(watch)
    sys.addaudithook(watch.audit)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run behind `&`
    sys.argv = ["srkit", *job["words"]]
    try:
        cli.main()
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def serve(job: dict[str, Any]) -> dict[str, Any]:
    """Fork a child and wait for it. `code`: its exit code, negative for the signal it died of."""
    began, death = time.monotonic(), job.get("death") or {}
    pid = os.fork()
    if pid == 0:
        os._exit(child(job))
    due, coming = began + PATIENCE, "after" in death
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            seconds = time.monotonic() - began
            return {"code": os.waitstatus_to_exitcode(status), "seconds": round(seconds, 3)}
        if coming and os.path.exists(job["events"]) and os.path.getsize(job["events"]):
            due, coming = time.monotonic() + death["after"], False
        if time.monotonic() > due:
            os.kill(pid, death.get("signal", signal.SIGKILL))
            due = time.monotonic() + PATIENCE
        time.sleep(0.001)


def main() -> None:
    """Import everything that a run needs, then serve what is read."""
    import statsmodels.api  # noqa: F401

    import srkit.cli
    import srkit.generate
    import srkit.report
    import srkit.series
    import srkit.train  # noqa: F401

    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        answers.write(json.dumps(serve(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
