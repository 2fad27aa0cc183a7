"""The C++ example of the docs, compiled and run: the same score as Python, on one thread."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from facelab.backbone.iresnet import IResNet
from facelab.backbone.weights import HOUSE
from facelab.export.base import Writing
from facelab.export.loading import load_embedder
from facelab.export.model import EmbeddingModel
from facelab.export.to_openvino import OpenVino

SOURCE = Path(__file__).resolve().parents[2] / "docs" / "cpp" / "embed.cpp"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    openvino = pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'facelab[export]'")
    compiler = shutil.which("g++") or shutil.which("clang++")
    home = Path(openvino.__file__).parent
    libraries = sorted((home / "libs").glob("libopenvino.so.*"))
    if compiler is None or not libraries or not (home / "include" / "openvino" / "openvino.hpp").is_file():
        pytest.skip("needs a C++ compiler, and OpenVINO's headers, which some of its packages lack")
    program = tmp_path_factory.mktemp("cpp") / "embed"
    command = [compiler, "-std=c++17", "-O1", SOURCE, "-o", program, f"-I{home / 'include'}", libraries[0]]
    subprocess.run([*command, f"-Wl,-rpath,{home / 'libs'}"], check=True, timeout=240)
    return program


@pytest.mark.slow
def test_it_gives_the_score_of_python(program, tmp_path):
    torch.manual_seed(0)
    network = IResNet([1, 1, 1, 1], [16, 16, 16, 32], 2, 16, 0.0, "none", 48)
    model = EmbeddingModel(network, nn.Identity(), HOUSE, preprocessing=True, mirror=True, unit=True).eval()
    example = torch.zeros(1, 48, 48, 3, dtype=torch.uint8)
    metadata = {"size": 48, "precision": "fp32", "mirror": True}
    OpenVino("mixed").write(Writing(model, example, 1, "fp32", metadata), tmp_path / "model.xml")
    faces = np.random.default_rng(2).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
    one, other = load_embedder(tmp_path / "model.xml").embed(faces).astype(np.float64)
    files = [tmp_path / "a.rgb", tmp_path / "b.rgb"]
    for image, file in zip(faces, files, strict=True):
        image.tofile(file)
    done = subprocess.run([program, tmp_path / "model.xml", *files], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(one @ other, abs=1e-6)
    files[1].write_bytes(b"short")
    refused = subprocess.run([program, tmp_path / "model.xml", *files], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "b.rgb: has 5 bytes, and the model takes 6912" in refused.stderr
