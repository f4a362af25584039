"""What can go wrong with a command, and the exit code each kind ends with."""

from __future__ import annotations

from enum import IntEnum

from tunnel_proto.errors import MeshError


class ExitCode(IntEnum):
    """The exit codes of every command; docs/cli.md is generated from this table."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    REFUSED = 5
    CHECK_FAILED = 6

    @property
    def meaning(self) -> str:
        """One phrase for the help text and the reference."""
        return {
            ExitCode.OK: "done",
            ExitCode.FAILED: "failed",
            ExitCode.USAGE: "the command line or a value in it is not valid",
            ExitCode.UNREACHABLE: "no gate answers",
            ExitCode.NOT_FOUND: "the thing named does not exist",
            ExitCode.REFUSED: "refused, in conflict with what is there, or not confirmed",
            ExitCode.CHECK_FAILED: "a check did not pass (check, verify, doctor, db add, provider add)",
        }[self]


class CommandError(MeshError):
    """A command cannot go on; ``code`` is the exit code, ``hint`` the next thing to do."""

    code = ExitCode.FAILED


class UsageError(CommandError):
    """What was typed, or a file it names, is not valid."""

    code = ExitCode.USAGE


class UnreachableError(CommandError):
    """There is no gate at the socket, or it does not answer."""

    code = ExitCode.UNREACHABLE


class NotFoundError(CommandError):
    """The thing named does not exist."""

    code = ExitCode.NOT_FOUND


class RefusedError(CommandError):
    """The gate or the person said no, or something is already there."""

    code = ExitCode.REFUSED


class CheckError(CommandError):
    """The command worked and what it looked at is not well."""

    code = ExitCode.CHECK_FAILED


class GateError(CommandError):
    """A problem document of the gate (RFC 9457).

    ``status`` is the HTTP status, ``problem`` the gate's own short code for it.
    """

    def __init__(self, message: str, *, status: int, problem: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.problem = problem
        self.code = ExitCode.CHECK_FAILED if problem == "upstream" else exit_code_of(status)


def exit_code_of(status: int) -> ExitCode:
    """The exit code that an HTTP status of the control API stands for."""
    if status in {400, 413, 422}:
        return ExitCode.USAGE
    if status in {404, 410}:
        return ExitCode.NOT_FOUND
    if status in {401, 403, 409, 412, 423, 428, 429}:
        return ExitCode.REFUSED
    return ExitCode.FAILED
