"""Keys and values as a tree of shared prefixes, and the attention that reads them where they lie.

Surprising decisions:
- A tree has levels: the token prefix that all prompts share, the rest of each distinct prompt, each
  row's own tokens. No prompt's cache is repeated for the rows that are drawn from it.
- A column that means nothing to a row has a position in the far future, which the causal rule
  hides. There is no other mask: padding, late entry and retirement are this one mechanism.
- transformers finds the attention by the name ATTENTION. The cache gives nothing back to attend to,
  so that a model whose attention cannot be redirected fails instead of computing another one.

    python -c "from srkit.kv_cache import *; print(ATTENTION, NOWHERE)"
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from srkit.config import SrkitError

ATTENTION = "srkit"  # in transformers' registry
NOWHERE = 2**30  # position of a column that holds nothing: after every real position


class Level:
    """Keys and values of `entries` runs of tokens, with room for `capacity` columns."""

    def __init__(self, entries: int, capacity: int, device: torch.device):
        self.positions = torch.full((entries, capacity), NOWHERE, device=device)
        self.layers: list[Tensor] = []  # (2, kv_heads, entries, capacity, head_size)
        self.used = 0

    @property
    def full(self) -> bool:
        return self.used == self.positions.shape[1]

    def extend(self, positions: Tensor) -> None:  # (entries, new)
        self.positions[:, self.used : self.used + positions.shape[1]] = positions
        self.used += positions.shape[1]

    def write(self, keys: Tensor, values: Tensor, layer: int) -> None:
        entries, heads, new, size = keys.shape
        if layer == len(self.layers):
            # Zeros: a hidden column has weight 0, and 0 times what lay in memory could be NaN.
            shape = (2, heads, entries, self.positions.shape[1], size)
            self.layers.append(keys.new_zeros(shape))
        for half, states in zip(self.layers[layer], (keys, values), strict=True):
            half[:, :, self.used - new : self.used] = states.transpose(0, 1)

    def read(self, layer: int) -> Tensor:  # (2, kv_heads, entries, used, head_size)
        return self.layers[layer][:, :, :, : self.used]


def gather(
    sources: list[Level], picks: list[tuple[int, int] | None], room: int, device: torch.device
) -> Level:
    """A level whose entry i copies picks[i] = (source, entry), or is empty if that is None.

    Columns that no pick uses are dropped, `room` free ones follow. The sources are emptied layer
    by layer, so that only one layer is ever held twice.
    """
    parts = []
    for number, source in enumerate(sources):
        to = [i for i, pick in enumerate(picks) if pick and pick[0] == number]
        entries = torch.tensor([picks[i][1] for i in to], dtype=torch.long, device=device)
        columns = (source.positions[entries] < NOWHERE).any(0).nonzero()[:, 0]
        if len(columns):
            parts.append((torch.tensor(to, device=device), source, entries, columns))
    width = max((len(columns) for *_, columns in parts), default=0)
    level = Level(len(picks), width + room, device)
    level.used = width
    for to, source, entries, columns in parts:
        level.positions[to, : len(columns)] = source.positions[entries][:, columns]
    for layer in range(len(parts[0][1].layers) if parts else 0):
        _, heads, _, _, size = parts[0][1].layers[layer].shape
        shape = (2, heads, len(picks), width + room, size)
        new = parts[0][1].layers[layer].new_zeros(shape)
        for to, source, entries, columns in parts:
            copy = source.layers[layer].index_select(2, entries).index_select(3, columns)
            new[:, :, to, : len(columns)] = copy
            source.layers[layer] = copy[:, :, :0]
        level.layers.append(new)
    return level


class Tree:
    """The cache of one forward pass: levels from the shared root to the one being written.

    A level's entries divide the batch evenly: entry i of m serves the i-th of m blocks of rows.
    """

    def __init__(self, levels: list[Level], queries: Tensor):
        self.levels, self.queries = levels, queries  # positions, (batch, new)
        repeats = [len(queries) // len(level.positions) for level in levels]
        self.columns = torch.cat(
            [
                level.positions[:, : level.used].repeat_interleave(times, 0)
                for level, times in zip(levels, repeats, strict=True)
            ],
            dim=1,
        )  # (batch, columns)
        self.biases: dict[int | None, Tensor] = {}

    def bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """What to add to scores, (batch, new, columns): 0 where visible, minus infinity elsewhere.

        Layers of one kind share it.
        """
        if window not in self.biases:
            columns, queries = self.columns[:, None, :], self.queries[:, :, None]
            hidden = columns > queries
            hidden = hidden | (columns <= queries - window) if window else hidden
            zeros = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self.biases[window] = zeros.masked_fill_(hidden, -torch.inf)
        return self.biases[window]

    def update(self, keys: Tensor, values: Tensor, layer: int, *_, **__) -> tuple[None, None]:
        """Store. Returns nothing to attend to, so that an attention other than ours fails."""
        self.levels[-1].write(keys, values, layer)
        return None, None

    def get_seq_length(self, layer: int = 0) -> int:
        return self.columns.shape[1] - self.queries.shape[1]


def attend(
    module: nn.Module,
    query: Tensor,
    key: None,
    value: None,
    attention_mask: None,
    scaling: float,
    tree: Tree,
    sliding_window: int | None = None,
    **options,
) -> tuple[Tensor, None]:
    """What transformers calls: (batch, heads, new, size) -> (batch, new, heads, size).

    Heads come first in the cache and here, so that all queries that see one entry's key head are
    one matrix without a copy: with few new tokens the tree is read in place.
    """
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise unsupported(module)
    batch, heads, new, size = query.shape
    bias = tree.bias(sliding_window, query.dtype)
    levels = [level.read(module.layer_idx) for level in tree.levels]
    kv_heads = levels[0].shape[1]
    if new > 16:  # a prompt: a fused kernel that never holds all scores is worth a copy
        joined = [level.repeat_interleave(batch // level.shape[2], 2) for level in levels]
        keys, values = (
            torch.cat(joined, dim=3).transpose(1, 2).repeat_interleave(heads // kv_heads, 2)
        )
        mixed = functional.scaled_dot_product_attention(
            query, keys, values, bias[:, None], scale=scaling
        )
        return mixed.transpose(1, 2), None
    query = (query * scaling).reshape(batch, kv_heads, -1, size)
    query = query.transpose(0, 1).contiguous()  # (kv_heads, batch, group * new, size)
    blocks = [kv_heads * level.shape[2] for level in levels]
    scores = torch.cat(
        [
            torch.bmm(query.view(block, -1, size), keys.flatten(0, 1).transpose(1, 2)).view(
                kv_heads, batch, query.shape[2], -1
            )
            for block, (keys, _) in zip(blocks, levels, strict=True)
        ],
        dim=3,
    )  # (kv_heads, batch, group * new, columns)
    by_query = scores.view(kv_heads, batch, -1, new, scores.shape[3])
    by_query += bias[:, None]
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    parts = weights.split([level.used for level in tree.levels], dim=3)
    mixed = sum(
        torch.bmm(part.reshape(block, -1, part.shape[3]), values.flatten(0, 1)).view(query.shape)
        for block, part, (_, values) in zip(blocks, parts, levels, strict=True)
    )
    mixed = mixed.view(kv_heads, batch, -1, new, size).permute(1, 3, 0, 2, 4)
    return mixed.reshape(batch, new, heads, size), None


def unsupported(module: nn.Module, does: str = "the hf engine does not compute") -> SrkitError:
    """The error for a model of another attention; `does` says who cannot deal with it."""
    return SrkitError(
        f"{type(module).__name__} has an attention that {does} (capped scores, attention sinks, or "
        "code that transformers cannot redirect). Use a model of another kind (Llama, Mistral, "
        "Qwen, SmolLM, Phi, Gemma 3)."
    )


AttentionInterface.register(ATTENTION, attend)
