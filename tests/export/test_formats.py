"""What is exported is the same model when it is opened again: every format, inside and outside, and what it says."""

import copy
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import hydra
import numpy as np
import pytest
import torch
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from safetensors import safe_open
from torch import nn

from facelab.atomic import UNFINISHED
from facelab.backbone.weights import Input, load_weights, set_input
from facelab.data.augment import normalise
from facelab.data.synthetic import SyntheticFaces, render
from facelab.door import configuration_folder
from facelab.export import to_onnx, to_openvino
from facelab.export.base import Format, require
from facelab.export.export import export
from facelab.export.loading import Runtime, formats, load_embedder
from facelab.training.checkpoint import save
from facelab.training.module import embed
from facelab.training.network import build_backbone
from facelab.training.trained import meta_of, out_of_checkpoint

NARROW = ("backbone.widths=[16,16,16,32]", "backbone.embedding_size=16")
FEW = ("parity.identities=6", "parity.images=3", "progress=false")
MODELS = ("onnx", "openvino", "torchscript", "exported_program")  # formats that hold images to embeddings
SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "torchscript": ".pt", "exported_program": ".pt2"}
OTHERS = Input("bgr", 0.0, 255.0)  # what the weights are used to


def compose(name: str, *overrides: str):
    OmegaConf.register_new_resolver("facelab.job", lambda: "small", replace=True)
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        return hydra.compose(name, list(overrides))


def write_checkpoint(path: Path, *overrides: str) -> Path:
    """As a run leaves it: norms have seen faces, and weights are used to other colours."""
    config = compose("config", *NARROW, "data.size=48", *overrides)
    torch.manual_seed(3)
    backbone = build_backbone(config.backbone, load=False)
    head = instantiate(config.head, embedding_size=16)
    for module in backbone.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
    set_input(backbone, OTHERS)
    faces = SyntheticFaces(8, 2, 48, 1.0, 1.0, seed=1)
    with torch.no_grad():
        backbone.train()(normalise(torch.from_numpy(np.stack([faces.load(i) for i in range(16)]))))
    model = nn.ModuleDict({"backbone": backbone, "head": head})
    plain = OmegaConf.to_container(config, resolve=True)
    save(path, model, None, {"step": 2, "config": plain, "num_classes": 8, "input": asdict(OTHERS)})
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "best.ckpt")


