"""The hf engine against the plainest way to do the same: one row at a time, no cache, no batch."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTJConfig,
    GPTJForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    TopPLogitsWarper,
)

from srkit import generate, linears
from srkit.chat import encode_completion, encode_prompt, stop_token_ids
from srkit.config import Model, SrkitError
from srkit.generate import (
    Completion,
    HfEngine,
    Sampling,
    draw,
    sample,
    score_answers,
    score_options,
)
from srkit.models import Policy, load_base
from srkit.prompts import user
from srkit.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
RUBRIC = "Review the response and give it a score from 0 to 5. "
BODIES = ["a", "Dear friend, I hope that you are well.", "7 + 8", "bread: flour, water, salt", "b"]
CHATS = [[{"role": "user", "content": RUBRIC + body}] for body in BODIES]
CHATS += [CHATS[1], [*CHATS[2], {"role": "assistant", "content": "Score:"}]]
SEEDS = [[100 * p + k for k in range(3)] for p in range(len(CHATS))]
HOT = Sampling(max_tokens=12, temperature=1.3, top_p=0.95)


@pytest.fixture(autouse=True)
def _one_process():
    """What is watched here must not happen in another process."""
    torch.set_num_threads(1)


@pytest.fixture
def policy() -> Policy:
    return Policy(tiny_model(TOKENIZER), TOKENIZER, "M0")


@pytest.fixture
def passes(monkeypatch) -> list[tuple[int, int]]:
    """The shape (rows, tokens) of every forward pass."""
    shapes = []
    forward = generate._Batch._forward

    def spy(self, levels, ids, positions, keep=1):
        shapes.append(tuple(ids.shape))
        return forward(self, levels, ids, positions, keep)

    monkeypatch.setattr(generate._Batch, "_forward", spy)
    return shapes


@torch.no_grad()
def alone(policy: Policy, chat, seed: int, sampling: Sampling) -> Completion:
    """One completion with the whole text run again for each token."""
    ids, tokens = list(encode_prompt(policy.tokenizer, chat)), []
    stops = stop_token_ids(policy.tokenizer, policy.model)
    for u in np.random.default_rng(seed).random(sampling.max_tokens):
        logits = policy.model(torch.tensor([ids + tokens])).logits[:, -1]
        uniform = torch.tensor([u], dtype=torch.float64)
        token = int(draw(logits, uniform, sampling.temperature, sampling.top_p))
        if token in stops:
            return Completion(text_of(policy, tokens), len(tokens), False)
        tokens.append(token)
    return Completion(text_of(policy, tokens), len(tokens), True)


def text_of(policy: Policy, tokens: list[int]) -> str:
    return policy.tokenizer.decode(tokens, skip_special_tokens=True)


def all_alone(policy: Policy, sampling: Sampling = HOT) -> list[list[Completion]]:
    return [
        [alone(policy, chat, seed, sampling) for seed in seeds]
        for chat, seeds in zip(CHATS, SEEDS, strict=True)
    ]


@torch.no_grad()
def scored_alone(policy: Policy, chats, options: list[str]) -> np.ndarray:
    scores = np.zeros((len(chats), len(options)))
    for p, chat in enumerate(chats):
        ids = encode_prompt(policy.tokenizer, chat)
        for o, option in enumerate(options):
            more = policy.tokenizer.encode(option, add_special_tokens=False)
            logps = policy.model(torch.tensor([ids + more])).logits[0].log_softmax(-1)
            scores[p, o] = sum(logps[len(ids) - 1 + i, t].item() for i, t in enumerate(more))
    return scores


def with_lora(model: torch.nn.Module, **options) -> torch.nn.Module:
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", **options)).eval()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


# --- sampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "growth"), [(64, 128), (64, 5), (7, 3), (2, 128)])
def test_a_batch_gives_what_each_row_gives_alone(policy, monkeypatch, limit, growth):
    monkeypatch.setitem(generate.ROW_LIMIT, "cpu", limit)
    monkeypatch.setattr(generate, "GROWTH", growth)
    drawn = sample(policy, CHATS, 3, HOT, SEEDS)
    assert drawn == all_alone(policy)
    assert len({c.tokens for row in drawn for c in row}) > 1  # some rows ended early


def test_order_and_split_do_not_change_the_draw(policy):
    together = sample(policy, CHATS, 3, HOT, SEEDS)
    reverse = sample(policy, CHATS[::-1], 3, HOT, [seeds[::-1] for seeds in SEEDS[::-1]])
    assert [row[::-1] for row in reverse[::-1]] == together
    one_by_one = [
        [sample(policy, [chat], 1, HOT, [[seed]])[0][0] for seed in seeds]
        for chat, seeds in zip(CHATS, SEEDS, strict=True)
    ]
    assert one_by_one == together
    assert len({c.text for c in together[0]}) == 3  # streams differ


def test_greedy_is_what_transformers_generates(policy):
    drawn = sample(policy, CHATS, 1, Sampling(10, temperature=0), [[0]] * len(CHATS))
    for chat, row in zip(CHATS, drawn, strict=True):
        ids = torch.tensor([encode_prompt(TOKENIZER, chat)])
        out = policy.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=10,
            do_sample=False,
            eos_token_id=list(stop_token_ids(TOKENIZER, policy.model)),
            pad_token_id=TOKENIZER.pad_token_id,
        )
        assert row[0].text == text_of(policy, out[0, ids.shape[1] :].tolist())


def test_attention_that_is_not_computed_is_refused():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": len(TOKENIZER)}
    capped = Gemma2Config(**sizes, intermediate_size=32, num_attention_heads=2, head_dim=16)
    unreachable = GPTJConfig(
        n_embd=32, n_layer=1, n_head=2, rotary_dim=8, vocab_size=len(TOKENIZER)
    )
    for model in (Gemma2ForCausalLM(capped), GPTJForCausalLM(unreachable)):
        with pytest.raises(SrkitError, match="another kind"):
            sample(Policy(model.eval(), TOKENIZER, "M0"), CHATS, 1, HOT, [[0]] * len(CHATS))


def test_the_window_of_a_sliding_attention_is_respected():
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=6,
        initializer_range=0.2,
    )
    policy = Policy(MistralForCausalLM(config).eval(), TOKENIZER, "M0")
    assert sample(policy, CHATS, 3, HOT, SEEDS) == all_alone(policy)


def test_shared_tokens_and_prompts_are_computed_once(policy, passes):
    sample(policy, CHATS, 3, Sampling(2, temperature=1.0), SEEDS)
    ids = {tuple(encode_prompt(TOKENIZER, chat)) for chat in CHATS}
    shared = next(i for i, column in enumerate(zip(*ids, strict=False)) if len(set(column)) > 1)
    assert shared >= 20
    assert len(ids) == 6
    assert passes[0] == (1, shared)
    assert passes[1] == (6, max(map(len, ids)) - shared)
    assert all(tokens == 1 for _, tokens in passes[2:])


def test_done_rows_leave_and_waiting_prompts_enter(policy, passes, monkeypatch):
    monkeypatch.setitem(generate.ROW_LIMIT, "cpu", 8)
    chats = [[{"role": "user", "content": f"Task {i}"}] for i in range(16)]
    lengths = np.random.default_rng(0).integers(1, 60, size=64).tolist()
    by_seed = dict(enumerate(lengths))
    make = generate._Row.__init__

    def short(self, prompt_length, seed, rules):  # a row ends after its own number of tokens
        make(self, prompt_length, seed, rules)
        self.length = by_seed[seed]

    monkeypatch.setattr(generate, "stop_token_ids", lambda *_: set())
    monkeypatch.setattr(generate._Row, "__init__", short)
    monkeypatch.setattr(generate._Row, "done", property(lambda r: len(r.tokens) >= r.length))
    seeds = np.arange(64).reshape(16, 4).tolist()
    drawn = sample(policy, chats, 4, Sampling(60, temperature=1.0), seeds)
    steps = [rows for rows, tokens in passes if tokens == 1]
    assert [c.tokens for row in drawn for c in row] == lengths
    assert max(steps) == 8
    assert sum(steps) < 1.35 * sum(lengths)  # batches that wait for their longest row need 1.8


@pytest.mark.parametrize("share", [1, 4])
def test_the_batch_fits_the_free_memory(policy, passes, monkeypatch, share):
    batch = generate._Batch
    with torch.no_grad(), linears.prepared(policy.model) as model:
        row = batch(model, [tuple(encode_prompt(TOKENIZER, CHATS[0]))], 12).row_bytes
    free = 1.1 * share * row / generate.MEMORY_SHARE
    monkeypatch.setattr(generate, "free_bytes", lambda device: free)
    assert sample(policy, CHATS, 3, HOT, SEEDS) == all_alone(policy)
    # a second prompt's row may take the place of one that ended early
    assert min(share, 3) <= max(rows for rows, tokens in passes if tokens == 1) <= share


# --- ends ----------------------------------------------------------------------------------------


def scripted(monkeypatch, policy, text: str | list[int], **options) -> Completion:
    """What comes out if the model writes `text`."""
    tokens = TOKENIZER.encode(text, add_special_tokens=False) if isinstance(text, str) else text
    script = iter(tokens)
    monkeypatch.setattr(generate, "draw", lambda *_: torch.tensor([next(script)]))
    return sample(policy, CHATS[:1], 1, Sampling(**options), [[0]])[0][0]


def test_an_end_token_ends_and_is_not_counted(policy, monkeypatch):
    end = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
    words = TOKENIZER.encode("It is clear", add_special_tokens=False)
    done = scripted(monkeypatch, policy, [*words, end, *words], max_tokens=99)
    assert done == Completion("It is clear", len(words), False)
    assert scripted(monkeypatch, policy, [end], max_tokens=99) == Completion("", 0, False)
    cut = scripted(monkeypatch, policy, [*words, end], max_tokens=len(words))
    assert cut == Completion("It is clear", len(words), True)


def test_a_stop_match_ends_and_stays_in_the_text(policy, monkeypatch):
    text = "Ça va: été \N{SNOWMAN} \N{SNOWMAN}. Score: 4\nScore: 5\n"
    done = scripted(monkeypatch, policy, text, max_tokens=99, stop=r"(?m)^.*Score: [0-5]\n")
    assert done.text == "Ça va: été \N{SNOWMAN} \N{SNOWMAN}. Score: 4\n"
    assert not done.truncated
    assert done.tokens == len(TOKENIZER.encode(done.text, add_special_tokens=False))
    last = scripted(monkeypatch, policy, text, max_tokens=done.tokens, stop=r"Score: [0-5]\n")
    assert last == done  # the match counts, even with the last token allowed
    cut = scripted(monkeypatch, policy, text, max_tokens=done.tokens - 1, stop=r"Score: [0-5]\n")
    assert cut.truncated


def test_special_tokens_do_not_show_in_the_text(policy, monkeypatch):
    turn = TOKENIZER.convert_tokens_to_ids("<|im_start|>")
    words = TOKENIZER.encode("well", add_special_tokens=False)
    assert scripted(monkeypatch, policy, [turn, *words], max_tokens=1 + len(words)).text == "well"


# --- one draw ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spread", "vocabulary"), [(3.0, 300), (1.0, 3000), (0.01, 3000)])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
def test_draws_are_exact(spread, vocabulary, top_p):
    """Evenly spaced uniforms hit each token as often as its probability says, to within one."""
    logits = spread * torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(0))
    warped = logits / 0.7
    if top_p < 1:
        warped = TopPLogitsWarper(top_p)(None, warped)
    expected = warped.double().softmax(-1)[0]
    n = 5000
    uniforms = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    rows = [draw(logits.expand(1000, -1), part, 0.7, top_p) for part in uniforms.split(1000)]
    counts = torch.cat(rows).bincount(minlength=vocabulary)
    assert counts[expected == 0].sum() == 0
    torch.testing.assert_close(counts / n, expected.float(), atol=1.5 / n, rtol=0)


def test_rows_of_one_draw_do_not_mix():
    """A peaked row, which the first 64 tokens cover, and a flat one, which needs them all."""
    logits = torch.zeros(3, 2000)
    logits[[0, 2], [7, 1500]] = 50.0
    uniforms = torch.tensor([0.99, 0.5, 0.01], dtype=torch.float64)
    tokens = draw(logits, uniforms, 1.0, 0.9)
    assert tokens[[0, 2]].tolist() == [7, 1500]
    assert tokens[1] == draw(logits[1:2], uniforms[1:2], 1.0, 0.9)
    assert draw(logits, uniforms, 0, 0.9)[[0, 2]].tolist() == [7, 1500]


def test_logits_that_are_not_finite_are_refused():
    logits = torch.zeros(2, 100)
    logits[1, 3] = torch.nan
    for temperature in (0, 0.7):
        with pytest.raises(SrkitError, match="not finite"):
            draw(logits, torch.zeros(2, dtype=torch.float64), temperature, 0.9)


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[" 3", " 4"], ["Score: 1", "Score: 12", "Sc", " letter"]])
@pytest.mark.parametrize("chunk", [4, 256])
def test_options_score_as_in_a_plain_forward_pass(policy, monkeypatch, options, chunk):
    monkeypatch.setattr(generate, "OPTION_LOGITS", chunk)
    scores = score_options(policy, CHATS, options)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, scored_alone(policy, CHATS, options), atol=2e-5)
    np.testing.assert_array_equal(scores[1], scores[5])  # the same conversation


def test_score_options_of_nothing_and_of_empty_options(policy):
    assert score_options(policy, [], [" 3"]).shape == (0, 1)
    assert score_options(policy, CHATS[:2], []).shape == (2, 0)
    with pytest.raises(SrkitError, match="no tokens"):
        score_options(policy, CHATS, [" 3", ""])


def test_answers_score_as_in_a_plain_forward_pass_up_to_their_end(policy, plain_logp):
    answers = [["Mars", "", "A rather long answer."], [], ["Mars"]]
    found = score_answers(policy, CHATS[:3], answers)
    assert [len(theirs) for theirs in found] == [3, 0, 1]
    for chat, texts, theirs in zip(CHATS, answers, found, strict=False):
        prompt = encode_prompt(policy.tokenizer, chat)
        for text, (logp, tokens) in zip(texts, theirs, strict=True):
            ids = encode_completion(policy.tokenizer, text)
            assert tokens == len(ids)
            assert logp == pytest.approx(float(plain_logp(policy.model, prompt, ids)), abs=1e-4)
    assert score_answers(policy, CHATS[:1], [[]]) == [[]]
    assert score_answers(policy, [], []) == []


def test_long_answers_are_scored_a_few_at_a_time(policy, passes, monkeypatch):
    answers = [["Mars", "A rather long answer, and then some more of it.", "Two words"]]
    whole = score_answers(policy, CHATS[:1], answers)
    together = len(passes)
    monkeypatch.setattr(generate, "ANSWER_LOGITS", 1)
    (found,) = score_answers(policy, CHATS[:1], answers)
    assert len(passes) - together == together + 2, "three branches for one"
    np.testing.assert_allclose(found, whole[0], atol=2e-5)


def test_probabilities_are_read_from_float32_logits_of_a_bfloat16_model(monkeypatch):
    """bfloat16 rounds logits of 16 to 32 to 0.125: more than a judge's scores differ by."""
    policy = Policy(tiny_model(TOKENIZER).bfloat16(), TOKENIZER, "M0")
    head = policy.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight * 64, requires_grad=False)
    options = [" 1", " 2", "Score: 3"]
    found = score_options(policy, CHATS, options)
    monkeypatch.setattr(generate, "exact_head", lambda model: nullcontext())
    rounded = score_options(policy, CHATS, options)
    assert np.abs(found - rounded).max() > 0.02
    copy = head.weight.float()
    monkeypatch.setattr(head, "forward", lambda hidden: hidden.float() @ copy.T)
    np.testing.assert_allclose(found, score_options(policy, CHATS, options), atol=1e-4)


