"""GenEval's eyes: Mask2Former finds objects of COCO's classes, CLIP tells their colours.

As in the original (Ghosh et al., 2023, with mmdetection's Mask2Former): of all pairs of a query and a
class the 100 surest count, a detection's score is its class probability times the mean probability
of its mask, and its box is the mask's. Colours: CLIP ViT-L/14 of the object alone on grey.

Shape suffixes: Q queries, K classes, D detections, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from t2i.encoders.clip import Clip
from t2i.encoders.random_weights import randomize
from t2i.encoders.weights_hash import folder_hash, no_weights
from t2i.evaluation.geneval import CLASSES, COLORS, Detection

SHORT_SIDE, LONG_SIDE, DIVISOR = 800, 1333, 32  # pixels of a picture for Mask2Former
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
MAX_DETECTIONS = 100
GREY = 153
COLOR_PROMPTS = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")


class Detector:
    """Detections of a picture, with colours that are looked for only when asked."""

    def __init__(
        self,
        model: Mask2FormerForUniversalSegmentation,
        clip: Clip,
        weights_hash: str,
        is_published: bool,
        short_side: int = SHORT_SIDE,
    ) -> None:
        self.model, self.clip = model.eval().requires_grad_(False), clip
        self.weights_hash, self.is_published = weights_hash, is_published
        self.short_side = short_side
        self.color_texts: dict[str, Tensor] = {}

    @torch.inference_mode()
    def detect(self, pixels_HW3: np.ndarray) -> list[Detection]:
        """All detections of a picture, (H, W, 3) uint8 RGB, whatever their scores."""
        images, mask, (height, width) = prepare(pixels_HW3, self.short_side)
        device = self.model.device
        found = self.model(pixel_values=images.to(device), pixel_mask=mask.to(device))
        scores_D, labels_D, masks_DHW = select(
            found.class_queries_logits[0].float(),
            self._masks(found.masks_queries_logits[0].float(), images, (height, width), pixels_HW3),
        )
        detections = []
        for score, label, mask_HW in zip(scores_D, labels_D, masks_DHW, strict=True):
            if mask_HW.any():
                box, name = box_of(mask_HW), CLASSES[int(label)]
                color = ColorOf(self, pixels_HW3, mask_HW.cpu().numpy(), box, name)
                detections.append(Detection(name, float(score), box, color))
        return detections

    def _masks(
        self, logits_Qhw: Tensor, images: Tensor, inner: tuple[int, int], pixels_HW3: np.ndarray
    ) -> Tensor:
        """Logits (Q, H, W) on the picture's own pixels: without the padding, then resized."""
        padded = F.interpolate(logits_Qhw[None], images.shape[-2:], mode="bilinear")
        cropped = padded[..., : inner[0], : inner[1]]
        return F.interpolate(cropped, pixels_HW3.shape[:2], mode="bilinear")[0]

    def color_of(self, crop_HW3: np.ndarray, name: str) -> str:
        """The colour of an object on grey, told its class."""
        if name not in self.color_texts:
            texts = [text.format(color, name) for color in COLORS for text in COLOR_PROMPTS]
            of_each = self.clip.embed_texts(texts).view(len(COLORS), len(COLOR_PROMPTS), -1)
            self.color_texts[name] = F.normalize(of_each.mean(dim=1), dim=1)
        likeness = self.color_texts[name] @ self.clip.embed_pictures([crop_HW3])[0]
        return COLORS[int(likeness.argmax())]


class ColorOf:
    """A colour that is found when it is called for."""

    def __init__(
        self,
        detector: Detector,
        pixels_HW3: np.ndarray,
        mask_HW: np.ndarray,
        box: tuple[float, float, float, float],
        name: str,
    ) -> None:
        self.detector, self.pixels_HW3, self.mask_HW = detector, pixels_HW3, mask_HW
        self.box, self.name = box, name

    def __call__(self) -> str:
        return self.detector.color_of(
            crop_on_grey(self.pixels_HW3, self.mask_HW, self.box), self.name
        )


