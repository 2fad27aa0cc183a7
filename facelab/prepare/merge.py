"""`task=merge`: one set out of one or several, without copies, people of a test set, and people with few images.

What is left out is decided first, and the new set is then written in one go: images are read twice and never held.
Embeddings are kept until it is there, so that an interrupted merge does not embed them again.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg

from facelab.atomic import atomic_folder, forget_leftover, refuse_existing
from facelab.data.inspect import UNREADABLE
from facelab.prepare.embedding import Embedder, Gallery, by_identity, read_gallery
from facelab.prepare.existing import Faces, open_set
from facelab.prepare.kept_embeddings import BLOCK, Blocks
from facelab.prepare.look import ALIKE, Looked, copies, look
from facelab.prepare.pack import LAYOUTS, Record
from facelab.prepare.together import Together
from facelab.tracking import Tracker

__all__ = ["Removed", "merge"]

_CHOICES = {"layout": tuple(LAYOUTS), "copies": ("keep", "first", "ambiguous"), "unreadable": ("stop", "skip")}
_TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}


class Removed(NamedTuple):
    """Something that is not in the new set."""

    set: str
    identity: str
    image: str  # empty where the whole identity is left out
    reason: str  # unreadable, copy, ambiguous copy, near copy, test set, few images
    score: str  # the cosine, or the number of images
    like: str  # the image that it is a copy of, or the test image


class Models(NamedTuple):
    """What compares faces; each is None where that is not asked for."""

    embed: Embedder | None
    near: float | None
    gallery: Gallery | None
    threshold: float | None
    blocks: Blocks | None  # embeddings that are kept until the set is there

    def forget(self) -> None:
        """Takes away what is kept."""
        if self.blocks is not None:
            self.blocks.forget()


def merge(
    source: str | None,
    sources: list[str] | None,
    out: str,
    layout: str,
    size: int | None,
    quality: int,
    identities: str,
    prefix: bool,
    min_images: int,
    unreadable: str,
    copies: str,
    alike: str,
    model: str | None,
    network: str | None,
    near: float | None,
    against: str | None,
    threshold: float | None,
    batch_size: int,
    accelerator: str,
    precision: str,
    threads: int,
    progress: bool,
) -> None:
    """Makes a set; each argument is explained in conf/task/merge.yaml.

    Raises:
        FileNotFoundError: a set, the model or the test set is not there.
        FileExistsError: `out` is.
        ValueError: a choice is none of those there are, sets do not go together, images cannot be read, or nothing
            would be left. Nothing was written.
    """
    choices = dict(locals())
    places = _places(source, sources)
    _check(choices)
    forget_leftover(Path(out).expanduser())
    refuse_existing(Path(out).expanduser())
    sets = _open(places, size)
    together = Together(sets, sets[0].size, identities, prefix)
    how = (batch_size, accelerator, precision, threads, progress)
    models = _models(Path(out).expanduser(), model, network, near, against, threshold, together.size, *how)
    with Tracker("looking at images", progress) as tell:
        looked = look(together, alike, threads, tell)
    kept, removed = looked.sound.copy(), list(_unreadable(together, looked, unreadable))
    removed += _without_copies(together, looked, copies, alike, kept)
    told, highest = _compared(together, models, kept, looked.hashes)
    removed += told
    removed += _few(together, kept, min_images)
    if len(np.unique(together.labels[kept])) < 2:
        models.forget()
        raise ValueError(f"fewer than two identities would be left, {_reasons(removed)}: nothing was written")
    report = _report(together, models, kept, removed, highest)
    report |= {"sources": [_about(faces) for faces in sets], "choices": choices}
    _write(Path(out).expanduser(), layout, quality, together, looked, kept, removed, report, progress)
    models.forget()
    print(
        f"{out}: {report['images']:,} images of {report['identities']:,} identities; left out: {_reasons(removed)}, "
        "named in removed.csv",
        flush=True,
    )


def _places(source: str | None, sources: list[str] | None) -> list[str]:
    if (source is None) == (sources is None) or sources == []:
        raise ValueError("give one set with source=…, or several with 'sources=[…,…]'")
    return [source] if source is not None else list(sources or ())


def _check(given: dict[str, Any]) -> None:
    for key, choices in {**_CHOICES, "alike": ALIKE}.items():
        if given[key] not in choices:
            raise ValueError(f"{key} is {given[key]!r}: give one of {', '.join(choices)}")
    if given["min_images"] < 1 or not 1 <= given["quality"] <= 100:
        raise ValueError(
            f"min_images is {given['min_images']} and quality {given['quality']}: give at least 1, and 1 to 100"
        )
    if given["threads"] < 1:
        raise ValueError(f"threads is {given['threads']}: at least 1 is needed to look at images")
    for key in ("near", "threshold"):
        if given[key] is not None and not 0 < given[key] < 1:
            raise ValueError(f"{key} is {given[key]}: a cosine between 0 and 1 is needed")
    if (given["against"] is None) != (given["threshold"] is None):
        raise ValueError("against=… (a test set) and threshold=… (a cosine) belong together: give both, or none")
    if given["model"] is None and not given["near"] is given["against"] is None:
        raise ValueError("near=… and against=… compare faces: give model=… (a checkpoint) that embeds them")
    if given["model"] is not None and given["near"] is given["against"] is None:
        raise ValueError(f"model={given['model']}: has nothing to compare: give near=…, or against=… and threshold=…")


def _open(places: Sequence[str], size: int | None) -> list[Faces]:
    sets: list[Faces] = []
    for place in places:
        sets.append(open_set(place, sets[0].size if sets else size))
    roots = [faces.root.resolve() for faces in sets]
    twice = [root for root, count in Counter(roots).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]}: is given twice; leave one of them out")
    return sets


def _models(
    out: Path,
    model: str | None,
    network: str | None,
    near: float | None,
    against: str | None,
    threshold: float | None,
    size: int,
    batch_size: int,
    *how: Any,
) -> Models:
    if model is None:
        return Models(None, None, None, None, None)
    embed = Embedder(model, network, size, batch_size, *how)
    gallery = None
    if against is not None:
        images = read_gallery(against, size)
        gallery = Gallery(images, np.concatenate(list(embed(images, "embedding the test set"))))
    blocks = Blocks(out, embed.described, -(-BLOCK // batch_size) * batch_size)
    return Models(embed, near, gallery, threshold, blocks)


# What is left out. Each of these takes images out of `kept` (N,), and says why.


def _unreadable(together: Together, looked: Looked, choice: str) -> Iterator[Removed]:
    wrong = [(odd.image, odd.why) for odd in looked.odd if odd.kind == UNREADABLE and odd.image is not None]
    if wrong and choice == "stop":
        index, why = wrong[0]
        raise ValueError(
            f"{len(wrong):,} of {len(together):,} images cannot be read, the first is {together.name(index)} of "
            f"{together.tag(index)} ({why}); task=verify names all of them, unreadable=skip leaves them out"
        )
    for index, why in wrong:
        yield _removed(together, index, "unreadable", "", why)


def _without_copies(together: Together, looked: Looked, choice: str, alike: str, kept: np.ndarray) -> Iterator[Removed]:
    if choice == "keep":
        return
    for group in copies(together, looked, alike):
        ambiguous = choice == "ambiguous" and len({int(together.labels[index]) for index in group}) > 1
        for index in group if ambiguous else group[1:]:
            kept[index] = False
            like = next(other for other in group if other != index)
            reason = "ambiguous copy" if ambiguous else "copy"
            yield _removed(together, index, reason, "", f"{together.tag(like)}: {together.name(like)}")


def _compared(
    together: Together, models: Models, kept: np.ndarray, hashes: np.ndarray
) -> tuple[list[Removed], tuple[str, float]]:
    """Leaves out near copies and people of the test set; also gives who of those that stay is nearest to it."""
    removed: list[Removed] = []
    highest = ("", 0.0)
    embed, blocks = models.embed, models.blocks
    if embed is None or blocks is None:
        return removed, highest
    rows = np.flatnonzero(kept)
    batches = blocks.embeddings(hashes[rows], lambda first: embed(_Some(together, rows[first:]), "embedding"))
    for label, at, embeddings in by_identity(together.labels[rows], batches):
        own = rows[at]
        stays, near = _near(embeddings, models.near)
        for one, other, score in near:
            kept[own[one]] = False
            like = f"{together.tag(own[other])}: {together.name(own[other])}"
            removed.append(_removed(together, int(own[one]), "near copy", f"{score:.4f}", like))
        if models.gallery is None or models.threshold is None:
            continue
        centre = embeddings[stays].mean(axis=0)
        score, name = models.gallery.nearest(centre / max(float(np.linalg.norm(centre)), 1e-12))
        if score >= models.threshold:
            kept[own] = False
            tags = _tags(together, own.tolist())
            removed.append(Removed(tags, together.identities[label], "", "test set", f"{score:.4f}", name))
        elif score > highest[1]:
            highest = (together.identities[label], score)
    return removed, highest


class _Some:
    """Some images of a set, for a loader."""

    def __init__(self, images: Any, rows: np.ndarray):
        self._images, self._rows = images, rows

    def __len__(self) -> int:
        return len(self._rows)

    def load(self, index: int, out: np.ndarray | None = None) -> np.ndarray:
        return self._images.load(int(self._rows[index]), out)


def _near(embeddings: np.ndarray, near: float | None) -> tuple[list[int], list[tuple[int, int, float]]]:
    """Which of a person's images stay, and those that do not: (image, the one that stays, cosine)."""
    if near is None:
        return list(range(len(embeddings))), []
    stays: list[int] = []
    copies: list[tuple[int, int, float]] = []
    for index, row in enumerate(embeddings):
        scores = embeddings[stays] @ row
        best = int(np.argmax(scores)) if stays else -1
        if stays and scores[best] >= near:
            copies.append((index, stays[best], float(scores[best])))
        else:
            stays.append(index)
    return stays, copies


