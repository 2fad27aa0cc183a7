"""A study of a tiny network on rendered faces: its files, its numbers counted again, and what it refuses."""

import csv
import json

import cv2
import hydra
import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from facelab.data.augment import normalise
from facelab.data.synthetic import render
from facelab.door import configuration_folder
from facelab.quality import brisque, outliers
from facelab.quality.correlation import pearson
from facelab.quality.standardised import Standardiser
from facelab.quality.study import study
from facelab.training import fit
from facelab.training.retraced import retrace
from facelab.training.trained import meta_of, out_of_checkpoint

SMALL = (
    *("logger=csv", "trainer.progress=false", "trainer.accelerator=cpu", "trainer.max_steps=2", "job=small"),
    *("backbone.widths=[16,16,16,32]", "backbone.embedding_size=16", "trainer.batch_size=16", "trainer.precision=fp32"),
    *("data.identities=12", "data.images_per_identity=8", "data.long_tail=4", "data.size=32", "data.nuisance=1.5"),
    *("data.holdout.fraction=0.4", "benchmark.size=32", "benchmark.count=80", "benchmark.folds=2"),
)
STUDY = ("progress=false", "accelerator=cpu", "benchmark.count=80", "benchmark.folds=2", "study.replicates=20",
         "outliers.count=12", "study.smallest=3", "discard.start=0.3",
         "qmagface.lowest=0.05", "qmagface.highest=0.9")  # fmt: skip


def compose(name: str, *overrides: str):
    OmegaConf.register_new_resolver("facelab.job", lambda: "small", replace=True)
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        return hydra.compose(name, list(overrides))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    where = tmp_path_factory.mktemp("quality") / "run"
    config = compose("config", *SMALL)
    fit.train(config, OmegaConf.to_container(config, resolve=True), where, one_process=False)
    return where / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def needs_brisque():
    try:
        brisque.load()
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def studied(checkpoint, tmp_path_factory, needs_brisque):
    where = tmp_path_factory.mktemp("quality") / "study"
    folder = where.parent / "pictures"
    folder.mkdir()
    for i in range(3):
        cv2.imwrite(
            str(folder / f"{i}.png"), np.full((40, 60, 3), 60 * i, np.uint8) + np.arange(60, dtype=np.uint8)[:, None]
        )
    typed = (f"checkpoint={checkpoint}", f"outliers.folder={folder}", *STUDY)
    return where, study(compose("quality", *typed), where), typed


def test_its_files(studied):
    where, metrics, _ = studied
    files = {str(path.relative_to(where)) for path in where.rglob("*") if path.is_file()} - {".lock"}
    assert files == {
        "config.yaml", "environment.json", "metrics.json", "quality.json", "quality.png", "samples.csv",
        "standardised.safetensors",
    }  # fmt: skip
    assert json.loads((where / "metrics.json").read_text()) == metrics
    report = json.loads((where / "quality.json").read_text())
    assert report["sign"].startswith("BRISQUE: lower is better")
    assert yaml.safe_load((where / "config.yaml").read_text())["data"]["size"] == 32
    picture = cv2.imread(str(where / "quality.png"))
    assert picture.shape == (1140, 1980, 3)
    blue = (picture.astype(int) - (178, 114, 0) == 0).all(-1)  # dots of the norm, in the panels that have it
    assert blue[:, 660:].sum() > 100


