"""How long the command line takes to answer, and a run to its first step: each of several fresh processes, medians.

The questions are asked in turn, so that whatever else the machine does slows all alike; `load` is its load average
beforehand, below 0.7 on a quiet machine. Writes results/startup.csv.

    python benchmarks/startup.py
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from recording import load, record_times

QUESTIONS = {
    "python -c pass": ["-c", "pass"],
    "python -c 'import torch'": ["-c", "import torch"],
    "facelab.train --help": ["-m", "facelab.train", "--help"],
    "facelab.train --cfg job": ["-m", "facelab.train", "--cfg", "job"],
    "facelab.evaluate --help": ["-m", "facelab.evaluate", "--help"],
}
FIRST_STEP = ["-m", "facelab.train", "logger=csv", "trainer.log_every=1", "job=first"]


def seconds(arguments: list[str]) -> float:
    """Of a process from its start to its end."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def seconds_to_first_step() -> float:
    """From typing the default command to its first row of training."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, *FIRST_STEP, f"out={folder}"], stdout=subprocess.DEVNULL)
        rows = Path(folder) / "default" / "first" / "metrics.csv"
        # the header, the untrained network's validation, the first step
        while not (rows.is_file() and rows.read_text().count("\n") >= 3):
            if process.poll() is not None:
                raise RuntimeError(f"the run ended with {process.returncode} before its first step")
            time.sleep(0.02)
        took = time.perf_counter() - began
        process.kill()
        process.wait()
    return took


def main() -> None:
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="print only, record nothing")
    arguments = parser.parse_args()
    busy = load()
    times: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        for name, question in QUESTIONS.items():
            times.setdefault(name, []).append(seconds(question))
        times.setdefault("default run to its first step", []).append(seconds_to_first_step())
    record_times("startup", times, busy, arguments.rounds, kept=not arguments.dry)


if __name__ == "__main__":
    main()
