#!/usr/bin/env bash
# Trains on one node or many with plain torchrun: run it on every node.  See docs/launching.md, and slurm.sbatch for Slurm.
set -euo pipefail

asked='' interrupts=0
trap 'asked=1' USR1 TERM
trap 'asked=1 interrupts=$((interrupts + 1))' INT

usage() {
  cat <<'TEXT'
usage: bash examples/multinode.sh [option ...] FILE.toml [section.option=value ...]

  --nnodes N            nodes of the job                                            NNODES          1
  --node-rank R         this node's number; node 0 is the one that others call      NODE_RANK       0
  --nproc-per-node P    processes of this node, one per device                      NPROC_PER_NODE  its devices, or 1
  --master-addr HOST    node 0, as the others reach it                              MASTER_ADDR     127.0.0.1
  --master-port PORT    a free port of node 0                                       MASTER_PORT     29500
  --local-addr HOST     this node, as the others reach it                           LOCAL_ADDR      its host name
  --job-id NAME         the same on all nodes; jobs on one port need different ones JOB_ID          megatron_videogpt
  --join-timeout S      seconds to wait for the other nodes                         JOIN_TIMEOUT    40
  --max-restarts N      restarts after a crash, from the newest checkpoint          MAX_RESTARTS    0
  --finished            only ask: exit code 0 when the run has done all its steps

Each option can also be given as the environment variable in the third column.

One node with 8 devices:
  bash examples/multinode.sh --nproc-per-node 8 examples/videogpt/stage1.toml data.path=/videos parallel.tensor=8
Two nodes, on each with its own --node-rank (0 and 1):
  bash examples/multinode.sh --nnodes 2 --node-rank 0 --master-addr 10.0.0.1 --nproc-per-node 8 examples/videogpt/stage1.toml data.path=/videos
Two "nodes" on this machine, without any device; the second in another terminal, with --node-rank 1 --local-addr 127.0.0.2:
  bash examples/multinode.sh --nnodes 2 --node-rank 0 --local-addr 127.0.0.1 --nproc-per-node 1 examples/videogpt/quickstart.toml

Ctrl-C, SIGTERM and SIGUSR1 save a checkpoint and end with exit code 0; the same command resumes.  A second Ctrl-C ends at once.
TEXT
}

fail() {
  echo "error: $1" >&2
  exit 2
}

devices() {
  local count
  count=$({ nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU ' || true)
  if [ "$count" -eq 0 ]; then count=$(find /dev -maxdepth 1 -name 'davinci[0-9]*' 2>/dev/null | wc -l); fi
  echo "$((count > 0 ? count : 1))"
}

NNODES=${NNODES:-1} NODE_RANK=${NODE_RANK:-0} MASTER_ADDR=${MASTER_ADDR:-127.0.0.1} MASTER_PORT=${MASTER_PORT:-29500}
LOCAL_ADDR=${LOCAL_ADDR:-} JOB_ID=${JOB_ID:-megatron_videogpt} JOIN_TIMEOUT=${JOIN_TIMEOUT:-40} MAX_RESTARTS=${MAX_RESTARTS:-0}
only_ask=
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --finished) only_ask=1 && shift && continue ;;
    --*) [ $# -gt 1 ] || fail "$1: a value is missing; see --help" ;;&
    --nnodes) NNODES=$2 ;;
    --node-rank) NODE_RANK=$2 ;;
    --nproc-per-node) NPROC_PER_NODE=$2 ;;
    --master-addr) MASTER_ADDR=$2 ;;
    --master-port) MASTER_PORT=$2 ;;
    --local-addr) LOCAL_ADDR=$2 ;;
    --job-id) JOB_ID=$2 ;;
    --join-timeout) JOIN_TIMEOUT=$2 ;;
    --max-restarts) MAX_RESTARTS=$2 ;;
    --*) fail "$1: unknown option; see bash examples/multinode.sh --help" ;;
    *) break ;;
  esac
  shift 2
done
[ $# -gt 0 ] || { usage >&2 && exit 2; }
NPROC_PER_NODE=${NPROC_PER_NODE:-$(devices)}
for name in NNODES NODE_RANK NPROC_PER_NODE MASTER_PORT JOIN_TIMEOUT MAX_RESTARTS; do
  [[ ${!name} =~ ^[0-9]+$ ]] || fail "$name = ${!name}: must be a whole number; see bash examples/multinode.sh --help"
done
[ "$NODE_RANK" -lt "$NNODES" ] || fail "NODE_RANK = $NODE_RANK: must be less than NNODES = $NNODES; nodes are numbered from 0"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

# The layout is checked here too, so that a mistake need not wait for the other nodes.
state=$("$python" -m megatron_videogpt state --processes "$((NNODES * NPROC_PER_NODE))" "$@") || exit 2
if [ -n "$only_ask" ]; then
  [[ $state == finished* ]] && exit 0 || exit 1
fi

# docs/launching.md says why, one by one; what is set already stays.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
export NCCL_DEBUG=${NCCL_DEBUG:-WARN} NCCL_IB_TIMEOUT=${NCCL_IB_TIMEOUT:-22}
export HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT:-600}
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}

