# Everything that people and CI run. Each suite is a target of its own;
# `make test` runs them all.

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
CARGO ?= cargo
PREFIX ?= /usr/local
TARGET := $(or $(CARGO_TARGET_DIR),target)
FUZZ_SECONDS ?= 10

# Tools that scripts/install-deps built.
export PATH := $(CURDIR)/target/tools/bin:$(PATH)

# One set of flags for every build of the workspace, so that they share what is
# compiled: --workspace (the features of what is built together are joined) and
# the dev profile (dependencies are optimised in it).
WORKSPACE := --locked --workspace

SUITES := deps fmt lint deny check-unit e2e doctest doc examples bench fuzz

# nextest where it is installed: it shows slow tests and isolates each. Without
# it the same tests run under cargo test.
ifneq ($(shell command -v cargo-nextest 2>/dev/null),)
run_tests = $(CARGO) nextest run $(WORKSPACE) --show-progress none --status-level slow --final-status-level slow
else
run_tests = $(CARGO) test $(WORKSPACE) --no-fail-fast
endif

.NOTPARALLEL:
.PHONY: help quickstart test $(SUITES) soak advisories benchmark compare compare-cluster build format install uninstall clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: ## see it work: back up a real database, restore it, compare
	@scripts/quickstart

test: ## all suites but the soak, with totals
	@MAKE='$(MAKE)' scripts/suites $(SUITES)

deps: ## install what the suites need
	@scripts/install-deps test

fmt: ## formatting
	$(CARGO) fmt --all --check

lint: ## clippy and shellcheck, warnings are errors
	$(CARGO) clippy $(WORKSPACE) --all-targets -- -D warnings
	shellcheck scripts/* benches/*.sh fuzz/rustc .ci/run

deny: ## licences, sources and forbidden crates
	$(CARGO) deny --locked check bans licenses sources 2>&1 | sed 's/^bans /deny: &/'

check-unit: ## unit and property tests
	$(run_tests) --lib --bin backup

e2e: ## vectors, conformance, faults, end to end
	$(run_tests) --test '*'

# Not by nextest, which ends what takes too long.
soak: BACKUPS ?= 200
soak: ## local backups under load, BACKUPS (200) of them, and a large one; an hour or two
	BACKUPS=$(BACKUPS) TABLE_MIB=2048 RELATIONS=50000 \
		$(CARGO) test $(WORKSPACE) --test e2e -- --nocapture --test-threads 1 local_backup::load

doctest: ## examples in the documentation
	$(CARGO) test $(WORKSPACE) --doc

doc: ## the documentation itself, warnings are errors
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc $(WORKSPACE) --no-deps

examples: ## build and run the examples
	@scripts/examples

bench: ## run each benchmark once (to measure: make benchmark)
	$(CARGO) test $(WORKSPACE) --bench '*'

fuzz: ## run each fuzz target for FUZZ_SECONDS (10)
	@scripts/fuzz $(FUZZ_SECONDS)

advisories: ## known vulnerabilities; asks the network
	$(CARGO) deny --locked check advisories

benchmark: ## measure, with the profile of releases
	$(CARGO) bench --locked -p backup-benches

compare: build ## time it beside zstd | age on FILE, by default a tar of /usr
	@file='$(FILE)'; made=; \
	if [ -z "$$file" ]; then \
		file=$$(mktemp) && made=$$file && trap 'rm -f "$$made"' EXIT && \
		tar -cf - -C /usr lib share 2>/dev/null | head -c 1500000000 >"$$file" || true; \
	fi; \
	benches/compare.sh stream "$$file" $(ROUNDS)

compare-cluster: build ## time it beside pg_basebackup | zstd | age on a cluster of 1.7 GB
	benches/compare.sh cluster $(ROUNDS)

# What runs for each segment of WAL is laid out together, where the linker (lld) can do so: docs/decisions/0010-functions-in-the-order-of-use.md
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
ifeq ($(HOST),x86_64-unknown-linux-gnu)
LINK := -C link-arg=-Wl,--symbol-ordering-file=$(CURDIR)/backup-cli/link-order.txt -C link-arg=-Wl,--no-warn-symbol-ordering
endif

build: ## the release binary
	$(CARGO) rustc --release --locked -p backup-cli --bin backup -- $(LINK)

format: ## apply the formatting
	$(CARGO) fmt --all

# Does not build: under sudo there is often no cargo, and its files would be root's.
SHARE := $(DESTDIR)$(PREFIX)/share
COMPLETIONS := bash-completion/completions/backup zsh/site-functions/_backup fish/vendor_completions.d/backup.fish

install: ## install what `make build` made (PREFIX, DESTDIR)
	@[ -x '$(TARGET)/release/backup' ] || { echo 'run `make build` first' >&2; exit 1; }
	install -Dm755 '$(TARGET)/release/backup' '$(DESTDIR)$(PREFIX)/bin/backup'
	'$(TARGET)/release/backup' generate man --dir '$(SHARE)/man/man1'
	for file in $(COMPLETIONS); do \
		shell=$${file%%-*}; shell=$${shell%%/*}; \
		mkdir -p "$$(dirname "$(SHARE)/$$file")" && \
		'$(TARGET)/release/backup' generate $$shell >"$(SHARE)/$$file" || exit 1; \
	done

uninstall: ## remove it again
	rm -f '$(DESTDIR)$(PREFIX)/bin/backup' '$(SHARE)'/man/man1/backup{,-*}.1
	rm -f $(COMPLETIONS:%='$(SHARE)/%')

clean: ## remove target/, tools and all, and what fuzzing left
	$(CARGO) clean
	rm -rf target fuzz/corpus fuzz/artifacts
