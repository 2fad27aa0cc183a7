"""How the jobs of a sweep stand: `python -m facelab.status runs/losses`.

It reads run directories, and asks Slurm where there is one. Nothing heavy is imported here: it must answer at once, on
a login node.
"""

import argparse
import csv
import fcntl
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from facelab.trusted import parse

STATES = ("running", "queued", "failed", "stopped", "done")
TAIL = 65_536  # bytes that are read of the end of a file
FRESH = 600  # seconds since its last row in which a run on another machine passes for running
ANSWER = 10  # seconds for Slurm to answer
SHARES = ("accuracy", "tar@", "tpir@", "eer", "auc", "/top", "/rank", "/map", "fnmr@", "fnir@")
ERROR = re.compile(
    r"^(facelab: .+|[A-Za-z_][\w.]*(?:Error|Exception|Failed|Diverged)\b.*|slurmstepd.*(?:TIME LIMIT|NODE FAIL|oom).*)"
)
# Endings of which Slurm knows the reason, and the process did not live to tell it.
ENDINGS = {
    "TIMEOUT": "ended by its time limit",
    "OUT_OF_MEMORY": "killed: out of memory",
    "NODE_FAIL": "its node failed",
    "CANCELLED": "cancelled",
    "PREEMPTED": "preempted, and not queued again",
    "BOOT_FAIL": "its node did not boot",
    "DEADLINE": "ended by its deadline",
}


@dataclass(frozen=True)
class Row:
    """A job as it stands."""

    name: str
    state: str  # one of STATES
    epoch: str = ""  # done/all
    left: float | None = None  # seconds of training that lie ahead
    held: str = ""  # accuracy on held-out identities at the latest validation
    told: str = ""  # its result, the reason of its failure, or where it is


@dataclass
class Slurm:
    """What Slurm says of jobs; without Slurm, nothing.

    Attributes:
        queue: id (123 or 123_4) → state and reason of what waits or runs.
        silence: why a Slurm that is there did not answer.
    """

    queue: dict[str, tuple[str, str]] = field(default_factory=dict)
    silence: str = ""

    @classmethod
    def ask(cls) -> "Slurm":
        """The user's jobs that wait or run."""
        if shutil.which("squeue") is None:
            return cls()
        answer = _output(["squeue", "--me", "-h", "-r", "-o", "%i|%T|%r"])
        if answer is None:
            return cls(silence="squeue does not answer: whether jobs wait or run is told by their folders alone")
        words = [line.split("|", 2) for line in answer.splitlines() if line.count("|") >= 2]
        return cls({job: (state, reason) for job, state, reason in words})

    def endings(self, jobs: Sequence[str]) -> dict[str, str]:
        """By id how a job ended, where there is accounting and it is one of `ENDINGS`."""
        if not jobs or shutil.which("sacct") is None:
            return {}
        lines = (_output(["sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", ",".join(jobs)]) or "").splitlines()
        states = dict(line.split("|", 1) for line in lines if "|" in line)
        return {job: ENDINGS[word] for job, state in states.items() if (word := state.split(" ")[0]) in ENDINGS}


def look(folders: Iterable[Path], slurm: Slurm) -> list[Row]:
    """The jobs of some sweeps, those that run first, those that are done last.

    Args:
        folders: each with a run directory for every job, or a run directory itself.
        slurm: what waits and runs.

    Raises:
        FileNotFoundError: where there is no such folder.
    """
    rows: list[Row] = []
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder: give that of a sweep, such as runs/losses")
        runs = [folder] if _is_run(folder) else sorted(child for child in folder.iterdir() if _is_run(child))
        submitted = _submitted(folder)
        open_runs = {run: _starts(run) for run in runs if not (run / "metrics.json").is_file()}
        last = {run: str(starts[-1].get("slurm") or "") for run, starts in open_runs.items() if starts}
        gone = [job for job in {*last.values(), *submitted} if job and job not in slurm.queue]
        endings = slurm.endings(gone)
        for run in runs:
            if run in open_runs:
                job = last.get(run, "")
                rows.append(_unfinished(run, open_runs[run], job, submitted.get(job), slurm, endings))
            else:
                rows.append(_finished(run))
        names = {row.name for row in rows}
        seen = {str(start.get("slurm")) for run in runs for start in _starts(run)}
        rows += _without_folder(submitted, seen, names, slurm, endings)
    return sorted(rows, key=lambda row: (STATES.index(row.state), row.name))


