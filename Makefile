# make demo   set up, then detect things in real photos (output/demo/)
# make test   set up, then run all tests
# make check  lint, types, layers, spelling, size of the repository
# make product  the wheel and the commands of the Dockerfile in new environments, the web service
#           under load, the web page in a browser, labelling on Ray, exported graphs, the notebooks
#           and the documentation site
# make docs     build the documentation site (output/site/)
# make recipes  the first steps of every recipe at full size (docs/recipes.md; an hour or two)
# make benchmark  time each stage of GLIP-T, with its lower bound on this machine (minutes)
#
# Detectron2: an importable one is kept, else DETECTRON2_SPEC (any pip requirement) is installed,
# else a published wheel (glipv2_cli/get_detectron2.py).

PYTHON ?= python3
# Processes that share the tests, one core each.
WORKERS ?= 2

BIN := .venv/bin
# What the library, the small model and its demo need; and what the tests and checks need besides.
DEMO_READY := .venv/.demo-ready
READY := .venv/.ready
UNFINISHED := .venv/.unfinished
CONSTRAINTS := requirements/constraints.txt
DEMO_REQUIREMENTS := $(patsubst %,requirements/%.txt,mini phrases runtime venv)
# Gradio needs an older Pillow, so that the web page is checked in an environment of its own, which
# uses the other packages of .venv as well; Ray is checked there, too.
APP := .venv-app
APP_READY := $(APP)/.ready
APP_REQUIREMENTS := $(patsubst %,requirements/%.txt,app ray)
DOCS := .venv-docs
DOCS_READY := $(DOCS)/.ready
DOCS_REQUIREMENTS := requirements/docs.txt
# The calls of wandb, mlflow and pillow-heif are tested with modules that have them.
NOT_INSTALLED := $(patsubst %,requirements/%.txt,app docs heic mlflow ray wandb)
REQUIREMENTS := $(filter-out $(CONSTRAINTS) $(NOT_INSTALLED),$(sort $(wildcard requirements/*.txt)))

.PHONY: setup demo test docs recipes product wheel-check serve-check docker-check app-check ray-check export-check notebook-check benchmark format check lint types layers spelling size

setup: $(READY)

demo: $(DEMO_READY)
	$(BIN)/python -W ignore::FutureWarning projects/GLIPv2Mini/tools/make_demo.py

# One thread per process: small tests leave a second thread idle.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

# A browser, a cluster or a package index may fail on a busy machine: a check is repeated once.
PRODUCT := wheel-check serve-check docker-check app-check ray-check export-check notebook-check docs

product:
	@for check in $(PRODUCT); do \
	    echo "make $$check" && { timeout 1200 $(MAKE) $$check || timeout 1200 $(MAKE) $$check; } || exit 1; done

wheel-check: $(READY)
	$(BIN)/python tests/product/wheel_check.py

serve-check: $(READY)
	$(BIN)/python tests/product/serve_check.py

# The commands of the Dockerfile in a new environment, without Docker.
docker-check: $(READY)
	$(BIN)/python tests/product/docker_check.py

export-check: $(READY)
	$(BIN)/python tests/product/export_check.py

# The variables silence notices of the theme and a plugin about other packages.
docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(DOCS)/bin/mkdocs build --strict --quiet
	@echo wrote output/site/index.html

# Chromium comes from Debian, where it is absent.
app-check: $(APP_READY)
	@command -v chromedriver > /dev/null || apt-get install --yes --quiet chromium chromium-driver
	$(APP)/bin/python tests/product/app_check.py --screenshot output/product/app.png

# The actors inherit the paths, too.
ray-check: $(APP_READY)
	OMP_NUM_THREADS=1 PYTHONPATH="$(CURDIR):$(CURDIR)/projects/GLIPv2Mini" \
	    $(APP)/bin/python -W ignore tests/product/ray_check.py

# The first steps of every recipe at full size: docs/recipes.md. Continues where it stopped.
recipes: $(READY)
	$(BIN)/python -W ignore tests/product/recipes.py

notebook-check: $(APP_READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(APP)/bin/python tests/product/notebook_check.py

benchmark: $(DEMO_READY)
	$(BIN)/glipv2 benchmark --model glip-t

format: $(READY)
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

check: lint types layers spelling size

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

layers: $(READY)
	$(BIN)/lint-imports

spelling: $(READY)
	$(BIN)/codespell

# Tracked files stay below 32 MiB in all.
size:
	@bytes=$$(git ls-tree -r -l HEAD | awk '{ sum += $$4 } END { printf "%d", sum }'); \
	    test $$bytes -le 33554432 || { echo "tracked files have $$bytes bytes, more than 32 MiB"; false; }

# A first set-up that was interrupted leaves $(UNFINISHED) behind and starts from an empty .venv next
# time. After a change of the requirements, .venv is brought up to date in place; interrupted, that is
# done again, and never empties a .venv which something else may be running from.
$(DEMO_READY): $(DEMO_REQUIREMENTS) $(CONSTRAINTS) setup.py glipv2_cli/get_detectron2.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "the tested versions need Python 3.11 or later, this is " + sys.version.split()[0] + \
	    ": make PYTHON=python3.11")'
	$(if $(wildcard $(UNFINISHED)),rm -rf .venv)
	@test -d .venv || { mkdir .venv && touch $(UNFINISHED); }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) \
	    $(addprefix --requirement ,$(DEMO_REQUIREMENTS))
	PIP_CONSTRAINT=$(CONSTRAINTS) $(BIN)/python tools/get_detectron2.py
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@rm -f $(UNFINISHED)
	@touch $@

# The requirements of the demo again, so that pip has all of them together.
$(READY): $(DEMO_READY) $(REQUIREMENTS)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) \
	    $(addprefix --requirement ,$(REQUIREMENTS))
	@touch $@

$(APP_READY): $(READY) $(APP_REQUIREMENTS)
	$(PYTHON) -m venv --clear $(APP)
	site=$$($(APP)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	    $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$site/base.pth; \
	    printf '%s\n' "$(CURDIR)" "$(CURDIR)/projects/GLIPv2Mini" >> $$site/base.pth
	$(APP)/bin/python -m pip install --quiet \
	    $(addprefix --requirement ,$(APP_REQUIREMENTS)) 'selenium>=4.30' nbclient ipykernel
	@touch $@

$(DOCS_READY): $(DOCS_REQUIREMENTS)
	$(PYTHON) -m venv --clear $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --requirement $(DOCS_REQUIREMENTS)
	@touch $@
