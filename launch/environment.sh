#!/usr/bin/env bash
# The Python environment that every launch script works in. Sourced by them; run alone it makes the environment:
#
#   bash launch/environment.sh [EXTRA...]          for example: bash launch/environment.sh cuda dev
#
# An active virtual environment is used as it is; otherwise .venv is made beside this folder. Nothing is installed
# again while setup.py, the checkout and the Python are the same: a stamp in the environment remembers them.
#
#   PYTHON                the interpreter to make .venv with      (default: the first of 3.12, 3.11, ... that runs)
#   PBRL_LOCK             0: the newest versions, not those of launch/requirements-PYTHON.lock      (default: 1)
#   PBRL_UV               0: install with pip alone, not with uv, which is several times faster    (default: 1)
#   PBRL_INSTALL_PYTHON   1: install Python 3.12 with apt-get where no fitting one is found     (default: 0)
#   XLA_CLIENT_MEM_FRACTION   share of a GPU's memory that a run takes; JAX's own default is 0.75   (default: 0.9)
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

# as_root COMMAND...: runs it again while another program, such as the updater of a machine that has just started, holds
# apt's locks. apt waits by itself for the lock of its packages, but not for that of its lists.
APT_LOCK_SECONDS="${APT_LOCK_SECONDS:-600}"
as_root() {
  local sudo=() said status deadline=$((SECONDS + APT_LOCK_SECONDS))
  [ "$(id -u)" = 0 ] || sudo=(sudo)
  said="$(mktemp)"
  while true; do
    status=0
    "${sudo[@]}" env LC_ALL=C "$@" 2>"$said" || status=$?
    cat "$said" >&2
    if [ "$status" = 0 ] || [ "$SECONDS" -ge "$deadline" ] || ! grep -qiE "(get|unable to|is another).*lock" "$said"; then
      rm -f "$said"
      return "$status"
    fi
    say "another program holds apt's lock; trying again for $((deadline - SECONDS)) s"
    sleep 5
  done
}

apt() { as_root apt-get -o "DPkg::Lock::Timeout=$APT_LOCK_SECONDS" -qq "$@"; }

install_python() {
  command -v apt-get >/dev/null ||
    fail "no Python 3.11 or newer found, and no apt-get to install one; install Python 3.12, or set PYTHON"
  say "installing Python 3.12"
  apt update
  # Ubuntu 22.04, the image of most TPU VMs, has no final Python newer than 3.10 of its own.
  if ! apt-cache show python3.12-venv >/dev/null 2>&1; then
    apt install -y software-properties-common
    as_root add-apt-repository -y ppa:deadsnakes/ppa
    apt update
  fi
  apt install -y python3.12 python3.12-venv
}

# Activates the environment; `set +u` because some activate scripts read unset variables.
enter_environment() {
  local python
  # jaxlib refuses this name beside its older one.
  [ -n "${XLA_PYTHON_CLIENT_MEM_FRACTION:-}" ] || export XLA_CLIENT_MEM_FRACTION="${XLA_CLIENT_MEM_FRACTION:-0.9}"
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
  local stamp wanted lock extra missing=()
  enter_environment
  python -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "the active environment $VIRTUAL_ENV has $(python --version 2>&1), but Python 3.11 or newer is needed;" \
      "deactivate it, and .venv is made"
  stamp="$VIRTUAL_ENV/.pbrl_jax.stamp"
  lock="$(lock_file)"
  wanted="$(python - "$REPOSITORY" ${lock:+"$lock"} <<'PYTHON_CODE'
import hashlib, pathlib, sys, urllib.request
parts = [pathlib.Path(sys.argv[1], "setup.py").read_text(), sys.argv[1], sys.version]
parts += [urllib.request.urlopen(address).read().decode() for address in sys.argv[2:]]
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
    install_package "$stamp" "$wanted" "$lock" "$@"
  fi
}

# The address of the tested versions for this Python and machine; nothing where there are none, or PBRL_LOCK is 0.
lock_file() {
  [ "${PBRL_LOCK:-1}" != 1 ] || python - "$REPOSITORY" <<'PYTHON_CODE'
import pathlib, platform, sys
file = pathlib.Path(sys.argv[1], "launch", "requirements-%d.%d.lock" % sys.version_info[:2])
if (sys.platform, platform.machine()) == ("linux", "x86_64") and file.exists():
    print(file.resolve().as_uri())  # a path with spaces would be two to pip
PYTHON_CODE
}

install_package() {
  local stamp="$1" wanted="$2" lock="$3" extras kept=()
  shift 3
  if [ "$(head -n 1 "$stamp" 2>/dev/null)" = "$wanted" ]; then
    mapfile -t kept < <(tail -n +2 "$stamp")
  fi
  extras="$(IFS=,; printf '%s' "$*")"
  say "installing pbrl_jax${extras:+[$extras]} into $VIRTUAL_ENV (a few minutes the first time)"
  rm -f "$stamp"
  # A variable, as the packages that build others are chosen by another pip.
  local -x PIP_CONSTRAINT="${PIP_CONSTRAINT:-$lock}"
  install_with_uv -e "$REPOSITORY${extras:+[$extras]}" || python -m pip install -e "$REPOSITORY${extras:+[$extras]}"
  printf '%s\n' "$wanted" ${kept[@]+"${kept[@]}"} "$@" >"$stamp"
}

