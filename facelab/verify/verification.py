"""The whole way for two photographs: detect, align, embed, compare, say so, and leave a picture."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from facelab import __version__
from facelab.atomic import atomic
from facelab.benchmark.pairs import short
from facelab.kinds import check_kind
from facelab.verify.recogniser import Comparison, Recogniser, load_model
from facelab.verify.thresholds import Point, Thresholds, beside

__all__ = ["verify"]

RECOGNITION = ("network", "detect", "face", "min_size", "mirror", "batch_size", "threads", "precision")


def verify(config: dict[str, Any]) -> Comparison | None:
    """Compares two photographs; or, with an evaluation and no photographs, stores its thresholds beside the model.

    Args:
        config: conf/verify.yaml, plain values.

    Raises:
        ValueError, FileNotFoundError: something is wrong; nothing was written.
    """
    photographs = config["photographs"]
    check_kind("photographs", photographs, list[str])
    if len(photographs) != 2 and not (config["evaluation"] and not photographs):
        raise ValueError(
            f"two photographs are compared, {len(photographs)} were given: python -m facelab.verify a.jpg b.jpg model=…"
        )
    _check_files(photographs)
    recogniser = open_recogniser(config)
    if not photographs:
        store(recogniser, config["evaluation"])
        return None
    point, measured_on = operating_point(recogniser, config)
    one, other = recogniser.align(photographs)
    found = recogniser.judge(one, other, point)
    _tell(recogniser, found, measured_on, config["out"])
    return found


def open_recogniser(config: dict[str, Any]) -> Recogniser:
    """The model of a configuration that has conf/recognition.yaml in it.

    Raises:
        ValueError, FileNotFoundError: see `load_model`.
    """
    check_kind("model", config["model"], str)
    return load_model(config["model"], detector=config["detector"], **{key: config[key] for key in RECOGNITION})


def operating_point(recogniser: Recogniser, config: dict[str, Any]) -> tuple[Point | None, str]:
    """The threshold of a configuration, and where it comes from in words; None where only the score is asked for.

    Raises:
        ValueError, FileNotFoundError: there is none, or it cannot be stated.
    """
    fmr, threshold, evaluation = config["fmr"], config["threshold"], config["evaluation"]
    check_kind("threshold", threshold, float | None)
    check_kind("fmr", fmr, float | None)
    check_kind("evaluation", evaluation, str | None)
    if threshold is not None:
        if not -1 < threshold < 1:
            raise ValueError(f"threshold is {threshold}: give a cosine between -1 and 1, as 0.3")
        return Point(float("nan"), float(threshold), float("nan")), "threshold as given: its FMR is not known"
    if fmr is None:
        return None, "no threshold was asked for"
    point = recogniser.point(fmr, evaluation)
    found = recogniser.thresholds if evaluation is None else recogniser.measured(evaluation)
    assert found is not None
    return point, (
        f"FMR at most {short(point.fmr)}, measured on {found.benchmark} ({found.impostors:,} impostor pairs"
        f"{', mirrored images added' if found.mirror else ''}), FNMR there {100 * point.fnmr:.2f} %"
    )


def store(recogniser: Recogniser, evaluation: str) -> Thresholds:
    """Puts the thresholds of an evaluation beside the model.

    Raises:
        ValueError, FileNotFoundError: there is no such evaluation, or it is of another model.
    """
    found = recogniser.measured(evaluation)
    if not found.points:
        raise ValueError(f"evaluation={evaluation}: {found.impostors} impostor pairs are too few for any FMR below 1")
    file = beside(recogniser.path)
    found.save(file)
    lowest = found.points[-1]
    print(
        f"{found.benchmark}: thresholds for FMR {short(found.points[0].fmr)} … {short(lowest.fmr)}, of "
        f"{found.impostors:,} impostor pairs\nwritten to {file}"
    )
    return found


def _check_files(photographs: list[str]) -> None:
    """Before a model is opened, which takes longer."""
    for name in photographs:
        if not Path(name).expanduser().exists():
            raise FileNotFoundError(f"{name}: no such photograph")


def _tell(recogniser: Recogniser, found: Comparison, measured_on: str, out: str | None) -> None:
    from facelab.verify.quality import brisque_or_none, quality_of

    brisque = brisque_or_none()
    norms = recogniser.norms(np.stack([face.pixels for face in found.faces]))
    told = [None, None] if norms is None else norms.tolist()
    qualities = [quality_of(face, brisque, norm) for face, norm in zip(found.faces, told, strict=True)]
    verdict = {True: "same person", False: "different people", None: "no verdict"}[found.same]
    threshold = "" if found.point is None else f"   threshold {found.point.threshold:.4f}"
    print(f"{verdict}   score {found.score:.4f}{threshold}\n{measured_on}")
    for face, quality in zip(found.faces, qualities, strict=True):
        print(f"{face.name}: {quality}")
    if brisque is None:
        print("BRISQUE is left out: pip install 'facelab[quality]'")
    if out is None:
        return
    from facelab.verify.picture import save

    check_kind("out", out, str)
    name = "_".join(Path(face.name).stem for face in found.faces)[:120]
    folder = Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / f"{name}.png", found, qualities, measured_on)
    point = found.point
    about = {
        "photographs": [face.name for face in found.faces],
        "same": found.same,
        "score": found.score,
        "threshold": None if point is None else point.threshold,
        "fmr": None if point is None or point.fmr != point.fmr else point.fmr,
        "measured_on": measured_on,
        "faces": [
            {**quality._asdict(), "found": face.found, "box": None if face.face is None else list(face.face.box)}
            for face, quality in zip(found.faces, qualities, strict=True)
        ],
        "model": str(recogniser.path),
        "model_sha256": next(iter(recogniser.known)),
        "mirror": recogniser.mirror,
        "facelab": __version__,
    }
    with atomic(folder / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"drawn in {folder / name}.png")
