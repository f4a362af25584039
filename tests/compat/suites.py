"""The drivers' own test suites, fetched once into .cache/compat and run against any login."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.compat.pipeline import CACHE, PipelineSuite, UnobtainableError
from tests.compat.results import Outcome, read_junit
from tests.kit.cluster import bundled
from tests.kit.login import Login

_TEST_TIMEOUT_S = 240  # one of pg8000's takes a minute of its own on a busy machine
_SUITE_TIMEOUT_S = 900


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
            (self.home / "pytest.ini").write_text("[pytest]\n")
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
            *(str(self.python), "-m", "pytest", "-q", "-c", "pytest.ini", "-p", "no:cacheprovider"),
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
