"""Backup and restore of a gate: the store and the gate's own files, sealed under the vault key.

File: one line of JSON (format, id, time, gate, schema, key id), then sealed chunks, each preceded by its
length (u32, big-endian). The chunks' plaintext, joined, is a zstd stream of parts `u32 length | JSON header
| payload chunks`. Each chunk is bound to the backup's id, its number and whether it is the last, so that
none can be left out, moved or taken from another backup. Whoever steals the file without the vault key
learns the header and the size. The pool's offline key is never in it, nor the vault key itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import struct
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

import zstandard

from qgate.governance.office import Office, iso
from qgate.governance.problems import ConflictError, InvalidRequestError
from qgate.store import Store
from qgate.store.archive import TABLES, dump, is_empty, load, newest_migration
from qgate.vault import Vault, VaultError
from tunnel_proto.errors import ConfigError

FORMAT: Final = "qgate-backup-1"
CHUNK: Final = 1 << 20

_LENGTH = struct.Struct(">I")
_HEADER_MAX: Final = 64 << 10
_LEVEL: Final = 6
# What a sealed chunk may be at most: the plaintext, the box's own bytes, and zstd's worst case for a flush.
_SEALED_MAX: Final = CHUNK + 4096


class Backups:
    """Writes backups. `files` are the gate's own files to take along, by the name they are restored under."""

    def __init__(self, office: Office, *, gate: str, files: Mapping[str, Path]) -> None:
        self._office = office
        self._gate = gate
        self._files = files

    async def write(self, path: Path, *, by: str) -> dict[str, Any]:
        """Write a backup to a new file of mode 0600: `{path, bytes, tables, key}`.

        InvalidRequestError for a path that cannot be written to, ConflictError for one that exists.
        """
        if not path.is_absolute():
            raise InvalidRequestError("the path of a backup must be absolute: the gate writes it, not you")
        descriptor = _create(path)
        try:
            with os.fdopen(descriptor, "wb") as file:
                counts = await self._write(file)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
                size = file.tell()
        except BaseException:
            os.unlink(path)
            raise
        await self._office.changed("backup", str(path), by, {"bytes": size})
        key = self._office.vault.current_key_id
        return {"path": str(path), "bytes": size, "tables": counts, "key": key}

    async def _write(self, file: IO[bytes]) -> dict[str, int]:
        office = self._office
        await office.audit.flush()
        counts: dict[str, int] = {}
        async with office.store.transaction(snapshot=True) as connection:
            header = {
                "format": FORMAT,
                "id": secrets.token_hex(16),
                "made_at": iso(office.now()),
                "gate": self._gate,
                "schema": await newest_migration(connection),
                "key": office.vault.current_key_id,
            }
            file.write(json.dumps(header).encode() + b"\n")
            out = _Sealing(file, office.vault, str(header["id"]))
            for name, source in self._files.items():
                content = await asyncio.to_thread(source.read_bytes)
                out.part({"file": name})
                out.payload(content)
            for table in TABLES:
                out.part({"table": table})
                rows = 0

                async def take(data: bytes) -> None:
                    nonlocal rows
                    rows += data.count(b"\n")
                    out.payload(data)

                await dump(connection, table, take)
                counts[table] = rows
            out.close()
        return counts


class _Sealing:
    """Parts in, compressed and sealed chunks out. A zero length ends a part's payload."""

    def __init__(self, file: IO[bytes], vault: Vault, name: str) -> None:
        self._file = file
        self._vault = vault
        self._name = name
        self._number = 0
        self._open = False
        self._zstd = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
        self._waiting = bytearray()

    def part(self, header: Mapping[str, Any]) -> None:
        self._end_part()
        text = json.dumps(header).encode()
        self._add(_LENGTH.pack(len(text)) + text)
        self._open = True

    def payload(self, data: bytes) -> None:
        for start in range(0, len(data), CHUNK):
            piece = data[start : start + CHUNK]
            self._add(_LENGTH.pack(len(piece)) + piece)

    def close(self) -> None:
        self._end_part()
        self._waiting += self._zstd.flush()
        self._emit(last=True)

    def _end_part(self) -> None:
        if self._open:
            self._add(_LENGTH.pack(0))
            self._open = False

    def _add(self, data: bytes) -> None:
        self._waiting += self._zstd.compress(data)
        self._emit(last=False)

    def _emit(self, *, last: bool) -> None:
        while len(self._waiting) >= CHUNK or last:
            piece = bytes(self._waiting[:CHUNK])
            del self._waiting[:CHUNK]
            final = last and not self._waiting
            box = self._vault.seal(piece, _purpose(self._name, self._number, last=final))
            self._file.write(_LENGTH.pack(len(box)) + box)
            self._number += 1
            if final:
                return


