"""A model behind an OpenAI-compatible server: the `endpoint` engine, through the official client.

A stronger referee or writer than the study's own model can run anywhere. Only chat completions
are used. A row has its own request and seed, so its draw does not depend on the rows beside it.

Surprising decisions:
- Servers differ in what they do with a final assistant message, and one that opens a new turn
  after it answers another question without a word. So this is tried out first, on the server's
  count of prompt tokens: asking to continue makes the prompt shorter (vLLM), or the message adds
  its own tokens and no frame of another turn (llama.cpp). A server that does neither is refused.
- Some servers sample with a top-k, min-p or penalty of their own. They are switched off where the
  server knows these fields, so that temperature and top-p are all there is.
- No server stops at a regular expression: text is cut at the end of the first match, afterwards.
  `Completion.tokens` are the server's count, which is what was paid: with the text that was cut
  off, and with the end token where the server counts it.
- Log-probabilities are read from the 20 alternatives that servers list for a generated token
  (`option_logprobs`). Exact ones would need the server to echo its prompt, which few do.
- The server makes the tokens, and most read "<|im_end|>" in a message as the end of its turn. So
  control tokens as the common models write them are split by a space (`defuse`). Those of other
  models are not known here: with such a model, an answer may still speak as somebody else.

The key comes from the environment variable `endpoint.key_variable` and is written nowhere.

    python -c "from srkit.endpoint import *; e = EndpointEngine(Endpoint(model='smollm2', \\
        url='http://localhost:8000/v1')); print(e.sample([user('Hi')], 1, Sampling(9), [[0]]))"
"""

from __future__ import annotations

import math
import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from srkit.config import Endpoint, SrkitError
from srkit.engine import Completion, Sampling
from srkit.prompts import Conversation, user

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.chat import ChatCompletion

NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
BEGUN = "This is a list"  # four tokens, and more than a single token can hold
LISTED = 20  # alternatives per token; OpenAI and vLLM list no more
PAUSE = 0.5  # seconds before an answer that makes no sense is asked for again; then twice that
SEEDS = 2**31  # llama.cpp reads 32 bits, and its largest value as "random"
CONTROL = re.compile(  # of ChatML, Llama, DeepSeek; sentencepiece and Gemma; Mistral and Llama 2
    r"<(?=[|｜])|<(?=/?(?:s|bos|eos|pad|unk|mask|start_of_turn|end_of_turn)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT)\])"
    r"|<(?=</?SYS>>)"
)
KEPT = "What is finished is kept, in whole chunks; the same command goes on from there."


@dataclass(frozen=True)
class Listed:
    """A generated token, its log-probability, and those of the alternatives that are listed."""

    token: str
    logprob: float
    alternatives: tuple[tuple[str, float], ...]  # with the token itself, most probable first


def option_logprobs(
    positions: Sequence[Listed], options: Sequence[str], bound: bool = True
) -> np.ndarray:
    """Log-probabilities of options, from what a server lists for its most probable tokens.

    An option is looked for at the first token; where that token begins all options (" " before
    digits, in many tokenizers) at the next one, on top of its log-probability. Tokens that differ
    in white space only count where none is an option exactly: some servers drop a leading space.

    An option that is not listed beside one that is gets the least upper bound that the list
    allows: the order of a listed and an unlisted option is right, their distance at most the true
    one. It is NaN without `bound`. Returns float64 (options,); NaN throughout if none is listed.
    """
    for exact in (True, False):
        before, text = 0.0, ""
        for position in positions:
            found = [_logprob(position, option[len(text) :], exact) for option in options]
            if any(logprob is not None for logprob in found):
                unlisted = _bound(position) if bound else np.nan
                return before + np.array([unlisted if f is None else f for f in found])
            before, text = before + position.logprob, text + position.token
            if not all(option.startswith(text) for option in options):
                break
    return np.full(len(options), np.nan)


def _logprob(position: Listed, text: str, exact: bool) -> float | None:
    same = [
        logprob
        for token, logprob in position.alternatives
        if (token == text if exact else token.strip() == text.strip() != "")
    ]
    return float(np.logaddexp.reduce(same)) if same else None


def _bound(position: Listed) -> float:
    """No unlisted token is more probable than the least listed one, nor than what is left."""
    logprobs = [logprob for _, logprob in position.alternatives]
    left = 1 - math.fsum(map(math.exp, logprobs))
    return min(*logprobs, math.log(left) if left > 0 else 0.0)


def defuse(text: str) -> str:
    """The text with a space inside what would be a control token of a common model."""
    return CONTROL.sub(r"\g<0> ", text)


@dataclass(frozen=True)
class Answer:
    """What a chat completion says, checked: a server can send anything."""

    text: str
    ended: bool  # by itself: not at the limit, nor by a filter
    prompt_tokens: int
    completion_tokens: int
    listed: tuple[Listed, ...]  # empty unless log-probabilities were asked for and are given


