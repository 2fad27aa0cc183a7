"""YouTube Faces: are the people of two videos one? A video is the mean of its frames' embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from facelab.benchmark.crops import Crop, images_in
from facelab.benchmark.pair_files import PairSet, by_name
from facelab.benchmark.pairs import PairBenchmark
from facelab.benchmark.scores import PairResult
from facelab.benchmark.templates import Pooling

SHOWN = 5  # names in a message


@dataclass(frozen=True)
class VideoPairs:
    """Pairs of videos, and the frames of these.

    Attributes:
        videos: pairs as of images; its image i is the video ``names[i]``.
        names: of the videos, ``Some_Body/0``.
        files: of the frames, F.
        video: (F,) int64, whose frame it is.
        crop: how a frame is read.
    """

    videos: PairSet
    names: Sequence[str]
    files: Sequence[Path]
    video: np.ndarray
    crop: Crop

    def __len__(self) -> int:
        return len(self.files)

    @property
    def name(self) -> str:
        """First part of the metric keys."""
        return self.videos.name

    @property
    def about(self) -> str:
        """In words, for a summary."""
        return f"{len(self.videos.pairs):,} pairs of {len(self.names):,} videos of {len(self):,} frames"

    def load(self, index: int, out: np.ndarray | None = None) -> np.ndarray:
        """Frame number → (size,size,3) uint8 RGB; thread-safe."""
        return self.crop.load(self.files[index], out)


class YouTubeFaces:
    """YTF (Wolf, Hassner and Maoz, CVPR 2011), restricted: 5,000 pairs of videos in ten folds of 500, half genuine.

    ``<path>/splits.txt`` has a heading, then ``fold, number, video, video, 1 or 0`` on a line, a video being
    ``Some_Body/0``; its frames are all images in ``<path>/<frames>/Some_Body/0``. A video's embedding is the mean of
    its frames' embeddings, and the rest is that of `PairBenchmark`: squared distance of unit vectors, and a threshold
    that is chosen on the nine other folds.

    Args:
        name: first part of the metric keys.
        path: the folder.
        frames: the folder of images in it.
        most: frames of a video, evenly taken; null: all.
        mirror: whether the caller adds the mirrored image's embedding; part of the stamp.
        norm: whether a frame's embedding keeps its length in the mean.
        folds: how many there are.
        far: false accept rates to report TAR at.
        far_rule: ``at_most`` or ``nearest``.
        size: image size handed to the network, pixels.
        crop: ``keep``, ``shape`` and ``alignment`` of `Crop`.
        known: published counts, ``pairs`` and ``videos``, which `check` compares.

    Attributes:
        evaluates_only: a training does not report on it.

    Raises:
        ValueError: a setting out of range.
    """

    evaluates_only = True

    def __init__(
        self,
        name: str,
        path: str | None,
        frames: str,
        most: int | None,
        mirror: bool,
        norm: bool,
        folds: int,
        far: Sequence[float],
        far_rule: str,
        size: int,
        crop: Mapping[str, Any],
        known: Mapping[str, int],
    ):
        if most is not None and most < 1:
            raise ValueError(f"benchmark.most={most}: give a number of frames from 1 on, or null for all")
        self.path = None if path is None else Path(path).expanduser()
        self.frames, self.most, self.mirror = frames, most, bool(mirror)
        self.crop, self.known = Crop(size, **crop), dict(known)
        self.pooling = Pooling(bool(norm), False, "images")
        self.name, groups, quality = name, {"beta": 0.0, "gamma": 1.0}, {"alpha": 0.0, "beta": 0.0}  # the cosine alone
        self.protocol = PairBenchmark(
            name, None, None, folds, mirror, far, far_rule, size, 2 * folds, seed=0, groups=groups, quality=quality
        )

    def _files(self) -> tuple[Path, Path]:
        """The list, and the folder of people."""
        if self.path is None:
            raise ValueError(f"benchmark.path is null: give the folder that holds splits.txt and {self.frames}")
        return self.path / "splits.txt", self.path / self.frames

    def check(self) -> list[str]:
        """The doctor: what is missing, and counts other than the published ones; empty where all is there."""
        splits, root = self._files()
        found = [f"{file} is missing" for file in (splits, root) if not file.exists()]
        if not splits.is_file():
            return found
        try:
            rows = read_splits(splits, self.protocol.folds)
        except ValueError as error:
            return [*found, str(error)]
        names = sorted({video for row in rows for video in row[1:3]})
        there = {"pairs": len(rows), "videos": len(names)}
        for key, count in self.known.items():
            if there[key] != count:
                found.append(f"{splits}: {there[key]:,} {key}, published are {count:,}")
        return found + (_missing(root, names) if root.is_dir() else [])

    def open(self, own: Any) -> VideoPairs:
        """Reads the list and finds the frames.

        Args:
            own: ignored.

        Raises:
            FileNotFoundError: the list, or videos, are missing; all are counted.
            ValueError: no path, a line that cannot be read, folds of unequal size.
        """
        splits, root = self._files()
        missing = [f"{file} is missing" for file in (splits, root) if not file.exists()]
        if missing:
            raise FileNotFoundError("; ".join([*missing, f"benchmark.path holds splits.txt and {self.frames}"]))
        rows = read_splits(splits, self.protocol.folds)
        number: dict[str, int] = {}
        pairs = [[number.setdefault(video, len(number)) for video in row[1:3]] for row in rows]
        names = list(number)
        missing = _missing(root, names)
        if missing:
            raise FileNotFoundError("; ".join([*missing, "check benchmark.path and benchmark.frames"]))
        frames = [_thinned(images_in(root / video), self.most) for video in names]
        lines = [f"{fold} {one} {other} {int(same)}\n" for fold, one, other, same in rows]
        videos = PairSet(
            name=self.protocol.name,
            images=len(names),
            load=lambda i, out=None: self.crop.load(frames[i][0], out),
            pairs=np.array(pairs, dtype=np.int64),
            same=np.array([row[3] for row in rows]),
            fold=np.array([row[0] for row in rows], dtype=np.int64),
            size=self.crop.size,
            source=splits.name,
            digest=hashlib.sha256("".join(lines).encode()).hexdigest(),
            **by_name(np.array([[video.split("/")[0] for video in row[1:3]] for row in rows])),
        )
        files = [file for video in frames for file in video]
        return VideoPairs(videos, names, files, np.repeat(np.arange(len(names)), [len(v) for v in frames]), self.crop)

    def evaluate(self, embeddings: np.ndarray, images: VideoPairs) -> PairResult:
        """Takes means of frames, and scores as `PairBenchmark.evaluate`, whose metrics these are.

        Args:
            embeddings: (F,D), one row per frame, in order; need not be normalised.
            images: what `open` gave.

        Raises:
            ValueError: another number of rows, embeddings that are zero or not finite, videos that cancel out.
        """
        video = images.video
        means = self.pooling(embeddings, video, video, None, images.name, lambda i: str(images.files[i]))
        result = self.protocol.evaluate(means.features, images.videos)
        own = {
            "protocol": "videos-10fold",
            "frames": f"{len(images):,}, {'all' if self.most is None else f'at most {self.most} of a video'}",
            "pooling": "mean over frames",
            "norm": self.pooling.stamp["norm"],
            **images.crop.stamp,
        }
        return replace(result, stamp={**result.stamp, **own})


Row = tuple[int, str, str, bool]


def read_splits(path: Path, folds: int) -> list[Row]:
    """(fold from 0 on, video, video, whether genuine) of each pair.

    Raises:
        ValueError: a line that cannot be read, another number of folds, or folds of unequal size.
    """
    rows: list[Row] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines[1:], start=2):
        part = [word.strip() for word in line.split(",")]
        if len(part) == 1 and not part[0]:
            continue
        if len(part) != 5 or not part[0].isdecimal() or part[4] not in ("0", "1"):
            raise ValueError(f"{path}, line {number}: {line!r} is not fold, number, video, video, 1 or 0")
        rows.append((int(part[0]) - 1, part[2], part[3], part[4] == "1"))
    sizes = np.bincount([max(row[0], 0) for row in rows]) if rows else np.empty(0, int)
    if len(sizes) != folds or min(row[0] for row in rows) < 0:
        raise ValueError(f"{path}: has {len(sizes)} folds, benchmark.folds={folds} was asked for")
    if len(set(sizes)) != 1:
        raise ValueError(f"{path}: its folds have {', '.join(map(str, sizes))} pairs; all need as many, check the file")
    return rows


def _missing(root: Path, names: Sequence[str]) -> list[str]:
    lost = [name for name in names if not (root / name).is_dir() or not images_in(root / name)]
    if not lost:
        return []
    shown = ", ".join(lost[:SHOWN]) + (", …" if len(lost) > SHOWN else "")
    return [f"{root}: {len(lost):,} of {len(names):,} videos have no frame there: {shown}"]


def _thinned(files: Sequence[Path], most: int | None) -> list[Path]:
    """At most so many, evenly taken from the first to the last."""
    if most is None or len(files) <= most:
        return list(files)
    return [files[place] for place in np.rint(np.linspace(0, len(files) - 1, most)).astype(int)]
