"""What one sees: the choices before training, a bar while it runs, a table at its end."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from facelab.tracking import SECONDS_BETWEEN_LINES, Rate, Tracker, console, track

__all__ = ["Display", "Tracker", "console", "show_choices", "show_result", "track"]


def show_choices(rows: Mapping[str, str], where: str) -> None:
    """A compact summary before training, and where its record goes."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    console().print(table)
    print(f"run directory  {where}\n", flush=True)


def show_result(metrics: Mapping[str, float], notes: Mapping[str, str], where: str) -> None:
    """The final table, with standard deviations beside their means, and notes beside what they are about."""
    table = Table(show_header=True, header_style="bold", box=None, padding=(0, 2))
    table.add_column("measured")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        if name.endswith(("_std", "_low", "_high")):  # beside their number, or in its note
            continue
        table.add_row(
            name, _value(name, value, metrics.get(f"{name}_std")) + (f"  {notes[name]}" if name in notes else "")
        )
    console().print(table)
    print(f"\nrun directory  {where}", flush=True)


SHARES = ("accuracy", "tar@", "tpir@", "eer", "auc", "/top", "/rank", "/map", "fnmr@", "fnir@", "mmpmr@", "/failures")


def _value(name: str, value: float, std: float | None) -> str:
    share = any(part in name for part in SHARES)
    if share and std is not None:
        return f"{100 * value:.2f} % ± {100 * std:.2f}"
    return f"{100 * value:.2f} %" if share else f"{value:,.4g}" if value < 100 else f"{value:,.0f}"


class Display(pl.Callback):
    """A bar with epoch, loss, held-out accuracy, images/s and the time left; plain lines where nobody watches.

    Args:
        enabled: false shows nothing.
    """

    def __init__(self, enabled: bool):
        self.enabled = enabled
        self.live = enabled and sys.stdout.isatty()
        self._bar: Progress | None = None
        self._task: Any = None
        self._clock = (time.perf_counter(), 0)
        self._spoken = 0.0
        self._loss = float("nan")
        self._accuracy = float("nan")

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Opens the bar."""
        self._clock = (time.perf_counter(), module.progress.step)
        self._spoken = time.perf_counter()
        self._first = self._clock
        if self.live:
            columns = (
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("loss {task.fields[loss]}  held-out {task.fields[accuracy]}"),
                Rate(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console(), refresh_per_second=4)
            self._bar.start()
            at, steps = module.progress.step, module.data.steps
            self._task = self._bar.add_task("train", total=steps, completed=at, **self._fields(module))

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Moves it about once a second: reading the loss waits for the device."""
        now = time.perf_counter()
        if not self.enabled or (now - self._clock[0] < 1 and module.progress.step < module.data.steps):
            return
        fields = self._fields(module)
        fields["rate"] = (
            (module.progress.step - self._clock[1]) * module.data.options.batch_size / (now - self._clock[0])
        )
        self._clock = (now, module.progress.step)
        if self._bar is not None:
            self._bar.update(self._task, completed=module.progress.step, **fields)
        elif now - self._spoken > SECONDS_BETWEEN_LINES or module.progress.step == module.data.steps:
            self._spoken = now
            step, steps = module.progress.step, module.data.steps
            left = (now - self._first[0]) / max(step - self._first[1], 1) * (steps - step)
            print(
                f"epoch {fields['epoch']}  step {step}/{steps}  loss {fields['loss']}  held-out {fields['accuracy']}  "
                f"{fields['rate']:,.0f} images/s  {left:.0f} s left",
                flush=True,
            )

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Notes the accuracy; the pause does not count as slow training."""
        self._accuracy = module.result.headline
        self._clock = (time.perf_counter(), module.progress.step)

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Closes the bar."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        """Closes the bar, so that the message stands on a line of its own."""
        self._close()

    def _fields(self, module: Any) -> dict[str, Any]:
        loss, epoch = module.last_loss(), module.data.steps_per_epoch
        return {
            "epoch": f"{module.progress.step / epoch:.1f}/{module.data.steps / epoch:.3g}",
            "loss": "–" if loss is None else f"{loss:.3f}",
            "accuracy": "–" if self._accuracy != self._accuracy else f"{100 * self._accuracy:.2f} %",
            "rate": 0.0,
        }

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
