"""`meshctl branding`: the name, logo and colours that the pool shows of itself."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from meshctl import view
from meshctl.cli import options
from meshctl.errors import UsageError
from meshctl.render import Output, emit, write
from meshctl.terminal import confirm, note, read_text

commands = options.group("What the pool shows of itself on terminals.")

Name = Annotated[str | None, typer.Option("--name", help="What it is called.", show_default=False)]
Logo = Annotated[
    str | None,
    typer.Option(
        "--logo", metavar="FILE", help="A text of at most 60 by 12 cells, or -.", show_default=False
    ),
]
Colour = Annotated[
    list[str] | None,
    typer.Option(
        "--colour",
        metavar="TOKEN=#RRGGBB",
        help="A colour of the theme; as often as needed.",
        show_default=False,
    ),
]
Support = Annotated[
    str | None, typer.Option("--support", metavar="TEXT", help="Whom to ask for help.", show_default=False)
]
WhiteLabel = Annotated[
    bool | None,
    typer.Option(
        "--white-label/--no-white-label",
        help="Leave out the product's name; takes a licence.",
        show_default=False,
    ),
]


def shown(row: dict[str, Any]) -> list[view.Table]:
    """The branding for a person: the logo as it is, then the rest."""
    cards = [
        view.card(
            {
                "title": row["title"],
                "support": row["support"] or None,
                "white label": _white_label(row),
                "changed by": row.get("changed_by"),
            }
        )
    ]
    colours = [{"token": token, "colour": colour} for token, colour in row["theme"].items()]
    rows = {pair["token"]: pair for pair in row.get("contrasts", ())}
    for colour in colours:
        pair = rows.get(colour["token"])
        colour["contrast"] = None if pair is None else f"{pair['ratio']}:1 on {pair['on']}"
        colour["set"] = colour["token"] in row["colours"]
    columns = [view.Column("TOKEN", "token"), view.Column("COLOUR", "colour"), view.Column("SET", "set")]
    if rows:
        columns.append(view.Column("CONTRAST", "contrast"))
    return [*cards, view.table(colours, columns)]


def _white_label(row: dict[str, Any]) -> str:
    if not row["white_label"]:
        return "no"
    return "yes" if row["white_label_in_force"] else "wanted, and no licence gives it"


@commands.command("show")
def show(
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show the name, logo, colours and support line."""
    _print(options.connect(gate_dir, socket).get("/branding"), output)


@commands.command("set")
def set_(
    name: Name = None,
    logo: Logo = None,
    colour: Colour = None,
    support: Support = None,
    white_label: WhiteLabel = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Change what is named; colours that are not named stay as they are."""
    gate = options.connect(gate_dir, socket)
    body = _changes(name, logo, colour, support, white_label)
    if "colours" in body:
        body["colours"] = {**gate.get("/branding")["colours"], **body["colours"]}
    _print(gate.call("PATCH", "/branding", body=body).body, output)


@commands.command("preview")
def preview(
    name: Name = None,
    logo: Logo = None,
    colour: Colour = None,
    support: Support = None,
    white_label: WhiteLabel = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Show what a change would look like, with the contrast of every colour; nothing is changed."""
    body = _changes(name, logo, colour, support, white_label, some=False)
    _print(options.connect(gate_dir, socket).post("/branding/preview", body), output)


@commands.command("reset")
def reset(
    yes: options.Yes = False,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
) -> None:
    """Show the product's own again."""
    gate = options.connect(gate_dir, socket)
    confirm("Forget the pool's name, logo and colours?", yes=yes)
    gate.delete("/branding")
    note("The product's own is shown again.")


def _print(row: dict[str, Any], output: Output) -> None:
    if output is Output.TABLE and row["logo"]:
        write("\n".join(row["logo"]) + "\n")
    emit(row, shown(row), output)


def _changes(
    name: str | None,
    logo: str | None,
    colour: list[str] | None,
    support: str | None,
    white_label: bool | None,
    *,
    some: bool = True,
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "name": name,
        "logo": None if logo is None else read_text(logo, "The logo").splitlines(),
        "support": support,
        "white_label": white_label,
        "colours": None if not colour else dict(_colour(one) for one in colour),
    }
    body = {key: value for key, value in body.items() if value is not None}
    if some and not body:
        raise UsageError("Nothing was named.", hint="--name, --logo, --colour, --support or --white-label")
    return body


def _colour(text: str) -> tuple[str, str]:
    token, equals, colour = text.partition("=")
    if not equals:
        raise UsageError(f'--colour: "{text}" is no TOKEN=#RRGGBB.', hint="--colour primary=#4ea1ff")
    return token.strip(), colour.strip()
