"""What a checkpoint or a run's folder says is plain values: it can name what conf/ offers, and calls nothing else."""

import copy
import json
from pathlib import Path

import hydra
import numpy as np
import pytest
import yaml
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from safetensors.numpy import save_file

from facelab import trusted
from facelab.compare.reading import Unreadable, read_run
from facelab.configuration import configuration_folder
from facelab.status import _config
from facelab.training import taken_over
from facelab.training.record import RunDirectory
from facelab.training.trained import meta_of

FILE = Path("best.ckpt")
IDENTITY = {"_target_": "torch.nn.Identity"}


@pytest.fixture(scope="module")
def composed():
    OmegaConf.register_new_resolver("facelab.job", lambda: "small", replace=True)
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        return OmegaConf.to_container(hydra.compose("config", ["logger=csv", "job=small"]), resolve=True)


@pytest.fixture
def config(composed):
    return copy.deepcopy(composed)


def checkpoint(path: Path, config, **said) -> Path:
    meta = {"format": 1, "shards": [], "step": 1, "num_classes": 8, "config": config}
    meta["input"] = {"color": "rgb", "mean": 127.5, "std": 127.5}
    save_file({"model.x": np.zeros(2, np.float32)}, path, {"facelab": json.dumps({**meta, **said})})
    return path


def test_the_attacks_are_real():
    """Without a check Hydra walks from any module to all that it imports, and makes nodes out of words."""
    assert callable(get_object("facelab.training.record.os.system"))
    node = OmegaConf.create({"x": "${oc.create:{_target_:os.getpid}}"})
    assert isinstance(instantiate(node).x, int)


@pytest.mark.parametrize(
    "target",
    [
        *("builtins.eval", "os.system", "hydra.utils.get_object", "subprocess.run", "torch.load"),
        "facelab.training.record.os.system",  # by way of a module of ours
        "facelab.loss.arcface.ArcFace",  # ours, and no head
        "facelab.prepare.photos.prepare",  # ours, and writes files
        "facelab.head.groupface",  # the beginning of one that is offered
        "facelab.head.groupface.GroupFace.load_state_dict",  # and what begins with it
        *("torch.nn.Identity ", "torch.nn.identity", "${oc.env:HOME}", 7, None, ["torch.nn.Identity"]),
    ],
)
@pytest.mark.parametrize(
    "around",
    [lambda node: node, lambda node: {**IDENTITY, "x": node}, lambda node: {**IDENTITY, "x": [[1, {"y": node}]]}],
)
def test_only_what_conf_offers_is_called(target, around):
    with pytest.raises(ValueError, match=r"checkpoint=best\.ckpt"):
        trusted.safe("checkpoint", around({"_target_": target}), "head", FILE)


@pytest.mark.parametrize("key", ["_args_", "_partial_", "_convert_", "_recursive_", "_call_", "_target_class_"])
def test_how_it_is_called_is_not_said_either(key):
    with pytest.raises(ValueError, match=key):
        trusted.safe("checkpoint", {**IDENTITY, "x": [{key: True}]}, "head", FILE)


@pytest.mark.parametrize(
    "value", ["${oc.env:SECRET}", "${oc.create:{_target_:os.system}}", "a/${hydra:run.dir}", "${x}"]
)
@pytest.mark.parametrize("around", [lambda value: {"x": value}, lambda value: {"x": [{"y": value}]}])
def test_nothing_is_looked_up(value, around):
    with pytest.raises(ValueError, match="cannot ask for others"):
        trusted.safe("checkpoint", {**IDENTITY, **around(value)}, "head", FILE)


def test_every_choice_of_conf_is_offered_to_its_own_group():
    for group in ("backbone", "head", "loss", "data"):
        known = trusted.offered(group)
        assert known, group
        assert all(name.startswith("facelab.") or name == "torch.nn.Identity" for name in known)
        for name in known:
            node = trusted.safe("checkpoint", {"_target_": name, "x": 1}, group, FILE)
            assert OmegaConf.to_container(node) == {"_target_": name, "x": 1}


def test_a_class_of_ones_own_is_offered_as_soon_as_a_file_says_so(tmp_path, monkeypatch):
    node = {"_target_": "mine.Head"}
    with pytest.raises(ValueError, match=r"asks for mine\.Head as its head"):
        trusted.safe("checkpoint", node, "head", FILE)
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "mine.yaml").write_text("_target_: mine.Head\n")
    monkeypatch.setattr(trusted, "_folders", lambda: [configuration_folder(), tmp_path])
    assert trusted.safe("checkpoint", node, "head", FILE) == node


