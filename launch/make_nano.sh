#!/usr/bin/env bash
# Make the nano family of t2i/assets/nano again: VAE, InternVL-nano, classifier, bundled data, TR-DiT-nano,
# and SiT-nano in outputs/nano_training. Seeded; run again, it goes on where it stopped. Hours: docs/nano.md.
#
#   bash launch/make_nano.sh           make what is missing
#   bash launch/make_nano.sh --fresh   forget all and start over
#   bash launch/make_nano.sh --quick   every step in miniature, in minutes; touches no asset
set -euo pipefail
cd "$(dirname "$0")/.."

assets=t2i/assets/nano
out=outputs/nano_training
config=configs/nano_training.yaml
vae_flags=() internvl_flags=(--compile) classifier_flags=() quick=
case "${1:-}" in
    "") ;;
    --fresh) rm -rf "$out" outputs/nano_data "$assets" ;;
    --quick)
        quick=yes out=outputs/nano_quick config=configs/nano_quick.yaml assets=$out/assets
        vae_flags=(--steps 4 --held-out 4)
        classifier_flags=(--steps 2 --held-out 8)
        internvl_flags=(--vision-steps 2 --steps 2 --polish-steps 2 --held-out 4)
        rm -rf "$out"
        ;;
    *) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
source launch/setup.sh "" # not this script's own arguments
source launch/steps.sh
export HF_HUB_OFFLINE=1

# Side by side, each on half of the cores: neither needs the other.
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
cores=$(env -u OMP_NUM_THREADS nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(((cores + 1) / 2))}
step vae python -m launch.nano.vae --output $assets/vae "${vae_flags[@]}" &
step internvl python -m launch.nano.internvl --output $assets/text_encoder "${internvl_flags[@]}"
wait $!
step classifier python -m launch.nano.classifier --vae $assets/vae --output $assets/classifier \
    "${classifier_flags[@]}"
step prompts python -m launch.nano.prompts --output $assets/prompts.txt

# make_data CONFIG: Shapes web -> images -> captions -> latents, by the pipeline's own commands.
make_data() {
    step shapes python -m data_pipeline.sources.shapes --config "$1"
    step download python -m data_pipeline.sources.shapes --config "$1" \
        --serve python -m data_pipeline.download --config "$1"
    step recaption recaption --config "$1" --executor local
    step filter python -m data_pipeline.filter --config "$1"
    step latents python -m data_pipeline.latents --config "$1"
}

# First the bundled data, then, by the same commands, the training data of the two models. Encoders
# of a few steps write nothing that could be trained on: --quick goes on with those that are bundled.
training=$out
if [ -z "$quick" ]; then
    out=outputs/nano_data
    mkdir -p $out/done $out/logs
    make_data configs/nano_data.yaml
    out=$training
fi
make_data $config

step train_stage_1 deepspeed --num_gpus 2 launch/train_t2i.py --stage 1 --config $config
step train_stage_2 deepspeed --num_gpus 2 launch/train_t2i.py --stage 2 --config $config
step export python -m t2i.export --config $config --output $out/export
mkdir -p $assets
step install cp -r $out/export/transformer $out/export/model_index.json $assets/

sit=${config%.yaml}_sit.yaml
step train_sit deepspeed --num_gpus 2 launch/train_t2i.py --stage 1 --config $sit
step export_sit python -m t2i.export --config $sit --output $out/export_sit
