# make site     the site from the committed outputs: nothing is executed, under a minute
# make book     notebooks run on SUBSTRATE, then the site (default minisd-v1: any CPU); PROFILE=paper: at the papers' scale
# make fast     lint, types and the quick tests, two minutes
# make test     lint, types, all tests, notebooks, twins, and the site looked at in Chromium
# make pdf      the finished site printed by Chromium, a PDF for each page
# make outputs  the executed notebooks in the place of the committed ones
# make format   one way of writing
SHELL      := bash
SUBSTRATE  ?= minisd-v1
PARAMETERS ?=
PROFILE    ?=
PICTURES   ?=
PYTHON     ?= $(firstword $(foreach name,python3.11 python3,$(if $(shell command -v $(name)),$(name))) python3)
VENV       := .venv
RUN        := $(VENV)/bin/python
NOTEBOOKS  := $(wildcard notebooks/*.ipynb)
CODE       := memlib tests
PYTEST     := $(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile
WANTED     := requirements.txt requirements.lock.txt pyproject.toml

# Kernels named python3 are those of the environment, whatever the user has installed elsewhere.
export JUPYTER_PREFER_ENV_PATH := 1
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := book
.PHONY: env site book pdf outputs format lint types fast test browser axe clean

env:
	@command -v $(PYTHON) >/dev/null || { echo "Python is missing: install Python 3.11 or name one with 'make PYTHON=/path/to/python3.11'."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 5))' || { echo "$(PYTHON) is older than 3.11.5: name a newer one with 'make PYTHON=/path/to/python3.11'."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: install its venv module (on Debian: apt-get install python3-venv)."; exit 1; }
	@set -e; \
	stamp="$(VENV)/memlib-$$(cat $(WANTED) | $(PYTHON) -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest()[:16])')"; \
	if [ ! -f "$$stamp" ]; then \
	  [ -x $(RUN) ] || $(PYTHON) -m venv $(VENV); \
	  $(RUN) -m pip install --disable-pip-version-check --progress-bar on -r requirements.lock.txt; \
	  $(RUN) -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .; \
	  rm -f $(VENV)/memlib-*; touch "$$stamp"; \
	fi

site: env
	$(VENV)/bin/memlib book build --committed

book: env
	$(VENV)/bin/memlib book execute --substrate "$(SUBSTRATE)" $(if $(PROFILE),--profile "$(PROFILE)") $(if $(PICTURES),--pictures "$(PICTURES)") $(PARAMETERS)
	$(VENV)/bin/memlib book build --substrate "$(SUBSTRATE)"

pdf: env
	$(VENV)/bin/memlib book pdf --substrate "$(SUBSTRATE)"

outputs: env
	$(VENV)/bin/memlib book outputs

format: env
	$(VENV)/bin/ruff format --quiet $(CODE)
	$(VENV)/bin/ruff check --quiet --fix $(CODE)

# Code that nobody formatted, names nobody uses, arrows that point upward.
lint: env
	$(VENV)/bin/ruff format --check --quiet $(CODE)
	$(VENV)/bin/ruff check --quiet --output-format concise $(CODE)
	$(VENV)/bin/lint-imports

types: env
	$(VENV)/bin/mypy

fast: lint types
	$(PYTEST) -m "not slow and not browser and not gpu" tests

test: lint types browser axe
	$(PYTEST) --nbval-lax --nbval-current-env tests $(NOTEBOOKS)

# Chromium may stand under several names; on Debian, as root, it is installed where it is missing.
browser:
	@if [ -n "$$CHROMIUM" ] || command -v chromium chromium-browser google-chrome >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing Chromium to look at the site."; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null; \
	fi; \
	command -v chromium >/dev/null || { echo "Chromium is missing and could not be installed: install it (on Debian: apt-get install chromium) or set CHROMIUM to its path."; exit 1; }

# Looks at pages as those do who don't see them; one script, which npm checks.
axe:
	@[ -f _build/axe/node_modules/axe-core/axe.min.js ] || npm install --silent --no-audit --no-fund --no-save --prefix _build/axe axe-core@4.10.3 \
	  || { echo "axe-core could not be installed: it needs npm and its registry."; exit 1; }

# Pictures and scores in _build/store cost the most and stay; remove that folder by hand to start from nothing.
clean:
	@[ ! -d _build ] || find _build -mindepth 1 -maxdepth 1 ! -name store -exec rm -rf {} +
