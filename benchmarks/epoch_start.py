"""How long until the first batch: the start of an epoch on 40 million images, and of a .rec of as many.

    python benchmarks/epoch_start.py                                  # 40M images; a .rec of a million records
    python benchmarks/epoch_start.py --records 42474557               # as many as WebFace42M: 3 GB of disk, minutes

`epoch`: from a loader that stands to the first batch in hand, at the beginning of an epoch; `extra` is the most memory
that numpy asked for meanwhile, beside the labels and positions that exist: an order of 40 million would be 320 MB. The
images are of one pixel and the same: what is measured is the order.

`open`: RecordIOFaces on a made-up pack with a header, images of four bytes, and a record for each identity (20 images
each) at the end, as InsightFace's are: at first, and with the index that the first opening kept, each in a process of
its own; `own` is by how much its own memory grew, without what is mapped from files. The system has the files in
memory, as after any reading of them.

Aims: an epoch below 0.1 s, a kept index below 3 s. Results go to results/epoch_start.csv; what was made is deleted.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from recording import load, machine, record, today

from facelab.data import record_index
from facelab.data.plan import Plan
from facelab.data.recordio import RecordIOFaces
from facelab.data.torch_loader import TrainLoader

KEY = ["machine", "python", "torch", "what", "count"]
IMAGES_EACH = 20  # of an identity
CHUNK = 1 << 20  # records made at once
MAGIC = 0xCED7230A
HEAD = [("magic", "<u4"), ("length", "<u4"), ("flag", "<u4"), ("label", "<f4"), ("id", "<u8"), ("id2", "<u8")]
IMAGE = np.dtype([*HEAD, ("image", "<u4")])
RANGE = np.dtype([*HEAD, ("first", "<f4"), ("end", "<f4")])
BYTES = IMAGE.itemsize + 21 + 16  # of a record: in the pack, in the index, in the index that is kept


class Dots:
    """Images of one pixel."""

    size = 1

    def __init__(self, count: int) -> None:
        self.labels = np.arange(count) // IMAGES_EACH

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int, out: np.ndarray | None = None) -> np.ndarray:
        """The same for all."""
        return np.zeros((1, 1, 3), np.uint8)


def start_epochs(images: int, batch_size: int, epochs: int) -> tuple[float, float]:
    """Seconds until the first batch of an epoch, the median over some, and the most MiB that were asked for."""
    source, subset = Dots(images), np.arange(images)
    seconds, extra = [], []
    for epoch in range(epochs):
        for traced in (False, True):  # tracing takes its time
            if traced:
                tracemalloc.start()
            began = time.perf_counter()
            plan = Plan(images, batch_size, seed=1)
            step = epoch * plan.steps_per_epoch
            loader = TrainLoader(source, subset, source.labels, plan, 1, 3, step, step + 9, 0, 1, 2, 4, pin=False)
            iterator = iter(loader)
            batch = next(iterator)
            seconds += [] if traced else [time.perf_counter() - began]
            iterator.close()  # type: ignore[attr-defined]
            assert len(batch.indices.unique()) == batch_size
            if traced:
                extra.append(tracemalloc.get_traced_memory()[1] / 2**20)
                tracemalloc.stop()
    return median(seconds), max(extra)


def records(kind: np.dtype, count: int, flag: int) -> np.ndarray:
    """Records of which nothing but the frame is set."""
    made = np.zeros(count, kind)
    made["magic"], made["length"], made["flag"] = MAGIC, kind.itemsize - 8, flag
    return made


def make_pack(folder: Path, images: int) -> None:
    """Writes train.rec, train.idx and property."""
    people = -(-images // IMAGES_EACH)
    (folder / "property").write_text(f"{people},112,112\n")
    with open(folder / "train.rec", "wb") as rec, open(folder / "train.idx", "w") as idx:
        key = 0

        def put(made: np.ndarray) -> None:
            nonlocal key
            offsets = rec.tell() + np.arange(len(made)) * made.itemsize
            idx.writelines(map("%d\t%d\n".__mod__, enumerate(offsets.tolist(), start=key)))
            made.tofile(rec)
            key += len(made)

        header = records(RANGE, 1, 2)
        header["first"], header["end"] = images + 1, images + 1 + people
        put(header)
        for begin in range(0, images, CHUNK):
            part = records(IMAGE, min(CHUNK, images - begin), 0)
            part["label"] = np.arange(begin, begin + len(part)) // IMAGES_EACH
            put(part)
            print(f"\r{begin + len(part):,} of {images:,} records", end="", flush=True)
        for begin in range(0, people, CHUNK):
            part = records(RANGE, min(CHUNK, people - begin), 2)
            part["first"] = np.arange(begin, begin + len(part)) * IMAGES_EACH + 1
            part["end"] = np.minimum(part["first"] + IMAGES_EACH, images + 1)
            put(part)
    print(flush=True)


def own_memory() -> float:
    """MiB of this process that are of no file; on Linux."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 2**10


def open_pack(folder: str) -> dict[str, float]:
    """Seconds and MiB of an opening, in this process."""
    before = own_memory()
    record_index.WORTH = 1
    began = time.perf_counter()
    faces = RecordIOFaces(folder, 112)
    seconds = time.perf_counter() - began
    assert faces.labels[-1] == faces.num_classes - 1
    return {"seconds": seconds, "own": own_memory() - before}


def opened(folder: Path) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--open", str(folder)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def open_packs(images: int, where: str | None, rounds: int) -> dict[str, dict[str, float]]:
    """What the first opening takes, and the later ones (medians)."""
    with tempfile.TemporaryDirectory(prefix="epoch_start-", dir=where) as name:
        folder = Path(name)
        free, needed = shutil.disk_usage(folder).free, images * BYTES
        if free < 1.2 * needed:
            raise SystemExit(
                f"{folder} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are needed: give --folder"
            )
        make_pack(folder, images)
        first = opened(folder)
        later = [opened(folder) for _ in range(rounds)]
        return {
            "open at first": first,
            "open with a kept index": {key: median(one[key] for one in later) for key in first},
        }


def main() -> None:
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40_000_000, help="of the epoch (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=1024, help="(default: %(default)s)")
    parser.add_argument("--records", type=int, default=1_000_000, help="of the pack (default: %(default)s)")
    parser.add_argument("--folder", help="where the pack is made for a while; default: the system's")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--dry", action="store_true", help="print only, record nothing")
    parser.add_argument("--open", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.open:
        print(json.dumps(open_pack(given.open)))
        return
    busy = load()
    seconds, extra = start_epochs(given.images, given.batch_size, given.rounds)
    found: dict[str, tuple[int, dict[str, Any]]] = {"epoch": (given.images, {"seconds": seconds, "extra": extra})}
    print(f"epoch of {given.images:,} images: {seconds:.3f} s, {extra:.1f} MiB", flush=True)
    for what, figures in open_packs(given.records, given.folder, given.rounds).items():
        found[what] = given.records, figures
        print(f"{what}, {given.records:,} records: {figures['seconds']:.2f} s, {figures['own']:.0f} MiB", flush=True)
    rows = [
        {
            "date": today(),
            "machine": machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "what": what,
            "count": str(count),
            "seconds": f"{figures['seconds']:.4f}",
            "extra_mib": f"{figures['extra' if what == 'epoch' else 'own']:.1f}",
            "load": busy,
            "rounds": str(given.rounds),
        }
        for what, (count, figures) in found.items()
    ]
    if not given.dry:
        print(f"recorded in {record('epoch_start', KEY, rows)}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
