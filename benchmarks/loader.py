"""How much of bare JPEG decoding is left when a loader makes batches of it?

Times these ways to go through the same images with the same number of threads or worker processes, one after another in
every round, so that whatever else runs on the machine slows all of them alike:

    bare            cv2.imdecode of the same JPEG bytes in the same order, the pixels thrown away: what the field uses
    bare-turbo      the same with the decoder that facelab uses, simplejpeg: the upper bound
    facelab         TrainLoader: shuffled uint8 batches
    facelab+augment the same, then mirror, shift and normalise of each batch by one torch thread on the CPU (on a GPU
                    they cost the CPU nothing)
    dataloader      torch DataLoader, two worker processes, PIL and torchvision transforms image by image
    dali            DaliLoader on the CPU: facelab's batches, decoded by DALI (the two last where DALI is installed)
    dali-reader     DALI alone: its own reader of a .rec of the same images, which shuffles a window, and its decoder

Writes medians to results/loader.csv; a row of the same machine, versions and method is replaced. Ratios are medians of
the rounds' ratios; `load` is the machine's load average beforehand, well below 1 where nothing else was running.

    python benchmarks/loader.py --root data/faces_webface_112x112
"""

import argparse
import io
import platform
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
import torchvision
from PIL import Image
from recording import load, machine, record, today
from torchvision import transforms

from facelab.data.augment import Augment, normalise
from facelab.data.dali_loader import DaliLoader, check_installed
from facelab.data.plan import Plan
from facelab.data.recordio import RecordIOFaces
from facelab.data.torch_loader import TrainLoader
from facelab.pixels import decode
from facelab.training.strategy import keep_memory

SETTING = ["machine", "python", "torch", "opencv", "simplejpeg", "torchvision", "images", "threads", "batch_size"]
KEY = [*SETTING, "method"]
PREFETCH = 4
PASSES = 4  # epochs in a round: a loader is started once in a training, so its start should weigh little


class Rendered:
    """Smooth blobs with a little noise as JPEG bytes in memory: about the size of a face at quality 80."""

    size = 112

    def __init__(self, count: int) -> None:
        generator = np.random.default_rng(0)
        self.labels = np.arange(count) % 100
        self.files = []
        for _ in range(count):
            blobs = cv2.resize(generator.uniform(0, 255, (9, 9, 3)), (112, 112), interpolation=cv2.INTER_CUBIC)
            image = np.clip(blobs + generator.normal(0, 4, blobs.shape), 0, 255).astype(np.uint8)
            self.files.append(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].ravel())

    def __len__(self) -> int:
        return len(self.files)

    def encoded(self, index: int) -> np.ndarray:
        """JPEG bytes."""
        return self.files[index]

    def load(self, index: int, out: np.ndarray | None = None) -> np.ndarray:
        """Image (112,112,3), RGB."""
        return decode(self.files[index], out)


class OneByOne(torch.utils.data.Dataset):
    """The usual way: one image at a time, through PIL and torchvision."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.transform = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(0.5),
                transforms.RandomCrop(112, padding=4),
                transforms.ToTensor(),
                transforms.Normalize([0.5] * 3, [0.5] * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.open(io.BytesIO(self.source.encoded(index).tobytes())).convert("RGB")
        return self.transform(image), int(self.source.labels[index])


def pack(jpegs: list[np.ndarray], labels: np.ndarray, folder: Path) -> None:
    """Writes train.rec and train.idx, of images alone."""
    with open(folder / "train.rec", "wb") as rec, open(folder / "train.idx", "w") as idx:
        for key, (jpeg, label) in enumerate(zip(jpegs, labels.tolist(), strict=True)):
            payload = struct.pack("<IfQQ", 0, label, key, 0) + jpeg.tobytes()
            idx.write(f"{key}\t{rec.tell()}\n")
            rec.write(struct.pack("<II", 0xCED7230A, len(payload)) + payload + bytes(-len(payload) % 4))


def dali_reader(folder: Path, threads: int, batch_size: int, batches: int) -> int:
    """Goes through a pack as DALI does by itself, which pays its start too."""
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    pipeline = Pipeline(batch_size, threads, device_id=None, seed=0, prefetch_queue_depth=PREFETCH + 1)
    with pipeline:
        files = {"path": [str(folder / "train.rec")], "index_path": [str(folder / "train.idx")]}
        jpegs, labels = fn.readers.mxnet(**files, random_shuffle=True, initial_fill=1024)
        pixels = fn.decoders.image(jpegs, device="cpu", output_type=types.DALIImageType.RGB)
        pipeline.set_outputs(pixels, labels)
    return sum(len(torch.from_dlpack(pipeline.run()[0].as_tensor())) for _ in range(batches))


def dali_version() -> str:
    """DALI's; empty where it is not installed."""
    try:
        check_installed()
    except ValueError as error:
        print(f"without DALI: {error}")
        return ""
    from nvidia import dali

    return str(dali.__version__)


def methods(
    source: Any, subset: np.ndarray, threads: int, batch_size: int, packed: Path | None
) -> dict[str, Callable[[int], int]]:
    """Each takes the number of the round, goes through the images and returns how many it saw.

    Args:
        source: the images.
        subset: (n,) which of them.
        threads: of each.
        batch_size: images in a batch.
        packed: an empty folder for DALI's own reader; None where DALI is not installed.
    """
    return {
        **our_methods(source, subset, threads, batch_size),
        **dali_methods(source, subset, threads, batch_size, packed),
    }


