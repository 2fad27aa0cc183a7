"""A run directory's life, and its history."""

import json
import os
import signal
from pathlib import Path

import pytest
import yaml

from facelab.training import record
from facelab.training.record import COLUMNS, History, RunDirectory, read_history
from facelab.training.sameness import FREE, differences

CONFIG = {
    "seed": 1,
    "out": "runs",
    "name": "default",
    "job": "defaults",
    "logger": {"project": "facelab"},
    "data": {"size": 112, "loader": {"threads": 2}},
    "trainer": {"epochs": 6, "devices": 1, "progress": True},
}


def changed(**values):
    """The configuration with other values, given as dotted keys with __ for the dot."""
    config = json.loads(json.dumps(CONFIG))
    for key, value in values.items():
        *path, last = key.split("__")
        node = config
        for name in path:
            node = node[name]
        node[last] = value
    return config


def opened(path, config=CONFIG, writes=True):
    return RunDirectory(path / "run", config, writes)


def test_a_fresh_folder(tmp_path):
    directory = opened(tmp_path)
    assert not directory.finished
    assert not directory.resumable
    directory.start(CONFIG)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == CONFIG
    directory.close()
    assert (tmp_path / "run" / "config.yaml").is_file()


def test_a_checkpoint_makes_it_resumable_and_metrics_finish_it(tmp_path):
    directory = opened(tmp_path)
    directory.start(CONFIG)
    directory.last.parent.mkdir()
    directory.last.write_bytes(b"checkpoint")
    directory.close()
    directory = opened(tmp_path)
    assert directory.resumable
    assert not directory.finished
    directory.finish({"lfw/accuracy": 0.9917, "steps": 10})
    directory.close()
    directory = opened(tmp_path)
    assert directory.finished
    assert directory.metrics() == {"lfw/accuracy": 0.9917, "steps": 10}
    directory.close()


def test_the_first_configuration_stays(tmp_path):
    for config in (CONFIG, changed(trainer__devices=4)):
        directory = opened(tmp_path, config)
        directory.start(config)
        directory.close()
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == CONFIG


def test_another_configuration_is_refused_and_its_keys_named(tmp_path):
    directory = opened(tmp_path)
    directory.start(CONFIG)
    directory.close()
    for writes in (True, False):
        with pytest.raises(ValueError, match=r"another configuration \(seed: 1 → 2; trainer\.epochs: 6 → 7\): give"):
            opened(tmp_path, changed(seed=2, trainer__epochs=7), writes)
    opened(tmp_path).close()  # the refused one does not keep the lock


def test_what_changes_no_result_may_differ(tmp_path):
    directory = opened(tmp_path)
    directory.start(CONFIG)
    directory.close()
    other = changed(out="elsewhere", name="n", job="j", logger={"mode": "x"}, data__loader={"threads": 8})
    other["trainer"].update(devices=2, progress=False, num_nodes=3, save_every_steps=5, save_every_minutes=None)
    opened(tmp_path, other).close()


def test_differences():
    assert differences(CONFIG, CONFIG) == []
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}) == ["a.c: 2 → absent"]
    assert differences({"a": {}}, {"a": {"b": None}}) == ["a: {} → absent"]


def test_a_younger_option_at_rest_is_no_difference():
    older, now = {"optimizer": {"lr": 0.1}}, {"optimizer": {"lr": 0.1, "stage_decay": 1.0}, "backbone": {"freeze": 0}}
    assert differences(older, now) == differences(now, older) == []
    assert differences(older, {"optimizer": {"lr": 0.1, "stage_decay": 0.5}}) == ["optimizer.stage_decay: 1.0 → 0.5"]
    assert differences({"a": [1, 2]}, {"a": [1, 3]}) == ["a: [1, 2] → [1, 3]"]
    assert differences({"outer": 1, "names": 2}, {"outer": 2, "names": 3}) == ["names: 2 → 3", "outer: 1 → 2"]
    for key in FREE:
        assert differences({key: 1}, {key: 2}) == []
    assert differences({"data": {"size": 112}}, {"data": {"size": 96}}) == ["data.size: 112 → 96"]


def test_one_process_at_a_time(tmp_path):
    first = opened(tmp_path)
    with pytest.raises(ValueError, match=r"run directory .*run is in use by another process: wait for it, or"):
        opened(tmp_path)
    opened(tmp_path, writes=False).close()  # the run's other ranks
    first.close()
    opened(tmp_path).close()


def test_a_killed_process_leaves_no_lock(tmp_path):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        kept = opened(tmp_path)
        os.write(writing, b"held" if kept else b"")
        signal.pause()
        os._exit(0)
    try:
        assert os.read(reading, 4) == b"held"
        with pytest.raises(ValueError, match="in use by another process"):
            opened(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)
    opened(tmp_path).close()


def test_a_failed_start_leaves_no_folder(tmp_path):
    opened(tmp_path).close()
    assert os.listdir(tmp_path) == []


def test_a_failed_start_leaves_what_others_put_there(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    opened(tmp_path).close()
    assert os.listdir(tmp_path / "run") == ["notes.txt"]


def test_a_wandb_run_that_was_started_in_vain_goes_too(tmp_path):
    directory = opened(tmp_path)
    (directory.path / "wandb" / "offline-run-1").mkdir(parents=True)
    directory.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b": [", b"- a list", b"\xff\xfe"])
