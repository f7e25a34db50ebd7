"""An endpoint: what its logs mean, broken servers, secrets, resume; and real servers (slow).

The faults come from an HTTP server in this process that misbehaves on purpose. The real servers
run SmolLM2, where they are found: on the path, in this environment, or where SRKIT_LLAMA_SERVER (a
program), SRKIT_VLLM_PYTHON and SRKIT_SERVE_PYTHON (of other environments) point.
"""

import itertools
import json
import logging
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srkit import parity
from srkit.config import Endpoint, Model, SrkitError, resolve
from srkit.endpoint import EndpointEngine, Listed, option_logprobs
from srkit.engine import Sampling, open_engine
from srkit.evaluate import make_referee_comparisons
from srkit.plan import plan
from srkit.prompts import SCORE_STOP, compare_prompt, judge_prompt, user
from srkit.study import Study

pytest.importorskip("openai", reason="needs the openai client: pip install 'srkit[endpoint]'")
KEY = "sk-very-secret-1234567890"
DIGITS = [f" {i}" for i in range(6)]
FORCED = {"role": "assistant", "content": "Score:"}


def listed(**logprobs: float) -> Listed:
    """A position whose most probable token was generated; `_` in a name is a space."""
    pairs = [(name.replace("_", " "), value) for name, value in logprobs.items()]
    pairs.sort(key=lambda pair: -pair[1])
    return Listed(*pairs[0], tuple(pairs))


# --- what a list of alternatives says ------------------------------------------------------------


def test_an_option_that_is_a_token_is_read_where_it_stands():
    found = option_logprobs([listed(_A=-0.2, _B=-1.7, The=-4.0)], [" A", " B"])
    assert found.tolist() == [-0.2, -1.7]


def test_a_space_before_a_digit_is_a_token_of_its_own():
    """As in SmolLM2; a bare digit at the first place is another continuation, "Score:4"."""
    digits = Listed("4", -0.5, tuple((str(d), -0.5 - abs(d - 4)) for d in range(10)))
    positions = [Listed(" ", -0.1, ((" ", -0.1), ("4", -3.0), (" A", -4.0))), digits]
    found = option_logprobs(positions, DIGITS)
    assert found == pytest.approx([-0.1 - 0.5 - abs(d - 4) for d in range(6)])


def test_tokens_shown_without_their_space_count_where_none_has_one():
    assert option_logprobs([listed(A=-0.2, B=-1.7)], [" A", " B"]).tolist() == [-0.2, -1.7]
    found = option_logprobs([listed(A=-0.2, _B=-1.7)], [" A", " B"])
    assert found[1] == -1.7
    assert found[0] <= -1.7, "`A` is no ` A` where the tokenizer shows spaces"


def test_an_unlisted_option_gets_a_bound_that_keeps_the_order():
    found = option_logprobs([listed(_A=math.log(0.9), The=math.log(0.06))], [" A", " B"])
    assert found == pytest.approx(np.log([0.9, 0.04])), "no more than what is left"
    found = option_logprobs([listed(_A=math.log(0.5), The=math.log(0.1))], [" A", " B"])
    assert found == pytest.approx(np.log([0.5, 0.1])), "no more than the least listed"


def test_no_listed_option_is_no_answer():
    positions = [listed(The=-0.1, An=-3.0), listed(_A=-0.1, _B=-0.2)]
    assert np.isnan(option_logprobs(positions, [" A", " B"])).all()
    assert np.isnan(option_logprobs([], [" A"])).all(), "the answer ended at once"


@given(st.lists(st.floats(0.001, 1), min_size=8, max_size=40), st.integers(2, 20))
def test_the_bound_is_never_below_the_truth(weights, width):
    probabilities = np.array(weights) / sum(weights)
    order = np.argsort(-probabilities)[:width]
    top = tuple((f" {i}", float(np.log(probabilities[i]))) for i in order)
    options = [f" {i}" for i in range(len(weights))]
    found = option_logprobs([Listed(*top[0], top)], options)
    assert (found >= np.log(probabilities) - 1e-9).all()
    assert found[order] == pytest.approx(np.log(probabilities[order]))
    assert found.max() == found[order[0]]


