"""A run's report.png, drawn from the files of its directory alone: `python -m facelab.report.run RUN …` redraws it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from facelab.atomic import atomic
from facelab.report import named_panels, panels, style
from facelab.report.record import Named, Ranked, Record, Scores, read_record

WIDTH, HEIGHT, DPI = 13.2, 8.4, 150  # inches and dots per inch: 1,980 × 1,260 pixels of two rows
PANEL, PITCH = 2.47, 3.45  # inches: height of a panel, from a row to the next
GRID = (
    (panels.loss, panels.accuracy, panels.histogram),
    (panels.rate, panels.gradient, panels.det),
)
NAMED = (named_panels.classes, named_panels.top)  # in place of histogram and DET, where classes were named
SPREADS = (panels.angle, panels.norm)  # a third row, of runs that have counted; with groups they stand there too
EVALUATED = ((panels.histogram, panels.det),)  # an evaluation has no history
RANKED = ((named_panels.cmc,),)  # nor has one of searches alone scores


def draw(run: Path) -> Path:
    """Draws report.png into a run directory: curves and spreads of training, score histogram, DET, key numbers.

    Of an evaluation it shows the histogram and the curve alone. Panels whose files or rows are missing say so, so an
    interrupted run has a picture too.

    Args:
        run: the run directory.

    Returns:
        The picture's path.

    Raises:
        FileNotFoundError: ``run`` is not a run directory.
        ValueError: a file in it is damaged.
    """
    run = Path(run)
    record = read_record(run)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever a user's matplotlibrc says
        matplotlib.rcParams.update(style.SETTINGS)
        drawn = _rows(record)
        height = HEIGHT + PITCH * (len(drawn) - len(GRID))
        figure = Figure(figsize=(WIDTH, height), dpi=DPI)
        canvas = FigureCanvasAgg(figure)  # no pyplot: nothing global, no display, no figure left open
        for i, row in enumerate(drawn):
            top = _from_top(0.775 - i * PITCH / HEIGHT, height)
            space = 0.0638 / ((0.925 + 0.0638) / len(row) - 0.0638)  # the same gap between two panels as between three
            grid = figure.add_gridspec(
                1, len(row), left=0.055, right=0.98, top=top, bottom=top - PANEL / height, wspace=space
            )
            for j, panel in enumerate(row):
                panel(figure.add_subplot(grid[0, j]), record)
        _header(figure, record, height)
        with atomic(run / "report.png") as temporary:
            canvas.print_png(temporary)
    return run / "report.png"


def _rows(record: Record) -> tuple[tuple[Callable[[Axes, Record], None], ...], ...]:
    """The panels that a run has something to show in, or to say: row by row."""
    if "checkpoint" in record.config:
        if record.ranked and not record.scores:
            return RANKED
        return (NAMED,) if record.named else EVALUATED
    grid = tuple((*row[:-1], last) for row, last in zip(GRID, NAMED, strict=True)) if record.named else GRID
    if not record.spreads:
        return grid
    return (*grid, (*SPREADS, panels.groups) if "group" in record.spreads else SPREADS)


def _from_top(place: float, height: float) -> float:
    """A place in a figure of the usual height, as far from the top of one of another height (inches)."""
    return 1 - (1 - place) * HEIGHT / height


def _header(figure: Figure, record: Record, height: float) -> None:
    """Title, choices, and a row of key numbers."""
    title, at = _title(record), partial(_from_top, height=height)
    figure.text(0.03, at(0.957), title, fontsize=min(15, 15 * 95 / len(title)), fontweight="bold", va="center")
    figure.text(0.03, at(0.923), _choices(record.config), fontsize=9, color=style.GREY, va="center")
    numbers = key_numbers(record) or [("no result yet", "–", "")]
    width = 0.95 / max(len(numbers) + 0.5, 7)
    left = 0.03
    for i, (label, value, note) in enumerate(numbers):
        figure.text(left, at(0.881), value, fontsize=14, va="center", color=style.INK if i else style.BLUE)
        figure.text(left, at(0.854), label, fontsize=8, va="center", color=style.GREY)
        figure.text(left, at(0.837), note, fontsize=7, va="center", color=style.GREY, style="italic")
        left += width * (1 if i else 1.5)  # the first one carries its standard deviation
    figure.add_artist(Line2D([0.03, 0.98], [at(0.819)] * 2, color=style.LIGHT, linewidth=0.8))


def _title(record: Record) -> str:
    parts = [str(record.config[key]) for key in ("name", "job") if record.config.get(key)]
    title = " / ".join(parts) or record.path.absolute().name
    title = title if len(title) <= 150 else title[:149] + "…"
    return title if record.metrics else f"{title}  (not finished)"


def _choices(config: Mapping[str, Any]) -> str:
    """The configuration in a line: classes and what one asks for first; of an evaluation, that of the training."""
    trained = config.get("trained", {}).get("config", {})
    words = [str(config["checkpoint"])] if "checkpoint" in config else []
    for group, keys in SHOWN.items():
        node = trained.get(group, config.get(group))
        if group == "seed" and node is not None:
            words.append(f"seed {node}")
        if not isinstance(node, Mapping):
            continue
        kind = str(node.get("_target_", "")).rsplit(".", 1)[-1]
        settings = [f"{name} {node[key]}" for key, name in keys.items() if node.get(key) is not None]
        words += [" ".join(filter(None, [kind, *settings]))] if group != "trainer" else settings
    line = "  ·  ".join(filter(None, words))
    return line if len(line) <= 190 else line[:189] + "…"


SHOWN: dict[str, dict[str, str]] = {
    "loss": {"scale": "s", "margin": "m"},
    "backbone": {"embedding_size": "D"},
    "data": {"identities": "identities"},
    "optimizer": {"lr": "rate"},
    "trainer": {"batch_size": "batch", "epochs": "epochs", "precision": "precision"},
    "seed": {},
}


def key_numbers(record: Record) -> list[tuple[str, str, str]]:
    """(label, value, note) of the key numbers, as many as there are: the reported benchmark first."""
    numbers, metrics = [], record.metrics
    if record.scores:
        scores = record.scores[0]
        numbers += _counted_numbers(scores) if scores.counts else _pair_numbers(scores)
    elif record.ranked:
        numbers += _counted_numbers(record.ranked[0])
    if record.named:
        numbers += _named_numbers(record.named[0])
    for key, label in (("val/accuracy", "val accuracy"), ("val/top1", "val top-1")):
        if key in metrics:
            numbers.append((label, style.percent(metrics[key]), "held out; chose the checkpoint"))
    seen = "images embedded" if "checkpoint" in record.config else "images seen"
    for key, label in (("parameters", "parameters"), ("images", seen)):
        if key in metrics:
            numbers.append((label, style.count(metrics[key]), ""))
    if "images_per_s" in metrics:
        numbers.append(("images / s", f"{metrics['images_per_s']:,.0f}", ""))
    return numbers


def _pair_numbers(scores: Scores) -> list[tuple[str, str, str]]:
    """Of pairs: accuracy, TAR at each FAR, EER."""
    numbers, measured, name = [], scores.metrics, scores.name
    if f"{name}/accuracy" in measured:
        spread = 100 * measured.get(f"{name}/accuracy_std", 0)
        value = f"{100 * measured[f'{name}/accuracy']:.2f} ± {spread:.2f} %"
        numbers.append((f"{name} accuracy", value, "± standard deviation of the folds"))
    targets = [key for key in measured if key.startswith(f"{name}/tar@far=")]
    for key in sorted(targets, key=lambda key: -float(key.split("=")[1])):
        numbers.append((f"TAR at FAR {key.split('=')[1]}", style.percent(measured[key]), scores.notes.get(key, "")))
    if f"{name}/eer" in measured:
        numbers.append(("EER", style.percent(measured[f"{name}/eer"]), ""))
    return numbers


def _counted_numbers(counted: Scores | Ranked) -> list[tuple[str, str, str]]:
    """Of a protocol that counts: the rates that it reports, the first four."""
    shown = [key for key in counted.metrics if not key.endswith(("_low", "_high", "_std"))]
    shown = [key for key in shown if "/threshold@" not in key and "/fmr@" not in key][:4]
    label = len(counted.name) + 1
    return [(key[label:], style.percent(counted.metrics[key]), counted.notes.get(key, "")) for key in shown]


def _named_numbers(named: Named) -> list[tuple[str, str, str]]:
    """Of a classification: each top-k with its interval."""
    keys = [key for key in named.metrics if key.rsplit("/top", 1)[-1].isdecimal()]
    return [
        (f"{named.name} top-{key.rsplit('/top', 1)[1]}", style.percent(named.metrics[key]), named.notes.get(key, ""))
        for key in sorted(keys, key=lambda key: int(key.rsplit("/top", 1)[1]))
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="facelab.report.run", description="Redraws report.png of run directories.")
    parser.add_argument("run", nargs="+", type=Path, help="a folder that holds metrics.csv")
    for run in parser.parse_args().run:
        try:
            print(draw(run))
        except (ValueError, FileNotFoundError) as error:
            raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
