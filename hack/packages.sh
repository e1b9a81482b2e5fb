#!/usr/bin/env bash
# Usage: packages.sh
#
# Makes sure of the programs that tests and the demo run and that Debian packages. Root gets them installed; everybody
# else is told what to install. A service that comes with a package is neither started nor enabled.
set -euo pipefail

# program:package
readonly needed=(docker-registry:docker-registry skopeo:skopeo podman:podman htpasswd:apache2-utils cc:gcc)
readonly policy=/usr/sbin/policy-rc.d

say() { printf 'packages: %s\n' "$*" >&2; }

missing_packages() {
  local pair
  for pair in "${needed[@]}"; do
    command -v "${pair%%:*}" > /dev/null || echo "${pair##*:}"
  done
}

# Packages ask this file whether they may start their services; 101 is no. One that is there is the machine's own.
forbid_services() {
  [[ ! -e $policy ]] || return 0
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
}

# The registry's package enables a registry at port 5000 for the next boot.
disable_service() {
  if command -v systemctl > /dev/null && [[ -d /run/systemd/system ]]; then
    systemctl disable --now "$1" >&2
  fi
}

mapfile -t missing < <(missing_packages)
[[ ${#missing[@]} -gt 0 ]] || exit 0

if ! command -v apt-get > /dev/null; then
  say "there is no apt-get; these Debian packages, or what your system calls them, are missing: ${missing[*]}"
  exit 1
fi
if [[ $EUID -ne 0 ]]; then
  say "please run as root: apt-get install ${missing[*]}"
  exit 1
fi

say "installing ${missing[*]}"
forbid_services
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet=2 >&2
apt-get install --yes --quiet=2 --no-install-recommends "${missing[@]}" >&2
for package in "${missing[@]}"; do
  [[ $package != docker-registry ]] || disable_service docker-registry
done

mapfile -t missing < <(missing_packages)
[[ ${#missing[@]} -eq 0 ]] || {
  say "still missing after the installation: ${missing[*]}"
  exit 1
}