# --- a server that misbehaves --------------------------------------------------------------------


def completion(text="fine", prompt_tokens=5, tops=(), finish="stop") -> dict:
    content = [
        {"token": t, "logprob": p, "bytes": None, "top_logprobs": [
            {"token": a, "logprob": q, "bytes": None} for a, q in alternatives]}
        for t, p, alternatives in tops
    ]  # fmt: skip
    return {
        "id": "x", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "finish_reason": finish, "logprobs": {"content": content},
                     "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 2, "total_tokens": 7},
    }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        with self.server.turn:
            fault = next(self.server.faults, None)
        (fault or self.server.answer)(self, body)

    def send(self, status, body, kind="application/json", length=None, **headers):
        body = body.encode() if isinstance(body, str) else body
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers |= {"Content-Type": kind, "Content-Length": str(length or len(body))}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def answer(handler, body):
    """A chat completion; the prompt is as long as its messages say, in words."""
    words = " ".join(message["content"] for message in body["messages"]).split()
    tops = [(" A", -0.1, ((" A", -0.1), (" B", -2.5)))] if body.get("logprobs") else []
    handler.send(200, completion(prompt_tokens=len(words), tops=tops))


def hang(handler, body):
    time.sleep(0.6)
    handler.close_connection = True


def reset(handler, body):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.connection.close()
    handler.close_connection = True


def break_off(handler, body):
    handler.send(200, '{"choices": [{"message"', length=500)
    handler.close_connection = True


def garbage(handler, body):
    """No HTTP at all."""
    handler.wfile.write(b"\x00\xff\xfe SSH-2.0 hello\r\n\r\n")
    handler.close_connection = True


def vanish(handler, body):
    handler.close_connection = True


def without_text(handler, body):
    whole = completion()
    whole["choices"][0]["message"] = None
    handler.send(200, whole)


FAULTS = {
    "500": lambda handler, body: handler.send(500, {"error": {"message": "out of memory"}}),
    "429": lambda handler, body: handler.send(429, {}, retry_after_ms="20"),
    "hangs": hang,
    "resets": reset,
    "breaks off": break_off,
    "half a JSON": lambda handler, body: handler.send(200, '{"choices": [{"message"'),
    "a page": lambda handler, body: handler.send(200, "<html>Sign in</html>", "text/html"),
    "a list": lambda handler, body: handler.send(200, []),
    "no choice": lambda handler, body: handler.send(200, completion() | {"choices": []}),
    "503": lambda handler, body: handler.send(503, "busy", "text/plain"),
    "garbage": garbage,
    "vanishes": vanish,
    "not gzip": lambda handler, body: handler.send(200, completion(), content_encoding="gzip"),
    "not UTF-8": lambda handler, body: handler.send(200, b'{"choices": "\xff\xfe\x00"}'),
    "nothing": lambda handler, body: handler.send(200, ""),
    "null": lambda handler, body: handler.send(200, None),
    "no message": without_text,
    "a word as count": lambda handler, body: handler.send(200, completion(prompt_tokens="many")),
    "no usage": lambda handler, body: handler.send(200, completion() | {"usage": None}),
}
SAID = {"500": "out of memory", "429": "endpoint.concurrency", "hangs": "endpoint.timeout",
        "resets": "Is the server running", "breaks off": "Is the server running",
        "503": "The server's own log says more", "garbage": "Is the server running",
        "vanishes": "Is the server running", "not gzip": "Is the server running"}  # fmt: skip


