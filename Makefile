# The commands of the project; `.ci/run` and the README use the same ones.
# Every target sets itself up: a virtual environment in .venv with the package built into it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OLDEST ?= .venv-oldest
HF ?= .venv-hf
EXPORT ?= .venv-export
RUNTIME ?= .venv-runtime
WEB ?= .venv-web
MEDIA ?= .venv-media
RAY ?= .venv-ray
DOCS ?= .venv-docs
RUST_FILES := Cargo.toml Cargo.lock $(shell find rust -name '*.rs')
ARGS ?=
# The tests start hundreds of processes of Python, each of which would compile the package anew.
export PYTHONDONTWRITEBYTECODE :=
# Of each target of `make fuzz`.
SECONDS ?= 60
# One process per core, four at most, since each holds torch. Each starts with half of the tests in
# order; one that is done takes some of what another has left. Threads of torch that spin while they
# wait would take the cores of the other processes.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

.PHONY: demo test test-all test-hf test-export test-runtime test-web test-media test-ray test-interpreter test-oldest kernels-aot fuzz \
  docs package lint licenses advisories fmt build bench clean

# The whole of FIBER on this machine; `make demo ARGS=--fast` for the short one.
demo: $(VENV)/.installed-demo
	$(BIN)/fiber demo $(ARGS)

# Tests with a target of their own, which are in none of the others.
APART := --ignore=tests/hf --ignore=tests/web --ignore=tests/ray_data

# The tests of every commit: every unit, command and recorded tensor, a short run of each kind.
test: $(VENV)/.installed-dev
	cargo test --release
	$(PYTEST) -m "not slow and not package and not export" $(APART) $(ARGS)

# Every test but those of `make package`, `make test-hf`, `make test-export` and `make test-web`: also
# learning, kills, strategies, mistakes, pages of the docs.
test-all: $(VENV)/.installed-dev
	cargo test --release
	$(MAKE) test-interpreter ARGS=
	$(PYTEST) -m "not package and not export" $(APART) $(ARGS)

# `fiber.hf` with the transformers of .venv, which is the newest when .venv is made, and with the oldest
# that pyproject.toml allows, in an environment that takes all other packages from .venv. Warnings of the
# oldest are its own.
test-hf: $(VENV)/.installed-dev $(HF)/.installed
	$(PYTEST) tests/hf $(ARGS)
	$(subst $(BIN),$(HF)/bin,$(PYTEST)) --allow-warnings tests/hf $(ARGS)

# Exported graphs in onnxruntime, OpenVINO and torch.export, in an environment with these packages
# over that of the other tests.
test-export: $(EXPORT)/.installed
	$(subst $(BIN),$(EXPORT)/bin,$(PYTEST)) -m export tests/export tests/runtime $(ARGS)

# The commands on exported graphs in an environment of fiber-vl-runtime alone, without torch: they print
# what they print for the network. The size of the environment is printed and limited.
test-runtime: $(EXPORT)/.installed
	rm -rf $(RUNTIME) target/runtime
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir target/runtime/wheel .
	.ci/runtime-wheel target/runtime/wheel/fiber_vl-*.whl target/runtime/wheel
	$(PYTHON) -m venv $(RUNTIME)
	$(RUNTIME)/bin/python -m pip install --quiet target/runtime/wheel/fiber_vl_runtime-*.whl
	$(EXPORT)/bin/python -m tests.runtime.record target/runtime/recorded
	$(RUNTIME)/bin/python -I tests/runtime/without_torch.py target/runtime/recorded

# The page of `fiber web` in a headless Chromium, if one is installed (Debian: apt-get install chromium),
# in an environment with Gradio and playwright over that of the other tests.
test-web: $(WEB)/.installed
	$(WEB)/bin/python -m pytest tests/web $(ARGS)

# Videos by torchcodec, which needs the libraries of FFmpeg (Debian: apt-get install ffmpeg), and results as
# `supervision.Detections`, in an environment with both over that of the other tests.
test-media: $(MEDIA)/.installed
	$(MEDIA)/bin/python -m pytest tests/data/storage/test_video.py tests/data/writers/test_supervision.py \
	  tests/postprocess/test_notebook.py $(ARGS)

# Triton interprets or compiles a kernel by an environment variable, read when the kernel is decorated:
# each needs a pytest run of its own. Without Triton both are skipped.
NEEDS_TRITON = $(BIN)/python -c 'import triton' 2>/dev/null || { echo 'skipped: no Triton'; exit 0; }

