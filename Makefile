# Everything runs from a fresh clone: the first target called makes .venv and installs pinned versions.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# One thread a process: two torch threads on a busy two-core machine are slower than one.
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export MPLBACKEND ?= Agg

.PHONY: demo test test-slow lint type bench results

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"recsim_env needs Python 3.11 or later, {sys.executable} is {v.major}.{v.minor}; try make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[rllib,sb3,dev]"
	touch $@

demo: $(INSTALLED)  ## the main job; make demo DATA=<KuaiRand folder> runs it on a real log
	$(BIN)/python -m experiments.demo $(if $(DATA),--data $(DATA))

test: $(INSTALLED)  ## at most 15 minutes on two cores; a file's tests share worlds, so they stay in one process
	$(BIN)/python -m pytest -n 2 --dist loadscope

test-slow: $(INSTALLED)  ## at most an hour
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(INSTALLED)
	$(BIN)/mypy

bench: $(INSTALLED)  ## speed, as ratios measured in one run
	$(BIN)/python -m experiments.benchmark env
	$(BIN)/python -m experiments.benchmark rllib
	test ! -d runs/compare/synthetic/worlds/A || \
		$(BIN)/python -m experiments.benchmark rerankers --world runs/compare/synthetic/worlds/A

KUAIRAND = $(RECSIM_DATA)/kuairand_pure
RATINGS = $(RECSIM_DATA)/ml_latest_small
KEPT = experiments/results
COMPARE = $(BIN)/python -m experiments.compare

results: $(INSTALLED)  ## everything in experiments/RESULTS.md, run by run; runs that left their file are kept
	test -f $(KEPT)/demo.json || $(BIN)/python -m experiments.demo --json $(KEPT)/demo.json
	$(COMPARE) goalrank
	$(COMPARE) rerankers
	$(COMPARE) ranking
	$(COMPARE) off-the-log
	$(COMPARE) offline --data short_video --max-epochs 3 --protocol papers
	$(COMPARE) offline --data short_video --max-epochs 3 --protocol honest
	@test -d "$(KUAIRAND)" || echo "RECSIM_DATA holds no kuairand_pure: results on the real log are left as they are"
	test ! -d "$(KUAIRAND)" || test -f $(KEPT)/demo_kuairand.json || \
		$(BIN)/python -m experiments.demo --data "$(KUAIRAND)" --json $(KEPT)/demo_kuairand.json
	test ! -d "$(KUAIRAND)" || $(COMPARE) goalrank --data "$(KUAIRAND)"
	test ! -d "$(KUAIRAND)" || $(COMPARE) rerankers --data "$(KUAIRAND)"
	test ! -d "$(KUAIRAND)" || $(COMPARE) response-bars --data "$(KUAIRAND)"
	@test -d "$(RATINGS)" || echo "RECSIM_DATA holds no ml_latest_small: the protocol's results on it are left as they are"
	test ! -d "$(RATINGS)" || $(COMPARE) offline --data ml_latest_small --max-epochs 10 --protocol papers --sigmas 0.1 0.3 1
	test ! -d "$(RATINGS)" || $(COMPARE) offline --data ml_latest_small --max-epochs 10 --protocol honest --sigmas 0.3
	$(BIN)/python -m experiments.results_page
