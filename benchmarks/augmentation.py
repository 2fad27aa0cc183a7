"""What augmentation costs: time for each image, and what a loader with albumentations still brings.

In every round, one after another, each way goes through the same images on one core:

    decode          JPEG bytes to pixels
    mirror_crop     data/augment=mirror_crop, in batches
    adaface         data/augment=adaface, in batches
    albumentations  decoded, then the list below, one image at a time

and then on all cores the loaders: `threads` decode; `processes` decode and apply the list.

Writes medians to results/augmentation.csv, as ratios to decode and to threads of the same round.

    python benchmarks/augmentation.py --root data/faces_webface_112x112
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import torch
from recording import load, machine, record, today

from facelab.data.adaface_augment import AdaFaceAugment
from facelab.data.albumentation import Albumentations
from facelab.data.augment import Augment
from facelab.data.plan import Plan, sample_seeds, uniforms
from facelab.data.process_loader import ProcessLoader
from facelab.data.recordio import RecordIOFaces
from facelab.data.torch_loader import TrainLoader

BATCH = 128
LIST = [
    {"GaussianBlur": {"p": 0.2}},
    {"ISONoise": {"p": 0.2}},
    {"ImageCompression": {"p": 0.2}},
    {"RandomBrightnessContrast": {"p": 0.3}},
    {"OneOf": {"transforms": ["ToGray", "MotionBlur", "Downscale"], "p": 0.3}},
]


def ways(faces: RecordIOFaces, count: int, workers: int) -> dict[str, Callable[[int], int]]:
    """Each takes the number of the round, and returns how many images it went through."""
    subset = np.linspace(0, len(faces) - 1, count).astype(np.int64)
    pixels = torch.from_numpy(np.stack([faces.load(int(index)) for index in subset]))
    transforms = Albumentations(LIST)
    plan = Plan(count, BATCH, seed=0)
    steps = plan.steps_per_epoch
    common = {"source": faces, "subset": subset, "labels": faces.labels[subset], "plan": plan, "seed": 0, "draws": 3}
    common |= {"rank": 0, "world": 1, "prefetch": 4, "pin": False}

    def decode(number: int) -> int:
        return sum(faces.load(int(index)).shape[-1] // 3 for index in subset)

    def on_device(augment: torch.nn.Module) -> Callable[[int], int]:
        def run(number: int) -> int:
            draws = torch.from_numpy(uniforms(0, number, subset, augment.draws))
            return sum(len(augment(*part)) for part in zip(pixels.split(BATCH), draws.split(BATCH), strict=True))

        return run

    def albumentations(number: int) -> int:
        seeds = sample_seeds(0, number, subset).tolist()
        return sum(len(transforms(faces.load(int(i)), seed)) > 0 for i, seed in zip(subset, seeds, strict=True))

    def loaded(make: Callable[..., TrainLoader]) -> Callable[[int], int]:
        # Processes live as long as the iterator, a validation's stretch of training: their start weighs little there.
        return lambda number: sum(len(batch.images) for batch in make(start=0, stop=4 * steps))

    return {
        "decode": decode,
        "mirror_crop": on_device(Augment(mirror=0.5, crop=4)),
        "adaface": on_device(AdaFaceAugment(0.5, 0.2, 0.2, 0.2, 0.2, 0.2, 0.5)),
        "albumentations": albumentations,
        "threads": loaded(lambda **stretch: TrainLoader(**common, **stretch, threads=workers)),
        "processes": loaded(lambda **stretch: ProcessLoader(transforms, workers, **common, **stretch)),
    }


def main() -> None:
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with train.rec, train.idx and property")
    parser.add_argument("--images", type=int, default=2048, help="images of a round (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads, processes (default: all cores)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    busy = load()
    measured = ways(RecordIOFaces(options.root, 112), options.images // BATCH * BATCH, options.workers)
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for number in range(options.rounds + 1):  # the first only warms up
        for name, way in measured.items():
            began = time.perf_counter()
            images = way(number)
            if number:
                seconds[name].append((time.perf_counter() - began) / images)
    rows = []
    for name, values in seconds.items():
        base = "threads" if name in ("threads", "processes") else "decode"
        ratio = statistics.median(value / other for value, other in zip(values, seconds[base], strict=True))
        rows.append(
            {
                "date": today(),
                "machine": machine(),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "albumentations": metadata.version("albumentations"),
                "images": f"{Path(options.root).name} ({options.images})",
                "way": name,
                "workers": str(options.workers if base == "threads" else 1),
                "us_per_image": f"{1e6 * statistics.median(values):.1f}",
                "compared_with": base,
                "times": f"{ratio:.2f}",
                "rounds": str(options.rounds),
                "load": busy,
            }
        )
        print(f"{name:15}{rows[-1]['us_per_image']:>8} µs an image {ratio:>8.2f} × {base}", flush=True)
    key = ["machine", "python", "torch", "albumentations", "images", "way", "workers"]
    print(f"recorded in {record('augmentation', key, rows)}")


if __name__ == "__main__":
    main()
