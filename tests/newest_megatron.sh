#!/usr/bin/env bash
# Runs the short parallel tests with the newest supported release of megatron-core (tests/newest_megatron.txt) in place of the installed one.
# From 0.17 on its wheels ask for Python 3.12 or newer; unpacked they run on 3.11, too.
#   bash tests/newest_megatron.sh                      everything else goes to pytest: ... -x
#   MVG_MEGATRON=0.17.1 bash tests/newest_megatron.sh  another release
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=.venv/bin/python
newest=$(sed -n 's/^megatron-core==//p' tests/newest_megatron.txt)
export MVG_MEGATRON=${MVG_MEGATRON:-$newest}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/megatron_videogpt
folder=$cache/megatron-core-$MVG_MEGATRON-$($python -c 'import sys; print(sys.implementation.cache_tag)')

# Every file of the wheel is there and has the checksum that its RECORD gives.
complete() {
  $python - "$1" <<'PYTHON'
import base64, csv, hashlib, pathlib, sys

root = pathlib.Path(sys.argv[1])
records = list(root.glob("megatron_core-*.dist-info/RECORD"))
rows = list(csv.reader(records[0].open(encoding="utf-8"))) if records else []
for name, wanted, _ in rows:
    kind, _, digest = wanted.partition("=")
    path = root / name
    if not path.is_file() or (digest and base64.urlsafe_b64encode(hashlib.new(kind, path.read_bytes()).digest()).decode().rstrip("=") != digest):
        sys.exit(1)
sys.exit(not rows)
PYTHON
}

if ! complete "$folder"; then
  rm -rf "$folder"
  mkdir -p "$cache"
  partial=$(mktemp -d "$cache/partial.XXXXXX")
  trap 'rm -rf "$partial"' EXIT
  if ! $python -m pip download -q --no-deps --ignore-requires-python --only-binary=:all: -d "$partial" "megatron-core==$MVG_MEGATRON"; then
    echo "error: megatron-core $MVG_MEGATRON cannot be downloaded (pip's message is above)" >&2
    exit 1
  fi
  $python -m zipfile -e "$partial"/megatron_core-*.whl "$partial/unpacked"
  if ! complete "$partial/unpacked"; then
    echo "error: the wheel of megatron-core $MVG_MEGATRON is damaged: files differ from its RECORD" >&2
    exit 1
  fi
  # Another run may have been faster.
  mv -T "$partial/unpacked" "$folder" 2>/dev/null || complete "$folder"
fi

echo "short parallel tests with megatron-core $MVG_MEGATRON ($folder)"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PYTHONPATH=$folder${PYTHONPATH:+:$PYTHONPATH}
# tests/parallel/test_release.py checks that the processes of the others really import this release.
parallel=tests/parallel
$python -m pytest -n 2 --dist loadfile -m "not long" $parallel/test_release.py $parallel/test_layouts.py $parallel/test_reshard.py \
  "$parallel/test_resume.py::test_same_layout_bit_for_bit" "$parallel/test_checkpoints.py::test_the_newest_and_the_marked_checkpoints_are_kept" \
  $parallel/test_no_sync.py $parallel/test_agree.py $parallel/test_transformer_engine.py "$@"
