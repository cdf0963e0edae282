#!/usr/bin/env bash
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'TEXT'
Everything once, on a machine with nothing but Python: set-up, training, a predicted video.

  bash examples/quickstart.sh                        learns the built-in physics scenes: about ten minutes on two CPU cores
  bash examples/quickstart.sh VIDEO_DIR              learns your own videos (any containers that PyAV reads)
  bash examples/quickstart.sh --try                  trains nothing: continues scenes with the model in examples/scenes_model
  bash examples/quickstart.sh [VIDEO_DIR] section.option=value ...       changes options, for example train.steps=50
  bash examples/quickstart.sh --check [VIDEO_DIR] [section.option=value ...]     says what is wrong with these, and no more

It makes .venv (two minutes, once) and writes into runs/quickstart, or runs/try.  A run that was interrupted is continued by the
same command; a finished one, or one with other settings, is moved aside.  Options: .venv/bin/python -m megatron_videogpt options
TEXT
}

CONFIG=examples/videogpt/quickstart.toml
OUT=runs/quickstart
overrides=()
only_try=
only_check=
if [ "${1:-}" = --check ]; then
  only_check=yes
  shift
fi
case ${1:-} in
  -h | --help)
    usage
    exit 0
    ;;
  --try)
    only_try=yes
    shift
    if [ $# != 0 ]; then
      echo "error: --try takes nothing else, not $*; see --help" >&2
      exit 2
    fi
    ;;
  -*)
    echo "error: $1: there is no such option; see --help" >&2
    exit 2
    ;;
  *)
    # Behind the name a mark, since $(...) drops newlines at the end, which a name may have.
    if [ -n "${1:-}" ] && videos=$(cd "$here" && CDPATH= cd -- "$1" 2>/dev/null && pwd && echo .); then
      videos=${videos%$'\n.'}
      CONFIG=examples/videogpt/quickstart_videos.toml
      # The name as it stands, by way of a variable: in options $ begins one and $$ is one, but of $$ torchrun keeps a $ for itself.
      export QUICKSTART_VIDEOS=$videos
      # shellcheck disable=SC2016
      overrides=('data.path=$QUICKSTART_VIDEOS')
      shift
    elif [[ ${1:-=} != *=* ]]; then
      echo "error: $1: there is no such folder; give a folder with video files, or nothing for the built-in scenes" >&2
      exit 2
    fi
    ;;
esac

bash examples/setup_env.sh
PYTHON=$PWD/.venv/bin/python
# Two processes on two cores: more threads would only compete.
export OMP_NUM_THREADS=1
started=$SECONDS
echo "set-up took $started s"

if [ -n "$only_try" ]; then
  echo
  echo "== continuing scenes that the model in examples/scenes_model has not seen"
  "$PYTHON" -m megatron_videogpt sample --checkpoint examples/scenes_model --scene bounce/2 --scene dominoes/1 --scene pendulum/4 \
    --output runs/try --formats mp4,png,gif --seed 0
  echo
  echo "Done, $((SECONDS - started)) s after set-up.  In runs/try: what happened above or at the left, what the model made of the first eight frames beside it."
  exit 0
fi

# Without instructions for bf16 a step takes longer, up to three times as long.
if [ "$("$PYTHON" -c 'from megatron_videogpt.platforms.cpu import has_bf16_products; print(has_bf16_products())')" = False ]; then
  echo "this processor has no instructions for bf16 products: training in fp32, with fewer steps"
  overrides+=(train.steps=500)
fi
overrides+=("$@" "train.output=$OUT")

# What is wrong with an option is said here, before an earlier run is moved; the report is for later.
checked=$(mktemp)
trap 'rm -f "$checked"' EXIT
"$PYTHON" -m megatron_videogpt check "$CONFIG" "${overrides[@]}" --gpus 2 >"$checked"
if [ -n "$only_check" ]; then
  cat "$checked"
  exit 0
fi
if [ -n "${videos:-}" ]; then
  echo
  echo "== what the codec keeps of your videos (PSNR; a model cannot look better than this)"
  "$PYTHON" -m megatron_videogpt codec psnr "$videos"
fi

settings=$(printf '%s\n' "${overrides[@]}" ${videos:+"$videos"} | cat "$CONFIG" - | sha256sum)
if [ -d "$OUT" ]; then
  # A run that is going on there must not lose its folder.
  "$PYTHON" -m megatron_videogpt state --free "$CONFIG" "${overrides[@]}"
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
cp "$checked" "$OUT/check.txt"

echo
echo "== training on two processes (data parallel)"
"$PYTHON" -m torch.distributed.run --standalone --nproc_per_node=2 -m megatron_videogpt train "$CONFIG" "${overrides[@]}"

# One process from here on.
export OMP_NUM_THREADS=2
echo
echo "== continuing a video that the model has not seen"
"$PYTHON" tools/held_out_video.py "$OUT" "$OUT/held_out.mp4"
"$PYTHON" -m megatron_videogpt sample --checkpoint "$OUT" --video "$OUT/held_out.mp4" --interval 1 --output "$OUT/prediction.mp4" --seed 0
if [ -n "${videos:-}" ]; then
  echo
  echo "== continuing one that it has learned: ten minutes and few videos teach hardly more than these"
  "$PYTHON" tools/held_out_video.py "$OUT" "$OUT/learned.mp4" --learned
  "$PYTHON" -m megatron_videogpt sample --checkpoint "$OUT" --video "$OUT/learned.mp4" --interval 1 --output "$OUT/prediction_learned.mp4" \
    --seed 0
else
  echo
  echo "== what becomes of the bodies in unseen scenes"
  "$PYTHON" tools/measure_scenes.py "$OUT" --rollout 64 --output "$OUT/scenes"
fi
echo finished >>"$OUT/.quickstart"

echo
echo "Done, $((SECONDS - started)) s after set-up.  In $OUT:"
echo "  config.toml        the resolved configuration"
echo "  check.txt          parameters, tokens, FLOPs and memory of this run"
echo "  metrics.jsonl      every number of the run, the pixel error against 'repeat the last frame' included"
echo "  tensorboard/       the same as TensorBoard events: .venv/bin/tensorboard --logdir $OUT"
echo "  loss.png           the loss curve; what it should look like is in docs/expected.md"
echo "  prediction.mp4     the continuation of held_out.mp4 (given frames have a border)"
echo "  prediction.png     the same as a contact sheet, with the true frames"
if [ -n "${videos:-}" ]; then
  echo "  prediction_learned.mp4, .png    the same for a video that was trained on"
else
  echo "  scenes/            a scene of every kind as an animation, bodies found, errors over 64 frames"
fi
