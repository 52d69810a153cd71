#!/usr/bin/env bash
# Several GPU nodes of a Slurm cluster, one process for each GPU, through sbatch.
#
#   NODES=4 bash launch/slurm.sh [--dry-run] COMMAND
#
#   setup                    install this checkout on the shared disk; once, on a login node
#   run VERB [ARGUMENT...]   submit `pbrl VERB ...`; the same work directory resumes
#   logs JOB                 follow the output of a job
#   stop JOB                 SIGTERM: the run saves its state and ends
#   status                   the user's jobs
#
#   NODES            nodes                                     (needed for run)
#   GPUS_PER_NODE    GPUs of each, one process each            (default: 8)
#   CPUS_PER_GPU     cores of each process                     (default: 8)
#   TIME_LIMIT       of one job                                (default: 24:00:00)
#   PARTITION        where it runs                             (default: the cluster's)
#   ACCOUNT          who pays                                  (default: the user's)
#   SIGNAL_SECONDS   time to save before the limit             (default: 180)
#   PBRL_EXTRAS      extras to install                         (default: cuda)
#
# The checkout, its environment and the work directory lie on a disk that all nodes share. A job that is preempted or
# reaches its limit gets SIGTERM and saves. At its limit it queues itself again (launch/requeue.sh), and so does a job that
# is told to stop within SIGNAL_SECONDS of it; after a preemption Slurm queues it again (--requeue).
# Written after the manual of sbatch; it has never run on a real cluster.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"

command="${1:-}"
[ "$#" -eq 0 ] || shift

NODES="${NODES:-}"
GPUS_PER_NODE="${GPUS_PER_NODE:-8}"
CPUS_PER_GPU="${CPUS_PER_GPU:-8}"
TIME_LIMIT="${TIME_LIMIT:-24:00:00}"
PARTITION="${PARTITION:-}"
ACCOUNT="${ACCOUNT:-}"
SIGNAL_SECONDS="${SIGNAL_SECONDS:-180}"
PBRL_EXTRAS="${PBRL_EXTRAS-cuda}"
LOGS="$REPOSITORY/runs"

slurm() { needs "$1" "is not on the PATH; run this on a login node of the cluster"; }

submit() {
  local words flags line
  [ "${1:-}" != pbrl ] || shift
  [ "$#" -gt 0 ] || fail "run needs a verb; for example:" \
    "NODES=2 bash launch/slurm.sh run train configs/llama31_8b_pbrlsvr.py --workdir /shared/run"
  [ -n "$NODES" ] || fail "NODES is not set; for example: NODES=2 bash launch/slurm.sh run $*"
  [[ "$NODES" =~ ^[1-9][0-9]*$ ]] || fail "NODES=$NODES is not a number of nodes"
  [[ "$CPUS_PER_GPU" =~ ^[1-9][0-9]*$ ]] || fail "CPUS_PER_GPU=$CPUS_PER_GPU is not a number of cores"
  [[ "$SIGNAL_SECONDS" =~ ^[1-9][0-9]*$ ]] || fail "SIGNAL_SECONDS=$SIGNAL_SECONDS is not a number of seconds"
  [[ "$GPUS_PER_NODE" =~ ^[1-9][0-9]*$ ]] || fail "GPUS_PER_NODE=$GPUS_PER_NODE is not a number of GPUs"
  slurm sbatch
  flags=(--job-name=pbrl --nodes="$NODES" --ntasks-per-node="$GPUS_PER_NODE" --gres="gpu:$GPUS_PER_NODE"
    --cpus-per-task="$CPUS_PER_GPU" --time="$TIME_LIMIT" --signal="TERM@$SIGNAL_SECONDS" --requeue
    --open-mode=append --output="$LOGS/slurm-%j.log")
  [ -z "$PARTITION" ] || flags+=(--partition="$PARTITION")
  [ -z "$ACCOUNT" ] || flags+=(--account="$ACCOUNT")
  printf -v words ' %q' "$@"
  run mkdir -p "$LOGS"
  # srun starts one process for each task; --kill-on-bad-exit ends the others where one fails, and since Slurm 22.05 it
  # does not take the cores of a task from sbatch. sbatch wraps its command in sh, which knows neither `source` nor arrays.
  printf -v line 'cd %q && source launch/environment.sh && enter_environment && exec bash launch/requeue.sh %q srun' \
    "$REPOSITORY" "$SIGNAL_SECONDS"
  line+=" --kill-on-bad-exit=1 --label --cpus-per-task=$CPUS_PER_GPU pbrl$words"
  run sbatch "${flags[@]}" --wrap="exec bash -c ${line@Q}"
}

job() {
  [[ "${1:-}" =~ ^[0-9]+$ ]] || fail "$command needs the number of a job, found '${1:-}';" \
    "bash launch/slurm.sh status lists them"
}

case "$command" in
  setup)
    IFS=, read -ra extras <<<"$PBRL_EXTRAS"
    run bash "$REPOSITORY/launch/environment.sh" ${extras[@]+"${extras[@]}"}
    ;;
  run) submit "$@" ;;
  logs)
    job "$@"
    run tail -n 200 -F "$LOGS/slurm-$1.log"
    ;;
  stop)
    job "$@"
    slurm scancel
    run scancel --signal=TERM "$1"
    ;;
  status)
    slurm squeue
    run squeue --me
    ;;
  *) fail "unknown command '$command'; known: setup, run, logs, stop, status" ;;
esac
