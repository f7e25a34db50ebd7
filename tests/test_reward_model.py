"""The frozen reward model: what it is trained on, by which loss, and how it judges."""

import json
import math
from contextlib import suppress
from itertools import pairwise

import pytest
import torch
from trl import RewardConfig, RewardTrainer

from srkit import metrics, reward_model, train, trainers
from srkit.chat import encode_prompt
from srkit.config import Model, Sft, SrkitError
from srkit.judge import judge_candidates, judge_held_out
from srkit.models import fingerprint, load_base, load_policy, with_reward_head
from srkit.prompts import user
from srkit.study import Study
from srkit.tiny import tiny_tokenizer
from srkit.train import Preference, dpo_row, reward_row, train_reward

TINY = Model(name="tiny", lora_rank=4, lora_dropout=0.1, device="cpu")
SETTINGS = Sft(
    learning_rate=1e-2, batch_size=4, micro_batch=2, epochs=2, save_steps=2, max_tokens=200
)
PAIRS = [
    Preference(user(f"What is {i} + {i}?" * (1 + i % 3)), f"It is {2 * i}.", "No" + " no" * (i % 5))
    for i in range(10)
]


def ranked(prompt: str, *ranks: int) -> list[dict]:
    named = {"prompt_id": prompt, "prompt": f"{prompt}?"}
    return [
        {**named, "id": f"{prompt}{i}", "rank": r, "response": f"{prompt}{i}"}
        for i, r in enumerate(ranks)
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward") / "adapter"
    return folder, train_reward(TINY, PAIRS, SETTINGS, folder, 7)


# --- what it learns --------------------------------------------------------------------------


def test_every_pair_of_different_rank_is_a_preference():
    pairs = reward_model.preferences([*ranked("a", 1, 0, 2), *ranked("b", 0, 0)])
    found = [(p.conversation[0]["content"], p.chosen, p.rejected) for p in pairs]
    assert found == [("a?", "a0", "a2"), ("a?", "a1", "a0"), ("a?", "a1", "a2")]


def test_rows_are_both_conversations_whole():
    _, tokenizer = load_base(TINY)
    pair = PAIRS[1]
    row, parts = reward_row(tokenizer, pair), dpo_row(tokenizer, pair)
    assert row["prompt_ids"] == []
    assert row["chosen_ids"] == parts["prompt_ids"] + parts["chosen_ids"]
    assert row["rejected_ids"] == parts["prompt_ids"] + parts["rejected_ids"]


def small(tmp_path, kind, config, **more):
    """A trainer of `kind` on a new reward model of four pairs, and the model."""
    base, tokenizer = load_base(TINY.model_copy(update={"lora_dropout": 0.0}))
    torch.manual_seed(0)
    model = train._new_adapter(
        with_reward_head(base), TINY.model_copy(update={"lora_dropout": 0.0}), "SEQ_CLS"
    )
    given = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
    given |= {"center_rewards_coefficient": 0.01, "max_length": None, **more}
    rows = train.Dataset.from_list([reward_row(tokenizer, pair) for pair in PAIRS[:4]])
    trainer = kind(
        model=model, args=config(**given), train_dataset=rows, processing_class=tokenizer
    )
    return trainer, rows


def gradients(model) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_loss_and_gradients_are_trls_and_those_of_the_formula(tmp_path):
    theirs, rows = small(tmp_path, RewardTrainer, RewardConfig)
    theirs.model.train()
    expected = theirs.compute_loss(theirs.model, theirs.data_collator(list(rows)))
    expected.backward()
    ours, rows = small(tmp_path, trainers.RewardSteps, RewardConfig)
    ours.model.train()
    rows, total = list(rows), 0.0
    for part in (rows[:3], rows[3:]):  # micro-batches of unequal size
        batch = ours.data_collator(part)
        loss = ours.compute_loss(ours.model, batch, num_items_in_batch=torch.tensor(4.0))
        loss.backward()
        total += float(loss.detach())
    assert total == pytest.approx(float(expected.detach()), rel=1e-5)
    mine, others = gradients(ours.model), gradients(theirs.model)
    assert any(name.endswith("modules_to_save.default.weight") for name in mine), "the head learns"
    assert set(mine) == set(others)
    for name, gradient in mine.items():
        assert torch.allclose(gradient, others[name], atol=1e-6), name
    ours.model.eval()
    with torch.no_grad():
        sides = ("chosen_ids", "rejected_ids")
        read = [[float(ours.model(torch.tensor([r[s]])).logits) for s in sides] for r in rows]
    by_hand = sum(math.log1p(math.exp(b - a)) + 0.01 * (a + b) ** 2 for a, b in read) / 4
    assert by_hand == pytest.approx(total, rel=1e-4)


def test_the_chosen_get_the_higher_reward(made):
    folder, run = made
    assert (run.steps, run.examples, run.left_out) == (6, 10, 0)
    logged = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    assert logged[-1]["loss"] < 0.3 < logged[0]["loss"]
    assert set(logged[0]) >= {"reward_accuracy", "reward_margin"}
    assert logged[-1]["reward_accuracy"] == 1


# --- what it is ----------------------------------------------------------------------------------


def test_it_proves_itself_and_leaves_the_base_as_it_was(made):
    plain = fingerprint(load_policy(TINY))
    policy = load_policy(TINY, made[0], "reward-model")
    recorded = json.loads((made[0] / "fingerprint.json").read_text())
    assert fingerprint(policy) == recorded
    assert [len(row) for row in recorded["logits"]] == [8] * 4
    assert recorded["effect"] > 0.1
    assert fingerprint(load_policy(TINY)) == plain, "the head and the adapter are off again"


def test_altered_weights_are_refused(made, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in made[0].iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "adapter_model.safetensors")
    (head,) = [name for name in weights if "score" in name]
    weights[head][0, 0] += 0.1
    save_file(weights, tmp_path / "adapter_model.safetensors")
    with pytest.raises(SrkitError, match="not the one that was trained"):
        load_policy(TINY, tmp_path)


def test_a_run_that_was_cut_off_ends_with_the_same_bytes(made, tmp_path, monkeypatch):
    save = trainers.RewardSteps._save_checkpoint

    def cut(self, *args):
        save(self, *args)
        if self.state.global_step == 4:
            raise KeyboardInterrupt  # before it is marked as whole: step 2 is the last one

    monkeypatch.setattr(trainers.RewardSteps, "_save_checkpoint", cut)
    with suppress(KeyboardInterrupt):
        train_reward(TINY, PAIRS, SETTINGS, tmp_path / "a", 7)
    monkeypatch.undo()
    run = train_reward(TINY, PAIRS, SETTINGS, tmp_path / "a", 7)
    assert [row["step"] for row in run.log] == [1, 2, 3, 4, 5, 6]
    name = "adapter_model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (made[0] / name).read_bytes()


def test_four_bit_layers_take_the_head_too(tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install bitsandbytes")
    nf4 = TINY.model_copy(update={"quantization": "nf4", "lora_dropout": 0.0})
    run = train_reward(nf4, PAIRS, SETTINGS, tmp_path / "a", 7)
    assert run.log[-1]["loss"] < run.log[0]["loss"]
    assert load_policy(nf4, tmp_path / "a").model.base_model.model.score is not None


# --- how it judges -------------------------------------------------------------------------------


def test_a_reward_as_a_score():
    scores = [row["score"] for row in map(reward_model.judgement, (0.0, math.log(4), -1e9))]
    assert scores == pytest.approx([2.5, 4.0, 0.0])
    assert reward_model.judgement(math.nan)["score"] is None
    found = [reward_model.judgement(x / 100)["score"] for x in range(-1500, 1501)]
    assert all(low < high for low, high in pairwise(found)), "order is kept"


@pytest.fixture
def study(tmp_path, make) -> Study:
    """A study of the arm, made up to its seed."""
    sizes = "seed.eft_prompts=4 seed.eval_prompts=3 sft.max_tokens=400"
    study = Study.open(tmp_path / "s", "tiny", sizes, "reward-model")
    make(study, "seed/eft", [*ranked("a", 0, 1, 2), *ranked("b", 0, 1), *ranked("c", 1, 0)])
    make(study, "seed/eft_eval", [*ranked("d", 0, 1), *ranked("e", 0, 1, 2)])
    return study


def test_it_is_planned_where_an_arm_needs_it_and_made_once(tmp_path, study):
    without = Study.open(tmp_path / "t", "tiny").steps
    assert not [name for name in without if name.startswith("reward-model")]
    steps = study.steps
    for t in (1, 2):
        assert "reward-model/adapter" in steps[f"reward-model/iter-{t}/judgements"].inputs
    assert "reward-model/judgements" in steps["metrics/reward_accuracy"].inputs
    assert steps["reward-model/iter-1/candidates"].same_as
    first = reward_model.make_reward_model(study)
    assert first["examples"] == 5
    assert reward_model.make_reward_model(study) == first
    assert "reward-model/adapter" in steps["metrics/rivals"].inputs
    spent = metrics.ledger(study)
    assert spent[["arm", "iteration", "part"]].to_numpy().tolist() == [
        ["reward-model", 1, "reward-model"]
    ]
    assert spent["trained"].tolist() == [first["tokens"]], "what its arm took, once"


def test_the_held_out_rankings_are_read_whole_and_one_at_a_time(study):
    reward_model.make_reward_model(study)
    rows = judge_held_out(study, "reward-model")
    assert [row["id"] for row in rows] == ["d0@0", "d1@0", "e0@0", "e1@0", "e2@0"]
    tokenizer = tiny_tokenizer()
    asked = [(encode_prompt(tokenizer, user(f"{r['id'][0]}?")), r["id"][:2]) for r in rows]
    read = sum(len(ids) + len(train.encode_completion(tokenizer, text)) for ids, text in asked)
    assert study.records()["reward-model/judgements"]["read"] == read
    policy = load_policy(study.config.model, study.adapter("reward-model"))
    ids = encode_prompt(policy.tokenizer, user("d?"))
    ids += train.encode_completion(policy.tokenizer, "d0")
    with torch.inference_mode():
        reward = float(policy.model(torch.tensor([ids])).logits)
    assert rows[0]["reward"] == pytest.approx(reward, abs=1e-5)
    assert rows[0]["score"] == pytest.approx(5 / (1 + math.exp(-reward)), abs=1e-5)
    cut = {"id": "x", "prompt": "d?", "text": "d0", "truncated": True}
    assert reward_model.rewards(study, [cut])[0] == pytest.approx(reward), "its head reads an end"


def test_a_text_that_does_not_fit_is_named(study):
    reward_model.make_reward_model(study)
    row = {"id": "x7", "prompt": "d?", "text": "z" * 5000}
    with pytest.raises(SrkitError, match=r"response x7 .* context of 4096"):
        reward_model.rewards(study, [row])


def test_it_judges_the_candidates_of_its_arm(study, make, monkeypatch):
    rows = [{"id": f"p#{i}", "prompt_id": "p", "prompt": "p?", "text": "x" * i} for i in range(3)]
    for name in ("seed/ift", "baseline/adapter", "seed/eft_targets", "M1/adapter"):
        make(study, name)
    for arm in ("self-rewarding", "reward-model"):
        make(study, f"{arm}/iter-1/prompts")
        make(study, f"{arm}/iter-1/candidates", rows)
    monkeypatch.setattr(reward_model, "rewards", lambda _, part: [len(r["id"]) + 0.5 for r in part])
    judged = judge_candidates(study, "reward-model", 1)
    assert {row["reward"] for row in judged} == {3.5}
    assert [row["response_id"] for row in judged] == ["p#0", "p#1", "p#2"]
    assert study.state("reward-model/judgements") == "done", "of the held-out rankings, with it"
