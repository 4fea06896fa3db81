"""Faults of GenEval's judge: which detections count, colours, relations and scores."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

JUDGE = "t2i/evaluation/geneval.py"
RULES = ("tests/t2i/evaluation/test_geneval.py",)
SHAPES = ("tests/t2i/evaluation/test_shapes_geneval.py",)

MUTANTS = tuple(
    Mutant(f"geneval: {name}", JUDGE, old, new, tests)
    for name, old, new, tests in (
        (
            "a score at the threshold counts",
            "detection.score > min_score",
            "detection.score >= min_score",
            RULES,
        ),
        ("counting has no threshold of its own", 'if task == "counting"', "if False", RULES),
        (
            "seventeen of a class count",
            "len(same) < MAX_PER_CLASS",
            "len(same) <= MAX_PER_CLASS",
            RULES,
        ),
        ("the worst come first", "-detection.score)", "detection.score)", RULES),
        ("all of a class are taken", "[: needed.count]", "[:]", RULES),
        ("exclude off by one", "num >= refused.count", "num > refused.count", RULES),
        ("one object of the colour is enough", "if any(color !=", "if all(color !=", RULES),
        (
            "no shrink",
            "SHRINK, MIN_OFFSET, NO_OFFSET = 0.1",
            "SHRINK, MIN_OFFSET, NO_OFFSET = 0.0",
            RULES,
        ),
        (
            "offset divided by the shrunk length",
            "np.linalg.norm(offset_2)",
            "np.linalg.norm(shrunk_2)",
            RULES,
        ),
        (
            "left and right swapped",
            '"left of": x < -MIN_OFFSET,\n        "right of": x > MIN_OFFSET',
            '"left of": x > MIN_OFFSET,\n        "right of": x < -MIN_OFFSET',
            SHAPES,
        ),
        (
            "the relation is that of the first to the second",
            "relations(item.box, target.box)",
            "relations(target.box, item.box)",
            RULES,
        ),
        ("a wrong object still is a target", "None if reason else taken", "taken", RULES),
        (
            "the mean of pictures instead of tasks",
            "float(np.mean([ratio.value for ratio in ratios.values()]))",
            "float(np.mean([verdict.right for verdict in verdicts]))",
            RULES,
        ),
        (
            "pictures are drawn one by one",
            "[v.metadata.prompt for v in own]",
            "[str(id(v)) for v in own]",
            RULES,
        ),
    )
)
