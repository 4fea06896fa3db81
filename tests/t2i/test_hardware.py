"""Proves that a GPU's peak is found by the name that CUDA gives it, and not taken for another's."""

from __future__ import annotations

from t2i.hardware import known_peak_tflops


def test_peaks_are_known_by_the_names_that_cuda_gives() -> None:
    names = {
        "NVIDIA H100 80GB HBM3": 989,
        "NVIDIA H100 PCIe": 756,
        "NVIDIA H200": 989,
        "NVIDIA A100-SXM4-80GB": 312,
        "NVIDIA L40S": 362,
        "NVIDIA L4": 121,
        "NVIDIA GeForce RTX 4090": 165.2,
        "NVIDIA A10": None,
    }
    assert {name: known_peak_tflops(name) for name in names} == names