@pytest.fixture
def server(monkeypatch):
    """A server whose first answers are `faults`, and all others `answer`; pauses are short."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("srkit.endpoint.PAUSE", 0.01)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.faults, server.turn = [], iter(()), threading.Lock()
    server.answer = answer
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def engine_for(server, **settings) -> EndpointEngine:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    return EndpointEngine(Endpoint(url=url, model="m", **{"retries": 1, "timeout": 0.3} | settings))


def ask(engine, stop=None):
    return engine.sample([user("Hi")], 1, Sampling(9, stop=stop), [[3]])[0][0]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_changes_nothing(server, fault):
    engine = engine_for(server)
    expected = ask(engine)
    server.faults = iter([FAULTS[fault]])
    assert ask(engine) == expected
    assert len(server.requests) == 1 + 1 + 2, "how it samples, one answer, one after a fault"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_is_one_paragraph(server, fault):
    engine = engine_for(server)
    ask(engine)
    server.faults = itertools.repeat(FAULTS[fault])
    with pytest.raises(SrkitError) as caught:
        ask(engine)
    message = str(caught.value)
    assert f"127.0.0.1:{server.server_port}/v1 (model 'm')" in message
    assert SAID.get(fault, "no chat completion") in message
    assert "What is finished is kept" in message
    assert len(server.requests) == 2 + 2, "one retry"


def test_a_wrong_model_is_not_asked_for_again(server):
    server.faults = itertools.repeat(lambda h, b: h.send(404, {"error": {"message": "no model m"}}))
    with pytest.raises(SrkitError, match=r"no model m.*endpoint\.model"):
        ask(engine_for(server))
    assert len(server.requests) == 1


def test_a_row_has_its_own_request_and_seed(server):
    engine = engine_for(server)
    drawn = engine.sample([user("Hi"), user("Ho")], 2, Sampling(9, 0.5, 0.8), [[1, 2], [3, 2**40]])
    assert [len(row) for row in drawn] == [2, 2]
    asked = {(r["messages"][0]["content"], r["seed"]) for r in server.requests if "seed" in r}
    assert asked == {("Hi", 1), ("Hi", 2), ("Ho", 3), ("Ho", 0)}
    last = server.requests[-1]
    assert (last["max_tokens"], last["temperature"], last["top_p"]) == (9, 0.5, 0.8)
    assert (last["top_k"], last["min_p"]) == (-1, 0.0), "no habits of the server's own"
    assert engine.spent["requests"] == len(server.requests)
    assert engine.spent["completion_tokens"] == 2 * len(server.requests)


def test_text_is_cut_at_the_end_of_the_first_match(server):
    text, limit = "Good.\nScore: 4\nScore: 1\n", {"finish": "length"}
    server.answer = lambda handler, body: handler.send(200, completion(text, **limit))
    assert ask(engine_for(server), SCORE_STOP).text == "Good.\nScore: 4\n"
    assert not ask(engine_for(server), SCORE_STOP).truncated
    assert ask(engine_for(server)).text == text
    assert ask(engine_for(server)).truncated


def test_a_server_that_refuses_unknown_fields_is_asked_without_them(server):
    def strict(handler, body):
        unknown = {"top_k", "continue_final_message"} & set(body)
        refused = {"error": {"message": f"unknown field {unknown}"}}
        handler.send(400, refused) if unknown else answer(handler, body)

    server.answer = strict
    scores = engine_for(server).score_options([compare_prompt("?", "a", "b")], [" A", " B"])
    assert scores.tolist() == [[-0.1, -2.5]]
    assert "continue_final_message" not in server.requests[-1]


def test_a_server_that_begins_a_new_turn_is_refused(server):
    def new_turn(handler, body):
        words = sum(4 + len(message["content"].split()) for message in body["messages"])
        handler.send(200, completion(prompt_tokens=words))

    server.answer = new_turn
    with pytest.raises(SrkitError, match="does not continue a final assistant message"):
        engine_for(server).score_options([[*user("Hi"), FORCED]], DIGITS)


def test_a_server_that_knows_the_fields_may_have_any_frame(server):
    """A template may add to a continued message, such as an empty block of thoughts."""

    def thinking(handler, body):
        frame = 9 if body.get("continue_final_message") else 14
        words = sum(len(message["content"].split()) for message in body["messages"])
        frame = 0 if len(body["messages"]) == 1 else frame
        handler.send(200, completion(prompt_tokens=words + frame))

    server.answer = thinking
    engine_for(server).sample([[*user("Hi"), FORCED]], 1, Sampling(4), [[0]])
    assert server.requests[-1]["continue_final_message"] is True


def test_a_message_that_comes_back_with_its_continuation_is_taken_off(server):
    def echo(handler, body):
        words = " ".join(message["content"] for message in body["messages"]).split()
        text = body["messages"][-1]["content"] + " 4\nGood"
        handler.send(200, completion(text, prompt_tokens=len(words)))

    server.answer = echo
    begun = [[*user("Hi"), FORCED], user("Score:")]
    drawn = engine_for(server).sample(begun, 1, Sampling(4), [[0], [0]])
    assert [c.text for (c,) in drawn] == [" 4\nGood", "Score: 4\nGood"]


def test_a_server_without_logprobs_is_no_referee(server):
    server.answer = lambda handler, body: handler.send(200, completion())
    with pytest.raises(SrkitError, match="can write but not be a referee"):
        engine_for(server).score_options([user("Hi")], [" A", " B"])


def test_a_missing_client_says_how_to_install_it(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(SrkitError, match=r"pip install 'srkit\[endpoint\]'"):
        ask(engine_for(server, concurrency=3))


def test_a_budget_stops_before_the_next_request(server):
    engine = engine_for(server, max_tokens=20)
    with pytest.raises(SrkitError, match=r"cost \d+ tokens, and endpoint.max_tokens=20"):
        [ask(engine) for _ in range(99)]
    spent = engine.spent["prompt_tokens"] + engine.spent["completion_tokens"]
    assert 20 <= spent < 24
    assert len(server.requests) == engine.spent["requests"]


# --- secrets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["", "." * 225])
def test_the_key_is_sent_and_shown_nowhere(server, monkeypatch, caplog, padding):
    """Not even its beginning, where a long message is cut."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", KEY)
    seen = []

    def echo(handler, body):
        seen.append(handler.headers["Authorization"])
        handler.send(401, {"error": {"message": f"bad key in {padding} {seen[-1]}"}})

    server.faults = itertools.repeat(echo)
    with pytest.raises(SrkitError, match=r"bad key in .*Bearer \*\*\*.*key_variable") as caught:
        ask(engine_for(server, key_variable="MY_KEY"))
    assert seen == [f"Bearer {KEY}"]
    assert KEY[:8] not in "".join(traceback.format_exception(caught.value))
    assert KEY not in repr(engine_for(server, key_variable="MY_KEY"))
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    "override",
    [
        "endpoint.url=http://me:secret@localhost/v1",
        "endpoint.url=http://localhost/v1?key=secret",
        "endpoint.url=secret",
        "endpoint.key_variable=sk-secret",
    ],
)
def test_a_secret_in_a_setting_is_refused_and_not_repeated(override):
    with pytest.raises(SrkitError) as caught:
        resolve("tiny", override)
    assert override.split("=")[0] in str(caught.value)
    assert "secret" not in str(caught.value)


