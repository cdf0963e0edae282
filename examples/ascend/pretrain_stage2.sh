#!/usr/bin/env bash
# Stage 2 of 4 on Ascend NPUs: 48 frames in 2 to 48 clips.  --help says what it takes.
#   bash examples/ascend/pretrain_stage2.sh --nproc-per-node 8 data.path=/videos codec.path=/models/sdxl-vae parallel.tensor=8
exec bash "$(dirname "${BASH_SOURCE[0]}")/stage.sh" 2 "$@"
