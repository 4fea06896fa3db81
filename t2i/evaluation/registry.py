"""All metrics, by their files. No torch here."""

from __future__ import annotations

import importlib
import pkgutil

from t2i.evaluation import metrics
from t2i.evaluation.metric import Metric


def all_metrics() -> dict[str, Metric]:
    """Name -> metric, of every file in `t2i.evaluation.metrics`."""
    modules = sorted(module.name for module in pkgutil.iter_modules(metrics.__path__))
    found = [importlib.import_module(f"{metrics.__name__}.{name}").METRIC for name in modules]
    return {metric.name: metric for metric in found}


def main_scores() -> dict[str, str]:
    """Metric -> the score that stands for it, where that is not its first."""
    return {name: metric.main_score for name, metric in all_metrics().items() if metric.main_score}
