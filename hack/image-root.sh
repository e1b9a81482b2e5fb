#!/usr/bin/env bash
# Usage: image-root.sh ROOT PROGRAM
#
# Fills the folder ROOT with everything that the image has in it: PROGRAM, which is linked statically, and what an empty
# base lacks. Both the Dockerfile and hack/image.sh use it, so there is one list.
set -euo pipefail

fail() {
  printf 'image-root: %s\n' "$*" >&2
  exit 1
}

[[ $# -eq 2 ]] || {
  sed -n '2p' "${BASH_SOURCE[0]}" | cut -c3- >&2
  exit 2
}
readonly root=$1 program=$2 authorities=/etc/ssl/certs/ca-certificates.crt

# What loads a dynamically linked program is not in the image.
! readelf --program-headers --wide "$program" | grep -q INTERP \
  || fail "$program is not linked statically; is RUSTFLAGS set, which overrides .cargo/config.toml?"
[[ -s $authorities ]] || fail "$authorities is missing: please install ca-certificates"

install -D --mode 0755 "$program" "$root/docker-image-pusher"
install -D --mode 0644 "$authorities" "$root$authorities"
# Without a name for its user, software that asks for it fails.
printf 'imagepusher:x:65534:65534:docker-image-pusher:/:/sbin/nologin\n' > "$root/etc/passwd"
printf 'imagepusher:x:65534:\n' > "$root/etc/group"