# --- in a study ----------------------------------------------------------------------------------


@pytest.fixture
def refereed(server, tmp_path, make):
    """A study whose referee is the server, with 40 held-out prompts of two responses."""
    url = f"http://127.0.0.1:{server.server_port}/v1"
    words = f"eval.referee=endpoint endpoint.url={url} endpoint.model=m endpoint.retries=0"
    study = Study.open(tmp_path / "study", "tiny", words)
    rows = [
        {"id": f"{i}-{r}", "prompt_id": str(i), "prompt": "?", "response": "!", "rank": r}
        for i in range(40)
        for r in range(2)
    ]
    make(study, "seed/eft_eval", rows)
    return study


def test_a_failure_keeps_whole_chunks_and_the_cost_is_counted(server, refereed, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    fine = [answer] * (4 + 64)  # what it understands; 32 comparisons in two orders
    server.faults = itertools.chain(fine, itertools.repeat(FAULTS["500"]))
    with pytest.raises(SrkitError, match=r"out of memory.*is kept"):
        make_referee_comparisons(refereed)
    assert refereed.state("referee/comparisons") == "interrupted"

    before, server.faults = len(server.requests), iter(())
    again = Study.open(refereed.path)
    rows = make_referee_comparisons(again)
    assert len(server.requests) - before == 16, "the first chunk is not asked for again"
    assert len(rows) == 80
    assert {row["referee"] for row in rows} == {"m"}
    assert {row["preferred"] for row in rows if row["first"] == "left"} == {"left"}
    assert {abs(row["log_odds_left"]) for row in rows} == {2.4}
    cost = again.records()["referee/comparisons"]["endpoint"]
    assert (cost["model"], cost["requests"], cost["completion_tokens"]) == ("m", 84, 168)
    written = [file for file in refereed.path.rglob("*") if file.is_file()]
    assert len(written) > 3
    assert not any(KEY.encode() in file.read_bytes() for file in written)


def test_a_table_made_through_every_fault_is_the_undisturbed_one(server, refereed, make):
    """A third of the answers fail in one way or another, and the run is begun again as needed."""
    undisturbed = Study.open(refereed.path.with_name("undisturbed"), overrides=(
        f"eval.referee=endpoint endpoint.url={refereed.config.endpoint.url} endpoint.model=m"
    ), preset="tiny")  # fmt: skip
    make(undisturbed, "seed/eft_eval", refereed.read("seed/eft_eval"))
    make_referee_comparisons(undisturbed)

    turns = itertools.cycle([*FAULTS.values()])
    server.faults = (next(turns) if i % 3 == 2 else answer for i in itertools.count())
    overrides = "endpoint.retries=3 endpoint.timeout=0.3 endpoint.concurrency=2"
    study, runs = Study.open(refereed.path, overrides=overrides, change=True), 0
    while study.state("referee/comparisons") != "done":
        runs += 1
        assert runs < 20
        try:
            make_referee_comparisons(study)
        except SrkitError as error:
            server.said = [*getattr(server, "said", ()), str(error)]
    assert all("is kept" in message for message in getattr(server, "said", ()))
    name = "referee/comparisons.jsonl"
    assert (study.path / name).read_bytes() == (undisturbed.path / name).read_bytes()


def test_a_referee_that_says_neither_has_no_preference(server, refereed):
    neither = [("The", -0.1, (("The", -0.1), ("I", -2.5)))]

    def speak(handler, body):
        tokens = sum(len(message["content"].split()) for message in body["messages"])
        handler.send(200, completion(prompt_tokens=tokens, tops=neither))

    server.answer = speak
    rows = make_referee_comparisons(refereed)
    assert {(row["preferred"], row["log_odds_left"]) for row in rows} == {(None, None)}


def test_only_the_model_of_an_endpoint_decides_a_result(refereed):
    make_referee_comparisons(refereed)
    for setting in ("url=http://127.0.0.1:9/v1", "concurrency=1", "timeout=9", "retries=2"):
        moved = Study.open(refereed.path, overrides=f"endpoint.{setting}", change=True)
        assert moved.state("referee/comparisons") == "done"
    other = Study.open(refereed.path, overrides="endpoint.model=n", change=True)
    assert other.state("referee/comparisons").startswith("stale: made with other settings")
    assert other.state("seed/eft_eval") == "done"


def test_nothing_depends_on_an_endpoint_that_is_not_asked():
    assert not any("endpoint" in word for step in plan(resolve("tiny")) for word in step.settings)
    asked = "endpoint.url=http://localhost/v1 endpoint.model=m"
    steps = plan(resolve("tiny", f"instruct.writer=endpoint {asked}"))
    users = {step.name for step in steps if "endpoint.model" in step.settings}
    assert users == {f"self-rewarding/iter-{t}/prompts" for t in (1, 2)}


@pytest.mark.parametrize("role", ["eval.referee", "instruct.writer"])
def test_an_endpoint_needs_an_address(role):
    with pytest.raises(SrkitError, match=r"set endpoint\.url and endpoint\.model"):
        resolve("tiny", f"{role}=endpoint endpoint.model=m")


def test_the_engine_counts_into_its_study(refereed):
    engine = open_engine(refereed, "endpoint")
    engine.sample([user("Hi")], 1, Sampling(4), [[0]])
    assert refereed.spent["requests"] >= 1


# --- real servers --------------------------------------------------------------------------------

QUESTIONS = [
    user("Name three primary colours."),
    user("Why is the sky blue? Answer in one sentence."),
    [*user("Write a list of three fruits."), {"role": "assistant", "content": "1. Apple\n2."}],
    [{"role": "system", "content": "Answer in French."}, *user("How are you?")],
]
CHOICES = [
    compare_prompt("What is 2 + 2?", "4", "5"),
    compare_prompt("Name a colour.", "A dog is an animal.", "Blue."),
]
GRADES = [
    [*judge_prompt("additive", "What is 2 + 2?", "It is 4."), FORCED],
    [*judge_prompt("additive", "Name a colour.", "No."), FORCED],
]
TOLERANCE = 0.01  # of a log-probability, both sides in float32


def llama_cpp(folder: Path, port: int) -> list[str]:
    """llama-server with the embedded weights as float32, as srkit reads them."""
    program = os.environ.get("SRKIT_LLAMA_SERVER") or shutil.which("llama-server")
    if not program:
        pytest.skip("needs llama.cpp's llama-server: put it on the path or in SRKIT_LLAMA_SERVER")
    gguf = unpacked_gguf(folder / "smollm2.gguf")
    options = f"-m {gguf} --port {port} --alias smollm2 -c 8192 -np 4 -t 2 --no-webui -ctk f32 -ctv"
    return [program, *options.split(), "f32", "-fa", "off"]


def vllm(folder: Path, port: int) -> list[str]:
    python = os.environ.get("SRKIT_VLLM_PYTHON") or sys.executable
    if subprocess.run([python, "-c", "import vllm"], capture_output=True).returncode:
        pytest.skip("needs vLLM: install it here, or in the environment of SRKIT_VLLM_PYTHON")
    options = f"--served-model-name smollm2 --port {port} --dtype float32 --enforce-eager"
    limits = "--max-model-len 2048 --max-num-seqs 8 --disable-log-stats"
    words = f"-m vllm.entrypoints.openai.api_server --model {weights()} {options} {limits}"
    return [python, *words.split()]


def transformers_serve(folder: Path, port: int) -> list[str]:
    python = os.environ.get("SRKIT_SERVE_PYTHON") or sys.executable
    if subprocess.run([python, "-c", "import fastapi, uvicorn"], capture_output=True).returncode:
        pytest.skip("needs transformers[serving]: install it here, or for SRKIT_SERVE_PYTHON")
    run = "from transformers.cli.transformers import main; main()"
    return [python, "-c", run, "serve", str(weights()), "--port", str(port), "--device", "cpu"]


SERVERS = {"llama.cpp": llama_cpp, "vllm": vllm}


def weights() -> Path:
    """The folder of the embedded model's weights."""
    from srkit.weights import locate

    return Path(locate(Model())).resolve()


def unpacked_gguf(target: Path) -> Path:
    """The embedded GGUF file with its 4-bit tensors dequantised to float32."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, dequantize

    from srkit.weights import smollm2_file

    reader = GGUFReader(smollm2_file())
    writer = GGUFWriter(target, reader.get_field("general.architecture").contents())
    for name, part in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = part.types[-1] if len(part.types) > 1 else None
            writer.add_key_value(name, part.contents(), part.types[0], inner)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values, raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.fixture(scope="module", params=SERVERS)
def real(request, tmp_path_factory):
    """An engine for a real server in a process of its own."""
    with running(SERVERS[request.param], tmp_path_factory.mktemp("server")) as url:
        yield EndpointEngine(Endpoint(url=url, model="smollm2", concurrency=4, retries=1))


@contextmanager
def running(program, folder: Path):
    """Start a server on a free port; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = program(folder, port)
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
             "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | quiet,
        )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/v1/models", process, folder / "log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def wait_for(url: str, process: subprocess.Popen, log: Path, seconds: int = 180) -> None:
    for _ in range(seconds * 2):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(url, timeout=1)
            return
        except urllib.error.HTTPError as error:
            if error.code != 503:  # it is loading
                return
        except OSError:  # not there yet
            pass
        time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


