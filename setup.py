"""Maps the three top-level folders to lora_train.kernels, lora_train.instrument and lora_train.trainer.

They are not installed as `kernels`, ...: Hugging Face has a library of that name, which transformers and
bitsandbytes import. Everything else about the distribution is in pyproject.toml.
"""

from setuptools import setup

FOLDERS = ("kernels", "instrument", "trainer")

setup(
    packages=[f"lora_train.{folder}" for folder in FOLDERS],
    package_dir={f"lora_train.{folder}": folder for folder in FOLDERS},
    package_data={"lora_train.instrument": ["catalogue/*.json"]},
)
