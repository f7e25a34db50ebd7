"""Fixtures of the fault tests: a finished study, disks that are full or read-only, child processes.

Every fault is caused for real: a mounted disk of some pages, a remounted one, bytes flipped in
files, processes killed, limits of the system. Where root may not mount, `/dev/full` stands in for a
full disk; it fails with the same error of the system.
"""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from srkit.study import Study

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = '{"model": "M1", "kind": "all constraints", "value": 0.5, "low": 0.2, "high": 0.8, '
METRICS = '{"constraints": [' + CONSTRAINTS + '"n": 8, "prompts": 4}]}\n'
TRAINING = '{"step": 1, "loss": 0.7}\n{"step": 2, "loss": 0.5}\n'


def fill(study: Study, make) -> None:
    """Finish every step with rows of its own, and with tables that figures can be drawn from."""
    for name in study.steps:
        if name == "metrics/win_rates":
            study.make_file(name, lambda: METRICS)
        elif name.endswith("/adapter"):
            study.make_folder(name, lambda folder, name=name: adapter(study, name, folder))
        else:
            make(study, name)


def adapter(study: Study, name: str, folder: Path) -> dict:
    """Files in the place of a trained adapter's; the log is one that a figure can be drawn from."""
    for output in study.step(name).outputs:
        text = TRAINING if output.endswith(".jsonl") else f'{{"weights of": "{name}"}}\n'
        (folder / Path(output).name).write_text(text)
    return {"steps": 2}


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """A folder for what is made once and copied."""
    return tmp_path_factory.mktemp("once")


@pytest.fixture
def full(once, tmp_path, make) -> Study:
    """A study in which everything is done; a copy for each test."""
    if not (once / "study").exists():
        fill(Study.open(once / "study", "tiny"), make)
    shutil.copytree(once / "study", tmp_path / "full")
    return Study.open(tmp_path / "full")


@pytest.fixture
def filler(make):
    """`filler(study)`: finish what is not finished."""
    return lambda study: fill(study, make)


def may_mount() -> bool:
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    tools = shutil.which("mount") and shutil.which("unshare") and not os.geteuid()
    return bool(tools) and not subprocess.run(probe, capture_output=True).returncode


MOUNTS = may_mount()
NO_MOUNT = "needs root that may mount a small disk: run as root outside of a locked-down container"


class Mounted:
    """A disk of its own, of 1 MiB."""

    def __init__(self, path: Path):
        self.path, self.ballast = path, path / "ballast"

    def leave(self, pages: int, *_: Path) -> None:
        """Fill the disk up to some pages of 4 KiB."""
        self.clear()
        free = shutil.disk_usage(self.path).free // 4096
        self.ballast.write_bytes(bytes((free - pages) * 4096))
        assert shutil.disk_usage(self.path).free == pages * 4096

    def clear(self) -> None:
        self.ballast.unlink(missing_ok=True)


class Linked:
    """A folder in which given files are `/dev/full`, whose writes fail as on a full disk."""

    def __init__(self, path: Path):
        self.path, self.links = path, []

    def leave(self, pages: int, *files: Path) -> None:
        for file in files:
            file.unlink(missing_ok=True)
            file.symlink_to("/dev/full")
        self.links = list(files)

    def clear(self) -> None:
        for link in self.links:
            link.unlink(missing_ok=True)


@pytest.fixture
def mounted(tmp_path):
    """An empty disk of 1 MiB."""
    if not MOUNTS:
        pytest.skip(NO_MOUNT)
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=2k", "tmpfs", folder], check=True
    )
    yield Mounted(folder)
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(params=["a small disk", "/dev/full"])
def disk(request, tmp_path):
    """A disk to be filled: `leave(pages, files that will not be written)`, `clear()`."""
    if request.param == "a small disk":
        return request.getfixturevalue("mounted")
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full: run on Linux")
    (tmp_path / "linked").mkdir()
    return Linked(tmp_path / "linked")


@pytest.fixture
def read_only(tmp_path):
    """`read_only(folder)`: the folder as it is, on a disk that cannot be written."""
    mounts, before = [], []

    def protect(folder: Path) -> None:
        if not os.geteuid() and not MOUNTS:
            pytest.skip("needs a folder that root cannot write: let root mount, or be another user")
        if os.geteuid():  # for others the modes are enough
            for path in (folder, *folder.rglob("*")):
                before.append((path, path.stat().st_mode))
                path.chmod(path.stat().st_mode & ~0o222)
            return
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        mounts.append(folder)
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)

    yield protect
    for path, mode in before:
        path.chmod(mode)
    for folder in mounts:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def child():
    """`child(code, *arguments)`: start a Python process that can import these tests."""
    running = []

    def start(code: str, *arguments: object, **environment: str) -> subprocess.Popen:
        paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | environment,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()
