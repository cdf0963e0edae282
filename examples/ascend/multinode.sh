#!/usr/bin/env bash
# examples/multinode.sh on Ascend NPUs: the same options, after env.sh, on train.platform=npu.  Run it on every node.
#   bash examples/ascend/multinode.sh --nnodes 2 --node-rank 0 --master-addr 10.0.0.1 --nproc-per-node 8 FILE.toml [section.option=value ...]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=examples/ascend/env.sh
source "$here/env.sh"

# Options stand in front of the file, overrides behind it; those given later win.
before=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help | --finished) before+=("$1") && shift ;;
    --*) before+=("${@:1:2}") && shift "$(($# > 1 ? 2 : 1))" ;;
    *) break ;;
  esac
done
file=("${@:1:1}")
exec bash "$here/../multinode.sh" ${before[@]+"${before[@]}"} ${file[@]+"${file[@]}" train.platform=npu} "${@:2}"
