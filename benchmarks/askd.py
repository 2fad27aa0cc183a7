"""A-SKD on real faces: does a student of few pixels gain by looking where its teacher looks?

From random weights on CelebA, each over three seeds, with everything else alike: a teacher that sees 112 pixels, and is
measured on LFW View 2 at 112, 56, 28 and 14; and at 56, 28 and 14 pixels a plain student and A-SKD's student, whose
teacher is that of the same seed. The network is a narrow IResNet with CBAM, for a CPU; rate, scale and margin are those
that benchmarks/losses_lfw.py chose for ArcFace on View 1. Nothing is chosen on View 2.

Writes every training to results/askd_trainings.csv as soon as it ends, and goes on from there when started again; and
the table, mean ± standard deviation over seeds and the paired gain, to results/askd.csv. The checkpoints stay in the
folder that `--work` names, for `python -m facelab.report.attention`.

    python benchmarks/askd.py --celeba data/celeba --lfw data/lfw
"""

import argparse
import math
import multiprocessing
import os
import statistics
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from losses_lfw import train_once
from recording import RESULTS, machine, read, record, today

SEEDS, PIXELS, SIZE = (1, 2, 3), (56, 28, 14), 112
IMAGES = 15_371  # of the set
TEACHER, PLAIN, ASKD = "teacher", "plain student", "A-SKD student"
FIXED = (
    "logger=csv",
    "data=recordio",
    "data.holdout.fraction=0",  # the last checkpoint is scored; see losses_lfw.py
    "data.inspect.images=false",
    "data.loader.threads=1",
    "backbone=tiny",
    "backbone.attention=cbam",
    "loss=arcface",
    "loss.scale=16",
    "loss.margin=0.435",
    "optimizer.lr=0.187",
    "optimizer.schedule.warmup_epochs=0.3",
    "trainer.batch_size=128",
    "trainer.validate_every=1000",
    "trainer.progress=false",
    "trainer.accelerator=cpu",
    "trainer.compile=true",
    "benchmark=pairs_lowres",
    "benchmark.name=lfw",
)
KEY = ["who", "pixels", "seed", "widths", "epochs"]


