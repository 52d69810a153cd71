#!/usr/bin/env bash
# One GPU box, all its GPUs: a remote one through ssh, or this machine where HOST is empty.
#
#   HOST=user@box bash launch/gpu_node.sh [--dry-run] COMMAND
#
#   setup                    copy this checkout to the box and install it there
#   run VERB [ARGUMENT...]   start `pbrl VERB ...` there, detached; the same work directory resumes
#   logs                     follow its output
#   stop                     SIGTERM: the run saves its state and ends
#   shell COMMAND...         any other command there, in the checkout
#
#   HOST          ssh destination                            (default: empty, this machine)
#   REMOTE_DIR    the checkout on the box, from the home     (default: pbrl_jax)
#   PBRL_EXTRAS   extras to install there                    (default: cuda)
#   SSH_OPTIONS   more options for ssh, separated by spaces  (default: empty)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"

HOST="${HOST:-}"
REMOTE_DIR="${REMOTE_DIR:-pbrl_jax}"
PBRL_EXTRAS="${PBRL_EXTRAS-cuda}"
SSH_OPTIONS="${SSH_OPTIONS:-}"
if [ -n "$HOST" ]; then checkout="$REMOTE_DIR"; else checkout="$REPOSITORY"; fi

read -ra ssh_options <<<"$SSH_OPTIONS"

# Runs one shell command in the checkout, there or here.
there() {
  local line
  printf -v line 'cd %q && { %s; }' "$checkout" "$1"
  if [ -n "$HOST" ]; then
    run ssh ${ssh_options[@]+"${ssh_options[@]}"} "$HOST" "$line"
  else
    run bash -c "$line"
  fi
}

setup() {
  local line
  if [ -n "$HOST" ]; then
    pack_checkout
    printf -v line '%q ' ssh ${ssh_options[@]+"${ssh_options[@]}"} "$HOST" \
      "mkdir -p $REMOTE_DIR && tar -xzf - -C $REMOTE_DIR"
    run bash -c "$line<${CHECKOUT_ARCHIVE@Q}"
  fi
  there "PBRL_INSTALL_PYTHON=1 bash launch/environment.sh ${PBRL_EXTRAS//,/ }"
}

start() {
  local words
  [ "${1:-}" != pbrl ] || shift
  [ "$#" -gt 0 ] || fail "run needs a verb; for example:" \
    "bash launch/gpu_node.sh run train configs/tiny_cpu.py --workdir runs/tiny"
  printf -v words '%q ' "$@"
  # A second run in the same checkout would write into the first one's log and process file.
  there "if [ -s pbrl.pid ] && kill -0 \$(cat pbrl.pid) 2>/dev/null; then \
echo 'error: a run is already going on (bash launch/gpu_node.sh logs, or stop)' >&2; exit 1; fi; \
PBRL_EXTRAS=$PBRL_EXTRAS setsid nohup bash launch/local.sh $words>pbrl.log 2>&1 </dev/null & echo \$! >pbrl.pid"
}

command="${1:-}"
[ "$#" -eq 0 ] || shift
case "$command" in
  setup) setup ;;
  run) start "$@" ;;
  logs) there "tail -n 200 -F pbrl.log" ;;
  stop) there "kill -TERM \$(cat pbrl.pid)" ;;
  shell) there "$*" ;;
  *) fail "unknown command '$command'; known: setup, run, logs, stop, shell" ;;
esac
