#!/usr/bin/env bash
# A Cloud TPU VM, pod slice, or several slices through gcloud; every command reaches all workers of all slices.
#
#   TPU_NAME=my-tpu ZONE=us-west4-a bash launch/tpu_vm.sh [--dry-run] COMMAND
#
#   create                   ask for the machine; where it is there already, nothing happens
#   wait                     until a queued machine is there
#   setup                    copy this checkout to all workers and install it there
#   run VERB [ARGUMENT...]   start `pbrl VERB ...` on all workers, detached; the same work directory resumes
#   loop VERB [ARGUMENT...]  the same, and follow it until it ends well: a connection that breaks is made again, the run
#                            going on meanwhile; a machine under repair is waited for; a preempted machine is made
#                            anew. The run goes on from its last checkpoint, so the work directory must be on gs://
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
#   RESERVED           1: in the project's reserved capacity     (default: 0)
#   SERVICE_ACCOUNT    account that the machine acts as          (default: the project's for Compute Engine)
#   INTERNAL_IPS       1: the machine has no address outside     (default: 0)
#   IAP                1: ssh through Identity-Aware Proxy, as machines without such an address need    (default: 0)
#   PBRL_EXTRAS        extras to install there                   (default: tpu)
#   PASS               variables to hand to the run beside HF_TOKEN, WANDB_* and PBRL_*, separated by spaces; they
#                      go by a file of mode 600, never on a command line
#   PBRL_PACK          files that git does not track, to be copied as well
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
RESERVED="${RESERVED:-0}"
SERVICE_ACCOUNT="${SERVICE_ACCOUNT:-}"
INTERNAL_IPS="${INTERNAL_IPS:-0}"
IAP="${IAP:-0}"
PBRL_EXTRAS="${PBRL_EXTRAS-tpu}"
RETRY_SECONDS="${RETRY_SECONDS:-60}"
REMOTE_DIR=pbrl_jax
[ -n "$TPU_NAME" ] || fail "TPU_NAME is not set; for example:" \
  "TPU_NAME=my-tpu ZONE=us-west4-a bash launch/tpu_vm.sh $command"
[ -n "$ZONE" ] || fail "ZONE is not set; for example: ZONE=us-west4-a (gcloud compute tpus locations list names them)"
needs gcloud "is not installed; see cloud.google.com/sdk/docs/install"
[[ "$SLICES" =~ ^[1-9][0-9]*$ ]] || fail "SLICES=$SLICES is not a number of slices; for example: SLICES=2"
[ "$SLICES" = 1 ] || QUEUED=1
[ "$SPOT" != 1 ] || [ "$RESERVED" != 1 ] || fail "SPOT=1 and RESERVED=1 exclude each other; set one of them to 0"
IFS=, read -ra extras <<<"$PBRL_EXTRAS"
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

# shell ssh|scp ...: ssh to the machine; of a machine that is no queued resource only gcloud's alpha commands go through IAP.
shell() {
  local release=() tunnel=()
  [ "$IAP" != 1 ] || tunnel=(--tunnel-through-iap)
  [ "$IAP" != 1 ] || [ "$QUEUED" = 1 ] || release=(alpha)
  run gcloud ${release[@]+"${release[@]}"} compute tpus "$group" "$@" ${tunnel[@]+"${tunnel[@]}"}
}

# slice N: the flag that names one slice; a machine that is no queued resource has only one.
slice() {
  [ "$1" -lt "$SLICES" ] || fail "there is no slice $1: SLICES=$SLICES, numbered from 0"
  one_slice=()
  [ "$QUEUED" != 1 ] || one_slice=(--node="$1")
}

# on WORKER COMMAND [SLICE FLAG]: one shell command in the checkout on a worker, or on all of them.
on() { shell ssh "$TPU_NAME" "${place[@]}" "${@:3}" --worker="$1" --command="cd $REMOTE_DIR && $2"; }

everywhere() { on all "$1" ${all_slices[@]+"${all_slices[@]}"}; }

# to_all FILE NAME: copies a file to all workers.
to_all() {
  shell scp "$1" "$TPU_NAME:$2" "${place[@]}" ${all_slices[@]+"${all_slices[@]}"} --worker=all
}

