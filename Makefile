# The developer's commands. `make demo` and `make test` do all the set-up on a fresh Debian or Ubuntu (as root); the others
# need `make build` once. Everything is built and installed inside this directory (.venv, .cache, build).
SHELL := /bin/bash
.DEFAULT_GOAL := build
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONDONTWRITEBYTECODE := 1

C_FILES = $(shell git ls-files --cached --others --exclude-standard -- '*.c' '*.h')
CORE_BUILD = build/core-tests
FUZZ_BUILD = build/fuzz
FUZZ_SECONDS ?= 30

.PHONY: setup test-setup build demo test lint format types core-tests fuzz tests test-agents bench clean help

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## /\1\t/p' Makefile | expand -t 12

setup: ## system packages, .venv and libbpf's sources, where missing
	@scripts/setup.sh

build: setup ## build the wheel and install it into .venv
	@rm -rf build/wheels
	@pip wheel . --quiet --no-build-isolation --no-deps --wheel-dir build/wheels
	@pip install --quiet --no-deps --force-reinstall --no-index build/wheels/agentsight-*.whl
	@echo "built: $$(basename build/wheels/*.whl), installed into .venv"

demo: build ## record a real client's model call and show it (root)
	@demo/run.sh

test: test-setup build lint core-tests tests ## all checks and tests

test-setup: ## the set-up, and the programs that tests watch
	@scripts/setup.sh tests

lint: types ## ruff, mypy, cython-lint, clang-format
	@ruff check --quiet .
	@cython-lint native/*.pyx native/*.pxd
	@clang-format --dry-run -Werror $(C_FILES)
	@echo "lint: clean"

format: ## let clang-format and ruff mend what they can
	@clang-format -i $(C_FILES)
	@ruff check --quiet --fix .

# The stubs of the extensions live in native/; the type checker sees them where an installed package has them.
types: ## mypy over the package
	@rm -rf build/types && mkdir -p build/types && cp -r agentsight build/types/ && cp native/*.pyi build/types/agentsight/_native/
	@cd build/types && mypy --config-file ../../pyproject.toml --cache-dir ../mypy-cache --no-error-summary agentsight

core-tests: ## tests of the C core under AddressSanitizer and UndefinedBehaviorSanitizer
	@cmake -S . -B $(CORE_BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Debug -DAGENTSIGHT_PYTHON=OFF -DAGENTSIGHT_CORE_TESTS=ON \
		-DAGENTSIGHT_SANITIZE=ON --log-level=WARNING
	@cmake --build $(CORE_BUILD) -- --quiet
	@ctest --test-dir $(CORE_BUILD) --parallel $$(nproc) --output-on-failure --no-tests=error

fuzz: ## every fuzz target of the core for FUZZ_SECONDS (30) each; needs clang's libFuzzer (Debian: libclang-rt-dev)
	@cmake -S . -B $(FUZZ_BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Debug -DCMAKE_C_COMPILER=clang -DAGENTSIGHT_PYTHON=OFF \
		-DAGENTSIGHT_CORE_TESTS=ON -DAGENTSIGHT_SANITIZE=ON -DAGENTSIGHT_FUZZ=ON --log-level=WARNING
	@cmake --build $(FUZZ_BUILD) -- --quiet
	@cd $(FUZZ_BUILD) && for f in fuzz_*; do mkdir -p "corpus/$$f" && echo "== $$f" && \
		"./$$f" -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 "corpus/$$f" 2>&1 | tail -n 12; \
		[ "$${PIPESTATUS[0]}" = 0 ] || exit 1; done

tests: ## tests of the installed package (those of the kernel side need root)
	@pytest tests -q

test-agents: build ## real agents against the model server's journal, into docs/agents.md (root; fetches some 2 GB once)
	@pytest tests/agents -q -m "agents or not agents"
	@python tests/agents/report.py

bench: build ## the benchmarks, each against a named peer (root)
	@python bench/http/bench.py
	@python bench/load/run.py

clean: ## remove what was built (.venv and libbpf's sources stay)
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
