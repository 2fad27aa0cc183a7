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

    def call(*words):
        path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
        environment.pop("FACELAB_POINTS", None)
        return subprocess.run(
            ["bash", str(SCRIPT), *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    return call


def test_points_are_those_of_a_multirun_less_the_finished_ones(submit, tmp_path):
    options = ["--time=1:00:00", "--partition=gpu"]
    words = [*options, "sweeps=long_tail", "seed=1,2", "data=casia", "data.root='a b'"]
    for left in (4, 3):
        told = submit(*words)
        assert told.returncode == 0, told.stderr
        points, *given = (tmp_path / "sbatch.txt").read_text().splitlines()
        assert (Path(points).parent, Path(points).suffix) == (Path("runs/long_tail/.slurm"), ".points")
        assert {"--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=1", f"--array=0-{left - 1}%32", *options} <= {
            *given
        }
        assert given[-1] == str(SCRIPT)
        assert (tmp_path / points).with_suffix(".job").read_text() == "41\n"
        lines = [line.split("\t") for line in (tmp_path / points).read_text().splitlines()]
        assert [line[1:] for line in lines] == [
            [f"loss={loss}", f"seed={seed}", "sweeps=long_tail", "data=casia", "data.root='a b'"]
            for loss in ("adaface", "adaface_by_class")
            for seed in (1, 2)
        ][:left]
        done = tmp_path / "runs" / "long_tail" / lines[-1][0]
        done.mkdir(parents=True)
        (done / "metrics.json").write_text(json.dumps({}))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["trainer.devices=1,2"], "the same resources"),
        (["seed=1,2", "job=mine"], "share one run directory"),
        (["loss=arcfase"], "facelab: loss has no option 'arcfase': did you mean arcface"),
    ],
)
def test_what_makes_no_array_is_refused(submit, tmp_path, words, reason):
    told = submit(*words)
    assert told.returncode != 0
    assert reason in told.stderr
    assert not (tmp_path / "sbatch.txt").exists()