# `fiber map --engine ray` on a cluster of two logical nodes, and the lines with Daft, in an environment
# with both over that of the other tests. Warnings are those of Ray.
test-ray: $(RAY)/.installed
	OMP_NUM_THREADS=1 $(RAY)/bin/python -m pytest --allow-warnings tests/ray_data $(ARGS)

# The Triton kernels in Triton's interpreter, against their definitions.
test-interpreter: $(VENV)/.installed-dev
	@$(NEEDS_TRITON); set -x; \
	TRITON_INTERPRET=1 OPENBLAS_NUM_THREADS=1 $(PYTEST) --dist load tests/kernels/triton $(ARGS)

# The Triton kernels compiled for GPUs that are not present: registers, spills, shared memory.
# Results are cached in target/kernels-aot.
kernels-aot: $(VENV)/.installed-dev
	@$(NEEDS_TRITON); set -x; \
	TRITON_INTERPRET=0 $(PYTEST) --dist load tests/kernels/compiled $(ARGS)

# Every fuzz target for SECONDS each, guided by coverage; `make fuzz ARGS="packs images"` runs some.
# atheris has no wheels for every version of Python, so it is no requirement of the tests.
fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet 'atheris>=3'
	command -v cargo-fuzz >/dev/null || cargo install cargo-fuzz
	$(BIN)/python -m tests.fuzz $(SECONDS) $(ARGS)

# What only the project's own developers run: the library does not need it. And the Rust crate by itself,
# whose results depend on no package but NumPy's arrays, which tests/data hands to it.
TOOLS := benches benchmarks examples fuzz plant rust test_docs.py test_examples.py test_glossary.py \
  test_layering.py

# `make test` of the library with the oldest versions that pyproject.toml allows, in an environment of
# their own, whose warnings are theirs; and the Triton kernels in the interpreter of the oldest Triton
# for which they run by default, which is newer than the Triton of the oldest torch.
test-oldest: $(OLDEST)/.installed
	$(subst $(BIN),$(OLDEST)/bin,$(PYTEST)) -m "not slow and not package and not export" --allow-warnings \
	  $(TOOLS:%=--ignore=tests/%) $(APART) $(ARGS)
	PYTHONPATH=$(OLDEST)/triton TRITON_INTERPRET=1 OPENBLAS_NUM_THREADS=1 \
	  $(subst $(BIN),$(OLDEST)/bin,$(PYTEST)) --dist load --allow-warnings tests/kernels/triton $(ARGS)

# The site of the documentation, in target/site, in an environment with mkdocs over that of the tests.
# Warnings and links to nowhere are errors, and so is a cell of a notebook that fails.
docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 PATH="$(CURDIR)/$(DOCS)/bin:$$PATH" $(DOCS)/bin/python -m mkdocs build --strict $(ARGS)

# Builds of the wheel and the source distribution, each from scratch.
package: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m package $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m mypy.stubtest fiber._core
	cargo fmt --check
	cargo clippy --release --all-targets -- -D warnings
	cargo clippy --release --all-targets --features python -- -D warnings
	$(BIN)/python .ci/licenses.py
	.ci/unless-passed licenses Cargo.toml Cargo.lock deny.toml pyproject.toml .ci/licenses.py -- \
	  $(MAKE) licenses

# Not optimized, since to build it takes much longer than to run it.
DENY = cargo deny --version >/dev/null 2>&1 \
  || CARGO_PROFILE_DEV_DEBUG=0 cargo install --locked --debug --no-default-features cargo-deny@0.20.2

