"""A run's picture comes from its files alone, whichever of them are there."""

import csv
import json
import sys

import cv2
import matplotlib
import numpy as np
import pytest
import yaml

from facelab.report import run as report
from facelab.report.panels import smoothed
from facelab.report.record import read_record
from facelab.report.style import count, deviate

COLUMNS = ["step", "images", "epoch", "lr", "train/loss", "train/accuracy", "train/grad_norm", "val/accuracy"]
LOSS, ACCURACY, SCORES, RATE, GRADIENT, DET = [
    (slice(240 + 510 * row, 740 + 510 * row), slice(40 + 650 * column, 650 + 650 * column))
    for row in range(2)
    for column in range(3)
]

ANGLE, NORM = (slice(1300, 1690), slice(110, 960)), (slice(1300, 1690), slice(1090, 1940))


def write_history(run, rows, validations):
    with open(run / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for i in range(rows):
            if i in validations:
                writer.writerow({"step": i, "images": 64 * i, "epoch": 0, "val/accuracy": 0.5 + i / rows / 3})
            numbers = {
                "lr": 0.1 - i * 1e-4,
                "train/loss": 40 - i / 3,
                "train/accuracy": i / rows,
                "train/grad_norm": 5 + i % 3,
            }
            writer.writerow({"step": i, "images": 64 * i, "epoch": 0, **numbers})


def write_scores(run, name, accuracy=0.9917, notes=None):
    """A score file as the benchmark room writes it."""
    rng = np.random.default_rng(0)
    same = np.arange(400) % 2 == 0
    scores = np.clip(rng.normal(np.where(same, -0.8, -2.0), 0.4), -4, 0)
    threshold = np.sort(scores)[::-1]
    metrics = {f"{name}/accuracy": accuracy, f"{name}/accuracy_std": 0.005, f"{name}/eer": 0.05}
    metrics |= {f"{name}/tar@far=1e-2": 0.9, f"{name}/tar@far=1e-4": 0.8}
    (run / "scores").mkdir(exist_ok=True)
    np.savez(
        run / "scores" / f"{name}.npz",
        name=name, scores=scores, same=same, fold=np.arange(400) // 40, det_threshold=threshold,
        det_fmr=[(scores[~same] >= t).mean() for t in threshold],
        det_fnmr=[(scores[same] < t).mean() for t in threshold],
        stamp=json.dumps({"score": "minus squared L2 distance"}), metrics=json.dumps(metrics),
        notes=json.dumps(notes or {}),
    )  # fmt: skip


def write_histograms(run, kinds=("angle", "norm"), low=1.0):
    """What a training counts; norms from `low` to 30 times it."""
    rng = np.random.default_rng(0)
    edges = {"angle": np.arange(181.0), "norm": np.concatenate([[0], np.geomspace(0.1, 100, 300), [np.inf]])}
    values = {
        "angle": rng.normal(np.linspace(90, 40, 10)[:, None], 10, (10, 384)),
        "norm": rng.lognormal(np.linspace(np.log(low), np.log(30 * low + 1e-9), 10)[:, None], 0.1, (10, 384)),
    }
    counts = {kind: [np.histogram(row, edges[kind])[0] for row in values[kind]] for kind in kinds}
    bounds = {f"{kind}_edges": edges[kind] for kind in kinds}
    np.savez(run / "histograms.npz", images=384 * np.arange(11), **counts, **bounds)


@pytest.fixture
def full(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    write_history(run, 60, range(0, 60, 10))
    write_scores(run, "lfw", notes={"lfw/tar@far=1e-4": "zero false accepts, N=200"})
    numbers = {
        "lfw/accuracy": 0.9917,
        "val/accuracy": 0.82,
        "images_per_s": 1234.5,
        "images": 3840,
        "parameters": 1_051_000,
    }
    (run / "metrics.json").write_text(json.dumps(numbers))
    config = {"name": "losses", "job": "loss=arcface", "seed": 3, "loss": {"_target_": "a.ArcFace", "margin": 0.5}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


def picture(run, height=1260):
    path = report.draw(run)
    assert path == run / "report.png"
    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    assert image.shape == (height, 1980, 3)
    return image


def pixels(image, place, color):
    """How many pixels of a panel have the very colour ``#rrggbb``."""
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return int((image[place] == rgb).all(axis=-1).sum())


BLUE, VERMILLION, ORANGE, INK = "#0072B2", "#D55E00", "#E69F00", "#1a1a1a"


def test_every_panel_of_a_finished_run_holds_its_curve(full):
    image = picture(full)
    for place in (LOSS, ACCURACY, SCORES, RATE, GRADIENT, DET):
        assert pixels(image, place, BLUE) > 200
    assert pixels(image, ACCURACY, VERMILLION) > 200
    assert pixels(image, SCORES, ORANGE) > 200
    assert sorted(file.name for file in full.iterdir()) == [
        "config.yaml", "metrics.csv", "metrics.json", "report.png", "scores",
    ]  # fmt: skip


def test_a_run_that_has_counted_has_a_third_row(full):
    write_histograms(full)
    image = picture(full, height=1777)
    for place in (LOSS, ACCURACY, SCORES, RATE, GRADIENT, DET):
        assert pixels(image, place, BLUE) > 200
    # Angles fall from 90 to 40 degrees, norms rise.
    for place, falls in ((ANGLE, True), (NORM, False)):
        rows, columns = np.nonzero((image[place].astype(int) @ [-1, 0, 1]) > 100)  # bluer than red
        assert len(rows) > 5000
        early, late = rows[columns < columns.min() + 150], rows[columns > columns.max() - 150]
        assert (late.mean() > early.mean() + 100) == falls
        assert (early.mean() > late.mean() + 100) != falls
        assert pixels(image, place, INK) > 200


def test_what_a_loss_does_not_tell_is_said(full):
    write_histograms(full, kinds=["norm"])
    image = picture(full, height=1777)
    assert 0 < (image[ANGLE] < 200).any(axis=-1).sum() < 6000  # a few words
    assert pixels(image, NORM, INK) > 200


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("low", [1e-6, 1e6])
def test_norms_beyond_all_bins_are_drawn_too(full, low):
    write_histograms(full, low=low)
    with np.load(full / "histograms.npz") as file:
        counts = dict(file)
    counts["norm"][:, 1:-1] = 0
    counts["norm"][:, 0 if low < 1 else -1] = 384
    np.savez(full / "histograms.npz", **counts)
    picture(full, height=1777)


def test_the_same_files_give_the_same_picture_and_leave_matplotlib_alone(full):
    before = dict(matplotlib.rcParams)
    first = report.draw(full).read_bytes()
    matplotlib.rcParams["font.size"] = 30  # a user's own settings do not reach the picture
    assert report.draw(full).read_bytes() == first
    assert matplotlib.rcParams["font.size"] == 30
    matplotlib.rcParams["font.size"] = before["font.size"]
    assert dict(matplotlib.rcParams) == before


def test_a_run_without_validation_scores_and_result(full):
    (full / "metrics.json").unlink()
    (full / "scores" / "lfw.npz").unlink()
    (full / "config.yaml").unlink()
    write_history(full, 60, ())
    image = picture(full)
    assert pixels(image, LOSS, BLUE) > 200
    assert pixels(image, ACCURACY, VERMILLION) == 0
    for place in (SCORES, DET):
        assert pixels(image, place, BLUE) == 0
        assert 0 < (image[place] < 200).any(axis=-1).sum() < 4000  # a few words


@pytest.mark.parametrize("rows", [0, 1])
def test_a_run_of_hardly_any_rows(full, rows):
    write_history(full, rows, ())
    image = picture(full)
    assert (pixels(image, LOSS, BLUE) > 20) == (rows > 0)
    assert pixels(image, SCORES, BLUE) > 200


def test_scores_without_any_error_and_without_history(full):
    (full / "metrics.csv").unlink()
    with np.load(full / "scores" / "lfw.npz") as file:
        arrays = dict(file)
    arrays |= {"scores": np.where(arrays["same"], -0.1, -2), "det_fmr": np.array([0, 1.0]), "det_fnmr": np.zeros(2)}
    np.savez(full / "scores" / "lfw.npz", **arrays)
    image = picture(full)
    assert pixels(image, DET, BLUE) == 0
    assert pixels(image, SCORES, BLUE) > 200


def test_the_record_reads_cells_and_drops_a_line_that_was_cut(full):
    with open(full / "metrics.csv", "a") as file:
        file.write("60,3840,0,0.0")
    record = read_record(full)
    images, values = record.curve("val/accuracy")
    assert images.tolist() == [0, 640, 1280, 1920, 2560, 3200]
    assert values[0] == 0.5
    assert len(record.curve("train/loss")[1]) == 60
    assert record.curve("nothing")[1].size == 0


def test_the_scores_of_the_reported_benchmark_come_first_and_read_as_cosines(full):
    write_scores(full, "agedb_30")
    record = read_record(full)
    assert [scores.name for scores in record.scores] == ["lfw", "agedb_30"]
    assert record.scores[0].axis == "cosine similarity"
    assert -1 <= record.scores[0].impostor.min() < record.scores[0].genuine.max() <= 1
    assert len(record.scores[0].genuine) == 200


def test_key_numbers(full):
    assert report.key_numbers(read_record(full)) == [
        ("lfw accuracy", "99.17 ± 0.50 %", "± standard deviation of the folds"),
        ("TAR at FAR 1e-2", "90.00 %", ""),
        ("TAR at FAR 1e-4", "80.00 %", "zero false accepts, N=200"),
        ("EER", "5.00 %", ""),
        ("val accuracy", "82.00 %", "held out; chose the checkpoint"),
        ("parameters", "1.05 M", ""),
        ("images seen", "3.84 k", ""),
        ("images / s", "1,234", ""),
    ]


def test_what_is_no_run_directory_is_said(full, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such run directory"):
        report.draw(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="not a run directory"):
        report.draw(tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("file", ["metrics.json", "config.yaml", "scores/lfw.npz", "histograms.npz"])
def test_a_damaged_file_is_named_and_the_old_picture_stays(full, file):
    (full / "report.png").write_bytes(b"old")
    (full / file).write_text("{ [")
    with pytest.raises(ValueError, match=file):
        report.draw(full)
    assert (full / "report.png").read_bytes() == b"old"


def test_the_command_line(full, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run", str(full)])
    report.main()
    assert capsys.readouterr().out.strip() == str(full / "report.png")
    monkeypatch.setattr(sys, "argv", ["run", str(full / "none")])
    with pytest.raises(SystemExit, match=r"error: .*no such run directory"):
        report.main()


def test_smoothing_keeps_constants_and_slopes_and_quiets_noise():
    np.testing.assert_allclose(smoothed(np.full(50, 3.0), 9), 3)
    np.testing.assert_allclose(smoothed(np.arange(50.0), 9)[4:-4], np.arange(50)[4:-4])  # no lag
    noise = np.random.default_rng(0).normal(size=1000)
    assert smoothed(noise, 25).std() < 0.3


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (12_800, "12.8 k"), (999_900, "1 M"), (43_590_976, "43.6 M"), (4e9, "4 G")],
)
def test_counts(value, text):
    assert count(value) == text


def test_normal_deviates():
    np.testing.assert_allclose(deviate([0, 0.5, 0.841344746068543, 1]), [-np.inf, 0, 1, np.inf], atol=1e-12)
