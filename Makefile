# Every target creates .venv with the pinned lock first.
PYTHON ?= python3
# Compiled files halve the start of the many processes that tests and sweeps consist of.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# One apt-get at a time: apt waits for its lock of packages, not for that of its lists (also in tests/slurm/cluster.py).
APT := flock /var/lock/loopscale-apt apt-get

.DEFAULT_GOAL := help
# The sweeps of docs/study in their order; study_30k_english is apart, its text is not in the repository.
STUDY := study_60k_rates study_60k_rates_longer study_60k_pilot study_60k study_60k_probe \
	study_30k_rates study_30k study_30k_corners study_15k_rates study_15k study_15k_corners headline_tiny

.PHONY: help install demo test validate study study-figures docs lint format lock slurm-up test-slurm slurm-down browser

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## create .venv with the pinned lock

demo: $(INSTALLED) ## run a whole small study on this machine (about 6 minutes on 2 cores)
	$(BIN)/loopscale demo $(ARGS)

test: $(INSTALLED) ## run the tests
	$(BIN)/pytest -n 3 --dist loadgroup $(ARGS)

validate: $(INSTALLED) ## the long studies, some hours; interrupted, they continue; results in docs/validation/
	@failed=; for study in $$(grep -l __main__ validation/*.py); do \
		echo $$study; until $(BIN)/python $$study; do [ $$? -eq 75 ] || { failed="$$failed $$study"; break; }; done; \
	done; [ -z "$$failed" ] || { echo "failed:$$failed"; exit 1; }

study: $(INSTALLED) ## the study of docs/study from nothing (about 7 hours on 2 cores); interrupted, it continues
	@for sweep in $(STUDY); do \
		$(BIN)/loopscale launch sweep=$$sweep confirm=false && \
		$(BIN)/loopscale status sweep=$$sweep watch=true && \
		$(BIN)/loopscale collect sweep=$$sweep && \
		mkdir -p docs/study/$$sweep && cp runs/$$sweep/runs.csv runs/$$sweep/depths.csv docs/study/$$sweep || exit 1; \
	done

study-figures: $(INSTALLED) ## every figure and number of docs/study, from its tables
	$(BIN)/python docs/study/summary.py

browser: ## install headless Chromium, for the tests of the pages (root on Debian)
	@command -v chromium > /dev/null || { \
		$(APT) -o DPkg::Lock::Timeout=300 -qq update && \
		$(APT) -o DPkg::Lock::Timeout=300 -qq install --no-install-recommends chromium > /dev/null; }

slurm-up: $(INSTALLED) ## start a real SLURM cluster on this machine (root installs its Debian packages)
	$(BIN)/python tests/slurm/cluster.py up

test-slurm: $(INSTALLED) ## run the tests against that cluster (about 12 minutes)
	LOOPSCALE_SLURM=1 $(BIN)/pytest tests/slurm -n 4 $(ARGS)

slurm-down: $(INSTALLED) ## stop it and delete its files
	$(BIN)/python tests/slurm/cluster.py wipe

docs: $(INSTALLED) ## build the documentation as a site in build/site; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo build/site/index.html

lint: $(INSTALLED) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: ## pin what pyproject.toml asks for, with hashes; pins that are there stay (needs uv)
	uv pip compile pyproject.toml --quiet --extra dev --universal --generate-hashes --python-version 3.11.5 --no-annotate \
		--no-python-downloads --custom-compile-command "make lock (CPython 3.11.5 to 3.14; Linux x86-64 and aarch64, macOS arm64: docs/install.md)" \
		--constraint requirements.lock --output-file requirements.lock

format: $(INSTALLED) ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@# torch apart, in the build that pip finds here: its hashes are those of the CUDA build.
	awk '/^[a-z0-9]/ {skip = /^(torch|triton|cuda-|nvidia-)/} !skip' requirements.lock > $(VENV)/hashed.txt
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --require-hashes --requirement $(VENV)/hashed.txt
	$(BIN)/python -m pip install --quiet --no-compile "$$(grep -o '^torch==[^ ]*' requirements.lock)"
	@# By its path: with setuptools' import hook, a clone that is called loopscale hides the module beside it.
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable . --config-settings editable_mode=compat
	@# On all cores, where pip would use one; packages may hold sources that are meant for another Python.
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@
