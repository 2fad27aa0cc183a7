"""An evaluation repeats what a run has reported, measures what others have trained, and says what does not fit."""

import json
import shutil
from pathlib import Path

import cv2
import hydra
import numpy as np
import pytest
import torch
import yaml
from hydra.utils import instantiate
from killing import compose
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file

from facelab.benchmark.scores import load_counted, load_scores
from facelab.door import configuration_folder
from facelab.training import evaluation, fit
from facelab.training.evaluation import evaluate
from facelab.training.preemption import Interrupted
from facelab.training.saving import write_file

MEASURED = ("accuracy", "accuracy_std", "tar@far=1e-3", "tar@far=1e-4", "eer", "auc")


def run(where: Path, *overrides: str) -> dict[str, float]:
    config, plain = compose("trainer.epochs=2", *overrides)
    return fit.train(config, plain, where, one_process=False)


def evaluated(where: Path, *typed: str) -> dict[str, float]:
    """As the door does it."""
    OmegaConf.register_new_resolver("facelab.job", lambda: "small", replace=True)
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        config = hydra.compose("evaluate", ["logger=csv", "progress=false", "embeddings=null", *typed])
    return evaluate(config, {word.split("=")[0] for word in typed}, where)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A run with averaged weights that reports on half of its held-out identities."""
    where = tmp_path_factory.mktemp("runs") / "averaged"
    return where, run(where, "trainer.ema=0.9", "benchmark.mirror=false", "trainer.precision=fp32")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A folder of faces with a pairs.txt: six people, two folds."""
    root = tmp_path_factory.mktemp("faces")
    config, _ = compose("data.seed=9")
    source = instantiate({key: value for key, value in config.data.items() if key not in fit.COMMON})
    for person in range(6):
        (root / f"P{person}").mkdir()
        for number in range(1, 4):
            image = source.load(int(np.flatnonzero(source.labels == person)[number]))
            cv2.imwrite(str(root / f"P{person}" / f"P{person}_{number:04d}.png"), image[..., ::-1])
    lines = ["2\t4"]
    for fold in (0, 3):
        people = [f"P{fold + i}" for i in range(3)]
        lines += [f"{people[0]}\t1\t2", f"{people[0]}\t1\t3", f"{people[1]}\t1\t2", f"{people[2]}\t1\t2"]
        lines += [f"{people[i]}\t{k}\t{people[(i + 1) % 3]}\t{k}" for i, k in ((0, 1), (1, 1), (2, 1), (0, 2))]
    (root / "pairs.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, pairs):
    """A run without an average that reports on a benchmark of its own, and takes images in its own way."""
    where = tmp_path_factory.mktemp("runs") / "elsewhere"
    taken = "backbone.input={color: bgr, mean: 0, std: 255}"
    return where, run(where, f"benchmark.path={pairs}", "benchmark.name=faces", taken, "benchmark.folds=2")


def of(where: Path, name: str = "best.ckpt") -> str:
    return f"checkpoint={where / 'checkpoints' / name}"


def changed(where: Path, to: Path, **changes) -> str:
    """A copy of best.ckpt that says something else of itself; `config__a__b` stands for nested keys."""
    source = where / "checkpoints" / "best.ckpt"
    with safe_open(source, "pt") as file:
        meta = json.loads(file.metadata()["facelab"])
    for key, value in changes.items():
        *path, last = key.split("__")
        node = meta
        for name in path:
            node = node[name]
        node[last] = value
    write_file(to, load_file(source), meta)
    return f"checkpoint={to}"


def assert_same(first: Path, second: Path, name: str) -> None:
    one, other = load_scores(first / "scores" / f"{name}.npz"), load_scores(second / "scores" / f"{name}.npz")
    assert one.stamp == other.stamp
    np.testing.assert_array_equal(one.scores, other.scores)


# The same numbers


def test_the_best_checkpoint_gives_the_reported_numbers_with_nothing_else_typed(averaged, tmp_path):
    """Not one of these settings is a default: they come from the checkpoint. Averaged weights are what it reports."""
    where, metrics = averaged
    found = evaluated(tmp_path / "record", of(where))
    assert {key: found[f"heldout/{key}"] for key in MEASURED} == {key: metrics[f"heldout/{key}"] for key in MEASURED}
    assert_same(where, tmp_path / "record", "heldout")
    assert found["parameters"] == metrics["parameters"]


def test_the_batch_the_loader_and_half_precision_change_little(averaged, tmp_path):
    where, metrics = averaged
    rest = ("batch_size=7", "loader.threads=3", "loader.prefetch=1", "precision=bf16")
    found = evaluated(tmp_path / "record", of(where), *rest)
    assert found["heldout/auc"] == pytest.approx(metrics["heldout/auc"], abs=0.05)


def test_a_record_is_complete(averaged, tmp_path):
    where, _ = averaged
    found = evaluated(tmp_path / "record", of(where))
    files = {str(path.relative_to(tmp_path / "record")) for path in (tmp_path / "record").rglob("*") if path.is_file()}
    assert files - {".lock"} == {
        "config.yaml", "environment.json", "metrics.json", "report.png", "scores/heldout.npz",
    }  # fmt: skip
    assert json.loads((tmp_path / "record" / "metrics.json").read_text()) == found
    config = yaml.safe_load((tmp_path / "record" / "config.yaml").read_text())
    assert config["batch_size"] == 16
    assert config["data"]["size"] == config["benchmark"]["size"] == 48
    assert config["benchmark"]["count"] == 60
    assert config["trained"]["config"]["loss"]["_target_"].endswith("ArcFace")
    environment = json.loads((tmp_path / "record" / "environment.json").read_text())
    assert environment["input"] == {"color": "rgb", "mean": 127.5, "std": 127.5}
    assert environment["starts"][0]["command"]
    image = cv2.imread(str(tmp_path / "record" / "report.png"))
    assert image.shape == (742, 1980, 3)  # two panels, not six
    assert ((image == (178, 114, 0)).all(-1).sum()) > 200  # blue curves


def test_the_last_checkpoint_has_both_weights(averaged, tmp_path):
    where, metrics = averaged
    found = {}
    for name, typed in (("null", ()), ("true", ("ema=true",)), ("false", ("ema=false",))):
        evaluated(tmp_path / name, of(where, "last.ckpt"), *typed)
        found[name] = load_scores(tmp_path / name / "scores" / "heldout.npz").scores
    np.testing.assert_array_equal(found["null"], found["true"])
    assert np.abs(found["true"] - found["false"]).max() > 1e-3
    assert metrics["best_step"] <= metrics["steps"]


def test_identities_that_chose_the_checkpoint_give_the_numbers_it_was_chosen_by(elsewhere, tmp_path):
    where, metrics = elsewhere
    found = evaluated(tmp_path / "record", of(where))
    assert {key: found[f"heldout/{key}"] for key in MEASURED} == {key: metrics[f"val/{key}"] for key in MEASURED}


def test_a_benchmark_of_its_own(elsewhere, pairs, tmp_path):
    where, metrics = elsewhere
    typed = (f"benchmark.path={pairs}", "benchmark.name=faces", "benchmark.folds=2")
    found = evaluated(tmp_path / "record", of(where), *typed)
    assert {key: found[f"faces/{key}"] for key in MEASURED} == {key: metrics[f"faces/{key}"] for key in MEASURED}
    assert_same(where, tmp_path / "record", "faces")
    evaluated(tmp_path / "other", of(where), *typed, "benchmark.mirror=false")
    assert load_scores(tmp_path / "other" / "scores" / "faces.npz").stamp["mirror"] is False


def test_published_weights(elsewhere, pairs, tmp_path):
    """The same network from a file of another tool: it has to be told which it is, and what it takes."""
    where, metrics = elsewhere
    tensors = load_file(where / "checkpoints" / "best.ckpt")
    names = [key for key in tensors if key.startswith("model.backbone.")]
    state = {"module." + key.removeprefix("model.backbone."): tensors[key] for key in names}
    torch.save({"state_dict": state}, tmp_path / "published.pt")
    with safe_open(where / "checkpoints" / "best.ckpt", "pt") as file:
        node = json.loads(file.metadata()["facelab"])["config"]["backbone"]
    typed = [f"backbone.{key}={node[key]}" for key in ("layers", "widths", "stem_stride", "embedding_size", "dropout")]
    typed += ["backbone=tiny", "data.size=48", f"benchmark.path={pairs}", "benchmark.name=faces", "benchmark.folds=2"]
    typed += [f"checkpoint={tmp_path / 'published.pt'}", "batch_size=16"]
    found = evaluated(tmp_path / "record", *typed, "backbone.input={color: bgr, mean: 0, std: 255}")
    assert {key: found[f"faces/{key}"] for key in MEASURED} == {key: metrics[f"faces/{key}"] for key in MEASURED}
    assert_same(where, tmp_path / "record", "faces")
    evaluated(tmp_path / "other", *typed)
    scores = load_scores(tmp_path / "other" / "scores" / "faces.npz").scores
    assert np.abs(scores - load_scores(where / "scores" / "faces.npz").scores).max() > 1e-3
    with pytest.raises(ValueError, match=r"^checkpoint=.*published\.pt: .*embedding"):
        evaluated(tmp_path / "wide", *typed, "backbone.embedding_size=8")
    with pytest.raises(ValueError, match=r"^ema=true, but checkpoint=.*is no checkpoint of facelab"):
        evaluated(tmp_path / "ema", *typed, "ema=true")
    with pytest.raises(ValueError, match="published weights have no held-out identities of their own: give benchmark"):
        evaluated(tmp_path / "none", *typed, "benchmark.path=null")


# Its life


def test_the_same_again_shows_the_result(averaged, tmp_path, monkeypatch, capsys):
    where, _ = averaged
    found = evaluated(tmp_path / "record", of(where))
    monkeypatch.setattr(evaluation, "_embed", None)  # would fail if anything were embedded
    assert evaluated(tmp_path / "record", of(where), "accelerator=cpu", "loader.threads=5", "batch_size=3") == found
    said = capsys.readouterr().out
    assert "This evaluation is finished" in said
    assert "heldout/accuracy" in said
    with pytest.raises(ValueError, match=r"another configuration \(ema: None → False\)"):
        evaluated(tmp_path / "record", of(where), "ema=false")


def test_another_file_in_the_same_place_is_another_evaluation(averaged, tmp_path):
    where, _ = averaged
    checkpoint = tmp_path / "moving.ckpt"
    shutil.copy(where / "checkpoints" / "best.ckpt", checkpoint)
    evaluated(tmp_path / "record", f"checkpoint={checkpoint}")
    evaluated(tmp_path / "record", of(where))  # the same file at another place is the same
    shutil.copy(where / "checkpoints" / "last.ckpt", checkpoint)
    with pytest.raises(ValueError, match=r"another configuration \(checkpoint_sha256: \w+ → \w+\)"):
        evaluated(tmp_path / "record", f"checkpoint={checkpoint}")


def test_an_interruption_ends_in_one_line_and_it_begins_anew(averaged, tmp_path, monkeypatch):
    where, metrics = averaged

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "embed", interrupted)
    with pytest.raises(Interrupted, match="begins this evaluation anew"):
        evaluated(tmp_path / "record", of(where))
    assert not (tmp_path / "record" / "metrics.json").exists()
    monkeypatch.undo()
    assert evaluated(tmp_path / "record", of(where))["heldout/auc"] == metrics["heldout/auc"]


