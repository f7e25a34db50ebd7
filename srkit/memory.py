"""How many bytes a model takes while it generates and while it is trained, and how many are free.

A `Shape` is the few numbers of a model's config.json that decide it, for the family that the kit
runs (Llama, Mistral, Qwen, SmolLM: gated MLP, grouped-query attention, RMSNorm). Everything here is
counted by hand from what transformers, PEFT and TRL hold, and tested against the real thing.

Surprising decisions:
- Vectors are left out (norms, biases): less than one parameter in a thousand.
- While it generates, srkit.generate holds a second copy of the linear layers where memory allows,
  so the expected peak has it and the lower estimate does not.
- What a program needs besides tensors is measured, or else the constant PROCESS.

    python -c "from srkit.memory import *; print(SHAPES['Qwen/Qwen3-8B-Base'].parameters / 1e9)"
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import psutil

from srkit.config import Dpo, Model, Sft, SrkitError

if TYPE_CHECKING:
    import torch

ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}
# 4 bits, a byte of scale for 64 of them, and a float32 for 256 scales (QLoRA, arXiv 2305.14314, 3).
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
LIGHT = 200e6  # Python without torch: steps that ask no model
PROCESS = {"cpu": 750e6, "cuda": 500e6}  # Python with torch and TRL; a CUDA context
ROWS = {"cpu": 64, "cuda": 256}  # the most that srkit.generate writes at once in a process
ROWS_EACH = 16  # for which it takes another process on a CPU
CACHE_SHARE = 0.7  # of free memory, for caches and logits
PREFILL = 1024  # tokens of prompts in one of its forward passes
HEAD = 2**24  # logits at once in training on a CPU
TILE = (4096, 32768)  # tokens and words of TRL's tile of logits on a GPU (its chunked_logprob)
LOGITS = 16  # bytes per row and word of the vocabulary while a token is drawn
HEAP = {"cpu": 1.75, "cuda": 1.1}  # measured peak over what tensors need, for what comes and goes


def ran_out(error: Exception) -> bool:
    """Whether memory ran out: CUDA's and Python's errors say so by type, torch's on a CPU in words.

    oneDNN, seen under a limit, has words of its own: it says what it could not create.
    """
    onednn = ("could not create a primitive", "could not create a memory object")
    words = ("can't allocate memory", "bad_alloc", *onednn)
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or any(word in str(error) for word in words)


def free_bytes(device: torch.device) -> int:
    """Memory that a device has left, with what torch holds there and does not use."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    import torch

    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + idle


