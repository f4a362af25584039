"""The drivers' own test suites, fetched once into .cache/compat and run against any login."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.compat.results import FAILED, PASSED, Outcome, read_junit
from tests.kit.cluster import bundled
from tests.kit.login import Login

CACHE = Path(__file__).parents[2] / ".cache" / "compat"
_TEST_TIMEOUT_S = 60
_SUITE_TIMEOUT_S = 900


class UnobtainableError(RuntimeError):
    """A suite cannot be had on this machine; the text says why."""


@dataclass(frozen=True, slots=True)
class DriverSuite:
    """A PyPI driver: its sdist's tests, run against its wheel in a virtual environment of their own."""

    name: str
    folder: str  # of the tests inside the sdist
    extra: tuple[str, ...]  # what its tests import beside the driver
    options: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        return version(self.name)

    def prepare(self) -> None:
        """Fetch the sdist and make the environment, unless both are there."""
        CACHE.mkdir(parents=True, exist_ok=True)
        source = CACHE / f"{self.name}-{self.version}.tar.gz"
        if not source.exists():
            requirement = f"{self.name}=={self.version}"
            _pip(
                Path(sys.executable),
                *("download", "--no-binary", self.name, "--no-deps", "-d", str(CACHE), requirement),
            )
        if not self.home.exists():
            unpacked = CACHE / "unpacked"
            with tarfile.open(source) as archive:
                archive.extractall(unpacked, filter="data")
            self.home.mkdir()
            # Only the tests: beside the sources they would import the driver from there, without its C parts.
            (unpacked / f"{self.name}-{self.version}" / self.folder).rename(self.home / self.folder)
        if not self.python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(self.environment)], check=True)
        stamp = self.environment / f".{self.version}"
        if not stamp.exists():
            _pip(
                self.python,
                "install",
                f"{self.name}=={self.version}",
                "pytest",
                "pytest-timeout",
                *self.extra,
            )
            stamp.touch()

    @property
    def home(self) -> Path:
        return CACHE / f"{self.name}-{self.version}-tests"

    @property
    def environment(self) -> Path:
        return CACHE / f"venv-{self.name}"

    @property
    def python(self) -> Path:
        return self.environment / "bin" / "python"

    def run(self, login: Login, label: str, only: str = "") -> dict[str, Outcome]:
        """Run the suite as `login`, which needs a superuser's rights; return each test's outcome."""
        report = CACHE / f"{self.name}-{label}.xml"
        report.unlink(missing_ok=True)
        argv = [
            *(str(self.python), "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider"),
            *(f"--timeout={_TEST_TIMEOUT_S}", f"--junitxml={report}", *self.options, self.folder),
            *(("-k", only) if only else ()),
        ]
        log = CACHE / f"{self.name}-{label}.log"
        with log.open("wb") as sink:
            subprocess.run(
                argv,
                cwd=self.home,
                env=login.environment(),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                timeout=_SUITE_TIMEOUT_S,
            )
        if not report.exists():
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            raise RuntimeError(f"{self.name} {label} wrote no report:\n{tail}")
        return read_junit(report)


