#!/usr/bin/env bash
# Checks a machine or a cluster before a long run and writes one Markdown file: see --help.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash tools/cluster_check.sh [--output FILE.md] [--scratch FOLDER] [--minutes N] [--layouts N] [FILE.toml [section.option=value ...]]

On 2 to 64 devices, in at most 15 minutes, with random latents (no data and no VAE needed):
  - losses and gradient norms of small models in every layout that the devices can form, against data parallelism alone, float32 and bf16
  - of FILE.toml (default: examples/videogpt/stage1.toml) in its own layout and in the planner's three best: tokens/s per device, communication that no
    computation hides, peak memory against the estimate
  - time to save and to load a checkpoint

  --output FILE.md    the report                                                    default: cluster_check.md
  --scratch FOLDER    where the checkpoint goes, shared by all nodes; deleted after default: the report's folder
  --minutes N         no new part starts after that                                 default: 15
  --layouts N         compare no more than so many                                  default: all

NNODES, NODE_RANK, NPROC_PER_NODE, MASTER_ADDR, MASTER_PORT as for examples/multinode.sh; run it on every node.

examples:
  bash tools/cluster_check.sh                                                             all GPUs, or all Ascend NPUs, of this machine
  NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 bash tools/cluster_check.sh --scratch /shared examples/videogpt/stage4.toml train.global_batch_size=16
  NPROC_PER_NODE=2 bash tools/cluster_check.sh examples/videogpt/quickstart.toml          two processes of a laptop, over gloo
TEXT
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
output=cluster_check.md scratch='' minutes=15 layouts=99
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --output) output=$2 && shift 2 ;;
    --scratch) scratch=$2 && shift 2 ;;
    --minutes) minutes=$2 && shift 2 ;;
    --layouts) layouts=$2 && shift 2 ;;
    --*) echo "error: $1: not an option of this script; see --help" >&2 && exit 2 ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || set -- examples/videogpt/stage1.toml

python=.venv/bin/python
[ -x "$python" ] || python=python3
NNODES=${NNODES:-1} NODE_RANK=${NODE_RANK:-0}
gpus=$({ nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU ' || true)
npus=$(find /dev -maxdepth 1 -name 'davinci[0-9]*' 2>/dev/null | wc -l)
NPROC_PER_NODE=${NPROC_PER_NODE:-$((gpus > 0 ? gpus : npus))}
if [ "$gpus" -eq 0 ] && [ "$npus" -gt 0 ]; then
  # shellcheck source=examples/ascend/env.sh
  source examples/ascend/env.sh
fi
if [ "$((NNODES * NPROC_PER_NODE))" -lt 2 ]; then
  echo "error: $NNODES node(s) x $NPROC_PER_NODE device(s): layouts need at least 2 processes; set NPROC_PER_NODE or NNODES" >&2
  exit 2
fi
if [ "$NNODES" -eq 1 ]; then
  rendezvous=(--standalone)
else
  rendezvous=(--rdzv-backend c10d --rdzv-endpoint "${MASTER_ADDR:?the address of node 0}:${MASTER_PORT:-29500}" --rdzv-id cluster_check --node-rank "$NODE_RANK")
fi
# One queue of work per device, so that communication starts in the order in which it was asked for (Megatron-LM's advice for tensor parallelism).
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$python" -m torch.distributed.run "${rendezvous[@]}" --nnodes "$NNODES" --nproc-per-node "$NPROC_PER_NODE" \
  tools/cluster_check.py --output "$output" --scratch "${scratch:-$(dirname "$output")}" --minutes "$minutes" --layouts "$layouts" "$@"