@dataclass(frozen=True)
class Submitted:
    """A job that was handed to Slurm: its name where that is known, and its log."""

    name: str | None
    log: Path


def _submitted(folder: Path) -> dict[str, Submitted]:
    """By id what was submitted for a sweep, by submitit or by slurm/sweep.sbatch."""
    found = {}
    for job in (folder / ".submitit").glob("[0-9]*"):
        found[job.name] = Submitted(None, job / f"{job.name}_0_log.err")
    for points in (folder / ".slurm").glob("*.points"):
        number = points.with_suffix(".job")
        if number.is_file():  # written when sbatch has taken it
            array = number.read_text().strip()
            for index, line in enumerate(points.read_text(encoding="utf-8").splitlines()):
                job_id = f"{array}_{index}"
                found[job_id] = Submitted(line.split("\t", 1)[0], folder / ".slurm" / f"{job_id}.out")
    return found


def _without_folder(
    submitted: Mapping[str, Submitted], seen: set[str], names: set[str], slurm: Slurm, endings: Mapping[str, str]
) -> list[Row]:
    """Jobs that have no run directory: they wait, have just begun, or failed before it was theirs."""
    rows = []
    latest = max((int(re.split(r"\D", job)[0]) for job in submitted), default=0)
    for job, one in submitted.items():
        name = one.name or f"Slurm job {job}"
        if job in seen or name in names:
            continue
        if job in slurm.queue:
            state, reason = slurm.queue[job]
            rows.append(Row(name, _of_queue(state), told=_where(job, state, reason)))
            continue
        reason = endings.get(job) or _error(one.log)
        if any(reason.startswith(f"{known}: ") for known in names):  # its folder has told it
            continue
        # An earlier submission's failure may have been mended since: without a name nobody can tell.
        if reason and (one.name is not None or job.startswith(str(latest))):
            rows.append(Row(name, "failed", told=f"{reason} [{_short(one.log)}]"))
    return rows


def _unfinished(
    run: Path, starts: list[dict[str, Any]], job: str, one: Submitted | None, slurm: Slurm, endings: Mapping[str, str]
) -> Row:
    row, config = _last_rows(run), _config(run)
    epoch, left = _epoch_and_left(row, config)
    held = _value("accuracy", float(row["val/accuracy"])) if row.get("val/accuracy") else ""
    if job in slurm.queue:
        state, reason = slurm.queue[job]
        told = _where(job, state, reason)
        return Row(run.name, _of_queue(state), epoch, left, held, told)
    host = str(starts[-1].get("host", "")) if starts else ""
    if _locked(run) or _fresh(run, host, bool(job) and bool(slurm.queue)):
        return Row(run.name, "running", epoch, left, held, f"on {host}" if host else "")
    if job in endings:
        return Row(run.name, "failed", epoch, None, held, endings[job])
    for log in ([one.log] if one is not None else []) + [run / "train.log"]:
        reason = _error(log) if _is_later(log, run / "environment.json") else ""
        if reason:
            return Row(run.name, "failed", epoch, None, held, f"{reason} [{_short(log)}]")
    return Row(run.name, "stopped", epoch, None, held, "the same command goes on from there")


def _finished(run: Path) -> Row:
    try:
        metrics = json.loads((run / "metrics.json").read_text())
    except (OSError, ValueError):
        return Row(run.name, "failed", told="metrics.json cannot be read")
    numbers = {key: value for key, value in metrics.items() if isinstance(value, (int, float))}
    name = next((key for key in numbers if not key.endswith(("_std", "_low", "_high"))), "")
    told = f"{name} {_value(name, numbers[name])}" if name else ""
    if f"{name}_std" in numbers:
        told += f" ± {100 * numbers[f'{name}_std']:.2f}"
    held = _value("accuracy", numbers["val/accuracy"]) if "val/accuracy" in numbers else ""
    return Row(run.name, "done", held=held, told=told)


def _is_run(folder: Path) -> bool:
    return folder.is_dir() and any((folder / name).is_file() for name in ("config.yaml", "metrics.json", "train.log"))


@cache
def _config(run: Path) -> dict[str, Any]:
    try:
        text = (run / "config.yaml").read_text(encoding="utf-8")
        config = parse(text)
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


@cache
def _starts(run: Path) -> list[dict[str, Any]]:
    try:
        return json.loads((run / "environment.json").read_text()).get("starts", [])
    except (OSError, ValueError):
        return []


