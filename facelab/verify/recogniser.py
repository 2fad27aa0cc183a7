"""`facelab.load_model`: a model with the way to it, from photographs to embeddings and to a verdict. No Hydra.

from facelab import load_model

model = load_model("model.onnx")
embeddings = model.embed(["a.jpg", "b.jpg"])  # (2,D) float32, of unit length
print(model.compare("a.jpg", "b.jpg", fmr=1e-3))
"""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from facelab.configuration import defaults
from facelab.digest import digest_of
from facelab.kinds import check_kind
from facelab.verify.finding import Aligned, Finder, Photograph
from facelab.verify.thresholds import Point, Thresholds, of_evaluation, of_model

__all__ = ["Comparison", "Embedder", "Recogniser", "load_model"]


class Embedder(Protocol):
    """What a recogniser needs of `facelab.export.loading.Embedder`."""

    size: int
    metadata: dict[str, Any]
    mirror: bool  # whether the file mirrors by itself

    @property
    def embedding_size(self) -> int:
        """D."""

    def embed(self, images: np.ndarray, mirror: bool = False) -> np.ndarray:
        """(B,H,W,3) uint8 RGB → (B,D) float32, of unit length."""

    def features(self, images: np.ndarray) -> np.ndarray:
        """The same as the file gives it, of any length where `metadata["unit"]` is false."""


@dataclass(frozen=True)
class Comparison:
    """Two photographs, compared.

    Attributes:
        score: cosine of the two embeddings, −1 to 1; higher is more alike.
        same: the verdict; None where no threshold was asked for.
        point: the threshold and what it stands for; None likewise.
        faces: the two aligned faces.
    """

    score: float
    same: bool | None
    point: Point | None
    faces: tuple[Aligned, Aligned]

    def __str__(self) -> str:
        if self.point is None:
            return f"score {self.score:.4f}"
        verdict = "same person" if self.same else "different people"
        stated = "" if self.point.fmr != self.point.fmr else f" at FMR {self.point.fmr:g}"  # NaN of a threshold given
        return f"{verdict}: score {self.score:.4f}, threshold {self.point.threshold:.4f}{stated}"


