#!/usr/bin/env bash
# Usage: controlplane-run.sh FOLDER PROGRAMS [kube-controller-manager] [kube-scheduler]
#
# Runs etcd and kube-apiserver (and what else is named) from the folder PROGRAMS until it is told to stop by SIGTERM, or
# until one of them ends, which is an error. Tests run it under guard.sh, and cluster-inside.sh beside a node. In FOLDER
# appear:
#
#   admin.kubeconfig   for a user who may do everything
#   audit.log          one JSON event per request, without bodies
#   ready              once /readyz says so; whoever waits, waits for this
#   *.log              of the programs
#
# Everything listens on loopback at ports that were free a moment ago; where another program was quicker, others are drawn.
# With IMAGE_PUSHER_NODE_ADDRESS the API server listens at that address instead, and pods find it as the Service `kubernetes`.
set -euo pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[[ $# -ge 2 ]] || {
  sed -n '2p' "${BASH_SOURCE[0]}" | cut -c3- >&2
  exit 2
}
folder=$(cd "$1" && pwd)
programs=$(cd "$2" && pwd)
readonly folder programs address=${IMAGE_PUSHER_NODE_ADDRESS:-127.0.0.1}
shift 2
readonly also=("$@")

# Long, because a machine that compiles at the same time takes its time; measured are 3 to 5 s.
readonly ready_seconds=120
# A kube-apiserver drains its connections before it ends.
readonly stop_seconds=15

say() { printf 'control plane: %s\n' "$*"; }

etcd_pid='' apiserver_pid='' also_pids=()

# Stops one program and waits for it: its port and its files are in use until then.
stop() {
  local pid=$1 waited=0
  is_running "$pid" || return 0
  kill -TERM "$pid" 2> /dev/null || true
  while is_running "$pid" && ((waited < stop_seconds * 20)); do
    sleep 0.05
    ((waited += 1))
  done
  kill -KILL "$pid" 2> /dev/null || true
  wait "$pid" 2> /dev/null || true
}

# In reverse order, so that nothing complains about what it lost.
stop_all() {
  local pid
  for pid in "${also_pids[@]}"; do stop "$pid"; done
  stop "$apiserver_pid"
  stop "$etcd_pid"
}
trap stop_all EXIT
trap 'exit 0' INT TERM

start_etcd() {
  local client peer
  client=http://127.0.0.1:$(free_port)
  # Named too, because its default is one fixed port, at which two control planes meet.
  peer=http://127.0.0.1:$(free_port)
  rm -rf "$folder/etcd"
  # What is lost with the power is not missed here, and waiting for the disk is most of what etcd does.
  "$programs/etcd" --data-dir "$folder/etcd" --unsafe-no-fsync \
    --listen-client-urls "$client" --advertise-client-urls "$client" \
    --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "default=$peer" \
    > "$folder/etcd.log" 2>&1 &
  etcd_pid=$!
  etcd_url=$client
}

write_audit_policy() {
  cat > "$folder/audit-policy.yaml" << 'YAML'
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
YAML
}

start_apiserver() {
  local reconciler=lease
  # A `kubernetes` Service is for pods, and its endpoint must not be a loopback address.
  [[ $address != 127.* ]] || reconciler=none
  port=$(free_port)
  token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
  # In a file from the start, not on the command line, which every user of the machine can read.
  (umask 077 && printf '%s,admin,admin,system:masters\n' "$token" > "$folder/tokens.csv")
  mkdir -p "$folder/certificates"
  # It makes its own certificate, and signs ServiceAccount tokens with the same key: no openssl is needed.
  "$programs/kube-apiserver" --etcd-servers "$etcd_url" \
    --bind-address "$address" --advertise-address "$address" --secure-port "$port" \
    --cert-dir "$folder/certificates" --endpoint-reconciler-type "$reconciler" \
    --kubelet-preferred-address-types InternalIP \
    --service-account-issuer https://kubernetes.default.svc \
    --service-account-key-file "$folder/certificates/apiserver.key" \
    --service-account-signing-key-file "$folder/certificates/apiserver.key" \
    --authorization-mode RBAC --token-auth-file "$folder/tokens.csv" \
    --service-cluster-ip-range 10.96.0.0/24 --allow-privileged=true \
    --audit-policy-file "$folder/audit-policy.yaml" --audit-log-path "$folder/audit.log" \
    > "$folder/kube-apiserver.log" 2>&1 &
  apiserver_pid=$!
}

write_kubeconfig() {
  local authority
  authority=$(base64 -w0 < "$folder/certificates/apiserver.crt")
  (umask 077 && cat > "$folder/admin.kubeconfig") << YAML
apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "https://$address:$port", certificate-authority-data: "$authority"}}]
users: [{name: admin, user: {token: "$token"}}]
contexts: [{name: admin, context: {cluster: test, user: admin}}]
current-context: admin
YAML
}

# Without it there are no default ServiceAccounts, no garbage collection, no Jobs, and namespaces are never gone.
start_kube-controller-manager() {
  "$programs/kube-controller-manager" --kubeconfig "$folder/admin.kubeconfig" --leader-elect=false \
    --bind-address 127.0.0.1 --secure-port "$(free_port)" --cert-dir "$folder/certificates" \
    --service-account-private-key-file "$folder/certificates/apiserver.key" \
    --root-ca-file "$folder/certificates/apiserver.crt" --use-service-account-credentials=true \
    > "$folder/kube-controller-manager.log" 2>&1 &
}

start_kube-scheduler() {
  "$programs/kube-scheduler" --kubeconfig "$folder/admin.kubeconfig" --leader-elect=false \
    --bind-address 127.0.0.1 --secure-port "$(free_port)" --cert-dir "$folder/certificates" \
    > "$folder/kube-scheduler.log" 2>&1 &
}

apiserver_is_ready() {
  [[ -s $folder/certificates/apiserver.crt ]] || return 1
  write_kubeconfig
  "$programs/kubectl" --kubeconfig "$folder/admin.kubeconfig" --request-timeout 5s get --raw /readyz > /dev/null 2>&1
}

# Says what went wrong in a program's own words.
tail_of() {
  say "the end of $1:"
  tail -n 20 "$folder/$1"
}

lost_its_port() { grep -q 'address already in use' "$folder/$1"; }

# 0 when ready, 1 when another try may help.
start_core() {
  local deadline=$((SECONDS + ready_seconds))
  start_etcd
  start_apiserver
  while ! apiserver_is_ready; do
    if ! is_running "$etcd_pid"; then
      tail_of etcd.log
      lost_its_port etcd.log && return 1
      exit 1
    fi
    if ! is_running "$apiserver_pid"; then
      tail_of kube-apiserver.log
      lost_its_port kube-apiserver.log && return 1
      exit 1
    fi
    if ((SECONDS > deadline)); then
      tail_of kube-apiserver.log
      say "not ready after $ready_seconds s"
      exit 1
    fi
    sleep 0.1
  done
}

write_audit_policy
for attempt in 1 2 3; do
  start_core && break
  ((attempt < 3)) || exit 1
  stop_all
done
for program in "${also[@]}"; do
  "start_$program"
  also_pids+=("$!")
done
say "ready at https://$address:$port after $SECONDS s"
touch "$folder/ready"

# Returns with the first that ends; the trap ends the wait when it was us who were asked.
wait -n || true
say "a part ended by itself"
for log in "$folder"/*.log; do
  [[ $log == */audit.log || $log == "$folder/log" ]] || tail_of "$(basename "$log")"
done
exit 1
