"""Every yaml of conf/: it composes, what it names is built, and its keys are the constructor's, each explained."""

import inspect
import re
from pathlib import Path

import cv2
import hydra
import numpy as np
import pytest
import torch
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from facelab import multirun  # noqa: F401, what it resolves
from facelab.distill.base import Shapes
from facelab.prepare.detect import YuNet
from facelab.training import network, objective, teaching
from facelab.training.fit import COMMON

CONF = Path(__file__).resolve().parents[1] / "conf"
FILES = sorted(path.relative_to(CONF) for path in CONF.glob("*/**/*.yaml"))
TASKS = [path.stem for path in FILES if path.parts[0] == "task"]  # of facelab.prepare, with another primary file
# Compositions of many groups, and another program's own: they compose, and hold nothing of their own to build.
NOT_BUILT = ("experiment", "sweeps", "hydra")
# What the code hands over, beside the keys.
HANDED = {
    "head": {"embedding_size"},
    "loss": {"embedding_size", "num_classes"},
    "distill": {"student", "teacher"},
    "data/sampler": {"labels", "batch_size", "seed"},
    "logger": {"run", "config", "group", "job", "job_type", "tags"},
}
SIZE = 112
NETWORK = Shapes("IResNet", 8, features=((16, 8, 8), (32, 4, 4)), attention=((16, 8, 8), (32, 4, 4)), scale=64.0)


def option(path):
    return str(path.parent), path.stem


@pytest.fixture(scope="module")
def placeholders(tmp_path_factory):
    """Values for the keys that have none, because they are files of the user: key → value."""
    root = tmp_path_factory.mktemp("faces")
    image = cv2.imencode(".png", np.zeros((SIZE, SIZE, 3), np.uint8))[1].tobytes()
    for name in ("a", "b"):
        (root / "folder" / name).mkdir(parents=True)
        (root / "folder" / name / "1.png").write_bytes(image)
        for part in ("train", "val"):
            (root / "things" / part / name).mkdir(parents=True)
            (root / "things" / part / name / "1.png").write_bytes(image)
    write_records(root / "recordio", image)
    folder, records, things = ({"data.root": root / name} for name in ("folder", "recordio", "things"))
    named = {
        ("data", path.stem): records for path in (CONF / "data").glob("*.yaml") if "open_faces" in path.read_text()
    }
    teacher = {"data.root": records["data.root"], "benchmark.path": root / "a.bin"}
    student = {**teacher, "teacher": root / "best.ckpt"}
    experiments = {"celeba_lfw": records, "askd_teacher": teacher, "askd_plain": teacher, "askd": student}
    return {
        **named,
        ("data", "folder"): folder,
        ("data", "recordio"): records,
        ("data", "imagefolder_classification"): things,
        ("data", "union"): {"data.roots": [root / "folder", root / "recordio"]},
        **{("experiment", name): given for name, given in experiments.items()},
        ("sweeps", "askd"): student,
        ("sweeps", "distillers"): {"teacher": root / "best.ckpt"},
    }


def write_records(folder, image):
    """Two images of two identities in InsightFace's format."""
    folder.mkdir()
    records = []
    for label in (0.0, 1.0):
        payload = np.array([0], "<u4").tobytes() + np.array([label], "<f4").tobytes() + bytes(16) + image
        frame = np.array([0xCED7230A, len(payload)], "<u4").tobytes() + payload
        records.append(frame + bytes(-len(frame) % 4))
    (folder / "train.rec").write_bytes(b"".join(records))
    (folder / "train.idx").write_text(f"0\t0\n1\t{len(records[0])}\n")
    (folder / "property").write_text(f"2,{SIZE},{SIZE}")


@pytest.fixture(scope="module")
def composer():
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.fixture(scope="module", params=[path for path in FILES if path.parts[0] != "task"], ids=str)
def composed(request, placeholders, composer):
    """(group, name, the whole configuration with that option)."""
    group, name = option(request.param)
    given = placeholders.get((group, name), {})
    overrides = [f"{group}={name}", *(f"{key}={written(value)}" for key, value in given.items())]
    return group, name, hydra.compose("config", overrides=overrides)


def written(value):
    """As it stands on the command line, in quotes."""
    return f"[{','.join(map(written, value))}]" if isinstance(value, list) else f"'{value}'"


def node_of(group, config):
    """What the option says by itself: without nested groups' keys being keys of the file, and without common ones."""
    node = OmegaConf.select(config, group.replace("/", "."))
    common = {"data": COMMON, "backbone": network.COMMON, "loss": objective.COMMON, "distill": teaching.COMMON}.get(
        group
    )
    if common is not None:
        node = OmegaConf.create({key: value for key, value in node.items() if key not in common})
    return node


def test_there_are_files():
    assert {option(path)[0] for path in FILES} >= {
        "backbone",
        "benchmark",
        "data",
        "data/augment",
        "data/degrade",
        "data/loader",
        "data/sampler",
        "distill",
        "head",
        "logger",
        "loss",
        "optimizer",
        "optimizer/schedule",
        "trainer",
    }


