"""Where a run's record goes besides its directory: to W&B, TensorBoard, or nowhere. What goes there is a copy."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from facelab.training.preemption import Interrupted
from facelab.training.record import read_history

if TYPE_CHECKING:
    from facelab.training.exhibit import Exhibit

log = logging.getLogger(__name__)

Row = Mapping[str, float]


class Logger(Protocol):
    """What takes the copy.

    Attributes:
        name: of the program behind it, for messages.
        identity: the run's name there, which finds it again; None where it has none.
        where: an address or a command that shows it.
    """

    name: str
    identity: str | None

    @property
    def where(self) -> str: ...  # noqa: D102

    def follow(self, rows: Sequence[Row]) -> None:
        """What metrics.csv holds when the run starts: the rows that a resumed run keeps, in their order."""

    def log(self, values: Row, step: int) -> None:
        """A further row of metrics.csv."""

    def publish(self, exhibit: Exhibit) -> None:
        """What there is to be shown at the end."""

    def finish(self, ended: bool) -> None:
        """Nothing more comes; whether the run has come to its end, or was stopped and may go on."""


def no_logger(**_: Any) -> None:
    """metrics.csv alone."""
    return None


def tags_of(plain: Mapping[str, Any]) -> list[str]:
    """Words to filter by: loss, backbone, teacher's way and data; of an evaluation those of the training.

    Args:
        plain: a resolved configuration.
    """
    tree = plain.get("trained", {}).get("config", plain)
    nodes = [tree.get(group) or {} for group in ("loss", "backbone", "distill", "data")]
    known = nodes[-1].get("known")
    words = [str(node["_target_"]).rsplit(".", 1)[-1] for node in nodes if "_target_" in node]
    return [*words[:-1], str(known["name"])] if known else words


def rows_of(history: Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv as numbers, without the cells that are empty."""
    return [{key: float(cell) for key, cell in row.items() if cell} for row in read_history(history)]


class Copy:
    """What goes to a logger is a copy of the record: where it fails, that is told once, and the run goes on without it.

    Args:
        logger: what takes it, or None for none.
    """

    def __init__(self, logger: Logger | None):
        self.logger = logger
        self._failed = self._ended = False

    @property
    def version(self) -> str | None:
        """The run's id at the logger."""
        return None if self.logger is None else self.logger.identity

    @property
    def about(self) -> dict[str, str]:
        """A row of the summary before training: where the copy is to be seen."""
        return {} if self.logger is None else {self.logger.name: self.logger.where}

    def follow(self, history: Path) -> None:
        """Brings the copy to where metrics.csv stands, cut back as it is to what a resumed run keeps."""
        if self.logger is not None:
            with self._unharmed() as logger:
                logger.follow(rows_of(history))

    def log(self, values: Row, step: int) -> None:
        """A row of metrics.csv."""
        with self._unharmed() as logger:
            logger.log(values, step)

    def publish(self, metrics: Mapping[str, float], folder: Path) -> None:
        """The final numbers, and what else the run directory holds."""
        self._ended = True
        if self.logger is None or self._failed:
            return
        from facelab.training.exhibit import of_run  # which draws: whoever only reads records can do without

        with self._unharmed() as logger:
            logger.publish(of_run(metrics, folder))

    def finish(self) -> None:
        """Closes it, also where it has failed: without this the next job of a multirun might be written into it."""
        self._failed, failed = False, self._failed
        with self._unharmed(tell=not failed) as logger:
            logger.finish(self._ended)
        self._failed = True

    @contextmanager
    def _unharmed(self, tell: bool = True) -> Iterator[Any]:
        try:
            yield _NOBODY if self._failed or self.logger is None else self.logger
        except Interrupted:
            raise
        except Exception as error:
            assert self.logger is not None
            self._failed = True
            if tell:
                text = " ".join(str(error).split()) or type(error).__name__
                log.warning(
                    "%s has failed (%s); the run goes on without it, its record is complete", self.logger.name, text
                )


class _Nobody:
    """Takes everything and does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


_NOBODY = _Nobody()
