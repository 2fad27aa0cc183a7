"""Whole runs with groups: they go on as if never stopped, leave a record of their groups, and are evaluated again."""

import json
from pathlib import Path

import cv2
import hydra
import numpy as np
import pytest
from killing import compose
from omegaconf import OmegaConf
from safetensors import safe_open

from facelab.benchmark.scores import load_scores
from facelab.door import configuration_folder
from facelab.report.groups import draw_groups
from facelab.report.panels import effective
from facelab.report.record import read_record
from facelab.training import fit
from facelab.training.evaluation import evaluate
from facelab.training.module import FaceModule

GROUPS, STEPS, STOP = 4, 8, 5
FEW = (
    "head=groupface",
    f"head.groups={GROUPS}",
    "head.window=3",
    f"trainer.max_steps={STEPS}",
    "trainer.ema=0.9",
    "trainer.accumulate=2",
    "trainer.save_every_steps=1",
    "trainer.precision=fp32",
)


class Stopped(Exception):
    """Power failure."""


def run(where: Path, *overrides: str) -> dict[str, float]:
    config, plain = compose(*FEW, *overrides)
    return fit.train(config, plain, where, one_process=False)


def evaluated(where: Path, *typed: str) -> dict[str, float]:
    OmegaConf.register_new_resolver("facelab.job", lambda: "small", replace=True)
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        config = hydra.compose("evaluate", ["logger=csv", "progress=false", *typed])
    return evaluate(config, {word.split("=")[0] for word in typed}, where)


