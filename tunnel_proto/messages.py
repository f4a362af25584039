"""What a daemon and a gate say to each other: inventory, orders, jobs. Specified in docs/qdaemon.md.

On a stream each message is a frame: a u32 (big-endian) length, then a msgpack map whose key "t" names the
type. What arrives is checked field by field against bounds, and a frame that breaks one ends the stream with
`RemoteProtocolError`. A type or field whose name ends in "?" may be skipped by whoever does not know it.

    stream  opened by  says
    ------  ---------  -----------------------------------------------------------------------------------
    daemon  daemon     daemon: Report, LoadProgress, Answer                 gate: Ask
    job     gate       gate: one JobStart, then the end of its direction    daemon: the other Job... messages
    blob    gate       gate: the bytes of a model file, then the end        daemon: LoadProgress, one Answer

Gates of paired pools (docs/federation.md) say the same of jobs on streams of the kind "jobs", `Offer` on
"inventory", and `JobResult` and `JobRecorded` on "results".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tunnel_proto.shapes import (
    either,
    flag,
    has,
    json_value,
    listed,
    maybe,
    one_of,
    pair,
    raw,
    real,
    record,
    text,
    token_ids,
    whole,
)
from tunnel_proto.vocabulary import Bounds, MessageDecoder, Vocabulary

FRAME_MAX: Final = 16 * 1024 * 1024
"""Bytes of one message; a prompt of a million tokens has about 5 MB, larger ones are refused at the gate."""

MODELS_MAX: Final = 4096  # models of one worker
DEVICES_MAX: Final = 64  # GPUs, network cards or disks of one machine
TOKENS_MAX: Final = 4 * 1024 * 1024  # token ids in one message: more than any context holds
TEXTS_MAX: Final = 4096  # texts to embed in one job
TEXT_MAX: Final = FRAME_MAX
MESSAGE_MAX: Final = 2000  # characters of an error's text
RECEIPT_MAX: Final = 64 << 10
DOCKET_MAX: Final = 2048  # bytes
VECTOR_MAX: Final = 4 * 65_536  # bytes of one embedding: 65,536 dimensions
STOPS_MAX: Final = 16
BIAS_MAX: Final = 1024
JOB_SECONDS_MAX: Final = 7 * 86_400.0

KIND_DAEMON: Final = "daemon"
KIND_JOB: Final = "job"
KIND_BLOB: Final = "blob"
KIND_JOBS: Final = "jobs"
KIND_INVENTORY: Final = "inventory"
KIND_RESULTS: Final = "results"

KINDS: Final = ("chat", "completion", "embedding")
VERBS: Final = (
    *("load", "unload", "pin", "unpin", "evict", "remove", "groups"),  # of a model
    *("probe", "fit", "drain", "undrain", "interrogate"),  # of the worker
)

_NODE = text(63, r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_JOB = text(64, r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MODEL_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}"
_MODEL = text(200, MODEL_NAME)
_SHA = text(64, r"([0-9a-f]{64})?")
_WORD = text(64, r"[A-Za-z0-9._+:/ ()-]*")
_LINE = text(256)
_BYTES = whole()
_AMOUNT = text(24, r"[0-9]{1,9}(\.[0-9]{1,9})?")
_SHARE = real(0.0, 1.0)
_SECONDS = real(0.0, 1e10)
_RATE = real(0.0, 1e15)
_ISOLATION = text(32, r"[a-z-]*")


# --- hardware -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator as it was found. Sizes in bytes, rates in bytes/s; 0 or "" where it does not say."""

    index: int = has(whole(0, 1023))
    name: str = has(_LINE, "")
    uuid: str = has(_LINE, "")
    vram: int = has(_BYTES, 0)
    bandwidth: float = has(_RATE, 0.0)  # of its memory, from width and clock
    pcie_generation: int = has(whole(0, 32), 0)
    pcie_width: int = has(whole(0, 64), 0)
    bus: float = has(_RATE, 0.0)  # of that link, one direction
    driver: str = has(_WORD, "")
    cuda: str = has(_WORD, "")
    problem: str = has(_LINE, "")


@dataclass(frozen=True, slots=True)
class Nic:
    """A network card; ``speed`` in bytes/s, 0 where the driver does not say."""

    name: str = has(_LINE)
    speed: float = has(_RATE, 0.0)


