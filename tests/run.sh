#!/usr/bin/env bash
# Runs the tests; installs first if needed.
#   bash tests/run.sh            unit, parity and data tests on all cores at once, then the parallel tests, two at a time
#   bash tests/run.sh --unit     unit tests only
#   bash tests/run.sh --all      the long ones too, and with FlashAttention-4 (to compile its kernels, no GPU needed)
#   bash tests/run.sh --times    at the end the slowest tests and the sum of each folder
# Everything else goes to pytest:  bash tests/run.sh --unit -k config -x        bash tests/run.sh tests/unit/test_config.py        bash tests/run.sh -n 0
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras=dev
together=(tests/unit tests/parity tests/data)
pairs=(tests/parallel)
named=()
selected=(-m "not long")
report=()
first_failure_ends=
rest=()
for argument in "$@"; do
  case $argument in
    --unit) together=(tests/unit) pairs=() ;;
    --all)
      selected=()
      if [ "$(uname -s)" = Linux ]; then extras=dev,flash; fi
      ;;
    --times) report=(--times) ;;
    *)
      if [ -e "${argument%%::*}" ]; then named+=("$argument"); else rest+=("$argument"); fi
      case $argument in -x | --exitfirst | --maxfail*) first_failure_ends=yes ;; esac
      ;;
  esac
done
if [ ${#named[@]} != 0 ]; then together=() pairs=("${named[@]}"); fi
bash examples/setup_env.sh "$extras"
# Tests that start several processes share the cores among them; more threads would only compete.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# One fork server for both turns (tests/forkserver.py).
export MVG_TESTS_SESSION=$$

times=$(mktemp)
trap 'rm -f "$times"' EXIT
status=5 # pytest's code for "no test was selected"
turn() {
  local code=0
  .venv/bin/python -m pytest --timings "$times" "$@" ${selected[@]+"${selected[@]}"} ${rest[@]+"${rest[@]}"} || code=$?
  if [ "$code" != 5 ] && { [ "$status" = 5 ] || [ "$status" = 0 ]; }; then status=$code; fi
}

started=$SECONDS
cores=$(.venv/bin/python -c 'import os; print(min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(), 4))')
# Tests of a file share what their fixtures made.
if [ ${#together[@]} != 0 ]; then
  turn -n "$cores" --dist loadfile "${together[@]}"
fi
# Ranks wait for each other: one such test at a time leaves half a core idle.
if [ ${#pairs[@]} != 0 ] && { [ -z "$first_failure_ends" ] || [ "$status" = 0 ] || [ "$status" = 5 ]; }; then
  turn $([ ${#named[@]} = 0 ] && echo "-n $((cores < 2 ? cores : 2)) --dist loadfile") "${pairs[@]}"
fi
.venv/bin/python -m tests.timing "$times" --seconds $((SECONDS - started)) ${report[@]+"${report[@]}"}
exit "$status"
