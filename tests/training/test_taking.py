"""Runs on a part of the data, with a long tail and wrong labels: told, recorded, resumed, evaluated."""

import json
import pickle
import shutil
from pathlib import Path

import cv2
import hydra
import numpy as np
import pytest
import yaml
from hydra.utils import instantiate
from killing import compose
from omegaconf import OmegaConf
from safetensors import safe_open

from facelab.benchmark.scores import load_scores
from facelab.data.select import take
from facelab.door import configuration_folder
from facelab.training import closed_set, fit
from facelab.training.datamodule import divide, faces
from facelab.training.evaluation import evaluate
from facelab.training.module import FaceModule
from facelab.training.sameness import LATER
from facelab.trusted import safe

TAKES = (
    "data.take.identities=10",
    "data.take.long_tail.ratio=3",
    "data.take.noise.fraction=0.2",
    "data.take.noise.kind=outlier",
    "data/sampler=balanced",
    "trainer.batch_size=8",
    "trainer.accumulate=1",
    "trainer.max_steps=9",
    "trainer.save_every_steps=2",
    "trainer.precision=fp32",
    "backbone.widths=[16,16,16,16]",
)


def run(where: Path, *words: str) -> dict[str, float]:
    config, plain = compose(*TAKES, *words)
    return fit.train(config, plain, where, one_process=False)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    where = tmp_path_factory.mktemp("runs") / "alone"
    return where, run(where)


def weights(where: Path):
    with safe_open(where / "checkpoints" / "last.ckpt", "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def evaluated(where: Path, *typed: str) -> dict[str, float]:
    OmegaConf.register_new_resolver("facelab.job", lambda: "small", replace=True)
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        config = hydra.compose("evaluate", ["logger=csv", "progress=false", *typed])
    return evaluate(config, {word.split("=")[0] for word in typed}, where)


def test_what_was_taken_is_recorded_and_the_classes_are_those(alone):
    where, metrics = alone
    assert metrics["identities"] == 10
    taken = json.loads((where / "environment.json").read_text())["data"]["taken"]
    assert taken["of_identities"] == 14  # of 24, ten are held out
    assert taken["long_tail"] == {"ratio": 3.0, "largest": 6, "smallest": 2, "asked": 3.0, "capped": 0}
    assert taken["noise"] == {"kind": "outlier", "images": round(0.2 * taken["images"])}
    assert weights(where)["model.loss.classifier.weight"].shape[0] == 10


def test_a_run_that_dies_in_the_middle_of_an_epoch_goes_on_bit_by_bit(alone, tmp_path, monkeypatch, capsys):
    original = FaceModule.training_step

    def deadly(self, batch, number):
        if self.progress.step == 5:
            raise RuntimeError("power cut")
        original(self, batch, number)

    monkeypatch.setattr(FaceModule, "training_step", deadly)
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "killed")
    monkeypatch.undo()
    run(tmp_path / "killed")
    assert "took 10 of 14 identities" in " ".join(capsys.readouterr().out.split())
    one, two = weights(alone[0]), weights(tmp_path / "killed")
    assert one.keys() == two.keys()
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)


def test_an_evaluation_finds_the_people_who_were_held_out(alone, tmp_path):
    where, metrics = alone
    found = evaluated(tmp_path / "record", f"checkpoint={where / 'checkpoints' / 'best.ckpt'}")
    assert {key: found[key] for key in metrics if key.startswith("heldout/")} == {
        key: value for key, value in metrics.items() if key.startswith("heldout/")
    }
    one, two = (load_scores(folder / "scores" / "heldout.npz") for folder in (where, tmp_path / "record"))
    assert one.stamp == two.stamp
    np.testing.assert_array_equal(one.scores, two.scores)


def test_held_out_people_are_the_same_whatever_is_taken(alone):
    """And none of their images is trained on, under whatever label."""
    config, plain = compose(*TAKES)
    source = instantiate({key: value for key, value in config.data.items() if key not in fit.COMMON})
    people = divide(source.labels, np.ones(len(source), dtype=bool), plain["data"]["holdout"], reports=True)
    taken = take(source.labels, people.trained, plain["data"]["take"])
    held = np.concatenate([people.chooses, people.reports])
    assert len(held) == 10
    assert not np.isin(source.labels[taken.images], held).any()
    own = instantiate(config.benchmark).open(faces(source, people.labels, people.reports))
    assert load_scores(alone[0] / "scores" / "heldout.npz").stamp["source"].endswith(f"sha256:{own.digest}")


UNION = (
    "logger=csv",
    "data=union",
    "data.size=32",
    "data.holdout.fraction=0.4",
    "data.inspect.unreadable=skip",
    "backbone.widths=[16,16,16,16]",
    "backbone.embedding_size=16",
    "benchmark.count=16",
    "benchmark.folds=2",
    "trainer.batch_size=8",
    "trainer.max_steps=1",
    "trainer.precision=fp32",
    "trainer.progress=false",
)


