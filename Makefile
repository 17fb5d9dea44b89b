# memdiag: `make demo` shows one real diagnosis end to end, `make test` runs all tests. `make` alone lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON3 := /usr/bin/python3
VENV := .venv
PY := $(VENV)/bin/python
CLUSTER := $(PYTHON3) -m local_cluster
PYTEST := $(PY) -m pytest
# Not the stub headers, which stand for the kernel's.
C_FILES = $(shell find node_runner tests local_cluster -name '*.bpf.[ch]' -o -name '*.c')
# For tiers that mostly wait: two workers, each with an API server of its own, share the files in their order.
SIDE_BY_SIDE := --numprocesses=2 --dist=loadfile --no-loadscope-reorder
# Of the e2e tier, but they build for minutes and need no cluster.
IMAGE_TESTS := tests/e2e/test_images.py

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | sed -E 's/^([a-z-]+):.*## /\1\t/' | column -t -s "$$(printf '\t')"

# --- use -------------------------------------------------------------------------------------------------------------

.PHONY: prepare
prepare: ## install the Debian packages that are missing
	@$(CLUSTER) prepare python3-bpfcc python3-venv iproute2

.PHONY: demo
demo: ## one real diagnosis in an embedded cluster; KEEP=1 leaves the cluster up
	@$(CLUSTER) demo $(if $(KEEP),--keep)

.PHONY: case
case: ## the nginx case on a node in QEMU with a real network driver; CAUSE=blocked: another cause; KEEP=1 leaves it up
	@$(CLUSTER) case $(if $(CAUSE),--cause $(CAUSE)) $(if $(KEEP),--keep)

.PHONY: cluster-up
cluster-up: prepare ## start the embedded one-node cluster with memdiag's images in it
	@$(CLUSTER) up

.PHONY: cluster-down
cluster-down: ## stop the embedded cluster and remove everything that it created
	@$(CLUSTER) down

.PHONY: images
images: prepare ## build the two container images (cached), and print the location of their bills of materials
	@$(CLUSTER) build

.PHONY: release-images
release-images: ## build a release for REPOSITORY=registry/path; BASE_IMAGE=, BUILDER=docker|buildah, SOURCE=https://...
	@$(CLUSTER) release-images --repository=$(or $(REPOSITORY),$(error name the repository: REPOSITORY=registry/path)) \
		$(if $(BASE_IMAGE),--base-image=$(BASE_IMAGE)) $(if $(BUILDER),--builder=$(BUILDER)) $(if $(SOURCE),--source=$(SOURCE))

.PHONY: clean-cache
clean-cache: ## empty the cache of Kubernetes binaries and images
	@$(CLUSTER) clean-cache

# --- development -----------------------------------------------------------------------------------------------------

.PHONY: venv
venv: $(VENV)/.complete ## the development environment in .venv

# bcc comes from Debian (python3-bpfcc), so Debian's Python creates the environment, which includes Debian's packages.
$(VENV)/.complete: requirements/dev.txt pyproject.toml | prepare
	$(PYTHON3) -m venv --system-site-packages $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: lint
lint: venv ## ruff, clang-format, mypy --strict, import-linter, generated files, plain English
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/clang-format --dry-run -Werror $(C_FILES)
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PY) tools/generate_crds.py --check
	$(PYTEST) --quiet tests/unit/repository/test_prose.py

.PHONY: format
format: venv ## fix and format with ruff and clang-format
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format
	$(VENV)/bin/clang-format -i $(C_FILES)

.PHONY: crds
crds: venv ## write crds/ from the API models
	$(PY) tools/generate_crds.py

.PHONY: requirements
requirements: ## pin requirements/*.txt again (needs uv)
	tools/lock_requirements.sh

.PHONY: test
test: prepare lint ## all tiers of tests: unit, kernel, api, e2e, vm
	@$(CLUSTER) prepare qemu-system-x86 e2fsprogs libfaketime
	@$(CLUSTER) build --promtool
	@failed=0; \
	$(PYTEST) $(SIDE_BY_SIDE) tests/unit tests/api $(IMAGE_TESTS) $(ARGS) || failed=1; \
	$(PYTEST) tests/kernel tests/e2e tests/vm --deselect=$(IMAGE_TESTS) $(ARGS) || failed=1; \
	exit $$failed

.PHONY: test-unit test-kernel
test-unit test-kernel: test-%: venv ## one tier (unit anywhere; kernel: root and eBPF)
	$(PYTEST) $(if $(filter unit,$*),$(SIDE_BY_SIDE)) tests/$* $(ARGS)

.PHONY: bench-trace
bench-trace: prepare venv ## cost of the trace compared with bcc's memleak; writes docs/benchmarks.md
	@$(CLUSTER) prepare gcc bpfcc-tools linux-headers-amd64
	$(PY) tests/bench/trace_cost.py --write docs/benchmarks.md

.PHONY: bench-scan
bench-scan: prepare venv ## cost of a scan of 100,000 sockets compared with ss; writes docs/benchmarks.md
	$(PY) tests/bench/scan_cost.py --write docs/benchmarks.md

.PHONY: bench-census
bench-census: prepare venv ## cost of the census compared with slabtop, and with drgn in a guest; writes docs/benchmarks.md
	@$(CLUSTER) prepare procps qemu-system-x86 e2fsprogs
	@$(CLUSTER) build
	$(PY) tests/bench/census_cost.py --write docs/benchmarks.md

.PHONY: bench-operator
bench-operator: prepare venv ## cost of the operator with 1,000 nodes and 200 diagnoses; writes docs/benchmarks.md
	$(PY) tests/bench/operator_scale.py --write docs/benchmarks.md

.PHONY: accuracy
accuracy: prepare venv ## plant every case and healthy load here and count right answers; HEALTHY=100: so many healthy runs
	$(PY) tests/accuracy $(if $(HEALTHY),--healthy=$(HEALTHY)) $(if $(OUTPUT),--output=$(OUTPUT)) $(ARGS)

.PHONY: accuracy-cluster
accuracy-cluster: prepare venv ## ten planted cases, each in a pod of a real cluster
	@$(CLUSTER) prepare libfaketime
	@$(CLUSTER) build
	MEMDIAG_ALL_CASES=1 $(PYTEST) tests/e2e/test_accuracy.py $(ARGS)

.PHONY: test-faults
test-faults: prepare venv ## inject every fault, print the fault table and write it into docs/reliability.md
	@$(CLUSTER) prepare libfaketime
	@$(CLUSTER) build
	$(PYTEST) -m fault --write-faults=docs/reliability.md $(ARGS)

.PHONY: fuzz
fuzz: venv ## 10,000 hostile documents, the same in every run; prints how many were rejected
	MEMDIAG_FUZZ_EXAMPLES=10000 $(PYTEST) tests/unit/operator/test_hostile_documents.py --timeout=3600 $(ARGS)

.PHONY: test-api test-e2e
test-api test-e2e: test-%: prepare venv ## one tier (api: a kube-apiserver; e2e: the embedded cluster)
	@$(CLUSTER) prepare libfaketime
	@$(CLUSTER) build $(if $(filter api,$*),--promtool)
	$(PYTEST) $(if $(filter api,$*),$(SIDE_BY_SIDE)) tests/$* $(ARGS)

.PHONY: test-vm
test-vm: venv ## one tier (vm: guests in QEMU with Debian's kernels; no KVM needed)
	@$(CLUSTER) prepare qemu-system-x86 e2fsprogs
	@$(CLUSTER) build
	$(PYTEST) tests/vm $(ARGS)
