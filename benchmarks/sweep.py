"""What a sweep costs beside its training: from the launch to the first batch, between two jobs, and where all is done.

Of a multirun of the default run with two seeds, cut off after its first steps: seconds from typing it until the first
job has the first batch before it, and until its first step is done and written down; from the end of the first job to
the same of the second, which composes, builds and validates the untrained network anew; and seconds a job, where both
are finished and the same command is typed again. Beside them what this machine needs to import torch and no more, which
tells how fast it is at that moment.
Medians of several rounds, each in a folder of its own; `load` is the machine's load average beforehand, below 0.7 on a
quiet machine. Writes results/sweep.csv.

    python benchmarks/sweep.py
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from recording import load, record_times

SEEDS = (2, 3)
# `python -m facelab.train`, which leaves a file where a run has its first batch before it.
TRAIN = """
import runpy, sys
from pathlib import Path
from facelab.job import without_collection
with without_collection():  # as the command does
    import facelab.training.fit
from facelab.training.module import FaceModule
step = FaceModule.training_step
def noted(self, batch, number):
    if self.progress.step == 0:
        Path(sys.argv[-1].partition("=")[2], f"batch{self.seed}").touch()
    step(self, batch, number)
FaceModule.training_step = noted
runpy.run_module("facelab.train", run_name="__main__", alter_sys=True)
"""
COMMAND = [
    *("-m", "logger=csv", "name=sweep", f"seed={SEEDS[0]},{SEEDS[1]}", "job=s${seed}"),
    *("trainer.max_steps=3", "trainer.log_every=1", "trainer.progress=false"),
]


def until(file: Path, lines: int, process: subprocess.Popen[bytes]) -> float:
    """When a file is there and has so many lines, on the clock."""
    while not (file.is_file() and file.read_text().count("\n") >= lines):
        if process.poll() not in (None, 0):
            raise RuntimeError(f"the sweep ended with {process.returncode}")
        time.sleep(0.01)
    return time.perf_counter()


def one_round(words: list[str]) -> dict[str, float]:
    """The times, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*COMMAND, *words, f"out={folder}"]
        first, second = (Path(folder) / "sweep" / f"s{seed}" for seed in SEEDS)
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-c", TRAIN, *words], stdout=subprocess.DEVNULL)
        to_batch = until(Path(folder) / f"batch{SEEDS[0]}", 0, process) - began
        # The header, the untrained network's validation, the first step.
        to_step = until(first / "metrics.csv", 3, process) - began
        ended = until(first / "metrics.json", 1, process)
        between_batch = until(Path(folder) / f"batch{SEEDS[1]}", 0, process) - ended
        between_step = until(second / "metrics.csv", 3, process) - ended
        process.wait()
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "facelab.train", *words], check=True, stdout=subprocess.DEVNULL)
        again = (time.perf_counter() - began) / len(SEEDS)
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        torch = time.perf_counter() - began
    return {
        "python -c 'import torch'": torch,
        "launch to the first batch": to_batch,
        "launch to the first step done": to_step,
        "end of a job to the next one's first batch": between_batch,
        "end of a job to the next one's first step done": between_step,
        "a finished job, started again": again,
    }


def main() -> None:
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="print only, record nothing")
    parser.add_argument("words", nargs="*", help="further choices, as data.size=48; then nothing is recorded")
    arguments = parser.parse_args()
    busy = load()
    times: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        for name, value in one_round(arguments.words).items():
            times.setdefault(name, []).append(value)
    record_times("sweep", times, busy, arguments.rounds, kept=not arguments.dry and not arguments.words)


if __name__ == "__main__":
    main()
