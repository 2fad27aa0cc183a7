"""A run that reports on people of another data set, and an evaluation that finds them again."""

import json

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from test_cli import TINY

from facelab import evaluate, train

SMALL = [word for word in TINY if not word.startswith("data.holdout")]
OTHERS = ["sweeps=population", "data.report.identities=10", "data.report.images_per_identity=6", "job=one"]


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    """Door, arguments → what it printed, or the line that it ended with."""
    monkeypatch.chdir(tmp_path)

    def call(door, *arguments):
        GlobalHydra.instance().clear()
        monkeypatch.setattr("sys.argv", [door.__name__, *arguments, "logger=csv"])
        capsys.readouterr()
        try:
            door.main()
        except SystemExit:
            return capsys.readouterr().err
        return capsys.readouterr().out

    yield call
    GlobalHydra.instance().clear()


def test_others_are_reported_on_and_all_who_are_held_out_choose(typed, tmp_path):
    words = [*OTHERS, *SMALL, "data.holdout.fraction=0.2", "trainer.max_steps=2", "data.report.skin=[0.5,1.0]"]
    out = typed(train, *words)
    run = tmp_path / "runs" / "population" / "one"
    metrics = json.loads((run / "metrics.json").read_text())
    assert "others: 60 pairs" in " ".join(out.split())
    assert "others/accuracy" in metrics
    assert "heldout/accuracy" not in metrics
    assert "val/accuracy" in metrics
    assert metrics["identities"] == 19  # a fifth of 24 is held out, and none of them reported on
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["report"]["size"] == config["data"]["size"]

    typed(evaluate, f"checkpoint='{run / 'checkpoints' / 'best.ckpt'}'", "job=again", "benchmark.name=others")
    again = json.loads((tmp_path / "runs" / "evaluations" / "again" / "metrics.json").read_text())
    assert again["others/accuracy"] == metrics["others/accuracy"]
    assert again["others/auc"] == metrics["others/auc"]


def test_a_benchmark_of_its_own_and_others_too_are_refused(typed, tmp_path):
    (tmp_path / "lfw.bin").write_bytes(b"")
    line = typed(train, *OTHERS, *SMALL, f"benchmark.path={tmp_path}/lfw.bin")
    assert line.startswith("facelab: data.report names people to report on, and so does the benchmark: ")
