"""What a study looks at: a network, the images that it was trained on, and faces that it has never seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from facelab.benchmark.pair_files import PairSet
from facelab.benchmark.pairs import PairBenchmark
from facelab.data.imagefolder import centre_square
from facelab.pixels import decode
from facelab.training.datamodule import faces
from facelab.training.fit import COMMON
from facelab.training.options import check_kind
from facelab.training.retraced import Retraced, retrace
from facelab.training.trained import Trained, out_of_checkpoint, out_of_weights

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True)
class Images:
    """Images one after another, as a loader takes them.

    Attributes:
        count: N.
        load: number → (H,W,3) uint8 RGB; thread-safe. Pixels may go to a second argument.
    """

    count: int
    load: Callable[..., np.ndarray]

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class Known:
    """The images that a network was trained on, or those of a data set that was given in their place.

    Attributes:
        images: N.
        names: (N,) image number → its name within the set.
        labels: (N,) int64, 0 … C−1.
        people: C names.
        sizes: (C,) images of each class in training, of which N may be a part.
        about: in words.
    """

    images: Images
    names: Callable[[int], str]
    labels: np.ndarray
    people: Sequence[str]
    sizes: np.ndarray
    about: str


@dataclass(frozen=True)
class Subject:
    """All of it.

    Attributes:
        trained: the network.
        known: training images.
        benchmark: what compares the pairs.
        pairs: faces that it was not trained on; None where there are none.
        without: why there are none, in words.
    """

    trained: Trained
    known: Known
    benchmark: PairBenchmark
    pairs: PairSet | None
    without: str

    @property
    def network(self) -> nn.Module:
        """(B,3,H,W) in [−1,1] → (B,D)."""
        return nn.Sequential(self.trained.backbone.to(memory_format=torch.channels_last), self.trained.head).eval()


def open_subject(config: DictConfig, path: Path, meta: dict[str, Any] | None) -> Subject:
    """Opens what a configuration names, before anything is embedded.

    Args:
        config: conf/quality.yaml.
        path: the checkpoint, or published weights.
        meta: what a checkpoint says of itself; None for published weights.

    Raises:
        ValueError, FileNotFoundError: something is missing or does not fit; it is named.
    """
    check_kind("ema", config.ema, bool | None)
    benchmark = instantiate(config.benchmark)
    if type(benchmark) is not PairBenchmark:
        raise ValueError(
            f"benchmark: {type(benchmark).__name__} does not compare pairs of images as they are: choose "
            "benchmark=pairs or a named set of pairs, as benchmark=lfw"
        )
    if meta is None:
        trained = out_of_weights("checkpoint", path, config.backbone, "backbone", config.ema)
    elif "_target_" in config.backbone or config.backbone.input is not None:
        raise ValueError(f"checkpoint={path} says itself which network it is of: leave backbone… out")
    else:
        trained = out_of_checkpoint("checkpoint", path, meta, config.ema)
    found = None
    if meta is not None and "_target_" not in config.data:
        found = retrace(config, path, meta)
        known = _of_training(found)
    else:
        known = _of_data(config.data, path)
    known = _some(known, config.study.images, config.study.seed)
    pairs, without = _pairs(benchmark, found)
    for what, images in (("data", known.images), ("benchmark", pairs)):
        shape, size = None if images is None else images.load(0).shape, config.data.size
        if shape not in (None, (size, size, 3)):
            raise ValueError(f"{what}: its images have shape {shape}, the network takes {(size, size, 3)}")
    return Subject(trained, known, benchmark, pairs, without)


def _of_training(found: Retraced) -> Known:
    source, taken = found.source, found.taken
    names = source.identity_names or [str(number) for number in range(source.num_classes)]
    return Known(
        Images(len(taken.images), lambda i, out=None: source.load(int(taken.images[i]), out)),
        lambda i: _name(source, int(taken.images[i])),
        taken.labels,
        [names[number] for number in taken.identities],
        np.bincount(taken.labels, minlength=len(taken.identities)),
        f"{len(taken.images):,} images of {len(taken.identities):,} people, those of its training",
    )


def _of_data(node: DictConfig, path: Path) -> Known:
    """All images of a data set that was typed."""
    if "_target_" not in node:
        raise ValueError(
            f"checkpoint={path}: published weights do not say on which images they were trained: add data=… as for a "
            "training, for example data=casia data.root=FOLDER"
        )
    plain: Any = OmegaConf.to_container(node, resolve=True)
    given = {key: value for key, value in plain.items() if key not in COMMON}
    source = instantiate({k: v for k, v in given.items() if k not in ("root", "roots") or v is not None})
    names = source.identity_names or [str(number) for number in range(source.num_classes)]
    return Known(
        Images(len(source), source.load),
        lambda i: _name(source, i),
        np.asarray(source.labels, np.int64),
        names,
        np.bincount(source.labels, minlength=source.num_classes),
        f"{len(source):,} images of {source.num_classes:,} people, all of data=…",
    )


def _name(source: Any, image: int) -> str:
    return source.name(image) if hasattr(source, "name") else f"image {image}"


def _some(known: Known, count: int | None, seed: int) -> Known:
    """As many images at random; of all classes the sizes that they have."""
    check_kind("study.images", count, int | None)
    check_kind("study.seed", seed, int)
    if count is None or count >= len(known.images):
        return known
    if count < 2:
        raise ValueError(f"study.images is {count}: give 2 or more, or null for all")
    chosen = np.sort(np.random.default_rng(seed).choice(len(known.images), count, replace=False))
    return Known(
        Images(count, lambda i, out=None: known.images.load(int(chosen[i]), out)),
        lambda i: known.names(int(chosen[i])),
        known.labels[chosen],
        known.people,
        known.sizes,
        f"{count:,} at random of {known.about}",
    )


def _pairs(benchmark: PairBenchmark, found: Retraced | None) -> tuple[PairSet | None, str]:
    if benchmark.path is not None:
        return benchmark.open(None), ""
    if found is None:
        return None, "no pairs of other people: give benchmark.path=… for curves and outliers"
    if len(found.held) == 0:
        return None, "nobody was held out of its training: give benchmark.path=… for curves and outliers"
    return benchmark.open(faces(found.source, found.labels, found.held)), ""


def other_pictures(folder: str | None, size: int, count: int) -> Images | None:
    """Pictures that are no faces, from a folder of the user; their middle squares.

    Args:
        folder: with pictures at any depth; None where there is none.
        size: H = W in pixels.
        count: no more than so many, evenly taken in the order of their names.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it has no picture; while loading: one cannot be read.
    """
    if folder is None:
        return None
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"outliers.folder={folder}: no such folder; give one with pictures that are no faces")
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in PICTURES and file.is_file())
    if not files:
        raise ValueError(f"outliers.folder={folder}: has no picture ({', '.join(PICTURES)})")
    chosen = [files[int(i)] for i in np.linspace(0, len(files) - 1, min(count, len(files))).round()]

    def load(i: int, out: np.ndarray | None = None) -> np.ndarray:
        image = decode(np.fromfile(chosen[i], np.uint8))
        if image is None:
            raise ValueError(f"{chosen[i]}: is not a readable picture; take it out of outliers.folder")
        return centre_square(image, size)

    load(0)
    return Images(len(chosen), load)
