"""Training on the tiny model: what the losses are taken on, what DPO starts from, and resuming."""

import hashlib
import json
import math
import socket
import types
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import trl.trainer.base_trainer
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from srkit import train, trainers
from srkit.chat import end_of_turn_id
from srkit.config import Dpo, Model, Sft, SrkitError
from srkit.logps import IGNORED, fast_training
from srkit.models import Policy, attach_adapter, fingerprint, load_base, load_policy
from srkit.tiny import tiny_model, tiny_tokenizer
from srkit.train import (
    Example,
    Preference,
    dpo_row,
    loss_mask_table,
    planned_steps,
    sft_row,
    train_dpo,
    train_sft,
)
from srkit.trainers import epoch_order

TINY = Model(name="tiny", lora_rank=4, lora_dropout=0.1)
PLAIN = Model(name="tiny", lora_rank=4)
SFT = Sft(learning_rate=1e-3, batch_size=4, micro_batch=2, epochs=2, save_steps=2, max_tokens=200)
DPO = Dpo(learning_rate=1e-3, batch_size=4, micro_batch=2, epochs=2, save_steps=2, max_tokens=200)
SEED = 2**40 + 7  # a derived seed is larger than numpy takes


def _ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


EXAMPLES = [
    Example(_ask(f"What is {i} + {i}?" * (1 + i % 3)), f"It is {2 * i}. Score: {i % 6}", i % 4 > 0)
    for i in range(11)
]
PAIRS = [
    Preference(e.conversation, e.completion, "No" + " no" * (i % 5), e.finished, i % 3 > 0)
    for i, e in enumerate(EXAMPLES)
]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def m1(tmp_path_factory):
    """An M1 trained for two epochs: its folder, and what the training returned."""
    folder = tmp_path_factory.mktemp("study") / "M1"
    return folder, train_sft(TINY, EXAMPLES, SFT, folder, SEED)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An M1 without dropout, whose losses can be recomputed."""
    folder = tmp_path_factory.mktemp("plain") / "M1"
    return folder, train_sft(PLAIN, EXAMPLES, SFT, folder, 3)


@pytest.fixture(scope="module")
def plain_m2(plain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "M2"
    return folder, train_dpo(PLAIN, plain[0], PAIRS, DPO, folder, 3)


@pytest.fixture(scope="module")
def m2(m1, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "M2"
    return folder, train_dpo(TINY, m1[0], PAIRS, DPO, folder, SEED)


def _sha(folder) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


# --- examples as tokens ------------------------------------------------------------------------


def test_loss_is_on_the_completion_and_its_end_only(tokenizer):
    table = loss_mask_table(tokenizer, Example(_ask("Say hello."), "Hello."))
    assert "".join(text for text, _ in table) == (
        "<|bos|><|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>"
    )
    assert "".join(text for text, trained in table if trained) == "Hello.<|im_end|>"
    cut = loss_mask_table(tokenizer, Example(_ask("Say hello."), "Hel", finished=False))
    assert "".join(text for text, trained in cut if trained) == "Hel"


def test_rows_have_one_bos_and_end_only_what_is_finished(tokenizer):
    end = end_of_turn_id(tokenizer)
    for example in EXAMPLES:
        row = sft_row(tokenizer, example)
        assert row["input_ids"].count(tokenizer.bos_token_id) == 1
        assert (row["labels"][-1] == end) is example.finished
    for pair in PAIRS:
        row = dpo_row(tokenizer, pair)
        assert (row["chosen_ids"][-1] == end) is pair.chosen_finished
        assert (row["rejected_ids"][-1] == end) is pair.rejected_finished
        assert tokenizer.bos_token_id not in row["chosen_ids"] + row["rejected_ids"]


@given(st.lists(st.integers(1, 99), min_size=1, max_size=40), st.integers(1, 9), st.integers(0, 99))
def test_epoch_order_is_a_permutation_in_random_batches_sorted_inside(lengths, batch, seed):
    order = epoch_order(lengths, batch, seed, epoch=1)
    assert sorted(order) == list(range(len(lengths)))
    for start in range(0, len(order), batch):
        part = [lengths[i] for i in order[start : start + batch]]
        assert part == sorted(part, reverse=True)
    equal = [1] * len(lengths)
    members = [set(order[i : i + batch]) for i in range(0, len(order), batch)]
    blind = epoch_order(equal, batch, seed, epoch=1)
    assert members == [set(blind[i : i + batch]) for i in range(0, len(order), batch)]


def test_epoch_order_changes_with_epoch_and_seed():
    orders = {tuple(epoch_order([1] * 30, 4, s, e)) for s in (0, 1) for e in (0, 1)}
    assert len(orders) == 4


@pytest.mark.parametrize(
    ("rows", "epochs", "batch", "steps"),
    [(11, 2, 4, 6), (12, 1, 4, 3), (1, 3, 16, 3), (32, 0.5, 8, 2)],
)
def test_planned_steps(rows, epochs, batch, steps):
    settings = Sft(epochs=epochs, batch_size=batch)
    assert planned_steps(rows, settings) == steps


def test_warm_up_longer_than_the_run_is_refused(tmp_path):
    settings = SFT.model_copy(update={"warmup_steps": 6})
    with pytest.raises(SrkitError, match=r"warmup_steps = 6, but 11 examples .* only 6 steps"):
        train_sft(TINY, EXAMPLES, settings, tmp_path / "M1", 0)
    assert not (tmp_path / "M1").exists()


# --- SFT ---------------------------------------------------------------------------------------


def test_sft_writes_an_adapter_that_proves_itself(m1):
    folder, run = m1
    names = {"adapter_model.safetensors", "adapter_config.json", "fingerprint.json"}
    assert {p.name for p in folder.iterdir() if p.is_file()} == names | {"training.jsonl"}
    policy = load_policy(TINY, folder, "M1")
    recorded = json.loads((folder / "fingerprint.json").read_text())
    assert fingerprint(policy) == recorded
    assert recorded["effect"] > 0.01
    rows = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    assert rows == [{k: v for k, v in row.items() if k != "seconds"} for row in run.log]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert set(rows[0]) == {"step", "loss", "learning_rate"}


def test_sft_counts_steps_and_tokens(m1, tokenizer):
    _, run = m1
    rows = [sft_row(tokenizer, example) for example in EXAMPLES]
    assert (run.steps, run.examples, run.left_out) == (planned_steps(11, SFT), 11, 0)
    assert run.tokens == 2 * sum(len(row["input_ids"]) for row in rows)
    assert run.trained_tokens == 2 * sum(x != IGNORED for row in rows for x in row["labels"])
    half = SFT.model_copy(update={"epochs": 0.5})
    first = epoch_order([len(r["labels"]) for r in rows], 4, 5, 0)[:8]
    counted = train._tokens_seen(rows, half, 5, planned_steps(11, half))
    assert counted[0] == sum(len(rows[i]["input_ids"]) for i in first)


def test_first_sft_loss_is_the_mean_over_completion_tokens_of_the_first_batch(
    plain, tokenizer, plain_logp
):
    """Ties the mask, the order, the shift and the normalisation to four lines of our own.

    A new adapter is the identity, so that the first loss is the base's own.
    """
    rows = [sft_row(tokenizer, example) for example in EXAMPLES]
    batch = [rows[i] for i in epoch_order([len(r["labels"]) for r in rows], 4, 3, 0)[:4]]
    model, total, tokens = tiny_model(tokenizer), 0.0, 0
    for row in batch:
        start = row["labels"].count(IGNORED)
        completion = row["input_ids"][start:]
        with torch.no_grad():
            total -= float(plain_logp(model, row["input_ids"][:start], completion))
        tokens += len(completion)
    assert plain[1].log[0]["loss"] == pytest.approx(total / tokens, rel=1e-4)


def test_learning_rate_is_a_cosine_towards_its_final_ratio(m1):
    rates = [row["learning_rate"] for row in m1[1].log]
    cosine = [0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    assert rates == pytest.approx([1e-3 * (0.2 + 0.8 * c) for c in cosine])


def test_micro_batches_and_checkpointing_make_the_same_sft_update(plain, tmp_path):
    """2 x 2 accumulated is 4 x 1 and 1 x 4, up to rounding."""
    for change in ({"micro_batch": 1}, {"micro_batch": 4, "gradient_checkpointing": True}):
        folder = tmp_path / str(change["micro_batch"])
        train_sft(PLAIN, EXAMPLES, SFT.model_copy(update=change), folder, 3)
        a, b = (load_file(f / "adapter_model.safetensors") for f in (plain[0], folder))
        assert max(float((a[n] - b[n]).abs().max()) for n in a) < 0.01 * SFT.learning_rate


def test_long_and_empty_examples_are_left_out_and_counted(tmp_path, m1):
    extra = [Example(_ask("x " * 300), "long"), Example(_ask("empty"), "", finished=False)]
    run = train_sft(TINY, [*EXAMPLES, *extra], SFT, tmp_path / "M1", SEED)
    assert (run.examples, run.left_out) == (11, 2)
    assert _sha(tmp_path / "M1") == _sha(m1[0])
    with pytest.raises(SrkitError, match="None of 2 examples can be trained on"):
        train_sft(TINY, extra, SFT, tmp_path / "none", 0)


def test_unknown_lora_targets_name_the_legal_ones(tmp_path):
    cfg = Model(name="tiny", lora_targets=["query"])
    with pytest.raises(SrkitError, match=r"down_proj, gate_proj.*q_proj"):
        train_sft(cfg, EXAMPLES, SFT, tmp_path / "M1", 0)


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "lm_head"]])
def test_the_output_layer_is_no_target(targets, tmp_path):
    model = TINY.model_copy(update={"lora_targets": targets})
    with pytest.raises(SrkitError, match="names the output layer"):
        train_sft(model, EXAMPLES, SFT, tmp_path / "M1", SEED)


def test_a_training_says_how_it_was_computed(m1):
    told = {"device": "cpu", "dtype": "float32", "optimizer": "adamw_torch_fused"}
    assert m1[1].record() | told == m1[1].record()


def test_a_loss_that_explodes_is_reported():
    log = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan}]
    with pytest.raises(SrkitError, match="stopped being a number at step 2"):
        train._check_end(None, {}, log)


# --- DPO ---------------------------------------------------------------------------------------


def test_dpo_starts_at_ln_2_and_learns(m2):
    log = m2[1].log
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=0.05)  # dropout is on in training
    assert log[-1]["loss"] < 0.6
    assert log[-1]["reward_accuracy"] > 0.8
    assert log[-1]["reward_margin"] > 0.1
    assert {"logp_chosen", "logp_rejected"} < set(log[0])
    assert all(row["logp_chosen"] < 0 for row in log)


def test_first_dpo_loss_is_ln_2_without_dropout(plain_m2):
    assert plain_m2[1].log[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_with_the_likelihood_term_dpo_starts_at_ln_2_all_the_same(plain, plain_m2, tmp_path):
    settings = DPO.model_copy(update={"nll": 1.0})
    run = train_dpo(PLAIN, plain[0], PAIRS, settings, tmp_path / "M2", 3)
    assert run.first_loss == pytest.approx(math.log(2), abs=1e-5)
    assert run.log[0]["loss"] > math.log(2), "the whole loss is logged"
    without = plain_m2[1].log
    assert run.log[-1]["logp_chosen"] > without[-1]["logp_chosen"], "what the term is for"


def test_terms_of_later_methods_start_from_the_same_reference(plain, plain_m2, tmp_path):
    """And each of them leads elsewhere."""
    shas = {_sha(plain_m2[0])}
    for name, value in (("label_smoothing", 0.2), ("length_penalty", 0.05)):
        folder = tmp_path / name
        run = train_dpo(PLAIN, plain[0], PAIRS, DPO.model_copy(update={name: value}), folder, 3)
        assert run.first_loss == pytest.approx(math.log(2), abs=1e-5)
        shas.add(_sha(folder))
        margins = [row["reward_margin"] for row in run.log]
        if name == "label_smoothing":
            assert run.log[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
            assert 0 < margins[-1] < plain_m2[1].log[-1]["reward_margin"], "a tighter goal"
    assert len(shas) == 3


def test_micro_batches_and_checkpointing_make_the_same_dpo_update(plain, tmp_path):
    """On whole batches: in a last one that is not, a micro-batch counts as much as a fuller one."""
    for change in (
        {"micro_batch": 2},
        {"micro_batch": 1, "gradient_checkpointing": True},
        {"micro_batch": 4},
    ):
        folder = tmp_path / str(change["micro_batch"])
        train_dpo(PLAIN, plain[0], PAIRS[:8], DPO.model_copy(update=change), folder, 3)
    weights = [load_file(tmp_path / n / "adapter_model.safetensors") for n in "124"]
    for name, value in weights[1].items():
        for other in (weights[0], weights[2]):
            assert float((other[name] - value).abs().max()) < 0.01 * DPO.learning_rate


def test_dpo_starts_from_m1_and_leaves_m1_alone(m1, m2):
    """One tiny step away from M1, not from the base, and M1's folder is as it was."""
    folder, run = m2
    assert fingerprint(load_policy(TINY, m1[0])) == json.loads(
        (m1[0] / "fingerprint.json").read_text()
    )
    a, b = (load_file(f / "adapter_model.safetensors") for f in (m1[0], folder))
    assert a.keys() == b.keys()
    moved = max(float((a[n] - b[n]).abs().max()) for n in a)
    assert 0 < moved < 2 * run.steps * DPO.learning_rate  # Adam moves at most about the rate
    assert {p.name for p in folder.iterdir()} == {p.name for p in m1[0].iterdir()}


