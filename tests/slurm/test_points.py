"""A sweep's points as slurm/sweep.sbatch submits them; without Slurm."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "slurm" / "sweep.sbatch"


@pytest.fixture
def submit(tmp_path):
    """Calls the script from another folder, with an sbatch that only writes down what it was told."""
    programs = tmp_path / "bin"
    programs.mkdir()
    lines = ["#!/bin/sh", 'printf "%s\\n" "$FACELAB_POINTS" "$@" > sbatch.txt', 'echo "41;main"', ""]
    (programs / "sbatch").write_text("\n".join(lines))
    (programs / "sbatch").chmod(0o755)
    (programs / "python").symlink_to(sys.executable)

    def call(*words):
        path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
        environment.pop("FACELAB_POINTS", None)
        return subprocess.run(
            ["bash", str(SCRIPT), *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    return call


def test_points_are_those_of_a_multirun_less_the_finished_ones(submit, tmp_path):
    done = tmp_path / "runs" / "long_tail" / "loss=adaface_by_class,seed=2,data.root=a_b"
    done.mkdir(parents=True)
    (done / "metrics.json").write_text(json.dumps({}))
    options = ["--time=1:00:00", "--partition=gpu"]
    told = submit(*options, "sweeps=long_tail", "seed=1,2", "data=casia", "data.root='a b'")
    assert told.returncode == 0, told.stderr
    assert "submitted" in told.stdout
    points, *given = (tmp_path / "sbatch.txt").read_text().splitlines()
    assert (Path(points).parent, Path(points).suffix) == (Path("runs/long_tail/.slurm"), ".points")
    assert {"--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=1", *options} <= set(given)
    lines = [line.split("\t") for line in (tmp_path / points).read_text().splitlines()]
    assert f"--array=0-{len(lines) - 1}%32" in given
    assert given[-1] == str(SCRIPT)
    assert (tmp_path / points).with_suffix(".job").read_text() == "41\n"
    first = ["loss=adaface", "seed=1", "sweeps=long_tail", "data=casia", "data.root='a b'"]
    assert lines[0][1:] == first
    assert lines[1][1:] == [first[0], "seed=2", *first[2:]]
    assert all(name.startswith("loss=adaface") for name, *_ in lines)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["trainer.devices=1,2"], "the same resources"),
        (["seed=1,2", "job=mine"], "share one run directory"),
        (["loss=arcfase"], "arcfase"),
    ],
)
def test_what_makes_no_array_is_refused(submit, tmp_path, words, reason):
    told = submit(*words)
    assert told.returncode != 0
    assert reason in told.stderr
    assert not (tmp_path / "sbatch.txt").exists()
