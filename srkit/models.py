"""Models: loading M0, and adapters that prove what they are.

`load_base` loads M0 by hub id, folder or GGUF file (`srkit.weights`), or as one of two models that
need no download: `smollm2-135m` and `tiny` (random, in process). `load_policy` puts a frozen
adapter on it. What a model is asked goes through `srkit.chat`.

Surprising decisions:
- An adapter lies beside a `fingerprint.json` with a hash of its weights and with logits on fixed
  probes, with and without the adapter. It is refused where they do not come out again: an adapter
  of another base, altered weights, or keys that were silently ignored (with PEFT's loading, every
  "iteration" can otherwise run on the base without a word).
- One base is kept per process, and one policy on it: loading the next voids the one before.
- A reward model is the same base under another head (`with_reward_head`), whose adapter holds the
  trained head; `load_policy` puts either kind on.

    python -c "from srkit.models import *; from srkit.config import Model; \\
        print(load_policy(Model(name='tiny')).name)"
"""

from __future__ import annotations

import copy
import gc
import hashlib
import importlib.util
import json
import math
import re
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from srkit.chat import complete, encode_prompt
from srkit.config import SrkitError
from srkit.reading import read_object, shown
from srkit.tiny import tiny_model, tiny_tokenizer
from srkit.weights import could_not_load, locate

# "Loading weights" takes a second, and as a widget it cannot be shown again in a saved notebook.
transformers_logging.disable_progress_bar()
# PEFT 0.21 still asks by the old name, each time an adapter is put on.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)

if TYPE_CHECKING:
    from peft import PeftModel

    from srkit.config import Model
    from srkit.study import Study

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
    source = locate(cfg)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # every format's reader has errors of its own
        raise SrkitError(could_not_load(cfg.name, error)) from error
    complete(tokenizer, cfg.name)
    return source, tokenizer


def load_base(cfg: Model) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """M0 and its tokenizer, in eval mode, on the device and in the type that `cfg` asks for.

    Raises: SrkitError that says what to do if the model cannot be had.
    """
    device, dtype = placement(cfg)
    if cfg.name == "tiny":
        model, tokenizer = _load_tiny(cfg, device, dtype)
    else:
        model, tokenizer = _load_from(locate(cfg), cfg, device, dtype)
    complete(tokenizer, cfg.name)
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
    rows = model.get_input_embeddings().num_embeddings
    # added tokens may lie beyond (images, of Gemma 3's text model), if no chat is made of them
    added = set(tokenizer.added_tokens_decoder)
    chat = encode_prompt(tokenizer, [{"role": "user", "content": PROBES[0]}])
    used = [*chat, tokenizer.pad_token_id, tokenizer.eos_token_id]
    last = max(*used, *(i for i in tokenizer.get_vocab().values() if i not in added))
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