@dataclass(frozen=True, slots=True)
class Check:
    """What a worker says of one thing on its own machine; ``next`` is the command that mends it."""

    name: str = has(text(64))
    verdict: str = has(one_of("passed", "warning", "failed"))
    detail: str = has(_LINE, "")
    next: str = has(text(512), "")


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a machine is; changes rarely. Sizes in bytes, rates in bytes/s."""

    cpu: str = has(_LINE, "")
    architecture: str = has(_WORD, "")
    cores: int = has(whole(0, 100_000), 0)  # physical, of those that this process may use
    threads: int = has(whole(0, 100_000), 0)
    cpu_flags: tuple[str, ...] = has(listed(text(32), 256), ())
    memory: int = has(_BYTES, 0)
    memory_limit: int = has(_BYTES, 0)  # of the daemon's control group; 0: none
    swap: int = has(_BYTES, 0)
    memory_bandwidth: float = has(_RATE, 0.0)  # measured with all threads that inference uses
    memory_bandwidth_one: float = has(_RATE, 0.0)  # measured with one thread
    measured_at: float = has(_SECONDS, 0.0)  # unix time
    measured_beside: float = has(_SHARE, 0.0)  # of the processors, in other use at that time
    gpus: tuple[Gpu, ...] = has(listed(record(Gpu), DEVICES_MAX), ())
    gpu_problem: str = has(_LINE, "")  # why GPUs cannot be read, where a driver is there
    nics: tuple[Nic, ...] = has(listed(record(Nic), DEVICES_MAX), ())
    system: str = has(_LINE, "")
    checks: tuple[Check, ...] = has(listed(record(Check), 2 * DEVICES_MAX), ())


@dataclass(frozen=True, slots=True)
class GpuLoad:
    """What one accelerator does now; None where it does not say."""

    index: int = has(whole(0, 1023))
    vram_used: int = has(_BYTES, 0)
    utilisation: float | None = has(maybe(_SHARE), None)
    temperature: float | None = has(maybe(real(-100.0, 1000.0)), None)  # degrees Celsius
    power: float | None = has(maybe(real(0.0, 100_000.0)), None)  # W
    ecc_errors: int | None = has(maybe(_BYTES), None)  # uncorrected, since the driver was loaded
    problem: str = has(_LINE, "")


@dataclass(frozen=True, slots=True)
class Load:
    """What a machine does now. Sizes in bytes, rates in bytes/s."""

    cpu: float = has(_SHARE, 0.0)
    load_1m: float = has(real(0.0, 1e6), 0.0)
    memory_available: int = has(_BYTES, 0)
    swap_used: int = has(_BYTES, 0)
    disk_free: int = has(_BYTES, 0)  # where models are stored
    disk_read: float = has(_RATE, 0.0)
    disk_written: float = has(_RATE, 0.0)
    net_received: float = has(_RATE, 0.0)
    net_sent: float = has(_RATE, 0.0)
    gpus: tuple[GpuLoad, ...] = has(listed(record(GpuLoad), DEVICES_MAX), ())


# --- inventory ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelState:
    """One model of a worker. Sizes in bytes, speeds in tokens/s, 0 where unknown."""

    name: str = has(_MODEL)
    sha256: str = has(_SHA, "")  # of the GGUF; "" for an external engine's model without a digest
    family: str = has(_LINE, "")
    quant: str = has(_WORD, "")
    size: int = has(_BYTES, 0)
    arch: str = has(_WORD, "")
    params: int = has(_BYTES, 0)
    context_train: int = has(_BYTES, 0)
    context: int = has(_BYTES, 0)  # of one request, as it is or would be loaded
    tokenizer_sha: str = has(_SHA, "")
    template_sha: str = has(_SHA, "")
    kinds: tuple[str, ...] = has(listed(one_of(*KINDS), len(KINDS)), ())
    engine: str = has(one_of("llama", "ollama", "openai"), "llama")
    engine_build: str = has(_LINE, "")
    state: str = has(one_of("stored", "loading", "resident", "failed", "external"), "stored")
    progress: float = has(_SHARE, 0.0)  # of a load
    problem: str = has(text(MESSAGE_MAX), "")  # why it failed, or cannot be loaded here
    memory_needed: int = has(_BYTES, 0)
    memory_used: int = has(_BYTES, 0)
    tps_predicted: float = has(real(0.0, 1e9), 0.0)
    tps_measured: float = has(real(0.0, 1e9), 0.0)
    prefill_tps: float = has(real(0.0, 1e9), 0.0)
    load_s: float = has(_SECONDS, 0.0)  # predicted, or as it was the last time
    isolation: str = has(_ISOLATION, "")
    pinned: bool = has(flag, False)
    ttl_s: float = has(_SECONDS, 0.0)
    slots: int = has(whole(0, 100_000), 0)
    running: int = has(whole(0, 1_000_000), 0)
    queued: int = has(whole(0, 1_000_000), 0)
    last_used: float = has(_SECONDS, 0.0)  # unix time
    groups: tuple[str, ...] = has(listed(_LINE, 64), ())


@dataclass(frozen=True, slots=True)
class RuntimeState:
    """An engine of a worker: its own llama.cpp, or a server that was found beside it."""

    name: str = has(_LINE)
    engine: str = has(one_of("llama", "ollama", "openai"))
    url: str = has(text(512), "")
    build: str = has(_LINE, "")
    state: str = has(one_of("up", "down", "missing"), "up")
    problem: str = has(text(MESSAGE_MAX), "")
    isolation: str = has(_ISOLATION, "")
    models: int = has(whole(0, 1_000_000), 0)


@dataclass(frozen=True, slots=True)
class Report:
    """A worker's state, at least every two seconds. Parts that are None have not changed since the last.

    With ``full`` the models listed are all there are; otherwise they are those that changed and ``gone``
    names those that went. ``seq`` grows by one with each report of a stream.
    """

    worker: str = has(_NODE)
    seq: int = has(whole())
    full: bool = has(flag, False)
    load: Load = has(record(Load), Load())
    hardware: Hardware | None = has(maybe(record(Hardware)), None)
    models: tuple[ModelState, ...] = has(listed(record(ModelState), MODELS_MAX), ())
    gone: tuple[str, ...] = has(listed(_MODEL, MODELS_MAX), ())
    runtimes: tuple[RuntimeState, ...] | None = has(maybe(listed(record(RuntimeState), 256)), None)
    draining: bool = has(flag, False)
    jobs_running: int = has(whole(0, 1_000_000), 0)
    jobs_queued: int = has(whole(0, 1_000_000), 0)
    slots: int = has(whole(0, 1_000_000), 0)
    version: str = has(_LINE, "")  # of the daemon
    at: float = has(_SECONDS, 0.0)  # the daemon's clock, unix time; for display only, clocks differ


@dataclass(frozen=True, slots=True)
class Offer:
    """What one pool lets another use: each model as if all its workers that have it were one.

    ``jobs``: requests for them are taken. It says nothing of single workers but how many there are.
    """

    seq: int = has(whole())
    jobs: bool = has(flag, False)
    models: tuple[ModelState, ...] = has(listed(record(ModelState), MODELS_MAX), ())
    workers: int = has(whole(0, 1_000_000), 0)
    jobs_running: int = has(whole(0, 1_000_000), 0)
    jobs_queued: int = has(whole(0, 1_000_000), 0)
    slots: int = has(whole(0, 1_000_000), 0)
    draining: bool = has(flag, False)
    price_input: str = has(_AMOUNT, "0")  # for a million tokens, in ``currency``
    price_output: str = has(_AMOUNT, "0")
    currency: str = has(text(8, r"[A-Z]{0,8}"), "")


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load or an upload is; ``share`` of 1."""

    model: str = has(_MODEL)
    state: str = has(text(32, r"[a-z-]*"))
    share: float = has(_SHARE, 0.0)
    eta_s: float | None = has(maybe(_SECONDS), None)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an order was not carried out."""

    code: str = has(text(64, r"[a-z][a-z0-9_-]*"))
    message: str = has(text(MESSAGE_MAX))
    hint: str = has(text(MESSAGE_MAX), "")


@dataclass(frozen=True, slots=True)
class Ask:
    """An order to a daemon, answered by the `Answer` of the same number."""

    id: int = has(whole())
    verb: str = has(one_of(*VERBS))
    args: Mapping[str, Any] = has(json_value(depth=8, nodes=10_000))


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of an `Ask`: a result, or a fault."""

    id: int = has(whole())
    ok: bool = has(flag)
    result: Any = has(json_value(), None)
    problem: Fault | None = has(maybe(record(Fault)), None)


