# Everything runs from one virtual environment, .venv, which `make setup` creates.

PYTHON ?= python3
DEVICE ?= auto
VERSIONS ?= locked
MODEL ?= lladav-tiny
PORT ?= 8000
# Not from the environment, where some shells keep the machine's name under it.
HOST := 127.0.0.1
# The small model makes up its mind late (docs/accuracy.md).
PRUNING ?= --plugin pruning $(if $(filter lladav-tiny,$(MODEL)),--prune-layer 6)
ARGS ?=
PYTEST_ARGS ?=
N ?= 2000
MINUTES ?= 10
# vLLM on a CPU leaves one core to the server's other processes, which on a small
# machine is half of it. They are idle while a step runs.
export VLLM_CPU_NUM_OF_RESERVED_CPU ?= 0

VENV := .venv
SETUP_INPUTS := pyproject.toml setup.py tools/setup_env.py \
	tools/repack_cpu_wheel.py $(wildcard tools/locked/*.txt)
# The stamp is named after the content of these files and the location of the
# checkout, so that a touched file costs nothing and a moved checkout is set up anew.
FINGERPRINT := $(firstword $(shell { pwd; cat $(SETUP_INPUTS); } | cksum))
STAMP := $(VENV)/.setup-$(FINGERPRINT)

.DEFAULT_GOAL := help
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*\#\#.*/\1/p' Makefile) help setup serve clients-check deploy-check test fuzz bench gpu-check lint clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' Makefile
	@echo "Variables: PYTHON, DEVICE (auto, cpu, cuda), VERSIONS (locked, newest), MODEL,"
	@echo "HOST, PORT, PRUNING, N, MINUTES, ARGS, PYTEST_ARGS"

setup: $(STAMP) ## Create .venv with vLLM and this project (quick when done before)

$(STAMP):
	$(PYTHON) tools/setup_env.py --venv $(VENV) --device $(DEVICE) --versions $(VERSIONS)
	@rm -f $(VENV)/.setup-*
	@touch $@

serve: $(STAMP) ## Serve MODEL, and the page /lladav, on PORT of HOST; flags in ARGS
	$(VENV)/bin/vllm serve $(MODEL) $(PRUNING) --host $(HOST) --port $(PORT) \
		--live-canvas on $(ARGS)

clients-check: $(STAMP) ## Try the clients of examples/clients, write docs/clients.md
	$(VENV)/bin/python examples/clients/run.py $(ARGS)

deploy-check: $(STAMP) ## Run examples/deploy/nginx.conf before a server (needs nginx)
	$(VENV)/bin/python examples/deploy/check.py

page-check: $(STAMP) ## Use the page /lladav in a browser (needs Chromium)
	$(VENV)/bin/python -c 'import playwright' 2> /dev/null \
		|| $(VENV)/bin/pip install --quiet playwright
	$(VENV)/bin/python -m tests.page.check $(ARGS)

monitoring-check: $(STAMP) ## Run examples/docker's Prometheus rules (needs prometheus)
	$(VENV)/bin/python -m tests.deploy.check_monitoring

test: $(STAMP) ## Run the tests; further flags in PYTEST_ARGS
	$(VENV)/bin/pytest $(PYTEST_ARGS)

docs: $(STAMP) ## Make the documentation's site in results/site, check its links
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

docs-check: $(STAMP) ## Run the documentation's commands, those of up to MINUTES, too
	DOCS_MINUTES=$(MINUTES) $(VENV)/bin/pytest tests/docs $(PYTEST_ARGS)

fuzz: $(STAMP) ## Send N hostile requests to a server, write results/fuzz/report.md
	$(VENV)/bin/python -m tests.hostile --requests $(N) $(ARGS)

bench: $(STAMP) ## Run the quick benchmarks and write results/bench/report.md
	$(VENV)/bin/python benchmarks/quick.py --results results/bench

gpu-check: $(STAMP) ## Compare a GPU's answers with a CPU's, time it, write a page
	$(VENV)/bin/python benchmarks/gpu_check.py --results results/gpu-check

lint: $(STAMP) ## Check style, formatting and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

lock: $(STAMP) ## Write down the versions that .venv holds, for make setup to install
	$(VENV)/bin/python tools/lock_versions.py

release: $(STAMP) ## Check, build and tag a release into dist/; ARGS=--dry-run tags nothing
	$(VENV)/bin/python tools/release.py $(ARGS)

clean: ## Remove caches and build output (delete .venv by hand to set up anew)
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