def read_answer(answer: ChatCompletion) -> Answer:
    """Read a chat completion. Raises ValueError, TypeError, ... if it is none, or not whole."""
    choice, usage = answer.choices[0], answer.usage
    tokens = choice.logprobs.content or () if choice.logprobs else ()
    return Answer(
        text="" + (choice.message.content or ""),  # a TypeError if it is no text
        ended=choice.finish_reason == "stop",
        prompt_tokens=int(usage.prompt_tokens),
        completion_tokens=int(usage.completion_tokens),
        listed=tuple(
            Listed(
                t.token,
                float(t.logprob),
                tuple((a.token, float(a.logprob)) for a in t.top_logprobs),
            )
            for t in tokens
        ),
    )


@dataclass
class EndpointEngine:
    """The model `settings.model` at the server `settings.url`, as steps know engines.

    `spent` counts requests, prompt_tokens and completion_tokens. All methods raise SrkitError: a
    request that failed to the end of its retries, a server that cannot do what is asked, or a
    spent budget. `bound` is that of `option_logprobs`.
    """

    settings: Endpoint
    spent: Counter[str] = field(default_factory=Counter)
    bound: bool = True
    _lock: Lock = field(default_factory=Lock, repr=False)

    def sample(
        self,
        conversations: Sequence[Conversation],
        n: int,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
    ) -> list[list[Completion]]:
        """As `Engine.sample`; the server draws from seed modulo 2**31."""
        asked = {
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        rows = [
            (conversation, seed % SEEDS)
            for conversation, streams in zip(conversations, seeds, strict=True)
            for _, seed in zip(range(n), streams, strict=True)
        ]
        found = self._ask_all([self._request(c, **asked, seed=seed) for c, seed in rows])
        texts = (self._new_text(c, a) for (c, _), a in zip(rows, found, strict=True))
        drawn = (_completion(t, a, sampling.stop) for t, a in zip(texts, found, strict=True))
        return [list(islice(drawn, n)) for _ in conversations]

    def score_options(
        self, conversations: Sequence[Conversation], options: Sequence[str]
    ) -> np.ndarray:
        """As `Engine.score_options`, within the limits of `option_logprobs`."""
        longest = max(map(len, options), default=1)  # no option has more tokens than letters
        asked = {"logprobs": True, "top_logprobs": LISTED, "temperature": 0, "max_tokens": longest}
        answers = self._ask_all([self._request(c, **asked) for c in conversations])
        tokens = [token for answer in answers for token in answer.listed]
        if answers and (not tokens or any(len(token.alternatives) < 2 for token in tokens)):
            raise SrkitError(
                f"{self._name()} lists no log-probabilities of alternatives (top_logprobs), so it "
                "can write but not be a referee. vLLM, SGLang, llama.cpp and OpenAI list them."
            )
        scores = [option_logprobs(answer.listed, options, self.bound) for answer in answers]
        return np.array(scores, dtype=np.float64).reshape(len(conversations), len(options))

    # --- requests ------------------------------------------------------------------------------

    def _request(self, conversation: Conversation, **more: Any) -> dict[str, Any]:
        continued = conversation[-1]["role"] == "assistant"
        fields = self._neutral() | (self._continuation() if continued else {})
        messages = [{**message, "content": defuse(message["content"])} for message in conversation]
        return {"messages": messages, "extra_body": fields, **more}

    def _ask_all(self, requests: list[dict[str, Any]]) -> list[Answer]:
        """Answers in order; the first failure cancels what has not begun."""
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            answers = [pool.submit(self._ask, request) for request in requests]
            try:
                return [answer.result() for answer in answers]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _ask(self, request: dict[str, Any]) -> Answer:
        """One answer. The client repeats what failed on its way, this what came back broken."""
        create = self._link().client.chat.completions.create
        from openai import OpenAIError  # the line above has said so if it is not installed

        self._check_budget()
        for attempt in range(self.settings.retries + 1):
            try:
                answer = read_answer(create(model=self.settings.model, **request))
            except OpenAIError as error:
                raise self._failure(error) from None  # its trace would hold the request's headers
            except (ValueError, TypeError, AttributeError, LookupError):
                time.sleep(min(PAUSE * 2**attempt, 8))
                continue
            self._count(answer)
            return replace(answer, text=self._masked(answer.text))
        raise SrkitError(
            f"{self._name()} answered {self.settings.retries + 1} times with something that is no "
            "chat completion. Is it an OpenAI-compatible server, and endpoint.url complete, with "
            f"the /v1 that most addresses end in? {KEPT}"
        )

    def _count(self, answer: Answer) -> None:
        with self._lock:
            self.spent["requests"] += 1
            self.spent["prompt_tokens"] += answer.prompt_tokens
            self.spent["completion_tokens"] += answer.completion_tokens

    def _check_budget(self) -> None:
        used = self.spent["prompt_tokens"] + self.spent["completion_tokens"]
        limit = self.settings.max_tokens
        if 0 < limit <= used:
            raise SrkitError(
                f"{self._name()} has cost {used} tokens, and endpoint.max_tokens={limit} allows no "
                "more in one process. Start the command again for as many, or raise the limit with "
                f"--set and --change. {KEPT}"
            )

    # --- what the server understands -----------------------------------------------------------

    def _neutral(self) -> dict[str, Any]:
        """Fields that switch a server's own sampling habits off, if it knows them."""
        link = self._link()
        if link.neutral is None:
            known = self._try(user("Hi"), NEUTRAL) is not None
            link.neutral = NEUTRAL if known else {}
        return link.neutral

    def _continuation(self) -> dict[str, Any]:
        """Fields that make the server continue a final assistant message, as tried out."""
        link = self._link()
        if link.continuation is None:
            begun = [*user("Hi"), {"role": "assistant", "content": BEGUN}]
            short = self._ask(_first_token(user("Hi"), {}))
            bare, told = self._try(begun, {}), self._try(begun, CONTINUE)
            shorter = told and bare and told.prompt_tokens < bare.prompt_tokens
            if told and (shorter or _continues(short, told)):
                link.continuation, link.echoes = CONTINUE, told.text.startswith(BEGUN)
            elif bare and _continues(short, bare):
                link.continuation, link.echoes = {}, bare.text.startswith(BEGUN)
            else:
                raise SrkitError(
                    f"{self._name()} does not continue a final assistant message: it begins a new "
                    "answer after it, so neither a list nor a forced `Better answer:` would go on. "
                    "Use a server that continues one, such as vLLM's or llama.cpp's."
                )
        return link.continuation

    def _try(self, conversation: Conversation, fields: dict[str, Any]) -> Answer | None:
        """The first token of an answer; None if the server refuses the fields."""
        try:
            return self._ask(_first_token(conversation, fields))
        except _RefusedError:
            return None

    def _new_text(self, conversation: Conversation, answer: Answer) -> str:
        """What was generated: llama.cpp's text begins with the message that was continued."""
        last = conversation[-1]
        echoed = last["role"] == "assistant" and self._link().echoes
        return answer.text.removeprefix(defuse(last["content"])) if echoed else answer.text

    # --- errors --------------------------------------------------------------------------------

    def _failure(self, error: Exception) -> SrkitError:
        """What the client gave up on, without the key, and what to do about it."""
        status = getattr(error, "status_code", None)
        kind = _RefusedError if status in (400, 422) else SrkitError
        said = " ".join(self._masked(str(error)).split())
        advice = ADVICE.get(status or type(error).__name__, "The server's own log says more.")
        return kind(f"{self._name()} failed: {said[:300].rstrip('.')}. {advice} {KEPT}")

    def _link(self) -> _Link:
        return _link(self.settings, self._key())

    def _key(self) -> str:
        return os.environ.get(self.settings.key_variable, "").strip()

    def _masked(self, text: str) -> str:
        """A server can send the key back, as an error or as an answer: neither is to keep it."""
        return text.replace(self._key() or "***", "***")

    def _name(self) -> str:
        return f"The endpoint {self.settings.url} (model {self.settings.model!r})"


class _RefusedError(SrkitError):
    """The server does not take the request as it is."""


ADVICE = {
    **dict.fromkeys((400, 422), "Its prompts may be too long for the server's context."),
    **dict.fromkeys((401, 403), "The variable that endpoint.key_variable names needs a valid key."),
    404: "Check endpoint.model, and endpoint.url with the /v1 that most addresses end in.",
    429: "Lower endpoint.concurrency, or raise endpoint.retries for longer pauses.",
    "APITimeoutError": "Raise endpoint.timeout, or lower endpoint.concurrency.",
    "APIConnectionError": "Is the server running, and endpoint.url its address?",
}


@dataclass
class _Link:
    """A client, and what its server was found to understand."""

    client: OpenAI
    neutral: dict[str, Any] | None = None
    continuation: dict[str, Any] | None = None
    echoes: bool = False


@lru_cache(maxsize=1)
def _link(settings: Endpoint, key: str) -> _Link:
    try:
        from openai import OpenAI
    except ImportError:
        raise SrkitError(
            "An endpoint needs the openai client, which is not installed: pip install "
            "'srkit[endpoint]'."
        ) from None
    return _Link(
        OpenAI(
            base_url=settings.url,
            api_key=key or "none",  # local servers ask for none, the client does
            timeout=settings.timeout,
            max_retries=settings.retries,
        )
    )


def _first_token(conversation: Conversation, fields: dict[str, Any]) -> dict[str, Any]:
    return {"messages": conversation, "max_tokens": 1, "extra_body": fields}


def _continues(short: Answer, long: Answer) -> bool:
    """Whether a prompt has grown by the message alone, and not by a new turn's frame."""
    return 0 < long.prompt_tokens - short.prompt_tokens <= len(BEGUN.split()) + 1


def _completion(text: str, answer: Answer, stop: str | None) -> Completion:
    match = re.search(stop, text) if stop else None
    cut = text[: match.end()] if match else text
    return Completion(cut, answer.completion_tokens, not (match or answer.ended))
