#!/usr/bin/env bash
# A vLLM server that a run on this machine samples from (rollout.engine vllm). It listens on 127.0.0.1 alone: what
# training needs of it, /collective_rpc, is vLLM's development mode and no service for others.
#
#   bash launch/vllm.sh [--dry-run] COMMAND
#
#   serve MODEL [ARGUMENT...]   the server, in the foreground: MODEL is a folder or hub id of the policy's form (its
#                               weights are replaced); further arguments are vLLM's own
#   ready                       waits until it answers
#
#   VLLM_PYTHON   a Python with vllm, in an environment of its own  (default: .vllm/bin/python in the checkout)
#   VLLM_PORT     port                                              (default: 8000)
#   VLLM_LOGPROBS raw_logprobs where rollout.top_p or top_k truncates (default: processed_logprobs)
#   VLLM_WAIT     seconds that `ready` waits                        (default: 900)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"

VLLM_PYTHON="${VLLM_PYTHON:-$REPOSITORY/.vllm/bin/python}"
VLLM_PORT="${VLLM_PORT:-8000}"
VLLM_WAIT="${VLLM_WAIT:-900}"
needs "$VLLM_PYTHON" "is no Python; make one with python3 -m venv .vllm && .vllm/bin/pip install vllm, or set VLLM_PYTHON"

serve() {
  local word
  [ "$#" -gt 0 ] || fail "serve needs a model; for example: bash launch/vllm.sh serve Qwen/Qwen3-0.6B"
  for word in "$@"; do
    case "${word%%=*}" in
      --port | --logprobs-mode) fail "${word%%=*} is not taken here; set VLLM_PORT or VLLM_LOGPROBS" ;;
      --host | --generation-config) fail "${word%%=*} is not taken here: this script sets it" ;;
    esac
  done
  # A model's own sampling settings are not the run's, and log-probs are to be those of the tempered distribution.
  run exec env VLLM_SERVER_DEV_MODE=1 "$VLLM_PYTHON" -m vllm.entrypoints.openai.api_server --model "$@" \
    --host 127.0.0.1 --port "$VLLM_PORT" --generation-config vllm --logprobs-mode "${VLLM_LOGPROBS:-processed_logprobs}"
}

answers() {
  "$VLLM_PYTHON" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)' \
    "http://127.0.0.1:$VLLM_PORT/health" >/dev/null 2>&1
}

# Whether the server that `gpu_node.sh serve` started has ended.
ended() { [ -s vllm.pid ] && ! kill -0 "$(cat vllm.pid)" 2>/dev/null; }

ready() {
  local start="$SECONDS"
  say "waiting for the vLLM server at http://127.0.0.1:$VLLM_PORT, $VLLM_WAIT s at most"
  while ! answers; do
    if ended; then
      tail -n 20 vllm.log >&2 || true
      fail "the vLLM server has ended; its last lines are above"
    fi
    [ "$((SECONDS - start))" -lt "$VLLM_WAIT" ] ||
      fail "no vLLM server at http://127.0.0.1:$VLLM_PORT within $VLLM_WAIT s; see its log, or raise VLLM_WAIT"
    sleep 2
  done
  say "it answers, after $((SECONDS - start)) s"
}

command="${1:-}"
[ "$#" -eq 0 ] || shift
case "$command" in
  serve) serve "$@" ;;
  ready) [ "$DRY_RUN" = 1 ] || ready ;;
  *) fail "unknown command '$command'; known: serve, ready" ;;
esac
