"""Whether memory stays flat over a long training: the resident size of the process, looked at all along.

    python benchmarks/memory_growth.py                              # 10,000 steps of a small network: some minutes
    python benchmarks/memory_growth.py --steps 500 --dry --out somewhere

A real training (facelab.training.fit) with validations, checkpoints, rows of the history and averaged weights. Growth
is counted from a tenth of the steps on (10,000: from step 1,000), when every kind of thing has happened once; each end
is the median of the samples around it. It should be below 1 %, else this ends with 1. The samples and a picture go to
--out, a row with the summary to results/memory_growth.csv.
"""

import argparse
import csv
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

from guards import train
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from recording import load, machine, record, today

LIMIT = 0.01
SAMPLES = 400
SIZE = 48  # pixels


def resident() -> float:
    """MiB of this process that lie in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def growth(samples: list[tuple[int, float]], steps: int) -> tuple[float, float, float]:
    """Of samples (step, MiB): MiB at a tenth of the steps, at the end, and the growth between them, as a share."""
    around = max(1, len(samples) // 20)
    first = next((i for i, (step, _) in enumerate(samples) if step >= steps // 10), 0)
    early = statistics.median(mib for _, mib in samples[first : first + around])
    late = statistics.median(mib for _, mib in samples[-around:])
    return early, late, late / early - 1


def draw(samples: list[tuple[int, float]], steps: int) -> FigureCanvasAgg:
    """Resident size over steps; the dotted line is where counting begins."""
    from facelab.report.style import BLUE, GREY, INK

    early, _, share = growth(samples, steps)
    canvas = FigureCanvasAgg(Figure(figsize=(7, 3), dpi=150, layout="constrained"))
    axes = canvas.figure.subplots()
    axes.plot(*zip(*samples, strict=True), color=BLUE, linewidth=1)
    axes.axvline(steps / 10, color=GREY, linestyle=":", linewidth=1)
    axes.axhspan(early, early * (1 + LIMIT), color=GREY, alpha=0.2, linewidth=0)
    axes.set_ylim(0, None)
    axes.set_xlabel("step")
    axes.set_ylabel("resident size, MiB")
    axes.set_title(f"{share:+.2%} from step {steps // 10:,} to {steps:,}; the band is 1 %", fontsize=9, color=INK)
    return canvas


def main() -> None:
    """Trains, looks, and says how it was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path("memory"), help="folder of samples and picture")
    parser.add_argument("--dry", action="store_true", help="no row in results/memory_growth.csv")
    given = parser.parse_args()
    words = ["logger=csv", f"data.size={SIZE}", f"benchmark.size={SIZE}", "data.identities=60"]
    words += ["data.images_per_identity=6", "benchmark.count=60", "benchmark.folds=2", "trainer.progress=false"]
    words += ["backbone.widths=[16,16,16,32]", "backbone.embedding_size=16", "backbone.dropout=0.3", "trainer.ema=0.99"]
    words += ["trainer.batch_size=16", f"trainer.max_steps={given.steps}", "trainer.epochs=100000"]
    # 20 images an identity make some 20 steps an epoch: forty validations, a hundred checkpoints.
    epochs = given.steps / 20
    words += [
        f"trainer.validate_every={max(epochs / 40, 0.5):g}",
        f"trainer.save_every_steps={given.steps // 100 or 1}",
    ]
    samples: list[tuple[int, float]] = []
    every, spoken, began, busy = max(1, given.steps // SAMPLES), time.monotonic(), time.monotonic(), load()

    def begin(step: int) -> None:
        nonlocal spoken
        if step % every == 0:
            samples.append((step, resident()))
        if time.monotonic() - spoken > 15:
            spoken = time.monotonic()
            left = (spoken - began) * (given.steps - step) / max(step, 1)
            print(f"step {step:,} of {given.steps:,}, {samples[-1][1]:.0f} MiB, {left:.0f} s left", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        train(words, Path(folder) / "run", begin)
    given.out.mkdir(parents=True, exist_ok=True)
    with open(given.out / "memory_growth.csv", "w", newline="") as file:
        csv.writer(file).writerows([("step", "mib"), *((step, f"{mib:.2f}") for step, mib in samples)])
    draw(samples, given.steps).print_png(given.out / "memory_growth.png")
    early, late, share = growth(samples, given.steps)
    if not given.dry:
        import torch

        row = {"date": today(), "machine": machine(), "python": platform.python_version(), "torch": torch.__version__}
        row |= {"steps": str(given.steps), "early_mib": f"{early:.1f}", "late_mib": f"{late:.1f}"}
        row |= {"growth": f"{share:.5f}", "load": busy}
        print(f"recorded in {record('memory_growth', ['machine', 'python', 'torch', 'steps'], [row])}")
    words_of = f"{early:.1f} MiB at step {given.steps // 10:,}, {late:.1f} at {given.steps:,}: {share:+.2%}"
    if share >= LIMIT:
        raise SystemExit(f"{words_of}, which is not below {LIMIT:.0%}; look at {given.out}")
    print(words_of)


if __name__ == "__main__":
    main()
