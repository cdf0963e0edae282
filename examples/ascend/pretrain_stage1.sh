#!/usr/bin/env bash
# Stage 1 of 4 on Ascend NPUs: 16 frames, one per clip.  --help says what it takes.
exec bash "$(dirname "${BASH_SOURCE[0]}")/stage.sh" 1 "$@"
