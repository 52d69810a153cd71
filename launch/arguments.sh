#!/usr/bin/env bash
# What the launch scripts take before their own words. Sourced without words, so it reads and shifts the script's:
#
#   --dry-run    print the commands, run none
set -euo pipefail

export DRY_RUN=0
if [ "${1:-}" = --dry-run ]; then
  DRY_RUN=1
  shift
fi

# needs PROGRAM [WHAT IS WRONG WITHOUT IT]
needs() {
  [ "$DRY_RUN" = 1 ] || command -v "$1" >/dev/null || fail "$1 ${2:-is not installed}"
}
