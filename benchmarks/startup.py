"""How long the command line takes to answer, and a run to its first step: each of several fresh processes, medians.

Writes benchmarks/results/startup.csv. Run: `python benchmarks/startup.py [--rounds 5]`.
"""

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).with_name("results") / "startup.csv"
QUESTIONS = {
    "python -c pass": ["-c", "pass"],
    "python -c 'import torch'": ["-c", "import torch"],
    "facelab.train --help": ["-m", "facelab.train", "--help"],
    "facelab.train --cfg job": ["-m", "facelab.train", "--cfg", "job"],
}
FIRST_STEP = ["-m", "facelab.train", "logger=csv", "trainer.log_every=1", "job=first"]


def seconds(arguments: list[str]) -> float:
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, arguments in QUESTIONS.items():
            times.setdefault(name, []).append(seconds(arguments))
        times.setdefault("default run to its first step", []).append(seconds_to_first_step())
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    with open(RESULTS, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["date", "machine", "python", "torch", "hydra", "what", "seconds_median", "seconds_min", "rounds"]
        )
        for name, values in times.items():
            median = statistics.median(values)
            print(f"{name:32} {median:6.2f} s  (min {min(values):.2f})")
            writer.writerow(
                [
                    *(time.strftime("%Y-%m-%d"), machine, platform.python_version(), version("torch")),
                    *(version("hydra-core"), name, f"{median:.3f}", f"{min(values):.3f}", rounds),
                ]
            )


if __name__ == "__main__":
    main()
