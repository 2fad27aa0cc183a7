"""A key of W&B is in no file of a run: neither in its record nor in its logs nor in W&B's own folder."""

import sys

import hydra
import pytest
import wandb
from omegaconf import OmegaConf

from facelab import train
from facelab.configuration import configuration_folder
from facelab.job import without_secrets
from facelab.secrecy import refuse_on_command_line, refuse_values
from facelab.training import fit
from facelab.training.record import RunDirectory, _command

CANARY = "c0ffee" * 6 + "beef"  # as long as W&B's own
SMALL = [
    *("logger=wandb", "logger.mode=offline", "job=small", "data.identities=12", "data.images_per_identity=4"),
    *("data.size=32", "benchmark.size=32", "data.holdout.fraction=0.4", "benchmark.count=20", "benchmark.folds=2"),
    *("backbone.widths=[16,16,16,16]", "backbone.embedding_size=16", "trainer.batch_size=8", "trainer.max_steps=2"),
    *("trainer.progress=false", "trainer.precision=fp32"),
]


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    monkeypatch.setenv("MY_TOKEN", "short")


def test_a_run_keeps_no_key(tmp_path, monkeypatch):
    wandb.teardown()  # it keeps the settings of before
    monkeypatch.setattr(sys, "argv", ["train", *SMALL])
    OmegaConf.register_new_resolver("facelab.job", lambda: "small", replace=True)
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        config = hydra.compose("config", SMALL)
    fit.train(config, OmegaConf.to_container(config, resolve=True), tmp_path / "run", one_process=False)
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    names = {file.name for file in files}
    assert {"config.yaml", "environment.json", "metrics.json"} <= names
    assert any(name.endswith(".wandb") for name in names)
    assert [file for file in files if CANARY.encode() in file.read_bytes()] == []


@pytest.mark.parametrize(
    "word",
    [
        *(f"+logger.api_key={CANARY[::-1]}", "++hydra.job.env_set.WANDB_API_KEY=x", "wandb_api_key=x", "+a.password=x"),
        *(f"name=x{CANARY}", f"job='{CANARY}'", "name=${oc.env:WANDB_API_KEY}", "+x='${oc.env: MY_TOKEN, none}'"),
        *(f"logger.entity={CANARY}", "+hf_token=x", CANARY, "+apikey=x", "+logger.secret=x"),
    ],
)
def test_a_key_on_the_command_line_is_refused_and_not_repeated(word):
    with pytest.raises(ValueError, match="is a secret, and a command line is read by others") as refusal:
        refuse_on_command_line(["loss=arcface", word])
    assert CANARY not in str(refusal.value)
    assert CANARY[::-1] not in str(refusal.value)


def test_other_words_pass():
    words = ("backbone.mask_tokens=3", "data.root=/data/token", "name=secret", "seed=1,2", "--help", "backbone=vit_t")
    refuse_on_command_line([*words, "x=short", "hydra.launcher.partition=a", "job=api_key"])
    assert without_secrets(" ".join(words)) == " ".join(words)


def test_a_door_refuses_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", f"+logger.api_key={CANARY}"])
    with pytest.raises(SystemExit):
        train.main()
    out = "".join(capsys.readouterr())
    assert out.startswith("facelab: logger.api_key is a secret")
    assert out.count("\n") == 1
    assert CANARY not in out
    assert list(tmp_path.iterdir()) == []


def test_a_key_in_a_configuration_is_refused(tmp_path):
    for config in ({"logger": {"api_key": "x"}}, {"a": [{"b": f"wandb {CANARY}"}]}, {"logger": {"password": "x"}}):
        with pytest.raises(ValueError, match="is a secret, which would be written into the record"):
            RunDirectory(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()
    refuse_values({"logger": {"api_key": None}, "backbone": {"mask": 0.1, "tokens": "a"}})


def test_what_is_written_of_a_command_hides_them(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["send", f"x={CANARY}", "+logger.api_key=abc", "loss=arcface"])
    assert _command().endswith(" send x=*** +logger.api_key=*** loss=arcface")
