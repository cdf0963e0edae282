#!/usr/bin/env bash
# What only a GPU can show, in one call with a budget of nine minutes (it has not run on a GPU yet); see tools/gpu_check.py.
#   bash tools/gpu_check.sh                        on a machine with one Hopper GPU; results in $OUT, else runs/gpu_check
#   bash tools/gpu_check.sh --install              first installs the project with its `flash` extra into the Python that is used
#   bash tools/gpu_check.sh --wheels DIR           first unpacks the wheels of DIR for this run only (a machine without a network)
#   bash tools/gpu_check.sh --cpu-rehearsal        every part, tiny, on a CPU: tests this script
# PYTHON: the Python to use; .venv/bin/python where it is there, else python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case " $* " in
  *" --cpu-rehearsal "*) ;;
  *)
    if ! nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then
      echo "gpu_check: no NVIDIA GPU on this machine (nvidia-smi lists none); --cpu-rehearsal tries the script itself" >&2
      exit 2
    fi
    ;;
esac

PYTHON=${PYTHON:-}
if [ -z "$PYTHON" ]; then
  PYTHON=python3
  if [ -x .venv/bin/python ] && .venv/bin/python -c 'import torch' 2>/dev/null; then PYTHON=.venv/bin/python; fi
fi

rest=()
while [ $# -gt 0 ]; do
  case $1 in
    --install) "$PYTHON" -m pip install -q -e '.[flash]' ;;
    --wheels)
      folder=$(mktemp -d)
      "$PYTHON" -m pip install -q --no-index --no-deps --target "$folder" "${2:?--wheels needs a folder}"/*.whl
      export PYTHONPATH=$folder${PYTHONPATH:+:$PYTHONPATH}
      shift
      ;;
    *) rest+=("$1") ;;
  esac
  shift
done

exec "$PYTHON" tools/gpu_check.py "${rest[@]+"${rest[@]}"}"
