"""One study of what a network's norms know: of class size, of image quality, of faces at all; and its record."""

from __future__ import annotations

import json
import math
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from facelab.atomic import atomic
from facelab.digest import digest_of
from facelab.quality import brisque, outliers, qmagface
from facelab.quality.error_discard import Curve
from facelab.quality.figures import draw
from facelab.quality.findings import (
    Samples,
    correlations,
    curves,
    qualities_of,
    relative_areas,
    write_samples,
)
from facelab.quality.measure import Measured, Meter
from facelab.quality.options import DiscardOptions, FitOptions, OutlierOptions, StudyOptions
from facelab.quality.standardised import Standardiser, fit
from facelab.quality.subject import Images, Subject, open_subject, other_pictures
from facelab.tracking import console
from facelab.training.fit import quiet
from facelab.training.options import EvaluationOptions, check_kinds
from facelab.training.preemption import Interrupted
from facelab.training.progress import show_choices, show_result
from facelab.training.record import RunDirectory
from facelab.training.trained import file_of, meta_of

SIGN = (
    "BRISQUE: lower is better quality; norm and standardised norm: higher is better. A norm that follows image quality "
    "has a negative correlation with BRISQUE."
)


@dataclass
class Study:
    """The parts of a study, built and checked, before anything is embedded."""

    config: DictConfig
    subject: Subject
    meter: Meter
    study: StudyOptions
    discard: DiscardOptions
    fitting: FitOptions
    outliers: OutlierOptions
    pictures: Images | None

    @property
    def size(self) -> int:
        """H = W in pixels."""
        return self.config.data.size


def study(config: DictConfig, where: Path) -> dict[str, float]:
    """Measures the training images and unseen ones, and keeps what was found: see docs/quality.md for the files.

    Args:
        config: the composed configuration, conf/quality.yaml.
        where: the record's folder.

    Returns:
        The numbers, as in metrics.json.

    Raises:
        ValueError, FileNotFoundError: something in the configuration or its files is wrong; said before embedding.
        Interrupted: Ctrl-C; nothing of the result is kept.
    """
    quiet()
    path = file_of("checkpoint", config.checkpoint)
    meta = meta_of(path)
    if meta is not None:
        config.data.size = meta["config"]["data"]["size"]
    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    check_kinds(plain)
    plain["checkpoint_sha256"] = digest_of(path)
    with closing(RunDirectory(where, plain)) as directory:
        if directory.finished:
            console().print("This study is finished; nothing was embedded. Delete its folder to run it again.\n")
            show_result(directory.metrics(), {}, str(directory.path))
            return directory.metrics()
        return _run(_build(config, path, meta), directory, plain)


def _build(config: DictConfig, path: Path, meta: dict[str, Any] | None) -> Study:
    options = EvaluationOptions(config.batch_size, config.accelerator, config.precision, config.progress)
    asked, found = StudyOptions.of(config.study), OutlierOptions.of(config.outliers)
    discard, fitted = DiscardOptions.of(config.discard), FitOptions.of(config.qmagface)
    regression = brisque.load() if asked.brisque else None
    subject = open_subject(config, path, meta)
    pictures = other_pictures(found.folder, config.data.size, found.count)
    meter = Meter(subject.network, options, config.loader, regression)
    return Study(config, subject, meter, asked, discard, fitted, found, pictures)


def _run(study: Study, directory: RunDirectory, plain: dict[str, Any]) -> dict[str, float]:
    try:
        directory.start(plain)
        directory.describe(None, {})
        show_choices(_choices(study), str(directory.path))
        samples, standardiser, known = _of_training(study)
        report: dict[str, Any] = {
            "sign": SIGN,
            "study": asdict(study.study),
            "images": len(samples.labels),
            "classes": len(samples.sizes),
        }
        report["norm"] = {"mean": standardiser.mean, "std": standardiser.std}
        report["without_brisque"] = int((~samples.judged).sum())
        found = correlations(samples, study.study.replicates, study.study.seed)
        report["correlations"] = {name: one._asdict() for name, one in found.items()}
        unseen = _of_unseen(study, standardiser, known)
        report |= unseen.report
        standardiser.save(directory.path / "standardised.safetensors")
        write_samples(directory.path / "samples.csv", samples, study.subject.known.names, study.subject.known.people)
        auroc = report.get("auroc", {})
        draw(directory.path / "quality.png", samples, found, unseen.curves, study.discard, auroc, unseen.without)
        with atomic(directory.path / "quality.json") as temporary:
            temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        metrics = _flat(report)
        directory.finish(metrics)
        show_result(metrics, _notes(report), str(directory.path))
        print("\n".join(["BRISQUE is lower where quality is better.", *filter(None, [unseen.without])]))
        return metrics
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the same command, started again, begins this study anew") from None


def _choices(study: Study) -> dict[str, str]:
    subject = study.subject
    return {
        "checkpoint": subject.trained.about,
        "known": subject.known.about,
        "unseen": subject.without if subject.pairs is None else f"{subject.pairs.name}: {subject.pairs.about}",
        "brisque": "yes" if study.study.brisque else "left out",
    }


