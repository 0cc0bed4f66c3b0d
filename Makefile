# The commands of the project; `.ci/run` and the README use the same ones.
# Every target sets itself up, with the versions of constraints.txt: a virtual environment in .venv with
# the package built into it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OLDEST ?= .venv-oldest
RUNTIME ?= .venv-runtime
RUST_FILES := Cargo.toml Cargo.lock $(shell find rust -name '*.rs')
# Options and paths for pytest: `make test ARGS=tests/hf`.
ARGS ?=
# The tests start hundreds of processes of Python, each of which would compile the package anew.
export PYTHONDONTWRITEBYTECODE :=
# Of each target of `make fuzz`.
SECONDS ?= 60
UV := $(BIN)/uv
LOCKED := $(UV) pip install --quiet --constraints constraints.txt --python

.PHONY: demo test affected test-all test-oldest test-runtime test-ray test-interpreter newest lock kernels-aot fuzz docs \
  package lint lint-python lint-rust licenses advisories fmt build bench clean

# The whole of FIBER on this machine; `make demo ARGS=--fast` for the short one.
demo: $(VENV)/.installed-demo
	$(BIN)/fiber demo $(ARGS)

# The tests of every commit: every unit, command and recorded tensor, a short run of each kind.
test: $(VENV)/.installed-dev
	cargo test --release
	.ci/pytest $(BIN)/python -m "not slow and not package" $(ARGS)

# The tests of `make test` that changes since SINCE (a commit; by default where the branch left the remote's
# main) can reach, the nearest first, for MINUTES (3 by default; 0: all of them).
affected: $(VENV)/.installed-dev
	$(BIN)/python .ci/affected $(if $(SINCE),--since='$(SINCE)') $(if $(MINUTES),--minutes=$(MINUTES)) $(ARGS)

# Every test: also learning, kills, strategies, mistakes, pages of the docs, builds of the wheel, the Triton
# kernels, and the two other environments.
test-all: $(VENV)/.installed-dev
	cargo test --release
	.ci/pytest $(BIN)/python -m "not package" $(ARGS)
	$(MAKE) package test-interpreter kernels-aot test-oldest test-runtime docs ARGS=

# The tests marked `oldest` with the lower bounds of pyproject.toml, whose warnings are theirs; and Triton
# kernels in the interpreter of the oldest Triton for which they run by default, which is newer than
# the Triton of the oldest torch.
MARKED = $$(grep -rl --include='test_*.py' pytest.mark.oldest tests | grep -v ^tests/kernels/triton)
test-oldest: $(OLDEST)/.installed
	.ci/pytest $(OLDEST)/bin/python -m "oldest and not slow" --allow-warnings $(MARKED) $(ARGS)
	PYTHONPATH=$(OLDEST)/triton TRITON_INTERPRET=1 OPENBLAS_NUM_THREADS=1 \
	  .ci/pytest $(OLDEST)/bin/python --dist load --allow-warnings \
	  tests/kernels/triton/test_operations.py tests/kernels/triton/test_cross_attention.py $(ARGS)

# The commands on exported graphs in an environment of fiber-vl-runtime alone, without torch: they print
# what they print for the network. The size of the environment is printed and limited.
test-runtime: $(VENV)/.installed-dev
	rm -rf $(RUNTIME) target/runtime
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir target/runtime/wheel .
	.ci/runtime-wheel target/runtime/wheel/fiber_vl-*.whl target/runtime/wheel
	$(UV) venv --quiet --python $(BIN)/python $(RUNTIME)
	$(LOCKED) $(RUNTIME)/bin/python target/runtime/wheel/fiber_vl_runtime-*.whl
	$(BIN)/python -m tests.runtime.record target/runtime/recorded
	$(RUNTIME)/bin/python -I tests/runtime/without_torch.py target/runtime/recorded

# `fiber map` on a Ray cluster of two logical nodes, and in Daft.
test-ray: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/ray_data $(ARGS)

# Triton interprets or compiles a kernel by an environment variable, read when the kernel is decorated:
# each needs a pytest run of its own. Without Triton both are skipped.
NEEDS_TRITON = $(BIN)/python -c 'import triton' 2>/dev/null || { echo 'skipped: no Triton'; exit 0; }

# The Triton kernels in Triton's interpreter, against their definitions.
test-interpreter: $(VENV)/.installed-dev
	@$(NEEDS_TRITON); set -x; \
	TRITON_INTERPRET=1 OPENBLAS_NUM_THREADS=1 .ci/pytest $(BIN)/python --dist load tests/kernels/triton $(ARGS)

