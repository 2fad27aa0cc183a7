"""Closed-set runs: images are held out in place of identities, and the loss's own classifier names their classes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from facelab.benchmark.classification import LabelledImages
from facelab.data.select import Taken, take
from facelab.data.split import hold_out_images
from facelab.loss.naming import name_classes
from facelab.training import centres
from facelab.training.objective import build_loss, margin_of
from facelab.trusted import safe


class Shares(NamedTuple):
    """Which images of a data set do what."""

    taken: Taken  # what is trained on
    chooses: LabelledImages | None  # held out, to choose best.ckpt
    reports: LabelledImages  # the source's own part for that, or held out too


class Speaker(NamedTuple):
    """A classifier, as far as it names classes."""

    weight: Tensor  # (C_rank,D) this rank's class centres, not normalised
    first: int  # class of the first of them
    normalised: bool  # whether similarities are cosines


def asks_for_classes(benchmark: Any) -> bool:
    """Whether a benchmark wants images of the classes that are trained on named, and has no pairs of other people."""
    return bool(getattr(benchmark, "closed_set", False))


def is_closed(source: Any, benchmark: Any) -> bool:
    """Whether images of trained classes are to be held out, and not identities.

    Raises:
        ValueError: the benchmark does not want them, and the data are divided for nothing else.
    """
    closed = asks_for_classes(benchmark)
    if getattr(source, "closed_set", False) and not closed:
        raise ValueError(
            f"data: {type(source).__name__} reports on the classes that it trains on, and {type(benchmark).__name__} "
            "asks for others: set benchmark=classification, or for aligned faces data=folder"
        )
    return closed


def share_out(source: Any, kept: np.ndarray, holdout: Mapping[str, Any], choices: Mapping[str, Any] | None) -> Shares:
    """Divides the images of a data set.

    A source that says which images are `reported` on has the held-out share of the others choose the best checkpoint;
    else one half of that share chooses, and the other one is reported. Classes that `choices` leave out are in neither.

    Args:
        source: a data set of facelab.data.
        kept: (N,) bool, which images count.
        holdout: `fraction` of the images of each class that are not trained on, `seed` of their choice.
        choices: which of the others are trained on, `data.take`; None: all of them.

    Raises:
        ValueError: too few classes are left, or a class is reported on and not trained on, or nothing is held out; or
            there are no such images to train on as were chosen.
    """
    reported = getattr(source, "reported", np.zeros(len(source.labels), dtype=bool))
    own = bool(reported.any())
    usable = np.where(kept & ~reported, source.labels, -1)
    trained, *held = hold_out_images(usable, holdout["fraction"], holdout["seed"], 1 if own else 2)
    classes = np.unique(source.labels[trained])
    if len(classes) < 2:
        raise ValueError(
            f"data: {int(kept.sum()):,} of {len(kept):,} images are kept, and they are not of two classes: mend the "
            "images, or keep more of them (data.inspect)"
        )
    reports = np.flatnonzero(kept & reported) if own else held[1]
    names = _names(source)
    strange = np.setdiff1d(source.labels[reports], classes)
    if len(strange):
        raise ValueError(
            f"data: of class {names[strange[0]]} no image is left to train on, and there are some to report on: mend "
            "its images, or keep more of them (data.inspect)"
        )
    own_labels = np.full(len(source.labels), -1)
    own_labels[trained] = source.labels[trained]
    taken = take(own_labels, classes, choices)
    classes = taken.identities
    reports, *held = (part[np.isin(source.labels[part], classes)] for part in (reports, *held))
    if not len(reports):
        raise ValueError(
            "benchmark: there is no image to report on: hold some out (data.holdout.fraction above 0, of classes with "
            "three images and more), or give data with a part for that"
        )

    def labelled(images: np.ndarray, words: str) -> LabelledImages:
        return LabelledImages(
            np.searchsorted(classes, source.labels[images]),
            [names[number] for number in classes],
            [source.name(int(image)) if hasattr(source, "name") else f"image {image}" for image in images],
            lambda index, out=None: source.load(int(images[index]), out),
            words,
        )

    part = f"held-out images, fraction {holdout['fraction']}, seed {holdout['seed']}"
    return Shares(
        taken,
        labelled(held[0], part) if len(held[0]) else None,
        labelled(reports, "a part of its own" if own else part),
    )


def check_classes(benchmark: Any, loss: nn.Module) -> None:
    """Refuses a loss that cannot name a class, where the benchmark asks for that.

    Raises:
        ValueError: it has no classifier.
    """
    if asks_for_classes(benchmark) and speaker_of(loss) is None:
        raise ValueError(
            f"benchmark: {type(benchmark).__name__} asks for the class of an image, and {type(loss).__name__} has no "
            "class centres: choose a loss with a classifier, as loss=softmax"
        )


def check_same_kind(benchmark: Any, path: Path, meta: Mapping[str, Any] | None) -> None:
    """Refuses to ask a checkpoint for held-out images that its run has not held out.

    Args:
        benchmark: of facelab.benchmark.
        path: the file.
        meta: what it says of itself; None for published weights.

    Raises:
        ValueError: identities were held out and a benchmark wants images of trained ones, or the other way round.
    """
    now = asks_for_classes(benchmark)
    if meta is None and now:
        raise ValueError(
            f"checkpoint={path}: published weights have no class centres, by which images could be named: give a "
            "checkpoint of facelab that was trained with benchmark=classification"
        )
    before = meta is not None and bool(meta.get("closed_set"))
    if now and not before:
        raise ValueError(
            f"checkpoint={path} was trained on all images of its identities, none of them is left to be named: give "
            "one that was trained with benchmark=classification"
        )
    if before and not now:
        raise ValueError(
            f"checkpoint={path} was trained on all classes of its data, so that nobody is left to be verified: set "
            "benchmark=classification, or give benchmark.path=…"
        )


def speaker_of(loss: nn.Module) -> Speaker | None:
    """The first classifier of a loss, which speaks for it; None where it has none."""
    margin = margin_of(loss)
    return None if margin is None else Speaker(margin.classifier.weight, margin.classifier.start, margin.normalised)


def speaker_out_of(path: Path, meta: Mapping[str, Any], embedding_size: int) -> Speaker:
    """The classifier of a checkpoint, whatever the number of ranks that wrote it.

    Raises:
        ValueError: its loss has several, or is none that conf/ offers.
        FileNotFoundError: a shard is missing.
    """
    with torch.device("meta"):
        node = safe("checkpoint", meta["config"]["loss"], "loss", path)
        trained = speaker_of(build_loss(node, embedding_size, num_classes=2, load=False))
    weight = centres.rows("checkpoint", path, meta["num_classes"], (0, meta["num_classes"]))
    return Speaker(weight, 0, trained is None or trained.normalised)


def answers(benchmark: Any, embeddings: Tensor, speaker: Speaker | None) -> Any:
    """What a benchmark is given of its images: their embeddings, or the classes that a classifier names.

    Args:
        benchmark: of facelab.benchmark.
        embeddings: (M,D), the same on every rank.
        speaker: who names the classes.

    Returns:
        (M,D) float32, or (M,k) classes and (M,k) similarities.
    """
    if not asks_for_classes(benchmark):
        return embeddings.cpu().numpy()
    assert speaker is not None, "check_classes has let this run begin"
    weight, first, normalised = speaker
    named = name_classes(embeddings, weight.to(embeddings.device), first, benchmark.count, normalised)
    return tuple(one.cpu().numpy() for one in named)


def _names(source: Any) -> list[str]:
    names = getattr(source, "identity_names", None)
    return [str(number) for number in range(source.num_classes)] if names is None else names
