"""Traffic in which each channel carries a canary of its own, and where it is looked for afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

import psycopg
import pytest

from meshctl.dev.models import packaged_model
from tests.kit.cluster import Cluster, bundled
from tests.kit.impostor import Impostor, Job
from tests.kit.mesh import DaemonProcess, Mesh
from tests.kit.model_server import running_apis
from tests.kit.process import descendants, wait_until
from tests.kit.streams import Reply, Streaming, ask
from tests.kit.traces import Forms, Watch, files_below, open_files
from tests.qgate.model_api import Exchange, ModelApi, answer, chat, events, piece

MODEL: Final = "smollm2"
TALKATIVE: Final = {"log": {"level": "debug"}}
CHANNELS: Final = (
    *("prompt", "system", "answer", "stream", "completion", "embedding", "responses", "ollama"),
    *("summary", "labels", "tools", "parameter", "literal", "comment", "failing", "shell"),
    *("provider", "provided", "refused", "halved"),
    *("grammar", "role", "number", "overlong", "garbled", "key", "killed", "crashed", "planned"),
)
PLANTED: Final = "planted"
PREFIX: Final = "The quarterly report of the harbour says this about its ships and cranes. " * 6
GREEDY: Final = {"temperature": 0, "max_tokens": 4}


def plant(folder: Path) -> subprocess.Popen[bytes]:
    """A process that, once it is told a word, writes it to two files in a folder and removes one of them."""
    script = 'read word; printf %s "$word" > gone; printf %s "$word" > kept; rm gone'
    return subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, cwd=folder)


class Scene:
    """The mesh, its apps, and what their requests were answered with."""

    def __init__(self, mesh: Mesh, cluster: Cluster, words: Mapping[str, str]) -> None:
        self.mesh = mesh
        self.cluster = cluster
        self.words = words
        self.port = mesh.sidecar.port
        self.key = mesh.add_models_app("talker", reuse=True)
        self.other_key = mesh.add_models_app("other", reuse=True)
        self.password = mesh.control.post(
            "/apps", {"name": "sql-talker", "databases": [], "policy": {"models": ["*"]}}
        )["password"]
        self.daemon = self._daemon()
        self.replies: dict[str, Reply] = {}
        self.rows: dict[str, str] = {}
        self.shell = ""
        self.cached: dict[str, int] = {}
        self.found: dict[str, set[str]] = defaultdict(set)
        self.cores: list[Path] = []
        self.limits: dict[str, str] = {}

    def _daemon(self) -> DaemonProcess:
        daemon = self.mesh.add_daemon(
            "worker-1", settings={"llama": {"slots": 4, "context": 512, "threads": 1}, **TALKATIVE}
        )
        file = packaged_model()
        assert file is not None
        daemon.stock(file, MODEL)
        daemon.start()
        self.mesh.wait_worker("worker-1")
        self.mesh.load_model(MODEL, "worker-1")
        return daemon

    def processes(self, *, of: str = "") -> list[int]:
        """Every process of the mesh; with ``of`` those whose command line has this word."""
        tops = (self.mesh.gate.pid, self.mesh.sidecar.pid, self.daemon.pid)
        found = {pid for top in tops for pid in descendants(top)}
        return sorted(pid for pid in found if of.encode() in _read(f"/proc/{pid}/cmdline"))

    # --- traffic

    def post(self, name: str, body: Mapping[str, Any] | bytes, path: str = "/v1/chat/completions") -> Reply:
        """Ask, and keep the reply."""
        self.replies[name] = ask(self.port, self.key, body, path)
        return self.replies[name]

    def speak(self) -> None:
        """Requests that succeed."""
        say = self.words
        schema = {
            "type": "object",
            "properties": {"said": {"enum": [say["answer"]]}},
            "required": ["said"],
            "additionalProperties": False,
        }
        self.post(
            "answer",
            {
                "model": MODEL,
                "messages": [
                    {"role": "system", "content": f"Keep {say['system']} to yourself."},
                    {"role": "user", "content": f"The word is {say['prompt']}. Say it."},
                ],
                "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
                "max_tokens": 100,
                "temperature": 0,
            },
        )
        Streaming(self.port, self.key, asked(say["stream"]) | GREEDY).end().check_whole()
        self.post("completion", {"model": MODEL, "prompt": say["completion"]} | GREEDY, "/v1/completions")
        self.post("embedding", {"model": MODEL, "input": say["embedding"]}, "/v1/embeddings")
        self.post(
            "responses",
            {"model": MODEL, "input": say["responses"], "max_output_tokens": 4},
            "/v1/responses",
        )
        self.post(
            "ollama",
            asked(say["ollama"]) | {"stream": False, "options": {"num_predict": 4}},
            "/api/chat",
        )
        self.post("summary", asked(f"The {say['summary']} harbour was rebuilt.", "qg://task=summarize"))
        labels = f"{say['labels']}: a harbour,other"
        self.post("labels", asked("A harbour.", f"qg://task=classify;labels={labels}"))
        tool = {"type": "function", "function": {"name": "f", "description": say["tools"]}}
        self.post("tools", asked("Call it.") | GREEDY | {"tools": [tool]})

    def speak_sql(self) -> None:
        """The same from a driver, and statements that fail."""
        say = self.words
        with psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="sql-talker",
            password=self.password,
            dbname="qg",
            autocommit=True,
        ) as connection:
            for name, statement, values in (
                ("parameter", "SELECT text FROM qg('task=summarize', %s)", (self._sentence("parameter"),)),
                ("literal", f"SELECT text FROM qg('task=summarize', '{self._sentence('literal')}')", None),
                (
                    "comment",
                    f"/* {say['comment']} */ SELECT text FROM qg('task=language', 'x') -- {say['comment']}",
                    None,
                ),
            ):
                row = connection.execute(statement.encode(), values).fetchone()
                assert row is not None
                self.rows[name] = row[0]
            for failing in (
                f"SELECT text FROM qg('task=chat;model=none', '{say['failing']}')",
                f"SELECT text FROM qg('task=chat;max_tokens={say['failing']}', 'x')",
                f"SELECT '{say['failing']}' FROM nowhere",
                f"INSERT INTO t VALUES ('{say['failing']}')",
                f"SELECT text FROM qg('task=summarize', '{say['failing']}",
            ):
                with pytest.raises(psycopg.Error):
                    connection.execute(failing.encode())

    def _sentence(self, name: str) -> str:
        return f"The {self.words[name]} harbour was rebuilt."

    def speak_shell(self) -> None:
        """`meshctl ask`, with the text on standard input."""
        socket = self.mesh.gate.directory / "admin.sock"
        done = subprocess.run(
            [sys.executable, "-m", "meshctl", "ask", "task=summarize", "--socket", str(socket)],
            input=self._sentence("shell"),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        self.shell = done.stdout

    def speak_to_a_provider(self) -> None:
        """Requests that leave; the provider repeats, refuses, and breaks off."""
        say = self.words

        async def play(exchange: Exchange) -> None:
            content = exchange.json["messages"][0]["content"]
            if say["refused"] in content:
                await answer({"error": {"message": f"I will not say {content}"}}, 500)(exchange)
            elif say["halved"] in content:
                await events(piece(content), b"data: {]" + content.encode() + b"\n\n")(exchange)
            else:
                await answer(chat(f"{content} {say['provided']}"))(exchange)

        api = ModelApi(play)
        with running_apis(api):
            self.mesh.control.post(
                "/providers",
                {"name": "acme", "kind": "openai", "url": api.url, "models": [{"name": "big"}]}
                | {"check": False},
            )
            self.post("provider", asked(say["provider"], "big"))
            Streaming(self.port, self.key, asked(say["halved"], "big")).end().check_broken()
            self.post("refused", asked(say["refused"], "big"))
            self.mesh.control.delete("/providers/acme")

    def stumble(self) -> None:
        """Requests that are refused: by the gate, by the daemon, by its child."""
        say = self.words
        for pattern in ({"type": say["grammar"]}, {"$ref": f"#/{say['grammar']}"}):
            form = {"type": "json_schema", "json_schema": {"name": "s", "schema": pattern}}
            self.post("grammar", asked("x") | {"response_format": form})
        self.post("role", {"model": MODEL, "messages": [{"role": say["role"], "content": "x"}]})
        self.post("number", asked("x") | {"max_tokens": say["number"]})
        self.post("overlong", asked(f"{say['overlong']} " * 500))
        self.post("garbled", b'{"model": "x", "messages": [' + say["garbled"].encode())
        self.post("key", asked("x", f"qg://task=chat;{say['key']}={say['key']}"))

    def crash(self) -> None:
        """Children that die with a client's words in them."""
        for name, number in (("killed", signal.SIGKILL), ("crashed", signal.SIGSEGV)):
            stream = Streaming(self.port, self.key, asked(self.words[name], tokens=40))
            stream.until(3)
            for pid in self.processes(of="qdaemon.runtimes.llama.child"):
                os.kill(pid, number)
            stream.end()
        for pid in self.processes(of="qgate.capability.nlp.worker"):
            os.kill(pid, signal.SIGSEGV)
        self.post("planned", asked(f"The {self.words['planned']} came. It went.", "qg://task=summarize"))

    def repeat(self) -> None:
        """The same prefix from two apps, with and without asking for one's own to be reused."""
        for name, key, request in (
            ("first", self.key, "qg://task=complete"),
            ("again", self.key, "qg://task=complete"),
            ("of another app", self.other_key, "qg://task=complete"),
            ("kept", self.key, "qg://task=complete;reuse=true"),
            ("reused", self.key, "qg://task=complete;reuse=true"),
            ("of another app that reuses", self.other_key, "qg://task=complete;reuse=true"),
        ):
            body = {"model": f"{request};model={MODEL}", "prompt": PREFIX} | GREEDY
            usage = ask(self.port, key, body, "/v1/completions").document["usage"]
            assert usage["prompt_tokens"] > 70
            self.cached[name] = usage["prompt_tokens_details"]["cached_tokens"]

    def plant_everywhere(self) -> None:
        """A word that is no secret, to be found in the logs, the store, its log, audit and receipts."""
        word = self.words[PLANTED]
        key = self.mesh.add_models_app(word)
        ask(self.port, key, asked("A harbour.", "qg://task=language"))
        daemon = self.mesh.add_daemon(word)
        self.mesh.daemons.remove(daemon)

        async def play(job: Job) -> None:
            raise AssertionError

        with Impostor(daemon.directory, word, play) as impostor:
            impostor.report()
            self.mesh.wait_worker(word)
        (self.mesh.root / "notes").mkdir()
        (self.mesh.root / "notes" / "in-utf-16").write_bytes(b"\1" + word.encode("utf-16-be"))

    # --- the search

    def wait_recorded(self) -> None:
        """Wait until what the gate has to record is in its store."""
        last = self.replies["planned"].headers["x-qgate-receipt"]
        wait_until(
            lambda: (
                self.mesh.control.get("/status")["audit"]["queued"] == 0
                and any(one["id"] == last for one in self.mesh.control.items("/receipts"))
            ),
            timeout_s=60,
            what="receipts and audit in the store",
            every_s=0.1,
        )

    def search(self, forms: Forms) -> None:
        """Look everywhere while all runs; `found` has the names of words by place."""
        self.search_files(forms)
        for path in open_files(self.processes()):
            self.found["open files"] |= forms.find_file(path)
        dump = subprocess.run(
            [bundled() / "pg_dump", "--inserts", self.cluster.dsn("pool")], capture_output=True, check=True
        )
        self.found["the store"] |= forms.find(dump.stdout)
        control = self.mesh.control
        for name, said in (
            ("the audit", list(control.lines("/audit/export"))),
            ("the receipts", control.items("/receipts", {"limit": 1000})),
            ("what is shown", [control.get(path) for path in ("/status", "/workers", "/models", "/apps")]),
        ):
            self.found[name] |= forms.find(json.dumps(said).encode())
        for port in (one.metrics_port for one in (self.mesh.gate, self.mesh.sidecar, self.daemon)):
            for page in ("metrics", "status"):
                with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/{page}") as reply:
                    self.found["metrics"] |= forms.find(reply.read())
        for pid in self.processes():
            for file in ("cmdline", "environ"):
                self.found["command lines"] |= forms.find(_read(f"/proc/{pid}/{file}"))

    def search_files(self, forms: Forms) -> None:
        """Every file of the mesh and of the store's cluster, its write-ahead log included."""
        for path in files_below(self.mesh.root, self.cluster.root):
            found = forms.find_file(path)
            self.found["files"] |= found
            if path.suffix == ".log" and path.parent == self.mesh.root:
                self.found["logs"] |= found
            if path.name == "postgres.log":
                self.found["the store's log"] |= found

    def search_traces(self, forms: Forms, watch: Watch) -> None:
        """Every file that was opened for writing, wherever, and each write, also to files that are gone."""
        for path in watch.files():
            self.found["files that were written"] |= forms.find_file(path)
        for _, data in watch.written():
            self.found["writes"] |= forms.find(data)

    def look_at_limits(self) -> None:
        """What each process may dump."""
        for pid in self.processes():
            lines = _read(f"/proc/{pid}/limits").decode().splitlines()
            name = _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode()
            self.limits[name] = next(line for line in lines if line.startswith("Max core file size"))

    def crash_all(self) -> None:
        """SIGSEGV for every program, and whether one left a core dump where the kernel would put it."""
        places = {self.mesh.root, Path.cwd()}
        for pid in self.processes():
            with contextlib.suppress(OSError):  # only root may look
                places.add(Path(os.readlink(f"/proc/{pid}/cwd")))
        before = {path for place in places for path in place.glob("core*")}
        for program in (self.daemon, self.mesh.sidecar, self.mesh.gate):
            os.kill(program.pid, signal.SIGSEGV)
            program.program.process.wait(20)
        self.cores = [path for place in places for path in place.glob("core*") if path not in before]


def asked(content: str, model: str = MODEL, *, tokens: int = 8) -> dict[str, Any]:
    """A chat with one message."""
    limit = {} if model.startswith("qg://") else {"max_tokens": tokens}
    return {"model": model, "messages": [{"role": "user", "content": content}], **limit}


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
