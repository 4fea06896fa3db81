#!/usr/bin/env bash
# Make the nano family of t2i/assets/nano again: VAE, InternVL-nano, bundled data, TR-DiT-nano.
# Seeded; run again, it goes on where it stopped. Less than two hours on two CPU cores.
#
#   bash launch/make_nano.sh           make what is missing
#   bash launch/make_nano.sh --fresh   forget all and start over
set -euo pipefail
cd "$(dirname "$0")/.."

assets=t2i/assets/nano
out=outputs/nano_training
case "${1:-}" in
    "") ;;
    --fresh) rm -rf "$out" outputs/nano_data "$assets" ;;
    *) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
source launch/setup.sh
source launch/steps.sh
export HF_HUB_OFFLINE=1

step vae python -m launch.nano.vae --output $assets/vae
step internvl python -m launch.nano.internvl --output $assets/text_encoder
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

# First the bundled data, then the training data of TR-DiT-nano.
out=outputs/nano_data
mkdir -p $out/done $out/logs
make_data configs/nano_data.yaml
out=outputs/nano_training
config=configs/nano_training.yaml
make_data $config

step train_stage_1 deepspeed --num_gpus 2 launch/train_t2i.py --stage 1 --config $config
step train_stage_2 deepspeed --num_gpus 2 launch/train_t2i.py --stage 2 --config $config
step export python -m t2i.export --config $config --output $out/export
step install cp -r $out/export/transformer $out/export/model_index.json $assets/
