"""GPUs by name: memory and peak of matrix products, from their makers' data sheets. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """One kind of GPU.

    Attributes:
        device_name: what `torch.cuda.get_device_name` says.
        memory_gib: usable by CUDA, in GiB.
        bf16_tflops: TFLOP/s of dense (not sparse) matrix products in bf16, accumulated in fp32.
    """

    device_name: str
    memory_gib: float
    bf16_tflops: float


GPUS = {
    "a100-40gb": GPU("NVIDIA A100-SXM4-40GB", 39.5, 312.0),
    "a100-80gb": GPU("NVIDIA A100-SXM4-80GB", 79.2, 312.0),
    "h100": GPU("NVIDIA H100 80GB HBM3", 79.2, 989.0),
    "h200": GPU("NVIDIA H200", 139.8, 989.0),
    "b200": GPU("NVIDIA B200", 178.4, 2250.0),
}


def find_gpu(device_name: str) -> GPU | None:
    """The GPU that CUDA calls ``device_name``, or None."""
    return next((gpu for gpu in GPUS.values() if gpu.device_name == device_name), None)
