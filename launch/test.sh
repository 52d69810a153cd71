#!/usr/bin/env bash
# Everything CI runs: lint, types, then all tests.
#
#   bash launch/test.sh [PYTEST_ARGUMENT...]       for example: bash launch/test.sh tests/algos -k kl
#
# Tests marked `serial` need several virtual devices: they run after the others, in processes with 8 devices.
#
#   PBRL_TEST_WORKERS   processes of each half               (default: 3, for two cores: tests that start processes
#                       of their own wait for them)
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

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
# Beside the tests: its one core is often free at the start and the end of a half.
say "mypy, which ends beside the tests"
types=0
python -m mypy >"$scratch/mypy" 2>&1 &
mypy=$!

# Both halves share what was compiled. A file's tests stay in one process, which makes its fixtures once.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$scratch/programs}"
how=(--durations=10 -n "${PBRL_TEST_WORKERS:-3}" --dist loadfile --no-loadscope-reorder)
say "tests"
parallel=0
python -m pytest "${how[@]}" -m "not serial" "$@" || parallel=$?
say "tests with 8 devices"
# Only the files that hold such tests are imported.
files=()
[ "$#" -gt 0 ] || mapfile -t files < <(grep -rlF "mark.serial" tests --include="test_*.py")
serial=0
PBRL_TEST_DEVICES=8 python -m pytest "${how[@]}" -m serial "$@" "${files[@]}" || serial=$?
say "what mypy found"
wait "$mypy" || types=$?
cat "$scratch/mypy"

# A selection of one's own may leave one half empty; the whole suite may not.
if [ "$#" -gt 0 ] && [ "$parallel" = 0 ] && [ "$serial" = "$NO_TESTS" ]; then serial=0; fi
if [ "$#" -gt 0 ] && [ "$serial" = 0 ] && [ "$parallel" = "$NO_TESTS" ]; then parallel=0; fi
if [ "$parallel" != 0 ] || [ "$serial" != 0 ] || [ "$types" != 0 ]; then
  fail "tests failed: pytest ended with status $parallel (parallel) and $serial (8 devices), mypy with $types"
fi
