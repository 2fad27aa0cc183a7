"""Every yaml of conf/loss builds, and its keys are exactly the constructor's."""

import inspect
import re
from pathlib import Path

import hydra
import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf

from facelab.training.objective import COMMON, build_loss

CONF = sorted((Path(__file__).parents[2] / "conf" / "loss").glob("*.yaml"))
OWN = [path for path in CONF if "defaults" not in OmegaConf.load(path)]  # not made of others
GIVEN = {"embedding_size", "num_classes"}  # by the training room


@pytest.mark.parametrize("path", CONF, ids=lambda path: path.stem)
def test_every_loss_builds_and_descends(path):
    with hydra.initialize_config_dir(str(path.parents[1]), version_base="1.3"):
        conf = hydra.compose("config", [f"loss={path.stem}"]).loss
    parameters = inspect.signature(get_class(conf._target_)).parameters
    assert set(conf) - {"_target_", *COMMON} == set(parameters) - GIVEN
    assert all(parameter.default is inspect.Parameter.empty for parameter in parameters.values())
    torch.manual_seed(0)
    loss = build_loss(conf, embedding_size=8, num_classes=5)
    embeddings, labels = torch.randn(10, 8, requires_grad=True), torch.arange(10) % 5
    values = []
    for step in range(3):
        value, logs, _ = loss(embeddings, labels, step)
        (gradient,) = torch.autograd.grad(value, embeddings)
        embeddings = (embeddings - 0.1 * gradient).detach().requires_grad_()
        values.append(value.item())
        assert not any(entry.requires_grad for entry in logs.values())
    assert values[-1] < values[0]


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_every_loss_tells_what_it_computes(path):
    """Formula, source, every option, angles in degrees too; the usual range stands with the default, in the yaml."""
    conf = OmegaConf.load(path)
    about = get_class(conf._target_).__doc__
    assert any(sign in about.split("Source:")[0] for sign in ("cos", "log", "max(")), "no formula"
    source = about.split("Source:")[1].split("Args:")[0]
    assert "arXiv:" in source or "CVPR" in source
    assert "equation" in source or path.stem in ("softmax", "norm_softmax")
    for option in set(conf) - {"_target_"}:
        assert re.search(rf"^ +(\w+, )*{option}(, \w+)*: ", about.split("Args:")[1], re.MULTILINE), option
    assert ("radian" in about) == ("°" in about or path.stem == "contrastive") or path.stem == "contrastive"
    for line in path.read_text().splitlines():
        name, _, comment = line.partition("#")
        if re.match(r"\w+: +[0-9.]+ ", name):
            assert re.search(r"[0-9]…[0-9]|at least [0-9]|the paper's [0-9]|the authors' [0-9]|FaceX", comment), line


def test_there_are_losses():
    assert {"softmax", "norm_softmax", "arcface", "cosface"} <= {path.stem for path in CONF}
