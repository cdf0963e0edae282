#!/usr/bin/env bash
# Everything once, on a machine with nothing but Python: set-up, training, a predicted video.  About ten minutes on two CPU cores.
#   bash examples/quickstart.sh                        learns the built-in physics scenes
#   bash examples/quickstart.sh VIDEO_DIR              learns your own videos
#   bash examples/quickstart.sh [VIDEO_DIR] section.option=value ...       changes options, for example train.steps=50
# A run that was interrupted is continued; a finished one, or one with other settings, is moved aside.
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CONFIG=examples/videogpt/quickstart.toml
OUT=runs/quickstart
overrides=()
if [ $# -gt 0 ] && [[ $1 != *=* ]]; then
  videos=$(cd "$here" && cd "$1" 2>/dev/null && pwd) || {
    echo "error: $1: there is no such folder; give a folder with video files, or nothing for the built-in scenes" >&2
    exit 2
  }
  # Real videos hold more than 64x64 pixels can show, and come in many shapes.
  overrides=(data.source=videos "data.path=\"$videos\"" data.longest_side=128 data.min_side=64 train.global_batch_size=4 train.micro_batch_size=4 train.steps=500 eval.final_scenes=16)
  shift
fi
overrides+=("$@" "train.output=$OUT")

bash examples/setup_env.sh
PYTHON=$PWD/.venv/bin/python
# Two processes on two cores: more threads would only compete.
export OMP_NUM_THREADS=1

echo
echo "== checking the configuration"
"$PYTHON" -m megatron_videogpt check "$CONFIG" "${overrides[@]}" --gpus 2
if [ -n "${videos:-}" ]; then
  echo
  echo "== what the codec keeps of your videos (PSNR; a model cannot look better than this)"
  "$PYTHON" tools/codec_psnr.py "$videos"
fi

settings=$(printf '%s\n' "${overrides[@]}" | cat "$CONFIG" - | sha256sum)
if [ -d "$OUT" ]; then
  if [ "$(cat "$OUT/.quickstart" 2>/dev/null)" = "$settings" ]; then
    echo "== continuing the interrupted run in $OUT"
  else
    number=1
    while [ -e "$OUT.$number" ]; do number=$((number + 1)); done
    mv "$OUT" "$OUT.$number"
    echo "== moved the earlier run to $OUT.$number"
  fi
fi
mkdir -p "$OUT"
echo "$settings" >"$OUT/.quickstart"

echo
echo "== training on two processes (tensor and sequence parallel)"
"$PYTHON" -m torch.distributed.run --standalone --nproc_per_node=2 -m megatron_videogpt train "$CONFIG" "${overrides[@]}"

echo
echo "== continuing a video that the model has not seen"
"$PYTHON" tools/held_out_video.py "$OUT" "$OUT/held_out.mp4"
"$PYTHON" -m megatron_videogpt sample --checkpoint "$OUT" --video "$OUT/held_out.mp4" --interval 1 --output "$OUT/prediction.mp4" --seed 0
echo finished >>"$OUT/.quickstart"

echo
echo "Done. In $OUT:"
echo "  config.toml        the resolved configuration"
echo "  metrics.jsonl      every number of the run, the pixel error against 'repeat the last frame' included"
echo "  tensorboard/       the same as TensorBoard events: .venv/bin/tensorboard --logdir $OUT"
echo "  loss.png           the loss curve; what it should look like is in docs/expected.md"
echo "  prediction.mp4     the continuation of held_out.mp4 (given frames have a border)"
echo "  prediction.png     the same as a contact sheet, with the true frames"
