"""Sampling and scoring with a local model: the `hf` engine, one decode path for CPU and CUDA.

Generation and judging are the bill of a study, so this module is about not doing work twice.
It keeps transformers' forward pass and replaces what that pass calls: cache and attention.

Surprising decisions:
- Keys and values form a tree (`srkit.kv_cache`): the token prefix that all prompts share (a
  rubric), the rest of each distinct prompt, each row's own tokens. Every part is computed and
  stored once, and padding, late entry and retirement are one mechanism.
- Finished rows leave the batch and waiting prompts enter. A draw depends on the row's seed and
  the step alone, and inverts the distribution in the order of token ids, so that other company
  in the batch can change a token only where float rounding moves a boundary across the draw.
- On a CPU the rows of a call are dealt out to forked processes (`srkit.parallel`), which have the
  model and the shared prefix already.
- For the length of a call linear layers are replaced by faster copies (`srkit.linears`).

Decoding settings of the paper (sec. 3.1): temperature 0.7, top-p 0.9, for judging too.

    python -c "from srkit.config import Model; from srkit.models import load_policy; \\
        from srkit.generate import *; p = load_policy(Model(name='tiny')); \\
        print(sample(p, [[{'role': 'user', 'content': 'Hi'}]], 2, Sampling(8), [[0, 1]]))"
"""

from __future__ import annotations

import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from srkit.chat import context_of, encode_completion, encode_prompt, stop_token_ids
from srkit.config import SrkitError
from srkit.engine import Completion, Sampling
from srkit.kv_cache import NOWHERE, Level, Tree, gather
from srkit.linears import exact_head, prepared
from srkit.memory import free_bytes, needed, ran_out
from srkit.models import Policy
from srkit.parallel import fork_map, shares
from srkit.prompts import Conversation
from srkit.reading import shown

Ids = tuple[int, ...]

ROW_LIMIT = {"cpu": 64, "cuda": 256}  # beyond it more rows hardly raise tokens per second
MEMORY_SHARE = 0.7  # of free memory, for caches and logits; the rest is for activations
# Of prompts in one forward pass, which may read four times as many. With more, what a layer hands
# on leaves the cache: on one core 1024 read 9 % faster than 2048, and 34 % faster than 4096.
PREFILL_TOKENS = 1024
OPTION_LOGITS = 256  # positions in one forward pass that need logits over the vocabulary
ANSWER_LOGITS = 1024  # the same where one prompt's options alone are more
ROWS_EACH = 16  # that pay for a process of their own
TOKENS_EACH = 1024  # of prompts that only want scores
GROWTH = 128  # columns by which a row's cache grows
ADVICE = "Use a smaller model, or one in 4 bits (model.quantization=nf4)."
ROW_WORK = 512  # columns of attention that take about as long as a row's matrix products


@dataclass(frozen=True)
class HfEngine:
    """The functions of this module as an `srkit.engine.Engine`.

    `spent` counts tokens read and written.
    """

    policy: Policy
    spent: Counter[str] = field(default_factory=Counter)

    def sample(self, conversations: Sequence[Conversation], *how: Any) -> list[list[Completion]]:
        """As the function, of the policy."""
        self._count(conversations)
        drawn = sample(self.policy, conversations, *how)
        self.spent["written"] += sum(c.tokens for completions in drawn for c in completions)
        return drawn

    def score_options(self, conversations: Sequence[Conversation], *how: Any) -> np.ndarray:
        """As the function, of the policy."""
        self._count(conversations)
        return score_options(self.policy, conversations, *how)

    def _count(self, conversations: Sequence[Conversation]) -> None:
        ids = {tuple(encode_prompt(self.policy.tokenizer, c)) for c in conversations}
        self.spent["read"] += sum(map(len, ids))


