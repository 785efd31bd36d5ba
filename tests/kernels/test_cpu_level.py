"""The CPU tests under every level that this chip has, and who chooses the level.

A level is tested as a chip without more has it: in a process of its own, where torch, oneDNN and MKL keep to the same
instructions. This process has one level; the others follow below.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lora_train.kernels import cpu
from lora_train.kernels.attention.causal import attention
from lora_train.kernels.cpu_level import LEVELS, VARIABLE, LevelError, chosen_level

from ..conftest import DATA, ROOT, Cli
from .helpers import at_level, levels_here

# What torch, oneDNN and MKL call the same instructions.
LIBRARIES = {
    "portable": ("default", "SSE41", "SSE4_2"),
    "avx2": ("avx2", "AVX2", "AVX2"),
    "avx512": ("avx512", "AVX512_CORE", "AVX512"),
    "amx": ("avx512", "AVX512_CORE_AMX", "AVX512_E4"),
}
LIBRARY_VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
# Everything that reaches the C loops or is compared with what the libraries compute.
FILES = (
    "kernels/attention/test_causal.py", "kernels/test_cross_entropy.py", "kernels/elementwise/test_elementwise.py",
    "kernels/statistics/test_exponents.py", "kernels/frozen/test_product.py", "kernels/lora_linear/test_lora_linear.py",
    "kernels/lora_linear/test_passes.py", "kernels/frozen/test_nf4.py", "kernels/statistics/test_tensor_stats.py",
    "kernels/statistics/test_tensor_stats_aten.py",
    "trainer/verbs/test_merge.py::test_merged_folder_computes_what_base_and_adapter_do",
    "kernels/cpu/test_scratch.py", "kernels/test_cpu_level.py::test_this_process_runs_what_was_asked_for",
)  # fmt: skip
# Not what no level changes: Triton's interpreter, torch's checks of operators and of graphs.
LEFT_OUT = "not (interpreter or cuda or opcheck or compiles)"

needs_c = pytest.mark.skipif(not cpu.AVAILABLE, reason="the C extension was not built")


def test_this_process_runs_what_was_asked_for():
    """The proof for the processes below, which run this too; without the variables it is the chip's best."""
    if cpu.AVAILABLE:
        assert (os.environ.get(VARIABLE) or cpu.BEST) == cpu.LEVEL
        assert (cpu.LEVEL == "amx") == cpu.TILES
    if "ATEN_CPU_CAPABILITY" in os.environ:
        assert torch.backends.cpu.get_cpu_capability().lower() == os.environ["ATEN_CPU_CAPABILITY"]


@needs_c
@pytest.mark.parametrize("level", LEVELS)
def test_every_level_passes_the_cpu_tests(level: str):
    if level not in levels_here():
        pytest.skip(f"this chip has {cpu.BEST} at best, not {level}")
    if level == cpu.LEVEL:
        pytest.skip(f"this very process runs {level}")
    settings = {VARIABLE: level, **dict(zip(LIBRARY_VARIABLES, LIBRARIES[level], strict=True))}
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "-k", LEFT_OUT]
    result = subprocess.run(
        [*command, *(f"tests/{file}" for file in FILES)],
        cwd=ROOT,
        env={**os.environ, **settings, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, f"{settings}\n{result.stdout[-8000:]}\n{result.stderr[-2000:]}"
    assert " passed" in result.stdout


@needs_c
def test_every_level_has_loops_of_its_own():
    """Sums of 4, 8 and 16 lanes are rounded differently: the order in which a level adds shows which loops ran."""
    q, k, v = torch.randn(3, 1, 2, 65, 48, generator=torch.Generator().manual_seed(0))
    found = []
    for level in levels_here():
        with at_level(level):
            found.append(attention(q, k, v, 0.3))
    apart = found[:3]  # attention has no use for tiles
    assert len({tuple(y.flatten().tolist()) for y in apart}) == len(apart)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5)


@needs_c
def test_no_loops_are_taken_that_the_chip_lacks():
    for module in (cpu._attention, cpu._elementwise, cpu._low_rank, cpu._product, cpu._stats):
        assert LEVELS[module.best_level()] == cpu.BEST
        with pytest.raises(ValueError, match="level 4 of 0 to"):
            module.use_level(len(LEVELS))


def test_the_variable_chooses_and_nothing_chooses_the_best(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert [chosen_level(best) for best in LEVELS] == [*LEVELS]
    monkeypatch.setenv(VARIABLE, "")
    assert chosen_level("avx512") == "avx512"
    monkeypatch.setenv(VARIABLE, "avx2")
    assert [chosen_level(best) for best in ("avx2", "avx512", "amx")] == ["avx2"] * 3


@pytest.mark.parametrize("asked", ["avx512", "amx", "AVX2", "sse", " "])
def test_more_than_the_chip_has_and_other_words_are_errors(asked: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, asked)
    with pytest.raises(LevelError) as caught:
        chosen_level("avx2")
    assert str(caught.value) == f"LORA_TRAIN_CPU={asked}: the CPU loops that run on this machine are portable, avx2"


@needs_c
def test_the_command_names_the_mistake(cli: Cli, tiny_models: dict[str, Path], tmp_path: Path):
    config = tmp_path / "config.yaml"
    model = f"model: {{name_or_path: {tiny_models['llama']}}}"
    config.write_text(f"{model}\ndata: {{train: {DATA}, format: koalpaca}}\ntraining: {{output_dir: {tmp_path}/run}}\n")
    result = cli("--config", config, env={VARIABLE: "avx9"})
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error: LORA_TRAIN_CPU=avx9: no CPU loops of this name run on this machine\n"
        f"hint: there are {', '.join(levels_here())}; unset LORA_TRAIN_CPU to take the last\n"
    )