# Several devices


@pytest.mark.parametrize("count", [2, 3, 50])
def test_batches_that_go_to_devices_in_turn_keep_their_places(count, elsewhere, pairs, tmp_path, monkeypatch):
    typed = [of(elsewhere[0]), f"benchmark.path={pairs}", "benchmark.name=faces", "benchmark.folds=2", "batch_size=3"]
    evaluated(tmp_path / "a", *typed, f"embeddings={tmp_path / 'one'}")
    networks = set()
    plain = evaluation.embed

    def embed(network, *more):
        networks.add(id(network))
        return plain(network, *more)

    monkeypatch.setattr(evaluation, "embed", embed)
    monkeypatch.setattr(evaluation, "_devices", lambda _: [torch.device("cpu")] * count)
    evaluated(tmp_path / "b", *typed, f"embeddings={tmp_path / 'many'}")
    one, many = (np.load(next((tmp_path / name).glob("*.npy"))) for name in ("one", "many"))
    assert len(one) > 3 * 3
    np.testing.assert_array_equal(one, many)
    assert len(networks) == min(count, -(-len(one) // 3))


# Embeddings that are kept


def test_what_was_embedded_is_not_embedded_again(elsewhere, pairs, tmp_path, monkeypatch, capsys):
    kept = f"embeddings={tmp_path / 'kept'}"
    typed = [of(elsewhere[0]), f"benchmark.path={pairs}", "benchmark.name=faces", "benchmark.folds=2"]
    first = evaluated(tmp_path / "a", *typed, kept)
    rows = np.load(next((tmp_path / "kept").glob("*.npy")))
    assert rows.shape[0] == first["images"]

    embeds = evaluation._embed
    monkeypatch.setattr(evaluation, "_embed", None)  # would fail if anything were embedded
    again = evaluated(tmp_path / "b", *typed, kept, "batch_size=3")
    assert {key: again[key] for key in first if "auc" in key} == {key: first[key] for key in first if "auc" in key}
    assert "images_per_s" not in again
    assert "computed before" in capsys.readouterr().out

    # Another view of an image, other weights, and other pixels under the same names ask for other rows.
    monkeypatch.setattr(evaluation, "_embed", embeds)
    evaluated(tmp_path / "c", *typed, kept, f"benchmark.mirror={str(not first_mirror(elsewhere[0])).lower()}")
    evaluated(tmp_path / "d", of(elsewhere[0], "last.ckpt"), *typed[1:], kept)
    moved = shutil.copytree(pairs, tmp_path / "faces")
    shutil.copy(moved / "P0" / "P0_0001.png", moved / "P1" / "P1_0001.png")
    evaluated(tmp_path / "e", typed[0], f"benchmark.path={moved}", *typed[2:], kept)
    names = [file.stem.split("-") for file in (tmp_path / "kept").glob("*.npy")]
    assert len(names) == 4
    assert len({network for network, _, _ in names}) == 3
    assert len({pixels for _, _, pixels in names}) == 2


def first_mirror(where: Path) -> bool:
    return yaml.safe_load((where / "config.yaml").read_text())["benchmark"]["mirror"]


def test_a_damaged_file_of_embeddings_is_told_and_made_anew(elsewhere, tmp_path, caplog):
    kept = tmp_path / "kept"
    first = evaluated(tmp_path / "a", of(elsewhere[0]), f"embeddings={kept}")
    (file,) = kept.glob("*.npy")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert evaluated(tmp_path / "b", of(elsewhere[0]), f"embeddings={kept}")["heldout/auc"] == first["heldout/auc"]
    assert "is damaged" in caplog.text
    assert file.read_bytes() == whole


# What does not fit


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["backbone=r18"], r"is of another backbone \(.*backbone\.embedding_size: 16 → 512; .*leave backbone=… out"),
        (["backbone.input={color: bgr}"], r"backbone\.input is .*bgr.*, but checkpoint=.* takes rgb, \(x − 127\.5\)"),
        (["data.size=64"], r"data\.size is 64, but the checkpoint was trained on 48 pixels"),
        (["ema=false"], r"ema=false, but checkpoint=.* holds the averaged weights alone: take the run's last\.ckpt"),
        (["ema=maybe"], r"ema is 'maybe': give a value of type bool or null"),
        (["batch_size=0"], r"batch_size is 0: give a number above 0"),
        (["loader.prefetch=0"], r"prefetch is 0: at least 1 batch must be decoded ahead"),
        (["precision=half"], r"precision is 'half': give one of auto, bf16, fp32"),
        (["benchmark.count=x"], r"benchmark\.count is 'x': give a value of type int"),
        (["benchmark.size=64"], r"its image 0 has shape \(64, 64, 3\), but the network takes \(48, 48, 3\)"),
        (["benchmark=lfw"], r"benchmark=lfw lies beside the training data, and these have no folder"),
    ],
)
def test_what_does_not_agree_with_the_checkpoint(averaged, tmp_path, typed, line):
    where, _ = averaged
    with pytest.raises(ValueError, match=line):
        evaluated(tmp_path / "record", of(where), *typed)
    assert not (tmp_path / "record").exists()


