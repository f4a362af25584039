"""The disposable process that sees hostile input: chat templates of models, grammars made of schemas.

Started as ``python -m qdaemon.runtimes.llama.sandbox FD PARENT``, one for each loaded model. It compiles the
template once, under limits, and forks for every task; the fork has limits of CPU, memory, time and files,
answers on a socket that came with the task, and ends. What one task does cannot reach the next. One fork
stands ready for the next task, since forking and limiting take longer than rendering.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
from typing import Any, Final

import jinja2
import jinja2.ext
import jinja2.sandbox

from qdaemon.runtimes.llama import confinement
from qdaemon.runtimes.llama.frames import Decoder, Frame, encode

_READ: Final = 65_536
_WALL_FACTOR: Final = 4.0
"""A task may take so many times its CPU seconds by the clock: the machine may be busy."""
_COMPILE_S: Final = 5.0
TEMPLATE: Final = b"t"
GRAMMAR: Final = b"g"
"""What comes with a task's socket."""
_LULL_MS: Final = 5
"""After a task, the next fork waits so long for another task: it would take the processor from this one."""


class _Refused(Exception):  # noqa: N818 - what a template's raise_exception means
    """The template itself refused the messages."""


def environment() -> jinja2.Environment:
    """The environment that chat templates are written for."""
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise
    return env


class _Generation(jinja2.ext.Extension):
    """``{% generation %}``, which marks answers for training: its body is rendered."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's interface

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value: Any, indent: int | None = None, **options: Any) -> str:
    separators = options.get("separators")
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)


def _raise(message: object) -> None:
    raise _Refused(str(message))


def serve(control: socket.socket, frame: Frame) -> None:
    """Compile the template, say how that went, and fork for each task that comes with a socket."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    _alarm(_COMPILE_S * _WALL_FACTOR)
    _limit_memory(frame["memory"])
    _limit_cpu(_COMPILE_S)
    template = None
    problem = ""
    try:
        template = environment().from_string(frame["template"]) if frame["template"] else None
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"[:300]
    signal.setitimer(signal.ITIMER_REAL, 0)
    # The limits were for the compilation; each fork sets its own.
    for which in (resource.RLIMIT_CPU, resource.RLIMIT_AS):
        hard = resource.getrlimit(which)[1]
        resource.setrlimit(which, (hard, hard))
    control.sendall(encode({"t": "compiled", "problem": problem}))
    coming = select.poll()
    coming.register(control, select.POLLIN)
    ready: socket.socket | None = None
    while True:
        if ready is None and not coming.poll(_LULL_MS):
            ready = _fork(control, template, frame)
        data, fds, _, _ = socket.recv_fds(control, 1, 1)
        if not data:
            return
        if not fds:
            continue
        if data == GRAMMAR and not _knows_llama():
            ready = None  # it was forked without
        try:
            socket.send_fds(ready or _fork(control, template, frame), [data], fds)
        except OSError:  # the one that stood ready has died
            socket.send_fds(_fork(control, template, frame), [data], fds)
        ready = None
        os.close(fds[0])


def _knows_llama() -> bool:
    """Whether llama.cpp was imported before now; from now on it is, and every fork has it.

    It takes a hundred megabytes of addresses, more than a task's limit may allow, and a tenth of a second.
    """
    module = "qdaemon.runtimes.llama.proving"
    known = module in sys.modules
    if not known:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    return known


def _fork(control: socket.socket, template: jinja2.Template | None, limits: Frame) -> socket.socket:
    """A fork that waits for its task; it ends when this process does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    if os.fork() == 0:
        try:
            control.close()
            ours.close()
            if limits["lock"]:
                confinement.lock_memory()  # a fork inherits no locks
            _limit_memory(limits["memory"])
            _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
            theirs.close()
            if fds:
                _run(socket.socket(fileno=fds[0]), template, limits)
        finally:
            os._exit(0)
    theirs.close()
    return ours


def _run(task: socket.socket, template: jinja2.Template | None, limits: Frame) -> None:
    _alarm(limits["seconds"] * _WALL_FACTOR)
    _limit_cpu(limits["seconds"])
    decoder = Decoder()
    frames: list[Frame] = []
    while not frames:
        data = task.recv(_READ)
        if not data:
            return
        frames += decoder.feed(data)
    frame = frames[0]
    try:
        reply = _render(frame, template, limits) if frame["t"] == "render" else _parse(frame)
    except _Refused as refused:
        reply = {"t": "refused", "message": str(refused)[:300]}
    except MemoryError:
        reply = {"t": "memory", "message": ""}
    except RecursionError:
        reply = {"t": "failed", "message": "too much recursion"}
    except Exception as error:
        # The text of the error may quote a message of the client, who alone gets to read it.
        reply = {"t": "failed", "message": f"{type(error).__name__}: {error}"[:300]}
    task.sendall(encode(reply))


def _render(frame: Frame, template: jinja2.Template | None, limits: Frame) -> Frame:
    if template is None:
        return {"t": "failed", "message": "no template"}
    now = dt.datetime.fromtimestamp(frame["now"], dt.UTC)
    parts: list[str] = []
    size = 0
    for part in template.generate(
        messages=frame["messages"],
        tools=frame["tools"] or None,
        add_generation_prompt=True,
        bos_token=frame["bos"],
        eos_token=frame["eos"],
        strftime_now=now.strftime,
    ):
        size += len(part)
        if size > limits["output"]:
            return {"t": "output", "message": ""}
        parts.append(part)
    return {"t": "text", "text": "".join(parts)}


def _parse(frame: Frame) -> Frame:
    """Whether llama.cpp takes a grammar: what it does with a bad one it does here."""
    from qdaemon.runtimes.llama.proving import prove

    return {"t": "proved", "problem": prove(frame["grammar"])}


def _limit_cpu(seconds: float) -> None:
    """From now on ``seconds`` of CPU.

    A soft limit, as that of memory, which ends the process all the same: a template has no way to raise it.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    _soft(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + seconds + 0.999))


def _limit_memory(memory: int) -> None:
    """From now on ``memory`` bytes more, and nothing written to any file."""
    _soft(resource.RLIMIT_AS, confinement.status_bytes("VmSize") + memory)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _soft(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    resource.setrlimit(which, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _alarm(seconds: float) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def main(fd: int, parent: int) -> None:
    """Serve the control socket at ``fd`` for the process ``parent``."""
    confinement.confine(parent)
    control = socket.socket(fileno=fd)
    decoder = Decoder()
    frames: list[Frame] = []
    while not frames:
        data = control.recv(_READ)
        if not data:
            return
        frames += decoder.feed(data)
    serve(control, frames[0])


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]))
    finally:
        os._exit(0)
