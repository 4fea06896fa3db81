"""The Shapes world: captioned toy scenes, drawn and detected without any model.

A scene holds one to three objects in different places of a 3 x 3 grid on a muted background.
Captions are a function of the scene, so a caption can be checked, and `detect` finds the objects
in any picture (drawn, decoded or generated) by saturation, hue and silhouette.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

SHAPES = ("circle", "square", "triangle", "cross")
COLORS = {
    "red": (220, 40, 40),
    "yellow": (230, 210, 30),
    "green": (40, 180, 60),
    "cyan": (40, 200, 210),
    "blue": (50, 70, 220),
    "magenta": (210, 50, 200),
}
SIZES = ("small", "large")
PLACES = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
BACKGROUNDS = {
    "white": (240, 240, 240),
    "light gray": (190, 190, 190),
    "gray": (128, 128, 128),
    "dark gray": (70, 70, 70),
    "black": (20, 20, 20),
    "beige": (225, 215, 195),
}
PATTERNS = ("plain", "gradient", "striped")
NUMBER_WORDS = ("no objects", "one object", "two objects", "three objects")

SUPERSAMPLING = 4
# Sizes as fractions of the image side: half of an object's side, and its largest shift.
HALF_SIDES = {"small": 9 / 128, "large": 16 / 128}
MAX_SHIFT = 3 / 128
# A pixel belongs to an object when it is this saturated and bright (HSV, 0..1).
MIN_SATURATION, MIN_VALUE = 0.4, 0.3
SIZE_BOUNDARY = 12.5 / 128
SILHOUETTE_SIDE = 24


@dataclass(frozen=True)
class SceneObject:
    """One object; ``size`` and ``place`` are "" where a caption does not tell them."""

    shape: str
    color: str
    size: str
    place: str


@dataclass(frozen=True)
class Scene:
    """One to three objects, in the order of `PLACES`, on ``"<pattern> <tone>"`` background."""

    objects: tuple[SceneObject, ...]
    pattern: str
    tone: str


def random_scene(rng: np.random.Generator, max_objects: int = 3) -> Scene:
    """Draw a scene: number of objects, places, shapes, colours, sizes, background, all uniform.

    More than three objects (nine at most) have no captions; they serve to train a VAE.
    """
    num_objects = int(rng.integers(1, max_objects + 1))
    places = sorted(rng.choice(len(PLACES), size=num_objects, replace=False))
    objects = tuple(
        SceneObject(
            shape=SHAPES[rng.integers(len(SHAPES))],
            color=tuple(COLORS)[rng.integers(len(COLORS))],
            size=SIZES[rng.integers(len(SIZES))],
            place=PLACES[place],
        )
        for place in places
    )
    tone = tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    return Scene(objects, PATTERNS[rng.integers(len(PATTERNS))], tone)


def scene_class(scene: Scene) -> int:
    """The class of a scene for class-conditional models: its first object's colour and shape.

    In [0, 24): four shapes of the first colour, then those of the second, in the order of `COLORS`
    and `SHAPES`.
    """
    first = scene.objects[0]
    return tuple(COLORS).index(first.color) * len(SHAPES) + SHAPES.index(first.shape)


def render(scene: Scene, rng: np.random.Generator, size: int = 128) -> Image.Image:
    """Draw a scene as an RGB picture of ``size`` x ``size`` pixels.

    ``rng`` jitters position, size and brightness within what captions and detector tolerate.
    """
    canvas = _draw_background(scene, rng, size)
    for scene_object in scene.objects:
        _draw_object(canvas, scene_object, rng, size)
    return Image.fromarray(np.rint(canvas).clip(0, 255).astype(np.uint8))


def captions(scene: Scene) -> tuple[str, str, str, str]:
    """The four canonical captions: detailed, several sentences, one sentence, keywords."""
    objects = scene.objects
    detailed = [
        f"The image shows {NUMBER_WORDS[len(objects)]} on a {scene.pattern} {scene.tone} background."
    ]
    detailed += [f"At the {o.place} there is a {o.size} {o.color} {o.shape}." for o in objects]
    sentences = [f"A {o.size} {o.color} {o.shape} is at the {o.place}." for o in objects]
    sentences += [f"The background is {scene.tone}."]
    nouns = [f"a {o.color} {o.shape}" for o in objects]
    listing = nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} and {nouns[-1]}"
    sentence = f"{listing[0].upper()}{listing[1:]} on a {scene.tone} background."
    keywords = ", ".join([*(f"{o.color} {o.shape}" for o in objects), scene.tone])
    return " ".join(detailed), " ".join(sentences), sentence, keywords


def parse_caption(text: str) -> tuple[SceneObject, ...]:
    """The objects that a caption of any level names, in the order in which it names them."""
    place_pattern = "|".join(sorted(PLACES, key=len, reverse=True))
    noun = rf"(?:({'|'.join(SIZES)}) )?({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"
    pattern = rf"(?:at the ({place_pattern}) there is an? )?{noun}(?: is at the ({place_pattern}))?"
    return tuple(
        SceneObject(shape, color, size, before or after)
        for before, size, color, shape, after in re.findall(pattern, text.lower())
    )


def parse_scene(text: str) -> Scene:
    """The scene that a detailed caption tells: the inverse of ``captions(scene)[0]``.

    Raises:
        ValueError: the text is not exactly a detailed caption; it tells less, or something else.
    """
    background = re.search(
        rf" on a ({'|'.join(PATTERNS)}) ({'|'.join(BACKGROUNDS)}) background\.", text
    )
    objects = parse_caption(text)
    if background and 1 <= len(objects) < len(NUMBER_WORDS):
        scene = Scene(objects, *background.groups())
        if captions(scene)[0] == text:
            return scene
    raise ValueError(
        f"{text!r} does not tell a whole scene; expected a detailed caption such as 'The image "
        "shows one object on a plain white background. At the top there is a small red circle.'"
    )


def detect(image: Image.Image) -> tuple[SceneObject, ...]:
    """Find the objects of a picture, in the order of `PLACES`; needs no model.

    Connected saturated regions are named by their median hue, by the silhouette that overlaps
    theirs best, by their half side and by the cell of their centre.
    """
    return tuple(found_object for found_object, _ in detect_with_boxes(image))


def detect_with_boxes(
    image: Image.Image,
) -> tuple[tuple[SceneObject, tuple[int, int, int, int]], ...]:
    """What `detect` finds, each with its box: x0, y0, x1, y1 in pixels, the last two excluded."""
    rgb = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    value, chroma = rgb.max(-1), rgb.max(-1) - rgb.min(-1)
    saturated = (chroma > MIN_SATURATION * np.maximum(value, 1e-6)) & (value > MIN_VALUE)
    saturated = ndimage.binary_opening(saturated, structure=np.ones((3, 3)))
    labels, _ = ndimage.label(saturated)
    side = image.width
    min_half_side = 0.6 * HALF_SIDES["small"] * side
    found = []
    for index, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        half_side = (rows.stop - rows.start + columns.stop - columns.start) / 4
        if half_side < min_half_side:
            continue
        mask = labels[rows, columns] == index
        cell_row = min(3 * (rows.start + rows.stop) // (2 * image.height), 2)
        cell_column = min(3 * (columns.start + columns.stop) // (2 * image.width), 2)
        found_object = SceneObject(
            shape=_nearest_silhouette(mask),
            color=_nearest_color(rgb[rows, columns][mask]),
            size="large" if half_side > SIZE_BOUNDARY * side else "small",
            place=PLACES[3 * cell_row + cell_column],
        )
        found.append((found_object, (columns.start, rows.start, columns.stop, rows.stop)))
    return tuple(sorted(found, key=lambda pair: PLACES.index(pair[0].place)))


def _draw_background(scene: Scene, rng: np.random.Generator, size: int) -> np.ndarray:
    tone = np.array(BACKGROUNDS[scene.tone], dtype=np.float32)
    y, x = np.mgrid[0:size, 0:size] / size
    angle, phase = rng.uniform(0, 2 * np.pi, size=2)
    along = np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)
    if scene.pattern == "gradient":
        shade = 24 * along
    elif scene.pattern == "striped":
        shade = 10 * np.sin(2 * np.pi * 5 * along + phase)
    else:
        shade = np.zeros_like(along)
    return tone + shade[..., None].astype(np.float32)


def _draw_object(
    canvas: np.ndarray, scene_object: SceneObject, rng: np.random.Generator, size: int
) -> None:
    row, column = divmod(PLACES.index(scene_object.place), 3)
    shift_x, shift_y = rng.uniform(-MAX_SHIFT, MAX_SHIFT, size=2)
    center_x, center_y = (column + 0.5) / 3 + shift_x, (row + 0.5) / 3 + shift_y
    half_side = HALF_SIDES[scene_object.size] * rng.uniform(0.94, 1.06)
    brightness = rng.uniform(0.88, 1.08)
    # A window of whole pixels around the object is drawn at SUPERSAMPLING times its size.
    margin = int(np.ceil(half_side * size)) + 1
    left, top = round(center_x * size) - margin, round(center_y * size) - margin
    window = 2 * margin * SUPERSAMPLING
    mask = Image.new("L", (window, window))
    polygons = _polygons(scene_object.shape)
    draw = ImageDraw.Draw(mask)
    origin = np.array([center_x * size - left, center_y * size - top])
    to_pixels = half_side * size * SUPERSAMPLING
    if scene_object.shape == "circle":
        box = np.stack([origin * SUPERSAMPLING - to_pixels, origin * SUPERSAMPLING + to_pixels])
        draw.ellipse([tuple(point) for point in box], fill=255)
    for polygon in polygons:
        draw.polygon([tuple(p) for p in origin * SUPERSAMPLING + to_pixels * polygon], fill=255)
    alpha = np.asarray(mask.reduce(SUPERSAMPLING), dtype=np.float32)[..., None] / 255
    color = brightness * np.array(COLORS[scene_object.color], dtype=np.float32)
    # in a small picture the window's rim may stand out
    rows, columns = (slice(max(0, start), start + 2 * margin) for start in (top, left))
    region = canvas[rows, columns]
    height, width = region.shape[:2]
    alpha = alpha[rows.start - top :, columns.start - left :][:height, :width]
    region += alpha * (color - region)


def _polygons(shape: str) -> list[np.ndarray]:
    """Corners (x, y) in [-1, 1] of the polygons that make up a shape; none for the circle."""
    if shape == "square":
        return [np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])]
    if shape == "triangle":
        return [np.array([[0, -1], [1, 1], [-1, 1]])]
    if shape == "cross":
        bar = np.array([[-1, -1 / 3], [1, -1 / 3], [1, 1 / 3], [-1, 1 / 3]])
        return [bar, bar[:, ::-1]]
    return []


@lru_cache(maxsize=1)
def _silhouettes() -> dict[str, np.ndarray]:
    axis = (np.arange(SILHOUETTE_SIDE) + 0.5) / SILHOUETTE_SIDE * 2 - 1
    x, y = np.meshgrid(axis, axis)
    return {
        "circle": x**2 + y**2 <= 1,
        "square": np.ones_like(x, dtype=bool),
        "triangle": np.abs(x) <= (y + 1) / 2,
        "cross": (np.abs(x) <= 1 / 3) | (np.abs(y) <= 1 / 3),
    }


def _nearest_silhouette(mask: np.ndarray) -> str:
    """The shape whose silhouette has the largest intersection over union with ``mask``."""
    side = (SILHOUETTE_SIDE, SILHOUETTE_SIDE)
    resized = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(side)) > 127
    overlaps = {
        shape: (resized & silhouette).sum() / (resized | silhouette).sum()
        for shape, silhouette in _silhouettes().items()
    }
    return max(overlaps, key=lambda shape: overlaps[shape])


def _nearest_color(pixels: np.ndarray) -> str:
    """The colour whose hue is nearest to the median pixel's. ``pixels``: (N, 3) in 0..1."""
    hue = _hue(np.median(pixels, axis=0))
    distances = {}
    for name, rgb in COLORS.items():
        difference = abs(hue - _hue(np.array(rgb) / 255))
        distances[name] = min(difference, 1 - difference)
    return min(distances, key=lambda name: distances[name])


def _hue(rgb: np.ndarray) -> float:
    """Hue in [0, 1) as the angle in the plane across the gray axis."""
    red, green, blue = rgb
    angle = np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)
    return float(angle / (2 * np.pi) % 1)
