"""Maps the three top-level folders to lora_train.kernels, lora_train.instrument and lora_train.trainer.

They are not installed as `kernels`, ...: Hugging Face has a library of that name, which transformers and
bitsandbytes import. Everything else about the distribution is in pyproject.toml.
"""

from setuptools import Extension, setup

FOLDERS = ("kernels", "kernels.cpu", "instrument", "trainer")

# Optional: without a compiler the package installs and works, and ATen computes the CPU's statistics.
# No -march=native: stats.c holds an AVX2 and a portable variant and picks one at run time.
cpu_statistics = Extension(
    "lora_train.kernels.cpu._stats",
    ["kernels/cpu/stats.c"],
    extra_compile_args=["-O3", "-std=c11", "-ffp-contract=off", "-fno-trapping-math", "-pthread"],
    optional=True,
)

setup(
    packages=[f"lora_train.{folder}" for folder in FOLDERS],
    package_dir={f"lora_train.{folder}": folder.replace(".", "/") for folder in FOLDERS},
    package_data={"lora_train.instrument": ["catalogue/*.json"], "lora_train.kernels.cpu": ["*.c"]},
    ext_modules=[cpu_statistics],
)
