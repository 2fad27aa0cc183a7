"""The run directory: one folder that holds all that a run was and found, and that knows how to go on.

See docs/run_directory.md for its files. Its life: started again, an unfinished run resumes, a finished one shows its
result, and another configuration in the same place is refused.
"""

import contextlib
import csv
import fcntl
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from facelab.atomic import UNFINISHED, atomic
from facelab.secrecy import refuse_values, without_secrets
from facelab.training.sameness import changes, is_longer, only_length, told
from facelab.trusted import parse

COLUMNS = (
    "step",
    "images",
    "epoch",
    "lr",
    "train/loss",
    "train/accuracy",
    "train/grad_norm",
    "train/angle_median",
    "train/norm_median",
    "images_per_s",
    "seconds",
    "val/accuracy",
    "val/accuracy_std",
    "val/auc",
    "val/eer",
)
GROWING = ("train/", "val/top")  # how the names begin of what has a column only where it occurs
PACKAGES = ("facelab", "torch", "pytorch-lightning", "hydra-core", "numpy", "opencv-python-headless", "timm", "wandb")


class RunDirectory:
    """A run's folder.

    Args:
        path: the folder; made if it is not there.
        config: the resolved configuration as plain dicts, lists and scalars.
        writes: whether this process writes (rank 0); the others only read.
        extends: whether the run may be a longer one than the folder's, as `resume=` asks for.

    Attributes:
        extended: key → (value of the folder's run, value now), where it is a longer one.

    Raises:
        ValueError: where the folder holds a run of another configuration (the differing keys are named), belongs to a
            running process, or cannot be written; or where the configuration holds a secret.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], writes: bool = True, extends: bool = False):
        refuse_values(config)
        self.path, self.writes = path, writes
        self.extended: dict[str, tuple[Any, Any]] = {}
        self.last = path / "checkpoints" / "last.ckpt"
        self.previous = path / "checkpoints" / "previous.ckpt"
        self.best = path / "checkpoints" / "best.ckpt"
        self._lock: io.TextIOWrapper | None = None
        if writes:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self._take_lock()
                for half_written in self.path.rglob(f"{UNFINISHED}*"):  # by a process that was killed
                    half_written.unlink()
            except OSError as error:
                raise ValueError(
                    f"run directory {path} cannot be written ({error.strerror}): give another place with out=FOLDER"
                ) from None
        stored = path / "config.yaml"
        if stored.is_file():
            try:
                before = parse(stored.read_text(encoding="utf-8"))
            except ValueError:
                before = None
            if not isinstance(before, Mapping):
                self.close()
                raise ValueError(
                    f"{stored} is no configuration, so nobody can tell whose run this is: delete that folder, or give "
                    "this run another place with name=… or job=…"
                )
            changed = changes(before, config)
            if extends and only_length(changed) and all(is_longer(*values) for values in changed.values()):
                self.extended = changed
            elif changed:
                self.close()
                if extends:
                    raise ValueError(
                        f"resume={path}: {'; '.join(told(changed))} would make it another experiment, or a shorter "
                        "one: leave it out, or begin another run"
                    )
                longer = f"; to train it for longer: resume={path} with a larger number"
                raise ValueError(
                    f"run directory {path} holds a run of another configuration ({'; '.join(told(changed))}): give "
                    f"this one another place with name=… or job=…, or delete that folder{longer * only_length(changed)}"
                )

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end: metrics.json is the last file it writes."""
        return (self.path / "metrics.json").is_file()

    @property
    def resumable(self) -> bool:
        """Whether there is a checkpoint to go on from; which one, `facelab.training.stored.choose` finds out."""
        return self.last.is_file() or self.previous.is_file()

    def start(self, config: Mapping[str, Any]) -> None:
        """Writes config.yaml, once all choices have proved sound: from then on the folder belongs to them."""
        if not (self.path / "config.yaml").is_file():
            self._write_config(config)

    def _write_config(self, config: Mapping[str, Any]) -> None:
        with atomic(self.path / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")

    def extend(self, facts: Mapping[str, Any]) -> None:
        """Makes the folder's run a longer one, once it goes on: not finished any more, with the new values.

        The old numbers stay as metrics-<steps>.json. A kill in the middle leaves a run that is not finished, under its
        old values or its new ones.

        Args:
            facts: what environment.json says of it.
        """
        if self.finished:
            steps = self.metrics().get("steps", "before")
            os.replace(self.path / "metrics.json", self.path / f"metrics-{steps}.json")
        self.note(extended=dict(facts))
        if self.extended:
            config = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
            for key, (_, now) in self.extended.items():
                group, name = key.split(".")
                config[group][name] = now
            self._write_config(config)

    def metrics(self) -> dict[str, float]:
        """The final numbers of a finished run.

        Raises:
            ValueError: somebody has damaged its file.
        """
        file = self.path / "metrics.json"
        try:
            metrics = json.loads(file.read_text())
        except ValueError:
            metrics = None
        if not isinstance(metrics, dict):
            raise ValueError(f"{file} holds no numbers: delete that file, and the run makes its report again")
        return metrics

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Writes the final numbers, which ends the run."""
        with atomic(self.path / "metrics.json") as temporary:
            temporary.write_text(json.dumps(dict(metrics), indent=2) + "\n")

    def describe(self, seed: int | None, extra: Mapping[str, Any]) -> None:
        """Writes environment.json: versions, machine, git commit, seed, and one line for every start.

        The W&B id of an earlier start stays where this one has none: a job has one for ever.
        """
        file = self.path / "environment.json"
        before = json.loads(file.read_text()) if file.is_file() else {}
        starts = before.get("starts", [])
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        starts.append({"time": now, "command": _command(), **_machine(), "slurm": slurm_job()})
        if before.get("wandb") is not None and extra.get("wandb") is None:
            extra = {**extra, "wandb": before["wandb"]}
        with atomic(file) as temporary:
            content = {"seed": seed, **extra, "git": _commit(), "versions": _versions(), "starts": starts}
            temporary.write_text(json.dumps(content, indent=2) + "\n")

    def note(self, **facts: Any) -> None:
        """Adds to what environment.json says of the latest start."""
        file = self.path / "environment.json"
        content = json.loads(file.read_text())
        content["starts"][-1] |= facts
        with atomic(file) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")

    def _take_lock(self) -> None:
        # The kernel drops the lock with the process, however that ends: no stale lock can be left.
        self._lock = open(self.path / ".lock", "w")  # noqa: SIM115
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # perhaps by facelab.status, which looks for a moment whether it is held
                time.sleep(0.2)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ValueError(
                f"run directory {self.path} is in use by another process: wait for it, or give this run another place "
                "with name=… or job=…"
            ) from None

    def close(self) -> None:
        """Gives the lock back; a folder in which no run ever began is taken away."""
        if self._lock is not None:
            if not (self.path / "config.yaml").is_file():
                (self.path / ".lock").unlink(missing_ok=True)
                shutil.rmtree(self.path / "wandb", ignore_errors=True)  # of a W&B run that was started in vain
                with contextlib.suppress(OSError):  # not empty: somebody keeps other things there
                    self.path.rmdir()
            self._lock.close()
            self._lock = None


class History:
    """metrics.csv: a row a log step and a row a validation, in order of steps, each with the system when written.

    On a full disk a row is there as a whole, or not at all.

    What a loss logs beside its accuracy (`train/…`), and the accuracies of a classification, have columns of their own,
    from the first row on that has them.

    Args:
        path: the file.
        resumed_step: rows after this step belong to a future that will be trained again; they are dropped.
        validated_step: so do validations after this one.
    """

    def __init__(self, path: Path, resumed_step: int, validated_step: int):
        self.path = path
        rows = read_history(path)
        kept = [r for r in rows if int(r["step"]) <= (validated_step if _is_validation(r) else resumed_step)]
        self._columns = [*COLUMNS, *(key for key in (rows[0] if rows else ()) if key not in COLUMNS)]
        self._open(kept)

    def _open(self, rows: list[dict[str, str]]) -> None:
        with atomic(self.path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        # Without a buffer: what a full disk has refused would be tried again when the file is closed.
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115

    def write(self, row: Mapping[str, float | int]) -> None:
        """Appends one row; cells that it lacks stay empty."""
        try:
            new = [key for key in row if key.startswith(GROWING) and key not in self._columns]
            if new:
                self._columns += new
                self._file.close()
                self._open(read_history(self.path))
            line = io.StringIO()
            csv.DictWriter(line, self._columns, restval="", extrasaction="ignore").writerow(row)
            self._append(line.getvalue().encode())
        except OSError as error:
            raise OSError(
                f"{self.path} cannot be written ({error.strerror}): mend that (free some space), and start the same "
                "command again; it goes on from the last checkpoint"
            ) from error

    def _append(self, line: bytes) -> None:
        size = self.path.stat().st_size
        try:
            while line:  # a disk that is nearly full takes a part
                line = line[self._file.write(line) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)
            raise

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):  # of a network disk
            self._file.close()


def _is_validation(row: Mapping[str, str]) -> bool:
    return any(value for key, value in row.items() if key.startswith("val/"))


def read_history(path: Path) -> list[dict[str, str]]:
    """The complete rows of a metrics.csv; a last line that a kill cut short is left out."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        text = file.read()
    complete = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(io.StringIO(complete)))


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _machine() -> dict[str, Any]:
    import torch  # which whoever only reads records can do without

    return {
        "host": platform.node(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def slurm_job() -> str | None:
    """The id of the Slurm job that this process is in, of an array with the number in it: 123 or 123_4."""
    array, number = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{number}" if array and number else os.environ.get("SLURM_JOB_ID")


def _commit() -> dict[str, Any] | None:
    """Commit and cleanliness of the checkout that this code runs from; None outside one."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.stdout.strip(), "uncommitted_changes": bool(changes.stdout.strip())}


def _command() -> str:
    return without_secrets(" ".join([Path(sys.executable).name, *sys.argv]))