create() {
  local flags=()
  [ "$SPOT" != 1 ] || flags+=(--spot)
  [ "$RESERVED" != 1 ] || flags+=(--reserved)
  [ "$INTERNAL_IPS" != 1 ] || flags+=(--internal-ips)
  [ -z "$SERVICE_ACCOUNT" ] || flags+=(--service-account="$SERVICE_ACCOUNT")
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
  local words=""
  [ "${#extras[@]}" = 0 ] || printf -v words ' %q' "${extras[@]}"
  pack_checkout &&
    to_all "$CHECKOUT_ARCHIVE" pbrl_jax.tar.gz &&
    shell ssh "$TPU_NAME" "${place[@]}" ${all_slices[@]+"${all_slices[@]}"} --worker=all \
      --command="mkdir -p $REMOTE_DIR && \
tar -xzf pbrl_jax.tar.gz -C $REMOTE_DIR && cd $REMOTE_DIR && PBRL_INSTALL_PYTHON=1 bash launch/environment.sh$words"
}

# The file is there with mode 600 before anything is written to it.
send_secrets() {
  local file
  file="$(secrets_file)" || exit 1
  [ -n "$file" ] || return 0
  # shellcheck disable=SC2064
  trap "rm -f ${file@Q}" EXIT
  everywhere "umask 077 && rm -f .pbrl.env && : >.pbrl.env" && to_all "$file" "$REMOTE_DIR/.pbrl.env"
}

# The shell command that runs a verb on a worker; behind `env`.
verb_command() {
  local words settings
  [ "${1:-}" != pbrl ] || shift
  [ "$#" -gt 0 ] || fail "$command needs a verb; for example:" \
    "bash launch/tpu_vm.sh $command train configs/llama31_8b_pbrlsvr.py --workdir gs://bucket/run"
  printf -v words ' %q' "$@"
  printf -v settings 'PBRL_EXTRAS=%q PBRL_HOSTS=auto' "$PBRL_EXTRAS"
  printf '%s' "$settings bash launch/detached.sh %s bash launch/local.sh$words"
}

start() {
  local line
  line="$(verb_command "$@")"
  send_secrets
  everywhere "bash launch/detached.sh free && rm -f pbrl.id pbrl.words && \
(setsid nohup env ${line/\%s/run} >pbrl.log 2>&1 </dev/null & echo \$! >pbrl.pid)"
}

# Sets `now` to READY, WAITING (it will come by itself), LEAVING, GONE (it will not come back), ABSENT, or UNKNOWN where
# gcloud could not tell; `found` is gcloud's own word or message. A queued resource is ready when all its slices are.
look_up() {
  local said
  said="$(mktemp)"
  now=UNKNOWN
  if found="$(gcloud compute tpus "$group" describe "$TPU_NAME" "${place[@]}" --format="value($state_field)" 2>"$said")"; then
    case "$found" in
      READY | ACTIVE) now=READY ;;
      ACCEPTED | PROVISIONING | CREATING | WAITING_FOR_RESOURCES) now=WAITING ;;
      STARTING | RESTARTING | REIMAGING | REPAIRING | UNHIDING) now=WAITING ;;
      DELETING | STOPPING | SUSPENDING | HIDING) now=LEAVING ;;
      PREEMPTED | TERMINATED | STOPPED | FAILED | SUSPENDED | HIDDEN) now=GONE ;;
      *) found="gcloud names a state that this script does not know: '$found'" ;;
    esac
  else
    found="$(cat "$said")"
    # Only this answer says that the machine is not there; an expired login, a broken network, or a missing project whose
    # name or whose user has the machine's name in it does not.
    if [[ "$found" =~ NOT_FOUND.*/(nodes|queuedResources)/"$TPU_NAME"([^a-z0-9-]|$) ]]; then now=ABSENT; fi
  fi
  rm -f "$said"
}

cannot_tell() { fail "gcloud could not tell whether $TPU_NAME is there: ${found//$'\n'/ }"; }

# Until it is ready; fails where it has been taken away or refused.
wait_for_it() {
  local asked=0
  if [ "$DRY_RUN" = 1 ]; then
    run gcloud compute tpus "$group" describe "$TPU_NAME" "${place[@]}" --format="value($state_field)"
    return
  fi
  while true; do
    look_up
    case "$now" in
      READY) return 0 ;;
      WAITING | LEAVING) say "$TPU_NAME stands in line ($found); looking again in $RETRY_SECONDS s" ;;
      UNKNOWN)
        [ "$asked" = 1 ] || cannot_tell
        say "gcloud could not tell the state of $TPU_NAME: $found; looking again in $RETRY_SECONDS s"
        ;;
      *)
        say "$TPU_NAME is ${found:-$now}"
        return 1
        ;;
    esac
    asked=1
    sleep "$RETRY_SECONDS"
  done
}

