"""What the disk refuses of a tensor: no file that lacks a part is taken for a whole one."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import gguf
import numpy as np
import pytest
from lora_train.trainer.cli import main
from lora_train.trainer.export.values import as_values

from ..verbs.test_merge import make_run


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """The system refuses what is written to a file beyond so many bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write(path) -> None:
    """Tensors of one value, of less and of more than a buffer, with and without a padding behind them."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, shape in (("a", (1,)), ("b", (3, 5)), ("c", (8, 8)), ("d", (40, 64)), ("e", (16, 16))):
        writer.add_tensor(name, as_values(np.arange(np.prod(shape), dtype=np.float32).reshape(shape)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    try:
        writer.write_tensors_to_file()
    finally:
        writer.close()


def test_a_file_is_whole_or_an_error(tmp_path):
    write(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    values = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "whole").tensors}
    np.testing.assert_array_equal(values["d"], np.arange(2560, dtype=np.float32).reshape(40, 64))
    for room in [*range(0, len(whole), 487), len(whole) - 1]:
        with pytest.raises(OSError, match="File too large"), largest_file(room):
            write(tmp_path / "cut")
    with largest_file(len(whole)):
        write(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == whole


@pytest.mark.parametrize("arrangement", [np.asfortranarray, lambda array: array[:, ::2], lambda array: array[:0]])
def test_bytes_are_those_in_c_order(tmp_path, arrangement):
    array = arrangement(np.arange(24, dtype=np.float16).reshape(4, 6))
    with (tmp_path / "file").open("wb") as file:
        as_values(array).tofile(file)
    assert (tmp_path / "file").read_bytes() == array.tobytes()


@pytest.mark.parametrize("form", ["gguf-adapter", "merged-gguf"])
@pytest.mark.parametrize("missing", [1, 3000])
def test_an_export_that_does_not_fit_leaves_nothing(tmp_path, tiny_models, capsys, form, missing):
    run = make_run(tmp_path / "run", tiny_models["llama"])
    path = tmp_path / "out.gguf"
    assert main(["export", str(run), "--to", form, "-o", str(path)]) == 0
    room = path.stat().st_size - missing
    path.unlink()
    with largest_file(room):
        assert main(["export", str(run), "--to", form, "-o", str(path)]) == 2
    assert f"error: {path} cannot be written" in capsys.readouterr().err
    assert not list(tmp_path.glob("out.gguf*"))
