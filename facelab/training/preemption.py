"""Stopping well: a signal asks, the run answers at the end of the batch; on a cluster it is then queued again.

How a cluster warns, and who queues the job again:

* Launched by submitit (`hydra/launcher=slurm`, `local`): SIGUSR2, or what SUBMITIT_PREEMPT_SIGNAL names, some time
  before the time limit. Submitit's own handler would queue the job again at once, without a checkpoint; here it is
  called when the checkpoint is saved.
* Submitted by hand (slurm/train.sbatch): SIGUSR1, passed on by the script, which queues its job again.
* A preempted or requeued job: SIGTERM, and SIGKILL some seconds later (KillWait). Slurm itself queues it again, or not
  (`scancel`); so the run saves and ends.
"""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Interrupted(Exception):
    """The run was asked to stop and has saved its checkpoint; `str()` says how to go on."""


class QueuedAgain(BaseException):
    """Ends a process of submitit without a result; neither submitit nor Hydra takes it for a failure of the job.

    Args:
        words: what becomes of the run.
        code: the process's exit status, by which submitit's local launcher is told to start it again.
    """

    def __init__(self, words: str, code: int):
        super().__init__(words)
        self.code = code


class StopRequest:
    """While this context is open, SIGINT (Ctrl-C), SIGTERM and a cluster's warnings only set `received`.

    A second one stops at once; but not in a Slurm job, where srun, the script and Slurm all pass the same one on. What
    it raises is no KeyboardInterrupt: Lightning would end the process on that, without a word.

    Nothing is saved inside a signal handler: it may have interrupted anything, the checkpoint's own writing included.

    Attributes:
        received: name of the first signal; or that another rank had one.
        warned: whether submitit's signal was among them: the job is to be queued again by it.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.warned = False
        self._submitit = _submitits_signal()
        self._in_slurm = "SLURM_JOB_ID" in os.environ
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        numbers: set[int] = {signal.SIGINT, signal.SIGTERM}
        if self._in_slurm:
            numbers.add(signal.SIGUSR1)
        if self._submitit is not None:
            numbers.add(self._submitit)
        for number in numbers:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take_back(self) -> None:
        """Handles SIGTERM alone again, after Lightning has put a handler of its own before this one.

        Lightning's calls a collective inside the handler, and ends a run of several ranks without a checkpoint.
        """
        if signal.SIGTERM in self._before:
            signal.signal(signal.SIGTERM, self._note)

    def hear(self, received: bool, warned: bool) -> None:
        """What any rank has received counts on all."""
        if received and self.received is None:
            self.received = "a signal to another rank"
        self.warned = self.warned or warned

    def queue_again(self, words: str) -> None:
        """Under submitit, ends this process without a result, and has the job queued again where it was warned.

        A result, an error included, would be the end of the job for who waits for it. Elsewhere nothing happens.

        Args:
            words: what becomes of the run, for the job's log.

        Raises:
            QueuedAgain: in every job of submitit that SIGTERM or its signal has stopped.
            Exception: submitit's own, where the job may not be queued again.
        """
        if self._submitit is None or self.received in (None, "SIGINT"):
            return
        handler: Callable[[int, FrameType | None], None] | Any = self._before.get(self._submitit)
        code = 128 + signal.SIGTERM
        if self.warned and callable(handler):
            code = 0  # of the other ranks: after a failure srun might kill rank 0 before it has asked for the queue
            try:
                handler(self._submitit, None)
            except SystemExit as left:  # rank 0
                code = left.code if isinstance(left.code, int) else 0
        sys.excepthook = _end
        raise QueuedAgain(words, code)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.received is not None and not (self._in_slurm and number != signal.SIGINT)
        if again:
            raise Interrupted(
                "stopped at once by a second signal, without saving; the same command, started again, goes on from the "
                "last checkpoint"
            )
        self.warned = self.warned or number == self._submitit
        self.received = self.received or signal.Signals(number).name


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """In place of a traceback one line, and the exit status that is wanted; all else is closed already."""
    if not isinstance(error, QueuedAgain):
        sys.__excepthook__(kind, error, trace)
        return
    print(f"facelab: {error}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(error.code & 0xFF)


def _submitits_signal() -> int | None:
    """By which submitit warns the jobs that it has launched; None elsewhere."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return None
    name = os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")
    return getattr(signal, f"SIG{name}", None)
