"""Jobs on a real Slurm of one machine: `make test-slurm` starts it, and takes it down again.

All are submitted at the start and interrupted as they run; meanwhile this process computes what has to come out.
"""

import csv
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hydra
import numpy as np
import pytest
from omegaconf import OmegaConf
from safetensors import safe_open
from test_cli import FACES

from facelab import status
from facelab.door import configuration_folder
from facelab.training import fit
from facelab.training.module import FaceModule
from facelab.training.stored import files_of

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(
        "FACELAB_TEST_CLUSTER" not in os.environ,
        reason="needs a Slurm cluster that may be disturbed: make test-slurm starts one (root, Debian's slurm-wlm)",
    ),
]

ROOT = Path(__file__).resolve().parents[2]
CLOCK = ("images_per_s", "seconds")  # what a clock measures is never twice the same
STEPS = 64
TINY = [
    "logger=csv",
    *FACES,
    "trainer.accelerator=cpu",
    "trainer.precision=fp32",
    "trainer.accumulate=1",
    "trainer.log_every=1",
    "trainer.progress=false",
    "data.augment._target_=steady.Steady",
]
LONG = [f"trainer.max_steps={STEPS}", "trainer.epochs=20", "trainer.batch_size=8", "trainer.validate_every=3"]
RANKS = [*LONG, "backbone.dropout=0", "trainer.devices=2", "optimizer.lr=0.01", "loss.scale=16"]
SWEPT = ["loss=softmax,cosface,contrastive", "seed=1,2", "trainer.max_steps=4"]
SIX = 6  # points of that sweep
LONGER = ["hydra.launcher.timeout_min=60", "+data.augment.seconds=1", "+data.augment.frozen=true"]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1"]
LAUNCHERS = {  # of Hydra, submitit and joblib
    **{"array": SLURM, "local": ["hydra/launcher=local"], "basic": []},
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
}
SBATCH = ["--gpus-per-node=0", "--cpus-per-task=1"]
WARNING = 120  # seconds before the limit; Slurm looks at the limits every 30


def steady(seconds, frozen=False):
    return [f"+data.augment.seconds={seconds}", f"+data.augment.frozen={str(frozen).lower()}"]


LAUNCHED = []  # commands that would wait for ever where a test has failed and the cluster is gone


def surroundings():
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}",
        "OMP_NUM_THREADS": "1",
    }


def multirun(folder, *words, launcher=SLURM):
    """A command that waits for its jobs."""
    with open(folder / f"{words[0]}.log", "w") as log:
        command = [sys.executable, "-m", "facelab.train", "-m", *words, *TINY, *launcher]
        process = subprocess.Popen(command, cwd=folder, env=surroundings(), stdout=log, stderr=log)
    LAUNCHED.append(process)
    return process


def submit(folder, *words):
    done = subprocess.run(words, cwd=folder, env=surroundings(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def alone(where, *words):
    """The same in this process, undisturbed and without pauses."""
    OmegaConf.register_new_resolver("facelab.job", lambda: "alone", replace=True)
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        config = hydra.compose("config", [*TINY, *words, "trainer.devices=1"])
    with pytest.MonkeyPatch.context() as patch:
        for name in ("configure_model", "_calibrate"):
            patch.setattr(FaceModule, name, getattr(FaceModule, name))  # put back afterwards
        return fit.train(config, OmegaConf.to_container(config, resolve=True), where, one_process=False)


def wait_for(found, what, seconds=600):
    until = time.monotonic() + seconds
    while not found():
        if time.monotonic() > until:
            told = subprocess.run("squeue; tail -n 20 *.log *.out", shell=True, capture_output=True, text=True)
            pytest.fail(f"{what} within {seconds} s\n{told.stdout}")
        time.sleep(0.5)


def history(run):
    path = run / "metrics.csv"
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)]


def tensors(run):
    """What last.ckpt holds of all ranks, as one process would have written it."""
    found = {}
    for path in files_of(run / "checkpoints" / "last.ckpt"):
        with safe_open(path, "np") as file:
            for key in list(file.keys()):
                found.setdefault(key, []).append(file.get_tensor(key))
    return {key: parts[0] if len(parts) == 1 else np.concatenate(parts) for key, parts in found.items()}


