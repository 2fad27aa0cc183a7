"""How a sweep stands, told by folders that say it in every way, and by a Slurm that is made up."""

import json
import os
import time

import pytest
import yaml

from facelab import status
from facelab.status import Slurm, look, table
from facelab.training.record import RunDirectory

CONFIG = {"trainer": {"epochs": 4, "max_steps": None, "batch_size": 100}}
HERE = os.uname().nodename
HEADER = "step,images,epoch,lr,train/loss,images_per_s,seconds,val/accuracy"
ROWS = ["10,1000,0.5,0.1,3.0,200,5,", "20,2000,1.0,0.1,2.0,400,10,", "20,2000,1.0,,,,10,0.75"]


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "losses"


def made(sweep, name, rows=(), job=None, host=HERE, config=CONFIG):
    run = sweep / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "environment.json").write_text(json.dumps({"starts": [{"host": "old"}, {"host": host, "slurm": job}]}))
    if rows:
        (run / "metrics.csv").write_text("\n".join([HEADER, *rows, ""]))
    return run


def submitted(sweep, job, log=""):
    folder = sweep / ".submitit" / job
    folder.mkdir(parents=True)
    (folder / f"{job}_0_log.err").write_text(log)


def one(sweep, slurm=None):
    (row,) = look([sweep], slurm or Slurm())
    return row


def test_done_with_its_result(sweep):
    run = made(sweep, "loss=arcface", ROWS)
    metrics = {"lfw/accuracy": 0.98765, "lfw/accuracy_std": 0.004, "val/accuracy": 0.9, "steps": 80}
    (run / "metrics.json").write_text(json.dumps(metrics))
    row = one(sweep)
    assert (row.name, row.state, row.held) == ("loss=arcface", "done", "90.00 %")
    assert row.told == "lfw/accuracy 98.77 % ± 0.40"


def test_running_with_its_epoch_and_the_time_left(sweep):
    run = made(sweep, "a", ROWS)
    directory = RunDirectory(run, CONFIG)
    row = one(sweep)
    assert (row.state, row.epoch, row.held) == ("running", "1.0/4", "75.00 %")
    assert row.left == pytest.approx(60 * 100 / 400)  # 60 steps at the rate of the last row that has one
    directory.close()
    row = one(sweep)
    assert (row.state, row.left) == ("stopped", None)
    assert "goes on" in row.told


def test_fewer_steps_than_epochs_ask_for(sweep):
    made(sweep, "a", ROWS, job="7", config={"trainer": {**CONFIG["trainer"], "max_steps": 30}})
    row = one(sweep, Slurm({"7": ("RUNNING", "None")}))
    assert (row.state, row.epoch, row.left) == ("running", "1.0/1.5", pytest.approx(10 * 100 / 400))


def test_only_the_end_of_a_long_history_is_read(sweep):
    early = [f"{i},{i},0.1,0.1,9.0,1,1,0.1" for i in range(5000)]
    made(sweep, "a", [*early, *ROWS, "21,21"], job="7")  # and a row that is being written
    assert len((sweep / "a" / "metrics.csv").read_bytes()) > status.TAIL
    with open(sweep / "a" / "metrics.csv", "ab") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 3)
    assert one(sweep, Slurm({"7": ("RUNNING", "None")})).epoch == "1.0/4"


def test_queued_again_with_the_epoch_it_has_come_to(sweep):
    made(sweep, "a", ROWS, job="7_3")
    row = one(sweep, Slurm({"7_3": ("PENDING", "BeginTime")}))
    assert (row.state, row.epoch, row.told) == ("queued", "1.0/4", "Slurm job 7_3 (BeginTime)")


def test_what_waits_has_no_folder_yet(sweep):
    submitted(sweep, "7_0")
    points = sweep / ".slurm" / "x.points"
    points.parent.mkdir()
    points.write_text("seed=1\tseed=1\nseed=2\tseed=2\n")
    points.with_suffix(".job").write_text("8\n")
    waiting = {"7_0": ("RUNNING", "None"), "8_0": ("PENDING", "Resources"), "8_1": ("PENDING", "Priority")}
    rows = look([sweep], Slurm({**waiting, "99": ("RUNNING", "None")}))
    assert [(row.name, row.state) for row in rows] == [
        ("Slurm job 7_0", "running"),
        ("seed=1", "queued"),
        ("seed=2", "queued"),
    ]
    assert look([sweep], Slurm()) == []  # ended, and nobody knows how


def test_failed_with_the_reason(sweep):
    log = "Traceback (most recent call last):\n  File x\nValueError: trainer.batch_size is 9: too many\nsrun: error\n"
    submitted(sweep, "6_0", log)  # of an earlier submission, perhaps mended
    submitted(sweep, "7_0", log)
    made(sweep, "seed=2", ROWS, job="7_1")
    submitted(sweep, "7_1", "facelab: the loss is no number\n")
    first, second = look([sweep], Slurm())
    assert (first.name, first.state) == ("Slurm job 7_0", "failed")
    assert first.told.startswith("ValueError: trainer.batch_size is 9: too many [runs/losses/.submitit/7_0/")
    assert (second.name, second.state) == ("seed=2", "failed")
    assert second.told.startswith("the loss is no number [")


