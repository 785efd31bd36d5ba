"""Tokenized data on disk, so that a second start does not tokenize again.

$XDG_CACHE_HOME/lora-train/tokenized/<key>.safetensors (~/.cache without it), where the key is a hash of everything
that decides the tokens. Rows lie end to end in flat arrays. The folder may be deleted at any time: a file that is
torn, foreign or gone is made again, and one that cannot be written is not missed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# To be raised whenever the same rows and settings give other tokens or masks than before.
VERSION = 4
ARRAYS = {"input_ids": np.int32, "supervised": np.bool_, "offsets": np.int64, "rows": np.int64, "dropped": np.int64}


@dataclass(frozen=True)
class Packed:
    """The tokenized rows of one source, end to end.

    Attributes:
        input_ids: int32 [tokens].
        supervised: bool [tokens].
        offsets: int64 [rows + 1]; row k is offsets[k]:offsets[k + 1].
        rows: int64 [rows], the source index of each.
        dropped: int64, source indices of the rows without a supervised token.
        truncated: number of rows cut at cutoff_len.
        format: the format that was used, detected or given.
        n_skipped: number of bad rows left out.
        skipped: what was wrong with the first of them.
        n_rows: rows of the source, those that are left out included.
        notes: (catalogue key, its values as pairs, rows) of what is to be said about rows.
    """

    input_ids: np.ndarray
    supervised: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray
    dropped: np.ndarray
    truncated: int
    format: str
    n_skipped: int = 0
    skipped: tuple[str, ...] = ()
    n_rows: int = 0
    notes: tuple[tuple[str, tuple[tuple[str, str], ...], int], ...] = ()

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: np.ascontiguousarray(getattr(self, name), dtype) for name, dtype in ARRAYS.items()}

    def facts(self) -> dict[str, Any]:
        return {
            "truncated": self.truncated,
            "format": self.format,
            "n_skipped": self.n_skipped,
            "skipped": list(self.skipped),
            "n_rows": self.n_rows,
            "notes": [[key, [list(pair) for pair in values], count] for key, values, count in self.notes],
        }


def cache_key(parts: Mapping[str, Any]) -> str:
    """32 hex digits of everything that decides the tokens; `parts` holds JSON values."""
    text = json.dumps({"version": VERSION, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def tokenizer_hash(tokenizer: Any) -> str:
    """64 hex digits of a fast tokenizer's vocabulary, rules, special tokens and chat template."""
    backend = tokenizer.backend_tokenizer
    # every call sets these again; a tokenizer must not look another for having been used
    backend.no_truncation()
    backend.no_padding()
    extras = {
        "chat_template": tokenizer.chat_template,
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "eos_token_id": tokenizer.eos_token_id,
    }
    text = backend.to_str() + json.dumps(extras, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def load_packed(key: str) -> Packed | None:
    """What was kept under a key; None if there is nothing, or nothing that can be trusted."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(_path(key), framework="np") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            arrays = {name: file.get_tensor(name) for name in ARRAYS}
        digest, facts["skipped"] = facts.pop("digest"), tuple(facts["skipped"])
        facts["notes"] = tuple((key, tuple(map(tuple, values)), count) for key, values, count in facts["notes"])
        packed = Packed(**arrays, **facts)
    except (OSError, RuntimeError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    return packed if digest == _digest(packed) else None


def save_packed(key: str, packed: Packed) -> None:
    """Keeps tokenized rows, whole or not at all; a folder that cannot be written to is no error."""
    from safetensors import SafetensorError
    from safetensors.numpy import save

    partial = None
    try:
        path = _path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{key}.{os.getpid()}.tmp")
        facts = json.dumps({**packed.facts(), "digest": _digest(packed)})
        with partial.open("wb") as file:
            file.write(save(packed.arrays(), {"facts": facts}))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError, SafetensorError):
        if partial is not None:
            with contextlib.suppress(OSError):
                partial.unlink()


def _path(key: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "lora-train" / "tokenized" / f"{key}.safetensors"


def _digest(packed: Packed) -> str:
    """Of the arrays' types and bytes and of the facts: a file that was changed in any way is not ours."""
    digest = hashlib.sha256(json.dumps(packed.facts(), sort_keys=True).encode())
    for name in ARRAYS:
        array = np.ascontiguousarray(getattr(packed, name))
        digest.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return digest.hexdigest()
