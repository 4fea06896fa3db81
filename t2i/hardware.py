"""GPUs by name: memory and peak of matrix products, from their makers' data sheets. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

# TFLOP/s of dense (not sparse) matrix products in bf16, accumulated in fp32; the first name that is
# part of the device's name counts.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "GH200": 989.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.2,
}


@dataclass(frozen=True)
class GPU:
    """One kind of GPU.

    Attributes:
        memory_gib: usable by CUDA, in GiB.
        peak_tflops: see `PEAK_TFLOPS`.
    """

    memory_gib: float
    peak_tflops: float


GPUS = {
    "a100-40gb": GPU(39.5, PEAK_TFLOPS["A100"]),
    "a100-80gb": GPU(79.2, PEAK_TFLOPS["A100"]),
    "h100": GPU(79.2, PEAK_TFLOPS["H100"]),
    "h200": GPU(139.8, PEAK_TFLOPS["H200"]),
    "b200": GPU(178.4, PEAK_TFLOPS["B200"]),
}


def known_peak_tflops(device_name: str) -> float | None:
    """The peak of a GPU by the name that `torch.cuda.get_device_name` gives it; None = not known."""
    words = f" {device_name.replace('-', ' ')} "
    return next((peak for name, peak in PEAK_TFLOPS.items() if f" {name} " in words), None)
