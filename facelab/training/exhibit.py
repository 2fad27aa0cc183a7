"""What a logger is shown of something that has ended: numbers, tables, pictures and files, whoever the logger is."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from facelab.report import panels, style
from facelab.report.record import Record, read_record

POINTS = 200  # of a DET curve's table
ROWS = 10_000  # of a table: more nobody reads
BESIDE = ("std", "low", "high")  # what stands beside a number under its own key, as lfw/accuracy_std
KEPT = ("config.yaml", "environment.json", "metrics.json", "metrics.csv", "histograms.npz", "images.csv", "*.png")

Cell = float | str | None


@dataclass(frozen=True)
class Table:
    """Rows under the names of their columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Exhibit:
    """The whole.

    Attributes:
        numbers: flat, by key.
        tables: by the names of their panels; what stands before a / is the section that they stand in.
        pictures: (H,W,3) uint8, RGB, by the same.
        files: what makes up the record, by the names that they have in it.
        about: what is to be known of these files.
        final: whether nothing of it changes any more, so that it is shown once.
    """

    numbers: Mapping[str, float]
    tables: Mapping[str, Table] = field(default_factory=dict)
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    final: bool = True


def of_run(metrics: Mapping[str, float], folder: Path) -> Exhibit:
    """A run directory: `results`, `det/<benchmark>` and `scores/<benchmark>_<table>`, its pictures, its files.

    Checkpoints are not among these.

    Args:
        metrics: the final numbers.
        folder: the run directory.

    Raises:
        ValueError: a file in it is damaged.
    """
    record = read_record(folder)
    tables = {"results": _results(record)}
    for scores in record.scores:
        if len(scores.fmr):
            picked = np.unique(np.linspace(0, len(scores.fmr) - 1, POINTS).round().astype(int))
            points = [(float(scores.fmr[i]), float(scores.fnmr[i])) for i in picked]
            tables[f"det/{scores.name}"] = Table(("fmr", "fnmr"), points)
    for file in sorted((folder / "scores").glob("*.csv")):
        with open(file, newline="", encoding="utf-8") as opened:
            head, *rows = csv.reader(opened)
        tables[f"scores/{file.stem}"] = Table(head, [[_cell(text) for text in row] for row in rows[:ROWS]])
    pictures = {file.stem: read_picture(file) for file in sorted(folder.glob("*.png"))}
    if record.scores:
        pictures["det"] = _det(record)
    files = [file for pattern in KEPT for file in sorted(folder.glob(pattern))] + sorted((folder / "scores").glob("*"))
    kept = {str(file.relative_to(folder)): file for file in files}
    return Exhibit(metrics, tables, pictures, kept, {"run_directory": str(folder.absolute())})


def read_picture(file: Path) -> np.ndarray:
    """(H,W,3) uint8, RGB.

    Raises:
        ValueError: it is no picture.
    """
    image = cv2.imread(str(file), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{file}: no picture, or a damaged one; take it away, or draw it again")
    return np.ascontiguousarray(image[..., ::-1])


def pixels(figure: Figure) -> np.ndarray:
    """(H,W,3) uint8, RGB, of a figure that was made without pyplot."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _results(record: Record) -> Table:
    """A row for each number, with its spread and what has to be said beside it."""
    found: tuple[Any, ...] = (*record.scores, *record.named, *record.ranked)
    notes = {key: note for one in found for key, note in one.notes.items()}
    spreads = tuple(f"_{word}" for word in BESIDE)
    rows = [
        (key, float(value), *(record.metrics.get(f"{key}{spread}") for spread in spreads), notes.get(key, ""))
        for key, value in record.metrics.items()
        if not key.endswith(spreads)
    ]
    return Table(("number", "value", *BESIDE, "note"), rows)


def _det(record: Record) -> np.ndarray:
    """The panel of report.png by itself."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style.SETTINGS)
        figure = Figure(figsize=(5, 4.6), dpi=150)
        panels.det(figure.add_axes((0.14, 0.12, 0.82, 0.8)), record)
        return pixels(figure)


def _cell(text: str) -> Cell:
    """A cell of a CSV as a number where it is one: words cannot be sorted."""
    try:
        return float(text) if text else None
    except ValueError:
        return text
