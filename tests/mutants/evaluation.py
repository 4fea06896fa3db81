"""Faults of the metrics: moments, Frechet distance, scores of features, bootstrap intervals."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

CORES, TESTS = "t2i/evaluation", "tests/t2i/evaluation"


def fault(name: str, module: str, old: str, new: str, tests: str = "") -> Mutant:
    found_by = tests or f"test_{module}"
    return Mutant(name, f"{CORES}/{module}.py", old, new, (f"{TESTS}/{found_by}.py",))


MUTANTS = (
    fault(
        "moments: covariance over n",
        "moments",
        "self.scatter_DD / (self.num - 1)",
        "self.scatter_DD / self.num",
    ),
    fault(
        "moments: batches merged without the step of their means",
        "moments",
        "self.scatter_DD += self.num * num / total * torch.outer(step_D, step_D)",
        "pass",
    ),
    fault(
        "moments: processes reduced without the step of their means",
        "moments",
        "self.scatter_DD += self.num * torch.outer(self.mean_D - mean_D, self.mean_D - mean_D)",
        "pass",
    ),
    fault("Frechet: sign of the last trace", "frechet", "traces - 2 *", "traces + 2 *"),
    fault(
        "Frechet: the trace of one covariance dropped",
        "frechet",
        "np.trace(one.covariance_DD) + np.trace(other.covariance_DD)",
        "np.trace(one.covariance_DD)",
    ),
    fault("Frechet: means left out", "frechet", "step_D @ step_D + traces", "traces"),
    fault(
        "Frechet: directions that are mere rounding are kept",
        "moments",
        "np.finfo(np.float64).eps * values_D[-1]",
        "0",
        tests="test_frechet",
    ),
    fault(
        "Inception Score: no shuffle",
        "inception_score",
        "log_NC = log_NC[torch.randperm(len(log_NC), generator=generator)]",
        "pass",
    ),
    fault(
        "Inception Score: chunks not contiguous",
        "inception_score",
        "for chunk in log_NC.split(chunk_size)]",
        "for chunk in (log_NC[i :: -(-len(log_NC) // chunk_size)] "
        "for i in range(-(-len(log_NC) // chunk_size)))]",
    ),
    fault(
        "Inception Score: a bias added",
        "inception_score",
        "checked_rows(logits_NC).cpu().double()",
        "checked_rows(logits_NC).cpu().double().add(torch.arange(logits_NC.shape[1]) / 9)",
    ),
    fault(
        "precision and recall: swapped",
        "precision_recall",
        "return PrecisionRecall(is_precise_M, is_covered_N)",
        "return PrecisionRecall(is_covered_N, is_precise_M)",
    ),
    fault("precision and recall: k = 2", "precision_recall", "NEIGHBORS = 3", "NEIGHBORS = 2"),
    fault(
        "precision and recall: self counted as a neighbor",
        "precision_recall",
        "distances_AB.fill_diagonal_(torch.inf)",
        "distances_AB.fill_diagonal_(0)",
    ),
    fault(
        "precision and recall: far means not taken off",
        "precision_recall",
        "reference.double().mean(dim=0).float()",
        "reference.double().mean(dim=0).float() * 0",
    ),
    fault("CMMD: sigma 1", "mmd", "SIGMA = 10.0", "SIGMA = 1.0"),
    fault("CMMD: the factor 1,000 dropped", "mmd", "SCALE = 1000.0", "SCALE = 1.0"),
    fault("CMMD: the cross term once", "mmd", "within - 2 * _mean", "within - _mean"),
    fault(
        "bootstrap: pictures drawn without their prompts",
        "intervals",
        "prompts = range(len(parts)) if prompts_N is None else prompts_N",
        "prompts = range(len(parts))",
    ),
    fault(
        "bootstrap: the upward shift of draws left in",
        "intervals",
        "value + np.quantile(values_R - values_R.mean(), ENDS)",
        "np.quantile(values_R, ENDS)",
    ),
    fault("LPIPS: channels not of length 1", "lpips", "F.normalize(x, dim=1, eps=1e-10)", "x"),
    fault("LPIPS: taps before the ReLU", "lpips", "(3, 8, 15, 22, 29)", "(2, 7, 14, 21, 28)"),
    fault(
        "LPIPS: pixels not scaled", "lpips", "(images_B3HW - shift) / scale", "images_B3HW - shift"
    ),
    fault(
        "DPG: what a question depends on is ignored",
        "dpg",
        "answers[question.number] and all(answers[need] for need in question.needs)",
        "answers[question.number]",
    ),
    fault(
        "GenEval's eyes: nothing counts as a class",
        "geneval_detector",
        "class_logits_QK1.softmax(dim=1)[:, :-1]",
        "class_logits_QK1[:, :-1].softmax(dim=1)",
    ),
    fault(
        "GenEval's eyes: the mask's own score is left out",
        "geneval_detector",
        "best.values * sure_D",
        "best.values",
    ),
    fault("GenEval's eyes: crops on black", "geneval_detector", "GREY = 153", "GREY = 0"),
    fault(
        "overall score: all pictures weigh alike",
        "set_scores",
        "overall, num = float(np.mean(means)), len(set(prompts_N))",
        "overall, num = float(values.mean()), len(set(prompts_N))",
    ),
    fault(
        "Pareto front: the worse of equal cost",
        "sweeps",
        "key=lambda i: (points[i][0], -sign * points[i][1])",
        "key=lambda i: (points[i][0], sign * points[i][1])",
    ),
    fault(
        "remembered rows: pictures that changed are not seen",
        "scoring",
        "digest.update(pictures_hash(pictures).encode())",
        "pass",
    ),
    fault(
        "remembered rows: other weights are not seen",
        "scoring",
        "digest.update(one.hash.encode())",
        "pass",
    ),
    fault(
        "processes: rows in the order of processes",
        "scoring",
        "{name: values[order] for name, values in rows.items()}",
        "rows",
    ),
    Mutant(
        "CLIP: the whole picture is squeezed",
        "t2i/encoders/clip.py",
        "crop=True, mean=MEAN",
        "crop=False, mean=MEAN",
        ("tests/t2i/encoders/test_clip.py",),
    ),
    Mutant(
        "pictures: the crop is not in the middle",
        "t2i/encoders/pictures.py",
        "(width - side) // 2, (height - side) // 2",
        "0, 0",
        ("tests/t2i/encoders/test_clip.py",),
    ),
    Mutant(
        "FLOPs of an image: Heun counts as Euler",
        "t2i/sampling/image_flops.py",
        'solver == "heun" and step < num_steps - 1',
        "False",
        ("tests/t2i/sampling/test_image_flops.py",),
    ),
    Mutant(
        "the automatic scale follows the loss, whatever it is told",
        "t2i/training/objectives/moving.py",
        "scale.follow == seen",
        'seen == "validation_loss"',
        ("tests/t2i/training/monitoring/test_validation.py",),
    ),
)
