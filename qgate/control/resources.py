"""What an administrator makes and removes: databases, apps, sidecars.

Every change names who asked for it (`access`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from qgate.control.access import principal_of
from qgate.control.bodies import (
    ApiKeyBody,
    AppBody,
    AppChangeBody,
    AppRotationBody,
    BackupBody,
    DatabaseBody,
    PolicyBody,
    SidecarBody,
)
from qgate.control.paging import Fields, Listing, Page, page
from qgate.control.seen import Seen, tagged
from qgate.control.versions import Unchanged
from qgate.governance.apps import NewApp
from qgate.governance.databases import NewDatabase
from qgate.governance.policy import CapabilityPolicy
from qgate.governance.rekeying import Rekeying

if TYPE_CHECKING:
    from qgate.administration import Administration


def caller(request: Request) -> str:
    """Who asks, for the audit: "uid=0" over the control socket, "alice", "alice@hq" from a paired pool."""
    return principal_of(request).label


By = Annotated[str, Depends(caller)]

DATABASE = Fields(
    key="name",
    search=("name", "dbname", "user", "hosts"),
    filters=("sslmode", "compression", "allow_replication", "pending_rotation"),
)
APP = Fields(
    key="name",
    search=("name", "databases", "policy.team"),
    filters=("state", "read_only", "replication", "databases", "policy.team", "failover"),
)
API_KEY = Fields(key="id", search=("id", "prefix"), filters=("state",))
NODE = Fields(key="name", search=("name", "fingerprint", "address"), filters=("role", "state", "connected"))
SEALED = Fields(key="id", search=("name", "kind", "what"), filters=("kind",))
GATE = Fields(key="name", search=("name", "addresses"), filters=("in_bundles",))


class VaultPage(Page):
    """A page of what is sealed, and the id of the key that seals."""

    key: str


def routers(administration: Administration) -> tuple[APIRouter, ...]:
    """One router a noun."""
    return (
        _databases(administration),
        _apps(administration),
        _sidecars(administration),
        _upkeep(administration),
    )


def _databases(administration: Administration) -> APIRouter:
    router = APIRouter(prefix="/databases", tags=["databases"])
    databases = administration.databases
    unchanged = Unchanged(administration.office)

    @router.get("", response_model=Page)
    async def list_databases(listing: Listing) -> dict[str, Any]:
        """Every database; passwords are never shown."""
        return page(await databases.list(), listing, DATABASE)

    @router.post("", status_code=201)
    async def add_database(body: DatabaseBody, by: By) -> dict[str, Any]:
        """Register a database, after logging in to it unless ``check`` is false."""
        given = body.model_dump(exclude={"limits"})
        return await databases.add(NewDatabase(**given, limits=body.limits.given()), by=by)

    @router.get("/{name}")
    async def show_database(name: str, response: Response) -> dict[str, Any]:
        """One database."""
        return tagged(await databases.show(name), response)

    @router.post("/{name}/check")
    async def check_database(name: str) -> dict[str, Any]:
        """Log in to it now and say what was found, step by step."""
        return await databases.check(name)

    @router.delete("/{name}", status_code=204)
    async def remove_database(name: str, by: By, seen: Seen, *, force: bool = False) -> None:
        """Forget a database and its passwords; ``force`` also where apps are bound to it."""
        async with unchanged.since("database", name, seen, databases.show):
            await databases.remove(name, force=force, by=by)

    @router.post("/{name}/rotate")
    async def rotate_password(name: str, by: By) -> dict[str, Any]:
        """Give its roles passwords that only the vault knows; nobody is disconnected."""
        return await databases.rotate(name, by=by)

    return router


def _apps(administration: Administration) -> APIRouter:
    router = APIRouter(prefix="/apps", tags=["apps"])
    apps, keys = administration.apps, administration.api_keys
    unchanged = Unchanged(administration.office)

    @router.get("", response_model=Page)
    async def list_apps(listing: Listing) -> dict[str, Any]:
        """Every app, revoked ones included."""
        return page(await apps.list(), listing, APP)

    @router.get("/{name}")
    async def show_app(name: str, response: Response) -> dict[str, Any]:
        """One app."""
        return tagged(await apps.show(name), response)

    @router.post("", status_code=201)
    async def create_app(body: AppBody, by: By) -> dict[str, Any]:
        """Create an app; its password and its key are in this answer and nowhere else."""
        new = NewApp(
            name=body.name,
            databases=tuple(body.databases),
            expires_in_s=body.expires_in_s,
            limits=body.limits.given(),
            sidecars=None if body.sidecars is None else tuple(body.sidecars),
            read_only=body.read_only,
            statement_classes=None if body.statement_classes is None else tuple(body.statement_classes),
            replication=body.replication,
            policy=None if body.policy is None else CapabilityPolicy.from_json(body.policy.given()),
            failover=body.failover,
        )
        return await apps.create(new, by=by)

    @router.patch("/{name}")
    async def change_app(
        name: str, body: AppChangeBody, response: Response, by: By, seen: Seen
    ) -> dict[str, Any]:
        """Change databases, limits, sidecars, end or access; what is not named stays, live sessions obey."""
        async with unchanged.since("app", name, seen, apps.show):
            return tagged(await apps.change(name, body.given(), by=by), response)

    @router.post("/{name}/rotate")
    async def rotate_app(name: str, by: By, body: AppRotationBody | None = None) -> dict[str, Any]:
        """A new password; the old one stays valid for a while."""
        return await apps.rotate(name, overlap_s=body.overlap_s if body else None, by=by)

    @router.delete("/{name}")
    async def revoke_app(name: str, by: By, seen: Seen) -> dict[str, Any]:
        """End an app and its live sessions."""
        async with unchanged.since("app", name, seen, apps.show):
            return await apps.revoke(name, by=by)

    @router.get("/{name}/policy")
    async def show_policy(name: str, response: Response) -> dict[str, Any]:
        """What an app may ask of models; null: nothing."""
        return tagged(await apps.policy(name), response)

    @router.patch("/{name}/policy")
    async def change_policy(
        name: str, body: PolicyBody, response: Response, by: By, seen: Seen
    ) -> dict[str, Any]:
        """Change the keys that are named; the others stay as they are."""
        async with unchanged.since("app", name, seen, apps.show):
            return tagged(await apps.change_policy(name, body.given(), by=by), response)

    @router.delete("/{name}/policy")
    async def drop_policy(name: str, response: Response, by: By, seen: Seen) -> dict[str, Any]:
        """Let an app ask for no model any more; its databases stay."""
        async with unchanged.since("app", name, seen, apps.show):
            return tagged(await apps.change_policy(name, None, by=by), response)

    @router.get("/{name}/keys", response_model=Page)
    async def list_keys(name: str, listing: Listing) -> dict[str, Any]:
        """An app's keys by their first characters, revoked ones included."""
        return page(await keys.list(name), listing, API_KEY)

    @router.post("/{name}/keys", status_code=201)
    async def create_key(name: str, by: By, body: ApiKeyBody | None = None) -> dict[str, Any]:
        """One more key; it is in this answer and nowhere else."""
        return await keys.create(name, expires_in_s=body.expires_in_s if body else None, by=by)

    @router.delete("/{name}/keys/{key}")
    async def revoke_key(name: str, key: str, by: By) -> dict[str, Any]:
        """Refuse a key from now on, here and at every gate of the pool."""
        return await keys.revoke(name, key, by=by)

    return router


