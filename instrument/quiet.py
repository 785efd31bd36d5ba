"""Notes of other libraries that no user can act on, kept out of the log: these alone, whatever else the libraries say.

    Failed to load CPU gemm_4bit_forward   bitsandbytes, when it is imported on a CPU with bf16 in AVX-512: it looked
                                           for a faster kernel for generation in a library of Hugging Face's
    MatMul8bitLt: inputs will be cast      bitsandbytes, at every product of an 8-bit weight: LLM.int8() is that

Set when `lora_train` is imported: before bitsandbytes is, and for the command as for a program with the callback.
"""

from __future__ import annotations

import logging

# the logger that writes it -> how it begins
NOTES = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast",
}


def _is_kept(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(NOTES[record.name])


def quiet_notes() -> None:
    """Drops NOTES; any number of calls does what one does."""
    for name in NOTES:
        logging.getLogger(name).addFilter(_is_kept)