# --- jobs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; None leaves the engine's default. ``seed`` None: a random one."""

    max_tokens: int | None = has(maybe(whole()), None)
    temperature: float | None = has(maybe(real(0.0, 100.0)), None)
    top_p: float | None = has(maybe(real(0.0, 1.0)), None)
    top_k: int | None = has(maybe(whole(0, 1_000_000)), None)
    min_p: float | None = has(maybe(real(0.0, 1.0)), None)
    seed: int | None = has(maybe(whole(-(1 << 63))), None)
    stop: tuple[str, ...] = has(listed(text(1024), STOPS_MAX), ())
    presence_penalty: float | None = has(maybe(real(-10.0, 10.0)), None)
    frequency_penalty: float | None = has(maybe(real(-10.0, 10.0)), None)
    repeat_penalty: float | None = has(maybe(real(0.0, 100.0)), None)
    logit_bias: tuple[tuple[int, float], ...] = has(
        listed(pair(whole(0, 0x7FFFFFFF), real(-1000.0, 1000.0)), BIAS_MAX), ()
    )
    logprobs: int | None = has(maybe(whole(0, 100)), None)  # how many alternatives beside the chosen one


@dataclass(frozen=True, slots=True)
class JobStart:
    """One attempt of one request. Of ``messages``, ``prompt`` and ``inputs`` the one of its kind is set.

    ``model`` is a SHA-256 or a name; ``response_format`` is None, "json" or a JSON schema's text; ``emitted``
    are ids that the client has already (they are replayed, and never sent again); ``body`` is the client's
    own JSON object, for engines that take it as it is.
    """

    job: str = has(_JOB)
    model: str = has(_MODEL)
    kind: str = has(one_of(*KINDS))
    app: str = has(text(128), "")
    messages: tuple[Mapping[str, Any], ...] | None = has(maybe(listed(json_value(), 10_000)), None)
    prompt: str | tuple[int, ...] | None = has(maybe(either(text(TEXT_MAX), token_ids(TOKENS_MAX))), None)
    inputs: tuple[str, ...] | None = has(maybe(listed(text(TEXT_MAX), TEXTS_MAX)), None)
    tools: tuple[Mapping[str, Any], ...] | None = has(maybe(listed(json_value(), 512)), None)
    tool_choice: str | Mapping[str, Any] | None = has(json_value(depth=8, nodes=1000), None)
    sampling: Sampling = has(record(Sampling), Sampling())
    response_format: str | None = has(maybe(text(1 << 20)), None)
    emitted: tuple[int, ...] = has(token_ids(TOKENS_MAX), ())
    isolation: str = has(one_of("shared", "dedicated"), "shared")
    reuse: bool = has(flag, False)
    deadline_s: float | None = has(maybe(real(0.0, JOB_SECONDS_MAX)), None)  # from now
    stream: bool = has(flag, True)
    body: Mapping[str, Any] | None = has(maybe(json_value()), None)


