#!/usr/bin/env bash
# Stage 3 of 4 on Ascend NPUs: 48 frames at intervals of 4 to 12.  --help says what it takes.
#   bash examples/ascend/pretrain_stage3.sh --nproc-per-node 8 data.path=/videos codec.path=/models/sdxl-vae parallel.tensor=8
exec bash "$(dirname "${BASH_SOURCE[0]}")/stage.sh" 3 "$@"
