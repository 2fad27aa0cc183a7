"""A job has one W&B run for ever, in which each step stands once: held against W&B's own inspector and a server."""

import json
import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
import yaml
from killing import compose
from wandb_server import KEY, Server

from facelab.training import fit, wandb_run
from facelab.training.keeper import Recorder
from facelab.training.logging import rows_of, tags_of
from facelab.training.send import send
from facelab.training.wandb_files import folders_of, last_step
from facelab.training.wandb_run import STEP, WandbRun, _has_key, wandb_id


@pytest.fixture(autouse=True)
def _nobodys_account(monkeypatch, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith("WANDB") and name != "WANDB_SERVICE"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(home / name.lower()))


def started(folder, mode="offline", job="job", group="losses", **more):
    return WandbRun("p", None, mode, folder, {"loss": {"scale": 64.0}}, group, job, "train", ["ArcFace"], **more)


def wandb_says(*words):
    inspector = pytest.importorskip("wandb.cli.leet", reason="this W&B is older than its inspector")
    if not hasattr(inspector, "inspect"):
        pytest.skip("this W&B is older than its inspector")
    command = [sys.executable, "-m", "wandb", *map(str, words)]
    home = os.environ["HOME"]  # W&B leaves notes of its own where it is called
    done = subprocess.run(command, capture_output=True, text=True, cwd=home, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def next_second():
    """W&B names its folders by the second."""
    time.sleep(1.05 - time.time() % 1)


def come_to(folder, identity, *steps):
    """A job's folders, once W&B's own process has brought them to these last steps: it writes behind our back."""
    deadline = time.monotonic() + 60
    while [last_step(path) for path in folders_of(folder, identity)] != list(steps):
        assert time.monotonic() < deadline, [last_step(path) for path in folders_of(folder, identity)]
        time.sleep(0.1)
    return folders_of(folder, identity)


def inspected(folder):
    """Kind → the records of that kind, by W&B's own inspector."""
    records = {}
    for line in wandb_says("leet", "inspect", "--json", folder).splitlines():
        record = json.loads(line)
        records.setdefault(record["type"], []).append(record[record["type"]])
    return records


def rows(*steps, validated=()):
    """Rows of a metrics.csv: one for each step, and one for each validation behind it."""
    for step in steps:
        yield {"step": step, "images": 16 * step, "train/loss": 1 / (step + 1)}
        if step in validated:
            yield {"step": step, "images": 16 * step, "val/accuracy": 0.5 + step % 5 / 10, "val/auc": 0.6}


def tell(logger, told):
    for row in told:
        logger.log(row, row["step"])


# A training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training whose process crashed three steps behind its checkpoint, started again."""
    folder = tmp_path_factory.mktemp("runs") / "losses" / "small"
    words = ("logger=wandb", "logger.mode=offline", "name=losses", "trainer.max_steps=9", "trainer.log_every=1")
    config, plain = compose(*words, "trainer.save_every_steps=4", "trainer.validate_every=0.4", "trainer.accumulate=1")
    with pytest.MonkeyPatch.context() as patched:
        write = Recorder._write

        def crash(self, module, values):
            write(self, module, values)
            if module.progress.step == 7:
                raise RuntimeError("a crash")

        patched.setattr(Recorder, "_write", crash)
        with pytest.raises(RuntimeError, match="a crash"):
            fit.train(config, plain, folder, one_process=False)
        assert int(rows_of(folder / "metrics.csv")[-1]["step"]) == 7
        patched.setattr(Recorder, "_write", write)
        come_to(folder, wandb_id("losses", "small"), 6)
        next_second()
        metrics = fit.train(config, plain, folder, one_process=False)
    come_to(folder, wandb_id("losses", "small"), 6, 9)
    return SimpleNamespace(folder=folder, metrics=metrics, plain=plain)


@pytest.fixture(scope="module")
def told(trained):
    """What each of its two folders holds."""
    return [inspected(folder) for folder in folders_of(trained.folder, wandb_id("losses", "small"))]


def test_the_folders_of_a_resumed_job_are_one_clean_run(trained, told):
    identity = json.loads((trained.folder / "environment.json").read_text())["wandb"]
    for records in told:
        (run,) = records["run"]
        assert run["run_id"] == identity == wandb_id("losses", "small")
        assert (run["run_group"], run["job_type"], run["display_name"]) == ("losses", "train", "small")
        assert set(run["tags"]) == set(tags_of(trained.plain)) >= {"ArcFace", "SyntheticFaces"}
        config = run["config"]["update"]
        assert config["optimizer"]["schedule"]["power"] == trained.plain["optimizer"]["schedule"]["power"]
        assert not any("." in key for key in config)
    # A row of W&B for each step of metrics.csv, with the validation of the same step in it.
    wanted = {}
    for row in rows_of(trained.folder / "metrics.csv"):
        wanted.setdefault(int(row["step"]), {}).update(row)
    history = [record["item"] for records in told for record in records["history"]]
    assert list(wanted) == [item[STEP] for item in history] == [item["_step"] for item in history] == list(range(10))
    for item, row in zip(history, wanted.values(), strict=True):
        clock = ("seconds", "images_per_s")  # steps 5 and 6 were trained twice
        assert {key: item[key] for key in row if key not in clock} == {k: v for k, v in row.items() if k not in clock}
    assert sum("val/accuracy" in item for item in history) >= 3
    metric = {record["name"]: record for record in told[1]["metric"]}
    assert metric[STEP]["options"]["hidden"] is True
    assert all(metric[key]["step_metric"] == STEP for key in ("train/loss", "val/accuracy", "lr"))
    assert [records["exit"][0].get("exit_code", 0) for records in told] == [1, 0]


def test_its_summary_is_the_final_numbers(trained):
    folder = folders_of(trained.folder, wandb_id("losses", "small"))[1]
    summary = json.loads(wandb_says("leet", "inspect", "--summary", "--json", folder))
    assert summary["state"] == "finished"
    found = summary["summary"]
    assert {key: found[key] for key in trained.metrics} == pytest.approx(trained.metrics)
    assert found["report"]["_type"] == found["det"]["_type"] == "image-file"
    table = json.loads((folder / "files" / found["results"]["path"]).read_text())
    values = {row[0]: row[1:] for row in table["data"]}
    spread = trained.metrics["heldout/accuracy_std"]
    assert values["heldout/accuracy"][:2] == [trained.metrics["heldout/accuracy"], spread]
    assert "heldout/accuracy_std" not in values


def test_its_record_is_an_artifact(told):
    (made,) = [one for one in told[1]["artifact"] if one["type"] == "record"]
    names = {entry["path"] for entry in made["manifest"]["contents"]}
    assert {"config.yaml", "metrics.csv", "metrics.json", "report.png", "scores/heldout.npz"} <= names
    assert not any("ckpt" in name for name in names)


# Several jobs, several starts


def test_jobs_of_one_process_stay_apart_also_where_one_was_not_closed(tmp_path):
    mine = wandb.init(project="p", dir=tmp_path, settings=wandb.Settings(mode="offline", silent=True, console="off"))
    first, second = started(tmp_path / "a", job="a"), started(tmp_path / "b", job="b")
    tell(second, rows(1, 2))
    tell(first, rows(5))
    first.finish(True)
    assert wandb.run is mine
    second.finish(False)
    mine.finish()
    # Of a run that may go on, the last row waits for the validation that may belong to it.
    come_to(tmp_path / "a", first.identity, 5)
    come_to(tmp_path / "b", second.identity, 1)


def test_a_synced_job_that_went_on_is_synced_again_without_repeated_steps(tmp_path, monkeypatch):
    with Server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        first = started(tmp_path)
        tell(first, rows(*range(6), validated=(0, 4)))
        first.finish(False)
        wandb_says("sync", *come_to(tmp_path, first.identity, 4))
        (run,) = server.runs.values()
        assert run.name == wandb_id("losses", "job")
        assert [row[STEP] for row in run.history] == [0, 1, 2, 3, 4]
        for new, ended, steps in ((range(4, 7), False, [4, 5]), (range(6, 9), True, [4, 5, 8])):
            next_second()
            resumed = started(tmp_path)
            resumed.follow(list(rows(*range(new[0]), validated=(0, 4))))  # as far as the checkpoint
            tell(resumed, rows(*new, validated=(4, 8)))
            resumed.finish(ended)
            folders = come_to(tmp_path, first.identity, *steps)
        wandb_says("sync", *folders)
        assert list(server.runs.values()) == [run]
        assert [row[STEP] for row in run.history] == [row["_step"] for row in run.history] == list(range(9))
        assert [row[STEP] for row in run.history if "val/accuracy" in row] == [0, 4, 8]
        assert (run.summary["val/accuracy"], run.summary["best_step"]) == (0.9, 4)
        assert {upsert["groupName"] for upsert in run.upserts if upsert.get("groupName")} == {"losses"}


@pytest.fixture
def online(monkeypatch):
    """A server for runs with a key."""
    monkeypatch.setattr(wandb_run, "getproxies", dict)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with Server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        wandb.teardown()  # it keeps the settings of before
        yield server
    wandb.teardown()


def test_online_what_the_server_has_is_not_sent_again(tmp_path, online):
    waiting = started(tmp_path, "offline")
    tell(waiting, rows(0, 1, 2))
    waiting.finish(False)
    come_to(tmp_path, waiting.identity, 1)
    first = started(tmp_path, "auto")
    assert first.mode == "online"
    assert [folder.name[:4] for folder in folders_of(tmp_path, first.identity)] == ["run-"]  # it is sent, not synced
    first.follow(list(rows(0, 1)))
    tell(first, rows(*range(2, 6)))
    first.finish(False)
    second = started(tmp_path, "auto")
    second.follow(list(rows(*range(4))))
    tell(second, rows(*range(4, 8), validated=(7,)))
    second.finish(True)
    (run,) = online.runs.values()
    assert [row[STEP] for row in run.history] == list(range(8))


def test_a_server_that_goes_away_is_told_once_and_gets_the_rest_later(tmp_path, online, monkeypatch, caplog):
    monkeypatch.setattr(wandb_run, "LAST_WORDS", 1)
    monkeypatch.setattr(wandb_run, "LOOK_EVERY", -1)
    history = list(rows(*range(9)))
    text = "".join(",".join(map(str, row.values())) + "\n" for row in history)
    (tmp_path / "metrics.csv").write_text("step,images,train/loss\n" + text)
    node = {"_target_": "facelab.loss.arcface.ArcFace"}
    config = {"name": "losses", "job": "job", "logger": {"project": "p", "mode": "offline"}, "loss": node}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "metrics.json").write_text('{"lfw/accuracy": 0.9}')
    logger = started(tmp_path, "online")
    tell(logger, history[:5])
    deadline = time.monotonic() + 60
    while not any(run.history for run in online.runs.values()):
        assert time.monotonic() < deadline, "nothing arrived"
        time.sleep(0.1)
    online.__exit__()
    with caplog.at_level(logging.WARNING):
        tell(logger, history[5:])
        logger.finish(True)
    words = [record.getMessage() for record in caplog.records if record.name.startswith("facelab")]
    assert [word.split(" (")[0] for word in words[:-1]] == ["W&B cannot be reached any more"]
    assert words[-1].endswith(f"`python -m facelab.training.send '{tmp_path}'` sends the rest")
    (before,) = online.runs.values()
    assert 0 < len(before.history) < 9
    with Server(online.port) as again:
        again.runs = online.runs  # it comes back with what it had
        for _ in range(2):
            assert send(tmp_path) == before.name
            assert [row[STEP] for row in before.history] == list(range(9))
            assert before.summary["lfw/accuracy"] == 0.9