@dataclass(frozen=True, slots=True)
class JobAccepted:
    """The daemon takes the job; ``queue`` jobs are before it, ``state`` is the model's.

    Another pool says it once more when it has placed the job: ``node`` is its worker.
    """

    job: str = has(_JOB)
    queue: int = has(whole(0, 1_000_000), 0)
    state: str = has(text(32, r"[a-z-]*"), "")
    node: str = has(_LINE, "")


@dataclass(frozen=True, slots=True)
class JobRefused:
    """The daemon does not take the job: nothing was done."""

    job: str = has(_JOB)
    code: str = has(text(64, r"[a-z][a-z0-9_-]*"))
    message: str = has(text(MESSAGE_MAX))
    retry_after_s: float | None = has(maybe(_SECONDS), None)
    hint: str = has(text(MESSAGE_MAX), "")


@dataclass(frozen=True, slots=True)
class JobProgress:
    """The job waits for its model."""

    job: str = has(_JOB)
    state: str = has(text(32, r"[a-z-]*"))
    share: float = has(_SHARE, 0.0)
    eta_s: float | None = has(maybe(_SECONDS), None)


@dataclass(frozen=True, slots=True)
class JobTokens:
    """New tokens and the text they add (text may lag behind ids while a character is incomplete).

    ``delta`` is an external engine's own OpenAI delta where it is more than text.
    """

    job: str = has(_JOB)
    ids: tuple[int, ...] = has(token_ids(65_536), ())
    text: str = has(text(1 << 20), "")
    logprobs: tuple[Any, ...] | None = has(maybe(listed(json_value(depth=6, nodes=10_000), 65_536)), None)
    delta: Mapping[str, Any] | None = has(maybe(json_value()), None)


