"""Who is it? One photograph or several, searched for in a gallery."""

import json
from pathlib import Path
from typing import Any

from facelab.atomic import atomic
from facelab.benchmark.pairs import short
from facelab.kinds import check_kind
from facelab.verify.enrolment import stamp_of
from facelab.verify.gallery import Gallery
from facelab.verify.recogniser import Recogniser
from facelab.verify.verification import open_recogniser

__all__ = ["check_model", "identify", "limit"]


def identify(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Says of each photograph who it is, or that nobody in the gallery is.

    Args:
        config: conf/identify.yaml, plain values.

    Returns:
        Of each photograph its name, who it is (None: nobody) and the candidates with their scores.

    Raises:
        ValueError, FileNotFoundError: something is wrong; said before anything is searched.
    """
    photographs, top = config["photographs"], config["top"]
    for key, kind in (("photographs", list[str]), ("top", int), ("gallery", str), ("out", str | None)):
        check_kind(key, config[key], kind)
    if not photographs:
        raise ValueError("no photograph was given: python -m facelab.identify photo.jpg gallery=…")
    if top < 1:
        raise ValueError(f"top is {top}: give a number of candidates above 0")
    for name in photographs:
        if not Path(name).expanduser().exists():
            raise FileNotFoundError(f"{name}: no such photograph")
    gallery = Gallery.load(config["gallery"])
    model = config["model"] or gallery.stamp["model"]
    if not Path(model).expanduser().is_file():
        raise FileNotFoundError(
            f"model={model}: no such file; give the model that gallery={config['gallery']} was made with"
        )
    mirror = gallery.stamp["mirror"]
    recogniser = open_recogniser({**config, "model": model, "mirror": mirror})
    check_model(recogniser, gallery, config["gallery"])
    threshold, measured_on = limit(recogniser, gallery, config["fpir"], config["threshold"])
    found = gallery.search(recogniser.embed(photographs), min(top, len(gallery.names)))
    print(f"{len(gallery.names):,} people; threshold {threshold:.4f}: {measured_on}")
    answers = []
    for name, scores, people in zip(photographs, found.scores, found.people, strict=True):
        candidates = [
            {"person": gallery.names[who], "score": float(score)}
            for who, score in zip(people, scores, strict=True)
            if who >= 0
        ]
        known = bool(candidates and candidates[0]["score"] >= threshold)
        answers.append(
            {"photograph": name, "person": candidates[0]["person"] if known else None, "candidates": candidates}
        )
        print(f"{name}: {answers[-1]['person'] or 'nobody in the gallery'}")
        for candidate in candidates:
            print(f"    {candidate['score']:7.4f}  {candidate['person']}")
    if config["out"] is not None:
        about = {"gallery": config["gallery"], "model": str(model), "threshold": threshold, "measured_on": measured_on}
        out = Path(config["out"]).expanduser()
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic(out) as temporary:
            text = json.dumps({**about, "answers": answers}, indent=2, ensure_ascii=False)
            temporary.write_text(text + "\n", encoding="utf-8")
        print(f"written to {out}")
    return answers


def check_model(recogniser: Recogniser, gallery: Gallery, name: str) -> None:
    """Refuses a gallery that was made with another model, or with the same one used otherwise.

    Raises:
        ValueError: embeddings of the two do not compare; what differs is named.
    """
    ours, theirs = stamp_of(recogniser), gallery.stamp
    if ours["size"] != theirs["size"]:
        raise ValueError(
            f"gallery={name}: was made of faces of {theirs['size']} pixels, "
            f"model={recogniser.path} takes {ours['size']}: enrol with this model"
        )
    if ours["mirror"] != theirs["mirror"]:
        raise ValueError(
            f"gallery={name}: was made with mirror={str(theirs['mirror']).lower()}, this is "
            f"mirror={str(ours['mirror']).lower()}: make them alike"
        )
    if ours["sha256"] != theirs["sha256"] and ours["checkpoint_sha256"] != theirs["checkpoint_sha256"]:
        raise ValueError(
            f"gallery={name}: was made with {theirs['model']} ({theirs['sha256'][:12]}…), and "
            f"model={recogniser.path} is another: embeddings of two models do not compare; enrol with this model"
        )


def limit(recogniser: Recogniser, gallery: Gallery, fpir: float, threshold: float | None) -> tuple[float, str]:
    """The threshold of a search, and what it stands for in words.

    Measured on the gallery where its searches can state the rate; else by the model's FMR, since at most N·FMR of the
    searches find a stranger among N people.

    Raises:
        ValueError: neither can state it.
    """
    check_kind("fpir", fpir, float)
    check_kind("threshold", threshold, float | None)
    if threshold is not None:
        if not -1 < threshold < 1:
            raise ValueError(f"threshold is {threshold}: give a cosine between -1 and 1, as 0.4")
        return float(threshold), "as given, its FPIR is not known"
    try:
        return gallery.threshold(fpir), f"FPIR at most {fpir:g}, measured on {gallery.stamp['searches']}"
    except ValueError:
        thresholds = recogniser.thresholds
        people = len(gallery.names)
        if thresholds is None or not 0 < fpir < 1 or not thresholds.points or thresholds.points[-1].fmr > fpir / people:
            raise
        point = thresholds.at(fpir / people)
        return point.threshold, (
            f"FPIR at most {people:,} people × FMR {short(point.fmr)} = {people * point.fmr:.2g}, "
            f"by {thresholds.benchmark}"
        )
