"""Pair verification as LFW, CFP-FP, AgeDB-30, CALFW, CPLFW … are reported: ten folds, and operating points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from facelab.benchmark.operating_points import (
    allowed_false_accepts,
    auc,
    check_far_rule,
    det,
    eer,
    fold_accuracy,
    tar_at_far,
)
from facelab.benchmark.pair_files import FacePairs, PairSet, read_bin, read_folder
from facelab.benchmark.quality_aware import QualityAware
from facelab.benchmark.scores import PairResult


class PairBenchmark:
    """The ten-fold pair protocol (LFW View 2; the `.bin` sets of InsightFace).

    An image's embedding is embed(image) + embed(mirrored image), L2-normalised; the caller embeds, and adds the mirror
    where `mirror` says so. The score of a pair is minus the squared L2 distance. Accuracy: the first of the thresholds
    0, 0.01 … 3.99 that is best on nine folds is applied to the tenth; mean and population standard deviation over the
    ten. TAR at FAR, EER, AUC and DET pool all folds.

    Args:
        name: first part of the metric keys; null: the file's stem (of ``lfw/pairs.txt`` the folder's name, lfw), or
            ``heldout`` without a file.
        path: a `.bin`, or a folder ``<path>/<person>/<person>_0001.jpg``; null: pairs of held-out training identities.
        pairs: the pairs.txt that belongs to a folder; null: ``<path>/pairs.txt``.
        folds: K.
        mirror: whether the caller adds the mirrored image's embedding; part of the stamp.
        far: the false accept rates to report TAR at.
        far_rule: ``at_most`` or ``nearest``, see `facelab.benchmark.operating_points.tar_at_far`.
        size: image size handed to the network, pixels.
        count: pairs to draw where path is null.
        seed: of that draw.
        groups: ``beta`` and ``gamma`` of the group-aware similarity, s = cosθ − β·D^γ, D the distance between what the
            network thinks of the two images' groups (GroupFace, CVPR 2020, section 3.5); with β = 0 it is the cosine.
        quality: ``alpha`` and ``beta`` of the quality-aware similarity (QMagFace), see `QualityAware`; with 0 and 0 it
            is the cosine. An image's quality is the length of its embedding, with `mirror` of the mean of its two.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(
        self,
        name: str | None,
        path: str | None,
        pairs: str | None,
        folds: int,
        mirror: bool,
        far: Sequence[float],
        far_rule: str,
        size: int,
        count: int,
        seed: int,
        groups: Mapping[str, float],
        quality: Mapping[str, float],
    ):
        if folds < 2:
            raise ValueError(
                f"benchmark.folds={folds}: a threshold is chosen on the other folds; at least 2 are needed"
            )
        if size < 1:
            raise ValueError(f"benchmark.size={size}: an image has at least one pixel; usual is 112")
        if pairs is not None and (path is None or Path(path).suffix == ".bin"):
            raise ValueError(
                f"benchmark.pairs={pairs}: belongs to a folder of images; set benchmark.path to that folder"
            )
        check_far_rule(far_rule)
        for target in far:
            allowed_false_accepts(target, 1)
        self.beta, self.gamma = (float(groups[key]) for key in ("beta", "gamma"))
        if not (0 <= self.beta <= 10 and 0 < self.gamma <= 10):
            raise ValueError(
                f"benchmark.groups has beta {self.beta} and gamma {self.gamma}: give beta from 0 (the cosine alone) to "
                "10, gamma above 0 and to 10"
            )
        self.quality = QualityAware(quality, "benchmark.quality")
        self.path = None if path is None else Path(path).expanduser()
        self.pairs = None if pairs is None else Path(pairs).expanduser()
        self.folds, self.mirror, self.far, self.far_rule = folds, bool(mirror), tuple(map(float, far)), far_rule
        self.size, self.count, self.seed = size, count, seed
        self.name = name or self._derived_name()

    def _derived_name(self) -> str:
        if self.path is None:
            return "heldout"
        file = self._pairs_file() or self.path
        return file.absolute().parent.name if file.stem == "pairs" else file.stem

    def _pairs_file(self) -> Path | None:
        """The pairs.txt; None for a `.bin`."""
        if self.path is None or self.path.suffix == ".bin":
            return None
        return self.pairs or self.path / "pairs.txt"

    def open(self, own: FacePairs | PairSet | None) -> PairSet:
        """The pair set: read from `path`, or drawn from ``own`` where path is null.

        Args:
            own: what the caller holds out of its training data: anything with ``labels`` (M,) and ``load(i)``, from
                which ``count`` pairs are drawn, or a PairSet that is used as it is. Ignored where path is given.

        Raises:
            FileNotFoundError: the file, the folder or images are not there.
            ValueError: a file that cannot be trusted or read, or no ``own`` where one is needed.
        """
        if self.path is None:
            if own is None:
                raise ValueError("benchmark.path is null and no identities are held out; set benchmark.path")
            if isinstance(own, PairSet):
                return own
            return FacePairs(own.labels, own.load).draw(self.name, self.count, self.folds, self.seed, self.size)
        if next(iter(self.path.parts), "") in NOWHERE:
            raise ValueError(
                f"benchmark={self.path.stem} lies beside the training data, and these have no folder (data.root): give "
                f"benchmark.path=FOLDER/{self.path.name}"
            )
        if not self.path.exists():
            raise FileNotFoundError(f"benchmark.path={self.path}: no such file or folder; {_beside(self.path)}")
        pairs_file = self._pairs_file()
        if pairs_file is None:
            return read_bin(self.path, self.name, self.folds, self.size)
        if not self.path.is_dir():
            raise ValueError(f"benchmark.path={self.path}: neither a .bin nor a folder of images")
        if not pairs_file.is_file():
            raise FileNotFoundError(f"{pairs_file}: no such list of pairs; set benchmark.pairs to the set's pairs.txt")
        return read_folder(self.path, pairs_file, self.name, self.folds, self.size)

    @property
    def compares_groups(self) -> bool:
        """Whether `evaluate` needs to be told of the images' groups."""
        return self.beta > 0

    def evaluate(self, embeddings: np.ndarray, pairset: PairSet, groups: np.ndarray | None = None) -> PairResult:
        """Scores the pairs and measures.

        Metrics: ``<name>/accuracy``, ``<name>/accuracy_std``, ``<name>/tar@far=1e-3`` (one per target), ``<name>/eer``,
        ``<name>/auc``, all as fractions. A target below one in the number of impostor pairs cannot be measured: the TAR
        is then the one at zero false accepts, and ``notes`` says so under the same key.

        Args:
            embeddings: (M, D), one row per image of ``pairset``, in its order; need not be normalised, and must not be
                where `quality` looks at their lengths.
            pairset: what `open` gave.
            groups: (M, G), what the network's head has of each image's group; needed where β is not 0. Only directions
                count, as of the embeddings.

        Raises:
            ValueError: another number of rows, or rows that are zero or not finite; groups are to be compared, and
                there are none.
        """
        name, same = pairset.name, pairset.same
        distance = squared_distances(embeddings, pairset)
        if self.quality.active:  # ‖a − b‖² = 2 − 2·cosθ: what is added to the similarity is taken away here, twice
            lengths = np.linalg.norm(np.asarray(embeddings, np.float64), axis=1) / (2 if self.mirror else 1)
            distance -= 2 * self.quality.added(1 - distance / 2, lengths[pairset.pairs].min(axis=1))
        if self.compares_groups:
            if groups is None:
                raise ValueError(f"benchmark.groups.beta is {self.beta:g}, and this network has no groups: set it to 0")
            # ‖a − b‖² = 2 − 2·cosθ: what lessens the similarity by β·D^γ adds 2·β·D^γ here.
            distance += 2 * self.beta * np.sqrt(squared_distances(groups, pairset)) ** self.gamma
        accuracy, _ = fold_accuracy(distance, same, pairset.fold)
        genuine, impostor = -distance[same], -distance[~same]
        metrics = {f"{name}/accuracy": float(np.mean(accuracy)), f"{name}/accuracy_std": float(np.std(accuracy))}
        notes = {}
        for target in self.far:
            key = f"{name}/tar@far={short(target)}"
            metrics[key] = tar_at_far(genuine, impostor, target, self.far_rule).tar
            if self.far_rule == "at_most" and not allowed_false_accepts(target, impostor.size):
                notes[key] = f"zero false accepts, N={impostor.size:,}"
        metrics |= {f"{name}/eer": eer(genuine, impostor), f"{name}/auc": auc(genuine, impostor)}
        stamp = self._stamp(pairset)
        curve, people = det(genuine, impostor), (pairset.people, pairset.people_from)
        return PairResult(name, metrics, -distance, same, pairset.fold, stamp, curve, notes, (), *people)

    def _stamp(self, pairset: PairSet) -> dict[str, object]:
        groups = {"groups": f"{self.beta:g}·D^{self.gamma:g} of unit vectors"} if self.compares_groups else {}
        quality = {"quality": str(self.quality)} if self.quality.active else {}
        return {
            **groups,
            **quality,
            "protocol": "pairs-10fold",
            "mirror": self.mirror,
            "score": "minus squared L2 distance",
            "distance": "squared L2 on unit sums",
            "thresholds": "0:4:0.01",
            "folds": pairset.folds,
            "pairs": len(pairset.pairs),
            "genuine": int(pairset.same.sum()),
            "impostor": int((~pairset.same).sum()),
            "far_rule": self.far_rule,
            "size": pairset.size,
            "color": "rgb",
            "source": f"{pairset.source} sha256:{pairset.digest}",
        }


