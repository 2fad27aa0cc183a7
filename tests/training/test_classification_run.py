"""Runs on photographs of anything: they name classes, choose, report, resume, on several ranks, and are evaluated."""

import csv
import json
import os
import shutil
from pathlib import Path

import cv2
import hydra
import numpy as np
import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from ranks import on_ranks
from safetensors import safe_open

from facelab.benchmark.classification import TopK, load_named
from facelab.door import configuration_folder
from facelab.training import closed_set, fit
from facelab.training.evaluation import evaluate
from facelab.training.preemption import Interrupted

SIZE = 24
CLASSES = 6
SHORT = (
    "logger=csv",
    "job=small",
    "data=imagefolder_classification",
    f"data.size={SIZE}",
    "data.holdout.fraction=0.2",
    "data.loader.threads=1",
    "loss=softmax",
    "backbone.widths=[16,16,16,32]",
    "backbone.embedding_size=32",
    "optimizer.lr=0.05",
    "trainer.accelerator=cpu",
    "trainer.precision=fp32",
    "trainer.batch_size=16",
    "trainer.progress=false",
)
LEARNS = ("trainer.epochs=8", "trainer.validate_every=4", "benchmark.resolutions=[1x,6]")
QUICK = ("trainer.max_steps=4", "trainer.validate_every=9", "trainer.log_every=1")


