"""`meshctl app policy`, and the options by which an app is told what it may ask of models."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from meshctl import view
from meshctl.cli import options
from meshctl.errors import UsageError
from meshctl.render import Output, emit
from meshctl.terminal import confirm, note

ANY = "any"

Models = Annotated[
    list[str] | None,
    typer.Option(
        "--models",
        metavar="GLOB",
        help="Models it may use, as 'qwen*'; repeatable.",
        show_default=False,
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--tasks",
        metavar="TASK",
        help="Tasks it may ask for; repeatable, or comma-separated; any.",
        show_default=False,
    ),
]
LocalOnly = Annotated[
    bool | None,
    typer.Option(
        "--local-only/--any-place",
        help="Keep its content on machines of the company.",
        show_default=False,
    ),
]
Providers = Annotated[
    list[str] | None,
    typer.Option(
        "--provider",
        metavar="NAME",
        help="Cloud providers that its content may go to; repeatable; any.",
        show_default=False,
    ),
]
Isolation = Annotated[
    str | None,
    typer.Option(
        "--isolation",
        help="shared (its KV state is wiped) or dedicated (a child of its own).",
        show_default=False,
    ),
]
Team = Annotated[
    str | None,
    typer.Option("--team", metavar="NAME", help="Whose budgets it counts in too; none.", show_default=False),
]
Rpm = Annotated[
    int | None, typer.Option("--rpm", min=0, help="Requests a minute; 0: no bound.", show_default=False)
]
Tpm = Annotated[
    int | None, typer.Option("--tpm", min=0, help="Tokens a minute; 0: no bound.", show_default=False)
]
MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", min=0, help="Tokens of one answer; 0: no bound.", show_default=False),
]
Share = Annotated[
    int | None,
    typer.Option(
        "--share", min=1, max=1000, help="Its weight where several apps wait; 1.", show_default=False
    ),
]
Kindred = Annotated[
    bool | None,
    typer.Option(
        "--kindred/--no-kindred",
        help="Let a stream go on at a model with the same tokenizer.",
        show_default=False,
    ),
]
Reuse = Annotated[
    bool | None,
    typer.Option(
        "--reuse/--no-reuse",
        help="Let its own prompt prefixes be kept from request to request.",
        show_default=False,
    ),
]


def given(
    *,
    models: list[str] | None,
    tasks: list[str] | None,
    local_only: bool | None,
    providers: list[str] | None,
    isolation: str | None,
    team: str | None,
    rpm: int | None,
    tpm: int | None,
    max_tokens: int | None,
    share: int | None,
    kindred: bool | None,
    reuse: bool | None,
) -> dict[str, Any]:
    """The fields of a policy that were named, as the control API wants them; None: no bound."""
    fields: dict[str, Any] = {}
    if models:
        fields["models"] = _words(models)
    for name, words in (("tasks", tasks), ("providers", providers)):
        if words:
            listed = _words(words)
            fields[name] = None if listed == [ANY] else listed
    if local_only is not None:
        fields["data"] = "local-only" if local_only else "any"
    if isolation is not None:
        if isolation not in {"shared", "dedicated"}:
            raise UsageError(
                f'--isolation: "{isolation}" is neither shared nor dedicated.',
                hint="--isolation shared or --isolation dedicated",
            )
        fields["isolation"] = isolation
    if team is not None:
        fields["team"] = None if team == "none" else team
    for name, bound in (
        ("requests_per_minute", rpm),
        ("tokens_per_minute", tpm),
        ("max_tokens", max_tokens),
    ):
        if bound is not None:
            fields[name] = bound or None
    rest = {"share": share, "kindred": kindred, "reuse": reuse}
    return fields | {name: value for name, value in rest.items() if value is not None}


def policy(
    name: options.AppName,
    models: Models = None,
    tasks: Tasks = None,
    local_only: LocalOnly = None,
    providers: Providers = None,
    isolation: Isolation = None,
    team: Team = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    max_tokens: MaxTokens = None,
    share: Share = None,
    kindred: Kindred = None,
    reuse: Reuse = None,
    remove: Annotated[bool, typer.Option("--remove", help="Let it ask for no model any more.")] = False,
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show what an app may ask of models, or change what is named; the rest stays as it is."""
    changes = given(
        models=models,
        tasks=tasks,
        local_only=local_only,
        providers=providers,
        isolation=isolation,
        team=team,
        rpm=rpm,
        tpm=tpm,
        max_tokens=max_tokens,
        share=share,
        kindred=kindred,
        reuse=reuse,
    )
    if remove and changes:
        raise UsageError(
            "--remove goes with no other option.", hint="leave the other options out, or --remove"
        )
    gate = options.connect(gate_dir, socket)
    path = f"/apps/{quote(name, safe='')}/policy"
    if remove:
        confirm(f"Let app {name} ask for no model any more?", yes=yes)
        reply = gate.delete(path)
        note(f"App {name} may use no model.")
    elif changes:
        reply = gate.call("PATCH", path, body=changes).body
        note(f"The policy of app {name} is changed.")
    else:
        reply = gate.get(path)
    shown = reply.get("policy")
    if shown is None and output is Output.TABLE:
        note(f"App {name} may use no model. To let it: meshctl app policy {name} --models '*'")
        return
    emit(reply, view.card(shown or {}), output)


def _words(given_words: list[str]) -> list[str]:
    return [word.strip() for words in given_words for word in words.split(",") if word.strip()]
