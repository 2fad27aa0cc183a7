"""What a checkpoint was trained on, found again: its data set, who of it was trained, and who was held out."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from facelab.data.select import Taken, take
from facelab.training import closed_set, fit
from facelab.training.datamodule import divide
from facelab.training.inspection import look_at_images
from facelab.trusted import safe


class Retraced(NamedTuple):
    """Who of a checkpoint's data did what."""

    source: Any  # the data set
    labels: np.ndarray  # (N,) identity of each image, -1 where it was left out
    taken: Taken  # what was trained on, and as which classes
    held: np.ndarray  # identities that were never trained on, and choose nothing where there are enough of them


def open_source(config: DictConfig, path: Path, meta: Mapping[str, Any]) -> tuple[Any, np.ndarray]:
    """The data set of a checkpoint's training, and which of its images counted.

    Args:
        config: `data.root` and `data.roots` say where it lies now, or are null; `loader.threads` and `progress` of an
            evaluation.
        path: the checkpoint.
        meta: what it says of itself.

    Returns:
        The source, and (N,) bool.
    """
    before = meta["config"]
    node = {key: value for key, value in before["data"].items() if key not in fit.COMMON}
    node |= {key: config.data.get(key) or node[key] for key in ("root", "roots") if key in node}
    source = instantiate(safe("checkpoint", node, "data", path))
    kept = np.ones(len(source.labels), dtype=bool)
    inspect = before["data"].get("inspect")
    if inspect is not None:
        run = SimpleNamespace(path=path.parent.parent, writes=False)  # who wrote, has written which images it kept
        kept = look_at_images(source, inspect, config.loader.threads, run, config.progress).kept  # type: ignore[arg-type]
    return source, kept


def retrace(config: DictConfig, path: Path, meta: Mapping[str, Any]) -> Retraced:
    """Who was trained, and who was held out; arguments as of `open_source`.

    Raises:
        ValueError: these are not the images of its training.
    """
    source, kept = open_source(config, path, meta)
    before = meta["config"]
    if meta.get("closed_set"):
        taken = closed_set.share_out(source, kept, before["data"]["holdout"], before["data"].get("take")).taken
        compare_classes(len(taken.identities), path, meta)
        return Retraced(source, np.where(kept, source.labels, -1), taken, taken.identities[:0])
    reports = before["benchmark"].get("path") is None and before["data"].get("report") is None
    labels, trained, chooses, held = divide(source.labels, kept, before["data"]["holdout"], reports)
    taken = take(labels, trained, before["data"].get("take"))
    compare_classes(len(taken.identities), path, meta)
    return Retraced(source, labels, taken, held if reports else chooses)


def compare_classes(there: int, path: Path, meta: Mapping[str, Any]) -> None:
    """Refuses data of another number of identities than a checkpoint was trained on.

    Raises:
        ValueError: with both numbers.
    """
    if there != meta["num_classes"]:
        raise ValueError(
            f"data: {there:,} identities are there to train on, but checkpoint={path} was trained on "
            f"{meta['num_classes']:,}: these are not the images of its training; give data.root=…, where they lie now"
        )
