"""A run chooses its augmentation; what it learns depends on that, and not on how the images are brought."""

import numpy as np
import pytest
from killing import compose
from safetensors import safe_open

from facelab.training import fit
from facelab.training.preemption import Interrupted

HEAVY = "data.albumentations=[{GaussNoise: {p: 0.5}}, {OneOf: [ToGray, Blur]}]"
SHORT = "trainer.epochs=2"


def weights(where):
    with safe_open(where / "checkpoints" / "last.ckpt", "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def run(where, *overrides):
    config, plain = compose(SHORT, *overrides)
    fit.train(config, plain, where, one_process=False)
    return weights(where)


def equal(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_albumentations_in_processes_and_after_an_interruption(tmp_path, monkeypatch):
    one = run(tmp_path / "one", HEAVY, "data/augment=adaface", "data.loader.processes=1")
    assert not equal(one, run(tmp_path / "other", "data/augment=adaface"))

    step, steps = fit.FaceModule.training_step, []

    def stop_in_the_middle(self, batch, batch_idx):
        if len(steps) == 3:
            raise Interrupted("here")
        steps.append(batch_idx)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(fit.FaceModule, "training_step", stop_in_the_middle)
    again = (HEAVY, "data/augment=adaface", "data.loader.processes=2", "trainer.save_every_steps=1")
    with pytest.raises(Interrupted):
        run(tmp_path / "again", *again)
    monkeypatch.undo()
    assert equal(one, run(tmp_path / "again", *again))


def test_a_list_that_changes_the_size_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"data.albumentations makes shape"):
        run(tmp_path, "data.albumentations=[{RandomCrop: {height: 20, width: 20, p: 0.01}}]")
    assert not (tmp_path / "config.yaml").exists()