def test_the_same_backbone_may_be_typed(averaged, tmp_path):
    where, _ = averaged
    typed = ["backbone=tiny", "backbone.widths=[16,16,16,32]", "backbone.embedding_size=16", "backbone.dropout=0.3"]
    evaluated(tmp_path / "record", of(where), *typed, "backbone.input={color: rgb}")


def test_files_that_are_no_checkpoints(averaged, tmp_path):
    where, _ = averaged
    with pytest.raises(FileNotFoundError, match=r"^checkpoint=nix\.ckpt: no such file; give a best\.ckpt"):
        evaluated(tmp_path / "record", "checkpoint=nix.ckpt")
    with pytest.raises(ValueError, match=r"is a folder; give a file in it: .*best\.ckpt or .*last\.ckpt"):
        evaluated(tmp_path / "record", f"checkpoint={where}")
    (tmp_path / "cut.ckpt").write_bytes((where / "checkpoints" / "best.ckpt").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"is no checkpoint of facelab \(or a damaged one\).* add backbone=…, one of"):
        evaluated(tmp_path / "record", f"checkpoint={tmp_path / 'cut.ckpt'}")
    with pytest.raises(ValueError, match=r"^checkpoint is 3: give the path of a file"):
        evaluated(tmp_path / "record", "checkpoint=3")


