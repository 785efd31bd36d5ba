# lora-train for one NVIDIA GPU, or for small models on a CPU. Build it in the folder of this file:
#   docker build -t lora-train .
#   docker run --gpus all -v "$PWD:/data" -v "$HOME/.cache/huggingface:/cache" lora-train --config koalpaca.yaml
# Of its steps the installation of this package was run in a clean folder; the image itself has been built nowhere yet.
FROM python:3.11-slim

# the release that the image has is the one that fits it
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# A CUDA build of torch brings the triton and the CUDA libraries it needs; for a CPU:
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu -t lora-train .
ARG TORCH_INDEX=https://pypi.org/simple
WORKDIR /src
COPY constraints.txt .
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple -c constraints.txt torch

COPY pyproject.toml setup.py README.md LICENSE ./
COPY kernels kernels
COPY instrument instrument
COPY trainer trainer
COPY typings typings
RUN pip install --no-cache-dir -c constraints.txt ".[gguf]" && lora-train --version

ENV HF_HOME=/cache XDG_CACHE_HOME=/cache
RUN useradd --create-home --uid 1000 trainer && mkdir -p /data /cache && chown 1000 /data /cache
USER 1000
WORKDIR /data
ENTRYPOINT ["lora-train"]
CMD ["--help"]
