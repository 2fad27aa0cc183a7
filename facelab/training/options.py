"""The trainer group of the configuration, checked before anything starts."""

import math
from dataclasses import dataclass, fields
from typing import Any, get_args

import torch

PRECISIONS = ("auto", "bf16", "fp32")
ACCELERATORS = ("auto", "cpu", "gpu")


@dataclass(frozen=True)
class TrainerOptions:
    """How long, how large, on what; each value is explained in conf/trainer/default.yaml.

    Raises:
        ValueError: where a value is out of its range, or asks for a device that is not there.
    """

    epochs: int
    max_steps: int | None
    batch_size: int
    accumulate: int
    accelerator: str
    devices: int
    num_nodes: int
    precision: str
    compile: bool
    deterministic: bool
    validate_every: float
    save_every_steps: int | None
    save_every_minutes: float | None
    log_every: int
    progress: bool

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_kind(field.name, getattr(self, field.name), get_args(field.type) or (field.type,))
        for name in ("epochs", "batch_size", "accumulate", "devices", "num_nodes", "log_every", "validate_every"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"trainer.{name} is {getattr(self, name)}: give a number above 0")
        for name in ("max_steps", "save_every_steps", "save_every_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"trainer.{name} is {value}: give a number above 0, or null for none")
        for name, known in (("precision", PRECISIONS), ("accelerator", ACCELERATORS)):
            if getattr(self, name) not in known:
                raise ValueError(f"trainer.{name} is {getattr(self, name)!r}: give one of {', '.join(known)}")
        if self.batch_size % self.world:
            raise ValueError(
                f"trainer.batch_size is {self.batch_size}, which {self.world} processes cannot share equally: give a "
                f"multiple of {self.world} (devices × nodes), since every rank must train on as many images"
            )
        if self.accumulate > self.batch_size // self.world:
            raise ValueError(
                f"trainer.accumulate is {self.accumulate}, but a rank has only {self.batch_size // self.world} images "
                "a step: give at most as many parts"
            )
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ValueError(
                "trainer.accelerator=gpu asks for CUDA, and torch sees no GPU here: use trainer.accelerator=cpu, or "
                "check the driver (nvidia-smi) and that torch is a CUDA build"
            )
        if self.on_gpu and self.devices > torch.cuda.device_count():
            raise ValueError(
                f"trainer.devices is {self.devices}, but there are {torch.cuda.device_count()} GPUs here: give at most "
                "as many"
            )

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.devices * self.num_nodes

    @property
    def on_gpu(self) -> bool:
        """Whether the run trains on GPUs."""
        return self.accelerator != "cpu" and torch.cuda.is_available()

    @property
    def lightning_precision(self) -> str:
        """Lightning's name of the precision; `auto` takes bf16 wherever the hardware multiplies it natively."""
        native = torch.cuda.is_bf16_supported() if self.on_gpu else _cpu_multiplies_bf16()
        if self.precision == "bf16" or (self.precision == "auto" and native):
            return "bf16-mixed"
        return "32-true"


def _check_kind(name: str, value: Any, kinds: tuple[Any, ...]) -> None:
    """Refuses a value that is of none of the kinds; a whole number may stand for a float, a bool for no number."""
    accepted = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ValueError(f"trainer.{name} is {value!r}: give a value of type {names}")


def _cpu_multiplies_bf16() -> bool:
    """Whether the processor has bf16 instructions (AVX-512 BF16 or AMX); without them bf16 only costs time."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = file.read()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
