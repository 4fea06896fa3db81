#!/usr/bin/env bash
# Make docs/evidence.md and all it rests on: data and models of launch/make_nano.sh, their twins at equal
# training FLOPs, samples and scores of every guidance method, the page. Seeded; run again, it goes on
# where it stopped. About a day of two CPU cores, most of it training.
#
#   bash launch/make_evidence.sh
set -euo pipefail
cd "$(dirname "$0")/.."

source launch/setup.sh
out=outputs/nano_training
source launch/steps.sh
[ -e "$out/done/export_sit" ] || bash launch/make_nano.sh
out=outputs/evidence
mkdir -p $out/done $out/logs
step train python -m launch.evidence.train
step score python -m launch.evidence.score
python -m launch.evidence.page
