"""Texts that attack whoever reads them: a study full of them, opened in a real browser.

Prompts, answers, judgements, the seed set and the referee's name are hostile here. Nothing of it
may run a script, load anything, open a dialog or leave the page, in the report, in the pair
browser's page, and (slow) in JupyterLab. The browser is Chromium, driven through its DevTools
protocol, where one is installed.
"""

import base64
import itertools
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from srkit import blind_items, browse, evaluate, instruct, judge, notebook, pairs, series
from srkit.engine import Completion
from srkit.escape import visible
from srkit.study import Study

ROOT = Path(__file__).resolve().parents[1]
AWAY = "http://attacker.invalid"
ATTACKS = {
    "script": "<script>window.hacked='script'</script>",
    "closing": "</pre></details></div></title></style><script>alert('closing')</script>",
    "handler": "<img src=x onerror=\"window.hacked='handler'\">",
    "quotes": "\"><svg onload=\"window.hacked='quotes'\">' onmouseover='window.hacked=1",
    "frame": "<iframe srcdoc=\"<script>parent.hacked='frame'</script>\"></iframe>",
    "focus": "<input autofocus onfocus=\"alert('focus')\"><details open ontoggle=alert(1)>",
    "load": f"<img src='{AWAY}/a.png'><link rel=stylesheet href='{AWAY}/b.css'>",
    "style": f"<style>@import url({AWAY}/c.css); body {{ background: url({AWAY}/d.png) }}</style>",
    "leave": f"<meta http-equiv=refresh content='0;url={AWAY}/e'><base href='{AWAY}'>",
    "markdown": f"![picture]({AWAY}/f.png) [click](javascript:alert('markdown'))",
    "formula": r"$\href{javascript:alert(1)}{x}$ \(\style{background:url(" + AWAY + r"/g)}{y}\)",
    "template": "{{constructor.constructor('alert(1)')()}} ${alert(2)} <% alert(3) %>",
    "comment": "<!-- --><![CDATA[<script>window.hacked='cdata'</script>]]> -->",
    "entity": "&lt;script&gt;alert(1)&lt;/script&gt; &#60;img src=x onerror=alert(2)&#62;",
    "terminal": "\x1b[31mred\x1b[0m \x1b]8;;" + AWAY + "\x07link\x1b]8;;\x07 \x9b2J\r",
    "direction": "\u202ereversed\u202c \u2066isolated\u2069 zero\u200bwidth",
    "nul": "before\x00after <scr\x00ipt>window.hacked='nul'</scr\x00ipt>",
}
DRAWN = [
    "image",
    "svg",
    "metadata",
    "RDF",
    "Work",
    "type",
    "format",
    "defs",
    "style",
    "g",
    "path",
    "rect",
    "use",
    "clipPath",
]
WORDS = ("apple", "bridge", "candle", "desert", "engine", "forest", "garden", "harbour", "island")


