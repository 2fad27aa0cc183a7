"""Whole runs in this process: they learn, leave a complete record, and know what they are."""

import csv
import json
import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from hydra.utils import instantiate
from killing import compose
from safetensors import safe_open

from facelab.benchmark.scores import load_scores
from facelab.data.augment import normalise
from facelab.report.spread import Spread
from facelab.training import fit
from facelab.training.module import FaceModule
from facelab.training.network import build_backbone
from facelab.training.preemption import Interrupted
from facelab.training.record import RunDirectory

# Seen to learn on one thread in ten seconds: few people, small faces, a narrow network, no margin.
LEARNS = (
    "data.identities=80",
    "data.images_per_identity=20",
    "data.nuisance=0.7",
    "data.size=64",
    "benchmark.size=64",
    "benchmark.count=400",
    "backbone.dropout=0",
    "backbone.widths=[16,32,64,64]",
    "backbone.embedding_size=64",
    "loss.scale=16",
    "loss.margin=0.0",
    "trainer.accumulate=1",
    "trainer.epochs=2",
    "trainer.validate_every=1",
    "trainer.batch_size=16",
    "trainer.save_every_steps=null",
    "optimizer.lr=0.1",
)


def run(where: Path, *overrides: str) -> dict[str, float]:
    config, plain = compose(*overrides)
    return fit.train(config, plain, where, one_process=False)


def history(where: Path) -> list[dict[str, str]]:
    with open(where / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights(where: Path, name: str = "last.ckpt") -> dict[str, np.ndarray]:
    with safe_open(where / "checkpoints" / name, "np") as file:
        names = list(file.keys())
        return {key: file.get_tensor(key) for key in names}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    where = tmp_path_factory.mktemp("fit") / "learned"
    return where, run(where, *LEARNS)


def test_two_epochs_learn(learned):
    where, metrics = learned
    rows = history(where)
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    right = [float(row["train/accuracy"]) for row in rows if row["train/accuracy"]]
    held_out = [float(row["val/accuracy"]) for row in rows if row["val/accuracy"]]
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])
    assert np.mean(right[-4:]) > np.mean(right[:4]) + 0.08
    assert len(held_out) == 3  # before training, and after each epoch
    assert metrics["val/accuracy"] > held_out[0] + 0.05
    assert metrics["val/accuracy"] == max(held_out)


