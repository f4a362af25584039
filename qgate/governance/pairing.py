"""Pairing with another pool, step by step: files come in and go out, and nothing is trusted until the end.

Each step is one transaction that keeps the file it made, so that a crash between steps, or a step done twice,
changes nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from qgate.federation import transcript
from qgate.federation.ceremony import (
    AGAIN,
    STRINGS_MAX,
    VALID_MAX_S,
    VALID_S,
    PairingError,
    check_answer,
    check_confirm,
    check_offer,
    own_string_typed,
    right_string,
)
from qgate.federation.peer import Peer, Permissions
from qgate.federation.transcript import Answer, Confirm, Offer, Party
from qgate.governance.office import Office, iso
from qgate.governance.problems import ConflictError, InvalidRequestError, NameTakenError
from qgate.governance.sidecars import pool_gates
from qgate.store.database import Connection
from qgate.store.peers import (
    add_pairing,
    advance_pairing,
    count_wrong_string,
    end_pairings_with,
    name_holder,
    open_pairings,
    pairing_row,
    pairing_with,
    peer_of,
    peer_row,
    put_peer,
)
from tunnel_proto.certificate import name_problem, read_online

Introduce = Callable[[str, str], Awaitable[object]]
"""Takes (offer, answer) to the offer's gates over the network and brings the ceremony to its strings."""

OVER_THE_TUNNEL = "peer"
"""Who did it, in the audit, where nobody here did."""

NAME_FIRST = "meshctl pool init --name NAME --kind KIND"


@dataclass(frozen=True, slots=True)
class Ceremony:
    """A pairing as the store has it, its files read. ``party`` is the other pool, once it is known."""

    row: Mapping[str, Any]
    side: str
    offer: Offer
    answer: Answer | None
    confirm: Confirm | None

    @property
    def party(self) -> Party:
        if self.side == "answerer":
            return self.offer.party
        assert self.answer is not None
        return self.answer.party


