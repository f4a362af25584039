"""The child process: one model, one context, one thread; commands in, tokens out, over an inherited socket.

Started as ``python -m qdaemon.runtimes.llama.child FD PARENT``. Whatever goes wrong here ends this process
and no other. Nothing that a client said is written anywhere but to the socket.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from typing import Final

from qdaemon.runtimes.llama import confinement
from qdaemon.runtimes.llama.batcher import Batcher
from qdaemon.runtimes.llama.embedding import Embedder
from qdaemon.runtimes.llama.frames import Decoder, Frame, encode
from qdaemon.runtimes.llama.job import JobProblem, LoadFailed
from qdaemon.runtimes.llama.request import Controls, decoded

_READ: Final = 256 * 1024
_UNSENT: Final = 4 * 1024 * 1024
"""Bytes that the daemon has not taken: past them nothing is generated until it has."""
_BEAT_S: Final = 1.0
_SLACK: Final = 1 << 30
"""Memory beyond what is free and the model's file that may be mapped before allocations fail."""


class Wire:
    """The socket to the daemon."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._decoder = Decoder()
        self._unsent = bytearray()
        self.last_sent = 0.0

    def send(self, frames: list[Frame]) -> None:
        """Send ``frames``; what the socket does not take now waits."""
        for frame in frames:
            self._unsent += encode(frame)
        self._flush()

    def receive(self, wait: float | None) -> list[Frame]:
        """Commands that came, after waiting up to ``wait`` seconds (None: for ever) for one.

        While too much is unsent it waits for the daemon to read. SystemExit when the daemon is gone.
        """
        frames: list[Frame] = []
        while True:
            full = len(self._unsent) > _UNSENT
            events = select.POLLIN | (select.POLLOUT if self._unsent else 0)
            poll = select.poll()
            poll.register(self._sock, events)
            timeout = None if wait is None or full else wait * 1000
            ready = poll.poll(timeout)
            if self._unsent:
                self._flush()
            for _, flags in ready:
                if flags & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    frames += self._read()
            if frames or (wait is not None and len(self._unsent) <= _UNSENT):
                return frames

    def _read(self) -> list[Frame]:
        try:
            data = self._sock.recv(_READ)
        except BlockingIOError:
            return []
        except OSError:
            raise SystemExit(0) from None
        if not data:
            raise SystemExit(0)
        return list(self._decoder.feed(data))

    def _flush(self) -> None:
        try:
            while self._unsent:
                count = self._sock.send(self._unsent)
                del self._unsent[:count]
                self.last_sent = time.monotonic()
        except BlockingIOError:
            pass
        except OSError:
            raise SystemExit(0) from None


class Child:
    """A loaded model and the loop that runs requests on it."""

    def __init__(self, wire: Wire, frame: Frame) -> None:
        from qdaemon.runtimes.llama import library
        from qdaemon.runtimes.llama.wiping import Wiper

        self._wire = wire
        self._check_size(frame)
        unlocked = confinement.lock_memory() if frame["lock"] else "not asked for"
        self._model = library.Model(frame["path"], gpu_layers=frame["gpu_layers"], on_progress=self._progress)
        self._check_room(frame)
        context = library.Context(
            self._model,
            size=frame["context"],
            slots=frame["slots"],
            threads=frame["threads"],
            batch=frame["chunk"],
        )
        wiper = Wiper(context, plain=not (self._model.sliding or self._model.recurrent))
        tokens = [(one.id, one.text, one.lstrip, one.rstrip) for one in self._model.control_tokens()]
        self._batcher = Batcher(
            self._model,
            context,
            wiper,
            Controls(tokens),
            chunk=frame["chunk"],
            replay_batch=frame["replay_batch"],
            reuse_ttl_s=frame["reuse_ttl_s"],
            clock=time.monotonic,
        )
        self._embedder = Embedder(
            self._model, size=context.size, threads=frame["threads"], chunk=frame["chunk"]
        )
        self._model.log.close()
        wire.send(
            [
                {
                    "t": "ready",
                    "build": library.build(frame["gpu_layers"]),
                    "features": library.features(),
                    "context": context.size,
                    "context_train": self._model.n_ctx_train,
                    "n_vocab": self._model.n_vocab,
                    "bos": self._model.text_of(self._model.bos),
                    "eos": self._model.text_of(self._model.eos),
                    "controls": [text for _, text, _, _ in tokens],
                    "template": self._model.template(),
                    "isolation": wiper.level,
                    "unlocked": unlocked,
                    "memory": confinement.status_bytes("VmRSS"),
                }
            ]
        )

    @staticmethod
    def _check_size(frame: Frame) -> None:
        """LoadFailed for weights that memory can never hold: they would be read from disk for each token."""
        size, memory = frame["size"], confinement.total_memory()
        if frame["gpu_layers"] == 0 and size > memory:
            raise LoadFailed(
                "out_of_memory",
                f"the model has {size >> 20} MiB, and this machine {memory >> 20}",
                hint="choose a smaller quantisation",
            )

    def _check_room(self, frame: Frame) -> None:
        """LoadFailed before llama.cpp tries: it would spend a minute on a cache of terabytes."""
        needed = self._model.cache_bytes(frame["context"] * frame["slots"])
        free = confinement.available_memory()
        if frame["gpu_layers"] == 0 and needed > free:
            raise LoadFailed(
                "out_of_memory",
                f"{frame['slots']} × {frame['context']} tokens need about {needed >> 20} MiB, "
                f"and {free >> 20} are free",
                hint="load it with fewer slots or a smaller context",
            )

    def _progress(self, share: float) -> None:
        self._wire.send([{"t": "progress", "share": share}])

    def run(self) -> None:
        """Run requests until the daemon is gone."""
        batcher, embedder, wire = self._batcher, self._embedder, self._wire
        while True:
            self._obey_all()
            frames = batcher.step() if batcher.busy else []
            if embedder.busy:
                frames += embedder.step(time.monotonic())
            if not frames and time.monotonic() - wire.last_sent > _BEAT_S:
                frames = [{"t": "beat"}]
            if frames:
                wire.send(frames)
            batcher.tidy()

    def _patience(self) -> float | None:
        """Seconds to wait for a command: none while there is work."""
        if self._batcher.busy or self._embedder.busy:
            return 0
        expiry = self._batcher.next_expiry()
        return None if expiry is None else max(expiry - time.monotonic(), 0)

    def _obey_all(self) -> None:
        """Obey what came. In a function of its own, so that no variable keeps a client's words alive."""
        for frame in self._wire.receive(self._patience()):
            self._obey(frame)

    def _obey(self, frame: Frame) -> None:
        match frame["t"]:
            case "run":
                request = decoded(frame)
                if request.kind != "embedding":
                    self._batcher.add(request)
                    return
                try:
                    self._embedder.add(request, time.monotonic())
                except (JobProblem, LoadFailed) as problem:
                    full = isinstance(problem, LoadFailed)
                    self._wire.send(
                        [
                            {
                                "t": "failed",
                                "job": request.job,
                                "code": problem.code,
                                "message": problem.message,
                                "retriable": full,
                                "blame": "node" if full else "request",
                            }
                        ]
                    )
            case "cancel":
                self._batcher.cancel(frame["job"])
                self._embedder.cancel(frame["job"])
            case "pause" | "resume":
                self._batcher.pause(frame["job"], frame["t"] == "pause")
            case "stop":
                raise SystemExit(0)


