# vpnlb: two commands matter on a fresh Linux machine (root, Go):
#   make demo   runs a cluster of three nodes in network namespaces and breaks it
#   make test   installs the real peers (FRR, strongSwan) and runs the tests
# CI runs more (.ci/run); deploy/DESIGN.md has the table of what each takes.
SHELL := /bin/bash
GO    ?= go
BIN   := bin/vpnlb
# The race detector needs cgo; the shipped binary does not.
export GOFLAGS := -buildvcs=false

.DEFAULT_GOAL := help
.PHONY: help build demo test drills long flaky lint generated unit xdp lab-units fuzz bench kernels generate deps clean
PARTS := MAKE=$(MAKE) deploy/checks/parts

help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## Build bin/vpnlb
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags="-s -w" -o $(BIN) ./cmd/vpnlb

demo: build ## Run the demo on embedded parts alone (root; DEMO=json prints the verdict as JSON)
	@$(BIN) lab demo $(if $(filter json,$(DEMO)),-o json)

test: ## Install the test peers and run the tests (root)
	@$(PARTS) test "at most 15 minutes on two idle cores, as root" deps lint generated unit xdp lab-units fuzz

drills: ## The laboratory's drills: embedded peers, sstpc, FRR and strongSwan (root)
	@$(PARTS) drills "about 15 minutes on two idle cores, as root" deps drills-standin drills-embedded drills-dsr drills-sstp drills-real

# What takes longer than CI should, in slices: SLICE="fuzz model" runs two of them.
SLICES := fuzz model soak
long: ## What takes hours, or some of it: SLICE="fuzz model soak" (root)
	@for s in $(SLICE); do case " $(SLICES) " in *" $$s "*) ;; *) echo "SLICE=$$s is not known: want some of $(SLICES)"; exit 1;; esac; done
	@$(PARTS) long "fuzz two hours, model one hour, soak ten minutes on two idle cores, as root" $(addprefix long-,$(or $(SLICE),$(SLICES)))

flaky: ## N runs of the tests of PKG with a busy loop on each core (PKG=./raft N=10)
	@deploy/checks/flaky -n $(or $(N),10) $(or $(PKG),./...)

deps: ## Install what the tests need: FRR, strongSwan and friends (Debian, Ubuntu)
	@deploy/checks/install-test-deps

lint: ## gofmt, vet, staticcheck, import lattice, tidiness
	@bad=$$(gofmt -l $$(git ls-files '*.go' | grep -v '_bpfel\.go$$')); [ -z "$$bad" ] || { echo "gofmt: run gofmt -w on:"; echo "$$bad"; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags long ./dataplane
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

# The laboratory's tests that build a laboratory: the name says which part they are of.
LAB := $(GO) test -count=1 -timeout 30m -v ./deploy/lab -run
lab-units: ## What the laboratory's tests prove without building one
	$(GO) test -race -count=1 -skip '^Test(Lab|StandIn)' ./deploy/lab

.PHONY: drills-standin drills-embedded drills-dsr drills-sstp drills-real
drills-standin: # the laboratory sees what happens, without vpnlb
	$(LAB) '^TestStandIn'

drills-embedded:
	$(LAB) '^TestLab' -skip '^TestLab(DSR|SSTP|Real)'

drills-dsr:
	$(LAB) '^TestLabDSR'

drills-sstp:
	$(LAB) '^TestLabSSTP'

drills-real:
	$(LAB) '^TestLabReal'

.PHONY: long-fuzz long-model long-soak
long-fuzz:
	@deploy/checks/fuzz-all 3000000x

long-model:
	$(GO) test -tags long -count=1 -timeout 3h -v -run '^TestLong' ./dataplane

long-soak: soak-sstp

fuzz: ## Each fuzz target with some tens of thousands of inputs
	@deploy/checks/fuzz-all 30000x

# Each part of `make bench` has a target bench-PART. One pass over the benchmarks: they
# repeat their rounds themselves.
BENCHES := dataplane sstp storm
bench: ## Measure all, or one part: BENCH=dataplane, BENCH=sstp (root)
	@for part in $(or $(BENCH),$(BENCHES)); do \
		case " $(BENCHES) " in *" $$part "*) ;; *) echo "BENCH=$$part is not known: want one of $(BENCHES)"; exit 1;; esac; \
		$(MAKE) --no-print-directory bench-$$part || exit 1; done

.PHONY: bench-dataplane
bench-dataplane:
	@$(GO) test -run '^$$' -bench . -benchtime 1x -timeout 10m ./dataplane

# The relay beside HAProxy, and logins through both beside a storm of hellos.
.PHONY: bench-sstp bench-storm soak-sstp
bench-sstp:
	@deploy/checks/install-bench-deps
	@$(GO) test -run '^$$' -bench '^BenchmarkSSTP$$' -benchtime 1x -timeout 15m ./dataplane/sstp/bench

bench-storm:
	@deploy/checks/install-bench-deps
	@$(GO) test -run '^$$' -bench '^BenchmarkStorm$$' -benchtime 1x -timeout 10m ./dataplane/sstp/bench

soak-sstp: ## 5,000 idle and 500 active SSTP sessions for five minutes
	@$(GO) test -run '^$$' -bench '^BenchmarkSoak$$' -benchtime 1x -timeout 15m ./dataplane/sstp/bench

kernels: ## Load and test on Debian's kernels in qemu; or KERNEL=image MODULES=folder (root)
	@deploy/checks/install-debs qemu-system-x86 busybox-static xz-utils zstd kmod
	@$(GO) run ./deploy/kernels $(if $(KERNEL),-kernel $(KERNEL) -modules $(MODULES))

generate: ## Rebuild generated files (BPF objects need clang-14 and libbpf-dev)
	$(GO) generate ./...

generated: ## Check that the generated files are what their sources say (clang-14)
	@before=$$(git hash-object $$(git ls-files 'dataplane/bpf/*' 'dataplane/hopbench/*')); $(GO) generate ./dataplane/...; \
	after=$$(git hash-object $$(git ls-files 'dataplane/bpf/*' 'dataplane/hopbench/*')); \
	[ "$$before" = "$$after" ] || { echo "generated files differ from their sources: run make generate and commit"; git --no-pager diff --stat; exit 1; }

clean: ## Remove what make built
	rm -rf bin
