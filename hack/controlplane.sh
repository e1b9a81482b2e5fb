#!/usr/bin/env bash
# Usage: controlplane.sh [PROGRAM...]
#
# Builds the programs of a Kubernetes control plane that are missing, and prints the folder they are in as the only line
# on stdout; progress goes to stderr. PROGRAM is one of those in package_of below; without any, the four that tests use.
#
#   KUBEBUILDER_ASSETS   a folder that has the programs already: it is printed, nothing is built
#   IMAGE_PUSHER_TOOLS   where built programs are kept (default: $XDG_CACHE_HOME/docker-image-pusher)
set -euo pipefail

readonly kubernetes_version=v1.36.3
hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly hack module=$hack/controlplane

say() { printf 'controlplane: %s\n' "$*" >&2; }
fail() {
  say "$@"
  exit 1
}

package_of() {
  case $1 in
    etcd) echo go.etcd.io/etcd/server/v3 ;;
    kube-apiserver | kube-controller-manager | kube-proxy | kube-scheduler | kubectl | kubelet)
      echo "k8s.io/kubernetes/cmd/$1"
      ;;
    *) fail "'$1' is not a program this script knows how to build" ;;
  esac
}

# The folder's name carries everything that decides what is in it, so a changed pin builds anew beside the old programs
# instead of mixing with them.
folder_of_this_build() {
  local key
  key=$(cat "$module/go.mod" "$module/go.sum" "$hack/controlplane.sh" | sha256sum | cut -c1-12)
  printf '%s/controlplane-%s-%s\n' \
    "${IMAGE_PUSHER_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/docker-image-pusher}" "$kubernetes_version" "$key"
}

missing_in() {
  local folder=$1 program
  shift
  for program in "$@"; do
    [[ -x $folder/$program ]] || echo "$program"
  done
}

require_go() {
  local wanted problem
  wanted=$(awk '$1 == "go" { print $2; exit }' "$module/go.mod")
  # Where the Go project's own archive is unpacked, which is often not on the PATH of root or of make.
  command -v go > /dev/null || PATH=$PATH:/usr/local/go/bin
  command -v go > /dev/null \
    || fail "Go $wanted or newer is needed to build Kubernetes, and there is no 'go' on the PATH (or set KUBEBUILDER_ASSETS to a folder with etcd, kube-apiserver and kubectl)"
  # Reading the module is the whole question: an old go refuses its version, unless it may fetch the toolchain itself.
  problem=$(cd "$module" && GOWORK=off go list -m 2>&1 > /dev/null) \
    || fail "Go $wanted or newer is needed to build Kubernetes, and $(command -v go) is $(go env GOVERSION): $problem"
}

build() {
  local folder=$1 program=$2 package started=$SECONDS temporary
  package=$(package_of "$program")
  temporary=$folder/.$program.building
  say "building $program ..."
  # Without the version a client sees v0.0.0-master and takes the server for an ancient one. CGO is off as in the
  # published programs, which also means that no C compiler is needed.
  (cd "$module" && CGO_ENABLED=0 GOWORK=off go build -trimpath -buildvcs=false -o "$temporary" -ldflags "-s -w \
    -X k8s.io/component-base/version.gitVersion=$kubernetes_version \
    -X k8s.io/client-go/pkg/version.gitVersion=$kubernetes_version" "$package") >&2
  # Renamed when whole: a killed build leaves nothing that looks like a program.
  mv "$temporary" "$folder/$program"
  say "built $program in $((SECONDS - started)) s"
}

main() {
  local folder program missing
  [[ $# -gt 0 ]] || set -- etcd kube-apiserver kubectl kube-controller-manager

  if [[ -n ${KUBEBUILDER_ASSETS:-} ]]; then
    missing=$(missing_in "$KUBEBUILDER_ASSETS" "$@" | paste -sd ' ')
    [[ -z $missing ]] || fail "KUBEBUILDER_ASSETS is $KUBEBUILDER_ASSETS, which lacks: $missing"
    printf '%s\n' "$KUBEBUILDER_ASSETS"
    return
  fi

  folder=$(folder_of_this_build)
  if [[ -n $(missing_in "$folder" "$@") ]]; then
    require_go
    mkdir -p "$folder"
    exec 9> "$folder/.lock"
    flock --nonblock 9 || {
      say "waiting for another build in $folder"
      flock 9
    }
    # Asked again under the lock: the build that was waited for may have left nothing to do.
    for program in $(missing_in "$folder" "$@"); do
      build "$folder" "$program"
    done
  fi
  printf '%s\n' "$folder"
}

main "$@"
