"""How good is the photograph of a face? What the detector, BRISQUE and the network's own norm say of it."""

from __future__ import annotations

from typing import NamedTuple

from facelab.quality.brisque import Brisque, load
from facelab.verify.finding import Aligned

__all__ = ["Quality", "brisque_or_none", "quality_of"]


class Quality(NamedTuple):
    """Of one face; None where it is not known.

    Attributes:
        pixels: shorter side of the face's box in the photograph; higher is better.
        detector: score of the detector, 0 to 1; higher is better.
        brisque: of the aligned face, about 0 to 100; *lower* is better.
        norm: length of the embedding, where the model tells it; higher is better, and compares within one model alone.
    """

    pixels: float | None
    detector: float | None
    brisque: float | None
    norm: float | None

    def __str__(self) -> str:
        told = (
            ("face of", self.pixels, "{:.0f} pixels"),
            ("detector", self.detector, "{:.2f}"),
            ("BRISQUE", self.brisque, "{:.0f} (lower is better)"),
            ("norm", self.norm, "{:.1f}"),
        )
        return ", ".join(f"{word} {form.format(value)}" for word, value, form in told if value is not None) or "unknown"


def brisque_or_none() -> Brisque | None:
    """BRISQUE's regression; None where the package that carries it is not installed."""
    try:
        return load()
    except ValueError:
        return None


def quality_of(face: Aligned, brisque: Brisque | None, norm: float | None) -> Quality:
    """What is known of an aligned face; the norm is that of `Recogniser.norms`."""
    found = None if brisque is None else float(brisque(face.pixels[None])[0])
    found = None if found is None or found != found else round(found, 2)  # a flat image has none
    norm = None if norm is None else round(norm, 2)
    if face.face is None:
        return Quality(None, None, found, norm)
    return Quality(round(face.face.side, 1), round(face.face.score, 4), found, norm)
