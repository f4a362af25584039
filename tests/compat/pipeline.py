"""libpq_pipeline of PostgreSQL's own tests: built with one gcc line, run test by test."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.compat.results import FAILED, PASSED, Outcome
from tests.kit.cluster import bundled
from tests.kit.login import Login

CACHE = Path(__file__).parents[2] / ".cache" / "compat"
_MAJORS = range(18, 12, -1)  # of the PostgreSQL that a Debian release may bring
_TEST_TIMEOUT_S = 60
_SOURCE = "postgresql-*/src/test/modules/libpq_pipeline/libpq_pipeline.c"


class UnobtainableError(RuntimeError):
    """A suite cannot be had on this machine; the text says why."""


@dataclass(frozen=True, slots=True)
class PipelineSuite:
    """The program from Debian's source package, linked with the wheel's libpq 18 (protocol 3.2)."""

    name: str = "libpq_pipeline"

    @property
    def binary(self) -> Path:
        return CACHE / "libpq_pipeline"

    def prepare(self) -> None:
        """Fetch the source and build the program, or say what is missing."""
        if self.binary.exists():
            return
        CACHE.mkdir(parents=True, exist_ok=True)
        compiler = shutil.which("gcc")
        if compiler is None:
            raise UnobtainableError("needs gcc (Debian package gcc)")
        include, library = bundled().parent / "include", bundled().parent / "lib"
        # PostgreSQL 16 gave this setting another name; an older release's program asks for the old one.
        source = CACHE / "libpq_pipeline.c"
        source.write_text(_source().read_text().replace("force_parallel_mode", "debug_parallel_query"))
        done = subprocess.run(
            [
                # The static libraries of the wheel are not position-independent, and the attribute's macro is
                # gone from PostgreSQL 18's headers, while the source may be of an older release.
                *(compiler, "-O1", "-w", "-no-pie", "-Dpg_attribute_noreturn()=", "-o", str(self.binary)),
                *(str(source), f"-I{include}", f"-I{include / 'server'}", f"-I{include / 'internal'}"),
                *(f"-L{library}", "-lpq", "-lpgcommon", "-lpgport", "-lm", f"-Wl,-rpath,{library}"),
            ],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise UnobtainableError(f"does not build: {done.stderr.strip().splitlines()[-1][:200]}")

    def run(self, login: Login, label: str, only: str = "") -> dict[str, Outcome]:
        """Run each of its tests as `login`; `label` goes into the failure's text."""
        listed = subprocess.run([str(self.binary), "tests"], capture_output=True, text=True)
        outcomes = {}
        for test in listed.stdout.split():
            if only and only not in test:
                continue
            try:
                done = subprocess.run(
                    [str(self.binary), test, "dbname=" + login.dbname],
                    env=login.environment(PGMAXPROTOCOLVERSION="3.2"),
                    capture_output=True,
                    text=True,
                    timeout=_TEST_TIMEOUT_S,
                )
            except subprocess.TimeoutExpired:
                outcomes[test] = Outcome(FAILED, f"{label}: no end within {_TEST_TIMEOUT_S} s")
                continue
            state = PASSED if done.returncode == 0 else FAILED
            outcomes[test] = Outcome(state, f"{label}: {done.stderr.strip()}")
        return outcomes


def _source() -> Path:
    """Return the C file, fetched with apt-get into the cache where it is not there yet."""
    if found := sorted(CACHE.glob(_SOURCE)):
        return found[-1]
    if shutil.which("apt-get") is None or shutil.which("dpkg-source") is None:
        raise UnobtainableError("needs apt-get and dpkg-source to fetch PostgreSQL's source package")
    lists = CACHE / "apt" / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    sources = CACHE / "apt" / "sources.list"
    sources.write_text("\n".join(_source_lines()) + "\n")
    options = ["-q", "-o", f"Dir::Etc::sourcelist={sources}", "-o", "Dir::Etc::sourceparts=-"]
    options += ["-o", f"Dir::State::lists={lists}", "-o", "APT::Sandbox::User=root"]
    problem = _apt(options, "update")
    if problem:
        raise UnobtainableError(f"apt-get update: {problem}")
    release = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    for major in _MAJORS:
        package = f"postgresql-{major}"
        # The newest version may not be on the mirror; the release's own then is.
        for name in (package, f"{package}/{release[1]}" if release else package):
            said = _apt(options, "source", name)
            if found := sorted(CACHE.glob(_SOURCE)):
                return found[-1]
            if "Unable to find" not in said:
                problem = said
    raise UnobtainableError(f"apt-get source: {problem}")


def _apt(options: list[str], *words: str) -> str:
    """Run apt-get in the cache; return the last thing it complained about, or an empty text."""
    try:
        done = subprocess.run(
            ["apt-get", *options, *words], cwd=CACHE, capture_output=True, text=True, timeout=300
        )
    except subprocess.TimeoutExpired:
        return "no end within 300 s"
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"status {done.returncode}"


def _source_lines() -> Iterator[str]:
    """Yield this machine's own Debian sources, asking for source packages instead of binary ones."""
    for path in sorted(Path("/etc/apt").glob("sources.list.d/*.sources")):
        for stanza in path.read_text().split("\n\n"):
            fields = dict(re.findall(r"^([\w-]+):[ \t]*(.*)$", stanza, re.MULTILINE))
            signed = fields.get("Signed-By", "").strip()
            option = f"[signed-by={signed}] " if signed.startswith("/") else ""
            for uri in fields.get("URIs", "").split():
                for suite in fields.get("Suites", "").split():
                    yield f"deb-src {option}{uri} {suite} main"
    old = Path("/etc/apt/sources.list")
    if old.exists():
        for line in old.read_text().splitlines():
            if line.startswith("deb "):
                yield line.replace("deb ", "deb-src ", 1)
