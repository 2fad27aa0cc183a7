"""The other processes of a run: where one of them dies all end, within seconds and with one word.

Lightning starts the processes of a machine, rank 0 being the parent of the others. Left to itself it looks at them
every five seconds, and where one has died kills all of them, itself first, without a word; and where rank 0 has died
the others may wait for it until the time-out of the process group.

* Rank 0 looks after those it has started. Where one has died it tells who and how, and ends the others.
* The others look whether rank 0 is there; where it was killed, the second process tells.
* Who gets out of a broken collective by itself is told there, with all files closed. Who does not (NCCL may wait for
  ever) is ended some seconds later.

Where torchrun, srun or submitit started the processes, these end them; then each tells what it knows.
"""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from subprocess import Popen, TimeoutExpired
from types import TracebackType
from typing import Any

from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import distributed as dist

from facelab.training.preemption import Interrupted

FIRST = "FACELAB_FIRST_PROCESS"  # tells a process the number of the one that started it
LOOK_EVERY = 0.25  # seconds
PATIENCE = 5.0  # seconds, for a process to come out of a broken collective by itself
# How long a rank waits for another that lives: no dead one is waited for. Ranks are apart for minutes at most in
# ordinary use (a slow disk, a look at all images, a checkpoint of a large model), and longer when one is stopped by a
# debugger or a suspended machine; torch's own 30 minutes would end such a run.
TIMEOUT = timedelta(hours=3)
BROKEN = re.compile(r"gloo|NCCL|connection (was )?(closed|reset)|broken pipe|socket", re.IGNORECASE)


class Lost(ValueError):
    """Another process has died; `str()` is empty where another one tells."""


class Company:
    """The processes of this machine, while the `with` lasts.

    Args:
        way_on: says what is kept and how the run goes on.

    Raises:
        Lost: at the end of the `with`, in place of the error that a broken collective has raised.
    """

    def __init__(self, way_on: Callable[[], str]):
        self.way_on = way_on
        first = os.environ.get(FIRST)
        self._parent = None if first is None or "LOCAL_RANK" not in os.environ else int(first)
        self._children: list[Popen] = []
        self._left = threading.Event()

    def __enter__(self) -> "Company":
        if self._parent is not None:
            self._look_after()
        return self

    def adopt(self, children: list[Popen]) -> None:
        """Looks after the processes of ranks 1, 2, … of this machine from now on."""
        self._children = list(children)
        self._look_after()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        word = self._reason(error) if isinstance(error, Exception) and is_broken(error) else None
        self._left.set()
        if error is not None:
            # Of a signal all processes have heard, and leave by themselves.
            self._end_children(PATIENCE if isinstance(error, Interrupted) else 0.0)
        if word is not None:
            raise Lost(word and self._told(word)) from error

    def fallen(self) -> str | None:
        """Who has died and how; None while all live, empty where another process tells."""
        if self._parent is not None:
            if os.getppid() == self._parent:
                return None
            return "rank 0 was killed, by hand or for lack of memory" if os.environ.get("LOCAL_RANK") == "1" else ""
        before = int(os.environ.get("NODE_RANK", 0)) * (len(self._children) + 1)
        codes = [(before + rank, child.poll() or 0) for rank, child in enumerate(self._children, start=1)]
        for rank, code in codes:
            if code < 0:
                name = signal.Signals(-code).name
                return f"rank {rank} was killed by {name}" + ", by hand or for lack of memory" * (name == "SIGKILL")
        return next((f"rank {rank} ended with an error, told above" for rank, code in codes if code), None)

    def _reason(self, error: Exception) -> str:
        """Why a collective broke; it is known a moment later who has died."""
        until = time.monotonic() + PATIENCE
        while self._children or self._parent is not None:
            word = self.fallen()
            if word is not None:
                return word
            if time.monotonic() > until:
                break
            time.sleep(LOOK_EVERY / 5)
        if self._parent is not None:
            return ""
        said = " ".join(str(error).split())[:160]
        return f"the connection to another process is lost, which has died or cannot be reached ({said})"

    def _told(self, word: str) -> str:
        return f"{word}; all processes of this run have ended. {self.way_on()}"

    def _look_after(self) -> None:
        threading.Thread(target=self._watch, name="facelab-company", daemon=True).start()

    def _watch(self) -> None:
        while not self._left.wait(LOOK_EVERY):
            word = self.fallen()
            if word is None or self._left.wait(PATIENCE):
                continue
            # The main thread waits in a collective that does not end.
            if word:
                print(f"facelab: {self._told(word)}", file=sys.stderr, flush=True)
            self._end_children(0.0)
            os._exit(1)

    def _end_children(self, patience: float) -> None:
        until = time.monotonic() + patience
        for child in self._children:
            try:
                child.wait(max(0.0, until - time.monotonic()))
            except TimeoutExpired:
                child.kill()
                child.wait()


def is_broken(error: Exception) -> bool:
    """Whether an error says that a collective could not reach another process; gloo has no class of its own for it."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and dist.is_initialized() and bool(BROKEN.search(str(error)))


class Watched(DDPStrategy):
    """DistributedDataParallel whose processes look after each other.

    Args:
        company: of this process.
        options: of torch's DistributedDataParallel.
    """

    def __init__(self, company: Company, **options: Any):
        super().__init__(timeout=TIMEOUT, **options)
        self.company = company

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)
        self._launcher.company = self.company


class _Launcher(_SubprocessScriptLauncher):
    company: Company

    def _call_children_scripts(self) -> None:
        os.environ[FIRST] = str(os.getpid())
        try:
            super()._call_children_scripts()
        finally:
            del os.environ[FIRST]
        # Lightning, which kills without a word, finds nobody to look at.
        children, self.procs = self.procs, []
        self.company.adopt(children)
