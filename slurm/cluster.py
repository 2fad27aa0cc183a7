"""A Slurm cluster of one machine, for as long as a command runs: `python slurm/cluster.py pytest tests/slurm`.

Its configuration, keys, logs and state lie in a temporary folder, and its daemons listen at ports of their own: a Slurm
that this machine may have besides is not touched. The command finds the cluster by SLURM_CONF, as all Slurm's programs
do. Needs root, and slurm-wlm and munge of Debian, which are installed where there is apt; without them the command is
not run, and that is said. However the command ends, the cluster is taken down.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = {"slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-wlm", "munged": "munge"}
CPUS = 8  # that the node says it has: the tests' jobs mostly wait
PATIENCE = 60  # seconds for the node to be ready

# Jobs are queued again after 10 seconds in place of 120 (cred_expire), and have two minutes beyond their limit.
CONFIGURATION = """\
ClusterName=facelab
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={slurmd}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=10
CredType=cred/munge
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,sched_min_interval=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MailProg=/bin/true
ReturnToService=2
OverTimeLimit=2
MinJobAge=3600
SlurmdParameters=config_overrides
NodeName=localhost NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=test Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why there can be no cluster here; installs what is missing where that is possible."""
    if os.geteuid() != 0:
        return "it needs root"
    packages = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    if not packages:
        return None
    if shutil.which("apt-get") is None:
        return f"{' and '.join(packages)} are not installed, and there is no apt"
    print(f"installing {' and '.join(packages)} …", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
        done = subprocess.run(["apt-get", *words], env=environment, stdout=subprocess.DEVNULL)
        if done.returncode:
            return f"apt-get {words[0]} failed"
    return None


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Starts the daemons, gives the environment in which Slurm's programs find them, and takes them down.

    Raises:
        RuntimeError: the node does not come up; with the ends of the logs.
    """
    folder = Path(tempfile.mkdtemp(prefix="facelab-slurm-"))
    folder.chmod(0o755)  # munge wants its socket to be reached by all
    started: list[subprocess.Popen[bytes]] = []
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    try:
        _configure(folder)
        munge = folder / "munge"
        places = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        words = [f"--{option}={munge / name}" for option, name in places.items()]
        started.append(subprocess.Popen(["munged", "--foreground", "--force", *words], stderr=subprocess.DEVNULL))
        _wait(lambda: (munge / "socket").exists(), started, folder)
        started.append(subprocess.Popen(["slurmctld", "-D", "-c"], env=environment, stderr=subprocess.DEVNULL))
        started.append(subprocess.Popen(["slurmd", "-D"], env=environment, stderr=subprocess.DEVNULL))
        _wait(lambda: _state(environment) == "idle", started, folder)
        yield environment
    finally:
        _take_down(environment, started)
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path) -> None:
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o755)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    ctld, slurmd = _free_ports(2)
    text = CONFIGURATION.format(folder=folder, cpus=CPUS, ctld=ctld, slurmd=slurmd)
    (folder / "slurm.conf").write_text(text)
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _state(environment: dict[str, str]) -> str:
    """Of the node, as sinfo says it."""
    done = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True)
    return done.stdout.strip()


def _wait(ready: Callable[[], bool], daemons: list[subprocess.Popen[bytes]], folder: Path) -> None:
    until = time.monotonic() + PATIENCE
    while not ready():
        ended = [daemon.args[0] for daemon in daemons if daemon.poll() is not None]
        if ended or time.monotonic() > until:
            logs = {log.name: log.read_text(errors="replace")[-1500:] for log in folder.rglob("*log")}
            told = "\n".join(f"--- {name}\n{text}" for name, text in logs.items())
            raise RuntimeError(f"the cluster does not come up ({', '.join(ended) or 'no answer'})\n{told}")
        time.sleep(0.1)


def _take_down(environment: dict[str, str], started: list[subprocess.Popen[bytes]]) -> None:
    """Jobs first, while there are daemons to end them; then the daemons, in the order opposite to their start."""
    if len(started) == 3:
        with suppress(subprocess.TimeoutExpired, OSError):
            subprocess.run(["scancel", "--me", "--signal=KILL", "--full"], env=environment, timeout=10)
            subprocess.run(["scancel", "--me"], env=environment, timeout=10)
            until = time.monotonic() + 15
            while time.monotonic() < until and _jobs(environment):
                time.sleep(0.2)
    for daemon in reversed(started):
        daemon.terminate()
        try:
            daemon.wait(timeout=10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _jobs(environment: dict[str, str]) -> str:
    done = subprocess.run(["squeue", "-h"], env=environment, capture_output=True, text=True, timeout=10)
    return done.stdout.strip()


def main() -> None:
    """Runs the words of the command line beside a cluster, and ends as they end."""
    reason = missing()
    if reason is not None:
        print(f"SKIPPED: no Slurm cluster can be started here, {reason}", flush=True)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the cluster is taken down then, too
    with cluster() as environment:
        code = subprocess.run(sys.argv[1:], env={**environment, "FACELAB_TEST_CLUSTER": "1"}).returncode
    sys.exit(code)


if __name__ == "__main__":
    main()
