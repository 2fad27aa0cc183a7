"""Images per second and peak memory of a training step: backbone, precision, memory layout, compilation, batch.

A step is what a training does on the device: uint8 images → mirror and shift → [−1,1] → backbone → ArcFace → gradients
→ clipping → SGD, built from the same configuration (`conf/`) and with the same parts. Every setting has a process of
its own; in every round each measures for a moment, one after another, so that whatever else the machine does slows all
alike. Ratios are medians of the rounds' ratios, to the same backbone and batch in fp32, contiguous, not compiled.

    python benchmarks/train_step.py                                # tiny, mbf and r18 on a CPU, r50 and r100 on a GPU
    python benchmarks/train_step.py --backbones tiny --precisions bf16 --ours both prelu memory none --batch 128
    python benchmarks/train_step.py --backbones r50 r100 --precisions bf16 --batch 128 256 512 1024

`--plain` adds the network as it is usually run: contiguous, torch's own PReLU, fp16 autocast with a gradient scaler,
images transformed one by one in the workers of a DataLoader. `--data` also measures with a loader that decodes JPEGs
(ours, or that one): `waiting` is the share of the time that this takes from the steps. On a GPU both are on by default.
`share_of_gemm`: 3 × the network's 2·MACs for forward and backward, over the rate of a bare bf16 matrix product measured
in the same rounds. Memory is what torch allocated on a GPU at most, on a CPU the largest resident size of the process.

Results go to results/train_step.csv; `load` is the machine's load average beforehand, below 0.7 on a quiet machine.
"""

import argparse
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from recording import load, machine, record, today

CONF = Path(__file__).resolve().parents[1] / "conf"
IMAGES = 2048  # JPEGs of the loader's epoch
GEMM = "gemm"


@dataclass(frozen=True)
class Setting:
    """What a process measures."""

    backbone: str  # an option of conf/backbone, or `gemm`: a bare matrix product
    way: str  # facelab, plain
    precision: str  # fp32, bf16, fp16
    layout: str  # channels_last, contiguous
    compile: str  # on, off
    ours: str  # our PReLU and memory setting, which make a difference on a CPU: both, prelu, memory, none
    batch: int

    @property
    def is_reference(self) -> bool:
        """Whether others of the same backbone and batch are compared with it."""
        return (self.way, self.precision, self.layout, self.compile, self.ours) == (
            *("facelab", "fp32", "contiguous", "off", "both"),
        )


