"""Log-probabilities of completions for training: the same numbers as TRL's, computed once each.

`train_sft` and `train_dpo` need one thing of the model, log p(completion | prompt). `pack` lays
out a micro-batch, `completion_logps` scores it inside `fast_training`. Parity tests tie loss and
gradients to TRL's untouched trainers. On two CPU cores this is where the time of training goes.

Surprising decisions:
- A micro-batch is one row without padding. A pair's prompt is in it once, followed by both
  answers, which see the prompt and themselves, at the positions they would have alone. Dropout of
  the adapter is therefore drawn once for a prompt, where two copies would have had a draw each.
- The prompt's last token opens every completion, so that each position has at most one label; a
  completion's last token is not fed, as nothing is predicted from it.
- The vocabulary is the widest product of a small model. Where there is no Triton, TRL's head makes
  the logits twice and passes over them some twenty times; here they are made once, and with them
  the gradient, which is a row's own: what comes from above only scales it.
- On a CPU, a frozen fp32 weight is multiplied by oneDNN, forward and backward, instead of MKL.

    python -c "from srkit.logps import pack; print(pack([([1, 2, 3], [[4, 5], [6]])]))"
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import trl.trainer.utils
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from srkit.kv_cache import unsupported

Row = dict[str, Any]
Ids = Sequence[int]

IGNORED = -100  # label of a token that is not trained on
LOGITS = 2**24  # at once in the head: 64 MB in float32
ATTENTION = "srkit-trees"
UNTRAINED = "srkit does not train"
GROUPED = ("cpu",)  # devices whose fused attention knows heads that share keys, with a mask
PEFT_FORWARD = LoraLinear.forward


def pack(trees: Sequence[tuple[Ids, Sequence[Ids]]]) -> Row:
    """One row of (prompt, completions) trees, as the model's input.

    `input_ids`, `position_ids` and `shift_labels` have shape (1, tokens); a label is the token
    that follows. `lengths` has, per tree, the tokens shared by its completions and those of each.
    """
    ids, positions, labels, lengths = [], [], [], []
    for prompt, completions in trees:
        *shared, last = prompt
        ids += shared
        positions += range(len(shared))
        labels += [IGNORED] * len(shared)
        for completion in completions:
            ids += [last, *completion[:-1]]
            positions += range(len(shared), len(shared) + len(completion))
            labels += completion
        lengths.append([len(shared), *map(len, completions)])
    names = ("input_ids", "position_ids", "shift_labels")
    tensors = (torch.tensor([values]) for values in (ids, positions, labels))
    return dict(zip(names, tensors, strict=True)) | {"lengths": lengths}


def completion_logps(model: nn.Module, batch: Row) -> Tensor:
    """Log-probability of each completion given its prompt, summed over its tokens.

    `model` has been in a TRL trainer, which gives it its head, and is in `fast_training`; `batch`
    is from `pack`. Shape: (completions,), tree by tree.
    """
    core = getattr(model, "module", model)  # of DDP
    if core.config._attn_implementation != ATTENTION:
        raise RuntimeError("completion_logps outside fast_training: trees would see each other.")
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "shift_labels")}
    trees = _Trees(batch["lengths"], batch["input_ids"].device)
    out = model(**inputs, trees=trees, use_cache=False, fused_lm_head=True)
    logps = out.log_probs[0]  # (tokens,), 0 where there is no label
    parts = logps.split([n for tree in batch["lengths"] for n in tree])
    sums, i = [], 0
    for tree in batch["lengths"]:
        sums += [part.sum() for part in parts[i + 1 : i + len(tree)]]
        i += len(tree)
    return torch.stack(sums)


@contextmanager
def fast_training(model: PeftModel) -> Iterator[None]:
    """The model as `completion_logps` wants it. It cannot score plain batches meanwhile."""
    core = model.get_base_model()
    attention = core.config._attn_implementation
    with ExitStack() as stack:
        stack.callback(core.set_attn_implementation, attention)
        core.set_attn_implementation(ATTENTION)
        if core.config._attn_implementation != ATTENTION:
            raise unsupported(core, UNTRAINED)
        if core.device.type == "cpu":
            # TRL scores prompts too where there is no Triton, so that shapes stay fixed for Neuron.
            heads = {"_use_triton": lambda device: True, "_ChunkedLogProbFunction": _LogProbs}
            stack.enter_context(patch.multiple(trl.trainer.utils, **heads))
        stack.enter_context(fast_layers(core))
        yield


@contextmanager
def fast_layers(model: nn.Module) -> Iterator[None]:
    """LoRA layers by oneDNN on a CPU, for a model that reads plain batches too."""
    with ExitStack() as stack:
        if model.device.type == "cpu":
            stack.enter_context(patch.object(LoraLinear, "forward", _lora_forward))
        yield


# --- attention -----------------------------------------------------------------------------------


class _Trees:
    """Who sees whom in a packed row: a tree's own tokens that are no later and on no other branch.

    `sizes`: tokens of each tree.
    """

    def __init__(self, lengths: list[list[int]], device: torch.device):
        self.sizes = [sum(tree) for tree in lengths]
        self.lengths, self.device = lengths, device
        self.masks: dict[int | None, list[Tensor]] = {}

    def mask(self, window: int | None) -> list[Tensor]:  # per tree (size, size), True where visible
        if window not in self.masks:
            self.masks[window] = [_visible(tree, window).to(self.device) for tree in self.lengths]
        return self.masks[window]


def _visible(lengths: list[int], window: int | None) -> Tensor:
    shared, *branches = lengths
    position = torch.tensor([*range(shared), *(shared + i for n in branches for i in range(n))])
    branch = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    ago = position[:, None] - position[None, :]
    visible = (ago >= 0) & ((branch[:, None] == branch[None, :]) | (branch[None, :] == 0))
    return visible & (ago < window) if window else visible


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    trees: _Trees,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: (1, heads, tokens, size) -> (1, tokens, heads, size)."""
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise unsupported(module, UNTRAINED)
    if query.device.type not in GROUPED:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    parts = (x.split(trees.sizes, dim=2) for x in (query, key, value))
    mixed = [
        functional.scaled_dot_product_attention(
            q, k, v, mask, dropout_p=dropout, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        for q, k, v, mask in zip(*parts, trees.mask(sliding_window), strict=True)
    ]
    return torch.cat(mixed, dim=2).transpose(1, 2), None


AttentionInterface.register(ATTENTION, _attend)


# --- the head ------------------------------------------------------------------------------------


class _LogProbs(torch.autograd.Function):
    """Stands in for TRL's function of the same arguments; returns log-probabilities alone."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (tokens, width)
        weight: Tensor,  # (vocabulary, width)
        bias: Tensor | None,
        targets: Tensor,  # (tokens,)
        temperature: float,
        chunk_size: int,
        softcap: float | None,
        scale: float,
        outputs: tuple[str, ...],
    ) -> tuple[Tensor, None, None, None, None]:
        logps, slopes = [hidden.new_zeros(0, dtype=torch.float32)], [hidden[:0]]
        rows = max(1, LOGITS // len(weight))
        for part, target in zip(hidden.split(rows), targets.split(rows), strict=True):
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                part = part.detach().requires_grad_(ctx.needs_input_grad[0])
                logits = functional.linear(part, weight, bias).float() * scale
                logits = softcap * torch.tanh(logits / softcap) if softcap else logits
                logps.append(
                    -functional.cross_entropy(logits / temperature, target, reduction="none")
                )
                if part.requires_grad:
                    slopes += torch.autograd.grad(logps[-1].sum(), part)
        ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(logps).detach(), None, None, None, None

    @staticmethod
    def backward(ctx: Any, above: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return ((above[:, None] * slopes).to(slopes.dtype), *[None] * 8)


# --- linear layers -------------------------------------------------------------------------------


def _lora_forward(layer: LoraLinear, x: Tensor, *args: Any, **options: Any) -> Tensor:
    """Wx + sBAx, as PEFT computes it, for plain LoRA on a frozen fp32 weight."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if not _is_plain(layer, names, x):
        return PEFT_FORWARD(layer, x, *args, **options)
    (name,) = names
    base, rows = layer.base_layer, x.flatten(0, -2)  # (tokens, in)
    dropped = layer.lora_dropout[name](rows)
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    out = _Lora.apply(
        rows,
        None if dropped is rows else dropped,
        base.weight,
        base.bias,
        a,
        b,
        layer.scaling[name],
    )
    return out.view(*x.shape[:-1], -1)


def _is_plain(layer: LoraLinear, names: list[str], x: Tensor) -> bool:
    base = layer.base_layer
    return (
        type(base) is nn.Linear
        and base.weight.dtype == x.dtype == torch.float32
        and len(names) == 1
        and not (layer.disable_adapters or layer.merged or layer.lora_variant)
        and not any(layer.lora_bias.values())
        and torch.backends.mkldnn.is_available()
    )


class _Lora(torch.autograd.Function):
    """Wx + sBAd without a gradient of W; d is x after dropout, None if there is none.

    Sums go into the large product instead of beside it: that saves as much time as they take.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (tokens, in)
        dropped: Tensor | None,  # (tokens, in)
        weight: Tensor,  # (out, in)
        bias: Tensor | None,
        a: Tensor,  # (rank, in)
        b: Tensor,  # (out, rank)
        scale: float,
    ) -> Tensor:
        thin = (x if dropped is None else dropped) @ a.T  # (tokens, rank)
        ctx.save_for_backward(x, dropped, weight, a, b, thin)
        ctx.scale = scale
        return _product(x, weight, bias).addmm_(thin, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        x, dropped, weight, a, b, thin = ctx.saved_tensors
        narrow = above @ b * ctx.scale  # (tokens, rank)
        to_a = narrow.T @ (x if dropped is None else dropped)
        to_b = above.T @ thin * ctx.scale
        to_x = _product(above, weight.T) if ctx.needs_input_grad[0] else None
        if dropped is not None:
            return to_x, narrow @ a, None, None, to_a, to_b, None
        if to_x is not None:
            to_x.addmm_(narrow, a)
        return to_x, None, None, None, to_a, to_b, None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Like functional.linear, by the operator of oneDNN that torch.compile uses on CPUs."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
