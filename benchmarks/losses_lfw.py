"""Which loss on real faces: LFW's accuracy of every loss, each given the same tuning budget.

`tiny` is trained from its random weights on CelebA's faces, with everything but the loss alike. Each loss has learning
rate, scale and margin (where it has them) chosen by the accuracy on LFW's View 1, pairsDevTrain.txt, over the same
TRIALS points of a Sobol sequence, laid over its own usual range. Then it is trained over other seeds, longer, and
scored on View 2 once each. Nothing is chosen on View 2. `--epochs 8 --seeds 1` asks, with the values that were chosen,
whether a loss that is behind only needs longer.

Writes every training to results/losses_lfw_trials.csv as soon as it ends, and goes on from there when started again, on
any machine: the numbers are those of seeds and rounding, not of its speed;
and the table, mean ± standard deviation over seeds, to results/losses_lfw.csv.

    python benchmarks/losses_lfw.py --celeba data/celeba --lfw data/lfw
"""

import argparse
import contextlib
import csv
import io
import math
import multiprocessing
import os
import shutil
import statistics
import sys
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import OmegaConf
from recording import RESULTS, machine, record, today
from torch.quasirandom import SobolEngine

from facelab.data.recordio import RecordIOFaces
from facelab.door import configuration_folder
from facelab.training.fit import train

TRIALS, SEEDS = 6, (1, 2, 3)
FIXED = (
    "logger=csv",
    "data=folder",
    # Nobody chooses a checkpoint: after an epoch or two the untrained network, which tells faces by their colours, may
    # still be the best on a few held-out people, and its score would be the trial's. The last one is scored.
    "data.holdout.fraction=0",
    "data.inspect.images=false",
    "data.loader.threads=1",
    "trainer.batch_size=128",
    "optimizer.schedule.warmup_epochs=0.3",
    "trainer.validate_every=1000",
    "trainer.progress=false",
    "trainer.accelerator=cpu",
    "trainer.compile=true",  # once in a process, for all of its trainings
)
KEY = ["loss", "kind", "seed", "overrides", "pixels", "epochs"]


def spread(low: float, high: float) -> Callable[[float], float]:
    """A share of a range, on a logarithmic scale."""
    return lambda share: float(f"{math.exp(math.log(low) + share * math.log(high / low)):.3g}")


def linear(low: float, high: float) -> Callable[[float], float]:
    """A share of a range."""
    return lambda share: float(f"{low + share * (high - low):.3g}")


RATE, SCALE = spread(0.05, 0.4), spread(12.0, 64.0)
# Of each loss: what stands for scale, what for margin, as (key, range); None where it has none. Ranges are those of
# the yaml, downwards a little wider: a thousand identities and a short schedule ask for less than the papers' sets.
SPACE: dict[str, tuple[tuple[str, Callable[[float], float]] | None, tuple[str, Callable[[float], float]] | None]] = {
    "softmax": (None, None),
    "norm_softmax": (("loss.scale", SCALE), None),
    "cosface": (("loss.scale", SCALE), ("loss.margin", linear(0.05, 0.4))),
    "arcface": (("loss.scale", SCALE), ("loss.margin", linear(0.05, 0.5))),
    "combined": (("loss.scale", SCALE), ("loss.m2", linear(0.05, 0.4))),  # beside m1 = 1 and m3 = 0.1
    "adam_softmax": (("loss.scale", SCALE), ("loss.lambda_margin", spread(1.0, 30.0))),
    "adaface": (("loss.scale", SCALE), ("loss.margin", linear(0.05, 0.4))),
    "magface": (("loss.scale", SCALE), ("loss.margin_low", linear(0.05, 0.45))),  # beside margin_high = 0.5
    "curricularface": (("loss.scale", SCALE), ("loss.margin", linear(0.05, 0.5))),
    "sphereface": (("loss.lambda_min", spread(2.0, 20.0)), ("loss.margin", linear(1.5, 4.0))),
    "sphereface2": (("loss.scale", SCALE), ("loss.margin", linear(0.05, 0.4))),
    "contrastive": (None, ("loss.margin", linear(0.5, 1.4))),
    "triplet": (None, ("loss.margin", linear(0.1, 0.5))),
}
BESIDE: dict[str, tuple[str, ...]] = {
    "combined": ("loss.m3=0.1",),
    "magface": ("loss.margin_high=0.5",),
    "sphereface": ("loss.lambda_gamma=2",),  # the authors anneal over 6 % of 28,000 steps; here there are hundreds
    "contrastive": ("data/sampler=pk",),
    "triplet": ("data/sampler=pk",),
}


