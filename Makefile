# What one does with this repository, as verbs; `make` alone lists them. The workflow and .ci/run call these and nothing
# else, so what passes here passes there.

.DEFAULT_GOAL := help
.PHONY: help demo test lint deny bench soak fuzz controlplane cluster cluster-down crds image clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## mirror an image in front of your eyes, from a bare machine; KEEP=1 leaves everything running
	hack/demo.sh

test: ## all tests, and before them what they need; those with pods, and missing packages, as root
	hack/test.sh

lint: ## formatting, clippy and documentation, without a warning
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --locked --no-deps

# Advisories change without us, so they are asked for apart: make deny CHECKS=advisories
CHECKS ?= bans licenses sources

deny: ## what we depend on: banned and doubled crates, licences, sources
	@cargo deny --version > /dev/null 2>&1 || { echo "cargo-deny is missing: cargo install --locked cargo-deny" >&2; exit 1; }
	cargo deny --locked check $(CHECKS)

bench: ## compare the engine with skopeo, crane and regctl, and print the table; ROWS=loop8,wan40 RUNS=5 TOOLS=ours,crane
	hack/bench.sh

soak: ## a thousand kills at any moment; KILLS=5000 SEED=1
	KILLS=$(or $(KILLS),1000) cargo test --locked --test cli kills -- --nocapture

fuzz: ## look for bytes that break a parser, each target for a minute; SECONDS=600 FUZZ=archive
	SECONDS_EACH=$(or $(SECONDS),60) FUZZ=$(FUZZ) hack/fuzz.sh

controlplane: ## build the Kubernetes programs that tests and demo run, and print where they are
	@hack/controlplane.sh

cluster: ## start a real cluster of one node, and print its kubeconfig; as root
	@hack/cluster.sh up

cluster-down: ## stop that cluster and remove every trace of it
	@hack/cluster.sh down

image: ## the container image, without a container engine, in target/image
	hack/image.sh

# In two steps, because a program that fails must not leave an empty file behind.
crds: ## write crds/ and its reference in docs/ anew from the types, and fail if that changes them
	cargo run --locked --quiet -- crd > crds/.imagemirrors.yaml || { rm -f crds/.imagemirrors.yaml; exit 1; }
	mv crds/.imagemirrors.yaml crds/imagemirrors.yaml
	cargo run --locked --quiet -- crd --markdown > docs/.reference.md || { rm -f docs/.reference.md; exit 1; }
	mv docs/.reference.md docs/reference.md
	git diff --exit-code crds docs/reference.md

clean: ## remove what cargo built; the Kubernetes programs stay in their cache
	cargo clean