class Recogniser:
    """A network and how photographs come to it.

    Attributes:
        path: the model's file.
        size: S, pixels of an aligned face.
        mirror: whether the mirrored image's embedding is added.
        metadata: what the file says of itself.

    Args:
        path: see above.
        embedder: what runs it.
        finder: what makes aligned faces of photographs.
        mirror: see above.
        batch_size: faces embedded at once.

    Raises:
        ValueError: a value is out of its range, or mirror=false of a model that mirrors by itself.
    """

    def __init__(self, path: Path, embedder: Embedder, finder: Finder, mirror: bool, batch_size: int):
        check_kind("mirror", mirror, bool)
        check_kind("batch_size", batch_size, int)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: give a number above 0")
        self.path, self.embedder, self.finder = path, embedder, finder
        self.size, self.metadata = embedder.size, embedder.metadata
        if embedder.mirror and not mirror:
            raise ValueError(
                f"mirror=false, but model={path} was exported with the mirrored image folded in: export anew"
            )
        self.mirror, self.batch_size = mirror, batch_size

    def align(self, images: Photograph | Iterable[Photograph]) -> list[Aligned]:
        """The face of each photograph; an image that is one already stays as it is (see `detect`).

        Args:
            images: files, or arrays (H,W,3) uint8 RGB; one of them, or several.

        Raises:
            ValueError, FileNotFoundError: of one of them there is no face; it is named.
        """
        return [self.finder(one, f"image {number}") for number, one in enumerate(_several(images))]

    def embed(self, images: Photograph | Iterable[Photograph] | Sequence[Aligned]) -> np.ndarray:
        """(N,D) float32, of unit length, in the order of the images; they are read and embedded batch by batch.

        Args:
            images: as `align` takes them, or what it gave; (N,S,S,3) uint8 RGB of aligned faces is the fastest.

        Raises:
            ValueError, FileNotFoundError: see `align`.
        """
        rows = [self.embed_faces(faces) for faces in self._batches(images)]
        return np.concatenate(rows) if rows else np.empty((0, self.embedder.embedding_size), np.float32)

    def embed_faces(self, faces: np.ndarray) -> np.ndarray:
        """The same of one batch of aligned faces (B,S,S,3) uint8 RGB."""
        assert faces.shape[1:] == (self.size, self.size, 3)
        return self.embedder.embed(np.ascontiguousarray(faces), self.mirror)

    def compare(self, one: Photograph, other: Photograph, fmr: float | None = None) -> Comparison:
        """Whether two photographs show the same person.

        Args:
            one: a file, or an array (H,W,3) uint8 RGB.
            other: the same.
            fmr: false match rate of the verdict; None: only the score.

        Raises:
            ValueError, FileNotFoundError: one has no face, or there is no threshold for this rate.
        """
        point = None if fmr is None else self.point(fmr)
        first, second = self.align([one]) + self.align([other])
        return self.judge(first, second, point)

    def judge(self, one: Aligned, other: Aligned, point: Point | None) -> Comparison:
        """The same of faces that are aligned, at an operating point."""
        vectors = self.embed_faces(np.stack([one.pixels, other.pixels])).astype(np.float64)
        score = float(vectors[0] @ vectors[1] / np.linalg.norm(vectors[0]) / np.linalg.norm(vectors[1]))
        return Comparison(score, None if point is None else score >= point.threshold, point, (one, other))

    def norms(self, faces: np.ndarray) -> np.ndarray | None:
        """(B,) lengths of the embeddings of (B,S,S,3) faces; None of a model that gives only directions."""
        if self.metadata.get("unit", True):
            return None
        return np.linalg.norm(self.embedder.features(faces).astype(np.float64), axis=1)

    def point(self, fmr: float, evaluation: str | None = None) -> Point:
        """The threshold at a false match rate.

        Args:
            fmr: at most so many of all pairs of strangers may match.
            evaluation: a record of this model's evaluation; None: what is stored with the model.

        Raises:
            ValueError: there is none, or these pairs cannot state such a rate.
        """
        check_kind("fmr", fmr, float)
        if not 0 < fmr < 1:
            raise ValueError(f"fmr is {fmr:g}: give a false match rate between 0 and 1, as 0.001")
        found = self.thresholds if evaluation is None else self.measured(evaluation)
        if found is None:
            raise ValueError(
                f"model={self.path} has no thresholds with it: evaluation=RECORD takes them from an evaluation of this "
                "model, threshold=0.3 is one of your own, fmr=null gives the score alone"
            )
        return found.at(fmr)

    @cached_property
    def thresholds(self) -> Thresholds | None:
        """Those that are stored with the model; None where there are none.

        Raises:
            ValueError: they are damaged, or were measured otherwise than this model works.
        """
        found = of_model(self.path, self.metadata)
        if found is not None and found.mirror != self.mirror:
            raise ValueError(
                f"the thresholds of model={self.path} were measured with mirror={str(found.mirror).lower()}, which is "
                f"not how it works here: mirror={str(found.mirror).lower()}, or another evaluation=RECORD"
            )
        return found

    def measured(self, evaluation: str) -> Thresholds:
        """The thresholds of an evaluation of this model, or of the checkpoint that it was made of.

        Raises:
            ValueError, FileNotFoundError: there is no such evaluation, or it is of another model.
        """
        return of_evaluation(evaluation, self.known, self.mirror)

    @cached_property
    def known(self) -> dict[str, str]:
        """SHA-256 of the file, and of what it was exported from → which it is."""
        found = {digest_of(self.path): str(self.path)}
        if origin := self.metadata.get("checkpoint_sha256"):
            found[str(origin)] = "its checkpoint"
        return found

    def _batches(self, images: Any) -> Iterator[np.ndarray]:
        direct = self.finder.detect != "yunet" and isinstance(images, np.ndarray) and images.dtype == np.uint8
        if direct and images.shape[1:] == (self.size, self.size, 3):
            for start in range(0, len(images), self.batch_size):
                yield images[start : start + self.batch_size]
            return
        numbered = enumerate(_several(images))
        while batch := list(islice(numbered, self.batch_size)):
            faces = [one if isinstance(one, Aligned) else self.finder(one, f"image {number}") for number, one in batch]
            yield np.stack([face.pixels for face in faces])


def load_model(path: str | Path, **options: Any) -> Recogniser:
    """Opens a model: an exported file (ONNX, OpenVINO, TorchScript, exported program, safetensors) or a checkpoint.

    Args:
        path: the file.
        options: what shall differ from conf/recognition.yaml: detect, face, min_size, mirror, batch_size, threads,
            precision, network; detector is a file (YuNet's), or what shall differ from conf/detection.yaml.

    Raises:
        ValueError: an unknown option, one out of its range, or a file that is no such model.
        FileNotFoundError: there is no such file.
    """
    from facelab.export.loading import Runtime, load_embedder

    chosen = defaults("detection", "recognition")
    unknown = [name for name in options if name not in chosen]
    if unknown:
        near = difflib.get_close_matches(unknown[0], chosen, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"load_model has no option {unknown[0]!r}: {hint}there are {', '.join(chosen)}")
    detector = options.pop("detector", {})
    own = {"model": str(detector)} if isinstance(detector, (str, Path)) else dict(detector)
    chosen |= {**options, "detector": chosen["detector"] | own}
    file = Path(path).expanduser()
    check_kind("threads", chosen["threads"], int | None)
    if chosen["precision"] not in (None, "fp32", "bf16") or (chosen["threads"] or 1) < 1:
        told = f"threads={chosen['threads']}, precision={chosen['precision']}"
        raise ValueError(f"{told}: give a number above 0, and fp32 or bf16; null leaves it to the runtime")
    mirror, batch_size = chosen.pop("mirror"), chosen.pop("batch_size")
    runtime = Runtime(chosen.pop("threads"), chosen.pop("precision"), chosen.pop("network"))
    embedder = load_embedder(file, runtime, max(1, batch_size) if isinstance(batch_size, int) else 1)
    return Recogniser(file, embedder, Finder(embedder.size, **chosen), mirror, batch_size)


def _several(images: Any) -> Iterable[Any]:
    """One photograph is a list of one."""
    if isinstance(images, (str, Path, Aligned)) or (isinstance(images, np.ndarray) and images.ndim == 3):
        return [images]
    return images
