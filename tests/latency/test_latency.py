"""Stages are timed and summed as they are, threads are counted, and what does not fit is said."""

import csv
import json
import threading
import time

import numpy as np
import pytest

from facelab.configuration import defaults
from facelab.latency import latency as task
from facelab.latency.budget import fits, stages_of
from facelab.latency.engines import OFFERS, Engine, build
from facelab.latency.picture import draw
from facelab.latency.stages import Measured, measure
from facelab.latency.threads import Used, Watch, limit
from facelab.prepare.detect import Face
from facelab.prepare.photograph import encode


def spin(seconds):
    """CPU time of this thread, whatever else the machine does."""
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        sum(range(1000))


def test_one_thread_is_one_and_three_are_told():
    with Watch() as watch:
        spin(0.1)
    assert watch.used.cpu >= 0.1
    assert watch.used.within(1)
    assert watch.used.busy == 1
    done = threading.Event()
    others = [threading.Thread(target=spin_until, args=(done,)) for _ in range(3)]
    try:
        with Watch() as watch:
            began = time.perf_counter()
            for other in others:
                other.start()
            # On a busy machine it takes a while until each of them has had its share.
            while min(_worked(other) for other in others) < 0.05 + 0.04 * (time.perf_counter() - began):
                assert time.perf_counter() - began < 120
                time.sleep(0.005)
    finally:
        done.set()
    for other in others:
        other.join()
    assert watch.used.busy >= 3
    assert not watch.used.within(1)
    assert watch.used.within(8)


def spin_until(done):
    while not done.is_set():
        sum(range(1000))


def _worked(thread):
    """CPU seconds of a thread that is alive, as the system counts them."""
    return time.clock_gettime((~thread.native_id << 3) | 6)


def test_cpu_time_beyond_the_wall_is_no_single_thread():
    assert Used(1.0, 1.04, 1).within(1)
    assert not Used(1.0, 1.06, 1).within(1)
    assert Used(1.0, 1.9, 2).within(2)
    for wrong in (0, True, "1"):
        with pytest.raises(ValueError, match=r"threads is .*: give a whole number above 0"):
            limit(wrong)


def test_sums_are_of_one_repetition():
    rng = np.random.default_rng(0)
    seconds = {stage: rng.exponential(0.01, 500).tolist() for stage in ("embed", "mirror")}
    total = 1000 * (np.array(seconds["embed"]) + np.array(seconds["mirror"]))
    spread = Measured(seconds).spread("embed", "mirror")
    assert spread == pytest.approx((np.median(total), *np.percentile(total, (95, 99))))
    apart = [Measured(seconds).spread(stage).p99 for stage in seconds]
    assert spread.p99 < sum(apart)  # which are not slow together


def engine(name, seconds, size=16):
    def run(face):
        assert face.shape == (1, size, size, 3)
        assert face.flags.c_contiguous
        time.sleep(seconds)
        return face.reshape(1, -1).astype(np.float32) + 1

    return Engine(name, "eager", "fp32", run, size, 8, 0.0)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr("facelab.latency.stages._PROVED", 0.01)


def test_every_stage_is_there_as_often_as_asked_for():
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    points = np.array([(20, 20), (40, 20), (30, 30), (22, 40), (38, 40)], float)
    told = []
    shared, own = measure(
        [engine("a", 0.0), engine("b", 0.002, 24)], [np.frombuffer(encode(image, 90), np.uint8)],
        lambda image: [Face((15, 15, 30, 30), points, 0.9)], 3, lambda *done: told.append(done),
    )  # fmt: skip
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert list(shared.seconds) == ["read", "detect", "align"]
    assert [list(one.seconds) for one in own] == [["read", "detect", "align", "embed", "mirror", "compare"]] * 2
    assert {len(times) for one in own for times in one.seconds.values()} == {3}
    assert own[0].seconds["read"] == own[1].seconds["read"] == shared.seconds["read"]
    assert min(own[1].seconds["embed"]) >= 0.002
    assert all(one.used.wall > 0 for one in (shared, *own))


def test_what_fits():
    times = {"read": 0.01, "detect": 0.3, "align": 0.01, "embed": 0.4, "mirror": 0.4, "compare": 0.0}
    slow, fast = (
        Measured({stage: [value] * 4 for stage, value in times.items()}),
        Measured({"read": [0.01], "embed": [0.1]}),
    )
    assert stages_of(slow, True, False) == ("read", "detect", "align", "embed", "compare")
    assert stages_of(fast, True, True) == ("read", "embed")
    engines = [engine("slow", 0), engine("fast", 0)]
    fast.seconds |= {"mirror": [0.1], "compare": [0.0]}
    rows = fits(engines, [slow, fast], 1.0)
    assert [row.engine.split()[0] for row in rows] == ["fast"] * 2 + ["slow"] * 4
    found = {row.way: (row.fits, row.more) for row in rows if row.engine.startswith("slow")}
    assert found == {
        "detected and aligned, with mirror": (False, 0),
        "detected and aligned, without mirror": (True, 0),
        "aligned already, with mirror": (True, 0),
        "aligned already, without mirror": (True, 1),
    }
    assert rows[0].p99 == pytest.approx(210)
    assert rows[0].more == 7


