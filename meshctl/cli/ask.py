"""`meshctl ask`: a `qg://` request from the shell, its answer on standard output as it comes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from meshctl.cli import options
from meshctl.errors import UnreachableError, UsageError
from meshctl.render import Output, machine_text, write
from meshctl.surface import Surface
from meshctl.terminal import note, read_secret, uncontrolled
from tunnel_proto.request import RequestSyntaxError, canonical, is_request, parse
from tunnel_proto.tasks import TASKS

FILE_NAME_MAX: Final = 255
TEXT_MAX: Final = 64 * 1024 * 1024
_PATHS: Final = {"completion": "/completions", "embedding": "/embeddings"}


def ask(
    request: Annotated[
        str,
        typer.Argument(
            metavar="REQUEST",
            help="A qg:// request (its qg:// may be left out), or a model's name to chat with.",
        ),
    ],
    text: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="The text; without it --file, else standard input."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="Read the text from a file.")
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="A system prompt, for task=chat.")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say on standard error what answered, and its receipt.")
    ] = False,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            metavar="URL",
            help="Ask there as an app (a sidecar's http://localhost:11438/v1) and not at the gate's socket.",
        ),
    ] = None,
    key_file: Annotated[
        str | None,
        typer.Option(
            "--key-file", metavar="FILE", help="With --url: the app's API key; - is standard input."
        ),
    ] = None,
    gate_dir: options.GateDir = None,
    socket: options.Socket = None,
    output: options.Format = Output.TABLE,
) -> None:
    """Have the mesh do something with a text: meshctl ask 'task=summarize;prefer=speed' < article.txt

    The answer is printed as it comes; -o json prints the whole result with its receipt once it is complete.
    Ctrl-C cancels the request wherever it runs. At the gate's own socket, and for an admin over a context,
    everything is allowed and paid by no app's budget; --url with an app's key asks as that app. Over a
    context the next pool is asked where one does not answer.
    """
    model, kind = _wanted(request)
    if system is not None and kind != "chat":
        raise UsageError("--system belongs to task=chat.", hint="leave it out")
    surface = _surface(url, key_file, gate_dir, socket)
    body = {"model": model, **_input(kind, _text(text, file, key_file), system)}
    path = _PATHS.get(kind, "/chat/completions")
    if output is not Output.TABLE:
        write(machine_text(surface.whole(path, body), output))
    elif kind == "embedding":
        answer = surface.whole(path, body)
        for row in answer.get("data", []):
            write(json.dumps(row.get("embedding")))
        if verbose:
            _report(answer)
    else:
        _stream(surface, path, body, verbose=verbose)


def _wanted(request: str) -> tuple[str, str]:
    """The ``model`` field and the kind of a request, checked here so that an error costs no round trip."""
    if not is_request(request) and "=" not in request and ";" not in request:
        if request.strip() in TASKS:
            raise UsageError(
                f'"{request}" is a task, not a model.', hint=f"meshctl ask task={request.strip()}"
            )
        if not request.strip():
            raise UsageError("REQUEST is empty.", hint="meshctl ask task=chat")
        return request.strip(), "chat"
    try:
        parsed = parse(request)
    except RequestSyntaxError as error:
        raise UsageError(error.message, hint=error.hint) from None
    return canonical(parsed), TASKS[parsed.task].kind


def _input(kind: str, text: str, system: str | None) -> dict[str, Any]:
    if kind == "completion":
        return {"prompt": text}
    if kind == "embedding":
        return {"input": text}
    before = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*before, {"role": "user", "content": text}]}


def _surface(url: str | None, key_file: str | None, gate_dir: Path | None, socket: Path | None) -> Surface:
    if url is None:
        if key_file is not None:
            raise UsageError(
                "--key-file belongs to --url: the gate's socket needs no key.",
                hint="leave --key-file out, or say --url URL",
            )
        try:
            gate = options.connect(gate_dir, socket)
        except UnreachableError as error:
            raise UnreachableError(
                error.message,
                hint="meshctl dev, --gate-dir DIR, --context NAME, or as an app: --url URL --key-file FILE",
            ) from None
        return Surface(gate)
    if socket is not None or gate_dir is not None:
        raise UsageError("--url and the gate's socket exclude each other.", hint="give one of them")
    return Surface(url=url, key=read_secret("API key", key_file, option="--key-file"))


def _text(words: list[str] | None, file: Path | None, key_file: str | None) -> str:
    if words and file is not None:
        raise UsageError("TEXT and --file both give the text.", hint="keep one of the two")
    if words:
        text = " ".join(words)
        if len(words) == 1 and len(text) < FILE_NAME_MAX and Path(text).is_file():
            note(f'"{text}" is the text that was asked about; --file {text} reads the file of that name.')
    elif file is not None:
        try:
            text = _decoded(file.read_bytes(), str(file))
        except OSError as error:
            raise UsageError(
                f"{file} cannot be read: {error.strerror}",
                hint="name a file of text, or - for standard input",
            ) from error
    else:
        if key_file == "-":
            raise UsageError("Standard input gives the key, so it cannot give the text.", hint="--file FILE")
        if sys.stdin.isatty():
            note("Type the text, then Ctrl-D on a line of its own.")
        text = _decoded(sys.stdin.buffer.read(TEXT_MAX + 1), "standard input")
    if not text.strip():
        raise UsageError(
            "There is no text.", hint="give it behind the request, with --file, or on standard input"
        )
    if len(text) > TEXT_MAX:
        raise UsageError(f"The text is longer than {TEXT_MAX >> 20} MiB.", hint="send a part of it")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(
            "The text is not UTF-8.", hint="iconv -t UTF-8, or -f FILE of another text"
        ) from None
    return text


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8 text (byte {error.start}).",
            hint="iconv -t UTF-8 turns other encodings into it",
        ) from None


def _stream(surface: Surface, path: str, body: dict[str, Any], *, verbose: bool) -> None:
    """Print an answer as it comes; a terminal gets no control sequence that a model made up."""
    last: dict[str, Any] = {}
    finish, ended = "", True
    for event in surface.events(path, body):
        kept = {key: last[key] for key in ("usage", "qgate") if last.get(key) and not event.get(key)}
        last = event | kept
        for choice in event.get("choices", []):
            finish = choice.get("finish_reason") or finish
            delta = choice.get("delta") or choice.get("message") or {}
            piece = delta.get("content") or choice.get("text") or ""
            if piece:
                ended = piece.endswith("\n")
                sys.stdout.write(uncontrolled(piece) if sys.stdout.isatty() else piece)
                sys.stdout.flush()
    if not ended:
        write("")
    if finish == "length":
        note("The answer was cut at max_tokens.")
    if verbose:
        _report(last)


def _report(answer: dict[str, Any]) -> None:
    mesh = answer.get("qgate") or {}
    receipt = mesh.get("receipt") or {}
    parts = [str(answer.get("model") or "?"), f"at {mesh.get('node') or '?'}"]
    usage = answer.get("usage") or receipt.get("usage") or {}
    if usage:
        parts.append(f"{usage.get('prompt_tokens', 0)} + {usage.get('completion_tokens', 0)} tokens")
    if receipt.get("id"):
        parts.append(f"receipt {receipt['id']}")
    note(", ".join(parts))
