"""How long does a comparison of many runs take, and how much memory does it need?

Writes run directories as training does (tests/compare/fake_runs.py), with benchmarks of LFW's size: 6,000 pairs of
4,300 people each. Then measures `python -m facelab.compare`, from the start of its process to its end: seconds,
seconds of the processor, and the most memory that it held. The target is 20 s and 1 GB for 200 runs with 6 benchmarks,
and 5 MB for the page.

Writes results/compare.csv; a row of the same machine, versions and method is replaced.

    python benchmarks/compare.py                                   200 runs × 6 benchmarks
    python benchmarks/compare.py --rows 4 --seeds 2 --sets 2       a first look
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from recording import load, machine, record, today

HERE = Path(__file__).parent
KEY = ["machine", "python", "numpy", "runs", "benchmarks", "pairs", "replicates", "format"]


def write_runs(folder: Path, rows: int, seeds: int, sets: int, pairs: int) -> Path:
    """A sweep over the margin of so many rows and seeds."""
    sys.path.insert(0, str(HERE.parent / "tests" / "compare"))
    from fake_runs import draw_pairs, make_run

    drawn = [draw_pairs(f"set{k}", pairs, max(2, pairs * 4300 // 6000), seed=k) for k in range(sets)]
    made = folder
    for row in range(rows):
        for seed in range(1, seeds + 1):
            margin = round(0.2 + 0.01 * row, 2)
            made = make_run(folder, {"loss.margin": margin}, seed, 0.5 + 0.1 * np.sin(row / rows * 3), drawn).parent
        print(f"\r{(row + 1) * seeds} of {rows * seeds} runs written", end="", flush=True)
    print()
    return made


def measure(sweep: Path, form: str, replicates: int) -> dict[str, str]:
    """Seconds, processor seconds, MB of memory, and MB of what was written."""
    out = sweep.parent / f"compared.{form}"
    words = [str(sweep), f"write={form}", f"out={out}", f"replicates={replicates}", "baseline='0.2'"]
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "facelab.compare", *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"facelab.compare ended with {process.returncode}")
    return {
        "seconds": f"{seconds:.1f}",
        "processor_seconds": f"{used.ru_utime + used.ru_stime:.1f}",
        "peak_mb": f"{used.ru_maxrss * 1024 / 1e6:.0f}",
        "written_mb": f"{out.stat().st_size / 1e6:.2f}",
    }


def main() -> None:
    """Writes runs, measures, records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40, help="settings (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each (default: %(default)s)")
    parser.add_argument("--sets", type=int, default=6, help="benchmarks (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=6000, help="pairs of each (default: %(default)s)")
    parser.add_argument("--replicates", type=int, default=2000, help="draws of the people (default: %(default)s)")
    parser.add_argument("--formats", nargs="+", default=["markdown", "html"], help="default: %(default)s")
    parser.add_argument("--dry", action="store_true", help="print, and record nothing")
    options = parser.parse_args()
    busy, rows = load(), []
    with tempfile.TemporaryDirectory() as folder:
        sweep = write_runs(Path(folder), options.rows, options.seeds, options.sets, options.pairs)
        for form in options.formats:
            found = measure(sweep, form, options.replicates)
            setting = {"machine": machine(), "python": platform.python_version(), "numpy": np.__version__}
            setting |= {"runs": str(options.rows * options.seeds), "benchmarks": str(options.sets)}
            setting |= {"pairs": str(options.pairs), "replicates": str(options.replicates), "format": form}
            rows.append({"date": today(), **setting, **found, "load": busy})
            print(", ".join(f"{key} {value}" for key, value in {"format": form, **found}.items()), flush=True)
    if not options.dry:
        print(record("compare", KEY, rows))


if __name__ == "__main__":
    main()
