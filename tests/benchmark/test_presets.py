"""The named benchmarks lie beside the training data, and say so where they do not."""

import pickle
from pathlib import Path

import cv2
import hydra
import numpy as np
import pytest
from hydra.utils import instantiate

CONF = Path(__file__).resolve().parents[2] / "conf"
PRESETS = ("agedb_30", "calfw", "cfp_ff", "cfp_fp", "cplfw", "lfw", "vgg2_fp")


@pytest.fixture(scope="module")
def compose():
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *words: instantiate(hydra.compose("config", list(words)).benchmark)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a .bin of four pairs in two folds."""
    folder = tmp_path_factory.mktemp("faces")
    images = [cv2.imencode(".png", np.full((8, 8, 3), value, np.uint8))[1].tobytes() for value in range(8)]
    (folder / "lfw.bin").write_bytes(pickle.dumps((images, [True, False, True, False])))
    return folder


@pytest.mark.parametrize("name", PRESETS)
def test_it_lies_beside_the_training_data(compose, name):
    made = compose(f"benchmark={name}", "data=casia", "data.root=some/where")
    assert made.path == Path("some/where") / f"{name}.bin"
    assert (made.name, made.folds, made.mirror) == (name, 10, True)


def test_it_is_opened(compose, root):
    made = compose("benchmark=lfw", "data=casia", f"data.root={root}", "benchmark.folds=2", "benchmark.size=8")
    pairs = made.open(None)
    assert (pairs.name, len(pairs.pairs), pairs.folds) == ("lfw", 4, 2)


def test_another_place_is_given_as_a_whole(compose, root):
    made = compose("benchmark=lfw", f"benchmark.path={root}/lfw.bin", "benchmark.folds=2")
    assert len(made.open(None).pairs) == 4


def test_training_data_without_a_folder(compose):
    line = r"^benchmark=lfw lies beside the training data, .* give benchmark\.path=FOLDER/lfw\.bin$"
    with pytest.raises(ValueError, match=line):
        compose("benchmark=lfw", "data=synthetic").open(None)
    with pytest.raises(ValueError, match=line):
        compose("benchmark=lfw", "data=casia").open(None)  # its root is not given yet
    with pytest.raises(ValueError, match=line):
        compose("benchmark=lfw", "data=casia", "data.root=null").open(None)


def test_a_missing_file_is_told_with_what_is_there(compose, root, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"cfp_fp\.bin: no such file or folder; {root} has lfw\.bin$"):
        compose("benchmark=cfp_fp", "data=casia", f"data.root={root}").open(None)
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} has no \.bin; give a \.bin, or a folder"):
        compose("benchmark=cfp_fp", "data=casia", f"data.root={tmp_path}").open(None)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere either"):
        compose("benchmark=cfp_fp", "data=casia", f"data.root={tmp_path}/nowhere").open(None)
