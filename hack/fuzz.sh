#!/usr/bin/env bash
# Usage: [SECONDS_EACH=60] [FUZZ=target] fuzz.sh
#
# Looks for bytes that break a property of src/fuzzing.rs: every target of fuzz/ (or the one that FUZZ names) for some
# seconds. What the fuzzer learns stays in target/fuzz/corpus and serves the next time; bytes that break something are left
# in target/fuzz/artifacts and named. Those become a seed in fuzz/corpus/<target>/, named after what they were.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly seconds=${SECONDS_EACH:-60}
readonly state=$PWD/target/fuzz

require() {
  "${@:2}" > /dev/null 2>&1 || { echo "$1" >&2; exit 1; }
}

require 'Rust nightly is missing: rustup toolchain install nightly --profile minimal' cargo +nightly --version
require 'cargo-fuzz is missing: cargo install --locked cargo-fuzz' cargo +nightly fuzz --version

# cargo-fuzz sets RUSTFLAGS, which take the place of those in .cargo/config.toml: the sanitizer cannot be linked statically.
fuzz() {
  local verb=$1
  shift
  cargo +nightly fuzz "$verb" --fuzz-dir fuzz "$@"
}

targets=${FUZZ:-$(fuzz list)}
# The targets write small archives and caches; in memory that is several times as fast.
if [[ -z ${TMPDIR:-} && -w /dev/shm ]]; then
  TMPDIR=$(mktemp -d /dev/shm/fuzz.XXXXXX)
  export TMPDIR
  trap 'rm -rf "$TMPDIR"' EXIT
fi

broken=()
for target in $targets; do
  mkdir -p "$state/corpus/$target" "$state/artifacts/$target"
  # New finds go into the first folder; the seeds stay as they are.
  fuzz run --target-dir "$state" "$target" "$state/corpus/$target" "fuzz/corpus/$target" -- \
    -max_total_time="$seconds" -max_len=16384 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="$state/artifacts/$target/" || broken+=("$target")
done

if ((${#broken[@]})); then
  echo "something broke ${broken[*]}: the bytes are in $state/artifacts/" >&2
  exit 1
fi
