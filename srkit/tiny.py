"""A tiny random Llama and its tokenizer, built in process: preset `tiny`, and the tests.

Nothing is downloaded and nothing is read from disk, so the whole series runs anywhere in minutes.
The model knows nothing: its answers are noise, and no figure made with it says anything about the
paper. It is there to prove that the machine works.

Surprising decisions:
- The tokenizer is byte-level BPE, so that every text can be encoded, and adds a BOS token by
  itself, as Llama's does: whoever tokenises a rendered chat carelessly gets two of them.
- Pad, BOS, EOS and end-of-turn are four different tokens, so that mixing them up shows.
- Weights have a standard deviation of 0.1 (Llama's is 0.02): with a hidden size of 64 the answers
  would otherwise hardly depend on the prompt.

    python -c "from srkit.tiny import *; print(tiny_model(tiny_tokenizer()))"
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, EOS, TURN, END_OF_TURN = "<|pad|>", "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = (
    "system user assistant",
    "Judge the response to the message of the user. Start at 0 and add a point for each statement "
    "that holds: it is relevant, it covers a large part of what was asked, it is useful, it is a "
    "clear and well organised reply of an assistant, it is correct and has no needless word.",
    "Explain your judgement in a few words, then end with the total on the last line, as: Score: 0 "
    "Score: 1 Score: 2 Score: 3 Score: 4 Score: 5. On topic, but it breaks off in the middle.",
    "The response is clear, helpful and well organised. It answers the question directly, but it "
    "could be shorter. The response does not answer the question and would not help the user.",
    "Which of the two answers is better? Answer with A or B. Here is a recipe for bread: mix the "
    "flour with water, salt and yeast, wait for an hour, then bake it. Dear friend, I hope that "
    "you are well. Thank you for your letter. First, read every day; second, speak with people.",
    "In 1984 there were 365 days, 52 weeks and 12 months. 7 + 8 = 15, 9 * 6 = 54, 100 / 4 = 25.",
)


def tiny_tokenizer(texts: Iterable[str] = TEXTS, vocabulary: int = 1024) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a ChatML template, trained on `texts` in a few milliseconds.

    The same texts give the same tokens everywhere. Fewer than `vocabulary` tokens come out if the
    texts hold fewer merges.
    """
    special = [PAD, BOS, EOS, TURN, END_OF_TURN]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(list(texts), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[TURN, END_OF_TURN],
        chat_template=CHAT_TEMPLATE,
    )


def tiny_model(
    tokenizer: PreTrainedTokenizerFast,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 64,
    context: int = 4096,
) -> LlamaForCausalLM:
    """A random Llama for `tokenizer`, float32, in eval mode; equal seeds give equal weights.

    The global random state is left as it was.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.1,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()
