"""TensorBoard's event files: a resumed run goes on in the same folder, and no step is there twice."""

import sys

import numpy as np
import pytest
import yaml

from facelab.training.exhibit import Exhibit, Table
from facelab.training.tensorboard_run import TensorBoardRun

accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="needs pip install 'facelab[tensorboard]'"
)


def started(folder):
    return TensorBoardRun(folder, {"loss": {"scale": 64.0}, "name": "얼굴"}, "losses", "job", "train", ["ArcFace"])


def row(step, value, **more):
    return {"step": float(step), "images": 16.0 * step, "train/loss": value, **more}


def read(folder):
    found = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


def scalars(folder, key):
    return [(event.step, round(event.value, 4)) for event in read(folder).Scalars(key)]


def test_a_resumed_run_goes_on_without_repeated_steps(tmp_path):
    first = started(tmp_path)
    first.follow([])
    for step in range(1, 8):
        first.log(row(step, step / 10), step)
    first.log({"step": 7.0, "val/accuracy": 0.7}, 7)
    # The process is killed: nothing is closed, and what was logged is on disk all the same.
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == list(range(1, 8))
    second = started(tmp_path)
    # The checkpoint was that of step 5, before its validation.
    second.follow([row(step, step / 10) for step in range(1, 6)])
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [1, 2, 3, 4, 5]
    second.log({"step": 5.0, "val/accuracy": 0.5}, 5)
    for step in range(6, 10):
        second.log(row(step, 1 + step / 10), step)
    second.finish(True)
    wanted = [*((step, step / 10) for step in range(1, 6)), *((step, 1 + step / 10) for step in range(6, 10))]
    assert scalars(tmp_path, "train/loss") == wanted
    assert scalars(tmp_path, "val/accuracy") == [(5, 0.5)]
    assert scalars(tmp_path, "images") == [(step, 16 * step) for step in range(1, 10)]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    first.finish(False)


def test_a_run_that_had_another_logger_is_told_whole(tmp_path):
    logger = started(tmp_path)
    logger.follow([row(1, 0.1), row(2, 0.2)])
    logger.log(row(3, 0.3), 3)
    logger.finish(True)
    assert scalars(tmp_path, "train/loss") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    text = read(tmp_path).Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    content = yaml.safe_load("\n".join(line[4:] for line in text.splitlines()))
    assert (content["group"], content["name"], content["loss"]) == ("losses", "얼굴", {"scale": 64.0})


def test_the_end_is_shown(tmp_path):
    logger = started(tmp_path)
    logger.follow([row(4, 0.1)])
    tables = {
        "results": Table(("number", "value"), [("a|b", 0.123456789), ("c", None)]),
        "long": Table("x", [[1.0]] * 101),
    }
    numbers = {"lfw/accuracy": 0.9, "val/accuracy": 0.8, "steps": 4}
    logger.publish(Exhibit(numbers, tables, {"report": np.full((8, 9, 3), 200, np.uint8)}))
    logger.finish(True)
    assert scalars(tmp_path, "lfw/accuracy") == [(4, 0.9)]
    assert scalars(tmp_path, "final/steps") == [(4, 4.0)]
    found = read(tmp_path)
    assert "val/accuracy" not in found.Tags()["scalars"]
    (image,) = found.Images("report")
    assert (image.step, image.height, image.width) == (4, 8, 9)
    assert "long/text_summary" not in found.Tags()["tensors"]
    text = found.Tensors("results/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.splitlines() == ["| number | value |", "| --- | --- |", "| a\\|b | 0.12346 |", "| c |  |"]


def test_without_the_package_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"not installed: pip install 'facelab\[tensorboard\]', or choose logger="):
        started(tmp_path)
