#!/usr/bin/env bash
# A Cloud TPU VM, pod slice, or several slices through gcloud; every command reaches all workers of all slices.
#
#   TPU_NAME=my-tpu ZONE=us-west4-a bash launch/tpu_vm.sh [--dry-run] COMMAND
#
#   create                   ask for the machine; where it is there already, nothing happens
#   wait                     until a queued machine is there
#   setup                    copy this checkout to all workers and install it there
#   run VERB [ARGUMENT...]   start `pbrl VERB ...` on all workers, detached; the same work directory resumes
#   loop VERB [ARGUMENT...]  the same, attached, until it ends well: a preempted machine is made anew and the run
#                            goes on from its last checkpoint, so that the work directory must be on gs://
#   logs [WORKER [SLICE]]    follow the output of one worker (default: 0 0)
#   stop                     SIGTERM on all workers: the run saves its state and ends
#   ssh [WORKER [SLICE]]     a shell on one worker
#   delete                   give the machine back, and its place in the queue
#
#   TPU_NAME           name of the machine                       (needed)
#   ZONE               its zone, for example us-west4-a          (needed)
#   PROJECT            Google Cloud project                      (default: gcloud's own)
#   ACCELERATOR_TYPE   v5litepod-16, v5p-32, v6e-8, v4-8, ...    (default: v5litepod-16)
#   RUNTIME_VERSION    image                                     (default: the one that fits ACCELERATOR_TYPE)
#   SPOT               1: cheaper, may be taken away             (default: 0)
#   QUEUED             1: stand in line as a queued resource     (default: 0)
#   SLICES             slices of ACCELERATOR_TYPE each, in one run over the data-centre network; more than one are
#                      a queued resource                         (default: 1)
#   NETWORK            network of the machine                    (default: the project's)
#   RETRY_SECONDS      pause of `loop` and `wait` before they ask again    (default: 60)
#
# On a pod every host reads and writes the same places: work directory (--workdir), weights (--policy.source),
# references (--pivot.store) and compiled programs (--log.compilation-cache) are gs:// paths.
#
# Written after gcloud's command reference; it has never run on a real pod.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"

command="${1:-}"
[ "$#" -eq 0 ] || shift

TPU_NAME="${TPU_NAME:-}"
ZONE="${ZONE:-}"
PROJECT="${PROJECT:-}"
ACCELERATOR_TYPE="${ACCELERATOR_TYPE:-v5litepod-16}"
SPOT="${SPOT:-0}"
QUEUED="${QUEUED:-0}"
SLICES="${SLICES:-1}"
NETWORK="${NETWORK:-}"
RETRY_SECONDS="${RETRY_SECONDS:-60}"
REMOTE_DIR=pbrl_jax
[ -n "$TPU_NAME" ] || fail "TPU_NAME is not set; for example:" \
  "TPU_NAME=my-tpu ZONE=us-west4-a bash launch/tpu_vm.sh $command"
[ -n "$ZONE" ] || fail "ZONE is not set; for example: ZONE=us-west4-a (gcloud compute tpus locations list names them)"
needs gcloud "is not installed; see cloud.google.com/sdk/docs/install"
[[ "$SLICES" =~ ^[1-9][0-9]*$ ]] || fail "SLICES=$SLICES is not a number of slices; for example: SLICES=2"
[ "$SLICES" = 1 ] || QUEUED=1
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

# Which of gcloud's command groups answers for this machine, and how all its slices are named there.
group=tpu-vm
state_field=state
all_slices=()
if [ "$QUEUED" = 1 ]; then
  group=queued-resources
  state_field=state.state
  all_slices=(--node=all)
fi

tpu() { run gcloud compute tpus "$group" "$@"; }

# slice N: the flag that names one slice; a machine that is no queued resource has only one.
slice() {
  [ "$1" -lt "$SLICES" ] || fail "there is no slice $1: SLICES=$SLICES, numbered from 0"
  one_slice=()
  [ "$QUEUED" != 1 ] || one_slice=(--node="$1")
}

# on WORKER COMMAND [SLICE FLAG]: one shell command in the checkout on a worker, or on all of them.
on() { tpu ssh "$TPU_NAME" "${place[@]}" "${@:3}" --worker="$1" --command="cd $REMOTE_DIR && $2"; }

everywhere() { on all "$1" ${all_slices[@]+"${all_slices[@]}"}; }

create() {
  local flags=()
  [ "$SPOT" != 1 ] || flags+=(--spot)
  [ -z "$NETWORK" ] || flags+=(--network="$NETWORK")
  if [ "$QUEUED" != 1 ]; then
    flags=(--version="$RUNTIME_VERSION" ${flags[@]+"${flags[@]}"})
  elif [ "$SLICES" = 1 ]; then
    flags=(--runtime-version="$RUNTIME_VERSION" --node-id="$TPU_NAME" ${flags[@]+"${flags[@]}"})
  else
    flags=(--runtime-version="$RUNTIME_VERSION" --node-count="$SLICES" --node-prefix="$TPU_NAME"
      ${flags[@]+"${flags[@]}"})
  fi
  tpu create "$TPU_NAME" "${place[@]}" --accelerator-type="$ACCELERATOR_TYPE" "${flags[@]}"
}

