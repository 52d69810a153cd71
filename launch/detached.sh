#!/usr/bin/env bash
# A run that goes on when the connection that started it is gone. The other launch scripts call this on the machine of
# the run, in the checkout, whose files pbrl.pid, pbrl.status and pbrl.log tell of the run. PBRL_JOB is another beginning
# of their names, for a program beside a run.
#
#   free                     fails while a run is going on
#   run WORD...              runs the command, passes SIGTERM on to it, and leaves its exit status in pbrl.status
#   follow ID WORD...        starts the command in the background, or joins it where it runs; shows its log and ends as it
#                            does. A command that this ID started, and that has ended since, is not started again.
#   restart ID WORD...       the same, but a run of another ID that is going on is ended first
#   stop                     SIGTERM to the run, which saves and ends; where none is going on it says so
#   state                    one line: running, ended STATUS, lost (the machine was restarted), none
#
# Variables of the run, such as HF_TOKEN, come from the file .pbrl.env where there is one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
here=launch/detached.sh
job="${PBRL_JOB:-pbrl}"

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Whether the process of pbrl.pid is a run; after a restart of the machine its number may be another program's. The words
# of a program are empty while it is being loaded, and when it has ended.
going_on() {
  local pid look
  [ -s "$job.pid" ] && pid="$(cat "$job.pid")" && kill -0 "$pid" 2>/dev/null || return 1
  [ -r "/proc/$pid/cmdline" ] || return 0
  for look in 1 2 3; do
    ! grep -aqs detached.sh "/proc/$pid/cmdline" || return 0
    ! grep -qs . "/proc/$pid/cmdline" || return 1
    sleep 0.1
  done
  return 1
}

run_command() {
  local child status told=0
  rm -f "$job.status"
  if [ -f .pbrl.env ]; then
    # shellcheck disable=SC1091
    source ./.pbrl.env
  fi
  "$@" &
  child=$!
  trap 'told=1; kill -TERM "$child" 2>/dev/null || true' TERM INT HUP USR1
  while true; do
    status=0
    wait "$child" || status=$?
    [ "$told" = 1 ] || break # otherwise it was the signal that ended `wait`
    told=0
  done
  echo "$status" >"$job.status"
  exit "$status"
}

start_command() {
  rm -f "$job.status"
  echo "$1" >"$job.id"
  printf '%s\n' "${*:2}" >"$job.words"
  [ ! -s "$job.log" ] || cp "$job.log" "$job.before.log"
  setsid nohup bash "$here" run "${@:2}" >"$job.log" 2>&1 </dev/null &
  echo "$!" >"$job.pid"
}

follow() {
  local lines=20
  if going_on; then
    [ ! -s "$job.words" ] || [ "$(cat "$job.words")" = "${*:2}" ] ||
      fail "another run is going on here: $(cat "$job.words"); stop it first"
    echo "pbrl-run: joined the run that is going on"
  elif [ -s "$job.status" ] && [ "$(cat "$job.id" 2>/dev/null)" = "$1" ]; then
    tail -n "$lines" "$job.log" || true
    exit "$(cat "$job.status")"
  else
    start_command "$@"
    lines=+1
  fi
  # A run that has just ended is shown, too; whether it goes on is not asked, as a program that is being loaded has no name.
  tail -n "$lines" --pid="$(cat "$job.pid")" -F "$job.log" 2>/dev/null || true
  [ -s "$job.status" ] || fail "the run has ended and left no status: the machine was restarted, or it was killed"
  exit "$(cat "$job.status")"
}

end_run() {
  local second
  going_on || return 0
  kill -TERM "$(cat "$job.pid")"
  for ((second = 0; second < ${PBRL_GRACE:-180}; second++)); do
    going_on || return 0
    sleep 1
  done
  kill -KILL -- "-$(cat "$job.pid")" || true # the group of setsid: the run and what it started
}

state() {
  if going_on; then
    echo "pbrl-run: running"
  elif [ -s "$job.status" ]; then
    echo "pbrl-run: ended $(cat "$job.status")"
  elif [ -s "$job.pid" ]; then
    echo "pbrl-run: lost"
  else
    echo "pbrl-run: none"
  fi
}

command="${1:-}"
[ "$#" -eq 0 ] || shift
case "$command" in
  free) ! going_on || fail "a run is already going on; see its log, or stop it" ;;
  run) run_command "$@" ;;
  follow) follow "$@" ;;
  restart)
    [ "$(cat "$job.id" 2>/dev/null)" = "${1:-}" ] || end_run
    follow "$@"
    ;;
  stop) if going_on; then kill -TERM "$(cat "$job.pid")"; else echo "no run is going on here"; fi ;;
  state) state ;;
  *) fail "unknown command '$command'; known: free, run, follow, restart, stop, state" ;;
esac
