#!/usr/bin/env bash
# One node's part of a training run, started once per node by slurm.sbatch or kubernetes.yaml:
#
#   NUM_NODES=2 NODE_RANK=0 HEAD=node-0:29500 RUN_ID=1 bash launch/cluster/node.sh --stage 1 --config FILE
#
# A process that dies ends its step on all nodes; torchrun starts all of them again, at most
# MAX_RESTARTS times, and they go on from the newest checkpoint. On SIGTERM the run saves and this
# script ends with 75: the same command goes on. (torchrun alone ends with 1 whatever happened.)
#
#   PROCESSES_PER_NODE  default: gpu, one for each GPU     STOP_SECONDS  for the last checkpoint
set -u
cd "$(dirname "$0")/../.."
: "${NUM_NODES:?}" "${NODE_RANK:?}" "${HEAD:?}" "${RUN_ID:?}"
# A new store after each restart: nodes that count restarts differently (one lost a process, the other
# only heard of it) would otherwise read the addresses of dead processes in the old one.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${STOP_SECONDS:-540}

stopped=
torchrun --nnodes "$NUM_NODES" --nproc-per-node "${PROCESSES_PER_NODE:-gpu}" \
    --rdzv-backend c10d --rdzv-endpoint "$HEAD" --rdzv-id "$RUN_ID" \
    --rdzv-conf "is_host=$([ "$NODE_RANK" = 0 ] && echo true || echo false)" \
    --max-restarts "${MAX_RESTARTS:-3}" launch/train_t2i.py "$@" &
child=$!
trap 'stopped=yes; kill -TERM "$child"' TERM
wait "$child"
code=$?
# the trap ends the first wait; the second one is for the end of torchrun
if [ -n "$stopped" ]; then
    wait "$child"
    code=75
fi
exit "$code"
