"""The least adapter that there can be, for trying the way: a picture's mean brightness, 0 to 1."""

import json
import sys

from PIL import Image, ImageStat

print(json.dumps({"ready": "brightness", "weights": "random-none"}), flush=True)
for line in sys.stdin:
    with Image.open(json.loads(line)["image"]) as image:
        score = ImageStat.Stat(image.convert("L")).mean[0] / 255
    print(json.dumps({"score": score}), flush=True)
