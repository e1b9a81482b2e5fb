#!/usr/bin/env bash
# Usage: pack-image.sh ROOT NAME:TAG CONFIG ARCHIVE
#
# Writes ARCHIVE as `docker save` would: an image for this machine's architecture, of one layer, which is the folder ROOT,
# and of the JSON object CONFIG (User, Entrypoint, Labels, ...). `docker load`, `podman load`, `ctr images import` and
# `skopeo copy docker-archive:` take it. No engine is needed, everything in it belongs to root, and the same input gives
# the same bytes.
set -euo pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[[ $# -eq 4 ]] || {
  sed -n '2p' "${BASH_SOURCE[0]}" | cut -c3- >&2
  exit 2
}
readonly root=$1 name=$2 config=$3 archive=$4

scratch=$(mktemp -d)
readonly scratch
trap 'rm -rf "$scratch"' EXIT

# Neither the order of the folder, nor its owner, nor today's date.
reproducible_tar() {
  local file=$1 folder=$2
  shift 2
  tar --create --file "$file" --directory "$folder" --format=ustar --sort=name --mtime=@0 \
    --owner=0 --group=0 --numeric-owner --mode='u+rw,go-w,a+rX' "$@"
}

digest_of() { sha256sum "$1" | cut -d ' ' -f 1; }

mapfile -t entries < <(cd "$root" && printf '%s\n' *)
mkdir "$scratch/image"
reproducible_tar "$scratch/image/layer.tar" "$root" "${entries[@]}"
layer=$(digest_of "$scratch/image/layer.tar")
mv "$scratch/image/layer.tar" "$scratch/image/$layer.tar"

printf '{"architecture":"%s","os":"linux","created":"1970-01-01T00:00:00Z","config":%s,"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
  "$(oci_architecture)" "$config" "$layer" > "$scratch/config"
id=$(digest_of "$scratch/config")
mv "$scratch/config" "$scratch/image/$id.json"
printf '[{"Config":"%s.json","RepoTags":["%s"],"Layers":["%s.tar"]}]' "$id" "$name" "$layer" > "$scratch/image/manifest.json"

mkdir -p "$(dirname "$archive")"
# Renamed when whole: a killed run leaves nothing that looks like an image.
reproducible_tar "$archive.packing" "$scratch/image" "$id.json" "$layer.tar" manifest.json
mv "$archive.packing" "$archive"