# The licenses, sources and duplicates of all crates, and the licenses of the Python packages of every
# extra, also of those that are not installed. Known vulnerabilities of the crates, where
# `make advisories` has brought the database.
licenses: $(VENV)/.installed-dev
	$(DENY)
	cargo deny --locked check licenses bans sources
	@if ls -d $${CARGO_HOME:-$$HOME/.cargo}/advisory-dbs/*/.git >/dev/null 2>&1; then \
	  set -x; cargo deny --locked --offline check advisories; \
	else \
	  echo "advisories of crates: not checked, no database; 'make advisories' fetches it from GitHub"; \
	fi
	$(BIN)/python .ci/licenses.py --all

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
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	for bench in benches/bench_*.py; do $(BIN)/python $$bench || exit 1; done

clean:
	rm -rf $(VENV) $(OLDEST) $(HF) $(EXPORT) $(RUNTIME) $(WEB) $(MEDIA) $(RAY) $(DOCS) target dist

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# Reinstalled when the Rust code or the metadata changes; Python files are used where they are.
$(VENV)/.installed-demo: $(BIN)/python pyproject.toml $(RUST_FILES)
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	touch $@

$(VENV)/.installed-dev: $(BIN)/python pyproject.toml $(RUST_FILES)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.installed-demo

PURELIB := import sysconfig; print(sysconfig.get_path("purelib"))
$(HF)/.installed: $(VENV)/.installed-dev .ci/oldest-requirements
	$(BIN)/python -m venv $(HF)
	echo "import site; site.addsitedir('$$($(BIN)/python -c '$(PURELIB)')')" \
	  > "$$($(HF)/bin/python -c '$(PURELIB)')/layer.pth"
	# Newer versions bring the package kernels, of which 5.0 needs its own version (its extra hub-kernels).
	$(HF)/bin/python -m pip install --quiet $$(.ci/oldest-requirements hf | sed 's/^transformers/&[hub-kernels]/')
	touch $@

$(OLDEST)/.installed: pyproject.toml .ci/oldest-requirements $(RUST_FILES)
	$(PYTHON) -m venv $(OLDEST)
	.ci/oldest-requirements > $(OLDEST)/requirements.txt
	$(OLDEST)/bin/python -m pip install --quiet --requirement $(OLDEST)/requirements.txt
	$(OLDEST)/bin/python -m pip install --quiet --no-deps --editable .
	$(OLDEST)/bin/python -m pip install --quiet --no-deps --target $(OLDEST)/triton \
	  triton==$$($(OLDEST)/bin/python -c 'from fiber.kernels.runtime.dispatch import TESTED_TRITON as t; print("%d.%d" % t[0])')
	touch $@

$(EXPORT)/.installed: $(VENV)/.installed-dev
	$(PYTHON) -m venv $(EXPORT)
	$(BIN)/python -c 'import tomllib; \
	  extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	  print(*extras["onnx"], *extras["openvino"], sep="\n")' > $(EXPORT)/requirements.txt
	$(EXPORT)/bin/python -m pip install --quiet --requirement $(EXPORT)/requirements.txt
	$(BIN)/python -c 'import sysconfig; \
	  print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > $$($(EXPORT)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dev.pth
	touch $@

$(WEB)/.installed: $(VENV)/.installed-dev
	$(BIN)/python -m venv $(WEB)
	$(BIN)/python -c 'import tomllib; \
	  extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	  print(*(each for each in extras["web"] if "fiber-vl" not in each), sep="\n")' > $(WEB)/requirements.txt
	$(WEB)/bin/python -m pip install --quiet --requirement $(WEB)/requirements.txt playwright
	$(BIN)/python -c 'import sysconfig; \
	  print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > $$($(WEB)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dev.pth
	touch $@

$(MEDIA)/.installed: $(VENV)/.installed-dev
	$(BIN)/python -m venv $(MEDIA)
	$(BIN)/python -c 'import sysconfig; \
	  print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > $$($(MEDIA)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dev.pth
	$(MEDIA)/bin/python -m pip install --quiet $$($(BIN)/python -c 'import tomllib; \
	  print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["video"])') supervision
	touch $@

$(RAY)/.installed: $(VENV)/.installed-dev
	$(BIN)/python -m venv $(RAY)
	echo "import site; site.addsitedir('$$($(BIN)/python -c '$(PURELIB)')')" \
	  > "$$($(RAY)/bin/python -c '$(PURELIB)')/dev.pth"
	$(RAY)/bin/python -m pip install --quiet $$(.ci/oldest-requirements ray | sed 's/==/>=/') 'daft>=0.7.26'
	touch $@

$(DOCS)/.installed: $(VENV)/.installed-dev
	$(BIN)/python -m venv $(DOCS)
	$(BIN)/python -c 'import sysconfig; \
	  print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > $$($(DOCS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dev.pth
	$(BIN)/python -c 'import tomllib; \
	  extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	  print(*extras["docs"], sep="\n")' > $(DOCS)/requirements.txt
	$(DOCS)/bin/python -m pip install --quiet --requirement $(DOCS)/requirements.txt
	touch $@
