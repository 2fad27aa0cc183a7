"""Sweeps: every file composes, what is typed goes where it belongs, and jobs are skipped, refused, listed."""

import json
import pickle
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import hydra
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from test_cli import TINY
from torch.quasirandom import SobolEngine

from facelab import door, train
from facelab.job import Job
from facelab.multirun import OR, Point, _check_places, combinations
from facelab.training.record import COLUMNS
from facelab.training.sweeping import look, plain_values
from facelab.tuning import shares, sobol, tried, tuned

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "sweeps").glob("*.yaml"))
TEACHER = ["teacher=best.ckpt"]


@pytest.fixture(scope="module")
def loader():
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(door.configuration_folder()), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


def points_of(path, loader, trials=None):
    """Overrides of every point of a sweep, as it is started without a word more."""
    file = yaml.safe_load(path.read_text())
    tune = file.get("tune", {"trials": 0}) | {"best_of": None} | ({} if trials is None else {"trials": trials})
    return combinations(file["hydra"]["sweeper"]["params"], [], loader, tune)


def stated(text):
    return [int(number.replace(",", "")) for number in re.findall(r"(\d[\d,]*) points", text.split("\nhydra:")[0])]


# The files


@pytest.mark.parametrize("path", [path for path in FILES if path.stem != "tuned"], ids=lambda path: path.stem)
def test_a_file_says_what_it_asks_what_is_known_and_how_many_points_it_has(path, loader):
    text = path.read_text()
    comment = text.split("\nname:")[0].split("\ndefaults:")[0]
    first = comment.splitlines()[1]
    assert "?" in first, "the question comes first"
    assert "ublished" in comment or path.stem == "long_tail"
    assert f"-m sweeps={path.stem}" in comment
    points = points_of(path, loader)
    assert len({tuple(sorted(point)) for point in points}) == len(points) > 1
    if "glob(" in text:
        assert stated(comment) == [], "who adds an option of their own need not count anew"
        assert "three seeds each" in comment
        assert len(points) % 3 == 0
    else:
        assert stated(comment)[-1] == len(points)


def test_every_sweep_composes(loader):
    """A point for each combination of keys, and each loss of sweeps/tune: test_config.py composes every option."""
    seen = set()
    for path in (path for path in FILES if path.stem != "tuned"):
        given = [f"sweeps={path.stem}", "job=x", *(TEACHER if path.stem in ("askd", "distillers") else [])]
        given += ["data.root=x", "benchmark.path=x"] if path.stem == "askd" else []
        for point in points_of(path, loader, trials=1):
            what = (path.stem, *(word.split("=")[0] for word in point), point[0] if path.stem == "tune" else "")
            if what in seen:
                continue
            seen.add(what)
            plain = plain_values(hydra.compose("config", [*given, *point]))
            assert plain["name"] == path.stem, "a sweep has a folder of its own"
            for word in point:
                key, value = word.split("=", 1)
                if "/" not in key and key not in ("loss", "head", "backbone", "distill", "experiment"):
                    assert OmegaConf.select(OmegaConf.create(plain), key) == yaml.safe_load(value), (
                        f"{path.stem}: {word}"
                    )
    assert len(seen) > 25


def test_identities_all_see_as_many_images(loader):
    for batch in (64, 256):
        plain = plain_values(hydra.compose("config", ["sweeps=identities", "job=x", f"trainer.batch_size={batch}"]))
        assert abs(plain["trainer"]["max_steps"] * batch - plain["images_seen"]) < batch


def test_wandb_drives_the_same_command(loader):
    search = yaml.safe_load((ROOT / "sweeps" / "wandb.yml").read_text())
    words = search["command"]
    assert words[:4] == ["${env}", "${interpreter}", "-m", search["program"]]
    assert words[-1] == "${args_no_hyphens}"
    assert search["metric"]["name"] in COLUMNS
    values = [f"{key}={(of['min'] + of['max']) / 2}" for key, of in search["parameters"].items()]
    config = hydra.compose("config", [*words[4:-1], "job=x", *values])
    assert all(str(OmegaConf.select(config, word.split("=")[0])) == word.split("=")[1] for word in values)


# What is typed


PARAMS = {
    "loss": "glob(*,exclude=[contrastive,triplet,sum])",
    "seed": "1,2",
    OR: "loss=contrastive,triplet data/sampler=pk seed=1,2",
}


