"""Linear layers made fast for the length of a call; the policy itself is never changed.

In fp32 on a CPU a copy in oneDNN's blocked layout stands in for each (half the time at 32 rows),
with plain LoRA merged in, which is exact up to rounding; NF4 is dequantised where memory allows,
and its LoRA is kept apart.

    python -c "import torch; from srkit.linears import _Dense; \\
        print(_Dense(torch.eye(2), None)(torch.ones(1, 2)))"
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional

from srkit.kv_cache import ATTENTION, unsupported
from srkit.memory import free_bytes

WORDS = 16384  # of the vocabulary whose weights are held in float32 at once


@contextmanager
def prepared(model: nn.Module) -> Iterator[nn.Module]:
    """The transformers model without PEFT's wrapper, with tree attention and fast linear layers."""
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    attention, training = core.config._attn_implementation, core.training
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        core.eval()
        core.set_attn_implementation(ATTENTION)
        if core.config._attn_implementation != ATTENTION:
            raise unsupported(core)
        linears = [m for m in core.modules() if isinstance(m, nn.Linear)]
        copies = sum(m.in_features * m.out_features for m in linears) * core.dtype.itemsize
        if 1.5 * copies < free_bytes(core.device):  # the half is for caches
            _replace_linears(core, replaced)
        yield core
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)
        core.set_attn_implementation(attention)
        core.train(training)


@contextmanager
def exact_head(model: nn.Module) -> Iterator[None]:
    """Logits in float32, whatever the model computes in: for whoever reads probabilities.

    bfloat16 has eight bits, so that its logits between 16 and 32 lie 0.125 apart. That is more than
    the expected scores of a judge of two answers differ by, and would make ties of them.
    """
    head = model.get_output_embeddings()
    if head is None or head.weight.dtype not in (torch.bfloat16, torch.float16):
        yield
        return

    def forward(hidden: Tensor) -> Tensor:  # (..., width) -> (..., vocabulary)
        hidden, weight = hidden.float(), head.weight
        logits = hidden.new_empty(*hidden.shape[:-1], len(weight))
        for start in range(0, len(weight), WORDS):
            words = slice(start, start + WORDS)
            bias = None if head.bias is None else head.bias[words].float()
            logits[..., words] = functional.linear(hidden, weight[words].float(), bias)
        return logits

    with patch.object(head, "forward", forward):
        yield


def _replace_linears(parent: nn.Module, replaced: list[tuple[nn.Module, str, nn.Module]]) -> None:
    for name, child in list(parent.named_children()):
        if hasattr(child, "base_layer") and not _is_plain_lora(child):
            continue
        dense = _dense(child)
        if dense is None:
            _replace_linears(child, replaced)
        else:
            replaced.append((parent, name, child))
            setattr(parent, name, dense)


def _is_plain_lora(layer: nn.Module) -> bool:
    """Whether it computes Wx + BAx. DoRA, for one, does not, and reads W where it lies."""
    return hasattr(layer, "lora_A") and not layer.lora_variant and not any(layer.lora_bias.values())


def _dense(module: nn.Module) -> _Dense | None:
    """What stands in for a linear layer during a call, or None if nothing does."""
    base = getattr(module, "base_layer", module)
    if type(base).__name__ == "Linear4bit":
        return _dequantised(module) if base is module else None  # never merged into
    if type(base) is not nn.Linear or not _can_block(base.weight):
        return None
    weight = base.weight
    if base is not module and not module.disable_adapters and not module.merged:
        active = [name for name in module.active_adapters if name in module.lora_A]
        weight = sum((module.get_delta_weight(name) for name in active), start=weight)
    return _Dense(weight, base.bias)


def _dequantised(module: nn.Module) -> _Dense | None:
    from bitsandbytes.functional import dequantize_4bit

    state = module.weight.quant_state
    if getattr(state, "packing_format_for_cpu", False):
        return None  # an earlier forward pass on a CPU has repacked it, not quite reversibly
    weight = dequantize_4bit(module.weight.data, state)
    return _Dense(weight.to(module.compute_dtype or weight.dtype), module.bias)


def _can_block(weight: Tensor) -> bool:
    wanted = weight.device.type == "cpu" and weight.dtype == torch.float32
    return wanted and torch.backends.mkldnn.is_available()


class _Dense(nn.Module):
    """A linear map without a gradient. The two operators are those torch.compile uses on CPUs."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.bias, self.blocked = bias, _can_block(weight)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.blocked else weight

    def forward(self, x: Tensor) -> Tensor:
        if self.blocked:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return functional.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)
