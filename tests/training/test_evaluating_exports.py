"""`facelab.evaluate checkpoint=model.onnx`, and of embeddings: the numbers of the network that they are from."""

import cv2
import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from facelab.benchmark.scores import load_scores
from facelab.data.synthetic import render
from facelab.door import configuration_folder
from facelab.export.export import export
from facelab.training.evaluation import evaluate
from facelab.training.network import build_backbone

NARROW = ("backbone=tiny", "backbone.widths=[16,16,16,32]", "backbone.embedding_size=16", "data.size=48")


def compose(door: str, *words: str):
    OmegaConf.register_new_resolver("facelab.job", lambda: "small", replace=True)
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        return hydra.compose(door, list(words))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six rendered people with a pairs.txt of two folds, weights, and their export."""
    root = tmp_path_factory.mktemp("faces")
    for person in range(6):
        (root / f"P{person}").mkdir()
        for number in range(1, 4):
            image = render(9, person, number, 48, 1.0)
            cv2.imwrite(str(root / f"P{person}" / f"P{person}_{number:04d}.png"), image[..., ::-1])
    lines = ["2\t4"]
    for fold in (0, 3):
        lines += [f"P{fold + i % 3}\t{1 + i // 3}\t{2 + i // 3}" for i in range(4)]
        lines += [f"P{fold + i % 3}\t{1 + i // 3}\tP{fold + (i + 1) % 3}\t{2 + i // 3}" for i in range(4)]
    (root / "pairs.txt").write_text("\n".join(lines) + "\n")
    torch.manual_seed(1)
    torch.save(build_backbone(compose("config", *NARROW).backbone, load=False).state_dict(), root / "weights.pt")
    few = ("parity.identities=6", "parity.images=2", "progress=false", "unit=false", "format=openvino")
    export(compose("export", f"checkpoint={root / 'weights.pt'}", *NARROW, *few), root / "out")
    return root


def evaluated(where, folder, *words):
    words = (f"out={where}", f"benchmark.path={folder}", "benchmark.folds=2", "precision=fp32", *words)
    config = compose("evaluate", "logger=csv", "progress=false", *words)
    return evaluate(config, {word.split("=")[0] for word in words}, where)


def scores(where):
    (file,) = (where / "scores").glob("*.npz")
    return load_scores(file).scores


def test_an_exported_model_and_embeddings_give_the_networks_scores(folder, tmp_path, capsys):
    found = evaluated(tmp_path / "a", folder, f"checkpoint={folder / 'weights.pt'}", *NARROW)
    again = evaluated(tmp_path / "b", folder, f"checkpoint={folder / 'out' / 'model.xml'}")  # knows its size itself
    np.testing.assert_allclose(scores(tmp_path / "b"), scores(tmp_path / "a"), atol=1e-5)
    assert "exported, openvino, fp32, 48×48, D=16" in capsys.readouterr().out
    assert [name for name in found if name not in again] == ["parameters"]
    rows = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    np.savez(tmp_path / "rows.npz", embeddings=3 * rows)
    by = [
        evaluated(tmp_path / kind, folder, f"checkpoint={tmp_path}/rows.{kind}", "data.size=48")
        for kind in ("npy", "npz")
    ]
    assert by[0]["images"] == 16
    np.testing.assert_allclose(scores(tmp_path / "npy"), scores(tmp_path / "npz"), atol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["checkpoint={folder}/out/model.xml", "data.size=64"], "data.size is 64, but checkpoint=.* takes 48 pixels"),
        (["checkpoint={folder}/out/model.xml", *NARROW], "is no bare weights: leave backbone=… out"),
        (["checkpoint={folder}/out/model.xml", "precision=half"], "precision is 'half': give one of"),
        (["checkpoint={here}/few.npy"], "has 3 embeddings, but the benchmark has 16 images: give one row for each"),
        (["checkpoint={here}/flat.npy"], r"holds float64 of shape \(3,\): give embeddings \(M,D\)"),
        (["checkpoint={here}/broken.npy"], "cannot be read .*numpy.save"),
    ],
)
def test_what_contradicts_it_is_refused(folder, tmp_path, words, message):
    np.save(tmp_path / "few.npy", np.ones((3, 4)))
    np.save(tmp_path / "flat.npy", np.ones(3))
    (tmp_path / "broken.npy").write_bytes(b"nothing of the kind")
    given = [word.format(folder=folder, here=tmp_path) for word in words]
    with pytest.raises(ValueError, match=message):
        evaluated(tmp_path / "run", folder, *given)