def test_typed_seeds_hold_for_all_and_a_typed_loss_for_where_it_is(loader):
    everything = combinations(PARAMS, [], loader)
    others = combinations(PARAMS, ["seed=8,9"], loader)
    assert len(everything) == len(others)
    assert {word for point in others for word in point if word.startswith("seed")} == {"seed=8", "seed=9"}
    assert combinations(PARAMS, ["loss=triplet,cosface", "seed=3"], loader) == [
        ["loss=cosface", "seed=3"],
        ["loss=triplet", "data/sampler=pk", "seed=3"],
    ]
    assert combinations(PARAMS, ["loss=mine", "seed=3"], loader) == [["loss=mine", "seed=3"]]
    assert combinations({}, ["seed=1,2", "loss=cosface"], loader) == [
        ["seed=1", "loss=cosface"],
        ["seed=2", "loss=cosface"],
    ]


def test_what_a_file_sweeps_over_names_its_jobs(loader):
    def name(*words):
        return hydra.compose("config", ["sweeps=losses", *words], return_hydra_config=True).job

    assert name("loss=arcface", "seed=1") == "loss=arcface,seed=1" == name()
    assert name("loss=arcface", "seed=4", "optimizer.lr=0.1") == "loss=arcface,seed=4"  # more seeds join the others
    assert name("seed=2", "loss=triplet", "data/sampler=pk") == "loss=triplet,seed=2,data.sampler=pk"


def test_keys_that_an_option_does_not_have_are_no_part_of_its_name(loader):
    config = hydra.compose("config", ["sweeps=groupface", "head=none", "seed=1"], return_hydra_config=True)
    assert config.job == "head=none,seed=1"


# Trials


def test_trials_are_spread_and_the_same_for_all():
    known = SobolEngine(4).draw(40)
    assert [[number / 2**30 for number in sobol(trial)] for trial in range(40)] == known.tolist()
    points = [shares(trial) for trial in range(64)]
    for some in (8, 16, 64):
        bins = [sorted(int(point[place] * some) for point in points[:some]) for place in range(4)]
        assert bins == [list(range(some))] * 4
    one = tried(["loss=a", "lr=between(0.01,1,log)", "m=between(0,4)"], 8)
    two = tried(["loss=b", "lr=between(0.01,1,log)", "m=between(10,14)"], 16)
    assert [words[1] for words in one] == [words[1] for words in two[:8]]
    for (_, rate, margin), share in zip(one, points, strict=False):
        assert float(rate.split("=")[1]) == pytest.approx(0.01 * 100 ** share[0], rel=5e-3)
        assert float(margin.split("=")[1]) == pytest.approx(4 * share[1], abs=5e-3 * 4)


