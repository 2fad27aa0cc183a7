"""The pictures of a comparison: which there are, and how they become files or parts of a page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from facelab.atomic import atomic
from facelab.compare import amounts, curves, dependence
from facelab.compare.results import Comparison
from facelab.report import style


@dataclass(frozen=True)
class Picture:
    """One of them.

    Attributes:
        name: of its file.
        title: above it.
        caption: how it is read, a sentence or two.
        draw: gives its figure, or None where the runs have nothing to show in it.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Comparison], Figure | None]


PICTURES = (
    Picture(
        "intervals",
        "Numbers with their intervals",
        "Thick: t-interval over seeds, what training again would give. Thin: bootstrap over the test's people, what "
        "other people would give. Small dots are single seeds. A filled dot is the best row of its column, or not "
        "significantly worse than it. The dashed line is the baseline. A panel may cut off the intervals of two seeds.",
        amounts.intervals,
    ),
    Picture(
        "det",
        "Detection error trade-off",
        "Both kinds of error at every threshold: a better row lies further to the lower left; the dashed diagonal "
        "meets a curve at its equal error rate. Of several seeds it is the mean of false non-match rates at equal "
        "false match rate; with few rows the band goes from the lowest to the highest.",
        curves.det,
    ),
    Picture(
        "history",
        "Accuracy over images seen",
        "Measured in training, on what also chose the checkpoints: it shows how fast a row learns and whether it has "
        "come to rest, and does not rank rows. Means over seeds; a line ends where the shortest of its runs does.",
        curves.history,
    ),
    Picture(
        "resolution",
        "Accuracy over resolution",
        "Faces were shrunk to so many pixels and enlarged again.",
        dependence.resolution,
    ),
    Picture(
        "heat",
        "Two choices at once",
        "Means over seeds; darker is better, the best cell is framed. A best cell at the edge of its grid says that "
        "the grid is too small.",
        dependence.heat,
    ),
    Picture(
        "sensitivity",
        "Sensitivity",
        "A number over one choice, all else being equal; bands are t-intervals over seeds. Where a line is steep, a "
        "ranking of rows says as much about how well each was tuned as about the rows.",
        dependence.sensitivity,
    ),
    Picture(
        "cost",
        "What it costs",
        "The grey line is the Pareto front: no other row is at least as good and as cheap.",
        amounts.cost,
    ),
)


@contextmanager
def settings() -> Iterator[None]:
    """The look of facelab's pictures for whatever is drawn inside, whatever a user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style.SETTINGS)
        # Names of runs are words, not formulas; text in SVG stays text, that can be searched and read aloud.
        matplotlib.rcParams.update({"text.parse_math": False, "svg.fonttype": "none"})
        yield


def drawn(comparison: Comparison) -> Iterator[tuple[Picture, Figure]]:
    """The pictures that the comparison has something to show in. To be used inside `settings`."""
    for picture in PICTURES:
        figure = picture.draw(comparison)
        if figure is not None:
            yield picture, figure


def save(comparison: Comparison, folder: Path, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Writes <name>.png and the like into a folder.

    Args:
        comparison: what is drawn.
        folder: made where it is not there.
        formats: endings that matplotlib knows: ``png`` (150 dots per inch), ``pdf``, ``svg``.

    Returns:
        The files.
    """
    paths = []
    with settings():
        for picture, figure in drawn(comparison):
            FigureCanvasAgg(figure)  # no pyplot: nothing global, no display, no figure left open
            for ending in formats:
                path = Path(folder) / f"{picture.name}.{ending}"
                with atomic(path) as temporary:
                    figure.savefig(temporary, format=ending)
                paths.append(path)
    return paths


VARIABLES = {
    style.INK: "var(--ink)",
    style.GREY: "var(--grey)",
    style.LIGHT: "var(--line)",
    style.BLUE.lower(): "var(--blue)",
    "#ffffff": "var(--page)",
}


def svg(picture: Picture, figure: Figure) -> str:
    """A figure as an element for a page: colours follow the page's, and no two pictures share an identifier."""
    matplotlib.rcParams["svg.hashsalt"] = picture.name  # the same bytes every time
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for color, variable in VARIABLES.items():
        text = text.replace(color, variable)
    text = text.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")  # a reader may not have it
    for before in (' id="', 'href="#', "url(#"):
        text = text.replace(before, f"{before}{picture.name}-")
    # A hundredth of a point is finer than anybody sees, and half of the bytes.
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)
    width = re.search(r'viewBox="0 0 ([\d.]+)', text)
    assert width is not None
    opening = f'<svg role="img" aria-label="{picture.title}" style="width:{float(width[1]) * 4 / 3:.0f}px" '
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf"{opening}\1>", text, count=1, flags=re.DOTALL)
    return re.sub(r"\n\s*", "\n", text)
