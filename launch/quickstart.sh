#!/usr/bin/env bash
# From nothing to the effect in miniature: environment, then `pbrl quickstart`.
#
#   bash launch/quickstart.sh [WORKDIR] [QUICKSTART_ARGUMENT...]
#
# WORKDIR is runs/quickstart where none is given. A run that was interrupted goes on from its last finished stage.
set -euo pipefail
calling_folder="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

workdir="$REPOSITORY/runs/quickstart"
case "${1:-}" in
  "" | -*) ;;
  *)
    workdir="$1"
    shift
    ;;
esac

ensure_environment
cd "$calling_folder"
exec pbrl quickstart --workdir "$workdir" "$@"
