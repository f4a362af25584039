"""The disposable process that quantises one file. Started as ``python -m … FD PARENT``."""

from __future__ import annotations

import os
import socket
import sys

from qdaemon.runtimes.llama import confinement
from qdaemon.runtimes.llama.frames import Decoder, Frame, encode


def run(task: Frame) -> str:
    """Quantise; why that failed, or an empty text."""
    import llama_cpp

    from qdaemon.runtimes.llama.library import Log

    log = Log()
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = task["type"]
    params.nthread = task["threads"]
    params.allow_requantize = True
    params.pure = task["pure"]
    code = llama_cpp.llama_model_quantize(task["source"].encode(), task["target"].encode(), params)
    if code == 0:
        with open(task["target"], "rb+") as written:
            os.fsync(written.fileno())
        return ""
    return "; ".join(log.lines)[-300:] or f"llama.cpp failed with code {code}"


def main(fd: int, parent: int) -> None:
    """Do the task that the socket at ``fd`` brings."""
    confinement.confine(parent)
    wire = socket.socket(fileno=fd)
    decoder = Decoder()
    while data := wire.recv(65_536):
        for frame in decoder.feed(data):
            wire.sendall(encode({"t": "done", "problem": run(frame)}))
            return


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]))
    finally:
        os._exit(0)
