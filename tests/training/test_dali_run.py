"""Whole runs whose images DALI decodes: they are the thread loader's, step by step, and resume in mid-epoch."""

import csv
import os
import signal

import cv2
import hydra
import numpy as np
import pytest
from killing import SMALL
from omegaconf import OmegaConf
from safetensors import safe_open

from facelab.data.synthetic import render
from facelab.door import configuration_folder
from facelab.training import fit
from facelab.training.module import FaceModule
from facelab.training.preemption import Interrupted

pytest.importorskip("nvidia.dali", reason="needs DALI: pip install 'facelab[dali]' (Linux)")

SIZE = 48
# Validations lie within epochs, and epochs within the stretches between them.
RUN = ("data=folder", f"data.size={SIZE}", "trainer.epochs=2", "trainer.validate_every=0.7", "trainer.log_every=1")
RUN += ("trainer.precision=fp32", "trainer.accelerator=cpu", "trainer.save_every_steps=null")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    root = tmp_path_factory.mktemp("faces")
    for person in range(20):
        (root / f"p{person:02}").mkdir()
        for image in range(5):
            pixels = render(0, person, image, SIZE, 1.0)[..., ::-1]
            cv2.imencode(".jpg", pixels)[1].tofile(root / f"p{person:02}" / f"{image}.jpg")
    return root


def run(where, photographs, loader):
    small = [word for word in SMALL if not word.startswith("data.i")]
    OmegaConf.register_new_resolver("facelab.job", lambda: "small", replace=True)
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        config = hydra.compose("config", [*small, *RUN, f"data.root='{photographs}'", f"data/loader={loader}"])
    fit.train(config, OmegaConf.to_container(config, resolve=True), where, one_process=False)
    with open(where / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights(where):
    with safe_open(where / "checkpoints" / "last.ckpt", "np") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def by_dali(tmp_path_factory, photographs):
    where = tmp_path_factory.mktemp("runs") / "dali"
    return where, run(where, photographs, "dali")


def test_dali_trains_as_threads_do(by_dali, tmp_path, photographs):
    where, rows = by_dali
    expected = run(tmp_path / "torch", photographs, "torch")
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    steps = [int(row["step"]) for row in rows if row["train/loss"]]
    assert steps == list(range(1, 2 * (60 // 16) + 1)), "no step is skipped, no epoch shortened"
    for ours, theirs in zip(rows, expected, strict=True):
        for key in ("images", "train/loss", "train/grad_norm", "val/accuracy"):
            assert bool(ours[key]) == bool(theirs[key])
            if theirs[key]:
                assert float(ours[key]) == pytest.approx(float(theirs[key]), rel=0.01)
    ours = weights(where)
    for name, tensor in weights(tmp_path / "torch").items():
        np.testing.assert_allclose(ours[name], tensor, rtol=0.05, atol=0.01)


def test_it_resumes_in_mid_epoch(by_dali, tmp_path, photographs, monkeypatch):
    original, calls = FaceModule.training_step, []

    def signalled(self, batch, number):
        calls.append(number)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, batch, number)

    monkeypatch.setattr(FaceModule, "training_step", signalled)
    with pytest.raises(Interrupted, match="SIGINT after step 4"):
        run(tmp_path / "run", photographs, "dali")
    monkeypatch.undo()
    run(tmp_path / "run", photographs, "dali")
    first, second = weights(by_dali[0]), weights(tmp_path / "run")
    assert first.keys() == second.keys()
    assert all(first[key].tobytes() == second[key].tobytes() for key in first)
