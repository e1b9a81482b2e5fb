#!/usr/bin/env bash
# Usage: cluster-run.sh FOLDER PROGRAMS        as root, on Linux
#
# Runs a Kubernetes cluster of one node (control plane, containerd, kubelet, kube-proxy) from the folder PROGRAMS until it
# is told to stop by SIGTERM, or until one of its parts ends, which is an error. Tests and the demo run it under guard.sh.
# In FOLDER appear:
#
#   admin.kubeconfig   for a user who may do everything; it works from this machine
#   containerd.sock    ctr --address FOLDER/containerd.sock --namespace k8s.io images import ARCHIVE
#   host-address       the address at which pods reach this machine: what they shall reach listens there
#   volumes/           what is on the volumes that claims without a class get
#   ready              once the node is Ready; whoever waits, waits for this
#   *.log              of the programs
#
# All of it lives in network, mount and process namespaces of its own, joined to this machine by one pair of interfaces.
# So clusters do not meet, whatever ports, bridges, chains and paths they use; nothing on this machine is configured; and
# the end of the first process in there is the end of everything: processes, mounts, bridge, chains and the pair. There
# is no way out of it but to this machine, so nothing in it can reach any other. What is outside is the cgroup of its pods,
# which is removed when they are gone.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly hack
# shellcheck source=hack/lib.sh
source "$hack/lib.sh"

[[ $# -eq 2 ]] || {
  sed -n '2p' "${BASH_SOURCE[0]}" | cut -c3- >&2
  exit 2
}
folder=$(cd "$1" && pwd)
programs=$(cd "$2" && pwd)
readonly folder programs

# Of this cluster alone: the interface on this machine, and the cgroup of its pods.
name=impush$(printf %08x $((RANDOM << 15 | RANDOM)))
readonly name
# Addresses of the pairs, four each. Nothing is routed beyond, so all that matters is that this machine has no use for them.
readonly range=10.213

say() { printf 'cluster: %s\n' "$*"; }
fail() {
  say "$@"
  exit 1
}

check_machine() {
  [[ $(uname -s) == Linux && $EUID -eq 0 ]] || fail "a node has to make namespaces and mounts: please run as root, on Linux"
  case $folder/ in
    /run/* | /var/lib/* | /var/log/* | /proc/* | /sys/*)
      fail "the node has a $folder of its own, so its folder cannot lie there: please choose another"
      ;;
  esac
}

# The kubelet takes one that is there, if it has all controllers. In v2 the root hands them down; which it does already
# where systemd runs, or a container ever had a limit. It is all of this that could stay.
make_cgroups() {
  local hierarchy controller
  if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
    for controller in $(< /sys/fs/cgroup/cgroup.controllers); do
      echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control 2> /dev/null || true
    done
    mkdir "/sys/fs/cgroup/$name"
  else
    for hierarchy in /sys/fs/cgroup/*/; do mkdir "$hierarchy$name"; done
  fi
}

draw_addresses() {
  local try network
  for ((try = 0; try < 100; try++)); do
    network=$range.$((RANDOM % 256)).$((RANDOM % 64 * 4))
    # Neither something inside of it nor a network of this machine around it.
    if [[ -z $(ip -4 route show root "$network/30") && -z $(ip -4 route show match "$network/30" scope link) ]]; then
      host_address=${network%.*}.$((${network##*.} + 1))
      node_address=${network%.*}.$((${network##*.} + 2))
      return
    fi
  done
  fail "this machine uses all of $range.0.0/16, from which the cluster takes four addresses"
}

namespace_of() { readlink "/proc/$1/ns/net"; }

# Everything inside; it ends when it loses the pipe that we hold.
start_inside() {
  exec {pipe}> >(
    exec unshare --net --mount --propagation private -- \
      "$hack/cluster-inside.sh" "$folder" "$programs" "$name" "$node_address"
  )
  inside=$!
  while [[ $(namespace_of "$inside") == "$(namespace_of self)" ]]; do sleep 0.01; done
  # Made with its other end in there, so that the end of one is the end of both.
  ip link add "$name" type veth peer name node0 netns "$inside"
  ip address add "$host_address/30" dev "$name"
  ip link set "$name" up
}

stop_inside() {
  [[ -z $inside ]] || {
    exec {pipe}>&-
    wait "$inside" || true
  }
}

inside=''
check_machine
remove_stale_cgroups
draw_addresses
echo "$host_address" > "$folder/host-address"
trap stop_inside EXIT
trap 'exit 0' INT TERM
start_inside
# After the interface, which tells other clusters that they are in use.
make_cgroups
status=0
wait "$inside" || status=$?
inside=''
fail "it ended by itself with status $status"
