"""TensorBoard: a run's copy as event files in its folder tensorboard/."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from facelab.training.exhibit import Exhibit, Table
from facelab.training.logging import Row

READABLE = 100  # rows of a table: TensorBoard has no way to sort or leaf through them


class TensorBoardRun:
    """Event files beside metrics.csv: `tensorboard --logdir runs/losses` shows the runs of a sweep.

    A resumed run writes a further file into the same folder. It begins by telling TensorBoard to forget whatever the
    earlier ones hold from the last row on that metrics.csv has kept, so no step is there twice.

    Args:
        run: the run directory.
        config: the resolved configuration, shown as text.
        group: the sweep's or experiment's name.
        job: what differs from the defaults.
        job_type: train, evaluate, …
        tags: words.

    Raises:
        ValueError: where TensorBoard is not installed.
    """

    name = "TensorBoard"
    identity = None  # the folder is its name

    def __init__(self, run: Path, config: Mapping[str, Any], group: str, job: str, job_type: str, tags: Sequence[str]):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError(
                "logger=tensorboard writes event files by a package that is not installed: pip install "
                "'facelab[tensorboard]', or choose logger=wandb or logger=csv"
            ) from None
        self._make = SummaryWriter
        self.folder = run / "tensorboard"
        self.about = {"group": group, "job": job, "job_type": job_type, "tags": ", ".join(tags)}
        self.config = dict(config)
        self._writer: Any = None
        self._step = 0

    @property
    def where(self) -> str:
        """What shows it."""
        return f"tensorboard --logdir '{self.folder}'"

    def follow(self, rows: Sequence[Row]) -> None:
        """Opens a file that goes on behind these rows; the last step's are told again."""
        last = int(rows[-1]["step"]) if rows else 0
        again = self.folder.is_dir()
        # Where W&B or none was the logger before, there is nothing to go on from: everything is told.
        self._writer = self._make(str(self.folder), purge_step=last if again else None)
        if not again:
            text = yaml.safe_dump({**self.about, **self.config}, sort_keys=False, allow_unicode=True)
            self._writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()))  # as it stands
        for row in rows:
            if not again or int(row["step"]) == last:
                self._add(row, int(row["step"]))
        self._writer.flush()

    def log(self, values: Row, step: int) -> None:
        """A row; it is written at once, as that of metrics.csv is: a killed run keeps both, or neither."""
        self._add(values, step)
        self._writer.flush()

    def _add(self, values: Row, step: int) -> None:
        self._step = step
        for key, value in values.items():
            if key != "step":
                self._writer.add_scalar(key, value, step)

    def publish(self, exhibit: Exhibit) -> None:
        """Numbers, pictures and tables at the last step."""
        for key, value in exhibit.numbers.items():
            if not key.startswith("val/"):  # curves of that name are there: the best is one of their points
                self._writer.add_scalar(key if "/" in key else f"final/{key}", value, self._step)
        for key, picture in exhibit.pictures.items():
            self._writer.add_image(key, picture, self._step, dataformats="HWC")
        for key, table in exhibit.tables.items():
            if len(table.rows) <= READABLE:
                self._writer.add_text(key, _markdown(table), self._step)

    def finish(self, ended: bool) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()


def _markdown(table: Table) -> str:
    """What TensorBoard shows as a table."""
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(map(_word, row))} |" for row in rows)


def _word(cell: object) -> str:
    """A cell in words."""
    text = f"{cell:.5g}" if isinstance(cell, float) else "" if cell is None else str(cell)
    return text.replace("|", "\\|")
