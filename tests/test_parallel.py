"""Forked processes: the same results as one process, errors and deaths that are told."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch

from srkit import generate, parallel
from srkit.config import Model, SrkitError
from srkit.engine import Sampling
from srkit.models import load_policy
from srkit.parallel import fork_map, shares
from srkit.prompts import user
from srkit.provenance import peak_memory_mb

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs forks: run on Linux")


@pytest.fixture
def threads():
    """`threads(n)`: as on a machine with so many cores."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_shares_are_balanced_by_weight_and_hold_every_item(threads):
    threads(2)
    assert shares("abcde", [5, 1, 9, 2, 4], each=4) == [["c", "d"], ["a", "e", "b"]]


@pytest.mark.parametrize(("cores", "each", "count"), [(1, 1, 1), (4, 1, 4), (4, 5, 2), (9, 6, 1)])
def test_a_share_is_worth_a_process(threads, cores, each, count):
    threads(cores)
    assert len(shares(range(5), [2] * 5, each)) == count


@pytest.mark.parametrize(("asked", "count"), [("3", 3), ("2,1", 2), ("1", 1)])
def test_what_needs_no_torch_is_dealt_out_without_it(asked, count):
    code = "import sys; from srkit.parallel import shares; "
    code += "print(len(shares(range(9), [1] * 9, 1)), 'torch' in sys.modules)"
    environment = {**os.environ, "OMP_NUM_THREADS": asked}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [str(count), "False"], done.stderr


def test_results_come_in_order_from_other_processes():
    found = fork_map(lambda part: (sum(part), os.getpid()), [[1, 2], [3], [4, 5, 6]])
    assert [total for total, _ in found] == [3, 3, 15]
    assert len({pid for _, pid in found} | {os.getpid()}) == 4
    assert fork_map(lambda part: os.getpid(), [[1]]) == [os.getpid()]


def test_the_memory_of_all_processes_is_counted():
    before = psutil.Process().memory_info().rss

    def work(megabytes):
        return int(np.ones(megabytes * 2**17).sum())

    assert fork_map(work, [100, 150]) == [100 * 2**17, 150 * 2**17]
    grown = parallel.peak_bytes - before
    assert 240 * 2**20 < grown < 340 * 2**20
    assert peak_memory_mb()["cpu"] >= parallel.peak_bytes // 2**20


def test_an_error_of_one_process_ends_all():
    def work(part):
        if part == 2:
            raise SrkitError("part 2 cannot be done")
        return part

    with pytest.raises(SrkitError, match="part 2 cannot be done"):
        fork_map(work, [1, 2, 3])


def test_a_killed_process_is_told():
    def work(part):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(SrkitError, match=r"was killed.*memory"):
        fork_map(work, [1, 2])


def test_ctrl_c_reaches_all_and_ends_all_quietly(capfd):
    """A terminal sends it to every process; the parent ends the others."""

    def work(part):
        if part == 1:
            time.sleep(0.5)  # Python drops what a signal raises in its own hooks around a fork
            os.kill(os.getppid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored behind `&`
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fork_map(work, [1, 2])
    signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 20
    assert "Traceback" not in capfd.readouterr().err
    assert not multiprocessing.active_children()


def test_samples_and_scores_do_not_depend_on_the_number_of_processes(threads, monkeypatch):
    policy = load_policy(Model(name="tiny"))
    prompts = [user("word " * (1 + i % 5)) for i in range(12)]
    seeds = [[10 * i, 10 * i + 1] for i in range(12)]
    forked = []
    monkeypatch.setattr(
        generate, "fork_map", lambda work, parts: forked.append(len(parts)) or fork_map(work, parts)
    )

    def ask():
        drawn = generate.sample(policy, prompts, 2, Sampling(12, stop="zz"), seeds)
        monkeypatch.setattr(generate, "TOKENS_EACH", 20)
        return drawn, generate.score_options(policy, prompts, [" A", " B C"])

    threads(1)
    one, scores = ask()
    threads(3)
    monkeypatch.setattr(generate, "ROWS_EACH", 4)
    several, same_scores = ask()
    assert generate.sample(policy, prompts[:1], 9, Sampling(4), [range(9)])  # no prompt is left out
    assert forked == [1, 1, 3, 3, 2]
    assert several == one
    np.testing.assert_allclose(same_scores, scores, atol=1e-5)
