"""Every kind of backbone × every format, small: written, opened again, the same; and which norms are folded.

`benchmarks/export.py --walk` does it with all of conf/backbone as they are.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from facelab.backbone.weights import Input, set_input
from facelab.door import configuration_folder
from facelab.export.choices import Choices
from facelab.export.export import Original, prepared
from facelab.export.folding import Folded, fold
from facelab.export.loading import Runtime, formats, load_embedder
from facelab.export.networks import node_of
from facelab.training.module import embed
from facelab.training.trained import Trained

# One option for each constructor of conf/backbone, made small; what other options change are numbers of layers.
RESIDUAL = {"layers": [1, 2, 1, 1], "widths": [16, 16, 16, 32], "embedding_size": 16}
SMALL = {
    "r18": RESIDUAL,
    "ir_se_50": {**RESIDUAL, "attention": "cbam"},
    "mbf": {"blocks": [1, 1, 1, 1], "scale": 1, "embedding_size": 16},
    "mobilefacenet": {"embedding_size": 16},
    "vit_t": {"patch": 8, "width": 32, "depth": 2, "heads": 2, "embedding_size": 16},
    "timm": {"model": "resnet10t", "embedding_size": 16},
}
SIZE = 48
FORM = Choices("fp32", preprocessing=True, mirror=False, unit=True, batch=None, fold=True)


def test_every_constructor_is_walked_over():
    texts = {path.stem: path.read_text() for path in (configuration_folder() / "backbone").glob("*.yaml")}
    kinds = {name: text.split("_target_:")[1].split()[0] for name, text in texts.items() if "_target_:" in text}
    assert {kinds[name] for name in SMALL} == set(kinds.values())


def built(name):
    """A network whose norms have seen some images, as after training, and weights used to other colours."""
    torch.manual_seed(0)
    node = node_of(name, SIZE)
    network = instantiate({**node, **SMALL[name]})
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
    network.train()
    with torch.no_grad():
        network(torch.randn(8, 3, SIZE, SIZE))
    set_input(network, Input("bgr", 127.5, 128.0))
    return network.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_it_is_the_same_in_every_format(name, tmp_path):
    network = built(name)
    faces = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = nn.functional.normalize(embed(network, torch.from_numpy(faces), False)).numpy()
    original = Original(Path(__file__), Trained(network, nn.Identity(), name), {}, None, SIZE)
    for kind in formats():
        if kind.embeds:
            file = tmp_path / f"model{kind.suffix}"
            writing, _ = prepared(original, FORM, kind, None)
            kind.write(writing, file)
            found = load_embedder(file, Runtime(threads=1)).embed(faces)
            assert np.square(found - expected).sum(1).max() / 2 < 1e-9, kind.name


class Shared(nn.Module):
    """Norms that must not be folded: behind a layer that is used twice, or whose result is; one that can be."""

    def __init__(self):
        super().__init__()
        self.twice, self.result, self.good = (nn.Conv2d(4, 4, 3, bias=False) for _ in range(3))
        self.a, self.b, self.c, self.before = (nn.BatchNorm2d(4) for _ in range(4))
        self.last = nn.Linear(4, 4)
        self.end = nn.BatchNorm1d(4)

    def forward(self, x):
        x = self.a(self.twice(self.before(x))) + self.twice(x)
        y = self.result(x)
        y = self.c(self.good(self.b(y) + y))
        return self.end(self.last(y.mean((2, 3))))


def test_only_norms_that_can_be_are_folded_and_in_float64():
    torch.manual_seed(0)
    network = Shared()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.1, 3)
            nn.init.uniform_(module.weight, -2, 2)
            nn.init.normal_(module.bias)
    network.eval().double()
    images = torch.randn(2, 4, 12, 12, dtype=torch.float64)
    before = network(images)
    assert fold(network, images) == {"good": "c", "last": "end"}
    assert isinstance(network.c, Folded)
    assert isinstance(network.b, nn.BatchNorm2d)
    torch.testing.assert_close(network(images), before, atol=1e-12, rtol=1e-12)
