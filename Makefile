.DEFAULT_GOAL := help
SHELL := /bin/sh

SOURCES := ingest_service worker eventstore clients/python/ingest tests scripts $(wildcard benchmarks examples)
BIN := .venv/bin

.PHONY: help run install-dev test coverage test-faults check lint types imports proto generated requirements audit deploy sbom bench bench-quick \
	generate lock format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## install and start the embedded service (INGEST_LISTEN, INGEST_DATA_DIR)
	@scripts/venv --local .venv build run embedded
	@exec $(BIN)/ingest-service dev

install-dev: ## make or refresh .venv with everything for development
	@scripts/venv --local .venv dev

test: install-dev ## run the tests against a real PostgreSQL and Redis (PYTEST_ARGS="-k word")
	@scripts/test-services
	@$(BIN)/python -m pytest -n 4 --dist worksteal $(PYTEST_ARGS)

coverage: ## make test, slower, and the lines that it has not run
	@$(MAKE) --no-print-directory test PYTEST_ARGS="--cov --cov-report=term-missing:skip-covered $(PYTEST_ARGS)"

test-faults: install-dev ## every row of the fault table (PYTEST_ARGS="--faults-long": full counts)
	@scripts/test-services
	@$(BIN)/python -m pytest tests/faults --faults -n 2 --dist load --maxschedchunk 1 $(PYTEST_ARGS) \
		--ignore=tests/faults/test_smoke.py --ignore=tests/faults/test_life.py

check: lint types imports proto generated requirements audit deploy sbom ## everything short of running the tests

lint: install-dev ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: install-dev ## let ruff and buf rewrite what they can
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format
	$(BIN)/buf format --write

types: install-dev ## mypy --strict
	$(BIN)/mypy $(SOURCES)

imports: install-dev ## the import directions of the design
	$(BIN)/lint-imports

proto: install-dev ## buf: lint, format, breaking changes
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	scripts/check-breaking

generated: install-dev ## stubs and table of settings are what proto/ and settings.py generate
	scripts/check-generated
	$(BIN)/python scripts/settings_table.py --check

requirements: install-dev ## the pins keep the floors of pyproject.toml and name no host
	$(BIN)/python scripts/check_requirements.py

audit: install-dev ## known advisories against the pinned requirements
	$(BIN)/python scripts/audit.py

deploy: install-dev ## Dockerfile and docker-compose.yml
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

sbom: install-dev ## write build/sbom.cdx.json: what the service is made of, with hashes (CycloneDX)
	$(BIN)/python scripts/sbom.py

bench: install-dev ## measure everything beside its limits and its peers, 5 rounds (benchmarks/)
	$(BIN)/python -m benchmarks

bench-quick: install-dev ## measure the key figures once, in under 3 minutes
	$(BIN)/python -m benchmarks --quick

generate: install-dev ## write the Python stubs from proto/, and the README's table of settings
	scripts/generate
	$(BIN)/python scripts/settings_table.py

lock: install-dev ## pin the requirements again (UPGRADE=1: take the newest releases)
	scripts/lock

clean: ## remove everything that was made here, except .ingest
	rm -rf .venv .venv-generate .venv-bench .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage* dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