def squared_distances(embeddings: np.ndarray, pairset: PairSet) -> np.ndarray:
    """Squared L2 distances of the L2-normalised embeddings, (N,) float64, in blocks that stay in the cache.

    Args:
        embeddings: (M, D).
        pairset: its ``pairs`` (N, 2) number the rows.

    Raises:
        ValueError: another number of rows than images, or rows that are zero or not finite (counted, the first named).
    """
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or len(embeddings) != len(pairset):
        raise ValueError(
            f"{pairset.name}: embeddings of shape {embeddings.shape} for {len(pairset)} images; one row each"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        norm = np.sqrt(np.einsum("md,md->m", embeddings, embeddings, dtype=np.float64))
    for what, bad in (("not finite", ~np.isfinite(norm)), ("zero", norm == 0)):
        if bad.any():
            raise ValueError(
                f"{pairset.name}: {int(bad.sum())} of {len(bad)} embeddings are {what}, the first is that of image "
                f"{int(np.argmax(bad))}; check the model's weights and its precision"
            )
    distance = np.empty(len(pairset.pairs))
    for start in range(0, len(distance), BLOCK):
        block = pairset.pairs[start : start + BLOCK]
        first, second = (embeddings[rows].astype(np.float64) / norm[rows, None] for rows in block.T)
        first -= second
        distance[start : start + BLOCK] = np.sum(np.square(first, out=first), axis=1)
    return distance


BLOCK = 256
NOWHERE = ("???", "None")  # what a preset's path begins with where there is no data.root, or where it is null


def _beside(path: Path) -> str:
    """What lies where a file was expected."""
    folder = path.absolute().parent
    packs = sorted(file.name for file in folder.glob("*.bin"))
    if packs:
        return f"{folder} has {', '.join(packs)}"
    missing = f"{folder} has no .bin" if folder.is_dir() else f"there is no folder {folder} either"
    return f"{missing}; give a .bin, or a folder of images with its pairs.txt"


def short(far: float) -> str:
    """A rate as it is written in this field: 0.001 → 1e-3, 0.00025 → 2.5e-4."""
    mantissa, exponent = f"{far:.6e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