def starts(run):
    return json.loads((run / "environment.json").read_text())["starts"]


def shorten(folder, job):
    """Brings the time limit so near that Slurm warns the job when it looks next."""
    ran = submit(folder, "squeue", "-h", "-j", job, "-o", "%M").strip().split(":")
    submit(folder, "scontrol", "update", f"JobId={job}", f"TimeLimit={int(ran[-2]) + 2}")
    state = ["squeue", "-h", "-j", job, "-o", "%T"]
    wait_for(lambda: submit(folder, *state).strip() == "PENDING", f"job {job} is queued again")
    submit(folder, "scontrol", "update", f"JobId={job}", "TimeLimit=60")


def trains(run, start, steps=4):
    """Waits until a start has done some steps; gives the id of its job."""

    def does():
        there = (run / "environment.json").is_file() and starts(run)
        return there and len(there) == start and len(history(run)) >= start * steps

    wait_for(does, f"start {start} of {run.name} trains")
    return starts(run)[-1]["slurm"]


def disturb(folder, run):
    """Has a job queued again at its first start, and at its second one lets it reach its limit."""
    submit(folder, "scontrol", "requeue", trains(run, 1))
    shorten(folder, trains(run, 2))


@pytest.fixture(scope="module", autouse=True)
def _nobody_waits():
    yield
    for process in LAUNCHED:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """The folder in which all have ended; with what was seen of them while they ran."""
    folder = tmp_path_factory.mktemp("jobs")
    runs = folder / "runs"
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor() as threads:
        patch.chdir(folder)
        patch.syspath_prepend(str(Path(__file__).parent))
        ranks = multirun(folder, "name=ranks", "job=two", *RANKS, f"hydra.launcher.signal_delay_s={WARNING}", *LONGER)
        hand = [*TINY, *LONG, "name=hand", "job=disturbed", *steady(1)]
        script = str(ROOT / "slurm" / "train.sbatch")
        submit(folder, "sbatch", *SBATCH, "--time=60", f"--signal=B:USR1@{WARNING}", script, *hand)
        of_hand = threads.submit(disturb, folder, runs / "hand" / "disturbed")
        of_ranks = threads.submit(lambda: shorten(folder, trains(runs / "ranks" / "two", 1)))
        trains(runs / "hand" / "disturbed", 1)

        commands = {
            name: multirun(folder, f"name={name}", *SWEPT, *steady(0), launcher=launcher)
            for name, launcher in LAUNCHERS.items()
        }
        wrong = ["trainer.batch_size=12,100000", "trainer.max_steps=4", *steady(0)]
        commands |= {"ranks": ranks, "failing": multirun(folder, "name=failing", *wrong)}
        script = str(ROOT / "slurm" / "sweep.sbatch")
        points = ["name=by_hand", "job='s${seed}'", "seed=1,2", "trainer.max_steps=2", *steady(0)]
        submit(folder, "bash", script, *SBATCH, *TINY, *points)
        seen = status.look([runs / "by_hand"], status.Slurm.ask())

        alone(folder / "alone" / "undisturbed", *LONG, *steady(0))
        alone(folder / "alone" / "one", *RANKS, *steady(0, frozen=True))
        of_hand.result()
        of_ranks.result()
        codes = {name: command.wait(600) for name, command in commands.items()}
        for run in ("hand/disturbed", "by_hand/s1", "by_hand/s2"):
            wait_for((runs / run / "metrics.json").is_file, f"{run} ends")
        yield folder, codes, seen


def points(folder, name):
    """What a sweep has measured, by the names of its jobs; without what a clock says."""
    files = sorted((folder / "runs" / name).glob("*/metrics.json"))
    return {
        file.parent.name: {k: v for k, v in json.loads(file.read_text()).items() if k not in CLOCK} for file in files
    }