def test_record_is_complete(learned):
    where, metrics = learned
    files = {str(path.relative_to(where)) for path in where.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "environment.json",
        "metrics.csv",
        "metrics.json",
        "scores/heldout.npz",
        "histograms.npz",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "report.png",
    } <= files
    config = yaml.safe_load((where / "config.yaml").read_text())
    assert config["loss"]["scale"] == 16
    assert "${" not in (where / "config.yaml").read_text()
    environment = json.loads((where / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    assert environment["seed"] == 1
    assert len(environment["starts"]) == 1
    assert 2**25 < environment["starts"][0]["peak_memory"] < 2**36, "bytes, of a process with torch in it"
    assert json.loads((where / "metrics.json").read_text()) == metrics
    assert all(isinstance(value, (int, float)) for value in metrics.values())
    scores = load_scores(where / "scores" / "heldout.npz")
    assert scores.stamp["mirror"] is True
    assert len(scores.scores) == len(scores.same) > 0


def test_angles_fall_and_the_log_has_their_medians(learned):
    where, metrics = learned
    with np.load(where / "histograms.npz") as file:
        spread = Spread(file["images"], file["angle_edges"], file["angle"])
        assert file["norm"].sum() == spread.counts.sum() == spread.images[-1] == metrics["images"]
    medians = spread.quantiles([0.5])[:, 0]
    assert abs(medians[0] - 90) < 5  # untrained, every direction is as likely
    assert medians[-1] < medians[0] - 10
    rows = [row for row in history(where) if row["train/loss"]]
    logged = [float(row["train/angle_median"]) for row in rows]
    assert medians[0] + 5 > logged[0] > logged[-1] > medians[-1] - 5
    assert all(float(row["train/norm_median"]) > 0 for row in rows)


def test_a_loss_without_class_centres_has_norms_alone(tmp_path):
    others = [word for word in LEARNS if not word.startswith("loss.")]
    run(tmp_path / "run", "loss=contrastive", *others, "trainer.max_steps=4")
    with np.load(tmp_path / "run" / "histograms.npz") as file:
        assert set(file) == {"images", "norm", "norm_edges"}
        assert file["images"].tolist() == [0, 16, 32, 48, 64]
    rows = [row for row in history(tmp_path / "run") if row["train/loss"]]
    assert all(row["train/norm_median"] and not row["train/angle_median"] for row in rows)


def test_images_are_counted_beside_steps(learned):
    where, metrics = learned
    for row in history(where):
        assert int(row["images"]) == 16 * int(row["step"])
    assert metrics["images"] == 16 * metrics["steps"]


def test_finished_run_shows_its_result_and_stops(learned, capsys, monkeypatch):
    where, metrics = learned
    before = weights(where)
    monkeypatch.setattr(FaceModule, "training_step", None)  # would fail if anything were trained
    assert run(where, *LEARNS) == metrics
    said = capsys.readouterr().out
    assert "finished" in said
    assert "heldout/accuracy" in said
    assert all((before[key] == value).all() for key, value in weights(where).items())


def test_another_configuration_is_refused_by_its_keys(learned):
    where, _ = learned
    with pytest.raises(ValueError, match=r"loss\.margin: 0\.0 → 0\.2"):
        run(where, *LEARNS, "loss.margin=0.2")


def test_same_seed_same_weights_whatever_the_threads(learned, tmp_path):
    where, _ = learned
    run(tmp_path / "again", *LEARNS, "data.loader.threads=4", "data.loader.prefetch=1")
    first, second = weights(where), weights(tmp_path / "again")
    assert all(first[key].tobytes() == second[key].tobytes() for key in first)


def test_report_is_on_the_best_checkpoint(learned, tmp_path):
    """The reported scores are those of best.ckpt, embedded anew outside Lightning."""
    where, _ = learned
    config, plain = compose(*LEARNS)
    built = fit._build(config, plain, instantiate(config.trainer), RunDirectory(tmp_path / "other", plain))
    network = build_backbone(config.backbone, load=False)
    stored = {k.removeprefix("model.backbone."): torch.from_numpy(v) for k, v in weights(where, "best.ckpt").items()}
    network.load_state_dict({key: value for key, value in stored.items() if key in network.state_dict()})
    network.eval()
    pairs = built.data.report
    images = normalise(torch.from_numpy(np.stack([pairs.load(i) for i in range(len(pairs))])))
    with torch.inference_mode():
        embeddings = (network(images) + network(images.flip(3))).numpy()
    expected = built.module.benchmark.evaluate(embeddings, pairs)
    stored_scores = load_scores(where / "scores" / "heldout.npz")
    np.testing.assert_allclose(stored_scores.scores, expected.scores, atol=0.05)  # the run embeds in bf16
    assert abs(stored_scores.scores - expected.scores).mean() < 0.01


def test_accumulation_averages_also_an_uneven_last_part(tmp_path):
    """Parts of 6, 5 and 5 images give the step of 16; batch norm is frozen, since its statistics would differ."""
    steps = {}
    for parts in (1, 3):
        config, plain = compose(*LEARNS, f"trainer.accumulate={parts}", "trainer.max_steps=1", "trainer.precision=fp32")
        original = FaceModule.configure_model

        def frozen(self, original=original):
            original(self)
            for module in self.backbone.modules():
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                    module.train(False)
                    module.train = lambda mode=True, module=module: module

        FaceModule.configure_model = frozen
        try:
            fit.train(config, plain, tmp_path / str(parts), one_process=False)
        finally:
            FaceModule.configure_model = original
        steps[parts] = weights(tmp_path / str(parts)), history(tmp_path / str(parts))[1]
    for key, value in steps[1][0].items():
        np.testing.assert_allclose(steps[3][0][key], value, rtol=2e-4, atol=2e-5, err_msg=key)
    for column in ("train/loss", "train/accuracy", "train/grad_norm"):
        assert float(steps[1][1][column]) == pytest.approx(float(steps[3][1][column]), rel=1e-4)


def test_signal_stops_at_the_end_of_the_batch_and_resumes(learned, tmp_path, monkeypatch):
    where, metrics = learned
    original = FaceModule.training_step
    calls = 0

    def signalled(self, batch, number):
        nonlocal calls
        calls += 1
        if calls == 7:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, batch, number)

    monkeypatch.setattr(FaceModule, "training_step", signalled)
    with pytest.raises(Interrupted, match=r"SIGINT after step 7 of .* started again, goes on"):
        run(tmp_path / "run", *LEARNS)
    assert not (tmp_path / "run" / "metrics.json").exists()
    monkeypatch.undo()
    again = run(tmp_path / "run", *LEARNS)
    first, second = weights(where), weights(tmp_path / "run")
    assert all(first[key].tobytes() == second[key].tobytes() for key in first)
    assert {k: v for k, v in again.items() if "second" not in k and k != "images_per_s"} == {
        k: v for k, v in metrics.items() if "second" not in k and k != "images_per_s"
    }


def test_signal_in_a_validation_loses_no_step(learned, tmp_path, monkeypatch):
    where, _ = learned
    original = FaceModule.validation_step

    def signalled(self, batch, number):
        if self.progress.step > 0:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, batch, number)

    monkeypatch.setattr(FaceModule, "validation_step", signalled)
    with pytest.raises(Interrupted, match="SIGTERM"):
        run(tmp_path / "run", *LEARNS)
    monkeypatch.undo()
    run(tmp_path / "run", *LEARNS)
    drop = ("images_per_s", "seconds")
    first, second = history(where), history(tmp_path / "run")
    assert [{k: v for k, v in row.items() if k not in drop} for row in first] == [
        {k: v for k, v in row.items() if k not in drop} for row in second
    ]


