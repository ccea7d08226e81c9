# Each target works on a machine that has python3 (3.11 or newer) with venv, and make.
#   make demo    explain an image with the embedded network
#   make test    lint, types, import rules, tests
#   make quick   the same without the slow tests
#   make core    tests of the core, the command and the ONNX backend, in an environment without a framework
#   make fix     format, and apply the fixes of the linter
#   make bench   the cost of an explanation on this machine
#   make docs    the documentation, in build/docs
#   make wheel   build the wheel and try it in an empty environment

PYTHON ?= python3
BIN := .venv/bin
INSTALL := -m pip --disable-pip-version-check install -q --constraint constraints.txt
PIP := $(BIN)/python $(INSTALL)

# opencv-python needs libGL, which a bare server lacks; the headless build is the same without windows. It is put over
# the other with --no-deps and as the last step, so that a second install finds everything in place.
cv2 = $(1) -c "import cv2" 2>/dev/null || $(1) $(INSTALL) --no-deps opencv-python-headless

.PHONY: demo test quick core lint fix bench docs linkcheck wheel clean

demo: .venv/.demo
	@$(BIN)/xcam demo

# Two processes, each a file at a time: half the time on two cores, and the fixtures of a module are set up once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

test: lint .venv/.test
	$(PYTEST)

quick: lint
	$(PYTEST) -m "not slow"

# As in .github/workflows/ci.yml, where no make is needed.
core: .venv-core/.test
	.venv-core/bin/python -m pytest -q -rfE -n 2 --dist loadfile --without-frameworks -m "not slow and not frameworks" \
		tests/core tests/cli tests/backends/onnx

fix: .venv/.test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

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
	build/wheel/bin/python $(INSTALL) dist/*.whl
	$(call cv2,build/wheel/bin/python)
	cd build/wheel && bin/python ../../tests/wheel_smoke.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing the requirements of the demo into .venv (once) …"
	$(PIP) -e ".[onnx]"
	$(call cv2,$(BIN)/python)
	@touch $@

.venv/.test: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e ".[all,ray,docs,dev]"
	# For one test, and in a folder of its own: together with a CPU build of torch it cannot be imported as it is.
	$(PIP) --no-deps --upgrade --target .venv/torchvision torchvision
	$(call cv2,$(BIN)/python)
	@touch $@

# --no-compile: compiling every module takes longer than the tests, which import few of them.
.venv-core/.test: pyproject.toml constraints.txt
	test -x .venv-core/bin/python || $(PYTHON) -m venv .venv-core
	.venv-core/bin/python $(INSTALL) --no-compile -e ".[onnx,report,batch,test]"
	$(call cv2,.venv-core/bin/python)
	@touch $@

clean:
	rm -rf .venv .venv-core dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
