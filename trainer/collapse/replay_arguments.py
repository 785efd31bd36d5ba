"""`lora-train replay RUN --step N`: its command line, and what replay.py is asked, read before torch is imported."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ...instrument.messages import say
from ..errors import UserError, problem


def add_arguments(parser: ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("run", metavar="RUN", type=Path, help=say("cli.replay.run"))
    parser.add_argument("--step", required=True, type=int, metavar="N", help=say("cli.replay.step"))
    parser.add_argument(
        "--set", action="append", default=[], metavar="section.key=value", help=say("cli.replay.set"), dest="settings"
    )
    parser.add_argument("--dump", metavar="MODULE", help=say("cli.replay.dump"))
    parser.add_argument("--extract", type=Path, metavar="DIR", help=say("cli.replay.extract"))
    parser.add_argument("--what-if", action="store_true", help=say("cli.replay.what_if"))
    parser.add_argument("--trust-remote-code", action="store_true", help=say("cli.trust_remote_code"))


def run(arguments: Namespace) -> int:
    """Runs the step again and returns the exit code.

    Raises:
        UserError: there is no run, no such step, or a setting that is none.
    """
    from ..checks.read_config import read_config, read_settings
    from ..console import quiet_libraries
    from ..hub import ask_first

    config_file = arguments.run / "config.yaml"
    if not config_file.is_file():
        raise UserError(problem("replay.no_run", folder=arguments.run))
    resolved, settings = read_config(config_file), read_settings(config_file, arguments.settings)
    ask_first(resolved.model.name_or_path, resolved.model.revision)
    quiet_libraries()
    from .replay import Request, replay  # imports torch, which takes seconds

    asked = {name: getattr(arguments, name) for name in ("run", "step", "dump", "extract", "what_if")}
    return replay(Request(**asked, settings=settings, trust_remote_code=arguments.trust_remote_code), resolved)
