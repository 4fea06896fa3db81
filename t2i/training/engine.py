"""The only file that knows DeepSpeed: processes, ZeRO, mixed precision, gathering by name.

Every tensor of the training state is a list of flat fp32 partitions, one list per `Kind`:
master weights, Adam's two moments, and the EMA that the trainer adds. `Engine.gather` and
`Engine.scatter` turn partitions into whole tensors by parameter name and back, so a checkpoint
holds safetensors that fit any world size and ZeRO stage.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from t2i.environment import free_port
from t2i.training.monitoring.watchdog import COLLECTIVES_MARGIN_MINUTES
from t2i.training.training_config import TrainingConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


def start_processes(timeout_minutes: float) -> torch.device:
    """Join the process group of the launcher (deepspeed, torchrun) or make one of one process.

    Returns the device of this process. Gloo on CPU, NCCL on CUDA. Collectives give up some minutes
    after ``timeout_minutes``, so that the watchdog, which says more, comes first.

    Raises:
        ValueError: the address of the group cannot be used, say by a port that is taken.
    """
    for name, value in _single_process_environment().items():
        os.environ.setdefault(name, value)
    on_cuda = torch.cuda.is_available()
    if not on_cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed = _import_deepspeed()
    local_rank = int(os.environ["LOCAL_RANK"])
    if on_cuda:
        torch.cuda.set_device(local_rank)
    else:
        _share_cores_between_processes()
    try:
        deepspeed.init_distributed(
            "nccl" if on_cuda else "gloo",
            verbose=False,
            timeout=timedelta(minutes=timeout_minutes + COLLECTIVES_MARGIN_MINUTES),
        )
    except torch.distributed.DistNetworkError as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ValueError(
            f"the processes cannot meet at {address} ({str(error).splitlines()[0]}); if another "
            "run uses that port, choose one: deepspeed --master_port 29501 ..."
        ) from error
    return torch.device("cuda", local_rank) if on_cuda else torch.device("cpu")


def stop_processes() -> None:
    """Leave the process group; the last thing a process does."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Engine:
    """A network under DeepSpeed's ZeRO with AdamW, fp32 masters and fp32 gradient accumulation.

    ``network`` is called like the module it wraps; `backward` and `step` are to be called once per
    micro-batch, and `step` updates the weights at every ``accumulation``-th call.

    Attributes:
        network: wrapped by DeepSpeed.
        parameters: of the model by name; under ZeRO 3 they are empty outside of a forward pass.
        num_parameters: elements of all of them when they are whole.
    """

    def __init__(
        self,
        network: nn.Module,
        model: nn.Module,
        config: TrainingConfig,
        world_size: int,
        refuses: Callable[[float], bool] = lambda norm: False,
    ) -> None:
        """``network`` is trained; ``model`` is the part of it whose parameter names are used.

        The fp32 weights of ``model`` are kept in full precision in the masters. ``refuses`` is asked
        before each update with the gradient's global norm, and must say the same on all ranks; when
        it says True, weights and moments stay as they are.
        """
        deepspeed = _import_deepspeed()
        self._refuses, self._was_refused = refuses, False
        self.parameters = dict(model.named_parameters())
        optimizer = _RefusingAdamW(
            network.parameters(),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,  # on a CPU too: an eighth of the time
        )
        exact = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        # of whole weights: ZeRO 3 leaves parameters without elements
        self.num_parameters = sum(tensor.numel() for tensor in exact.values())
        self.network, self._optimizer, _, _ = deepspeed.initialize(
            model=network, optimizer=optimizer, config=deepspeed_config(config, world_size)
        )
        self._adamw = optimizer
        optimizer.is_refused = self._is_refused
        self._start_moments()
        self.scatter(self.masters, exact)

    @property
    def masters(self) -> list[Tensor]:
        """This rank's flat fp32 partitions of the weights."""
        for attribute in (
            "fp32_partitioned_groups_flat",  # ZeRO 3
            "single_partition_of_fp32_groups",  # ZeRO 1 and 2
            "fp32_groups_flat_partition",  # ZeRO 1 with bf16: BF16_Optimizer
        ):
            if hasattr(self._optimizer, attribute):
                return list(getattr(self._optimizer, attribute))
        raise AssertionError(f"no fp32 partitions in {type(self._optimizer).__name__}")

    def moments(self, kind: str) -> list[Tensor]:
        """This rank's flat partitions of Adam's ``exp_avg`` or ``exp_avg_sq``."""
        return [self._adamw.state[master][kind] for master in self.masters]

    @property
    def optimizer_steps(self) -> int:
        """Number of updates applied so far (skipped steps do not count)."""
        return int(self._adamw.state[self.masters[0]]["step"])

    def set_optimizer_steps(self, steps: int) -> None:
        """Set AdamW's update count, which its bias correction depends on."""
        for master in self.masters:
            self._adamw.state[master]["step"].fill_(float(steps))

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a micro-batch's mean loss."""
        self.network.backward(loss)

    def step(self, learning_rate: float) -> None:
        """Count a micro-batch; at the last one of a step clip, update and clear the gradients."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._was_refused = False
        self.network.step()

    @property
    def was_applied(self) -> bool:
        """False when the last update was not made: gradient infinite, NaN, or refused."""
        return bool(self.network.was_step_applied()) and not self._was_refused

    @property
    def gradient_norm(self) -> float:
        """Global L2 norm of the last step's gradient, before clipping; inf if it was not finite."""
        return float(self.network.get_global_grad_norm())

    def gather(self, partitions: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """(name, whole fp32 tensor) of every parameter; all ranks must iterate to the end.

        ``partitions``: flat tensors laid out as `masters`. They take the masters' place meanwhile.
        """
        from deepspeed.utils import safe_get_full_fp32_param

        with _InPlaceOfMasters(self.masters, partitions):
            for name, parameter in self.parameters.items():
                yield name, safe_get_full_fp32_param(parameter)

    def scatter(self, partitions: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> None:
        """The reverse of `gather`: fill this rank's ``partitions`` from whole fp32 tensors."""
        from deepspeed.utils import safe_set_full_fp32_param

        device = self.masters[0].device
        with _InPlaceOfMasters(self.masters, partitions, keep=True):
            for name, parameter in self.parameters.items():
                safe_set_full_fp32_param(parameter, tensors[name].to(device, torch.float32))

    def close(self) -> None:
        """Remove DeepSpeed's hooks and threads; the engine cannot be used any more."""
        self.network.destroy()

    def _is_refused(self) -> bool:
        """Whether the update at hand is refused; asked by AdamW from within DeepSpeed's step.

        There the norm is known and the same on all ranks, but DeepSpeed shows it in public only
        afterwards, hence the private attribute (which all of its ZeRO optimizers have).
        """
        self._was_refused = self._refuses(float(self._optimizer._global_grad_norm))
        return self._was_refused

    def _start_moments(self) -> None:
        for master in self.masters:
            self._adamw.state[master] = {
                "step": torch.zeros((), dtype=torch.float32, device=master.device),
                **{kind: torch.zeros_like(master) for kind in MOMENTS},
            }


class _RefusingAdamW(torch.optim.AdamW):
    """AdamW whose step does nothing while ``is_refused`` says so.

    DeepSpeed's optimizers all end in the step of the one that they are given, with clipped gradients;
    around it they only copy and gather weights, which then come out as they were.
    """

    is_refused: Callable[[], bool] = staticmethod(lambda: False)

    def step(self, closure: Any = None) -> Any:
        """One update, or none."""
        return None if self.is_refused() else super().step(closure)


class _InPlaceOfMasters:
    """Within the context the masters hold the values of ``partitions`` (``keep``: written back)."""

    def __init__(
        self, masters: Sequence[Tensor], partitions: Sequence[Tensor], keep: bool = False
    ) -> None:
        self.pairs = [(m, p) for m, p in zip(masters, partitions, strict=True) if m is not p]
        self.keep = keep

    def __enter__(self) -> None:
        self.saved = [master.detach().clone() for master, _ in self.pairs]
        for master, partition in self.pairs:
            master.data.copy_(partition)

    def __exit__(self, *exception: object) -> None:
        for (master, partition), saved in zip(self.pairs, self.saved, strict=True):
            if self.keep:
                partition.copy_(master.data)
            master.data.copy_(saved)
        self.saved = []


def deepspeed_config(config: TrainingConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's dictionary, derived from the typed config alone."""
    return {
        "train_batch_size": config.global_batch,
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": config.accumulation(world_size),
        "gradient_clipping": config.gradient_clipping or 0.0,  # DeepSpeed: 0 = none
        "zero_optimization": {"stage": config.zero_stage, "contiguous_gradients": True},
        "bf16": {"enabled": config.precision == "bf16", "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }


def _import_deepspeed() -> Any:
    """DeepSpeed without its chatter and without ops that it would compile at run time.

    Its CPU backend builds a shared-memory op with a compiler and ninja; gloo does the same work.
    """
    import deepspeed
    import deepspeed.ops
    from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS

    deepspeed.ops.__compatible_ops__ = {}
    if _RefusingAdamW not in ZERO_SUPPORTED_OPTIMIZERS:
        ZERO_SUPPORTED_OPTIMIZERS.append(_RefusingAdamW)  # as torch's AdamW is
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


def _single_process_environment() -> dict[str, str]:
    if "RANK" in os.environ:
        return {"LOCAL_RANK": "0"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", **address}


def _share_cores_between_processes() -> None:
    """Give each process of a machine its share of the cores, unless OMP_NUM_THREADS says less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE")  # torchrun, deepspeed, neither
    local_processes = int(next(os.environ[name] for name in names if name in os.environ))
    share = max(1, (cores or 1) // local_processes)
    torch.set_num_threads(min(share, int(os.environ.get("OMP_NUM_THREADS", share))))
