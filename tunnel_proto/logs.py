"""Structured logs on standard error: JSON for machines, coloured lines for people, secrets in neither."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, TextIO

import structlog

from tunnel_proto.errors import MeshError

SECRET_WORDS = ("password", "secret", "token", "verifier", "private", "seed", "ticket", "authorization")
"""A log key that contains one of these has its value replaced, whatever it is."""

REDACTED = "[redacted]"

# Without the locals of the frames: they hold keys, rows and passwords.
_TRACEBACKS = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=20)
)
_URL_PASSWORD = re.compile(
    r"(?P<head>[a-z][a-z0-9+.-]*://[^\s:/@]*:)(?P<password>[^\s@/]+)(?=@)", re.IGNORECASE
)
_KEYWORD_PASSWORD = re.compile(
    r"\b(?P<head>password\s*=\s*)(?P<password>'(?:[^'\\]|\\.)*'|[^\s&']+)", re.IGNORECASE
)
_VERIFIER = re.compile(r"SCRAM-SHA-256\$\d+:[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=:]+")


def redact_text(text: str) -> str:
    """Replace passwords in URLs and keyword DSNs, and SCRAM verifiers, wherever they stand in ``text``."""
    if "://" in text:
        text = _URL_PASSWORD.sub(rf"\g<head>{REDACTED}", text)
    if "assword" in text or "ASSWORD" in text:
        text = _KEYWORD_PASSWORD.sub(rf"\g<head>{REDACTED}", text)
    if "SCRAM-SHA-256$" in text:
        text = _VERIFIER.sub(REDACTED, text)
    return text


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: no secret leaves the process through a log line.

    Keys named like a secret lose their value; bytes are shown as their length, because bytes here are keys,
    packets or rows; text is passed through `redact_text`.
    """
    for key, value in event.items():
        event[key] = _redacted(key, value)
    return event


def _redacted(key: str, value: Any) -> Any:
    lowered = key.lower()
    if any(word in lowered for word in SECRET_WORDS) and not isinstance(
        value, bool | int | float | type(None)
    ):
        return REDACTED
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        return {name: _redacted(str(name), one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_redacted(key, one) for one in value]
    if isinstance(value, MeshError):
        return redact_text(value.message)
    return value


def configure_logs(
    style: Literal["json", "console"], level: str = "info", *, program: str = "", stream: TextIO | None = None
) -> None:
    """Send structlog's and the standard library's logs to ``stream`` (standard error) in one form.

    ``level`` is one of debug, info, warning, error. Call it once, in `__main__`; modules take their logger by
    ``structlog.get_logger()``.
    """
    output = stream if stream is not None else sys.stderr
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    final: list[structlog.typing.Processor]
    if style == "json":
        final = [
            _TRACEBACKS,
            redact,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        colors = output.isatty()
        renderer = structlog.dev.ConsoleRenderer(
            colors=colors, exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
        )
        final = [redact, renderer]
    if program:
        shared.insert(0, _names_program(program))
    structlog.configure(
        processors=[*shared, *final],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(output),
        cache_logger_on_first_use=False,
    )
    foreign = logging.StreamHandler(output)
    foreign.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [foreign]
    root.setLevel(max(number, logging.WARNING))


def set_level(level: str) -> None:
    """Log from this level on, after `configure_logs`: debug, info, warning or error."""
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(number))
    logging.getLogger().setLevel(max(number, logging.WARNING))


def _names_program(program: str) -> structlog.typing.Processor:
    def add(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("program", program)
        return event

    return add