def our_methods(source: Any, subset: np.ndarray, threads: int, batch_size: int) -> dict[str, Callable[[int], int]]:
    """Those that need no DALI."""
    plan = Plan(len(subset), batch_size, seed=0)
    jpegs = [source.encoded(int(index)) for index in subset]
    augment = Augment(mirror=0.5, crop=4)
    processes = torch.utils.data.DataLoader(
        torch.utils.data.Subset(OneByOne(source), subset.tolist()),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        persistent_workers=True,
    )

    def steps(number: int) -> range:
        count = PASSES * plan.steps_per_epoch
        return range(number * count, (number + 1) * count)

    def opencv(positions: list[int]) -> None:
        for position in positions:
            cv2.imdecode(jpegs[position], cv2.IMREAD_COLOR_RGB)

    def turbo(positions: list[int]) -> None:
        for position in positions:
            simplejpeg.decode_jpeg(jpegs[position], "RGB")

    def bare(number: int, decode: Callable[[list[int]], None] = opencv) -> int:
        order = np.concatenate([plan.indices(step) for step in steps(number)])
        parts = [part.tolist() for part in np.array_split(order, 16 * threads)]  # so that no thread waits for another
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(decode, parts))
        return len(order)

    def bare_turbo(number: int) -> int:
        return bare(number, turbo)

    def facelab(number: int) -> int:
        return sum(len(batch.images) for batch in loader(TrainLoader, source, subset, threads, plan, number))

    def facelab_augment(number: int) -> int:
        batches = loader(TrainLoader, source, subset, threads, plan, number)
        return sum(len(normalise(augment(batch.images, batch.draws))) for batch in batches)

    def dataloader(number: int) -> int:  # one pass: it is slow, and its workers stay
        return sum(len(images) for images, _ in processes)

    return {
        "bare": bare,
        "bare-turbo": bare_turbo,
        "facelab": facelab,
        "facelab+augment": facelab_augment,
        "dataloader": dataloader,
    }


def loader(made: Any, source: Any, subset: np.ndarray, threads: int, plan: Plan, number: int) -> TrainLoader:
    """A loader of the steps of a round."""
    first, stop = (at * PASSES * plan.steps_per_epoch for at in (number, number + 1))
    labels = source.labels[subset]
    return made(source, subset, labels, plan, 0, Augment.draws, first, stop, 0, 1, threads, PREFETCH, pin=False)


def dali_methods(
    source: Any, subset: np.ndarray, threads: int, batch_size: int, packed: Path | None
) -> dict[str, Callable[[int], int]]:
    """DALI in our order, and as it is; nothing where it is not installed."""
    if packed is None:
        return {}
    plan = Plan(len(subset), batch_size, seed=0)
    pack([source.encoded(int(index)) for index in subset], source.labels[subset], packed)

    def dali(number: int) -> int:
        return sum(len(batch.images) for batch in loader(DaliLoader, source, subset, threads, plan, number))

    def reader(number: int) -> int:
        return dali_reader(packed, threads, batch_size, PASSES * plan.steps_per_epoch)

    return {"dali": dali, "dali-reader": reader}


def measure(ways: dict[str, Callable[[int], int]], rounds: int) -> dict[str, list[float]]:
    """Images per second of each method in each round; the first round only warms up."""
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        names = list(ways)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = time.perf_counter()
            images = ways[name](number)
            if number:
                speeds[name].append(images / (time.perf_counter() - began))
    return speeds


def main() -> None:
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder with train.rec, train.idx and property; default: rendered JPEGs")
    parser.add_argument("--images", type=int, default=4096, help="images of one epoch (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="decoding threads (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="images in a batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds (default: %(default)s)")
    parser.add_argument("--dry", action="store_true", help="print only, record nothing")
    arguments = parser.parse_args()

    keep_memory()  # as a training on a CPU does
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    busy, dali = load(), dali_version()
    source = RecordIOFaces(arguments.root, 112) if arguments.root else Rendered(arguments.images)
    subset = np.linspace(0, len(source) - 1, min(arguments.images, len(source))).astype(np.int64)
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) if dali else None
        ways = methods(source, subset, arguments.threads, arguments.batch_size, packed)
        speeds = measure(ways, arguments.rounds)

    common = {
        "date": today(),
        "machine": machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "simplejpeg": simplejpeg.__version__,
        "torchvision": torchvision.__version__,
        "images": f"{Path(arguments.root).name if arguments.root else 'rendered'} ({len(subset)})",
        "threads": str(arguments.threads),
        "batch_size": str(arguments.batch_size),
        "load": busy,
        "rounds": str(arguments.rounds),
    }
    rows = []
    print(f"{'method':<16}{'images/s':>10}{'of bare':>9}{'× dataloader':>14}   (ratio to bare in each round)")
    for name, values in speeds.items():
        to_bare = [value / bare for value, bare in zip(values, speeds["bare"], strict=True)]
        to_loader = [value / other for value, other in zip(values, speeds["dataloader"], strict=True)]
        row = {
            "method": name,
            "dali": dali if name.startswith("dali") else "",
            "images_per_s": f"{statistics.median(values):.0f}",
            "ratio_to_bare": f"{statistics.median(to_bare):.3f}",
            "ratio_to_dataloader": f"{statistics.median(to_loader):.2f}",
        }
        rows.append({**common, **row})
        spread = " ".join(f"{ratio:.2f}" for ratio in to_bare)
        print(
            f"{name:<16}{row['images_per_s']:>10}{row['ratio_to_bare']:>9}{row['ratio_to_dataloader']:>14}   {spread}",
            flush=True,
        )
    if not arguments.dry:
        print(f"recorded in {record('loader', KEY, rows)}")


if __name__ == "__main__":
    main()
