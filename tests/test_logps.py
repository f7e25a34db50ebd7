"""Packed trees score as sequences alone do, and the model is given back as it was."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from trl.trainer import utils as trl_utils

from srkit import logps
from srkit.config import SrkitError
from srkit.logps import IGNORED, completion_logps, fast_training, pack
from srkit.tiny import tiny_model, tiny_tokenizer

TREES = [
    (list(range(60, 75)), [[90, 100, 4], [91]]),
    ([61, 62], [[99] * 12, [98, 97], [90, 100, 4]]),
    ([63], [[70, 80]]),
]


def _model(dropout: float = 0.0):
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(tiny_model(tiny_tokenizer()), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    trl_utils.add_fused_lm_head(model.get_base_model())
    return model.eval()


def test_a_prompt_is_packed_once_and_its_last_token_opens_each_completion():
    batch = pack([([1, 2, 3], [[4, 5], [6]]), ([7, 8], [[9]])])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 3, 7, 8]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 2, 0, 1]]
    assert batch["shift_labels"].tolist() == [[IGNORED, IGNORED, 4, 5, 6, IGNORED, 9]]
    assert batch["lengths"] == [[2, 2, 1], [1, 1]]


def test_who_sees_whom():
    rows = logps._visible([2, 2, 1], window=None).int().tolist()
    assert rows == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],  # the second completion stands after the prompt, and not after the first
    ]
    assert logps._visible([2, 2, 1], window=2).int().tolist()[3:] == [
        [0, 0, 1, 1, 0],
        [0, 1, 0, 0, 1],
    ]


@pytest.mark.parametrize("grouped", [("cpu",), ()], ids=["as on a CPU", "as on a GPU"])
def test_log_probabilities_and_gradients_are_those_of_sequences_alone(
    grouped, plain_logp, monkeypatch
):
    monkeypatch.setattr(logps, "GROUPED", grouped)
    model = _model()
    trained = [p for p in model.parameters() if p.requires_grad]
    weights = torch.linspace(-1, 1, 6)
    alone = torch.stack([plain_logp(model, p, c) for p, cs in TREES for c in cs])
    expected = torch.autograd.grad(alone @ weights, trained)
    with fast_training(model):
        packed = completion_logps(model, pack(TREES))
        found = torch.autograd.grad(packed @ weights, trained)
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-5)
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-3)


def test_logits_in_many_parts_with_scale_bias_and_cap(monkeypatch):
    """Against TRL's own function, which ours stands in for."""
    monkeypatch.setattr(logps, "LOGITS", 100)
    torch.manual_seed(0)
    weight, bias, targets = torch.randn(40, 8), torch.randn(40), torch.arange(7)
    results = []
    for function in (trl_utils._ChunkedLogProbFunction, logps._LogProbs):
        hidden = torch.linspace(-1, 1, 56).view(7, 8).requires_grad_()
        options = (0.7, 16, 5.0, 0.5, ("log_probs",))
        out = function.apply(hidden, weight, bias, targets, *options)[0]
        (out @ torch.linspace(-1, 1, 7)).backward()
        results.append((out.detach(), hidden.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_dropout_of_the_adapter_is_pefts(monkeypatch):
    model = _model(dropout=0.5).train()
    layer = next(m for m in model.modules() if isinstance(m, LoraLinear))
    x = torch.randn(3, 5, layer.in_features)
    results = []
    for forward in (logps.PEFT_FORWARD, logps._lora_forward):
        torch.manual_seed(1)
        results.append(forward(layer, x))
    torch.testing.assert_close(*results)
    assert not torch.allclose(results[0], logps._lora_forward(layer, x))  # another draw


def test_everything_is_given_back():
    model = _model()
    core = model.get_base_model()
    before = core.config._attn_implementation, LoraLinear.forward, trl_utils._use_triton
    with fast_training(model):
        assert core.config._attn_implementation == logps.ATTENTION
        assert LoraLinear.forward is logps._lora_forward
    after = core.config._attn_implementation, LoraLinear.forward, trl_utils._use_triton
    assert after == before


def test_trees_are_not_scored_where_they_would_see_each_other():
    with pytest.raises(RuntimeError, match="outside fast_training"):
        completion_logps(_model(), pack(TREES))


def test_attention_with_capped_scores_is_refused():
    with pytest.raises(SrkitError, match="capped scores"):
        logps._attend(torch.nn.Identity(), None, None, None, None, None, softcap=50.0)
