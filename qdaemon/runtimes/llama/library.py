"""llama.cpp as the child sees it: a model, a context of several sequences, tokens.

llama.cpp aborts the process on an index out of range or an oversized batch, so nothing reaches it that was
not compared with its limits first.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import llama_cpp
import numpy as np
import numpy.typing as npt

from qdaemon.runtimes.llama.job import LoadFailed

_ATTR_UNKNOWN: Final = 1 << 0
_ATTR_CONTROL: Final = 1 << 3
_ATTR_LSTRIP: Final = 1 << 7
_ATTR_RSTRIP: Final = 1 << 8
_LOG_ERROR: Final = 4
_LOG_KEPT: Final = 8
"""Lines of llama.cpp's log that are kept while a model loads: they say why it failed."""

Row = npt.NDArray[np.float32]

_get_logits: Any = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)(
    ("llama_get_logits_ith", llama_cpp.llama_cpp._lib)
)
_get_embeddings: Any = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)(
    ("llama_get_embeddings_ith", llama_cpp.llama_cpp._lib)
)
_get_pooled: Any = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)(
    ("llama_get_embeddings_seq", llama_cpp.llama_cpp._lib)
)


@dataclass(frozen=True, slots=True)
class ControlToken:
    """A token that only a template may make: its text, and which white space beside it is dropped."""

    id: int
    text: str
    lstrip: bool
    rstrip: bool


class Log:
    """The last errors that llama.cpp logged; everything else it says is dropped."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._callback = llama_cpp.llama_log_callback(self._line)
        llama_cpp.llama_log_set(self._callback, None)

    def _line(self, level: int, text: bytes, user: Any) -> None:
        del user
        if level == _LOG_ERROR and text:
            self.lines = [*self.lines[1 - _LOG_KEPT :], text.decode("utf-8", "replace").strip()]

    def close(self) -> None:
        """From now on llama.cpp logs to stderr, which goes nowhere: its lines may hold a client's words."""
        none: Any = None
        llama_cpp.llama_log_set(ctypes.cast(none, llama_cpp.llama_log_callback), None)


