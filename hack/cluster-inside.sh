#!/usr/bin/env bash
# Usage: cluster-inside.sh FOLDER PROGRAMS NAME ADDRESS        a part of cluster-run.sh, which says what it is about
#
# Runs in the network and mount namespaces of the cluster, gives it a process namespace as well, and starts the parts
# there: as its first process, so that with this script everything ends. It ends when stdin does.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly hack folder=$1 programs=$2 name=$3 address=$4
# shellcheck source=hack/lib.sh
source "$hack/lib.sh"

# Every cluster has the same, because no two of them see each other.
readonly pod_network=10.244.0.0/24 pause_image=localhost/pause:1 volumes=8
# Long, because a machine that compiles at the same time takes its time; measured are 8 s.
readonly ready_seconds=180

say() { printf 'cluster: %s\n' "$*"; }

if [[ $$ -ne 1 ]]; then
  # Our end of the pair is on its way.
  for _ in {1..1000}; do
    ! ip link show node0 > /dev/null 2>&1 || break
    sleep 0.01
  done
  ip address add "$address/30" dev node0
  ip link set node0 up
  ip link set lo up
  status=0
  unshare --pid --fork --kill-child --mount-proc -- "$0" "$@" || status=$?
  # Everything else goes with the namespaces. Here, so that it is also done when cluster-run.sh was killed.
  remove_cgroups "$name"
  exit "$status"
fi

# What the programs want to write at fixed places belongs to this cluster and not to the machine.
hide_the_machine() {
  mkdir -p "$folder/state" "$folder/logs"
  mount -t tmpfs -o mode=755 tmpfs /run
  mount --bind "$folder/state" /var/lib
  mount --bind "$folder/logs" /var/log
}

# The kubelet insists on these settings, which are the whole machine's. It finds them as it wants them, in files of ours.
pretend_kernel_settings() {
  local setting file
  mkdir -p "$folder/sysctl"
  for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    file=$folder/sysctl/$(tr / . <<< "${setting%=*}")
    echo "${setting#*=}" > "$file"
    [[ ! -e /proc/sys/${setting%=*} ]] || mount --bind "$file" "/proc/sys/${setting%=*}"
  done
}

start_control_plane() {
  mkdir -p "$folder/control-plane"
  IMAGE_PUSHER_NODE_ADDRESS=$address "$hack/controlplane-run.sh" "$folder/control-plane" "$programs" \
    kube-controller-manager kube-scheduler > "$folder/control-plane.log" 2>&1 &
}

write_network() {
  mkdir -p "$folder/cni"
  # Packets of pods leave with the node's address: the machine needs no route to them.
  cat > "$folder/cni/10-bridge.conflist" << JSON
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "pods0", "isGateway": true, "ipMasq": true, "ipam": {
    "type": "host-local", "dataDir": "/run/cni", "ranges": [[{"subnet": "$pod_network"}]],
    "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
JSON
}

# restrict_oom_score_adj: without CAP_SYS_RESOURCE, which machines of containers lack, runc dies of it.
start_containerd() {
  cat > "$folder/containerd.toml" << TOML
version = 2
root = "$folder/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.btrfs"]
[grpc]
address = "$folder/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "$folder/state/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "$pause_image"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "$folder/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
TOML
  containerd --config "$folder/containerd.toml" > "$folder/containerd.log" 2>&1 &
}

# Of our own making: there is nothing to pull it from.
load_pause_image() {
  mkdir -p "$folder/pause"
  cc -static -Os -s -o "$folder/pause/pause" "$hack/pause.c"
  "$hack/pack-image.sh" "$folder/pause" "$pause_image" '{"Entrypoint":["/pause"]}' "$folder/pause.tar"
  ctr --address "$folder/containerd.sock" --namespace k8s.io images import "$folder/pause.tar" > "$folder/pause.log" 2>&1
}

