# make alone says what there is.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# podman's bindings without its storage drivers and C libraries.
# gin without a codec that nothing of ours uses: it is 3 MB of each pod.
TAGS    := remote containers_image_openpgp exclude_graphdriver_btrfs btrfs_noversion nomsgpack
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
GOTAGS  := -tags '$(TAGS)'
BUILD   := CGO_ENABLED=0 go build -trimpath $(GOTAGS) -ldflags '-s -w -X main.version=$(VERSION)'
# The race detector needs cgo; the binaries do without.
TEST    := CGO_ENABLED=1 go test -race $(GOTAGS) -timeout 84m

# The whole program on real parts: forge, podman, agent.
E2E     := ./cmd/...
# Packages whose tests need no forge, no podman and no image.
FAST    := $(addsuffix /...,./ci/sandbox ./mirror ./podapi ./pods/egress ./pods/gate ./pods/podfile ./pods/redact ./pods/reconcile ./pods/relay ./pods/saver ./pods/shim)

N         ?= 5
MODEL_URL ?=
MODEL     ?=
export MODEL_URL MODEL

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

.PHONY: install
install: ## install what is missing on this machine (Debian, as root)
	@.ci/install </dev/null

.PHONY: modules
modules:
	@go mod download </dev/null

.PHONY: build
build: modules ## compile bin/devaipod, -pod and -box, static
	@echo "Compiling devaipod $(VERSION) (about a minute the first time)" >&2
	@$(BUILD) -o bin/ ./cmd/devaipod ./cmd/devaipod-box ./cmd/devaipod-pod

.PHONY: images
images: install ## build the images of forge, agent and local CI into the cache
	@compose/images/build agent </dev/null >/dev/null
	@compose/images/build ci </dev/null >/dev/null
	@compose/images/build forge </dev/null >/dev/null

.PHONY: test
test: install images build ## everything but what make soak adds: vet, then all tests on real parts
	@CGO_ENABLED=0 go vet $(GOTAGS) ./...
	@echo "Testing (about a minute of compiling the first time)" >&2
	@$(TEST) ./... </dev/null

.PHONY: test-fast
test-fast: modules ## the tests that need no forge, no podman and no image
	@$(TEST) $(FAST) </dev/null

.PHONY: fuzz
fuzz: modules ## throw garbage at every parser of what others send, FUZZTIME=60s each, four at a time
	@echo "Fuzzing ($${FUZZTIME:-60s} for each target)" >&2
	@.ci/fuzz

.PHONY: soak
soak: install images build ## the end-to-end suite, all of its scripts, N=5 times, with 200 kills each, until the first failure
	@for i in $$(seq $(N)); do \
	  echo "Round $$i of $(N)" >&2; \
	  TEST_SOAK=1 TEST_KILLS=200 $(TEST) -count=1 $(E2E) </dev/null; \
	done

.PHONY: soak-more
soak-more: install images build ## a million refs, a repository of 1 GB, a thousand issues; then the end-to-end suite as an ordinary user
	@TEST_REFS=1000000 $(TEST) -count=1 -run '^TestManyRefs$$' ./mirror/cache </dev/null
	@TEST_BIG_MB=1024 $(TEST) -count=1 -run '^TestEndToEnd$$/^together$$/^big-repository$$' ./cmd/devaipod </dev/null
	@TEST_ISSUES=1000 $(TEST) -count=1 -run '^TestAPassOverManyIssues$$' ./cmd/devaipod </dev/null
	@TEST_SOAK=1 TEST_ROOTLESS=all $(TEST) -count=1 -run '^TestRootless$$' ./cmd/devaipod </dev/null

.PHONY: pictures
pictures: install images build ## take the docs' pictures of the forge's pages anew (TEST_PICTURES)
	@TEST_PICTURES=$(CURDIR)/docs $(TEST) -count=1 -run '^TestEndToEnd$$/^(first|alone|together)$$/^(forge-up|panel|whole-loop)$$' ./cmd/devaipod </dev/null

.PHONY: demo
demo: install images build ## label an issue, see the pull request; MODEL_URL=, MODEL= and a key on stdin for a real model
	@go run $(GOTAGS) ./cmd/internal/demo up

.PHONY: demo-down
demo-down: ## remove all that make demo made
	@go run $(GOTAGS) ./cmd/internal/demo down </dev/null

.PHONY: bench
bench: install images build ## the speed of the whole program, the git cache, the proxies, the pages, local CI and the SSH server, beside baselines (about 26 min)
	@.ci/install bench </dev/null
	@CGO_ENABLED=0 go test $(GOTAGS) -run '^$$' -bench . -timeout 20m ./mirror/cache </dev/null
	@CGO_ENABLED=0 go test $(GOTAGS) -run '^$$' -bench . -timeout 20m ./pods/egress ./pods/gate </dev/null
	@CGO_ENABLED=0 go test $(GOTAGS) -run '^$$' -bench . -benchtime 1x -timeout 40m ./sshd </dev/null
	@CGO_ENABLED=0 go test $(GOTAGS) -run '^$$' -bench 'Control$$' -benchtime 200x -timeout 20m ./cmd/devaipod-pod </dev/null
	@CGO_ENABLED=0 go test $(GOTAGS) -run '^$$' -bench 'Pages|Rest|Event' -benchtime 1x -timeout 20m ./cmd/devaipod-pod ./podapi/web </dev/null
	@CGO_ENABLED=0 go test $(GOTAGS) -run '^$$' -bench . -timeout 20m ./cmd/internal/testkit </dev/null
	@CGO_ENABLED=0 go test $(GOTAGS) -run '^$$' -bench . -timeout 20m ./cmd/devaipod </dev/null

.PHONY: lint
lint: modules bin/golangci-lint ## gofmt, golangci-lint, shellcheck where it is installed
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not formatted, run gofmt -w on: $$unformatted" >&2; exit 1; fi
	@CGO_ENABLED=0 bin/golangci-lint run --allow-parallel-runners </dev/null
	@if command -v shellcheck >/dev/null; then \
	  shellcheck -x .ci/install .ci/run .ci/fuzz compose/images/build compose/images/*/recipe.sh compose/images/forge/rootfs/usr/local/bin/*; \
	fi

bin/golangci-lint: .ci/tools/go.mod .ci/tools/go.sum
	@echo "Compiling golangci-lint (about a minute the first time)" >&2
	@cd .ci/tools && GOFLAGS=-mod=readonly go mod download </dev/null && \
	  CGO_ENABLED=0 GOFLAGS=-mod=readonly go build -o ../../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	@touch $@

.PHONY: clean-cache
clean-cache: ## empty the cache of images
	@compose/images/build clean

.PHONY: clean
clean: ## remove what was compiled
	@rm -rf bin