class Model:
    """Weights and vocabulary. LoadFailed with what llama.cpp said where the file is not a model."""

    def __init__(
        self,
        path: str,
        *,
        gpu_layers: int = 0,
        on_progress: Callable[[float], None] | None = None,
        vocabulary_only: bool = False,
    ) -> None:
        log = Log()
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.vocab_only = vocabulary_only

        def report(share: float, user: Any) -> bool:
            del user
            if on_progress is not None:
                on_progress(share)
            return True

        callback = llama_cpp.llama_progress_callback(report)
        params.progress_callback = callback
        self.pointer = llama_cpp.llama_model_load_from_file(path.encode(), params)
        self.log = log
        if not self.pointer:
            raise load_failure(log)
        self.vocab = llama_cpp.llama_model_get_vocab(self.pointer)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.n_embd: int = llama_cpp.llama_model_n_embd(self.pointer)
        self.n_ctx_train: int = llama_cpp.llama_model_n_ctx_train(self.pointer)
        self.bos: int = llama_cpp.llama_vocab_bos(self.vocab)
        self.eos: int = llama_cpp.llama_vocab_eos(self.vocab)
        self.add_bos = bool(llama_cpp.llama_vocab_get_add_bos(self.vocab)) and self.bos >= 0
        self.causal = bool(llama_cpp.llama_model_has_decoder(self.pointer))
        self.encoder = bool(llama_cpp.llama_model_has_encoder(self.pointer))
        self.sliding = int(llama_cpp.llama_model_n_swa(self.pointer)) > 0
        self.recurrent = bool(
            llama_cpp.llama_model_is_recurrent(self.pointer) or llama_cpp.llama_model_is_hybrid(self.pointer)
        )
        self._pieces: dict[int, bytes] = {}
        self._scratch = ctypes.create_string_buffer(1024)

    def cache_bytes(self, tokens: int) -> int:
        """About how much a KV cache of ``tokens`` tokens takes, in 16 bits; 0 for a model without one."""
        if self.recurrent:
            return 0
        heads = max(llama_cpp.llama_model_n_head(self.pointer), 1)
        width = self.n_embd // heads * llama_cpp.llama_model_n_head_kv(self.pointer)
        return int(tokens * llama_cpp.llama_model_n_layer(self.pointer) * width * 2 * 2)

    def control_tokens(self) -> list[ControlToken]:
        """Every control and unknown token with a text, in the order of their ids."""
        found = []
        attr_of, text_of, vocab = llama_cpp.llama_vocab_get_attr, llama_cpp.llama_vocab_get_text, self.vocab
        for token in range(self.n_vocab):
            attr = attr_of(vocab, token)
            if not attr & (_ATTR_CONTROL | _ATTR_UNKNOWN):
                continue
            text = (text_of(vocab, token) or b"").decode("utf-8", "replace")
            if text:
                found.append(ControlToken(token, text, bool(attr & _ATTR_LSTRIP), bool(attr & _ATTR_RSTRIP)))
        return found

    def text_of(self, token: int) -> str:
        """The text by which the vocabulary lists ``token``; empty for a token that there is not."""
        if not 0 <= token < self.n_vocab:
            return ""
        return (llama_cpp.llama_vocab_get_text(self.vocab, token) or b"").decode("utf-8", "replace")

    def template(self) -> str:
        """The chat template of the file; empty where it has none."""
        found = llama_cpp.llama_model_chat_template(self.pointer, None)
        return found.decode("utf-8", "replace") if found else ""

    def pooling(self) -> int:
        """The pooling that the file asks for; -1 where it says nothing."""
        architecture = self._meta(b"general.architecture")
        value = self._meta(architecture.encode() + b".pooling_type")
        return int(value) if value.isdigit() else -1

    def _meta(self, key: bytes) -> str:
        buffer = ctypes.create_string_buffer(256)
        size = llama_cpp.llama_model_meta_val_str(self.pointer, key, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if size >= 0 else ""

    def tokenize(self, text: str, *, special: bool = False, add_special: bool = False) -> list[int]:
        """Ids of ``text``. Only with ``special`` do control tokens in it mean themselves."""
        data = text.encode("utf-8", "surrogatepass")
        size = len(data) + 16
        ids = (ctypes.c_int32 * size)()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, size, add_special, special)
        if count < 0:
            size = -count
            ids = (ctypes.c_int32 * size)()
            count = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, size, add_special, special)
        found = ids[: max(count, 0)]
        ctypes.memset(ids, 0, ctypes.sizeof(ids))
        return found

    def piece(self, token: int) -> bytes:
        """Bytes that ``token`` stands for; empty for a control token."""
        found = self._pieces.get(token)
        if found is None:
            size = llama_cpp.llama_token_to_piece(
                self.vocab, token, self._scratch, len(self._scratch), 0, False
            )
            if size < 0:
                self._scratch = ctypes.create_string_buffer(-size)
                size = llama_cpp.llama_token_to_piece(self.vocab, token, self._scratch, -size, 0, False)
            found = self._pieces[token] = self._scratch.raw[: max(size, 0)]
        return found

    def ends(self, token: int) -> bool:
        """Whether ``token`` ends an answer."""
        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token))


