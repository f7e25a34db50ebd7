"""Our losses and gradients are those of TRL's untouched trainers, which pad and repeat prompts."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from srkit import train, trainers
from srkit.config import Dpo, Model, Sft
from srkit.logps import fast_training
from srkit.losses import preference_loss
from srkit.models import Policy
from srkit.tiny import tiny_model, tiny_tokenizer
from srkit.train import Example, Preference, dpo_row, sft_row

CFG = Model(name="tiny", device="cpu")
PAIRS = [
    Preference([{"role": "user", "content": "Explain rain."}], "Water falls.", "No. " * 9),
    Preference([{"role": "user", "content": "Say 4. " * 5}], "4", "Five, of course.", True, False),
    Preference([{"role": "user", "content": "Score?"}], "Score: 5 " * 7, "Score: 0", False, True),
    Preference([{"role": "user", "content": "A word? " * 9}], "Yes", "No"),
]
EXAMPLES = [Example(p.conversation, p.chosen, p.chosen_finished) for p in PAIRS]


class _Trl(DPOTrainer):
    def _prepare_dataset(self, dataset, *args, **more):
        return dataset  # TRL's own would tokenise again


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def _policy(tokenizer):
    """A model with a random adapter, made again with the same values at every call."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model(tokenizer), config)
    _shake(model, seed=0)
    return model