def test_its_own_log_tells_of_the_latest_start_alone(sweep):
    run = made(sweep, "a", ROWS)
    (run / "train.log").write_text("2026-01-01 facelab.train seed=1\nTraceback:\nfacelab.training.finite.Diverged: x\n")
    refused = sweep / "b"
    refused.mkdir()
    submitted(sweep, "7_0", "facelab: b: trainer.batch_size is 9: too many\n")  # the same once more
    (refused / "train.log").write_text("ValueError: trainer.batch_size is 9: too many\n")
    first, second = look([sweep], Slurm())
    assert (first.state, first.told) == ("failed", "facelab.training.finite.Diverged: x [runs/losses/a/train.log]")
    assert (second.name, second.state, second.epoch) == ("b", "failed", "")
    os.utime(run / "train.log", (1, 1))
    assert {row.name: row.state for row in look([sweep], Slurm())} == {"a": "stopped", "b": "failed"}


def test_who_was_asked_to_stop_has_not_failed(sweep):
    submitted(sweep, "7", "facelab: stopped by SIGTERM after step 3; The same command, started again, goes on\n")
    made(sweep, "a", ROWS, job="7")
    os.utime(sweep / "a" / "environment.json", (1, 1))
    assert one(sweep).state == "stopped"


def test_a_job_that_was_requeued_has_not_failed(sweep):
    submitted(sweep, "7", "slurmstepd-n: error: *** JOB 7 ON n CANCELLED AT 2026-01-01 DUE TO JOB REQUEUE ***\n")
    made(sweep, "a", ROWS, job="7")
    assert one(sweep).state == "stopped"


@pytest.mark.parametrize(("age", "state"), [(0, "running"), (3600, "stopped")])
def test_on_another_machine_without_slurm_its_last_row_tells(sweep, age, state):
    run = made(sweep, "a", ROWS, host="elsewhere")
    then = time.time() - age
    os.utime(run / "metrics.csv", (then, then))
    assert one(sweep).state == state


def test_damaged_files_are_a_state_too(sweep):
    (made(sweep, "a", ROWS) / "metrics.json").write_text("{")
    (made(sweep, "b") / "config.yaml").write_text("a: [")
    (sweep / "b" / "environment.json").write_text("")
    (sweep / "notes").mkdir()
    assert [(row.name, row.state) for row in look([sweep], Slurm())] == [("a", "failed"), ("b", "stopped")]


def test_a_run_by_itself_and_no_folder_at_all(sweep):
    run = made(sweep, "a", ROWS)
    assert one(run).name == "a"
    with pytest.raises(FileNotFoundError, match=r"lossse is no folder: give that of a sweep"):
        look([sweep.parent / "lossse"], Slurm())


def answering(folder, monkeypatch, **programs):
    """Programs of Slurm that answer with these lines."""
    for name, lines in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_slurm_is_asked(sweep, tmp_path, monkeypatch):
    made(sweep, "a", ROWS, job="5_1")
    answering(tmp_path, monkeypatch, squeue="echo '7_0|PENDING|(Priority)'", sacct="echo '5_1|OUT_OF_MEMORY|'")
    slurm = Slurm.ask()
    assert slurm.queue == {"7_0": ("PENDING", "(Priority)")}
    answering(tmp_path, monkeypatch, sacct="echo '5_1|OUT_OF_MEMORY'; echo '5_2|CANCELLED by 0'; echo '5_3|COMPLETED'")
    assert slurm.endings(["5_1", "5_2", "5_3"]) == {"5_1": "killed: out of memory", "5_2": "cancelled"}
    row = one(sweep, slurm)
    assert (row.state, row.told) == ("failed", "killed: out of memory")
    answering(tmp_path, monkeypatch, squeue="exit 1", sacct="exit 1")
    assert "does not answer" in Slurm.ask().silence
    assert one(sweep, slurm).state == "stopped"


def test_the_table(sweep):
    made(sweep, "a", ROWS, job="7")
    made(sweep, "b,loss=cosface", job="8")
    rows = look([sweep], Slurm({"7": ("RUNNING", "None"), "8": ("PENDING", "Priority")}))
    lines = table(rows).splitlines()
    assert lines[0].split() == ["job", "state", "epoch", "left", "held-out"]
    assert lines[1].split() == ["a", "running", "1.0/4", "0:15", "75.00", "%", "Slurm", "job", "7"]
    assert lines[2].endswith("Slurm job 8 (Priority)")
    assert lines[-1] == "2 jobs: 1 running, 1 queued"
    assert status._duration(3 * 3600 + 62) == "3:01:02"
