"""Before a first training: are these the images that they should be, and how many are there?"""

from collections.abc import Mapping
from typing import Any

from facelab.data.inspect import Inspection, inspect
from facelab.data.select import Taken
from facelab.training.progress import Tracker
from facelab.training.record import RunDirectory

FILE = "images.csv"


def look_at_images(
    source: Any, choices: Mapping[str, Any], threads: int, directory: RunDirectory, show: bool
) -> Inspection:
    """What the images of a source are; of a run that has begun, what they were then.

    Args:
        source: the data set.
        choices: data.inspect.
        threads: how many look.
        directory: the run's.
        show: whether to say how far it is.

    Raises:
        ValueError: where an image must stop the run: all of them are named in `images.csv` of the run directory, which
            then stays; or where a resumed run finds other images than it began with.
    """
    file = directory.path / FILE
    if (directory.path / "config.yaml").is_file() and file.is_file():
        return Inspection.read(file, source)
    with Tracker("looking at images", show and directory.writes) as tell:
        found = inspect(source, **choices, threads=threads, tell=tell)
    refusal = found.refusal(file)
    if refusal is not None:
        if directory.writes:
            found.write(file)
        raise ValueError(refusal)
    return found


def differences_from_known(source: Any, known: Mapping[str, Any] | None) -> str:
    """How the counts of a set differ from those its authors give; empty where they agree or nothing is known."""
    if not known:
        return ""
    counts = {"identities": source.num_classes, "images": len(source)}
    differing = [f"{n:,} {what} instead of {known[what]:,}" for what, n in counts.items() if n != known[what]]
    return f"not as {known['name']} is known: {', '.join(differing)}" if differing else ""


def about_images(source: Any, known: Mapping[str, Any] | None, found: Inspection) -> dict[str, str]:
    """Rows of the summary before training: only where there is something to say."""
    rows = {"known": differences_from_known(source, known)}
    if hasattr(source, "encoded"):
        rows["images"] = str(found)
    return {name: text for name, text in rows.items() if text}


def record_of_images(source: Any, known: Mapping[str, Any] | None, found: Inspection, taken: Taken) -> dict[str, Any]:
    """The same for environment.json, and what was taken of them."""
    return {
        **{"identities": source.num_classes, "images": len(source)},
        "known": None if known is None else dict(known),
        "found": found.counts if found.looked else None,
        "taken": dict(taken.told) or None,
    }
