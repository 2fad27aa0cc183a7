"""What our PReLU and memory setting are worth in a training step of `tiny` on a CPU, bf16, channels last.

Four variants, each in a process of its own, one after another in every round, so that whatever else the machine does
slows all alike: torch's PReLU and glibc's default; each of ours alone; both. Writes results/cpu_step.csv.

    python benchmarks/cpu_step.py [--rounds 5]
"""

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).with_name("results") / "cpu_step.csv"
VARIANTS = ("plain", "prelu", "memory", "both")
BATCH, STEPS = 128, 10


def measure(variant: str) -> float:
    """Images per second: the median of some steps."""
    import torch
    from torch import nn

    from facelab.backbone.iresnet import IResNet
    from facelab.backbone.prelu import PReLU
    from facelab.data.augment import Augment, normalise
    from facelab.loss.cosface import CosFace
    from facelab.training.strategy import keep_memory

    if variant in ("memory", "both"):
        keep_memory()
    if variant in ("plain", "memory"):
        PReLU.forward = nn.PReLU.forward
    torch.manual_seed(0)
    network = IResNet([1, 1, 1, 1], [32, 64, 128, 256], 2, 256, 0.0, 112).to(memory_format=torch.channels_last)
    loss = CosFace(embedding_size=256, num_classes=1000, scale=30.0, margin=0.3)
    parameters = [p for p in [*network.parameters(), *loss.parameters()] if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=True)
    augment, images = Augment(0.5, 4), torch.randint(0, 255, (BATCH, 112, 112, 3), dtype=torch.uint8)
    labels, draws = torch.randint(0, 1000, (BATCH,)), torch.rand(BATCH, 3)
    times = []
    for _ in range(STEPS + 3):
        began = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(network(normalise(augment(images, draws))), labels, 0).loss
        value.backward()
        optimizer.step()
        times.append(time.perf_counter() - began)
    return BATCH / statistics.median(times[3:])


def main() -> None:
    """All variants in turn, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        print(measure(arguments.variant))
        return
    import torch

    rates: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for number in range(arguments.rounds):
        for variant in VARIANTS:
            command = [sys.executable, __file__, "--variant", variant]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rates[variant].append(float(done.stdout))
        print(f"round {number + 1} of {arguments.rounds}", flush=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    with open(RESULTS, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["date", "machine", "python", "torch", "variant", "images_per_s", "ratio_to_plain", "rounds"])
        for variant, values in rates.items():
            ratio = statistics.median(a / b for a, b in zip(values, rates["plain"], strict=True))
            rate = statistics.median(values)
            print(f"{variant:8} {rate:6.0f} images/s  {ratio:.2f} × plain")
            today = time.strftime("%Y-%m-%d")
            versions = [platform.python_version(), torch.__version__]
            writer.writerow([today, machine, *versions, variant, f"{rate:.0f}", f"{ratio:.2f}", arguments.rounds])


if __name__ == "__main__":
    main()