def test_its_rows_are_the_training_images_counted_again(studied, checkpoint):
    where, metrics, typed = studied
    with open(where / "samples.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = retrace(compose("quality", *typed), checkpoint, meta_of(checkpoint))
    assert len(rows) == len(found.taken.images) == metrics["images"]
    assert len(found.held) > 1
    pixels = np.stack([found.source.load(int(i)) for i in found.taken.images])
    trained = out_of_checkpoint("x", checkpoint, meta_of(checkpoint), None)
    with torch.inference_mode():
        vectors = trained.backbone.eval()(normalise(torch.from_numpy(pixels))).double().numpy()
    norms = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose([float(row["norm"]) for row in rows], norms, rtol=1e-4)
    scores = brisque.load()(pixels)
    np.testing.assert_allclose([float(row["brisque"]) for row in rows], scores, rtol=1e-4)
    labels = found.taken.labels
    sizes = np.bincount(labels)
    assert [int(row["class_size"]) for row in rows] == sizes[labels].tolist()
    assert sizes.min() < 3 <= sizes.max()
    expected = []
    for norm, label in zip(norms, labels, strict=True):
        own = norms[labels == label]
        expected.append((norm - own.mean()) / (own.std(ddof=1) if len(own) >= 3 else norms.std(ddof=1)))
    np.testing.assert_allclose([float(row["standardised"]) for row in rows], expected, atol=1e-3)
    assert rows[0]["identity"] == f"person {found.taken.identities[labels[0]]}"
    again = pearson(np.array(expected), scores, labels, replicates=20, seed=0)
    for key, value in zip(("", "_low", "_high"), again, strict=True):
        assert metrics[f"standardised_brisque/pearson{key}"] == pytest.approx(value, abs=1e-3)


def test_its_numbers(studied):
    where, metrics, _ = studied
    kinds = ("norm", "standardised", "brisque")
    assert {
        f"auroc/{name}/{kind}" for name in ("noise", "scrambled", "pictures", "known_people") for kind in kinds
    } < set(metrics)
    assert metrics["discard/random"] == 1
    assert all(metrics["discard/oracle"] <= metrics[f"discard/{kind}"] for kind in kinds)
    assert "heldout/accuracy" in metrics
    assert {"norm_size/pearson", "norm_size/spearman", "qmagface/alpha", "qmagface/beta"} < set(metrics)
    made = Standardiser.load(where / "standardised.safetensors")
    assert made.smallest == 3
    assert made.mean == pytest.approx(metrics["norm/mean"])
    assert len(made.counts) == metrics["classes"]


def test_started_again_it_shows_its_result(studied, capsys):
    where, metrics, typed = studied
    before = {path: path.stat().st_mtime_ns for path in where.glob("*.*")}
    assert study(compose("quality", *typed), where) == metrics
    assert "finished; nothing was embedded" in capsys.readouterr().out
    del before[where / ".lock"]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_published_weights_on_a_part_of_a_data_set(checkpoint, tmp_path, capsys):
    trained = out_of_checkpoint("x", checkpoint, meta_of(checkpoint), None)
    torch.save(trained.backbone.state_dict(), tmp_path / "published.pt")
    typed = (
        f"checkpoint={tmp_path}/published.pt", "backbone=tiny", "backbone.widths=[16,16,16,32]",
        "backbone.embedding_size=16", "data=synthetic", "data.identities=4", "data.images_per_identity=5",
        "data.size=32", "study.images=15", "study.brisque=false", *STUDY,
    )  # fmt: skip
    metrics = study(compose("quality", *typed), tmp_path / "study")
    assert metrics["images"] == 15
    assert metrics["classes"] == 4
    assert not any("brisque" in name or name.startswith(("auroc", "discard")) for name in metrics)
    assert "give benchmark.path=" in " ".join(capsys.readouterr().out.split())
    with open(tmp_path / "study" / "samples.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["class_size"] for row in rows} == {"5"}
    assert {row["brisque"] for row in rows} == {""}


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("study.smallest=1", r"study\.smallest is 1: give a number from 2"),
        ("study.nearest=-1", r"study\.nearest is -1"),
        ("study.replicates=a", r"study\.replicates is 'a': give a value of type int"),
        ("study.images=1", r"study\.images is 1: give 2 or more"),
        ("discard.threshold=own", r"discard\.threshold is 'own': give fixed or rederived"),
        ("discard.limit=1", r"discard\.limit is 1"),
        ("qmagface.scale=log", r"qmagface\.scale is 'log'"),
        ("qmagface.lowest=0.95", r"qmagface\.lowest is 0\.95 and qmagface\.highest 0\.9"),
        ("outliers.folder=none", r"outliers\.folder=none: no such folder"),
        ("outliers.count=0", r"outliers\.count is 0"),
        ("benchmark=pairs_lowres", r"LowResolutionBenchmark does not compare pairs of images as they are"),
        ("backbone=r50", r"says itself which network it is of"),
    ],
)
def test_bad_options_are_refused_before_anything_is_embedded(checkpoint, tmp_path, monkeypatch, typed, message):
    monkeypatch.setattr("facelab.quality.study._run", lambda *_: pytest.fail("it began"))
    rest = [word for word in STUDY if word.split("=")[0] != typed.split("=")[0]]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        study(compose("quality", f"checkpoint={checkpoint}", "study.brisque=false", *rest, typed), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_published_weights_want_their_images(checkpoint, tmp_path):
    trained = out_of_checkpoint("x", checkpoint, meta_of(checkpoint), None)
    torch.save(trained.backbone.state_dict(), tmp_path / "published.pt")
    typed = ("backbone=tiny", "backbone.widths=[16,16,16,32]", "backbone.embedding_size=16", "data.size=32")
    with pytest.raises(ValueError, match=r"do not say on which images they were trained: add data="):
        study(compose("quality", f"checkpoint={tmp_path}/published.pt", "study.brisque=false", *typed), tmp_path / "s")


def test_scrambled_faces_have_the_same_pixels_elsewhere():
    face = render(0, 0, 0, 32, 1.0)
    made = outliers.scrambled(face, 3)
    assert (made != face).any()
    side = 32 // 7
    inner = np.s_[: 7 * side, : 7 * side]
    for channel in range(3):
        assert np.array_equal(np.sort(made[inner][..., channel], None), np.sort(face[inner][..., channel], None))
    assert np.array_equal(made[7 * side :], face[7 * side :])
    assert np.array_equal(made, outliers.scrambled(face, 3))
    assert outliers.auroc(np.array([2.0, 3.0]), np.array([1.0, 2.0])) == 7 / 8
