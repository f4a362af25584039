"""`meshctl provider`: the model APIs of others, and what they cost."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from meshctl import finops_view, view
from meshctl.cli import options
from meshctl.errors import CheckError, UsageError
from meshctl.render import Output, emit
from meshctl.terminal import confirm, note, read_secret

commands = options.group("Model APIs of others (OpenAI-compatible, Anthropic); the gate holds their keys.")
prices = options.group("What models cost, per million tokens; your prices go before those that ship.")
commands.add_typer(prices, name="price")


Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="The provider's name.", autocompletion=options.names_in("/providers")
    ),
]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="MODEL, or PROVIDER/MODEL.", show_default=False)]
KeyFile = Annotated[
    str | None,
    typer.Option(
        "--key-file", metavar="FILE", help="Read the key from a file, or - for stdin.", show_default=False
    ),
]


def _path(name: str, rest: str = "") -> str:
    return f"/providers/{quote(name, safe='')}{rest}"


@commands.command("add")
def add(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What you call the provider.", show_default=False)
    ],
    kind: Annotated[str, typer.Option("--kind", help="openai (or compatible), or anthropic.")] = "openai",
    url: Annotated[
        str | None,
        typer.Option(
            "--url", metavar="URL", help="Where its API is; the vendor's own if left out.", show_default=False
        ),
    ] = None,
    key_file: KeyFile = None,
    no_key: Annotated[bool, typer.Option("--no-key", help="The server wants no key.")] = False,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--models",
            metavar="MODEL",
            help="A model to use; repeatable, or comma-separated; all that it lists, if left out.",
            show_default=False,
        ),
    ] = None,
    embeddings: Annotated[
        list[str] | None,
        typer.Option(
            "--embedding-models", metavar="MODEL", help="A model that embeds; repeatable.", show_default=False
        ),
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="The company owns the server: local-only content may go there.")
    ] = False,
    isolation: Annotated[
        str | None,
        typer.Option(
            "--isolation",
            help="What its operator says of kept state: none, shared, wiped or dedicated.",
            show_default="shared; none for --local",
        ),
    ] = None,
    max_concurrent: Annotated[
        int | None,
        typer.Option("--max-concurrent", min=1, help="Requests of one gate at a time.", show_default=False),
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option(
            "--timeout", metavar="TIME", help="The longest that an answer may take.", show_default="15m"
        ),
    ] = None,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Register it without asking it for its models.")
    ] = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Register a model API. The gate asks it for its models, then seals the key in its vault."""
    if kind not in {"openai", "anthropic"}:
        raise UsageError(
            f'--kind: "{kind}" is neither openai nor anthropic.',
            hint="--kind openai (or what speaks like it), or --kind anthropic",
        )
    gate = options.connect(gate_dir, socket)
    listed: list[dict[str, Any]] = [{"name": word} for word in _words(models)]
    listed += [{"name": word, "kinds": ["embedding"]} for word in _words(embeddings)]
    body: dict[str, Any] = {
        "name": name,
        "kind": kind,
        "url": url,
        "models": listed or None,
        "local": local or None,
        "isolation": isolation,
        "max_concurrent": max_concurrent,
        "total_timeout_s": options.seconds(timeout, "--timeout"),
        "check": False if no_check else None,
    }
    if not no_key:
        body["key"] = read_secret(f"API key of {name}", key_file, option="--key-file")
    row = gate.post("/providers", {key: value for key, value in body.items() if value is not None})
    note(f"Provider {name} is registered with {len(row['models'])} models.")
    if row.get("unpriced"):
        note(
            f"{row['unpriced']} of them have no price, so apps with a budget may not use them. "
            "Next: meshctl provider price set MODEL --in X --out Y"
        )
    emit(row, finops_view.provider(row), output)


@commands.command("list")
def list_providers(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List the providers; never a key."""
    rows = options.connect(gate_dir, socket).items("/providers")
    none = "No providers. Next: meshctl provider add NAME --key-file FILE"
    emit(rows, finops_view.providers(rows), output, empty=none)


@commands.command("show")
def show(
    name: Name,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show a provider with its models and their prices."""
    row = options.connect(gate_dir, socket).get(_path(name))
    emit(row, finops_view.provider(row), output)


@commands.command("check")
def check(
    name: Name,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Have the gate ask it for its models, and take over what it lists; exit code 6 if a step fails."""
    reply = options.connect(gate_dir, socket).post(_path(name, "/check"), {})
    emit(reply, view.steps(reply.get("steps") or []), output)
    if not reply.get("ok"):
        raise CheckError(f"Provider {name} did not pass.", hint="each line above says what mends it")


@commands.command("key")
def set_key(
    name: Name,
    key_file: KeyFile = None,
    no_check: Annotated[bool, typer.Option("--no-check", help="Seal it without trying it.")] = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Replace a provider's key; the next request uses the new one."""
    gate = options.connect(gate_dir, socket)
    key = read_secret(f"API key of {name}", key_file, option="--key-file")
    gate.put(_path(name, "/key"), {"key": key, "check": not no_check})
    note(f"Provider {name} has its new key.")


@commands.command("remove")
def remove(
    name: Name,
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Forget a provider and its sealed key."""
    gate = options.connect(gate_dir, socket)
    confirm(f"Remove provider {name} and its key?", yes=yes)
    gate.delete(_path(name))
    note(f"Provider {name} is removed.")


@prices.command("set")
def set_price(
    model: Model,
    input_price: Annotated[
        str, typer.Option("--in", metavar="PRICE", help="A million prompt tokens.", show_default=False)
    ],
    output_price: Annotated[
        str, typer.Option("--out", metavar="PRICE", help="A million tokens of answers.", show_default=False)
    ],
    cached: Annotated[
        str | None,
        typer.Option(
            "--cached", metavar="PRICE", help="A million prompt tokens that were kept.", show_default="--in"
        ),
    ] = None,
    currency: Annotated[
        str | None,
        typer.Option("--currency", metavar="CODE", show_default="the setting finops.currency"),
    ] = None,
    source: Annotated[str, typer.Option("--source", metavar="TEXT", help="Where the price is from.")] = "",
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Say what a model costs; it holds for every gate at once."""
    body = {
        "input": input_price,
        "output": output_price,
        "cached": cached,
        "currency": currency,
        "source": source or None,
    }
    gate = options.connect(gate_dir, socket)
    row = gate.put(
        f"/prices/{quote(model, safe='/')}", {key: value for key, value in body.items() if value is not None}
    )
    emit(row, finops_view.prices([row]), output)


@prices.command("list")
def list_prices(
    model: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="Only models with this in their name.")
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """List the prices in force, with their day and their source."""
    rows = options.connect(gate_dir, socket).items("/prices")
    rows = [row for row in rows if model is None or model in row["model"]]
    emit(rows, finops_view.prices(rows), output)


@prices.command("reset")
def reset_price(
    model: Model,
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Return to the price that ships with the gate, if there is one."""
    gate = options.connect(gate_dir, socket)
    confirm(f"Forget your price of {model}?", yes=yes)
    gate.delete(f"/prices/{quote(model, safe='/')}")
    note(f"{model} has no price of yours any more.")


def _words(given: list[str] | None) -> list[str]:
    return [word.strip() for words in given or () for word in words.split(",") if word.strip()]