def _few(together: Together, kept: np.ndarray, least: int) -> Iterator[Removed]:
    counts = np.bincount(together.labels[kept], minlength=len(together.identities))
    for label in np.flatnonzero((counts > 0) & (counts < least)).tolist():
        begin, end = np.searchsorted(together.labels, [label, label + 1]).tolist()
        own = [index for index in range(begin, end) if kept[index]]
        kept[own] = False
        yield Removed(_tags(together, own), together.identities[label], "", "few images", str(counts[label]), "")


def _tags(together: Together, own: Sequence[int]) -> str:
    """The sets that a person's images are from."""
    return "+".join(dict.fromkeys(together.tag(index) for index in own))


def _removed(together: Together, index: int, reason: str, score: str, like: str) -> Removed:
    identity = together.identities[together.labels[index]]
    return Removed(together.tag(index), identity, together.name(index), reason, score, like)


def _reasons(removed: Sequence[Removed]) -> str:
    counts = Counter((one.reason, bool(one.image)) for one in removed)
    words = [f"{count:,} {'images' if image else 'identities'} ({reason})" for (reason, image), count in counts.items()]
    return ", ".join(words) or "nobody"


# What is written


def _about(faces: Faces) -> dict[str, Any]:
    return {"set": str(faces.root), "identities": faces.num_classes, "images": len(faces)}