class Pairing:
    """The ceremony, as one pool sees it."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self.introduce: Introduce = _nobody

    async def under_way(self) -> list[dict[str, Any]]:
        """Pairings that are neither done, ended nor expired."""
        async with self._office.store.connection() as connection:
            rows = await open_pairings(connection)
        now = self._office.now()
        return [self._shown(self._read(row)) for row in rows if row["expires_at"] > now]

    async def show(self, pairing: str) -> dict[str, Any]:
        """One pairing by its id in hex, whatever its state. PairingError where there is none."""
        async with self._office.store.transaction() as connection:
            row = await pairing_row(connection, _id(pairing))
        if row is None:
            raise PairingError("there is no such pairing", "pairing-unknown", hint="meshctl pool list")
        return self._shown(self._read(row))

    async def offer(self, *, valid_s: float | None, online: bool, new: bool, by: str) -> dict[str, Any]:
        """An offer: `{id, state, offer, expires_at}`. An open one is given again unless ``new``."""
        office = self._office
        own = await self._party()
        now = office.clock()
        valid = VALID_S if valid_s is None else valid_s
        if not 0 < valid <= VALID_MAX_S:
            raise InvalidRequestError(f"an offer is good for at most {VALID_MAX_S / 86_400:.0f} days")
        async with office.store.transaction() as connection:
            if not new:
                for row in await open_pairings(connection):
                    if self._reusable(row, own, online=online):
                        return self._shown(self._read(row))
            pairing = os.urandom(transcript.ID_BYTES)
            expires = now + valid
            text = transcript.write_offer(
                office.online,
                own,
                pairing=pairing,
                nonce=self._nonce(pairing),
                now=now,
                expires=expires,
                online=online,
            )
            await add_pairing(
                connection,
                pairing,
                side="offerer",
                state="offered",
                offer=text,
                answer=None,
                peer=None,
                online=online,
                at=office.now(),
                expires_at=datetime.fromtimestamp(int(expires), UTC),
            )
        await office.changed("pool.offer", pairing.hex()[:16], by, {"online": online})
        return await self.show(pairing.hex())

    async def answer(self, text: str, *, name: str | None, by: str) -> dict[str, Any]:
        """Answer another pool's offer: `{id, state, answer, peer}`.

        ConfigError, PairingError, ConflictError.
        """
        office = self._office
        own = await self._party()
        offer = transcript.read_offer(text)
        async with office.store.transaction() as connection:
            row = await pairing_row(connection, offer.id)
            if row is not None and row["side"] == "answerer":
                return self._shown(self._same(self._read(row), offer.hash))
            check_offer(offer, own_key=own.pool_key, now=office.clock())
            if row is not None:
                raise PairingError("an offer with this id was made here", "pairing-used", hint=AGAIN)
            await self._introduce(connection, offer.party, name, offer.id, "answered")
            written = transcript.write_answer(
                office.online, own, offer, nonce=os.urandom(transcript.NONCE_BYTES), now=office.clock()
            )
            await add_pairing(
                connection,
                offer.id,
                side="answerer",
                state="answered",
                offer=text,
                answer=written,
                peer=offer.party.pool_key,
                online=offer.online,
                at=office.now(),
                expires_at=datetime.fromtimestamp(offer.expires, UTC),
            )
        await office.changed("pool.answer", name or offer.party.name, by, _who(offer.party))
        return await self.show(offer.id.hex())

    async def answer_online(self, text: str, *, name: str | None, by: str) -> dict[str, Any]:
        """Answer an offer and take the answer there over the network: `{id, state, string, peer}`.

        PairingError where the offer is not meant for that or its gates cannot be reached: then by files.
        """
        reply = await self.answer(text, name=name, by=by)
        if reply["state"] != "answered":
            return reply
        if not reply["online"]:
            raise PairingError(
                "the offer was not made to be answered over the network",
                "pairing-unreachable",
                hint="go on by files, or there: meshctl pool pair offer --online",
            )
        await self.introduce(text, str(reply["answer"]))
        return await self.show(str(reply["id"]))

    async def confirm_online(self, text: str) -> dict[str, Any]:
        """As `confirm`, for an answer that came over the network: only to an offer that was made for that."""
        async with self._office.store.transaction() as connection:
            row = await pairing_row(connection, transcript.read_answer(text).id)
        if row is None or row["side"] != "offerer" or not row["online"]:
            raise PairingError("no offer here is open to answers over the network", "pairing-unknown")
        return await self.confirm(text, name=None, by=OVER_THE_TUNNEL)

    async def finish_online(self, text: str) -> dict[str, Any]:
        """As `finish`, for what came over the network."""
        return await self.finish(text, by=OVER_THE_TUNNEL)

    async def confirm(self, text: str, *, name: str | None, by: str) -> dict[str, Any]:
        """Confirm the answer to an offer made here: `{id, state, confirm, string, peer}`.

        ConfigError, PairingError, ConflictError.
        """
        office = self._office
        answer = transcript.read_answer(text)
        async with office.store.transaction() as connection:
            row = await pairing_row(connection, answer.id)
            if row is None:
                raise PairingError(
                    "no offer was made here that this answers", "pairing-unknown", hint="meshctl pool list"
                )
            held = self._read(row)
            if held.side == "answerer":
                raise PairingError(
                    "this answer was made here",
                    "pairing-self",
                    hint="carry it to the pool that made the offer",
                )
            if held.answer is not None:
                if held.answer.hash != answer.hash:
                    raise PairingError(
                        f"the offer was answered by the pool {held.answer.party.name} "
                        f"({held.answer.party.fingerprint}), and each offer is good for one answer",
                        "pairing-used",
                        hint="begin anew for this one: meshctl pool pair offer",
                    )
                return self._shown(self._alive(held))
            check_answer(answer, held.offer, now=office.clock())
            if name is None and by == OVER_THE_TUNNEL:
                name = await self._free_name(connection, answer.party)
            await self._introduce(connection, answer.party, name, answer.id, "confirmed")
            nonce = self._nonce(answer.id)
            if transcript.commitment(answer.id, held.offer.party.pool_key, nonce) != held.offer.commitment:
                raise PairingError(
                    "the pool's online key was replaced since the offer was made",
                    "pairing-rotated",
                    hint=AGAIN,
                )
            written = transcript.write_confirm(office.online, answer, nonce=nonce)
            await advance_pairing(
                connection,
                answer.id,
                "confirmed",
                office.now(),
                peer=answer.party.pool_key,
                answer=text,
                confirm=written,
            )
        await office.changed("pool.confirm", name or answer.party.name, by, _who(answer.party))
        return await self.show(answer.id.hex())

    async def finish(self, text: str, *, by: str) -> dict[str, Any]:
        """Take the confirmation (at the answerer) or the finish (at the offerer): `{id, string, peer}`.

        At the answerer `finish` is the file for the other side. ConfigError, PairingError.
        """
        kind = transcript.kind_of(text)
        if kind not in {"confirm", "finish"}:
            raise PairingError(
                f"this is an {kind}",
                "pairing-order",
                hint=f"meshctl pool pair {'answer' if kind == 'offer' else 'confirm'} FILE",
            )
        pairing = transcript.id_of(text)
        async with self._office.store.transaction() as connection:
            row = await pairing_row(connection, pairing)
            if row is None:
                raise PairingError(
                    f"this {kind} belongs to no pairing of this pool",
                    "pairing-unknown",
                    hint="meshctl pool list",
                )
            held = self._read(row)
            if (kind == "confirm") != (held.side == "answerer"):
                raise PairingError(
                    f"this {kind} was made here", "pairing-self", hint="carry it to the other pool"
                )
            if kind == "confirm":
                await self._take_confirm(connection, held, text)
            else:
                await self._take_finish(connection, held, text)
        await self._office.changed("pool.finish", held.party.name, by, _who(held.party))
        return await self.show(pairing.hex())

    async def _take_confirm(self, connection: Connection, held: Ceremony, text: str) -> None:
        assert held.answer is not None
        confirm = transcript.read_confirm(text, held.offer)
        if held.confirm is not None:
            self._alive(held)
            return
        check_confirm(confirm, held.answer, held.offer, now=self._office.clock())
        self._alive(held)
        await advance_pairing(
            connection,
            held.offer.id,
            "confirmed",
            self._office.now(),
            confirm=text,
            finish=transcript.write_finish(self._office.online, confirm),
        )
        row = await peer_row(connection, held.party.pool_key)
        if row is not None and row["state"] == "answered":
            await put_peer(connection, replace(peer_of(row), state="confirmed"), self._office.now())

    async def _take_finish(self, connection: Connection, held: Ceremony, text: str) -> None:
        if held.confirm is None:
            raise PairingError("no answer was confirmed yet", "pairing-order", hint=AGAIN)
        transcript.read_finish(text, held.confirm, held.party)
        if held.row["finish"] is None:
            self._alive(held)
            state = held.row["state"]
            await advance_pairing(connection, held.offer.id, state, self._office.now(), finish=text)

    # --- the end: a person has typed the other side's string

    async def verify(
        self, connection: Connection, row: Mapping[str, Any], typed: str
    ) -> tuple[Peer | None, PairingError | None]:
        """Check the string that was typed for a peer's row, inside the caller's transaction.

        Returns the peer as the ceremony introduced it, or why not; the caller commits in both cases, because
        wrong strings are counted.
        """
        office = self._office
        found = await pairing_with(connection, row["pool_key"])
        held = None if found is None else self._read(found)
        if held is None or held.confirm is None:
            return None, PairingError(
                f"the pairing with {row['name']} is not that far: its confirmation is missing",
                "pairing-order",
                hint="meshctl pool pair finish CONFIRM",
            )
        now = office.clock()
        if now > held.offer.expires and held.row["state"] != "done":
            await self._fail(connection, held, row, "it expired")
            return None, PairingError("the offer has expired meanwhile", "pairing-expired", hint=AGAIN)
        if not right_string(typed, held.confirm, own_side=held.side):
            return None, await self._wrong(connection, held, row, typed)
        await advance_pairing(connection, held.offer.id, "done", office.now(), outcome="paired")
        await end_pairings_with(
            connection, held.party.pool_key, office.now(), "another pairing was finished", but=held.offer.id
        )
        party = held.party
        peer = replace(
            peer_of(row),
            state="paired",
            kind=party.kind,
            gates=party.gates,
            online_certificate=_newer(party.online_certificate, row["online_certificate"]),
            paired_at=now,
        )
        return peer, None

    async def _wrong(
        self, connection: Connection, held: Ceremony, row: Mapping[str, Any], typed: str
    ) -> PairingError:
        assert held.confirm is not None
        if own_string_typed(typed, held.confirm, own_side=held.side):
            return PairingError(
                "this is the string that this side shows",
                "pairing-string",
                hint=f"type the one that the admin of {row['name']} reads to you",
            )
        count = await count_wrong_string(connection, held.offer.id)
        if count >= STRINGS_MAX:
            await self._fail(connection, held, row, f"a wrong string was typed {count} times")
            return PairingError(
                f"a wrong string was typed {count} times: this pairing is over, and nothing of it is trusted",
                "pairing-ended",
                hint="if both sides read the same files: meshctl pool pair offer --new",
            )
        left = STRINGS_MAX - count
        return PairingError(
            f"that is not what {row['name']} shows; {left} more {'try' if left == 1 else 'tries'}",
            "pairing-string",
            hint="compare with the other admin, over the telephone or face to face",
        )

    async def _fail(
        self, connection: Connection, held: Ceremony, row: Mapping[str, Any], outcome: str
    ) -> None:
        office = self._office
        await advance_pairing(connection, held.offer.id, "ended", office.now(), outcome=outcome)
        if row["state"] in {"answered", "confirmed"}:
            peer = replace(peer_of(row), state="unpaired", level=0, paired_at=None)
            await put_peer(connection, peer, office.now())

    # --- parts

    async def _party(self) -> Party:
        office = self._office
        own = office.directory.own_pool()
        if not own.named:
            raise ConflictError("this pool has no name yet that others could know it by", hint=NAME_FIRST)
        certificate = office.online.certificate
        return Party(read_online(certificate).pool, own.name, own.kind, certificate, await pool_gates(office))

    def _nonce(self, pairing: bytes) -> bytes:
        """The offerer's nonce: derived, so that the store holds nothing secret before it is revealed."""
        signature = self._office.online.identity.sign("pairing nonce", pairing)
        return hashlib.blake2b(signature, digest_size=transcript.NONCE_BYTES).digest()

    async def _introduce(
        self, connection: Connection, party: Party, name: str | None, pairing: bytes, state: str
    ) -> None:
        """Note a pool that a ceremony has begun with; one that is paired already stays so."""
        office = self._office
        known = await peer_row(connection, party.pool_key)
        if known is not None and known["state"] == "revoked":
            raise PairingError(
                f"the pool {known['name']} ({party.fingerprint}) was revoked, and its key never returns",
                "pairing-revoked",
                hint="its admin makes a new pool key: meshctl init, in a fresh directory",
            )
        if known is not None and known["state"] == "paired":
            return
        called = name or (known["name"] if known is not None else party.name)
        if problem := name_problem(called):
            raise InvalidRequestError(problem)
        if await self._taken(connection, called, party):
            raise NameTakenError(
                f"the name {called} is taken here", hint="give the peer another one here: --as NAME"
            )
        peer = Peer(
            pool_key=party.pool_key,
            name=called,
            kind=party.kind,
            state=state,
            gates=party.gates,
            online_certificate=party.online_certificate,
            permissions=Permissions(),
        )
        await put_peer(connection, peer, office.now(), pairing=pairing)
        await end_pairings_with(
            connection, party.pool_key, office.now(), "another pairing was begun", but=pairing
        )

    async def _free_name(self, connection: Connection, party: Party) -> str:
        """What to call a pool that nobody here was asked to name: as it calls itself, or hq-2, hq-3 ... where
        that is taken.
        """
        known = await peer_row(connection, party.pool_key)
        wanted = str(known["name"]) if known is not None else party.name
        called, number = wanted, 1
        while await self._taken(connection, called, party):
            number += 1
            called = f"{wanted[:58]}-{number}"
        return called

    async def _taken(self, connection: Connection, called: str, party: Party) -> bool:
        holder = await name_holder(connection, called)
        return called == self._office.directory.own_pool().name or holder not in {None, party.pool_key}

    def _reusable(self, row: Mapping[str, Any], own: Party, *, online: bool) -> bool:
        if row["side"] != "offerer" or row["state"] != "offered" or row["online"] != online:
            return False
        if row["expires_at"] <= self._office.now():
            return False
        return transcript.read_offer(row["offer"]).party == own

    def _read(self, row: Mapping[str, Any]) -> Ceremony:
        offer = transcript.read_offer(row["offer"])
        answer = None if row["answer"] is None else transcript.read_answer(row["answer"])
        confirm = None if row["confirm"] is None else transcript.read_confirm(row["confirm"], offer)
        return Ceremony(row, row["side"], offer, answer, confirm)

    def _same(self, held: Ceremony, offer_hash: bytes) -> Ceremony:
        if held.offer.hash != offer_hash:
            raise PairingError(
                "another offer with the same id was answered here: one of them was tampered with",
                "pairing-tampered",
                hint=AGAIN,
            )
        return self._alive(held)

    @staticmethod
    def _alive(held: Ceremony) -> Ceremony:
        if held.row["state"] == "ended":
            raise PairingError(f"this pairing is over: {held.row['outcome']}", "pairing-ended", hint=AGAIN)
        return held

    @staticmethod
    def _shown(held: Ceremony) -> dict[str, Any]:
        row = held.row
        known = held.side == "answerer" or held.answer is not None
        own_file = {"offerer": ("offer", "confirm"), "answerer": ("answer", "finish")}[held.side]
        return {
            "id": held.offer.id.hex(),
            "side": held.side,
            "state": row["state"],
            "outcome": row["outcome"],
            "online": row["online"],
            "started_at": iso(row["started_at"]),
            "expires_at": iso(row["expires_at"]),
            "peer": _who(held.party) if known else None,
            "string": None if held.confirm is None else transcript.short_string(held.confirm, held.side),
            **{name: row[name] for name in own_file},
        }


def _who(party: Party) -> dict[str, Any]:
    return {"name": party.name, "kind": party.kind, "fingerprint": party.fingerprint}


def _newer(one: bytes, other: bytes) -> bytes:
    return one if read_online(one).serial >= read_online(other).serial else other


def _id(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise PairingError("that is no pairing's id", "pairing-unknown", hint="meshctl pool list") from None


async def _nobody(offer: str, answer: str) -> object:
    del offer, answer
    raise PairingError("this gate is not running", "pairing-unreachable", hint="go on by files")
