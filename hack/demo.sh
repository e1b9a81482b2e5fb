#!/usr/bin/env bash
# Usage: demo.sh                  (KEEP=1 leaves everything running afterwards)
#
# Mirrors an image in front of your eyes, from a bare machine: a Kubernetes cluster, two registries and an image are made
# on the spot, the operator is installed from its shipped manifests, and an ImageMirror is applied and watched until it is
# Ready. Then skopeo, which is not ours, compares both sides. Everything stays on this machine, in one temporary folder.
#
# A node needs Linux and root. Everybody else gets a control plane, and the operator as a process under its shipped Role.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(dirname "$hack")
readonly hack project
# shellcheck source=hack/lib.sh
source "$hack/lib.sh"

readonly namespace=demo operator_namespace=imagepusher-system operator_account=imagepusher
readonly user=robot password=not-a-secret
# Of one layer. Large enough that progress can be seen, small enough that nobody waits for it.
readonly layer_mebibytes=16

work=$(mktemp -d "${TMPDIR:-/tmp}/image-pusher-demo-XXXXXX")
readonly work
guards=() pipes=() failed=''

with_node=''
[[ $(uname -s) != Linux || $EUID -ne 0 ]] || with_node=yes
readonly with_node

bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
[[ -t 1 ]] || bold='' green='' red='' plain=''

step() { printf '\n%s==> %3d s  %s%s\n' "$bold" "$SECONDS" "$*" "$plain"; }
fail() {
  failed=yes
  printf '%s%sFAILED%s after %d s: %s\n' "$bold" "$red" "$plain" "$SECONDS" "$*" >&2
  exit 1
}

# For programs that outlive the script if it is killed: what holds a pipe keeps everything running.
let_go_of_pipes() {
  local pipe
  for pipe in "${pipes[@]}"; do exec {pipe}>&-; done
}

# Starts a program that runs as long as we hold the pipe to its guard, that is, not longer than this script. Its folder
# is made before, for its configuration.
guarded() {
  local name=$1 pipe
  shift
  mkdir -p "$work/$name"
  exec {pipe}> >(
    let_go_of_pipes
    exec "$hack/guard.sh" "$work/$name" "$@"
  )
  guards+=("$name")
  pipes+=("$pipe")
}

# Removes the folder of all when the last of them is gone, also after this script was killed.
guard_folder() {
  local pipe
  exec {pipe}> >(
    trap '' INT TERM HUP
    cat > /dev/null
    while compgen -G "$work/*/pid" > /dev/null; do sleep 0.1; done
    rm -rf "$work"
  )
  guards+=(.)
  pipes+=("$pipe")
}

