#!/usr/bin/env bash
# The whole system in miniature, on a laptop: web images -> captions -> latents -> training ->
# guided samples -> outputs/demo/report.html. Run again, it goes on where it stopped.
#
#   bash launch/demo.sh                  run or resume
#   bash launch/demo.sh --fresh          delete outputs/demo and start over
#   bash launch/demo.sh --config FILE    another size; the file's `root:` is the output folder
set -euo pipefail
cd "$(dirname "$0")/.."

config=configs/demo.yaml
fresh=
while [ $# -gt 0 ]; do
    case "$1" in
        --fresh) fresh=yes ;;
        --config) config=${2:?--config needs a file}; shift ;;
        *) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
    shift
done
out=$(sed -n 's/^root: *//p' "$config")
[ -n "$out" ] || { echo "error: $config has no line 'root: FOLDER'" >&2; exit 2; }
[ -z "$fresh" ] || rm -rf "$out"

source launch/setup.sh
source launch/steps.sh

export RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 HF_HUB_OFFLINE=1

if [ -e "$out/done/report" ]; then
    echo "all is done: $out/report.html   (start over: bash launch/demo.sh --fresh)"
    exit 0
fi

ray_started=
stop_ray() {
    [ -z "$ray_started" ] || ray stop --force >/dev/null 2>&1 || true
    ray_started=
}
trap stop_ray EXIT

step shapes python -m data_pipeline.sources.shapes --config "$config"
# The pictures are served on loopback for as long as they are downloaded.
step download python -m data_pipeline.sources.shapes --config "$config" \
    --serve python -m data_pipeline.download --config "$config"

# Ray gives up its start after 30 seconds on a busy machine, and takes jobs only a little later.
start_ray() {
    echo '$ ray start --head'
    ray_started=yes
    for _ in 1 2 3; do
        ray start --head --disable-usage-stats --num-cpus 2 >"$out/logs/ray.log" 2>&1 && break
        ray stop --force >/dev/null 2>&1
    done
    for _ in 1 2 3 4 5; do
        ray job submit -- true >>"$out/logs/ray.log" 2>&1 && return
        sleep 2
    done
    tail "$out/logs/ray.log" >&2
    return 1
}

# A Ray cluster that is up already is used and left alone.
if [ ! -e "$out/done/recaption" ] && ! ray status >/dev/null 2>&1; then
    start_ray
fi
step recaption ray job submit -- recaption --config "$config"
stop_ray

step filter python -m data_pipeline.filter --config "$config"
step latents python -m data_pipeline.latents --config "$config"
step train_stage_1 deepspeed launch/train_t2i.py --stage 1 --config "$config"
step train_stage_2 deepspeed launch/train_t2i.py --stage 2 --config "$config"
step export python -m t2i.export --config "$config"

for model in demo nano; do
    checkpoint=$out/export
    [ $model = demo ] || checkpoint=t2i/assets/nano
    step evaluate_$model python -m t2i.evaluate run --config "$config" \
        --set t2i.sampling.checkpoint=$checkpoint --set t2i.evaluation.output="$out/samples/$model" \
        --set t2i.evaluation.metrics.shapes.ceiling=true
done

step report python -m launch.report --config "$config"
echo
echo "report: $out/report.html"
