"""Nothing uses a network unless a hub id or an endpoint is set; keys are written nowhere.

The series runs without sockets in two ways: in a network namespace of its own, where the kernel
has none, and (anywhere) with Python's sockets refused. Keys go to a server of this process, which
sends them back wherever it can.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KEYS = {
    "OPENAI_API_KEY": "sk-do-not-tell-3141592653589793",
    "HF_TOKEN": "hf_DoNotTellEither2718281828",
    "HUGGING_FACE_HUB_TOKEN": "hf_DoNotTellEither2718281828",
    "MY_REFEREE_KEY": "referee-secret-0123456789",
}
# Refuses every address family but the one that processes of a machine use among themselves; says
# in a file who wanted more, for a refusal could be swallowed.
GUARD = """
import os, socket, traceback
class Guarded(socket.socket):
    def __init__(self, family=-1, *rest, **more):
        super().__init__(family, *rest, **more)
        if self.family != socket.AF_UNIX:
            self.close()
            tell("socket")
def tell(what, *rest, **more):
    with open(os.environ["SRKIT_SOCKETS"], "a") as file:
        file.write(what + "\\n" + "".join(traceback.format_stack()[-6:]))
    raise OSError("this test allows no network")
socket.socket = Guarded
socket.getaddrinfo = lambda *a, **k: tell(f"getaddrinfo {a}")
socket.create_connection = lambda *a, **k: tell(f"create_connection {a}")
"""


def run(*words: str, code: str = "", **environment: str) -> subprocess.CompletedProcess:
    """Run the command line with its keys set; `code` runs in the process before it does."""
    variables = {**os.environ, **KEYS, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    main = f"{code}\nimport sys\nfrom srkit.cli import main\nsys.argv[0] = 'srkit'\nmain()"
    return subprocess.run(
        [*environment.pop("BEFORE", "").split(), sys.executable, "-c", main, *map(str, words)],
        cwd=ROOT, env=variables | environment, capture_output=True, text=True,
    )  # fmt: skip


def told(study: Path, done: subprocess.CompletedProcess) -> str:
    """All that a command left: what it printed, and every file of the study."""
    files = (file.read_bytes().decode("latin-1") for file in study.rglob("*") if file.is_file())
    return "\n".join([done.stdout, done.stderr, *files])


def keys_in(text: str) -> list[str]:
    """Names of the keys of which at least the first half is in a text."""
    return [name for name, key in KEYS.items() if key[: len(key) // 2] in text]


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """The series, made with Python's sockets refused: the study, the process, what wanted one."""
    folder = tmp_path_factory.mktemp("offline")
    wanted = folder / "wanted"
    wanted.touch()
    study = folder / "study"
    words = ("make", "--preset", "tiny", "--study", study, "--iterations", "1")
    return study, run(*words, code=GUARD, SRKIT_SOCKETS=str(wanted)), wanted


def test_the_series_opens_no_socket(offline):
    study, done, wanted = offline
    assert done.returncode == 0, done.stderr[-2000:]
    assert (study / "report.html").exists()
    assert wanted.read_text() == ""


def test_the_guard_refuses_and_tells(tmp_path):
    wanted = tmp_path / "wanted"
    for call in (
        "urllib.request.urlopen('http://127.0.0.1:9')",
        "socket.create_connection(('127.0.0.1', 9))",
        "socket.socket().connect(('127.0.0.1', 9))",
    ):
        wanted.write_text("")
        done = run(code=f"{GUARD}\nimport urllib.request\n{call}", SRKIT_SOCKETS=str(wanted))
        assert "this test allows no network" in done.stderr
        assert wanted.read_text() != ""


def test_no_key_is_in_a_study_or_what_was_printed(offline):
    study, done, _ = offline
    text = told(study, done)
    assert "manifest" in {file.stem for file in study.iterdir()}
    assert keys_in(text) == []
    assert keys_in(KEYS["HF_TOKEN"]) != [], "the search would find one"


def namespace() -> bool:
    """Whether a process may have a network namespace of its own here."""
    unshare = shutil.which("unshare")
    return bool(unshare) and subprocess.run([unshare, "-rn", "true"], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not namespace(), reason="needs `unshare -rn`: a Linux that permits namespaces")
