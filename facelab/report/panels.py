"""The panels of a run's picture: each draws one thing on the axes that it is given."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from facelab.report import style
from facelab.report.record import Record, Scores
from facelab.report.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, VERMILLION


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving average, (rows,): no lag; towards the ends the window shrinks to a third, lest it flatten them.

    Args:
        values: (rows,).
        window: rows to average over.
    """
    rows = np.arange(len(values))
    half = np.maximum(np.minimum(np.minimum(rows, rows[::-1]), window // 2), window // 6)
    first, last = np.maximum(rows - half, 0), np.minimum(rows + half + 1, len(values))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[last] - sums[first]) / (last - first)


def _end(record: Record) -> float:
    images = record.history.get("images", np.empty(0))
    images = images[np.isfinite(images)]
    return float(images.max()) if images.size and images.max() > 0 else 1.0


def _line(axes: Axes, images: np.ndarray, values: np.ndarray, color: str, label: str, smooth: bool) -> None:
    """A curve, raw behind its smoothed self; a single row as a dot."""
    if smooth and len(values) >= 20:
        axes.plot(images, values, color=color, alpha=0.25, linewidth=0.8)
        values = smoothed(values, max(len(values) // 25, 5))
    dots = len(values) < 3
    axes.plot(images, values, color=color, label=label, marker="o" if dots else "", markersize=4, clip_on=not dots)


def loss(axes: Axes, record: Record) -> None:
    """Training loss over images seen."""
    axes.set_title("Training loss")
    images, values = record.curve("train/loss")
    if not len(values):
        return style.empty(axes, "no training rows yet")
    _line(axes, images, values, BLUE, "smoothed", smooth=True)
    style.images_axis(axes, _end(record))
    axes.set_ylim(min(0, 1.08 * values.min()), 1.08 * max(values.max(), 0) or 1)


def rate(axes: Axes, record: Record) -> None:
    """Learning rate over images seen."""
    axes.set_title("Learning rate")
    images, values = record.curve("lr")
    if not len(values):
        return style.empty(axes, "no learning rate recorded")
    _line(axes, images, values, BLUE, "", smooth=False)
    style.images_axis(axes, _end(record))
    axes.set_ylim(0, 1.08 * values.max() or 1)
    axes.yaxis.set_major_formatter(style.plain)


def gradient(axes: Axes, record: Record) -> None:
    """Gradient norm over images seen, logarithmic where it spans much."""
    axes.set_title("Gradient norm")
    images, values = record.curve("train/grad_norm")
    images, values = images[values > 0], values[values > 0]
    if not len(values):
        return style.empty(axes, "no gradient norm recorded")
    _line(axes, images, values, BLUE, "", smooth=True)
    style.images_axis(axes, _end(record))
    if values.max() > 8 * values.min():
        axes.set_yscale("log")
        style.plain_logarithm(axes)
    else:
        axes.set_ylim(0, 1.08 * values.max())


def accuracy(axes: Axes, record: Record) -> None:
    """Accuracy over images seen: of naming the training images' identities, of verifying or naming what is held out."""
    axes.set_title("Accuracy")
    trained, held = record.curve("train/accuracy"), record.curve("val/accuracy")
    who, what = "identities", "pairs verified"
    if "val/top1" in record.history:
        held, who, what = record.curve("val/top1"), "classes", "images named"
    if not len(trained[1]) and not len(held[1]):
        return style.empty(axes, "no accuracy recorded yet")
    if len(trained[1]):
        _line(axes, trained[0], 100 * trained[1], BLUE, f"training: {who} named", smooth=True)
    if len(held[1]):
        axes.plot(
            held[0], 100 * held[1], color=VERMILLION, marker="o", markersize=3.5, label=f"val: held-out {what}",
            clip_on=False, zorder=3,
        )  # fmt: skip
        best = int(np.argmax(held[1]))
        axes.plot(
            held[0][best], 100 * held[1][best], marker="o", markersize=9, markerfacecolor="none", color=INK,
            linestyle="", markeredgewidth=1, clip_on=False, label=f"best: {style.percent(held[1][best])}",
        )  # fmt: skip
    style.images_axis(axes, _end(record))
    axes.set_ylim(0, 100)
    axes.set_ylabel("%")
    axes.legend(loc="best", handlelength=1.2)


def angle(axes: Axes, record: Record) -> None:
    """How the training images' angles to their own class centre are spread, over images seen."""
    axes.set_title("Angle to the own class centre")
    if not _spread(axes, record, "angle"):
        return style.empty(axes, "this loss compares no embedding with a class centre by its angle")
    axes.set_ylabel("degrees")
    low, high = axes.get_ylim()
    axes.set_yticks(range(0, 181, 10 if high - low < 50 else 15 if high - low < 110 else 30))
    axes.set_ylim(max(low, 0), min(high, 180))


def norm(axes: Axes, record: Record) -> None:
    """How the lengths of the training images' embeddings are spread, over images seen; logarithmic like gradients."""
    axes.set_title("Feature norm")
    if not _spread(axes, record, "norm"):
        return style.empty(axes, "this loss does not tell the norms of its embeddings")
    axes.set_ylabel("norm of the embedding")
    low, high = axes.get_ylim()
    if high > 8 * low:
        axes.set_yscale("log")
        style.plain_logarithm(axes)
        axes.set_ylim(low, high)


def groups(axes: Axes, record: Record) -> None:
    """Which share of the training images each group of a GroupFace head gets, over images seen."""
    spread = record.spreads["group"]
    number = spread.counts.shape[1]
    axes.set_title(f"Groups: {effective(spread.counts[-1:])[0]:.1f} of {number} in use")
    shares = 100 * spread.counts / np.maximum(spread.counts.sum(axis=1, keepdims=True), 1)  # (n,K)
    middle = (spread.images[1:] + spread.images[:-1]) / 2
    axes.plot(middle, shares, color=style.SKY, linewidth=0.7, alpha=0.6)
    for values, color, label in ((shares.max(axis=1), VERMILLION, "largest"), (shares.min(axis=1), BLUE, "smallest")):
        axes.plot(middle, values, color=color, label=label, marker="o" if len(middle) < 3 else "", clip_on=False)
    axes.axhline(100 / number, color=INK, linewidth=0.9, linestyle=style.DASHED, label="even share")
    style.images_axis(axes, _end(record))
    axes.set_ylim(0, 1.15 * shares.max())
    axes.set_ylabel("% of the images")
    axes.legend(loc="upper right", ncols=3)


def effective(counts: np.ndarray) -> np.ndarray:
    """The effective number of groups, (n,): exp of their shares' entropy; K where all are alike, 1 after a collapse.

    Args:
        counts: (n,K) images in each group.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return np.exp(-np.sum(shares * np.log(np.where(shares > 0, shares, 1)), axis=1))


def _spread(axes: Axes, record: Record, kind: str) -> bool:
    """Densities side by side, dark where many images are, under lines of the middle and the tails; False without."""
    if kind not in record.spreads:
        return False
    spread = record.spreads[kind]
    middle = (spread.images[1:] + spread.images[:-1]) / 2
    low, lower, median, upper, high = spread.quantiles((0.002, 0.1, 0.5, 0.9, 0.998)).T
    room = 0.04 * (high.max() - low.min()) + 1e-3 * high.max()
    axes.set_ylim(max(low.min() - room, 0.9 * low.min()), high.max() + room)
    # The bins are equally wide in degrees and in octaves; the two without end have no place here.
    inside = np.isfinite(spread.edges) & ((spread.edges > 0) | (kind == "angle"))
    density = spread.density()[:, inside[:-1] & inside[1:]].T
    shown = np.ma.masked_less(density, 0.01 * max(density.max(), 1e-9))
    axes.pcolormesh(spread.images, spread.edges[inside], shown, cmap=style.DENSITY, vmin=0)
    axes.plot(middle, median, color=INK, label="median")
    axes.plot(middle, lower, color=INK, linewidth=0.9, linestyle=style.DASHED, label="10 % and 90 %")
    axes.plot(middle, upper, color=INK, linewidth=0.9, linestyle=style.DASHED)
    style.images_axis(axes, _end(record))
    axes.legend(loc="best", ncols=2)
    return True


def histogram(axes: Axes, record: Record) -> None:
    """How the scores of genuine and of impostor pairs are spread."""
    if not record.scores:
        axes.set_title("Scores")
        return style.empty(axes, "no scores yet:\nthe benchmark is scored at the end of a run")
    scores = record.scores[0]
    axes.set_title(f"Scores: {scores.name}")
    both = np.concatenate([scores.genuine, scores.impostor])
    count = int(np.clip(2 * min(len(scores.genuine), len(scores.impostor)) ** 0.5, 12, 60))
    bins = np.linspace(both.min(), both.max() + 1e-9, count + 1).tolist()
    sides = ((scores.impostor, ORANGE, "impostor"), (scores.genuine, BLUE, "genuine"))
    for (values, color, label), there in zip(sides, (scores.impostors, len(scores.genuine)), strict=True):
        weights = np.full(len(values), 100 / len(values))
        axes.hist(values, bins, weights=weights, color=color, alpha=0.45)
        axes.hist(
            values,
            bins,
            weights=weights,
            color=color,
            histtype="step",
            linewidth=1.3,
            label=f"{label} ({there:,})",
        )
    axes.set_xlabel(scores.axis)
    axes.set_ylabel("% of pairs")
    margin = 0.02 * (bins[-1] - bins[0])
    axes.set_xlim(bins[0] - margin, bins[-1] + margin)
    axes.set_ylim(top=axes.get_ylim()[1] * 1.25)  # room for the legend
    axes.legend(loc="upper left", ncols=2)


def det(axes: Axes, record: Record) -> None:
    """Detection error trade-off on normal-deviate axes, with the operating points that the run reports."""
    axes.set_title("DET")
    drawn = [scores for scores in record.scores[:4] if _visible(scores).any()]
    if not record.scores:
        return style.empty(axes, "no scores yet")
    if not drawn:
        return style.empty(axes, f"{record.scores[0].name}: no errors at any threshold,\nnothing to draw")
    low_x = min(0.7 / scores.impostors for scores in drawn)
    low_y = min(0.7 / len(scores.genuine) for scores in drawn)
    low_x, low_y, high_y = min(low_x, 7e-4), min(low_y, 7e-3), _high(drawn)
    style.deviate_axis(axes, "x", low_x, 0.6)
    style.deviate_axis(axes, "y", low_y, high_y)
    axes.plot(*[style.deviate(np.array([1e-7, 0.6]))] * 2, color=GREY, linewidth=0.7, linestyle=(0, (4, 3)))
    for scores, color in zip(drawn, (BLUE, VERMILLION, GREEN, PURPLE), strict=False):
        # No errors of a kind have no place on these axes: the curve comes in from their edges.
        x, y = np.clip(scores.fmr, low_x, 0.9), np.clip(scores.fnmr, low_y * 0.9, 0.9999)
        axes.step(style.deviate(x), style.deviate(y), where="post", color=color, label=scores.name)
    # Good models leave the upper right corner free, weak ones the lower left.
    weak = drawn[0].metrics.get(f"{drawn[0].name}/eer", 0) > 0.08
    if len(drawn) > 1:
        axes.legend(loc="upper right" if weak else "center right", bbox_to_anchor=(1, 1 if weak else 0.6))
    _operating_points(axes, drawn[0], weak)
    axes.set_xlabel("false match rate, %")
    axes.set_ylabel("false non-match rate, %")


def _visible(scores: Scores) -> np.ndarray:
    """Points with errors of both kinds: the only ones that have a place on these axes."""
    return (scores.fmr > 0) & (scores.fmr < 1) & (scores.fnmr > 0) & (scores.fnmr < 1)


def _high(drawn: list[Scores]) -> float:
    worst = max(float(scores.fnmr[_visible(scores)].max()) for scores in drawn)
    return min(max(0.5, worst + 0.5 * (1 - worst)), 0.999)


def _operating_points(axes: Axes, scores: Scores, below: bool) -> None:
    """Dots at the reported TAR@FAR and at the EER; a target without a place on the axis is written in the corner."""
    lines = []
    for key, tar in scores.metrics.items():
        if "/tar@far=" not in key:
            continue
        far = key.split("=")[1]
        if key in scores.notes:
            lines.append(f"TAR {style.percent(tar)} at FAR {far}:\n{scores.notes[key]}")
            continue
        lines.append(f"TAR {style.percent(tar)} at FAR {far}")
        x = style.deviate(np.array([float(far)]))[0]
        axes.axvline(x, color=INK, linewidth=0.8, linestyle=":")
        if 0 < tar < 1:
            axes.plot(x, style.deviate(np.array([1 - tar])), marker="o", markersize=5, color=INK, clip_on=False)
    eer = scores.metrics.get(f"{scores.name}/eer", 0)
    if 0 < eer < 0.6:
        lines.append(f"EER {style.percent(eer)}")
        axes.plot(*[style.deviate(np.array([eer]))] * 2, marker="D", markersize=4.5, color=INK)
    place, side, edge = (0.03, "left", "bottom") if below else (0.98, "right", "top")
    axes.text(
        place, place, "\n".join(lines), transform=axes.transAxes, ha=side, va=edge, fontsize=8, linespacing=1.4,
        bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 2},
    )  # fmt: skip
