"""Draws what the margins do: `python -m facelab.report.margins out=margins.png`.

The curves come from the losses themselves, with the values of conf/loss: a new margin appears by itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from hydra.utils import instantiate
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from facelab.atomic import atomic
from facelab.door import configuration_folder
from facelab.loss.classifier import Context, MarginLoss
from facelab.report import style

WIDTH, HEIGHT, DPI = 14.0, 8.2, 130  # inches and dots per inch
COLUMNS = 3  # of losses with a boundary
_COLORS = (
    style.BLUE,
    style.VERMILLION,
    style.GREEN,
    style.ORANGE,
    style.PURPLE,
    style.SKY,
    style.GREY,
    style.INK,
    "#8c510a",
)
_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)))  # the curves of one loss
_SECOND_ROUND = (0, (6, 1.5, 1, 1.5))  # where there are more losses than colours
_ANGLES = np.linspace(0, np.pi, 721)
_QUESTION = "Two classes: who gets an embedding at θ1 from one centre and θ2 from the other?"
_ANSWER = (
    "Above both lines of a colour class 1 gets it, below both class 2; between them training is content with neither.\n"
    "Dashed: the boundary without a margin, which is also that of a test."
)
_LATE = 10**6  # a step at which annealing is over
_NORM = 20.0  # length of an embedding where nothing else is said


@dataclass(frozen=True)
class Curve:
    """A target map over the angle.

    Attributes:
        loss: name of the yaml, or names where the maps are equal.
        note: what distinguishes several curves of a loss.
        target: (721,) mapped cosine at the angles 0…π, before the row scale.
        softmax: whether classes compete, so that there is a boundary between two of them.
    """

    loss: str
    note: str
    target: np.ndarray
    softmax: bool


def curves(folder: Path) -> list[Curve]:
    """The target maps of all margin losses of a folder of yamls, in the order of their names.

    Plain softmax and losses without a classifier have none. Of the margins that look at the length of an embedding the
    extremes are drawn; AdaFace as after its warm-up, with lengths of 20 ± 5; SphereFace2 without its bias.
    """
    found: list[Curve] = []
    for path in sorted(folder.glob("*.yaml")):
        node = OmegaConf.load(path)
        if "defaults" in node:  # made of other files, each of which is drawn by itself
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            loss = instantiate(node, embedding_size=2, num_classes=2)
        if not isinstance(loss, MarginLoss) or not loss.normalised:
            continue
        loss = loss.double().eval()
        if hasattr(loss, "bias"):
            loss.bias.data.zero_()  # type: ignore[operator]
        for note, norm in _lengths(loss):
            curve = Curve(path.stem, note, _target(loss, norm), loss.combine == "logsumexp")
            equal = next((i for i, other in enumerate(found) if np.array_equal(other.target, curve.target)), None)
            if equal is None:
                found.append(curve)
            else:
                found[equal] = replace(found[equal], loss=f"{found[equal].loss}, {path.stem}")
    return found


def _lengths(loss: MarginLoss) -> Iterator[tuple[str, float]]:
    """The lengths of embeddings at which a loss is drawn, with a word for each."""
    if hasattr(loss, "std_norm"):
        loss.std_norm.fill_(5.0)  # type: ignore[operator]
        yield from (("short", 1.0), ("average", _NORM), ("long", 100.0))
    elif hasattr(loss, "norm_low"):
        yield from (("short", float(loss.norm_low)), ("long", float(loss.norm_high)))  # type: ignore[arg-type]
    else:
        yield "", _NORM


@torch.no_grad()
def _target(loss: MarginLoss, norm: float) -> np.ndarray:
    rows = len(_ANGLES)
    norms, labels = torch.full((rows,), norm, dtype=torch.float64), torch.zeros(rows, dtype=torch.int64)
    context = Context(norms=norms, labels=labels, step=_LATE, training=False)
    return loss.target(torch.from_numpy(np.cos(_ANGLES)), context).numpy()


def boundary(target: np.ndarray) -> np.ndarray:
    """(721,) target cosines over θ1 → (721,) θ2 at which both classes have the same logit; NaN where none."""
    return np.where(target >= -1, np.arccos(np.clip(target, -1, 1)), np.nan)


def draw(out: Path) -> Path:
    """Draws the target logits of all losses on one axis, and the decision boundaries of two classes.

    Args:
        out: where the picture (PNG) goes.
    """
    found = curves(configuration_folder() / "loss")
    names = list(dict.fromkeys(curve.loss for curve in found))
    compete = [name for name in names if any(curve.softmax for curve in found if curve.loss == name)]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever a user's matplotlibrc says
        matplotlib.rcParams.update(style.SETTINGS)
        figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI)
        canvas = FigureCanvasAgg(figure)
        left = figure.add_gridspec(2, 1, left=0.045, right=0.455, top=0.955, bottom=0.06, height_ratios=(1.5, 1))
        _logits(figure.add_subplot(left[0]), found)
        _drops(figure.add_subplot(left[1]), found)
        rows = len(compete) // COLUMNS + 1  # there is a place left for words
        grid = figure.add_gridspec(rows, COLUMNS, left=0.515, right=0.985, top=0.865, bottom=0.06, wspace=0.12)
        for i, name in enumerate(compete):
            axes = figure.add_subplot(grid[i // COLUMNS, i % COLUMNS])
            own = [curve for curve in found if curve.loss == name]
            _two_classes(axes, own, first=i % COLUMNS == 0, last=i + COLUMNS >= len(compete))
        figure.text(0.515, 0.968, _QUESTION, fontsize=10, fontweight="bold", va="center")
        figure.text(0.515, 0.93, _ANSWER, fontsize=8, color=style.GREY, va="center", linespacing=1.5)
        alone = ", ".join(name for name in names if name not in compete)
        words = f"{alone}:\neach class is asked for itself,\nso there is no boundary\nbetween two of them"
        if alone:
            rest = figure.add_subplot(grid[-1, len(compete) % COLUMNS :])
            rest.set_axis_off()
            rest.text(0.5, 0.5, words, color=style.GREY, fontsize=8, ha="center", va="center", linespacing=1.5)
        with atomic(out) as temporary:
            canvas.print_png(temporary)
    return out


def _logits(axes: Axes, found: list[Curve]) -> None:
    axes.set_title("Target logit ÷ scale over the angle to the own class centre")
    _plot(axes, found, [curve.target for curve in found])
    axes.tick_params(labelbottom=False)
    axes.set_ylabel("target logit ÷ scale", labelpad=2)
    axes.set_ylim(-2.35, 1.05)
    axes.legend(loc="lower left", ncols=2, columnspacing=1.2, handlelength=2.2)


def _drops(axes: Axes, found: list[Curve]) -> None:
    axes.set_title("How far that is below cos θ: what the margin asks for")
    _plot(axes, found, [np.cos(_ANGLES) - curve.target for curve in found])
    axes.set_xlabel("θ, degrees")
    axes.set_ylabel("cos θ − target logit ÷ scale", labelpad=2)
    axes.set_ylim(-0.05, 1.3)


def _plot(axes: Axes, found: list[Curve], drawn: list[np.ndarray]) -> None:
    """A line over the angle for each curve: a colour for a loss, dashes for its several curves."""
    names = list(dict.fromkeys(curve.loss for curve in found))
    for curve, values in zip(found, drawn, strict=True):
        i = names.index(curve.loss)
        several = [other for other in found if other.loss == curve.loss]
        number = [other.note for other in several].index(curve.note)
        dashes = _DASHES[number] if i < len(_COLORS) else _SECOND_ROUND
        label = f"{curve.loss} ({curve.note})" if curve.note else curve.loss
        # A jump past π is a jump: no line joins its two sides.
        values = values.copy()
        values[1:][np.abs(np.diff(curve.target)) > 0.03] = np.nan
        axes.plot(np.degrees(_ANGLES), values, color=_COLORS[i % len(_COLORS)], linestyle=dashes, label=label)
    axes.set_xlim(0, 180)
    axes.set_xticks(range(0, 181, 30))


def _two_classes(axes: Axes, found: list[Curve], first: bool, last: bool) -> None:
    """The gap between where class 1 begins and where class 2 does, in one quarter of the plane."""
    axes.set_title(found[0].loss, fontsize=9, pad=4)
    degrees = np.degrees(_ANGLES)
    for curve, color in zip(found, (style.BLUE, style.ORANGE, style.GREEN), strict=False):
        other = np.degrees(boundary(curve.target))
        if len(found) == 1:
            axes.fill_between(degrees, degrees, np.nan_to_num(other, nan=180), color=color, alpha=0.15, linewidth=0)
            axes.fill_betweenx(degrees, degrees, np.nan_to_num(other, nan=180), color=color, alpha=0.15, linewidth=0)
        axes.plot(degrees, other, color=color, linewidth=1.4, label=curve.note)
        axes.plot(other, degrees, color=color, linewidth=1.4)
    axes.plot([0, 180], [0, 180], color=style.GREY, linewidth=0.7, linestyle=(0, (4, 3)))
    for place, text in (((0.04, 0.95), "class 1"), ((0.96, 0.05), "class 2")):
        side, edge = ("left", "top") if place[0] < 0.5 else ("right", "bottom")
        axes.text(*place, text, transform=axes.transAxes, fontsize=7.5, color=style.GREY, ha=side, va=edge)
    axes.set_xlim(0, 120)
    axes.set_ylim(0, 120)
    axes.set_aspect("equal")
    axes.set_xticks(range(0, 121, 30))
    axes.set_yticks(range(0, 121, 30))
    axes.tick_params(labelleft=first, labelbottom=last)
    if first:
        axes.set_ylabel("θ2, degrees", labelpad=2)
    if last:
        axes.set_xlabel("θ1, degrees", labelpad=2)
    if len(found) > 1:
        words = axes.legend(loc="lower right", fontsize=7, handlelength=1, bbox_to_anchor=(1, 0.08), frameon=True)
        words.get_frame().set(edgecolor="none", alpha=0.9)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="facelab.report.margins", description="Draws the margins of conf/loss.")
    parser.add_argument("out", metavar="out=PICTURE", help="where the picture goes, as out=margins.png")
    out = Path(parser.parse_args().out.removeprefix("out="))
    if out.suffix.lower() != ".png" or not out.parent.is_dir():
        raise SystemExit(f"error: out={out}: give a file that ends in .png, in a folder that exists")
    print(draw(out))


if __name__ == "__main__":
    main()
