"""llama.cpp through llama-cpp-python's bindings: the logits of a few tokens, and how it cuts text."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np


class Engine:
    """One model file, with an adapter file or without, on one thread, float32 keys and values."""

    def __init__(self, model: Path, adapter: Path | None = None):
        import llama_cpp.llama_cpp as api  # pyright: ignore[reportMissingImports]

        self.api: Any = api
        self._quiet = api.llama_log_callback(lambda *_: None)
        api.llama_log_set(self._quiet, ctypes.c_void_p(0))
        api.llama_backend_init()
        self.model = api.llama_model_load_from_file(str(model).encode(), api.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"error: llama.cpp does not load {model}")
        settings = api.llama_context_default_params()
        settings.n_ctx = settings.n_batch = 256
        settings.n_threads = settings.n_threads_batch = 1
        settings.type_k = settings.type_v = 0  # GGML_TYPE_F32
        settings.flash_attn_type = 0
        self.context = api.llama_init_from_model(self.model, settings)
        if adapter is not None:
            found = api.llama_adapter_lora_init(self.model, str(adapter).encode())
            if not found:
                raise SystemExit(f"error: llama.cpp does not load {adapter}")
            adapters = (api.llama_adapter_lora_p_ctypes * 1)(found)
            api.llama_set_adapters_lora(self.context, adapters, 1, (ctypes.c_float * 1)(1.0))

    @property
    def vocabulary(self) -> Any:
        return self.api.llama_model_get_vocab(self.model)

    def logits(self, ids: list[int]) -> np.ndarray:
        """[tokens, vocabulary], float32."""
        batch = self.api.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, number in enumerate(ids):
            batch.token[place], batch.pos[place] = number, place
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
        if self.api.llama_decode(self.context, batch):
            raise SystemExit("error: llama.cpp does not compute the batch")
        n = self.api.llama_vocab_n_tokens(self.vocabulary)
        rows = [self.api.llama_get_logits_ith(self.context, place) for place in range(len(ids))]
        return np.array([np.ctypeslib.as_array(row, (n,)).copy() for row in rows])

    def tokens(self, text: str) -> list[int]:
        """How it cuts a text in which special tokens are read as such."""
        room, data = (self.api.llama_token * 4096)(), text.encode()
        n = self.api.llama_tokenize(self.vocabulary, data, len(data), room, 4096, True, True)
        return list(room[:n])
