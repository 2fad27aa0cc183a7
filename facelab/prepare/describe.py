"""`task=describe`: what a set is like: its long tail, and what its images look like."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from facelab.atomic import atomic
from facelab.pixels import decode, fit
from facelab.prepare.existing import beside, check_found, open_set, tried
from facelab.tracking import Tracker

__all__ = ["Look", "Tail", "describe", "gini", "look_at", "tail"]

SHARES = (5, 25, 50, 75, 95)  # per cent, the quantiles that are reported
_CHUNK = 64  # images that a thread measures in one go


class Tail(NamedTuple):
    """How many images the identities have.

    Attributes:
        counts: (C,) int64, images of each identity, the most first.
        gini: 0 (all have as many) to nearly 1 (one has them all).
        imbalance: the most divided by the fewest.
        groups: many, medium and few: identities and images of each.
    """

    counts: np.ndarray
    gini: float
    imbalance: float
    groups: dict[str, dict[str, int]]


class Look(NamedTuple):
    """What n images look like, each array (n,).

    Attributes:
        pixels: √(height · width) of the image as it is stored.
        kilobytes: of its file.
        brightness: mean of its grey values, 0 to 255.
        contrast: their standard deviation.
        sharpness: variance of the Laplacian, in squared grey values; low where an image is blurred (Pech-Pacheco et
            al., ICPR 2000).
        unreadable: how many more images could not be read.
    """

    pixels: np.ndarray
    kilobytes: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    sharpness: np.ndarray
    unreadable: int


def describe(
    source: str,
    out: str | None,
    size: int | None,
    many: int,
    few: int,
    sample: int,
    seed: int,
    threads: int,
    progress: bool,
) -> None:
    """Writes describe.json and describe.png.

    Args:
        source: a pack or a folder of identities.
        out: folder of what is written; null: one beside the set.
        size: pixels at which images are measured; null: what the set itself says.
        many: an identity with more images has many.
        few: with fewer it has few.
        sample: how many images are looked at.
        seed: of which they are.
        threads: how many look.
        progress: whether to show how far it is.

    Raises:
        FileNotFoundError: the set is not there, or not finished.
        ValueError: it cannot be read, or a number is out of its range.
    """
    from facelab.prepare.describe_picture import draw

    if not 1 <= few <= many:
        raise ValueError(f"few is {few} and many {many}: 1 <= few <= many is needed, 20 and 100 are usual")
    if sample < 0 or seed < 0:
        raise ValueError(f"sample is {sample} and seed {seed}: give numbers from 0")
    if threads < 1:
        raise ValueError(f"threads is {threads}: at least 1 is needed to look at images")
    root = check_found(source)
    folder = beside(root, out, "describe")
    faces = open_set(source, size)
    shape = tail(np.bincount(faces.labels, minlength=faces.num_classes), many, few)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(faces))[:sample])
    with Tracker("looking at images", progress) as tell:
        seen = look_at(faces, chosen, threads, tell)
    report = _report(root, shape, seen, many, few, seed)
    with atomic(folder / "describe.json") as temporary:
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
    draw(folder / "describe.png", root.absolute().name, shape, seen, many, few)
    print(f"{_in_words(report)}\nwritten to  {folder}", flush=True)


def tail(counts: np.ndarray, many: int, few: int) -> Tail:
    """The long tail of a set.

    Args:
        counts: (C,) images of each identity, all above 0.
        many: more images than this are many.
        few: fewer than this are few.
    """
    counts = np.sort(counts)[::-1].astype(np.int64)
    of = {"many": counts > many, "medium": (counts <= many) & (counts >= few), "few": counts < few}
    groups = {name: {"identities": int(mask.sum()), "images": int(counts[mask].sum())} for name, mask in of.items()}
    return Tail(counts, gini(counts), float(counts[0] / counts[-1]), groups)


def gini(counts: np.ndarray) -> float:
    """Gini's coefficient of (C,) numbers ≥ 0: half their mean absolute difference, divided by their mean."""
    ordered = np.sort(counts).astype(np.float64)
    number = len(ordered)
    ranks = 2 * np.arange(1, number + 1) - number - 1
    return float((ranks * ordered).sum() / (number * ordered.sum()))


