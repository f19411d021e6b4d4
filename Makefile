# vpnlb: two commands matter on a fresh Linux machine (root, Go):
#   make demo   runs a cluster of three nodes in network namespaces and breaks it
#   make test   installs the real peers (FRR, strongSwan) and runs every test
SHELL := /bin/bash
GO    ?= go
BIN   := bin/vpnlb
# The race detector needs cgo; the shipped binary does not.
export GOFLAGS := -buildvcs=false

.DEFAULT_GOAL := help
.PHONY: help build demo test lint generated unit xdp lab-test fuzz bench generate deps clean

help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## Build bin/vpnlb
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags="-s -w" -o $(BIN) ./cmd/vpnlb

demo: build ## Run the demo on embedded parts alone (root; DEMO=json prints the verdict as JSON)
	@$(BIN) lab demo $(if $(filter json,$(DEMO)),-o json)

test: deps lint generated unit xdp lab-test fuzz ## Install the test peers and run every test (root)

deps: ## Install what the tests need: FRR, strongSwan and friends (Debian, Ubuntu)
	@deploy/checks/install-test-deps

lint: ## gofmt, vet, staticcheck, import lattice, tidiness
	@bad=$$(gofmt -l $$(git ls-files '*.go' | grep -v '_bpfel\.go$$')); [ -z "$$bad" ] || { echo "gofmt: run gofmt -w on:"; echo "$$bad"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) test -count=1 ./deploy/checks/

# Packages whose tests measure real traffic or fill the kernel with maps run apart, one
# at a time (as root). Tests elsewhere that want a namespace or load a program
# (cmd/vpnlb, cluster/health, dataplane/bpf and so on) mind no neighbours.
ROOT_PKGS := ./dataplane ./dataplane/forward ./dataplane/gateway ./dataplane/transparent ./deploy/lab ./deploy/lab/router ./bgp
unit: ## Unit tests, virtual clusters and CLI scripts, with the race detector
	$(GO) test -race -count=1 $$($(GO) list ./... | grep -vxF "$$($(GO) list $(ROOT_PKGS))")

xdp: ## The XDP program against the model, gateways, BGP with real routers (root)
	$(GO) test -count=1 -run TestProgramEqualsModel ./dataplane # a million packets: the race detector has nothing to see there
	$(GO) test -race -count=1 -p 1 -skip TestProgramEqualsModel ./dataplane ./dataplane/forward ./dataplane/gateway ./dataplane/transparent ./bgp ./deploy/lab/router
	$(GO) test -count=1 ./bgp # tests with several speakers in one process: the BGP library has races of its own

lab-test: build ## The laboratory: embedded drills, then FRR and strongSwan (root)
	$(GO) test -count=1 -p 1 -timeout 20m -v ./deploy/lab

fuzz: ## Each fuzz target with some tens of thousands of inputs
	@deploy/checks/fuzz-all 30000x

# Each part of `make bench` has a target bench-PART. One pass over the benchmarks: they
# repeat their rounds themselves.
BENCHES := dataplane sstp
bench: ## Measure all, or one part: BENCH=dataplane, BENCH=sstp (root)
	@for part in $(or $(BENCH),$(BENCHES)); do \
		case " $(BENCHES) " in *" $$part "*) ;; *) echo "BENCH=$$part is not known: want one of $(BENCHES)"; exit 1;; esac; \
		$(MAKE) --no-print-directory bench-$$part || exit 1; done

.PHONY: bench-dataplane
bench-dataplane:
	@$(GO) test -run '^$$' -bench . -benchtime 1x -timeout 10m ./dataplane

# The relay beside HAProxy.
.PHONY: bench-sstp soak-sstp
bench-sstp:
	@deploy/checks/install-bench-deps
	@$(GO) test -run '^$$' -bench '^BenchmarkSSTP$$' -benchtime 1x -timeout 15m ./dataplane/sstp/bench

soak-sstp: ## 5,000 idle and 500 active SSTP sessions for five minutes
	@$(GO) test -run '^$$' -bench '^BenchmarkSoak$$' -benchtime 1x -timeout 15m ./dataplane/sstp/bench

generate: ## Rebuild generated files (BPF objects need clang-14 and libbpf-dev)
	$(GO) generate ./...

generated: ## Check that the generated files are what their sources say (clang-14)
	@before=$$(git hash-object $$(git ls-files 'dataplane/bpf/*' 'dataplane/hopbench/*')); $(GO) generate ./dataplane/...; \
	after=$$(git hash-object $$(git ls-files 'dataplane/bpf/*' 'dataplane/hopbench/*')); \
	[ "$$before" = "$$after" ] || { echo "generated files differ from their sources: run make generate and commit"; git --no-pager diff --stat; exit 1; }

clean: ## Remove what make built
	rm -rf bin