@dataclass(frozen=True, slots=True)
class JobVectors:
    """Embeddings as little-endian 32-bit floats, from input number ``first`` on."""

    job: str = has(_JOB)
    vectors: tuple[bytes, ...] = has(listed(raw(VECTOR_MAX), TEXTS_MAX))
    first: int = has(whole(0, TEXTS_MAX), 0)


@dataclass(frozen=True, slots=True)
class JobUsage:
    """Tokens: ``cached_tokens`` of the prompt were not evaluated anew, ``evaluated_tokens`` were."""

    prompt_tokens: int = has(_BYTES, 0)
    completion_tokens: int = has(_BYTES, 0)
    cached_tokens: int = has(_BYTES, 0)
    evaluated_tokens: int = has(_BYTES, 0)


@dataclass(frozen=True, slots=True)
class JobTiming:
    """Where the time of a job went, in seconds."""

    queue_s: float = has(_SECONDS, 0.0)
    load_s: float = has(_SECONDS, 0.0)
    prefill_s: float = has(_SECONDS, 0.0)
    decode_s: float = has(_SECONDS, 0.0)


@dataclass(frozen=True, slots=True)
class JobDone:
    """The job's clean end."""

    job: str = has(_JOB)
    finish_reason: str = has(text(32, r"[a-z_-]+"))
    usage: JobUsage = has(record(JobUsage), JobUsage())
    timing: JobTiming = has(record(JobTiming), JobTiming())
    version: str = has(_LINE, "")  # SHA-256 or the external engine's model id


@dataclass(frozen=True, slots=True)
class JobFailed:
    """The job's end without a result; ``blame`` says whether another worker may do better."""

    job: str = has(_JOB)
    code: str = has(text(64, r"[a-z][a-z0-9_-]*"))
    message: str = has(text(MESSAGE_MAX))
    retriable: bool = has(flag, False)
    blame: str = has(one_of("request", "node", "provider", "network"), "node")
    retry_after_s: float | None = has(maybe(_SECONDS), None)


@dataclass(frozen=True, slots=True)
class JobResult:
    """A job is over: what the asking pool's gate had sealed for it, and the executing pool's receipt."""

    job: str = has(_JOB)
    docket: bytes = has(raw(DOCKET_MAX))
    receipt: str = has(text(RECEIPT_MAX))


@dataclass(frozen=True, slots=True)
class JobRecorded:
    """The asking pool has it: the result need not be kept."""

    job: str = has(_JOB)


JobMessage = JobAccepted | JobRefused | JobProgress | JobTokens | JobVectors | JobDone | JobFailed
Message = Report | Offer | LoadProgress | Ask | Answer | JobStart | JobMessage | JobResult | JobRecorded

TYPES: Final[Mapping[str, type]] = {
    "report": Report,
    "offer": Offer,
    "load-progress": LoadProgress,
    "ask": Ask,
    "answer": Answer,
    "job-start": JobStart,
    "job-accepted": JobAccepted,
    "job-refused": JobRefused,
    "job-progress": JobProgress,
    "job-tokens": JobTokens,
    "job-vectors": JobVectors,
    "job-done": JobDone,
    "job-failed": JobFailed,
    "job-result": JobResult,
    "job-recorded": JobRecorded,
}

_VOCABULARY: Final = Vocabulary[Message](
    TYPES,
    frame_max=FRAME_MAX,
    bounds=Bounds(text=FRAME_MAX, raw=VECTOR_MAX, items=TOKENS_MAX, keys=65_536),
    what="a message",
)
encode = _VOCABULARY.encode
decode = _VOCABULARY.decode


class Decoder(MessageDecoder[Message]):
    """Cuts a stream's bytes into messages; holds at most one incomplete frame.

    ``frame_max`` may be lower than the protocol's bound, where no long message is due.
    """

    __slots__ = ()

    def __init__(self, frame_max: int = FRAME_MAX) -> None:
        super().__init__(_VOCABULARY, frame_max)
