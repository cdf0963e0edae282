#!/usr/bin/env bash
# One of the four stages on Ascend NPUs, for pretrain_stage1.sh to pretrain_stage4.sh.
set -euo pipefail

usage() {
  cat <<TEXT
usage: bash examples/ascend/pretrain_stage$number.sh [--runs FOLDER] [--stages FOLDER] [multinode option ...] [section.option=value ...]

  --runs FOLDER      the run is FOLDER/stage$number; stages 2 to 4 start from the weights of the stage before, there    RUNS_DIR     runs/videogpt
  --stages FOLDER    where stage$number.toml is                                                                        STAGES_DIR   examples/videogpt

All other options, and their environment variables, are those of examples/multinode.sh; give the same command on every node, and again to go on.

  bash examples/ascend/pretrain_stage$number.sh --nproc-per-node 8 data.path=/videos codec.path=/models/sdxl-vae parallel.tensor=8
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
number=$1 && shift
runs=${RUNS_DIR:-runs/videogpt} stages=${STAGES_DIR:-$here/../videogpt}
options=() overrides=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --finished) options+=("$1") && shift && continue ;;
    --*) [ $# -gt 1 ] || { echo "error: $1: a value is missing; see --help" >&2 && exit 2; } ;;&
    --runs) runs=$2 ;;
    --stages) stages=$2 ;;
    --*) options+=("$1" "$2") ;;
    *=*) overrides+=("$1") && shift && continue ;;
    *) echo "error: $1: expected section.option=value; the stage's file is found by --stages FOLDER" >&2 && exit 2 ;;
  esac
  shift 2
done

file=$stages/stage$number.toml
[ -f "$file" ] || { echo "error: $file: no such file; --stages names the folder that has it" >&2 && exit 2; }
from=
if [ "$number" -gt 1 ]; then
  from=$runs/stage$((number - 1))
  [ -d "$from" ] || [[ " ${overrides[*]-}" == *" train.init_from="* ]] || { echo "error: $from: no such folder; stage $number starts from the weights of stage $((number - 1)): train that first, or give --runs" >&2 && exit 2; }
fi
exec bash "$here/multinode.sh" ${options[@]+"${options[@]}"} "$file" "train.output=\"$runs/stage$number\"" "train.init_from=\"$from\"" \
  ${overrides[@]+"${overrides[@]}"}
