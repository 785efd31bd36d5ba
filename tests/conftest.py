"""Shared by all tests: tiny real models made from configs, and the real command line in a subprocess.

A process tests one of two things. `pytest -m gpu` runs what is marked gpu, on the CUDA device, with compiled kernels.
Every other call runs the rest on the CPU, on a machine with a GPU too: no test trains on another device than it was
written for, and its command lines see no GPU either.

On the CPU Triton kernels run in the interpreter. TRITON_INTERPRET is read when a kernel is defined, so it is set for
the whole process, before triton is imported. That changes nothing else: CPU tensors take the CPU path, interpreter
or not, unless a test calls a Triton launcher itself or enters `lora_train.kernels.backend.triton_on_cpu()`. Tests that
need the real compiler start a process without the variable.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from .forked import Command

# A shell that runs the tests in the background has SIGINT ignored, and what they start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "examples" / "data" / "koalpaca_mini.jsonl"
VOCABULARY = 512

# no test asserts a time: on a busy machine an example takes as long as it takes
hypothesis_settings.register_profile("any_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("any_machine")

# sentences are tested in English unless a test says otherwise; the hub is never asked
os.environ.update(LORA_TRAIN_LANG="en", HF_HUB_OFFLINE="1")
# tokens that an earlier version of the code has kept would hide its mistakes
_CACHE = tempfile.TemporaryDirectory(prefix="lora-train-cache-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name

# Deterministic algorithms, which tests/kernels turns on, make cuBLAS raise without it.
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"

# What a user's shell has: compiled kernels; one thread, because the models are tiny.
COMMAND_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
COMMAND_ENVIRONMENT.pop("TRITON_INTERPRET", None)  # a process of pytest-xdist inherits it
ON_GPU = False
SLOW_FIXTURES = {"tiny_models", "cli", "triton_device", "chromium"}
"""Of whole models, processes, a browser and Triton's interpreter."""

Cli = Callable[..., subprocess.CompletedProcess]


def wants_gpu(expression: str) -> bool:
    """Whether `pytest -m EXPRESSION` asks for the tests that need a CUDA device."""
    return re.search(r"(?<!not )\bgpu\b", expression) is not None


def pytest_addoption(parser: pytest.Parser) -> None:
    left_out = "leave out whole models, processes, browsers, counted rates and Triton's interpreter"
    parser.addoption("--fast", action="store_true", help=left_out)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Decides what this process tests, before a kernel is defined and before CUDA starts."""
    global ON_GPU
    assert "triton" not in sys.modules, "a conftest.py imports triton, whose own functions are defined by now"
    ON_GPU = wants_gpu(config.option.markexpr) and has_gpu()
    if not ON_GPU:
        COMMAND_ENVIRONMENT["CUDA_VISIBLE_DEVICES"] = os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["TRITON_INTERPRET"] = "1"


def has_gpu() -> bool:
    import torch  # a tenth of the tests need none

    return torch.cuda.is_available()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips what is marked gpu where there is none, with the reason; --fast deselects what is slow."""
    if config.option.fast:
        slow = {
            item
            for item in items
            if "interpreter" in item.name
            or item.get_closest_marker("slow")
            or SLOW_FIXTURES & set(getattr(item, "fixturenames", ()))
        }
        config.hook.pytest_deselected(items=list(slow))
        items[:] = [item for item in items if item not in slow]
    if not ON_GPU:
        for item in items:
            # a mark, not a keyword: names of folders are keywords too
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and pytest -m gpu"))


@pytest.fixture(autouse=True)
def no_process_in_a_fast_run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips a test of --fast where it would start a process."""
    if request.config.option.fast:
        monkeypatch.setattr(
            subprocess.Popen, "__init__", lambda *_, **__: pytest.skip("starts a process; not in --fast")
        )


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Lets a test run on both: in a process of its kind the trainer takes that device by itself."""
    return request.param


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with a two-layer GPT-NeoX and a two-layer LLaMA (float32) and a byte-level BPE tokenizer."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train([str(DATA)], vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>")
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    torch.manual_seed(0)
    models = {
        "gpt_neox": GPTNeoXForCausalLM(GPTNeoXConfig(**sizes)),
        "llama": LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2)),
    }
    folders = {}
    for name, model in models.items():
        folders[name] = tmp_path_factory.mktemp("models") / name
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Runs the lora-train command in a process of its own: a fresh interpreter where `env` is given, else a fork."""

    def run(*arguments: object, cwd: Path = ROOT, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
        if env is None:
            return Command(*arguments, environment=COMMAND_ENVIRONMENT, cwd=cwd).finished(timeout=300)
        return subprocess.run(
            [str(Path(sys.executable).with_name("lora-train")), *map(str, arguments)],
            cwd=cwd,
            env={**COMMAND_ENVIRONMENT, **env},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run