# Its pods stay in the cgroup of this cluster: without cgroupsPerQOS (the default) they would all lie where any containerd
# has its own. The kubelet's port is reached by the API server alone, in a network that has nobody else in it.
write_kubelet_configuration() {
  cat > "$folder/kubelet.yaml" << YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: /$name
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
localStorageCapacityIsolation: false
containerRuntimeEndpoint: unix://$folder/containerd.sock
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
podLogsDir: $folder/logs/pods
resolvConf: ""
volumePluginDir: $folder/state/volume-plugins
YAML
}

start_kubelet() {
  "$programs/kubelet" --config "$folder/kubelet.yaml" --kubeconfig "$folder/admin.kubeconfig" \
    --root-dir "$folder/state/kubelet" --cert-dir "$folder/state/kubelet/pki" \
    --hostname-override node --node-ip "$address" > "$folder/kubelet.log" 2>&1 &
}

# It makes Services work, the one of the API server among them. Of the connection table, which is the machine's, it is
# told to change nothing.
start_kube_proxy() {
  cat > "$folder/kube-proxy.yaml" << YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clientConnection: {kubeconfig: "$folder/admin.kubeconfig"}
clusterCIDR: $pod_network
hostnameOverride: node
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
YAML
  "$programs/kube-proxy" --config "$folder/kube-proxy.yaml" > "$folder/kube-proxy.log" 2>&1 &
}

# Says what went wrong in the programs' own words.
explain_and_fail() {
  local log
  say "$@"
  for log in "$folder"/*.log; do
    [[ $log == "$folder/log" ]] || {
      say "the end of $(basename "$log"):"
      tail -n 15 "$log"
    }
  done
  exit 1
}

# Asks until something is so; fails when a part ends before, or when it takes too long.
wait_until() {
  local what=$1 part
  shift
  until "$@" > /dev/null 2>&1; do
    for part in "${parts[@]}"; do
      is_running "$part" || explain_and_fail "a part ended before $what"
    done
    ((SECONDS < ready_seconds)) || explain_and_fail "$what took longer than $ready_seconds s"
    sleep 0.1
  done
}

# There is no provisioner: claims without a class take one of these. Their size is in name only.
create_volumes() {
  local number
  for ((number = 1; number <= volumes; number++)); do
    mkdir -p "$folder/volumes/$number"
    # As the root of a fresh volume is for the fsGroup of a pod, which hostPath volumes do not get.
    chmod 0777 "$folder/volumes/$number"
    cat << YAML
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: volume-$number}
spec:
  capacity: {storage: 1Ti}
  accessModes: [ReadWriteOnce, ReadOnlyMany, ReadWriteMany]
  hostPath: {path: "$folder/volumes/$number", type: Directory}
YAML
  done | kubectl create -f - > "$folder/volumes.log" 2>&1
}

kubectl() { "$programs/kubectl" --kubeconfig "$folder/admin.kubeconfig" --request-timeout 5s "$@"; }

node_is_ready() {
  [[ $(kubectl get node node -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}') == True ]] \
    && kubectl get serviceaccount default --namespace default
}

exec {stdin}<&0
cat <&"$stdin" > /dev/null &
parts=("$!")
hide_the_machine
pretend_kernel_settings
write_network
start_control_plane
parts+=("$!")
start_containerd
parts+=("$!")
wait_until "containerd was ready" ctr --address "$folder/containerd.sock" version
load_pause_image
wait_until "the control plane was ready" test -e "$folder/control-plane/ready"
cp "$folder/control-plane/admin.kubeconfig" "$folder/admin.kubeconfig"
write_kubelet_configuration
start_kubelet
parts+=("$!")
start_kube_proxy
parts+=("$!")
wait_until "the node was Ready" node_is_ready
create_volumes
say "ready after $SECONDS s"
touch "$folder/ready"

wait -n "${parts[@]}" || true
# Without its stdin it was told to.
is_running "${parts[0]}" || exit 0
explain_and_fail "a part ended by itself"
