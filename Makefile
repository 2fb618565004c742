# PYTHON: the interpreter every target uses, e.g. `make test PYTHON=python3` outside .venv.
PYTHON ?= .venv/bin/python

.PHONY: build nvcc-check gpu-check

build:  ## compile the operators in place, incrementally
	$(PYTHON) setup.py build_ext --inplace

nvcc-check:  ## compile every CUDA kernel for sm_80, sm_90 and sm_100; no GPU needed
	$(PYTHON) csrc/nvcc_check.py

gpu-check:  ## on a GPU machine, no network: build the CUDA operators, test them, time them
	COX_CUDA=1 $(PYTHON) setup.py build_ext --inplace
	$(PYTHON) -m cox_ops
	$(PYTHON) -m pytest tests -m "cuda or not slow" -k "ops or anchor or agreement or mmd or distances"
	mkdir -p bench/results
	$(PYTHON) -m pytest bench --benchmark-json=bench/results/gpu.json
