"""Runs that repeat to the last bit, `trainer.deterministic=true`: what torch has to be told, and what it refuses.

A function of (seed, epoch, image) or (seed, step, rank) is all that is drawn, so what is left is the order in which
sums are added. On a CPU it is fixed; on a GPU some operations add as their threads happen to arrive. Processes and
threads that decode have no part in it: an image's draws are the image's.
"""

import os
import re

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def prepare(deterministic: bool) -> None:
    """To be called before anything is computed: cuBLAS reads its workspace's size once, at its first product.

    Processes that are started later inherit it.
    """
    if deterministic:
        os.environ.setdefault(WORKSPACE, ":4096:8")  # eight buffers of 4 MiB, one of the two that NVIDIA documents


def refused(error: RuntimeError) -> str | None:
    """What to say of an operation that torch has refused because the order of its sums is not fixed; else None."""
    found = re.search(r"(\S+) does not have a deterministic implementation", str(error))
    if found is None:
        return None
    return (
        f"trainer.deterministic=true: {found[1]} has no deterministic version on this device: set it to false, leave "
        "out what needs that operation, or train with trainer.accelerator=cpu"
    )
