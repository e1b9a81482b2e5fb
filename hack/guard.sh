#!/usr/bin/env bash
# Usage: guard.sh FOLDER PROGRAM [ARGUMENT...]        with a pipe on stdin
#
# Runs PROGRAM for as long as somebody holds the other end of the pipe, then stops it and removes FOLDER. A test that is
# killed with -9 runs no destructor, but the kernel closes its pipes: so nothing that a test or the demo started stays.
#
# FOLDER gets three files: `log` (what PROGRAM writes), `pid`, and `exit-status` once PROGRAM ended by itself.
# IMAGE_PUSHER_GUARD_SECONDS is how long PROGRAM may take to stop on SIGTERM before it is killed (default 20: a
# kube-apiserver drains its connections first).
set -uo pipefail

folder=$1
shift
readonly folder grace_seconds=${IMAGE_PUSHER_GUARD_SECONDS:-20}

# The end of the pipe is the only signal that counts. Someone pressing Ctrl-C means the tests, which then let go of it.
trap ':' INT TERM HUP

start() {
  # Job control gives the program a process group of its own, so that what it leaves behind can be ended with it.
  set -m
  "$@" < /dev/null > "$folder/log" 2>&1 &
  program=$!
  set +m
  # Renamed into place, because a reader polls for it.
  echo "$program" > "$folder/.pid" && mv "$folder/.pid" "$folder/pid"
}

is_running() { kill -0 "$program" 2> /dev/null; }

stop() {
  local waited=0
  kill -TERM "$program" 2> /dev/null
  while is_running && ((waited < grace_seconds * 20)); do
    sleep 0.05
    ((waited += 1))
  done
  # What is left of the group, be it the program or children that outlived it.
  kill -KILL -- "-$program" 2> /dev/null
  wait "$program" 2> /dev/null
}

record_exit() {
  echo "$1" > "$folder/.exit-status" && mv "$folder/.exit-status" "$folder/exit-status"
}

start "$@"
# A background command reads /dev/null unless told otherwise.
exec 3<&0
cat <&3 > /dev/null &
holder=$!

# Traps end `wait` early, hence the loop; it leaves when one of the two is gone.
while is_running && kill -0 "$holder" 2> /dev/null; do
  wait -n "$program" "$holder"
done
if ! is_running; then
  wait "$program"
  record_exit $?
  # The log stays for whoever holds the pipe.
  while kill -0 "$holder" 2> /dev/null; do wait "$holder"; done
fi
stop
rm -rf -- "$folder"
