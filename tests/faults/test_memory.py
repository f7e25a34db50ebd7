"""Memory that runs out: the batch is halved and the work kept, or one paragraph says what to do.

A limit of the system (RLIMIT_AS) makes torch's and Python's own allocations fail in a child
process; a process killed by the system is one that got SIGKILL.
"""

import json
import os
import signal
import sys
from multiprocessing.connection import Connection

import pytest

from srkit.config import SrkitError
from srkit.parallel import fork_map
from srkit.study import Study

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="needs forks and RLIMIT_AS as Linux has them: run on Linux"
)

LIMITED = """
    import json, resource, sys
    import torch
    from pathlib import Path
    from srkit import generate
    from srkit.config import Model, Sft, SrkitError
    from srkit.engine import Sampling
    from srkit.models import load_policy, release
    from srkit.prompts import user
    from srkit.study import Study
    from srkit.train import Example, train_sft

    torch.set_num_threads(1)

    def limit(megabytes):
        "Let this process grow by so much, or (None) as it likes."
        size = int(open("/proc/self/statm").read().split()[0]) * 4096
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(
            resource.RLIMIT_AS, (hard if megabytes is None else size + megabytes * 2**20, hard)
        )

    def within(megabytes, work):
        limit(megabytes)
        try:
            return work()
        except SrkitError as error:
            return str(error)
        finally:
            limit(None)

"""

GENERATE = (
    LIMITED
    + """
    policy = load_policy(Model(name="tiny"))
    halved, halve = [], generate._Batch._halve
    generate._Batch._halve = lambda self, tried: halved.append(tried) or halve(self, tried)
    prompts = [user(f"What is {i}? " + "word " * 500) for i in range(96)]
    ask = lambda: generate.sample(policy, prompts, 1, Sampling(4), [[i] for i in range(96)])
    expected, found = ask(), {}
    for megabytes in (256, 96, 64, *range(48, 0, -4)):  # how much is too little depends on the heap
        halved.clear()
        got = within(megabytes, ask)
        found[megabytes] = [got if isinstance(got, str) else got == expected, len(halved)]
        if found[megabytes][0] is True and halved:
            break
    after = ask() == expected
    print(json.dumps({"found": found, "after": after}))
"""
)

TRAIN = (
    LIMITED
    + """
    examples = [Example(user(f"What is {i}? " + "word " * 300), f"It is {i}.") for i in range(16)]
    settings = Sft(epochs=2, learning_rate=1e-2, batch_size=16, micro_batch=16, save_steps=1)
    cfg = Model(name="tiny", lora_rank=4, lora_alpha=8, device="cpu")

    def train(folder):
        study = Study.open(folder, "tiny")
        study.make_table("seed/ift", [{"id": "a"}], lambda part, _: list(part), 1)
        work = lambda folder: train_sft(cfg, examples, settings, folder, 7).record()
        study.make_folder("baseline/adapter", work)
        return (study.adapter("baseline") / "adapter_model.safetensors").read_bytes().hex()

    whole = train(sys.argv[1] + "/undisturbed")
    release()
    for megabytes in (48, 32, 24, 16, 12, 8):  # the first that is too little
        folder = f"{sys.argv[1]}/{megabytes}"
        answer = within(megabytes, lambda: train(folder))
        if answer != whole:
            break
    done = train(folder) == whole
    print(json.dumps({"answer": answer[:900], "done": done}))
"""
)


def told(process) -> dict:
    """What a child says in its last line."""
    out, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(out.splitlines()[-1])


def test_generation_halves_its_batches(child):
    said = told(child(GENERATE, OMP_NUM_THREADS="1"))
    found = said["found"].values()
    assert any(same is True and times for same, times in found), "halved, and the same texts"
    for same, _ in found:
        assert same is True or ("Memory ran out" in same and "\n" not in same)
    assert said["after"], "the policy is as before"


def test_training_says_what_to_lower_and_goes_on(child, tmp_path):
    # what is freed goes back to the system, or it would be there beyond the limit
    heap = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    said = told(child(TRAIN, tmp_path, OMP_NUM_THREADS="1", **heap))
    assert said["answer"].startswith("Memory ran out while training")
    assert "Lower sft.micro_batch" in said["answer"]
    assert said["done"], "the same bytes in the end"


# --- processes that the system kills -------------------------------------------------------------


def killed(part):
    os.kill(os.getpid(), signal.SIGKILL)


def half_sent(self, answer):
    """As a process that is killed while its answer goes through the pipe."""
    os.write(self.fileno(), (2**20).to_bytes(4, "big") + b"half")
    killed(answer)


@pytest.mark.parametrize("where", ["before its answer", "in the middle of it"])
def test_a_killed_process_is_an_error_and_no_wait(where, monkeypatch):
    if where == "in the middle of it":
        monkeypatch.setattr(Connection, "send", half_sent)
    with pytest.raises(SrkitError, match=r"was killed, most likely because memory ran out\. Close"):
        fork_map(killed if where == "before its answer" else str, [1, 2])


def test_a_process_that_cannot_be_started_is_an_error(child):
    process = child(
        """
        import multiprocessing.popen_fork, os, resource
        from srkit.parallel import fork_map

        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        os.geteuid() or os.setuid(65534)  # for root there is no such limit
        fork_map(str, [1, 2])
        """,
        OMP_NUM_THREADS="1",
    )
    _, errors = process.communicate(timeout=300)
    assert "SrkitError: Another process cannot be started" in errors
    assert "OMP_NUM_THREADS=1" in errors


def test_a_killed_process_costs_one_chunk(study):
    """The run stops, the chunks before are kept, the rerun ends with the same bytes."""
    asked = []

    def work(part, rows):
        asked.append(part[0])
        found = fork_map(killed if len(asked) == 3 else answer, [part[:1], part[1:]])
        return [row for some in found for row in some]

    def answer(part):
        return [{"id": str(i)} for i in part]

    with pytest.raises(SrkitError, match=r"was killed.*What was made is kept"):
        study.make_table("seed/ift", range(10), work, 2)
    assert study.state("seed/ift") == "interrupted"
    study.make_table("seed/ift", range(10), work, 2)
    assert asked == [0, 2, 4, 4, 6, 8]
    whole = Study.open(study.path.parent / "whole", "tiny")
    whole.make_table("seed/ift", range(10), work, 2)
    files = [s.path / "seed/ift.jsonl" for s in (study, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()
