"""What a run is called, and what one is told who mistypes."""

import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import cv2
import hydra
import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from facelab import door, train
from facelab.training.preemption import Interrupted

ROOT = Path(__file__).resolve().parents[1]
# A run so small that reaching its first check costs little.
SMALL = [
    "logger=csv",
    "data.identities=20",
    "data.images_per_identity=4",
    "data.holdout.fraction=0.4",
    "benchmark.count=20",
    "benchmark.folds=2",
    "trainer.batch_size=8",
    "trainer.max_steps=1",
]


# Names of jobs


@pytest.fixture(scope="module")
def job():
    """Overrides → the job's name."""
    OmegaConf.register_new_resolver("facelab.job", door._job_name, use_cache=False, replace=True)
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(door.configuration_folder()), version_base="1.3"):
        yield lambda *overrides: hydra.compose("config", list(overrides), return_hydra_config=True).job


def test_nothing_chosen(job):
    assert job() == "defaults"


def test_the_same_choices_in_any_order_have_one_name(job):
    overrides = ["loss=cosface", "seed=3", "optimizer.lr=0.05"]
    names = set()
    for seed in range(3):
        random.Random(seed).shuffle(overrides)
        names.add(job(*overrides))
    assert names == {"loss=cosface,seed=3,optimizer.lr=0.05"}


def test_what_says_the_default_is_no_choice(job):
    same = ["loss=arcface", "seed=1", "optimizer.lr=0.1", "optimizer/schedule=poly", "trainer.max_steps=null"]
    assert job(*same, "backbone.layers=[1,1,1,1]", "loss.scale=64") == "defaults"
    assert job(*same, "trainer.epochs=7") == "trainer.epochs=7"


def test_the_default_is_that_of_the_chosen_option(job):
    # 0.0005 is SGD's weight decay, and 256 the tiny network's embedding size: with other options they are choices.
    assert job("optimizer=adamw", "optimizer.weight_decay=5e-4") == "optimizer=adamw,optimizer.weight_decay=0.0005"
    assert job("backbone.embedding_size=256", "backbone=r50") == "backbone=r50,backbone.embedding_size=256"
    assert job("backbone.embedding_size=512", "backbone=r50") == "backbone=r50"
    assert job("optimizer=adamw", "optimizer/schedule=poly") == "optimizer=adamw,optimizer.schedule=poly"
    assert job("optimizer=adamw", "optimizer/schedule=cosine") == "optimizer=adamw"


def test_a_number_has_one_spelling(job):
    assert len({job(f"optimizer.lr={lr}") for lr in ("0.05", "5e-2", "5.0E-2", "0.050")}) == 1
    assert len({job(f"trainer.compile={word}") for word in ("true", "True", "TRUE")}) == 1
    assert job("optimizer.lr=0.05") != job("optimizer.lr=0.5")


def test_where_and_how_comfortably_does_not_name(job):
    overrides = ["out=elsewhere", "name=series", "logger=csv", "trainer.progress=false", "data.loader.threads=8"]
    assert job(*overrides) == "defaults"
    assert job("trainer.progress=false", "seed=2") == "seed=2"
    assert job("logger.project=x", "seed=2") == "seed=2"
    assert job("+outer=1", "+names=2") == "names=2,outer=1"  # like a nameless key, and none


@pytest.mark.parametrize("word", ["data.sampler=pk", "data.augment=adaface", "optimizer.schedule=cosine"])
def test_a_group_in_a_group_may_be_written_with_a_dot(job, word):
    written = door._grouped(word, str(door.configuration_folder()))
    key, option = word.split("=")
    assert written == f"{key.replace('.', '/')}={option}"
    assert job(written, "seed=2") == f"seed=2,{word}"


def test_values_and_what_is_no_option_stay_as_typed():
    folder = str(door.configuration_folder())
    assert door._grouped("data.sampler=pk,shuffled", folder) == "data/sampler=pk,shuffled"
    kept = ["data.sampler.images=2", "data/sampler=pk", "loss=arcface", "data.augment=null", "data.holdout=pk"]
    kept += ["data.augment={mirror: 0}", "data.sampler=", "data.root=conf/x", "-m", "~data.sampler", "nowhere.else=x"]
    assert [door._grouped(word, folder) for word in kept] == kept


def test_ones_own_name(job):
    assert job("job=mine", "loss=cosface") == "mine"