def trials(loss: str) -> list[tuple[str, ...]]:
    """The overrides of each point that is tried: the same shares of every loss's ranges."""
    scale, margin = SPACE[loss]
    points = []
    for rate, *shares in SobolEngine(3, scramble=True, seed=0).draw(TRIALS).tolist():
        chosen = [f"optimizer.lr={RATE(rate)}"]
        chosen += [f"{one[0]}={one[1](share)}" for one, share in zip((scale, margin), shares, strict=True) if one]
        points.append((*chosen, *BESIDE.get(loss, ())))
    return points


def train_once(overrides: list[str], run: Path, keep: bool = False) -> dict[str, float] | None:
    """What `python -m facelab.train` does, in a process that has done it before: torch is there, and compiled code.

    Args:
        overrides: as typed.
        run: the run directory.
        keep: whether it stays.

    Returns:
        The run's numbers; None where it diverged.
    """
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        config = hydra.compose("config", overrides)
    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return train(config, plain, run, one_process=True)
    except ValueError as error:
        if "not finite" not in str(error):
            raise
        return None
    finally:
        if not keep:
            shutil.rmtree(run, ignore_errors=True)


class Study:
    """Trainings that were done, and those that are still to be."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.lock = options, threading.Lock()
        # A process that compiles keeps some 200 MB of every training: after a while another one takes its place.
        fresh: dict[str, Any] = {"max_tasks_per_child": 20} if sys.version_info >= (3, 11) else {}
        self.processes = ProcessPoolExecutor(
            options.jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (options.threads,), **fresh
        )
        self.folder: Path = options.work
        self.faces = self.folder / "faces"
        self.versions = {"machine": machine(), "torch": torch.__version__}

    def unpack(self) -> None:
        """CelebA's images in folders, which the folder reader shrinks to any size."""
        if self.faces.is_dir():
            return
        source, half = RecordIOFaces(self.options.celeba, 112), self.folder / "faces.unfinished"
        shutil.rmtree(half, ignore_errors=True)
        for index, label in enumerate(source.labels.tolist()):
            place = half / f"{label:05d}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{index:06d}.jpg").write_bytes(bytes(source.encoded(index)))
        half.rename(self.faces)

    def done(self, loss: str, kind: str, seed: int, overrides: tuple[str, ...], epochs: float) -> dict[str, str] | None:
        """The row of a training that was done, on whatever machine, or None."""
        row = self._identity(loss, kind, seed, overrides, epochs)
        with self.lock:
            return next((old for old in read_trials() if all(old[key] == row[key] for key in KEY)), None)

    def _identity(self, loss: str, kind: str, seed: int, overrides: tuple[str, ...], epochs: float) -> dict[str, str]:
        given = {"loss": loss, "kind": kind, "seed": str(seed), "overrides": " ".join(overrides)}
        return {**given, "pixels": str(self.options.pixels), "epochs": f"{epochs:g}", **self.versions}

    def train(self, loss: str, kind: str, seed: int, overrides: tuple[str, ...], epochs: float) -> dict[str, str]:
        """One training, unless it was done, and its row."""
        old = self.done(loss, kind, seed, overrides, epochs)
        if old is not None:
            return old
        lfw, began = self.options.lfw, time.monotonic()
        view = "pairsDevTrain" if kind == "tune" else "pairs"
        job = f"{loss}-{kind}-{seed}-{zlib.crc32(' '.join(overrides).encode())}"
        typed = [*FIXED, f"loss={loss}", *overrides, f"seed={seed}"]
        typed += [f"trainer.epochs={math.ceil(epochs)}", f"trainer.max_steps={self._steps(epochs)}"]
        typed += [f"data.root={self.faces}", f"data.size={self.options.pixels}", f"job={job}"]
        typed += [f"benchmark.path={lfw}/images", f"benchmark.pairs={lfw}/{view}.txt", "benchmark.name=lfw"]
        typed += [] if kind == "final" else ["benchmark.folds=2"]
        found = self.processes.submit(train_once, typed, self.folder / job).result()
        row = {
            "date": today(),
            **self._identity(loss, kind, seed, overrides, epochs),
            "images": str(found["images"]) if found else "0",
            "accuracy": f"{100 * found['lfw/accuracy']:.2f}" if found else "diverged",
            "std_of_folds": f"{100 * found['lfw/accuracy_std']:.2f}" if found else "",
            "minutes": f"{(time.monotonic() - began) / 60:.1f}",
        }
        with self.lock:
            record("losses_lfw_trials", KEY, [row])
        print(
            f"{loss:15}{kind:6} seed {seed}  {row['accuracy']:>8} %  {row['minutes']} min  {' '.join(overrides)}",
            flush=True,
        )
        return row

    def _steps(self, epochs: float) -> int:
        images = sum(1 for _ in self.faces.glob("*/*.jpg"))
        return max(1, round(epochs * images / 128))

    def loss(self, loss: str) -> None:
        """All trainings of one loss."""
        tuned = [self.train(loss, "tune", 0, point, self.options.tune_epochs) for point in trials(loss)]
        best = max(tuned, key=lambda row: -1.0 if row["accuracy"] == "diverged" else float(row["accuracy"]))
        for seed in self.options.seeds:
            self.train(loss, "final", seed, tuple(best["overrides"].split()), self.options.epochs)


