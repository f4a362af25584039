"""What the parts of the capability side say to each other: one request, its attempts, events and errors.

    surface ──Work──▶ Engine ──Attempt──▶ Executor         (worker, nlp, provider, pool)
       ◀──Event──────┘   ◀──────Sink─────┘
                     Engine ──▶ Ledger, ReceiptIssuer

A surface iterates `Engine.run(work)`: `Begun` once an executor has the request, `Chunk`s, a `Moved` where
the request changes its node, and one `Finished`; or a `Problem` is raised, also after chunks. Iterating no
further (`aclose`, or cancelling the task) cancels the attempt wherever it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from tunnel_proto.errors import MeshError

if TYPE_CHECKING:
    from qgate.capability.inventory import Candidate
    from qgate.governance.directory import App
    from tunnel_proto.request import CapabilityRequest

Kind = Literal["chat", "completion", "embedding", "analysis"]
NodeKind = Literal["worker", "nlp", "provider", "pool"]
Blame = Literal["request", "node", "provider", "network"]

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Code:
    """One line of the error table: how each surface says it."""

    status: int  # HTTP
    type: str  # OpenAI's `error.type`
    sqlstate: str


_REQUEST = "invalid_request_error"
_SERVER = "server_error"

CODES: Final[Mapping[str, Code]] = MappingProxyType(
    {
        # The request's own fault; the same request will fail again.
        "invalid_request": Code(400, _REQUEST, "22023"),
        "invalid_json": Code(400, _REQUEST, "22P02"),
        "request_syntax": Code(400, _REQUEST, "42601"),
        "unknown_task": Code(400, _REQUEST, "42883"),
        "unsupported": Code(400, _REQUEST, "0A000"),
        "context_length_exceeded": Code(400, _REQUEST, "54000"),
        "invalid_api_key": Code(401, "authentication_error", "28000"),
        "budget_exceeded": Code(402, "insufficient_quota", "53400"),
        "permission_denied": Code(403, "permission_error", "42501"),
        "misdirected": Code(403, "permission_error", "42501"),
        "not_found": Code(404, _REQUEST, "42704"),
        "model_not_found": Code(404, _REQUEST, "42704"),
        "method_not_allowed": Code(405, _REQUEST, "0A000"),
        "payload_too_large": Code(413, _REQUEST, "54000"),
        "poison_request": Code(422, _REQUEST, "22023"),
        "no_candidate": Code(422, _REQUEST, "0A000"),
        "rate_limit_exceeded": Code(429, "rate_limit_error", "53400"),
        "queue_full": Code(429, "rate_limit_error", "53300"),
        "cancelled": Code(499, _REQUEST, "57014"),
        # Not the request's fault; it may be sent again.
        "internal_error": Code(500, _SERVER, "XX000"),
        "node_failed": Code(502, _SERVER, "08006"),
        "stream_interrupted": Code(502, _SERVER, "08006"),
        "provider_error": Code(502, _SERVER, "08006"),
        "invalid_response": Code(502, _SERVER, "08P01"),
        "unavailable": Code(503, _SERVER, "57P03"),
        "audit_full": Code(503, _SERVER, "57P03"),
        "model_loading": Code(503, _SERVER, "57P03"),
        "deadline_exceeded": Code(504, "timeout_error", "57014"),
    }
)
"""The engine's errors. A code that is missing here is a fault in the program: `Problem` refuses it."""


