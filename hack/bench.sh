#!/usr/bin/env bash
# Usage: bench.sh
#
# Compares the engine with public tools on this machine, prints the table, and writes the figures to target/bench/. How to
# read them: docs/performance.md. Missing tools are installed or built; to leave one out, name the others in TOOLS.
#
#   ROWS    only these jobs (loop8,wan40 ...; default: all)
#   RUNS    of each tool in each job (default: 5; the table shows medians)
#   TOOLS   only these (ours,skopeo,crane,regctl,regsync)
#   BINARY  measures this program instead of a release build
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly hack

# As it ships. The bench profile of cargo would measure a program with the features that only tests switch on.
release_build() {
  cargo build --locked --release --bin docker-image-pusher --message-format json-render-diagnostics \
    | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1
}

cd "$hack/.."
"$hack/packages.sh"
peers=$("$hack/bench-tools.sh")
program=${BINARY:-$(release_build)}
[[ -x $program ]] || {
  echo "bench: there is no program '$program'" >&2
  exit 1
}
arguments=(--binary "$(realpath "$program")" --peers "$peers" --runs "${RUNS:-5}"
  --output "target/bench/$(date -u +%Y-%m-%dT%H%M%SZ).json")
[[ -z ${ROWS:-} ]] || arguments+=(--row "$ROWS")
[[ -z ${TOOLS:-} ]] || arguments+=(--tools "$TOOLS")

# A bench that is interrupted cannot remove its images, of up to a gibibyte.
TMPDIR=$(mktemp -d)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT

# What compares may be a debug build, of which the tests have built most: it only starts programs and moves bytes.
cargo bench --locked --quiet --profile dev --bench engine -- "${arguments[@]}"
