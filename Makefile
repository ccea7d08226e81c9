# Each target works on a machine that has python3 (3.11 or newer) with venv, and make.
#   make demo    explain a picture with the embedded network
#   make test    lint, types, import rules, tests
#   make quick   the same without the slow tests
#   make bench   the figures of the README
#   make docs    the documentation, in build/docs
#   make wheel   build the wheel and try it in an empty environment

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q --constraint constraints.txt

# opencv-python needs libGL, which a bare server lacks; the headless build is the same without windows. It is put over
# the other with --no-deps and as the last step, so that a second install finds everything in place.
CV2 := $(BIN)/python -c "import cv2" 2>/dev/null || $(PIP) --no-deps opencv-python-headless

.PHONY: demo test quick lint bench docs linkcheck wheel clean

demo: .venv/.demo
	@$(BIN)/xcam demo

# Two processes, each a file at a time: half the time on two cores, and what a module sets up is made once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

test: lint .venv/.test
	$(PYTEST)

quick: lint
	$(PYTEST) -m "not slow"

lint: .venv/.test
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/.test
	$(BIN)/sphinx-build -W --keep-going -n -q -E -b html docs build/docs

linkcheck: .venv/.test
	$(BIN)/sphinx-build -q -b linkcheck docs build/linkcheck

bench: .venv/.test
	for file in benchmarks/test_*.py; do $(BIN)/python -m pytest $$file -q -p no:cacheprovider \
		--benchmark-columns=median,min,rounds --benchmark-sort=name || exit; done
	$(BIN)/python benchmarks/batch.py

wheel: .venv/.test
	rm -rf dist build/wheel
	$(BIN)/python -m build --no-isolation --wheel --outdir dist
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip --disable-pip-version-check install -q --constraint constraints.txt dist/*.whl
	build/wheel/bin/python -c "import cv2" 2>/dev/null || build/wheel/bin/python -m pip --disable-pip-version-check install -q --constraint constraints.txt --no-deps opencv-python-headless
	cd build/wheel && bin/python ../../tests/wheel_smoke.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing what the demo needs into .venv (once) …"
	$(PIP) -e ".[onnx]"
	$(CV2)
	@touch $@

.venv/.test: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e ".[all,ray,docs,dev]"
	# For one test, and out of the way: beside a CPU build of torch it cannot be imported as it stands.
	$(PIP) --no-deps --upgrade --target .venv/torchvision torchvision
	$(CV2)
	@touch $@

clean:
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
