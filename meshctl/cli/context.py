"""`meshctl context`: the pools that this person administers from elsewhere."""

from __future__ import annotations

import platform
import re
import time
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from meshctl import view
from meshctl.cli import options
from meshctl.cli.enrolling import Out, deliver
from meshctl.cli.login import PasswordFile, dialler_of, log_in, shown
from meshctl.errors import CommandError, RefusedError, UnreachableError, UsageError
from meshctl.render import Output, emit
from meshctl.terminal import STDIN, confirm, note, read_secret, read_text

if TYPE_CHECKING:
    from meshctl.contexts import Context

commands = options.group(
    "Pools to administer from elsewhere: offer here, enroll at the pool, add here; or create beside a gate."
)

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="The context's name.", autocompletion=options.context_names)
]
Node = Annotated[
    str | None,
    typer.Option(
        "--node",
        metavar="NAME",
        help="What the pool calls this machine's key; without it the context's and this machine's name.",
        show_default=False,
    ),
]

CONTEXT_COLUMNS = (
    view.Column("", "current"),
    view.Column("CONTEXT", "name"),
    view.Column("ADMIN", "admin"),
    view.Column("ROLE", "role"),
    view.Column("POOLS", "pools"),
    view.Column("LOGGED IN UNTIL", "session_until", view.moment),
    view.Column("STATE", "state"),
)


@commands.command("offer")
def offer(
    name: Name,
    node: Node = None,
    out: Out = None,
) -> None:
    """On your machine: make a key (once) and print the offer that an owner of the pool enrolls."""
    context = _contexts().named(name)
    text, fingerprint = context.make_offer(node=node or _node_name(context.name), now=time.time())
    note(f"fingerprint {fingerprint}")
    note("Carry the offer to the pool: meshctl admin enroll OFFER --admin NAME --out bundle.json")
    deliver(text, out, mode=0o644)


@commands.command("add")
def add(
    name: Name,
    bundle_file: Annotated[
        str | None,
        typer.Argument(metavar="BUNDLE", help="The bundle that came back, or - for standard input."),
    ] = None,
    admin: Annotated[
        str | None,
        typer.Option("--admin", metavar="NAME", help="Who will log in with it.", show_default=False),
    ] = None,
    setup_token_file: Annotated[
        str | None,
        typer.Option(
            "--setup-token-file",
            metavar="FILE",
            help="Of a pool without an admin: its set-up token, from a file or - for standard input; makes "
            "--admin its first owner and logs in.",
            show_default=False,
        ),
    ] = None,
    password_file: PasswordFile = None,
    node: Node = None,
) -> None:
    """On your machine: put the bundle in place that answers this context's offer. Then: meshctl login."""
    from meshctl.contexts import ContextSettings

    context = _contexts().named(name)
    if setup_token_file is not None:
        _claim(context, setup_token_file, admin, password_file, node or _node_name(context.name))
        return
    if bundle_file is None:
        raise CommandError(
            "There is neither a bundle nor a set-up token.",
            hint=f"meshctl context add {name} BUNDLE, or --setup-token-file FILE",
        )
    bundle = context.install(read_text(bundle_file, "The bundle"), now=time.time())
    if admin:
        held = context.read_settings()
        context.write_settings(ContextSettings(admin, held.read_only, held.pools))
    _use_first(context)
    pools = ", ".join(pool.name for pool in context.pools(bundle, context.read_settings()))
    note(f"The context {context.name} reaches: {pools}. Next: meshctl login --context {context.typed}")


