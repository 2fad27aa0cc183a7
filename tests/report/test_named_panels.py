"""A classification's record: it is read, its numbers are told, and its panels show what is in it."""

import json

import numpy as np
from matplotlib.figure import Figure

from facelab.benchmark.classification import LabelledImages, TopK
from facelab.benchmark.scores import save_all
from facelab.report import named_panels, panels
from facelab.report import run as report
from facelab.report.record import read_record


def record(folder, classes=20):
    """Three images of each class; of class c the right one comes first for c % 4 of them, second for the others."""
    truth = np.repeat(np.arange(classes), 3)
    first = np.where(np.tile(np.arange(3), classes) < truth % 4, truth, (truth + 1) % classes)
    named = np.stack([first, np.where(first == truth, (truth + 1) % classes, truth)], axis=1)
    names = [f"thing {c}" for c in range(classes)]
    own = LabelledImages(truth, names, [str(i) for i in range(len(truth))], lambda i, out=None: None, "val")
    bench = TopK(None, [1, 2], False, 8, ["1x", 4], "area", "nearest")
    result = bench.evaluate((np.tile(named, (2, 1)), np.ones((2 * len(truth), 2))), bench.open(own))
    save_all(folder / "scores", result)
    (folder / "metrics.json").write_text(json.dumps({**result.all_metrics(), "val/top1": 0.5}))
    (folder / "metrics.csv").write_text("step,images,train/accuracy,val/top1\n0,0,,0.1\n9,90,0.5,\n9,90,,0.5\n")
    return read_record(folder)


def axes(panel, found):
    drawn = Figure().add_subplot()
    panel(drawn, found)
    return drawn


def test_it_is_read_and_its_numbers_are_told(tmp_path):
    found = record(tmp_path)
    assert [one.name for one in found.named] == ["heldout", "heldout_4px"]
    assert found.scores == []
    numbers = report.key_numbers(found)
    assert [label for label, _, _ in numbers[:3]] == ["heldout top-1", "heldout top-2", "val top-1"]
    assert [value for _, value, _ in numbers[:3]] == ["50.00 %", "100.00 %", "50.00 %"]
    assert numbers[0][2].startswith("95 % interval 37.")
    assert report.draw(tmp_path).stat().st_size > 10_000


def test_the_worst_classes_have_a_bar(tmp_path):
    drawn = axes(named_panels.classes, record(tmp_path))
    widths = [bar.get_width() for bar in drawn.patches]
    assert len(widths) == named_panels.SHOWN
    np.testing.assert_allclose(widths, np.sort(np.tile([0, 100 / 3, 200 / 3, 100], 5))[: named_panels.SHOWN])
    assert drawn.texts[1].get_text() == "thing 4 (3)"
    assert "worst 16" in drawn.get_title()
    np.testing.assert_allclose(drawn.lines[0].get_xdata(), 50)


def test_a_curve_for_each_resolution(tmp_path):
    drawn = axes(named_panels.top, record(tmp_path))
    assert [line.get_label() for line in drawn.lines] == ["heldout", "heldout_4px"]
    assert drawn.lines[0].get_ydata().tolist() == [50, 100]


def test_the_accuracy_panel_says_that_images_are_named(tmp_path):
    drawn = axes(panels.accuracy, record(tmp_path))
    labels = [text.get_text() for text in drawn.get_legend().get_texts()]
    assert labels == ["training: classes named", "val: held-out images named", "best: 50.00 %"]
