"""What the guards of a training cost: the time of a step with all of them on ÷ with them off, in one training.

    python benchmarks/guards.py                     # tiny network, batch 64, 112 pixels: a minute or two on two cores
    python benchmarks/guards.py --steps 24 --dry

One real training (facelab.training.fit) on rendered faces that are drawn already. At every step the guards are switched
on or off, in pairs of neighbouring steps whose order alternates, so that whatever else the machine does slows both
alike. A step's time is that from its beginning to the beginning of the next, with callbacks, loader and optimizer.

* `not finite`: loss, gradient norm and embeddings of each step are looked at, rows of a loss, weights that are saved
  (facelab/training/finite.py, facelab/loss/base.py)
* `stop request`: whether a signal has asked to stop, and whether a checkpoint is due (facelab/training/keeper.py)
* `all`: both
* `record`: no guard, for comparison: histograms of angles and lengths, which each step adds to

The median of the pairs' ratios is what counts; it should be at most 1.02 for `all`. Results go to results/guards.csv.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recording import load, machine, record, today

CONF = Path(__file__).resolve().parents[1] / "conf"
LIMIT = 1.02
WARM = 4  # steps that are not counted: memory is taken, threads begin

Switch = tuple[Any, str, Callable[..., Any]]  # owner, name of its function, what stands there when it is off


def nothing(*_: Any, **__: Any) -> None:
    """A guard that is off."""


def switches() -> dict[str, list[Switch]]:
    """What belongs to each guard."""
    from facelab.loss import classifier, pairs
    from facelab.training import module
    from facelab.training.finite import Watch
    from facelab.training.histograms import Histograms
    from facelab.training.keeper import Keeper

    finite: list[Switch] = [(Watch, name, nothing) for name in ("rows", "step", "refuse")]
    finite += [(owner, "require_finite", nothing) for owner in (classifier, pairs) if hasattr(owner, "require_finite")]
    finite.append((module, "refuse_weights", nothing))
    stop: list[Switch] = [(Keeper, "on_train_batch_end", nothing)]
    return {
        "not finite": finite,
        "stop request": stop,
        "all": finite + stop,
        "record": [(Histograms, "add", nothing)],
    }


class Alternating:
    """Switches guards at every step of a training, and notes how long it took.

    Args:
        sets: name → its guards.
    """

    def __init__(self, sets: dict[str, list[Switch]]):
        self.sets = sets
        self.originals = {(owner, name): getattr(owner, name) for part in sets.values() for owner, name, _ in part}
        self.begun: list[float] = []

    def plan(self, step: int) -> tuple[str, bool]:
        """Whose guards a step is about, and whether these are on: pairs of steps, in turn on–off and off–on."""
        pair, second = divmod(step, 2)
        names = list(self.sets)
        return names[pair % len(names)], (pair // len(names) % 2 == 0) != bool(second)

    def begin(self, step: int) -> None:
        """A step begins."""
        self.begun.append(time.perf_counter())
        name, on = self.plan(step)
        for (owner, function), original in self.originals.items():
            setattr(owner, function, original)
        if not on:
            for owner, function, off in self.sets[name]:
                setattr(owner, function, off)

    def ratios(self) -> dict[str, list[float]]:
        """Of each pair: seconds on ÷ seconds off."""
        seconds = [after - before for before, after in zip(self.begun, self.begun[1:], strict=False)]
        found: dict[str, list[float]] = {name: [] for name in self.sets}
        for first in range(WARM, len(seconds) - 1, 2):
            name, on = self.plan(first)
            ratio = seconds[first] / seconds[first + 1]
            found[name].append(ratio if on else 1 / ratio)
        return found

    def median_seconds(self) -> float:
        """Of a step."""
        return statistics.median(b - a for a, b in zip(self.begun[WARM:], self.begun[WARM + 1 :], strict=False))


def train(words: list[str], where: Path, begin: Callable[[int], None]) -> None:
    """A real training; `begin` is told of each step."""
    import hydra
    from omegaconf import OmegaConf

    from facelab.training import fit
    from facelab.training.module import FaceModule

    OmegaConf.register_new_resolver("facelab.job", lambda: "guards", replace=True)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("config", words)
    original = FaceModule.training_step

    def training_step(self: Any, batch: Any, number: int) -> None:
        begin(self.progress.step)
        original(self, batch, number)

    FaceModule.training_step = training_step  # type: ignore[method-assign]
    try:
        fit.train(config, OmegaConf.to_container(config, resolve=True), where, one_process=False)  # type: ignore
    finally:
        FaceModule.training_step = original  # type: ignore[method-assign]


def main() -> None:
    """Measures, prints and records."""
    import torch

    from facelab.report import run as report

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=404)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=112, help="pixels")
    parser.add_argument("--backbone", default="tiny", help="of conf/backbone")
    parser.add_argument("--dry", action="store_true", help="print only, record nothing")
    given = parser.parse_args()
    # All images are drawn by the first validation and the first epochs; validations come at the beginning and the end.
    words = ["logger=csv", f"backbone={given.backbone}", f"data.size={given.size}", f"benchmark.size={given.size}"]
    words += ["data.identities=40", "data.images_per_identity=6", "benchmark.count=60", "benchmark.folds=2"]
    words += [f"trainer.batch_size={given.batch}", f"trainer.max_steps={given.steps}", "trainer.epochs=100000"]
    words += ["trainer.validate_every=90000", "trainer.progress=false", "trainer.log_every=7"]
    busy, alternating = load(), Alternating(switches())
    report.draw = nothing  # which would look in vain for the histograms of the steps without them
    with tempfile.TemporaryDirectory() as folder:
        train(words, Path(folder) / "run", alternating.begin)
    seconds, rows = alternating.median_seconds(), []
    common = {"date": today(), "machine": machine(), "python": platform.python_version(), "torch": torch.__version__}
    common |= {"backbone": given.backbone, "batch": str(given.batch), "size": str(given.size)}
    print(f"\n{seconds * 1e3:.1f} ms a step")
    for name, ratios in alternating.ratios().items():
        low, median, high = (statistics.quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios)[:3]
        error = 1.25 * statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else float("nan")
        print(
            f"{name:14} on ÷ off {median:.4f} ± {error:.4f}  (quartiles {low:.3f} to {high:.3f}, {len(ratios)} pairs)"
        )
        told = {"ratio": f"{median:.4f}", "standard_error": f"{error:.4f}", "pairs": str(len(ratios))}
        rows.append({**common, "guards": name, **told, "step_ms": f"{seconds * 1e3:.1f}", "load": busy})
    if not given.dry:
        key = ["machine", "python", "torch", "backbone", "batch", "size", "guards"]
        print(f"recorded in {record('guards', key, rows)}")
    found = next(float(row["ratio"]) for row in rows if row["guards"] == "all")
    print(f"all guards: {found:.4f}, {'at most' if found <= LIMIT else 'MORE THAN'} {LIMIT}")


if __name__ == "__main__":
    main()