def test_sample_of_nothing(policy):
    assert sample(policy, [], 3, HOT, []) == []
    assert sample(policy, CHATS[:2], 0, HOT, [[], []]) == [[], []]
    with pytest.raises(ValueError, match="shorter"):
        sample(policy, CHATS[:1], 3, HOT, [[1, 2]])


# --- adapters and weights ------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_adapters_are_used_and_left_as_they_were(policy, options):
    plain = sample(policy, CHATS, 3, HOT, SEEDS)
    adapted = Policy(with_lora(policy.model, **options), TOKENIZER, "M1")
    before = {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}
    modules = list(adapted.model.modules())
    drawn = sample(adapted, CHATS, 3, HOT, SEEDS)
    assert drawn == all_alone(adapted) != plain
    after = adapted.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(a is b for a, b in zip(adapted.model.modules(), modules, strict=True))
    with adapted.model.disable_adapter():
        assert sample(adapted, CHATS, 3, HOT, SEEDS) == plain


def test_nf4_weights_are_dequantised_and_lora_stays_apart(monkeypatch):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install bitsandbytes")
    model, tokenizer = load_base(Model(name="tiny", quantization="nf4"))
    policy = Policy(with_lora(model), tokenizer, "M1")
    merged = []
    layer = policy.model.base_model.model.model.layers[0].self_attn.q_proj
    monkeypatch.setattr(type(layer), "merge", lambda *_, **__: merged.append(1))
    before = layer.base_layer.weight.data.clone()
    scores = score_options(policy, CHATS, ["Score: 1", " 4"])
    assert not merged
    assert torch.equal(layer.base_layer.weight.data, before)
    policy.model.train()  # in eval mode bitsandbytes repacks weights on some CPUs, with a loss
    np.testing.assert_allclose(scores, scored_alone(policy, CHATS, ["Score: 1", " 4"]), atol=2e-4)
    assert torch.equal(layer.base_layer.weight.data, before)


