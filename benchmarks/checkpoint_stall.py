"""How long training stands still for a checkpoint: written at once, and written in the background.

    python benchmarks/checkpoint_stall.py                        # a million classes: 9 GB of memory, 13 of disk
    python benchmarks/checkpoint_stall.py --classes 20000 --dry  # a first look, not recorded

The state is that of a run: float32 class centres with their momenta, 4.1 GB at a million classes. It goes through what
a run's goes through: the look for numbers that are none, the copy, the thread, checksums, flushing, renaming, the
predecessor's second name. Both ways are measured in turns, in one process, on one disk.

`stopped`: until the next step may begin. `lost`: that, and what the steps took longer while the thread wrote, beside as
many undisturbed ones. A step here multiplies a batch with some of the centres on all cores and moves those. `written`:
until the checkpoint has its name. `share` is `lost` of five minutes; the aim is below 2 %.

The first saving of each way, which also fills pages of memory for the first time, is not counted among the rounds; it
is told in a column of its own. Results go to results/checkpoint_stall.csv; what was written is deleted.
"""

import argparse
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from recording import load, machine, record, today
from torch import nn

from facelab.training.background import Writer
from facelab.training.finite import refuse_weights

KEY = ["machine", "python", "torch", "what", "classes", "size"]
EVERY = 300.0  # seconds between two checkpoints
BATCH, CHUNK = 64, 4_000  # images, and centres that a step looks at
STEPS = 20  # undisturbed ones, to compare with


class Model(nn.Module):
    """Class centres and a small network, as a checkpoint knows them."""

    def __init__(self, classes: int, size: int):
        super().__init__()
        self.sharded: list[str] = []
        self.shard_start = 0
        self.backbone = nn.Linear(size, size)
        self.centres = nn.Parameter(torch.full((classes, size), 0.5))


class Training:
    """A state, and steps that move it."""

    def __init__(self, classes: int, size: int):
        self.model = Model(classes, size)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        for parameter in self.model.parameters():
            self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        self.batch = torch.randn(BATCH, size)
        self.done = 0

    @torch.no_grad()
    def step(self) -> None:
        """Some centres are looked at, and move."""
        centres = self.model.centres
        first = self.done * CHUNK % max(1, len(centres) - CHUNK)
        part = centres[first : first + CHUNK]
        momentum = self.optimizer.state[centres]["momentum_buffer"][first : first + CHUNK]
        momentum.mul_(0.9).add_((self.batch @ part.T).T @ self.batch, alpha=1e-9)
        part.sub_(momentum, alpha=0.1)
        self.done += 1

    def undisturbed(self) -> float:
        """Seconds of a step."""
        began = time.perf_counter()
        for _ in range(STEPS):
            self.step()
        return (time.perf_counter() - began) / STEPS

    def save(self, writer: Writer, folder: Path, usual: float) -> dict[str, float]:
        """One saving, with steps until it is complete; seconds."""
        began, before = time.perf_counter(), self.done
        refuse_weights(self.model, self.done, 0.1)
        writer.finish()
        path, previous = folder / "last.ckpt", folder / "previous.ckpt"
        meta = {"step": self.done, "progress": {}}
        writer.start([writer.take(path, self.model, self.optimizer, meta, previous=previous)])
        stopped = time.perf_counter() - began
        while writer.busy:
            self.step()
        writer.finish()
        whole = time.perf_counter() - began
        return {"stopped": stopped, "lost": whole - (self.done - before) * usual, "written": whole}


def measure(classes: int, size: int, rounds: int, where: str | None) -> dict[str, list[dict[str, float]]]:
    """Way → what each saving took; the first is of memory that was never used before."""
    training = Training(classes, size)
    writers = {"at once": Writer(background=False), "in the background": Writer(background=True)}
    found: dict[str, list[dict[str, float]]] = {what: [] for what in writers}
    folder = Path(tempfile.mkdtemp(prefix="checkpoint_stall-", dir=where))
    try:
        for number in range(rounds + 1):
            for what, writer in writers.items():
                usual = training.undisturbed()
                found[what].append(training.save(writer, folder, usual))
                told = ", ".join(f"{key} {seconds:.2f} s" for key, seconds in found[what][-1].items())
                print(f"round {number} of {rounds}, {what}: {told}; a step {1000 * usual:.0f} ms", flush=True)
    finally:
        shutil.rmtree(folder)
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=512, help="numbers of a class centre")
    parser.add_argument("--rounds", type=int, default=3, help="savings of each way, beside the first")
    parser.add_argument(
        "--folder", help="where checkpoints are written: on the disk that is meant; default: the system's"
    )
    parser.add_argument("--dry", action="store_true", help="record nothing")
    options = parser.parse_args()
    busy = load()
    found = measure(options.classes, options.size, options.rounds, options.folder)
    rows: list[dict[str, Any]] = []
    for what, times in found.items():
        medians = {key: statistics.median(one[key] for one in times[1:]) for key in times[0]}
        share = 100 * medians["lost"] / EVERY
        print(f"{what}: stopped {medians['stopped']:.2f} s, lost {medians['lost']:.2f} s, {share:.2f} % of 5 minutes")
        rows.append(
            {
                **{
                    "date": today(),
                    "machine": machine(),
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                },
                **{"load": busy, "what": what, "classes": str(options.classes), "size": str(options.size)},
                **{f"{key}_s": f"{seconds:.3f}" for key, seconds in medians.items()},
                **{"first_stopped_s": f"{times[0]['stopped']:.3f}", "share_percent": f"{share:.3f}"},
                "rounds": str(options.rounds),
            }
        )
    if not options.dry:
        print(f"recorded in {record('checkpoint_stall', KEY, rows)}")


if __name__ == "__main__":
    main()
