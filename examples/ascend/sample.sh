#!/usr/bin/env bash
# Continues videos on one Ascend NPU: `python -m megatron_videogpt sample` and its options, after env.sh.
#   bash examples/ascend/sample.sh --checkpoint runs/videogpt/stage4 in.mp4 --output out.mp4 --clips 8,8
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=examples/ascend/env.sh
source "$root/examples/ascend/env.sh"
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
# Named, so that a CANN that does not start is an error; by itself the command would go on with the CPU.
exec "$python" -m megatron_videogpt sample --platform npu "$@"
