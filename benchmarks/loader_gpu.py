"""Does the GPU ever wait? What each loader brings to it, what networks take, and what is left of that together.

    python benchmarks/loader_gpu.py --root data/faces_webface_112x112        # a .rec; without it, rendered JPEGs
    python benchmarks/loader_gpu.py --backbones r18 --batch-size 512 --threads 8

`alone`: images/s of a loader that nothing uses, its batches put on the device: TrainLoader (threads, page-locked
memory) and DaliLoader (CPU and GPU decode together, which is why a step may take longer beside it). `resident`:
images/s of training steps on a batch that lies on the device: mirror, shift, network, ArcFace, gradients, SGD, in bf16.
`loaded`: the same fed by the loader. `waiting` = 1 − loaded/resident, the share of the time that loading takes from
training; the aim is below 0.03. All of a round is measured one after another, and figures are medians over the rounds.

Results go to results/loader_gpu.csv.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from loader import PREFETCH, Rendered, dali_version
from recording import load, machine, record, today
from train_step import Setting, Training

from facelab.data.dali_loader import DaliLoader
from facelab.data.plan import Plan
from facelab.data.recordio import RecordIOFaces
from facelab.data.torch_loader import TrainLoader

COLUMNS = ("alone", "resident", "loaded", "waiting")
ENDLESS = 10**9  # steps
KEY = ["machine", "python", "torch", "images", "threads", "batch_size", "loader", "backbone"]
Batches = Iterator[tuple[Any, ...]]


def endless(made: Any, source: Any, given: argparse.Namespace, draws: int) -> Batches:
    """Batches on the device, of an order without end."""
    plan = Plan(len(source), given.batch_size, seed=0)
    where = (0, ENDLESS, 0, 1, given.threads, PREFETCH)
    for batch in made(source, np.arange(len(source)), source.labels, plan, 0, draws, *where, pin=True):
        yield tuple(part.to("cuda", non_blocking=True) for part in (batch.images, batch.labels, batch.draws))


def rate_alone(batches: Batches, given: argparse.Namespace) -> float:
    """Images/s of a loader that nothing uses."""
    for _ in range(2 * PREFETCH):  # what was ready before
        next(batches)
    torch.cuda.synchronize()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < given.seconds:
        count += len(next(batches)[0])
    torch.cuda.synchronize()
    return count / (time.perf_counter() - began)


def rate_of_steps(training: Training, batches: Batches, given: argparse.Namespace) -> float:
    """Images/s of training steps."""
    training.seconds(batches, 2 * PREFETCH)
    steps = max(4, round(given.seconds / training.seconds(batches, 4)))
    return given.batch_size / training.seconds(batches, steps)


def measure(source: Any, given: argparse.Namespace, loaders: dict[str, Any]) -> dict[tuple[str, str], list[dict]]:
    """(loader, backbone) → the figures of each round."""
    classes = int(source.labels.max()) + 1
    trainings = {
        backbone: Training(
            Setting(backbone, "facelab", "bf16", "channels_last", "off", "both", given.batch_size), classes, "cuda"
        )
        for backbone in given.backbones
    }
    found: dict[tuple[str, str], list[dict]] = {(name, backbone): [] for backbone in trainings for name in loaders}
    for number in range(given.rounds + 1):  # the first only warms up
        alone = {}
        for name, made in loaders.items():
            batches = endless(made, source, given, 3)
            alone[name] = rate_alone(batches, given)
            batches.close()  # type: ignore[attr-defined]
        for backbone, training in trainings.items():
            resident = rate_of_steps(training, training.resident(), given)
            for name, made in loaders.items():
                batches = endless(made, source, given, training.augment.draws)
                loaded = rate_of_steps(training, batches, given)
                batches.close()  # type: ignore[attr-defined]
                figures = (alone[name], resident, loaded, max(0.0, 1 - loaded / resident))
                if number:
                    found[name, backbone].append(dict(zip(COLUMNS, figures, strict=True)))
        print(f"round {number} of {given.rounds}", flush=True)
    return found


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--root", help="folder with train.rec, train.idx and property; default: rendered JPEGs")
    add("--images", type=int, default=16384, help="how many of those (default: %(default)s)")
    add("--backbones", nargs="+", default=["r18", "r34", "r50", "r100"], help="of conf/backbone")
    add("--threads", type=int, default=os.cpu_count(), help="of each loader (default: all cores)")
    add("--batch-size", type=int, default=256, help="images in a batch (default: %(default)s)")
    add("--seconds", type=float, default=5.0, help="of each measurement (default: %(default)s)")
    add("--rounds", type=int, default=3, help="measured rounds (default: %(default)s)")
    add("--dry", action="store_true", help="print only, record nothing")
    return parser


def main() -> None:
    """Measures, prints and records."""
    given = options().parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("loader_gpu.py measures a GPU, and torch sees none; loader.py measures the CPU")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    cv2.setNumThreads(1)
    busy, dali = load(), dali_version()
    source = RecordIOFaces(given.root, 112) if given.root else Rendered(given.images)
    found = measure(source, given, {"torch": TrainLoader, **({"dali": DaliLoader} if dali else {})})
    common = {
        "date": today(),
        "machine": f"{machine()}, {torch.cuda.get_device_name()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "images": f"{Path(given.root).name if given.root else 'rendered'} ({len(source)})",
        "threads": str(given.threads),
        "batch_size": str(given.batch_size),
        "load": busy,
        "rounds": str(given.rounds),
        "dali": dali,
    }
    rows = []
    print(f"{'loader':<8}{'backbone':<10}" + "".join(f"{column:>10}" for column in COLUMNS))
    for (name, backbone), rounds in found.items():
        medians = {column: statistics.median(one[column] for one in rounds) for column in COLUMNS}
        shown = {column: f"{value:.3f}" if column == "waiting" else f"{value:.0f}" for column, value in medians.items()}
        rows.append({**common, "loader": name, "backbone": backbone, **shown})
        print(f"{name:<8}{backbone:<10}" + "".join(f"{text:>10}" for text in shown.values()))
    if not given.dry:
        print(f"recorded in {record('loader_gpu', KEY, rows)}")


if __name__ == "__main__":
    main()
