#!/usr/bin/env bash
# Usage: cluster.sh up | down        as root, on Linux
#
# A Kubernetes cluster of one node to try things in, see cluster-run.sh. `up` starts it, or finds it running, and prints
# the path of its kubeconfig as the only line on stdout; `down` stops it and removes every trace.
#
#   IMAGE_PUSHER_TOOLS   where it lies, beside the programs (default: $XDG_CACHE_HOME/docker-image-pusher)
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly hack
# shellcheck source=hack/lib.sh
source "$hack/lib.sh"

folder=${IMAGE_PUSHER_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/docker-image-pusher}/cluster
readonly folder start_seconds=240 stop_seconds=30

say() { printf 'cluster: %s\n' "$*" >&2; }
fail() {
  say "$@"
  exit 1
}

# Prints the pid of the running cluster. A number alone would not do: after a restart of the machine it is somebody else's.
running() {
  local pid
  pid=$(cat "$folder/pid" 2> /dev/null) || return 1
  [[ $(tr '\0' ' ' 2> /dev/null < "/proc/$pid/cmdline") == *cluster-run.sh\ "$folder"\ * ]] && echo "$pid"
}

is_up() { running > /dev/null && [[ -e $folder/ready ]]; }

start() {
  local programs
  "$hack/packages.sh" node
  programs=$("$hack/controlplane.sh" etcd kube-apiserver kubectl kube-controller-manager kube-scheduler kubelet kube-proxy)
  down
  mkdir -p "$folder"
  ln -s "$programs/kubectl" "$folder/kubectl"
  # A session of its own: it outlives this terminal.
  setsid "$hack/cluster-run.sh" "$folder" "$programs" < /dev/null > "$folder/log" 2>&1 &
  echo $! > "$folder/pid"
  while [[ ! -e $folder/ready ]]; do
    if ! running > /dev/null || ((SECONDS > start_seconds)); then
      tail -n 60 "$folder/log" >&2
      down
      fail "it did not start; the above says why"
    fi
    sleep 0.1
  done
}

up() {
  [[ $EUID -eq 0 ]] || fail "a node has to make namespaces and mounts: please run as root"
  is_up || start
  say "running. To use it, with an image of this checkout and something that pods can reach:"
  say "  export KUBECONFIG=$folder/admin.kubeconfig; alias kubectl=$folder/kubectl"
  say "  make image && ctr --address $folder/containerd.sock --namespace k8s.io images import target/image/docker-image-pusher.tar"
  say "  kubectl apply --server-side -k deploy/kustomize/base"
  say "  pods reach this machine at $(cat "$folder/host-address"), and nothing else"
  say "To stop and remove it: make cluster-down"
  echo "$folder/admin.kubeconfig"
}

down() {
  local pid waited=0
  if pid=$(running); then
    kill -TERM "$pid"
    while is_running "$pid"; do
      ((waited += 1, waited < stop_seconds * 20)) || fail "it still runs, as process $pid, $stop_seconds s after it was told to stop"
      sleep 0.05
    done
  fi
  rm -rf "$folder"
  remove_stale_cgroups
}

case ${1:-} in
  up) up ;;
  down) down ;;
  *)
    sed -n '2p' "${BASH_SOURCE[0]}" | cut -c3- >&2
    exit 2
    ;;
esac
