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
