"""That the measurements still run and record what they measured; never how fast anything is."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def recording(monkeypatch, tmp_path):
    """The module that all measurements share, writing elsewhere."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import recording

    monkeypatch.setattr(recording, "RESULTS", tmp_path / "results")
    return recording


def read(file):
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_a_row_replaces_the_one_of_the_same_key_and_no_other(recording):
    old = [{"machine": "a", "what": "x", "seconds": "1"}, {"machine": "b", "what": "x", "seconds": "2"}]
    recording.record("some", ["machine", "what"], old)
    new = [{"machine": "a", "what": "x", "seconds": "3"}, {"machine": "a", "what": "y", "seconds": "4"}]
    file = recording.record("some", ["machine", "what"], new)
    assert read(file) == [old[1], *new]


def test_recorded_results_have_a_date_a_machine_and_versions():
    files = sorted((BENCHMARKS / "results").glob("*.csv"))
    assert len(files) >= 2
    for file in files:
        rows = read(file)
        assert rows, file.name
        for row in rows:
            assert row["date"], file.name
            assert "cores" in row["machine"], file.name
            assert row["python"], file.name
            assert row["torch"], file.name


@pytest.mark.slow
def test_a_training_step_is_measured_ours_and_the_plain_way(tmp_path):
    chosen = ["--backbones", "tiny", "--precisions", "fp32", "--layouts", "contiguous", "--batch", "4"]
    short = ["--classes", "10", "--rounds", "1", "--seconds", "0", "--workers", "1", "--cpu", "--dry"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "train_step.py"), *chosen, *short, "--plain", "--data"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    header = next(line for line in lines if "images_per_s" in line)
    rows = [dict(zip(header, line, strict=True)) for line in lines if line and line[0] == "tiny"]
    assert [(row["way"], row["precision"]) for row in rows] == [("facelab", "fp32"), ("plain", "fp16")]
    assert rows[0]["ratio"] == "1.00"
    for row in rows:
        for column in ("images_per_s", "ratio", "share_of_gemm", "peak_memory_mib", "images_per_s_loaded"):
            assert float(row[column]) >= 0
        assert 0 <= float(row["waiting"]) <= 1
