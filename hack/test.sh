#!/usr/bin/env bash
# Usage: test.sh
#
# All tests, and before them what they need. Those with pods need a node, and that needs root on Linux: everybody else
# runs all but them, and is told.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly hack

say_what_is_left_out() {
  cat >&2 << 'TEXT'

NOT TESTED: pods. A Kubernetes node has to make namespaces and mounts, which needs root on Linux, so the module `pods` of
the test binary `cluster` (tests/cluster/pods.rs) is left out. As root: sudo env PATH="$PATH" HOME="$HOME" make test

TEXT
}

cd "$hack/.."
if [[ $(uname -s) == Linux && $EUID -eq 0 ]]; then
  "$hack/packages.sh" node
  "$hack/controlplane.sh" etcd kube-apiserver kubectl kube-controller-manager kube-scheduler kubelet kube-proxy
  exec cargo test --locked
fi

say_what_is_left_out
"$hack/packages.sh"
"$hack/controlplane.sh"
cargo test --locked -- --skip pods::
say_what_is_left_out
