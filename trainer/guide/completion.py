"""`lora-train completion bash|zsh|fish`: a script that completes verbs, options, keys, their values, and run folders.

It is made once and holds every word, so that a Tab costs the shell nothing; only run folders are looked for, by
metrics.jsonl. zsh takes bash's script through its own bashcompinit. (argcomplete starts Python at every Tab, 0.3 s
here; shtab knows no fish; neither knows keys with values.)
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass

from ...instrument.messages import say

SHELLS = ("bash", "zsh", "fish")
# Words behind which a file, a run or a choice is expected, by what argparse calls it.
RUNS = ("RUN", "RUN|FILE", "RUN|FILE|-", "ADAPTER", "FOLDER", "STUDY.yaml|FOLDER", "RUN_OR_ADAPTER")

_FILES = r"""# a name may hold spaces: the shell quotes what it is given as a file's name
_lora_train_files() {
    local IFS=$'\n' plain="${1//\\/}"
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen -f -- "${plain#[\'\"]}"))
}
_lora_train_runs() {
    local IFS=$'\n' file plain="${1//\\/}"
    plain="${plain#[\'\"]}"
    COMPREPLY=($(for file in "$plain"*/metrics.jsonl "$plain"*/*/metrics.jsonl runs/*/metrics.jsonl; do
        [[ -f $file && $file == "$plain"* ]] && printf '%s\n' "${file%/metrics.jsonl}"
    done | sort -u))
    [[ ${#COMPREPLY[@]} == 0 ]] && _lora_train_files "$1"
    compopt -o filenames 2>/dev/null
    return 0
}
"""


@dataclass(frozen=True)
class Words:
    """What a verb takes.

    Attributes:
        options: each with what it may be; empty: anything.
        takes_runs: whether a run folder is expected.
    """

    options: Mapping[str, tuple[str, ...]]
    takes_runs: bool


def add_arguments(parser: ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("shell", choices=SHELLS, help=say("cli.completion.shell"))


def words_of(parser: ArgumentParser) -> Words:
    """What a verb's parser takes."""
    options, takes_runs = {}, False
    for action in parser._actions:
        choices = tuple(map(str, action.choices)) if action.choices is not None else ()
        options.update(dict.fromkeys(action.option_strings, choices))
        metavar = action.metavar if isinstance(action.metavar, str) else ""
        takes_runs = takes_runs or (not action.option_strings and any(word in RUNS for word in (metavar,)))
    return Words(options, takes_runs)


def key_values() -> dict[str, tuple[str, ...]]:
    """Each key with the words it may be."""
    from ..config.reference import keys  # imports pydantic, which takes a third of a second

    found = {}
    for key in keys():
        words = [word for word in key.allowed if not word.startswith(("≥", ">", "≤", "<")) and " " not in word]
        found[key.name] = tuple(words) or (("true", "false") if "boolean" in key.types else ())
    return found


def script(arguments: Namespace, parsers: Mapping[str, ArgumentParser]) -> str:
    """The script of a shell.

    Args:
        arguments: with the shell.
        parsers: by verb; "" is training without one.
    """
    words = {verb: words_of(parser) for verb, parser in parsers.items()}
    if arguments.shell == "fish":
        return _fish(words)
    begin = "autoload -U +X bashcompinit && bashcompinit\n" if arguments.shell == "zsh" else ""
    return f"# {say('completion.head')}\n#   {_how(arguments.shell)}\n{begin}{_bash(words)}"


def _how(shell: str) -> str:
    return {
        "bash": "lora-train completion bash > ~/.local/share/bash-completion/completions/lora-train",
        "zsh": "echo 'source <(lora-train completion zsh)' >> ~/.zshrc",
        "fish": "lora-train completion fish > ~/.config/fish/completions/lora-train.fish",
    }[shell]


def _bash(words: Mapping[str, Words]) -> str:
    verbs = " ".join(verb for verb in words if verb)
    choices = {
        f"{verb}:{option}": values for verb, own in words.items() for option, values in own.options.items() if values
    }
    by_option = _cases(choices)
    options = _cases({verb: tuple(own.options) for verb, own in words.items()})
    values = _cases(key_values())
    runs = "|".join(verb for verb, own in words.items() if own.takes_runs)
    return f"""_lora_train() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}" verb="" words="" before=""
    # bash splits at = and :
    if [[ $cur == "=" ]]; then before=$prev cur=""
    elif [[ $prev == "=" ]]; then before="${{COMP_WORDS[COMP_CWORD-2]}}"
    elif [[ $cur == *.*=* ]]; then before="${{cur%%=*}}"; fi
    case "${{COMP_WORDS[1]}}" in {verbs.replace(" ", "|")}) (( COMP_CWORD > 1 )) && verb="${{COMP_WORDS[1]}}";; esac
    [[ $verb == train ]] && verb=""
    if [[ -n $before ]]; then
        case "$before" in
{values}
        esac
        local stem=""; [[ $cur == *=* ]] && stem="$before="
        COMPREPLY=($(compgen -P "$stem" -W "$words" -- "${{cur#*=}}")); return
    fi
    case "$verb:$prev" in
{by_option}
    esac
    if [[ -n $words ]]; then COMPREPLY=($(compgen -W "$words" -- "$cur")); return; fi
    case "$prev" in --config|--output|-o|--adapter|--resume) _lora_train_files "$cur"; return;; esac
    if [[ $cur == -* ]]; then
        case "$verb" in
{options}
        esac
        COMPREPLY=($(compgen -W "$words" -- "$cur")); return
    fi
    if [[ -z $verb ]]; then
        (( COMP_CWORD == 1 )) && words="{verbs}"
        COMPREPLY=($(compgen -W "$words" -- "$cur") $(compgen -S = -W "{" ".join(key_values())}" -- "$cur"))
        compopt -o nospace 2>/dev/null
        [[ ${{#COMPREPLY[@]}} == 1 && ${{COMPREPLY[0]}} != *= ]] && compopt +o nospace 2>/dev/null
        return
    fi
    case "$verb" in
        help) COMPREPLY=($(compgen -W "{verbs} {" ".join(key_values())}" -- "$cur")); return;;
        completion) COMPREPLY=($(compgen -W "{" ".join(SHELLS)}" -- "$cur")); return;;
        {runs})
            _lora_train_runs "$cur"; return;;
    esac
    _lora_train_files "$cur"
}}
{_FILES}complete -F _lora_train lora-train
"""


def _cases(table: Mapping[str, tuple[str, ...]]) -> str:
    return "\n".join(f'        "{name}") words="{" ".join(words)}";;' for name, words in table.items() if words)


def _fish(words: Mapping[str, Words]) -> str:
    verbs = " ".join(verb for verb in words if verb)
    lines = [
        f"# {say('completion.head')}",
        f"#   {_how('fish')}",
        "function __lora_train_runs",
        "    for file in */metrics.jsonl */*/metrics.jsonl",
        "        string replace -r '/metrics.jsonl$' '' -- $file",
        "    end",
        "end",
        f"set -l verbs {verbs}",
        "complete -c lora-train -n '__fish_is_first_token' -f -a \"$verbs\"",
    ]
    for verb, own in words.items():
        when = f"__fish_seen_subcommand_from {verb}" if verb else f"not __fish_seen_subcommand_from {verbs}"
        for option, values in own.options.items():
            flag = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
            choice = f" -x -a '{' '.join(values)}'" if values else ""
            lines.append(f"complete -c lora-train -n '{when}' {flag}{choice}")
        if own.takes_runs:
            lines.append(f"complete -c lora-train -n '{when}' -a '(__lora_train_runs)'")
    when = f"not __fish_seen_subcommand_from {' '.join(verb for verb in words if verb not in ('', 'train'))}"
    for key, values in key_values().items():
        pairs = " ".join(f"{key}={value}" for value in values) or f"{key}="
        lines.append(f"complete -c lora-train -n '{when}' -f -a '{pairs}'")
    lines.append(
        f"complete -c lora-train -n '__fish_seen_subcommand_from help' -f -a '{verbs} {' '.join(key_values())}'"
    )
    shells = " ".join(SHELLS)
    lines.append(f"complete -c lora-train -n '__fish_seen_subcommand_from completion' -f -a '{shells}'")
    return "\n".join(lines) + "\n"
