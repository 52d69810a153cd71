#!/usr/bin/env bash
# The versions that CI and the container image install: writes launch/requirements-PYTHON.lock from the active
# environment, in which the tests have just passed.
#
#   python3.12 -m venv /tmp/lock && source /tmp/lock/bin/activate
#   PBRL_LOCK=0 bash launch/test.sh && bash launch/lock.sh      newest versions within setup.py's bounds, tested, written
#   bash launch/lock.sh audit [PIP_AUDIT_ARGUMENT...]           known vulnerabilities of what the files name
#
# launch/environment.sh and launch/Dockerfile install within a file of their Python on Linux x86-64; PBRL_LOCK=0 does not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

audit() {
  local file
  python -c 'import pip_audit' 2>/dev/null || fail "pip-audit is not installed; python -m pip install pip-audit"
  for file in launch/requirements-*.lock; do
    say "$file"
    python -m pip_audit --requirement "$file" --no-deps --disable-pip "$@"
  done
}

if [ "${1:-}" = audit ]; then
  shift
  audit "$@"
else
  enter_environment
  file="launch/requirements-$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])').lock"
  python -m pip list --format=freeze --exclude-editable | grep -viE '^(pip|setuptools|wheel|pbrl[-_]jax)==' >"$file.new"
  mv "$file.new" "$file"
  say "wrote $file: $(wc -l <"$file") versions"
fi