def look_at(faces: Any, chosen: np.ndarray, threads: int, tell: Any) -> Look:
    """Measures images of a set.

    Args:
        faces: a set.
        chosen: (n,) which of its images.
        threads: how many measure.
        tell: is told how many images are done, and how many there are.
    """
    chunks = [chosen[first : first + _CHUNK].tolist() for first in range(0, len(chosen), _CHUNK)]
    rows: list[tuple[float, ...]] = []
    done = 0
    pool = ThreadPoolExecutor(threads, thread_name_prefix="facelab-describe")
    try:
        for measured in pool.map(lambda chunk: [_measure(faces, index) for index in chunk], chunks):
            rows += [row for row in measured if row is not None]
            done += len(measured)
            tell(done, len(chosen))
    finally:
        pool.shutdown(cancel_futures=True)
    pixels, kilobytes, brightness, contrast, sharpness = np.array(rows, dtype=np.float64).reshape(-1, 5).T
    return Look(pixels, kilobytes, brightness, contrast, sharpness, len(chosen) - len(rows))


def _measure(faces: Any, index: int) -> tuple[float, ...] | None:
    encoded = tried(faces.encoded, index)
    image = None if encoded is None else decode(encoded)
    if image is None:
        return None
    stored = float(np.sqrt(image.shape[0] * image.shape[1]))
    if image.shape[0] == image.shape[1]:
        image = fit(image, faces.size, faces.name(index))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    sharpness = float(cv2.Laplacian(grey, cv2.CV_64F).var())
    return stored, len(encoded) / 1024, float(grey.mean()), float(grey.std()), sharpness


def _report(root: Path, shape: Tail, seen: Look, many: int, few: int, seed: int) -> dict[str, Any]:
    counts = shape.counts
    head = max(len(counts) // 100, 1)
    return {
        "set": str(root),
        "identities": len(counts),
        "images": int(counts.sum()),
        "images per identity": {
            "mean": round(float(counts.mean()), 2),
            "fewest": int(counts[-1]),
            "most": int(counts[0]),
            "quantiles": _quantiles(counts),
            "identities with one image": int((counts == 1).sum()),
        },
        "gini": round(shape.gini, 4),
        "imbalance ratio": shape.imbalance,
        "share of images of the largest hundredth": round(float(counts[:head].sum() / counts.sum()), 4),
        "groups": {"bounds": {"many": f"> {many}", "few": f"< {few}"}, **shape.groups},
        "sample": {
            "images": len(seen.pixels),
            "unreadable": seen.unreadable,
            "seed": seed,
            **{name: _quantiles(getattr(seen, name)) for name in Look._fields if name != "unreadable"},
        },
    }


def _quantiles(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    found = np.percentile(values, SHARES).tolist()
    return {f"{share} %": round(value, 3) for share, value in zip(SHARES, found, strict=True)}


def _in_words(report: dict[str, Any]) -> str:
    each, groups = report["images per identity"], report["groups"]
    shares = ", ".join(f"{groups[name]['identities']:,} {name}" for name in ("many", "medium", "few"))
    median = each["quantiles"]["50 %"]
    lines = [
        f"{report['set']}: {report['images']:,} images of {report['identities']:,} identities",
        f"each        {each['fewest']:,} to {each['most']:,}, mean {each['mean']:g}, median {median:g}",
        f"long tail   Gini {report['gini']:.3f}, imbalance ratio {report['imbalance ratio']:.4g}; identities: {shares}",
    ]
    for name in ("pixels", "brightness", "contrast", "sharpness"):
        of = report["sample"][name]
        if of is not None:
            lines.append(f"{name:<12}{of['50 %']:g}, nine in ten between {of['5 %']:g} and {of['95 %']:g}")
    return "\n".join(lines)
