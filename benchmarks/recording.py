"""What the measurements share: the machine's name, and tables that keep the rows of other machines and versions."""

import csv
import os
import platform
import statistics
from datetime import date
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
BUSY = 0.7  # load average from which on a measurement is marked


def machine() -> str:
    """The processor's name and its number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores"


def today() -> str:
    """Year-month-day."""
    return date.today().isoformat()


def load() -> str:
    """The load average of the last minute; says so where other work will make the figures rough."""
    value = os.getloadavg()[0]
    if value > BUSY:
        print(f"other work is running (load {value:.1f}): measure again on a quiet machine", flush=True)
    return f"{value:.1f}"


def read(file: Path) -> list[dict[str, str]]:
    """The rows of a table; none where there is no file."""
    if not file.exists():
        return []
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def record_times(name: str, times: dict[str, list[float]], busy: str, rounds: int, kept: bool) -> None:
    """Prints medians and minima of what was timed several times, and records them in <name>.csv.

    Args:
        name: of the measurement.
        times: what → seconds of each round.
        busy: the load beforehand.
        rounds: their number.
        kept: whether it is recorded.
    """
    versions = {"torch": version("torch"), "hydra": version("hydra-core")}
    common = {"date": today(), "machine": machine(), "python": platform.python_version(), **versions, "load": busy}
    rows = []
    for what, values in times.items():
        median, best = statistics.median(values), min(values)
        print(f"{what:42} {median:6.2f} s  (min {best:.2f})")
        seconds = {"seconds_median": f"{median:.3f}", "seconds_min": f"{best:.3f}"}
        rows.append({**common, "rounds": str(rounds), "what": what, **seconds})
    if kept:
        print(f"recorded in {record(name, ['machine', 'python', 'torch', 'hydra', 'what'], rows)}")


def record(name: str, key: list[str], rows: list[dict[str, str]], folder: Path = RESULTS) -> Path:
    """Puts rows into <folder>/<name>.csv: those with the same key are replaced, all others stay.

    Args:
        name: of the measurement.
        key: columns that say what was measured, where, and with which versions.
        rows: all with the same columns, in their order; a column that the file has beside them is dropped.
        folder: where the table is.
    """
    file = folder / f"{name}.csv"
    new = {tuple(row[column] for column in key) for row in rows}
    kept = [row for row in read(file) if tuple(row.get(column) for column in key) not in new]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]), restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept + rows)
    return file
