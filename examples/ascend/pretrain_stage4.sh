#!/usr/bin/env bash
# Stage 4 of 4 on Ascend NPUs: 80 frames in 2 to 80 clips.  --help says what it takes.
exec bash "$(dirname "${BASH_SOURCE[0]}")/stage.sh" 4 "$@"
