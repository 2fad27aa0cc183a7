"""Runs one small training to its end in spite of SIGKILLs: `python killing.py FOLDER KILLS SEED`.

Every start is a fork of this process, which has imported everything and computed nothing, so that a start costs no
imports. Half of the kills strike at a chosen place (inside a step, a validation, a checkpoint's writing, a row of the
history, the report), the others at a random moment of the clock. Prints one JSON line about each start.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import hydra
import torch
from omegaconf import OmegaConf

import facelab.atomic
from facelab.door import configuration_folder
from facelab.training import fit, record, saving
from facelab.training.module import FaceModule

sys.path.append(str(Path(__file__).resolve().parents[1]))
from striking import strike, strike_in

SMALL = [
    "logger=csv",
    "job=small",
    "data.identities=24",
    "data.images_per_identity=6",
    "data.size=48",
    "data.holdout.fraction=0.4",
    "benchmark.size=48",
    "benchmark.count=60",
    "benchmark.folds=2",
    "backbone.widths=[16,16,16,32]",
    "backbone.embedding_size=16",
    "backbone.dropout=0.3",
    "optimizer.schedule.warmup_epochs=0.5",
    "trainer.batch_size=16",
    "trainer.accumulate=3",
    "trainer.epochs=6",
    "trainer.validate_every=0.8",
    "trainer.save_every_steps=2",
    "trainer.log_every=3",
    "trainer.progress=false",
]


def compose(*overrides: str):
    """The configuration of a small run, and the same as plain values."""
    OmegaConf.register_new_resolver("facelab.job", lambda: "small", replace=True)
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        config = hydra.compose("config", [*SMALL, *overrides])
    return config, OmegaConf.to_container(config, resolve=True)


def strike_half_written(count: int) -> None:
    """Kills in the middle of the `count`-th checkpoint: half of its bytes are in the temporary file."""
    original = saving.save_file
    calls = 0

    def struck(tensors, path, metadata):
        nonlocal calls
        calls += 1
        original(tensors, path, metadata)
        if calls == count:
            os.truncate(path, os.path.getsize(path) // 2)
            strike()

    saving.save_file = struck


def strike_in_the_background(count: int) -> None:
    """Kills before the `count`-th file of a checkpoint is written, when training has gone on for two steps."""
    original, step = saving.save_file, FaceModule.training_step
    calls, steps = 0, 0

    def counted(self, batch, number):
        nonlocal steps
        step(self, batch, number)
        steps += 1

    def struck(tensors, path, metadata):
        nonlocal calls
        calls += 1
        then, patience = steps, time.monotonic() + 2
        while calls == count and steps < then + 2 and time.monotonic() < patience:  # or validation, or a saving, waits
            time.sleep(0.001)
        if calls == count:
            strike()
        original(tensors, path, metadata)

    saving.save_file, FaceModule.training_step = struck, counted


def strike_half_row(count: int) -> None:
    """Kills when half of the `count`-th row of metrics.csv is on disk."""
    original = record.History.write
    calls = 0

    def struck(self, row):
        nonlocal calls
        calls += 1
        if calls == count:
            self._file.write(f"{row['step']},{row['images']},0.".encode())
            strike()
        original(self, row)

    record.History.write = struck


PLACES = {
    "before an optimizer step": lambda n: strike_in(torch.optim.SGD, "step", n, before=True),
    "after an optimizer step": lambda n: strike_in(torch.optim.SGD, "step", n, before=False),
    "in a validation": lambda n: strike_in(FaceModule, "validation_step", n, before=False),
    "in a checkpoint": strike_half_written,
    "behind training": strike_in_the_background,
    "before the predecessor has its name": lambda n: strike_in(saving, "keep", n, before=True),
    "after the predecessor has its name": lambda n: strike_in(saving, "keep", n, before=False),
    "before a rename": lambda n: strike_in(facelab.atomic.os, "replace", n, before=True),
    "after a rename": lambda n: strike_in(facelab.atomic.os, "replace", n, before=False),
    "in a row": strike_half_row,
    "before the report": lambda n: strike_in(FaceModule, "test_step", 1, before=True),
    "after the scores": lambda n: strike_in(fit, "save_all", 1, before=False),
}
AT_THE_END = ("before the report", "after the scores")


def start(config, plain, where: Path, place: str | None, count: int, seconds: float | None) -> tuple[int, float]:
    """One start in a child process; gives its wait status and how long it lived."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            if place is not None:
                PLACES[place](count)
            fit.train(config, plain, where, one_process=False)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status, time.monotonic() - began
        if seconds is not None and time.monotonic() - began > seconds:
            os.kill(child, signal.SIGKILL)
            seconds = None
        time.sleep(0.005)


def killed(config, plain, where: Path, kills: int, chance: random.Random, longest: float) -> bool:
    """Starts one run until it has ended; whether it had to be killed `kills` times before that."""
    struck = 0
    places = chance.sample(list(PLACES), min(len(PLACES), (kills + 1) // 2))
    places.sort(key=lambda place: place in AT_THE_END)  # behind which there is no step left to strike in
    while True:
        place = seconds = None
        count = 0
        if struck < kills and struck % 2 == 0:
            place, count = places[struck // 2 % len(places)], chance.randint(1, 4)
        elif struck < kills:
            seconds = chance.uniform(0.1, 1.0) * longest
        status, lived = start(config, plain, where, place, count, seconds)
        print(json.dumps({"start": place or "clock", "count": count, "status": status, "seconds": lived}), flush=True)
        if status == 0:
            return struck == kills
        if status != signal.SIGKILL:
            sys.exit(f"a start ended with status {status}")
        struck += 1


def main() -> None:
    """First undisturbed, then killed again and again.

    How far a run has come when the clock strikes depends on the machine. Where one reached its end before all kills had
    struck, it is begun again, and the clock strikes sooner.
    """
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    config, plain = compose("trainer.ema=0.9")
    status, alone = start(config, plain, folder / "alone", None, 0, None)
    print(json.dumps({"start": "undisturbed", "status": status, "seconds": alone}), flush=True)
    chance = random.Random(seed)
    longest = 0.3 * alone
    while not killed(config, plain, folder / "killed", kills, chance, longest):
        print(json.dumps({"start": "again"}), flush=True)
        shutil.rmtree(folder / "killed")
        longest *= 0.6


if __name__ == "__main__":
    main()
