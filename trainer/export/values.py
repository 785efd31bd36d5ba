"""Tensors as gguf's writer takes them: what the disk refuses of one is an error."""

from __future__ import annotations

from typing import IO, Any

import numpy as np


class Values(np.ndarray):
    """An array whose `tofile` raises whenever not all of it was written.

    numpy's writes through a buffer of C's, and what is refused only when that buffer is emptied at the end (the last
    4096 bytes and every tensor that is smaller) is lost without an error.
    """

    def tofile(self, fid: IO[bytes], sep: str = "", format: str = "%s") -> None:
        """Writes the bytes in C order at the file's position.

        Raises:
            OSError: the disk refused.
        """
        fid.write(np.ascontiguousarray(self).data)


def as_values(array: Any) -> Values:
    """[...] of any dtype, in C order -> the same memory."""
    return np.ascontiguousarray(array).view(Values)