def test_the_picture_shows_the_limit_and_every_engine():
    times = {"read": 0.01, "embed": 0.4, "mirror": 0.4, "compare": 0.0}
    measured = [Measured({stage: [value / k] * 4 for stage, value in times.items()}) for k in (1, 4)]
    axes = draw([engine("slow", 0), engine("fast", 0)], measured, 1.0, "one thread").figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["slow eager fp32", "fast eager fp32"]
    assert [1000.0, 1000.0] in [list(line.get_xdata()) for line in axes.lines]
    assert {text.get_text() for text in axes.texts} == {"810 ms", "202 ms", "1 s"}


def choices(tmp_path, **given):
    told = defaults("detection", "recognition", "latency")
    return {**told, "detect": "none", "progress": False, "out": str(tmp_path / "out"), **given}


def test_a_small_network_under_two_runtimes(tmp_path, capsys, monkeypatch):
    def fails(maker, precision):
        raise ValueError("format=onnx needs onnxruntime, which is not installed: pip install 'facelab[export]'")

    monkeypatch.setitem(OFFERS, "onnx", (("fp32",), fails))
    report = task.latency(
        choices(
            tmp_path, backbones=["mobilefacenet"], runtimes=["eager", "onnx", "torchscript"], precisions=["fp32"],
            repetitions=2, size=112,
        )
    )  # fmt: skip
    told = capsys.readouterr().out
    assert [one.name for one in report["engines"]] == ["mobilefacenet eager fp32", "mobilefacenet torchscript fp32"]
    assert "mobilefacenet onnx fp32: left out (format=onnx needs onnxruntime" in told
    assert "in 1 s, by p99:" in told
    folder = tmp_path / "out" / "mobilefacenet"
    assert sorted(path.name for path in folder.iterdir()) == ["fits.csv", "latency.csv", "latency.json", "latency.png"]
    rows = list(csv.DictReader((folder / "latency.csv").open()))
    assert [row["stage"] for row in rows] == ["read", *["embed", "mirror", "compare", "whole"] * 2]
    about = json.loads((folder / "latency.json").read_text())
    assert len(about["fits"]) == 4
    assert about["config"]["threads"] == 1
    one, other = (report["engines"][i].run(np.full((1, 112, 112, 3), 90, np.uint8)) for i in (0, 1))
    np.testing.assert_allclose(one, other, atol=1e-4)  # the same network under both


def test_a_deep_network_that_nobody_has_trained_stays_finite(tmp_path, monkeypatch):
    maker = task._untrained("r100", 32, 1, tmp_path)
    run = build(maker, "eager", "fp32").run
    one, other = (run(face[None]) for face in maker.calibration[:2])
    assert np.isfinite(one).all()
    assert np.abs(one - other).max() > 0.01, "faces are told apart, so that distances of precisions mean something"
    monkeypatch.setitem(OFFERS, "eager", (("fp32",), lambda *_: lambda face: np.full((1, 8), np.nan, np.float32)))
    with pytest.raises(ValueError, match="its embedding of a rendered face is not finite"):
        build(maker, "eager", "fp32")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"give model=FILE, or backbones=\[r18,r50\]"),
        ({"backbones": ["r18"], "model": "x"}, "give model=FILE, or"),
        ({"backbones": ["r19"]}, "backbone=r19: there is no such network"),
        ({"backbones": ["r18"], "runtimes": ["tensorrt"]}, r"runtimes is \['tensorrt'\]: give of eager"),
        ({"backbones": ["r18"], "precisions": []}, "precisions is"),
        ({"backbones": ["r18"], "repetitions": 0}, "give numbers above 0"),
        ({"backbones": ["r18"], "threads": 0}, "threads is 0"),
        ({"model": "none.onnx"}, "no such file"),
        ({"backbones": ["r18"], "photographs": ["none.jpg"]}, "no such photograph"),
    ],
)
def test_wrong_words_are_refused_and_nothing_is_written(tmp_path, given, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        task.latency(choices(tmp_path, **given))
    assert list(tmp_path.iterdir()) == []
