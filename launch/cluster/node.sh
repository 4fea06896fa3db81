#!/usr/bin/env bash
# One node's part of a training run, started once per node by slurm.sbatch or kubernetes.yaml:
#
#   NUM_NODES=2 NODE_RANK=0 HEAD=node-0:29500 RUN_ID=1 bash launch/cluster/node.sh --stage 1 --config FILE
#
# A process that dies ends its step on all nodes; torchrun starts all of them again, at most
# MAX_RESTARTS times, and they go on from the newest checkpoint. When torchrun itself ends, because the
# head is gone, another node stays away for longer than JOIN_SECONDS or its restarts are used up, it is
# started again, at most MAX_STARTS times in all; each start waits at least a minute for the head.
#
# Exit codes: 0 the run is finished; 2 wrong settings, of which no other attempt is made; 75 after SIGTERM,
# with which the run has saved: the same command goes on; 1 all starts are used up.
#
#   PROCESSES_PER_NODE  default: gpu, one for each GPU     STOP_SECONDS   for the last checkpoint
#   MAX_STARTS, MAX_RESTARTS  default: 20, 3               PAUSE_SECONDS  between starts, default: 30
set -u
cd "$(dirname "$0")/../.."
: "${NUM_NODES:?}" "${NODE_RANK:?}" "${HEAD:?}" "${RUN_ID:?}"
# A new store after each restart: nodes that count restarts differently (one lost a process, the other
# only heard of it) would otherwise read the addresses of dead processes in the old one.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${STOP_SECONDS:-540}
is_host=$([ "$NODE_RANK" = 0 ] && echo true || echo false)

stopped=
trap 'stopped=yes; kill -TERM "$child"' TERM

# Run a command to its end, also when SIGTERM is passed on to it: the trap ends the first wait.
run() {
    "$@" &
    child=$!
    wait "$child"
    code=$?
    [ -z "$stopped" ] || { wait "$child"; exit 75; }
}

for start in $(seq "${MAX_STARTS:-20}"); do
    run python launch/cluster/torchrun.py --nnodes "$NUM_NODES" --nproc-per-node "${PROCESSES_PER_NODE:-gpu}" \
        --rdzv-backend c10d --rdzv-endpoint "$HEAD" --rdzv-id "$RUN_ID" \
        --rdzv-conf "is_host=$is_host,join_timeout=${JOIN_SECONDS:-600}" \
        --max-restarts "${MAX_RESTARTS:-3}" launch/train_t2i.py "$@"
    case $code in 0 | 2) exit "$code" ;; esac
    echo "node $NODE_RANK: torchrun ended with $code (start $start); the next in ${PAUSE_SECONDS:-30} s" >&2
    run sleep "${PAUSE_SECONDS:-30}"
done
echo "node $NODE_RANK: no start is left (MAX_STARTS)" >&2
exit 1