class Problem(MeshError):  # noqa: N818 - the word of RFC 9457
    """Why a request was not carried out, in words fit for its sender.

    `code` is a key of `CODES`; `status` replaces the table's HTTP status where a provider's own is passed on.
    `param` names the field at fault. `detail` is extra for machines (reasons, progress) and never content.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        detail: Mapping[str, Any] = _NOTHING,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        line = CODES[code]
        self.code = code
        self.status = line.status if status is None else status
        self.type = line.type
        self.sqlstate = line.sqlstate
        self.param = param
        self.retry_after_s = retry_after_s
        self.detail = detail


# --- a request ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request. `cached_tokens` of the prompt were not evaluated; `evaluated_tokens` were."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    evaluated_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.evaluated_tokens + other.evaluated_tokens,
        )


NOTHING_USED: Final = Usage()


@dataclass(frozen=True, slots=True)
class Work:
    """One request after authentication and policy, before placement.

    `request` holds the `qg://` keys already narrowed by policy, with aliases resolved. `body` is the
    OpenAI-shaped JSON object (messages, prompt or input, and sampling fields); for an analysis
    {"input": text or list of texts}. `received_at` is unix time, `deadline` the event loop's time.
    """

    id: str  # "req_" and 24 hex digits
    app: App
    request: CapabilityRequest
    kind: Kind
    body: Mapping[str, Any] = field(repr=False)
    stream: bool = False
    received_at: float = 0.0
    deadline: float | None = None
    source: str = ""  # the sidecar's name, for the audit


# --- attempts and executors ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a request on one candidate.

    `emitted` are the token ids that the client has already: they are replayed and never sent again;
    `emitted_text` is their text. `max_tokens` bounds what is still to come (0: no bound of ours).
    `deadline_s` is seconds from the start of the attempt.
    """

    id: str  # "req_….N"
    work: Work
    candidate: Candidate
    emitted: tuple[int, ...] = field(default=(), repr=False)
    emitted_text: str = field(default="", repr=False)
    number: int = 1
    max_tokens: int = 0
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt ended without a result. `code` is the executor's own word or a key of `CODES`.

    `retriable`: the same request may succeed elsewhere. `blame` "request" is never tried again, "node" counts
    towards the request's crashes and the node's breaker, "network" towards the breaker only. `status` is a
    provider's HTTP status. `usage` is what was certainly used where that is known (all zeros: nothing was);
    None counts as all that was reserved.
    """

    code: str
    message: str
    retriable: bool = False
    retry_after_s: float | None = None
    blame: Blame = "node"
    status: int | None = None
    crashed: bool = False  # the process that ran it died
    usage: Usage | None = None


class Sink(Protocol):
    """What an executor tells about one attempt, on the loop's thread.

    Order: `accepted`, any `progress`, any `chunk`, then exactly one of `done` and `failed`. A sink ignores
    what comes after that, and everything after `Running.cancel`.
    """

    def accepted(self, *, queue: int = 0, state: str = "", worker: str = "") -> None:
        """The node took it; `queue` requests are before it, `state` is the model's.

        `worker`: another pool's, once that has placed it; may be said again.
        """

    def progress(self, state: str, share: float, eta_s: float | None) -> None:
        """A cold load goes on; `share` of 1."""

    def chunk(self, chunk: Chunk) -> None:
        """More of the answer."""

    def done(
        self,
        finish_reason: str,
        usage: Usage,
        *,
        result: Any = None,
        raw: bytes | None = None,
        model_version: str = "",
    ) -> None:
        """The answer is complete."""

    def failed(self, failure: Failure) -> None:
        """It ended without a complete answer."""


class Running(Protocol):
    """An attempt under way."""

    def cancel(self) -> None:
        """Stop it at once, wherever it runs; may be called at any time, also twice."""

    def pause(self) -> None:
        """The client reads too slowly: let the source wait."""

    def resume(self) -> None:
        """Go on."""


class Executor(Protocol):
    """Something that carries out attempts: the workers, the gate's own engine, the cloud providers."""

    def start(self, attempt: Attempt, sink: Sink) -> Running:
        """Begin, without waiting. What goes wrong is told to the sink (also from inside this call)."""