def _of_training(study: Study) -> tuple[Samples, Standardiser, Measured]:
    """Lengths and BRISQUE of the training images, what is known of their classes, and some of their embeddings."""
    known = study.subject.known
    count, size = len(known.images), study.subject.trained.backbone.embedding_size
    norms, scores, sums = np.empty(count), np.empty(count), np.zeros((len(known.sizes), size), np.float32)
    few = np.sort(np.random.default_rng(study.study.seed).permutation(count)[: study.outliers.count])
    kept, done = [], 0
    for part in study.meter.batches(known.images, "training images"):
        rows = slice(done, done + len(part.plain))
        lengths = part.norms
        wrong = ~(np.isfinite(lengths) & (lengths > 0))
        if wrong.any():
            first = known.names(done + int(np.argmax(wrong)))
            raise ValueError(f"the embedding of {first} is zero or not finite: check the model's weights and precision")
        norms[rows], scores[rows] = lengths, part.brisque
        np.add.at(sums, known.labels[rows], part.plain / lengths[:, None].astype(np.float32))
        kept.append(part.plain[few[(few >= rows.start) & (few < rows.stop)] - done])
        done = rows.stop
    made = fit(norms, known.labels, sums, study.study.smallest)
    samples = Samples(known.labels, known.sizes, norms, made.own(norms, known.labels), scores)
    return samples, made, Measured(np.concatenate(kept), None, scores[few])


@dataclass(frozen=True)
class Unseen:
    """What was found of faces and pictures that the network was not trained on."""

    report: dict[str, Any]
    curves: dict[str, Curve]
    without: str


def _of_unseen(study: Study, standardiser: Standardiser, known: Measured) -> Unseen:
    pairs, benchmark, nearest = study.subject.pairs, study.subject.benchmark, study.study.nearest
    if pairs is None:
        return Unseen({}, {}, study.subject.without)
    measured = study.meter.all(pairs, "unseen faces", benchmark.mirror)
    embeddings = measured.plain if measured.mirrored is None else measured.plain + measured.mirrored
    result = benchmark.evaluate(embeddings, pairs)
    qualities = qualities_of(measured.norms, measured.plain, measured.brisque, standardiser, nearest)
    report: dict[str, Any] = {"benchmark": {"metrics": result.metrics, "stamp": result.stamp}}
    found, without = {}, ""
    try:
        found = curves(result.scores, result.same, pairs.pairs, qualities, study.discard)
        areas = relative_areas(found, study.discard.limit)
        report["discard"] = {**asdict(study.discard), "relative_area": areas}
    except ValueError as error:  # of few pairs: the rest of the study stands
        without = f"No error-versus-discard curve: {error}."
    report["qmagface"] = _fitted(study, embeddings / (2 if benchmark.mirror else 1), pairs)
    if "not_fitted" in report["qmagface"]:
        without = f"{without} QMagFace was not fitted: {report['qmagface']['not_fitted']}.".strip()
    own = qualities_of(known.norms, known.plain, known.brisque, standardiser, nearest)
    report["auroc"] = _outliers(study, standardiser, qualities, own)
    return Unseen(report, found, without)


def _fitted(study: Study, embeddings: np.ndarray, pairs: Any) -> dict[str, Any]:
    """QMagFace's numbers for these pairs: a development set, on which nothing may be reported with them."""
    similarity, quality = qmagface.cosines_and_quality(embeddings, pairs.pairs)
    options = study.fitting
    told = {"lowest": options.lowest, "highest": options.highest, "scale": options.scale, "fitted_on": pairs.source}
    try:
        made = qmagface.fit(
            similarity, quality, pairs.same, **{key: told[key] for key in ("lowest", "highest", "scale")}
        )
    except ValueError as error:
        return {**told, "not_fitted": str(error)}
    return {**told, "alpha": made.alpha, "beta": made.beta}


def _outliers(
    study: Study, standardiser: Standardiser, unseen: dict[str, np.ndarray], own: dict[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """AUROC of unseen faces against what is no face, and of known people's images against those of unknown ones."""
    pairs, count, seed = study.subject.pairs, study.outliers.count, study.study.seed
    assert pairs is not None
    noise = outliers.noise(count, study.size, seed)
    faces = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int)
    sets = {
        "noise": Images(count, lambda i, out=None: noise[i]),
        "scrambled": Images(len(faces), lambda i, out=None: outliers.scrambled(pairs.load(int(faces[i])), seed + i)),
        **({} if study.pictures is None else {"pictures": study.pictures}),
    }
    found = {"known_people": _auroc(own, unseen)}
    for name, images in sets.items():
        other = study.meter.all(images, name)
        theirs = qualities_of(other.norms, other.plain, other.brisque, standardiser, study.study.nearest)
        found[name] = _auroc(unseen, theirs)
    return found


def _auroc(faces: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> dict[str, float]:
    return {kind: outliers.auroc(values, others[kind]) for kind, values in faces.items() if kind in others}


def _flat(report: dict[str, Any]) -> dict[str, float]:
    """The numbers for metrics.json; what is undefined is left out."""
    flat: dict[str, float] = {"images": report["images"], "classes": report["classes"]}
    flat |= {f"norm/{name}": value for name, value in report["norm"].items()}
    for name, one in report["correlations"].items():
        flat |= {name: one["value"], f"{name}_low": one["low"], f"{name}_high": one["high"]}
    flat |= report.get("benchmark", {}).get("metrics", {})
    flat |= {f"discard/{name}": area for name, area in report.get("discard", {}).get("relative_area", {}).items()}
    flat |= {f"auroc/{name}/{kind}": v for name, kinds in report.get("auroc", {}).items() for kind, v in kinds.items()}
    flat |= {f"qmagface/{key}": report.get("qmagface", {}).get(key, math.nan) for key in ("alpha", "beta")}
    return {name: value for name, value in flat.items() if math.isfinite(value)}


def _notes(report: dict[str, Any]) -> dict[str, str]:
    return {name: f"[{one['low']:.3f}, {one['high']:.3f}]" for name, one in report["correlations"].items()}
