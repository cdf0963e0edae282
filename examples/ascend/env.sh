# shellcheck shell=bash
# What a run on Ascend NPUs needs around it: CANN's own environment, then one variable a line.  Source it, from any folder; what is set already stays.
#   source examples/ascend/env.sh
# The other scripts here do so themselves.  docs/ascend.md has the whole table.

# CANN unless it is sourced already: of the folder ASCEND_HOME, else where its installers put it (9.0 and newer in cann, earlier ones in ascend-toolkit).
if [ -z "${ASCEND_HOME_PATH:-}${ASCEND_TOOLKIT_HOME:-}" ]; then
  videogpt_cann=''
  for videogpt_file in "${ASCEND_HOME:-/usr/local/Ascend}"/{cann/,ascend-toolkit/,}set_env.sh; do
    if [ -z "$videogpt_cann" ] && [ -f "$videogpt_file" ]; then videogpt_cann=$videogpt_file; fi
  done
  if [ -n "$videogpt_cann" ]; then
    # Its scripts read variables that are not set, and let commands fail.
    videogpt_flags=$-
    set +eu
    # shellcheck disable=SC1090  # it is where the run is
    source "$videogpt_cann"
    case $videogpt_flags in *e*) set -e ;; esac
    case $videogpt_flags in *u*) set -u ;; esac
  else
    echo "env.sh: no set_env.sh of CANN in ${ASCEND_HOME:-/usr/local/Ascend}, its cann or its ascend-toolkit; install CANN, or set ASCEND_HOME to the folder that has it" >&2
  fi
  unset videogpt_cann videogpt_file videogpt_flags
fi

export TORCH_DEVICE_BACKEND_AUTOLOAD=${TORCH_DEVICE_BACKEND_AUTOLOAD-0} # the trainer imports torch_npu itself, in its own order; commands without a device do not need it
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS-1}     # megatron-core asks for it; an NPU does not look at it
export OMP_NUM_THREADS=${OMP_NUM_THREADS-1}                             # processes of a node share its cores; train.threads decides for PyTorch
export TASK_QUEUE_ENABLE=${TASK_QUEUE_ENABLE-1}                         # launches from a queue of their own; 2 also moves workspaces there: faster, with a higher peak of memory
export COMBINED_ENABLE=${COMBINED_ENABLE-1}                             # joins pairs of operators on tensors that are not contiguous
export CPU_AFFINITY_CONF=${CPU_AFFINITY_CONF-1}                         # binds a device's threads, and the readers of its data, to its share of the machine's cores
export HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT-1200}                # seconds until all ranks have met; 120 is short when some still load a checkpoint
export ACLNN_CACHE_LIMIT=${ACLNN_CACHE_LIMIT-100000}                    # descriptions of operators that are kept: rows have many lengths
export ASCEND_GLOBAL_LOG_LEVEL=${ASCEND_GLOBAL_LOG_LEVEL-3}             # CANN logs errors only
export ASCEND_SLOG_PRINT_TO_STDOUT=${ASCEND_SLOG_PRINT_TO_STDOUT-0}     # and not on the screen
export MIND_SPEED_LOG_LEVEL=${MIND_SPEED_LOG_LEVEL-WARNING}             # MindSpeed says less than at its default, INFO
# Less fragmentation with rows of many lengths.  Releases from 26.2 on read PYTORCH_ALLOC_CONF too, and end a process that has both.
if [ -z "${PYTORCH_ALLOC_CONF+set}" ]; then export PYTORCH_NPU_ALLOC_CONF=${PYTORCH_NPU_ALLOC_CONF-expandable_segments:True}; fi

# Left to you, because a machine or a problem decides:
#   MVG_ADAPTOR                             mindspeed, megatron_adaptor or own, where train.adaptor says auto or a command (sample) does not have it
#   HCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME  nodes with several networks: the interface, for example eth0
#   HCCL_BUFFSIZE, P2P_HCCL_BUFFSIZE        MB of each buffer of a communicator (200 and 20): `check train.platform=npu` counts them
#   HCCL_EXEC_TIMEOUT, HCCL_EVENT_TIMEOUT   seconds of a collective; the trainer sets them to fit train.timeout_minutes
#   HCCL_DETERMINISTIC=true, CLOSE_MATMUL_K_SHIFT=1   both for attention.deterministic=true
#   ASCEND_LAUNCH_BLOCKING=1                errors at the call that caused them; slow
#   TORCH_NPU_FALLBACK_CPU_DISABLE=1        an operator that would run on the host is an error (newest releases); tools/npu_check.sh sets it