# The Triton kernels compiled for GPUs that are not present: registers, spills, shared memory.
# Results are cached in target/kernels-aot.
kernels-aot: $(VENV)/.installed-dev
	@$(NEEDS_TRITON); set -x; \
	TRITON_INTERPRET=0 .ci/pytest $(BIN)/python --dist load tests/kernels/compiled $(ARGS)

# The tests of every commit with the newest release of every package, in an environment that is removed:
# which releases differ from the lock, and what fails with them.
newest: $(VENV)/.installed-dev
	.ci/newest $(ARGS)

# The versions of all environments: of every extra for Python 3.11 and later, and of the lower bounds. To
# move one package: make lock ARGS="--upgrade-package NAME"; without ARGS, all move.
lock: $(UV)
	.ci/lock $(UV) $(ARGS)

# Every fuzz target for SECONDS each, guided by coverage; `make fuzz ARGS="packs images"` runs some.
# atheris has no wheels for every version of Python, so it is no requirement of the tests.
fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet 'atheris>=3'
	command -v cargo-fuzz >/dev/null || cargo install cargo-fuzz
	$(BIN)/python -m tests.fuzz $(SECONDS) $(ARGS)

# The site of the documentation, in target/site. Warnings and links to nowhere are errors, and so is a cell
# of a notebook that fails.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m mkdocs build --strict $(ARGS)

# Builds of the wheel and the source distribution, each from scratch.
package: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m package $(ARGS)

# In parallel: make -j2 -O lint.
lint: lint-python lint-rust

lint-python: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m mypy.stubtest fiber._core
	$(BIN)/python .ci/licenses.py

lint-rust: $(VENV)/.installed-dev
	cargo fmt --check
	cargo clippy --release --all-targets -- -D warnings
	cargo clippy --release --all-targets --features python -- -D warnings

# Not optimized, since to build it takes much longer than to run it.
DENY = cargo deny --version >/dev/null 2>&1 \
  || CARGO_PROFILE_DEV_DEBUG=0 cargo install --locked --debug --no-default-features cargo-deny@0.20.2

# The licenses, sources and duplicates of all crates; those of Python packages are part of `make lint`.
# Known vulnerabilities of the crates, where `make advisories` has brought the database.
licenses:
	$(DENY)
	cargo deny --locked check licenses bans sources
	@if ls -d $${CARGO_HOME:-$$HOME/.cargo}/advisory-dbs/*/.git >/dev/null 2>&1; then \
	  set -x; cargo deny --locked --offline check advisories; \
	else \
	  echo "advisories of crates: not checked, no database; 'make advisories' fetches it from GitHub"; \
	fi

# Known vulnerabilities of the crates, with the present database.
advisories:
	$(DENY)
	cargo deny --locked check advisories

fmt: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	cargo fmt

# The wheel, in dist/.
build: $(VENV)/.installed-dev
	$(BIN)/maturin build --release --out dist

# Every bench, each against its peer in the same run; rows go to benches/results.
bench: $(VENV)/.installed-dev
	for bench in benches/bench_*.py; do $(BIN)/python $$bench || exit 1; done

clean:
	rm -rf $(VENV) $(OLDEST) $(RUNTIME) target dist

# uv is part of the lock, and comes by pip.
$(UV):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv

# The extension is built without isolation: by the maturin of the lock, and in cargo's target folder as before.
EDITABLE := --no-build-isolation --reinstall-package fiber-vl --editable

# Reinstalled when the Rust code, the metadata or the lock changes; Python files are used where they are.
$(VENV)/.installed-demo: $(UV) pyproject.toml constraints.txt $(RUST_FILES)
	$(LOCKED) $(BIN)/python maturin
	$(LOCKED) $(BIN)/python $(EDITABLE) '.[demo]'
	touch $@

$(VENV)/.installed-dev: $(UV) pyproject.toml constraints.txt $(RUST_FILES)
	$(LOCKED) $(BIN)/python maturin
	$(LOCKED) $(BIN)/python $(EDITABLE) '.[dev]'
	touch $@ $(VENV)/.installed-demo

$(OLDEST)/.installed: $(UV) pyproject.toml constraints-oldest.txt $(RUST_FILES)
	$(UV) venv --quiet --clear --python $(BIN)/python $(OLDEST)
	$(UV) pip install --quiet --python $(OLDEST)/bin/python --requirements constraints-oldest.txt
	$(LOCKED) $(OLDEST)/bin/python maturin
	$(LOCKED) $(OLDEST)/bin/python --no-deps $(EDITABLE) .
	$(UV) pip install --quiet --no-deps --target $(OLDEST)/triton \
	  triton==$$($(OLDEST)/bin/python -c 'from fiber.kernels.runtime.dispatch import TESTED_TRITON as t; print("%d.%d.0" % t[0])')
	touch $@
