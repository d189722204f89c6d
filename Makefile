# What a newcomer and CI call. Everything runs as root on Debian 12 with a Rust toolchain and make.
#
#   make demo          three hosts, one control plane, every promise checked on real traffic
#   make demo KEEP=1   the same, left up to look around; `make demo-clean` takes it down
#   make test          everything: format, lints, house rules, unit, store, end-to-end, sizes
#   make vm            the service on booted Debian machines (the first run makes their roots: four minutes)
#   make build         both programs, quick to build      make release   as they ship

SHELL := /bin/bash -o pipefail
TARGET := x86_64-unknown-linux-gnu
DEBUG := target/$(TARGET)/debug
RELEASE := target/$(TARGET)/release
CARGO_FLAGS ?= --locked

.PHONY: demo demo-clean test build release tools lint unit e2e vm sizes clean-fuzz

demo: tools
	cargo build $(CARGO_FLAGS) --workspace --bins
	$(DEBUG)/demo $(if $(KEEP),--keep)

demo-clean:
	$(DEBUG)/demo --clean

# Says what it installs; silent when nothing is missing.
tools:
	@tests/tools.sh

build:
	cargo build $(CARGO_FLAGS) --workspace --bins

release:
	cargo build $(CARGO_FLAGS) --release -p cli -p controlplane --bins

test: tools lint unit e2e vm sizes
	$(DEBUG)/demo
	@echo "make test: all suites passed"

lint:
	cargo fmt --all --check
	cargo clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings

# Unit, component and store tests of every room, and the house rules.
unit:
	cargo build $(CARGO_FLAGS) --workspace --bins
	cargo test $(CARGO_FLAGS) --workspace --exclude tests
	cargo test $(CARGO_FLAGS) --workspace --test tidy
	cargo xtask codegen --check

# Real programs in network namespaces. Two at a time: there may be two cores only.
e2e:
	cargo build $(CARGO_FLAGS) --workspace --bins
	cargo test $(CARGO_FLAGS) --workspace --test e2e -- --test-threads 2

# The agent as a service of booted machines: systemd, journald, resolved, units, reboots.
vm: tools
	cargo build $(CARGO_FLAGS) --workspace --bins
	cargo test $(CARGO_FLAGS) --workspace --test vm -- --test-threads 2 --show-output

# The promises about size, on the programs as they ship.
sizes: release
	cargo build $(CARGO_FLAGS) --workspace --bins
	$(DEBUG)/sizes $(RELEASE)