def _sidecars(administration: Administration) -> APIRouter:
    router = APIRouter(prefix="/sidecars", tags=["sidecars"])
    sidecars = administration.sidecars

    @router.get("", response_model=Page)
    async def list_sidecars(listing: Listing) -> dict[str, Any]:
        """Every node that was enrolled, revoked ones included."""
        return page(await sidecars.list(), listing, NODE)

    @router.post("", status_code=201)
    async def enrol_sidecar(body: SidecarBody, by: By) -> dict[str, Any]:
        """Certify the keys of an offer; the bundle goes back to the sidecar."""
        return await sidecars.enrol(body.offer, valid_days=body.valid_days, readmit=body.readmit, by=by)

    @router.post("/{name}/bundle")
    async def reissue_bundle(name: str, by: By) -> dict[str, Any]:
        """A sidecar's bundle anew, naming the pool's gates of today; its certificate's serial stays."""
        return await sidecars.bundle(name, by=by)

    @router.delete("/{name}", status_code=204)
    async def revoke_sidecar(name: str, by: By) -> None:
        """Refuse a sidecar from now on; its sessions are cut."""
        await sidecars.revoke(name, by=by)

    return router


def _upkeep(administration: Administration) -> APIRouter:
    router = APIRouter(tags=["upkeep"])

    @router.get("/gates", response_model=Page)
    async def list_gates(listing: Listing) -> dict[str, Any]:
        """The gates of the pool, as they announced themselves."""
        return page(await administration.sidecars.gates(), listing, GATE)

    @router.get("/vault", response_model=VaultPage)
    async def list_vault(listing: Listing) -> dict[str, Any]:
        """What the vault seals: names and kinds, never a secret."""
        vault = Rekeying(administration.office)
        return {**page(await vault.contents(), listing, SEALED), **vault.standing()}

    @router.post("/vault/rekey")
    async def rekey(by: By) -> dict[str, Any]:
        """Seal every secret under a new master key."""
        return await administration.rekey(by=by)

    @router.post("/backup", status_code=201)
    async def backup(body: BackupBody, by: By) -> dict[str, Any]:
        """Write the store's content to a new file on the gate's machine; keys are not in it."""
        return await administration.backup(body.path, by=by)

    @router.post("/sample")
    async def sample(by: By) -> dict[str, Any]:
        """Make the sample database ``shop`` in the embedded server, if it is not there."""
        return await administration.sample(by=by)

    return router
