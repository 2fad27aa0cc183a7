"""Starts a work again and again in spite of signals, until it has ended as one that was left alone.

    python tests/faults/enduring.py FOLDER --work "training, adaface" --signals 20 --seed 1

Every start is a fork of this process, which has imported everything and begun no thread, so that a start costs no
imports. Half of the signals strike at a chosen place (inside a file's writing, a step, a validation, …), the others at
a random moment of the clock; some SIGTERMs are followed by SIGKILL, as a cluster's are. After each, no file under a
final name may be half-written; at the end everything is compared. Prints one JSON line about each start; ends with 1
and a line where a promise is broken. The same seed takes the same places and moments.
"""

import argparse
import json
import os
import random
import shutil
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from works import WORKS, Place

from facelab.training.preemption import Interrupted, QueuedAgain

# How a start ends beside 0 and a deadly signal.
INTERRUPTED, QUEUED, BY_KEYBOARD, THERE_ALREADY = 71, 72, 73, 74
STATUS = {Interrupted: INTERRUPTED, QueuedAgain: QUEUED, KeyboardInterrupt: BY_KEYBOARD, FileExistsError: THERE_ALREADY}
PATIENCE = 120.0  # seconds after a signal in which a start must have ended: more is a hang
WORTH = 4  # starts for each signal, at most: some end before they are struck


@dataclass(frozen=True)
class Strike:
    """A signal to come."""

    number: signal.Signals
    place: str | None  # None: at a moment of the clock
    count: int  # at the so manieth time that this place is reached
    seconds: float  # or so long after the start
    then: float | None  # seconds until SIGKILL follows