# In reverse order, each until it is gone, which its guard shows by removing its folder.
stop_all() {
  local index pipe
  for ((index = ${#guards[@]} - 1; index >= 0; index--)); do
    pipe=${pipes[index]}
    exec {pipe}>&-
    while [[ -d $work/${guards[index]} ]]; do sleep 0.05; done
  done
}

finish() {
  local status=$?
  # A command that failed by itself has said why; this says that it was the end.
  [[ $status -eq 0 || $status -eq 130 || -n $failed ]] || (fail "a command ended with status $status, see above") || true
  stop_all
}
trap finish EXIT
trap 'exit 130' INT TERM

# Asks again and again until something is so; its program must not end before.
wait_until() {
  local name=$1 seconds=$2 deadline=$((SECONDS + $2))
  shift 2
  until "$@"; do
    if [[ -e $work/$name/exit-status ]] || ((SECONDS > deadline)); then
      tail -n 30 "$work/$name/log" >&2
      [[ -e $work/$name/exit-status ]] && fail "$name ended with status $(cat "$work/$name/exit-status"); its log is above"
      fail "$name was not ready within $seconds s; its log is above"
    fi
    sleep 0.1
  done
}

kubectl() { "$programs/kubectl" --kubeconfig "$kubeconfig" "$@"; }

# Where cargo puts the program, which its configuration and its variables decide.
built_program() {
  cargo build --locked --quiet --bin docker-image-pusher --message-format json \
    | sed -n 's/.*"executable":"\([^"]*\/docker-image-pusher\)".*/\1/p' | tail -n 1
}

build() {
  local node=() parts=(etcd kube-apiserver kubectl)
  [[ -z $with_node ]] || node=(node) parts+=(kube-controller-manager kube-scheduler kubelet kube-proxy)
  "$hack/packages.sh" "${node[@]}"
  command -v cargo > /dev/null || fail "there is no cargo on the PATH: see rust-toolchain.toml for the version that is needed"
  programs=$("$hack/controlplane.sh" "${parts[@]}")
  # Not --release: optimising all of it takes three minutes more on a bare machine, and the tests can use what this builds.
  # The parts that touch every byte are optimised in this profile too.
  (cd "$project" && cargo build --locked)
  program=$(cd "$project" && built_program)
  [[ -z $with_node ]] || "$hack/image.sh" "$work/image.tar" "$program"
}

# Sets `kubeconfig`, and `address`, at which the operator reaches the registries: pods have a loopback of their own.
start_kubernetes() {
  if [[ -n $with_node ]]; then
    guarded kubernetes "$hack/cluster-run.sh" "$work/kubernetes" "$programs"
  else
    guarded kubernetes "$hack/controlplane-run.sh" "$work/kubernetes" "$programs"
  fi
  wait_until kubernetes 200 test -e "$work/kubernetes/ready"
  kubeconfig=$work/kubernetes/admin.kubeconfig
  address=127.0.0.1
  [[ -z $with_node ]] || address=$(cat "$work/kubernetes/host-address")
}

# registry NAME AUTH: AUTH is a section of its configuration. Its address is in its log, because it picks the port.
start_registry() {
  local name=$1 auth=$2
  mkdir -p "$work/$name"
  cat > "$work/$name/config.yml" << YAML
version: 0.1
log: {level: info, formatter: text}
storage: {filesystem: {rootdirectory: $work/$name/data}, delete: {enabled: true}}
http: {addr: "$address:0"}
$auth
YAML
  guarded "$name" docker-registry serve "$work/$name/config.yml"
  wait_until "$name" 30 grep -qs 'listening on' "$work/$name/log"
}

address_of() { sed -n 's/.*listening on \([0-9.]*:[0-9]*\)".*/\1/p' "$work/$1/log" | head -n 1; }

start_registries() {
  start_registry source ''
  mkdir -p "$work/destination"
  # The registry takes bcrypt only.
  htpasswd -Bbn "$user" "$password" > "$work/destination/htpasswd"
  start_registry destination "auth: {htpasswd: {realm: demo, path: $work/destination/htpasswd}}"
  source_registry=$(address_of source)
  destination_registry=$(address_of destination)
}

# Moves a file to its place in the layout and prints its descriptor, open for more fields.
add_blob() {
  local media_type=$1 file=$2 digest size
  digest=$(sha256sum "$file" | cut -d ' ' -f 1)
  size=$(stat -c %s "$file")
  mv "$file" "$work/image/blobs/sha256/$digest"
  printf '{"mediaType":"application/vnd.oci.image.%s","digest":"sha256:%s","size":%d' "$media_type" "$digest" "$size"
}

join() {
  local IFS=,
  printf '%s' "$*"
}

# One platform: a config and three layers of random bytes, which do not shrink, so that their size is what is copied.
add_platform() {
  local architecture=$1 scratch=$work/image/scratch layers=() diff_ids=() number config
  for number in 1 2 3; do
    head -c "${layer_mebibytes}M" /dev/urandom > "$scratch/data-$number"
    tar --create --file "$scratch/layer.tar" --directory "$scratch" "data-$number"
    rm "$scratch/data-$number"
    diff_ids+=("\"sha256:$(sha256sum "$scratch/layer.tar" | cut -d ' ' -f 1)\"")
    gzip --fast "$scratch/layer.tar"
    layers+=("$(add_blob layer.v1.tar+gzip "$scratch/layer.tar.gz")}")
  done
  printf '{"os":"linux","architecture":"%s","config":{},"rootfs":{"type":"layers","diff_ids":[%s]}}' \
    "$architecture" "$(join "${diff_ids[@]}")" > "$scratch/config.json"
  config="$(add_blob config.v1+json "$scratch/config.json")}"
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}' \
    "$config" "$(join "${layers[@]}")" > "$scratch/manifest.json"
  printf '%s,"platform":{"os":"linux","architecture":"%s"}}' \
    "$(add_blob manifest.v1+json "$scratch/manifest.json")" "$architecture"
}

# An OCI layout by hand: there is no Docker engine here, and nothing is downloaded.
make_image() {
  local manifests=() architecture index
  mkdir -p "$work/image/blobs/sha256" "$work/image/scratch"
  for architecture in amd64 arm64; do manifests+=("$(add_platform "$architecture")"); done
  index=$work/image/scratch/index.json
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s]}' \
    "$(join "${manifests[@]}")" > "$index"
  printf '{"schemaVersion":2,"manifests":[%s}]}' "$(add_blob index.v1+json "$index")" > "$work/image/index.json"
  printf '{"imageLayoutVersion":"1.0.0"}' > "$work/image/oci-layout"
  rm -r "$work/image/scratch"
  skopeo --insecure-policy copy --quiet --all --preserve-digests --dest-tls-verify=false --dest-no-creds \
    "oci:$work/image" "docker://$source_registry/demo/app:1.0"
  rm -r "$work/image"
}