def _report(
    together: Together, models: Models, kept: np.ndarray, removed: Sequence[Removed], highest: tuple[str, float]
) -> dict[str, Any]:
    embed = models.embed
    nearest = {"identity": highest[0], "cosine": round(highest[1], 4)}
    return {
        "identities": len(np.unique(together.labels[kept])),
        "images": int(kept.sum()),
        "removed": dict(Counter(one.reason for one in removed)),
        "model": None if embed is None else {"about": embed.about, "sha256": embed.digest},
        "nearest to the test set of all that stayed": None if models.gallery is None else nearest,
    }


def _write(
    out: Path,
    layout: str,
    quality: int,
    together: Together,
    looked: Looked,
    kept: np.ndarray,
    removed: Sequence[Removed],
    report: dict[str, Any],
    progress: bool,
) -> None:
    labels = np.unique(together.labels[kept])
    names = [together.identities[label] for label in labels.tolist()]
    with atomic_folder(out) as folder, Tracker("writing", progress) as tell:
        records = _records(together, looked, np.flatnonzero(kept), labels, quality, tell)
        LAYOUTS[layout](folder, records, names, together.size)
        with open(folder / "removed.csv", "w", newline="", **_TEXT) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Removed._fields)
            writer.writerows(removed)
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        (folder / "merge.json").write_text(text, **_TEXT)


def _records(
    together: Together, looked: Looked, rows: np.ndarray, labels: np.ndarray, quality: int, tell: Any
) -> Iterator[Record]:
    """The images that stay; those of another size are resized, all others keep their bytes."""
    places = np.searchsorted(labels, together.labels[rows])
    for number, (index, label) in enumerate(zip(rows.tolist(), places.tolist(), strict=True), start=1):
        name = together.file(index)
        if tuple(looked.shapes[index]) == (together.size, together.size):
            yield label, name, together.encoded(index).tobytes()
        else:
            jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(together.load(index)), quality, colorsubsampling="444")
            yield label, f"{name.rsplit('.', 1)[0]}.jpg", jpeg
        tell(number, len(rows))
