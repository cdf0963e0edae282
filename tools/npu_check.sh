#!/usr/bin/env bash
# What only an Ascend NPU can show, in one call with a budget of nine minutes (it has not run on a device yet); see tools/npu_check.py.
#   bash tools/npu_check.sh                        on a machine with NPUs; results in $OUT, else runs/npu_check.  With two or more it also compares layouts over HCCL
#   bash tools/npu_check.sh --rehearsal            every part, tiny, over stand-ins of torch_npu and HCCL on a CPU: tests this script
# PYTHON: the Python to use; .venv/bin/python where it is there, else python3.  Everything else goes to tools/npu_check.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case " $* " in
  *" --rehearsal "*)
    # As a machine with two NPUs looks to a process; no adaptor, so that every package of the search path is known.
    export PYTHONPATH=$PWD/tests/ascend/packages/torch_npu${PYTHONPATH:+:$PYTHONPATH}
    export STAND_IN_NPUS=${STAND_IN_NPUS:-2} ASCEND_HOME_PATH=${ASCEND_HOME_PATH:-$PWD/tests/ascend}
    ;;
  *)
    if [ -z "$(find /dev -maxdepth 1 -name 'davinci[0-9]*' 2>/dev/null)" ]; then
      echo "npu_check: no Ascend NPU on this machine (no /dev/davinci0); --rehearsal tries the script itself" >&2
      exit 2
    fi
    ;;
esac
# shellcheck source=examples/ascend/env.sh
source examples/ascend/env.sh

PYTHON=${PYTHON:-}
if [ -z "$PYTHON" ]; then
  PYTHON=python3
  if [ -x .venv/bin/python ] && .venv/bin/python -c 'import torch' 2>/dev/null; then PYTHON=.venv/bin/python; fi
fi
exec "$PYTHON" tools/npu_check.py "$@"
