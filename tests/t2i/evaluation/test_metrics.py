"""Proves every metric from the command line, with tiny or random weights: what it writes, says of its
weights, and refuses; and against what its core gives for the same rows."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy
import torch
from PIL import Image
from scipy.spatial.distance import cdist

from t2i.config import ASSETS_FOLDER
from t2i.encoders.clip import random_clip
from t2i.encoders.dinov2 import random_dinov2
from t2i.encoders.shapes_features import load_shapes_features
from t2i.evaluate import main
from t2i.evaluation.adm_files import save_statistics
from t2i.evaluation.diversity import diversity_of_prompts, mean_distance
from t2i.evaluation.frechet import frechet_distance
from t2i.evaluation.geneval import TASKS
from t2i.evaluation.inception import random_inception
from t2i.evaluation.lpips import random_lpips
from t2i.evaluation.metric import Score, Scores
from t2i.evaluation.mmd import cmmd
from t2i.evaluation.moments import statistics_of
from t2i.evaluation.picture_sets import open_set, read_batches
from t2i.evaluation.precision_recall import precision_recall
from t2i.evaluation.score_files import read_scores, score_file
from t2i.evaluation.shapes_ceiling import rendered
from t2i.evaluation.shapes_geneval import write_shapes_metadata
from t2i.sampling.image_folder import ImageFolder, plan_images

RANDOM = ("--random-weights", "0")
COMPARE_WITH_NOTHING = "random-0): these numbers compare with nothing but numbers of the same ones"


@pytest.fixture
def two_sets(tmp_path: Path, write_set: Callable[..., Path]) -> tuple[Path, Path]:
    """The same prompts and seeds, other pictures."""
    return write_set(tmp_path / "one", 0), write_set(tmp_path / "two", 1)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[str, Score]]:
    """Score sets by a metric; name -> score of the first set."""

    def score(metric: str, *arguments: str | Path) -> dict[str, Score]:
        cache = ("--cache", str(tmp_path / "cache"))
        assert main([metric, *map(str, arguments), *cache]) == 0
        first = Path(str(arguments[0]))
        return {s.name: s for s in written(first, metric).scores}

    return score


def written(folder: Path, metric: str) -> Scores:
    return read_scores(score_file(folder, metric))[0]


def pixels(folder: Path) -> list[np.ndarray]:
    batches = read_batches(open_set(folder), 99, "refuse")
    return [picture.pixels_HW3 for batch in batches for picture in batch]


def distance_within_span(one: np.ndarray, other: np.ndarray) -> float:
    """Scipy's Frechet distance, in the few dimensions that so few rows span."""
    basis = scipy.linalg.qr(np.concatenate((one, other)).T, mode="economic")[0]
    rows = [own @ basis for own in (one, other)]
    covariances = [np.cov(own, rowvar=False) for own in rows]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    step = rows[0].mean(axis=0) - rows[1].mean(axis=0)
    return float(step @ step + np.trace(sum(covariances)) - 2 * np.trace(root).real)


