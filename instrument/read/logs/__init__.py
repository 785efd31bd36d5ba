"""Reads what people hold of a training run, whichever program wrote it. Imports no torch, runs and unpickles nothing.

    read_history("runs/koalpaca")                    run_folder.py: of lora-train or of InstrumentCallback
    read_history("outputs")                          state.py: the newest trainer_state.json, or a checkpoint's
    read_history("trainer_log.jsonl")                console.py: records in braces between bars; `loss=1.2` lines
    read_history("colab.txt"), ("notebook.ipynb")    table.py: a notebook's table as text, HTML, markdown
    read_history("wandb.csv")                        exports.py: W&B, TensorBoard, a column a number
    read_history("events.out.tfevents.1")            events.py: TensorBoard
    read_history("-")                                standard input
    read_history("console.log.gz")                   compressed with gzip
    read_history("part-1.log", "part-2.log")         several files of one run

Each format becomes a Log (log.py) of records under the Trainer's names (values.py); numbering.py finds steps that are
not printed, marks.py what is trained and with which program.
"""

from __future__ import annotations

import re
import shlex
import sys
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ..files import read_given, read_own, read_stream
from ..history import History, SourceError
from ..store import METRICS, SITES
from .console import read_console
from .events import PATTERN, newest_events, read_events
from .exports import read_export
from .log import Log, to_history
from .run_folder import read_run_folder
from .state import notebook_text, parse_json, read_state, read_values
from .table import read_table
from .text import clean, decode
from .values import is_known, is_step

STATE = "trainer_state.json"
FACTORY = "trainer_log.jsonl"
STANDARD_INPUT = "-"
# Of a compressed log, unpacked, and of a stream.
LARGEST = 1 << 30
# What else people give, by its content; the sentence says what to give instead.
CONFIGURATION = re.compile(
    r'"(?:peft_type|model_type|architectures|_name_or_path)"\s*:|^\s*(?:base_model|model_name_or_path|lora_r|lora_alpha|'
    r"learning_rate|per_device_train_batch_size|micro_batch_size|num_train_epochs|num_epochs)\s*:",
    re.MULTILINE,
)
DATASET = re.compile(r'"(?:instruction|messages|conversations|prompt|completion|chosen|text|question)"\s*:')


def read_history(*sources: str | Path) -> History:
    """Reads a run.

    Args:
        sources: a run folder, a folder or a file of another program, `-` for standard input; of several files, which
            are parts of one run, the later ones go on where the earlier ones end, or have numbers of the same steps.

    Raises:
        SourceError: it is no run, or holds no step; says what it seems to be and what to give instead.
    """
    if len(sources) == 1 and (folder := _run_folder(Path(sources[0]))) is not None:
        return read_run_folder(folder)
    parts = [_read(source) for source in sources]
    name = " + ".join(name for name, _, _ in parts)
    kinds = {kind for _, kind, _ in parts}
    log = parts[0][2] if len(parts) == 1 else _together(parts)
    return to_history(name, kinds.pop() if len(kinds) == 1 else "log", log)


def _run_folder(path: Path) -> Path | None:
    """The run folder that is meant: itself, its metrics.jsonl, or one of its own checkpoints, which keep no log."""
    checkpoint = path.parent if path.name == STATE else path
    if re.fullmatch(CHECKPOINT, checkpoint.name) and (checkpoint.parent / METRICS).is_file():
        try:
            own = _is_own_state(parse_json(read_own(checkpoint / STATE)))
        except (OSError, UnicodeDecodeError):
            own = False
        if own:
            return checkpoint.parent
    if path.name == METRICS and path.is_file() and any((path.parent / name).is_file() for name in OURS):
        return path.parent
    return path if path.is_dir() and any((path / name).is_file() for name in (METRICS, SITES)) else None


OURS = (SITES, "env.json", "config.yaml")
CHECKPOINT = r"checkpoint-(\d+)"


def _is_own_state(values: object) -> bool:
    """Whether a trainer_state.json is that of lora-train, which keeps its log in metrics.jsonl."""
    return isinstance(values, dict) and {"schema_version", "start", "skipped"} <= values.keys()


def _read(source: str | Path) -> tuple[str, str, Log]:
    """Name, kind and log of one source."""
    if str(source) == STANDARD_INPUT:
        return "stdin", "log", _from_bytes("stdin", _standard_input())[1]
    path = Path(source)
    if _run_folder(path) is not None:
        raise SourceError("source.run_alone", path=path)
    if path.is_dir():
        return _from_folder(path)
    if not path.exists():
        raise SourceError("source.missing", path=path)
    return (str(path), *_from_file(path))


def _from_folder(path: Path) -> tuple[str, str, Log]:
    """The state there, else that of the newest checkpoint; LLaMA-Factory's log goes further; else event files."""
    state = path / STATE if (path / STATE).is_file() else _newest_state(path)
    factory = path / FACTORY
    if state is not None and factory.is_file():
        (kind, log), (_, further) = _from_file(state), _from_file(factory)
        known = {record.get("step") for record in log.records}
        log.records += [record for record in further.records if record.get("step") not in known]
        return str(state), kind, replace(log, text=f"{log.text}\nllamafactory", bars=further.bars)
    if state is not None or factory.is_file():
        found = state or factory
        return (str(found), *_from_file(found))
    events = newest_events(path)
    if events is None:
        if below := _runs_below(path):
            raise SourceError(
                "source.runs_below", path=path, first=below[0], n=len(below), quoted=shlex.quote(str(path))
            )
        raise SourceError("source.no_run", path=path)
    return str(events), "log", read_events(events)