def foreign(seed: int) -> str:
    """An attack with varying words around it, so that no filter finds it too similar."""
    words = " ".join(WORDS[seed // 7**i % len(WORDS)] for i in range(12))
    attacks = list(ATTACKS.values())
    return f"Explain {words} {attacks[seed % len(attacks)]} and its use"


def reply(content: str, seed: int) -> str:
    if "numbered list" in content:
        lines = [f"{i}. {foreign(seed + 5 * i)}" for i in range(9, 26)]
        return "\n".join(lines).removeprefix("9.") + "\n"
    return f"{foreign(seed)}\nScore: {seed % 6}"


def hostile_seed(folder: Path) -> Path:
    """The kit's seed set, with an attack in every text and every name that a row may choose.

    None holds a NUL: a seed with one is refused. Models may write one all the same.
    """
    numbers = itertools.count()

    def spoil(value, key=""):
        if isinstance(value, dict):
            return {k: spoil(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [spoil(v) for v in value]
        spoilt = key in ("prompt", "response", "text", "rationale", "task", "made")
        return f"{value} {foreign(next(numbers))}".replace("\0", "") if spoilt else value

    folder.mkdir()
    for file in (ROOT / "data" / "seed").glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        (folder / file.name).write_text("".join(json.dumps(spoil(row)) + "\n" for row in rows))
    return folder


class Hostile:
    """An engine that answers with attacks."""

    def __init__(self, study, name):
        pass

    def sample(self, conversations, n, sampling, seeds):
        return [
            [Completion(reply(c[0]["content"], seed), 9, False) for seed in row]
            for c, row in zip(conversations, seeds, strict=True)
        ]

    def score_options(self, conversations, options):
        lengths = [len(c[0]["content"]) % 7 for c in conversations]
        return np.array([[length * ord(o[1]) for o in options] for length in lengths], float)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A whole study of hostile texts: the steps are the real ones where no weights are needed."""
    tmp_path = tmp_path_factory.mktemp("hostile")
    name = f"<img src=x onerror=alert('name')>${AWAY}$x$ <script>window.hacked='name'</script>"
    settings = [
        f"seed.source={hostile_seed(tmp_path / 'seed')}",
        "seed.max_words=2000",
        "judge.method=sampled",
        "instruct.max_words=200",
        "eval.ways_of=[]",  # these read probabilities of a real model
        "eval.referee=endpoint",
        "endpoint.url=http://127.0.0.1:9/v1",
        f"endpoint.model={name}",
    ]
    study = Study.open(tmp_path / "study", "tiny", shlex.join(settings))

    def adapter(step, folder: Path) -> dict:
        for output in step.outputs:
            log = {"step": 1, "loss": 0.69, "learning_rate": 0.1, "reward_accuracy": 0.5}
            log |= {"chosen_logp": -9.0, "rejected_logp": -9.5}
            (folder / Path(output).name).write_text(json.dumps(log) + "\n")
        return {"steps": 1}

    def drift(part: list[dict], _: list[dict]) -> list[dict]:
        numbers = {"tokens": 9, "logp_own": -9.0, "logp_start": -9.5, "k3": 0.1}
        known = {"start": "M1", "truncated": False, **numbers}
        return [{"id": p["id"], "prompt_id": p["id"], "text": p["prompt"], **known} for p in part]

    for step in study.steps.values():
        if step.name.endswith("/adapter"):
            study.make_folder(step.name, partial(adapter, step))
            continue
        if step.name.endswith("/drift"):  # so does this
            study.make_table(step.name, study.read("seed/test_prompts"), drift, chunk=99)
            continue
        with pytest.MonkeyPatch.context() as patch:
            for module in (blind_items, evaluate, instruct, judge, pairs):
                patch.setattr(module, "open_engine", Hostile)
            series.make_step(study, step.name)
    return study


# --- without a browser -------------------------------------------------------------------------


def test_pages_hold_every_attack_as_text_alone(hostile):
    for name in ("report.html", "browse.html"):
        page = (hostile.path / name).read_text("utf-8")
        assert not re.search(r"<(script|svg|iframe|input|form|link|base)\b", page)
        assert not re.search(r"<[^>]*\s(on\w+|href|src)=(?!\"data:image/png;base64,)", page)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
    page = (hostile.path / "browse.html").read_text("utf-8")
    assert "&lt;script&gt;window.hacked=" in page
    assert "&amp;lt;script&amp;gt;" in page, "what looks escaped is escaped again"


def test_figures_take_a_name_as_it_is(hostile):
    """Dollar signs are no formula, and nothing of an svg is markup that was not drawn."""
    files = list((hostile.path / "figures").glob("*.svg"))
    assert len(files) > 8
    for file in files:
        for element in ElementTree.parse(file).iter():
            assert element.tag.rpartition("}")[2] in DRAWN, file
            assert not [name for name in element.attrib if name.startswith("on")], file
            links = [v for name, v in element.attrib.items() if name.endswith("href")]
            assert all(link.startswith(("#", "data:image/png;base64,")) for link in links), file


def test_a_terminal_is_told_nothing(hostile, capsys, monkeypatch):
    from typer.testing import CliRunner

    from srkit.cli import app

    shown = CliRunner().invoke(app, ["status", str(hostile.path)]).output
    for row in hostile.read("self-rewarding/iter-1/candidates"):
        notebook.show(row["id"], row["text"])
    shown += capsys.readouterr().out
    assert "window.hacked" in shown
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)


# --- a browser ---------------------------------------------------------------------------------

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs a Chromium on the path: apt install chromium"
)


class Tab:
    """A tab of a headless Chromium, and everything that its page did."""

    def __init__(self, address: str) -> None:
        import websocket

        self.link = websocket.create_connection(address, suppress_origin=True, timeout=60)
        self.events, self.number = [], 0
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters):
        self.number += 1
        sent = {"id": self.number, "method": method, "params": parameters}
        self.link.send(json.dumps(sent))
        while (answer := self._next()).get("id") != sent["id"]:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict:
        message = json.loads(self.link.recv())
        if "method" in message:
            self.events.append(message)
        if message.get("method") == "Page.javascriptDialogOpening":
            closing = {
                "id": 0,
                "method": "Page.handleJavaScriptDialog",
                "params": {"accept": False},
            }
            self.link.send(json.dumps(closing))
        return message

    def run(self, script: str):
        """The value of a script, awaited."""
        found = self.ask(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, address: str) -> None:
        self.ask("Page.navigate", url=address)
        self.until("document.readyState == 'complete'")

    def until(self, condition: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, f"{condition} did not come true"
            time.sleep(0.1)

    def provoke(self) -> None:
        """Do what a reader does: open everything, point at everything, focus everything."""
        self.run(
            """(async () => {
              document.querySelectorAll("details").forEach(d => d.open = true);
              for (const e of document.querySelectorAll("body *")) {
                for (const kind of ["mouseover", "mouseenter", "focus", "toggle", "load"])
                  e.dispatchEvent(new Event(kind));
              }
              await new Promise(done => setTimeout(done, 700));
            })()"""
        )

    def did(self) -> dict[str, list]:
        """What the page did that it must not: requests, dialogs, a flag set by a script."""
        named = [(e["method"], e["params"]) for e in self.events]
        asked = {p["requestId"]: p["request"]["url"] for m, p in named if m.endswith("WillBeSent")}
        failed = [p for m, p in named if m == "Network.loadingFailed"]
        blocked = {p["requestId"] for p in failed if p.get("blockedReason") == "csp"}
        sent = [url for number, url in asked.items() if number not in blocked]
        return {
            "requests": [url for url in sent if not url.startswith(("data:", "file:"))],
            "files": [url for url in sent if url.startswith("file:")],
            "blocked": [asked[number] for number in blocked],
            "dialogs": [p["message"] for m, p in named if m == "Page.javascriptDialogOpening"],
            "flag": self.run("window.hacked"),
        }


@contextmanager
def chromium(folder: Path):
    """A tab of a new Chromium that keeps its profile in a folder."""
    profile = folder / "profile"
    options = "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-sync"
    options += " --disable-background-networking --disable-component-update --disable-extensions"
    command = [CHROMIUM, *options.split(), "--remote-debugging-port=0", "--window-size=1300,1600"]
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", "about:blank"], stdout=log, stderr=log
        )
    try:
        port = wait_for(lambda: (profile / "DevToolsActivePort").read_text().splitlines()[0])
        tabs = wait_for(lambda: ask_json(f"http://127.0.0.1:{port}/json/list"))
        yield Tab(next(t["webSocketDebuggerUrl"] for t in tabs if t["type"] == "page"))
    finally:
        process.terminate()
        process.wait(20)


def wait_for(get, seconds: float = 60):
    """What `get` returns, as soon as it does."""
    end = time.monotonic() + seconds
    while True:
        try:
            if found := get():
                return found
        except (OSError, IndexError):
            pass
        assert time.monotonic() < end, "it did not start"
        time.sleep(0.1)


def ask_json(address: str):
    with urllib.request.urlopen(address, timeout=10) as answer:
        return json.load(answer)


@needs_chromium
def test_the_browser_sees_attacks_that_are_not_escaped(tmp_path):
    """Without this, the tests below would prove nothing."""
    page = tmp_path / "page.html"
    texts = [t for n, t in ATTACKS.items() if n not in ("leave", "closing")]
    page.write_text(f"<!doctype html><meta charset=utf-8><body>{' '.join(texts)}</body>")
    with chromium(tmp_path) as tab:
        tab.open(page.as_uri())
        tab.provoke()
        done = tab.did()
    assert done["flag"]
    assert "focus" in done["dialogs"]
    assert {f"{AWAY}/a.png", f"{AWAY}/b.css", f"{AWAY}/c.css"} <= set(done["requests"])


@needs_chromium
def test_report_and_pair_browser_do_nothing_and_show_texts_as_written(hostile, tmp_path):
    texts = [row["text"] for row in hostile.read("self-rewarding/iter-1/candidates")]
    pairs = [row for row in hostile.read("self-rewarding/iter-1/pairs") if not row["dropped"]]
    with chromium(tmp_path) as tab:
        for name, shown in (
            ("browse.html", texts),
            ("report.html", [pairs[0]["chosen"], pairs[0]["rejected"], pairs[0]["prompt"]]),
        ):
            address = (hostile.path / name).resolve().as_uri()
            tab.events.clear()
            tab.open(address)
            tab.provoke()
            done = tab.did()
            assert done.pop("files") == [address], "the page, and no other file"
            assert done == {"requests": [], "blocked": [], "dialogs": [], "flag": None}, name
            assert tab.run("location.href") == address
            read = tab.run("[...document.querySelectorAll('pre')].map(e => e.textContent)")
            assert {visible(text) for text in shown} <= set(read), f"{name}: as written"


@needs_chromium
def test_an_escape_that_was_forgotten_would_still_do_nothing(hostile, tmp_path):
    """The pages' own policy forbids scripts, handlers, frames' scripts and every request."""
    kept = (hostile.path / "browse.html").read_text("utf-8")
    attacks = " ".join(text for name, text in ATTACKS.items() if name != "leave")
    page = tmp_path / "page.html"
    page.write_text(kept.replace("</h1>", f"</h1>{attacks}"), "utf-8")
    with chromium(tmp_path) as tab:
        tab.open(page.as_uri())
        tab.provoke()
        done = tab.did()
    assert f"{AWAY}/a.png" in done["blocked"], "the policy, and not chance"
    done = {key: done[key] for key in ("requests", "dialogs", "flag")}
    assert done == {"requests": [], "dialogs": [], "flag": None}


@needs_chromium
def test_the_page_s_menus_filter_and_sort_without_scripts(hostile, tmp_path):
    folder = "self-rewarding/iter-1"
    found = browse.cases(hostile, folder)
    kinds = list(browse.outcomes(found))
    script = """((menu, value) => {
      const part = document.querySelector(".srkit");
      part.querySelector("select." + menu).value = value;
      return [...part.querySelectorAll(".cases > details")].filter(e => e.offsetHeight)
        .sort((a, b) => a.offsetTop - b.offsetTop)
        .map(e => e.querySelector("pre").textContent);
    })"""
    with chromium(tmp_path) as tab:
        tab.open((hostile.path / "browse.html").resolve().as_uri())
        for number, order in enumerate(browse.ORDERS):
            wanted = [visible(c["prompt"]) for c in browse.select(found, order=order)]
            assert tab.run(f"{script}('order', '{number}')") == wanted
        for number, kind in enumerate(kinds):
            order = list(browse.ORDERS)[-1]
            wanted = [visible(c["prompt"]) for c in browse.select(found, kind, order)]
            assert tab.run(f"{script}('show', '{number}')") == wanted
    assert len(kinds) > 2, "something to filter"


# --- JupyterLab ----------------------------------------------------------------------------------


@contextmanager
def lab(folder: Path):
    """The address of a JupyterLab of this environment that serves a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "ServerApp": {"port": port, "root_dir": str(folder), "open_browser": False},
        "IdentityProvider": {"token": ""},
        "LabApp": {"expose_app_in_browser": True},
    }
    (folder / "config.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "jupyterlab", "--allow-root", "--config=config.json"]
    paths = {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder), "HOME": str(folder)}
    with (folder / "lab.log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **paths}, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: ask_json(f"{address}/api"), 180)
        yield address
    finally:
        server.terminate()
        server.wait(60)


CELLS = """
from srkit import browse, notebook
from srkit.study import Study
opened = Study.open(STUDY)
browse.browser(opened)
---
from IPython.display import HTML
found = browse.cases(opened, "self-rewarding/iter-1")
HTML(browse.static_html(found, "self-rewarding/iter-1"))
---
for case in found:
    notebook.show("prompt", case["prompt"])
print("the " + "end")
"""


def idle(session: dict) -> bool:
    return session["kernel"]["execution_state"] == "idle"


NEXT = "[...document.querySelectorAll('button')].find(b => b.innerText == 'next')"


@needs_chromium
@pytest.mark.slow
def test_widgets_in_jupyterlab_do_nothing_and_show_texts_as_written(hostile, tmp_path):
    import nbformat

    sources = CELLS.replace("STUDY", repr(str(hostile.path))).split("---\n")
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in sources]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    (tmp_path / "lab").mkdir()
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "lab/texts.ipynb"
    )
    found = browse.cases(hostile, "self-rewarding/iter-1")
    with lab(tmp_path / "lab") as address, chromium(tmp_path) as tab:
        tab.open(f"{address}/lab/tree/texts.ipynb?reset")
        tab.until("!!document.querySelector('.jp-Notebook .cm-content')", 180)
        wait_for(lambda: [s for s in ask_json(f"{address}/api/sessions") if idle(s)], 120)
        time.sleep(3)  # until the page has heard of it, too
        tab.run("void jupyterapp.commands.execute('notebook:run-all-cells')")
        tab.until("document.querySelector('.jp-Notebook').innerText.includes('the end')", 120)
        tab.until("!!document.querySelector('.jupyter-widgets pre')")
        for case in found:
            shown = "document.querySelector('.jupyter-widgets .srkit pre').textContent"
            tab.until(f"{shown} === {json.dumps(visible(case['prompt']))}", 20)
            read = tab.run(
                "[...document.querySelectorAll('.jupyter-widgets pre')].map(e => e.textContent)"
            )
            assert {visible(c["text"]) for c in case["candidates"]} <= set(read)
            tab.provoke()
            tab.run(
                "[...document.querySelectorAll('button')].find(b => b.innerText == 'next').click()"
            )
        done = tab.did()
        assert [url for url in done["requests"] if not url.startswith((address, "blob:"))] == []
        assert (done["dialogs"], done["flag"]) == ([], None)
        assert tab.run("document.querySelectorAll('.srkit mjx-container').length") == 0
        assert (
            tab.run("document.querySelectorAll('.srkit a, .srkit img, .srkit script').length") == 0
        )
        picture = tab.ask("Page.captureScreenshot")["data"]
        (tmp_path / "lab.png").write_bytes(base64.b64decode(picture))