# Makes the machine ready to run; fails where that cannot be done at the moment.
bring_up() {
  case "$now" in
    READY) [ "$prepared" = 0 ] || return 0 ;;
    ABSENT) create || return 1 ;;
    GONE)
      delete || return 1
      create || return 1
      ;;
    *) return 1 ;;
  esac
  if [ "$now" != READY ] && [ "$QUEUED" = 1 ]; then wait_for_it || return 1; fi
  setup && prepared=1
}

# Asks all workers how the run is, after following it ended with status $1. Sets `workers` to
#   running   it goes on somewhere
#   finished  it has ended well everywhere
#   failed    it has ended everywhere, with an error
#   lost      a worker was restarted, or made anew, and does not run it any more
#   unknown   they could not be asked
ask_workers() {
  local answer line
  line="if cd $REMOTE_DIR 2>/dev/null; then bash launch/detached.sh state; else echo pbrl-run: none; fi"
  workers=unknown
  answer="$(DRY_RUN=0 shell ssh "$TPU_NAME" "${place[@]}" ${all_slices[@]+"${all_slices[@]}"} --worker=all \
    --command="$line")"$'\n' || return 0
  case "${answer#*$'\n'}" in # behind the command itself, which `run` prints
    *"pbrl-run: lost"* | *"pbrl-run: none"*) workers=lost ;;
    *"pbrl-run: running"*) workers=running ;;
    *"pbrl-run: ended "[1-9]*) workers=failed ;;
    *"pbrl-run: ended 0"*) workers=finished ;;
    *) [ "$1" = 255 ] || workers=failed ;;
  esac
}

# follow_run LINE: starts the run on all workers, or joins it, and shows it. Returns 0 where it ended well, 1 where the
# machine has to be looked at again, and ends the script where the run itself has failed.
follow_run() {
  local status=0
  everywhere "env ${1/\%s/$how $id.$attempt}" || status=$?
  [ "$status" != 0 ] || return 0
  ask_workers "$status"
  [ "$workers" != finished ] || return 0
  if [ "$workers" = lost ]; then # all start together again
    attempt=$((attempt + 1)) how=restart prepared=0
  fi
  look_up
  if [ "$now" = READY ] && [ "$workers" = failed ]; then
    fail "the run failed on a machine that is in order, see its messages above; not tried again"
  elif [ "$now" = READY ]; then
    say "the connection to $TPU_NAME is lost; joining the run again in $RETRY_SECONDS s"
  else
    say "$TPU_NAME is ${found:-$now}; asking again in $RETRY_SECONDS s"
  fi
  return 1
}

loop() {
  local line id attempt=1 how=follow prepared=1 asked=0
  line="$(verb_command "$@")"
  case " $* " in
    *" --workdir gs://"* | *" --workdir=gs://"*) ;;
    *) fail "loop needs --workdir gs://BUCKET/...: the disk of a preempted TPU VM is gone with it" ;;
  esac
  printf -v id '%(%s)T-%s' -1 "$$"
  if [ "$DRY_RUN" = 1 ]; then
    now=ABSENT
    bring_up
    send_secrets
    everywhere "env ${line/\%s/follow $id.1}"
    return
  fi
  while true; do
    look_up
    [ "$now" != UNKNOWN ] || [ "$asked" = 1 ] || cannot_tell
    asked=1
    if ! bring_up; then
      say "$TPU_NAME could not be made ready (${found:-$now}); asking again in $RETRY_SECONDS s"
    elif ! send_secrets; then
      say "$TPU_NAME could not be reached; asking again in $RETRY_SECONDS s"
    elif follow_run "$line"; then
      say "the run ended well; bash launch/tpu_vm.sh delete gives the machine back"
      return
    fi
    sleep "$RETRY_SECONDS"
  done
}

# A second `create` or `delete` finds its work done and says so.
unless() {
  if [ "$DRY_RUN" != 1 ]; then
    look_up
    [ "$now" != UNKNOWN ] || cannot_tell
    if [[ " $1 " == *" $now "* ]]; then
      say "nothing to do: $TPU_NAME is $now already"
      return
    fi
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
  stop) everywhere "bash launch/detached.sh stop" ;;
  ssh)
    slice "${2:-0}"
    shell ssh "$TPU_NAME" "${place[@]}" ${one_slice[@]+"${one_slice[@]}"} --worker="${1:-0}"
    ;;
  delete) unless ABSENT delete ;;
  *) fail "unknown command '$command'; known: create, wait, setup, run, loop, logs, stop, ssh, delete" ;;
esac