def main(fd: int, parent: int) -> None:
    """Serve the socket at file descriptor ``fd`` for the process ``parent``."""
    confinement.confine(parent)
    wire = Wire(socket.socket(fileno=fd))
    (frame,) = wire.receive(None)
    if frame["gpu_layers"] == 0:
        # A driver of accelerators reserves address space without end; without one this bounds a bad load.
        confinement.limit_memory(confinement.available_memory() + frame["size"] + _SLACK)
    try:
        child = Child(wire, frame)
    except LoadFailed as failed:
        wire.send([{"t": "load_failed", "code": failed.code, "message": failed.message, "hint": failed.hint}])
        return
    except MemoryError:
        wire.send([{"t": "load_failed", "code": "out_of_memory", "message": "no memory for it", "hint": ""}])
        return
    except ImportError as error:
        wire.send(
            [
                {
                    "t": "load_failed",
                    "code": "engine_missing",
                    "message": f"llama-cpp-python is not installed: {error}",
                    "hint": "pip install 'qgate-mesh[llama]'",
                }
            ]
        )
        return
    child.run()


if __name__ == "__main__":
    # Never through interpreter shutdown: destructors of a half-loaded library may hang.
    try:
        main(int(sys.argv[1]), int(sys.argv[2]))
    except SystemExit:
        os._exit(0)
    except BaseException:
        # No traceback: its lines could quote a client. The daemon sees a crash.
        os._exit(70)
    os._exit(0)
