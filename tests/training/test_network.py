"""Backbones out of configurations, with weights from a file and the colours that they are used to."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import compose
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import save_file

from facelab.backbone.weights import HOUSE, Input
from facelab.training import fit
from facelab.training.module import FaceModule
from facelab.training.network import about_input, build_backbone, completed, convention, read_input
from facelab.training.preemption import Interrupted

NODE = {
    "_target_": "facelab.backbone.iresnet.IResNet",
    "layers": [1, 1, 1, 1],
    "widths": [16, 16, 16, 32],
    "stem_stride": 2,
    "embedding_size": 16,
    "dropout": 0.0,
    "attention": "none",
    "image_size": "${size}",
    "weights": None,
    "input": None,
}
BGR = Input("bgr", 0.0, 255.0)


def node(**changes):
    """A backbone's node as it stands in a configuration: with the size somewhere else."""
    return OmegaConf.create({"size": 48, "backbone": {**NODE, **changes}}).backbone


def test_a_node_of_an_older_checkpoint_is_completed():
    older = {key: value for key, value in NODE.items() if key != "attention"}
    assert completed(older) == NODE
    assert completed({**older, "attention": "cbam"})["attention"] == "cbam"
    assert completed({"_target_": "facelab.backbone.mbf.MBF"}) == {"_target_": "facelab.backbone.mbf.MBF"}


def built(load=True, **changes):
    torch.manual_seed(2)
    return build_backbone(node(**changes), load).eval()


@pytest.fixture
def weights(tmp_path):
    """A checkpoint of facelab whose network takes BGR images, with batch norms that have seen some."""
    torch.manual_seed(1)
    network = build_backbone(node(), load=False).train()
    network(torch.randn(16, 3, 48, 48))
    path = tmp_path / "trained.ckpt"
    about = {"input": {"color": "bgr", "mean": 0.0, "std": 255.0}}
    tensors = {f"model.backbone.{key}": value.contiguous() for key, value in network.state_dict().items()}
    save_file(tensors, path, metadata={"facelab": json.dumps(about)})
    return path


def images():
    return torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_without_weights_it_takes_what_the_house_gives():
    network = built()
    assert network.input_convention == HOUSE
    assert not network._forward_pre_hooks
    assert convention(network) == {"color": "rgb", "mean": 127.5, "std": 127.5}
    assert about_input(network) == ""


def test_the_node_stays_as_it_is(weights):
    given = node(weights=str(weights))
    build_backbone(given, load=True)
    assert given.weights == str(weights)
    assert "input" in given


def test_weights_bring_their_input(weights):
    network, plain = built(weights=str(weights)), built()
    assert network.input_convention == BGR
    assert convention(network) == {"color": "bgr", "mean": 0.0, "std": 255.0}
    assert about_input(network) == ", takes bgr (x − 0)/255"
    plain.load_state_dict(network.state_dict())
    pixels = images() * 127.5 + 127.5
    with torch.inference_mode():
        torch.testing.assert_close(network(images()), plain(pixels.flip(1) / 255))
        assert not torch.allclose(network(images()), plain(images()))


def test_what_is_typed_of_the_input_comes_before_what_the_file_says(weights):
    assert built(weights=str(weights), input={"color": "rgb"}).input_convention == Input("rgb", 0.0, 255.0)
    assert built(input={"color": "bgr", "mean": 127, "std": 128}).input_convention == Input("bgr", 127.0, 128.0)


def test_without_loading_no_file_is_needed(weights):
    missing = str(weights.with_name("gone.ckpt"))
    network = built(load=False, weights=missing)
    assert network.input_convention == HOUSE
    torch.testing.assert_close(network.fc.weight, built().fc.weight)
    with pytest.raises(FileNotFoundError, match=r"gone\.ckpt: no such file"):
        built(weights=missing)


def test_frozen_stages_need_no_file_where_a_checkpoint_fills_them(weights):
    missing = str(weights.with_name("gone.ckpt"))
    network = built(load=False, weights=missing, freeze=2).train()
    assert not network.layer1[0].bn1.training
    assert network.layer2[0].bn1.training
    assert not network.layer1[0].conv1.weight.requires_grad
    with pytest.raises(ValueError, match=r"^backbone\.freeze=2 keeps the first stages as they are, and these would be"):
        built(load=False, freeze=2)


def test_nor_are_the_weights_of_another_library():
    given = OmegaConf.create({"_target_": "types.SimpleNamespace", "pretrained": True})
    assert build_backbone(given, load=True).pretrained is True
    assert build_backbone(given, load=False).pretrained is False
    assert given.pretrained is True


