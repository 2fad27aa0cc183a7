"""By which a model is known: the hash of its files' content."""

import hashlib
from pathlib import Path

__all__ = ["digest_of", "sha256"]


def digest_of(path: Path) -> str:
    """SHA-256 of a model's content, as 64 hexadecimal digits; of OpenVINO's two files, the .xml and its weights.

    Two networks of one shape have the same .xml, and differ in the .bin beside it.
    """
    weights = path.with_suffix(".bin")
    return sha256(path, weights) if path.suffix == ".xml" and weights.is_file() else sha256(path)


def sha256(*files: Path) -> str:
    """Of files, one behind the other."""
    total = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()
