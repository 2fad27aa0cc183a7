"""Are rendered faces hard enough: do losses differ on them, and does resolution matter?

Trains a small network with every loss of conf/loss, and with ArcFace on images that went through fewer pixels, by the
short training of tests/loss/test_every_loss_trains.py, over several seeds. The variance between losses is held against
the variance within by F (seeds are blocks), and p is found by 10,000 random exchanges of losses within each seed.

Writes results/rendered_faces.csv: held-out verification accuracy in percent, mean and standard deviation over seeds.

    python benchmarks/rendered_faces.py --seeds 5
"""

import argparse
import importlib.util
import platform
from pathlib import Path

import numpy as np
import torch
from recording import load, machine, record, today
from torch import Tensor
from torch.nn.functional import interpolate

HERE = Path(__file__).parent
EXCHANGES = 10_000


def through(images: Tensor, size: int) -> Tensor:
    """Images (N,3,H,W) shrunk to `size` pixels by area, and enlarged again."""
    small = interpolate(images, size, mode="area")
    return interpolate(small, images.shape[-1], mode="bicubic", align_corners=False).clamp(-1, 1)


def between(table: np.ndarray) -> float:
    """F of the rows of a table (losses, seeds), the columns' own means taken away."""
    table = table - table.mean(axis=0)
    rows, columns = table.shape
    means = table.mean(axis=1, keepdims=True)
    left = ((table - means) ** 2).sum() / ((rows - 1) * (columns - 1))
    return float(columns * (means**2).sum() / (rows - 1) / left)


def main() -> None:
    """Trains, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    place = HERE.parent / "tests" / "loss" / "test_every_loss_trains.py"
    spec = importlib.util.spec_from_file_location("every_loss", place)
    assert spec is not None
    assert spec.loader is not None
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)

    busy = load()
    (images, labels), (unseen, people) = study.people()
    full = images.shape[-1]
    settings = [(path.stem, full) for path in study.CONF] + [("arcface", full * 2 // 3), ("arcface", full // 3)]
    found: dict[tuple[str, int], list[float]] = {}
    for name, size in settings:
        faces = (through(images, size), labels), (through(unseen, size), people)
        if size == full:
            faces = (images, labels), (unseen, people)
        values = [100 * study.learning_curve(name, faces, seed)[1] for seed in range(options.seeds)]
        found[name, size] = values
        print(f"{name:16} {size:3} pixels  {np.mean(values):6.2f} ± {np.std(values, ddof=1):.2f}", flush=True)

    table = np.array([values for (_, size), values in found.items() if size == full])
    ratio, draw = between(table), np.random.default_rng(0)
    exceeded = sum(between(draw.permuted(table, axis=0)) >= ratio for _ in range(EXCHANGES))
    share = (1 + exceeded) / (1 + EXCHANGES)
    print(f"between losses / within: F = {ratio:.1f}, p = {share:.4f} by {EXCHANGES:,} exchanges")
    rows = [
        {
            "date": today(),
            "machine": machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "seeds": str(options.seeds),
            "loss": name,
            "pixels": str(size),
            "accuracy": f"{np.mean(values):.2f}",
            "std": f"{np.std(values, ddof=1):.2f}",
            "f_of_losses": f"{ratio:.2f}",
            "p": f"{share:.4f}",
            "load": busy,
        }
        for (name, size), values in found.items()
    ]
    record("rendered_faces", ["machine", "python", "torch", "seeds", "loss", "pixels"], rows)


if __name__ == "__main__":
    main()
