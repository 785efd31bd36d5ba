"""The command line: training without a verb, and a table of verbs.

Help and every mistake in the input come before torch is imported: a verb's function imports what it needs.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import math
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..instrument.judge.wording import TRAINERS
from ..instrument.messages import LANGUAGES, language, say
from ..kernels.cpu_level import LevelError
from .collapse import replay_arguments
from .errors import UserError, drop_output, in_words, is_output_lost, problem, tell
from .rows import command as rows
from .export import command as export
from .signals import ended_in_order, interruptible, last_word
from .sweep import command as sweep
from .verbs import advise, lengthen
from .verbs.answers.evaluate import evaluate_arguments, run_evaluate
from .verbs.answers.predict import predict_arguments, run_predict

EXIT_DISK = 1
EXIT_USER_ERROR = 2
EXIT_BROKEN_PIPE = 141


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        verb = self.prog.partition(" ")[2]
        sentence = (
            problem("cli.verb_usage", message=message, verb=verb) if verb else problem("cli.usage", message=message)
        )
        raise UserError(sentence)


@dataclass(frozen=True)
class Verb:
    """One thing the command does.

    Attributes:
        summary: its sentence in the catalogue.
        add_arguments: puts its arguments on a parser.
        run: does it and returns the exit code.
    """

    summary: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]


def _train_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE", help=say("cli.config"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=say("cli.overrides"))
    parser.add_argument("--resume", metavar="auto|PATH", help=say("cli.resume"))
    parser.add_argument("--dry-run", action="store_true", help=say("cli.dry_run"))
    parser.add_argument("--version", action="version", version=importlib.metadata.version("lora-vitals"))


def _train(arguments: Namespace) -> int:
    from .checks.own_code import own_word
    from .checks.read_config import read_config
    from .console import note, quiet_libraries
    from .hub import ask_first

    config = read_config(arguments.config, arguments.overrides, note)
    config = own_word(config, arguments.config, arguments.overrides)
    ask_first(config.model.name_or_path, config.model.revision)
    for source in (config.data.train, config.data.eval or []):
        for name in [source] if isinstance(source, str) else source:
            ask_first(name, kind="dataset")
    quiet_libraries()
    if arguments.dry_run:
        from .dry_run.show import dry_run

        return dry_run(config)
    from .run.start import run  # imports torch, which takes seconds

    return run(config, arguments.resume)


def _merge_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help=say("cli.adapter"))
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help=say("cli.merge.output"))
    dtypes = ("auto", "float16", "bfloat16", "float32")
    parser.add_argument("--dtype", choices=dtypes, default="auto", help=say("cli.merge.dtype"))
    parser.add_argument("--trust-remote-code", action="store_true", help=say("cli.trust_remote_code"))


def _merge(arguments: Namespace) -> int:
    from .console import quiet_libraries
    from .hub import ask_first
    from .verbs.adapter_folder import require_new_folder
    from .verbs.adapter_kinds import MERGE, usable_adapter

    run: Path = arguments.run
    adapter = usable_adapter(run, MERGE, arguments.trust_remote_code)
    beside = run / "merged" if adapter.folder != run else run.resolve().with_name(f"{run.resolve().name}-merged")
    output = arguments.output or beside
    require_new_folder(output)
    ask_first(adapter.base, adapter.revision)
    quiet_libraries()
    from .verbs.merge import Request, merge  # imports torch, which takes seconds

    return merge(Request(adapter, output, arguments.dtype))


def _chat_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help=say("cli.adapter"))
    parser.add_argument("--prompt", metavar="TEXT", help=say("cli.chat.prompt"))
    parser.add_argument(
        "--max-new-tokens", type=_at_least_one, default=256, metavar="N", help=say("cli.chat.max_new_tokens")
    )
    parser.add_argument("--temperature", type=_temperature, default=0.0, metavar="T", help=say("cli.chat.temperature"))
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help=say("cli.chat.seed"))
    parser.add_argument("--trust-remote-code", action="store_true", help=say("cli.trust_remote_code"))


def _chat(arguments: Namespace) -> int:
    from .console import quiet_libraries
    from .hub import ask_first
    from .verbs.adapter_kinds import CHAT, usable_adapter

    adapter = usable_adapter(arguments.run, CHAT, arguments.trust_remote_code)
    ask_first(adapter.base, adapter.revision)
    quiet_libraries()
    from .verbs.chat import Request, chat  # imports torch, which takes seconds

    return chat(Request(adapter, arguments.prompt, arguments.max_new_tokens, arguments.temperature, arguments.seed))


def _inspect_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="ADAPTER", type=Path, help=say("cli.inspect.adapter"))
    parser.add_argument("--json", action="store_true", help=say("cli.json"))


def _inspect(arguments: Namespace) -> int:
    from .verbs.inspect_adapter import inspect_adapter

    return inspect_adapter(arguments.adapter, arguments.json)


def _explain_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("sources", metavar="RUN|FILE|-", nargs="*", help=say("cli.explain.source"))
    parser.add_argument("--what", metavar="WORD", help=say("cli.explain.what"))
    parser.add_argument("--trainer", choices=TRAINERS, help=say("cli.explain.trainer"))
    parser.add_argument("--json", action="store_true", help=say("cli.explain.json"))
    parser.add_argument("--exit-code", action="store_true", help=say("cli.explain.exit_code"))
    parser.add_argument("--lang", choices=LANGUAGES, default=language(), help=say("cli.lang"))


def _explain(arguments: Namespace) -> int:
    from .verbs.read_run import Question, explain

    asked = {name: getattr(arguments, name) for name in ("sources", "lang", "what", "exit_code", "trainer")}
    return explain(Question(**asked, as_json=arguments.json))


def _report_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("sources", metavar="RUN|FILE|-", type=Path, nargs="+", help=say("cli.report.source"))
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=say("cli.report.output"))
    parser.add_argument("--follow", action="store_true", help=say("cli.report.follow"))


def _report(arguments: Namespace) -> int:
    from .verbs.read_run import report

    return report(arguments.sources, arguments.output, arguments.follow)


def _compare_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("sources", metavar="RUN|FILE", type=Path, nargs="+", help=say("cli.compare.sources"))
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=say("cli.compare.output"))
    parser.add_argument("--lang", choices=LANGUAGES, default=language(), help=say("cli.lang"))


def _compare(arguments: Namespace) -> int:
    from .verbs.read_run import compare

    return compare(arguments.sources, arguments.output, arguments.lang)


def _env_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help=say("cli.json"))


def _env(arguments: Namespace) -> int:
    from .console import quiet_libraries

    quiet_libraries()
    from .verbs.environment import print_environment

    return print_environment(arguments.json)


def _schema_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=say("cli.schema.output"))
    parser.add_argument("--study", action="store_true", help=say("cli.schema.study"))


def _schema(arguments: Namespace) -> int:
    from .verbs.print_schema import print_schema

    return print_schema(arguments.output, arguments.study)


def _import_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help=say("cli.import.file"))
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=say("cli.import.output"))
    parser.add_argument("-f", "--force", action="store_true", help=say("cli.import.force"))


def _import(arguments: Namespace) -> int:
    from .verbs.import_config import import_config

    return import_config(arguments.file, arguments.output, arguments.force)


VERBS = {
    "explain": Verb("cli.explain", _explain_arguments, _explain),
    "report": Verb("cli.report", _report_arguments, _report),
    "compare": Verb("cli.compare", _compare_arguments, _compare),
    "advise": Verb("cli.advise", advise.add_arguments, advise.run),
    "lengthen": Verb("cli.lengthen", lengthen.add_arguments, lengthen.run),
    "sweep": Verb("cli.sweep", sweep.add_arguments, sweep.run),
    "rows": Verb("cli.rows", rows.add_arguments, rows.run),
    "replay": Verb("cli.replay", replay_arguments.add_arguments, replay_arguments.run),
    "inspect": Verb("cli.inspect", _inspect_arguments, _inspect),
    "merge": Verb("cli.merge", _merge_arguments, _merge),
    "export": Verb("cli.export", export.add_arguments, export.run),
    "chat": Verb("cli.chat", _chat_arguments, _chat),
    "predict": Verb("cli.predict", predict_arguments, run_predict),
    "evaluate": Verb("cli.evaluate", evaluate_arguments, run_evaluate),
    "env": Verb("cli.env", _env_arguments, _env),
    "import": Verb("cli.import", _import_arguments, _import),
    "schema": Verb("cli.schema", _schema_arguments, _schema),
}
TRAIN_OPTIONS = ("--config", "--resume", "--dry-run", "--version", "--debug", "--help")
# what the command does without a verb
TRAIN = Verb("cli.description", _train_arguments, _train)


def _parser(name: str, verb: Verb) -> ArgumentParser:
    parser = _Parser(
        prog=f"lora-train {name}".strip(),
        description=say(verb.summary),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help=say("cli.debug"))
    return parser


def _train_parser() -> ArgumentParser:
    from .config.reference import describe

    verbs = "\n".join(f"  {name:<10} {say(verb.summary)}" for name, verb in VERBS.items())
    parser = _parser("", TRAIN)
    parser.epilog = "\n".join((say("cli.verbs"), verbs, "", say("cli.epilog"), describe()))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0 done, 2 wrong input, 3 collapsed, 130/143 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    argv = argv[1:] if argv[:1] == ["train"] else argv  # as other trainers are called
    try:
        return _main(argv)
    finally:
        drop_output()


def _main(argv: list[str]) -> int:
    verb = VERBS.get(argv[0]) if argv else None
    try:
        if verb is not None:
            with ended_in_order():
                code = verb.run(_parser(argv[0], verb).parse_args(argv[1:]))
            sys.stdout.flush()  # here, where a pipe that was closed is caught
            return code
        _refuse_unknown_verb(argv)
        from .checks.unknown_keys import flags_as_overrides  # it imports pydantic, which only this needs

        arguments = _train_parser().parse_intermixed_args(flags_as_overrides(argv, TRAIN_OPTIONS))
        return interruptible(lambda: TRAIN.run(arguments), say("cli.interrupted"))
    except KeyboardInterrupt as error:  # before training, or a second time: what was half written is gone
        return last_word(say("cli.interrupted" if verb is None else "cli.verb_interrupted"), error)
    except BrokenPipeError:  # `lora-train inspect RUN | head`
        return EXIT_BROKEN_PIPE
    except (UserError, LevelError, OSError) as error:
        sentence = in_words(error)
        if sentence is None or "--debug" in argv:
            raise
        tell(sentence)
        return EXIT_DISK if is_output_lost(error) else EXIT_USER_ERROR


def _refuse_unknown_verb(argv: Sequence[str]) -> None:
    # an override holds a dot or an equals sign, an option starts with a dash
    if not argv or argv[0].startswith("-") or "." in argv[0] or "=" in argv[0]:
        return
    close = difflib.get_close_matches(argv[0], VERBS, n=1)
    known = ", ".join(VERBS)
    if close:
        raise UserError(problem("cli.mistyped_verb", verb=argv[0], guess=close[0], known=known))
    raise UserError(problem("cli.unknown_verb", verb=argv[0], known=known))


def _at_least_one(text: str) -> int:
    return _number(text, int, lambda value: value >= 1, "cli.at_least_one")


def _temperature(text: str) -> float:
    return _number(text, float, lambda value: 0 <= value < math.inf, "cli.not_negative")


def _seed(text: str) -> int:
    return _number(text, int, lambda value: 0 <= value < 2**63, "cli.not_negative")


def _number(text: str, kind: Callable[[str], int | float], allowed: Callable[[float], bool], sentence: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not allowed(value):
        raise argparse.ArgumentTypeError(say(sentence, value=text))
    return value


if __name__ == "__main__":
    sys.exit(main())
