"""GenEval in the Shapes world: its six tasks and its judge, with the analytic detector.

Prompts are detailed captions of scenes that a task would ask for, so their true pictures can be
drawn (`t2i.evaluation.shapes_ceiling.rendered`) and score one; the metadata beside a prompt asks
only what the task is about. Shapes are the classes. A detection is certain: its score is 1.

    python -m t2i.evaluation.shapes_geneval prompts.jsonl --prompts-per-task 50
    python -m t2i.sample --prompts prompts.jsonl --sg 0.1,0.8 --omega 1.8 --output samples
    python -m t2i.evaluate geneval samples --metadata prompts.jsonl --detector shapes
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from t2i.console import command_parser, run_command
from t2i.evaluation.geneval import TASKS, Detection, Relation, Task, Vocabulary
from t2i.shapes import (
    COLORS,
    PLACES,
    SHAPES,
    Scene,
    SceneObject,
    captions,
    detect_with_boxes,
    random_scene,
)

SHAPES_VOCABULARY = Vocabulary(SHAPES, tuple(COLORS))


def shapes_detections(image: Image.Image) -> list[Detection]:
    """What the analytic detector sees, in GenEval's form."""
    return [Detection(item.shape, 1.0, box, item.color) for item, box in detect_with_boxes(image)]


def write_shapes_metadata(path: Path, prompts_per_task: int, seed: int = 0) -> None:
    """Write GenEval's JSON lines, task by task; all prompts differ; the same for the same seed."""
    lines: dict[str, dict[str, Any]] = {}
    for number, task in enumerate(TASKS):
        rng = np.random.default_rng([seed, number])
        while len(lines) < (number + 1) * prompts_per_task:
            line = shapes_metadata(task, rng)
            lines.setdefault(line["prompt"], line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines.values()))


def shapes_metadata(task: Task, rng: np.random.Generator) -> dict[str, Any]:
    """A line of GenEval's metadata for a random scene that the task would ask for."""
    fits, requirements = _RULES[task]
    scene = _scene(task, rng)
    while not fits(scene):
        scene = _scene(task, rng)
    # A scene's objects are in the order of their places; the one asked for first can be any.
    objects = tuple(scene.objects[index] for index in rng.permutation(len(scene.objects)))
    return {"tag": task, **requirements(objects), "prompt": captions(scene)[0]}


def _scene(task: Task, rng: np.random.Generator) -> Scene:
    """A random scene; where objects are counted, all have the first one's shape."""
    scene = random_scene(rng)
    if task != "counting":
        return scene
    shape = scene.objects[0].shape
    return replace(scene, objects=tuple(replace(item, shape=shape) for item in scene.objects))


def clear_relation(first: SceneObject, second: SceneObject) -> Relation | None:
    """How the first stands to the second along the axis on which they are further apart; None on a
    diagonal, where the small shifts of a drawn object decide."""
    row, column = divmod(PLACES.index(first.place), 3)
    other_row, other_column = divmod(PLACES.index(second.place), 3)
    down, right = row - other_row, column - other_column
    if abs(down) == abs(right):
        return None
    if abs(right) > abs(down):
        return "right of" if right > 0 else "left of"
    return "below" if down > 0 else "above"


def _needs(item: SceneObject, **others: Any) -> dict[str, Any]:
    return {"class": item.shape, "count": 1, **others}


def _is_single(scene: Scene) -> bool:
    return len(scene.objects) == 1


def _is_pair(scene: Scene) -> bool:
    return len(scene.objects) == 2 and scene.objects[0].shape != scene.objects[1].shape


def _is_pair_of_colors(scene: Scene) -> bool:
    return _is_pair(scene) and scene.objects[0].color != scene.objects[1].color


def _is_group(scene: Scene) -> bool:
    return len(scene.objects) > 1


def _is_clear_pair(scene: Scene) -> bool:
    return _is_pair(scene) and clear_relation(*scene.objects) is not None


def _each(objects: tuple[SceneObject, ...]) -> dict[str, Any]:
    return {"include": [_needs(item) for item in objects]}


def _each_with_color(objects: tuple[SceneObject, ...]) -> dict[str, Any]:
    return {"include": [_needs(item, color=item.color) for item in objects]}


def _exactly(objects: tuple[SceneObject, ...]) -> dict[str, Any]:
    shape, num = objects[0].shape, len(objects)
    return {
        "include": [{"class": shape, "count": num}],
        "exclude": [{"class": shape, "count": num + 1}],
    }


def _second_by_first(objects: tuple[SceneObject, ...]) -> dict[str, Any]:
    first, second = objects
    return {"include": [_needs(first), _needs(second, position=[clear_relation(second, first), 0])]}


# Which scenes a task asks for, and what it asks of them.
_RULES: dict[
    Task, tuple[Callable[[Scene], bool], Callable[[tuple[SceneObject, ...]], dict[str, Any]]]
] = {
    "single_object": (_is_single, _each),
    "two_object": (_is_pair, _each),
    "counting": (_is_group, _exactly),
    "colors": (_is_single, _each_with_color),
    "position": (_is_clear_pair, _second_by_first),
    "color_attr": (_is_pair_of_colors, _each_with_color),
}


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m t2i.evaluation.shapes_geneval", __doc__)
    parser.add_argument("file", type=Path, help="for the JSON lines")
    parser.add_argument("--prompts-per-task", type=int, default=50, metavar="N", help="(50)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(0)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.prompts_per_task < 1:
        raise ValueError(f"--prompts-per-task {args.prompts_per_task}: at least 1")
    write_shapes_metadata(args.file, args.prompts_per_task, args.seed)
    print(f"{args.prompts_per_task * len(TASKS)} prompts: {args.file}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