def test_the_series_runs_where_there_is_no_network(offline, tmp_path):
    """Also what is not Python: compiled code has no sockets either. Same bytes, too."""
    words = ("make", "--preset", "tiny", "--study", tmp_path / "study", "--iterations", "1")
    done = run(*words, BEFORE="unshare -rn")
    assert done.returncode == 0, done.stderr[-2000:]
    there, here = offline[0], tmp_path / "study"
    for table in here.rglob("*.jsonl"):
        if table.name not in ("manifest.jsonl", "training.jsonl"):
            assert table.read_bytes() == (there / table.relative_to(here)).read_bytes(), table


def test_the_kit_itself_reads_nothing_that_could_run():
    """Weights are safetensors or GGUF, the rest JSON, YAML (`_Strict` is a SafeLoader), tables."""
    code = "\n".join(file.read_text("utf-8") for file in (ROOT / "srkit").rglob("*.py"))
    calls = (
        "torch.load",
        "pickle.load",
        "read_pickle",
        "allow_pickle",
        "joblib",
        "full_load",
        "unsafe_load",
        " eval(",
        " exec(",
        "shell=True",
        "remote_code=True",
        "os.system",
    )
    assert [call for call in calls if call in code] == []
    assert set(re.findall(r"yaml\.load\(.*\)", code)) == {"yaml.load(text, _Strict)"}


# --- keys and endpoints --------------------------------------------------------------------------


@contextmanager
def server(status: int):
    """An address that answers with the headers of the request, and the requests it got."""
    seen = []

    class Echo(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(self.headers["Authorization"])
            said = f"You sent {self.headers['Authorization']} and all of {dict(self.headers)}"
            message = {"role": "assistant", "content": said}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            prompt = 9 - bool(body.get("continue_final_message"))  # this one continues a message
            usage = {"prompt_tokens": prompt, "completion_tokens": 9, "total_tokens": 18}
            good = {"id": "x", "object": "chat.completion", "created": 0, "model": said}
            good |= {"choices": [choice], "usage": usage}
            body = json.dumps({"error": {"message": said}} if status != 200 else good).encode()
            self.send_response(status, said.replace("\n", " ")[:200])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Echo", seen[-1])
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words):
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{made.server_port}/v1", seen
    finally:
        made.shutdown()
        made.server_close()


SETTINGS = "eval.referee=endpoint instruct.writer=endpoint endpoint.model=m endpoint.retries=0"


@pytest.mark.parametrize(
    ("status", "step"), [(401, "referee/comparisons"), (200, "self-rewarding/iter-1/prompts")]
)
def test_a_server_that_sends_the_key_back_gets_it_written_nowhere(tmp_path, status, step):
    """In its error, its status line and a header; or (200) as the answer and the model's name."""
    pytest.importorskip("openai", reason="needs the openai client: pip install openai")
    study = tmp_path / "study"
    with server(status) as (url, seen):
        words = [*SETTINGS.split(), f"endpoint.url={url}", "endpoint.key_variable=MY_REFEREE_KEY"]
        settings = [word for setting in words for word in ("--set", setting)]
        steps = ("seed/eft_eval", "seed/ift", step)
        done = run("make", *steps, "--preset", "tiny", "--study", study, *settings)
    assert set(seen) == {f"Bearer {KEYS['MY_REFEREE_KEY']}"}, "the key was sent"
    assert "Traceback" not in done.stderr
    text = told(study, done)
    assert "Bearer ***" in text, "what it said was kept, without the key"
    assert keys_in(text) == []


def test_a_key_where_none_belongs_is_refused_without_repeating_it(tmp_path):
    key = KEYS["OPENAI_API_KEY"]
    for setting in (
        f"endpoint.url=http://user:{key}@host/v1",
        f"endpoint.url=http://host/v1?key={key}",
        f"endpoint.key_variable={key}",
    ):
        done = run("make", "--preset", "tiny", "--study", tmp_path / "study", "--set", setting)
        assert done.returncode == 1
        assert "endpoint." in done.stderr
        assert keys_in(done.stdout + done.stderr) == []
    assert not (tmp_path / "study").exists()
