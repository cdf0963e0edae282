#!/usr/bin/env bash
# Runs the tests; installs first if needed.
#   bash tests/run.sh            unit, parity, data and parallel tests
#   bash tests/run.sh --unit     unit tests only
#   bash tests/run.sh --all      the long ones too, and with FlashAttention-4 (to compile its kernels, no GPU needed)
# Everything else goes to pytest:  bash tests/run.sh --unit -k config -x        bash tests/run.sh tests/unit/test_config.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras=dev
folders=(tests/unit tests/parity tests/data tests/parallel)
selected=(-m "not long")
rest=()
for argument in "$@"; do
  case $argument in
    --unit) folders=(tests/unit) ;;
    --all)
      selected=()
      if [ "$(uname -s)" = Linux ]; then extras=dev,flash; fi
      ;;
    *)
      if [ -e "${argument%%::*}" ]; then folders=(); fi
      rest+=("$argument")
      ;;
  esac
done
bash examples/setup_env.sh "$extras"
# Tests that start several processes share the cores among them; more threads would only compete.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec .venv/bin/python -m pytest ${folders[@]+"${folders[@]}"} ${selected[@]+"${selected[@]}"} ${rest[@]+"${rest[@]}"}
