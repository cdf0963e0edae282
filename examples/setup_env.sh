#!/usr/bin/env bash
# Makes .venv in the repository and installs the project into it.  Does nothing when that was done already for these requirements.
#   bash examples/setup_env.sh [EXTRAS]        EXTRAS: of pyproject.toml, "dev" unless given
# Without a GPU the CPU build of PyTorch is installed, with one the CUDA build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

EXTRAS=${1:-dev}
VENV=$PWD/.venv
TORCH=$(grep '^torch==' constraints-cpu.txt)
CPU_INDEX=https://download.pytorch.org/whl/cpu

find_python() {
  local name
  for name in python3.11 python3.12 python3.13 python3 python3.10; do
    if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "error: no Python with venv: install Python 3.11 (3.10 or newer works) with its venv module" >&2
  exit 2
}

has_gpu() { nvidia-smi -L 2>/dev/null | grep -q '^GPU '; }

# Whether pip's own choice for this torch brings CUDA along; read from the metadata, so that no gigabytes travel to find out.
resolves_to_cuda() {
  local report
  report=$("$VENV/bin/python" -m pip install --dry-run -qq --no-deps --ignore-installed --report - "$TORCH") || return 0
  "$VENV/bin/python" -c '
import json, sys
metadata = json.loads(sys.stdin.read())["install"][0]["metadata"]
needs = " ".join(metadata.get("requires_dist", []))
sys.exit(not ("nvidia-" in needs or "cuda-" in needs))' <<<"$report"
}

install_torch() {
  if has_gpu; then
    echo "set-up: GPU found, installing $TORCH with CUDA"
  elif resolves_to_cuda; then
    echo "set-up: no GPU, installing the CPU build of $TORCH from $CPU_INDEX"
    "$VENV/bin/python" -m pip install -qq --index-url "$CPU_INDEX" "$TORCH"
    return
  else
    echo "set-up: no GPU, installing $TORCH (CPU build)"
  fi
  "$VENV/bin/python" -m pip install -qq "$TORCH"
}

if [ ! -x "$VENV/bin/python" ]; then
  python=$(find_python)
  "$python" -m venv "$VENV"
fi
stamp=$(cat pyproject.toml constraints-cpu.txt examples/setup_env.sh <(echo "$PWD") <("$VENV/bin/python" --version) | sha256sum)
if [ "$(cat "$VENV/set-up-of-$EXTRAS" 2>/dev/null)" = "$stamp" ]; then
  exit 0
fi

echo "set-up: installing into $VENV (some minutes the first time)"
# Older versions of pip download a whole wheel before they report what it is.
"$VENV/bin/python" -m pip install -qq --upgrade 'pip>=23.3'
install_torch
if "$VENV/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  # A CUDA build of torch has brought the release of triton that it was built with.
  exact=constraints-cpu.txt
  if has_gpu; then
    exact=$VENV/constraints.txt
    grep -v '^triton==' constraints-cpu.txt >"$exact"
  fi
  "$VENV/bin/python" -m pip install -qq --constraint "$exact" --editable ".[$EXTRAS]"
else
  echo "set-up: the exact versions of constraints-cpu.txt need Python 3.11; installing the newest that fit Python 3.10"
  "$VENV/bin/python" -m pip install -qq "$TORCH" --editable ".[$EXTRAS]"
fi
echo "$stamp" >"$VENV/set-up-of-$EXTRAS"
