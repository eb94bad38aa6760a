# make demo    install into .venv, train small flows and write a report
# make test    all checks of the continuous integration

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := $(shell sed -n 's/^"arflows\.[a-z_]*" = "\([a-z_]*\)"$$/\1/p' pyproject.toml)
CODE := $(PACKAGES) tests benchmarks results

INSTALLED := $(VENV)/.installed
INSTALLING := $(VENV)/.installing

.DEFAULT_GOAL := help
.PHONY: help demo test lint install bench faults results clean
.DELETE_ON_ERROR:

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## train, sample and score a small flow of every domain, then write report.html
	$(BIN)/arflows demo

test: lint ## lint, then the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

# mypy cannot follow an editable install, so the packages are installed into build/typecheck and checked there. A file
# that the wheel lacks then fails the check.
lint: $(INSTALLED) ## formatting, style, types
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	@rm -rf build
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --no-index --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache \
		$(PACKAGES:%=-p arflows.%)

install: $(INSTALLED) ## install the package and its tools, in the versions of constraints.txt, into .venv

# Benchmarks of molecules that need --model or --store are not run here.
bench: $(INSTALLED) ## measure speed, next to other libraries
	$(BIN)/pip install --quiet -c constraints.txt -e '.[bench]'
	@for script in benchmarks/[!_]*.py; do \
		case $$script in */common.py|*/molecules_sampling.py|*/molecules_streaming.py|*/molecules_training.py) continue;; esac; \
		echo "== $$script"; OMP_NUM_THREADS=1 $(BIN)/python $$script || exit 1; \
	done

faults: $(INSTALLED) ## inject faults into every domain, including 100 kills of a run, and print the losses
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.run

# $(INSTALLING) exists during an installation. If one was interrupted, the next one makes a new environment.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "arflows needs Python 3.11 or newer, but '$(PYTHON)' is older or missing: install it, or give its name, as in" \
			"'make install PYTHON=python3.12'." >&2; exit 2; }
	@if [ -e $(INSTALLING) ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		$(PYTHON) -m venv --clear $(VENV); fi
	@touch $(INSTALLING)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@rm -f $(INSTALLING)
	@touch $@

results: $(INSTALLED) ## write docs/results.md from the measured runs and benchmarks
	$(BIN)/python results/make_page.py

clean: ## remove builds and caches; .venv and runs are kept
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