def test_a_union_is_inspected_trained_on_and_evaluated_where_its_sets_lie_now(tmp_path):
    for place in ("before", "now"):
        for name, people in (("ours", 6), ("yours", 5)):
            for person in range(people):
                folder = tmp_path / place / name / f"person {person}"
                folder.mkdir(parents=True)
                for number in range(4):
                    picture = np.random.default_rng([people, person, number]).integers(0, 256, (32, 32, 3), np.uint8)
                    (folder / f"{number}.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
            (tmp_path / place / name / "person 1" / "2.png").write_bytes(b"damaged")
    roots = {
        place: f"data.roots=[{','.join(str(tmp_path / place / name) for name in ('ours', 'yours'))}]"
        for place in ("before", "now")
    }
    OmegaConf.register_new_resolver("facelab.job", lambda: "small", replace=True)
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        config = hydra.compose("config", [*UNION, roots["before"]])
    where = tmp_path / "run"
    metrics = fit.train(config, OmegaConf.to_container(config, resolve=True), where, one_process=False)
    assert metrics["identities"] == 7
    record = json.loads((where / "environment.json").read_text())["data"]
    assert (record["identities"], record["images"], record["taken"]) == (11, 44, None)
    assert record["found"] == {"ordinary": 0, "PNG": 42, "unreadable": 2}
    assert "yours/person 1/2.png" in (where / "images.csv").read_text()
    shutil.rmtree(tmp_path / "before")
    best = f"checkpoint={where / 'checkpoints' / 'best.ckpt'}"
    found = evaluated(tmp_path / "record", best, roots["now"])
    assert found["heldout/accuracy"] == metrics["heldout/accuracy"]
    with pytest.raises(hydra.errors.InstantiationException, match=r"data\.roots: no such folder: .*ours, .*yours;"):
        evaluated(tmp_path / "other", best)


def test_a_union_takes_sources_of_other_kinds_also_out_of_a_checkpoint(tmp_path):
    drawn = (
        "_target_: facelab.data.synthetic.SyntheticFaces, images_per_identity: 2, size: 32, long_tail: 1, nuisance: 1"
    )
    sets = f"data.sets=[{{{drawn}, identities: 3, seed: 0}},{{{drawn}, identities: 4, seed: 1}}]"
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        config = hydra.compose("config", [*UNION, "data.roots=[]", sets, "job=x"])
    node = {key: value for key, value in config.data.items() if key not in fit.COMMON}
    plain = {key: value for key, value in OmegaConf.to_container(config.data).items() if key in node}
    for made in (instantiate(node), instantiate(safe("checkpoint", plain, "data", tmp_path / "best.ckpt"))):
        assert made.labels.tolist() == np.repeat(range(7), 2).tolist()
        assert made.identity_names[3] == "SyntheticFaces (2)/person 0"
        again = pickle.loads(pickle.dumps(made))
        assert np.array_equal(again.load(9), made.load(9))
    plain["sets"][0]["_target_"] = "os.system"
    with pytest.raises(ValueError, match=r"asks for os\.system as its data"):
        safe("checkpoint", plain, "data", tmp_path / "best.ckpt")


class Things:
    """Eight classes of ten images, of which the last two each are a part that is reported."""

    labels = np.repeat(np.arange(8), 10)
    reported = np.arange(80) % 10 >= 8
    num_classes = 8
    identity_names = [f"thing {number}" for number in range(8)]  # noqa: RUF012


def choices(**changes):
    defaults = yaml.safe_load((configuration_folder() / "config.yaml").read_text())["data"]["take"]
    return {**defaults, **changes}


def test_of_a_classification_only_the_classes_that_are_trained_are_asked_for():
    kept, holdout = np.ones(80, dtype=bool), {"fraction": 0.25, "seed": 0}
    whole = closed_set.share_out(Things, kept, holdout, None)
    shares = closed_set.share_out(Things, kept, holdout, choices(identities=4, images=0.5))
    names = [Things.identity_names[number] for number in shares.taken.identities]
    assert len(whole.taken.images) == 48
    assert len(shares.taken.images) == 12
    assert set(shares.taken.images) < set(whole.taken.images)
    for part, count in ((shares.chooses, 2), (shares.reports, 2)):
        assert part.classes == names
        assert np.bincount(part.truth).tolist() == [count] * 4
    assert set(shares.reports.names) < set(whole.reports.names)


def test_a_run_from_before_there_was_such_a_choice_is_the_same_run():
    _, plain = compose()
    flat = {"data.take.long_tail.seed": plain["data"]["take"]["long_tail"]["seed"]}
    flat |= {f"data.take.noise.{key}": value for key, value in plain["data"]["take"]["noise"].items()}
    flat |= {f"data.take.{key}": value for key, value in plain["data"]["take"].items() if not isinstance(value, dict)}
    flat = {key: value for key, value in flat.items() if value is not None}
    assert flat == {key: value for key, value in LATER.items() if key.startswith("data.take.")}
