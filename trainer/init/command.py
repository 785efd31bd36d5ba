"""`lora-train init`: asks for model, data and GPU, or takes them from flags, and writes a configuration that fits.

Help imports no torch; what fits is computed by the memory prediction of --dry-run.
"""

from __future__ import annotations

import os
import shlex
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from ...instrument.messages import say
from ..phases import importing

if TYPE_CHECKING:
    from .machines import Machine

OUTPUT = "lora-train.yaml"
FLAGS = {"model": "--model", "data": "--data", "gpu": "--gpu"}


def add_arguments(parser: ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("--model", metavar="NAME", help=say("cli.init.model"))
    parser.add_argument("--data", metavar="NAME", help=say("cli.init.data"))
    parser.add_argument("--gpu", metavar="GIB|NAME", help=say("cli.init.gpu"))
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", default=Path(OUTPUT), help=say("cli.init.output"))
    parser.add_argument("-f", "--force", action="store_true", help=say("cli.import.force"))


def run(arguments: Namespace) -> int:
    """Writes the file; the exit code 0.

    Raises:
        UserError: an answer is missing and nobody is there to ask, or cannot be used, or the file is there.
    """
    from ...instrument.read.files import write_text
    from ..console import quiet_libraries
    from ..errors import UserError, problem

    output: Path = arguments.output
    if output.is_dir() or (output.exists() and not arguments.force):
        raise UserError(problem("import.exists", output=output))
    model, data = asked_place(arguments, "model"), asked_place(arguments, "data")
    machine = asked_machine(arguments)
    quiet_libraries()
    with importing():
        from .plan import plan_for
        from .text import as_yaml
    print(say("init.plans", model=model), flush=True)
    plan = plan_for(model, machine)
    text = as_yaml(plan, model, data, output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, text)
    except OSError as error:
        raise UserError(problem("import.not_written", output=output, reason=error.strerror or error)) from error
    print(plan.words(machine))
    print(say("init.written", output=shlex.quote(str(output))))
    return 0


def answer(arguments: Namespace, name: str) -> str:
    """What was said of it by a flag, else on the terminal.

    Raises:
        UserError: nobody is there to ask.
    """
    given = getattr(arguments, name)
    if given is None and not sys.stdin.isatty():
        from ..errors import UserError, problem

        missing = [flag for key, flag in FLAGS.items() if getattr(arguments, key) is None]
        raise UserError(problem("init.missing", flags=", ".join(missing)))
    while given is None or not given.strip():
        given = input(_question(name))
    return given.strip()


def _question(name: str) -> str:
    if name == "model":
        return say("init.ask_model")
    return say("init.ask_data") if name == "data" else say("init.ask_gpu")


def asked_machine(arguments: Namespace) -> Machine:
    """The GPU.

    Raises:
        UserError: the flag says nothing that is known.
    """
    from ..errors import UserError, problem
    from .machines import GPUS, machine_of

    while True:
        said = answer(arguments, "gpu")
        if (machine := machine_of(said)) is not None:
            return machine
        unknown = problem("init.unknown_gpu", gpu=said, known=", ".join(GPUS))
        if arguments.gpu is not None:
            raise UserError(unknown)
        print(unknown)


def asked_place(arguments: Namespace, name: str) -> str:
    """A path that leads somewhere, or a name on the hub, which is not asked for.

    Raises:
        UserError: the flag names a file or folder that is not there.
    """
    from ..config.names import is_path
    from ..errors import UserError, problem

    while True:
        said = answer(arguments, name)
        if not is_path(said) or "*" in said or os.path.exists(os.path.expanduser(said)):
            return said
        nothing = problem("init.nothing_there", path=said)
        if getattr(arguments, name) is not None:
            raise UserError(nothing)
        print(nothing)