def prepare(pixels_HW3: np.ndarray, short_side: int) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """A picture as Mask2Former was trained: normalized (1, 3, H', W'), where it is not padding
    (1, H', W'), and its height and width before the padding."""
    height, width = pixels_HW3.shape[:2]
    factor = min(
        short_side / min(height, width), LONG_SIDE / SHORT_SIDE * short_side / max(height, width)
    )
    inner = max(round(height * factor), 1), max(round(width * factor), 1)
    resized = Image.fromarray(pixels_HW3).resize(inner[::-1], Image.Resampling.BILINEAR)
    values_HW3 = (np.asarray(resized).astype(np.float32) - MEAN) / np.array(STD, np.float32)
    outer = [-(-side // DIVISOR) * DIVISOR for side in inner]
    images, mask = torch.zeros(1, 3, *outer), torch.zeros(1, *outer, dtype=torch.long)
    images[0, :, : inner[0], : inner[1]] = torch.from_numpy(values_HW3).permute(2, 0, 1)
    mask[0, : inner[0], : inner[1]] = 1
    return images, mask, inner


def select(
    class_logits_QK1: Tensor, mask_logits_QHW: Tensor, num: int = MAX_DETECTIONS
) -> tuple[Tensor, Tensor, Tensor]:
    """The surest pairs of query and class.

    Args:
        class_logits_QK1: (Q, K + 1); the last column stands for nothing.
        mask_logits_QHW: (Q, H, W).
        num: how many at most.

    Returns:
        Scores (D,) float, classes (D,) int64, masks (D, H, W) bool.
    """
    probabilities_QK = class_logits_QK1.softmax(dim=1)[:, :-1]
    num_classes = probabilities_QK.shape[1]
    best = probabilities_QK.flatten().topk(min(num, probabilities_QK.numel()))
    logits_DHW = mask_logits_QHW[best.indices // num_classes]
    masks_DHW = logits_DHW > 0
    inside_D = (logits_DHW.sigmoid() * masks_DHW).sum(dim=(1, 2))
    sure_D = inside_D / masks_DHW.sum(dim=(1, 2)).clamp(min=1)
    return best.values * sure_D, best.indices % num_classes, masks_DHW


def box_of(mask_HW: Tensor) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of a mask that is not empty; the ends lie behind its last pixels."""
    rows, columns = mask_HW.any(dim=1).nonzero(), mask_HW.any(dim=0).nonzero()
    x0, x1, y0, y1 = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
    return float(x0), float(y0), float(x1), float(y1)


def crop_on_grey(pixels_HW3: np.ndarray, mask_HW: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """The object alone, on grey."""
    x0, y0, x1, y1 = map(int, box)
    alone_HW3 = np.where(mask_HW[..., None], pixels_HW3, np.uint8(GREY))
    return np.ascontiguousarray(alone_HW3[y0:y1, x0:x1])


def load_detector(name: str, clip: Clip, device: torch.device) -> Detector:
    """Mask2Former of a local folder, or of a name on the hub.

    Raises:
        FileNotFoundError: it is neither; says what to get, and where.
        ValueError: it does not tell COCO's 80 classes.
    """
    try:
        model = Mask2FormerForUniversalSegmentation.from_pretrained(name, dtype=torch.float32)
    except OSError as error:
        raise no_weights("Mask2Former", name, error) from None
    if model.config.num_labels != len(CLASSES):
        raise ValueError(
            f"{name} tells {model.config.num_labels} classes; GenEval needs COCO's {len(CLASSES)}: "
            "facebook/mask2former-swin-small-coco-instance"
        )
    is_local = Path(name).is_dir()
    found = folder_hash(Path(name)) if is_local else f"hub:{name}"
    return Detector(model.to(device), clip, found, is_published=not is_local)


def random_detector(seed: int, clip: Clip, device: torch.device) -> Detector:
    """A tiny detector with random weights, for trying the way."""
    backbone = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=8,
        num_labels=len(CLASSES),
    )
    model = Mask2FormerForUniversalSegmentation(config)
    randomize(model, seed)
    return Detector(model.to(device), clip, f"random-{seed}", False, short_side=64)