def picture(kind, random):
    """Disc or cross, red, green or blue, on grey noise; of any shape, anywhere near the middle."""
    height, width = random.integers(30, 60, 2)
    image = random.integers(60, 140, (height, width, 3)).astype(np.uint8)
    x, y = (int(side // 2 + random.integers(-3, 4)) for side in (width, height))
    radius, colour = int(random.integers(7, 13)), [60, 60, 60]
    colour[kind // 2] = 255
    if kind % 2:
        cv2.circle(image, (x, y), radius, colour, -1)
    else:
        cv2.line(image, (x - radius, y - radius), (x + radius, y + radius), colour, 4)
        cv2.line(image, (x - radius, y + radius), (x + radius, y - radius), colour, 4)
    return image


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root, random = tmp_path_factory.mktemp("things") / "set", np.random.default_rng(5)
    for part, count in (("train", 30), ("val", 10)):
        for kind in range(CLASSES):
            (root / part / f"thing {kind}").mkdir(parents=True)
            for number in range(count):
                file = root / part / f"thing {kind}" / f"{number}.jpg"
                file.write_bytes(cv2.imencode(".jpg", picture(kind, random))[1].tobytes())
    return root


def compose(name, *words):
    OmegaConf.register_new_resolver("facelab.job", lambda: "small", replace=True)
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        return hydra.compose(name, list(words))


def run(where, root, *words):
    config = compose("config", *SHORT, f"data.root={root}", *words)
    return fit.train(config, OmegaConf.to_container(config, resolve=True), where, one_process=False)


@pytest.fixture(scope="module")
def learned(root, tmp_path_factory):
    where = tmp_path_factory.mktemp("runs") / "learned"
    return where, run(where, root, *LEARNS)


def rows(where):
    with open(where / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights(where):
    with safe_open(where / "checkpoints" / "last.ckpt", "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_it_learns_far_above_chance_and_reports_the_part_for_that(learned):
    where, metrics = learned
    assert metrics["heldout/top1"] > 0.6 > 3 / CLASSES
    assert metrics["heldout/top5"] > metrics["heldout/top1"]
    assert metrics["heldout/top1_low"] < metrics["heldout/top1"] < metrics["heldout/top1_high"] or (
        metrics["heldout/top1"] == 1
    )
    assert metrics["heldout_6px/top1"] < metrics["heldout/top1"]  # a few pixels were never trained on
    assert metrics["identities"] == CLASSES
    assert json.loads((where / "metrics.json").read_text()) == metrics
    assert (where / "report.png").is_file()


def test_the_curve_chose_the_best_checkpoint(learned):
    where, metrics = learned
    chosen = {int(row["step"]): float(row["val/top1"]) for row in rows(where) if row["val/top1"]}
    assert len(chosen) == 3  # before training, in its middle, at its end
    assert metrics["val/top1"] == max(chosen.values()) == chosen[metrics["best_step"]]
    assert metrics["val/top1"] > chosen[0] + 0.2


def test_what_is_kept_gives_the_numbers_again(learned):
    where, metrics = learned
    named = load_named(where / "scores" / "heldout.npz")
    assert named.predictions.shape == (10 * CLASSES, 5)
    assert named.classes == [f"thing {kind}" for kind in range(CLASSES)]
    assert np.bincount(named.truth).tolist() == [10] * CLASSES
    assert (np.diff(named.similarities, axis=1) <= 0).all()
    assert (named.predictions[:, 0] == named.truth).mean() == metrics["heldout/top1"]
    assert "a part of its own" in named.stamp["source"]


def report_again(rank, world, folder):
    """The report alone, by as many ranks: all training is done and saved."""
    launched = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    launched |= {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "localhost", "MASTER_PORT": 0}  # as torchrun says it
    before = dict(os.environ)
    os.environ.update({key: str(value) for key, value in launched.items()})
    try:
        run(folder / "run", (folder / "root").read_text(), *LEARNS, f"trainer.devices={world}")
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_two_ranks_with_half_of_the_classes_each_name_the_same(learned, root, tmp_path):
    where, _ = learned
    shutil.copytree(where, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "scores")
    (tmp_path / "run" / "metrics.json").unlink()
    (tmp_path / "root").write_text(str(root))
    on_ranks((2,), report_again, tmp_path)
    for name in ("heldout", "heldout_6px"):
        one, two = (load_named(folder / "scores" / f"{name}.npz") for folder in (where, tmp_path / "run"))
        np.testing.assert_array_equal(one.predictions, two.predictions)
        np.testing.assert_allclose(one.similarities, two.similarities, rtol=1e-4, atol=1e-4)
        assert one.metrics == two.metrics
        assert one.stamp == two.stamp


def test_an_interrupted_run_goes_on_to_the_same(root, tmp_path, monkeypatch):
    run(tmp_path / "one", root, *QUICK)
    step, steps = fit.FaceModule.training_step, []

    def stop_in_the_middle(self, batch, batch_idx):
        if len(steps) == 2:
            raise Interrupted("here")
        steps.append(batch_idx)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(fit.FaceModule, "training_step", stop_in_the_middle)
    again = (*QUICK, "trainer.save_every_steps=1")
    with pytest.raises(Interrupted):
        run(tmp_path / "again", root, *again)
    monkeypatch.undo()
    metrics = run(tmp_path / "again", root, *again)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "again")
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert metrics["heldout/top1"] == json.loads((tmp_path / "one" / "metrics.json").read_text())["heldout/top1"]
    assert [row["step"] for row in rows(tmp_path / "again") if row["val/top1"]] == ["0", "4"]


def test_a_student_of_few_pixels_learns_from_a_teacher_of_all(learned, root, tmp_path):
    where, _ = learned
    words = (
        "data/degrade=lowres",
        "data.degrade.sizes=[6]",
        "distill=logits",
        "distill.scale=16",
        "benchmark.resolutions=[6]",
    )
    teacher = f"distill.teacher.checkpoint={where}/checkpoints/best.ckpt"
    metrics = run(tmp_path / "run", root, *QUICK, *words, teacher)
    assert {"heldout_6px/top1", "val/top1"} <= metrics.keys()
    assert "heldout/top1" not in metrics
    terms = [float(row["train/distill"]) for row in rows(tmp_path / "run") if row["train/loss"]]
    assert len(terms) == 4
    assert terms[-1] != terms[0] > 0


def test_faces_can_be_named_too_and_half_of_what_is_held_out_is_reported(tmp_path):
    """Any data set: a share of each person's images is held out. And with a margin, whose cosines speak."""
    words = (
        "data=synthetic",
        "data.size=32",
        "data.identities=8",
        "data.images_per_identity=10",
        "loss=cosface",
        "loss.scale=16",
    )
    config = compose("config", *SHORT, *words, *QUICK, "benchmark=classification", "benchmark.mirror=true")
    metrics = fit.train(config, OmegaConf.to_container(config, resolve=True), tmp_path, one_process=False)
    named = load_named(tmp_path / "scores" / "heldout.npz")
    assert np.bincount(named.truth).tolist() == [1] * 8
    assert metrics["identities"] == 8
    assert np.abs(named.similarities).max() <= 1.00001


def evaluated(where, *words):
    config = compose("evaluate", "logger=csv", "progress=false", *words)
    return evaluate(config, {word.split("=")[0] for word in words}, where)


def test_an_evaluation_says_the_same_and_other_resolutions_too(learned, root, tmp_path):
    where, metrics = learned
    best = f"checkpoint={where}/checkpoints/best.ckpt"
    again = evaluated(tmp_path / "again", best, "benchmark=classification")
    shared = {key for key in again if "/top" in key}
    assert shared == {key for key in metrics if key.startswith("heldout")}
    assert all(again[key] == metrics[key] for key in shared)
    assert (tmp_path / "again" / "report.png").is_file()
    other = evaluated(tmp_path / "other", best, "benchmark=classification", "benchmark.resolutions=[12]")
    assert {key.split("/")[0] for key in other if "/top" in key} == {"heldout_12px"}
    with pytest.raises(ValueError, match=r"trained on all classes of its data.*set benchmark=classification"):
        evaluated(tmp_path / "pairs", best)


def test_who_has_held_out_no_images_is_not_asked_for_them():
    benchmark = TopK(None, [1], False, SIZE, ["1x"], "bicubic", "bicubic")
    with pytest.raises(ValueError, match=r"x\.ckpt was trained on all images of its identities"):
        closed_set.check_same_kind(benchmark, Path("x.ckpt"), {})
    with pytest.raises(ValueError, match="published weights have no class centres, by which images could be named"):
        closed_set.check_same_kind(benchmark, Path("x.npz"), None)
    closed_set.check_same_kind(benchmark, Path("x.ckpt"), {"closed_set": True})


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["benchmark=pairs"], "ImageFolder reports on the classes that it trains on.*set benchmark=classification"),
        (["loss=triplet"], "TopK asks for the class of an image, and Triplet.* has no class centres"),
        (["data.val=null", "data.holdout.fraction=0"], "there is no image to report on: hold some out"),
        (["data.holdout.fraction=1"], "fraction of held-out images is 1"),
        (["data.train=training"], "has val/ with a folder for each class, but no such training/"),
    ],
)
def test_what_does_not_fit_is_refused_before_there_is_a_run(root, tmp_path, words, line):
    with pytest.raises((ValueError, ConfigCompositionException, hydra.errors.InstantiationException), match=line):
        run(tmp_path / "run", root, *QUICK, *words)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_classes_that_lose_all_their_images_are_left_out_or_refused(root, tmp_path):
    things = tmp_path / "set"
    shutil.copytree(root, things)
    for file in (things / "train" / "thing 2").iterdir():
        file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"30 unreadable; the first is train/thing 2/0\.jpg"):
        run(tmp_path / "run", things, *QUICK)
    skipping = (*QUICK, "data.inspect.unreadable=skip")
    with pytest.raises(ValueError, match="of class thing 2 no image is left to train on, and there are some to report"):
        run(tmp_path / "run", things, *skipping)
    shutil.rmtree(things / "val" / "thing 2")
    metrics = run(tmp_path / "other", things, *skipping)
    assert metrics["identities"] == CLASSES - 1
    assert load_named(tmp_path / "other" / "scores" / "heldout.npz").classes[2] == "thing 3"
