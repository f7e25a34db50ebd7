"""Several CPU cores at once, by forked processes of one thread each.

A step of decoding is two thousand small operations, and threads that share each of them spend the
time waiting for one another. Measured on two cores with SmolLM2 and 32 rows: two threads are 1.2
times as fast as one, two processes of 16 rows 1.5 times. (OpenMP's threads that spin for some
microseconds come as far, but fall behind with more rows, and far behind where another program
wants a core.) A forked process has the model, and what was computed before, without a copy.

Surprising decisions: a process gets one thread, since OpenMP's threads do not survive a fork (as in
torch's data loader); shares are dealt out beforehand, since who is free first is chance, and other
company in a batch is another rounding; elsewhere than on Linux nothing is forked.

    python -c "from srkit.parallel import *; print(fork_map(sum, [[1, 2], [3, 4]]))"
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import psutil

from srkit.config import SrkitError

FEWER = (
    "Close other programs, choose a smaller candidates.chunk or judge.chunk, or set "
    "OMP_NUM_THREADS=1, which keeps all in one process. What was made is kept; the same command "
    "goes on."
)
peak_bytes = 0  # of this process and its forked ones together, at most so far

Item = TypeVar("Item")
Part = TypeVar("Part")
Result = TypeVar("Result")


def shares(items: Sequence[Item], weights: Sequence[int], each: int) -> list[list[Item]]:
    """Deal items to as many processes as there are threads, if each gets weights of `each`.

    The heaviest come first, to the lightest share; the order depends on the weights alone.
    """
    count = min(_threads(), len(items), sum(weights) // each)
    if sys.platform != "linux" or count < 2:
        return [list(items)]
    dealt: list[list[Item]] = [[] for _ in range(count)]
    loads = [0] * count
    for i in sorted(range(len(items)), key=lambda i: -weights[i]):
        to = loads.index(min(loads))
        dealt[to].append(items[i])
        loads[to] += weights[i]
    return dealt


def _threads() -> int:
    """torch's, where it is loaded: what only draws or counts does not wait for it."""
    if torch := sys.modules.get("torch"):
        return torch.get_num_threads()
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(asked) if asked.isdigit() else os.cpu_count() or 1


def fork_map(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """`work(part)` for all parts at once, each in a process of its own; a single part stays here.

    Results are pickled; what `work` changes besides is lost. Raises: what `work` raises, or
    SrkitError if a process was killed or cannot be started.
    """
    if len(parts) == 1:
        return [work(parts[0])]
    global peak_bytes
    context = multiprocessing.get_context("fork")
    running, answers, grown = [], [], 0
    try:
        for part in parts:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_answer, args=(work, part, theirs), daemon=True)
            try:
                process.start()
            except OSError as error:
                why = f"Another process cannot be started: {error}."
                raise SrkitError(f"{why} {FEWER}") from None
            finally:
                theirs.close()
            running.append((process, ours))
        for _, connection in running:
            answer, more = _result(connection)
            answers.append(answer)
            grown += more
    finally:
        for process, connection in running:
            process.terminate()
            process.join()
            connection.close()
    peak_bytes = max(peak_bytes, psutil.Process().memory_info().rss + grown)
    return answers


def _answer(work: Callable[[Any], Any], part: Any, connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    began = _peak()  # all of it shared with the parent
    try:
        answer = (True, (work(part), _peak() - began))
    except BaseException as error:
        answer = (False, error)
    connection.send(answer)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _result(connection: Connection) -> Any:
    try:
        good, value = connection.recv()
    except (EOFError, OSError):  # before its answer, or in the middle of it
        raise SrkitError(
            f"A process was killed, most likely because memory ran out. {FEWER}"
        ) from None
    if not good:
        raise value
    return value
