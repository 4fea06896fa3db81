"""Inception Score: how sure a classifier is of each picture, and how varied its answers are.

    exp(mean over pictures of KL(p(y|x) || p(y))),    p(y) = mean over pictures of p(y|x)

(Salimans et al., "Improved techniques for training GANs", 2016.) As in ADM's evaluator, the score
is the mean over chunks of 5,000 pictures that follow each other, the last one maybe shorter, and
the logits are pooled features times the weights of Inception's last layer *without its bias*.
A chunk sees only its own p(y), so samples that were saved class by class would score far too low:
here they are shuffled first.

Shape suffixes: N samples, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from t2i.evaluation.feature_rows import Features, checked_rows

CHUNK_SIZE = 5000


@dataclass(frozen=True)
class InceptionScore:
    """Mean and standard deviation (population's, 0 of one chunk) over chunks; 1 to C."""

    mean: float
    std: float
    num_chunks: int


def inception_score(
    logits_NC: Features, generator: torch.Generator, chunk_size: int = CHUNK_SIZE
) -> InceptionScore:
    """The score of pictures' logits.

    Args:
        logits_NC: (N, C) without the bias, any floating dtype; the score is taken in float64.
        generator: of the CPU, for the shuffle; see `t2i.rng.generator`.
        chunk_size: pictures in a chunk.

    Raises:
        ValueError: there are no logits, or some are NaN or infinite.
    """
    log_NC = checked_rows(logits_NC).cpu().double().log_softmax(dim=1)
    log_NC = log_NC[torch.randperm(len(log_NC), generator=generator)]
    scores = torch.stack([_score_of_chunk(chunk) for chunk in log_NC.split(chunk_size)])
    return InceptionScore(float(scores.mean()), float(scores.std(correction=0)), len(scores))


def _score_of_chunk(log_NC: Tensor) -> Tensor:
    marginal_log_C = log_NC.logsumexp(dim=0) - math.log(len(log_NC))
    divergence_N = (log_NC.exp() * (log_NC - marginal_log_C)).sum(dim=1)
    return divergence_N.mean().exp()