def _shake(model, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B.default" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def _theirs(kind, config, tokenizer, rows, folder, **more):
    options = {"bf16": False, "activation_checkpointing": False, "use_cpu": True}
    args = config(str(folder), max_length=None, report_to="none", **options, **more)
    data = {"train_dataset": Dataset.from_list(rows), "processing_class": tokenizer}
    return kind(_policy(tokenizer), args=args, **data)


def _dpo_pair(tokenizer, rows, beta, folder, losses=None, **ours_alone):
    """TRL's trainer and ours, whose policies have moved on from their reference alike."""
    asked = {"beta": beta, **(losses or {})}
    theirs = _theirs(_Trl, DPOConfig, tokenizer, rows, folder / "theirs", **asked)
    model = _policy(tokenizer)
    with fast_training(model):
        ours = train._trainer(
            trainers.DpoSteps,
            Policy(model, tokenizer, "M1"),
            rows,
            CFG,
            Dpo(beta=beta, **ours_alone),
            folder / "ours",
            0,
        )
    for trainer in (theirs, ours):
        _shake(trainer.model, seed=1)
        trainer.model.eval()
    return theirs, ours


def _ours(trainer, rows, micro) -> float:
    """The loss of a batch in micro-batches, whose gradients are then in the model."""
    prepared, losses = list(trainer.train_dataset), []
    with fast_training(trainer.model):
        for i in range(0, len(rows), micro):
            batch = trainer.data_collator(prepared[i : i + micro])
            loss = trainer.compute_loss(trainer.model, batch) * micro / len(rows)
            loss.backward()
            losses.append(float(loss.detach()))
    return sum(losses)


def _gradients(model) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def _assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        scale = float(value.abs().max())
        assert scale > 0
        # a small element is a difference of large ones, so rounding is measured by the largest
        torch.testing.assert_close(ours[name], value, atol=1e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("micro", [1, 2, 4])
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo_loss_and_gradients(beta, micro, tokenizer, tmp_path):
    rows = [dpo_row(tokenizer, pair) for pair in PAIRS]
    theirs, ours = _dpo_pair(tokenizer, rows, beta, tmp_path)
    expected = theirs.compute_loss(theirs.model, theirs.data_collator(rows))
    expected.backward()
    found = _ours(ours, rows, micro)
    assert found == pytest.approx(float(expected.detach()), abs=1e-5)
    assert abs(found - 0.6931) > 1e-3  # nothing is hidden by a loss of ln 2
    _assert_close(_gradients(ours.model), _gradients(theirs.model))


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_dpo_with_likelihood_loss_and_gradients(micro, tokenizer, tmp_path):
    """TRL's own `sft` loss, pair by pair: of several it would take the mean over tokens."""
    rows = [dpo_row(tokenizer, pair) for pair in PAIRS]
    losses = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}
    theirs, ours = _dpo_pair(tokenizer, rows, 0.3, tmp_path, losses, nll=0.7)
    expected = [theirs.compute_loss(theirs.model, theirs.data_collator([row])) for row in rows]
    expected = sum(expected) / len(rows)
    expected.backward()
    found = _ours(ours, rows, micro)
    assert found == pytest.approx(float(expected.detach()), abs=1e-5)
    assert found > 2  # a random model finds nothing likely
    _assert_close(_gradients(ours.model), _gradients(theirs.model))


@pytest.mark.parametrize(("micro", "share"), [(1, 0.1), (4, 0.3)])
def test_smoothed_dpo_loss_and_gradients(micro, share, tokenizer, tmp_path):
    """(1 - e) L + e L', of pairs and of the same turned round, out of TRL's `sigmoid`, which is L,
    and its `robust`, which is ((1 - e) L - e L') / (1 - 2 e)."""
    rows = [dpo_row(tokenizer, pair) for pair in PAIRS]
    weights = [2 * (1 - share), -(1 - 2 * share)]
    losses = {"loss_type": ["sigmoid", "robust"], "loss_weights": weights}
    losses["label_smoothing"] = share
    theirs, ours = _dpo_pair(tokenizer, rows, 0.3, tmp_path, losses, label_smoothing=share)
    expected = theirs.compute_loss(theirs.model, theirs.data_collator(rows))
    expected.backward()
    assert _ours(ours, rows, micro) == pytest.approx(float(expected.detach()), abs=1e-5)
    _assert_close(_gradients(ours.model), _gradients(theirs.model))


def test_length_penalty_shifts_the_margin_of_trls_loss(tokenizer, tmp_path):
    """TRL has no such term: the margin in its loss of each pair, and alpha for every token."""
    rows = [dpo_row(tokenizer, pair) for pair in PAIRS]
    theirs, ours = _dpo_pair(tokenizer, rows, 0.3, tmp_path, length_penalty=0.05)
    with torch.no_grad():
        each = [theirs.compute_loss(theirs.model, theirs.data_collator([row])) for row in rows]
    margins = torch.logit(torch.exp(-torch.stack(each)))  # of -log sigmoid(margin)
    longer = torch.tensor([len(row["chosen_ids"]) - len(row["rejected_ids"]) for row in rows])
    assert len(set(longer.sign().tolist())) > 1
    expected = -torch.nn.functional.logsigmoid(margins + 0.05 * longer).mean()
    assert _ours(ours, rows, 2) == pytest.approx(float(expected), abs=1e-5)


def test_dpo_logs_what_trl_logs(tokenizer, tmp_path):
    rows = [dpo_row(tokenizer, pair) for pair in PAIRS]
    theirs, ours = _dpo_pair(tokenizer, rows, 0.3, tmp_path)
    with torch.no_grad():
        theirs.compute_loss(theirs.model, theirs.data_collator(rows))
        with fast_training(ours.model):
            ours.compute_loss(ours.model, ours.data_collator(list(ours.train_dataset)))
    for name in set(train.LOGGED.values()) - {"loss", "learning_rate", "seconds"}:
        expected = theirs._metrics["eval"][name]
        found = ours._metrics["eval"][name]  # of each pair, not of each micro-batch
        assert [sum(found) / len(PAIRS)] == pytest.approx(expected, rel=1e-6, abs=1e-5), name


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_sft_loss_and_gradients(micro, tokenizer, tmp_path):
    rows = [sft_row(tokenizer, example) for example in EXAMPLES]
    skip = {"dataset_kwargs": {"skip_prepare_dataset": True}}
    theirs = _theirs(SFTTrainer, SFTConfig, tokenizer, rows, tmp_path / "theirs", **skip)
    policy = Policy(_policy(tokenizer), tokenizer, "M1")
    settings = Sft(), tmp_path / "ours", 0
    ours = train._trainer(trainers.SftSteps, policy, rows, CFG, *settings)
    trained = sum(label != train.IGNORED for row in rows for label in row["labels"])
    expected = theirs.compute_loss(theirs.model.eval(), theirs.data_collator(rows))
    expected.backward()
    losses = []
    with fast_training(ours.model.eval()):
        for i in range(0, len(rows), micro):
            batch = ours.data_collator(rows[i : i + micro])
            loss = ours.compute_loss(ours.model, batch, num_items_in_batch=trained)
            loss.backward()
            losses.append(float(loss.detach()))
    assert sum(losses) == pytest.approx(float(expected.detach()), abs=1e-5)
    _assert_close(_gradients(ours.model), _gradients(theirs.model))


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_loss_of_each_pair_from_sequences_scored_alone(beta, tokenizer, tmp_path, plain_logp):
    """`preference_loss` on the plainest log-probabilities is TRL's loss too."""
    rows = [dpo_row(tokenizer, pair) for pair in PAIRS]
    trainer, _ = _dpo_pair(tokenizer, rows, beta, tmp_path)
    logps = {}
    for adapter in ("default", "ref"):
        trainer.model.set_adapter(adapter)
        for kind in ("chosen_ids", "rejected_ids"):
            with torch.no_grad():
                scored = [plain_logp(trainer.model, r["prompt_ids"], r[kind]) for r in rows]
            logps[adapter, kind] = torch.stack(scored)
    trainer.model.set_adapter("default")
    keys = [
        (adapter, kind) for adapter in ("default", "ref") for kind in ("chosen_ids", "rejected_ids")
    ]
    ours = preference_loss(*(logps[key] for key in keys), beta)
    with torch.no_grad():
        each = [
            float(trainer.compute_loss(trainer.model, trainer.data_collator([r]))) for r in rows
        ]
    assert ours.tolist() == pytest.approx(each, abs=1e-5)
