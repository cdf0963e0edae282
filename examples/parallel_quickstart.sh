#!/usr/bin/env bash
# The same training on one process and split over two: the losses are the same.  See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CONFIG=examples/videogpt/quickstart.toml
OUT=runs/parallel_quickstart
STEPS=30
BOUND=1e-5

usage() {
  cat <<TEXT
usage: bash examples/parallel_quickstart.sh [section.option=value ...]

Trains the quickstart's model for $STEPS steps in float32, twice: on one process, then on two that share every layer between them
(tensor parallel) and the tokens between layers (sequence parallel).  Prints both losses of each step, side by side.  Needs no GPU.

What to look for: the last column.  Weights are drawn from the names of parameters, noise from the identity of samples, and the loss is
divided by the number of frames of the whole batch, so that a layout changes nothing but the order in which numbers are added up.  In
float32 that leaves relative differences of about 1e-7 a step, which training slowly makes larger; a real fault shows as 1e-3 or more.
The script ends with exit code 1 if a difference is above $BOUND.

Try next:
  bash examples/parallel_quickstart.sh model.num_layers=2                    another option for both runs
  bash examples/parallel_quickstart.sh train.steps=60                        how differences grow
  .venv/bin/python tools/compare_runs.py --help                              any two runs of your own, any metric
  .venv/bin/python tools/compare_layouts.py --list                           all layouts, with gradients and parameters (docs/parity.md)

Writes $OUT/one_process and $OUT/tensor_parallel, anew each time.
TEXT
}

for argument in "$@"; do
  case $argument in
    -h | --help)
      usage
      exit
      ;;
    parallel.* | train.output=*)
      echo "error: $argument: the layouts and folders are what this script sets; options for both runs may be given" >&2
      exit 2
      ;;
    *.*=*) ;;
    *)
      echo "error: $argument: expected section.option=value, or --help" >&2
      exit 2
      ;;
  esac
done

bash examples/setup_env.sh
PYTHON=$PWD/.venv/bin/python
# Two processes on two cores: more threads would only compete.
export OMP_NUM_THREADS=1

# All that the comparison rests on stands here, whatever the quickstart's own file says.
same=(
  model.patch_size=4 model.dropout=0
  data.source=physics data.frames=16 "data.clips=[2, 16]" data.workers=1 data.pack_tokens=0
  optimizer.schedule=constant optimizer.lr=1e-3 optimizer.warmup_steps=10
  train.steps=$STEPS train.global_batch_size=4 train.micro_batch_size=4 train.seed=0
  train.precision=fp32 train.platform=cpu train.threads=1
  checkpoint.every=0 eval.every=0 eval.final_scenes=0
  logging.every=1 logging.tensorboard=false
  parallel.context=1 parallel.pipeline=1 parallel.recompute=none
  "$@"
)

# train NAME PROCESSES OPTION...: one run, from its first step.
train() {
  local name=$1 processes=$2 started=$SECONDS
  shift 2
  rm -rf "${OUT:?}/$name"
  echo "== $name: $processes process(es)"
  "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node="$processes" -m megatron_videogpt train "$CONFIG" "${same[@]}" "$@" \
    "train.output=$OUT/$name"
  echo "   took $((SECONDS - started)) s"
}

train one_process 1 parallel.tensor=1 parallel.sequence=false
train tensor_parallel 2 parallel.tensor=2 parallel.sequence=true

echo
"$PYTHON" tools/compare_runs.py "one process=$OUT/one_process" "TP2+SP=$OUT/tensor_parallel" --bound "$BOUND"
