"""The whole way on real photographs: detect, align, pack, train, and a score on LFW that the network has learnt."""

import json
import os
import subprocess
import sys

import pytest

from facelab.data.recordio import RecordIOFaces

PIXELS = 32


def facelab(door, *words):
    command = [sys.executable, "-m", f"facelab.{door}", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.data
@pytest.mark.slow
def test_from_photographs_to_a_score_on_lfw(real_data, tmp_path):
    """Twenty people are too few to learn faces from: what is shown is that every step takes what the last one made."""
    weights, photos, lfw = real_data / "weights", real_data / "photos", real_data / "lfw"
    made = facelab(
        *("prepare", f"source={photos}", f"out={tmp_path / 'set'}", f"size={PIXELS}", "progress=false"),
        f"detector.model={weights / 'yunet_n_dynamic.onnx'}",
    )
    assert "100 faces of 20 identities" in made
    faces = RecordIOFaces(tmp_path / "set", PIXELS)
    assert (len(faces), faces.num_classes) == (100, 20)
    facelab("prepare", "task=verify", f"source={tmp_path / 'set'}", "progress=false")  # fails where it is damaged
    facelab(
        *("train", "data=recordio", f"data.root={tmp_path / 'set'}", f"data.size={PIXELS}", "data.holdout.fraction=0"),
        *("loss=softmax", "optimizer.lr=0.02", "trainer.batch_size=50", "trainer.epochs=20", "trainer.progress=false"),
        *(f"benchmark.path={lfw / 'images'}", f"benchmark.pairs={lfw / 'pairsDevTest.txt'}", "benchmark.folds=2"),
        *("benchmark.name=lfw", "benchmark.mirror=false", "logger=csv", f"out={tmp_path / 'runs'}", "job=round"),
    )
    run = tmp_path / "runs" / "default" / "round"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["lfw/accuracy"] > 0.55  # of 1,000 pairs: chance is 0.5 ± 0.016
    assert json.loads((run / "environment.json").read_text())["data"]["images"] == 100
