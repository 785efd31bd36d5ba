"""Files as gguf writes them, and files that are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lora_train.trainer.model.gguf_header import gguf_repository


def write_gguf(folder: Path, add: Callable[[Any], None]) -> Path:
    """A file with what `add` adds to its header, and a vocabulary."""
    from gguf import GGUFWriter

    path = folder / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_languages(["en", "ko"])
    writer.add_array("general.sizes", [1, 2, 3])
    writer.add_float32("general.scale", 0.5)
    add(writer)
    writer.add_token_list(["a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("add", "name"),
    [
        (lambda writer: writer.add_source_repo_url("https://huggingface.co/owner/model"), "owner/model"),
        (lambda writer: writer.add_repo_url("https://hf.co/owner/model-GGUF/tree/main"), "owner/model-GGUF"),
        (lambda writer: writer.add_string("general.source.huggingface.repository", "owner/model"), "owner/model"),
        (lambda writer: writer.add_base_model_repo_url(0, "https://huggingface.co/owner/model"), "owner/model"),
        (lambda writer: writer.add_repo_url("https://elsewhere.org/owner/model"), None),
        (lambda writer: writer.add_name("owner/model"), None),
    ],
)
def test_a_file_names_its_repository(tmp_path, add, name):
    assert gguf_repository(write_gguf(tmp_path, add)) == name


def test_the_nearest_source_counts(tmp_path):
    def add(writer):
        writer.add_base_model_repo_url(0, "https://huggingface.co/owner/parent")
        writer.add_source_repo_url("https://huggingface.co/owner/model")

    assert gguf_repository(write_gguf(tmp_path, add)) == "owner/model"


def test_a_file_that_is_torn_or_none_names_nothing(tmp_path):
    path = write_gguf(tmp_path, lambda writer: writer.add_source_repo_url("https://huggingface.co/owner/model"))
    whole = path.read_bytes()
    for content in (b"", b"GGUF", whole[:60], b"GGUF" + b"\xff" * 200, b"{}" * 50):
        path.write_bytes(content)
        assert gguf_repository(path) is None
    assert gguf_repository(tmp_path / "none") is None
