#!/usr/bin/env bash
# Stage 3 of 4 on Ascend NPUs: 48 frames at intervals of 4 to 12.  --help says what it takes.
exec bash "$(dirname "${BASH_SOURCE[0]}")/stage.sh" 3 "$@"