def _last_rows(run: Path) -> dict[str, str]:
    """Of metrics.csv the last value of every column."""
    path = run / "metrics.csv"
    if not path.is_file():
        return {}
    with open(path, "rb") as file:
        header = file.readline().decode()
        end = file.seek(0, os.SEEK_END)
        file.seek(max(len(header), end - TAIL))
        text = file.read().decode(errors="replace")
    complete = text[: text.rfind("\n") + 1]
    if end - TAIL > len(header):
        complete = complete.partition("\n")[2]  # behind the row that is cut in two
    last: dict[str, str] = {}
    for row in csv.DictReader(io.StringIO(header + complete)):
        last |= {key: value for key, value in row.items() if value}
    return last


def _epoch_and_left(row: Mapping[str, str], config: Mapping[str, Any]) -> tuple[str, float | None]:
    """Epochs done of all, and the seconds left at the rate of the last row."""
    trainer = config.get("trainer") or {}
    if not row.get("step") or not trainer.get("epochs"):
        return "", None
    step, epoch, epochs = int(row["step"]), float(row.get("epoch") or 0), float(trainer["epochs"])
    if step == 0 or epoch == 0:
        return f"0/{epochs:g}", None
    steps = epochs * step / epoch
    if trainer.get("max_steps"):
        steps = min(steps, trainer["max_steps"])
    rate = float(row.get("images_per_s") or 0)
    left = (steps - step) * trainer.get("batch_size", 0) / rate if rate else None
    return f"{epoch:.1f}/{steps * epoch / step:.3g}", left


def _locked(run: Path) -> bool:
    """Whether a process trains in it; for an instant the lock is taken, if nobody holds it."""
    with suppress(OSError), open(run / ".lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _fresh(run: Path, host: str, known: bool) -> bool:
    """Whether another machine, whose locks may not be seen here, has lately written to it; Slurm would know better."""
    if known or not host or host == os.uname().nodename:
        return False
    with suppress(OSError):
        return abs(time.time() - (run / "metrics.csv").stat().st_mtime) < FRESH  # clocks of machines differ
    return False


def _is_later(log: Path, start: Path) -> bool:
    """Whether a log has grown since the latest start; what it said before is of a start before."""
    with suppress(OSError):
        return not start.is_file() or log.stat().st_mtime >= start.stat().st_mtime
    return False


def _error(log: Path) -> str:
    """The last line of a log that speaks of an error."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    found = [line for line in lines if ERROR.match(line)]
    if found and "started again, goes on" in found[-1]:  # it was asked to stop
        return ""
    return " ".join(found[-1].removeprefix("facelab: ").split()) if found else ""


def _of_queue(state: str) -> str:
    return "queued" if state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "CONFIGURING") else "running"


def _where(job: str, state: str, reason: str) -> str:
    return f"Slurm job {job}" + (f" ({reason})" if _of_queue(state) == "queued" and reason not in ("None", "") else "")


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _short(path: Path) -> str:
    return os.path.relpath(path)


def _value(name: str, value: float) -> str:
    return f"{100 * value:.2f} %" if any(part in name for part in SHARES) else f"{value:,.4g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def table(rows: Sequence[Row]) -> str:
    """The rows in columns, and below them how many there are of each state."""
    cells = [("job", "state", "epoch", "left", "held-out", "")]
    for row in rows:
        left = "" if row.left is None else _duration(row.left)
        cells.append((row.name, row.state, row.epoch, left, row.held, row.told))
    widths = [max(len(line[i]) for line in cells) for i in range(5)]
    lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(line, widths, strict=False)), line[5]]) for line in cells]
    counts = Counter(row.state for row in rows)
    total = f"{len(rows):,} jobs: " + ", ".join(f"{counts[s]:,} {s}" for s in STATES if counts[s])
    return "\n".join([*(line.rstrip() for line in lines), "", total])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("facelab.status", description="How the jobs of a sweep stand.")
    parser.add_argument("folders", nargs="+", type=Path, help="of sweeps or single runs: runs/losses")
    slurm = Slurm.ask()
    try:
        rows = look(parser.parse_args().folders, slurm)
    except FileNotFoundError as error:
        print(f"facelab: {error}", file=sys.stderr)
        sys.exit(1)
    if slurm.silence:
        print(f"facelab: {slurm.silence}", file=sys.stderr)
    print(table(rows) if rows else "no jobs: nothing has begun there, and nothing waits for Slurm")


if __name__ == "__main__":
    main()
