#!/usr/bin/env bash
# Next block prediction on the built-in scenes: the model, videos.  See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

usage() {
  cat <<'TEXT'
usage: bash examples/nbp/physics.sh [--classes] [section.option=value ...]

Trains next block prediction on codes of the built-in scenes, with the small tokenizer that is shipped: examples/nbp/physics.toml continues
scenes, with --classes physics_classes.toml makes scenes of a kind.  About ten minutes on two CPU cores; options change the training, and
TOKENIZER=FOLDER takes a tokenizer of yours (codec train fsq).  A run that was interrupted is continued by the same command.
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
OUT=${OUT:-runs/nbp/$name}
options=("$@" "train.output=$OUT")
if [ -n "${TOKENIZER:-}" ]; then
  options+=(codec.name=fsq "codec.path=$TOKENIZER")
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