apply_manifests() {
  # The folder is one for kustomize as well, so its files are named.
  kubectl apply --server-side -f "$project/crds/imagemirrors.yaml"
  kubectl wait --for=condition=Established --timeout=60s crd/imagemirrors.imagepusher.io
  kubectl apply --server-side -k "$project/deploy/kustomize/base"
}

# What a pod would find mounted: a token of the ServiceAccount, bound by its RBAC and by nothing else.
write_operator_kubeconfig() {
  local file=$1 token
  token=$(kubectl create token "$operator_account" --namespace "$operator_namespace" --duration 2h)
  (umask 077 && kubectl config view --raw --minify > "$file")
  "$programs/kubectl" --kubeconfig "$file" config unset users > /dev/null
  "$programs/kubectl" --kubeconfig "$file" config set-credentials admin --token "$token" > /dev/null
  "$programs/kubectl" --kubeconfig "$file" config set-context --current --namespace "$operator_namespace" > /dev/null
}

is_ready() {
  local port=$1 answer
  exec 4<> "/dev/tcp/127.0.0.1/$port" || return 1
  printf 'GET /readyz HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' >&4
  IFS= read -r answer <&4 || answer=''
  exec 4>&-
  [[ $answer == *' 200 '* ]]
} 2> /dev/null

start_operator_process() {
  metrics_port=$(free_port)
  mkdir -p "$work/operator/home"
  write_operator_kubeconfig "$work/operator/kubeconfig"
  # Nothing of this user's environment: what the operator knows, it knows from its Role and its arguments.
  guarded operator env -i PATH="$PATH" HOME="$work/operator/home" \
    KUBECONFIG="$work/operator/kubeconfig" POD_NAMESPACE="$operator_namespace" \
    "$program" controller --cache-dir "$work/operator/cache" --metrics-addr "127.0.0.1:$metrics_port" --allow-loopback
  wait_until operator 60 is_ready "$metrics_port"
}

# The node has nothing to pull the image from.
load_image() {
  ctr --address "$work/kubernetes/containerd.sock" --namespace k8s.io images import "$work/image.tar"
  rm "$work/image.tar"
}

wait_for_operator_pod() {
  kubectl rollout status "deployment/$operator_account" --namespace "$operator_namespace" --timeout=90s || {
    kubectl describe pods --namespace "$operator_namespace" >&2
    fail "the operator's pod did not become ready; the above says why"
  }
  kubectl get pods,pvc --namespace "$operator_namespace"
}

install_operator() {
  if [[ -n $with_node ]]; then
    load_image
    apply_manifests
    wait_for_operator_pod
  else
    apply_manifests
    start_operator_process
  fi
}

operator_log() {
  if [[ -n $with_node ]]; then
    kubectl logs "deployment/$operator_account" --namespace "$operator_namespace"
  else
    cat "$work/operator/log"
  fi
}

apply_mirror() {
  kubectl create namespace "$namespace"
  kubectl create secret docker-registry registry-login --namespace "$namespace" \
    --docker-server "$destination_registry" --docker-username "$user" --docker-password "$password"
  cat > "$work/mirror.yaml" << YAML
apiVersion: imagepusher.io/v1alpha1
kind: ImageMirror
metadata:
  name: app
  namespace: $namespace
spec:
  interval: 1h
  source:
    registry:
      repository: "$source_registry/demo/app"
      tags: ["1.0"]
      insecure: true
  destinations:
  - repository: "$destination_registry/mirror/{repository}"
    insecure: true
    secretRef: {name: registry-login}
YAML
  cat "$work/mirror.yaml"
  kubectl apply --server-side -f "$work/mirror.yaml"
}