# The id, the key, the server


def test_the_run_directory_knows_its_id_for_ever(tmp_path, monkeypatch):
    assert wandb_run._identity(tmp_path, "g", "j") == wandb_id("g", "j")
    monkeypatch.setenv("WANDB_RUN_ID", "of_an_agent")
    assert wandb_run._identity(tmp_path, "g", "j") == wandb_id("g", "j")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    assert wandb_run._identity(tmp_path, "g", "j") == "of_an_agent"
    (tmp_path / "environment.json").write_text('{"wandb": "first"}')
    assert wandb_run._identity(tmp_path, "g", "j") == "first"
    (tmp_path / "environment.json").write_text('{"wandb": null}')
    assert wandb_run._identity(tmp_path, "g", "j") == "of_an_agent"


@pytest.fixture
def settings(monkeypatch):
    found = SimpleNamespace(api_key=None, base_url="https://api.wandb.ai")
    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=found))
    return found


def test_a_key_is_found_wherever_it_lies(monkeypatch, settings):
    netrc = Path(os.environ["NETRC"])
    assert not _has_key()
    netrc.write_text("machine elsewhere login user password secret\n")
    os.chmod(netrc, 0o600)
    assert not _has_key()
    settings.base_url = "https://elsewhere/"
    assert _has_key()
    settings.base_url = "https://api.wandb.ai"
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert _has_key()


