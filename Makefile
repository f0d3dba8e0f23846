# make demo: train, evaluate and watch an agent.   make test: check everything.
# Both create .venv the first time and are quick afterwards. Needs Python >= 3.11, pip and make.
#
# Another Python: make demo PYTHON=python3.12
# A small torch for CPUs only: make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo-$(shell date +%Y%m%d-%H%M%S)

# Tiny models are fastest on one thread; under contention, two spin against each other.
export OMP_NUM_THREADS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast real test-models test-lower-bounds study-smoke studies lint format bench models docs sandbox browser clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## Train on tomato salad (about a minute), evaluate, watch one episode
	$(BIN)/poad train --config configs/tomato_salad.yaml --run $(DEMO)
	$(BIN)/poad play $(DEMO)
	@printf '%s\n' "" "How it learned, in a browser: $(DEMO)/report.html" "" \
		"Next you could try" \
		"  $(BIN)/poad play $(DEMO) --untrained" \
		"      the same agent before it learned" \
		"  $(BIN)/poad play poad/TomatoSalad-v0 --human" \
		"      cook it yourself" \
		"  $(BIN)/poad train --config configs/tomato_lettuce_salad.yaml" \
		"      a harder dish, in a minute or two" \
		"  $(BIN)/poad train --help" \
		"      everything that can be changed"

test: lint ## Check everything: linter, types, all tests
	$(BIN)/pytest -n 2 --dist worksteal

study-smoke: $(VENV)/.installed-dev ## Run the main study at toy size, from the file to the page
	rm -rf runs/studies/main-smoke
	$(BIN)/poad study studies/main.yaml --smoke

# In the order of their worth, into runs/studies/; each goes on where it was.
STUDIES := main decompose decompose_16 length ablations generalization length_free actions real order_real tools babyai textworld textworld_simple
studies: $(VENV)/.installed-dev ## Repeat the shipped studies on this machine (hours; stop any time)
	@failed=; for s in $(STUDIES); do \
		$(BIN)/poad study studies/$$s.yaml || { test $$? -lt 128 || exit 130; failed="$$failed $$s"; }; \
	done; test -z "$$failed" || { echo "Not finished, for the reasons above:$$failed" >&2; exit 1; }

test-fast: $(VENV)/.installed-dev ## Run the tests that do not train to convergence
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow"

# Into the cache that `poad models` names: Gemma's terms are shown, and asked for in a terminal.
real: $(VENV)/.installed-dev ## Fetch two real models (330 MB) and run the tests that need them
	$(BIN)/poad models get smollm2-135m-instruct
	$(BIN)/poad models get gemma3-270m || echo "going on without: its tests are skipped"
	$(BIN)/pytest tests/lm/test_real.py

test-models: $(VENV)/.installed-dev ## Try every architecture of docs/models.md (minutes)
	POAD_ALL_FAMILIES=1 $(BIN)/pytest tests/lm/test_families.py

test-lower-bounds: ## Run the fast tests at the lower bounds (KEEP="torch": all but torch's)
	PIP_ARGS="$(PIP_ARGS)" KEEP="$(KEEP)" $(PYTHON) scripts/test_lower_bounds.py

lint: $(VENV)/.installed-dev ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(VENV)/.installed-dev ## Put the code into the house style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.installed-dev ## Measure what benchmarks/README.md reports (takes long)
	@set -e; for script in $$(grep -l __main__ benchmarks/*.py); do echo "== $$script"; $(BIN)/python $$script; done

models: $(VENV)/.installed ## Rebuild the embedded language models, the same to the byte
	$(BIN)/python scripts/build_models.py

docs: $(VENV)/.installed ## Regenerate docs/environments.md, docs/results.md and docs/api.md
	$(BIN)/python scripts/build_docs.py
	$(BIN)/python scripts/build_results.py
	$(BIN)/python scripts/build_api.py

sandbox: $(VENV)/.installed-datasci ## Install what runs an agent's programs: scikit-learn, bubblewrap, libseccomp
	scripts/install_sandbox.sh
	$(BIN)/poad sandbox check

browser: $(VENV)/.installed-dev ## Install Chromium, which the tests of pages drive
	scripts/install_browser.sh

clean: ## Remove .venv and all caches; runs stay
	rm -rf $(VENV) .venv-lower-bounds build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Several installations in one venv: the demo does without the development tools, and having those
# includes what the others need. A changed pyproject.toml or constraints.txt installs anew.
# Ctrl-C does not reach the loop that says how far it is, so that ends with the shell that began it.
define install
	@command -v $(PYTHON) >/dev/null || \
		{ echo "There is no '$(PYTHON)' here. poad needs Python 3.11 or newer: make demo PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "poad needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V). Name another: make demo PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV): a few minutes the first time, most of it for torch ..."
	@$(PYTHON) -m venv $(VENV)
	@while sleep 15 >/dev/null 2>&1 && kill -0 $$$$ 2>/dev/null; do \
		echo "  still installing, $$(du -sh $(VENV) | cut -f1) so far ..."; \
	done & beat=$$!; \
	$(BIN)/python -m pip install -qq $(PIP_ARGS) -c constraints.txt -e "$(1)"; status=$$?; \
	kill $$beat; exit $$status
endef

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call install,.)
	@touch $@

$(VENV)/.installed-datasci: pyproject.toml constraints.txt
	$(call install,.[datasci])
	@touch $(VENV)/.installed $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	$(call install,.[dev])
	@touch $(VENV)/.installed $(VENV)/.installed-datasci $@