endpoint=$MASTER_ADDR:$MASTER_PORT
answers() { timeout 3 bash -c "exec 3<>'/dev/tcp/$MASTER_ADDR/$MASTER_PORT'" 2>/dev/null; }
if [ "$NNODES" -eq 1 ]; then
  endpoint=127.0.0.1:0 # any free port
elif [ "$NODE_RANK" -eq 0 ]; then
  ! answers || fail "MASTER_PORT = $MASTER_PORT: already in use on $MASTER_ADDR, by another job or another node 0; use another port, or another NODE_RANK here"
else
  until answers; do
    [ "$SECONDS" -lt "$JOIN_TIMEOUT" ] ||
      fail "node 0 did not answer at $endpoint within JOIN_TIMEOUT = $JOIN_TIMEOUT s; start it with NODE_RANK=0, or check the address, the port and the firewall"
    sleep 1
  done
fi

conf=join_timeout=$((JOIN_TIMEOUT + 60)),is_host=$([ "$NODE_RANK" -eq 0 ] && echo true || echo false)
command=("$python" -m torch.distributed.run --nnodes "$NNODES" --nproc-per-node "$NPROC_PER_NODE" --rdzv-backend c10d --rdzv-endpoint "$endpoint"
  --rdzv-id "$JOB_ID" --rdzv-conf "$conf" --max-restarts "$MAX_RESTARTS" ${LOCAL_ADDR:+--local-addr "$LOCAL_ADDR"} -m megatron_videogpt train "$@")
# A session of its own: Ctrl-C shall reach this script alone.  The launcher ignores SIGUSR1, which Slurm may send to every process of the job.
if command -v setsid >/dev/null; then command=(setsid "${command[@]}"); fi
(trap '' USR1 && exec "${command[@]}") &
agent=$!

workers() {
  local file
  { grep -ls "^PPid:[[:space:]]*$agent\$" /proc/[0-9]*/status 2>/dev/null || true; } | while read -r file; do
    file=${file%/status}
    if grep -qzs '^RANK=' "$file/environ"; then echo "${file#/proc/}"; fi
  done
}

why_not_joined() {
  local found status count nodes
  found=$("$python" "$root/tools/joined_nodes.py" "$endpoint" "$JOB_ID" 2>/dev/null) || found=
  status=$(head -n 1 <<<"$found") nodes=$(tail -n +2 <<<"$found" | paste -sd ' ')
  count=$(wc -w <<<"$nodes")
  if [ -z "$found" ]; then
    echo "node 0 at $endpoint ended or no longer answers; look for its own error line"
  elif [ "$count" -lt "$NNODES" ]; then
    echo "only $count of $NNODES nodes joined within $JOIN_TIMEOUT s ($nodes); start the others with the same MASTER_ADDR, MASTER_PORT, JOB_ID and" \
      "NNODES, or give --join-timeout more seconds"
  elif [ "$status" = complete ]; then
    echo "the job at $endpoint already has its $count nodes ($nodes) and this one is one too many; give every node --nnodes $((count + 1)), or leave this one out"
  else
    echo "$count nodes joined ($nodes), and the job did not start within $JOIN_TIMEOUT s; give --nnodes the same number on every node"
  fi
}

started='' polls=0
while kill -0 "$agent" 2>/dev/null; do
  [ -n "$started" ] || started=$(workers)
  if [ "$interrupts" -gt 1 ]; then
    # shellcheck disable=SC2046  # a list of numbers
    kill -KILL "$agent" $(workers) 2>/dev/null || true
  elif [ -n "$asked" ] && [ -z "$started" ]; then
    kill -TERM "$agent" 2>/dev/null || true
  elif [ -n "$asked" ] && [ $((polls % 4)) -eq 0 ]; then
    # Again and again: processes that are just starting ignore it.
    # shellcheck disable=SC2046
    kill -USR1 $(workers) 2>/dev/null || true
  elif [ -z "$started" ] && [ "$SECONDS" -ge "$JOIN_TIMEOUT" ]; then
    echo "error: $(why_not_joined)" >&2
    # Nodes that started with this one ask node 0 in the same moment.
    [ "$NODE_RANK" -ne 0 ] || sleep 3
    kill -KILL "$agent" 2>/dev/null || true
    exit 1
  fi
  polls=$((polls + 1))
  sleep 0.5 &
  wait $! || true
done
code=0
wait "$agent" || code=$?
exit "$code"