class Context:
    """KV cache and compute buffers for ``slots`` sequences of ``size`` tokens each.

    LoadFailed ("out_of_memory") where they do not fit.
    """

    def __init__(
        self,
        model: Model,
        *,
        size: int,
        slots: int,
        threads: int,
        batch: int,
        embeddings: bool = False,
        pooling: int | None = None,
    ) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = size * slots
        params.n_seq_max = slots
        params.kv_unified = False
        params.n_batch = params.n_ubatch = max(batch, slots)
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        params.embeddings = embeddings
        if pooling is not None:
            params.pooling_type = pooling
        self.model = model
        self.slots = slots
        self.limit = max(batch, slots)
        self.pointer = llama_cpp.llama_init_from_model(model.pointer, params)
        if not self.pointer:
            raise LoadFailed(
                "out_of_memory",
                f"no memory for a context of {slots} × {size} tokens",
                hint="load it with fewer slots or a smaller context",
            )
        self.memory = llama_cpp.llama_get_memory(self.pointer)
        self.size: int = llama_cpp.llama_n_ctx_seq(self.pointer)
        self._batch = llama_cpp.llama_batch_init(self.limit, 0, 1)
        for index in range(self.limit):
            self._batch.n_seq_id[index] = 1
        self._rows: dict[int, Row] = {}

    def decode(self, tokens: Sequence[tuple[int, int, int, bool]]) -> int:
        """Evaluate ``tokens``, each (id, position, sequence, whether its logits are wanted).

        Returns llama.cpp's code: 0 is well, 1 says that a sequence is full, others are failures.
        """
        count = len(tokens)
        if not 0 < count <= self.limit:
            raise ValueError(f"a batch of {count} tokens, where 1 to {self.limit} fit")
        batch, n_vocab, slots, size = self._batch, self.model.n_vocab, self.slots, self.size
        ids, positions, sequences, wanted = batch.token, batch.pos, batch.seq_id, batch.logits
        for index, (token, position, sequence, output) in enumerate(tokens):
            if not (0 <= token < n_vocab and 0 <= position < size and 0 <= sequence < slots):
                raise ValueError("a token, position or sequence out of range")
            ids[index] = token
            positions[index] = position
            sequences[index][0] = sequence
            wanted[index] = output
        batch.n_tokens = count
        code: int = llama_cpp.llama_decode(self.pointer, batch)
        return code

    def logits(self, index: int) -> Row:
        """Logits after the batch's token at ``index``; llama.cpp's own memory, true until the next decode."""
        return self._row(_get_logits(self.pointer, index), self.model.n_vocab)

    def embedding(self, index: int) -> Row:
        """Embedding of the batch's token at ``index``; true until the next decode."""
        return self._row(_get_embeddings(self.pointer, index), self.model.n_embd)

    def pooled(self, sequence: int) -> Row:
        """Embedding of a whole sequence, where the context pools; true until the next decode."""
        return self._row(_get_pooled(self.pointer, sequence), self.model.n_embd)

    def _row(self, address: int | None, size: int) -> Row:
        if not address:
            raise ValueError("llama.cpp has no output there")
        row = self._rows.get(address)
        if row is None:
            if len(self._rows) > 256:
                self._rows.clear()
            row = np.ctypeslib.as_array((ctypes.c_float * size).from_address(address))
            self._rows[address] = row
        return row

    def remove(self, sequence: int, start: int = 0) -> None:
        """Forget positions from ``start`` on; their bytes stay until overwritten."""
        llama_cpp.llama_memory_seq_rm(self.memory, sequence, start, -1)

    def clear(self) -> None:
        """Forget every sequence and overwrite all their bytes."""
        llama_cpp.llama_memory_clear(self.memory, True)

    def positions(self, sequence: int) -> int:
        """How many positions ``sequence`` holds."""
        return int(llama_cpp.llama_memory_seq_pos_max(self.memory, sequence)) + 1

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self.pointer)


def load_failure(log: Log) -> LoadFailed:
    """What llama.cpp's last words mean."""
    said = "; ".join(log.lines)[:500] or "llama.cpp did not say why"
    lowered = said.lower()
    if "alloc" in lowered or "out of memory" in lowered:
        return LoadFailed(
            "out_of_memory", f"the model does not fit: {said}", hint="choose a smaller quantisation"
        )
    return LoadFailed(
        "model_corrupt", f"not a model that llama.cpp can run: {said}", hint="download the file again"
    )


def build(gpu_layers: int) -> str:
    """What decides how sums are rounded, as gates compare it.

    The library's version, the kernels that it chose on this machine (a digest), layers on a GPU.
    """
    kernels = hashlib.sha256(f"{platform.machine()} {features()}".encode()).hexdigest()[:8]
    gpu = f", gpu {gpu_layers}" if gpu_layers else ""
    return f"llama-cpp-python {llama_cpp.__version__}, kernels {kernels}{gpu}"


def features() -> str:
    """What instruction sets and kernels the library was built with and found here."""
    info: bytes = llama_cpp.llama_print_system_info()
    return info.decode("utf-8", "replace")
