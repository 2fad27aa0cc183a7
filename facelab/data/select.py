"""Which of the images that may be trained on are, and under which label: less data, a longer tail, wrong labels.

For experiments that ask what data are worth. Whoever is held out is so before, and is nobody's business here. Every
choice is a function of a seed of the data (not the run's) and of the number of an identity or an image: runs that are
compared train on the same images, and a larger share contains the smaller one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from facelab.data.plan import sample_seeds

__all__ = ["Taken", "take"]

# Streams of random numbers. Epochs count from 0, so that none of them is an epoch's.
_PEOPLE, _PICTURES, _TAIL, _WRONG, _OTHER, _STRANGERS = -1, -2, -3, -4, -5, -6
KINDS = ("flip", "outlier")


@dataclass(frozen=True)
class Taken:
    """What is trained on.

    Attributes:
        images: (n,) int64, numbers of the images, rising.
        labels: (n,) int64, the class that each is trained as, 0…C-1.
        identities: (C,) int64, the identity of each class.
        wrong: (k,) int64, numbers of the images that are trained as somebody else than they show, rising.
        told: what is to be said of the choices, for a record: empty where nothing was chosen.
    """

    images: np.ndarray
    labels: np.ndarray
    identities: np.ndarray
    wrong: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    told: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """What a summary says; nothing where nothing was chosen."""
        told = self.told
        if not told:
            return ""
        words = [
            f"took {told['identities']:,} of {told['of_identities']:,} identities, "
            f"{told['images']:,} of {told['of_images']:,} images"
        ]
        if "long_tail" in told:
            tail = told["long_tail"]
            words.append(f"long tail of {tail['largest']:,} to {tail['smallest']:,} images, ratio {tail['ratio']:.3g}")
            if tail["ratio"] != tail["asked"]:
                words[-1] += f" where {tail['asked']:g} was asked for"
            if tail["capped"]:
                words[-1] += f" ({tail['capped']:,} identities have fewer images than their place asks for)"
        if "noise" in told:
            noise = told["noise"]
            what = "images of other people" if noise["kind"] == "outlier" else "wrong labels"
            words.append(f"{noise['images']:,} {what} put in")
        return "; ".join(words)


def take(labels: np.ndarray, identities: np.ndarray, choices: Mapping[str, Any] | None) -> Taken:
    """The images to train on, and their classes.

    In this order: identities with fewer than `min_images` go; of the others `identities` stay; of each one's images the
    share `images` stays, at least one, and at most `max_images`; `long_tail` leaves the i-th of C identities

        n_i = head · ratio^(−i/(C−1)) images, rounded, i = 0 … C−1

    (the profile of Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019); at last `noise`
    makes labels wrong.

    Who stays, which images do, and who is which in the tail are random orders, each a function of its seed and of the
    number of the identity or image in the data set. So whether somebody comes to the head or to the tail has nothing to
    do with who it is, nor with how many images there are of them, as long as nobody has fewer than `head`: hence `head`
    is, where nothing else is said, what the identity with the fewest has, which `min_images` raises.

    Noise strikes round(fraction · n) of the n images, and leaves the number of images of each class (`outlier`) or of
    all together (`flip`) as it is. With `flip` an image is trained as another of the C identities, each of which is as
    likely; with `outlier` another image takes its place, of somebody whom the choices above leave out. Source of both
    kinds: Wang et al., The Devil of Face Recognition is in the Noise, ECCV 2018.

    Args:
        labels: (N,) identity of each image of the data set; of images that do not count any number not among
            `identities`.
        identities: (C,) those that may be trained on, rising; nobody who is held out.
        choices: `identities` (how many, or a fraction up to 1; None: all), `images` (fraction; None: all),
            `min_images`, `max_images` (or None), `seed`, `long_tail` (`ratio`, None: none; `head`, images of the first,
            or None; `seed`) and `noise` (`fraction`, `kind`, `seed`). None: all of it, as it is.

    Raises:
        ValueError: a choice is out of range, asks for more than there is, or leaves fewer than two identities; the
            ratio cannot be reached; or there are too few images of other people.
    """
    images = np.flatnonzero(np.isin(labels, identities))
    rows = np.searchsorted(identities, labels[images])
    if choices is None:
        return Taken(images, rows, identities)
    _check(choices)
    tail, noise = choices["long_tail"], choices["noise"]
    counts = np.bincount(rows, minlength=len(identities))
    quota, told_of_tail = _quota(counts, identities, choices)
    if (quota == counts).all() and tail["ratio"] is None and not noise["fraction"]:
        return Taken(images, rows, identities)
    kept = _first_of_each(images, rows, quota, choices["seed"])
    stay = quota > 0
    taken, own, who = images[kept], (np.cumsum(stay) - 1)[rows[kept]], identities[stay]
    told = {
        **{"identities": len(who), "of_identities": len(identities)},
        **{"images": len(taken), "of_images": len(images)},
        **({} if told_of_tail is None else {"long_tail": told_of_tail}),
    }
    wrong = taken[:0]
    if noise["fraction"]:
        taken, own, wrong = _spoil(taken, own, len(who), images[~stay[rows]], noise)
        told["noise"] = {"kind": noise["kind"], "images": len(wrong)}
    return Taken(taken, own, who, wrong, told)


def _quota(
    counts: np.ndarray, identities: np.ndarray, choices: Mapping[str, Any]
) -> tuple[np.ndarray, dict[str, Any] | None]:
    """How many images of each identity are taken (C,), 0 of those that are left out; and what to tell of the tail."""
    eligible = np.flatnonzero(counts >= choices["min_images"])
    asked, how_many = choices["identities"], len(eligible)
    if asked is not None:
        if isinstance(asked, int) and asked > how_many:
            fewer = f" with {choices['min_images']:,} images or more" if how_many < len(counts) else ""
            raise ValueError(
                f"data.take.identities is {asked:,}, but there are {how_many:,} to train on{fewer}: give at most as "
                "many, or null for all"
            )
        how_many = asked if isinstance(asked, int) else round(asked * how_many)
    if how_many < 2:
        raise ValueError(
            f"data.take leaves {how_many:,} of {len(counts):,} identities ({len(eligible):,} have data.take.min_images="
            f"{choices['min_images']:,}), and at least 2 are needed: raise data.take.identities or lower min_images"
        )
    who = eligible
    if how_many < len(eligible):
        who = eligible[np.argsort(sample_seeds(choices["seed"], _PEOPLE, identities[eligible]))[:how_many]]
    quota = np.zeros_like(counts)
    quota[who] = counts[who]
    if choices["images"] is not None:
        quota[who] = np.maximum(1, np.rint(choices["images"] * counts[who]).astype(np.int64))
    if choices["max_images"] is not None:
        quota = np.minimum(quota, choices["max_images"])
    if choices["long_tail"]["ratio"] is None:
        return quota, None
    return _fall_off(quota, identities, **choices["long_tail"])


def _fall_off(
    quota: np.ndarray, identities: np.ndarray, ratio: float, head: int | None, seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """The same with the profile of a long tail, over those who are taken."""
    who = np.flatnonzero(quota)
    fewest = int(quota[who].min())
    largest = fewest if head is None else head
    if largest < ratio:
        whence = "as many as the identity with the fewest has" if head is None else "data.take.long_tail.head"
        raise ValueError(
            f"data.take.long_tail.ratio is {ratio:g}, but the first identity has only {largest:,} images ({whence}), "
            f"so that the last one would have less than one: set data.take.min_images={math.ceil(ratio)} or more, "
            "lower the ratio, or raise data.take.long_tail.head"
        )
    order = who[np.argsort(sample_seeds(seed, _TAIL, identities[who]))]
    profile = largest * float(ratio) ** (-np.arange(len(order)) / (len(order) - 1))
    wanted = np.rint(profile).astype(np.int64)
    quota = quota.copy()
    capped = int((quota[order] < wanted).sum())
    quota[order] = np.minimum(quota[order], wanted)
    left = quota[who]
    attained = {"ratio": float(left.max() / left.min()), "largest": int(left.max()), "smallest": int(left.min())}
    return quota, {**attained, "asked": float(ratio), "capped": capped}


def _first_of_each(images: np.ndarray, rows: np.ndarray, quota: np.ndarray, seed: int) -> np.ndarray:
    """Places (n,), rising, of the first `quota` images of each identity, in an order that is random for each."""
    counts = np.bincount(rows, minlength=len(quota))
    if ((quota == counts) | (quota == 0)).all():
        return np.flatnonzero(quota[rows])
    order = np.lexsort((sample_seeds(seed, _PICTURES, images), rows))
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)  # within its identity
    return np.sort(order[place < np.repeat(quota, counts)])


def _spoil(
    images: np.ndarray, labels: np.ndarray, classes: int, strangers: np.ndarray, noise: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images and labels with noise, and the numbers of the images whose label is wrong."""
    count, seed = round(noise["fraction"] * len(images)), noise["seed"]
    where = np.argsort(sample_seeds(seed, _WRONG, images))[:count]
    images, labels = images.copy(), labels.copy()
    if noise["kind"] == "flip":
        further = sample_seeds(seed, _OTHER, images[where]) % np.uint64(classes - 1)
        labels[where] = (labels[where] + 1 + further.astype(np.int64)) % classes
        return images, labels, np.sort(images[where])
    if len(strangers) < count:
        raise ValueError(
            f"data.take.noise.kind=outlier takes {count:,} images of people who are left out of training, and there "
            f"are {len(strangers):,}: leave more people out (data.take.identities=0.8, say), lower "
            "data.take.noise.fraction, or set data.take.noise.kind=flip"
        )
    images[where] = strangers[np.argsort(sample_seeds(seed, _STRANGERS, strangers))[:count]]
    wrong, order = np.sort(images[where]), np.argsort(images)
    return images[order], labels[order], wrong


