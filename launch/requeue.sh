#!/usr/bin/env bash
# The body of a Slurm job: runs a command, and queues the job again where its time was over.
#
#   bash launch/requeue.sh SECONDS COMMAND...
#
# SECONDS before the job's limit Slurm sends SIGTERM to the command (--signal), which saves and ends. What ends in that
# time has not finished its work, as far as this script can tell; a run that had finished ends again at once.
set -euo pipefail

EARLY=60 # Slurm may send the signal so many seconds earlier than it was asked

seconds="$1"
shift
status=0
"$@" || status=$?
end="${SLURM_JOB_END_TIME:-}"
if [ -z "$end" ]; then # older versions of Slurm do not set it
  end="$(date -d "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%e)" +%s)" || exit "$status"
fi
printf -v now '%(%s)T' -1
if [ "$now" -ge "$((end - seconds - EARLY))" ]; then
  echo "The time limit of the job: it is queued again (scancel $SLURM_JOB_ID ends it)."
  scontrol requeue "$SLURM_JOB_ID" || status=$?
fi
exit "$status"
