"""The page on the classifier shows what the benchmark's arithmetic gives, and its parts are counted right."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield
    for name in ("recording", "classifier", "classifier_picture", "classifier_scaling", "prepare"):
        sys.modules.pop(name, None)


def test_the_page_shows_the_arithmetic():
    scaling = importlib.import_module("classifier_scaling")
    page = (ROOT / "docs" / "classifier.md").read_text()
    shown = page.split(scaling.BEGIN)[1].split(scaling.END)[0]
    again = "python benchmarks/classifier_scaling.py --write docs/classifier.md"
    assert shown == scaling.report(scaling.RESULTS), f"measured anew? {again}"


def test_what_a_step_takes():
    scaling = importlib.import_module("classifier_scaling")
    step = scaling.Step(classes=100, ranks=4, batch=10, size=8, product=2)
    assert (step.rows, step.kept) == (25, 10)
    assert step.operations == 3 * 2 * 10 * 25 * 8
    centres, matrix = 25 * 8, 10 * 25
    assert step.passes == 2 * (4 + 2) * centres + (2 + 4 + 4) * centres + 3 * 2 * matrix
    assert step.standing == 3 * 4 * centres
    larger = scaling.Step(classes=100, ranks=4, batch=20, size=8, product=2)
    assert larger.kept == 16
    assert larger.operations == (3 * 16 + 4 * 4) * 2 * 25 * 8
    assert scaling.Step(100, 1, 20, 8, 4).kept == 8


def test_a_measured_gpu_takes_its_place():
    scaling = importlib.import_module("classifier_scaling")
    shared = {"machine": "card", "precision": "bf16", "batch": "10", "size": "8", "classes": "100"}
    gemm, ours = shared | {"method": "gemm", "seconds": "4"}, shared | {"method": "facelab", "seconds": "5"}
    assert scaling.measured([gemm, ours]) == ["| card | bf16 | 10 | 100 | 0 | 3 | 2 | 1.25 |"]
    assert scaling.measured([gemm, ours | {"seconds": "out of memory"}]) == []
    card = scaling.Card("card 80 GB", products=1e3, memory=1e3, room=1e9, links=10.0)
    assert scaling.Rates.of(card, []) == scaling.Rates(600, 800, 6, "assumed")
    rates = scaling.Rates.of(card, [gemm, ours])
    step = scaling.Step(100, 1, 10, 8, 2)
    assert rates == scaling.Rates(4 * 2 * 10 * 100 * 8 / 4, step.passes / 2, 6, "measured")
    assert step.seconds(rates)["products"] == 3
    assert step.seconds(rates)["passes"] == pytest.approx(2)


def test_a_picture_of_what_ran_out_of_memory_too(tmp_path):
    picture = importlib.import_module("classifier_picture")
    shared = {"machine": "card", "precision": "bf16", "batch": "10", "size": "8"}
    rows = [
        shared | {"method": method, "classes": classes, "seconds": seconds, "extra_mib": extra}
        for method, classes, seconds, extra in [
            ("plain", "1000", "0.1", "30"), ("plain", "100000", "out of memory", ""),
            ("facelab", "100000", "0.2", "0.0"), ("facelab", "1000", "0.05", "2"), ("gemm", "1000", "0.02", "0.0"),
        ]
    ]  # fmt: skip
    canvas = picture.draw(rows)
    time, memory = canvas.figure.axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in time.lines}
    assert lines["facelab"] == [[1000, 0.05], [100_000, 0.2]]
    assert lines["plain"] == [[1000, 0.1]]
    assert [100_000, 0.97] in [point for line in time.lines for point in line.get_xydata().tolist()]
    assert "gemm" not in {line.get_label() for line in memory.lines}
    canvas.print_png(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_running_out_of_memory_is_recorded():
    classifier = importlib.import_module("classifier")
    steps = [{"seconds": 1.0, "extra": 2**20, "loss": 3.0}] * 2
    assert classifier.summary(steps, [{}, {}])["time_to_plain"] == ""
    assert classifier.summary([{}, {}], steps)["seconds"] == "out of memory"
    halved = classifier.summary(steps, [{"seconds": 2.0, "extra": 2**22, "loss": 3.0}] * 2)
    assert halved == {"seconds": "1", "extra_mib": "1.0", "time_to_plain": "0.500", "memory_to_plain": "0.2500"}


def test_a_whole_way_is_compared_with_its_stages():
    prepare = importlib.import_module("prepare")
    speeds = {
        "read": [100.0] * 3,
        "detect": [25.0] * 3,
        "align": [100.0] * 3,
        "encode": [50.0] * 3,
        "check": [40.0] * 3,
    }
    # 10 + 40 + 10 + 20 ms a photograph: two threads can make 25 a second, and detection alone would allow 50.
    found = prepare.ratios({**speeds, "detect=yunet": [20.0, 25.0, 10.0], "detect=none": [8.0, 80.0, 64.0]}, threads=2)
    assert found["detect=yunet"] == pytest.approx((0.4, 0.8))
    assert found["detect=none"] == pytest.approx((0.8, 0.8))
