"""Several processes: shares, errors that end all, and two of them making one study."""

import json
import math
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from srkit.config import Sft, SrkitError
from srkit.distributed import first, share, together
from srkit.rows import kept, read_jsonl
from srkit.study import Study


@pytest.fixture
def ranks(monkeypatch):
    """`ranks(rank, world)`: as a launcher would tell this process."""

    def ranks(rank: int, world: int) -> None:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))

    return ranks


def launch(*words: str, timeout: int = 60) -> subprocess.CompletedProcess:
    """Run a script or `-m module` as two processes, as `torchrun` does."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    return subprocess.run([*command, *words], capture_output=True, text=True, timeout=timeout)


# --- one process after the other -----------------------------------------------------------------


@pytest.mark.parametrize(("count", "world"), [(0, 2), (1, 2), (7, 2), (8, 3), (2, 5)])
def test_shares_in_order_of_rank_are_everything(count, world, ranks):
    parts = []
    for rank in range(world):
        ranks(rank, world)
        parts.append(list(share(range(count))))
    assert [item for part in parts for item in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_needs_no_others():
    assert together(lambda: 3) == [3]
    assert first(lambda: 4) == 4
    with pytest.raises(ValueError, match="mine"):
        together(lambda: (_ for _ in ()).throw(ValueError("mine")))


def test_a_meeting_inside_a_meeting_is_refused():
    """The first process alone would be there; of two, the second took it for the outer one."""
    with pytest.raises(RuntimeError, match="inside of together"):
        first(lambda: together(lambda: 3))
    assert first(lambda: 4) == 4


def test_a_sharded_model_is_refused(ranks, monkeypatch):
    ranks(0, 2)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(SrkitError, match=r"USE_FSDP is set.* MULTI_GPU"):
        together(lambda: 3)


@pytest.mark.parametrize(
    ("world", "micro", "expected"), [(1, 4, (4, 4)), (2, 4, (4, 2)), (8, 4, (2, 1)), (4, 1, (1, 4))]
)
def test_the_batch_is_the_same_for_any_number_of_processes(world, micro, expected, ranks):
    from srkit.train import shared_batch

    ranks(0, world)
    assert shared_batch(Sft(batch_size=16, micro_batch=micro)) == expected
    assert world * math.prod(expected) == 16


def test_batches_that_cannot_be_shared_are_refused(ranks):
    from srkit.train import shared_batch

    ranks(0, 3)
    with pytest.raises(SrkitError, match=r"Start 1, 2, 4, 8, 16 of them"):
        shared_batch(Sft(batch_size=16, micro_batch=1))
    with pytest.raises(SrkitError, match=r"has 4 examples .* micro_batch = 3 .* to 1, 2, 4\."):
        shared_batch(Sft(batch_size=12, micro_batch=3))


@pytest.mark.parametrize("rows", [16, 17, 21, 3])
def test_every_update_has_the_examples_of_one_process(rows):
    """accelerate's own dealing of our order: 2 processes, 2 micro-batches of 2 each, batch 8."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    from srkit.trainers import Order, epoch_order

    lengths = [7 * i % 10 for i in range(rows)]
    order = Order(lengths, 8, seed=5, fill=4)
    dealt = [list(BatchSamplerShard(BatchSampler(order, 2, False), 2, rank)) for rank in (0, 1)]
    alone = epoch_order(lengths, 8, 5, 0)
    assert len(dealt[0]) == len(dealt[1]) == len(order) / 4
    for start in range(0, rows, 8):
        micro = [m for mine in dealt for m in mine[start // 4 : start // 4 + 2]]
        together = [i for m in micro for i in m if i != rows]
        assert sorted(together) == sorted(alone[start : start + 8])


def test_a_blank_stands_alone_in_a_micro_batch_and_counts_for_nothing():
    from srkit.trainers import DpoSteps, SftSteps, with_blank

    rows = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4] * 9, "labels": []}]
    rows[1]["labels"] = [-100] * 4 + [4] * 5
    filled = with_blank(rows)
    assert filled[2] == {**rows[0], "weight": 0.0}
    blanked, without = SftSteps.collate(filled), SftSteps.collate(rows)
    assert blanked["input_ids"].tolist() == without["input_ids"].tolist()
    assert blanked["weights"].tolist() == [1, 1]
    assert blanked["items"] == without["items"] == 7
    alone = SftSteps.collate([filled[2]] * 2)
    assert (alone["weights"].tolist(), alone["items"]) == ([0], 0)
    assert alone["input_ids"].tolist() == [[1, 2]]
    pair = {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5]}
    assert DpoSteps.collate(with_blank([pair] * 3))["items"] == 3


# --- two processes -------------------------------------------------------------------------------

MEET = """
from pathlib import Path
from srkit.config import SrkitError
from srkit.distributed import first, rank, together
heard = Path(__file__).with_name(f"heard-by-{rank()}")
heard.write_text(f"{together(lambda: rank() * 10)} {first(lambda: rank() + 5)}")
def fail():
    if rank() == 1:
        raise SrkitError("only the second one failed")
together(fail)
heard.write_text("went on")
"""