@pytest.mark.parametrize(
    ("word", "trials", "reason"),
    [
        ("lr=between(1)", 2, "cannot read lr=between"),
        ("lr=between(a,b)", 2, "cannot read lr=between"),
        ("lr=between(2,1)", 2, "low must be below high"),
        ("lr=between(0,1,log)", 2, "low must be below high, and above 0"),
        ("lr=between(1,2)", 0, "tune.trials is 0"),
    ],
)
def test_ranges_that_cannot_be_tried(word, trials, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        tried([word], trials)


GRIDS = [["loss=a", "lr=between(1,2)"], ["loss=b", "lr=between(1,2)", "loss.m=between(0,1)", "seed=2"]]


def leave(folder, name, accuracy, **values):
    (folder / name).mkdir(parents=True)
    (folder / name / "config.yaml").write_text(yaml.safe_dump(values))
    if accuracy is not None:
        (folder / name / "metrics.json").write_text(json.dumps({"val/accuracy": accuracy}))


def test_the_best_trial_of_each_is_found_and_unequal_numbers_are_refused(tmp_path):
    leave(tmp_path, "loss=a,lr=1.1", 0.7, lr=1.1)
    leave(tmp_path, "loss=a,lr=1.9", 0.9, lr=1.9)
    leave(tmp_path, "loss=b,lr=1.2,loss.m=0.3", 0.8, lr=1.2, loss={"m": 0.3})
    leave(tmp_path, "loss=b,lr=1.8,loss.m=0.7", None, lr=1.8, loss={"m": 0.7})  # not finished
    with pytest.raises(ValueError, match=r"unequal numbers .*loss=a has 2, loss=b has 1"):
        tuned(GRIDS, tmp_path, "val/accuracy")
    (tmp_path / "loss=b,lr=1.8,loss.m=0.7" / "metrics.json").write_text('{"val/accuracy": 0.2}')
    assert tuned(GRIDS, tmp_path, "val/accuracy") == [
        ["loss=a", "lr=1.9"],
        ["loss=b", "lr=1.2", "loss.m=0.3", "seed=2"],
    ]
    with pytest.raises(ValueError, match="unequal numbers"):
        tuned(GRIDS, tmp_path / "nowhere", "val/accuracy")


def test_tuned_takes_the_ranges_of_tune(tmp_path, loader):
    plain = plain_values(hydra.compose("config", ["sweeps=tuned", "job=x", f"out={tmp_path}"]))
    params = yaml.safe_load((ROOT / "sweeps" / "tune.yaml").read_text())["hydra"]["sweeper"]["params"]
    assert plain["tune"]["best_of"] == f"{tmp_path}/tune"
    for point in combinations(params, [], loader, {"trials": 2, "best_of": None, "by": ""}):
        values = OmegaConf.create({"loss": {}})
        for word in point[1:]:
            OmegaConf.update(values, word.split("=")[0].replace("/", "_"), yaml.safe_load(word.split("=")[1]))
        accuracy = 0.5 + len(list(tmp_path.glob("tune/*"))) / 1000
        leave(tmp_path / "tune", ",".join(point).replace("/", "."), accuracy, **OmegaConf.to_container(values))
    points = combinations(params, ["seed=2"], loader, plain["tune"])
    assert len(points) == len({point[0] for point in points}) == 14
    best = combinations(params, [], loader, {"trials": 2, "best_of": None, "by": ""})[1::2]  # the later one of each
    assert [point[:-1] for point in points] == best


# A job's life


@pytest.fixture
def started(tmp_path, monkeypatch, capsys):
    """Arguments → (exit status, what was printed, what was told), in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FACELAB_TRACEBACK", raising=False)

    def call(*arguments, task=train.run):
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["facelab.train", "-m", *arguments])
        capsys.readouterr()
        try:
            door.open_door(task, "config", "facelab.train", look)
            code = 0
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    yield call
    GlobalHydra.instance().clear()


def pretend(config):
    """Does as if it had trained; seed 2 fails, seed 3 is stopped."""
    from facelab.training.preemption import Interrupted

    where = Path(hydra.core.hydra_config.HydraConfig.get().runtime.output_dir)
    if config.seed == 2:
        raise ValueError("two is not liked")
    if config.seed == 3:
        raise Interrupted("stopped by SIGINT")
    if config.seed == 4:
        sys.exit(3)
    (where / "config.yaml").write_text(yaml.safe_dump(plain_values(config)))
    (where / "metrics.json").write_text('{"heldout/accuracy": 0.75}')


def test_a_failed_job_stops_nobody_and_is_listed_and_finished_ones_are_skipped(started, tmp_path):
    """A real one: two tiny trainings, of which one is refused when it is built."""
    words = [*TINY, "name=pair", "logger=csv", "loss=cosface", "trainer.max_steps=2", "trainer.progress=false"]
    code, out, err = started(*words, "loss.margin=7,0.3")
    assert code == 1
    *_, summary, line = err.splitlines()
    assert summary.startswith("facelab: 1 of 2 jobs in runs/pair failed; ")
    assert ": margin=7 is out of range" in line
    log = tmp_path / line.split(" [", 1)[1].removesuffix("]")
    assert (log.parent.parent, log.name) == (tmp_path / "runs/pair", "train.log")
    assert "Traceback" in log.read_text()
    (good,) = tmp_path.glob("runs/pair/*/metrics.json")
    before = (good.parent / "environment.json").read_text()

    code, out, err = started(*words, "loss.margin=7,0.3,0.4", task=pretend)
    assert (code, err) == (0, "")
    assert f"finished  {good.parent.name}  heldout/accuracy " in out
    assert "runs/pair: 3 of 3 jobs are finished" in out
    assert (good.parent / "environment.json").read_text() == before  # it was not started again


def test_an_interruption_stops_all_and_an_exit_only_its_job(started, tmp_path):
    code, _, err = started("seed=1,3,5", task=pretend)
    assert (code, err) == (130, "facelab: stopped by SIGINT\n")
    assert sorted(path.name for path in tmp_path.glob("runs/default/*")) == ["defaults"]
    code, out, err = started("seed=4,5", task=pretend)
    assert code == 1
    assert "seed=4: SystemExit: 3 [runs/default/seed=4/train.log]" in err
    assert "1 of 2 jobs are finished" in out


def test_what_cannot_work_is_refused_before_any_job(started, tmp_path):
    def refused(*arguments):
        code, _, err = started(*arguments, task=pretend)
        assert code == 1
        assert err.count("\n") == 1
        return err.removeprefix("facelab: ")

    line = refused("seed=1,2", "trainer.devices=2")
    assert line.startswith("trainer.devices × trainer.num_nodes is 2, and in a multirun every further process would")
    assert "submitit" in line
    assert refused("seed=1,2", "job=same").startswith("2 of the 2 jobs would share the run directory runs/default/same")
    assert refused("sweeps=losse").startswith("sweeps has no option 'losse': did you mean losses")
    assert refused("seed=1,2", "loss.margn=1").startswith("there is no key 'loss.margn': did you mean loss.margin")
    assert refused("seed=1,2", "nowhere=3").startswith("there is no key 'nowhere'")
    assert refused("loss=cosface,arcfce").startswith("loss has no option 'arcfce': did you mean arcface")
    assert not list(tmp_path.iterdir())


def test_equal_machines_for_all_jobs_of_a_submission():
    from facelab.multirun import Look, _check_processes

    def point(devices, nodes=1):
        return Point([], None, "x", Path("x"), Look(None, {"trainer.devices": devices, "trainer.num_nodes": nodes}))

    _check_processes([point(2), point(2)], launched=True)
    _check_processes([], launched=False)
    with pytest.raises(
        ValueError, match=r"trainer\.devices is swept, .* split .* \(trainer\.devices=1 and trainer\.devices=4\)"
    ):
        _check_processes([point(1), point(4)], launched=True)
    with pytest.raises(ValueError, match=r"trainer\.num_nodes is swept"):
        _check_processes([point(2, 1), point(2, 2)], launched=True)
    with pytest.raises(ValueError, match="would start a multirun of its own"):
        _check_processes([point(1, 2)], launched=False)
    _check_places([point(1)], "runs")


def test_what_a_run_directory_may_hold(started, tmp_path):
    folder = tmp_path / "runs/default/seed=5"
    folder.mkdir(parents=True)  # empty
    code, out, _ = started("seed=5", task=pretend)
    assert (code, "1 of 1 jobs are finished" in out) == (0, True)
    (folder / "metrics.json").unlink()  # half written: it goes on
    assert started("seed=5", task=pretend)[0] == 0
    (folder / "metrics.json").write_text('{"heldout/acc')
    code, _, err = started("seed=5,6", task=pretend)
    assert (code, err) == (
        1,
        f"facelab: {folder}/metrics.json holds no numbers: delete that file, and the run makes its report again\n",
    )
    (folder / "metrics.json").unlink()
    stored = folder / "config.yaml"
    stored.write_text(stored.read_text().replace("epochs: 5\n", "epochs: 4\n"))
    code, _, err = started("seed=5,6", task=pretend)
    assert code == 1
    assert f"run directory {folder} holds a run of another configuration (trainer.epochs: 4 → 5)" in err
    assert not (tmp_path / "runs/default/seed=6").exists()


def test_a_launcher_that_gives_up_leaves_those_that_are_done(started, monkeypatch, tmp_path):
    def launch(self, job_overrides, initial_job_idx):
        pretend_done = tmp_path / "runs/default/seed=5"
        pretend_done.mkdir(parents=True)
        (pretend_done / "metrics.json").write_text('{"heldout/accuracy": 0.5}')
        raise RuntimeError("a worker was killed")

    from hydra.core.plugins import Plugins

    known = Plugins.instance().class_name_to_class
    monkeypatch.setattr(known["hydra._internal.core_plugins.basic_launcher.BasicLauncher"], "launch", launch)
    code, out, err = started("seed=5,6", task=pretend)
    assert code == 1
    assert "seed=6: has no result, since the launcher gave up (RuntimeError: a worker was killed)" in err
    assert "seed=5:" not in err
    assert "1 of 2 jobs are finished" in out


def test_a_worker_that_unpickles_a_job_knows_how_to_name_it(tmp_path):
    """As joblib's and submitit's do, which have never opened the door."""
    (tmp_path / "job").write_bytes(
        pickle.dumps(Job(train.run, look, partial(door._explain, folder="x"), "facelab.train"))
    )
    code = (
        "import pickle, sys\nfrom omegaconf import OmegaConf\npickle.load(open(sys.argv[1], 'rb'))\n"
        "print(*map(OmegaConf.has_resolver, ('facelab.job', 'facelab.steps')), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "job"], capture_output=True, text=True, check=True)
    assert done.stdout == "True True False\n"