class Training:
    """A network in training, and how it takes a step.

    Args:
        setting: which.
        classes: identities C of the loss.
        device: cpu or cuda.
    """

    def __init__(self, setting: Setting, classes: int, device: str):
        import torch
        from hydra import compose, initialize_config_dir
        from hydra.utils import instantiate
        from torch import nn

        from facelab.backbone.complexity import count_macs
        from facelab.backbone.prelu import PReLU
        from facelab.training.network import build_backbone
        from facelab.training.objective import build_loss
        from facelab.training.strategy import keep_memory

        if setting.ours in ("both", "memory") and device == "cpu":
            keep_memory()
        if setting.ours in ("none", "memory"):
            PReLU.forward = nn.PReLU.forward  # type: ignore[method-assign]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", [f"backbone={setting.backbone}"])
        torch.manual_seed(0)
        self.setting, self.device, self.size = setting, torch.device(device), config.data.size
        network = build_backbone(config.backbone, load=False)
        self.flops = 3 * 2 * count_macs(network, self.size)  # of an image, forward and backward
        loss = build_loss(config.loss, network.embedding_size, classes)
        layout = getattr(torch, f"{setting.layout}_format" if setting.layout == "contiguous" else setting.layout)
        head = instantiate(config.head, embedding_size=network.embedding_size)
        self.model = nn.ModuleList([network.to(memory_format=layout), head, loss]).to(device)
        if setting.compile == "on":
            self.model[0].compile()
        self.augment, self.recipe = instantiate(config.data.augment), instantiate(config.optimizer)
        self.optimizer = self.recipe.build(self.model)
        self.scaler = torch.amp.GradScaler(device, enabled=setting.precision == "fp16")
        self.classes, self.number = classes, 0
        self.model.train()

    def step(self, images: Any, labels: Any, draws: Any) -> None:
        """One step on images (B,H,W,3) uint8 with draws, or on images (B,3,H,W) that are normalised already."""
        import torch

        from facelab.data.augment import normalise
        from facelab.training.strategy import clip_gradients

        backbone, head, loss = self.model
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.setting.precision)
        self.optimizer.zero_grad()
        if draws is not None:
            images = normalise(self.augment(images, draws))
        if self.setting.layout == "contiguous":
            images = images.contiguous()
        with torch.autocast(self.device.type, kind) if kind else nullcontext():
            value = loss(head(backbone(images)), labels, self.number).loss
        self.scaler.scale(value).backward()
        self.scaler.unscale_(self.optimizer)
        clip_gradients([p for p in self.model.parameters() if p.grad is not None], [], self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.number += 1

    def resident(self) -> Iterator[tuple[Any, ...]]:
        """The same random batch again and again, on the device already."""
        import torch

        shape, batch = (self.setting.batch, self.size, self.size, 3), self.setting.batch
        images = torch.randint(0, 255, shape, dtype=torch.uint8, device=self.device)
        draws = torch.rand(batch, self.augment.draws, device=self.device)
        labels = torch.randint(0, self.classes, (batch,), device=self.device)
        if self.setting.way == "plain":  # its workers would have normalised them
            images, draws = images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous(), None
        while True:
            yield images, labels, draws

    def loaded(self, workers: int) -> Iterator[tuple[Any, ...]]:
        """Batches decoded from JPEGs: by our loader, or by the DataLoader that is usual."""
        import numpy as np
        import torch
        from loader import OneByOne, Rendered

        from facelab.data.plan import Plan
        from facelab.data.torch_loader import TrainLoader

        batch, pin = self.setting.batch, self.device.type == "cuda"
        source = Rendered(max(IMAGES, 2 * batch))
        source.labels = source.labels % self.classes
        if self.setting.way == "plain":
            usual = torch.utils.data.DataLoader(
                OneByOne(source),
                batch_size=batch,
                shuffle=True,
                drop_last=True,
                num_workers=workers,
                pin_memory=pin,
                persistent_workers=True,
            )
            while True:
                for images, labels in usual:
                    yield self._put(images), self._put(labels), None
        own = TrainLoader(
            source,
            np.arange(len(source)),
            source.labels,
            Plan(len(source), batch, 0),
            seed=0,
            draws=self.augment.draws,
            start=0,
            stop=10**9,
            rank=0,
            world=1,
            threads=workers,
            prefetch=4,
            pin=pin,
        )
        for part in own:
            yield self._put(part.images), self._put(part.labels), self._put(part.draws)

    def _put(self, tensor: Any) -> Any:
        return tensor.to(self.device, non_blocking=True)

    def seconds(self, batches: Iterator[tuple[Any, ...]], steps: int) -> float:
        """Of a step: the mean over some."""
        import torch

        wait = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None
        wait()
        began = time.perf_counter()
        for _ in range(steps):
            self.step(*next(batches))
        wait()
        return (time.perf_counter() - began) / steps


def gemm_rate(device: str) -> float:
    """Floating-point operations a second of a square bf16 matrix product."""
    import torch

    n = 8192 if device == "cuda" else 1024
    left, right = (torch.randn(n, n, dtype=torch.bfloat16, device=device) for _ in range(2))
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = []
    for _ in range(23 if device == "cuda" else 8):
        wait()
        began = time.perf_counter()
        left @ right
        wait()
        times.append(time.perf_counter() - began)
    return 2 * n**3 / statistics.median(times[3:])


def peak_memory(device: str) -> float:
    """MiB: what torch allocated on a GPU at most, on a CPU the largest resident size of this process."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    except (OSError, IndexError):  # not Linux
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class Worker:
    """The process of a setting: measures once for every line of its input, and prints what it found as JSON.

    On a CPU what has been built stays for the next round. On a GPU it makes room for the others.
    """

    def __init__(self, setting: Setting, given: argparse.Namespace):
        import torch

        self.setting, self.given, self.training = setting, given, None
        self.device = "cuda" if torch.cuda.is_available() and not given.cpu else "cpu"
        if self.device == "cuda":  # as a training on a GPU does
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")

    def measure(self) -> dict[str, float]:
        """One round."""
        import torch

        if self.setting.backbone == GEMM:
            return {"gemm": gemm_rate(self.device)}
        try:
            return self._measure()
        except torch.OutOfMemoryError:
            return {}
        finally:
            if self.device == "cuda":
                self.training = None
                gc.collect()
                torch.cuda.empty_cache()

    def _measure(self) -> dict[str, float]:
        import torch

        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if self.training is None:
            self.training = Training(self.setting, self.given.classes, self.device)
            self.batches = self.training.resident()
            self.images = self.training.loaded(self.given.workers) if self.given.data else None
            for batches in filter(None, (self.images, self.batches)):
                self.training.seconds(batches, 1)  # compiles, chooses algorithms, allocates
                self.steps = max(2, math.ceil(self.given.seconds / self.training.seconds(batches, 1)))
        seconds = self.training.seconds(self.batches, self.steps)
        found = {"seconds": seconds, "flops": self.training.flops, "memory": peak_memory(self.device)}
        if self.images:
            found["seconds_loaded"] = self.training.seconds(self.images, self.steps)
        return found


def settings(given: argparse.Namespace) -> list[Setting]:
    """What is asked for; without asking, what a CPU or a GPU is usually run with; and what these are compared with."""
    found: dict[Setting, None] = {Setting(GEMM, "", "bf16", "", "", "", 0): None}
    for backbone, batch in product(given.backbones, given.batch):
        found[Setting(backbone, "facelab", "fp32", "contiguous", "off", "both", batch)] = None
        choices = product(given.precisions, given.layouts, given.compile, given.ours)
        found.update(dict.fromkeys(Setting(backbone, "facelab", *choice, batch) for choice in choices))
        if given.plain:
            found[Setting(backbone, "plain", "fp16", "contiguous", "off", "none", batch)] = None
    return list(found)


def measure(which: list[Setting], arguments: list[str], rounds: int) -> dict[Setting, list[dict[str, float]]]:
    """What each process found in each round."""
    command = [sys.executable, __file__, *arguments, "--worker"]
    started: dict[Setting, subprocess.Popen] = {}
    found: dict[Setting, list[dict[str, float]]] = {setting: [] for setting in which}
    try:
        for number in range(rounds):
            turn = number * len(which) // rounds  # none is always the first
            for setting in which[turn:] + which[:turn]:
                if setting not in started:
                    words = [*command, json.dumps(asdict(setting))]
                    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
                    started[setting] = subprocess.Popen(words, **pipes)
                process = started[setting]
                process.stdin.write("go\n")
                process.stdin.flush()
                answer = process.stdout.readline()
                if not answer:
                    raise SystemExit(f"the process of {setting} ended with {process.wait()}")
                found[setting].append(json.loads(answer))
            print(f"round {number + 1} of {rounds}", flush=True)
    finally:
        for process in started.values():
            process.communicate()  # closes its input: it ends
    return found


def summary(setting: Setting, found: dict[Setting, list[dict[str, float]]]) -> dict[str, str]:
    """Medians over the rounds, as columns of the table; empty where it did not fit into memory."""
    own = found[setting]
    names = ("images_per_s", "ratio", "share_of_gemm", "peak_memory_mib", "images_per_s_loaded", "waiting")
    row = dict.fromkeys(names, "")
    if not all(own):
        return row
    rates = [setting.batch / one["seconds"] for one in own]
    row["images_per_s"] = f"{statistics.median(rates):.3g}" if rates[0] < 100 else f"{statistics.median(rates):.0f}"
    gemm = [one["gemm"] for setting, rounds in found.items() for one in rounds if setting.backbone == GEMM]
    shares = [rate * one["flops"] / peak for rate, one, peak in zip(rates, own, gemm, strict=True)]
    row["share_of_gemm"] = f"{statistics.median(shares):.3f}"
    row["peak_memory_mib"] = f"{max(one['memory'] for one in own):.0f}"
    for other, theirs in found.items():
        if (other.backbone, other.batch) == (setting.backbone, setting.batch) and other.is_reference and all(theirs):
            ratios = [a["seconds"] / b["seconds"] for a, b in zip(theirs, own, strict=True)]
            row["ratio"] = f"{statistics.median(ratios):.2f}"
    if "seconds_loaded" in own[0]:
        loaded = statistics.median(setting.batch / one["seconds_loaded"] for one in own)
        row["images_per_s_loaded"] = f"{loaded:.3g}" if loaded < 100 else f"{loaded:.0f}"
        waiting = statistics.median(1 - one["seconds"] / one["seconds_loaded"] for one in own)
        row["waiting"] = f"{max(waiting, 0.0):.3f}"
    return row


def options() -> argparse.ArgumentParser:
    """The command line."""
    import torch

    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--backbones", nargs="+", default=["r50", "r100"] if gpu else ["tiny", "mbf", "r18"], help="of conf/backbone")
    add("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    add("--layouts", nargs="+", choices=("channels_last", "contiguous"), default=["channels_last"])
    add("--compile", nargs="+", choices=("on", "off"), default=["off"])
    add("--ours", nargs="+", choices=("both", "prelu", "memory", "none"), default=["both"])
    add("--batch", nargs="+", type=int, default=[256] if gpu else [32], help="images of a step")
    add("--classes", type=int, default=10_572, help="identities; default: as many as CASIA-WebFace has")
    add("--plain", action=argparse.BooleanOptionalAction, default=gpu, help="the network as it is usually run, too")
    add("--data", action=argparse.BooleanOptionalAction, default=gpu, help="with a loader, too")
    add("--workers", type=int, default=os.cpu_count(), help="decoding threads, or the usual way's processes")
    add("--rounds", type=int, default=3)
    add("--seconds", type=float, default=2.0 if gpu else 1.0, help="least time of a measurement")
    add("--cpu", action="store_true", help="measure on the CPU, although there is a GPU")
    add("--dry", action="store_true", help="print only, record nothing")
    add("--worker", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Measures, prints and records."""
    given = options().parse_args()
    if given.worker:
        answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what a library prints is not an answer
        worker = Worker(Setting(**json.loads(given.worker)), given)
        for _ in sys.stdin:
            print(json.dumps(worker.measure()), file=answers, flush=True)
        return
    import torch

    began, busy, which = time.monotonic(), load(), settings(given)
    found = measure(which, sys.argv[1:], given.rounds)
    on_gpu = torch.cuda.is_available() and not given.cpu
    where = {
        "date": today(),
        "machine": machine() + (f", {torch.cuda.get_device_name()}" if on_gpu else ""),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    rows = []
    for setting in which:
        if setting.backbone != GEMM:
            asked = {key: str(value) for key, value in asdict(setting).items()}
            last = {"load": busy, "rounds": str(given.rounds)}
            rows.append({**where, **asked, "classes": str(given.classes), **summary(setting, found), **last})
    shown = [key for key in rows[0] if key not in (*where, "classes", "load", "rounds")]
    widths = [max(len(key), *(len(row[key]) for row in rows)) for key in shown]
    for line in ({key: key for key in shown}, *rows):
        print("  ".join(line[key].ljust(width) for key, width in zip(shown, widths, strict=True)))
    gemm = statistics.median(one["gemm"] for one in found[which[0]])
    print(f"bare bf16 matrix product: {gemm / 1e12:.3g} TFLOP/s; {(time.monotonic() - began) / 60:.1f} minutes in all")
    if not given.dry:
        key = ["machine", "python", "torch", *asdict(which[0]), "classes"]
        print(f"recorded in {record('train_step', key, rows)}")


if __name__ == "__main__":
    main()