# Prints a line for each change of the columns until the mirror is Ready.
watch_mirror() {
  local watch result=0
  (
    let_go_of_pipes
    exec "$programs/kubectl" --kubeconfig "$kubeconfig" \
      get imir app --namespace "$namespace" --watch
  ) &
  watch=$!
  kubectl wait --for=condition=Ready imir/app --namespace "$namespace" --timeout=180s > "$work/wait" 2>&1 || result=$?
  # The last change may be on its way.
  sleep 0.3
  kill "$watch" 2> /dev/null || true
  wait "$watch" 2> /dev/null || true
  [[ $result -eq 0 ]] || explain_and_fail
}

explain_and_fail() {
  {
    cat "$work/wait"
    kubectl get imir app --namespace "$namespace" -o yaml
    kubectl get events --namespace "$namespace"
    echo "The end of the operator's log:"
    operator_log | tail -n 40
  } >&2
  fail "the ImageMirror did not become Ready; the above says why"
}

raw_digest() { skopeo inspect --raw --tls-verify=false "$@" | sha256sum | cut -d ' ' -f 1; }

compare() {
  local source destination
  source=$(raw_digest --no-creds "docker://$source_registry/demo/app:1.0")
  destination=$(raw_digest --creds "$user:$password" "docker://$destination_registry/mirror/demo/app:1.0")
  printf 'source       %s/demo/app:1.0         sha256:%s\n' "$source_registry" "$source"
  printf 'destination  %s/mirror/demo/app:1.0  sha256:%s\n' "$destination_registry" "$destination"
  [[ $source == "$destination" ]] || fail "the two sides are not the same image"
  # Downloads everything behind that digest, and checks each blob against its own.
  skopeo --insecure-policy copy --quiet --all --preserve-digests --src-tls-verify=false --src-creds "$user:$password" \
    "docker://$destination_registry/mirror/demo/app:1.0" "dir:$work/check"
  rm -r "$work/check"
  digest=sha256:$destination
}

how_to_look_at_the_operator() {
  if [[ -n $with_node ]]; then
    echo "  kubectl logs -f -n $operator_namespace deployment/$operator_account"
    echo "  kubectl port-forward -n $operator_namespace deployment/$operator_account 8080   # http://127.0.0.1:8080/metrics"
  else
    echo "  tail -f $work/operator/log"
    echo "  http://127.0.0.1:$metrics_port/metrics"
  fi
}

keep_running() {
  # Holds the pipes in our place; once its sleep ends, it does what we would have done.
  (
    trap '' HUP
    sleep infinity &
    sleeper=$!
    trap 'kill "$sleeper"' TERM
    wait "$sleeper" || true
    stop_all
  ) < /dev/null > /dev/null 2>&1 &
  local holder=$!
  disown "$holder"
  trap - EXIT
  cat << TEXT

Everything keeps running. To use it:
  export KUBECONFIG=$kubeconfig
  alias kubectl=$programs/kubectl
  kubectl get imir -A -o wide; kubectl describe imir -n $namespace app
  skopeo copy --dest-tls-verify=false docker-archive:your.tar docker://$source_registry/demo/app:1.0   # the open registry
  skopeo list-tags --tls-verify=false --creds $user:$password docker://$destination_registry/mirror/demo/app
$(how_to_look_at_the_operator)
To stop and remove it:
  kill $holder
TEXT
}

main() {
  local built started mirrored
  guard_folder
  step "what is needed: packages, Kubernetes $(sed -n 's/^readonly kubernetes_version=//p' "$hack/controlplane.sh"), our program"
  build
  built=$SECONDS
  if [[ -n $with_node ]]; then
    step "a cluster of one node, two registries (the destination with a login), and an image of two platforms"
  else
    step "a control plane (a node needs root), two registries (the destination with a login), and an image of two platforms"
  fi
  start_kubernetes
  start_registries
  make_image
  step "the shipped manifests: the CRD, the Role, and the operator under exactly that Role"
  install_operator
  started=$SECONDS
  step "an ImageMirror"
  apply_mirror
  step "kubectl get imir, until it is Ready"
  watch_mirror
  mirrored=$SECONDS
  step "both sides, as skopeo sees them"
  compare
  printf '\n%s%sMIRRORED%s  %s, every blob checked\n' "$bold" "$green" "$plain" "$digest"
  printf '          preparing %d s, starting %d s, mirroring %d s, in all %d s\n' \
    "$built" "$((started - built))" "$((mirrored - started))" "$SECONDS"
  [[ -z ${KEEP:-} ]] || keep_running
}

main "$@"