def test_the_model_is_given_back_after_an_error(policy, monkeypatch):
    def fail(*_):
        raise RuntimeError("draw")

    modules, attention = list(policy.model.modules()), policy.model.config._attn_implementation
    monkeypatch.setattr(generate, "draw", fail)
    with pytest.raises(RuntimeError, match="draw"):
        sample(policy, CHATS, 3, HOT, SEEDS)
    assert all(a is b for a, b in zip(policy.model.modules(), modules, strict=True))
    assert policy.model.config._attn_implementation == attention


# --- memory and limits ---------------------------------------------------------------------------


def fail_above(monkeypatch, most: int, after: int = 0) -> list[int]:
    """Run out of memory in passes with more than `most` rows; returns the rows of each pass."""
    forward, seen = generate._Batch._forward, []

    def tight(self, levels, ids, positions, keep=1):
        seen.append(len(ids))
        if len(ids) > most and len(seen) > after:
            raise torch.OutOfMemoryError
        return forward(self, levels, ids, positions, keep)

    monkeypatch.setattr(generate._Batch, "_forward", tight)
    return seen


@pytest.mark.parametrize("after", [0, 8])
def test_out_of_memory_halves_the_batch_and_keeps_what_is_done(policy, monkeypatch, after):
    expected = sample(policy, CHATS, 3, HOT, SEEDS)
    seen = fail_above(monkeypatch, 4, after)
    assert sample(policy, CHATS, 3, HOT, SEEDS) == expected
    assert len([rows for rows in seen[after:] if rows > 4]) <= 3


