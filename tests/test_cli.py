"""The command line as a stranger uses it: from another folder, in processes of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from wandb.proto import wandb_internal_pb2

from facelab.training.stored import files_of

FACES = [
    "data.identities=24",
    "data.images_per_identity=6",
    "data.size=48",
    "data.holdout.fraction=0.4",
    "benchmark.size=48",
    "benchmark.count=60",
    "benchmark.folds=2",
    "backbone.widths=[16,16,16,32]",
    "backbone.embedding_size=16",
]
TINY = [*FACES, "trainer.batch_size=16"]


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment |= {"OMP_NUM_THREADS": "1", "NETRC": str(folder / "no_netrc"), "HOME": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-m", "facelab.train", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[str, str]:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out[-2000:] + err[-4000:]
    return out, err


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A run with the default logger and no key, from a folder with a space and Korean letters in its name."""
    folder = tmp_path_factory.mktemp("elsewhere") / "내 얼굴 폴더"
    folder.mkdir()
    out, err = finish(start(folder, *TINY, "trainer.epochs=1", "job=first", "loss=cosface", "benchmark.mirror=false"))
    return folder, out, err


def test_runs_from_another_folder(stranger):
    folder, out, _ = stranger
    run = folder / "runs" / "default" / "first"
    assert (run / "metrics.json").is_file()
    for word in ("parameters", "GMACs", "identities", "images", "steps", "heldout/accuracy", str(run)):
        assert word in out


def wandb_records(file: Path) -> list:
    """What stands in a .wandb file: a header of seven bytes, then LevelDB's log format of protocol buffers.

    W&B's own readers come and go with its versions.
    """
    data, at, parts, records = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        left = 32768 - at % 32768  # in this block; what is too short for a record's header is left empty
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(wandb_internal_pb2.Record())
            records[-1].ParseFromString(parts)
            parts = b""
    return records


def test_wandb_is_offline_without_a_key_and_finished(stranger):
    folder, _, err = stranger
    run = folder / "runs" / "default" / "first"
    offline = list((run / "wandb").glob("offline-run-*"))
    assert len(offline) == 1
    identity = json.loads((run / "environment.json").read_text())["wandb"]
    assert offline[0].name.endswith(identity)
    # A run that was not finished has no exit record and no summary.
    records = wandb_records(next(offline[0].glob("*.wandb")))
    kinds = [record.WhichOneof("record_type") for record in records]
    assert kinds.count("exit") == 1
    assert "heldout/accuracy" in {item.key for record in records for item in record.summary.update}
    run_record = str(records[kinds.index("run")])
    assert "CosFace" in run_record
    assert "facelab" in run_record
    assert "Traceback" not in err


def test_started_again_it_says_that_it_is_finished(stranger):
    folder, _, _ = stranger
    arguments = [*TINY, "trainer.epochs=1", "job=first", "loss=cosface", "benchmark.mirror=false"]
    out, _ = finish(start(folder, *arguments))
    assert "finished" in out
    assert "heldout/accuracy" in out


def test_ctrl_c_says_how_to_go_on_and_it_does(tmp_path):
    arguments = [*TINY, "logger=csv", "job=stopped", "trainer.epochs=400"]
    process = start(tmp_path, *arguments)
    rows = tmp_path / "runs" / "default" / "stopped" / "metrics.csv"
    deadline = time.monotonic() + 120
    while not (rows.is_file() and rows.read_text().count("\n") > 3):
        assert time.monotonic() < deadline, "no training within two minutes"
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    lines = [line for line in err.splitlines() if line.startswith("facelab:")]
    assert len(lines) == 1
    assert "SIGINT" in lines[0]
    assert "started again" in lines[0]
    assert "Traceback" not in err
    before = rows.read_text().splitlines()
    process = start(tmp_path, *arguments)
    while rows.read_text().count("\n") < len(before) + 3:
        assert time.monotonic() < deadline + 120, "it does not go on"
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    after = rows.read_text().splitlines()
    steps = [line.split(",")[0] for line in after[1:]]
    assert after[: len(before)] == before
    assert [int(step) for step in steps] == sorted(int(step) for step in steps)


def test_the_cards_first_line(tmp_path):
    """`loss=arcface backbone=r100` on a CPU, as typed but for its length."""
    out, _ = finish(
        start(
            tmp_path,
            *("loss=arcface", "backbone=r100", "logger=csv", "trainer.max_steps=1", "trainer.batch_size=2"),
            *("data.identities=10", "data.images_per_identity=3", "data.holdout.fraction=0.6"),
            *("benchmark.count=8", "benchmark.folds=2"),
        )
    )
    assert "65,156,160 parameters" in out
    assert "12.09" in out


def test_two_processes_train_with_sharded_centres(tmp_path):
    """Two ranks on the CPU: one record, class centres in two shards, resumable on one rank."""
    arguments = [*TINY, "logger=csv", "job=two", "trainer.accelerator=cpu", "trainer.epochs=2", "trainer.accumulate=2"]
    arguments += ["trainer.ema=0.9"]
    out, err = finish(start(tmp_path, *arguments, "trainer.devices=2"))
    run = tmp_path / "runs" / "default" / "two"
    assert "2 processes" in out
    assert "Traceback" not in err
    _, *shards = files_of(run / "checkpoints" / "last.ckpt")
    assert [path.stem for path in shards] == ["last.ckpt.shard-0-of-2", "last.ckpt.shard-1-of-2"]
    (run / "metrics.json").unlink()  # as if it had been stopped before its report: one process makes it from the shards
    finish(start(tmp_path, *arguments, "trainer.devices=1"))
    assert (run / "metrics.json").is_file()
