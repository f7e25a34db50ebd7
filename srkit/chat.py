"""Chats as tokens: the one way there, for generation and for training.

`encode_prompt` and `encode_completion` are used wherever a model is asked or taught, so that it is
asked in the very tokens it was trained on.

Surprising decisions:
- Text inside a message that looks like a control token (a literal "<|im_end|>") is encoded as plain
  text. Otherwise a response could end its own turn, and start one for the judge.
- Pad is never EOS, nor the end of a turn. Masks are made from lengths, never from token ids.
- Templates keep their own ways: SmolLM2's adds a default system prompt when there is none, Llama's
  and Gemma's strip message contents, Gemma's knows no system role (that is an error here). Only
  the clock is taken from them: Llama 3's writes today's date into every prompt.

    python -c "from srkit.chat import *; from srkit.tiny import tiny_tokenizer; \\
        print(encode_prompt(tiny_tokenizer(), [{'role': 'user', 'content': 'Hi'}]))"
"""

from __future__ import annotations

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from srkit.config import SrkitError
from srkit.prompts import Conversation
from srkit.reading import shown

# For a tokenizer that brings no chat template: a base model as it comes out of pretraining.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)

# Put before a template that asks for the date: the same prompt has the same tokens every day.
FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"


def encode_prompt(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> list[int]:
    """Token ids of a conversation, ready to be continued by the model.

    The tokenizer's own template is applied once. A last message from the user is followed by the
    generation prompt; a last message from the assistant is a prefix that generation goes on from,
    in the tokens in which training shows the beginning of an answer. (Templates may put something
    else before an answer that they are given than before one that they ask for, Qwen3's a thought.)
    Control tokens inside contents are encoded as plain text; on other texts the ids are those of
    `apply_chat_template`.

    Raises: SrkitError if the template refuses the roles.
    """
    *before, last = conversation
    if last["role"] == "assistant" and before:
        prefix = encode_completion(tokenizer, last["content"], finished=False)
        return encode_prompt(tokenizer, before) + prefix
    try:
        return tokenizer.apply_chat_template(
            conversation,
            add_generation_prompt=True,
            sanitize_control_tokens=True,
            return_dict=False,
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in conversation)
        raise SrkitError(
            f"The model's chat template refuses a conversation with the roles {roles} ({error}). "
            "Give it what it knows, mostly user and assistant in turn beginning with user: put a "
            "system message's text into the first user message."
        ) from None


def encode_completion(
    tokenizer: PreTrainedTokenizerBase, text: str, finished: bool = True
) -> list[int]:
    """Token ids of an assistant's answer, with the end-of-turn token if and only if `finished`.

    An answer that was cut off at a token limit must not be finished: training on it would teach
    the model to stop in mid-sentence.
    """
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return [*ids, end_of_turn_id(tokenizer)] if finished else ids


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The first control token that the template puts after an answer; EOS if it puts none."""
    answer = "ANSWER"
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    tail = tokenizer.apply_chat_template(chat, tokenize=False).rpartition(answer)[2]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = tokenizer.encode(tail, add_special_tokens=False)
    return next((i for i in ids if i in special), tokenizer.eos_token_id)


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, model: torch.nn.Module) -> set[int]:
    """Tokens that end generation: end of turn, the tokenizer's EOS, the model's own EOS tokens."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    own = own if isinstance(own, list) else [own]
    found = {end_of_turn_id(tokenizer), tokenizer.eos_token_id, *own}
    return {i for i in found if i is not None}


def context_of(model: torch.nn.Module) -> int:
    """Tokens that the model has positions for."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", 2**31)


def complete(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Give it a chat template if it has none, no clock, and a pad token that ends nothing."""
    if tokenizer.eos_token_id is None:
        raise SrkitError(
            f"The tokenizer of {name!r} has no end-of-sequence token, so answers could not end. "
            "Set eos_token in its tokenizer_config.json, or use another model."
        )
    if tokenizer.chat_template is None:
        adds_bos = tokenizer.bos_token_id in tokenizer.encode("a")[:1]
        tokenizer.chat_template = ("{{ bos_token }}" if adds_bos else "") + PLAIN_TEMPLATE
    if "strftime_now" in tokenizer.chat_template and FIXED_DATE not in tokenizer.chat_template:
        tokenizer.chat_template = FIXED_DATE + tokenizer.chat_template
    _check_template(tokenizer, name)
    ends = {tokenizer.eos_token_id, end_of_turn_id(tokenizer)}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ends:
        tokenizer.pad_token = _spare_token(tokenizer, ends)


def _check_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a chat template that cannot be rendered, or that leaves the messages out."""
    chat = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "ANSWER"}]
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False)
    except Exception as error:  # a template is a program: it can fail in any way
        raise SrkitError(
            f"The chat template of {name!r} cannot render a question and its answer: "
            f"{' '.join(str(error).split())[:300]}. Get the model's chat_template.jinja (or "
            "tokenizer_config.json) again; without any template srkit uses a plain one."
        ) from None
    if not 0 <= text.find("QUESTION") < text.find("ANSWER"):
        raise SrkitError(
            f"The chat template of {name!r} leaves out the messages or their order: a question and "
            f"its answer become {shown(text)}. Get the model's chat_template.jinja (or "
            "tokenizer_config.json) again; without any template srkit uses a plain one."
        )


def _spare_token(tokenizer: PreTrainedTokenizerBase, ends: set[int]) -> str:
    """A token to pad with that the vocabulary has already, so that no embedding is added.

    Padding is masked everywhere, so any token would do; one with a telling name reads better.
    """
    added = tokenizer.added_tokens_decoder.items()
    free = [t.content for i, t in added if t.special and i not in {*ends, tokenizer.bos_token_id}]
    for hint in ("pad", "unk", "endoftext", "reserved", "unused"):
        for token in free:
            if hint in token:
                return token
    first = next(i for i in range(len(tokenizer)) if i not in ends)
    return free[0] if free else tokenizer.convert_ids_to_tokens(first)
