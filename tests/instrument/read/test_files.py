"""What is no regular file: pipes with and without a writer, devices, links; and writing whole."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from lora_train.instrument.read import files
from lora_train.instrument.read.files import read_given, read_own, write_text

MOST = 1 << 20


@pytest.fixture
def pipe(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(files, "PATIENCE_SECONDS", 0.2)
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_a_pipe_is_read_until_it_is_closed(pipe):
    def write():
        with pipe.open("w") as file:
            file.write("one ")
            file.flush()
            waiting.wait()  # longer than anybody is waited for
            file.write("two")

    waiting = threading.Event()
    writer = threading.Thread(target=write)
    writer.start()
    threading.Timer(3 * files.PATIENCE_SECONDS, waiting.set).start()
    assert read_given(pipe, MOST) == b"one two"
    writer.join()


def test_a_pipe_that_nobody_writes_into_is_given_up(pipe):
    with pytest.raises(TimeoutError, match="nobody"):
        read_given(pipe, MOST)


def test_a_pipe_that_is_closed_without_a_word_is_empty(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE_SECONDS", 60.0)
    reading, writing = os.pipe()
    os.close(writing)
    assert read_given(Path(f"/dev/fd/{reading}"), MOST) == b""
    os.close(reading)
    os.mkfifo(tmp_path / "pipe")
    threading.Timer(0.1, lambda: (tmp_path / "pipe").open("w").close()).start()
    assert read_given(tmp_path / "pipe", MOST) == b""


def test_a_device_without_end_is_named():
    with pytest.raises(OSError, match="1 MiB"):
        read_given(Path("/dev/zero"), MOST)
    assert read_given(Path("/dev/null"), MOST) == b""


def test_a_regular_file_may_be_large_and_a_folder_is_none(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 10)
    assert read_given(tmp_path / "file", 5) == b"x" * 10
    with pytest.raises(IsADirectoryError):
        read_given(tmp_path, MOST)


def test_of_a_run_folder_only_regular_files_are_read(pipe, tmp_path):
    (tmp_path / "file").write_text("a\r\nb", newline="")
    assert read_own(tmp_path / "file") == "a\nb"
    for path in (pipe, Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match=r"regular|directory"):
            read_own(path)


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(tmp_path, monkeypatch):
    write_text(tmp_path / "env.json", "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match=r"disk full.*env\.json"):  # named: it is not the terminal that is full
        write_text(tmp_path / "env.json", "new")
    assert (tmp_path / "env.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["env.json"]


def test_a_link_of_a_run_folder_is_replaced_and_what_it_points_to_is_left(pipe, tmp_path):
    (tmp_path / "file").write_text("old")
    for target in (tmp_path / "file", pipe, Path("/dev/null"), tmp_path / "gone"):
        (tmp_path / "link").symlink_to(target)
        write_text(tmp_path / "link", "new")
        assert not (tmp_path / "link").is_symlink()
        assert (tmp_path / "link").read_text() == "new"
        (tmp_path / "other.tmp").symlink_to(target)
        write_text(tmp_path / "other", "new")
        (tmp_path / "link").unlink()
    assert (tmp_path / "file").read_text() == "old"
    assert pipe.is_fifo()
    assert not (tmp_path / "gone").exists()


def test_a_pipe_and_standard_output_are_written_to(pipe, tmp_path):
    command = "import pathlib; from lora_train.instrument.read.files import write_text as w; w(pathlib.Path({!r}), 'x')"
    with (tmp_path / "out").open("w") as out:  # /dev/stdout is a link to a file here
        subprocess.run([sys.executable, "-c", command.format("/dev/stdout")], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "x"
    assert Path("/dev/stdout").is_symlink()
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "through")  # as to /dev/stdout, or /dev/null, which must stay what they are
    assert pipe.is_fifo()
    assert os.read(reading, 100) == b"through"
    os.close(reading)