def plan(work: Any, places: list[str], turn: int, missed: int, chance: random.Random, longest: float) -> Strike:
    """The turn-th signal: each kind in turn, every second one at a place, unless that was missed three times."""
    number = work.signals[turn % len(work.signals)] if turn % 3 else signal.SIGKILL
    place = None if turn % 2 or missed > 2 else places[turn // 2 % len(places)]
    follows = number == signal.SIGTERM and chance.random() < 0.5
    return Strike(
        number,
        place,
        1 if place is None or missed else chance.randint(1, work.places[place].most),
        chance.uniform(0.03, 1.0) * longest / (1 + missed),
        chance.uniform(0.0, 0.2) if follows else None,
    )


def strike_at(place: Place, count: int, number: signal.Signals, told: int) -> None:
    """This process gets a signal at the `count`-th call of a function; says so beforehand through `told`."""
    original, calls = getattr(place.owner, place.name), 0

    def struck(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        now = calls == count
        if now and place.before:
            if place.name == "fsync" and number == signal.SIGKILL:
                _halve(args[0])
            os.write(told, b"!")
            os.kill(os.getpid(), number)
        result = original(*args, **kwargs)
        if now and not place.before:
            os.write(told, b"!")
            os.kill(os.getpid(), number)
        return result

    setattr(place.owner, place.name, struck)


def _halve(handle: int) -> None:
    """Half of a file's bytes are on disk, as if the process had died in writing."""
    if stat.S_ISREG(os.fstat(handle).st_mode):
        os.truncate(f"/proc/self/fd/{handle}", os.fstat(handle).st_size // 2)


def _child(work: Any, where: Path, strike: Strike | None, told: int) -> None:
    """A start, in a process of its own; never returns."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Processes that load images would import this script, and all that it imports, before anything else.
        vars(sys.modules["__main__"]).pop("__file__", None)
        if strike is not None and strike.number == signal.SIGUSR1:
            os.environ["SLURM_JOB_ID"] = "12"
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # as long as nobody listens
        if strike is not None and strike.number == signal.SIGUSR2:
            os.environ.update(SLURM_JOB_ID="12", SUBMITIT_EXECUTOR="slurm")
            signal.signal(signal.SIGUSR2, _queue_again)
        if strike is not None and strike.place is not None:
            strike_at(work.places[strike.place], strike.count, strike.number, told)
        work.run(where)
        status = 0
    except BaseException as error:
        status = STATUS.get(type(error), 1)
        if status == 1:
            traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _queue_again(number: int, frame: Any) -> None:
    """What submitit's own handler does at last, on a cluster; no traceback, and no other error."""
    raise QueuedAgain("by submitit", 0) if frame is not None else SystemExit(0)


def start(work: Any, where: Path, strike: Strike | None) -> tuple[int, bool, float]:
    """One start.

    Returns:
        Its exit status (of a deadly signal minus its number), whether it was struck, and how long it lived.
    """
    heard, told = os.pipe()
    os.set_blocking(heard, False)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(work, where, strike, told)
    os.close(told)
    sent: float | None = None  # when the signal was sent, or was heard of
    due = strike.seconds if strike is not None and strike.place is None else None
    kill = None if strike is None else strike.then
    try:
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            now = time.monotonic()
            if sent is None and strike is not None and strike.place is not None and _read(heard):
                sent = now
            if done:
                return os.waitstatus_to_exitcode(status), sent is not None, now - began
            if due is not None and strike is not None and now - began > due:
                os.kill(child, strike.number)
                sent, due = now, None
            if sent is not None and kill is not None and now - sent > kill:
                os.kill(child, signal.SIGKILL)
                kill = None
            if sent is not None and now - sent > PATIENCE:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                broken(f"{where} hangs: {PATIENCE:g} s after {strike} it was still there")
            time.sleep(0.002)
    finally:
        os.close(heard)


def _read(handle: int) -> bool:
    try:
        return bool(os.read(handle, 1))
    except BlockingIOError:
        return False


def broken(words: str) -> None:
    """A promise that does not hold."""
    print(json.dumps({"broken": words}), flush=True)
    sys.exit(words)


def expected(strike: Strike | None, status: int) -> bool:
    """Whether a start may end so."""
    if status in (0, THERE_ALREADY) or strike is None:
        return status in (0, THERE_ALREADY)
    stopped = {
        signal.SIGKILL: set(),
        signal.SIGTERM: {INTERRUPTED},
        signal.SIGINT: {INTERRUPTED, BY_KEYBOARD},
        signal.SIGUSR1: {INTERRUPTED},
        signal.SIGUSR2: {QUEUED},
    }[strike.number]
    return status in stopped | {-strike.number} | ({-signal.SIGKILL} if strike.then is not None else set())


def endure(name: str, folder: Path, signals: int, seed: int) -> None:
    """First undisturbed, then struck again and again; where it has ended too soon, once more from the beginning."""
    work = WORKS[name](folder / "beforehand")
    # Each in a folder of its own: what is left beside them is looked for, too.
    (folder / "1").mkdir(parents=True)
    (folder / "2").mkdir()
    alone, where = folder / "1" / "work", folder / "2" / "work"
    status, _, longest = start(work, alone, None)
    tell(name, None, status, False, longest)
    if status:
        broken(f"{name} does not even end undisturbed: status {status}")
    chance, struck, starts = random.Random(f"{seed} {name}"), 0, 0
    places = chance.sample(list(work.places), len(work.places))
    missed = 0  # starts since the last signal that ended before they were struck
    while True:
        strike = plan(work, places, struck, missed, chance, 0.7 * longest) if struck < signals else None
        status, hit, lived = start(work, where, strike)
        starts += 1
        struck, missed = struck + hit, 0 if hit else missed + 1
        tell(name, strike, status, hit, lived)
        if not expected(strike, status):
            broken(f"{name}: after {strike} it ended with status {status}")
        damaged = work.damaged(where)
        if damaged:
            broken(f"{name}: after {strike} these are damaged: {'; '.join(damaged)}")
        if status in (0, THERE_ALREADY):
            start(work, where, None)  # says that it is finished, and tidies up
            unlike = apart(lambda: work.unlike(alone, where))
            if unlike:
                broken(f"{name}: after {struck} signals these differ: {'; '.join(unlike)}")
            if struck >= signals:
                return
            shutil.rmtree(where)
        if starts > WORTH * signals + 10:
            broken(f"{name} ends before it can be struck: {struck} signals in {starts} starts")


def apart(look: Callable[[], list[str]]) -> list[str]:
    """What a function finds, asked in a process of its own: this one is to begin no thread."""
    heard, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = look()
        except BaseException as error:
            traceback.print_exc()
            found = [f"it cannot be compared: {error!r}"]
        with open(told, "w") as answer:
            json.dump(found, answer)
        os._exit(0)
    os.close(told)
    with open(heard) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return json.loads(text)


def tell(name: str, strike: Strike | None, status: int, hit: bool, lived: float) -> None:
    """One JSON line."""
    how = {} if strike is None else {"signal": strike.number.name, "place": strike.place or "clock"}
    print(json.dumps({"work": name, **how, "struck": hit, "status": status, "seconds": round(lived, 2)}), flush=True)


def main() -> None:
    """One work after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", nargs="+", choices=list(WORKS), required=True, metavar="NAME", help=", ".join(WORKS))
    parser.add_argument("--signals", type=int, nargs="+", default=[10], help="of each work, or of all of them")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    counts = given.signals * len(given.work) if len(given.signals) == 1 else given.signals
    for number, (name, signals) in enumerate(zip(given.work, counts, strict=True)):
        endure(name, given.folder / str(number), signals, given.seed)


if __name__ == "__main__":
    main()