@pytest.fixture(scope="module")
def faces():
    return np.random.default_rng(1).integers(0, 256, (5, 48, 48, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def truth(checkpoint, faces):
    """(5,16) of the checkpoint itself, by training's own way, not normalised: alone, and with the mirrored image."""
    trained = out_of_checkpoint("x", checkpoint, meta_of(checkpoint), None)
    network = nn.Sequential(trained.backbone, trained.head).eval()
    with torch.inference_mode():
        return [embed(network, torch.from_numpy(faces), mirror).numpy() for mirror in (False, True)]


@pytest.fixture(scope="module")
def made(checkpoint, tmp_path_factory):
    """Each format once: preprocessing inside, any number of images."""
    folder = tmp_path_factory.mktemp("made")
    return {name: exported(folder / name, f"checkpoint={checkpoint}", f"format={name}") for name in MODELS}


def exported(where: Path, *overrides: str) -> Path:
    return export(compose("export", *FEW, *overrides), where)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back(name, made, truth, faces):
    assert made[name].name == f"model{SUFFIX[name]}"
    opened = load_embedder(made[name], Runtime(threads=1))
    assert opened.size == 48
    assert opened.embedding_size == 16
    assert opened.convention == Input("bgr", 0.0, 255.0)
    np.testing.assert_allclose(opened.embed(faces), unit(truth[0]), atol=2e-6)
    np.testing.assert_allclose(opened.embed(faces[:1]), unit(truth[0][:1]), atol=2e-6)  # any number of images
    assert opened.embed(faces[:0]).shape == (0, 16)
    about = opened.metadata
    assert about["takes"] == "uint8 (B,48,48,3), RGB"
    assert about["step"] == 2
    assert about["run"]["job"] == "small"
    assert about["folded"] == 14  # all but the norms in front of convolutions, and the one in front of fc
    told = json.loads(made[name].with_name("export.json").read_text())
    assert told["checkpoint_sha256"] == about["checkpoint_sha256"]
    assert told["parity"]["max"] < 1e-7
    assert sum(file.suffix == SUFFIX[name] for file in made[name].parent.iterdir()) == 1
    assert "| FNMR at FMR 0.01 |" in made[name].with_name("export.md").read_text()


@pytest.mark.parametrize("name", MODELS)
def test_preprocessing_outside_a_fixed_batch_the_mirrored_image_and_the_length(
    name, checkpoint, truth, faces, tmp_path
):
    form = ("preprocessing=false", "batch=2", "mirror=true", "unit=false", "fold=false")
    file = exported(tmp_path, f"checkpoint={checkpoint}", f"format={name}", *form)
    opened = load_embedder(file, Runtime(threads=1))
    np.testing.assert_allclose(opened.features(faces), truth[1], rtol=1e-4, atol=1e-4)  # 5 images, two by two
    assert np.abs(opened.embed(faces, mirror=True) - unit(truth[1])).max() < 2e-6, (
        "the mirrored image is not added twice"
    )
    assert opened.metadata["takes"] == "float32 (2,3,48,48), bgr, (x − 0)/255"
    assert opened.metadata["folded"] == 0


@pytest.mark.parametrize(("name", "precision"), [("onnx", "fp16"), ("openvino", "fp16"), ("openvino", "bf16"),
                                                 ("torchscript", "bf16"), ("exported_program", "fp16")])  # fmt: skip
def test_half_precision_is_near(name, precision, checkpoint, truth, faces, tmp_path):
    loose = [f"parity.tolerance.{precision}.{key}=1" for key in ("accuracy", "fnmr", "max", "mean")]  # it is untrained
    file = exported(tmp_path, f"checkpoint={checkpoint}", f"format={name}", f"precision={precision}", *loose)
    distance = 1 - (load_embedder(file, Runtime(threads=1)).embed(faces) * unit(truth[0])).sum(1)
    assert 1e-9 < distance.max() < {"fp16": 2e-3, "bf16": 5e-2}[precision], "near, and no longer the same"


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A folder of rendered faces for calibration."""
    folder = tmp_path_factory.mktemp("people")
    for person in range(4):
        (folder / str(person)).mkdir()
        for image in range(3):
            cv2.imwrite(str(folder / str(person) / f"{image}.png"), render(5, person, image, 48, 1.0)[..., ::-1])
    return folder


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_int8_learns_from_faces(name, checkpoint, truth, faces, people, tmp_path):
    loose = [f"parity.tolerance.int8.{key}=1" for key in ("accuracy", "fnmr", "max", "mean")]
    words = ("precision=int8", f"calibration.faces={people}", "calibration.images=9", f"parity.faces={people}")
    file = exported(tmp_path, f"checkpoint={checkpoint}", f"format={name}", *words, *loose)
    cosine = (load_embedder(file, Runtime(threads=1)).embed(faces) * unit(truth[0])).sum(1)
    assert 0.8 < cosine.min() < 1 - 1e-6, "near, and no longer the same"
    others = {"model.bin"} if name == "openvino" else set()
    assert {one.name for one in file.parent.iterdir()} == {file.name, "export.json", "export.md", *others}


# Weights


def test_weights_and_convention_come_back(checkpoint, truth, faces, tmp_path):
    file = exported(tmp_path, f"checkpoint={checkpoint}")
    assert file == tmp_path / "model.safetensors"
    before = out_of_checkpoint("x", checkpoint, meta_of(checkpoint), None).backbone.eval()
    with safe_open(file, "pt") as opened:
        assert set(opened.keys()) == set(before.state_dict())  # the published names, nothing in front
        assert json.loads(opened.metadata()["input"]) == {"color": "bgr", "mean": 0.0, "std": 255.0}
    node = compose("config", *NARROW, "data.size=48", f"backbone.weights={file}").backbone
    again = build_backbone(node, load=True).eval()
    assert again.input_convention == Input("bgr", 0.0, 255.0)
    images = normalise(torch.from_numpy(faces))
    assert torch.equal(again(images), before(images))
    about = json.loads((tmp_path / "export.json").read_text())
    assert about["step"] == 2
    assert about["input"] == {"color": "bgr", "mean": 0.0, "std": 255.0}
    assert about["backbone"]["widths"] == [16, 16, 16, 32]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.json", "export.md", "model.safetensors"]
    np.testing.assert_allclose(load_embedder(file).embed(faces), unit(truth[0]), atol=1e-6)
    np.testing.assert_allclose(load_embedder(checkpoint).features(faces), truth[0], rtol=1e-4, atol=1e-5)


def test_published_weights_are_imported(tmp_path, faces):
    node = compose("config", *NARROW, "data.size=48").backbone
    network = build_backbone(node, load=False).eval()
    torch.save(network.state_dict(), tmp_path / "published.pt")
    named = (
        f"checkpoint={tmp_path}/published.pt",
        "backbone=tiny",
        *NARROW,
        "data.size=48",
        "backbone.input={color: bgr}",
    )
    file = exported(tmp_path / "weights", *named)
    assert load_weights(build_backbone(node, load=False), file) == Input("bgr", 127.5, 127.5)
    imported = exported(tmp_path / "checkpoint", *named, "format=checkpoint")
    trained = out_of_checkpoint("x", imported, meta_of(imported), None)
    assert trained.backbone.input_convention == Input("bgr", 127.5, 127.5)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in trained.backbone.state_dict().items())
    with torch.inference_mode():
        expected = unit(network(normalise(torch.from_numpy(faces[..., ::-1].copy()))).numpy())
    np.testing.assert_allclose(load_embedder(imported).embed(faces), expected, atol=1e-6)
    bare = Runtime(backbone=node, convention=Input("bgr", 127.5, 127.5), size=48)
    np.testing.assert_allclose(load_embedder(tmp_path / "published.pt", bare).embed(faces), expected, atol=1e-6)
    # The authors' own file is the original that an import can be held against.
    whole = exported(tmp_path / "onnx", f"checkpoint={imported}", "format=onnx", "preprocessing=false", "unit=false")
    held = exported(tmp_path / "held", *named, "format=checkpoint", f"parity.against={whole}")
    assert json.loads(held.with_name("export.json").read_text())["parity"]["max"] < 1e-7
    with pytest.raises(ValueError, match="the exported model is not the same model: largest cosine distance"):
        exported(tmp_path / "no", *named[:-1], "format=checkpoint", f"parity.against={whole}")  # other colours
    with pytest.raises(ValueError, match="imports published weights, and this is a checkpoint of facelab already"):
        exported(tmp_path / "no", f"checkpoint={imported}", "format=checkpoint")
    assert not (tmp_path / "no").exists()


def test_a_head_goes_into_models_and_not_into_weights(tmp_path, faces):
    checkpoint = write_checkpoint(tmp_path / "best.ckpt", "head=groupface", "head.groups=2")
    with pytest.raises(ValueError, match="has a GroupFace on top of its backbone, and format=safetensors holds"):
        exported(tmp_path / "out", f"checkpoint={checkpoint}")
    assert not (tmp_path / "out").exists()
    trained = out_of_checkpoint("x", checkpoint, meta_of(checkpoint), None)
    network = nn.Sequential(trained.backbone, trained.head).eval()
    with torch.inference_mode():
        expected = unit(embed(network, torch.from_numpy(faces), False).numpy())
    file = exported(tmp_path / "out", f"checkpoint={checkpoint}", "format=openvino")
    np.testing.assert_allclose(load_embedder(file).embed(faces), expected, atol=2e-6)


# Proof


def damaged(model, layer):
    """What conversion did to one framework's model: a norm's running mean was not copied."""
    module = model.get_submodule(layer)
    module.running_mean.add_(0.5 * module.running_var.sqrt())
    return model


FOLDED = {"onnx": True, "openvino": True, "torchscript": False, "exported_program": True}


@pytest.mark.parametrize(("name", "fold"), FOLDED.items())
def test_a_batch_norm_that_was_not_copied_is_caught_and_named(name, fold, checkpoint, tmp_path, monkeypatch, capsys):
    layer = "backbone.layer3.0.bn2"
    monkeypatch.setattr("facelab.export.export._model", once(damaged, layer))
    where = tmp_path / "out"
    words = f"largest cosine distance .* they first part in the layer {layer.replace('.', '[.]')}"
    with pytest.raises(ValueError, match=words) as caught:
        exported(where, f"checkpoint={checkpoint}", f"format={name}", f"fold={str(fold).lower()}")
    assert ("folded into backbone.layer3.0.conv1" in str(caught.value)) == fold
    assert "Nothing was written" in str(caught.value)
    assert layer in capsys.readouterr().out  # the list of all layers
    assert not where.exists()
    assert [file for file in tmp_path.rglob("*") if file.name.startswith(UNFINISHED)] == []


def once(harm, layer):
    """The first model that is made is harmed, the one that is to show where is not."""
    from facelab.export.export import _model as make

    calls = []

    def model(original, choices):
        calls.append(1)
        made = make(original, choices)
        return harm(made, layer) if len(calls) == 1 else made

    return model


ALONE = {
    "onnx": """
import json, sys, numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["facelab"])
rows = session.run(None, {"images": np.load(sys.argv[2])})[0]
""",
    "openvino": """
import json, sys, numpy as np, openvino
model = openvino.Core().read_model(sys.argv[1])
about = json.loads(model.get_rt_info(["facelab", "metadata"]).astype(str))
rows = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(np.load(sys.argv[2]))[0]
""",
}


@pytest.mark.parametrize("name", ALONE)
def test_it_runs_in_a_process_with_its_runtime_alone(name, made, truth, faces, tmp_path):
    np.save(tmp_path / "faces.npy", faces)
    code = ALONE[name] + (
        "known = [name for name in ('facelab', 'torch', 'pytorch_lightning') if name in sys.modules]\n"
        "print(json.dumps([about['size'], known, rows.tolist()]))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, made[name], tmp_path / "faces.npy"],
        capture_output=True,
        text=True,
        check=True,
    )
    size, known, rows = json.loads(done.stdout.splitlines()[-1])
    assert (size, known) == (48, [])
    np.testing.assert_allclose(rows, unit(truth[0]), atol=2e-6)


# What is refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["checkpoint=nowhere.ckpt"], "checkpoint=nowhere.ckpt: no such file"),
        (["checkpoint={checkpoint}", "backbone=r50"], "says itself which network it is of: leave backbone"),
        (["checkpoint={checkpoint}", "ema=true"], "was trained without trainer.ema"),
        (["checkpoint={here}"], "is no checkpoint of facelab .* add backbone="),
        (
            ["checkpoint={checkpoint}", "format=onnx", "precision=bf16"],
            "format=onnx has fp32, fp16, int8 .*openvino does",
        ),
        (["checkpoint={checkpoint}", "precision=half"], "precision is 'half': give one of fp32, fp16, bf16, int8"),
        (["checkpoint={checkpoint}", "mirror=true"], "mirror=True: format=safetensors holds weights alone"),
        (["checkpoint={checkpoint}", "format=onnx", "batch=0"], "batch is 0: give at least 1"),
        (["checkpoint={checkpoint}", "format=onnx", "precision=int8"], "give calibration.faces=FOLDER"),
        (
            ["checkpoint={checkpoint}", "format=openvino", "precision=int8", "calibration.faces=nowhere"],
            "calibration.faces=nowhere: no such folder",
        ),
        (["checkpoint={checkpoint}", "parity.faces={empty}"], "parity.faces=.*|has no images"),
        (["checkpoint={checkpoint}", "parity.identities=1"], "parity.identities is 1"),
        (["checkpoint={checkpoint}", "parity.fmr=0"], "parity.fmr is 0"),
    ],
)
def test_wrong_words_are_refused(checkpoint, tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    given = [word.format(checkpoint=checkpoint, here=__file__, empty=tmp_path / "empty") for word in words]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        exported(tmp_path / "out", *given)
    assert not (tmp_path / "out").exists()


def test_what_lies_there_is_not_written_over(checkpoint, tmp_path):
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(FileExistsError, match="is there already: remove it, or give another out=FOLDER"):
        exported(tmp_path, f"checkpoint={checkpoint}")
    assert (tmp_path / "model.safetensors").read_text() == "mine"


class Strange(nn.Module):
    """An operator that neither ONNX nor OpenVINO has."""

    def forward(self, x):
        return torch.linalg.qr(x[:, :4, :4])[0].sum((1, 2))[:, None] + x.mean((1, 2))[:, None]


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_an_operator_that_a_format_lacks_is_named_with_its_layer(name, checkpoint, tmp_path, monkeypatch):
    def strange(model, _):
        inner = model.backbone.bn1

        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner, self.odd = inner, Strange()

            def forward(self, x):
                return self.inner(x) + self.odd(x[:, 0])[..., None, None]

        model.backbone.bn1 = Odd()
        return model

    monkeypatch.setattr("facelab.export.export._model", once(strange, None))
    with pytest.raises(ValueError, match=rf"format={name}: .*linalg_qr.* which the layer backbone[.]bn1[.]odd needs"):
        exported(tmp_path / "out", f"checkpoint={checkpoint}", f"format={name}", "fold=false")
    assert not (tmp_path / "out").exists()


def test_a_runtime_that_is_missing_says_how_to_install_it(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        ValueError, match=r"format=openvino needs openvino, which is not installed: pip install 'facelab"
    ):
        exported(tmp_path / "out", f"checkpoint={checkpoint}", "format=openvino")
    with pytest.raises(ValueError, match="nowhere needs no_such_module"):
        require(("no_such_module",), "nowhere")


@pytest.mark.parametrize("name", MODELS)
def test_a_damaged_file_is_told(name, made, tmp_path):
    content = made[name].read_bytes()
    broken = tmp_path / made[name].name
    broken.write_bytes(content[: len(content) // 3])
    if name == "openvino":
        with pytest.raises(ValueError, match=r"its weights, model.bin, are not beside it: copy both files"):
            load_embedder(broken)
        broken.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot be opened|is no model that is known here"):
        load_embedder(broken)


def test_other_images_are_refused(made, faces):
    opened = load_embedder(made["onnx"], Runtime(threads=1))
    for wrong in (faces[:, :40], faces.astype(np.float32), faces[0]):
        with pytest.raises(ValueError, match=r"takes uint8 images of shape \('B', 48, 48, 3\), RGB"):
            opened.embed(wrong)
    with pytest.raises(FileNotFoundError, match="no such file; give an exported model"):
        load_embedder("nowhere.onnx")


# The formats themselves


def test_a_formats_keys_are_its_constructors():
    import inspect

    for path in (configuration_folder() / "format").glob("*.yaml"):
        node = OmegaConf.load(path)
        kind = get_object(node.pop("_target_"))
        parameters = inspect.signature(kind.__init__).parameters.values()
        named = {one.name: one.default for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD}
        assert set(named) - {"self"} == set(node), path.name
        assert all(default is inspect.Parameter.empty for default in named.values())
        assert kind(**node).name == path.stem, "a format is named after its module"


def test_every_format_is_found_by_its_suffix():
    found = {one.name: one for one in formats()}
    assert set(found) == {*MODELS, "safetensors", "checkpoint"}
    assert isinstance(copy.copy(found["onnx"]), Format)
    assert to_onnx._layer is not to_openvino._layer
    assert replace(Runtime(), threads=2).threads == 2