def sample(
    policy: Policy,
    conversations: Sequence[Conversation],
    n: int,
    sampling: Sampling,
    seeds: Sequence[Sequence[int]],
) -> list[list[Completion]]:
    """Draw `n` completions of each of P conversations; `seeds` (P, n) gives each row its stream.

    A final assistant message is a prefix that generation continues. Returns (P, n) completions.

    Raises:
        SrkitError: a prompt does not fit the model's context, memory does not hold a single row,
            or the architecture's attention is not one that this engine computes.
    """
    rules = _Rules(policy, sampling)
    prompts: dict[Ids, _Prompt] = {}
    grid = []
    for conversation, streams in zip(conversations, seeds, strict=True):
        ids = tuple(encode_prompt(policy.tokenizer, conversation))
        rows = [_Row(len(ids), seed, rules) for _, seed in zip(range(n), streams, strict=True)]
        prompts.setdefault(ids, _Prompt(ids)).rows.extend(rows)
        grid.append(rows)
    if n and prompts:
        _check_room(policy, prompts, sampling.max_tokens)
        with needed("generating", ADVICE), torch.no_grad(), prepared(policy.model) as model:
            _sample(model, list(prompts.values()), sampling)
    return [[row.completion() for row in rows] for rows in grid]


def score_options(
    policy: Policy, conversations: Sequence[Conversation], options: Sequence[str]
) -> np.ndarray:
    """Log-probability (natural, temperature 1) of each option as continuation of each conversation.

    An option is encoded as given, without special tokens: after a forced prefix "Score:" it is
    " 3", not "3". Its tokens' log-probabilities are summed; whether the text ends there is open.

    Returns: float64 (P, options). Raises: SrkitError as `sample`, or if an option has no tokens.
    """
    encoded = [policy.tokenizer.encode(option, add_special_tokens=False) for option in options]
    if not all(encoded):
        raise SrkitError(
            f"score_options was given the option {options[encoded.index([])]!r}, which has no "
            "tokens. Every option needs text that the tokenizer keeps; leave this one out."
        )
    ids = [tuple(encode_prompt(policy.tokenizer, c)) for c in conversations]
    if not (ids and encoded):
        return np.zeros((len(ids), len(encoded)))
    _check_room(policy, ids, max(map(len, encoded)))
    with needed("scoring", ADVICE), torch.no_grad(), prepared(policy.model) as model:
        prompts = [_Prompt(i) for i in dict.fromkeys(ids)]
        parts = _parts(model, prompts, [len(p.ids) for p in prompts], TOKENS_EACH)
        batch = _Batch(model, ids, max(map(len, encoded)), len(parts))
        scores: dict[Ids, list[float]] = {}
        for found in fork_map(lambda part: batch.score(part, encoded), parts):
            scores |= found
    return np.array([scores[i] for i in ids], dtype=np.float64)


def score_answers(
    policy: Policy, conversations: Sequence[Conversation], answers: Sequence[Sequence[str]]
) -> list[list[tuple[float, int]]]:
    """Log-probability (natural, temperature 1) of whole answers, and how many tokens they are.

    `answers` has those to each conversation, which is read once for all of them. Tokens are those
    of training on a finished answer, the end of turn included (`models.encode_completion`).

    Returns: (P, its answers). Raises: SrkitError as `sample`.
    """
    ids = [tuple(encode_prompt(policy.tokenizer, c)) for c in conversations]
    encoded = [[encode_completion(policy.tokenizer, a) for a in texts] for texts in answers]
    asked = [i for i, theirs in enumerate(encoded) if theirs]
    widths = {i: max(map(len, encoded[i])) for i in asked}
    for i in asked:
        _check_room(policy, [ids[i]], widths[i])
    if not asked:
        return [[] for _ in ids]
    with needed("scoring", ADVICE), torch.no_grad(), prepared(policy.model) as model:

        def work(part: list[int]) -> dict[int, list[float]]:
            found = {}
            for i in part:
                batch = _Batch(model, [ids[i]], widths[i])
                found |= {i: batch.score([_Prompt(ids[i])], encoded[i])[ids[i]]}
            return found

        weights = [len(ids[i]) + sum(map(len, encoded[i])) for i in asked]
        scores: dict[int, list[float]] = {}
        for found in fork_map(work, _parts(model, asked, weights, TOKENS_EACH)):
            scores |= found
    return [
        list(zip(scores.get(i, []), map(len, theirs), strict=True))
        for i, theirs in enumerate(encoded)
    ]


def _check_room(policy: Policy, prompts: Iterable[Ids], columns: int) -> None:
    """Refuse a prompt that, with `columns` tokens more, is longer than the model's context."""
    context = context_of(policy.model)
    longest = max(prompts, key=len)
    if len(longest) + columns > context:
        begins = policy.tokenizer.decode(longest[:40], skip_special_tokens=True)
        raise SrkitError(
            f"A prompt of {len(longest)} tokens and {columns} more do not fit the model's context "
            f"of {context} tokens; it begins {shown(begins)}. Shorten the prompt to "
            f"{max(0, context - columns)} tokens (seed.max_words), ask for fewer tokens "
            "(max_tokens), or use a model with a longer context."
        )


