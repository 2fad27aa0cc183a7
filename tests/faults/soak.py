"""Hundreds of signals, a million of hostile inputs, ten thousand steps: what takes too long for `make test`.

    make soak                                       # hours on two cores
    make soak ARGS="--signals 20 --fuzz 10000 --steps 2000 --jobs 2"
    make soak ARGS="--only signals --signals 200"

Three things are tried: `signals` (trainings of every kind, a set in the making, exports; works.py), `fuzz` (all tests
marked so, with so many cases in all), `memory` (benchmarks/memory_growth.py). Their parts run as many at a time as
--jobs says, one thread each; what each says stands in a file of --out. A part that has ended well is passed over when
the same command is started again, until --again. Ends with a table, and with 1 where a promise is broken; the same
--seed takes the same places and moments.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from facelab.tracking import Tracker

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
NOT_CHOSEN = 5  # pytest's status where no test is marked so
# The signals of a hundred that each work gets, beside which all trainings share the rest alike.
OTHERS = {"prepare": 12, "export, torchscript": 5, "export, onnx": 3}
# What a part costs, in signals: progress counts these.
CASES, STEPS = 2000, 50


@dataclass(frozen=True)
class Part:
    """Something that is tried by a process of its own."""

    name: str
    words: tuple[str, ...]  # behind the interpreter
    amount: str  # how much of it, in words
    weight: int  # its share of the whole, in signals
    more: tuple[tuple[str, str], ...] = ()  # environment


@dataclass
class Found:
    """What became of a part."""

    part: Part
    result: str  # held, broken, none (there is nothing to try)
    seconds: float
    told: str  # its last word


def kinds() -> list[str]:
    """Names of the works that can run here; asked in another process, since this one begins threads."""
    code = "from works import WORKS; import json; print(json.dumps(list(WORKS)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, env=_environment(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    needs = {"training, dali": "nvidia.dali", "export, onnx": "onnx", "training, processes": "albumentations"}
    found = json.loads(done.stdout.splitlines()[-1])
    lacking = {name for name, module in needs.items() if not _there(module)}
    for name in sorted(lacking & set(found)):
        print(f"{name}: passed over, {needs[name]} is not installed")
    return [name for name in found if name not in lacking]


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even its package
        return False


def signals(given: argparse.Namespace) -> Iterator[Part]:
    """A part for each work."""
    names = kinds()
    trainings = [name for name in names if name not in OTHERS]
    left = given.signals
    counts = {}
    for name, share in OTHERS.items():
        if name in names:
            counts[name] = max(1, given.signals * share // 100)
            left -= counts[name]
    for number, name in enumerate(trainings):
        counts[name] = max(1, left // len(trainings) + (number < left % len(trainings)))
    for name in sorted(counts, key=lambda name: -counts[name]):
        folder = given.out / re.sub(r"\W+", "_", name)
        words = ("tests/faults/enduring.py", str(folder), "--work", name, "--signals", str(counts[name]))
        yield Part(name, (*words, "--seed", str(given.seed)), f"{counts[name]} signals", counts[name])


def fuzz(given: argparse.Namespace) -> Iterator[Part]:
    """A part for each test."""
    # Without our own options, which say -q as well: twice is quieter, and names no test.
    asked = [sys.executable, "-m", "pytest", "-o", "addopts=", "-m", "fuzz", "--collect-only", "-q", "tests"]
    done = subprocess.run(asked, cwd=ROOT, env=_environment(), capture_output=True, text=True)
    tests = [line for line in done.stdout.splitlines() if "::" in line]
    if not tests:
        raise RuntimeError(f"no test marked fuzz was found:\n{done.stdout[-1000:]}{done.stderr[-1000:]}")
    each = -(-given.fuzz // len(tests))
    for test in tests:
        words = ("-m", "pytest", "-m", "fuzz", "-x", "-n", "0", "-p", "no:cacheprovider", test)
        words += (f"--hypothesis-seed={given.seed}",)
        more = (("FACELAB_FUZZ_EXAMPLES", str(each)),)
        yield Part(f"fuzz, {test.removeprefix('tests/')}", words, f"{each:,} cases", -(-each // CASES), more)


def memory(given: argparse.Namespace) -> Iterator[Part]:
    """One part."""
    words = ("benchmarks/memory_growth.py", "--steps", str(given.steps), "--out", str(given.out / "memory"))
    yield Part("memory", words, f"{given.steps:,} steps", -(-given.steps // STEPS))


TRIED: dict[str, Callable[[argparse.Namespace], Iterator[Part]]] = {"signals": signals, "fuzz": fuzz, "memory": memory}


def _environment() -> dict[str, str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}


def attempt(part: Part, out: Path, tell: Callable[[int], None]) -> Found:
    """Runs a part; `tell` hears of each signal."""
    log = out / f"{re.sub(r'[^0-9A-Za-z]+', '_', part.name)}.log"
    if part.words[0].endswith("enduring.py"):
        shutil.rmtree(part.words[1], ignore_errors=True)
    began, heard, last = time.monotonic(), 0, ""
    environment = {**_environment(), **dict(part.more)}
    command = [sys.executable, *part.words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with open(log, "w") as file, subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        file.write(f"{' '.join(command)}\n")
        for line in process.stdout:
            file.write(line)
            file.flush()
            last = line.strip() or last
            if line.startswith('{"work"') and json.loads(line)["struck"]:
                heard += 1
                tell(1)
    tell(part.weight - heard)
    result = {0: "held", NOT_CHOSEN: "none"}.get(process.returncode, "broken")
    told = "" if last.startswith('{"work"') else last[:200]
    return Found(part, result, time.monotonic() - began, told if result != "held" or "memory" in part.name else "")


def table(found: list[Found]) -> str:
    """Markdown: a row for each part."""
    rows = [("part", "tried", "result", "minutes", "")]
    rows += [(one.part.name, one.part.amount, one.result, f"{one.seconds / 60:.1f}", one.told) for one in found]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def main() -> None:
    """Tries everything that is asked for, and has not been found to hold already."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(TRIED), default=list(TRIED))
    parser.add_argument("--signals", type=int, default=400, help="in all")
    parser.add_argument("--fuzz", type=int, default=1_000_000, help="cases in all")
    parser.add_argument("--steps", type=int, default=10_000, help="of the training whose memory is watched")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="parts at a time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "soak")
    parser.add_argument("--again", action="store_true", help="also what has ended well before")
    given = parser.parse_args()
    given.out = given.out.absolute()
    given.out.mkdir(parents=True, exist_ok=True)
    parts = [part for name in given.only for part in TRIED[name](given)]
    notes, known = given.out / "held.json", {}
    if notes.is_file() and not given.again:
        known = json.loads(notes.read_text())
    found = [Found(part, "held", *known[str(part)]) for part in parts if str(part) in known]
    waiting = [part for part in parts if str(part) not in known]
    print(
        f"{len(waiting)} parts, {given.jobs} at a time, seed {given.seed}; {len(found)} have held before; {given.out}"
    )
    # A lone part that takes long goes first, so that nothing is waited for at the end.
    waiting.sort(key=lambda part: -part.weight)
    total, done, lock = sum(part.weight for part in waiting), 0, threading.Lock()
    with ThreadPoolExecutor(given.jobs) as pool, Tracker("soak", True, "signals’ worth") as show:

        def tell(count: int) -> None:
            nonlocal done
            with lock:
                done += count
                show(done, total)

        for future in as_completed([pool.submit(attempt, part, given.out, tell) for part in waiting]):
            one = future.result()
            found.append(one)
            if one.result == "held":
                known[str(one.part)] = [one.seconds, one.told]
                notes.write_text(json.dumps(known, indent=1))
            else:
                print(f"{one.part.name}: {one.result}, {one.told}", flush=True)
    text = table(sorted(found, key=lambda one: one.part.name))
    (given.out / "summary.md").write_text(text + "\n")
    print(f"\n{text}\n")
    if any(one.result == "broken" for one in found):
        raise SystemExit(f"not everything held; again with --seed {given.seed}, and look at the files in {given.out}")


if __name__ == "__main__":
    main()
