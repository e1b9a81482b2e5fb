#!/usr/bin/env bash
# Usage: image.sh [ARCHIVE [PROGRAM]]
#
# Makes the image that the Dockerfile describes, for this machine's architecture and without a container engine, and
# writes it to ARCHIVE (default: target/image/docker-image-pusher.tar). The files come from hack/image-root.sh as in the
# Dockerfile, the rest is read from its last stage. PROGRAM, which tests name, is what goes into it instead of a release
# build.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(dirname "$hack")
readonly hack project archive=${1:-$project/target/image/docker-image-pusher.tar}

say() { printf 'image: %s\n' "$*" >&2; }

# What the last stage says, one instruction per line.
instruction() { sed -n "/^FROM scratch\$/,\$s/^$1 //p" "$project/Dockerfile"; }

labels() {
  local label
  while read -r label; do
    printf '"%s":%s\n' "${label%%=*}" "${label#*=}"
  done < <(instruction LABEL)
}

configuration() {
  printf '{"User":"%s","Entrypoint":%s,"Labels":{%s}}' \
    "$(instruction USER)" "$(instruction ENTRYPOINT)" "$(labels | paste -sd ,)"
}

# Where cargo puts it, which its configuration and its variables decide.
release_build() {
  (cd "$project" && cargo build --locked --release --bin docker-image-pusher --message-format json-render-diagnostics) \
    | sed -n 's/.*"executable":"\([^"]*\/docker-image-pusher\)".*/\1/p' | tail -n 1
}

root=$(mktemp -d)
readonly root
trap 'rm -rf "$root"' EXIT

program=${2:-$(release_build)}
"$hack/image-root.sh" "$root" "$program"
# A debug build is mostly line tables; a release has none.
strip --strip-debug "$root/docker-image-pusher"
name=$(sed -n 's/^ *image: //p' "$project/deploy/kustomize/base/deployment.yaml")
"$hack/pack-image.sh" "$root" "$name" "$(configuration)" "$archive"
say "$name is in $archive"
