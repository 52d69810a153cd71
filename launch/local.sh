#!/usr/bin/env bash
# Any `pbrl` verb on this machine's devices (CPU, all GPUs of the box, or a single TPU VM).
#
#   bash launch/local.sh [--dry-run] VERB [ARGUMENT...]
#   bash launch/local.sh train configs/tiny_cpu.py --workdir runs/tiny
#
#   PBRL_EXTRAS   extras to install: cuda, tpu, or empty     (default: what this machine has)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

DRY_RUN=0
if [ "${1:-}" = --dry-run ]; then
  DRY_RUN=1
  shift
fi
[ "${1:-}" != pbrl ] || shift
[ "$#" -gt 0 ] || fail "no verb given; for example: bash launch/local.sh train configs/tiny_cpu.py --workdir runs/tiny"

IFS=, read -ra extras <<<"$(accelerator_extra)"
if [ "$DRY_RUN" = 1 ]; then
  run bash "$REPOSITORY/launch/environment.sh" ${extras[@]+"${extras[@]}"}
  run pbrl "$@"
  exit 0
fi
ensure_environment ${extras[@]+"${extras[@]}"}
# exec, so that a SIGTERM reaches the run itself, which then saves and ends.
exec pbrl "$@"