# --- what a run yields --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begun:
    """A node has the request."""

    model: str
    version: str
    node: str
    kind: NodeKind


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of the answer: text with its token ids, an OpenAI delta, or a provider's SSE payload as it is.

    `logprobs` is OpenAI's object for these tokens, where it was asked for.
    """

    text: str = ""
    ids: tuple[int, ...] = ()
    delta: Mapping[str, Any] | None = None
    raw: bytes | None = None
    logprobs: Any = None


@dataclass(frozen=True, slots=True)
class Moved:
    """The request went on at another node; nothing was lost or repeated (`how`: exact, kindred, restart)."""

    from_node: str
    to_node: str
    reason: str
    how: str = "exact"


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete.

    `result` is an analysis' object or a list of embedding vectors; `raw` a provider's whole body. `ids` are
    all token ids of the answer, as the gate would have replayed them elsewhere.
    """

    finish_reason: str
    usage: Usage
    receipt: Receipt
    result: Any = None
    raw: bytes | None = None
    ids: tuple[int, ...] = field(default=(), repr=False)


Event = Begun | Chunk | Moved | Finished


# --- money and receipts -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Price:
    """What a million tokens cost, in `currency`, as of a date (ISO 8601)."""

    input: Decimal
    output: Decimal
    currency: str = "USD"
    as_of: str = ""

    def of(self, usage: Usage) -> Decimal:
        """What `usage` costs."""
        return (self.input * usage.prompt_tokens + self.output * usage.completion_tokens) / 1_000_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the budgets say of one candidate, from memory.

    "prefer-local" asks to stay away from what costs money; `pressure` (0 to 1) says how strongly.
    """

    action: Literal["ok", "prefer-local", "refused"] = "ok"
    reason: str = ""
    pressure: float = 0.0


class Reservation(Protocol):
    """Money set aside for one attempt; only its ledger knows what is inside."""

    @property
    def amount(self) -> Decimal:
        """How much is set aside."""


class Ledger(Protocol):
    """Budgets: judged in memory, reserved before an attempt and settled after it."""

    def verdict(self, work: Work, candidate: Candidate) -> Verdict:
        """Whether the budgets let this candidate be used. Never waits."""

    def upper_bound(self, work: Work, candidate: Candidate, max_tokens: int | None = None) -> Decimal:
        """The most that the work can cost there with an answer of at most `max_tokens`."""

    def reserve_at_once(self, work: Work, candidate: Candidate, upper_bound: Decimal) -> Reservation | None:
        """`reserve` where nobody has to be asked for it; None: it has to be awaited. Raises like it."""

    async def reserve(self, work: Work, candidate: Candidate, upper_bound: Decimal) -> Reservation:
        """Set `upper_bound` aside. Raises `Problem` with the code "budget_exceeded"."""

    def settle(self, reservation: Reservation, usage: Usage | None) -> None:
        """Say what was used; None where it is not known, which counts as all of it."""

    def price(self, candidate: Candidate) -> Price | None:
        """The candidate's price; None where it costs nothing."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A signed receipt: its id, the JSON object whose shape is in docs/finops.md, and that object as text.

    `text` "" where nobody has written it yet.
    """

    id: str
    document: Mapping[str, Any]
    text: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Hop:
    """One node that worked on a request, with what it used (None: not known)."""

    node: str
    kind: NodeKind
    model: str
    version: str
    usage: Usage | None = None
    price: Price | None = None
    reason: str = ""  # why the request left it; "" for the last
    worker: str = ""  # another pool's, where it said so


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended, for its receipt and the audit. Times are unix seconds, durations seconds."""

    outcome: str  # "ok" or a key of CODES
    finish_reason: str
    usage: Usage
    hops: tuple[Hop, ...]
    began_at: float
    ended_at: float
    first_token_s: float | None = None
    cost: Decimal = Decimal(0)
    currency: str = ""
    shift: str = ""  # why a budget moved it to a local model, where one did


class ReceiptIssuer(Protocol):
    """Makes receipts; keeping them is its own task."""

    def issue(self, work: Work, *, outcome: Outcome) -> Receipt:
        """Sign one now. Never waits."""
