# make demo: the main job on a real network. make test: lint, types, tests.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo lint types test test-slow test-zoo fuzz bench models clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/gdu-compile models/digits_mlp.onnx --weights models/digits_mlp.oracle.npz \
	    --data models/digits.npz -o build/digits_mlp.gdu.onnx --force

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# passes/ is installed as gdu_compile.passes; mypy sees that only in a folder where it lies there.
types: install
	rm -rf build/types && mkdir -p build/types/gdu_compile
	ln -s "$(CURDIR)"/gdu_compile/* "$(CURDIR)/passes" build/types/gdu_compile/
	ln -s "$(CURDIR)/benchmarks" "$(CURDIR)/examples" "$(CURDIR)/models" "$(CURDIR)/fuzz" \
	    build/types/
	cd build/types && "$(CURDIR)/$(BIN)/mypy" --config-file "$(CURDIR)/pyproject.toml" \
	    --explicit-package-bases gdu_compile benchmarks fuzz examples/*/*.py models/build.py

test: lint types
	$(BIN)/pytest -n 2 -q -m 'not slow and not zoo'

test-slow: install
	$(BIN)/pytest -q -m slow

# All of docs/zoo.md: half an hour.  The progress shows the network that runs.
test-zoo: install
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,zoo]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	    --target build/zoo-packages -r benchmarks/zoo/packages.txt
	$(BIN)/pytest -v --durations=10 tests/test_zoo.py

fuzz: install
	$(BIN)/python -m fuzz --seconds 300

bench: install
	$(BIN)/python -m benchmarks.record
	$(BIN)/python -m benchmarks.learn

models: install
	$(BIN)/python models/build.py

clean:
	rm -rf .venv build *.egg-info