@contextmanager
def needed(doing: str, advice: str) -> Iterator[None]:
    """Say what to do where memory runs out; other errors pass. Raises: SrkitError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise SrkitError(
            f"Memory ran out while {doing} ({reason[:200]}). {advice} Or close other programs, and "
            "run the same command again: what was made is kept."
        ) from error


@dataclass(frozen=True)
class Shape:
    """The numbers of a model's config.json that decide its size."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocab: int
    tied: bool  # the output layer is the embedding

    @classmethod
    def of(cls, config: Any) -> Shape:
        """From a transformers config. Raises: AttributeError if it is of another family."""
        config = config.get_text_config()
        heads = config.num_attention_heads
        return cls(
            config.hidden_size,
            config.num_hidden_layers,
            heads,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            config.intermediate_size,
            config.vocab_size,
            config.tie_word_embeddings,
        )

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's linear maps, by the names that LoRA targets."""
        h, i = self.hidden, self.intermediate
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = {"q_proj": (h, queries), "k_proj": (h, keys), "v_proj": (h, keys)}
        mlp = {"gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)}
        return attention | {"o_proj": (queries, h)} | mlp

    @property
    def linear_parameters(self) -> int:
        """Of all layers, without embedding and output layer: what 4-bit weights are made of."""
        return self.layers * sum(a * b for a, b in self.linears.values())

    @property
    def head(self) -> int:
        """Parameters of the output layer, and of the embedding."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Of the base."""
        return self.linear_parameters + self.head * (1 if self.tied else 2)

    def adapter_parameters(self, model: Model) -> int:
        """Of a LoRA adapter: rank x (inputs + outputs) for each targeted map."""
        names = self.linears if model.lora_targets == "all-linear" else model.lora_targets
        width = sum(sum(self.linears[name]) for name in names if name in self.linears)
        return self.layers * model.lora_rank * width


# From the public config.json of each model that a preset names, on its page at huggingface.co.
SHAPES = {
    "tiny": Shape(64, 2, 4, 2, 16, 128, 584, True),
    "smollm2-135m": Shape(576, 30, 9, 3, 64, 1536, 49152, True),
    "HuggingFaceTB/SmolLM2-1.7B": Shape(2048, 24, 32, 32, 64, 8192, 49152, True),
    "HuggingFaceTB/SmolLM3-3B-Base": Shape(2048, 36, 16, 4, 128, 11008, 128256, True),
    "Qwen/Qwen3-4B-Base": Shape(2560, 36, 32, 8, 128, 9728, 151936, True),
    "Qwen/Qwen3-8B-Base": Shape(4096, 36, 32, 8, 128, 12288, 151936, False),
    "Qwen/Qwen3-14B-Base": Shape(5120, 40, 40, 8, 128, 17408, 151936, False),
    "meta-llama/Llama-2-70b-hf": Shape(8192, 80, 64, 8, 128, 28672, 32000, False),
}


@dataclass(frozen=True)
class Memory:
    """Bytes of a step at its peak, by what they are for."""

    process: float = 0
    weights: float = 0
    adapter: float = 0
    copies: float = 0  # of linear layers, while generating
    kv_cache: float = 0
    activations: float = 0
    logits: float = 0
    gradients: float = 0
    optimizer: float = 0

    @property
    def peak(self) -> float:
        """What is expected: the sum."""
        return sum(asdict(self).values())

    @property
    def low(self) -> float:
        """What no setting of the batch avoids: the process and what holds parameters."""
        return self.process + self.weights + self.adapter + self.gradients + self.optimizer

    @property
    def required(self) -> float:
        """What is expected to be needed: generation can do with smaller batches, training not."""
        return self.low if self.kv_cache else self.low + self.activations + self.logits


def weights(shape: Shape, item: int, quantization: str = "none") -> float:
    """Bytes of the base. NF4 is for the linear layers; the rest stays in the computing type."""
    dense = shape.parameters * item
    return dense - shape.linear_parameters * (item - NF4) if quantization == "nf4" else dense


def kv_cache(shape: Shape, item: int, tokens: float) -> float:
    """Bytes of the keys and values of so many tokens."""
    return 2 * shape.layers * shape.kv_heads * shape.head_size * item * tokens


def layer_activations(shape: Shape, rank: int, length: float) -> float:
    """Numbers per token that one layer's forward pass leaves for the backward pass.

    Two residuals and their two norms (hidden); queries, keys, values (repeated for all heads where
    there is padding) and what attention returns (heads x head size); gate, its SiLU, up and their
    product (intermediate); the inner of seven LoRA maps; two norms' and the heads' scales; the
    mask's row. Frozen weights want no input, so the maps themselves keep none but LoRA's.
    """
    attention = 4 * shape.heads * shape.head_size + shape.heads
    return 4 * shape.hidden + attention + 4 * shape.intermediate + 7 * rank + 2 + length


def generating(
    shape: Shape,
    model: Model,
    device: str,
    dtype: str,
    rows: int,
    prompts: float,
    length: float,
    room: float,
    processes: int = 1,
) -> Memory:
    """While `rows` are written at once, on `prompts` tokens of prompts, up to `length` each.

    The copies are made, and rows taken, as far as `room` (bytes) allows: see `srkit.generate`. Each
    of several `processes` has activations of its own.
    """
    item = ITEM[dtype]
    dense = model.quantization == "none"
    copies = (shape.linear_parameters + dense * shape.head) * item
    held = Memory(
        process=PROCESS[device],
        weights=weights(shape, item, model.quantization),
        adapter=4 * shape.adapter_parameters(model),
    )
    left = room - held.peak
    copied = not dense or (device == "cpu" and dtype == "float32")  # others read W where it lies
    copied = copied and 1.5 * copies < left
    left = max(left - copied * copies, 0)
    cache = kv_cache(shape, item, prompts + rows * length)
    words = LOGITS * shape.vocab * rows
    share = min(1, CACHE_SHARE * left / (cache + words))
    return replace(
        held,
        copies=copied * copies,
        kv_cache=HEAP[device] * share * cache,
        activations=processes
        * HEAP[device]
        * 4
        * (shape.intermediate + shape.hidden)
        * item
        * PREFILL,
        logits=share * words,
    )


def training(
    shape: Shape,
    model: Model,
    settings: Sft | Dpo,
    device: str,
    dtype: str,
    length: float,
    labelled: float,
) -> Memory:
    """While one micro-batch is trained on: `length` tokens a sequence, `labelled` with a loss.

    A pair of DPO is a prompt and two answers, and its reference a second adapter. AdamW holds two
    moments: float32, or 8 bits each. On a CPU logits are there three times, in float32: themselves,
    their log-softmax, its gradient, in parts (`srkit.logps`); on a GPU TRL holds one tile of them
    in the computing type, and the gradient of what goes into the output layer in float32. With
    checkpointing a layer keeps its input, and one its activations.
    """
    pairs = isinstance(settings, Dpo)
    answers = settings.micro_batch * labelled * (2 if pairs else 1)
    tokens = settings.micro_batch * (length - labelled) + answers
    item, adapter = ITEM[dtype], shape.adapter_parameters(model)
    logits = 3 * 4 * min(shape.vocab * answers, HEAD)
    if device == "cuda":
        tile = min(answers, TILE[0]) * min(shape.vocab, TILE[1])
        logits = tile * item + 4 * shape.hidden * answers
    layer = layer_activations(shape, model.lora_rank, length)
    kept = layer * shape.layers
    if settings.gradient_checkpointing:
        kept = shape.hidden * shape.layers + layer
    eight = "8bit" in settings.optimizer or (settings.optimizer == "auto" and device == "cuda")
    return Memory(
        process=PROCESS[device],
        weights=weights(shape, item, model.quantization),
        adapter=4 * adapter * (2 if pairs else 1),
        activations=HEAP[device] * kept * item * tokens,
        logits=logits,
        gradients=4 * adapter,
        optimizer=(2 if eight else 8) * adapter,
    )


def disk(shape: Shape, model: Model) -> float:
    """Bytes that a trained model leaves: its float32 adapter."""
    return 4 * shape.adapter_parameters(model)
