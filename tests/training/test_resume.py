"""A run that is killed and started again ends as one that was left alone: bit for bit on the CPU."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

KILLS = 10
CLOCK = ("images_per_s", "seconds")  # what a clock measures is never twice the same


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    script = Path(__file__).with_name("killing.py")
    done = subprocess.run(
        [sys.executable, script, folder, str(KILLS), "20"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # so small a run only waits for its other threads
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    starts = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    again = max(i for i, start in enumerate(starts) if start["start"] in ("undisturbed", "again"))
    (folder / "starts.json").write_text(json.dumps(starts[again + 1 :]))  # of the run that the tests look at
    return folder


def tensors(path: Path):
    with safe_open(path, "np") as file:
        names = list(file.keys())
        return {name: file.get_tensor(name) for name in names}, json.loads(file.metadata()["facelab"])


def rows(path: Path):
    with open(path, newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)]


def test_it_was_really_killed(folder):
    starts = json.loads((folder / "starts.json").read_text())
    assert [start["status"] for start in starts] == [signal.SIGKILL] * KILLS + [0]
    assert len({start["start"] for start in starts}) >= 6  # five places and the clock


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_checkpoints_are_bit_equal(folder, name):
    alone, meta = tensors(folder / "alone" / "checkpoints" / name)
    killed, meta_killed = tensors(folder / "killed" / "checkpoints" / name)
    assert alone.keys() == killed.keys()
    assert any("momentum_buffer" in key for key in alone) == (name == "last.ckpt")
    assert any("model.average." in key for key in alone) == (name == "last.ckpt")
    for key, value in alone.items():
        assert value.tobytes() == killed[key].tobytes(), key
    for progress in (meta["progress"], meta_killed["progress"]):
        progress.pop("seconds")
    assert meta["progress"] == meta_killed["progress"]


def test_history_has_neither_gap_nor_duplicate(folder):
    alone, killed = rows(folder / "alone" / "metrics.csv"), rows(folder / "killed" / "metrics.csv")
    assert alone == killed
    assert len(alone) > 15


def test_histograms_are_bit_equal_and_count_every_image(folder):
    alone, killed = (folder / run / "histograms.npz" for run in ("alone", "killed"))
    assert alone.read_bytes() == killed.read_bytes()
    metrics = json.loads((folder / "killed" / "metrics.json").read_text())
    with np.load(killed) as file:
        assert file["angle"].sum() == file["norm"].sum() == file["images"][-1] == metrics["images"]
        assert len(file["angle"]) > 10


def test_result_is_the_same(folder):
    alone, killed = (json.loads((folder / run / "metrics.json").read_text()) for run in ("alone", "killed"))
    assert {k: v for k, v in alone.items() if k not in CLOCK} == {k: v for k, v in killed.items() if k not in CLOCK}
    with (
        np.load(folder / "alone" / "scores" / "heldout.npz") as first,
        np.load(folder / "killed" / "scores" / "heldout.npz") as second,
    ):
        for key in first.files:
            np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def test_nothing_half_written_is_left(folder):
    names = {path.name for path in (folder / "killed").rglob("*") if path.is_file()}
    assert not any(name.startswith(".unfinished-") for name in names)
    assert {"config.yaml", "environment.json", "metrics.csv", "metrics.json", "report.png", "last.ckpt"} <= names