def test_dpo_logs_the_policys_own_log_probabilities(plain, plain_m2, tokenizer, plain_logp):
    rows = [dpo_row(tokenizer, pair) for pair in PAIRS]
    lengths = [trainers.row_lengths(row)[0] for row in rows]
    policy, logps = load_policy(PLAIN, plain[0]), []
    for i in epoch_order(lengths, 4, 3, 0)[:4]:
        row = rows[i]
        with torch.no_grad():
            logps.append(float(plain_logp(policy.model, row["prompt_ids"], row["chosen_ids"])))
    assert plain_m2[1].log[0]["logp_chosen"] == pytest.approx(sum(logps) / 4, rel=1e-4)


@pytest.fixture
def dpo_trainer(m1, tmp_path, monkeypatch):
    """A trainer as train_dpo makes it, taken just before its start is checked."""
    taken = {}

    def take(trainer, start):
        taken.update(trainer=trainer, start=start)
        raise InterruptedError

    monkeypatch.setattr(train, "_check_start", take)
    with pytest.raises(InterruptedError):
        train_dpo(TINY, m1[0], PAIRS, DPO, tmp_path / "M2", 0)
    monkeypatch.undo()
    with fast_training(taken["trainer"].model):
        yield taken["trainer"], taken["start"]


def test_reference_is_a_frozen_copy_of_m_t(dpo_trainer, m1):
    trainer, start = dpo_trainer
    train._check_start(trainer, start)
    weights = load_file(m1[0] / "adapter_model.safetensors")
    named = dict(trainer.model.named_parameters())
    for name, value in weights.items():
        reference = named[name.replace(".weight", ".ref.weight")]
        assert torch.equal(reference, value)
        assert not reference.requires_grad
    trained = {n for n, p in named.items() if p.requires_grad}
    assert len(trained) == len(weights)
    assert all(".default." in n for n in trained)


