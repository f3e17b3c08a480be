# Every target sets up what it needs; a second call is quick. Choose with variables:
#   make demo PYTHON=python3.12
#   make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"   (no CUDA libraries)
# Never add torchvision: one from another build family breaks `import diffusers`.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
DEMO ?= demo
ONSITE ?= demo-onsite
BUNDLE ?= runs/bench.ufr

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
READY := $(VENV)/.ready
TENSORRT := $(VENV)/.tensorrt
SPANDREL := $(VENV)/.spandrel

.PHONY: demo demo-onsite test test-all lint bench clean setup
.DEFAULT_GOAL := help

.PHONY: help
help:
	@echo "make demo      adapt, export and run on a synthetic camera; look into $(DEMO)/ afterwards"
	@echo "make demo-onsite  a camera changes in mid-stream; the stream adapts and swaps its engine; into $(ONSITE)/"
	@echo "make test      lint, types and the quick tests"
	@echo "make test-all  the same with the slow tests"
	@echo "make lint      lint and types only"
	@echo "make bench     measure a bundle on this machine (BUNDLE=my.ufr; default: the shipped restorer)"
	@echo "make clean     remove what the targets above made, except $(VENV)/"

setup: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "error: $(PYTHON) is older than 3.10. Run: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { echo "error: no venv module. On Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing torch and the rest into $(VENV) (once; minutes)"
	@$(PIP) $(TORCH)
	@$(PIP) -e ".[dev]"
	@$(BIN)/python -c 'import cv2' \
		|| { echo "error: OpenCV does not load. On Debian: apt-get install libgl1 libglib2.0-0" >&2; exit 1; }
	@touch $@

# Best effort: the wheels exist for x86-64 Linux; the tests that need them skip where they are absent.
$(TENSORRT): $(READY)
	@if [ "$$(uname -sm)" = "Linux x86_64" ]; then \
		$(PIP) -e ".[tensorrt-rtx]" || echo "TensorRT for RTX cannot be installed here; its tests will skip."; \
	fi
	@touch $@

# Best effort: others' networks, for tests only. Of spandrel-extra-arches they take CodeFormer, whose code is under the
# S-Lab License 1.0 (non-commercial): it is no part of ufr-edge. --no-deps leaves torchvision out (see above).
$(SPANDREL): $(READY)
	@$(PIP) --no-deps "spandrel>=0.4.1,<0.5" "spandrel-extra-arches>=0.2,<0.3" einops \
		|| echo "spandrel cannot be installed here; the tests of SwinIR, GFPGAN, RestoreFormer and CodeFormer will skip."
	@touch $@

demo: $(READY)
	$(BIN)/ufr-edge demo -o $(DEMO) --overwrite

# Alone on the machine, or its frame rates and times mean nothing.
demo-onsite: $(READY)
	$(BIN)/ufr-edge demo-onsite -o $(ONSITE) --overwrite

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/mypy

test: lint $(TENSORRT) $(SPANDREL)
	$(BIN)/python -m pytest -q -m "not slow"

test-all: lint $(TENSORRT) $(SPANDREL)
	$(BIN)/python -m pytest -q

bench: $(READY) $(BUNDLE)
	$(BIN)/ufr-edge bench $(BUNDLE)

runs/bench.ufr: $(READY)
	$(BIN)/ufr-edge export edge-m-256 -o $@ --format onnx --format openvino --overwrite

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage $(DEMO) $(ONSITE) runs/bench.ufr
	find ufr_edge runtime export calibration tests -name __pycache__ -type d -prune -exec rm -rf {} +
