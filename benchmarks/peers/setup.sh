#!/usr/bin/env bash
# Makes one virtual environment per peer library, so that no pin of one can disturb another
# (or pbrl_jax itself). Safe to run again: finished parts are kept.
#
#   bash benchmarks/peers/setup.sh [FOLDER]      # FOLDER defaults to .peers
#   PYTHON=python3.12 bash benchmarks/peers/setup.sh
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
folder="${1:-.peers}"
python="${PYTHON:-python3}"
mkdir -p "$folder"

for peer in tunix trl; do
  env="$folder/$peer"
  [ -x "$env/bin/python" ] || "$python" -m venv "$env"
  echo "== $peer: installing into $env"
  "$env/bin/python" -m pip install --quiet -r "$here/requirements-$peer.txt"
  "$env/bin/python" -m pip check
done

"$folder/tunix/bin/python" -c 'from importlib.metadata import version as v; print("google-tunix", v("google-tunix"), "jax", v("jax"))'
"$folder/trl/bin/python" -c 'from importlib.metadata import version as v; print("trl", v("trl"), "torch", v("torch"))'