def test_a_reference_that_is_not_m_t_is_refused(dpo_trainer):
    trainer, start = dpo_trainer
    named = dict(trainer.model.named_parameters())
    reference = next(p for n, p in named.items() if ".lora_B.ref." in n)
    reference.data += 0.01
    with pytest.raises(SrkitError, match="not a separate copy"):
        train._check_start(trainer, start)
    reference.data = named[next(n for n in named if ".lora_B.default." in n)].data
    with pytest.raises(SrkitError, match="not a separate copy"):  # one memory: 0 to learn
        train._check_start(trainer, start)


def test_a_reference_that_is_the_base_is_refused(dpo_trainer):
    """What `peft_config` does in TRL: no frozen copy, reference log-probabilities of the base."""
    trainer, start = dpo_trainer
    trainer.model.delete_adapter("ref")
    with pytest.raises(SrkitError, match="needs a trainable policy and a frozen copy"):
        train._check_start(trainer, start)


def test_reference_values_of_another_model_are_refused(dpo_trainer):
    trainer, start = dpo_trainer
    wrong = [0.0] * len(trainer.train_dataset)
    rows = trainer.train_dataset.remove_columns("ref_chosen_logps")
    trainer.train_dataset = rows.add_column("ref_chosen_logps", wrong)
    with pytest.raises(SrkitError, match=r"first loss is .* and not ln 2"):
        train._check_start(trainer, start)


