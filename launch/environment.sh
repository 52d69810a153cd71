#!/usr/bin/env bash
# The Python environment that every launch script works in. Sourced by them; run alone it makes the environment:
#
#   bash launch/environment.sh [EXTRA...]          for example: bash launch/environment.sh cuda dev
#
# An active virtual environment is used as it is; otherwise .venv is made beside this folder. Nothing is installed
# again while setup.py, the checkout and the Python are the same: a stamp in the environment remembers them.
#
#   PYTHON                the interpreter to make .venv with      (default: the first of 3.12, 3.11, ... that runs)
#   PBRL_INSTALL_PYTHON   1: install Python 3.12 with apt-get where no fitting one is found     (default: 0)
set -euo pipefail

REPOSITORY="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

say() { printf '>> %s\n' "$*" >&2; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Prints the command as it could be typed, and runs it unless DRY_RUN is 1.
run() {
  local word line=""
  for word in "$@"; do
    [[ "$word" =~ ^[A-Za-z0-9_./:=@%+,~-]+$ ]] || word="${word@Q}"
    line+="$word "
  done
  printf '%s\n' "${line% }"
  if [ "${DRY_RUN:-0}" != 1 ]; then "$@"; fi
}

# A stub that a version manager left on the PATH may exist and fail, hence the trial run.
python_fits() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
  local name path
  for name in python3.12 python3.11 python3.13 python3 python; do
    while IFS= read -r path; do
      if python_fits "$path"; then
        printf '%s\n' "$path"
        return
      fi
    done < <(type -aP "$name")
  done
  return 1
}

install_python() {
  local sudo=()
  [ "$(id -u)" = 0 ] || sudo=(sudo)
  command -v apt-get >/dev/null ||
    fail "no Python 3.11 or newer found, and no apt-get to install one; install Python 3.12, or set PYTHON"
  say "installing Python 3.12"
  "${sudo[@]}" apt-get update -qq
  # Ubuntu 22.04, the image of most TPU VMs, has no final Python newer than 3.10 of its own.
  if ! apt-cache show python3.12-venv >/dev/null 2>&1; then
    "${sudo[@]}" apt-get install -y -qq software-properties-common
    "${sudo[@]}" add-apt-repository -y ppa:deadsnakes/ppa
    "${sudo[@]}" apt-get update -qq
  fi
  "${sudo[@]}" apt-get install -y -qq python3.12 python3.12-venv
}

# Activates the environment; `set +u` because some activate scripts read unset variables.
enter_environment() {
  local python
  if [ -n "${VIRTUAL_ENV:-}" ]; then
    return
  fi
  if [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then
    VIRTUAL_ENV="$CONDA_PREFIX"
    return
  fi
  if ! python_fits "$REPOSITORY/.venv/bin/python"; then
    python="${PYTHON:-$(find_python || true)}"
    if [ -n "${PYTHON:-}" ] && ! python_fits "$PYTHON"; then
      fail "PYTHON=$PYTHON does not run, is older than 3.11, or has no venv module; unset it or name another"
    fi
    if [ -z "$python" ]; then
      [ "${PBRL_INSTALL_PYTHON:-0}" = 1 ] || fail "no Python 3.11 or newer with the venv module found on the PATH;" \
        "install one (Debian and Ubuntu: apt-get install python3 python3-venv), or set PYTHON"
      install_python
      python="$(find_python)" || fail "Python 3.12 was installed and still does not run"
    fi
    say "making $REPOSITORY/.venv with $("$python" --version)"
    "$python" -m venv --clear "$REPOSITORY/.venv"
  fi
  set +u
  # shellcheck disable=SC1091
  source "$REPOSITORY/.venv/bin/activate"
  set -u
}

# ensure_environment [EXTRA...]: enters the environment and installs the package with these extras.
ensure_environment() {
  local stamp wanted extra missing=()
  enter_environment
  python -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "the active environment $VIRTUAL_ENV has $(python --version 2>&1), but Python 3.11 or newer is needed;" \
      "deactivate it, and .venv is made"
  stamp="$VIRTUAL_ENV/.pbrl_jax.stamp"
  wanted="$(python - "$REPOSITORY" <<'PYTHON_CODE'
import hashlib, pathlib, sys
parts = [pathlib.Path(sys.argv[1], "setup.py").read_text(), sys.argv[1], sys.version]
print(hashlib.sha256("\0".join(parts).encode()).hexdigest())
PYTHON_CODE
)"
  if [ "$(head -n 1 "$stamp" 2>/dev/null)" != "$wanted" ]; then
    missing=(package "$@")
  else
    for extra in "$@"; do
      grep -qx "$extra" "$stamp" || missing+=("$extra")
    done
  fi
  if [ "${#missing[@]}" -gt 0 ]; then
    install_package "$stamp" "$wanted" "$@"
  fi
}

install_package() {
  local stamp="$1" wanted="$2" extras kept=()
  shift 2
  if [ "$(head -n 1 "$stamp" 2>/dev/null)" = "$wanted" ]; then
    mapfile -t kept < <(tail -n +2 "$stamp")
  fi
  extras="$(IFS=,; printf '%s' "$*")"
  say "installing pbrl_jax${extras:+[$extras]} into $VIRTUAL_ENV (a few minutes the first time)"
  rm -f "$stamp"
  python -m pip install -e "$REPOSITORY${extras:+[$extras]}"
  printf '%s\n' "$wanted" ${kept[@]+"${kept[@]}"} "$@" >"$stamp"
}

# The extra for this machine's accelerator; nothing on a CPU.
accelerator_extra() {
  if [ -n "${PBRL_EXTRAS+set}" ]; then
    printf '%s\n' "$PBRL_EXTRAS"
  elif command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    printf 'cuda\n'
  elif [ -e /dev/accel0 ] || [ -e /dev/vfio/0 ]; then
    printf 'tpu\n'
  fi
}

# This checkout as an archive that can be sent elsewhere, without environments, results and history.
CHECKOUT_ARCHIVE="$REPOSITORY/runs/checkout.tar.gz"
pack_checkout() {
  run mkdir -p "$REPOSITORY/runs" &&
    run tar -czf "$CHECKOUT_ARCHIVE" -C "$REPOSITORY" --exclude=./.git --exclude=./.venv --exclude=./runs \
      --exclude=__pycache__ .
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  ensure_environment "$@"
fi
