"""SHA256SUMS as other files of that name are, too: somebody else's, a folder, a pipe."""

from __future__ import annotations

import os
import subprocess

from lora_train.trainer.saved.sums import ADAPTER, OPTIMIZER, STATE, SUMS, write_sums, wrong_sum


def test_what_is_in_the_place_of_the_list_is_said(tmp_path):
    (tmp_path / STATE).write_text("{}")
    (tmp_path / SUMS).mkdir()
    assert wrong_sum(tmp_path).startswith(f"{SUMS} cannot be read: ")
    (tmp_path / SUMS).rmdir()
    os.mkfifo(tmp_path / SUMS)
    assert wrong_sum(tmp_path).startswith(f"{SUMS} cannot be read: ")


def test_a_list_that_somebody_made_of_an_adapter_is_no_damage(tmp_path):
    (tmp_path / ADAPTER).write_bytes(b"weights")
    subprocess.run(f"sha256sum {ADAPTER} > {SUMS}", shell=True, cwd=tmp_path, check=True)
    assert wrong_sum(tmp_path) == ""


def test_a_list_of_a_checkpoint_that_lacks_a_file_is(tmp_path):
    for name in (ADAPTER, OPTIMIZER, STATE):
        (tmp_path / name).write_bytes(name.encode())
    write_sums(tmp_path)
    assert wrong_sum(tmp_path) == ""
    lines = (tmp_path / SUMS).read_text().splitlines(keepends=True)
    (tmp_path / SUMS).write_text("".join(lines[1:]))
    assert wrong_sum(tmp_path) == f"{SUMS} is not as it was written: its SHA-256 is another"
