"""Weights & Biases, online with a key and offline without one; and no logger at all."""

import hashlib
import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from facelab.training.preemption import Interrupted

log = logging.getLogger(__name__)

PATIENCE = 10  # seconds for W&B's server to take a connection; W&B itself waits for minutes


def wandb_id(group: str, job: str) -> str:
    """The W&B id of a job: the same at every start, so that a resumed run continues its own history."""
    return hashlib.sha256(f"{group}/{job}".encode()).hexdigest()[:16]


def wandb_logger(
    project: str,
    entity: str | None,
    mode: str,
    run: Path,
    config: Mapping[str, Any],
    group: str,
    job: str,
    job_type: str,
    tags: Sequence[str],
) -> Any:
    """Lightning's W&B logger for a run.

    Args:
        project: W&B project.
        entity: user or team; None is the key's own.
        mode: auto (online with a key and a server that answers, else offline), online, offline or disabled.
        run: the run directory; W&B writes into its folder wandb/.
        config: the resolved configuration.
        group: the sweep's or experiment's name.
        job: what differs from the defaults.
        job_type: train, evaluate, …
        tags: words to filter by.

    Raises:
        ValueError: where `mode` is none of these, its server does not answer to `online`, or W&B cannot be started.
    """
    known = ("auto", "online", "offline", "disabled")
    if mode not in known:
        raise ValueError(f"logger.mode is {mode!r}: give one of {', '.join(known)}")
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    mode = _reachable_mode(mode)
    logger = WandbLogger(
        project=project,
        entity=entity,
        name=job,
        id=wandb_id(group, job),
        resume="allow",
        group=group,
        job_type=job_type,
        tags=list(tags),
        config=dict(config),
        save_dir=run,
        settings=wandb.Settings(mode=mode, silent=True, console="off"),  # type: ignore[arg-type]
    )
    getattr(logger, "_wandb_init", {}).pop("anonymous", None)  # Lightning hands it on, W&B warns of it
    try:
        logger.experiment.define_metric("trainer/global_step", hidden=True)
        logger.experiment.define_metric("*", step_metric="trainer/global_step")
    except wandb.errors.Error as error:
        raise ValueError(
            f"W&B cannot be started ({error}): set logger.mode=offline and sync later, or logger=csv for "
            "metrics.csv alone"
        ) from None
    return logger


def _reachable_mode(mode: str) -> str:
    """What `mode` comes to where W&B's server may not answer: then `auto` is offline, and `online` is refused."""
    asked = mode
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
    unreachable = _why_unreachable() if mode == "online" else None
    if unreachable is None:
        return mode
    if asked == "online":
        raise ValueError(
            f"W&B cannot be reached ({unreachable}): set logger.mode=offline and sync later, or logger=csv for "
            "metrics.csv alone"
        )
    log.warning("W&B cannot be reached (%s): this run is offline, `wandb sync` sends it later", unreachable)
    return "offline"


def _has_key() -> bool:
    """Whether W&B has a key, without asking its server whether it is a good one."""
    import wandb

    settings = wandb.setup().settings
    if os.environ.get("WANDB_API_KEY") or settings.api_key:
        return True
    try:
        known = netrc(os.environ.get("NETRC") or Path.home() / ".netrc")
    except (OSError, NetrcParseError):
        return False
    return known.authenticators(urlsplit(settings.base_url).hostname or "") is not None


def _why_unreachable() -> str | None:
    """Why W&B's server takes no connection; None where it does, or where a proxy stands between."""
    import wandb

    server = urlsplit(wandb.setup().settings.base_url)
    if server.hostname is None or getproxies().get(server.scheme):
        return None
    port = server.port or (80 if server.scheme == "http" else 443)
    try:
        socket.create_connection((server.hostname, port), timeout=PATIENCE).close()
    except OSError as error:
        return f"{server.hostname}: {error.strerror or error}"
    return None


def no_logger(**_: Any) -> None:
    """metrics.csv alone."""
    return None


class Copy:
    """What goes to W&B is a copy of the record: where W&B fails, that is told once, and the run goes on without it.

    Args:
        logger: Lightning's logger, or None for none.
    """

    def __init__(self, logger: Any):
        self.logger = logger

    @property
    def version(self) -> str | None:
        """The id of the W&B run."""
        return getattr(self.logger, "version", None)

    def log(self, values: Mapping[str, float | int], step: int) -> None:
        """A row of metrics.csv."""
        if self.logger is not None:
            with self._unharmed():
                self.logger.log_metrics(dict(values), step=step)

    def publish(self, metrics: Mapping[str, float], report: Path) -> None:
        """The final numbers and the report's picture."""
        if self.logger is None:
            return
        import wandb

        with self._unharmed():
            self.logger.experiment.summary.update(dict(metrics))
            self.logger.experiment.log({"report": wandb.Image(str(report))})

    def finish(self) -> None:
        """Closes the W&B run; without this the next job of a multirun would be written into it."""
        wandb = sys.modules.get("wandb")  # also where it was interrupted before there was a logger
        if wandb is not None:
            with self._unharmed():
                wandb.finish()

    @contextmanager
    def _unharmed(self) -> Iterator[None]:
        try:
            yield
        except Interrupted:
            raise
        except Exception as error:
            if self.logger is not None:
                text = " ".join(str(error).split()) or type(error).__name__
                log.warning("W&B has failed (%s); the run goes on without it, its record is complete", text)
            self.logger = None