def tensors(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, "np") as file:
        names = list(file.keys())
        return {name: file.get_tensor(name) for name in names}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run left alone and one that was stopped in the middle of a window; the numbers of both."""
    folder = tmp_path_factory.mktemp("groups")
    step = FaceModule.training_step

    def stopping(self, batch, number):
        if self.progress.step == STOP:
            raise Stopped
        step(self, batch, number)

    numbers = [run(folder / "alone")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FaceModule, "training_step", stopping)
        with pytest.raises(Stopped):
            run(folder / "stopped")
    stopped = tensors(folder / "stopped" / "checkpoints" / "last.ckpt")
    assert stopped["model.head.window_step"] == STOP - 1
    numbers.append(run(folder / "stopped"))
    return folder, *numbers


def test_stopped_and_resumed_it_ends_as_it_would_have(runs):
    folder, alone, resumed = runs
    one, other = (tensors(folder / name / "checkpoints" / "last.ckpt") for name in ("alone", "stopped"))
    assert {"model.head.window_sums", "model.head.vectors.weight", "model.average.head.logits.weight"} <= one.keys()
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value.tobytes() == other[key].tobytes(), key
    for name in ("histograms.npz", "groups.png"):
        assert (folder / "alone" / name).read_bytes() == (folder / "stopped" / name).read_bytes()
    clock = ("seconds", "images_per_s")
    assert {k: v for k, v in alone.items() if k not in clock} == {k: v for k, v in resumed.items() if k not in clock}


def test_the_window_holds_the_latest_batches(runs):
    held = tensors(runs[0] / "alone" / "checkpoints" / "last.ckpt")
    assert held["model.head.window_images"].tolist() == [16] * 3
    np.testing.assert_allclose(held["model.head.window_sums"].sum(axis=1), 16, rtol=1e-5)


def test_group_aware_similarity_of_a_checkpoint(runs, tmp_path):
    """With β as small as can be the scores are those of the cosine; with β = 0.1 they are lower, each by its own."""
    given = f"checkpoint={runs[0]}/alone/checkpoints/best.ckpt"
    for name, beta in (("plain", 0.0), ("tiny", 1e-12), ("paper", 0.1)):
        evaluated(tmp_path / name, given, f"benchmark.groups.beta={beta}")
    plain, small, paper = (
        load_scores(tmp_path / name / "scores" / "heldout.npz") for name in ("plain", "tiny", "paper")
    )
    np.testing.assert_allclose(small.scores, plain.scores, rtol=0, atol=1e-10)
    lower = plain.scores - paper.scores
    assert 0 < lower.min() < lower.max() <= 2 * 0.1 * 2 ** (1 / 3)
    assert "groups" in paper.stamp
    assert "groups" not in plain.stamp


def test_groups_are_compared_where_there_are_some_and_by_evaluate(tmp_path):
    with pytest.raises(ValueError, match=r"benchmark\.groups\.beta is 0\.1: .* of a checkpoint, by"):
        run(tmp_path / "run", "benchmark.groups.beta=0.1")
    config, plain = compose("trainer.max_steps=1")
    fit.train(config, plain, tmp_path / "none", one_process=False)
    with pytest.raises(ValueError, match=r"benchmark\.groups\.beta asks for .* head=groupface"):
        evaluated(tmp_path / "e", f"checkpoint={tmp_path}/none/checkpoints/best.ckpt", "benchmark.groups.beta=0.1")


def test_the_record_tells_of_the_groups(runs):
    folder, metrics, _ = runs
    spread = read_record(folder / "alone").spreads["group"]
    assert spread.counts.shape == (STEPS, GROUPS)
    assert spread.counts.sum(axis=1).tolist() == [16] * STEPS
    rows = (folder / "alone" / "metrics.csv").read_text().splitlines()
    assert {"train/group_loss", "train/group_largest"} <= set(rows[0].split(","))
    held = tensors(folder / "alone" / "checkpoints" / "best.ckpt")
    inside = [v for key, v in held.items() if key.startswith(("model.backbone", "model.head")) and "running" not in key]
    count = sum(v.size for v in inside if v.dtype == np.float32)
    assert metrics["parameters"] == count - held["model.head.window_sums"].size


def test_its_pictures_show_the_groups(runs):
    report = cv2.imread(str(runs[0] / "alone" / "report.png"))
    assert report.shape == (1777, 1980, 3)
    third = report[1300:1690, 1420:1940].astype(int)
    assert ((third == [0x00, 0x5E, 0xD5]).all(axis=-1)).sum() > 200  # vermillion, BGR: the largest group
    sheet = cv2.imread(str(runs[0] / "alone" / "groups.png"))
    assert sheet.shape[1] > 1000
    assert sheet[130:].std() > 30  # faces


def test_an_evaluation_of_its_checkpoint_gives_what_it_reported(runs, tmp_path):
    folder, metrics, _ = runs
    best = f"checkpoint={folder / 'alone' / 'checkpoints' / 'best.ckpt'}"
    found = evaluated(tmp_path / "record", best)
    for key in ("heldout/accuracy", "heldout/eer", "heldout/auc", "parameters"):
        assert found[key] == metrics[key]
    with pytest.raises(ValueError, match=r"is of another head \(head\.groups: 4 → 32.*\): leave head=… out"):
        evaluated(tmp_path / "other", best, "head=groupface")


def test_groups_make_no_run_without_two_of_them(tmp_path):
    with pytest.raises(Exception, match=r"head\.groups is 1: give 2 or more"):
        run(tmp_path / "run", "head.groups=1")
    assert not (tmp_path / "run" / "config.yaml").exists()


# One name for network and head


@pytest.fixture(scope="module")
def composer():
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        yield lambda name, *words: hydra.compose(name, list(words))


def test_the_papers_pair_is_one_choice_and_its_head_can_be_left_out(composer):
    pair = composer("config", "backbone=groupface_r100")
    assert pair.head == composer("config", "head=groupface").head
    assert pair.backbone == composer("config", "backbone=r100").backbone
    assert (pair.backbone.embedding_size, pair.head.groups) == (512, 32)
    assert composer("config", "backbone=groupface_r100", "head.groups=8").head.groups == 8
    for name in ("config", "evaluate"):
        bare = composer(name, "backbone=groupface_r100", "head=none")
        assert bare.head == composer("config").head
        assert bare.backbone._target_ == pair.backbone._target_


# The sheet


def test_the_sheet_has_a_row_for_each_group_with_faces(tmp_path):
    images = np.full((60, 32, 32, 3), [210, 30, 90], np.uint8)  # as no text is
    chosen = np.repeat([2, 5], [50, 10])
    path = draw_groups(tmp_path / "groups.png", images, chosen, np.linspace(1, 0, 60), groups=8)
    picture = cv2.imread(str(path))
    faces = (picture == [90, 30, 210]).all(axis=-1)
    rows = faces.any(axis=1)
    assert np.flatnonzero(np.diff(rows.astype(int)) == 1).size == 2
    first, second = (faces[start + 40].sum() for start in np.flatnonzero(np.diff(rows.astype(int)) == 1))
    assert 1.1 * second < first < 1.4 * second  # twelve faces, and ten
    many = draw_groups(tmp_path / "many.png", np.repeat(images, 2, 0), np.arange(120) % 40, np.ones(120), groups=40)
    assert cv2.imread(str(many)).shape[1] > 1.9 * picture.shape[1]


def test_the_effective_number_of_groups():
    counts = np.array([[5, 5, 5, 5], [20, 0, 0, 0], [10, 10, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(effective(counts), [4, 1, 2, 1])


def test_it_is_told_in_json_what_it_is(runs):
    with safe_open(runs[0] / "alone" / "checkpoints" / "best.ckpt", "np") as file:
        assert json.loads(file.metadata()["facelab"])["config"]["head"]["ensemble"] == "soft"
