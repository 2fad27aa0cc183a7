"""Prepares one set to its end in spite of SIGKILLs: `python killing_prepare.py FOLDER KILLS SEED key=value…`.

Every start is a fork of this process, which has imported everything and begun no thread. Half of the kills strike at a
chosen place, the others at a random moment of the clock. After each, the final folder is either not there or complete.
Prints one JSON line about each start.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import hydra
from omegaconf import OmegaConf

import facelab.atomic
from facelab.door import configuration_folder
from facelab.prepare import pack, parts, photos

sys.path.append(str(Path(__file__).resolve().parents[1]))
from striking import strike, strike_in


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a set; of its report without what a clock measured."""
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes()
        if file.name == "report.json":
            content = json.dumps({**json.loads(content), "seconds": 0}).encode()
        found[file.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def strike_half_a_part(count: int) -> None:
    """Kills when half of the `count`-th part's bytes are on disk."""
    original, calls = parts.atomic, 0

    @contextlib.contextmanager
    def struck(path):
        nonlocal calls
        calls += 1
        with original(path) as temporary:
            yield temporary
            if calls == count:
                os.truncate(temporary, os.path.getsize(temporary) // 2)
                strike()

    parts.atomic = struck


PLACES = {
    "before a rename": lambda n: strike_in(facelab.atomic.os, "replace", n, before=True),
    "after a rename": lambda n: strike_in(facelab.atomic.os, "replace", n, before=False),
    "in a part": strike_half_a_part,
    "in the pack": lambda n: strike_in(pack, "frame", 5 * n, before=True),
    "in the sheets": lambda n: strike_in(photos, "save", 1, before=False),
    "before it appears": lambda n: strike_in(photos, "publish_folder", 1, before=True),
    "after it appeared": lambda n: strike_in(photos, "publish_folder", 1, before=False),
}


def start(choices, place: str | None, count: int, seconds: float | None) -> tuple[int, float]:
    """One start in a child process; gives its wait status and how long it lived."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            if place is not None:
                PLACES[place](count)
            photos.prepare(**choices)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status, time.monotonic() - began
        if seconds is not None and time.monotonic() - began > seconds:
            os.kill(child, signal.SIGKILL)
            seconds = None
        time.sleep(0.001)


def main() -> None:
    """First undisturbed, then killed again and again; where it ended too soon, once more from the beginning."""
    folder, kills, seed, *overrides = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose("prepare", [*overrides, f"out='{folder / 'alone'}'"]))
    del config["_target_"]
    status, alone = start(config, None, 0, None)
    print(json.dumps({"start": "undisturbed", "status": status}), flush=True)
    if status != 0:
        sys.exit("it does not even end undisturbed")
    expected = digests(folder / "alone")
    chance, killed = random.Random(seed), folder / "killed"
    config["out"] = str(killed)
    places = chance.sample(list(PLACES), len(PLACES))
    struck, ended = 0, 0
    while struck < kills or not killed.exists():
        place = seconds = None
        if struck < kills and struck % 2 == 0:
            place = places[struck // 2 % len(places)]
        elif struck < kills:
            seconds = chance.uniform(0, 0.8) * alone
        status, _ = start(config, place, chance.randint(1, 3), seconds)
        there = digests(killed) if killed.exists() else None
        if there not in (None, expected) or status not in (0, signal.SIGKILL):
            sys.exit(f"after {place or 'the clock'}: status {status}, there {there}, expected {expected}")
        print(json.dumps({"start": place or "clock", "status": status, "there": there is not None}), flush=True)
        struck += status == signal.SIGKILL
        if status == 0 and struck < kills:  # begun again, so that all kills strike
            ended += 1
            shutil.rmtree(killed)
            if ended > 4 * kills:
                sys.exit("it ends before it can be killed")
    status, _ = start(config, None, 0, None)  # says that it is finished, and tidies up
    left = sorted(path.name for path in folder.iterdir())
    print(
        json.dumps({"start": "last", "status": status, "left": left, "same": digests(killed) == expected}), flush=True
    )


if __name__ == "__main__":
    main()