def test_paths_are_shortened_to_what_tells_them_apart(job):
    assert job("data=folder", "data.root=/very/long/way/to/faces/mine") == "data=folder,data.root=faces_mine"
    assert job("data=folder", "data.root=../faces/") == "data=folder,data.root=faces"
    assert job("data=folder", "data.root='/a b/c d'") == "data=folder,data.root=a_b_c_d"


def test_no_character_that_a_shell_or_a_path_minds(job):
    name = job("backbone.layers=[1,2,2,1]", "data=folder", "data.root='a$b;c&d'", "+note='x=1, y/z'")
    assert not set(name) & set(" /\\$;&|*?'\"(){}<>`!~")


def test_deleting_is_a_choice(job):
    assert job("~logger", "~head") == "~head"


def test_long_names_are_cut_and_stay_apart(job):
    long = [f"+key_{number}=value_{number}" for number in range(20)]
    one, two = job(*long, "+z=1"), job(*long, "+z=2")
    assert one != two
    assert one[:100] == two[:100] == job(*long)[:100]
    assert max(map(len, (one, two))) == door.LONGEST_NAME + 9
    assert job(*reversed(long), "+z=1") == one


@pytest.fixture(scope="module")
def evaluation(job):
    """The same of an evaluation."""
    return lambda *overrides: hydra.compose("evaluate", list(overrides), return_hydra_config=True).job


def test_an_evaluation_is_named_by_checkpoint_and_benchmark(evaluation):
    best = "checkpoint='runs/losses/loss=cosface,seed=2/checkpoints/best.ckpt'"
    assert evaluation(best) == "losses_loss=cosface,seed=2_best"
    assert evaluation(best.replace("best", "last")) == "losses_loss=cosface,seed=2_last"
    named = evaluation(best, "benchmark=pairs", "benchmark.path=data/lfw.bin", "logger=csv", "batch_size=9", "out=x")
    assert named == "losses_loss=cosface,seed=2_best,benchmark.path=data_lfw.bin"
    published = evaluation("backbone=mobilefacenet", "checkpoint=../weights/y1.npz", "benchmark.path=a.bin")
    assert published == "weights_y1,backbone=mobilefacenet,benchmark.path=a.bin"
    assert "/" not in evaluation("checkpoint=best.ckpt")