def test_it_composes_and_no_value_is_missing(composed):
    group, name, config = composed
    config = OmegaConf.masked_copy(config, [key for key in config if key != "job"])  # named while Hydra runs
    missing = OmegaConf.missing_keys(config)
    assert missing == set(), f"{group}/{name}: give the test a placeholder for these keys"
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def test_its_keys_are_the_constructors(composed):
    group, name, config = composed
    node = node_of(group, config)
    if group.split("/")[0] in NOT_BUILT or node is None or "_target_" not in node:
        assert group.split("/")[0] in NOT_BUILT or not node, f"{group}/{name} has keys and no _target_"
        return
    parameters = inspect.signature(get_object(node._target_)).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        assert set(node) <= {"_target_"}, "who takes anything needs no keys"
        return
    keys = set(node) - {"_target_", "_partial_"}
    assert keys == {parameter.name for parameter in parameters} - HANDED.get(group, set())
    defaults = [p.name for p in parameters if p.name in keys and p.default is not inspect.Parameter.empty]
    assert defaults == [], "a default stands in one place, the yaml"


def test_it_is_built(composed):
    group, name, config = composed
    node = node_of(group, config)
    if (group, name) == ("data/loader", "dali"):
        pytest.importorskip("nvidia.dali", reason="needs DALI: pip install 'facelab[dali]' (Linux)")
    if group.split("/")[0] in NOT_BUILT or not node:
        return
    target = get_object(node._target_)
    if group == "logger":
        made = instantiate(node, _partial_=True)
        assert made.func is target  # a logger itself would start a run of its own
        return
    given = {"_partial_": True} if group in ("data/sampler", "distill") else {}  # Hydra would copy what is handed over
    given |= {"embedding_size": 8} if group == "head" else {}
    with torch.device("meta" if group == "backbone" else "cpu"):
        made = objective.build_loss(node, 8, 5) if group == "loss" else instantiate(node, **given)
    if group == "distill":
        made = made(student=NETWORK, teacher=NETWORK)
    if group == "data/sampler":
        made = made(labels=np.repeat(np.arange(9), 8), batch_size=16, seed=0)
        assert made.indices(0).shape == (16,)
    if inspect.isclass(target):
        assert isinstance(made, target)
    if group == "data":
        assert len(made) == len(made.labels) > 0
        assert made.load(0).shape == (made.size, made.size, 3)
    if group == "head":
        assert made.eval()(torch.ones(3, 8)).shape == (3, 8)
    if group == "backbone":
        assert made(torch.empty(2, 3, SIZE, SIZE, device="meta")).shape == (2, made.embedding_size)


@pytest.mark.parametrize("group", ["backbone", "benchmark", "logger"])
def test_an_evaluation_takes_every_option_too(group, composer):
    for path in sorted((CONF / group).glob("*.yaml")):
        config = hydra.compose("evaluate", [f"{group}={path.stem}", "checkpoint=x", "job=x"])
        OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        assert config[group]._target_


def test_an_evaluation_begins_without_a_backbone_and_with_the_values_of_a_training(composer):
    config, training = hydra.compose("evaluate", ["checkpoint=x"]), hydra.compose("config")
    assert dict(config.backbone) == {"input": None}
    assert config.benchmark == training.benchmark
    assert config.logger == training.logger
    for key in ("accelerator", "precision", "progress", "batch_size"):
        assert config[key] == training.trainer[key]
    assert dict(config.loader) == {key: training.data.loader[key] for key in config.loader}


@pytest.mark.parametrize("task", TASKS)
def test_a_tasks_keys_are_its_functions(task, composer):
    config = OmegaConf.to_container(hydra.compose("prepare", [f"task={task}"]))
    parameters = inspect.signature(get_object(config["_target_"])).parameters
    assert set(config) - {"_target_"} == set(parameters)
    assert all(parameter.default is inspect.Parameter.empty for parameter in parameters.values())


def test_a_detectors_keys_are_its_constructors(composer):
    keys = hydra.compose("prepare").detector.keys()
    assert set(keys) == set(inspect.signature(YuNet).parameters)


def test_augmentation_of_every_data_set(composer):
    assert instantiate(hydra.compose("config").data.augment).draws > 0
    images = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    for path in (CONF / "data" / "augment").glob("*.yaml"):
        made = instantiate(hydra.compose("config", overrides=[f"data/augment={path.stem}"]).data.augment)
        result = made(images, torch.rand(2, made.draws))
        assert result.shape == images.shape
        assert result.dtype == torch.uint8
        assert path.stem != "none" or torch.equal(result, images)


def test_degrading_of_every_data_set(composer):
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    for path in (CONF / "data" / "degrade").glob("*.yaml"):
        made = instantiate(hydra.compose("config", overrides=[f"data/degrade={path.stem}"]).data.degrade)
        made.check(64)
        result = made(images, torch.zeros(2, made.draws))
        assert result.shape == images.shape
        assert result.dtype == torch.uint8
        assert made.validation is False
        assert torch.equal(result, images) == (path.stem == "none")


KEY = re.compile(r"^\s*(?!_target_|_partial_)[A-Za-z_]\w*:\s*[^#\s]")


def unexplained(text):
    """The lines that give a key a value and do not say what it is."""
    lines = text.split("\nhydra:", 1)[0].splitlines()
    return [line for line in lines if KEY.match(line) and not re.search(r"\s#\s*\S", line)]


@pytest.mark.parametrize(
    "path",
    [*(Path(f"{door}.yaml") for door in ("config", "compare", "evaluate", "export", "prepare", "quality")), *FILES],
    ids=str,
)
def test_every_value_is_explained(path):
    text = (CONF / path).read_text()
    assert unexplained(text) == []
    assert text.startswith("#"), "the first line says what the file is"


def test_an_unexplained_value_is_found():
    text = "# A file\n_target_: a.b\nlr: 0.1\nname: x # fine\nnested:\n  inner: '#1'\ndefaults:\n  - a: b\n"
    text += "hydra:\n  run: x"
    assert unexplained(text) == ["lr: 0.1", "  inner: '#1'"]
