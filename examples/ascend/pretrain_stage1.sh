#!/usr/bin/env bash
# Stage 1 of 4 on Ascend NPUs: 16 frames, one per clip.  --help says what it takes.
#   bash examples/ascend/pretrain_stage1.sh --nproc-per-node 8 data.path=/videos codec.path=/models/sdxl-vae parallel.tensor=8
exec bash "$(dirname "${BASH_SOURCE[0]}")/stage.sh" 1 "$@"
