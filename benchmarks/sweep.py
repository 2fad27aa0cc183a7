"""What a sweep costs beside its training: from the launch to the first step, between two jobs, and where all is done.

Of a multirun of the default run with two seeds, cut off after its first steps: seconds from typing it to the first
step of the first job; from the end of the first job to the first step of the second, which composes, builds and
validates the untrained network anew; and seconds a job, where both are finished and the same command is typed again.
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
COMMAND = [
    *("-m", "facelab.train", "-m", "logger=csv", "name=sweep", f"seed={SEEDS[0]},{SEEDS[1]}", "job=s${seed}"),
    *("trainer.max_steps=3", "trainer.log_every=1", "trainer.progress=false"),
]


def until(file: Path, lines: int, process: subprocess.Popen[bytes]) -> float:
    """When a file has so many lines, on the clock."""
    while not (file.is_file() and file.read_text().count("\n") >= lines):
        if process.poll() not in (None, 0):
            raise RuntimeError(f"the sweep ended with {process.returncode}")
        time.sleep(0.01)
    return time.perf_counter()


def one_round(words: list[str]) -> dict[str, float]:
    """The three times, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *COMMAND, f"out={folder}", *words]
        first, second = (Path(folder) / "sweep" / f"s{seed}" for seed in SEEDS)
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        # The header, the untrained network's validation, the first step.
        to_first = until(first / "metrics.csv", 3, process) - began
        ended = until(first / "metrics.json", 1, process)
        between = until(second / "metrics.csv", 3, process) - ended
        process.wait()
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        again = (time.perf_counter() - began) / len(SEEDS)
    return {
        "launch to the first step": to_first,
        "end of a job to the next one's first step": between,
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
