# The doors of this repository. `make check` is what every change must pass and writes nothing; what a target installs
# it says. Cargo's own target directory is used unless CARGO_TARGET_DIR names another.

TARGET := $(or $(CARGO_TARGET_DIR),target)
RAFTHOLD := $(TARGET)/release/rafthold
CHAOS := $(TARGET)/release/chaos
CLIENTS ?= /opt/oci-clients/bin
SEED ?= 1

.PHONY: help check fix test deny conformance clients chaos chaos-long release

help: ## Lists the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

check: ## Format, lints, tests, documentation; needs Rust and a C compiler, installs nothing.
	cargo fmt --all -- --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo test --workspace
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

fix: ## Formats and applies what clippy can apply.
	cargo clippy --workspace --all-targets --fix --allow-dirty
	cargo fmt --all

test: ## All tests that need nothing installed.
	cargo test --workspace

deny: ## Licences, advisories, sources; needs cargo-deny (cargo install cargo-deny).
	cargo deny check

release: ## The binaries that the targets below use.
	cargo build --release --workspace

conformance: ## The specification's cases; also the OCI suite's own binary where OCI_CONFORMANCE names it.
	cargo test --test it conformance
	@if [ -n "$(OCI_CONFORMANCE)" ]; then tests/clients/oci-suite.sh $(RAFTHOLD) "$(OCI_CONFORMANCE)"; \
	else echo "OCI_CONFORMANCE names no binary: the OCI suite itself was not run"; fi

clients: release ## Real clients against real nodes; installs them with apt and pip under /opt/oci-clients (root, Debian 12).
	tests/clients/run.sh $(RAFTHOLD) $(CLIENTS)

chaos: release ## A short run of every fault (root: mounts loop devices); about ten minutes, installs nothing.
	$(CHAOS) --rafthold $(RAFTHOLD) --seed $(SEED) kills --count 10
	$(CHAOS) --rafthold $(RAFTHOLD) --seed $(SEED) everything-killed --count 3
	$(CHAOS) --rafthold $(RAFTHOLD) --seed $(SEED) quorum-lost
	$(CHAOS) --rafthold $(RAFTHOLD) --seed $(SEED) power-cuts --single 3 --all 3
	$(CHAOS) --rafthold $(RAFTHOLD) --seed $(SEED) full-disks
	$(CHAOS) --rafthold $(RAFTHOLD) --seed $(SEED) dying-holder --mebibytes 1024

chaos-long: release ## What the README's figures come from: more kills and cuts, and memory under load (root).
	$(CHAOS) --rafthold $(RAFTHOLD) --seed $(SEED) kills --count 20
	$(CHAOS) --rafthold $(RAFTHOLD) --seed $(SEED) power-cuts --single 10 --all 10
	$(CHAOS) --rafthold $(RAFTHOLD) --seed $(SEED) --clients 10 soak --minutes 30 --every 20
	$(CHAOS) --rafthold $(RAFTHOLD) --seed $(SEED) slow-clients
	$(CHAOS) --rafthold $(RAFTHOLD) --seed $(SEED) zone-loss --zone 1
	$(CHAOS) --rafthold $(RAFTHOLD) --seed $(SEED) zone-loss --zone 3 --small 0
	$(CHAOS) --rafthold $(RAFTHOLD) --seed $(SEED) replaced-node
	$(CHAOS) --rafthold $(RAFTHOLD) --seed $(SEED) decommission
	$(CHAOS) --rafthold $(RAFTHOLD) --seed $(SEED) join
	$(CHAOS) --rafthold $(RAFTHOLD) --seed $(SEED) full-load --minutes 60
	$(CHAOS) --rafthold $(RAFTHOLD) --seed $(SEED) memory --streams 64 --mebibytes 1024
	$(CHAOS) --rafthold $(RAFTHOLD) --seed $(SEED) million --manifests 1000000 --links 3000000
