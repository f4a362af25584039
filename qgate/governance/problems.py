"""Why an administrator's request was not carried out; each error knows its HTTP status, its code and the
next command.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import ClassVar

from tunnel_proto.errors import MeshError


class AdministrationError(MeshError):
    """Root of the refusals below. `hint` is the next command, where there is one."""

    status: ClassVar[int] = HTTPStatus.INTERNAL_SERVER_ERROR
    code: ClassVar[str] = "failed"


class UnknownNameError(AdministrationError):
    """What was named does not exist."""

    status = HTTPStatus.NOT_FOUND
    code = "not-found"


class ConflictError(AdministrationError):
    """The request is sound and what exists stands in its way."""

    status = HTTPStatus.CONFLICT
    code = "conflict"


class NameTakenError(ConflictError):
    """Somebody else is called so here."""

    code = "name-taken"


class InvalidRequestError(AdministrationError):
    """The request can never be carried out as it is."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "invalid"


class UpstreamRefusedError(AdministrationError):
    """The database behind a route did not do what it was asked."""

    status = HTTPStatus.BAD_GATEWAY
    code = "upstream"


class ChangedError(AdministrationError):
    """What is to be changed is no longer as the caller saw it; the message says what it is and by whom."""

    status = HTTPStatus.PRECONDITION_FAILED
    code = "changed"