@pytest.mark.slow
def test_adm_writes_all_five_numbers(
    two_sets: tuple[Path, Path],
    run: Callable[..., dict[str, Score]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, two = two_sets
    found = run("adm", one, two, "--reference", two, *RANDOM, "--draws", "2")
    said = capsys.readouterr().out
    assert COMPARE_WITH_NOTHING in said
    assert "6 pictures for 2,048 dimensions: the covariance is not of full rank" in said
    network = random_inception(0)
    with torch.inference_mode():
        features = [
            network(torch.from_numpy(np.stack(pixels(folder))).permute(0, 3, 1, 2))
            for folder in two_sets
        ]
    for name, rows in (("fid", "pool3"), ("sfid", "spatial")):
        both = [getattr(own, rows).double().numpy() for own in features]
        assert found[name].value == pytest.approx(distance_within_span(*both), rel=1e-3)
    chances = scipy.special.softmax(features[0].logits.double().numpy(), axis=1)
    divergences = [scipy.stats.entropy(own, chances.mean(axis=0)) for own in chances]
    assert found["inception_score"].value == pytest.approx(np.exp(np.mean(divergences)), rel=1e-4)
    samples, reference = (own.pool3.double().numpy() for own in features)
    apart = cdist(reference, samples)
    radii = [np.sort(cdist(own, own))[:, 3] for own in (reference, samples)]
    assert found["precision"].value == (apart <= radii[0][:, None]).any(axis=0).mean()
    assert found["recall"].value == (apart <= radii[1]).any(axis=1).mean()
    itself = {score.name: score.value for score in written(two, "adm").scores}
    assert itself["fid"] == pytest.approx(0, abs=1e-3)
    assert (itself["precision"], itself["recall"]) == (1, 1)
    # ADM's statistics in place of the pictures: the same distances, and nothing that needs pictures.
    statistics = tmp_path / "reference.npz"
    save_statistics(
        statistics, *(statistics_of(getattr(features[1], n)) for n in ("pool3", "spatial"))
    )
    again = run("adm", one, "--reference", statistics, *RANDOM, "--draws", "0")
    assert again.keys() == {"fid", "sfid", "inception_score"}
    assert again["fid"].value == pytest.approx(found["fid"].value, rel=1e-3)
    assert "no precision and recall: the reference has no pictures" in capsys.readouterr().out


def test_adm_without_weights_says_where_they_are(two_sets: tuple[Path, Path]) -> None:
    one, two = map(str, two_sets)
    with pytest.raises(
        ValueError, match=r"pt_inception-2015-12-05-6726825d\.pth \(SHA-256 6726825d"
    ):
        main(["adm", one, "--reference", two])
    with pytest.raises(FileNotFoundError, match="no Inception weights here; get pt_inception"):
        main(["adm", one, "--reference", two, "--weights", "nowhere.pth"])
    with pytest.raises(ValueError, match="--reference is missing"):
        main(["adm", one, *RANDOM])


def test_fdd_and_cmmd_are_their_cores_of_the_networks_rows(
    two_sets: tuple[Path, Path], run: Callable[..., dict[str, Score]]
) -> None:
    one, two = two_sets
    fdd = run("fdd", one, "--reference", two, *RANDOM, "--draws", "3")["fdd"]
    rows = [random_dinov2(0).embed_pictures(pixels(folder)) for folder in two_sets]
    assert fdd.value == pytest.approx(frechet_distance(*map(statistics_of, rows)), rel=1e-4)
    assert fdd.low is not None
    distance = run("cmmd", one, "--reference", two, *RANDOM, "--draws", "0")["cmmd"]
    rows = [random_clip(0).embed_pictures(pixels(folder)) for folder in two_sets]
    assert distance.value == pytest.approx(cmmd(*rows), rel=1e-4)
    assert run("cmmd", two, "--reference", two, *RANDOM)["cmmd"].value == pytest.approx(0, abs=1e-6)


def test_statistics_of_inception_do_not_serve_other_networks(
    two_sets: tuple[Path, Path], tmp_path: Path
) -> None:
    np.savez(tmp_path / "adm.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    for metric in ("fdd", "cmmd"):
        arguments = [metric, str(two_sets[0]), "--reference", str(tmp_path / "adm.npz"), *RANDOM]
        with pytest.raises(ValueError, match="it needs pictures"):
            main([*arguments, "--cache", str(tmp_path)])


def test_shapes_features_are_their_cores_of_the_shipped_classifier_s_rows(
    two_sets: tuple[Path, Path], run: Callable[..., dict[str, Score]]
) -> None:
    one, two = two_sets
    found = run("shapes_features", one, "--reference", two, "--draws", "3")
    network = load_shapes_features(ASSETS_FOLDER / "nano" / "classifier")
    rows, reference = (network.embed_pictures(pixels(folder)) for folder in two_sets)
    distance = frechet_distance(*map(statistics_of, (rows, reference)))
    assert found["frechet"].value == pytest.approx(distance, rel=1e-4)
    pair = precision_recall(reference, rows)
    assert found["precision"].value == pytest.approx(pair.precision)
    assert found["recall"].value == pytest.approx(pair.recall)
    prompts = open_set(one).prompts
    assert prompts is not None
    mean = float(diversity_of_prompts(rows, prompts).mean()) / mean_distance(reference)
    assert found["diversity"].value == pytest.approx(mean)
    assert (found["diversity"].num, found["diversity"].unit) == (2, "prompts")
    itself = run("shapes_features", two, "--reference", two, "--draws", "0")
    assert itself["frechet"].value == pytest.approx(0, abs=1e-6)
    with pytest.raises(FileNotFoundError, match=r"no Shapes classifier; python -m launch\.nano"):
        run("shapes_features", one, "--reference", two, "--weights", "nowhere")


def test_tones_are_those_of_pictures_with_known_ones(
    tmp_path: Path, run: Callable[..., dict[str, Score]]
) -> None:
    """A red picture is saturated and flat, black and white halves are grey and far apart."""
    red, halves = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    red[..., 0], halves[:, :4] = 200, 255
    for name, picture in (("red", red), ("halves", halves)):
        (tmp_path / name).mkdir()
        Image.fromarray(picture).save(tmp_path / name / "0.png")
        Image.fromarray(picture).save(tmp_path / name / "1.png")
    found = run("tones", tmp_path / "red", "--reference", tmp_path / "halves")
    assert (found["saturation"].value, found["contrast"].value) == (1.0, pytest.approx(0, abs=1e-9))
    truth = {
        score.name: score.value for score in written(tmp_path / "red", "tones").truth["reference"]
    }
    assert truth == {"saturation": 0.0, "contrast": pytest.approx(0.5)}
    plain = run("tones", tmp_path / "halves")
    assert plain["contrast"].value == pytest.approx(0.5)
    assert plain["contrast"].better is None


def test_clip_and_aesthetics_are_means_over_pictures(
    two_sets: tuple[Path, Path],
    run: Callable[..., dict[str, Score]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, two = two_sets
    score = run("clip", one, two, *RANDOM)["clip"]
    said = capsys.readouterr().out
    clip, prompts = random_clip(0), open_set(one).prompts
    assert prompts is not None
    cosines = (clip.embed_pictures(pixels(one)) * clip.embed_texts(prompts)).sum(1)
    assert score.value == pytest.approx(100 * float(cosines.clamp(min=0).mean()), rel=1e-4)
    assert (score.num, score.unit) == (2, "prompts")
    pairs = [written(folder, "clip").per_picture["clip"] for folder in two_sets]
    difference = np.mean(pairs[1]) - np.mean(pairs[0])
    line = re.search(r"clip: two minus one, pair by pair: (\S+) \(", said)
    assert line is not None
    assert float(line.group(1)) == pytest.approx(difference, rel=1e-3)
    assert run("aesthetic", one, *RANDOM)["aesthetic"].value is not None
    with pytest.raises(ValueError, match=r"--head is missing: sac\+logos"):
        main(["aesthetic", str(one)])


def test_lpips_of_a_prompts_pictures_and_of_two_methods(
    two_sets: tuple[Path, Path],
    run: Callable[..., dict[str, Score]],
    tmp_path: Path,
    write_set: Callable[..., Path],
) -> None:
    one, two = two_sets
    network = random_lpips(0)
    images = [
        torch.from_numpy(np.stack(pixels(folder))).permute(0, 3, 1, 2).float() / 127.5 - 1
        for folder in two_sets
    ]
    with torch.inference_mode():
        change = float(network(images[0], images[1]).mean())
        of_prompt = [
            float(
                torch.stack(
                    [network(images[0][i, None], images[0][j, None]) for i, j in own]
                ).mean()
            )
            for own in (((0, 1), (0, 2), (1, 2)), ((3, 4), (3, 5), (4, 5)))
        ]
    found = run("lpips", one, "--against", two, *RANDOM)["lpips_change"]
    assert found.value == pytest.approx(change, rel=1e-3)
    Image.fromarray(pixels(one)[0]).save(open_set(two).files[0])
    nearer = run("lpips", one, "--against", two, *RANDOM)["lpips_change"]
    assert nearer.value is not None
    assert nearer.value < change, "rows of the old pictures are remembered"
    diversity = run("lpips", one, *RANDOM)["lpips_diversity"]
    assert diversity.value == pytest.approx(sum(of_prompt) / 2, rel=1e-3)
    assert (diversity.num, diversity.unit) == (2, "prompts")
    lonely = write_set(tmp_path / "lonely", 0, per_prompt=1)
    with pytest.raises(ValueError, match="every prompt has one picture"):
        run("lpips", lonely, *RANDOM)
    other = write_set(tmp_path / "other", 0, prompts=("x", "y"))
    with pytest.raises(ValueError, match="are of different prompts"):
        run("lpips", one, "--against", other, *RANDOM)


@pytest.fixture
def geneval_set(tmp_path: Path) -> tuple[Path, Path]:
    """True pictures of two Shapes prompts a task, and their metadata."""
    metadata, folder = tmp_path / "prompts.jsonl", tmp_path / "true"
    write_shapes_metadata(metadata, prompts_per_task=2)
    prompts = [json.loads(line)["prompt"] for line in metadata.read_text().splitlines()]
    jobs = plan_images(prompts, 1, 0, {})
    for job, image in zip(jobs, rendered(prompts, 128), strict=True):
        ImageFolder(folder).write(job, image)
    ImageFolder(folder).finish(jobs)
    return folder, metadata


def test_geneval_in_the_shapes_world(
    geneval_set: tuple[Path, Path], run: Callable[..., dict[str, Score]], tmp_path: Path
) -> None:
    folder, metadata = geneval_set
    arguments = ("--metadata", metadata, "--detector", "shapes")
    found = run("geneval", folder, *arguments, "--layout", tmp_path / "layout")
    assert {name: score.value for name, score in found.items()} == {
        **dict.fromkeys(TASKS, 1),
        "overall": 1,
    }
    assert len(list((tmp_path / "layout").glob("*/samples/*.png"))) == 12
    line = json.loads((tmp_path / "layout" / "00003" / "metadata.jsonl").read_text())
    assert line == json.loads(metadata.read_text().splitlines()[3])
    first = open_set(folder).files[0]
    Image.new("RGB", (128, 128)).save(first)
    found = run("geneval", folder, *arguments, "--ceiling")
    truth = written(folder, "geneval").truth
    assert [{s.name: s.value for s in own}["overall"] for own in truth.values()] == [1, 1]
    assert (found["single_object"].value, found["overall"].value) == (0.5, pytest.approx(11 / 12))


def test_geneval_with_the_networks(
    geneval_set: tuple[Path, Path],
    run: Callable[..., dict[str, Score]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, metadata = geneval_set
    words = {"circle": "apple", "square": "book", "triangle": "pizza", "cross": "kite"}
    text = metadata.read_text().splitlines()
    photos = []
    for line in map(json.loads, text):
        for needed in (*line["include"], *line.get("exclude", ())):
            needed["class"] = words[needed["class"]]
            needed |= {"color": "red"} if "color" in needed else {}
        photos.append(json.dumps(line))
    metadata.write_text("\n".join(photos[:-2]))
    with pytest.raises(ValueError, match="is not in the metadata; sample with --prompts"):
        run("geneval", folder, "--metadata", metadata, *RANDOM)
    metadata.write_text("\n".join(photos))
    found = run("geneval", folder, "--metadata", metadata, *RANDOM)
    assert set(found) == {*TASKS, "overall"}
    assert f"Mask2Former has random weights ({COMPARE_WITH_NOTHING}" in capsys.readouterr().out


def test_preference_is_a_scorer_in_its_own_process(
    two_sets: tuple[Path, Path], run: Callable[..., dict[str, Score]], tmp_path: Path
) -> None:
    one, _ = two_sets
    found = run("preference", one, "--adapter", "brightness")["brightness"]
    means = [
        Image.fromarray(p).convert("L").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        for p in pixels(one)
    ]
    assert found.value == pytest.approx(np.mean(means) / 255, abs=2e-3)
    prompts = list(dict.fromkeys(open_set(one).prompts or ()))
    categories = tmp_path / "categories.json"
    categories.write_text(json.dumps({"circles": prompts[:1], "squares": prompts[1:]}))
    by_category = run("preference", one, "--adapter", "brightness", "--categories", categories)
    assert list(by_category) == ["circles", "squares", "overall"]
    categories.write_text(json.dumps({"circles": prompts[:1]}))
    with pytest.raises(ValueError, match="--categories has no category of 3 prompts"):
        run("preference", one, "--adapter", "brightness", "--categories", categories)
    with pytest.raises(ValueError, match="neither a script nor one of brightness, hpsv3"):
        main(["preference", str(one), "--adapter", "nothing"])


def test_a_picture_that_cannot_be_scored_is_left_out_and_counted(
    two_sets: tuple[Path, Path],
    run: Callable[..., dict[str, Score]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = tmp_path / "adapter.py"
    script.write_text(
        "import json, sys\n"
        "print(json.dumps({'ready': 'seed', 'weights': 'hub:x'}), flush=True)\n"
        "for line in sys.stdin:\n"
        "    number = int(json.loads(line)['image'].split('/')[-1][:5])\n"
        "    answer = {'error': 'no'} if number == 4 else {'score': number}\n"
        "    print(json.dumps(answer), flush=True)\n"
    )
    found = run("preference", two_sets[0], "--adapter", script)["seed"]
    assert found.value == pytest.approx((0 + 1 + 2 + 3 + 5) / 5)
    assert "1 pictures have no score" in capsys.readouterr().out
    assert written(two_sets[0], "preference").per_picture == {}


def test_dpg_asks_internvl(
    two_sets: tuple[Path, Path],
    run: Callable[..., dict[str, Score]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, _ = two_sets
    head = "text,category_broad,proposition_id,dependency,question_natural_language\n"
    prompts = list(dict.fromkeys(open_set(one).prompts or ()))
    lines = [f'"{p}",entity,1,0,Is it there?\n"{p}",attribute,2,1,Is it red?\n' for p in prompts]
    (tmp_path / "q.csv").write_text(head + "".join(lines))
    arguments = ("--questions", tmp_path / "q.csv")
    assert run("dpg", one, *arguments)["dpg"].value is not None  # InternVL-nano's own answers
    asked: list[int] = []

    def answer(
        self: object, questions: list[list[int]], images: torch.Tensor, most: int
    ) -> list[tuple[str, bool]]:
        asked.append(len(questions))
        assert len(images) == len(questions)
        return [("Yes.", True), ("No", True)]

    monkeypatch.setattr("t2i.encoders.internvl.InternVL.answer", answer)
    shutil.rmtree(tmp_path / "cache")
    found = run("dpg", one, *arguments)
    assert asked == [2] * 6
    values = {name: score.value for name, score in found.items()}
    assert values == {"dpg": 0.5, "entity": 1, "attribute": 0}
    (tmp_path / "q.csv").write_text(head + "another,entity,1,0,Is it there?\n")
    with pytest.raises(ValueError, match="its prompt has no questions"):
        run("dpg", one, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("clip",), r"no CLIP in a folder .* get model\.safetensors \(SHA-256 a2bf730a"),
        (
            ("fdd", "--reference", "x"),
            r"no DINOv2 .* files of https://huggingface\.co/facebook/dinov2",
        ),
        (("cmmd", "--reference", "x"), "openai/clip-vit-large-patch14-336: no CLIP"),
    ],
)
def test_a_missing_model_is_named_with_its_source(
    arguments: tuple[str, ...],
    message: str,
    two_sets: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    metric, *others = arguments
    with pytest.raises(FileNotFoundError, match=message):
        main([metric, str(two_sets[0]), *others])


def test_metrics_of_prompts_refuse_pictures_without_any(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    for metric in ("shapes", "clip", "geneval", "preference", "dpg"):
        with pytest.raises(ValueError, match=f"{metric} needs prompts"):
            main([metric, str(tmp_path)])


def test_a_set_given_twice_and_an_unknown_setting(two_sets: tuple[Path, Path]) -> None:
    one = str(two_sets[0])
    with pytest.raises(ValueError, match="a set is given twice"):
        main(["shapes", one, one])
    with pytest.raises(ValueError, match="--draws Input should be greater than or equal to 0"):
        main(["fdd", one, "--reference", one, *RANDOM, "--draws", "-1"])
    with pytest.raises(ValueError, match="--odd-pictures"):
        main(["shapes", one, "--odd-pictures", "maybe"])