# One line


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """Arguments → the one line that the user is told; no run may be left behind."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.delenv("FACELAB_TRACEBACK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def call(*arguments, small=SMALL):
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["facelab.train", f"out={tmp_path / 'runs'}", *small, *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            train.main()
        err = capsys.readouterr().err
        assert ended.value.code == 1, err
        assert err.startswith("facelab: ")
        assert err.count("\n") == 1, err
        left = [str(path) for path in tmp_path.glob("runs/*")]
        assert left == [], "a folder is left"
        return err.removeprefix("facelab: ").rstrip("\n")

    yield call
    GlobalHydra.instance().clear()
    root.handlers[:], root.level = handlers, level


def test_an_unknown_option(told):
    line = told("loss=arcfce")
    assert line.startswith("loss has no option 'arcfce': did you mean arcface")
    assert line.endswith(
        "There are " + ", ".join(sorted(path.stem for path in (ROOT / "conf" / "loss").glob("*.yaml")))
    )
    assert told("optimizer/schedule=cosin").startswith("optimizer/schedule has no option 'cosin': did you mean cosine?")


def test_a_group_in_a_group_with_a_dot(told):
    assert told("data.sampler=pq").startswith("data/sampler has no option 'pq': did you mean pk?")
    line = told("data.sampler=pk", "data.sampler.images=3")
    assert line.startswith("data.sampler.images is 3, which does not divide trainer.batch_size=8: ")


def test_samplers_that_do_not_fit_are_refused_before_training(told):
    few = "data/sampler=pk: 12 of 12 people have fewer than 8 images, 0 of them only one: lower data.sampler.images"
    words = ["data/sampler=pk", "data.sampler.images=8", "trainer.batch_size=16"]
    assert told(*words, "data.images_per_identity=7").startswith(few)
    assert told("data/sampler=adaptive", "loss=triplet").startswith(
        "data/sampler=adaptive draws by whether images are "
    )
    line = told("data/sampler=adaptive", "data.sampler.noise_cosine=0.1", "loss=softmax")
    assert line.startswith("data.sampler.noise_cosine is 0.1, and Softmax has no cosines: set it to null")
    assert told("data/sampler=adaptive", "data.sampler.up=x").startswith("data.sampler.up is 'x': give a value of type")


def test_an_unknown_key(told):
    assert told("trainer.epoch=2").startswith("there is no key 'trainer.epoch': did you mean trainer.epochs")
    assert told("epochs=2").startswith("there is no key 'epochs': did you mean trainer.epochs?")
    assert told("los=arcface").startswith("there is no key 'los': did you mean loss?")
    line = told("data=folder", "data.rot=x")
    assert line.startswith("there is no key 'data.identities' with data=folder: ")  # of SMALL, and folder has none
    assert "did you mean data.identities" not in line
    line = told("data=folder", "data.rot=x", small=[])
    assert line.startswith("there is no key 'data.rot' with data=folder: did you mean data.root")


def test_a_key_without_a_value(told):
    line = told("data=folder", small=["logger=csv"])
    assert line == "data.root has no value, and there is no default for it: add data.root=… to the command"
    # What another key is to be taken from is missing under its own name.
    line = told("experiment=askd", "data.root=x", "benchmark.path=x.bin", small=["logger=csv"])
    assert line == "teacher has no value, and there is no default for it: add teacher=… to the command"


def test_files_that_are_missing_or_truncated(told, tmp_path):
    missing = tmp_path / "nowhere"
    assert told("data=folder", f"data.root={missing}", small=["logger=csv"]).startswith(f"{missing}: no such folder")
    assert told(f"benchmark.path={missing}.bin").startswith(f"benchmark.path={missing}.bin: no such file")
    folder = tmp_path / "records"
    folder.mkdir()
    (folder / "property").write_text("2,112,112")
    (folder / "train.rec").write_bytes(bytes(64))
    (folder / "train.idx").write_text("0\t0\n1\t9000\n")
    line = told("data=recordio", f"data.root={folder}", small=["logger=csv"])
    assert "train.rec is truncated" in line


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("trainer.accelerator=gpu", "trainer.accelerator=gpu asks for CUDA, and torch sees no GPU here"),
        ("trainer.batch_size=4096", "trainer.batch_size is 4096, but only 48 images are there to train on"),
        ("trainer.devices=x", "trainer.devices is 'x': give a value of type int"),
        ("backbone.layers=[1,2]", "backbone.layers is [1, 2]: give four positive numbers"),
        ("optimizer.lr=-1", "optimizer.lr is -1: give a number above 0"),
        ("optimizer.lr=fast", "optimizer.lr is 'fast': give a value of type float"),
        ("optimizer.schedule.power=x", "optimizer.schedule.power is 'x': give a value of type float"),
        ("loss.scale=abc", "loss.scale is 'abc': give a value of type float"),
        ("benchmark.count=abc", "benchmark.count is 'abc': give a value of type int"),
        ("data.identities=many", "data.identities is 'many': give a value of type int"),
        ("optimizer.clip_norm=[1]", "optimizer.clip_norm is [1]: give a value of type float or null"),
        ("loss.margin=7", "margin=7 is out of range"),
        ("head._target_=facelab.head.nothing.Nothing", "No module named 'facelab.head.nothing'"),
        ("seed=one", "seed is 'one': give a whole number"),
        ("seed=-1", "seed is -1: give a whole number"),
        ("logger.mode=sometimes", "logger.mode is 'sometimes': give one of auto, online, offline, disabled"),
        ("data.holdout.fraction=half", "fraction of held-out identities is 'half'"),
        ("data.holdout.fraction=1.5", "fraction of held-out identities is 1.5"),
        ("data.take.identities=1.5", "data.take.identities is 1.5: give how many, from 2 on, or a fraction"),
        ("data.take.identities=5000", "data.take.identities is 5,000, but there are "),
        ("data.take.noise.fraction=1.0", "data.take.noise.fraction is 1.0: give a fraction from 0 on and below 1"),
        ("data.take.long_tail=null", "data.take.long_tail is None: change the keys below it one by one"),
        ("data.loader.threads=0", "threads is 0"),
        ("data.loader.prefetch=x", "data.loader.prefetch is 'x': give a value of type int"),
        ("data.augment.mirror=2", "mirror is 2: it is a probability"),
        ("nonsense", "cannot read nonsense"),
        ("nowhere.lr=1", "there is no key 'nowhere.lr': did you mean optimizer.lr?"),
        ("--foo", "--foo is no flag: "),
        ("--multirnu", "--multirnu is no flag: did you mean --multirun"),
        ("--loss=arcface", "--loss=arcface is no flag: choices are written without dashes, loss=arcface"),
        ("--cfg=jobs", "argument --cfg/-c: invalid choice: 'jobs' "),
        ("trainer.epochs=[", "cannot read trainer.epochs=["),
    ],
)
def test_wrong_values(told, argument, line):
    small = [word for word in SMALL if word != "logger=csv"] if argument.startswith("logger") else SMALL
    assert told(argument, small=small).startswith(line)


def test_what_a_run_needs_cannot_be_taken_away(told):
    assert told("~trainer", small=[]).startswith("~trainer takes away what a run cannot do without")


def test_a_run_directory_that_cannot_be_made(told, tmp_path):
    (tmp_path / "file").write_text("in the way")
    line = told(f"out={tmp_path / 'file'}", "job=mine")
    assert line.startswith(f"run directory {tmp_path / 'file' / 'default' / 'mine'} cannot be made (Not a directory): ")
    assert line.endswith("give another place with out=FOLDER")


def test_the_systems_own_word_is_completed(told, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device", "scores.npz")

    monkeypatch.setattr("facelab.training.fit._build", full)
    line = told("job=mine")
    assert line == "scores.npz: No space left on device; put that right, and start the same command again"


def test_faces_that_are_not_square_are_refused_before_training(told, tmp_path):
    for person in range(12):
        folder = tmp_path / "faces" / str(person)
        folder.mkdir(parents=True)
        for number in range(8):
            cv2.imwrite(str(folder / f"{number}.png"), np.full((40, 48, 3), person, np.uint8))
    words = [word for word in SMALL if not word.startswith(("data.id", "data.im"))]
    line = told("data=folder", f"data.root={tmp_path / 'faces'}", "data.inspect.images=false", small=words)
    assert line.startswith(f"{tmp_path / 'faces'}")
    assert "is 40×48 pixels, not square" in line


def test_a_benchmark_of_another_size_is_refused_before_training(told):
    assert "the network is trained on (112, 112, 3): make benchmark.size" in told("benchmark.size=64")


def test_faults_of_ours_keep_their_traceback(monkeypatch):
    def task(config):
        raise KeyError("a bug")

    monkeypatch.setattr(sys, "argv", ["facelab.train", "out=unused", "hydra.run.dir=."])
    GlobalHydra.instance().clear()
    with pytest.raises(KeyError, match="a bug"):
        door.open_door(task, "config", "facelab.train")


def test_on_request_errors_keep_theirs(monkeypatch, tmp_path):
    monkeypatch.setenv("FACELAB_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["facelab.train", f"out={tmp_path}", *SMALL, "trainer.devices=x"])
    GlobalHydra.instance().clear()
    with pytest.raises(Exception, match=r"trainer\.devices is 'x'"):
        train.main()


def test_an_interruption_ends_with_its_code_and_leaves_no_folder(monkeypatch, capsys, tmp_path):
    def task(config):
        assert (tmp_path / "default" / "mine").is_dir()
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["facelab.train", f"out={tmp_path}", "job=mine"])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as ended:
        door.open_door(task, "config", "facelab.train")
    assert ended.value.code == 130
    assert capsys.readouterr().err.startswith("facelab: interrupted")
    assert not list(tmp_path.iterdir())


def test_choices_on_both_sides_of_a_flag(told):
    assert told("-m", "seed=1,2").startswith("seed=1,2 stands behind a flag and choices before it: ")


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_only_the_first_says_that_it_has_stopped(monkeypatch, capsys, tmp_path, rank):
    def task(config):
        raise Interrupted("stopped by SIGINT")

    monkeypatch.setattr(sys, "argv", ["facelab.train", f"out={tmp_path}", "job=mine"])
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as ended:
        door.open_door(task, "config", "facelab.train")
    assert ended.value.code == 130
    assert capsys.readouterr().err == ("" if rank else "facelab: stopped by SIGINT\n")


@pytest.mark.parametrize("program", ["facelab.train", "facelab.evaluate"])
def test_an_interruption_while_hydra_is_being_imported(tmp_path, program):
    (tmp_path / "hydra.py").write_text("raise KeyboardInterrupt")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "facelab: interrupted; nothing was begun\n")


def test_from_a_shell(tmp_path):
    """As the user meets it: nothing before the line, nothing behind it, and no folder."""
    command = [sys.executable, "-m", "facelab.train", f"out={tmp_path / 'runs'}", *SMALL]
    environment = {key: value for key, value in os.environ.items() if key not in ("HYDRA_FULL_ERROR",)}
    done = subprocess.run([*command, "loss=arcfce"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("facelab: loss has no option 'arcfce'")
    assert done.stderr.count("\n") == 1
    done = subprocess.run([*command, "trainer.devices=x"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "facelab: trainer.devices is 'x': give a value of type int\n"
    assert not list(tmp_path.glob("runs/*/*"))