def test_a_frozen_adapter_trains_nothing_and_is_refused(m1):
    base, tokenizer = load_base(TINY)
    frozen = attach_adapter(Policy(base, tokenizer, "M1"), m1[0], trainable=False)
    with pytest.raises(SrkitError, match="no trainable parameters"):
        train._adapter_values(frozen.model)


def test_an_adapter_that_did_not_change_is_refused(m1):
    base, tokenizer = load_base(TINY)
    policy = attach_adapter(Policy(base, tokenizer, "M1"), m1[0], trainable=True)
    with pytest.raises(SrkitError, match="did not change the adapter"):
        train._check_end(policy.model, train._adapter_values(policy.model), [])


def test_nf4_adapters_stay_float32(tmp_path):
    """bfloat16, to which TRL rounds them, is coarser than an update at the paper's rates."""
    cfg = Model(name="tiny", quantization="nf4", lora_rank=4)
    train_sft(cfg, EXAMPLES, SFT.model_copy(update={"learning_rate": 1e-6}), tmp_path / "M1", 0)
    run = train_dpo(cfg, tmp_path / "M1", PAIRS, DPO, tmp_path / "M2", 0)
    assert run.log[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert run.log[-1]["loss"] < 0.66
    for name in ("M1", "M2"):
        weights = load_file(tmp_path / name / "adapter_model.safetensors")
        assert {w.dtype for w in weights.values()} == {torch.float32}
    first = load_file(tmp_path / "M1" / "adapter_model.safetensors")
    a = next(w for n, w in first.items() if "lora_A" in n)
    assert not torch.equal(a, a.bfloat16().float())


# --- repeating and resuming --------------------------------------------------------------------


def _kill_at(step: int, monkeypatch):
    """Stop the next training as a kill would, at the end of a step."""
    plain = trainers.Progress.on_step_end

    def on_step_end(self, args, state, control, **more):
        plain(self, args, state, control, **more)
        if state.global_step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainers.Progress, "on_step_end", on_step_end)