def _check(choices: Mapping[str, Any]) -> None:
    """Refuses values out of their range, before anything is counted."""
    for name in ("long_tail", "noise"):
        if not isinstance(choices[name], Mapping):
            raise ValueError(f"data.take.{name} is {choices[name]!r}: change the keys below it one by one")
    tail, noise = choices["long_tail"], choices["noise"]
    people, most, head = choices["identities"], choices["max_images"], tail["head"]
    share, ratio, spoiled = choices["images"], tail["ratio"], noise["fraction"]
    whole, seed = "a whole number from 1 on", "a whole number"
    some = people is None or _is_whole(people, 2) or (isinstance(people, float) and 0 < people <= 1)
    part = share is None or (_is_number(share) and 0 < share <= 1)
    rules = [
        ("identities", people, some, "how many, from 2 on, or a fraction above 0 and up to 1.0, or null for all"),
        ("images", share, part, "a fraction above 0 and up to 1, or null for all"),
        ("min_images", choices["min_images"], _is_whole(choices["min_images"], 1), whole),
        ("max_images", most, most is None or _is_whole(most, 1), f"{whole}, or null for all"),
        ("seed", choices["seed"], _is_whole(choices["seed"]), seed),
        ("long_tail.ratio", ratio, ratio is None or (_is_number(ratio) and ratio >= 1), "a number from 1 on, or null"),
        ("long_tail.head", head, head is None or _is_whole(head, 1), f"{whole}, or null"),
        ("long_tail.seed", tail["seed"], _is_whole(tail["seed"]), seed),
        ("noise.fraction", spoiled, _is_number(spoiled) and 0 <= spoiled < 1, "a fraction from 0 on and below 1"),
        ("noise.kind", noise["kind"], noise["kind"] in KINDS, f"one of {', '.join(KINDS)}"),
        ("noise.seed", noise["seed"], _is_whole(noise["seed"]), seed),
    ]
    for name, value, holds, what in rules:
        if not holds:
            raise ValueError(f"data.take.{name} is {value!r}: give {what}")


def _is_whole(value: Any, least: float = -math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