class Backup:
    """A backup file, opened for reading."""

    def __init__(self, path: Path, vault: Vault) -> None:
        self._vault = vault
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise ConfigError(f"cannot read the backup {path}: {error.strerror}") from None
        try:
            self.header = self._read_header(path)
        except ConfigError:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    async def restore(self, store: Store, directory: Path) -> dict[str, Any]:
        """Fill an empty store, and write the gate's files under `directory` where they are missing.

        Returns `{tables, files}`. ConflictError for a store that is in use, ConfigError for a damaged
        backup or one of another key; then nothing has changed.
        """
        if not await is_empty(store):
            raise ConflictError(
                "the store is not empty, and a restore replaces nothing",
                hint="restore into a new state directory or database",
            )
        reader = _Reading(self._opened())
        files: dict[str, bytes] = {}

        async def tables() -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
            while (header := reader.part()) is not None:
                if "table" in header:
                    yield str(header["table"]), reader.rows()
                else:
                    files[str(header["file"])] = b"".join([piece async for piece in reader.rows()])

        counts = await load(store, int(self.header["schema"]), tables())
        written = [name for name, content in files.items() if _write_missing(directory / Path(name), content)]
        return {"tables": counts, "files": written}

    def _read_header(self, path: Path) -> dict[str, Any]:
        line = self._file.readline(_HEADER_MAX)
        try:
            header = json.loads(line)
            known = header["format"] == FORMAT and isinstance(header["id"], str) and int(header["schema"]) > 0
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise ConfigError(f"{path} is not a backup of a gate")
        return dict(header)

    def _opened(self) -> Iterator[bytes]:
        """The decompressed stream. ConfigError where a chunk is missing, changed, or of another vault key."""
        unzip = zstandard.ZstdDecompressor().decompressobj()
        number = 0
        while True:
            length = self._file.read(_LENGTH.size)
            size = _LENGTH.unpack(length)[0] if len(length) == _LENGTH.size else 0
            box = self._file.read(size) if 0 < size <= _SEALED_MAX else b""
            if not box or len(box) != size:
                raise ConfigError("the backup is cut short or damaged")
            last = not self._file.peek(1)[:1]
            try:
                piece = self._vault.unseal(box, _purpose(self.header["id"], number, last=last))
            except VaultError as error:
                raise ConfigError(f"the backup cannot be opened: {error.message}", hint=error.hint) from None
            yield unzip.decompress(piece)
            number += 1
            if last:
                return


class _Reading:
    """Parts out of a decompressed stream."""

    def __init__(self, stream: Iterator[bytes]) -> None:
        self._stream = stream
        self._buffer = bytearray()

    def part(self) -> dict[str, Any] | None:
        """The next part's header, None at the end."""
        if not self._fill(_LENGTH.size):
            return None
        return dict(json.loads(self._take(self._length())))

    async def rows(self) -> AsyncIterator[bytes]:
        """This part's payload."""
        while (size := self._length()) > 0:
            yield self._take(size)
            await asyncio.sleep(0)

    def _length(self) -> int:
        return int(_LENGTH.unpack(self._take(_LENGTH.size))[0])

    def _take(self, size: int) -> bytes:
        if not self._fill(size):
            raise ConfigError("the backup is cut short or damaged")
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _fill(self, size: int) -> bool:
        while len(self._buffer) < size:
            piece = next(self._stream, None)
            if piece is None:
                return False
            self._buffer += piece
        return True


def _purpose(name: str, number: int, *, last: bool) -> str:
    return f"backup {name} chunk {number}{' last' if last else ''}"


def _create(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ConflictError(
            f"{path} exists, and a backup replaces nothing", hint="choose another name"
        ) from None
    except OSError as error:
        raise InvalidRequestError(f"the gate cannot write {path}: {error.strerror}") from None


def _write_missing(path: Path, content: bytes) -> bool:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    return True
