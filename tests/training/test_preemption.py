"""Signals: what each of them means to a run here, in a Slurm job, and under submitit."""

import os
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from killing import compose

from facelab.training import checkpoint, fit, keeper, preemption
from facelab.training.keeper import Keeper
from facelab.training.module import FaceModule
from facelab.training.preemption import Interrupted, QueuedAgain, StopRequest
from facelab.training.record import RunDirectory


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    """No launcher, whatever these tests run in; and all handlers as they were."""
    for name in ("SLURM_JOB_ID", "SUBMITIT_EXECUTOR", "SUBMITIT_PREEMPT_SIGNAL"):
        monkeypatch.delenv(name, raising=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    hook = sys.excepthook
    yield
    sys.excepthook = hook
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def submitit(monkeypatch):
    """The calls of submitit's own handler, in a job on a cluster."""
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    called = []
    signal.signal(signal.SIGUSR2, lambda number, frame: called.append(number))
    return called


def send(*names):
    for name in names:
        os.kill(os.getpid(), getattr(signal, name))


def test_here_two_signals_stop_and_a_second_one_stops_at_once():
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with StopRequest() as stop:
        send("SIGUSR1")
        assert stop.received is None
        send("SIGTERM")
        assert (stop.received, stop.warned) == ("SIGTERM", False)
        with pytest.raises(Interrupted, match="at once by a second signal"):
            send("SIGINT")
    stop.queue_again("saved")  # by nobody


def test_in_slurm_the_same_request_may_come_several_times(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with StopRequest() as stop:
        send("SIGUSR1", "SIGTERM", "SIGTERM")
        assert (stop.received, stop.warned) == ("SIGUSR1", False)
        with pytest.raises(Interrupted, match="at once"):
            send("SIGINT")
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    stop.queue_again("saved")  # the script does it


@pytest.mark.parametrize("name", ["SIGUSR2", "SIGUSR1"])
def test_submitits_handler_waits_for_the_checkpoint(submitit, monkeypatch, name):
    number = getattr(signal, name)
    if name == "SIGUSR1":
        monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR1")
        signal.signal(number, signal.getsignal(signal.SIGUSR2))
    own = signal.getsignal(number)
    with StopRequest() as stop:
        send("SIGTERM", name)  # as some clusters do
        assert (stop.received, stop.warned, submitit) == ("SIGTERM", True, [])
    with pytest.raises(QueuedAgain, match="saved") as left:
        stop.queue_again("saved")
    assert submitit == [number]
    assert left.value.code == 0
    assert signal.getsignal(number) is own


def test_a_preempted_job_of_submitit_ends_without_a_result(submitit):
    """An error would be the last word on the job for who waits for it, though Slurm queues it again."""
    with StopRequest() as stop:
        send("SIGTERM")
    with pytest.raises(QueuedAgain):
        stop.queue_again("saved")
    assert submitit == []


def test_the_exit_status_is_submitits_with_a_line_in_place_of_a_traceback(submitit, monkeypatch, capsys):
    def again(number, frame):
        raise SystemExit(122)  # for its local launcher

    signal.signal(signal.SIGUSR2, again)
    with StopRequest() as stop:
        send("SIGUSR2")
    with pytest.raises(QueuedAgain) as left:
        stop.queue_again("saved")
    codes = []
    monkeypatch.setattr(preemption.os, "_exit", codes.append)
    sys.excepthook(QueuedAgain, left.value, None)
    assert codes == [122]
    assert capsys.readouterr().err == "facelab: saved\n"


@pytest.mark.parametrize("names", [(), ("SIGINT",)])
def test_who_is_interrupted_or_ends_well_is_not_queued_again(submitit, names):
    with StopRequest() as stop:
        send(*names)
    stop.queue_again("saved")
    assert submitit == []


def test_what_another_rank_has_heard_counts_here(submitit):
    with StopRequest() as stop:
        stop.hear(False, False)
        assert stop.received is None
        stop.hear(True, True)
        assert stop.received == "a signal to another rank"
    with pytest.raises(QueuedAgain):
        stop.queue_again("saved")
    assert submitit == [signal.SIGUSR2]


def test_a_handler_put_before_ours_is_taken_away():
    with StopRequest() as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Lightning's
        stop.take_back()
        send("SIGTERM")
        assert stop.received == "SIGTERM"


def test_several_ranks_save_at_the_same_step_what_one_of_them_was_told(submitit, monkeypatch):
    monkeypatch.setattr(keeper, "rank_and_world", lambda: (0, 2))
    monkeypatch.setattr(keeper.dist, "all_reduce", lambda votes, op: votes.copy_(torch.tensor([1.0, 1.0, 0.0, 0.0])))
    saved = []
    monkeypatch.setattr(Keeper, "save", lambda self, trainer, module: saved.append(module.progress.step))
    run = SimpleNamespace(last="last.ckpt")
    data = SimpleNamespace(validates_at=lambda step: False, steps=100)
    module = SimpleNamespace(device=torch.device("cpu"), data=data, progress=SimpleNamespace(step=7))
    with StopRequest() as stop:
        callback = Keeper(run, stop, {}, None, None, None, background=False)
        callback.on_train_batch_end(None, module, None, None, 0)
        assert saved == []
        module.progress.step = 8
        with pytest.raises(Interrupted, match="a signal to another rank after step 8"):
            callback.on_train_batch_end(None, module, None, None, 0)
    assert saved == [8]
    assert stop.warned


def test_a_warned_run_is_saved_and_closed_before_it_is_queued_again(submitit, tmp_path, monkeypatch):
    where = tmp_path / "run"
    config, plain = compose("trainer.epochs=2", "trainer.save_every_steps=null", "trainer.log_every=1")
    seen = []

    def queue_again(number, frame):
        directory = RunDirectory(where, plain)  # nobody holds its lock any more
        seen.append(checkpoint.read_meta(directory.last)["step"])
        directory.close()
        raise SystemExit(-1)

    signal.signal(signal.SIGUSR2, queue_again)
    step = FaceModule.training_step

    def warned(self, batch, number):
        if self.progress.step == 2:
            send("SIGUSR2")
        step(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(FaceModule, "training_step", warned)
        with pytest.raises(QueuedAgain, match=r"SIGUSR2 after step 3 of .* goes on"):
            fit.train(config, plain, where, one_process=False)
    assert not issubclass(QueuedAgain, (Exception, SystemExit))  # which would be taken for the job's result
    assert seen == [3]
    rows = (where / "metrics.csv").read_text().splitlines()
    assert rows[-1].startswith("3,")
