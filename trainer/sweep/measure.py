"""What a trial would take, in a process of its own, so that a worker imports no torch and keeps no memory of a device.

    python -m lora_train.trainer.sweep.measure CONFIG      prints {"load": ..., "step": ..., "device": ...}

The device is what the driver calls the first one that is visible; null on a CPU. By it workers keep apart, one a GPU: a
lock on this machine that the system drops with its worker. A card that CUDA_VISIBLE_DEVICES renumbers keeps its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import UserError


def main(config_file: str | None) -> int:
    """Measures; without a configuration the device alone is named."""
    started = time.perf_counter()
    found: dict[str, object] = {"device": device()}
    if config_file is not None:
        try:
            found["step"] = seconds_of_a_step(Path(config_file))
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
        # what was imported and loaded here a trial imports and loads as well
        found["load"] = time.perf_counter() - started
    print(json.dumps(found))
    return 0


def device() -> str | None:
    """What names the first visible CUDA device, on this machine and no other; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return str(getattr(torch.cuda.get_device_properties(0), "uuid", None) or torch.cuda.get_device_name(0))


@contextlib.contextmanager
def alone_on(device: str | None, waits: Callable[[str], None]) -> Iterator[None]:
    """Holds the device; where another worker does, waits until it is free.

    Args:
        device: its name; None for the CPU.
        waits: is told once that another has it.
    """
    if device is None:
        yield
        return
    name = hashlib.sha256(device.encode()).hexdigest()[:16]
    lock = FileLock(Path(tempfile.gettempdir()) / f"lora-train-device-{name}.lock", mode=0o666)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waits(device)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def seconds_of_a_step(config_file: Path) -> float:
    """Of the run that a configuration describes, its share of the evaluations with it.

    Raises:
        UserError: data or model cannot be used.
    """
    import transformers

    from ..checks.read_config import read_config
    from ..collapse.remedy import start_scale
    from ..console import Console, note, quiet_libraries
    from ..data.load import load_data, with_format
    from ..dry_run import headroom
    from ..dry_run.memory import longest
    from ..dry_run.outlook import outlook_of
    from ..dry_run.show import predicted_hours
    from ..loop.components import build, order_of
    from ..loop.engine import Engine
    from ..model.classify import own_names
    from ..model.fit import require_fit
    from ..model.load import load_tokenizer, pad_token_id

    config = read_config(config_file, (), note)
    quiet_libraries()
    transformers.logging.set_verbosity_error()
    engine, console = Engine(), Console(silent=True)
    tokenizer = load_tokenizer(config)
    train_data, eval_data = load_data(config, tokenizer, console, own_names(config))
    n_rows = require_fit(config, tokenizer, (train_data, eval_data), console)
    config = with_format(config, train_data)
    plan = order_of(config, train_data, engine.world_size)
    units = [unit for indices in plan.units(0) if (unit := plan.kept(train_data.examples[i] for i in indices))]
    components = build(config, engine, train_data, eval_data, pad_token_id(tokenizer, n_rows), console)
    start_scale(components)
    examples = longest(units, min(config.training.per_device_train_batch_size, len(units)))
    headroom.measure(components, examples)  # the first pass of its kind is slower than those that follow
    outlook = outlook_of(config, plan, eval_data, engine.device)
    predicted = predicted_hours(components, examples, outlook)
    return 3600 * predicted["hours"] / max(1, predicted["steps"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else None))
