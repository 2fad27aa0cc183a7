"""What is exported is read again as it was: the same weights, and the same word about what they take as input."""

import json
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open

from facelab.backbone.weights import Input, load_weights
from facelab.data.augment import normalise
from facelab.door import configuration_folder
from facelab.export.formats import export
from facelab.training import fit
from facelab.training.network import build_backbone
from facelab.training.trained import meta_of, out_of_checkpoint

NARROW = ("backbone.widths=[16,16,16,32]", "backbone.embedding_size=16")
SMALL = (
    *("logger=csv", "trainer.progress=false", "trainer.accelerator=cpu", "trainer.max_steps=2", *NARROW),
    *("data.identities=24", "data.images_per_identity=6", "data.size=48", "data.holdout.fraction=0.4"),
    *("benchmark.size=48", "benchmark.count=60", "benchmark.folds=2", "trainer.batch_size=16", "job=small"),
)


def compose(name: str, *overrides: str):
    OmegaConf.register_new_resolver("facelab.job", lambda: "small", replace=True)
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        return hydra.compose(name, list(overrides))


def train(where: Path, *overrides: str) -> Path:
    config = compose("config", *SMALL, *overrides)
    fit.train(config, OmegaConf.to_container(config, resolve=True), where, one_process=False)
    return where / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a network that began with weights used to other colours."""
    folder = tmp_path_factory.mktemp("export")
    node = compose("config", *NARROW, "data.size=48").backbone
    torch.manual_seed(3)
    torch.save(build_backbone(node, load=False).state_dict(), folder / "published.pt")
    begun = (f"backbone.weights={folder}/published.pt", "backbone.input={color: bgr, mean: 0, std: 255}")
    return train(folder / "run", *begun)


def exported(where: Path, *overrides: str) -> Path:
    return export(compose("export", *overrides), where)


def test_weights_and_convention_come_back(checkpoint, tmp_path):
    file = exported(tmp_path, f"checkpoint={checkpoint}")
    assert file == tmp_path / "model.safetensors"
    before = out_of_checkpoint("x", checkpoint, meta_of(checkpoint), None).backbone.eval()
    with safe_open(file, "pt") as opened:
        assert set(opened.keys()) == set(before.state_dict())  # the published names, nothing in front
        assert json.loads(opened.metadata()["input"]) == {"color": "bgr", "mean": 0.0, "std": 255.0}
    node = compose("config", *NARROW, "data.size=48", f"backbone.weights={file}").backbone
    again = build_backbone(node, load=True).eval()
    assert again.input_convention == Input("bgr", 0.0, 255.0)
    images = normalise(torch.randint(0, 256, (2, 48, 48, 3), dtype=torch.uint8))
    assert torch.equal(again(images), before(images))
    about = json.loads((tmp_path / "export.json").read_text())
    assert about["step"] == 2
    assert about["input"] == {"color": "bgr", "mean": 0.0, "std": 255.0}
    assert about["backbone"]["widths"] == [16, 16, 16, 32]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.json", "model.safetensors"]


def test_published_weights_get_their_convention(tmp_path):
    node = compose("config", *NARROW, "data.size=48").backbone
    torch.save(build_backbone(node, load=False).state_dict(), tmp_path / "published.pt")
    file = exported(
        tmp_path / "out", f"checkpoint={tmp_path}/published.pt", "backbone=tiny", *NARROW, "data.size=48",
        "backbone.input={color: bgr}",
    )  # fmt: skip
    network = build_backbone(node, load=False)
    assert load_weights(network, file) == Input("bgr", 127.5, 127.5)


def test_a_checkpoint_with_groups_is_refused_and_nothing_is_written(tmp_path):
    checkpoint = train(tmp_path / "run", "head=groupface", "head.groups=2", "trainer.max_steps=1")
    with pytest.raises(
        ValueError, match="has a GroupFace on top of its backbone, and safetensors holds a backbone alone"
    ):
        exported(tmp_path / "out", f"checkpoint={checkpoint}")
    assert not (tmp_path / "out").exists()


def test_a_file_that_would_not_come_back_has_no_name(checkpoint, tmp_path, monkeypatch):
    def other(network, path):
        return Input("rgb", 1.0, 1.0)

    monkeypatch.setattr("facelab.export.formats.load_weights", other)
    with pytest.raises(AssertionError):
        exported(tmp_path / "out", f"checkpoint={checkpoint}")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["checkpoint=nowhere.ckpt"], "checkpoint=nowhere.ckpt: no such file"),
        (["checkpoint={checkpoint}", "format=onyx"], "format is 'onyx': give one of safetensors"),
        (["checkpoint={checkpoint}", "backbone=r50"], "says itself which network it is of: leave backbone"),
        (["checkpoint={checkpoint}", "ema=true"], "was trained without trainer.ema"),
        (["checkpoint={here}"], "is no checkpoint of facelab .* add backbone="),
    ],
)
def test_wrong_words_are_refused(checkpoint, tmp_path, words, message):
    given = [word.format(checkpoint=checkpoint, here=__file__) for word in words]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        exported(tmp_path / "out", *given)
    assert not (tmp_path / "out").exists()
