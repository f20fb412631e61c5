# Every target sets up what it needs in .venv: only python3 (3.11 or newer, with its headers), g++, make and git
# have to be there. A stamp for each requirements file lets the next run skip the installing.
#
#   make test        format and lint checks, the build, the tests
#   make demo        search Python's documentation; QUERY="…" asks a question of your own
#   make build       build/<variant>/ for the installed torch; BUILD="--backend all --archs 9.0a" passes options
#   make format      rewrite the sources as `make test` wants them
#   make bench       the benchmarks behind the README's figures
#   make sanitize    the fuzz tests under AddressSanitizer and UndefinedBehaviorSanitizer, FUZZ_SECONDS=600 of them

SHELL := bash
.SHELLFLAGS := -o pipefail -ec
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: test lint build format demo bench sanitize clean
export QUERY

PYTHON ?= python3
FUZZ_SECONDS ?= 600
VENV := .venv
BIN := $(VENV)/bin
OVERLAID := tests/test_docs.py::test_snippets_for_libraries tests/test_gpu_integrations.py
CXX_SOURCES := git ls-files '*.cpp' '*.cu' '*.cuh' '*.h' '*.mm'

test: lint build $(VENV)/integrations.stamp $(VENV)/pylate.overlay $(VENV)/colpali.overlay $(VENV)/browser.stamp
	$(BIN)/python -m pytest
	PYTHONPATH=$(CURDIR)/$(VENV)/pylate $(BIN)/python -m pytest tests/test_integrations_pylate.py $(OVERLAID)
	PYTHONPATH=$(CURDIR)/$(VENV)/colpali $(BIN)/python -m pytest tests/test_integrations_colpali_engine.py $(OVERLAID)

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(CXX_SOURCES) | xargs $(BIN)/clang-format --dry-run -Werror

build: $(VENV)/build.stamp
	$(BIN)/python tools/build.py $(BUILD)

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(CXX_SOURCES) | xargs $(BIN)/clang-format -i

demo: $(VENV)/demo.stamp build
	$(BIN)/python examples/search/search.py $(if $(QUERY),"$$QUERY")

bench: $(VENV)/bench.stamp build
	$(BIN)/python benchmarks/run.py

# An ordinary python loads the kernel, so the sanitizer's runtime has to come before it, and libstdc++ with it:
# AddressSanitizer looks up the exception functions when it starts. Python leaves memory to the exit, hence no leaks.
sanitize: $(VENV)/test.stamp
	$(BIN)/python tools/build.py --backend cpu --sanitize address,undefined --output .build/sanitized
	repo_id=$$(sed -n 's/^repo-id = "\(.*\)"/\1/p' build.toml) && \
	LOCAL_KERNELS="$$repo_id=$(CURDIR)/.build/sanitized" \
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	MAXSIM_FUZZ_SECONDS=$(FUZZ_SECONDS) \
	  $(BIN)/python -m pytest tests/test_fuzz.py

# Libraries whose pins contradict the others': over .venv on the path, for the tests that are about them.
$(VENV)/%.overlay: requirements/overlays/%.txt $(BIN)/python
	rm -rf $(VENV)/$*
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/$* --requirement $<
	touch $@

# A browser for the page of maxsim.explain_page; its test is skipped, and says so, where none can be had.
$(VENV)/browser.stamp: tests/install_browser.sh $(BIN)/python
	sh tests/install_browser.sh $(VENV)/browser || echo "no browser: apt-get could not fetch one"
	touch $@

clean:
	rm -rf .build build

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python 3.11 or newer is needed: make PYTHON=…")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/%.stamp: requirements/%.txt requirements/build.txt requirements/constraints.txt $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@
