#!/usr/bin/env bash
# Usage: bench-tools.sh
#
# Builds the public tools that the benchmarks compare with and that Debian does not package, at fixed versions, and prints
# the folder they are in as the only line on stdout; progress goes to stderr. Neither GOPATH/bin nor the PATH is touched.
#
#   IMAGE_PUSHER_TOOLS   where built programs are kept (default: $XDG_CACHE_HOME/docker-image-pusher)
set -euo pipefail

readonly crane=github.com/google/go-containerregistry/cmd/crane@v0.22.1
readonly regctl=github.com/regclient/regclient/cmd/regctl@v0.11.7
readonly regsync=github.com/regclient/regclient/cmd/regsync@v0.11.7

say() { printf 'bench-tools: %s\n' "$*" >&2; }

# The folder's name carries the versions, so that a changed pin builds anew.
key=$(printf '%s\n' "$crane" "$regctl" "$regsync" | sha256sum | cut -c1-12)
folder=${IMAGE_PUSHER_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/docker-image-pusher}/bench-tools-$key
readonly key folder

# Where the Go project's own archive is unpacked, which is often not on the PATH of root or of make.
command -v go > /dev/null || PATH=$PATH:/usr/local/go/bin

mkdir -p "$folder"
for package in "$crane" "$regctl" "$regsync"; do
  program=${package##*/}
  program=${program%@*}
  [[ ! -x $folder/$program ]] || continue
  command -v go > /dev/null || {
    say "Go is needed to build $program, and there is no 'go' on the PATH"
    exit 1
  }
  say "building ${package##*/} ..."
  # CGO is off as in the published programs. The version is the module's, which the programs read from their own build.
  GOBIN=$folder CGO_ENABLED=0 GOWORK=off GOFLAGS=-trimpath go install -ldflags "-s -w" "$package" >&2
done
printf '%s\n' "$folder"
