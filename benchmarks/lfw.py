"""LFW in full: how long its protocol takes, and how fast its images are embedded.

The protocol: 6,000 pairs of 12,000 embeddings, from rows to accuracy, TAR, EER, AUC and DET, beside what it cannot do
without, the float32 products of the pairs, both in turn (target: 50 ms). The embedding: images through the evaluation's
own loader and network, mirrored too, beside the network's forward pass in training on images that lie ready, both in
turn; a mirrored image counts as one more (target: at least that rate). JPEGs are of rendered faces, so that nothing has
to be there; `load` is the machine's load average beforehand.

Writes results/lfw.csv.

    python benchmarks/lfw.py
    python benchmarks/lfw.py --network r18 --images 256
"""

import argparse
import platform
import statistics
import time
from importlib.metadata import version
from typing import Any

import cv2
import numpy as np
import torch
from hydra.utils import instantiate
from recording import load, machine, record, today

from facelab.benchmark.pair_files import PairSet
from facelab.benchmark.pairs import PairBenchmark
from facelab.configuration import defaults
from facelab.data.augment import normalise
from facelab.data.synthetic import render
from facelab.data.torch_loader import EvalLoader
from facelab.export.networks import node_of
from facelab.pixels import decode
from facelab.training.module import embed

PAIRS, FOLDS, SIZE = 6_000, 10, 112
KEY = ["machine", "python", "torch", "threads", "what", "network"]


def protocol(options: argparse.Namespace) -> dict[str, str]:
    """Milliseconds of the protocol, and of the products alone."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2 * PAIRS, 512), np.float32)
    same = np.arange(PAIRS) % 600 < 300
    rows[1::2][same] += 2 * rows[::2][same]
    pairs, fold = np.arange(2 * PAIRS).reshape(-1, 2), np.arange(PAIRS) * FOLDS // PAIRS
    pair_set = PairSet("lfw", 2 * PAIRS, lambda i: None, pairs, same, fold, SIZE, "random", "")
    given: dict[str, Any] = defaults("benchmark/pairs")
    given.pop("_target_")
    benchmark = PairBenchmark(**given | {"folds": FOLDS, "size": SIZE, "seed": 0})
    ours, bare = [], []
    for _ in range(options.rounds + 1):
        began = time.perf_counter()
        benchmark.evaluate(rows, pair_set)
        between = time.perf_counter()
        np.einsum("nd,nd->n", rows[pairs[:, 0]], rows[pairs[:, 1]])
        ours.append(1e3 * (between - began))
        bare.append(1e3 * (time.perf_counter() - between))
    return row("protocol, ms", "", statistics.median(ours[1:]), statistics.median(bare[1:]))


class Faces:
    """JPEGs in memory, as a pair set has images."""

    def __init__(self, count: int):
        made = [cv2.cvtColor(render(0, i, 0, SIZE, 0.5), cv2.COLOR_RGB2BGR) for i in range(16)]
        self.files = [cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].ravel() for image in made]
        self.count, self.size = count, SIZE

    def __len__(self) -> int:
        return self.count

    def load(self, index: int, out: np.ndarray | None = None) -> np.ndarray:
        """(SIZE,SIZE,3) uint8."""
        image = decode(self.files[index % len(self.files)], out)
        assert image is not None, "it was encoded a moment ago"
        return image


def embedding(options: argparse.Namespace) -> dict[str, str]:
    """Images a second of the evaluation, mirrored ones counted, and of the forward pass in training."""
    torch.manual_seed(0)
    network = instantiate(node_of(options.network, SIZE)).to(memory_format=torch.channels_last)
    faces = Faces(options.images)
    loader = EvalLoader(faces, 64, rank=0, world=1, threads=options.threads, prefetch=4, pin=False)
    ready = normalise(torch.from_numpy(np.stack([faces.load(i) for i in range(64)])))
    passes, ours, bare = 2 * options.images, [], []
    for _ in range(options.rounds_of_embedding + 1):
        began = time.perf_counter()
        with torch.inference_mode():
            network.eval()
            for batch in loader:
                embed(network, batch.images, True)
        between = time.perf_counter()
        network.train()
        for _ in range(passes // 64):
            network(ready)
        ours.append(passes / (between - began))
        bare.append(passes // 64 * 64 / (time.perf_counter() - between))
    return row("embedding, images/s", options.network, statistics.median(ours[1:]), statistics.median(bare[1:]))


def row(what: str, network: str, ours: float, bare: float) -> dict[str, str]:
    """One line of the table."""
    return {
        "what": what,
        "network": network,
        "ours": f"{ours:.1f}",
        "bare": f"{bare:.2f}",
        "ratio": f"{ours / bare:.2f}",
    }


def main() -> None:
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="of the protocol (default: %(default)s)")
    parser.add_argument("--rounds-of-embedding", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--network", default="mobilefacenet", help="of conf/backbone (default: %(default)s)")
    parser.add_argument("--images", type=int, default=512, help="that are embedded each time (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dry", action="store_true", help="print only, record nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    versions = {"python": platform.python_version(), "torch": version("torch"), "numpy": version("numpy")}
    common = {"date": today(), "machine": machine(), **versions, "load": load(), "threads": str(options.threads)}
    rows = [{**common, **work(options)} for work in (protocol, embedding)]
    for found in rows:
        print(f"{found['what']:20} {found['network']:14} {found['ours']:>8}  bare {found['bare']}, {found['ratio']} ×")
    if not options.dry:
        print(f"recorded in {record('lfw', KEY, rows)}")


if __name__ == "__main__":
    main()
