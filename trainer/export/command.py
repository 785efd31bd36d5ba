"""`lora-train export RUN --to FORM`: the adapter, or base and adapter as one, where other programs take it.

    gguf-adapter   llama.cpp's --lora
    merged-gguf    llama.cpp and what is built on it
    ollama         a folder for `ollama create`
    safetensors    a transformers folder, as `lora-train merge` writes it

Help imports no torch.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ...instrument.messages import say
from ..phases import importing

FORMS = {
    "gguf-adapter": "lora.gguf",
    "merged-gguf": "merged.gguf",
    "ollama": "ollama",
    "safetensors": "merged",
}
"""What --to may be -> what is written."""
DTYPES = ("auto", "float16", "bfloat16", "float32", "q8_0")


def add_arguments(parser: ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("run", metavar="RUN", type=Path, help=say("cli.adapter"))
    parser.add_argument("--to", choices=FORMS, required=True, help=say("cli.export.to"))
    parser.add_argument("-o", "--output", type=Path, metavar="PATH", help=say("cli.export.output"))
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help=say("cli.export.dtype"))
    parser.add_argument("--from", dest="base", metavar="NAME", help=say("cli.export.from"))
    parser.add_argument("--trust-remote-code", action="store_true", help=say("cli.trust_remote_code"))


def run(arguments: Namespace) -> int:
    """Writes what was asked for; the exit code 0.

    Raises:
        UserError: the adapter cannot be exported so, says why; nothing is left behind.
    """
    from ..console import quiet_libraries
    from ..errors import UserError, problem
    from ..hub import ask_first
    from ..verbs.adapter_folder import require_new_folder
    from ..verbs.adapter_kinds import MERGE, usable_adapter

    if arguments.base is not None and arguments.to != "ollama":
        raise UserError(problem("export.from_alone", form=arguments.to))
    if arguments.dtype == "q8_0" and arguments.to == "safetensors":
        raise UserError(problem("export.dtype", form=arguments.to))
    adapter = usable_adapter(arguments.run, MERGE, arguments.trust_remote_code)
    output = arguments.output or beside(arguments.run, adapter.folder, FORMS[arguments.to])
    require_new_folder(output)
    ask_first(adapter.base, adapter.revision)
    quiet_libraries()
    with importing():
        from .write import Request, export

    return export(Request(adapter, arguments.to, output, arguments.dtype, arguments.base))


def beside(run: Path, folder: Path, name: str) -> Path:
    """In a run's folder; beside a checkpoint or an adapter's folder, whose name it then begins with."""
    return run / name if folder != run else run.resolve().with_name(f"{run.resolve().name}-{name}")
