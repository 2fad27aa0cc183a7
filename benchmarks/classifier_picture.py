"""Draws results/classifier.csv: a step's time and extra memory against the number of classes.

    python benchmarks/classifier_picture.py                                    # what was measured last
    python benchmarks/classifier_picture.py --machine H100 --precision bf16 --out classifier.png

A method that ran out of memory is crossed at the top, above the number of classes where it did.
"""

import argparse
from pathlib import Path

from classifier import METHODS, NO_MEMORY
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from recording import RESULTS, read

from facelab.report.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILLION

COLOURS = dict(zip(METHODS, (VERMILLION, BLUE, SKY, ORANGE, GREEN, INK, PURPLE, GREY), strict=True))
SAME = ("machine", "torch", "threads", "precision", "batch", "size", "chunk")  # of all points of a picture
LEAST = 1.0  # MiB; less cannot be told from none, and has no logarithm


def main() -> None:
    """Reads the table and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the table")
    parser.add_argument("--machine", default="", help="a part of its name")
    parser.add_argument("--precision", choices=("fp32", "bf16"))
    parser.add_argument("--out", type=Path, default=Path("classifier.png"))
    options = parser.parse_args()
    rows = [row for row in read(options.results / "classifier.csv") if options.machine in row["machine"]]
    rows = [row for row in rows if options.precision in (None, row["precision"])]
    if not rows:
        raise SystemExit("nothing of that kind has been measured: run benchmarks/classifier.py")
    last = max(rows, key=lambda row: row["date"])
    rows = [row for row in rows if all(row[name] == last[name] for name in SAME)]
    draw(rows).print_png(options.out)
    print(options.out)


def draw(rows: list[dict[str, str]]) -> FigureCanvasAgg:
    """The rows of one machine and setting as two pairs of axes."""
    canvas = FigureCanvasAgg(Figure(figsize=(9, 3.6), dpi=150, layout="constrained"))
    first, figure = rows[0], canvas.figure
    figure.suptitle(
        f"B={first['batch']}, D={first['size']}, {first['precision']}, {first['machine']}", fontsize=9, color=INK
    )
    time, memory = figure.subplots(1, 2)
    curve(time, rows, "seconds", "seconds a step")
    curve(memory, rows, "extra_mib", "MiB beside centres and gradient")
    time.legend(frameon=False, fontsize=8)
    return canvas


def curve(axes: Axes, rows: list[dict[str, str]], column: str, label: str) -> None:
    """One line per method over the number of classes, both axes logarithmic."""
    for method in (method for method in METHODS if any(row["method"] == method for row in rows)):
        own = sorted((row for row in rows if row["method"] == method), key=lambda row: int(row["classes"]))
        fits = [row for row in own if row["seconds"] != NO_MEMORY]
        if column == "extra_mib" and method == "gemm":
            continue
        values = [max(float(row[column]), LEAST if column == "extra_mib" else 0) for row in fits]
        places = [int(row["classes"]) for row in fits]
        axes.plot(places, values, "o-", color=COLOURS[method], label=method, markersize=4)
        failed = [int(row["classes"]) for row in own if row["seconds"] == NO_MEMORY]
        axes.plot(failed, [0.97] * len(failed), "x", color=COLOURS[method], transform=axes.get_xaxis_transform())
    axes.set(xscale="log", yscale="log", xlabel="classes C", ylabel=label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