def _pip(python: Path, *words: str) -> None:
    done = subprocess.run(
        [str(python), "-m", "pip", "-q", "--disable-pip-version-check", *words],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise UnobtainableError(f"pip {words[0]} failed: {done.stderr.strip().splitlines()[-1:]}")


@dataclass(frozen=True, slots=True)
class PipelineSuite:
    """libpq_pipeline of PostgreSQL's own tests, built with one gcc line from Debian's source package."""

    name: str = "libpq_pipeline"

    @property
    def binary(self) -> Path:
        return CACHE / "libpq_pipeline"

    def prepare(self) -> None:
        """Build the program, or say what is missing."""
        if self.binary.exists():
            return
        CACHE.mkdir(parents=True, exist_ok=True)
        compiler, config = shutil.which("gcc"), shutil.which("pg_config")
        if compiler is None or config is None:
            raise UnobtainableError("needs gcc and pg_config (Debian packages gcc, libpq-dev)")

        def ask(word: str) -> str:
            return subprocess.run([str(config), word], capture_output=True, text=True).stdout.strip()

        source = self._source(ask("--version").split()[1].split(".")[0])
        done = subprocess.run(
            [
                *(compiler, "-O1", "-o", str(self.binary), str(source)),
                *(f"-I{ask('--includedir')}", f"-I{ask('--includedir-server')}", f"-I{source.parent}"),
                *(
                    f"-I{parent}"
                    for parent in (source.parents[3], source.parents[3] / "interfaces" / "libpq")
                ),
                *(f"-L{ask('--libdir')}", f"-L{ask('--pkglibdir')}", "-lpq", "-lpgcommon", "-lpgport"),
            ],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise UnobtainableError(f"does not build: {done.stderr.strip().splitlines()[-1][:200]}")

    def _source(self, major: str) -> Path:
        pattern = "postgresql-*/src/test/modules/libpq_pipeline/libpq_pipeline.c"
        if found := sorted(CACHE.glob(pattern)):
            return found[-1]
        if shutil.which("apt-get") is None or shutil.which("dpkg-source") is None:
            raise UnobtainableError("needs apt-get and dpkg-source to fetch PostgreSQL's source package")
        sources = CACHE / "sources.list"
        sources.write_text(_deb_src())
        state = CACHE / "apt"
        (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        options = ["-o", f"Dir::Etc::sourcelist={sources}", "-o", "Dir::Etc::sourceparts=-"]
        options += ["-o", f"Dir::State::lists={state / 'lists'}", "-o", "APT::Sandbox::User=root"]
        for words in (["update"], ["source", f"postgresql-{major}"]):
            done = subprocess.run(
                ["apt-get", "-q", *options, *words], cwd=CACHE, capture_output=True, text=True, timeout=300
            )
            if done.returncode != 0:
                why = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
                raise UnobtainableError(f"apt-get {' '.join(words)}: {why[-1][:200] if why else 'failed'}")
        found = sorted(CACHE.glob(pattern))
        if not found:
            raise UnobtainableError("the source package holds no libpq_pipeline")
        return found[-1]

    def run(self, login: Login, label: str, only: str = "") -> dict[str, Outcome]:
        """Run each of its tests; `label` is unused, the program writes no file."""
        environment = login.environment(LD_LIBRARY_PATH="")
        listed = subprocess.run([str(self.binary), "tests"], capture_output=True, text=True)
        outcomes = {}
        for test in listed.stdout.split():
            if only and only not in test:
                continue
            try:
                done = subprocess.run(
                    [str(self.binary), test, "dbname=" + login.dbname],
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=_TEST_TIMEOUT_S,
                )
            except subprocess.TimeoutExpired:
                outcomes[test] = Outcome(FAILED, f"{label}: no end within {_TEST_TIMEOUT_S} s")
                continue
            outcomes[test] = Outcome(PASSED if done.returncode == 0 else FAILED, done.stderr.strip())
        return outcomes


def _deb_src() -> str:
    """Return this machine's own Debian sources, asking for source packages instead of binary ones."""
    lines: list[str] = []
    for path in sorted(Path("/etc/apt").glob("sources.list.d/*.sources")):
        for stanza in path.read_text().split("\n\n"):
            fields = dict(
                line.split(":", 1) for line in stanza.splitlines() if ":" in line and line[0] not in " #"
            )
            signed = fields.get("Signed-By", "").strip()
            option = f"[signed-by={signed}] " if signed.startswith("/") else ""
            lines.extend(
                f"deb-src {option}{uri} {suite} main"
                for uri in fields.get("URIs", "").split()
                for suite in fields.get("Suites", "").split()
            )
    old = Path("/etc/apt/sources.list")
    if old.exists():
        lines += [
            line.replace("deb ", "deb-src ", 1)
            for line in old.read_text().splitlines()
            if line.startswith("deb ")
        ]
    return "\n".join(dict.fromkeys(lines)) + "\n"


def psql_version(login: Login, command: Sequence[str] = ()) -> str:
    """Return the server version that a login sees, to show that the right server answers."""
    done = subprocess.run(
        [*command, str(bundled() / "psql"), "-XAtc", "SHOW server_version"],
        env=login.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


SUITES: tuple[DriverSuite | PipelineSuite, ...] = (
    DriverSuite("asyncpg", "tests", ("uvloop", "distro"), ("--import-mode=importlib",)),
    DriverSuite("pg8000", "test", ("pytest-mock", "pytest-benchmark", "pytz", "python-dateutil")),
    PipelineSuite(),
)
