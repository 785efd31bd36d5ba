"""`lora-train rows RUN`: the training rows, worst first, by what they did to the run, with --probe by their answers."""

from __future__ import annotations

import csv
import shlex
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...instrument.messages import LANGUAGES, language, say, say_in
from ..errors import UserError, problem, reason
from ..verbs.lengthen import at_least_one

if TYPE_CHECKING:
    import pandas as pd

    from ...instrument.judge.row_score import Probed
    from ..config.schema import Config
    from ..data.examples import Example

SHOWN = 20
CSV_COLUMNS = (
    *("row", "score", "loss_z", "grad_z", "grad_excess_z", "duplicate", "probe_z", "cut", "like"),
    *("saved", "better", "fits", "loss", "loss_last", "grad_norm", "share", "token_share", "seen"),
    *("n_tokens", "n_supervised", "course", "not_finite", "kind", "text"),
)
_HEAD = "{row:>8} {score:>6} {loss:>7} {z:>6} {grad:>6} {like:>14} {course:<14} {text}"


def add_arguments(parser: ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("run", metavar="RUN", type=Path, help=say("cli.rows.run"))
    parser.add_argument("-n", "--number", type=at_least_one, default=SHOWN, metavar="N", help=say("cli.rows.number"))
    parser.add_argument("--probe", action="store_true", help=say("cli.rows.probe"))
    parser.add_argument("--csv", action="store_true", help=say("cli.rows.csv"))
    parser.add_argument("--yaml", action="store_true", help=say("cli.rows.skip"))
    parser.add_argument("--no-text", action="store_true", help=say("cli.rows.no_text"))
    parser.add_argument("--trust-remote-code", action="store_true", help=say("cli.trust_remote_code"))
    parser.add_argument("--lang", choices=LANGUAGES, default=language(), help=say("cli.lang"))


def run(arguments: Namespace) -> int:
    """Prints the list and returns the exit code.

    Raises:
        UserError: there is no run, it recorded no rows, or the model cannot be loaded.
    """
    from ...instrument.judge.row_ranks import backed_off, rank_rows
    from ...instrument.judge.row_score import scored
    from ...instrument.read.load import load_run
    from ..checks.run_config import run_config

    config_file = arguments.run / "config.yaml"
    if not config_file.is_file():
        raise UserError(problem("rows.no_run", folder=arguments.run))
    recorded = load_run(arguments.run)
    try:
        frame, steps = recorded.rows(), recorded.metrics()
    except OSError as error:  # metrics.jsonl is a folder, a pipe, closed
        raise UserError(problem("data.unreadable", source=arguments.run, what=reason(error))) from error
    if not len(frame):
        raise UserError(problem("rows.none", folder=arguments.run))
    texts, own, probed = None, {}, None
    if arguments.probe or not arguments.no_text:
        from .texts import previews, read_data, read_texts

        config, tokenizer, examples = read_data(config_file, _aside, arguments.trust_remote_code)
        texts = read_texts(examples, config.data.cutoff_len) if examples else None
        own = {} if arguments.no_text else previews(examples, tokenizer)
        if arguments.probe:
            probed = _probed(config, tokenizer, examples, set(frame["row"].tolist()))
    else:
        run_config(config_file)  # says where it is none
    found = scored(rank_rows(frame, backed_off(steps)), texts, probed)
    found["text"] = [own.get(row, "") for row in found["row"].tolist()]
    if arguments.csv:
        _print_csv(found)
    elif arguments.yaml:
        _print_yaml(found, arguments.run)
    else:
        _print_table(found, arguments, whole=frame.attrs["whole"])
        if frame.attrs["whole"]:
            _print_heaviest(frame, steps, arguments.lang)
    return 0


def _aside(text: str, end: str = "\n") -> None:
    """Beside what a script reads."""
    print(text, file=sys.stderr, end=end, flush=True)


def _probed(config: Config, tokenizer: Any, examples: list[Example], trained: set[int]) -> dict[int, Probed]:
    if not examples:
        raise UserError(problem("rows.probe_needs_data"))
    if config.is_classifier:
        raise UserError(problem("rows.probe_needs_answers"))
    own = [example for example in examples if example.row in trained]
    from .probe import PASSES, probe

    tokens = PASSES * sum(len(example.input_ids) for example in own)
    _aside(say("rows.probe_costs", rows=len(own), passes=PASSES, tokens=tokens))

    def advance(done: int) -> None:
        if sys.stderr.isatty():
            _aside(say("rows.probing", done=done, of=len(own)), end="\r" if done < len(own) else "\n")

    return probe(config, tokenizer, own, advance)


def _print_csv(found: pd.DataFrame) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for line in found[list(CSV_COLUMNS)].itertuples(index=False):
        writer.writerow(["" if _is_missing(value) else _plain(value) for value in line])


def _is_missing(value: Any) -> bool:
    import pandas as pd

    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def _plain(value: Any) -> Any:
    text = f"{value:.6g}" if isinstance(value, float) else value
    # a spreadsheet takes what begins so for a formula
    return (
        f"'{text}"
        if isinstance(text, str) and text[:1] in ("=", "+", "-", "@") and not isinstance(value, float)
        else text
    )


def _print_yaml(found: pd.DataFrame, run: Path) -> None:
    from ...instrument.judge.row_score import FLAGGED, to_leave_out

    rows = to_leave_out(found)
    print(say("rows.skip", n=len(rows), of=len(found), score=FLAGGED, run=shlex.quote(str(run))))
    print("data:\n  skip_rows: [" + ", ".join(map(str, rows)) + "]")


def _print_table(found: pd.DataFrame, arguments: Namespace, whole: bool) -> None:
    import shutil

    from ...instrument.judge.row_score import FLAGGED, NO_KIND, PREVIEW

    lang = arguments.lang
    n = int((found["kind"] != NO_KIND).sum())
    head = "rows.head_probed" if arguments.probe else "rows.head"
    print(say_in(lang, head, n=n, of=len(found), score=FLAGGED))
    columns = {
        "row": say_in(lang, "rows.column.row"),
        "score": say_in(lang, "rows.column.score"),
        "loss": say_in(lang, "rows.column.loss"),
        "z": say_in(lang, "rows.column.z"),
        "grad": say_in(lang, "rows.column.grad"),
        "like": say_in(lang, "rows.column.like"),
        "course": say_in(lang, "rows.column.course"),
        "text": say_in(lang, "rows.column.text"),
    }
    print(_HEAD.format(**columns))
    width = max(shutil.get_terminal_size((120, 20)).columns - 68, 20) if sys.stdout.isatty() else PREVIEW
    for line in found.head(arguments.number).to_dict("records"):
        print(_HEAD.format(**_shown(line, lang, width)).rstrip())
    print(say_in(lang, "rows.cannot"))
    if not arguments.probe:
        print(say_in(lang, "rows.probe_hint", run=shlex.quote(str(arguments.run))))
    if not whole:
        print(say_in(lang, "rows.part"))


def _print_heaviest(frame: pd.DataFrame, metrics: pd.DataFrame, lang: str) -> None:
    """The row that weighed most for its length, among the steps that tell what they would have been without it."""
    from ...instrument.judge.row_noise import heaviest_rows

    if "grad_norm" not in metrics:
        return
    heavy = heaviest_rows(frame, metrics.drop_duplicates("step", keep="last").set_index("step")["grad_norm"])
    for line in heavy.head(1).to_dict("records"):
        shares = {"share": 100 * line["share"], "tokens": 100 * line["token_share"]}
        norms = {"norm": line["norm"], "without": line["without"]}
        print(say_in(lang, "rows.heaviest", step=line["step"], row=line["row"], **shares, **norms))


def _shown(line: dict[str, Any], lang: str, width: int) -> dict[str, str]:
    like = "" if _is_missing(line["like"]) or line["duplicate"] < 0.3 else f"{line['like']} ({line['duplicate']:.0%})"
    words = {
        "learned": say_in(lang, "rows.learned"),
        "forgotten": say_in(lang, "rows.forgotten"),
        "never_learned": say_in(lang, "rows.never_learned"),
        "steady": say_in(lang, "rows.steady"),
        "once": say_in(lang, "rows.once"),
    }
    bad = line["not_finite"] > 0
    return {
        "row": str(line["row"]),
        "score": say_in(lang, "rows.not_finite") if bad else f"{line['score']:.1f}",
        "loss": f"{line['loss']:.3f}",
        "z": f"{line['loss_z']:+.1f}",
        "grad": f"{line['grad_excess_z']:+.1f}",
        "like": like,
        "course": words[line["course"]],
        "text": line["text"][:width],
    }