@pytest.fixture
def server(monkeypatch):
    """A socket of this machine, at which W&B is told to be; closed, nobody answers there."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        url = f"http://127.0.0.1:{opened.getsockname()[1]}"
        monkeypatch.setattr(
            wandb, "setup", lambda: SimpleNamespace(settings=SimpleNamespace(base_url=url, api_key="k"))
        )
        monkeypatch.setattr(wandb_run, "getproxies", dict)
        yield opened


def modes(monkeypatch):
    """The modes in which W&B is started from now on; it does not start."""
    seen = []

    def start(settings, **options):
        seen.append(settings.mode)
        raise wandb.errors.CommError("no answer")

    monkeypatch.setattr(wandb, "init", start)
    return seen


def test_a_wandb_that_cannot_start_ends_in_one_line(monkeypatch, tmp_path, server):
    seen = modes(monkeypatch)
    with pytest.raises(ValueError, match=r"W&B cannot be started \(no answer\): set logger\.mode=offline"):
        started(tmp_path, "online")
    assert seen == ["online"]


def test_a_server_that_is_not_there_is_found_out_at_once(monkeypatch, tmp_path, server, caplog):
    seen = modes(monkeypatch)
    server.close()
    with pytest.raises(
        ValueError, match=r"W&B cannot be reached \(127\.0\.0\.1: Connection refused\): set logger\.mode"
    ):
        started(tmp_path, "online")
    assert seen == []
    with pytest.raises(ValueError, match="cannot be started"):  # by our `start`, which never does
        started(tmp_path, "auto")
    assert seen == ["offline"]
    assert "this run is offline" in caplog.text


def test_behind_a_proxy_w_and_b_asks_for_itself(monkeypatch, tmp_path, server):
    seen = modes(monkeypatch)
    server.close()
    monkeypatch.setattr(wandb_run, "getproxies", lambda: {"http": "http://proxy"})
    with pytest.raises(ValueError, match="cannot be started"):
        started(tmp_path, "auto")
    assert seen == ["online"]


def test_a_word_that_is_no_mode(tmp_path):
    with pytest.raises(ValueError, match=r"logger\.mode is 'sometimes': give one of auto, online, offline, disabled"):
        started(tmp_path, "sometimes")
