#!/usr/bin/env bash
# Stage 4 of 4 on Ascend NPUs: 80 frames in 2 to 80 clips.  --help says what it takes.
#   bash examples/ascend/pretrain_stage4.sh --nproc-per-node 8 data.path=/videos codec.path=/models/sdxl-vae parallel.tensor=8
exec bash "$(dirname "${BASH_SOURCE[0]}")/stage.sh" 4 "$@"
