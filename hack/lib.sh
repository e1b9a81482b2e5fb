# Functions that several scripts of this folder use; to be sourced.
# shellcheck shell=bash

# A loopback port that nobody listens on. Drawn below the range that Linux uses for outgoing connections (32768 and up),
# so that none of those can take it before its program does.
free_port() {
  local port
  while :; do
    port=$((20000 + (RANDOM << 1 | RANDOM & 1) % 12000))
    (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null || break
  done
  echo "$port"
}

is_running() { [[ -n $1 ]] && kill -0 "$1" 2> /dev/null; }

# What images call the machine's architecture.
oci_architecture() {
  case $(uname -m) in
    x86_64) echo amd64 ;;
    aarch64) echo arm64 ;;
    *) uname -m ;;
  esac
}

# The folders that pods of a cluster have in the cgroup hierarchies (one in v2, one per controller in v1); those in use
# cannot be removed.
remove_cgroups() {
  local root
  for root in "/sys/fs/cgroup/$1" /sys/fs/cgroup/*/"$1"; do
    [[ ! -d $root ]] || find "$root" -depth -type d -exec rmdir {} + 2> /dev/null || true
  done
}

# Of clusters whose own clean-up was killed too.
remove_stale_cgroups() {
  local root
  for root in /sys/fs/cgroup/impush* /sys/fs/cgroup/*/impush*; do
    [[ ! -d $root ]] || ip link show "${root##*/}" > /dev/null 2>&1 || remove_cgroups "${root##*/}"
  done
}