def test_fewer_identities_than_processes_are_refused_before_there_is_a_run(tmp_path):
    many = ("trainer.devices=16", "trainer.accelerator=cpu", "trainer.accumulate=1", "data.identities=24")
    with pytest.raises(ValueError, match=r"num_nodes is 16, but only 14 identities .* fewer processes"):
        run(tmp_path / "run", *many)
    assert not (tmp_path / "run").exists()


def test_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    original = FaceModule.forward

    def broken(self, images):
        embeddings = original(self, images)
        return embeddings * float("nan") if self.training and self.progress.step >= 4 else embeddings

    monkeypatch.setattr(FaceModule, "forward", broken)
    with pytest.raises(ValueError, match=r"loss is nan in step 5 .*optimizer\.lr"):
        run(tmp_path / "run", *LEARNS)


def test_without_held_out_identities_the_last_checkpoint_is_reported(learned, tmp_path):
    faces = tmp_path / "faces" / "A"
    faces.mkdir(parents=True)
    config, _ = compose(*LEARNS)
    source = instantiate({k: v for k, v in config.data.items() if k not in fit.COMMON})
    lines = ["2\t2"]
    for person in range(4):
        folder = tmp_path / "faces" / f"P{person}"
        folder.mkdir()
        for number in range(3):
            image = source.load(int(np.flatnonzero(source.labels == person)[number]))
            cv2.imwrite(str(folder / f"P{person}_{number + 1:04d}.png"), image[..., ::-1])
    for fold in (0, 2):
        lines += [f"P{fold}\t1\t2", f"P{fold + 1}\t1\t2", f"P{fold}\t3\tP{fold + 1}\t3", f"P{fold}\t1\tP{fold + 1}\t2"]
    (tmp_path / "faces" / "pairs.txt").write_text("\n".join(lines) + "\n")
    path = f"benchmark.path={tmp_path / 'faces'}"
    metrics = run(tmp_path / "run", *LEARNS, "data.holdout.fraction=0", path, "trainer.max_steps=5")
    assert not (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()
    assert metrics["best_step"] == metrics["steps"] == 5
    assert "faces/accuracy" in metrics
    assert "val/accuracy" not in metrics
