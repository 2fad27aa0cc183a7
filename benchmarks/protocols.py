"""How long protocols take, beside the bare float32 products that they cannot do without; both in turn, tile by tile.

    python benchmarks/protocols.py frvt                       1e5 × 1e5: 1e10 impostor comparisons, exact thresholds
    python benchmarks/protocols.py search                     1:N with a million distractors
    python benchmarks/protocols.py frvt --people 20000 --dry  smaller, and nothing recorded

Writes results/protocols.csv: seconds of ours and of the bare products, their ratio, and the peak of memory beyond the
embeddings. Embeddings are random directions: what is timed depends on their number and size alone.
"""

import argparse
import gc
import platform
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from recording import load, machine, record, today

from facelab.benchmark import impostors, products, streaming
from facelab.benchmark.comparisons import Comparisons

CHUNK = 50  # tiles of ours, then the same number of bare ones


def embeddings(count: int, size: int, seed: int) -> np.ndarray:
    """(count,size) float32 of length 1, made in pieces: they are to be all that lies in memory."""
    rng = np.random.default_rng(seed)
    made = np.empty((count, size), np.float32)
    for start in range(0, count, 2**14):
        part = rng.standard_normal((min(2**14, count - start), size), np.float32)
        made[start : start + 2**14] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return made


class Bare:
    """Does as many products as ours has just done, and keeps their time; called as ours calls its progress."""

    def __init__(self, one: np.ndarray, other: np.ndarray, tile: tuple[int, int], device: str):
        self.product = products.Product(tile, torch.device(device))
        self.sides = [self.product.rows(side, 0, len(side)) for side in (one, other)]
        self.tile, self.device = tile, device
        self.tiles, self.done, self.seconds = self._tiles(), 0, 0.0

    def _tiles(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        (one, other), (height, width) = self.sides, self.tile
        for left in range(0, len(other), width):
            for top in range(0, len(one), height):
                yield one[top : top + height], other[left : left + width]

    def __call__(self, done: int, total: int) -> None:
        """So much of ours is done: so much of the bare products is done now, if it is worth the change."""
        if done < total and done - self.done < CHUNK * self.tile[0] * self.tile[1]:
            return
        began = self._now()
        while self.done < done:
            tile = next(self.tiles, None)
            if tile is None:
                break
            self.product(*tile)
            self.done += len(tile[0]) * len(tile[1])
        self.seconds += self._now() - began

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def measured(work: Callable[[Bare], object], bare: Bare) -> dict[str, str]:
    """Ours without what the bare products took in between, and the most memory beyond what was there before."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _memory("VmRSS")
    with products.full_precision():
        bare.product(*next(bare.tiles))  # the libraries warm up
        bare.tiles = bare._tiles()
        began = time.perf_counter()
        work(bare)
    seconds = time.perf_counter() - began - bare.seconds
    return {
        "seconds": f"{seconds:.2f}",
        "bare_seconds": f"{bare.seconds:.2f}",
        "ratio": f"{seconds / bare.seconds:.3f}",
        "extra_mib": f"{(_memory('VmHWM') - before) / 2**10:.0f}",
    }


def _memory(what: str) -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1])


def frvt(options: argparse.Namespace) -> list[dict[str, str]]:
    """Exact thresholds for FMR 1e-4 and 1e-6 of every enrolled person against every other one's verification image."""
    one, other = (embeddings(options.people, options.size, seed) for seed in (0, 1))
    people = np.arange(options.people)
    comparisons = Comparisons(people, people)
    count = impostors.needed(1e-4, comparisons.impostors())
    found = []

    def work(bare: Bare) -> None:
        tail = impostors.largest(one, other, comparisons, count, device=options.device, progress=bare)
        found.extend(tail.threshold(fmr) for fmr in (1e-4, 1e-6))

    row = measured(work, Bare(one, other, products.TILES[options.device], options.device))
    print(f"thresholds {found[0]:.6f} at FMR 1e-4, {found[1]:.6f} at 1e-6, of {comparisons.impostors():,} comparisons")
    return [{"what": "frvt thresholds", "probes": str(len(one)), "gallery": str(len(other)), **row}]


def search(options: argparse.Namespace) -> list[dict[str, str]]:
    """Top 20, and ranks of mates, among a gallery with a million distractors."""
    probes, gallery = embeddings(options.probes, options.size, 0), embeddings(options.gallery, options.size, 1)
    mates = np.stack([np.arange(len(probes)), np.arange(len(probes)) * 7 % len(gallery)], axis=1)
    for probe, row in mates:  # as alike as a fair model finds two images of a person
        gallery[row] += 0.8 * probes[probe]
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    works: dict[str, Callable[[Bare], object]] = {
        "top 20": lambda bare: streaming.top_k(probes, gallery, 20, device=options.device, progress=bare),
        "ranks of mates": lambda bare: streaming.rank_mates(
            probes, gallery, mates, device=options.device, progress=bare
        ),
    }
    about = {"probes": str(len(probes)), "gallery": str(len(gallery))}
    return [
        {
            "what": what,
            **about,
            **measured(work, Bare(probes, gallery, products.TILES[options.device], options.device)),
        }
        for what, work in works.items()
    ]


WORKS = {"frvt": frvt, "search": search}


def main() -> None:
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=WORKS)
    parser.add_argument("--people", type=int, default=100_000, help="frvt: of both lists")
    parser.add_argument("--probes", type=int, default=3_530, help="search: FaceScrub's images in MegaFace")
    parser.add_argument("--gallery", type=int, default=1_000_000, help="search: rows")
    parser.add_argument("--size", type=int, default=512, help="of an embedding")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dry", action="store_true", help="print only, record nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    common = {
        "date": today(),
        "machine": torch.cuda.get_device_name() if options.device == "cuda" else machine(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "load": load(),
        "threads": str(options.threads),
        "size": str(options.size),
    }
    rows = [{**common, **row} for what in options.what for row in WORKS[what](options)]
    for row in rows:
        shown = f"{row['seconds']} s, bare products {row['bare_seconds']} s, ratio {row['ratio']}"
        print(f"{row['what']:20} {row['probes']:>8} × {row['gallery']:>9}  {shown}, {row['extra_mib']} MiB more")
    if not options.dry:
        key = ["machine", "python", "torch", "threads", "what", "probes", "gallery", "size"]
        print(f"recorded in {record('protocols', key, rows)}")


if __name__ == "__main__":
    main()
