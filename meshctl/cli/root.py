"""The root of the command line: every noun, in the order that a newcomer meets them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command
from typer.models import TyperInfo

from meshctl.cli import (
    admin,
    alias,
    app,
    audit,
    automation,
    branding,
    budget,
    catalog,
    cluster,
    config_pool,
    context,
    db,
    dev,
    docs,
    failover,
    gate,
    incident,
    key,
    model,
    notification,
    onboard,
    order,
    people,
    pool,
    provider,
    receipt,
    route,
    secret,
    settings,
    sidecar,
    signup,
    smtp,
    worker,
)
from meshctl.cli import license as licence
from meshctl.cli.ask import ask
from meshctl.cli.completion import completion
from meshctl.cli.doctor import doctor
from meshctl.cli.init import init
from meshctl.cli.login import login, logout, whoami
from meshctl.cli.options import CONTEXT_META, context_names
from meshctl.cli.status import status
from meshctl.cli.topology import topology
from meshctl.cli.tui import tui
from meshctl.errors import ExitCode
from meshctl.render import write

EXIT_CODES = "Exit codes: " + "; ".join(f"{int(code)} {code.meaning}" for code in ExitCode) + "; 130 Ctrl-C."

HELP_WIDTH_MAX = 120
"""Columns that help may fill; where there are fewer, summaries are cut."""


ORDER = (
    "dev",
    "tui",
    "init",
    "onboard",
    "sidecar",
    "db",
    "app",
    "worker",
    "model",
    "ask",
    "catalog",
    "provider",
    "budget",
    "receipt",
    "route",
    "pool",
    "cluster",
    "topology",
    "failover",
    "incident",
    "order",
    "automation",
    "context",
    "login",
    "logout",
    "whoami",
    "admin",
    "people",
    "signup",
    "smtp",
    "notification",
    "secret",
    "audit",
    "key",
    "status",
    "doctor",
    "config",
    "docs",
)


class Root(TyperGroup):
    """Lists the commands in the order that a newcomer meets them, the rest after."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Names for the help, in order."""
        return [*ORDER, *(name for name in self.commands if name not in ORDER)]


def command_line(app: typer.Typer, arguments: Sequence[str] = ()) -> Any:
    """A command line ready to run: every command that reaches a gate takes ``--context`` as well.

    With ``arguments`` only what they need is put together, which takes most of the time of a short command.
    """
    root = get_command(_needed(app, arguments))
    option = get_command(_context_option()).params[0]
    for one in _commands(root):
        places = [index for index, param in enumerate(one.params) if param.name == "gate_dir"]
        if places:
            one.params.insert(places[0], copy.copy(option))
    return root


def _needed(app: typer.Typer, arguments: Sequence[str]) -> typer.Typer:
    """The same with the one noun that is named; for the list of all, with all nouns and nothing in them.

    Without arguments it is left whole: a shell that completes gives none.
    """
    noun = next((word for word in arguments if not word.startswith("-")), None)
    part = copy.copy(app)
    if noun is not None:
        part.registered_groups = [one for one in app.registered_groups if one.name == noun]
        part.registered_commands = [one for one in app.registered_commands if one.name == noun]
        return part if part.registered_groups or part.registered_commands else app
    if arguments:
        part.registered_groups = [_hollow(one) for one in app.registered_groups]
        return part
    return app


def _hollow(info: TyperInfo) -> TyperInfo:
    hollow, group = copy.copy(info), copy.copy(info.typer_instance)
    if group is not None:
        group.registered_commands, group.registered_groups = [], []
    hollow.typer_instance = group
    return hollow


def _commands(group: Any) -> Iterator[Any]:
    """Every command below a group, groups too: some do something when they are called bare."""
    for one in group.commands.values():
        yield one
        if hasattr(one, "commands"):
            yield from _commands(one)


def _context_option() -> typer.Typer:
    """A command whose only purpose is its first option."""
    single = typer.Typer(add_completion=False, rich_markup_mode=None)

    @single.command()
    def _of(
        context: Annotated[
            str | None,
            typer.Option(
                "--context",
                metavar="NAME[@POOL]",
                help="A context of this person's (meshctl context list), to work from elsewhere.",
                show_default=False,
                is_eager=True,
                expose_value=False,
                callback=_remember_context,
                autocompletion=context_names,
            ),
        ] = None,
    ) -> None: ...

    return single


def _remember_context(context: typer.Context, value: str | None) -> None:
    if value is not None:
        context.meta[CONTEXT_META] = value


def build() -> typer.Typer:
    """The whole command line. Nothing slow is imported by building it."""
    root = typer.Typer(
        name="meshctl",
        cls=Root,
        no_args_is_help=True,
        rich_markup_mode=None,
        add_completion=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"], "max_content_width": HELP_WIDTH_MAX},
    )
    root.callback(epilog=EXIT_CODES)(options)
    root.add_typer(dev.commands, name="dev")
    root.command("init")(init)
    root.add_typer(onboard.commands, name="onboard")
    root.add_typer(sidecar.commands, name="sidecar")
    root.add_typer(db.commands, name="db")
    root.add_typer(app.commands, name="app")
    root.add_typer(worker.commands, name="worker")
    root.add_typer(model.commands, name="model")
    root.add_typer(catalog.commands, name="catalog")
    root.add_typer(provider.commands, name="provider")
    root.add_typer(alias.commands, name="alias")
    root.add_typer(budget.commands, name="budget")
    root.add_typer(receipt.commands, name="receipt")
    root.command("ask")(ask)
    root.add_typer(route.commands, name="route")
    root.add_typer(pool.commands, name="pool")
    root.add_typer(cluster.commands, name="cluster")
    root.command("topology")(topology)
    root.add_typer(failover.commands, name="failover")
    root.add_typer(incident.commands, name="incident")
    root.add_typer(order.commands, name="order")
    root.add_typer(automation.commands, name="automation")
    root.add_typer(admin.commands, name="admin")
    root.add_typer(context.commands, name="context")
    root.command("login")(login)
    root.command("logout")(logout)
    root.command("whoami")(whoami)
    root.add_typer(people.commands, name="people")
    root.add_typer(signup.commands, name="signup")
    root.add_typer(smtp.commands, name="smtp")
    root.add_typer(notification.commands, name="notification")
    root.add_typer(secret.commands, name="secret")
    root.add_typer(audit.commands, name="audit")
    root.add_typer(key.commands, name="key")
    root.command("tui")(tui)
    root.command("status")(status)
    root.command("doctor")(doctor)
    root.add_typer(config_pool.commands, name="config")
    root.add_typer(settings.commands, name="settings")
    root.add_typer(licence.commands, name="license")
    root.add_typer(branding.commands, name="branding")
    root.add_typer(gate.commands, name="gate")
    root.add_typer(docs.commands, name="docs")
    root.command("completion")(completion)
    return root


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("qgate-mesh")
        except PackageNotFoundError:  # run from a source tree that was not installed
            number = "from source"
        write(f"meshctl {number}")
        raise typer.Exit


def options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_version, help="Show it."),
    ] = False,
) -> None:
    """Run and administer a mesh: one local port, one encrypted tunnel, the real databases behind it.

    Start with: meshctl dev
    """
