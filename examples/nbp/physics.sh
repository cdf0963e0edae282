#!/usr/bin/env bash
# Next block prediction on the built-in scenes: a small tokenizer, the model, videos.  See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

usage() {
  cat <<'TEXT'
usage: bash examples/nbp/physics.sh [--classes] [section.option=value ...]

Trains a small FSQ tokenizer on the built-in scenes (runs/nbp/tokenizer, kept when it is there already), then next block prediction on its
codes: examples/nbp/physics.toml continues scenes, with --classes physics_classes.toml makes scenes of a kind.  About ten minutes on two CPU
cores; options change the model's training, FSQ="--steps 60" the tokenizer's.  A run that was interrupted is continued by the same command.
TEXT
}

name=physics
case ${1:-} in
  -h | --help)
    usage
    exit 0
    ;;
  --classes)
    name=physics_classes
    shift
    ;;
esac
PYTHON=${PYTHON:-$PWD/.venv/bin/python}
TOKENIZER=${TOKENIZER:-runs/nbp/tokenizer}
OUT=${OUT:-runs/nbp/$name}
options=("$@" "codec.path=$TOKENIZER" "train.output=$OUT")

if [ ! -d "$TOKENIZER" ]; then
  echo "== the tokenizer"
  mkdir -p "$(dirname "$TOKENIZER")"
  # Words of their own, on purpose.
  # shellcheck disable=SC2086
  "$PYTHON" tools/train_fsq.py --output "$TOKENIZER" ${FSQ:-}
fi
echo "== the model"
export OMP_NUM_THREADS=1
"$PYTHON" -m torch.distributed.run --nproc_per_node=2 --standalone -m megatron_videogpt train "examples/nbp/$name.toml" "${options[@]}"
echo "== videos"
asked=(--scene bounce/2 --scene dominoes/1 --scene pendulum/4)
if [ "$name" = physics_classes ]; then
  asked=(--class bounce --class dominoes --class pendulum)
fi
"$PYTHON" -m megatron_videogpt sample --checkpoint "$OUT" "${asked[@]}" --output "$OUT/samples" --formats mp4,png --seed 0
