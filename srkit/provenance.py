"""What a manifest line says of where and by what a step was made: versions, commit, memory, energy.

python -c "from srkit.provenance import *; print(provenance(), peak_memory_mb(), joules())"
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from srkit.distributed import world

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "papermill")


def peak_memory_mb() -> dict[str, int]:
    """Peak memory so far in MB: resident, and on the GPU where torch runs there.

    Of this process, together with those that it forked to generate.
    """
    unit = 1024 if platform.system() == "Linux" else 1024**2  # Linux counts KiB, macOS bytes
    peak = {"cpu": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit}
    if forked := sys.modules.get("srkit.parallel"):
        peak["cpu"] = max(peak["cpu"], forked.peak_bytes // 1024**2)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peak["cuda"] = torch.cuda.max_memory_allocated() // 1024**2
    return peak


@lru_cache(maxsize=1)
def provenance() -> dict[str, Any]:
    """Versions and commit that a manifest line carries; `-dirty` marks uncommitted changes."""
    versions = {name: _version(name) for name in PACKAGES}
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}"
    return {
        "commit": _commit(),
        "machine": machine,
        "processes": world(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None  # bitsandbytes, for one, is not everywhere


def _commit() -> str | None:
    """The commit of this code; `-dirty` where code or seed data differ from it."""
    root = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        ask = ["git", "-C", str(root), *words]
        done = subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "srkit", "data/seed", "pyproject.toml")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def joules() -> float | None:
    """Energy that the GPUs this process may use have taken since their driver was loaded.

    By NVML (`pip install nvidia-ml-py`), for GPUs since Volta; what others do on them counts too.
    None where NVML cannot say.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [_gpu(pynvml, name) for name in _visible(pynvml.nvmlDeviceGetCount())]
        return sum(map(pynvml.nvmlDeviceGetTotalEnergyConsumption, handles)) / 1000
    except Exception:  # no package, no driver, no such counter: each has an error of its own
        return None


def _visible(count: int) -> list[str]:
    """Indices, or UUIDs, of the GPUs that CUDA_VISIBLE_DEVICES leaves."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(place) for place in range(count)]
    return [name.strip() for name in named.split(",") if name.strip()]


def _gpu(pynvml: Any, name: str) -> Any:
    if name.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return pynvml.nvmlDeviceGetHandleByUUID(name)
