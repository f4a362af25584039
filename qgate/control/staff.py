"""People and what is told to them, put together: mail, notifications, people, sign-up, erasure.

open     whom an older backup brought back is erased again, before anybody is served
run      send mail, look at what is to be told, forget who never confirmed
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import structlog

from qgate.control import notifications, people, signup, smtp
from qgate.federation.guests import record_of
from qgate.federation.log.erasure import PLACES_MAX
from qgate.governance.erasure import Erasures
from qgate.governance.mail import Mail
from qgate.governance.notifications import Notifications
from qgate.governance.people import People
from qgate.governance.person_archive import PersonArchives
from qgate.governance.person_keys import FILE_NAME, PersonKeys
from qgate.governance.signup import Signup
from qgate.store import StoreUnavailableError
from qgate.store.guests import app_names
from qgate.store.outbox import waiting
from qgate.store.people import published_places, published_records
from tunnel_proto.errors import MeshError

if TYPE_CHECKING:
    from fastapi import APIRouter

    from qgate.gate import Gate
    from qgate.governance.licence import Licences
    from qgate.governance.office import Office

log = structlog.get_logger(__name__)

SIGNUP_PATH: Final = signup.PATH

KEEP_S: Final = 5.0
"""How soon a gate's ``people.keys`` follows the store."""

SIGNED_WITHIN_S: Final = 10.0
"""How long an erasure waits until the log has told peers that the person's apps are gone."""

SIGNED_LOOK_S: Final = 0.02


class Staff:
    """The people of one gate's pool, and the gate's part in looking after them."""

    def __init__(self, gate: Gate, office: Office) -> None:
        self._gate = gate
        self._setting = office.directory.setting
        self._office = office
        self._store = office.store
        self._late = True  # at the start it is not known what was left unsaid
        apps = gate.administration.apps
        self.keys = PersonKeys(office, gate.files.state_dir / FILE_NAME)
        self.mail = Mail(office)
        self.people = People(office, self.keys, self.mail, apps)
        self.archives = PersonArchives(office, self.people)
        self.erasures = Erasures(office, self.people, self.mail, apps, unpublish=self._unpublish)
        self.notifications = Notifications(office, self.mail, pool=self._pool_name)
        self.signup = Signup(office, self.people, self.mail, self.notifications, monotonic=time.monotonic)
        door = gate.capabilities.door
        face = signup.SignupFace(door.capability, self.signup)
        # Whoever comes through a sidecar of another pool is to sign up there.
        door.open(
            SIGNUP_PATH,
            face,
            when=lambda scope: self.signup.enabled and not (scope.get("state") or {}).get("pool"),
        )

    def under(self, licences: Licences) -> None:
        """Let people take the seats of a licence, and its warnings come into the inbox."""
        licences.seats_used.append(self.people.seats)
        licences.notices.append(self.notifications.licence)
        self.people.refuse_seat = licences.refuse_seat

    def routers(self) -> tuple[APIRouter, ...]:
        """The routers of these nouns."""
        return (
            *people.routers(self.people, self.archives, self.erasures),
            *smtp.routers(self.mail, self._office),
            *notifications.routers(self.notifications),
            *signup.routers(self.signup, self._setting),
        )

    async def open(self) -> None:
        """Erase again whom an older backup brought back."""
        await self.erasures.reapply()

    async def run(self) -> None:
        """Go on until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.mail.run(), name="mail")
            tasks.create_task(self.notifications.run(), name="notifications")
            tasks.create_task(self.signup.run(), name="sign-up")
            tasks.create_task(self._keep_keys(), name="keys of people")

    async def _keep_keys(self) -> None:
        """Follow what other gates add and erase."""
        while True:
            try:
                await self.keys.keep()
                await self._say_late()
            except StoreUnavailableError:
                pass  # the directory's watch has said so already
            except (OSError, MeshError) as error:
                log.error("people.keys cannot be written", reason=str(error))
            await asyncio.sleep(KEEP_S)

    async def _say_late(self) -> None:
        """Erase what the log still says of apps that are no more: nothing could be signed when they went."""
        sequencer = self._gate.replication.sequencer
        if not self._late or not await sequencer.settled() or await self._unsigned():
            return
        own = self._gate.parts.keys.pool_key
        async with self._store.connection() as connection:
            there = {record_of("app", name) for name in await app_names(connection)}
            gone = [record for record in await published_records(connection, own) if record not in there]
            places = await published_places(connection, own, gone)
        if places:
            await sequencer.erase(places[:PLACES_MAX], "of apps that are no more")
        self._late = len(places) > PLACES_MAX

    async def _unpublish(self, apps: list[str]) -> int:
        """Tell peers that the apps are gone, and erase what the log said of them before: later, where nothing
        may be signed yet.
        """
        sequencer = self._gate.replication.sequencer
        records = [record_of("app", app) for app in apps]
        try:
            await self._gate.movement.exports.reconcile()
            if not await sequencer.settled():
                self._late = True
                log.warning("the log is told of an erasure once it may be written", apps=len(apps))
                return 0
            async with asyncio.timeout(SIGNED_WITHIN_S):
                while await self._unsigned():
                    if not await sequencer.run_batch():  # another task or gate is at it
                        await asyncio.sleep(SIGNED_LOOK_S)
            async with self._store.connection() as connection:
                places = await published_places(connection, self._gate.parts.keys.pool_key, records)
            return await sequencer.erase(places, "a person was erased") if places else 0
        except StoreUnavailableError:
            raise
        except (MeshError, TimeoutError) as error:
            self._late = True
            log.error(
                "the log could not be told of an erasure",
                reason=str(error),
                next="meshctl pool log --erase N",
            )
            return 0

    async def _unsigned(self) -> int:
        async with self._store.connection() as connection:
            return await waiting(connection)

    def _pool_name(self) -> str:
        return self._gate.parts.directory.own_pool().name
