"""The command line. Help and every mistake in the input come before torch is imported."""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ..instrument.messages import say
from .config import describe
from .errors import UserError, problem
from .read_config import read_config, read_settings

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(problem("cli.usage", message=message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lora-train",
        description=say("cli.description"),
        epilog=say("cli.epilog") + "\n" + describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help=say("cli.config"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=say("cli.overrides"))
    parser.add_argument("--resume", metavar="auto|PATH", help=say("cli.resume"))
    parser.add_argument("--dry-run", action="store_true", help=say("cli.dry_run"))
    parser.add_argument("--debug", action="store_true", help=say("cli.debug"))
    parser.add_argument("--version", action="version", version=importlib.metadata.version("lora-vitals"))
    return parser


def _replay_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lora-train replay", description=say("cli.replay"), allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", type=Path, help=say("cli.replay.run"))
    parser.add_argument("--step", required=True, type=int, metavar="N", help=say("cli.replay.step"))
    parser.add_argument(
        "--set", action="append", default=[], metavar="section.key=value", help=say("cli.replay.set"), dest="settings"
    )
    parser.add_argument("--dump", metavar="MODULE", help=say("cli.replay.dump"))
    parser.add_argument("--extract", type=Path, metavar="DIR", help=say("cli.replay.extract"))
    parser.add_argument("--what-if", action="store_true", help=say("cli.replay.what_if"))
    parser.add_argument("--debug", action="store_true", help=say("cli.debug"))
    return parser


def _replay(argv: Sequence[str]) -> int:
    arguments = _replay_parser().parse_args(argv)
    config_file = arguments.run / "config.yaml"
    if not config_file.is_file():
        raise UserError(problem("replay.no_run", folder=arguments.run))
    settings = read_settings(config_file, arguments.settings)
    quiet_libraries()
    from .replay import Request, replay  # imports torch, which takes seconds

    return replay(
        Request(arguments.run, arguments.step, settings, arguments.dump, arguments.extract, arguments.what_if)
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0 done, 2 wrong input, 3 collapsed, 130/143 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ["replay"]:
            return _replay(argv[1:])
        arguments = _parser().parse_intermixed_args(argv)
        config = read_config(arguments.config, arguments.overrides)
        quiet_libraries()
        if arguments.dry_run:
            from .dry_run import dry_run

            return dry_run(config)
        from .run import run  # imports torch, which takes seconds

        return run(config, arguments.resume)
    except UserError as error:
        if "--debug" in argv:
            raise
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:  # before training, or a second time: nothing was being written
        print(say("cli.interrupted"), file=sys.stderr)
        return EXIT_INTERRUPTED


def quiet_libraries() -> None:
    """Keeps other libraries' notes for their developers out of the log of a run; errors still show."""
    # offers an optional 4-bit CPU kernel from the hub; training does not use it
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # transformers 5.2x renames these; peft and older releases know the old names only
    warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing(_enable)?` is deprecated")
    # said in the banner where it matters
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")


if __name__ == "__main__":
    sys.exit(main())
