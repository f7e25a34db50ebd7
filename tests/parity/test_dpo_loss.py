"""Our DPO loss is TRL's: the notebooks show one and the trainer computes the other."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import DPOConfig, DPOTrainer

from srkit.tiny import tiny_model, tiny_tokenizer
from srkit.train import Preference, completion_logps, dpo_row, preference_loss

PAIRS = [
    Preference([{"role": "user", "content": "Explain rain."}], "Water falls.", "No. " * 9),
    Preference([{"role": "user", "content": "Say 4. " * 5}], "4", "Five, of course.", True, False),
    Preference([{"role": "user", "content": "Score?"}], "Score: 5 " * 7, "Score: 0", False, True),
]


class _Trainer(DPOTrainer):
    def _prepare_dataset(self, dataset, *args, **more):
        return dataset


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def _policy(tokenizer):
    """A model with a random adapter `default`, and its base below as another model."""
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model(tokenizer), config)
    _shake(model, ".default.", seed=0)
    return model


def _shake(model, which: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name and which in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def _trainer(tokenizer, beta, folder):
    rows = Dataset.from_list([dpo_row(tokenizer, pair) for pair in PAIRS])
    args = DPOConfig(
        str(folder),
        beta=beta,
        bf16=False,
        activation_checkpointing=False,
        use_cpu=True,
        max_length=None,
        report_to="none",
    )
    trainer = _Trainer(
        _policy(tokenizer), args=args, train_dataset=rows, processing_class=tokenizer
    )
    _shake(trainer.model, ".default.", seed=1)  # the policy has moved on from its reference
    trainer.model.eval()
    return trainer


def _ours(trainer, rows, beta):
    """Losses by srkit's two formulas, each sequence on its own and so without padding."""
    logps = {}
    for adapter in ("default", "ref"):
        trainer.model.set_adapter(adapter)
        for kind in ("chosen", "rejected"):
            values = []
            for row in rows:
                prompt, answer = row["prompt_ids"], row[f"{kind}_ids"]
                ids, mask = prompt + answer, [0] * len(prompt) + [1] * len(answer)
                with torch.no_grad():
                    args = torch.tensor([ids]), torch.tensor([mask])
                    values.append(completion_logps(trainer.model, *args))
            logps[adapter, kind] = torch.cat(values)
    trainer.model.set_adapter("default")
    order = [("default", "chosen"), ("default", "rejected"), ("ref", "chosen"), ("ref", "rejected")]
    return preference_loss(*(logps[key] for key in order), beta)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_loss_of_each_pair_and_of_a_padded_batch(tokenizer, beta, tmp_path):
    trainer = _trainer(tokenizer, beta, tmp_path)
    rows = [dpo_row(tokenizer, pair) for pair in PAIRS]
    ours = _ours(trainer, rows, beta)
    with torch.no_grad():
        each = [
            float(trainer.compute_loss(trainer.model, trainer.data_collator([r]))) for r in rows
        ]
        batch = float(trainer.compute_loss(trainer.model, trainer.data_collator(rows)))
    assert ours.tolist() == pytest.approx(each, abs=1e-5)
    assert float(ours.mean()) == pytest.approx(batch, abs=1e-5)
    assert min(abs(loss - 0.6931) for loss in each) > 1e-3  # nothing is hidden by a loss of ln 2


def test_gradients_agree(tokenizer, tmp_path):
    beta = 0.3
    trainer = _trainer(tokenizer, beta, tmp_path)
    row = dpo_row(tokenizer, PAIRS[0])
    trainer.compute_loss(trainer.model, trainer.data_collator([row])).backward()
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    theirs = [p.grad.clone() for p in trained]
    trainer.model.zero_grad()
    batch = trainer.data_collator([row])
    logps = []
    for adapter in ("ref", "default"):  # the policy last: switching back freezes what is not active
        trainer.model.set_adapter(adapter)
        context = torch.no_grad() if adapter == "ref" else torch.enable_grad()
        with context:
            # The collator puts chosen above rejected; padding lies on the right.
            logps.append(
                completion_logps(trainer.model, batch["input_ids"], batch["completion_mask"])
            )
    reference, policy = logps
    preference_loss(policy[:1], policy[1:], reference[:1], reference[1:], beta).mean().backward()
    for ours, other in zip([p.grad for p in trained], theirs, strict=True):
        assert torch.allclose(ours, other, atol=1e-5, rtol=1e-3)
