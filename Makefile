# Everything a fresh machine needs: `make quickstart` and `make test` create .venv and install by themselves.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
OUT := build/quickstart

.DEFAULT_GOAL := help
.PHONY: help quickstart test lab notebooks check docs bench lowest gpu clean

help:  ## show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 …")'
	@echo "Installing into .venv (PyTorch alone is a few GB: one to five minutes) …"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

quickstart: $(INSTALLED)  ## train three networks on real images, measure their landscapes, print the table (a minute)
	@mkdir -p $(OUT)
	@echo "Executing notebooks/00_quickstart.ipynb (about a minute on two CPU cores) …"
	@TQDM_DISABLE=1 $(BIN)/jupyter nbconvert --log-level CRITICAL --to notebook --execute notebooks/00_quickstart.ipynb --output-dir $(OUT)
	@cat $(OUT)/table.txt
	@echo
	@echo "Executed notebook: $(OUT)/00_quickstart.ipynb   (open it: make lab)"
	@echo "Figures and data:  $$(cd $(OUT) && ls *.png *.pdf *.html *.nc | tr '\n' ' ') in $(OUT)/"

test: check  ## check, and run the tests, with every figure and every notebook small; not those of the browser (.ci/run does)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow and not browser' -p no:nbmake -n 2 --dist loadgroup --durations=20

lab: $(INSTALLED)  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir .

notebooks: $(INSTALLED)  ## execute every notebook anew, in place (minutes)
	$(BIN)/python tests/sealing.py

check: $(INSTALLED)  ## lint and check types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)  ## write the docstrings as pages: build/docs/index.html
	$(BIN)/pdoc --docformat google --output-directory build/docs landscape saq_core

bench: $(INSTALLED)  ## print speeds as ratios measured in one run (long; sections: speed.py --help)
	$(BIN)/python tests/benchmarks/engine.py
	$(BIN)/python tests/benchmarks/memory.py
	$(BIN)/python tests/benchmarks/speed.py

LOWEST := .venv-lowest/bin

.venv-lowest/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "The lowest Python is meant: make lowest PYTHON=python3.11")'
	$(PYTHON) -m venv --clear .venv-lowest
	$(LOWEST)/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/uv pip install --quiet --python $(LOWEST)/python --resolution lowest-direct --editable '.[test]'
	@touch $@

lowest: .venv-lowest/.installed  ## run the tests on the lowest versions that pyproject.toml names
	OMP_NUM_THREADS=1 $(LOWEST)/python -m pytest tests

gpu: $(INSTALLED)  ## on a GPU: its tests and speeds, in pieces of at most 8 minutes that are resumed; else list them
	@$(BIN)/python tests/gpu.py

clean:  ## delete what was built, the environment included
	rm -rf .venv .venv-lowest build *.egg-info