delete() {
  local force=()
  [ "$QUEUED" != 1 ] || force=(--force)
  tpu delete "$TPU_NAME" "${place[@]}" ${force[@]+"${force[@]}"} --quiet
}

setup() {
  pack_checkout &&
    tpu scp "$CHECKOUT_ARCHIVE" "$TPU_NAME:pbrl_jax.tar.gz" "${place[@]}" ${all_slices[@]+"${all_slices[@]}"} \
      --worker=all &&
    tpu ssh "$TPU_NAME" "${place[@]}" ${all_slices[@]+"${all_slices[@]}"} --worker=all \
      --command="mkdir -p $REMOTE_DIR && \
tar -xzf pbrl_jax.tar.gz -C $REMOTE_DIR && cd $REMOTE_DIR && PBRL_INSTALL_PYTHON=1 bash launch/environment.sh tpu"
}

# The shell command that runs a verb on a worker.
verb_command() {
  local words
  [ "${1:-}" != pbrl ] || shift
  [ "$#" -gt 0 ] || fail "$command needs a verb; for example:" \
    "bash launch/tpu_vm.sh $command train configs/llama31_8b_pbrlsvr.py --workdir gs://bucket/run"
  printf -v words ' %q' "$@"
  printf 'PBRL_EXTRAS=tpu PBRL_HOSTS=auto bash launch/local.sh%s' "$words"
}

start() {
  local line
  line="$(verb_command "$@")"
  everywhere "(setsid nohup env $line >pbrl.log 2>&1 </dev/null & echo \$! >pbrl.pid)"
}

# READY, WAITING, PREEMPTED, ... or ABSENT; a queued resource is ready when all its slices are.
state() {
  local found
  found="$(gcloud compute tpus "$group" describe "$TPU_NAME" "${place[@]}" --format="value($state_field)" 2>/dev/null)" ||
    found=ABSENT
  case "$found" in
    ACTIVE) echo READY ;;
    ACCEPTED | PROVISIONING | CREATING | WAITING_FOR_RESOURCES) echo WAITING ;;
    *) echo "$found" ;;
  esac
}

# Until it is ready; fails where it has been taken away or refused.
wait_for_it() {
  local now
  if [ "$DRY_RUN" = 1 ]; then
    run gcloud compute tpus "$group" describe "$TPU_NAME" "${place[@]}" --format="value($state_field)"
    return
  fi
  while true; do
    now="$(state)"
    case "$now" in
      READY) return 0 ;;
      WAITING) say "$TPU_NAME stands in line; looking again in $RETRY_SECONDS s" ;;
      *)
        say "$TPU_NAME is $now"
        return 1
        ;;
    esac
    sleep "$RETRY_SECONDS"
  done
}

# Makes the machine ready to run; fails where there is no capacity at the moment.
bring_up() {
  case "$1" in
    READY) return 0 ;;
    ABSENT) create || return 1 ;;
    WAITING) ;;
    *)
      delete || return 1
      create || return 1
      ;;
  esac
  if [ "$QUEUED" = 1 ]; then wait_for_it || return 1; fi
  setup
}

loop() {
  local line now
  line="$(verb_command "$@")"
  case " $* " in
    *" --workdir gs://"* | *" --workdir=gs://"*) ;;
    *) fail "loop needs --workdir gs://BUCKET/...: the disk of a preempted TPU VM is gone with it" ;;
  esac
  if [ "$DRY_RUN" = 1 ]; then
    bring_up ABSENT
    everywhere "$line"
    return
  fi
  while true; do
    now="$(state)"
    if bring_up "$now"; then
      if everywhere "$line"; then
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

# A second `create` or `delete` finds its work done and says so.
unless() {
  local unwanted="$1"
  if [ "$DRY_RUN" != 1 ] && [[ " $unwanted " == *" $(state) "* ]]; then
    say "nothing to do: $TPU_NAME is ${unwanted%% *} already"
    return
  fi
  "$2"
}

case "$command" in
  create) unless "READY WAITING" create ;;
  wait) wait_for_it || fail "$TPU_NAME will not come by waiting; delete it and create it again" ;;
  setup) setup ;;
  run) start "$@" ;;
  loop) loop "$@" ;;
  logs)
    slice "${2:-0}"
    on "${1:-0}" "tail -n 200 -F pbrl.log" ${one_slice[@]+"${one_slice[@]}"}
    ;;
  stop) everywhere "kill -TERM \$(cat pbrl.pid)" ;;
  ssh)
    slice "${2:-0}"
    tpu ssh "$TPU_NAME" "${place[@]}" ${one_slice[@]+"${one_slice[@]}"} --worker="${1:-0}"
    ;;
  delete) unless ABSENT delete ;;
  *) fail "unknown command '$command'; known: create, wait, setup, run, loop, logs, stop, ssh, delete" ;;
esac
