"""What all tests share."""

import logging
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from omegaconf import OmegaConf

# Examples take as long as a busy machine lets them; only wrong results are failures.
settings.register_profile("facelab", deadline=None)
settings.load_profile("facelab")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """These tensors are tiny: waking a second thread costs more than the work, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _own_log():
    """A door opened in this process leaves Hydra's log handlers behind, for a folder that goes with its test.

    And it has all handlers closed: that of absl, which comes along with int8's library, then closes the file in which
    pytest keeps what a test says.
    """
    handlers, level = logging.root.handlers[:], logging.root.level
    for known in filter(None, (reference() for reference in logging._handlerList)):
        if type(known).__module__.startswith("absl."):
            known.close = known.flush
    yield
    logging.root.handlers[:], logging.root.level = handlers, level


@pytest.fixture(autouse=True, scope="module")
def _own_service():
    """W&B's own process, and the word in the environment that says where it is, go with the tests that started it.

    A word that outlives its process has the next run of this process fail, long after and in another file.
    """
    yield
    wandb = sys.modules.get("wandb")
    if wandb is not None:
        wandb.teardown()
    os.environ.pop("WANDB_SERVICE", None)


@pytest.fixture(autouse=True)
def _own_names():
    """A test that opens no door gives `${facelab.job:}` a meaning of its own: it goes with the test."""
    yield
    door = sys.modules.get("facelab.door")
    if door is not None:
        OmegaConf.register_new_resolver("facelab.job", door._job_name, use_cache=False, replace=True)


@pytest.fixture(scope="session")
def real_data():
    """The folder of real faces beside the checkout; a test that takes it is marked `data`."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real faces of ../shared/data, which are not here")
    return folder