@commands.command("create")
def create(
    name: Name,
    admin: Annotated[
        str, typer.Option("--admin", metavar="NAME", help="The admin who works with it.", show_default=False)
    ],
    password_file: PasswordFile = None,
    node: Node = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Beside a gate: offer, enroll and add in one go; with --password-file it logs in as well."""
    from meshctl.contexts import ContextSettings, pools_of

    gate = options.connect(gate_dir, socket)
    context = _contexts().named(name)
    if context.enrolled:
        raise RefusedError(f"There is a context {context.name} already.", hint="meshctl context list")
    text, _ = context.make_offer(node=node or _node_name(context.name), now=time.time())
    reply = gate.post(f"/admins/{quote(admin, safe='')}/keys", {"offer": text})
    context.install(reply["bundle"], now=time.time())
    context.write_settings(ContextSettings(admin, pools=pools_of(reply.get("pools"))))
    _use_first(context)
    if password_file is None:
        made = described(context, current=_contexts().current())
        emit(made, view.card(made), output)
        note(f"Next: meshctl login --context {context.typed}")
        return
    password = read_secret(f"Password of {admin}", password_file, option="--password-file")
    dialler = dialler_of(context.typed)
    made = shown(dialler, log_in(dialler, admin, password))
    emit(made, view.card(made), output)


@commands.command("list")
def list_contexts(output: options.Format = Output.TABLE) -> None:
    """List the contexts of this person; the current one is marked."""
    contexts = _contexts()
    current = contexts.current()
    rows = [described(one, current=current) for one in contexts.all()]
    cells = [{**row, "current": "*" if row["current"] else " "} for row in rows]
    none = (
        "No contexts. Beside a gate: meshctl context create NAME --admin ADMIN; elsewhere: context offer NAME"
    )
    emit(rows, view.table(cells, CONTEXT_COLUMNS), output, empty=none)


@commands.command("show")
def show(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="Without it the current one.", autocompletion=options.context_names
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Dial each pool and say how it went.")] = False,
    output: options.Format = Output.TABLE,
) -> None:
    """Show a context: its key, its certificate's end, its pools and gates, who is logged in."""
    from tunnel_proto.certificate import read_chain

    dialler = dialler_of(name)
    _, node = read_chain(dialler.bundle.chain)
    reply = described(dialler.context, current=_contexts().current())
    reply |= {
        "node": node.name,
        "fingerprint": dialler.identity.fingerprint,
        "certificate_until": float(node.not_after),
        "pools": [
            {
                "name": pool.name,
                "gates": [f"{gate.host}:{gate.port}" for gate in pool.gates],
                **({"answer": _checked(dialler.context, pool.name)} if check else {}),
            }
            for pool in dialler.pools
        ],
    }
    columns = [view.Column("POOL", "name"), view.Column("GATES", "gates")]
    columns += [view.Column("ANSWER", "answer")] if check else []
    facts = {key: value for key, value in reply.items() if key != "pools"}
    for key in ("certificate_until", "session_until"):
        facts[key] = view.moment(facts[key])
    emit(reply, [view.card(facts), view.table(reply["pools"], columns)], output)


@commands.command("use")
def use(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME[@POOL]", help="The context's name.", autocompletion=options.context_names
        ),
    ],
) -> None:
    """Make a context the one that is used where nothing is named and no gate runs here."""
    from meshctl.contexts import split

    contexts = _contexts()
    short, pool = split(name)
    if pool:
        dialler_of(name)  # refuses a pool that it does not know
    contexts.use(name)
    note(f"The current context is {short}{f', at {pool}' if pool else ''}.")


@commands.command("remove")
def remove(name: Name, yes: options.Yes = False) -> None:
    """Forget a context, its key and its session. The pool still knows the key: meshctl admin revoke."""
    contexts = _contexts()
    context = contexts.existing(name)
    confirm(f"Remove the context {context.name} and its key?", yes=yes)
    contexts.remove(name)
    note(f"The context {context.name} is removed.")


def described(context: Context, *, current: str = "") -> dict[str, Any]:
    """A context in brief, without a round trip."""
    from meshctl.admin_session import read_session
    from meshctl.contexts import split
    from tunnel_proto.errors import MeshError

    record: dict[str, Any] = {
        "name": context.name,
        "current": split(current)[0] == context.name,
        "admin": None,
        "role": None,
        "pools": [],
        "session_until": None,
        "state": "offered",
        "directory": str(context.root),
    }
    try:
        settings = context.read_settings()
        record["admin"] = settings.admin or None
        record["read_only"] = settings.read_only
        if not context.enrolled:
            return record
        _, bundle = context.load(now=time.time())
        record["pools"] = [pool.name for pool in context.pools(bundle, settings)]
        session = read_session(context.session)
        record["state"] = "enrolled"
        if session is not None and session.expires_at > time.time():
            record |= {"role": session.role, "session_until": session.expires_at, "state": "logged in"}
    except MeshError as error:
        record["state"] = error.message
    return record


def _checked(context: Context, pool: str) -> str:
    """How one pool answers, with nobody logged in."""
    from meshctl.admin_session import ContextDialler
    from meshctl.client import Gate

    began = time.monotonic()
    dialler = ContextDialler(context, begin=pool, authenticated=False)
    try:
        Gate(dialler, timeout=5.0).get("/healthz")
    except (UnreachableError, CommandError) as error:
        return error.message
    finally:
        dialler.close()
    return f"{(time.monotonic() - began) * 1000:.0f} ms"


def _claim(
    context: Context, token_file: str, admin: str | None, password_file: str | None, node: str
) -> None:
    """Become the first owner of a pool that has none, and log in."""
    from meshctl.claiming import claim

    if admin is None:
        raise UsageError("Who becomes the first owner?", hint="--admin NAME")
    if STDIN == token_file == password_file:
        raise UsageError(
            "Standard input can give the token or the password, not both.", hint="put one of them into a file"
        )
    token = read_secret("Set-up token", token_file, option="--setup-token-file")
    password = read_secret(
        f"Password for {admin}", password_file, option="--password-file", twice=password_file is None
    )
    claim(context, token, admin=admin, password=password, node=node, now=time.time())
    _use_first(context)
    note(f"{admin} is the first owner; the set-up token is used up.")
    dialler = dialler_of(context.typed)
    made = shown(dialler, log_in(dialler, admin, password))
    emit(made, view.card(made), Output.TABLE)


def _contexts() -> Any:
    from meshctl.contexts import Contexts

    return Contexts()


def _use_first(context: Context) -> None:
    """The first context of a person is the current one."""
    contexts = _contexts()
    if not contexts.current() and context.root.parent == contexts.folder:
        contexts.use(context.name)


def _node_name(name: str) -> str:
    """A node's name that tells this machine's keys apart: the context's and the machine's."""
    text = re.sub(r"[^A-Za-z0-9._-]", "-", f"{name}-{platform.node().split('.')[0]}").lstrip("._-")
    return text[:63] or "admin"