def test_out_of_memory_while_scoring(policy, monkeypatch):
    expected = score_options(policy, CHATS, [" 3", "Score: 4"])
    fail_above(monkeypatch, 4)
    np.testing.assert_allclose(
        score_options(policy, CHATS, [" 3", "Score: 4"]), expected, atol=2e-5
    )


def test_no_room_for_a_single_row_is_said(policy, monkeypatch):
    fail_above(monkeypatch, 0, after=1)  # the shared prefix goes through
    with pytest.raises(SrkitError, match="single row"):
        sample(policy, CHATS, 3, HOT, SEEDS)


def test_a_prompt_that_does_not_fit_is_said():
    policy = Policy(tiny_model(TOKENIZER, context=40), TOKENIZER, "M0")
    with pytest.raises(SrkitError, match="context of 40 tokens"):
        sample(policy, CHATS, 3, HOT, SEEDS)


def test_an_engine_counts_the_tokens_that_it_reads(policy):
    """A prompt counts once for all draws from it, and once more in the next call."""
    engine = HfEngine(policy)
    ids = encode_prompt(policy.tokenizer, user("Hi"))
    ((*drawn,),) = engine.sample([user("Hi")], 3, Sampling(2), [[0, 1, 2]])
    assert engine.spent["read"] == len(ids)
    engine.score_options([user("Hi"), user("Hi"), user("Hi there")], [" a"])
    other = encode_prompt(policy.tokenizer, user("Hi there"))
    assert engine.spent["read"] == 2 * len(ids) + len(other)
    assert engine.spent["written"] == sum(completion.tokens for completion in drawn) > 0
