"""HPSv3 behind `python -m t2i.evaluate preference`; runs in a virtual environment with hpsv3 installed.

python -m venv hpsv3_env && hpsv3_env/bin/pip install hpsv3
"""

import json
import os
import sys

answers = os.fdopen(os.dup(1), "w", buffering=1)  # what libraries print must not get between them
os.dup2(2, 1)

from hpsv3 import HPSv3RewardInferencer  # noqa: E402

inferencer = HPSv3RewardInferencer(device=sys.argv[1])
print(json.dumps({"ready": "HPSv3", "weights": "hub:MizzenAI/HPSv3"}), file=answers)
for line in sys.stdin:
    row = json.loads(line)
    rewards = inferencer.reward(prompts=[row["prompt"]], image_paths=[row["image"]])
    print(json.dumps({"score": float(rewards[0][0])}), file=answers)  # mu, of (mu, sigma)
