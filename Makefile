# Two commands: `make demo` and `make test`. Everything else serves them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
export DO_NOT_TRACK = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false

.PHONY: demo test lint install install-test sprites models evaluate bench

demo: install
	$(BIN)/photoloom run pipelines/replace_object.yaml

test: install-test lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

install: $(VENV)/installed
install-test: $(VENV)/installed-test

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) -e ".[test]"
	touch $@

# The objects that the toybox scenes are drawn with; needed to train and evaluate only.
sprites: models/sprites/robot.webp
models/sprites/robot.webp: | install
	$(BIN)/python -m models.sprites

# Trains the toybox models, each going on from its last checkpoint.
models: install sprites
	$(PIP) -e ".[train]"
	$(BIN)/python -m models.train_detr
	$(BIN)/python -m models.train_sam
	$(BIN)/python -m models.train_dino
	$(BIN)/python -m models.train_vae
	$(BIN)/python -m models.train_sdxl
	$(BIN)/python -m models.train_inpaint
	$(BIN)/python -m models.train_refiner

evaluate: install sprites
	$(BIN)/python -m models.evaluate

# Everything that docs/performance.md and docs/scale.md tell of; last what fails where a byte differs.
bench: install sprites
	$(BIN)/python benchmarks/overhead/run.py
	$(BIN)/python benchmarks/folder/run.py
	$(BIN)/python benchmarks/folder/memory.py
	$(BIN)/python benchmarks/folder/gpu.py
	$(BIN)/python benchmarks/graph_scale.py
	$(BIN)/python benchmarks/workers.py
	$(BIN)/python benchmarks/folder/determinism.py