def _sample(model: nn.Module, prompts: list[_Prompt], sampling: Sampling) -> None:
    """Complete all rows, on a CPU in several processes where there are enough of them."""
    if model.device.type == "cpu":
        prompts = _pieces(prompts)
    parts = _parts(model, prompts, [len(prompt.rows) for prompt in prompts], ROWS_EACH)
    batch = _Batch(model, [p.ids for p in prompts], sampling.max_tokens, len(parts))
    rows = [[row for prompt in part for row in prompt.rows] for part in parts]

    def work(number: int) -> list[tuple[list[int], bool]]:
        batch.sample(parts[number], sampling)
        return [(row.tokens, row.ended) for row in rows[number]]

    for mine, ends in zip(rows, fork_map(work, range(len(parts))), strict=True):
        for row, (tokens, ended) in zip(mine, ends, strict=True):
            row.tokens, row.ended = tokens, ended


def _pieces(prompts: list[_Prompt]) -> list[_Prompt]:
    """A prompt with more rows than a process gets is read by several."""
    total = sum(len(prompt.rows) for prompt in prompts)
    most = max(ROWS_EACH, -(-total // torch.get_num_threads()))
    starts = [(prompt, i) for prompt in prompts for i in range(0, len(prompt.rows), most)]
    return [_Prompt(prompt.ids, prompt.rows[i : i + most]) for prompt, i in starts]


def _parts(
    model: nn.Module, prompts: list[_Prompt], weights: list[int], each: int
) -> list[list[_Prompt]]:
    return shares(prompts, weights, each) if model.device.type == "cpu" else [prompts]


# --- drawing a token -----------------------------------------------------------------------------


def draw(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> Tensor:
    """Exact temperature and top-p sampling by inversion: (batch, vocab) logits -> (batch,) ids.

    The nucleus is the smallest set of most probable tokens that holds at least `top_p`. It is
    looked for among the best 64 tokens, then 1024, then all; the normaliser is over all tokens.
    `uniforms`: (batch,) float64 in [0, 1). Raises: SrkitError if logits are not finite.
    """
    if temperature == 0:
        ids = logits.argmax(-1)  # that of a NaN, if there is one
        _check_finite(logits.gather(-1, ids[:, None]))
        return ids
    logits = logits.float() / temperature
    total = logits.logsumexp(-1, keepdim=True)
    _check_finite(total)
    if top_p == 1:
        return _invert((logits - total).exp(), uniforms)
    tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    rows = torch.arange(len(logits), device=logits.device)
    for width in (64, 1024, logits.shape[1]):
        best, ids = logits.topk(min(width, logits.shape[1]))
        mass = (best - total).exp()  # (rows, width), most probable first
        covered = mass.cumsum(-1)
        mass *= covered - mass < top_p
        ids, order = ids.sort()
        tokens[rows] = ids.gather(1, _invert(mass.gather(1, order), uniforms)[:, None])[:, 0]
        left = covered[:, -1] < top_p
        if not left.any():
            break
        rows, logits, total, uniforms = (x[left] for x in (rows, logits, total, uniforms))
    return tokens


def _check_finite(values: Tensor) -> None:
    if not values.isfinite().all():
        raise SrkitError(
            "The model's logits are not finite, so nothing can be drawn from them. A float16 model "
            "overflows, or an adapter is broken: set model.dtype=bfloat16 or float32, or train the "
            "adapter again with a lower learning rate."
        )


def _invert(mass: Tensor, uniforms: Tensor) -> Tensor:
    """The first column at which the running share of the row's mass exceeds its uniform."""
    below = mass.double().cumsum(-1)
    picks = (below <= uniforms[:, None] * below[:, -1:]).sum(-1)
    return picks.clamp(max=mass.shape[1] - 1)


# --- rows and prompts ----------------------------------------------------------------------------


class _Rules:
    """When a row ends, and how its tokens read."""

    def __init__(self, policy: Policy, sampling: Sampling):
        self.tokenizer = policy.tokenizer
        self.stop_ids = stop_token_ids(policy.tokenizer, policy.model)
        self.pattern = re.compile(sampling.stop) if sampling.stop else None
        self.max_tokens = sampling.max_tokens

    def decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


class _Row:
    """One sample: its random numbers, its tokens, and its entry in the batch's cache."""

    def __init__(self, prompt_length: int, seed: int, rules: _Rules):
        self.prompt_length, self.rules = prompt_length, rules
        # The first k numbers of a generator do not depend on how many are drawn after them.
        self.uniforms = np.random.default_rng(seed).random(rules.max_tokens)
        self.restart()

    def restart(self) -> None:
        self.tokens: list[int] = []
        self.ended = False  # by an end token or a stop match
        self.text = ""  # for the stop pattern alone
        self.anchor = self.read = 0
        self.slot: int | None = None

    @property
    def done(self) -> bool:
        return self.ended or len(self.tokens) == self.rules.max_tokens

    @property
    def position(self) -> int:
        """Of the last token drawn, which the next forward pass reads."""
        return self.prompt_length + len(self.tokens) - 1

    def add(self, token: int) -> None:
        if token in self.rules.stop_ids:
            self.ended = True
            return
        self.tokens.append(token)
        if self.rules.pattern:
            self._read()
            self.ended = self.rules.pattern.search(self.text) is not None

    def _read(self) -> None:
        """Extend `text` by decoding the last tokens only.

        They are decoded together with the ones read before, since many tokenizers drop a leading
        space, and not before they make whole characters.
        """
        seen = self.rules.decode(self.tokens[self.anchor : self.read])
        text = self.rules.decode(self.tokens[self.anchor :])
        if not text.endswith("\ufffd"):
            self.text += text[len(seen) :]
            self.anchor, self.read = self.read, len(self.tokens)

    def completion(self) -> Completion:
        text, ids = self.rules.decode(self.tokens), tuple(self.tokens)
        return Completion(text, len(ids), not self.ended, ids)


@dataclass
class _Prompt:
    """A distinct prompt, its rows that are not done, and where its cache is: (level, entry)."""

    ids: Ids
    rows: list[_Row] = field(default_factory=list)
    home: tuple[int, int] = (0, 0)


# --- the batch -----------------------------------------------------------------------------------


class _Batch:
    """The rows being written and the caches they read; `columns`: the most tokens a row adds."""

    def __init__(self, model: nn.Module, ids: list[Ids], columns: int, batches: int = 1):
        config = model.config.get_text_config()
        self.model, self.device, self.columns = model, model.device, columns
        self.limit = ROW_LIMIT.get(self.device.type, ROW_LIMIT["cpu"])
        # The last token stays out of the prefix: every prompt needs logits of its own.
        self.shared = min(len(os.path.commonprefix(ids)), min(map(len, ids)) - 1)  # noqa: RUF071
        self.prefix: list[Level] = []
        if self.shared:
            self.prefix = [Level(1, self.shared, self.device)]
            positions = torch.arange(self.shared)[None]
            self._forward(self.prefix, torch.tensor([ids[0][: self.shared]]), positions)
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        layers = config.num_hidden_layers
        self.column_bytes = 2 * layers * kv_heads * size * model.dtype.itemsize
        self.row_bytes = (columns + GROWTH) * self.column_bytes + 16 * config.vocab_size
        self.budget = MEMORY_SHARE * free_bytes(self.device) / batches
        self._clear()

    def sample(self, prompts: Iterable[_Prompt], sampling: Sampling) -> None:
        """Complete every row of every prompt, longest prompts first."""
        self.sampling = sampling
        waiting = deque(sorted(prompts, key=lambda p: -len(p.ids)))
        while waiting or any(self._alive()):
            try:
                if 4 * sum(map(bool, self._alive())) <= 3 * self.packed or self.rows.full:
                    self._refill(waiting)
                else:
                    self._step()
                continue
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
                # the failed frames are held, and their tensors with them, until here
            self._retreat(waiting)

    def score(self, prompts: Iterable[_Prompt], options: list[list[int]]) -> dict[Ids, list[float]]:
        """Log-probabilities of the options after each prompt."""
        waiting = sorted(prompts, key=lambda p: -len(p.ids))
        scores: dict[Ids, list[float]] = {}
        while waiting:
            chunk = waiting[: self._chunk(waiting, len(options) * self.columns)]
            try:
                with exact_head(self.model):
                    rows = self._score(chunk, options)
                scores |= zip((p.ids for p in chunk), rows, strict=True)
                waiting = waiting[len(chunk) :]
                continue
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
            self._halve(len(chunk))
        return scores

    def _score(self, prompts: list[_Prompt], options: list[list[int]]) -> list[list[float]]:
        level, logits = self._prefill(prompts)
        first = torch.tensor([option[0] for option in options], device=self.device)
        scores = logits.float().log_softmax(-1)[:, first]  # (prompts, options)
        width = max(map(len, options)) - 1
        if width:
            each = max(1, ANSWER_LOGITS // (width * len(prompts)))
            for start in range(0, len(options), each):
                part = options[start : start + each]
                scores[:, start : start + each] += self._score_rest(prompts, level, part, width)
        return scores.tolist()

    def _score_rest(
        self, prompts: list[_Prompt], level: Level, options: list[list[int]], width: int
    ) -> Tensor:
        """Of the options' tokens after the first: a branch for each option of each prompt."""
        padded = torch.tensor([option + [-1] * (width + 1 - len(option)) for option in options])
        steps = torch.where(padded[:, 1:] >= 0, torch.arange(width), NOWHERE)
        starts = torch.tensor([len(p.ids) for p in prompts]).repeat_interleave(len(options))
        positions = starts[:, None] + steps.repeat(len(prompts), 1)
        branch = Level(len(positions), width, self.device)
        ids = padded[:, :-1].clamp(min=0).repeat(len(prompts), 1)
        levels = [*self.prefix, level, branch]
        logits = self._forward(levels, ids, positions.clamp(max=NOWHERE), keep=0)
        targets = padded[:, 1:].repeat(len(prompts), 1).to(self.device)[..., None]
        found = logits.float().log_softmax(-1).gather(-1, targets.clamp(min=0))
        return (found * (targets >= 0)).sum((1, 2)).view(len(prompts), -1)

    def _forward(
        self, levels: list[Level], ids: Tensor, positions: Tensor, keep: int = 1
    ) -> Tensor:
        """Run (batch, new) tokens, writing the last level: logits of the last `keep`, 0 for all."""
        ids, positions = ids.to(self.device), positions.to(self.device)
        levels[-1].extend(positions)
        tree = Tree(levels, positions)
        return self.model(
            input_ids=ids,
            position_ids=positions.masked_fill(positions == NOWHERE, 0),
            past_key_values=tree,
            use_cache=True,
            logits_to_keep=keep,
            tree=tree,
        ).logits

    def _prefill(self, prompts: list[_Prompt]) -> tuple[Level, Tensor]:
        """Run what follows the prefix, aligned at the end: level, logits (prompts, vocab)."""
        width = max(len(p.ids) for p in prompts) - self.shared
        ids = torch.zeros((len(prompts), width), dtype=torch.long)
        positions = torch.full((len(prompts), width), NOWHERE)
        for i, prompt in enumerate(prompts):
            own = slice(width + self.shared - len(prompt.ids), width)
            ids[i, own] = torch.tensor(prompt.ids[self.shared :])
            positions[i, own] = torch.arange(self.shared, len(prompt.ids))
        level = Level(len(prompts), width, self.device)
        return level, self._forward([*self.prefix, level], ids, positions)[:, 0]

    def _chunk(self, prompts: list[_Prompt], logits: int = 1) -> int:
        """How many of the prompts, longest first, go into one forward pass."""
        longest = len(prompts[0].ids)
        new, read = PREFILL_TOKENS // (longest - self.shared), 4 * PREFILL_TOKENS // longest
        return max(1, min(new, read, OPTION_LOGITS // logits, self.limit))

    def _alive(self) -> list[_Row | None]:
        return [None if row is None or row.done else row for row in self.slots]

    def _step(self) -> None:
        """Read each row's last token, draw its next one. Empty slots compute, and are not read."""
        rows = self._alive()
        ids = torch.tensor([[row.tokens[-1] if row else 0] for row in rows])
        positions = torch.tensor([[row.position if row else 0] for row in rows])
        levels = [*self.prefix, self.prompts, self.rows]
        self._extend(rows, self._forward(levels, ids, positions)[:, 0])

    def _extend(self, rows: list[_Row | None], logits: Tensor) -> None:
        uniforms = [row.uniforms[len(row.tokens)] if row else 0.0 for row in rows]
        uniforms = torch.tensor(uniforms, dtype=torch.float64, device=self.device)
        tokens = draw(logits, uniforms, self.sampling.temperature, self.sampling.top_p)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if row:
                row.add(token)

    def _refill(self, waiting: deque[_Prompt]) -> None:
        """Let done rows go and waiting prompts in, then lay the caches out anew."""
        self._drop_done()
        sources = [self.prompts] if self.live else []
        fresh = self._admit(waiting)
        self.live += fresh
        while fresh:
            chunk, fresh = fresh[: self._chunk(fresh)], fresh[self._chunk(fresh) :]
            level, logits = self._prefill(chunk)
            owners = [i for i, prompt in enumerate(chunk) for _ in prompt.rows]
            self._extend([row for prompt in chunk for row in prompt.rows], logits[owners])
            for i, prompt in enumerate(chunk):
                prompt.home = (len(sources), i)
            sources.append(level)
        self._drop_done()
        if self.live:
            self._lay_out(sources)
        else:
            self._clear()

    def _lay_out(self, sources: list[Level]) -> None:
        each = self._rows_per_entry(self.live) or 1
        homes: list[tuple[int, int]] = []
        self.slots = []
        for prompt in self.live:
            for start in range(0, len(prompt.rows), each):
                rows = prompt.rows[start : start + each]
                homes.append(prompt.home)
                self.slots += rows + [None] * (each - len(rows))
            prompt.home = (0, len(homes) - 1)
        self.prompts = gather(sources, homes, 0, self.device)
        rows = [row for row in self.slots if row]
        self.packed = len(rows)
        picks = [(0, r.slot) if r and r.slot is not None else None for r in self.slots]
        room = min(GROWTH, max(self.columns - len(row.tokens) for row in rows))
        self.rows = gather([self.rows] if self.rows else [], picks, room, self.device)
        for slot, row in enumerate(self.slots):
            if row:
                row.slot = slot

    def _admit(self, waiting: deque[_Prompt]) -> list[_Prompt]:
        """Take prompts while they fit. Into an empty batch comes at least one row of one prompt."""
        fresh: list[_Prompt] = []
        while waiting:
            head = waiting[0]
            if self._rows_per_entry([*self.live, *fresh, head]):
                fresh.append(waiting.popleft())
            elif self.live or fresh:
                break
            elif len(head.rows) == 1:
                return [waiting.popleft()]
            else:
                half = len(head.rows) // 2
                waiting.insert(1, _Prompt(head.ids, head.rows[half:]))
                head.rows = head.rows[:half]
        return fresh

    def _rows_per_entry(self, prompts: list[_Prompt]) -> int | None:
        """How many rows shall share one copy of their prompt; None if the prompts do not fit.

        All copies serve equally many rows, so sharing saves copies but leaves slots empty.
        """
        width = max(len(p.ids) for p in prompts) - self.shared
        costs = {}
        for each in range(1, max(len(p.rows) for p in prompts) + 1):
            entries = sum(-(-len(p.rows) // each) for p in prompts)
            slots = entries * each
            size = entries * width * self.column_bytes + slots * self.row_bytes
            if slots <= self.limit and size <= self.budget:
                costs[each] = slots * ROW_WORK + entries * width
        return min(costs, key=costs.get, default=None)

    def _drop_done(self) -> None:
        for prompt in self.live:
            prompt.rows = [row for row in prompt.rows if not row.done]
        self.live = [prompt for prompt in self.live if prompt.rows]

    def _clear(self) -> None:
        self.live: list[_Prompt] = []
        self.slots: list[_Row | None] = []
        self.packed = 0  # rows alive when the caches were last laid out
        self.prompts = self.rows = None

    def _retreat(self, waiting: deque[_Prompt]) -> None:
        """After running out of memory: done rows are done, the others start again later."""
        self._drop_done()
        again = self.live
        self._clear()
        for prompt in again:
            for row in prompt.rows:
                row.restart()
        waiting.extendleft(reversed(again))
        self._halve(sum(len(prompt.rows) for prompt in again))

    def _halve(self, tried: int) -> None:
        self.limit = min(self.limit, tried) // 2
        if not self.limit:
            raise SrkitError(
                "Memory ran out with a single row in the batch. Ask for fewer max_tokens, use a "
                "smaller or 4-bit model, or free memory that other programs hold on the device."
            )
        torch.cuda.empty_cache()
