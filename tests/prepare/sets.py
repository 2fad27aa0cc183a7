"""Small sets for the tests of this room, and the door as its user opens it."""

import sys
from pathlib import Path

import numpy as np
import simplejpeg
from hydra.core.global_hydra import GlobalHydra

from facelab.prepare.__main__ import main
from facelab.prepare.pack import write_pack

SIZE = 16


def picture(seed: int, size: int = SIZE) -> np.ndarray:
    """Few large patches, which JPEG hardly changes."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.ascontiguousarray(small.repeat(size // 4, 0).repeat(size // 4, 1))


def jpeg(seed: int, size: int = SIZE, quality: int = 90) -> bytes:
    return simplejpeg.encode_jpeg(picture(seed, size), quality)


def folder_set(root: Path, content: dict[str, list[bytes]]) -> Path:
    """<root>/<identity>/<number>.jpg."""
    for name, images in content.items():
        (root / name).mkdir(parents=True)
        for number, image in enumerate(images):
            (root / name / f"{number}.jpg").write_bytes(image)
    return root


def pack_set(root: Path, content: dict[str, list[bytes]], size: int = SIZE) -> Path:
    own = enumerate(content.values())
    records = [(label, f"{number}.jpg", image) for label, images in own for number, image in enumerate(images)]
    write_pack(root, records, list(content), size)
    return root


def door(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    """`python -m facelab.prepare …`: exit status, output, and what it says of an error."""
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", ["prepare", *words])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    output = capsys.readouterr()
    return code, output.out, output.err