def test_two_processes_meet_and_the_one_that_fails_tells(tmp_path):
    (tmp_path / "meet.py").write_text(MEET)
    done = launch(str(tmp_path / "meet.py"))
    # In files: the lines of two processes mix in one pipe.
    assert [(tmp_path / f"heard-by-{rank}").read_text() for rank in (0, 1)] == ["[0, 10] 5"] * 2
    assert done.returncode == 1
    assert "[rank1]: srkit.reading.SrkitError: only the second one failed" in done.stderr
    assert "[rank0]" not in done.stderr


def test_notebooks_are_not_for_several_processes(ranks, capsys, monkeypatch, tmp_path):
    from srkit import cli

    ranks(0, 2)
    monkeypatch.setattr(sys, "argv", ["srkit", "run", "--study", str(tmp_path)])
    with pytest.raises(SystemExit):
        cli.main()
    assert "use `srkit make`" in capsys.readouterr().err


# A last batch of one example and one of three; SFT accumulates in each process; dropout is on.
SETTINGS = (
    "--preset=tiny", "--iterations=1", "--set=seed.ift=21", "--set=instruct.prompts=7",
    "--set=sft.micro_batch=2", "--set=dpo.micro_batch=2", "--set=model.lora_dropout=0.1",
)  # fmt: skip
ROUNDED = {"score", "log_odds_left", "chosen_score", "rejected_score"}
ROUNDED |= {"logp_own", "logp_start", "k3"}


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """The same study, made by one process and by two."""
    folder = tmp_path_factory.mktemp("studies")
    command = ["-m", "srkit.cli", "make", *SETTINGS]
    subprocess.run([sys.executable, *command, "--study", folder / "one"], check=True, timeout=900)
    done = launch(*command, "--study", str(folder / "two"), timeout=900)
    assert done.returncode == 0, done.stderr
    return Study.open(folder / "one"), Study.open(folder / "two")


@pytest.mark.slow
def test_two_processes_make_the_whole_study(studies):
    for study, processes in zip(studies, (1, 2), strict=True):
        assert set(study.states().values()) == {"done"}
        assert {row["processes"] for row in study.manifest()} == {processes}
    assert [r["step"] for r in studies[0].manifest()] == [r["step"] for r in studies[1].manifest()]


@pytest.mark.slow
def test_two_processes_write_the_tables_of_one(studies):
    """Scores read from probabilities depend, in their last digits, on the company in a batch."""
    one, two = studies
    tables = [s.outputs[0] for s in one.steps.values() if s.outputs[0].endswith(".jsonl")]
    for table in tables:
        rows = list(zip(read_jsonl(one.path / table), read_jsonl(two.path / table), strict=True))
        within = 1e-4
        if table.endswith("ways.jsonl"):
            within = 1e-3  # log-probabilities of whole texts, hundreds of nats
            # hundreds of texts are drawn there by adapters that differ in the seventh digit: now
            # and then a draw lies that close to the border between two tokens
            alike = [(a, b) for a, b in rows if a["text"] == b["text"]]
            assert len(alike) >= 0.99 * len(rows)
            rows = alike
        for a, b in rows:
            assert a.keys() == b.keys()
            for name in a:
                near = pytest.approx(b[name], abs=within) if name in ROUNDED else b[name]
                assert a[name] == near, (table, name)
    texts = [
        t for t in tables if t.endswith(("prompts.jsonl", "candidates.jsonl", "responses.jsonl"))
    ]
    assert len(texts) == 7
    for table in texts:
        assert (one.path / table).read_bytes() == (two.path / table).read_bytes(), table


@pytest.mark.slow
@pytest.mark.parametrize("model", ["baseline", "M1", "self-rewarding/M2"])
def test_two_processes_train_the_adapter_of_one(model, studies):
    one, two = studies
    a, b = (load_file(s.adapter(model) / "adapter_model.safetensors") for s in studies)
    assert a.keys() == b.keys()
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-5
    logs = [s.training_log(model).drop(columns="model").to_dict("records") for s in studies]
    assert len(logs[0]) == len(logs[1]) == one.records()[f"{model}/adapter"]["steps"]
    for row, other in zip(*logs, strict=True):
        assert row == pytest.approx(other, abs=1e-4)
    names = ("steps", "examples", "left_out", "tokens", "trained_tokens")
    assert [one.records()[f"{model}/adapter"][n] for n in names] == [
        two.records()[f"{model}/adapter"][n] for n in names
    ]


@pytest.mark.slow
def test_dpo_of_two_processes_starts_at_ln_2_with_a_ragged_last_batch(studies):
    record = studies[1].records()["self-rewarding/M2/adapter"]
    assert record["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    pairs = kept(studies[1].read("self-rewarding/iter-1/pairs"))
    assert len(pairs) % studies[1].config.dpo.batch_size
    config = json.loads((studies[1].adapter("M1") / "adapter_config.json").read_text())
    assert config["lora_dropout"] == 0.1
