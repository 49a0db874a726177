# Every target is one line that also works by hand. `make check` is what CI runs.
PYTHON = .venv/bin/uv run --locked

.PHONY: help init start test fmt check audit
help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'
init: ## Make the virtual environment
	python3 -m venv .venv && .venv/bin/pip install -q uv
start: init ## Start the sandbox and the BFF
	$(PYTHON) python -m sandbox
test: init ## Run the whole test suite
	$(PYTHON) pytest
fmt: init ## Format and fix what can be fixed
	$(PYTHON) ruff format && $(PYTHON) ruff check --fix
check: ## Everything that must hold
	bash .ci/run
audit: init ## Ask whether a dependency is known to be vulnerable
	bash .ci/audit