def test_a_checkpoint_s_hydra_node_is_dropped(tmp_path, config):
    foreign = {**config, "hydra": {"run": {"dir": "/"}, "job_logging": {"handlers": {"x": {"()": "os.system"}}}}}
    assert meta_of(checkpoint(tmp_path / "a.ckpt", foreign))["config"] == config


@pytest.mark.parametrize(
    "value", [[{"_target_": "os.system", "command": "x"}], {"_target_": "os.system"}, {"_args_": []}]
)
def test_an_evaluation_takes_values_over_and_no_nodes(tmp_path, config, value):
    config["benchmark"]["folds"] = value
    meta = meta_of(checkpoint(tmp_path / "a.ckpt", config))
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        own = hydra.compose("evaluate", ["logger=csv", f"checkpoint={tmp_path / 'a.ckpt'}"])
    with pytest.raises(ValueError, match="would call something"):
        taken_over.take_over(own, meta, set())


@pytest.mark.parametrize(
    ("key", "value"),
    [("quality", []), ("quality", {"x": 1}), ("quality", {"alpha": {"x": 1}}), ("far", {"x": {"x": 1}})],
)
def test_a_value_where_another_kind_belongs_is_refused_in_one_line(tmp_path, config, key, value):
    config["benchmark"][key] = value
    meta = meta_of(checkpoint(tmp_path / "a.ckpt", config))
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        own = hydra.compose("evaluate", ["logger=csv", f"checkpoint={tmp_path / 'a.ckpt'}"])
    with pytest.raises(ValueError, match=rf"its benchmark\.{key}.* is .*, which has no place in a configuration"):
        taken_over.take_over(own, meta, set())


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["trainer"].update(devices=0),
        lambda config: config["trainer"].update(num_nodes=False),
        lambda config: config["data"].update(root="${oc.env:SECRET}"),
        lambda config: config["data"].pop("size"),
        lambda config: config["data"].update(size=-1),
        lambda config: config["trainer"].update(batch_size="many"),
        lambda config: config.pop("backbone"),
        lambda config: config.update(head=["torch.nn.Identity"]),
        lambda config: config.update(x=[0] * 200_000),
    ],
)
def test_a_checkpoint_that_says_nonsense_of_itself_is_refused(tmp_path, config, change):
    change(config)
    with pytest.raises(ValueError, match=r"checkpoint .*a\.ckpt: its "):
        meta_of(checkpoint(tmp_path / "a.ckpt", config))


@pytest.mark.parametrize("shards", ["x", [3], ["../../etc/passwd"], ["/etc/passwd"], [".."], {"a": 1}, None])
def test_shards_lie_beside_their_checkpoint(tmp_path, config, shards):
    with pytest.raises(ValueError, match="its shards are"):
        meta_of(checkpoint(tmp_path / "a.ckpt", config, shards=shards))


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
RECORDS = {
    "a call": "trainer: !!python/object/apply:os.system ['touch ran']\n",
    "a class": "trainer: !!python/name:os.system\n",
    "ten to the ninth": f"trainer: 1\n{BOMB}",
    "itself": "trainer: &a {b: *a}\n",
    "depth": "trainer: " + "[" * 100_000,
    "a key that is a list": "trainer: {? [1, 2] : 3}\n",
    "a stamp that is none": "trainer: !!timestamp x\n",
    "letters": b"trainer: \xff\xfe\n",
}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_run_s_configuration_is_read_and_never_run(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    content = RECORDS[kind]
    (tmp_path / "config.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(Unreadable, match=r"its config\.yaml cannot be read") as refusal:
        read_run(tmp_path)
    assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match="is no configuration"):
        RunDirectory(tmp_path, {"trainer": 1})
    assert _config(tmp_path) == {}
    assert not (tmp_path / "ran").exists()


def test_a_run_s_hydra_node_is_dropped():
    assert trusted.parse(yaml.safe_dump({"a": 1, "hydra": {"searchpath": ["file:///"]}})) == {"a": 1}


@pytest.mark.parametrize(
    "environment", ['{"starts": [7]}', '{"starts": {"a": 1}}', '{"starts": [{"gpus": 3}]}', "[" * 99_999]
)
def test_an_environment_of_other_kinds_leaves_the_run_out(tmp_path, config, environment):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "environment.json").write_text(environment)
    (tmp_path / "metrics.json").write_text('{"lfw/accuracy": 0.5}')
    with pytest.raises(Unreadable):
        read_run(tmp_path)
