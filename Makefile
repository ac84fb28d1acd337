# `make demo` and `make test` set up all that they need; `make help` lists the rest.
SHELL := /bin/bash
BIN := .venv/bin
DEMO_OPTIONS ?=
PYTEST_OPTIONS ?=
BENCH_OPTIONS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test soak check lint types imports unit bench bench-buffer bench-streamer setup setup-test constraints docs clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: ## Create .venv and install the Debian packages that the demo uses
	@scripts/setup.sh demo

setup-test:
	@scripts/setup.sh test

demo: setup ## A beamline in a box: the main job, end to end (DEMO_OPTIONS="--keep" ...)
	@$(BIN)/lclstream demo $(DEMO_OPTIONS)

test: setup-test lint types imports unit ## Everything that CI checks

soak: setup-test ## The buffer's loss tests at full length: hundreds of rounds of kills, about an hour
	@LCLSTREAM_SOAK=1 $(BIN)/python -m pytest $(PYTEST_OPTIONS) tests/buffer/loss tests/buffer/test_stateful_dispatch.py

check: lint types imports ## The checks that run nothing

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/mypy

imports:
	$(BIN)/lint-imports --verbose 2>/dev/null | tail -n 8 ; exit $${PIPESTATUS[0]}

unit:
	scripts/run-tests.sh $(BIN)/python $(PYTEST_OPTIONS)

bench: bench-buffer bench-streamer ## All benchmarks; figures go to build/bench

bench-buffer: setup ## The buffer beside other relays (BENCH_OPTIONS="--quick" ...)
	$(BIN)/python -m benchmarks.buffer $(BENCH_OPTIONS)

bench-streamer: setup ## The streamer beside what it replaces (BENCH_OPTIONS="--quick" ...)
	$(BIN)/python -m benchmarks.streamer $(BENCH_OPTIONS)

docs: setup ## Draw the pages that come from the code
	$(BIN)/python docs/generate.py

constraints: ## Resolve all dependencies anew into constraints.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header \
	    --no-emit-index-url --all-extras --group dev --no-emit-package torch pyproject.toml -o constraints.txt.all
	@grep -vE '^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==' constraints.txt.all > constraints.txt; rm constraints.txt.all

clean: ## Remove what the other targets made, .venv included
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