def test_without_an_average_there_is_none_to_ask_for(elsewhere, tmp_path):
    with pytest.raises(ValueError, match=r"^ema=true, but checkpoint=.* was trained without trainer\.ema"):
        evaluated(tmp_path / "record", of(elsewhere[0]), "ema=true")


def test_a_checkpoint_that_lacks_weights(averaged, tmp_path):
    where, _ = averaged
    given = changed(where, tmp_path / "odd.ckpt", config__backbone__layers=[1, 1, 2, 1])
    with pytest.raises(ValueError, match=r"odd\.ckpt is of another model: it lacks model\.backbone\.layer3\.1"):
        evaluated(tmp_path / "record", given)


def test_other_training_data_than_then(averaged, tmp_path):
    where, _ = averaged
    given = changed(where, tmp_path / "odd.ckpt", config__data__identities=30)
    with pytest.raises(ValueError, match=r"18 identities are there to train on, but .* was trained on 14"):
        evaluated(tmp_path / "record", given)
    given = changed(where, tmp_path / "odd.ckpt", config__data__holdout={"fraction": 0, "seed": 0}, num_classes=24)
    with pytest.raises(ValueError, match="was trained without held-out identities: give benchmark"):
        evaluated(tmp_path / "record", given)


@pytest.mark.parametrize("group", ["backbone", "head", "data"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_strangers_checkpoint_calls_nothing(averaged, tmp_path, group, nested):
    where, _ = averaged
    hostile = {
        "_target_": "pathlib.Path.touch",
        "self": {"_target_": "pathlib.Path", "_args_": [str(tmp_path / "hit")]},
    }
    with safe_open(where / "checkpoints" / "best.ckpt", "pt") as file:
        node = json.loads(file.metadata()["facelab"])["config"][group]
    given = {**node, "seed": hostile} if nested else {**node, **hostile}
    with pytest.raises(
        ValueError, match=rf"asks for pathlib\.Path.* as its {group}, which no file of conf/{group} offers"
    ):
        evaluated(tmp_path / "record", changed(where, tmp_path / "odd.ckpt", **{f"config__{group}": given}))
    assert not (tmp_path / "hit").exists()


# FRVT


@pytest.fixture(scope="module")
def listed(pairs):
    """The same faces as an image list: two sexes, one image that nobody can read."""
    lines = ["image,person,set,sex"]
    for person in range(6):
        for number in range(1, 4):
            part = "enrol" if number == 1 else "verify"
            lines.append(f"P{person}/P{person}_{number:04d}.png,P{person},{part},{'fm'[person % 2]}")
    (pairs / "broken.png").write_bytes(b"nothing of an image")
    lines.append("broken.png,P0,verify,f")
    (pairs / "images.csv").write_text("\n".join(lines) + "\n")
    return pairs


def test_frvt_of_a_checkpoint(averaged, listed, tmp_path):
    where, _ = averaged
    typed = (f"benchmark.path={listed}", "benchmark.fmr=[0.1]", "benchmark.by=[sex]", "benchmark.fpir=[0.2]")
    found = evaluated(tmp_path / "record", of(where), "benchmark=frvt", *typed, "benchmark.bootstrap=50")
    assert 1 / 13 <= found["frvt/fnmr@1e-1"] <= 1  # the unreadable one
    assert found["frvt/failures"] == 1 / 19
    assert found["frvt/fmr@1e-1"] <= 0.1
    assert found["images"] == 19
    files = {path.name for path in (tmp_path / "record" / "scores").iterdir()}
    tables = ("thresholds", "groups", "cross_groups", "failures", "identification")
    assert files == {"frvt.npz", *(f"frvt_{table}.csv" for table in tables)}
    assert load_counted(tmp_path / "record" / "scores" / "frvt.npz").stamp["impostor"] == 6 * 12 - 12
    image = cv2.imread(str(tmp_path / "record" / "report.png"))
    assert image.shape == (742, 1980, 3)
    assert ((image == (178, 114, 0)).all(-1).sum()) > 200  # blue curves
    again = evaluated(tmp_path / "record", of(where), "benchmark=frvt", *typed, "benchmark.bootstrap=50")
    assert again == found


def test_frvt_is_of_a_list_and_of_no_training(averaged, tmp_path):
    where, _ = averaged
    with pytest.raises(ValueError, match=r"benchmark\.path is null: give the folder of the images"):
        evaluated(tmp_path / "record", of(where), "benchmark=frvt")
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        config = hydra.compose("config", ["logger=csv", "benchmark=frvt"])
    with pytest.raises(ValueError, match="FrvtBenchmark measures checkpoints: train with another one"):
        fit.train(config, OmegaConf.to_container(config, resolve=True), tmp_path / "run", one_process=False)
