# Needs make and a Python 3.11 or 3.12; installs everything else into .venv. The first of PYTHONS
# that fits makes it, if there is none yet: `make test PYTHONS=python3.12`.

WORKDIR ?= demo
PYTHONS ?= python3.11 python3.12 python3
PYTHON := .venv/bin/python
DEV := requirements-dev.txt requirements.txt requirements-app.txt requirements-beam.txt requirements-bucket.txt requirements-cluster.txt requirements-search.txt requirements-torch.txt
DEMO := --config=configs/demo.py --config.data.root=$(WORKDIR)/clips --config.data.shards=$(WORKDIR)/shards

.PHONY: demo search-demo test lint

demo: .venv/installed
	$(PYTHON) run.py prepare $(DEMO)
	$(PYTHON) run.py train $(DEMO) --workdir=$(WORKDIR)
	@echo "images: $(WORKDIR)/loss_curve.png and $(WORKDIR)/contact_sheet.png"

search-demo: .venv/installed-search
	$(PYTHON) benchmarks/search_demo.py --workdir=$(WORKDIR)

test: lint
	$(PYTHON) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/installed-dev
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	.venv/bin/codespell
	.venv/bin/lint-imports --no-logo
	.venv/bin/mypy

# The stamps `installed` and `installed-dev` are removed before an install and made after it:
# if they are missing, an install was interrupted, and .venv is made again.
.venv/installed: requirements.txt
	@test -e $@ && $(PYTHON) -c "" 2>/dev/null || { $(FIND_PYTHON); $(MAKE_VENV); }
	$(INSTALL)
	@touch .venv/installed

.venv/installed-dev: $(DEV) .venv/installed
	$(INSTALL)
	@touch .venv/installed .venv/installed-dev

.venv/installed-search: requirements-search.txt .venv/installed
	$(INSTALL)
	@touch .venv/installed .venv/installed-search

define INSTALL
@echo "installing $(filter %.txt,$^) into .venv"
@rm -f .venv/installed .venv/installed-dev
@$(PYTHON) -m pip install --quiet --disable-pip-version-check $(patsubst %,-r %,$(filter %.txt,$^))
endef

# A command on the PATH may be a shim for a version that is not installed, or have no venv: try all.
FITS := import ensurepip, ssl, sys, venv; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])
FIND_PYTHON = found=; IFS=:; for name in $(PYTHONS); do \
	for folder in $$PATH; do test -n "$$found" || ! "$$folder/$$name" -c "$(FITS)" 2>/dev/null || \
	found=$$folder/$$name; done; done
MAKE_VENV = test -n "$$found" || { echo "found no Python 3.11 or 3.12 that runs and has venv;" \
	"install one (on Debian: python3 and python3-venv)" >&2; exit 1; }; \
	echo "making .venv with $$found"; "$$found" -m venv --clear .venv