def test_shapes_alone_tell_whether_weights_fit(weights):
    with torch.device("meta"):
        network = build_backbone(node(weights=str(weights)), load=True)
        assert network.fc.weight.device.type == "meta"
        assert network.input_convention == BGR
        with pytest.raises(ValueError, match=r"trained\.ckpt: "):
            build_backbone(node(weights=str(weights), embedding_size=8), load=True)


def test_a_home_directory(weights, monkeypatch):
    monkeypatch.setenv("HOME", str(weights.parent))
    assert built(weights="~/trained.ckpt").input_convention == BGR


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("bgr", "backbone.input is bgr: give color, mean, std"),
        ({"colour": "bgr"}, "backbone.input is {'colour': 'bgr'}: give color, mean, std"),
        ({"color": "grb"}, "backbone.input.color is 'grb': give rgb or bgr"),
        ({"mean": "x"}, "backbone.input.mean is 'x': give a value of type float"),
        ({"std": 0}, "backbone.input.std is 0"),
    ],
)
def test_an_input_that_cannot_be_understood(given, line):
    with pytest.raises(ValueError, match=f"^{line.replace('{', '[{]').replace('.', '[.]')}"):
        read_input(given, HOUSE)


def test_weights_are_a_file():
    with pytest.raises(ValueError, match=r"^backbone\.weights is 3: give the path of a file, or null"):
        built(weights=3)


# In a run


def run(where: Path, *overrides: str):
    config, plain = compose("backbone.dropout=0", "trainer.epochs=2", *overrides)
    return fit.train(config, plain, where, one_process=False)


def stored(where: Path, name: str):
    with safe_open(where / "checkpoints" / name, "np") as file:
        names = list(file.keys())
        return {key: file.get_tensor(key) for key in names}, json.loads(file.metadata()["facelab"])


def test_a_run_begins_with_the_weights_and_resumes_without_the_file(weights, tmp_path, monkeypatch):
    """The untrained network's batch norms are calibrated, those of a trained one are not touched."""
    given = f"backbone.weights={weights}"
    alone, resumed = tmp_path / "alone", tmp_path / "resumed"
    first = []
    on_validation_start = FaceModule.on_validation_start

    def noted(self):
        on_validation_start(self)
        first.append({key: value.clone() for key, value in self.backbone.state_dict().items()})

    monkeypatch.setattr(FaceModule, "on_validation_start", noted)
    run(alone, given)
    with safe_open(weights, "pt") as file:
        for key, value in first[0].items():
            assert torch.equal(value, file.get_tensor(f"model.backbone.{key}")), key
    monkeypatch.undo()

    original = FaceModule.training_step

    def signalled(self, batch, number):
        if self.progress.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, batch, number)

    monkeypatch.setattr(FaceModule, "training_step", signalled)
    with pytest.raises(Interrupted):
        run(resumed, given)
    monkeypatch.undo()
    weights.unlink()
    run(resumed, given)
    (tensors, meta), (again, meta_again) = stored(alone, "last.ckpt"), stored(resumed, "last.ckpt")
    assert meta["input"] == meta_again["input"] == {"color": "bgr", "mean": 0.0, "std": 255.0}
    assert all(value.tobytes() == again[key].tobytes() for key, value in tensors.items())
    with np.load(alone / "scores" / "heldout.npz") as one, np.load(resumed / "scores" / "heldout.npz") as other:
        np.testing.assert_array_equal(one["scores"], other["scores"])


def test_weights_are_part_of_what_a_run_is(weights, tmp_path):
    run(tmp_path / "run", f"backbone.weights={weights}", "trainer.max_steps=1")
    with pytest.raises(ValueError, match=r"another configuration \(backbone\.weights: .*trained\.ckpt → None"):
        run(tmp_path / "run", "trainer.max_steps=1")


@pytest.mark.parametrize("size", [16, 8])
def test_weights_that_cannot_be_used_are_refused_before_there_is_a_run(weights, tmp_path, size):
    missing = size == 16
    path = weights.with_name("gone.ckpt") if missing else weights
    with pytest.raises((FileNotFoundError, ValueError), match="gone.ckpt: no such" if missing else "trained.ckpt: "):
        run(tmp_path / "run", f"backbone.weights={path}", f"backbone.embedding_size={size}")
    assert not (tmp_path / "run").exists()
