#!/usr/bin/env bash
# One GPU box, all its GPUs: a remote one through ssh, or this machine where HOST is empty.
#
#   HOST=user@box bash launch/gpu_node.sh [--dry-run] COMMAND
#
#   setup                    copy this checkout to the box and install it there
#   run VERB [ARGUMENT...]   start `pbrl VERB ...` there, detached; the same work directory resumes
#   logs                     follow its output
#   stop                     SIGTERM: the run saves its state and ends
#   serve MODEL [ARG...]     start a vLLM server there for rollout.engine vllm, detached, and wait until it answers; with
#                            --gpu-memory-utilization 0.4 among its arguments it leaves the rest of the memory to the
#                            run. VLLM_PYTHON, VLLM_PORT, VLLM_LOGPROBS, VLLM_WAIT: as launch/vllm.sh has them
#   end_server               stop it
#   shell COMMAND...         any other command there, in the checkout
#
#   HOST          ssh destination                            (default: empty, this machine)
#   REMOTE_DIR    the checkout on the box, from the home; ~/ at its beginning is the home there   (default: pbrl_jax)
#   PBRL_EXTRAS   extras to install there                    (default: cuda)
#   XLA_CLIENT_MEM_FRACTION   share of a GPU's memory that the run takes, less beside a vLLM server   (default: 0.9)
#   SSH_OPTIONS   more options for ssh, separated by spaces  (default: empty)
#   PASS          variables to hand to the run beside HF_TOKEN, WANDB_* and PBRL_*; they go by a file of mode 600
#   PBRL_PACK     files that git does not track, to be copied as well
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"

HOST="${HOST:-}"
REMOTE_DIR="${REMOTE_DIR:-pbrl_jax}"
PBRL_EXTRAS="${PBRL_EXTRAS-cuda}"
SSH_OPTIONS="${SSH_OPTIONS:-}"
[ "${HOST#-}" = "$HOST" ] || fail "HOST=$HOST begins with -; expected an ssh destination such as me@box"

read -ra ssh_options <<<"$SSH_OPTIONS"
IFS=, read -ra extras <<<"$PBRL_EXTRAS"

# The checkout as a word of the shell there. Only a leading ~ is expanded, and only by that shell.
# shellcheck disable=SC2016
checkout_word() {
  case "$REMOTE_DIR" in
    \~) printf '"$HOME"' ;;
    \~/*) printf '"$HOME"/%q' "${REMOTE_DIR#\~/}" ;;
    *) printf '%q' "$REMOTE_DIR" ;;
  esac
}
if [ -n "$HOST" ]; then checkout="$(checkout_word)"; else printf -v checkout '%q' "$REPOSITORY"; fi

# Runs one shell command in the checkout, there or here.
there() {
  local line="cd $checkout && { $1; }"
  if [ -n "$HOST" ]; then
    run ssh ${ssh_options[@]+"${ssh_options[@]}"} "$HOST" "$line"
  else
    run bash -c "$line"
  fi
}

# send FILE COMMAND: a shell command there that reads the file.
send() {
  local line
  printf -v line '%q ' ssh ${ssh_options[@]+"${ssh_options[@]}"} "$HOST" "$2"
  run bash -c "$line<${1@Q}"
}

setup() {
  local words=""
  if [ -n "$HOST" ]; then
    pack_checkout
    send "$CHECKOUT_ARCHIVE" "mkdir -p $checkout && tar -xzf - -C $checkout"
  fi
  [ "${#extras[@]}" = 0 ] || printf -v words ' %q' "${extras[@]}"
  there "PBRL_INSTALL_PYTHON=1 bash launch/environment.sh$words"
}

send_secrets() {
  local file
  [ -n "$HOST" ] || return 0 # here the run has this shell's variables
  file="$(secrets_file)"
  [ -n "$file" ] || return 0
  # shellcheck disable=SC2064
  trap "rm -f ${file@Q}" EXIT
  send "$file" "cd $checkout && umask 077 && rm -f .pbrl.env && cat >.pbrl.env"
}

start() {
  local words settings
  [ "${1:-}" != pbrl ] || shift
  [ "$#" -gt 0 ] || fail "run needs a verb; for example:" \
    "bash launch/gpu_node.sh run train configs/tiny_cpu.py --workdir runs/tiny"
  printf -v words '%q ' "$@"
  printf -v settings 'PBRL_EXTRAS=%q' "$PBRL_EXTRAS"
  [ -z "${XLA_CLIENT_MEM_FRACTION:-}" ] ||
    printf -v settings '%s XLA_CLIENT_MEM_FRACTION=%q' "$settings" "$XLA_CLIENT_MEM_FRACTION"
  send_secrets
  # A second run in the same checkout would write into the first one's log and process file.
  there "bash launch/detached.sh free && { rm -f pbrl.id pbrl.words; $settings setsid nohup bash launch/detached.sh run \
bash launch/local.sh $words>pbrl.log 2>&1 </dev/null & echo \$! >pbrl.pid; }"
}

serve() {
  local words name settings=""
  [ "$#" -gt 0 ] || fail "serve needs a model; for example: bash launch/gpu_node.sh serve Qwen/Qwen3-0.6B"
  printf -v words '%q ' "$@"
  for name in VLLM_PYTHON VLLM_PORT VLLM_LOGPROBS VLLM_WAIT; do
    [ -z "${!name:-}" ] || printf -v settings '%s %s=%q' "$settings" "$name" "${!name}"
  done
  send_secrets
  there "export PBRL_JOB=vllm$settings && bash launch/detached.sh free && { setsid nohup bash launch/detached.sh run \
bash launch/vllm.sh serve $words>vllm.log 2>&1 </dev/null & echo \$! >vllm.pid; bash launch/vllm.sh ready; }"
}

command="${1:-}"
[ "$#" -eq 0 ] || shift
case "$command" in
  setup) setup ;;
  run) start "$@" ;;
  logs) there "tail -n 200 -F pbrl.log" ;;
  stop) there "bash launch/detached.sh stop" ;;
  serve) serve "$@" ;;
  end_server) there "PBRL_JOB=vllm bash launch/detached.sh stop" ;;
  shell) there "$*" ;;
  *) fail "unknown command '$command'; known: setup, run, logs, stop, serve, end_server, shell" ;;
esac
