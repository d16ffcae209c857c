PYTHON ?= $(or $(shell command -v python3.11),python3)

# DeepSpeed looks for ninja, and its launcher for python, on the PATH.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: install quickstart test test-unit lint types docs

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev,quickstart]'
	touch $@

quickstart: .venv/installed
	.venv/bin/python launch/quickstart/run.py

# tests/conftest.py says which tests run side by side.
test: .venv/installed
	.venv/bin/python -m pytest -n 2 --dist loadgroup

test-unit: .venv/installed
	.venv/bin/python -m pytest -n 2 --dist worksteal -m "not process"

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check --quiet .

types: .venv/installed
	.venv/bin/mypy

# The site of the guides, into a folder that git ignores.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --site-dir site