@pytest.mark.parametrize("step", [1, 5])  # before the first checkpoint; in the second epoch
def test_a_killed_sft_goes_on_and_ends_the_same(step, m1, tmp_path, monkeypatch):
    folder = tmp_path / "M1"
    _kill_at(step, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_sft(TINY, EXAMPLES, SFT, folder, SEED)
    assert not (folder / "fingerprint.json").exists()
    monkeypatch.undo()
    torch.rand(3)  # what else the process does must not matter
    run = train_sft(TINY, EXAMPLES, SFT, folder, SEED)
    assert _sha(folder) == _sha(m1[0])
    assert (folder / "fingerprint.json").read_text() == (m1[0] / "fingerprint.json").read_text()
    assert [row["loss"] for row in run.log] == [row["loss"] for row in m1[1].log]
    assert (run.earlier_seconds > 0) == (step > 1)
    assert run.earlier_seconds <= run.seconds
    assert (run.steps, run.trained_tokens) == (m1[1].steps, m1[1].trained_tokens)


class Evil:
    """A pickle that makes a file when it is read as pickles are."""

    def __init__(self, made):
        self.made = made

    def __reduce__(self):
        return Path.touch, (self.made,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_code_in_a_checkpoint_is_not_run(name, m1, tmp_path, monkeypatch):
    """The trainer's own state is the one thing that is not safetensors or JSON: read as data."""
    folder, made = tmp_path / "M1", tmp_path / "made"
    _kill_at(5, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_sft(TINY, EXAMPLES, SFT, folder, SEED)
    monkeypatch.undo()
    planted = [checkpoint / name for checkpoint in (folder / "checkpoints").glob("checkpoint-*")]
    assert all(file.exists() for file in planted)
    assert planted
    for file in [*planted, tmp_path / "copy"]:
        torch.save(Evil(made), file)
    with suppress(Exception):  # it is refused, or this checkpoint is not used
        train_sft(TINY, EXAMPLES, SFT, folder, SEED)
    assert not made.exists()
    torch.load(tmp_path / "copy", weights_only=False)
    assert made.exists(), "a careless reader would have run it"


def test_a_killed_dpo_goes_on_and_ends_the_same(m1, m2, tmp_path, monkeypatch):
    folder = tmp_path / "M2"
    _kill_at(5, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_dpo(TINY, m1[0], PAIRS, DPO, folder, SEED)
    monkeypatch.undo()
    steps = []
    monkeypatch.setattr(
        trainers.Progress,
        "on_step_end",
        lambda s, a, state, c, **m: steps.append(state.global_step),
    )
    run = train_dpo(TINY, m1[0], PAIRS, DPO, folder, SEED)
    assert steps == [5, 6]  # the checkpoint of step 4 was used
    assert _sha(folder) == _sha(m2[0])
    assert [row["loss"] for row in run.log] == [row["loss"] for row in m2[1].log]


def test_another_seed_trains_another_adapter(m1, tmp_path):
    train_sft(TINY, EXAMPLES, SFT, tmp_path / "M1", SEED + 1)
    assert _sha(tmp_path / "M1") != _sha(m1[0])


def test_the_last_whole_checkpoint_is_taken(tmp_path):
    folder = tmp_path / "checkpoints"

    def checkpoint(step: int, mark: str | None) -> str:
        path = folder / f"checkpoint-{step}"
        path.mkdir(parents=True, exist_ok=True)
        (path / "trainer_state.json").write_text("{}")
        if mark is not None:
            (path / train.WHOLE).write_text(mark)
        return str(path)

    assert train._last_checkpoint(folder, "cpu") is None
    checkpoint(2, "cpu")
    fourth = checkpoint(4, "cpu")
    checkpoint(10, None)
    assert train._last_checkpoint(folder, "cpu") == fourth, "the tenth may be torn"
    tenth = checkpoint(10, "cuda")
    assert train._last_checkpoint(folder, "cpu") == fourth, "of another device and optimizer"
    assert train._last_checkpoint(folder, "cuda") == tenth
    assert train._last_checkpoint(folder, "float64") is None
    assert not folder.exists(), "or the trainer would keep those instead of its own"


def test_training_needs_no_network_and_prints_nothing(m1, tmp_path, monkeypatch, capsys):
    def refuse(*args, **more):
        raise AssertionError(f"network used: {args}")

    monkeypatch.delenv("CI", raising=False)  # where set, TRL sends no telemetry anyway
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(trl.trainer.base_trainer, "send_telemetry", refuse)  # it has a thread
    train_dpo(TINY, m1[0], PAIRS, DPO, tmp_path / "M2", SEED)
    assert capsys.readouterr().out == ""


def test_every_epoch_has_an_order_of_its_own(plain, tmp_path, monkeypatch):
    epochs, ask = [], trainers.Order.__iter__

    def spy(order):
        epochs.append(order.epoch)
        return ask(order)

    monkeypatch.setattr(trainers.Order, "__iter__", spy)
    train_sft(PLAIN, EXAMPLES, SFT, tmp_path / "M1", 3)
    assert epochs == [0, 1]
    assert _sha(tmp_path / "M1") == _sha(plain[0])


def test_settings_of_the_process_are_given_back(m1):
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize(("dtype", "optim"), [(torch.bfloat16, "paged_adamw_8bit")])
def test_arguments_on_a_gpu(dtype, optim, tmp_path, monkeypatch):
    """No GPU is needed to see what one would be told."""
    monkeypatch.setattr(train, "placement", lambda cfg: ("cuda", dtype))
    told = train._arguments(
        lambda **more: types.SimpleNamespace(n_gpu=2, **more), TINY, SFT, tmp_path, 0
    )
    assert (told.optim, told.bf16, told.fp16, told.use_cpu) == (optim, True, False, False)
    assert told.gradient_accumulation_steps == 2
    assert told._n_gpu == 1
    assert told.report_to == "none"
