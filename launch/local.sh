#!/usr/bin/env bash
# Any `pbrl` verb on this machine's devices (CPU, all GPUs of the box, or a TPU VM).
#
#   bash launch/local.sh [--dry-run] [-n N] VERB [ARGUMENT...]
#   bash launch/local.sh train configs/tiny_cpu.py --workdir runs/tiny
#   bash launch/local.sh -n 2 train configs/tiny_cpu.py --workdir runs/two
#
#   -n N             N processes that work as one run through jax.distributed; each line of output begins with the
#                    number of its process, and when one of them fails the others are ended. Ctrl-C, SIGTERM, SIGHUP and
#                    SIGUSR1 reach each process once, which then saves
#
#   PBRL_EXTRAS      extras to install: cuda, tpu, or empty   (default: what this machine has)
#   PBRL_PORT        port that the N processes meet at        (default: a free one)
#   PBRL_GRACE       seconds that the others have after a failure, or the run after SIGTERM, before they
#                    are killed                               (default: 180)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"

processes=0
if [ "${1:-}" = -n ]; then
  [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || fail "-n needs a number of processes, found '${2:-}'; for example: -n 2"
  processes="$2"
  shift 2
fi
[ "${1:-}" != pbrl ] || shift
[ "$#" -gt 0 ] || fail "no verb given; for example: bash launch/local.sh train configs/tiny_cpu.py --workdir runs/tiny"

IFS=, read -ra extras <<<"$(accelerator_extra)"

# The variables of process N, one per line. GPUs are dealt out, one to each process.
settings() {
  printf '%s\n' "PBRL_COORDINATOR=127.0.0.1:$port" "PBRL_PROCESSES=$processes" "PBRL_PROCESS=$1"
  [ "${extras[0]:-}" != cuda ] || printf 'JAX_LOCAL_DEVICE_IDS=%s\n' "$1"
}

free_port() {
  python - 127.0.0.1 <<'PYTHON_CODE'
import socket, sys
with socket.socket() as probe:
    probe.bind((sys.argv[1], 0))
    print(probe.getsockname()[1])
PYTHON_CODE
}

children=()
signal_all() {
  local child
  for child in ${children[@]+"${children[@]}"}; do kill "-$1" "$child" 2>/dev/null || true; done
}

# Tells the others to end, and ends what is left after PBRL_GRACE seconds: a run that hangs must not hold the machine.
end_the_rest() {
  signal_all TERM
  [ -z "$killer" ] || return 0
  (
    trap - TERM
    exec >/dev/null 2>&1
    for ((second = 0; second < ${PBRL_GRACE:-180}; second++)); do sleep 1; done
    signal_all KILL
  ) &
  killer=$!
}

run_processes() {
  local process status=0 ended variables output left
  killer=""
  # Each process in a group of its own, which the terminal's Ctrl-C does not reach: it would be a second signal.
  set -m
  trap 'say "stopping all processes; each saves at its next safe point"; end_the_rest' TERM INT HUP USR1
  for ((process = 0; process < processes; process++)); do
    mapfile -t variables < <(settings "$process")
    # A file descriptor of its own, so that $! is the run and not the pipe behind it.
    exec {output}> >(trap '' TERM INT HUP USR1; exec sed -u "s/^/[$process] /")
    env "${variables[@]}" pbrl "$@" >&"$output" 2>&1 </dev/null &
    children+=("$!")
    exec {output}>&-
  done
  left="$processes"
  while [ "$left" -gt 0 ]; do
    ended=0
    wait -n -p gone "${children[@]}" || ended=$?
    # `wait` also returns when a signal came, and then names no process.
    [ -n "${gone:-}" ] || continue
    left=$((left - 1))
    for process in "${!children[@]}"; do [ "${children[$process]}" != "$gone" ] || unset "children[$process]"; done
    if [ "$ended" != 0 ] && [ "$status" = 0 ]; then
      status="$ended"
      if [ "$left" -gt 0 ]; then
        say "a process ended with status $ended; the other $left have ${PBRL_GRACE:-180} s to end"
        [ -n "$killer" ] || end_the_rest
      fi
    fi
  done
  [ -z "$killer" ] || kill -- "-$killer" 2>/dev/null || true
  exit "$status"
}

if [ "$DRY_RUN" = 1 ]; then
  run bash "$REPOSITORY/launch/environment.sh" ${extras[@]+"${extras[@]}"}
  if [ "$processes" = 0 ]; then
    run pbrl "$@"
  else
    port="${PBRL_PORT:-8476}"
    for ((process = 0; process < processes; process++)); do
      mapfile -t variables < <(settings "$process")
      run env "${variables[@]}" pbrl "$@"
    done
  fi
  exit 0
fi
ensure_environment ${extras[@]+"${extras[@]}"}
if [ "$processes" != 0 ]; then
  port="${PBRL_PORT:-$(free_port)}"
  run_processes "$@"
fi
# exec, so that a SIGTERM reaches the run itself, which then saves and ends.
exec pbrl "$@"
