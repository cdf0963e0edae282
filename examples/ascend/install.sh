#!/usr/bin/env bash
# Looks at what this machine has for Ascend NPUs, says what is missing, and installs what is asked for by name: nothing else, and nothing unseen.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash examples/ascend/install.sh [--mindspeed FOLDER] [packages] [triton] [mindspeed]

Without a part it only looks: what is here beside what belongs together, and the commands of every part, none of which is run.  Exit code 0: all is here.
A part prints its commands and runs them, in the Python that would train: PYTHON, else .venv/bin/python of the repository, else python3.

  packages            torch, torch_npu, this project and all that it needs, in the versions of constraints-npu.txt, from PyPI (on x86_64 torch from PyTorch's index of CPU builds)
  triton              Ascend's build of Triton, from PyPI; MindSpeed does not start without one
  mindspeed           MindSpeed, branch core_r0.16.0, from gitcode.com unless FOLDER has it already, and einops
  --mindspeed FOLDER  where MindSpeed is, or goes                                        MINDSPEED     MindSpeed beside the repository

CANN and the driver are not installed here: docs/ascend.md.
TEXT
}

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
mindspeed=${MINDSPEED:-$(dirname "$PWD")/MindSpeed} parts=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --mindspeed) mindspeed=${2:?--mindspeed needs a folder} && shift 2 ;;
    packages | triton | mindspeed) parts+=("$1") && shift ;;
    *) echo "error: $1: expected packages, triton or mindspeed; see --help" >&2 && exit 2 ;;
  esac
done
python=${PYTHON:-.venv/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
machine=$(uname -m)
missing=0

# Without importing anything: with torch_npu installed and CANN not sourced, `import torch` fails.
version_of() {
  "$python" -c 'import sys; from importlib.metadata import distributions
print(next((d.version for d in distributions() if d.metadata["Name"].lower().replace("_", "-") == sys.argv[1]), ""))' "$1"
}

cann_version() {
  local folder
  for folder in "${ASCEND_HOME_PATH:-}" "${ASCEND_HOME:-/usr/local/Ascend}"/{cann,ascend-toolkit/latest}; do
    if [ -f "$folder/$machine-linux/ascend_toolkit_install.info" ]; then
      sed -n 's/^version=//p' "$folder/$machine-linux/ascend_toolkit_install.info" | head -n 1
      return
    fi
  done
}

# tell NAME FOUND WANTED [PATTERN]: one line; PATTERN: what of FOUND is fine, else WANTED itself.
tell() {
  local pattern=${4:-$3}
  # shellcheck disable=SC2053  # a pattern
  if [[ $2 == $pattern ]]; then
    printf '  %-14s %s\n' "$1" "$2"
  else
    printf '  %-14s %-18s expected %s\n' "$1" "${2:-missing}" "$3"
    missing=1
  fi
}

look() {
  echo "what is here ($python):"
  tell machine "$machine" "x86_64 or aarch64" "@(x86_64|aarch64)"
  tell Python "$("$python" -c 'import platform; print(platform.python_version())')" "3.10, which MindSpeed asks for" "3.10.*"
  tell CANN "$(cann_version)" "9.0.0" "9.0.0*"
  # A CUDA build ends with torch_npu's import: it refuses a second accelerator.
  tell torch "$(version_of torch)" "2.7.1 (CPU build)" "2.7.1?(+cpu)"
  tell torch_npu "$(version_of torch-npu)" "2.7.1.post4"
  tell megatron-core "$(version_of megatron-core)" "0.16.1"
  tell numpy "$(version_of numpy)" "1.26.0, the newest for MindSpeed" "1.26.0"
  tell triton-ascend "$(version_of triton-ascend)" "any that fits CANN" "?*"
  tell einops "$(version_of einops)" "any" "?*"
  tell mindspeed "$(version_of mindspeed)" "core_r0.16.0" "?*"
}

run() {
  echo "  $*"
  if [ ${#parts[@]} -gt 0 ]; then "$@"; fi
}

install_packages() {
  local index=()
  # torch_npu's x86_64 wheels ask for torch 2.7.1+cpu, which PyPI does not have; on aarch64 PyPI's torch is a CPU build.
  if [ "$machine" = x86_64 ]; then index=(--extra-index-url https://download.pytorch.org/whl/cpu); fi
  run "$python" -m pip install ${index[@]+"${index[@]}"} --constraint constraints-npu.txt --editable '.[npu]'
}

install_triton() {
  run "$python" -m pip install triton-ascend
}

install_mindspeed() {
  if [ ! -d "$mindspeed" ]; then
    run git clone --branch core_r0.16.0 --depth 1 https://gitcode.com/Ascend/MindSpeed.git "$mindspeed"
  fi
  run "$python" -m pip install --constraint constraints-npu.txt einops
  # Its requirements would be free to replace what is pinned.
  run "$python" -m pip install --no-deps --editable "$mindspeed"
}

shopt -s extglob
if [ ${#parts[@]} -eq 0 ]; then look; fi
for part in packages triton mindspeed; do
  if [ ${#parts[@]} -eq 0 ]; then
    echo "bash examples/ascend/install.sh $part  would run"
    "install_$part"
  elif [[ " ${parts[*]} " == *" $part "* ]]; then
    echo "$part:"
    "install_$part"
  fi
done
if [ ${#parts[@]} -eq 0 ]; then exit "$missing"; fi
look