@pytest.fixture(scope="module")
def local():
    from srkit.generate import HfEngine
    from srkit.models import load_policy

    return HfEngine(load_policy(Model(dtype="float32")))


@pytest.mark.slow
def test_greedy_text_is_that_of_the_hf_engine(real, local):
    sampling, seeds = Sampling(32, temperature=0), [[0]] * len(QUESTIONS)
    ours, theirs = (e.sample(QUESTIONS, 1, sampling, seeds) for e in (local, real))
    for question, (mine,), (other,) in zip(QUESTIONS, ours, theirs, strict=True):
        assert (other.text, other.truncated) == (mine.text, mine.truncated), question


@pytest.mark.slow
@pytest.mark.parametrize(("prompts", "options"), [(CHOICES, [" A", " B"]), (GRADES, DIGITS)])
def test_option_logprobs_are_those_of_the_hf_engine(real, local, prompts, options):
    ours, theirs = (e.score_options(prompts, options) for e in (local, real))
    assert np.abs(ours - theirs).max() < TOLERANCE, (ours, theirs)


@pytest.mark.slow
def test_seeds_repeat_a_draw_and_differ_from_each_other(real):
    sampling = Sampling(16, temperature=1.0)
    once = real.sample(QUESTIONS[:2], 3, sampling, [[1, 2, 3], [4, 5, 6]])
    again = real.sample(QUESTIONS[:1], 3, sampling, [[1, 2, 3]])
    assert [c.text for c in once[0]] == [c.text for c in again[0]], "whatever company it has"
    assert len({c.text for c in once[0]}) > 1


