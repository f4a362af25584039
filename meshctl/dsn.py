"""How a database is named to the gate: a libpq URL put together from its parts. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import quote, urlencode, urlsplit


def dsn_of(
    hosts: Sequence[str], user: str | None, dbname: str, sslmode: str | None, target: str | None
) -> str:
    """A libpq URL without a password."""
    who = f"{quote(user, safe='')}@" if user else ""
    parameters = {"sslmode": sslmode, "target_session_attrs": target}
    text = f"postgresql://{who}{','.join(_host(host) for host in hosts)}/{quote(dbname, safe='')}"
    return with_parameters(text, {key: value for key, value in parameters.items() if value})


def _host(host: str) -> str:
    if host.startswith("/"):
        return quote(host, safe="")
    return f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host


def with_parameters(dsn: str, parameters: Mapping[str, str]) -> str:
    """A DSN, URL or key=value, with further parameters."""
    if not parameters:
        return dsn
    if "://" not in dsn:
        return " ".join([dsn, *(f"{key}={value}" for key, value in parameters.items())])
    return dsn + ("&" if urlsplit(dsn).query else "?") + urlencode(parameters)
