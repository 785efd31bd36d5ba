"""The command line: training without a verb, and a table of verbs.

Help and every mistake in the input come before torch is imported: a verb's function imports what it needs.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import os
import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from ..instrument.judge.wording import TRAINERS
from ..instrument.messages import LANGUAGES, VARIABLE, language, say
from ..kernels.cpu_level import LevelError
from .collapse import replay_arguments
from .errors import UserError, drop_output, in_words, is_disk_full, open_streams, problem, tell
from .export import command as export
from .guide import completion
from .guide.words import translated_error, translated_help
from .guide.wrapping import hanging, width
from .init import command as init
from .phases import importing
from .rows import command as rows
from .signals import ended_in_order, interruptible, last_word
from .sweep import command as sweep
from .verbs import advise, lengthen
from .verbs.answers.evaluate import evaluate_arguments, run_evaluate
from .verbs.answers.predict import predict_arguments, run_predict
from .verbs.entries import adapters
from .verbs.runs import board, ls

EXIT_DISK = 1
EXIT_USER_ERROR = 2
EXIT_BROKEN_PIPE = 141


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        verb, message = self.prog.partition(" ")[2], translated_error(message)
        sentence = (
            problem("cli.verb_usage", message=message, verb=verb) if verb else problem("cli.usage", message=message)
        )
        raise UserError(sentence)

    def format_help(self) -> str:
        return translated_help(super().format_help())


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
    from .hub import ask_for_run

    config = read_config(arguments.config, arguments.overrides, note)
    config = own_word(config, arguments.config, arguments.overrides)
    ask_for_run(config)
    quiet_libraries()
    with importing():
        if arguments.dry_run:
            from .dry_run.show import dry_run
        else:
            from .run.start import run
    return dry_run(config) if arguments.dry_run else run(config, arguments.resume)


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
    parser.add_argument("--rows-text", action="store_true", help=say("cli.report.rows_text"))
    parser.add_argument("--trust-remote-code", action="store_true", help=say("cli.trust_remote_code"))


def _report(arguments: Namespace) -> int:
    from .verbs.read_run import report

    read_texts = None
    if arguments.rows_text:
        from .rows.texts import texts_of_run

        read_texts = partial(texts_of_run, trust_remote_code=arguments.trust_remote_code)
    return report(arguments.sources, arguments.output, arguments.follow, read_texts)


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


def _help_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("word", nargs="?", metavar="VERB|KEY", help=say("cli.help.word"))
    parser.add_argument("--lang", choices=LANGUAGES, help=say("cli.lang"))


def _help(arguments: Namespace) -> int:
    if arguments.lang is not None:
        os.environ[VARIABLE] = arguments.lang
    word = arguments.word
    if word is None or word == "train":
        print(_train_parser().format_help(), end="")
    elif word in VERBS:
        print(_parser(word, VERBS[word]).format_help(), end="")
    else:
        from .guide.keys import describe_key
        from .guide.wrapping import width

        print(describe_key(word, width()))
    return 0


def _completion(arguments: Namespace) -> int:
    parsers = {"": _parser("", TRAIN), "train": _parser("", TRAIN)}
    parsers |= {name: _parser(name, verb) for name, verb in VERBS.items()}
    print(completion.script(arguments, parsers), end="")
    return 0


VERBS = {
    "init": Verb("cli.init", init.add_arguments, init.run),
    "explain": Verb("cli.explain", _explain_arguments, _explain),
    "report": Verb("cli.report", _report_arguments, _report),
    "compare": Verb("cli.compare", _compare_arguments, _compare),
    "board": Verb("cli.board", board.add_arguments, board.run),
    "ls": Verb("cli.ls", ls.add_arguments, ls.run),
    "advise": Verb("cli.advise", advise.add_arguments, advise.run),
    "lengthen": Verb("cli.lengthen", lengthen.add_arguments, lengthen.run),
    "sweep": Verb("cli.sweep", sweep.add_arguments, sweep.run),
    "rows": Verb("cli.rows", rows.add_arguments, rows.run),
    "replay": Verb("cli.replay", replay_arguments.add_arguments, replay_arguments.run),
    "inspect": Verb("cli.inspect", adapters.inspect_arguments, adapters.run_inspect),
    "merge": Verb("cli.merge", adapters.merge_arguments, adapters.run_merge),
    "export": Verb("cli.export", export.add_arguments, export.run),
    "chat": Verb("cli.chat", adapters.chat_arguments, adapters.run_chat),
    "predict": Verb("cli.predict", predict_arguments, run_predict),
    "evaluate": Verb("cli.evaluate", evaluate_arguments, run_evaluate),
    "env": Verb("cli.env", _env_arguments, _env),
    "import": Verb("cli.import", _import_arguments, _import),
    "schema": Verb("cli.schema", _schema_arguments, _schema),
    "help": Verb("cli.help", _help_arguments, _help),
    "completion": Verb("cli.completion", completion.add_arguments, _completion),
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
    from .guide.keys import describe_keys

    columns = width()
    told = {"train": say("cli.train"), **{name: say(verb.summary) for name, verb in VERBS.items()}}
    verbs = "\n".join(hanging(f"  {name}", summary, 13, columns) for name, summary in told.items())
    parser = _parser("", TRAIN)
    parser.epilog = "\n".join((say("cli.verbs"), verbs, "", describe_keys(columns)))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0 done, 2 wrong input, 3 collapsed, 128 + a signal."""
    open_streams()
    argv = list(sys.argv[1:] if argv is None else argv)
    argv = argv[1:] if argv[:1] == ["train"] else argv  # as other trainers are called
    try:
        return _main(argv)
    finally:
        drop_output()


def _main(argv: list[str]) -> int:
    if len(argv) == 2 and argv[0] in ("-h", "--help"):  # --help training.learning_rate
        argv = ["help", argv[1]]
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
        return EXIT_DISK if is_disk_full(error) else EXIT_USER_ERROR


def _refuse_unknown_verb(argv: Sequence[str]) -> None:
    if argv and argv[0].endswith((".yaml", ".yml")) and "=" not in argv[0]:
        raise UserError(problem("cli.bare_config", file=argv[0], quoted=shlex.quote(argv[0])))
    # an override holds a dot or an equals sign, an option starts with a dash
    if not argv or argv[0].startswith("-") or "." in argv[0] or "=" in argv[0]:
        return
    close = difflib.get_close_matches(argv[0], ("train", *VERBS), n=1)
    known = ", ".join(VERBS)
    if close:
        raise UserError(problem("cli.mistyped_verb", verb=argv[0], guess=close[0], known=known))
    raise UserError(problem("cli.unknown_verb", verb=argv[0], known=known))


if __name__ == "__main__":
    sys.exit(main())