def read_trials() -> list[dict[str, str]]:
    """The rows of all trainings so far."""
    file = RESULTS / "losses_lfw_trials.csv"
    if not file.is_file():
        return []
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def table(study: Study) -> list[dict[str, str]]:
    """A row for each loss whose final trainings are all there."""
    rows = []
    options = study.options
    for loss in SPACE:
        mine = [row for row in read_trials() if row["loss"] == loss and row["pixels"] == str(options.pixels)]
        tuned = [row for row in mine if row["kind"] == "tune" and row["epochs"] == f"{options.tune_epochs:g}"]
        final = [row for row in mine if row["kind"] == "final" and row["epochs"] == f"{options.epochs:g}"]
        final = [row for row in final if int(row["seed"]) in options.seeds]
        if len(final) < len(options.seeds) or len(tuned) < TRIALS:
            continue
        values = [float(row["accuracy"]) for row in final]
        rows.append(
            {
                "date": max(row["date"] for row in final),
                "machine": _all(final, "machine"),
                "torch": _all(final, "torch"),
                "loss": loss,
                "lfw_accuracy": f"{statistics.mean(values):.2f}",
                "std_over_seeds": f"{statistics.stdev(values):.2f}" if len(values) > 1 else "",
                "seeds": str(len(values)),
                "chosen": final[0]["overrides"],
                "view1_of_chosen": max(tuned, key=lambda row: row["accuracy"].replace("diverged", "0"))["accuracy"],
                "trials": str(len(tuned)),
                "images_of_a_trial": tuned[0]["images"],
                "images_of_a_final": final[0]["images"],
                "pixels": str(options.pixels),
            }
        )
    return rows


def _all(rows: list[dict[str, str]], column: str) -> str:
    """What a column holds, each value once."""
    return " and ".join(sorted({row[column] for row in rows}))


def main() -> None:
    """Trains what has not been trained yet, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--celeba", type=Path, required=True, help="folder with train.rec, train.idx and property")
    parser.add_argument("--lfw", type=Path, required=True, help="folder with images/, pairs.txt and pairsDevTrain.txt")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/losses_lfw"), help="faces and runs (default: %(default)s)"
    )
    parser.add_argument("--losses", nargs="+", choices=SPACE, default=list(SPACE), help="which (default: all)")
    parser.add_argument("--pixels", type=int, default=48, help="height and width of the images (default: %(default)s)")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="of the finals (default: 1 2 3)")
    parser.add_argument("--tune-epochs", type=float, default=2, help="of a trial (default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=4, help="of a final training (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at a time (default: all cores)")
    parser.add_argument("--threads", type=int, default=1, help="of each training (default: %(default)s)")
    options = parser.parse_args()
    study = Study(options)
    study.folder.mkdir(parents=True, exist_ok=True)
    study.unpack()
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(study.loss, options.losses))
    rows = table(study)
    if rows:
        print(f"recorded in {record('losses_lfw', ['loss', 'pixels', 'images_of_a_trial', 'images_of_a_final'], rows)}")
    for row in sorted(rows, key=lambda row: -float(row["lfw_accuracy"])):
        print(f"{row['loss']:15}{row['lfw_accuracy']} ± {row['std_over_seeds'] or '?'} %  {row['chosen']}")


if __name__ == "__main__":
    main()
