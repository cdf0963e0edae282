#!/usr/bin/env bash
# The paper's four stages, one after another, each from the weights of the one before (a fresh optimizer, a fresh data order).
set -euo pipefail

asked='' stage=''
stop() {
  asked=1
  if [ -n "$stage" ]; then kill -s "$1" "$stage" 2>/dev/null || true; fi
}
for signal in USR1 TERM INT; do
  # shellcheck disable=SC2064  # the name of now
  trap "stop $signal" "$signal"
done

usage() {
  cat <<'TEXT'
usage: bash examples/videogpt/pretrain_all_stages.sh [--runs FOLDER] [--stages FOLDER] [multinode option ...] [section.option=value ...]

  --runs FOLDER      where the stages' folders go: FOLDER/stage1 ... FOLDER/stage4     RUNS_DIR     runs/videogpt
  --stages FOLDER    where stage1.toml ... stage4.toml are                             STAGES_DIR   this script's folder
  --finished         only ask: exit code 0 when all four stages are done

All other options, and their environment variables, are those of examples/multinode.sh; run it on every node alike.  Overrides hold for all stages.

  bash examples/videogpt/pretrain_all_stages.sh --nproc-per-node 8 data.path=/videos codec.path=/models/sdxl-vae parallel.tensor=8

A finished stage is skipped and an interrupted one resumed: after whatever stopped it, give the same command again.
One stage alone:  bash examples/multinode.sh examples/videogpt/stage2.toml train.init_from=/runs/stage1 train.output=/runs/stage2 ...
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
launch=$here/../multinode.sh
runs=${RUNS_DIR:-runs/videogpt} stages=${STAGES_DIR:-$here}
options=() overrides=() only_ask=
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --finished) only_ask=1 && shift && continue ;;
    --*) [ $# -gt 1 ] || { echo "error: $1: a value is missing; see --help" >&2 && exit 2; } ;;&
    --runs) runs=$2 ;;
    --stages) stages=$2 ;;
    --node-rank) NODE_RANK=$2 && options+=("$1" "$2") ;;
    --*) options+=("$1" "$2") ;;
    *=*) overrides+=("$1") && shift && continue ;;
    *) echo "error: $1: expected section.option=value; the stages' files are found by --stages FOLDER" >&2 && exit 2 ;;
  esac
  shift 2
done

for number in 1 2 3 4; do
  [ -f "$stages/stage$number.toml" ] || { echo "error: $stages/stage$number.toml: no such file; --stages names a folder with four" >&2 && exit 2; }
done

before=
for number in 1 2 3 4; do
  run=("$stages/stage$number.toml" "train.output=\"$runs/stage$number\"" "train.init_from=\"$before\"" ${overrides[@]+"${overrides[@]}"})
  before=$runs/stage$number
  state=0
  bash "$launch" ${options[@]+"${options[@]}"} --finished "${run[@]}" || state=$?
  if [ "$state" -gt 1 ]; then exit "$state"; fi
  if [ "$state" -eq 0 ]; then continue; fi
  if [ -n "$only_ask" ]; then exit 1; fi
  if [ -n "$asked" ]; then break; fi
  if [ "${NODE_RANK:-0}" = 0 ]; then echo "== stage $number of 4 in $before"; fi
  bash "$launch" ${options[@]+"${options[@]}"} "${run[@]}" &
  stage=$!
  while kill -0 "$stage" 2>/dev/null; do
    sleep 0.5 &
    wait $! || true
  done
  code=0
  wait "$stage" || code=$?
  stage=
  if [ "$code" -ne 0 ]; then
    echo "error: stage $number of 4 ended with exit code $code; mend what its own error line says and give the same command again" >&2
    exit "$code"
  fi
  if [ -n "$asked" ]; then break; fi
done
if [ -n "$asked" ]; then
  echo "stopped as asked in stage $number of 4; the same command goes on"
elif [ "${NODE_RANK:-0}" = 0 ] && [ -z "$only_ask" ]; then
  echo "all four stages are done: $before"
fi