class Comparison:
    """Trainings that were done, and those that are still to be."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.lock = options, threading.Lock()
        # A process that compiles keeps some 200 MB of every training: after a while another one takes its place.
        fresh: dict[str, Any] = {"max_tasks_per_child": 20} if sys.version_info >= (3, 11) else {}
        self.processes = ProcessPoolExecutor(
            options.jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (options.threads,), **fresh
        )
        self.shared = {
            "widths": "-".join(map(str, options.widths)),
            "epochs": f"{options.epochs:g}",
        }
        self.versions = {"machine": machine(), "torch": torch.__version__}

    def of_seed(self, seed: int) -> None:
        """The teacher of a seed, then its students, as processes are free."""
        teacher = self.train(TEACHER, SIZE, seed, "benchmark.resolutions=[1x,2x,4x,8x]")
        taught = ["distill=attention_similarity", f"distill.teacher.checkpoint={teacher}/checkpoints/last.ckpt"]
        with ThreadPoolExecutor(2 * len(PIXELS)) as pool:
            students = []
            for pixels in PIXELS:
                few = ["data/degrade=lowres", f"data.degrade.sizes={pixels}", f"benchmark.resolutions={pixels}"]
                students.append(pool.submit(self.train, PLAIN, pixels, seed, *few))
                students.append(pool.submit(self.train, ASKD, pixels, seed, *few, *taught))
            for student in students:
                student.result()

    def train(self, who: str, pixels: int, seed: int, *overrides: str) -> Path:
        """One training, unless it was done; its folder."""
        options = self.options
        folder: Path = options.work / f"{who.replace(' ', '_')}-{pixels}-{seed}"
        wanted = {**self.shared, "who": who, "seed": str(seed)}
        sizes = (SIZE, *PIXELS) if who == TEACHER else (pixels,)
        with self.lock:
            done = [row for row in trainings() if all(row[key] == value for key, value in wanted.items())]
        there = {row["pixels"] for row in done} >= {str(size) for size in sizes}
        if there and (folder / "checkpoints" / "last.ckpt").is_file():
            return folder
        typed = [*FIXED, *overrides, f"seed={seed}", f"data.root={options.celeba}", f"job={folder.name}"]
        typed += [f"backbone.widths={options.widths}".replace(" ", "")]
        typed += [f"trainer.epochs={math.ceil(options.epochs)}"]
        typed += [f"trainer.max_steps={max(1, round(options.epochs * IMAGES / 128))}"]
        typed += [f"benchmark.path={options.lfw}/images", f"benchmark.pairs={options.lfw}/pairs.txt"]
        found, minutes = self.processes.submit(timed_training, typed, folder).result()
        if found is None:
            raise SystemExit(f"{folder.name} diverged: {' '.join(typed)}")
        rows = [
            {
                "date": today(),
                **wanted,
                **self.versions,
                "pixels": str(size),
                "accuracy": f"{100 * found['lfw/accuracy' if size == SIZE else f'lfw_{size}px/accuracy']:.2f}",
                "images": str(found["images"]),
                "minutes": f"{minutes:.1f}",
            }
            for size in sizes
        ]
        with self.lock:
            record("askd_trainings", KEY, rows)
        for row in rows:
            print(f"{who:14}{row['pixels']:>4} px  seed {seed}  {row['accuracy']} %  {row['minutes']} min", flush=True)
        return folder


def timed_training(typed: list[str], folder: Path) -> tuple[dict[str, float] | None, float]:
    """A training whose run directory stays, and its minutes."""
    began = time.monotonic()
    return train_once(typed, folder, keep=True), (time.monotonic() - began) / 60


def trainings() -> list[dict[str, str]]:
    """The rows of all trainings so far."""
    return read(RESULTS / "askd_trainings.csv")


def table(shared: dict[str, str]) -> list[dict[str, str]]:
    """A row for whoever was trained over all seeds, at each number of pixels."""
    mine = [row for row in trainings() if all(row[key] == value for key, value in shared.items())]
    found = {(row["who"], row["pixels"], row["seed"]): float(row["accuracy"]) for row in mine}
    rows = []
    for pixels in (SIZE, *PIXELS):
        for who in (TEACHER, PLAIN, ASKD):
            values = [found.get((who, str(pixels), str(seed))) for seed in SEEDS]
            known = [value for value in values if value is not None]
            if len(known) < len(SEEDS):
                continue
            gains = [
                value - found.get((PLAIN, str(pixels), str(seed)), math.nan)
                for seed, value in zip(SEEDS, known, strict=True)
            ]
            gained = who == ASKD and not any(map(math.isnan, gains))
            rows.append(
                {
                    "date": max(row["date"] for row in mine),
                    **shared,
                    "who": who,
                    "pixels": str(pixels),
                    "lfw_accuracy": f"{statistics.mean(known):.2f}",
                    "std_over_seeds": f"{statistics.stdev(known):.2f}",
                    "gain": f"{statistics.mean(gains):+.2f}" if gained else "",
                    "std_of_gain": f"{statistics.stdev(gains):.2f}" if gained else "",
                    "seeds": str(len(known)),
                }
            )
    return rows


def main() -> None:
    """Trains what has not been trained yet, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Any = parser.add_argument
    add("--celeba", type=Path, required=True, help="folder with train.rec, train.idx and property")
    add("--lfw", type=Path, required=True, help="folder with images/ and pairs.txt")
    add("--work", type=Path, default=Path("runs/askd_lfw"), help="where runs go (default: %(default)s)")
    add("--widths", type=int, nargs=4, default=[16, 32, 64, 128], help="channels of the four stages (%(default)s)")
    add("--epochs", type=float, default=4, help="of each training (default: %(default)s)")
    add("--jobs", type=int, default=os.cpu_count(), help="trainings at a time (default: all cores)")
    add("--threads", type=int, default=1, help="of each training (default: %(default)s)")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(options)
    with ThreadPoolExecutor(len(SEEDS)) as pool:
        list(pool.map(comparison.of_seed, SEEDS))
    rows = table(comparison.shared)
    if rows:
        print(f"recorded in {record('askd', ['who', 'pixels', 'widths', 'epochs'], rows)}")
    for row in rows:
        gain = f"  {row['gain']} ± {row['std_of_gain']} over the plain student" if row["gain"] else ""
        print(f"{row['who']:14}{row['pixels']:>4} px  {row['lfw_accuracy']} ± {row['std_over_seeds']} %{gain}")


if __name__ == "__main__":
    main()
