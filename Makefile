# make demo   sets up, then plays the whole loop on the starter model (ARGS=--exit ends after it)
# make test   sets up, then runs the tests (ARGS="-m slow" for the slow ones)
PYTHON ?= python3.11
ifeq ($(shell command -v $(PYTHON)),)
PYTHON := python3
endif
BIN := .venv/bin
SETUP := .venv/.done

.PHONY: demo test lint bench clean

demo: $(SETUP)
	$(BIN)/talkback demo $(ARGS)

test: $(SETUP)
	$(BIN)/pytest -m "not slow" $(ARGS)

lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(SETUP)
	for bench in tests/bench/bench_*.py; do PYTHONPATH=. $(BIN)/python $$bench || exit 1; done

$(SETUP): pyproject.toml setup.py constraints.txt $(wildcard chatbot/engine/local/kernels/*.[ch])
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