def test_a_damaged_configuration_is_named(tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.yaml is no configuration.*: delete that folder, or give"):
        opened(tmp_path)
    (tmp_path / "run" / "config.yaml").unlink()
    opened(tmp_path).close()  # the lock was given back


def test_closing_twice_is_harmless(tmp_path):
    directory = opened(tmp_path)
    directory.start(CONFIG)
    directory.close()
    directory.close()
    assert not opened(tmp_path).finished


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ValueError, match=r"run directory .*run cannot be written \(.*\): give another place with out="):
        opened(tmp_path)
    assert (tmp_path / "run").read_text() == "a file"


def test_no_permission(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(
        ValueError, match=r"cannot be written \(Permission denied\): give another place with out=FOLDER"
    ):
        opened(tmp_path)


def test_the_environment_is_described_at_every_start(tmp_path):
    directory = opened(tmp_path)
    directory.describe(3, {"wandb": "abc"})
    directory.describe(3, {"wandb": None})  # started again without W&B
    directory.close()
    content = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert (content["seed"], content["wandb"], len(content["starts"])) == (3, "abc", 2)
    assert {"python", "torch", "numpy"} <= set(content["versions"])
    assert {"time", "command", "host", "cores", "gpus"} <= set(content["starts"][0])
    if content["git"] is not None:
        assert len(content["git"]["commit"]) == 40


def test_facts_are_noted_of_the_latest_start(tmp_path):
    directory = opened(tmp_path)
    directory.describe(3, {"wandb": "abc"})
    directory.describe(3, {"wandb": "abc"})
    directory.note(peak_memory=123)
    directory.close()
    content = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert ["peak_memory" in start for start in content["starts"]] == [False, True]
    assert (content["starts"][1]["peak_memory"], content["wandb"]) == (123, "abc")


def test_outside_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "__file__", str(tmp_path / "a" / "b" / "record.py"))
    assert record._commit() is None


def row(step):
    return {"step": step, "images": 8 * step, "train/loss": 1 / (step + 1)}


def written(path, steps, resumed=-1):
    history = History(path, resumed, resumed)
    for step in steps:
        history.write(row(step))
    history.close()


def steps(path):
    return [int(row["step"]) for row in read_history(path)]


def test_history_is_on_the_disk_row_by_row(tmp_path):
    path = tmp_path / "metrics.csv"
    history = History(path, -1, -1)
    assert path.read_text().strip() == ",".join(COLUMNS)
    history.write({**row(10), "unknown": 3})
    assert read_history(path) == [
        {**dict.fromkeys(COLUMNS, ""), "step": "10", "images": "80", "train/loss": str(1 / 11)}
    ]
    history.write({"step": 10, "val/accuracy": 0.75})
    assert read_history(path)[1]["val/accuracy"] == "0.75"
    assert read_history(path)[1]["train/loss"] == ""
    history.close()


def test_what_a_loss_logs_besides_gets_a_column_of_its_own(tmp_path):
    path = tmp_path / "metrics.csv"
    history = History(path, -1, -1)
    history.write(row(1))
    history.write({**row(2), "train/loss/a": 0.25, "val/unknown": 1})
    history.write({**row(3), "train/loss/a": 0.5, "train/loss/b": 2})
    history.write({"step": 3, "val/accuracy": 0.5})
    history.close()
    history = History(path, 2, -1)  # and is still there after a kill
    history.write({**row(3), "train/loss/b": 4})
    history.close()
    found = read_history(path)
    assert list(found[0]) == [*COLUMNS, "train/loss/a", "train/loss/b"]
    assert [(r["step"], r["train/loss/a"], r["train/loss/b"]) for r in found] == [
        ("1", "", ""),
        ("2", "0.25", ""),
        ("3", "", "4"),
    ]


def test_history_goes_on_where_the_run_does(tmp_path):
    path = tmp_path / "metrics.csv"
    written(path, [10, 20, 30, 40])
    before = path.read_bytes()
    written(path, [], resumed=40)
    assert path.read_bytes() == before  # nothing is lost or written anew in another form
    written(path, [30, 40], resumed=25)
    assert steps(path) == [10, 20, 30, 40]
    written(path, [5], resumed=-1)
    assert steps(path) == [5]


def test_history_keeps_the_resumed_step_itself(tmp_path):
    path = tmp_path / "metrics.csv"
    written(path, [0, 10, 10, 20])
    written(path, [], resumed=10)
    assert steps(path) == [0, 10, 10]


@pytest.mark.parametrize("cut", [1, 2, 8])
def test_a_line_that_was_cut_short_is_dropped(tmp_path, cut):
    path = tmp_path / "metrics.csv"
    written(path, [10, 20, 30])
    path.write_bytes(path.read_bytes()[:-cut])
    assert steps(path) == [10, 20]
    written(path, [30], resumed=30)
    assert steps(path) == [10, 20, 30]


def test_no_history_yet(tmp_path):
    assert read_history(tmp_path / "metrics.csv") == []
    (tmp_path / "metrics.csv").write_text("step,ima")
    assert read_history(tmp_path / "metrics.csv") == []
