"""Maps the three top-level folders to lora_train.kernels, lora_train.instrument and lora_train.trainer.

What `import lora_train` itself offers is typings/lora_train/__init__.py, beside the links that show editors the three.

They are not installed as `kernels`, ...: Hugging Face has a library of that name, which transformers and
bitsandbytes import. Everything else about the distribution is in pyproject.toml.
"""

from pathlib import Path

from setuptools import Extension, setup

FOLDERS = sorted(
    {".".join(path.parent.parts) for top in ("kernels", "instrument", "trainer") for path in Path(top).rglob("*.py")}
)

HEADERS = (
    *("attention_tiles", "common", "dropout", "halves", "planes", "statistics", "threads"),
    *("low_rank/job", "low_rank/shares", "low_rank/tiles"),
)
# Whether a product and a sum may be rounded together: what has a chip's own bits may.
FUSES = {"stats": False, "elementwise": False, "low_rank": True, "attention": True, "product": False}

# Optional: without a compiler the package installs and works, and ATen computes what they would have.
# No -march=native: each holds variants for AVX-512, for AVX2 and for any chip; LORA_TRAIN_CPU chooses.
compiled = [
    Extension(
        f"lora_train.kernels.cpu._{name}",
        [f"kernels/cpu/{name}.c"],
        depends=[f"kernels/cpu/{header}.h" for header in HEADERS],
        extra_compile_args=[
            "-O3",
            "-std=c11",
            f"-ffp-contract={'fast' if fuses else 'off'}",
            "-fno-trapping-math",
            "-pthread",
            "-Wall",
            "-Wextra",
            "-Wno-psabi",
        ],
        optional=True,
    )
    for name, fuses in FUSES.items()
]

setup(
    packages=["lora_train", *(f"lora_train.{folder}" for folder in FOLDERS)],
    package_dir={
        "lora_train": "typings/lora_train",
        **{f"lora_train.{folder}": folder.replace(".", "/") for folder in FOLDERS},
    },
    package_data={
        "lora_train": ["py.typed"],
        "lora_train.instrument": ["catalogue/*.json", "py.typed"],
        "lora_train.instrument.board.page": ["*.html", "*.css", "*.js"],
        "lora_train.instrument.show.page": ["*.html", "*.css", "*.js", "charts/*.js", "layers/*.js", "vendor/*"],
        "lora_train.kernels.cpu": ["*.c", "*.h", "low_rank/*.h"],
    },
    ext_modules=compiled,
)
