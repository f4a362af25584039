"""What processes leave behind: every file they wrote, searched for words that must not be there.

`Watch` follows processes with strace, so that files which are gone again, and files outside every folder that
one would think of, are seen too. `Forms` finds a word however it was written down.
"""

from __future__ import annotations

import base64
import codecs
import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.kit.process import wait_until

STRING_MAX: Final = 1 << 20
"""Bytes of one write that strace shows; our programs write less at a time."""

_CALLS: Final = (
    *("open", "openat", "openat2", "creat", "rename", "renameat", "renameat2", "link", "linkat"),
    *("write", "pwrite64", "writev", "pwritev", "pwritev2", "copy_file_range", "sendfile"),
)
_OPENED: Final = re.compile(r"^open\w*\(.*\b(?:O_WRONLY|O_RDWR|O_CREAT)\b.* = \d+<(?P<path>/.*)>$")
_RENAMED: Final = re.compile(r'^(?:rename|link)\w*\(.*"(?P<path>/(?:[^"\\]|\\.)*)"[^"]*\) = 0$')
_WRITTEN: Final = re.compile(r"^p?write(?:64|v2?)?\(\d+<(?P<path>[^>]*)>, (?P<data>.*)$")
PAGE_BYTES: Final = 8192
PAGE_HEADER_MAX: Final = 40  # of a page of its write-ahead log
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')
_NOWHERE: Final = ("/dev/null", "/proc/", "/sys/")


class Forms:
    """Words to look for, each by a name; however spelt: plain, UTF-16, hexadecimal, base64, backwards.

    All words begin with ``core``, which is looked for first: gigabytes are searched at the speed of memmem.
    """

    def __init__(self, core: str, words: Mapping[str, str]) -> None:
        assert all(word.startswith(core) for word in words.values())
        self._cores = _forms(core.encode("ascii"))
        self._forms = {form: name for name, word in words.items() for form in _forms(word.encode("ascii"))}
        alternatives: list[bytes] = sorted((re.escape(form) for form in self._forms), key=len, reverse=True)
        self._any = re.compile(b"|".join(alternatives))
        self._reach = 2 * max(map(len, self._forms))

    def find(self, data: bytes) -> set[str]:
        """The names of the words that are in ``data``; a core that no word follows is named "?"."""
        found: set[str] = set()
        for core in self._cores:
            at = data.find(core)
            while at >= 0:
                near = data[max(0, at - self._reach) : at + self._reach]
                names = {self._forms[one[0]] for one in self._any.finditer(near)}
                found |= names or self._torn(data, at) or {"?"}
                at = data.find(core, at + len(core))
        return found

    def _torn(self, data: bytes, at: int) -> set[str]:
        """The words that begin at ``at`` and go on after the header of PostgreSQL's next page."""
        page = at - at % PAGE_BYTES + PAGE_BYTES
        piece, beyond = data[at:page], data[page : page + PAGE_HEADER_MAX + self._reach]
        return {
            name
            for form, name in self._forms.items()
            if form.startswith(piece) and -1 < beyond.find(form[len(piece) :]) <= PAGE_HEADER_MAX
        }

    def find_file(self, path: Path) -> set[str]:
        """The same for a file's bytes; nothing where it is gone or no regular file."""
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                return set()
            return self.find(path.read_bytes())
        except OSError:
            return set()


class Watch:
    """strace on running processes and all that they start, from ``with`` to its end."""

    def __init__(self, pids: Iterable[int], folder: Path) -> None:
        self._pids = list(pids)
        self._folder = folder
        self._strace: subprocess.Popen[bytes] | None = None

    @staticmethod
    def possible() -> bool:
        """Whether this machine has strace and lets us use it."""
        program = shutil.which("strace")
        if program is None or os.geteuid() != 0:
            return False
        tried = subprocess.run([program, "-qq", "-o", os.devnull, "true"], check=False, capture_output=True)
        return tried.returncode == 0

    def __enter__(self) -> Self:
        self._folder.mkdir()
        command = ["strace", "-ff", "-qq", "-y", "-s", str(STRING_MAX), "-e", f"trace={','.join(_CALLS)}"]
        command += ["-o", str(self._folder / "trace")]
        for pid in self._pids:
            command += ["-p", str(pid)]
        self._strace = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: all(map(_traced, self._pids)), timeout_s=60, what="strace to follow everything")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._strace is not None
        self._strace.send_signal(signal.SIGINT)
        self._strace.wait(20)

    def files(self) -> set[Path]:
        """Every path that was opened for writing, or given to a file by a new name."""
        found = set()
        for line in self._lines():
            match = _OPENED.match(line) or _RENAMED.match(line)
            if match is not None and not match["path"].startswith(_NOWHERE):
                found.add(Path(match["path"].removesuffix("(deleted)")))
        return found

    def written(self) -> Iterator[tuple[str, bytes]]:
        """Each write to a file, also to one that is gone: its path and its bytes. No sockets, no pipes."""
        for line in self._lines():
            match = _WRITTEN.match(line)
            if match is None or not match["path"].startswith("/") or match["path"].startswith(_NOWHERE):
                continue
            texts = [codecs.escape_decode(text.encode())[0] for text in _QUOTED.findall(match["data"])]
            yield match["path"], b"".join(bytes(text) for text in texts)

    def _lines(self) -> Iterator[str]:
        for path in sorted(self._folder.iterdir()):
            with path.open(encoding="ascii", errors="replace") as file:
                for line in file:
                    yield line.rstrip("\n")


def files_below(*folders: Path) -> Iterator[Path]:
    """Every regular file in these folders."""
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in names:
                path = Path(place, name)
                if path.is_file() and not path.is_symlink():
                    yield path


def open_files(pids: Iterable[int]) -> set[Path]:
    """Files that these processes have open now, also those that have no name any more; as root."""
    found = set()
    for pid in pids:
        try:
            links = list(Path(f"/proc/{pid}/fd").iterdir())
        except OSError:  # not ours to look at, or gone
            continue
        for link in links:
            with contextlib.suppress(OSError):
                if stat.S_ISREG(link.stat().st_mode):
                    found.add(link)
    return found


def _traced(pid: int) -> bool:
    """Whether every thread of a process is followed."""
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        if "\nTracerPid:\t0\n" in status.read_text():
            return False
    return True


def _forms(word: bytes) -> set[bytes]:
    forms = {word, word[::-1], word.hex().encode(), word.hex().upper().encode()}
    forms |= {word.decode("ascii").encode(f"utf-16-{order}") for order in ("le", "be")}
    for offset in range(3):
        # Base64 depends on where in a group of three the bytes start: keep the part that does not.
        text = base64.b64encode(b"\0" * offset + word)
        head = -(-offset * 8 // 6)
        tail = len(text) - (4 if (offset + len(word)) % 3 else 0)
        forms.add(text[head:tail])
    return forms
