"""Who has started this run's processes: Slurm's srun, submitit on this machine, torchrun, or nobody but Lightning."""

import os
from typing import Any

from facelab.training.options import TrainerOptions

INTERACTIVE = (
    "bash",
    "interactive",
)  # names of Slurm jobs that are somebody's shell, in which srun is not the launcher


def by_srun() -> bool:
    """Whether srun has started one process for each rank."""
    shell = os.environ.get("SLURM_JOB_NAME") in INTERACTIVE
    return "SLURM_STEP_NUM_TASKS" in os.environ and not shell and "TORCHELASTIC_RUN_ID" not in os.environ


def by_submitit_here() -> bool:
    """Whether submitit's local launcher has started one process for each rank."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "local" and "SUBMITIT_LOCAL_NTASKS" in os.environ


def meet(options: TrainerOptions) -> None:
    """Checks that as many processes were started as train, and tells them of each other where nobody else does.

    Raises:
        ValueError: where they are more or fewer: they would wait for each other, or train the same run several times.
    """
    if by_srun():
        tasks = int(os.environ["SLURM_STEP_NUM_TASKS"])
    elif by_submitit_here():
        tasks = int(os.environ["SUBMITIT_LOCAL_NTASKS"])
    else:
        return
    if tasks != options.world:
        raise ValueError(
            f"trainer.devices × trainer.num_nodes is {options.world}, but {tasks} processes were started for it: all "
            "points of a sweep get the same resources, so sweep over trainer.devices and trainer.num_nodes in several "
            "launches; a script needs --nodes as trainer.num_nodes and --ntasks-per-node as trainer.devices"
        )
    if by_srun():
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(options.devices))  # `srun -n` does not say it
    elif tasks > 1:
        job, rank = os.environ["SUBMITIT_LOCAL_JOB_ID"], os.environ["SUBMITIT_LOCAL_GLOBALID"]
        port = 20_000 + int(job) % 40_000  # the job is a process's number
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(tasks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def plugins() -> list[Any]:
    """Lightning's plugin for who has started the processes; nothing where it finds out by itself.

    Left to itself in Slurm, it waits for signals that submitit does not send and saves a checkpoint of its own kind;
    and in a script without srun it waits for processes that nobody starts.
    """
    from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment

    if by_srun():
        return [SLURMEnvironment(auto_requeue=False)]
    if "SLURM_JOB_ID" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
        return [LightningEnvironment()]
    return []