@pytest.mark.parametrize("name", ["array", "local", "joblib"])
def test_a_sweep_gives_the_same_numbers_whoever_launches_it(jobs, name):
    folder, codes, _ = jobs
    assert codes[name] == codes["basic"] == 0, (folder / f"name={name}.log").read_text()
    basic = points(folder, "basic")
    assert len(basic) == len({json.dumps(numbers) for numbers in basic.values()}) == SIX
    assert points(folder, name) == basic
    for job in basic:
        found, wanted = (tensors(folder / "runs" / sweep / job) for sweep in (name, "basic"))
        assert found.keys() == wanted.keys()
        assert all(found[key].tobytes() == value.tobytes() for key, value in wanted.items()), job


def test_a_job_that_fails_leaves_the_others_alone_and_says_why(jobs):
    folder, codes, _ = jobs
    assert codes["failing"] == 1
    assert "trainer.batch_size is 100000" in (folder / "name=failing.log").read_text()
    rows = status.look([folder / "runs" / "failing"], status.Slurm.ask())
    assert [row.state for row in rows] == ["failed", "done"]
    assert "trainer.batch_size is 100000" in rows[0].told


def test_two_ranks_warned_of_their_time_limit_end_as_one_process(jobs):
    folder, codes, _ = jobs
    run, one = folder / "runs" / "ranks" / "two", folder / "alone" / "one"
    assert codes["ranks"] == 0, (folder / "name=ranks.log").read_text()
    begun = starts(run)
    assert len(begun) >= 2
    assert len({start["slurm"] for start in begun}) == 1  # the same job, queued again
    rows, wanted = history(run), history(one)
    assert [row["step"] for row in rows] == [row["step"] for row in wanted]
    assert int(rows[-1]["step"]) == STEPS
    # Sums in another order come to differ by 1e-4 in the end; a step too many, or a wrong share, by far more.
    for row, right in zip(rows, wanted, strict=True):
        for column, limit in (("train/loss", 1e-3), ("train/grad_norm", 1e-2)):
            if right[column]:
                assert float(row[column]) == pytest.approx(float(right[column]), rel=limit), (row["step"], column)
    found, expected = tensors(run), tensors(one)
    assert found.keys() == expected.keys()
    assert "optimizer.loss.classifier.weight.momentum_buffer" in found
    for key in (key for key in expected if key.startswith("model.") and expected[key].ndim > 1):
        distance = np.linalg.norm(found[key] - expected[key])
        assert distance < 1e-2 * np.linalg.norm(expected[key]), key


def test_requeued_and_warned_it_ends_as_undisturbed_bit_for_bit(jobs):
    folder, _, _ = jobs
    run, undisturbed = folder / "runs" / "hand" / "disturbed", folder / "alone" / "undisturbed"
    assert len(starts(run)) >= 3  # requeued by hand, and at its limit
    log = next(folder.glob("facelab-*.out")).read_text()
    assert "stopped by SIGTERM" in log
    assert "stopped by SIGUSR1" in log
    assert history(run) == history(undisturbed)
    found, expected = tensors(run), tensors(undisturbed)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].tobytes() == value.tobytes(), key


def test_a_sweep_by_hand_is_an_array_that_nobody_waits_for(jobs):
    folder, _, seen = jobs
    assert {row.name for row in seen} == {"s1", "s2"}
    assert {row.state for row in seen} <= {"queued", "running"}
    rows = status.look([folder / "runs" / "by_hand"], status.Slurm.ask())
    assert [(row.name, row.state) for row in rows] == [("s1", "done"), ("s2", "done")]
    ids = [starts(folder / "runs" / "by_hand" / name)[0]["slurm"] for name in ("s1", "s2")]
    array, number = ids[0].split("_")
    assert ids == [f"{array}_0", f"{array}_1"]
    assert number == "0"


def test_several_machines_are_asked_for_by_the_third_script(jobs):
    script = ROOT / "slurm" / "multinode.sbatch"
    words = ["sbatch", "--test-only", *SBATCH, "--nodes=1", "--ntasks-per-node=2", str(script)]
    done = subprocess.run(words, env=surroundings(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "using 2 processors" in done.stderr
