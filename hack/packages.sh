#!/usr/bin/env bash
# Usage: packages.sh [node]
#
# Makes sure of the programs that tests and the demo run and that Debian packages; with `node`, also of those that a
# Kubernetes node runs. Root gets them installed; everybody else is told what to install. A service that comes with a
# package is neither started nor enabled.
set -euo pipefail

# program:package, or a library that cc links statically, which a compiler may come without
needed=(docker-registry:docker-registry skopeo:skopeo podman:podman htpasswd:apache2-utils nginx:nginx-light
  tinyproxy:tinyproxy-bin strace:strace cc:gcc libc.a:libc6-dev /etc/ssl/certs/ca-certificates.crt:ca-certificates)
# ip, unshare and mount are on every Debian machine, but not in every image of one. busybox is what examples/ run.
readonly needed_by_a_node=(containerd:containerd runc:runc /usr/lib/cni/bridge:containernetworking-plugins
  iptables:iptables ip:iproute2 unshare:util-linux mount:mount busybox:busybox-static)
[[ ${1:-} != node ]] || needed+=("${needed_by_a_node[@]}")
readonly needed policy=/usr/sbin/policy-rc.d

say() { printf 'packages: %s\n' "$*" >&2; }

is_there() {
  case $1 in
    # Where it finds none, it prints the name as it is.
    *.a) [[ $(cc -print-file-name="$1" 2> /dev/null) == /* ]] ;;
    *.crt) [[ -s $1 ]] ;;
    # There is a package with a dynamic one, too, which does not run in an image of its own.
    busybox) command -v "$1" > /dev/null && ! readelf --program-headers --wide "$(command -v "$1")" | grep -q INTERP ;;
    *) command -v "$1" > /dev/null ;;
  esac
}

missing_packages() {
  local pair
  for pair in "${needed[@]}"; do
    is_there "${pair%%:*}" || echo "${pair##*:}"
  done
}

# Packages ask this file whether they may start their services; 101 is no. One that is there is the machine's own.
forbid_services() {
  [[ ! -e $policy ]] || return 0
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
}

# The packages of the registry, of nginx and of containerd enable a service for the next boot.
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
  case $package in
    docker-registry | containerd) disable_service "$package" ;;
    nginx-light) disable_service nginx ;;
  esac
done

mapfile -t missing < <(missing_packages)
[[ ${#missing[@]} -eq 0 ]] || {
  say "still missing after the installation: ${missing[*]}"
  exit 1
}