def _runs_below(path: Path) -> list[Path]:
    """Run folders and Trainers' folders in a folder, the newest first."""
    found = (file for name in (METRICS, STATE) for file in path.glob(f"*/{name}"))
    return [file.parent for file in sorted(found, key=lambda file: -file.stat().st_mtime)]


def _newest_state(path: Path) -> Path | None:
    found = [
        (int(match.group(1)), state)
        for state in path.glob(f"checkpoint-*/{STATE}")
        if (match := re.fullmatch(CHECKPOINT, state.parent.name)) and state.is_file()
    ]
    return max(found)[1] if found else None


def _from_file(path: Path) -> tuple[str, Log]:
    if path.match(PATTERN):
        return "log", read_events(path)
    try:
        data = read_given(path, LARGEST)
    except OSError as error:
        raise SourceError("source.unreadable", path=path, what=error.strerror) from error
    return _from_bytes(str(path).removesuffix(".gz"), _unzipped(path, data))


def _standard_input() -> bytes:
    try:
        return read_stream(sys.stdin.buffer, LARGEST, "stdin")
    except OSError as error:
        raise SourceError("source.unreadable", path="stdin", what=error.strerror) from error


def _unzipped(path: Path, data: bytes) -> bytes:
    """What a file compressed with gzip holds, up to LARGEST bytes; of one that is cut off, what is there."""
    if not data.startswith(b"\x1f\x8b"):
        return data
    unzip, parts, size = zlib.decompressobj(wbits=31), [], 0
    try:
        while data and size <= LARGEST:
            part = unzip.decompress(data, LARGEST + 1 - size)
            parts.append(part)
            size += len(part)
            data = unzip.unconsumed_tail or unzip.unused_data
            if unzip.eof and data:  # rotated logs are often several put together
                unzip = zlib.decompressobj(wbits=31)
            elif not part:
                break
    except zlib.error as error:
        if not size:
            raise SourceError("source.unreadable", path=path, what=error) from error
    if size > LARGEST:
        raise SourceError("source.unreadable", path=path, what=f"more than {LARGEST >> 20} MiB inside")
    return b"".join(parts)


def _from_bytes(name: str, data: bytes) -> tuple[str, Log]:
    """Kind and log of a file's content."""
    text = decode(data)
    values = parse_json(text.strip())
    if isinstance(values, dict) and (state := read_state(values)) is not None:
        return "trainer", state
    if _is_own_state(values):
        raise SourceError("source.own_checkpoint", path=name)
    printed = notebook_text(values)
    log = _from_text(name, clean(text if printed is None else printed)) if values is None or printed else None
    log = log or read_values(values)
    if log is None:
        raise SourceError(_what_else(name, data, text), path=name)
    return "trainer" if name.endswith(STATE) else "log", log


def _from_text(name: str, text: str) -> Log | None:
    """The log of the format that finds most steps."""
    if (log := read_export(name, text)) is not None:
        return log
    found = [log for log in (read_console(text), read_table(text)) if log and any(map(is_known, log.records))]
    return max(found, key=lambda log: sum(map(is_step, log.records)), default=None)


def _what_else(name: str, data: bytes, text: str) -> str:
    if not data.strip():
        return "source.empty"
    if (data[:4096].count(0) > 0 and text.count("\x00") > 0) or text.count("\ufffd") > len(text) / 10:
        return "source.binary"
    if "Traceback (most recent call last)" in text:
        return "source.only_traceback"
    if CONFIGURATION.search(text):
        return "source.configuration"
    if DATASET.search(text):
        return "source.dataset"
    return "source.no_log_history" if name.endswith(".json") else "source.no_loss"


def _together(parts: Sequence[tuple[str, str, Log]]) -> Log:
    """Several logs as one: their records in order, the last word of each on the run as a whole."""
    logs = [log for _, _, log in parts]
    stepped = [any("step" in record for record in log.records if is_step(record)) for log in logs]
    counted = [
        name for (name, _, log), told in zip(parts, stepped, strict=True) if any(map(is_step, log.records)) and not told
    ]
    if counted and any(stepped):
        raise SourceError("source.mixed", path=counted[0])
    return Log(
        [record for log in logs for record in log.records],
        "\n".join(log.text for log in logs),
        _last(log.planned for log in logs),
        max((log.reached for log in logs if log.reached), default=None),
        _last(log.epochs for log in logs),
        _last(log.every for log in logs),
        _last(log.finished for log in logs),
        any(log.stopped_early for log in logs),
        _last(log.best for log in logs),
        {"training": {key: v for log in logs for key, v in log.config.get("training", {}).items()}},
        [bar for log in logs for bar in log.bars],
        partial=True,
    )


def _last(values: Iterable):
    return next((value for value in reversed(list(values)) if value is not None), None)