@pytest.mark.slow
def test_it_draws_from_the_models_distribution(real, local):
    """The first word of 200 draws at temperature 1: no top-k, min-p or penalty of the server."""
    question, words = [user("Name a colour.")], ["The", "One", "A", "Blue", "I"]
    wide = Sampling(1, temperature=1.0, top_p=1.0)
    drawn = [c.text.strip() for c in real.sample(question, 200, wide, [list(range(200))])[0]]
    expected = np.exp(local.score_options(question, words)[0])
    for word, p in zip(words, expected, strict=True):
        error = max(4 * math.sqrt(p * (1 - p) / 200), 0.02)
        assert abs(drawn.count(word) / 200 - p) < error, (word, p, drawn.count(word))


@pytest.mark.slow
def test_parity_finds_that_it_serves_the_base(real, local):
    expected = parity.reference_answers(local.policy)
    found = parity.answers(replace(real, bound=False))
    assert parity.problems(found, expected, None, TOLERANCE) == []
    assert parity.largest_difference(found, expected) < TOLERANCE


@pytest.mark.slow
def test_transformers_serve_begins_a_new_turn_and_is_refused(tmp_path, local):
    with running(transformers_serve, tmp_path) as url:
        engine = EndpointEngine(Endpoint(url=url, model=str(weights()), retries=1))
        sampling = Sampling(16, temperature=0)
        theirs, ours = (e.sample(QUESTIONS[:1], 1, sampling, [[0]]) for e in (engine, local))
        assert theirs[0][0].text == ours[0][0].text
        with pytest.raises(SrkitError, match="does not continue a final assistant message"):
            engine.sample(QUESTIONS[2:3], 1, sampling, [[0]])
