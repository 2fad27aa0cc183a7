"""Templates, videos and searches go through the evaluation: embedded from files, recorded, drawn; and the doctor."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hydra
import layouts
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from killing import compose
from omegaconf import OmegaConf
from test_evaluation import evaluated

from facelab.benchmark.scores import load_counted, load_scores
from facelab.door import configuration_folder
from facelab.training import fit
from facelab.training.module import embed

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("backbone.widths=[16,16,16,16]", "backbone.embedding_size=8", "data.size=32")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of nobody's, and the network."""
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        node = hydra.compose("evaluate", ["backbone=tiny", "checkpoint=x", *SMALL]).backbone
    torch.manual_seed(0)
    network = instantiate({key: value for key, value in node.items() if key not in ("weights", "input", "freeze")})
    file = tmp_path_factory.mktemp("weights") / "some.pt"
    torch.save(network.state_dict(), file)
    return file, network.eval()


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    return {
        "ijbc": layouts.ijb(root / "IJBC", subjects=4), "ytf": layouts.ytf(root / "YouTubeFaces"),
        "tinyface": layouts.tinyface(root / "Testing_Set"), "megaface": layouts.megaface(root / "megaface"),
    }  # fmt: skip


def run(weights, where, *typed):
    small = ("backbone=tiny", *SMALL, "precision=fp32", "batch_size=7", f"checkpoint={weights[0]}")
    return evaluated(where, *small, *typed)


OPTIONS = {
    "ijbc": ("benchmark.far=[0.01,0.1]", "benchmark.bootstrap=50"),
    "ytf": ("benchmark.folds=3",),
    "tinyface": ("benchmark.bootstrap=50", "benchmark.resolutions=[1x,8]"),
    "megaface": ("benchmark.sizes=[5,12]", "benchmark.bootstrap=0", "benchmark.mirror=false"),
}
KEYS = {
    "ijbc": ("ijbc/tar@1e-2", "ijbc/tar@1e-1_low", "ijbc/rank5", "ijbc/G2/tpir@fpir=0.1"),
    "ytf": ("ytf/accuracy", "ytf/tar@far=1e-3"),
    "tinyface": ("tinyface/rank20", "tinyface/map", "tinyface_8px/rank1_high"),
    "megaface": ("megaface/rank1", "megaface/rank10@distractors=5", "megaface/tar@1e-6"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_set_is_embedded_measured_and_recorded(weights, sets, tmp_path, name):
    found = run(weights, tmp_path / "record", f"benchmark={name}", f"benchmark.path={sets[name].root}", *OPTIONS[name])
    assert set(KEYS[name]) <= set(found)
    assert all(0 <= value <= 1 for key, value in found.items() if key.startswith(f"{name}/"))
    assert json.loads((tmp_path / "record" / "metrics.json").read_text()) == found
    assert (tmp_path / "record" / "report.png").stat().st_size > 1000
    stamp = (load_scores if name == "ytf" else load_counted)(tmp_path / "record" / "scores" / f"{name}.npz").stamp
    assert {"mirror", "color", "crop", "size"} <= set(stamp)
    assert stamp["mirror"] is (name != "megaface")


def test_what_is_measured_are_the_networks_embeddings(weights, sets, tmp_path):
    """The same figures from embeddings that are made here, image by image."""
    _, network = weights
    options = ("benchmark=ijbc", f"benchmark.path={sets['ijbc'].root}", "benchmark.far=[0.01,0.1]")
    found = run(weights, tmp_path / "record", *options)
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        bench = instantiate(hydra.compose("evaluate", [*options, "checkpoint=x", "data.size=32"]).benchmark)
    opened = bench.open(None)
    images = torch.from_numpy(np.stack([opened.load(i) for i in range(len(opened))]))
    with torch.inference_mode():
        vectors = torch.cat([embed(network, image[None], True) for image in images]).numpy()
    expected = bench.evaluate(vectors, opened)
    kept = load_counted(tmp_path / "record" / "scores" / "ijbc.npz").kept
    np.testing.assert_allclose(kept["genuine"], expected.kept["genuine"], atol=1e-5)
    assert found["images"] == len(opened)


def test_the_suite_is_composed_of_its_sets(weights, sets, tmp_path):
    """Those that are not there are left out: the places of the others come from the suite's root."""
    root = sets["ijbc"].root.parent
    left_out = [f"benchmark.sets.{name}=null" for name in ("lfw", "calfw", "cplfw", "cfp_fp", "agedb_30", "ijbb")]
    options = ["benchmark.sets.ytf.folds=3", "benchmark.sets.megaface.sizes=[5]"]
    found = run(
        weights, tmp_path / "record", "benchmark=suite_groupface", f"benchmark.root={root}", *left_out, *options
    )
    assert {"ytf/accuracy", "megaface/rank1", "ijbc/tar@1e-4", "ijbc/rank1"} <= set(found)
    files = {file.name for file in (tmp_path / "record" / "scores").iterdir()}
    assert files == {"ytf.npz", "megaface.npz", "ijbc.npz"}
    with pytest.raises(FileNotFoundError, match=r"lfw\.bin: no such file .*calfw\.bin: .*IJBB.*is missing"):
        run(weights, tmp_path / "other", "benchmark=suite_groupface", f"benchmark.root={root}", *options)
    with pytest.raises(ValueError, match=r"^benchmark\.root is null, and so nobody knows where lfw, ytf, calfw"):
        run(weights, tmp_path / "other", "benchmark=suite_groupface")


def test_missing_files_and_paths_are_told_before_anything_is_embedded(weights, tmp_path):
    with pytest.raises(ValueError, match=r"^benchmark\.path is null: give the folder that holds meta and loose_crop$"):
        run(weights, tmp_path / "record", "benchmark=ijbc")
    with pytest.raises(FileNotFoundError, match=r"splits\.txt is missing; .*aligned_images_DB is missing"):
        run(weights, tmp_path / "record", "benchmark=ytf", f"benchmark.path={tmp_path}")


def test_a_training_refuses_them(tmp_path):
    config, plain = compose("trainer.epochs=1")
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        config.benchmark = hydra.compose("config", ["benchmark=ijbc", "benchmark.size=48"]).benchmark
    plain["benchmark"] = OmegaConf.to_container(config.benchmark)
    with pytest.raises(ValueError, match=r"benchmark: IJBBenchmark measures checkpoints"):
        fit.train(config, plain, tmp_path / "run", one_process=False)


def doctor(folder, *words):
    command = [sys.executable, "-m", "facelab.evaluate", *words, "check=true"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=environment)


def test_the_doctor_needs_no_checkpoint(sets, tmp_path):
    done = doctor(tmp_path, "benchmark=ijbc", f"benchmark.path={sets['ijbc'].root}")
    assert done.returncode == 1
    assert "16 templates, published are 23,124" in done.stdout
    assert "pairs, published are 15,658,489" in done.stdout
    assert done.stdout.splitlines()[-1] == "ijbc: 4 to be mended"
    assert done.stderr == ""
    assert not list(tmp_path.rglob("*.yaml"))
