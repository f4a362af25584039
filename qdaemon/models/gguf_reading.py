"""The disposable process that reads one GGUF's metadata: `python -m qdaemon.models.gguf_reading FILE`.

Writes one JSON object to standard output: the facts, or {"problem": {...}}. It limits its own memory and
processor time before it looks at the file.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

MEMORY: Final = 3 << 30
"""Bytes beside the mapped file; the largest vocabularies in use take about 1 GiB as Python objects."""

CPU_SECONDS: Final = 110

_DAMAGED = "the file is damaged or cut short"
_COPY = "copy it again, whole, and compare its SHA-256 with the publisher's"


def main(path: Path) -> int:
    size = path.stat().st_size
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer = describe(path, size)
    except MemoryError:
        answer = _problem("model_corrupt", "its metadata needs more memory than any sound file's", _COPY)
    except EOFError:
        answer = _problem("model_corrupt", "the file is cut short", _COPY)
    except RecursionError:
        answer = _problem("model_corrupt", "its metadata is nested without end", _COPY)
    except Exception as error:
        answer = _problem("model_corrupt", f"{_DAMAGED} ({type(error).__name__})", _COPY)
    sys.stdout.write(json.dumps(answer))
    return 0


def _problem(code: str, message: str, hint: str) -> dict[str, Any]:
    return {"problem": {"code": code, "message": message, "hint": hint}}


def describe(path: Path, size: int) -> dict[str, Any]:
    """The facts of a file as a JSON object."""
    from gguf import GGUFReader

    class Bounded(GGUFReader):
        """Stops at the file's end, where the package would go on with nothing for as many as are claimed."""

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            found = super()._get(offset, dtype, count, override_order)
            if len(found) < count:
                raise EOFError
            return found

    reader = Bounded(str(path))
    fields = reader.fields

    def value(key: str, otherwise: Any) -> Any:
        found = fields.get(key)
        return otherwise if found is None else found.contents()

    arch = value("general.architecture", "")
    if not isinstance(arch, str) or not arch:
        return _problem("model_corrupt", "it does not say its architecture", _COPY)
    if int(value("split.count", 1)) > 1:
        return _problem(
            "model_unsupported",
            "this is one part of a model that was split into several files",
            "join them first: llama-gguf-split --merge FIRST_PART OUT.gguf",
        )

    def number(key: str, otherwise: int = 0) -> int:
        found = value(f"{arch}.{key}", otherwise)
        return int(max(found, default=0)) if isinstance(found, list) else int(found)

    layers = number("block_count")
    heads = number("attention.head_count")
    embedding = number("embedding_length")
    per_layer = value(f"{arch}.attention.head_count_kv", heads)
    kv_heads = sum(map(int, per_layer)) if isinstance(per_layer, list) else int(per_layer) * layers
    head_length = embedding // heads if heads else 0
    experts, used = number("expert_count"), number("expert_used_count")

    types: Counter[str] = Counter()
    read_bytes: Counter[str] = Counter()
    read_elements: Counter[str] = Counter()
    by_layer: Counter[str] = Counter()
    params = 0
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    tied = "output.weight" not in tensors
    for name, tensor in tensors.items():
        kind = tensor.tensor_type.name
        count, length = int(tensor.n_elements), int(tensor.n_bytes)
        if int(tensor.data_offset) + length > size:
            return _problem("model_corrupt", "the file is cut short", _COPY)
        params += count
        types[kind] += length
        share = used / experts if experts and used and "_exps" in name else 1.0
        if name != "token_embd.weight" or tied:
            read_bytes[kind] += int(length * share)
            read_elements[kind] += int(count * share)
        if name.startswith("blk."):
            by_layer[name.split(".", 2)[1]] += length
    template = str(value("tokenizer.chat_template", ""))
    basename, size_label = str(value("general.basename", "")), str(value("general.size_label", ""))
    name = str(value("general.name", "")) or path.stem
    family = "-".join(part for part in (basename or name, size_label if basename else "") if part)
    return {
        "arch": arch[:64],
        "name": name[:200],
        "family": family.replace(" ", "-").lower()[:200],
        "quant": _quant(value("general.file_type", None), types),
        "params": params,
        "context_train": number("context_length"),
        "layers": layers,
        "embedding": embedding,
        "heads": heads,
        "kv_heads": kv_heads,
        "key_length": number("attention.key_length", head_length),
        "value_length": number("attention.value_length", head_length),
        "sliding_window": number("attention.sliding_window"),
        "vocabulary": number("vocab_size") or len(value("tokenizer.ggml.tokens", ())),
        "experts": experts,
        "experts_used": used,
        "weights": sum(types.values()),
        "largest_layer": max(by_layer.values(), default=0),
        "types": dict(types),
        "read_bytes": dict(read_bytes),
        "read_elements": dict(read_elements),
        "tokenizer_sha": _hash(fields, "tokenizer.ggml."),
        "template_sha": hashlib.sha256(template.encode()).hexdigest() if template else "",
        "encoder": f"{arch}.pooling_type" in fields or "bert" in arch,
    }


def _quant(file_type: int | None, types: Counter[str]) -> str:
    """The file's name for its mixture of types ("Q4_K_M"); the commonest type where it gives none."""
    from gguf import LlamaFileType

    try:
        if file_type is not None and file_type < 1024:
            return LlamaFileType(file_type).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        pass
    return types.most_common(1)[0][0] if types else ""


def _hash(fields: Any, prefix: str) -> str:
    """SHA-256 over all fields under a prefix, whatever their order in the file."""
    digest = hashlib.sha256()
    names: Iterable[str] = sorted(name for name in fields if name.startswith(prefix))
    for name in names:
        digest.update(name.encode() + b"\0")
        for part in fields[name].parts:
            digest.update(part.tobytes())
    return digest.hexdigest() if names else ""


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
