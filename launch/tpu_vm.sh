#!/usr/bin/env bash
# A Cloud TPU VM or pod slice through gcloud; every command reaches all workers.
#
#   TPU_NAME=my-tpu ZONE=us-west4-a bash launch/tpu_vm.sh [--dry-run] COMMAND
#
#   create                   ask for the machine
#   setup                    copy this checkout to all workers and install it there
#   run VERB [ARGUMENT...]   start `pbrl VERB ...` on all workers, detached; the same work directory resumes
#   loop VERB [ARGUMENT...]  the same, attached, until it ends well: a preempted machine is made anew and the run
#                            goes on from its last checkpoint, so that the work directory must be on gs://
#   logs [WORKER]            follow the output of one worker (default: 0)
#   stop                     SIGTERM on all workers: the run saves its state and ends
#   ssh [WORKER]             a shell on one worker
#   delete                   give the machine back
#
#   TPU_NAME           name of the machine                       (needed)
#   ZONE               its zone, for example us-west4-a          (needed)
#   PROJECT            Google Cloud project                      (default: gcloud's own)
#   ACCELERATOR_TYPE   v5litepod-16, v5p-32, v6e-8, v4-8, ...    (default: v5litepod-16)
#   RUNTIME_VERSION    image                                     (default: the one that fits ACCELERATOR_TYPE)
#   SPOT               1: cheaper, may be taken away             (default: 0)
#   RETRY_SECONDS      pause of `loop` before it asks again      (default: 60)
#
# Written after gcloud's command reference; it has never run on a real pod.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

export DRY_RUN=0
if [ "${1:-}" = --dry-run ]; then
  DRY_RUN=1
  shift
fi
command="${1:-}"
[ "$#" -eq 0 ] || shift

TPU_NAME="${TPU_NAME:-}"
ZONE="${ZONE:-}"
PROJECT="${PROJECT:-}"
ACCELERATOR_TYPE="${ACCELERATOR_TYPE:-v5litepod-16}"
SPOT="${SPOT:-0}"
RETRY_SECONDS="${RETRY_SECONDS:-60}"
REMOTE_DIR=pbrl_jax
[ -n "$TPU_NAME" ] || fail "TPU_NAME is not set; for example:" \
  "TPU_NAME=my-tpu ZONE=us-west4-a bash launch/tpu_vm.sh $command"
[ -n "$ZONE" ] || fail "ZONE is not set; for example: ZONE=us-west4-a (gcloud compute tpus locations list names them)"
[ "$DRY_RUN" = 1 ] || command -v gcloud >/dev/null ||
  fail "gcloud is not installed; see cloud.google.com/sdk/docs/install"
place=(--zone="$ZONE")
[ -z "$PROJECT" ] || place+=(--project="$PROJECT")

runtime_version() {
  case "$ACCELERATOR_TYPE" in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *)
      fail "no image is known for ACCELERATOR_TYPE=$ACCELERATOR_TYPE; set RUNTIME_VERSION" \
        "(gcloud compute tpus tpu-vm versions list --zone=$ZONE)"
      ;;
  esac
}

# Also where bash has switched `set -e` off (inside a condition) an unknown type must end the script, so it is
# looked up here.
case "$command" in
  create | loop) RUNTIME_VERSION="${RUNTIME_VERSION:-$(runtime_version)}" ;;
esac

tpu() { run gcloud compute tpus tpu-vm "$@"; }

# on WORKER COMMAND: one shell command in the checkout on a worker, or on all of them.
on() { tpu ssh "$TPU_NAME" "${place[@]}" --worker="$1" --command="cd $REMOTE_DIR && $2"; }

create() {
  local flags=()
  [ "$SPOT" != 1 ] || flags=(--spot)
  tpu create "$TPU_NAME" "${place[@]}" --accelerator-type="$ACCELERATOR_TYPE" --version="$RUNTIME_VERSION" \
    ${flags[@]+"${flags[@]}"}
}

setup() {
  pack_checkout &&
    tpu scp "$CHECKOUT_ARCHIVE" "$TPU_NAME:pbrl_jax.tar.gz" "${place[@]}" --worker=all &&
    tpu ssh "$TPU_NAME" "${place[@]}" --worker=all --command="mkdir -p $REMOTE_DIR && \
tar -xzf pbrl_jax.tar.gz -C $REMOTE_DIR && cd $REMOTE_DIR && PBRL_INSTALL_PYTHON=1 bash launch/environment.sh tpu"
}

# The shell command that runs a verb on a worker.
verb_command() {
  local words
  [ "${1:-}" != pbrl ] || shift
  [ "$#" -gt 0 ] || fail "$command needs a verb; for example:" \
    "bash launch/tpu_vm.sh $command train configs/llama31_8b_pbrlsvr.py --workdir gs://bucket/run"
  printf -v words ' %q' "$@"
  printf 'PBRL_EXTRAS=tpu bash launch/local.sh%s' "$words"
}

start() {
  local line
  line="$(verb_command "$@")"
  on all "(setsid nohup env $line >pbrl.log 2>&1 </dev/null & echo \$! >pbrl.pid)"
}

# READY, PREEMPTED, ... or ABSENT.
state() { gcloud compute tpus tpu-vm describe "$TPU_NAME" "${place[@]}" --format="value(state)" 2>/dev/null || echo ABSENT; }

# Makes the machine ready to run; fails where there is no capacity at the moment.
bring_up() {
  local now="$1"
  case "$now" in
    READY) return 0 ;;
    ABSENT) ;;
    *) tpu delete "$TPU_NAME" "${place[@]}" --quiet || return 1 ;;
  esac
  create && setup
}

loop() {
  local line now
  line="$(verb_command "$@")"
  case " $* " in
    *" --workdir gs://"* | *" --workdir=gs://"*) ;;
    *) fail "loop needs --workdir gs://BUCKET/...: the disk of a preempted TPU VM is gone with it" ;;
  esac
  if [ "$DRY_RUN" = 1 ]; then
    create
    setup
    on all "$line"
    return
  fi
  while true; do
    now="$(state)"
    if bring_up "$now"; then
      if on all "$line"; then
        say "the run ended well; bash launch/tpu_vm.sh delete gives the machine back"
        return
      fi
      now="$(state)"
      [ "$now" != READY ] || fail "the run failed on a machine that is in order, see its messages above; not tried again"
      say "$TPU_NAME is $now; asking again in $RETRY_SECONDS s"
    else
      say "$TPU_NAME could not be made ready; asking again in $RETRY_SECONDS s"
    fi
    sleep "$RETRY_SECONDS"
  done
}

case "$command" in
  create) create ;;
  setup) setup ;;
  run) start "$@" ;;
  loop) loop "$@" ;;
  logs) on "${1:-0}" "tail -n 200 -F pbrl.log" ;;
  stop) on all "kill -TERM \$(cat pbrl.pid)" ;;
  ssh) tpu ssh "$TPU_NAME" "${place[@]}" --worker="${1:-0}" ;;
  delete) tpu delete "$TPU_NAME" "${place[@]}" --quiet ;;
  *) fail "unknown command '$command'; known: create, setup, run, loop, logs, stop, ssh, delete" ;;
esac
