"""Runs that go on from a checkpoint: with its network and its class centres, and these frozen."""

import pytest
import torch
from hydra.utils import instantiate
from killing import compose
from safetensors import safe_open

from facelab.training import centres, checkpoint, fit
from facelab.training.record import RunDirectory

FIRST = ("loss=adam_softmax", "trainer.max_steps=2", "trainer.log_every=1", "trainer.precision=fp32")


def run(where, *overrides):
    config, plain = compose(*overrides)
    return fit.train(config, plain, where, one_process=False)


def built(where, *overrides):
    config, plain = compose(*overrides)
    module = fit._build(config, plain, instantiate(config.trainer), RunDirectory(where, plain)).module
    module.configure_model()
    return module


def tensors(path):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    where = tmp_path_factory.mktemp("runs") / "first"
    run(where, *FIRST)
    return where / "checkpoints" / "last.ckpt"


def test_a_whole_checkpoint_begins_where_it_ended(trained, tmp_path):
    pair = (f"backbone.weights='{trained}'", f"loss.classifier.weights='{trained}'")
    ended, begins = built(tmp_path / "a", *FIRST), built(tmp_path / "b", *FIRST, *pair)
    alone = built(tmp_path / "c", *FIRST, pair[0])
    checkpoint.load(trained, ended)
    batch = next(iter(ended.data.train_dataloader()))
    losses = []
    for module in (ended, begins, alone):
        module.train()
        module.backbone.dropout.p = 0.0
        images = batch.images.permute(0, 3, 1, 2).float() / 127.5 - 1
        losses.append(module.loss(module(images), batch.labels, 0).loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert abs(losses[2] - losses[0]) > 1e-3
    # With centres of its own, a fresh classifier: the one that any other run of this seed has.
    assert torch.equal(alone.loss.classifier.weight, built(tmp_path / "d", *FIRST).loss.classifier.weight)


def test_a_run_with_frozen_centres_moves_all_but_them_and_resumes(trained, tmp_path, monkeypatch, capsys):
    pair = (f"backbone.weights='{trained}'", f"loss.classifier.weights='{trained}'", "loss.classifier.frozen=true")
    run(tmp_path / "run", *FIRST, *pair)
    assert "with the frozen class centres of" in " ".join(capsys.readouterr().out.split())
    before, after = tensors(trained), tensors(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert torch.equal(before["model.loss.classifier.weight"], after["model.loss.classifier.weight"])
    assert not torch.equal(before["model.loss.margins"], after["model.loss.margins"])
    assert "optimizer.loss.classifier.weight.momentum_buffer" not in after
    assert "optimizer.loss.margins.momentum_buffer" in after
    # A run that is resumed asks its own checkpoint, and needs the other file no more.
    monkeypatch.setattr(centres, "load", None)
    monkeypatch.setattr(centres, "check", None)
    (tmp_path / "run" / "metrics.json").unlink()
    run(tmp_path / "run", *FIRST, *pair)


def test_an_untrained_network_is_calibrated_on_the_images_of_its_first_step(tmp_path):
    module = built(tmp_path / "run", *FIRST)
    images = next(iter(module.data.train_dataloader())).images
    assert torch.equal(module.data.next_images(), images)
    norm = module.backbone.bn1
    seen = []
    module.backbone.bn1.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    module._calibrate()
    assert torch.allclose(norm.running_mean, seen[0].mean((0, 2, 3)), atol=1e-6)
    module.progress.step = 1
    assert not torch.equal(module.data.next_images(), images)


def test_another_number_of_people_is_refused_before_the_folder_is_taken(trained, tmp_path):
    with pytest.raises(ValueError, match=r"have \d+: leave loss\.classifier\.weights=null"):
        run(tmp_path / "run", *FIRST, f"loss.classifier.weights='{trained}'", "data.identities=30")
    assert not (tmp_path / "run" / "config.yaml").exists()