# install_with_uv ARGUMENT...: as `pip install` does, with pip's settings and the version that is newest on any index.
# Fails where uv cannot be had or does not succeed, for pip to install or to say why not.
install_with_uv() {
  local options
  [ "${PBRL_UV:-1}" = 1 ] || return
  python -m uv --version >/dev/null 2>&1 || python -m pip install -q uv || return
  mapfile -t options < <(uv_options)
  UV_CONSTRAINT="$PIP_CONSTRAINT" UV_BUILD_CONSTRAINT="$PIP_CONSTRAINT" python -m uv pip install \
    --python "$(command -v python)" --index-strategy unsafe-best-match ${options[@]+"${options[@]}"} "$@" || {
    say "uv did not install it; trying again with pip"
    return 1
  }
}

# The indexes and folders of pip's settings (pip.conf, PIP_*) as options of uv, one a line.
uv_options() {
  python - <<'PYTHON_CODE'
import ast, subprocess, sys
OPTIONS = {"index-url": "--default-index", "extra-index-url": "--index", "find-links": "--find-links",
           "trusted-host": "--allow-insecure-host"}
command, found = [sys.executable, "-m", "pip", "config", "list"], {}
lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
for line in sorted(lines, key=lambda line: (line.startswith(":env:"), line.startswith("install."))):
    name, _, value = line.partition("=")
    found[name.split(".", 1)[1]] = ast.literal_eval(value)
for name, option in OPTIONS.items():
    for word in found.get(name, "").split():
        print(f"{option}={word}")
PYTHON_CODE
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

# The files of this checkout that other machines get, each ended by a zero byte: what git tracks, or the project's own
# folders where there is no git, and what PBRL_PACK names (files and folders, separated by spaces). A file that git does
# not track, such as .env, may be secret.
packed_files() {
  local name extra
  if git -C "$REPOSITORY" rev-parse --git-dir >/dev/null 2>&1; then
    while IFS= read -r -d '' name; do
      if [ -e "$REPOSITORY/$name" ] || [ -L "$REPOSITORY/$name" ]; then printf './%s\0' "$name"; fi
    done < <(git -C "$REPOSITORY" ls-files -z)
  else
    for name in setup.py pyproject.toml README.md LICENSE pbrl_jax configs launch docs tests benchmarks; do
      [ ! -e "$REPOSITORY/$name" ] || printf './%s\0' "$name"
    done
  fi
  read -ra extra <<<"${PBRL_PACK:-}"
  for name in ${extra[@]+"${extra[@]}"}; do
    [ -e "$REPOSITORY/$name" ] || fail "PBRL_PACK names $name, which is not in $REPOSITORY"
    printf './%s\0' "$name"
  done
}

# Names the untracked files that stay here.
say_unpacked() {
  local left
  left="$(git -C "$REPOSITORY" ls-files --others --exclude-standard 2>/dev/null | head -n 6 || true)"
  [ -z "$left" ] || [ -n "${PBRL_PACK:-}" ] ||
    say "not copied, as git does not track them: ${left//$'\n'/, }; PBRL_PACK='NAME NAME' takes files along"
}

# This checkout as an archive that can be sent elsewhere.
CHECKOUT_ARCHIVE="$REPOSITORY/runs/checkout.tar.gz"
pack_checkout() {
  local list="$REPOSITORY/runs/checkout.list"
  run mkdir -p "$REPOSITORY/runs" || return
  if [ "${DRY_RUN:-0}" != 1 ]; then
    packed_files >"$list" || return
    say_unpacked
  fi
  run tar -czf "$CHECKOUT_ARCHIVE" -C "$REPOSITORY" --exclude=__pycache__ --null --files-from="$list"
}

# The variables that a run on another machine needs: names of HF_TOKEN, W&B's, PBRL_* but for those that the launch
# scripts set themselves, and of what PASS names (separated by spaces).
passed_names() {
  local name also
  read -ra also <<<"${PASS:-}"
  for name in ${also[@]+"${also[@]}"}; do
    [ -n "${!name+set}" ] || fail "PASS names $name, which is not set"
  done
  while IFS= read -r name; do
    case "$name" in
      PBRL_COORDINATOR | PBRL_PROCESS | PBRL_PROCESSES | PBRL_HOSTS | PBRL_EXTRAS | PBRL_PORT | PBRL_PACK) continue ;;
      PBRL_INSTALL_PYTHON) continue ;;
      HF_TOKEN | HUGGING_FACE_HUB_TOKEN | WANDB_* | PBRL_*) printf '%s\n' "$name" ;;
      *) [[ " ${also[*]-} " != *" $name "* ]] || printf '%s\n' "$name" ;;
    esac
  done < <(compgen -e)
}

# secrets_file: writes them as a file that bash can read, with mode 600, and prints its path; nothing where there are none.
# Values never stand on a command line, where other users could see them.
secrets_file() {
  local names file name
  names="$(passed_names)" || return
  [ -n "$names" ] || return 0
  mkdir -p "$REPOSITORY/runs"
  file="$REPOSITORY/runs/environment.$$"
  if [ "${DRY_RUN:-0}" != 1 ]; then
    rm -f "$file"
    (umask 077 && while IFS= read -r name; do printf 'export %s=%q\n' "$name" "${!name}"; done <<<"$names" >"$file")
  fi
  printf '%s\n' "$file"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  ensure_environment "$@"
fi
