"""What a terminal shows while nothing is printed, in a pseudo-terminal; a pipe shows nothing of it."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time

import pytest
from lora_train.trainer import phases

from ..conftest import COMMAND_ENVIRONMENT

CODE = """
import time
from lora_train.trainer.console import Console
from lora_train.trainer.phases import phase
with phase("reading [b]rows[/b]", 4) as advance:
    for _ in range(4):
        advance(1)
        time.sleep(0.15)
console = Console()
console.begin(0, 10)
with phase("evaluating", 2) as advance:
    advance(1)
    console.line("a line")
    time.sleep(0.3)
console.end()
print("END")
"""


def on_a_terminal(code: str, **environment: str) -> str:
    """What a program writes to a terminal of 100 columns."""
    main, other = pty.openpty()
    env = {**COMMAND_ENVIRONMENT, "TERM": "xterm", "COLUMNS": "100", **environment}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=other, stderr=other, stdin=other, env=env)
    os.close(other)
    seen = b""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            part = os.read(main, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(main)
    assert process.wait(60) == 0
    return seen.decode()


def test_a_phase_shows_how_many_of_how_many_and_is_gone_afterwards():
    seen = on_a_terminal(CODE)
    assert "reading [b]rows[/b]" in seen
    assert "4/4" in seen
    assert "0:00:0" in seen
    assert "evaluating" in seen
    assert "1/2" in seen
    last = seen[seen.rindex("a line") :]
    assert "END" in last
    assert "evaluating" not in last.split("END")[1]


def test_importing_tells_how_many_modules_are_there():
    code = "from lora_train.trainer.phases import importing\nimport sys\nbefore = list(sys.meta_path)\n"
    code += "with importing():\n    import concurrent.futures.process, xml.dom.minidom, time\n    time.sleep(0.3)\n"
    code += "assert sys.meta_path == before\nprint('END')"
    seen = on_a_terminal(code)
    assert "importing torch" in seen
    counts = [int(n) for n in re.findall(r"(\d+)/4,200", seen)]
    assert 5 < counts[-1] < 4200
    assert "END" in seen


@pytest.mark.parametrize("verb", ["run.start", "verbs.chat"])
def test_the_bar_of_importing_is_as_long_as_what_is_imported(verb):
    code = "import sys\nfrom lora_train.trainer import phases\nasked = []\n"
    code += f"sys.meta_path.insert(0, phases._Asked(asked.append))\nimport lora_train.trainer.{verb}\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}print(len(asked))"], capture_output=True, text=True, env=COMMAND_ENVIRONMENT
    )
    assert int(done.stdout) == pytest.approx(phases.MODULES, rel=0.2)


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"RANK": "1"}])
def test_who_wants_plain_lines_gets_them(environment):
    seen = on_a_terminal(CODE.replace("Console()", "Console(silent=False)"), **environment)
    assert "reading" not in seen
    assert "END" in seen


def test_a_pipe_sees_nothing(capsys):
    with phases.phase("reading", 3) as advance:
        advance(3)
    with phases.phase("loading"):
        pass
    assert capsys.readouterr() == ("", "")
    assert phases.is_shown() is False


LOADING = """
import sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging
from lora_train.trainer.model.load import weights_counted
from lora_train.trainer.phases import phase
small = dict(hidden_size=8, intermediate_size=8, num_attention_heads=1, num_hidden_layers=2, vocab_size=8)
LlamaForCausalLM(LlamaConfig(**small)).save_pretrained(sys.argv[1])
logging.disable_progress_bar()
with phase("loading it"), weights_counted():
    LlamaForCausalLM.from_pretrained(sys.argv[1])
with phase("afterwards"):
    LlamaForCausalLM.from_pretrained(sys.argv[1])
print("END")
"""


def test_loading_tells_of_how_many_weights_it_has_read(tmp_path):
    code = LOADING.replace("sys.argv[1]", repr(str(tmp_path)))
    during, after = on_a_terminal(code).split("afterwards", 1)
    assert "loading it" in during
    assert "weights" in during
    assert "0/21" in during
    assert "weights" not in after
    assert "END" in after
