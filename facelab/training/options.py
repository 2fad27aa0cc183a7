"""The trainer group of the configuration, checked before anything starts; and the same words for an evaluation."""

import math
from dataclasses import dataclass, fields

import torch

from facelab.kinds import check_kind, check_kinds

__all__ = ["ACCELERATORS", "PRECISIONS", "EvaluationOptions", "TrainerOptions", "check_kind", "check_kinds", "in_bf16"]

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
    checkpointing: bool
    deterministic: bool
    validate_every: float
    save_every_steps: int | None
    save_every_minutes: float | None
    save_in_background: bool
    log_every: int
    progress: bool
    ema: float | None
    sync_batchnorm: bool

    def __post_init__(self) -> None:
        for field in fields(self):
            check_kind(f"trainer.{field.name}", getattr(self, field.name), field.type)
        for name in ("epochs", "batch_size", "accumulate", "devices", "num_nodes", "log_every", "validate_every"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"trainer.{name} is {getattr(self, name)}: give a number above 0")
        for name in ("max_steps", "save_every_steps", "save_every_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"trainer.{name} is {value}: give a number above 0, or null for none")
        _check_device("trainer.", self.accelerator, self.precision)
        if self.checkpointing and self.compile:
            raise ValueError(
                "trainer.checkpointing=true with trainer.compile=true: torch.compile decides by itself what is "
                "computed again; choose one of the two"
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(
                f"trainer.ema is {self.ema}: give a decay between 0 and 1, such as 0.999, or null for no average"
            )
        if self.batch_size % self.world:
            raise ValueError(
                f"trainer.batch_size is {self.batch_size}, which {self.world} processes cannot share equally: give a "
                f"multiple of {self.world} (devices × nodes), since every rank must train on as many images"
            )
        if self.accumulate > self.share:
            raise ValueError(
                f"trainer.accumulate is {self.accumulate}, but a rank has only {self.share} images "
                "a step: give at most as many parts"
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
    def share(self) -> int:
        """Images of a step that one process takes."""
        return self.batch_size // self.world

    @property
    def about_processes(self) -> str:
        """For the summary, behind the device; nothing of one alone."""
        if self.world == 1:
            return ""
        norms = "of all" if self.sync_batchnorm else "each of its own"
        return f", {self.world} processes, {self.share} images a step each, batch norms {norms}"

    @property
    def on_gpu(self) -> bool:
        """Whether the run trains on GPUs."""
        return self.accelerator != "cpu" and torch.cuda.is_available()

    @property
    def lightning_precision(self) -> str:
        """Lightning's name of the precision."""
        return "bf16-mixed" if _in_bf16(self.precision, self.on_gpu) else "32-true"


@dataclass(frozen=True)
class EvaluationOptions:
    """On what a checkpoint is evaluated; each value is explained in conf/evaluate.yaml.

    Raises:
        ValueError: where a value is out of its range, or asks for a device that is not there.
    """

    batch_size: int
    accelerator: str
    precision: str
    progress: bool

    def __post_init__(self) -> None:
        for field in fields(self):
            check_kind(field.name, getattr(self, field.name), field.type)
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}: give a number above 0")
        _check_device("", self.accelerator, self.precision)

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU embeds."""
        return self.accelerator != "cpu" and torch.cuda.is_available()

    @property
    def in_bf16(self) -> bool:
        """Whether convolutions and matrix products are in bf16."""
        return _in_bf16(self.precision, self.on_gpu)


def in_bf16(prefix: str, precision: str, on_gpu: bool) -> bool:
    """Whether convolutions and matrix products are in bf16, for one of PRECISIONS.

    Raises:
        ValueError: it is another word; `prefix` stands before its name in the message.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"{prefix}precision is {precision!r}: give one of {', '.join(PRECISIONS)}")
    return _in_bf16(precision, on_gpu)


def _check_device(prefix: str, accelerator: str, precision: str) -> None:
    for name, value, known in (("precision", precision, PRECISIONS), ("accelerator", accelerator, ACCELERATORS)):
        if value not in known:
            raise ValueError(f"{prefix}{name} is {value!r}: give one of {', '.join(known)}")
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError(
            f"{prefix}accelerator=gpu asks for CUDA, and torch sees no GPU here: use {prefix}accelerator=cpu, or "
            "check the driver (nvidia-smi) and that torch is a CUDA build"
        )


def _in_bf16(precision: str, on_gpu: bool) -> bool:
    """`auto` takes bf16 wherever the hardware is faster in it."""
    native = torch.cuda.is_bf16_supported() if on_gpu else _cpu_multiplies_bf16()
    return precision == "bf16" or (precision == "auto" and native)


def _cpu_multiplies_bf16() -> bool:
    """Whether the processor is faster in bf16: with AMX, or AMD's AVX-512 BF16; elsewhere bf16 only costs time.

    Intel's AVX-512 BF16 without AMX trains r18 at 0.78 of the rate of fp32, AMD's at 2.1: results/train_step.csv.
    """
    try:
        with open("/proc/cpuinfo") as file:
            flags = file.read()
    except OSError:
        return False
    return "amx_bf16" in flags or ("avx512_bf16" in flags and "AuthenticAMD" in flags)
