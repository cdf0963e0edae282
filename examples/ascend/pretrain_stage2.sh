#!/usr/bin/env bash
# Stage 2 of 4 on Ascend NPUs: 48 frames in 2 to 48 clips.  --help says what it takes.
exec bash "$(dirname "${BASH_SOURCE[0]}")/stage.sh" 2 "$@"
