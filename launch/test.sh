#!/usr/bin/env bash
# Everything CI runs: lint, types, then all tests.
#
#   bash launch/test.sh [PYTEST_ARGUMENT...]       for example: bash launch/test.sh tests/algos -k kl
#
# Tests marked `serial` (several virtual devices, killed processes) run after the others, alone, with 8 devices.
#
#   PBRL_TEST_WORKERS   processes for the other tests        (default: 2)
#   PBRL_DATA           folder of real benchmark text        (default: unset, the tests that need it say so and skip)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

NO_TESTS=5 # pytest's exit status when nothing was collected

# Modules are compiled when they are first imported, for all processes; most of what pip would compile never is.
export PIP_COMPILE=0
unset PYTHONDONTWRITEBYTECODE
ensure_environment dev
say "ruff"
python -m ruff check .
say "mypy"
python -m mypy

# Both halves share what was compiled. A file's tests stay in one process, which makes its fixtures once.
if [ -z "${JAX_COMPILATION_CACHE_DIR:-}" ]; then
  JAX_COMPILATION_CACHE_DIR="$(mktemp -d)"
  export JAX_COMPILATION_CACHE_DIR
  trap 'rm -rf "$JAX_COMPILATION_CACHE_DIR"' EXIT
fi
say "tests"
parallel=0
python -m pytest --durations=10 -n "${PBRL_TEST_WORKERS:-2}" --dist loadfile --no-loadscope-reorder -m "not serial" "$@" ||
  parallel=$?
say "serial tests"
serial=0
PBRL_TEST_DEVICES=8 python -m pytest --durations=10 -m serial "$@" || serial=$?

# A selection of one's own may leave one half empty; the whole suite may not.
if [ "$#" -gt 0 ]; then
  case "$parallel $serial" in
    "0 $NO_TESTS" | "$NO_TESTS 0") exit 0 ;;
  esac
fi
if [ "$parallel" != 0 ] || [ "$serial" != 0 ]; then
  fail "tests failed: pytest ended with status $parallel (parallel) and $serial (serial)"
fi
